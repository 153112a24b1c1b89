//! Many queries against keys in codes, and codes that are made of a block.

use half::{bf16, f16};
use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{Codes, QUAD, padded};
use mnemex_kernels::many::{Coded, GROUPS, MAX_DIM, Many, Room, row_bytes};
use mnemex_kernels::single::{Format, Stored};
use mnemex_kernels::{Isa, Kernels, Pass, Rule};
use mnemex_oracle as oracle;

use crate::block::{METRICS, Random, awkward, norm, tables};

const ROWS: usize = 64;

/// A block in half precision and its codes.
struct Block {
    keys: Vec<Vec<f32>>,
    codes: Vec<u8>,
    scale: [f32; ROWS],
    lost: f32,
}

impl Block {
    fn new(many: &Many, metric: Metric, format: Format, keys: &[Vec<f32>]) -> Block {
        let (n, dim) = (keys.len(), keys[0].len());
        let half = |x: f32| match format {
            Format::F16 => (f16::from_f32(x).to_bits(), f16::from_f32(x).to_f32()),
            _ => (bf16::from_f32(x).to_bits(), bf16::from_f32(x).to_f32()),
        };
        let stride = (2 * dim).next_multiple_of(64) + 64 * (n % 2);
        let mut bytes = vec![0xFF; n.next_multiple_of(16) * stride];
        let mut kept = Vec::new();
        for (key, row) in keys.iter().zip(bytes.chunks_exact_mut(stride)) {
            row[..(2 * dim).next_multiple_of(64)].fill(0);
            for (&x, at) in key.iter().zip(row.chunks_exact_mut(2)) {
                at.copy_from_slice(&half(x).0.to_ne_bytes());
            }
            kept.push(key.iter().map(|&x| half(x).1).collect::<Vec<f32>>());
        }
        let inverse = |key: &Vec<f32>| if norm(key) == 0.0 { 0.0 } else { (1.0 / norm(key)) as f32 };
        let mut inverses: Vec<f32> = kept.iter().map(inverse).collect();
        inverses.resize(n.next_multiple_of(16), f32::NAN);
        let mut scale = [f32::NAN; ROWS];
        let (mut codes, mut rows) = (vec![0x55; padded(dim) * ROWS], vec![0x55; 16 * row_bytes(dim)]);
        let room = Room { bytes: &mut codes, scale: &mut scale, rows: &mut rows };
        let unit = if metric == Metric::Cos { &inverses[..] } else { &[] };
        let lost = (many.code)(Stored { bytes: &bytes, format, stride, n, scale: unit, next: &[] }, dim, room);
        Block { keys: kept, codes, scale, lost }
    }

    fn codes(&self) -> Codes<'_> {
        Codes {
            bytes: &self.codes,
            scale: &self.scale,
            rows: ROWS,
            n: self.keys.len(),
            next: &self.codes[..self.codes.len() / 3],
        }
    }

    /// Key r times its unit, as its codes have it.
    fn approximate(&self, r: usize, dim: usize) -> Vec<f64> {
        let code = |j: usize| f64::from(self.codes[(j / QUAD * ROWS + r) * QUAD + j % QUAD]) - 128.0;
        (0..dim).map(|j| f64::from(self.scale[r]) * code(j)).collect()
    }
}

fn each(check: impl Fn(&Kernels, Many, Block, (Metric, oracle::Metric), u64, &[Vec<f32>])) {
    for kernels in tables() {
        let Some(many) = kernels.many else { continue };
        awkward(|seed, kind, n, n_queries, dim| {
            let mut random = Random(seed);
            for (metric, meaning, _) in METRICS.into_iter().filter(|(_, _, rule)| *rule != Rule::L2) {
                for format in [Format::Bf16, Format::F16] {
                    // Beyond float16's range there are no numbers to lose anything of.
                    let kind = if format == Format::F16 && kind == 2 { 0 } else { kind };
                    let keys: Vec<_> = (0..n).map(|_| random.vector(kind, dim)).collect();
                    let queries: Vec<_> = (0..n_queries).map(|_| random.vector(kind, dim)).collect();
                    let block = Block::new(&many, metric, format, &keys);
                    check(kernels, many, block, (metric, meaning), seed, &queries);
                }
            }
        });
    }
}

/// Queries as the kernels take them, and what each loses.
fn coded(metric: Metric, queries: &[Vec<f32>]) -> (Coded, Vec<f64>) {
    let mut coded = Coded::default();
    let size = |q: &[f32]| if metric == Metric::Cos && norm(q) > 0.0 { norm(q) } else { 1.0 };
    let unit = |q: &Vec<f32>| {
        let size = size(q);
        q.iter().map(|&x| (f64::from(x) / size) as f32).collect::<Vec<f32>>()
    };
    let lost = queries.iter().map(|q| coded.push(&unit(q))).collect();
    (coded, lost)
}

