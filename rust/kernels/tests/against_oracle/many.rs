//! Many queries against keys in codes, and codes that are made of a block.

use half::{bf16, f16};
use mnemex_kernels::bound::{Precision, QueryBound, QueryBounds, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{Codes, QUAD, padded};
use mnemex_kernels::many::{Coded, CodedKeys, GROUPS, MAX_DIM, Many, Room, Shares, row_bytes};
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
    slack: [f32; ROWS],
}

impl Block {
    fn new(many: &Many, metric: Metric, format: Format, keys: &[Vec<f32>], shares: Shares) -> Block {
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
        let (mut scale, mut slack) = ([f32::NAN; ROWS], [f32::NAN; ROWS]);
        let (mut codes, mut rows) = (vec![0x55; padded(dim) * ROWS], vec![0x55; 16 * row_bytes(dim)]);
        let room = Room { bytes: &mut codes, scale: &mut scale, slack: &mut slack, rows: &mut rows };
        let unit = if metric == Metric::Cos { &inverses[..] } else { &[] };
        (many.code)(Stored { bytes: &bytes, format, stride, n, scale: unit, next: &[] }, dim, shares, room);
        Block { keys: kept, codes, scale, slack }
    }

    fn coded(&self) -> CodedKeys<'_> {
        CodedKeys { codes: self.codes(), slack: &self.slack }
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

fn each(check: impl Fn(&Kernels, Many, (Metric, oracle::Metric), Format, [&[Vec<f32>]; 2], u64)) {
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
                    check(kernels, many, (metric, meaning), format, [&keys, &queries], seed);
                }
            }
        });
    }
}

/// Queries as the kernels take them, and how far their scores can be off.
fn coded(metric: Metric, queries: &[Vec<f32>]) -> (Coded, QueryBounds) {
    let mut coded = Coded::default();
    let size = |q: &[f32]| if metric == Metric::Cos && norm(q) > 0.0 { norm(q) } else { 1.0 };
    let unit = |q: &Vec<f32>| {
        let size = size(q);
        q.iter().map(|&x| (f64::from(x) / size) as f32).collect::<Vec<f32>>()
    };
    let lost: Vec<f64> = queries.iter().map(|q| coded.push(&unit(q))).collect();
    let bound = |(q, &lost): (&Vec<f32>, &f64)| QueryBound::of(metric, q.len(), norm(q), Precision::Codes { lost });
    let bounds = queries.iter().zip(&lost).map(bound).collect();
    coded.bound(&bounds);
    (coded, bounds)
}

fn shares(queries: &Coded) -> Shares {
    Shares { before: 0.0, per_norm: queries.per_norm() }
}

/// What reaches some floors.
fn select(many: &Many, block: &Block, live: u64, queries: &Coded, floors: &[f32]) -> Vec<Pass> {
    let mut thresholds = vec![f32::NAN; floors.len()];
    queries.thresholds(floors, &mut thresholds);
    let mut passed = vec![Pass { score: 1.0, row: 2, query: 3 }];
    (many.select)(block.coded(), live, queries.all(), &thresholds, &mut passed);
    assert_eq!(passed.remove(0), Pass { score: 1.0, row: 2, query: 3 }, "what was there stays");
    passed
}

#[test]
fn every_processor_with_vnni_has_them() {
    let sets: Vec<Isa> = tables().filter(|kernels| kernels.many.is_some()).map(|kernels| kernels.isa).collect();
    assert_eq!(sets.is_empty(), !Isa::Avx512Vnni.is_available());
}

#[test]
fn slack_is_what_codes_lose_and_a_share_of_the_norm() {
    each(|kernels, many, (metric, _), format, [keys, _], _| {
        let shares = Shares { before: 0.25, per_norm: 0.5 };
        let blocks = [Shares::default(), shares].map(|shares| Block::new(&many, metric, format, keys, shares));
        let dim = keys[0].len();
        for (r, key) in blocks[0].keys.iter().enumerate() {
            // Of a key whose norm is hardly one nothing need be known for cosine: its block's reach is infinite.
            if metric == Metric::Cos && norm(key) < 1e-15 && norm(key) > 0.0 {
                continue;
            }
            let unit = if metric == Metric::Cos && norm(key) > 0.0 { 1.0 / norm(key) } else { 1.0 };
            let off = |(&x, about): (&f32, f64)| (f64::from(x) * unit - about).powi(2);
            let lost = key.iter().zip(blocks[0].approximate(r, dim)).map(off).sum::<f64>().sqrt();
            let [only, more] = [0, 1].map(|at| f64::from(blocks[at].slack[r]));
            let isa = kernels.isa;
            assert!(lost <= only, "{isa:?} {metric:?} dim {dim} row {r}: {lost} is lost, {only} is said");
            let length = if metric == Metric::Cos { (norm(key) * unit).min(1.0) } else { norm(key) };
            assert!(lost + 0.5 * length + 0.25 <= more, "{isa:?} {metric:?} dim {dim} row {r}: {more}");
            if norm(key) < 1e18 {
                let usual = key.iter().fold(0.0f64, |most, &x| most.max(f64::from(x.abs()))) / 250.0 * unit;
                let usual = (usual + 1e-18 * unit) * (dim as f64).sqrt() + 1e-6;
                assert!(only <= usual, "{only} where {usual} is usual");
                assert!(more <= (usual + 0.5 * length) * 1.01 + 0.26, "{more}");
            }
        }
        let beyond = &blocks[0].scale[keys.len()..];
        assert!(beyond.iter().all(|&scale| scale == 0.0), "no factor where there is no key");
    });
}