fn select(many: &Many, block: &Block, live: u64, queries: &Coded, thresholds: &[f32]) -> Vec<Pass> {
    let mut passed = vec![Pass { score: 1.0, row: 2, query: 3 }];
    (many.select)(block.codes(), live, queries.all(), thresholds, &mut passed);
    assert_eq!(passed.remove(0), Pass { score: 1.0, row: 2, query: 3 }, "what was there stays");
    passed
}

#[test]
fn every_processor_with_vnni_has_them() {
    let sets: Vec<Isa> = tables().filter(|kernels| kernels.many.is_some()).map(|kernels| kernels.isa).collect();
    assert_eq!(sets.is_empty(), !Isa::Avx512Vnni.is_available());
}

#[test]
fn codes_lose_no_more_than_is_said() {
    each(|kernels, _, block, (metric, _), _, _| {
        let dim = block.keys[0].len();
        for (r, key) in block.keys.iter().enumerate() {
            let unit = if metric == Metric::Cos && norm(key) > 0.0 { 1.0 / norm(key) } else { 1.0 };
            let off = |(&x, about): (&f32, f64)| (f64::from(x) * unit - about).powi(2);
            let lost = key.iter().zip(block.approximate(r, dim)).map(off).sum::<f64>().sqrt();
            let (isa, said) = (kernels.isa, block.lost);
            assert!(lost <= f64::from(said), "{isa:?} {metric:?} dim {dim} row {r}: {lost} is lost, {said} is said");
        }
        let most = block.keys.iter().flatten().fold(0.0f32, |most, x| most.max(x.abs()));
        let room = f64::from(most) / 250.0 * (dim as f64).sqrt() + 1e-18 * (dim as f64).sqrt();
        let least = block.keys.iter().map(|key| norm(key)).fold(f64::INFINITY, f64::min);
        let room = if metric == Metric::Dot { room } else { (dim as f64).sqrt() / 250.0 + 1e-6 };
        // The norm of a key that is hardly one says nothing.
        let usual = metric == Metric::Dot || least > 1e-10;
        assert!(!usual || f64::from(block.lost) <= room, "{} where {room} is usual", block.lost);
        assert!(block.scale[block.keys.len()..].iter().all(|&scale| scale == 0.0), "no factor where there is no key");
    });
}

#[test]
fn scores_are_within_the_proven_bound() {
    each(|kernels, many, block, metric, seed, queries| {
        check_bounds(kernels, &many, &block, metric, Random(seed).bits(), queries);
    });
}

fn check_bounds(
    kernels: &Kernels,
    many: &Many,
    block: &Block,
    (metric, meaning): (Metric, oracle::Metric),
    live: u64,
    queries: &[Vec<f32>],
) {
    let ((coded, lost), n) = (coded(metric, queries), block.keys.len());
    let passed = select(many, block, live, &coded, &vec![f32::NEG_INFINITY; queries.len()]);
    let rows = (0..n as u32).filter(|r| live >> r & 1 == 1);
    let want: Vec<_> = (0..queries.len() as u32).flat_map(|q| rows.clone().map(move |r| (q, r))).collect();
    let got: Vec<_> = passed.iter().map(|pass| (pass.query, pass.row)).collect();
    assert_eq!(got, want, "all that live, query by query");
    for pass in passed {
        let (x, at) = (&block.keys[pass.row as usize], pass.query as usize);
        let q = &queries[at];
        let bound = QueryBound::of(metric, q.len(), norm(q), Precision::Codes { lost: lost[at] });
        let bound = bound.at(reach(metric, norm(x)), block.lost);
        let want = oracle::score(meaning, x, q);
        let within = bound.lower(pass.score) <= want && want <= bound.upper(pass.score);
        let (isa, dim) = (kernels.isa, q.len());
        assert!(within, "{isa:?} {metric:?} dim {dim}: {} for {want}, {bound:?}", pass.score);
    }
}

#[test]
fn what_is_below_the_threshold_does_not_pass() {
    each(|kernels, many, block, (metric, _), seed, queries| {
        let (coded, _) = coded(metric, queries);
        let all = select(&many, &block, u64::MAX, &coded, &vec![f32::NEG_INFINITY; queries.len()]);
        let n = block.keys.len();
        let mut random = Random(seed);
        let thresholds: Vec<f32> = (0..queries.len()).map(|q| all[q * n + random.bits() as usize % n].score).collect();
        let live = random.bits();
        let passes = |p: &&Pass| live >> p.row & 1 == 1 && p.score >= thresholds[p.query as usize];
        let want: Vec<Pass> = all.iter().filter(passes).copied().collect();
        assert_eq!(select(&many, &block, live, &coded, &thresholds), want, "{:?}", kernels.isa);
        let none = select(&many, &block, live, &coded, &vec![f32::INFINITY; queries.len()]);
        assert_eq!(none, [], "nothing reaches infinity");
        // Where nothing can be said, everything passes.
        let unknown = select(&many, &block, u64::MAX, &coded, &vec![f32::NAN; queries.len()]);
        assert_eq!(unknown, all);
    });
}