#[test]
fn scores_are_within_the_proven_bound() {
    each(|kernels, many, metric, format, [keys, queries], seed| {
        check_bounds(kernels, &many, metric, format, [keys, queries], Random(seed).bits());
    });
}

fn check_bounds(
    kernels: &Kernels,
    many: &Many,
    (metric, meaning): (Metric, oracle::Metric),
    format: Format,
    [keys, queries]: [&[Vec<f32>]; 2],
    live: u64,
) {
    let (coded, bounds) = coded(metric, queries);
    let block = Block::new(many, metric, format, keys, shares(&coded));
    // Without norms, slack is what is lost.
    let lost = Block::new(many, metric, format, keys, Shares::default()).slack;
    let passed = select(many, &block, live, &coded, &vec![f32::NEG_INFINITY; queries.len()]);
    let rows = (0..keys.len() as u32).filter(|r| live >> r & 1 == 1);
    let want: Vec<_> = (0..queries.len() as u32).flat_map(|q| rows.clone().map(move |r| (q, r))).collect();
    let got: Vec<_> = passed.iter().map(|pass| (pass.query, pass.row)).collect();
    assert_eq!(got, want, "all that live, query by query");
    for pass in passed {
        let (r, at) = (pass.row as usize, pass.query as usize);
        let (x, q) = (&block.keys[r], &queries[at]);
        let bound = bounds.at(at, reach(metric, norm(x)), lost[r]);
        let want = oracle::score(meaning, x, q);
        let within = bound.lower(pass.score) <= want && want <= bound.upper(pass.score);
        let (isa, dim) = (kernels.isa, q.len());
        assert!(within, "{isa:?} {metric:?} dim {dim}: {} for {want}, {bound:?}", pass.score);
    }
}

#[test]
fn what_reaches_a_floor_passes_and_little_else() {
    each(|kernels, many, (metric, meaning), format, [keys, queries], seed| {
        let (coded, bounds) = coded(metric, queries);
        let block = Block::new(&many, metric, format, keys, shares(&coded));
        let mut random = Random(seed);
        let exact = |q: usize, r: usize| oracle::score(meaning, &block.keys[r], &queries[q]);
        let floors: Vec<f32> = (0..queries.len()).map(|q| exact(q, random.bits() as usize % keys.len())).collect();
        let live = random.bits();
        let got = select(&many, &block, live, &coded, &floors);
        let mut passed = got.iter().map(|pass| (pass.query as usize, pass.row as usize)).peekable();
        for (q, &floor) in floors.iter().enumerate() {
            for r in (0..keys.len()).filter(|r| live >> r & 1 == 1) {
                let passes = passed.next_if_eq(&(q, r)).is_some();
                // Of what leaves float32's range, and of hardly anything for cosine, nothing is promised but by block.
                let reach = reach(metric, norm(&block.keys[r]));
                let score = exact(q, r);
                let known =
                    reach < f32::INFINITY && !score.is_nan() && bounds.at(q, reach, 1.0).upper(0.0) < f32::INFINITY;
                if !known {
                    continue;
                }
                assert!(passes || score < floor, "{:?} {metric:?}: {score} of row {r} reaches {floor}", kernels.isa);
                // Twice what is off: the score's own bound, and what the slack is wider for queries that are not the mean.
                let width = coded.width(q, block.slack[r]) + 4.0 * bounds.constant(q);
                let far = score + 1.5 * width < floor - 1e-5 * floor.abs();
                assert!(!(passes && far), "{:?} {metric:?}: {score} of row {r} for {floor}", kernels.isa);
            }
        }
        assert_eq!(passed.next(), None, "query by query, in row order");
        let all = select(&many, &block, u64::MAX, &coded, &vec![f32::NEG_INFINITY; queries.len()]);
        assert_eq!(all.len(), keys.len() * queries.len());
        // Where nothing can be said, everything passes.
        assert_eq!(select(&many, &block, u64::MAX, &coded, &vec![f32::NAN; queries.len()]), all);
        let (mut none, infinite) = (Vec::new(), vec![f32::INFINITY; queries.len()]);
        let sure = (0..queries.len()).all(|q| bounds.at(q, 0.0, 0.0).upper(0.0) < f32::INFINITY);
        if sure && block.slack.iter().all(|&slack| slack < 1e18) {
            (many.select)(block.coded(), u64::MAX, coded.all(), &infinite, &mut none);
        }
        assert_eq!(none, [], "nothing reaches infinity");
    });
}

#[test]
fn about_half_reach_the_median() {
    for kernels in tables() {
        let Some(many) = kernels.many else { continue };
        for dim in [5, 64, 130] {
            let mut random = Random(dim as u64);
            let [keys, queries] = [ROWS, 33].map(|n| (0..n).map(|_| random.vector(0, dim)).collect::<Vec<_>>());
            let (coded, _) = coded(Metric::Dot, &queries);
            let block = Block::new(&many, Metric::Dot, Format::Bf16, &keys, shares(&coded));
            let median = |q: &Vec<f32>| {
                let mut scores: Vec<f32> =
                    block.keys.iter().map(|x| oracle::score(oracle::Metric::Dot, x, q)).collect();
                scores.sort_by(f32::total_cmp);
                scores[ROWS / 2]
            };
            let floors: Vec<f32> = queries.iter().map(median).collect();
            let passed = select(&many, &block, u64::MAX, &coded, &floors).len();
            let [least, most] = [ROWS / 2, ROWS / 2 + 4].map(|rows| rows * queries.len());
            assert!((least..most).contains(&passed), "{:?} dim {dim}: {passed} in {least}..{most}", kernels.isa);
        }
    }
}

#[test]
fn groups_have_the_largest_of_their_scores() {
    for kernels in tables() {
        let Some(many) = kernels.many else { continue };
        for dim in [1, 7, 64, 100] {
            let mut random = Random(dim as u64);
            let keys: Vec<_> = (0..ROWS).map(|_| random.vector(0, dim)).collect();
            let queries: Vec<_> = (0..13).map(|_| random.vector(0, dim)).collect();
            let (coded, _) = coded(Metric::Dot, &queries);
            let block = Block::new(&many, Metric::Dot, Format::Bf16, &keys, shares(&coded));
            let all = select(&many, &block, u64::MAX, &coded, &[f32::NEG_INFINITY; 13]);
            let (stride, before) = (GROUPS + 3, 0.1);
            let mut out = vec![before; 13 * stride];
            (many.maxima)(block.coded(), coded.all(), &mut out, stride);
            for (q, out) in out.chunks_exact(stride).enumerate() {
                for (group, &got) in out[..GROUPS].iter().enumerate() {
                    let of_group = (group..ROWS).step_by(GROUPS);
                    let least = |r: usize| all[q * ROWS + r].score - 0.5 * coded.width(q, block.slack[r]);
                    let want = of_group.clone().map(least).fold(before, f32::max);
                    assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{got} for {want}");
                    let exact = of_group.map(|r| oracle::score(oracle::Metric::Dot, &block.keys[r], &queries[q]));
                    let most = exact.fold(f32::NEG_INFINITY, f32::max);
                    assert!(got == before || coded.floor(q, got) <= most, "{:?} query {q}", kernels.isa);
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
                    let block = Block::new(&many, metric, format, &keys, Shares { before: 0.0, per_norm: 0.01 });
                    assert_eq!((block.scale[1], block.slack[1]), (0.0, f32::INFINITY));
                    assert!(
                        block.scale[0] > 0.0 && block.slack[0] < 0.05 && block.slack[0] > 0.0,
                        "{}",
                        block.slack[0]
                    );
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
                check_bounds(kernels, &many, (metric, meaning), Format::Bf16, [&keys, &keys], u64::MAX);
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
            let (coded, _) = coded(Metric::Dot, &queries);
            let block = Block::new(&many, Metric::Dot, Format::Bf16, &keys, shares(&coded));
            let want = select(&many, &block, u64::MAX, &coded, &[0.1; 11]);
            // The same codes closer together.
            let quads = block.codes.chunks_exact(ROWS * QUAD).flat_map(|quad| &quad[..rows * QUAD]);
            let bytes: Vec<u8> = quads.copied().collect();
            let codes = Codes { bytes: &bytes, scale: &block.scale[..rows], rows, n: keys.len(), next: &[] };
            let mut got = Vec::new();
            let mut thresholds = [0.0; 11];
            coded.thresholds(&[0.1; 11], &mut thresholds);
            (many.select)(CodedKeys { codes, slack: &block.slack }, u64::MAX, coded.all(), &thresholds, &mut got);
            assert_eq!(got, want, "{:?} {rows} rows of {dim}", kernels.isa);
        }
    }
}