#[test]
fn groups_have_the_largest_of_their_scores() {
    for kernels in tables() {
        let Some(many) = kernels.many else { continue };
        for dim in [1, 7, 64, 100] {
            let mut random = Random(dim as u64);
            let keys: Vec<_> = (0..ROWS).map(|_| random.vector(0, dim)).collect();
            let queries: Vec<_> = (0..13).map(|_| random.vector(0, dim)).collect();
            let block = Block::new(&many, Metric::Dot, Format::Bf16, &keys);
            let (coded, _) = coded(Metric::Dot, &queries);
            let all = select(&many, &block, u64::MAX, &coded, &[f32::NEG_INFINITY; 13]);
            let (stride, before) = (GROUPS + 3, 0.1);
            let mut out = vec![before; 13 * stride];
            (many.maxima)(block.codes(), coded.all(), &mut out, stride);
            for (q, out) in out.chunks_exact(stride).enumerate() {
                for (group, &got) in out[..GROUPS].iter().enumerate() {
                    let of_group = (group..ROWS).step_by(GROUPS).map(|r| all[q * ROWS + r].score);
                    assert_eq!(got, of_group.fold(before, f32::max), "{:?} query {q} group {group}", kernels.isa);
                }
                assert_eq!(out[GROUPS..], [before; 3], "what lies between queries stays");
            }
        }
    }
}

#[test]
fn a_key_that_is_not_finite_has_no_codes_and_spoils_no_other() {
    for kernels in tables() {
        let Some(many) = kernels.many else { continue };
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let keys = vec![vec![1.0, -2.0, 0.5], vec![1.0, odd, 2.0], vec![0.0; 3]];
            for metric in [Metric::Dot, Metric::Cos] {
                for format in [Format::Bf16, Format::F16] {
                    let block = Block::new(&many, metric, format, &keys);
                    assert_eq!(block.scale[1], 0.0);
                    assert!(block.scale[0] > 0.0 && block.lost < 0.02 && block.lost > 0.0, "{}", block.lost);
                }
            }
        }
    }
}

#[test]
fn sums_of_the_longest_and_largest_keys_are_right() {
    for kernels in tables() {
        let Some(many) = kernels.many else { continue };
        for dim in [1025, 2049, MAX_DIM] {
            let mut random = Random(dim as u64);
            let mut keys = [0.5, -0.5, 7.0].map(|x| vec![x; dim]).to_vec();
            keys.extend((0..2).map(|kind| random.vector(kind * 4, dim)));
            for (metric, meaning) in [(Metric::Dot, oracle::Metric::Dot), (Metric::Cos, oracle::Metric::Cos)] {
                let block = Block::new(&many, metric, Format::Bf16, &keys);
                check_bounds(kernels, &many, &block, (metric, meaning), u64::MAX, &keys);
            }
        }
    }
}

#[test]
fn blocks_with_room_for_fewer_rows_give_the_same() {
    for kernels in tables() {
        let Some(many) = kernels.many else { continue };
        for (rows, dim) in [(16, 5), (16, 64), (32, 33), (32, 128)] {
            let mut random = Random(dim as u64);
            let keys: Vec<_> = (0..rows - 1).map(|_| random.vector(0, dim)).collect();
            let queries: Vec<_> = (0..11).map(|_| random.vector(0, dim)).collect();
            let block = Block::new(&many, Metric::Dot, Format::Bf16, &keys);
            let (coded, _) = coded(Metric::Dot, &queries);
            let want = select(&many, &block, u64::MAX, &coded, &[0.1; 11]);
            // The same codes closer together.
            let quads = block.codes.chunks_exact(ROWS * QUAD).flat_map(|quad| &quad[..rows * QUAD]);
            let bytes: Vec<u8> = quads.copied().collect();
            let codes = Codes { bytes: &bytes, scale: &block.scale[..rows], rows, n: keys.len(), next: &[] };
            let mut got = Vec::new();
            (many.select)(codes, u64::MAX, coded.all(), &[0.1; 11], &mut got);
            assert_eq!(got, want, "{:?} {rows} rows of {dim}", kernels.isa);
        }
    }
}
