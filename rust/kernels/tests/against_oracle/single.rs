//! One query against keys as they are stored, in every format.

use half::{bf16, f16};
use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::short;
use mnemex_kernels::single::{Format, One, Stored, arrange, arranged_len};
use mnemex_kernels::{Kernels, PANEL, Pass, Rule};
use mnemex_oracle as oracle;

use crate::block::{Block, METRICS, Random, awkward, norm, tables};

/// A block's keys in some format, rows apart by more than they need, and what they are then.
pub(super) struct Kept {
    pub(super) format: Format,
    pub(super) keys: Vec<Vec<f32>>,
    bytes: Vec<u8>,
    stride: usize,
    pub(super) scale: Vec<f32>,
}

impl Kept {
    pub(super) fn new(block: &Block, format: Format, dim: usize) -> Kept {
        let (n, padded) = (block.keys.len(), short::padded(dim));
        let number = |x: f32| match format {
            Format::F32 => (x.to_le_bytes().to_vec(), x),
            Format::F16 => (f16::from_f32(x).to_le_bytes().to_vec(), f16::from_f32(x).to_f32()),
            Format::Bf16 => (bf16::from_f32(x).to_le_bytes().to_vec(), bf16::from_f32(x).to_f32()),
        };
        let item = number(0.0).0.len();
        let stride = (padded + 5) * item;
        // Whatever is neither a number nor the padding of one is no number.
        let mut bytes = vec![0xFF; n.next_multiple_of(PANEL) * stride];
        let mut keys = Vec::new();
        for (key, row) in block.keys.iter().zip(bytes.chunks_exact_mut(stride)) {
            row[..padded * item].fill(0);
            for (&x, at) in key.iter().zip(row.chunks_exact_mut(item)) {
                at.copy_from_slice(&number(x).0);
            }
            keys.push(key.iter().map(|&x| number(x).1).collect());
        }
        let inverse = |key: &Vec<f32>| if norm(key) == 0.0 { 0.0 } else { (1.0 / norm(key)) as f32 };
        let mut scale: Vec<f32> = keys.iter().map(inverse).collect();
        scale.resize(n.next_multiple_of(PANEL), f32::NAN);
        Kept { format, keys, bytes, stride, scale }
    }

    /// The same numbers in float32.
    pub(super) fn widened(&self) -> Kept {
        let padded = short::padded(self.keys[0].len());
        let mut bytes = vec![0; self.keys.len().next_multiple_of(PANEL) * padded * 4];
        for (key, row) in self.keys.iter().zip(bytes.chunks_exact_mut(padded * 4)) {
            key.iter().zip(row.chunks_exact_mut(4)).for_each(|(x, at)| at.copy_from_slice(&x.to_le_bytes()));
        }
        let (keys, scale) = (self.keys.clone(), self.scale.clone());
        Kept { format: Format::F32, keys, bytes, stride: padded * 4, scale }
    }

    pub(super) fn stored(&self) -> Stored<'_> {
        let Kept { format, ref bytes, stride, .. } = *self;
        // What is read next changes nothing.
        Stored { bytes, format, stride, n: self.keys.len(), scale: &[], next: &bytes[..bytes.len() / 3] }
    }

    pub(super) fn select(&self, kernels: &Kernels, rule: Rule, live: u64, query: &[f32], threshold: f32) -> Vec<Pass> {
        let scale = if rule == Rule::Scaled { &self.scale[..] } else { &[] };
        let stored = Stored { scale, next: &[], ..self.stored() };
        let mut passed = vec![Pass { score: 1.0, row: 2, query: 3 }];
        (kernels.select_one)(rule, stored, live, One { numbers: query, at: 7, threshold }, &mut passed);
        assert_eq!(passed.remove(0), Pass { score: 1.0, row: 2, query: 3 }, "what was there stays");
        assert!(passed.iter().all(|pass| pass.query == 7));
        passed
    }
}

/// A query as the kernel takes it.
pub(super) fn padded(q: &[f32], rule: Rule, format: Format) -> Vec<f32> {
    let size = if rule == Rule::Scaled { norm(q) } else { 1.0 };
    let q: Vec<f32> = q.iter().map(|&x| if size == 0.0 { 0.0 } else { (f64::from(x) / size) as f32 }).collect();
    let mut out = vec![f32::NAN; arranged_len(format, q.len())];
    arrange(format, &q, &mut out);
    out
}

pub(super) fn for_every_query(check: impl Fn(&Kernels, &Kept, (Metric, oracle::Metric, Rule), u64, &[f32])) {
    for kernels in tables() {
        awkward(|seed, kind, n, _, dim| {
            for how in METRICS {
                let block = Block::new(seed, kind, n, 2, dim, how.2);
                for format in [Format::F32, Format::F16, Format::Bf16] {
                    let kept = Kept::new(&block, format, dim);
                    block.queries.iter().for_each(|q| check(kernels, &kept, how, seed, q));
                }
            }
        });
    }
}

#[test]
fn scores_are_within_the_proven_bound() {
    for_every_query(|kernels, kept, (metric, meaning, rule), seed, q| {
        let live = Random(seed).bits();
        let passed = kept.select(kernels, rule, live, &padded(q, rule, kept.format), f32::NEG_INFINITY);
        let rows: Vec<u32> = (0..kept.keys.len() as u32).filter(|r| live >> r & 1 == 1).collect();
        assert_eq!(passed.iter().map(|pass| pass.row).collect::<Vec<_>>(), rows, "all that live, in order");
        for pass in passed {
            let x = &kept.keys[pass.row as usize];
            let bound = QueryBound::of(metric, q.len(), norm(q), Precision::Single).at(reach(metric, norm(x)), 0.0);
            let want = oracle::score(meaning, x, q);
            // A float16 that overflowed has no score; nothing is promised then.
            let within = want.is_nan() || bound.lower(pass.score) <= want && want <= bound.upper(pass.score);
            let (isa, format, dim) = (kernels.isa, kept.format, q.len());
            assert!(within, "{isa:?} {metric:?} {format:?} dim {dim}: {} for {want}, {bound:?}", pass.score);
        }
    });
}

#[test]
fn what_is_below_the_threshold_does_not_pass() {
    for_every_query(|kernels, kept, (_, _, rule), seed, q| {
        let q = padded(q, rule, kept.format);
        let all = kept.select(kernels, rule, u64::MAX, &q, f32::NEG_INFINITY);
        let threshold = all[seed as usize % all.len()].score;
        let live = Random(seed).bits();
        let passes = |pass: &Pass| {
            live >> pass.row & 1 == 1 && (pass.score >= threshold || pass.score.is_nan() || threshold.is_nan())
        };
        let bits = |passed: Vec<Pass>| passed.into_iter().map(|p| (p.row, p.score.to_bits())).collect::<Vec<_>>();
        let want = all.into_iter().filter(passes).collect();
        assert_eq!(bits(kept.select(kernels, rule, live, &q, threshold)), bits(want), "{:?}", kernels.isa);
    });
}

#[test]
fn refined_scores_are_those_of_one_query() {
    for_every_query(|kernels, kept, (_, _, rule), seed, q| {
        if rule == Rule::L2 {
            return;
        }
        let (q, n) = (padded(q, rule, kept.format), kept.keys.len());
        let scale = if rule == Rule::Scaled { &kept.scale[..] } else { &[] };
        let mut queries = vec![0.5; 3 * q.len()];
        queries[q.len()..][..q.len()].copy_from_slice(&q);
        let mut random = Random(seed);
        let rows: Vec<u32> = (0..1 + random.bits() % 40).map(|_| (random.bits() % n as u64) as u32).collect();
        let mut passes: Vec<Pass> = rows.iter().map(|&row| Pass { score: f32::NAN, row, query: 1 }).collect();
        (kernels.refine)(Stored { scale, ..kept.stored() }, &queries, q.len(), &mut passes);
        let all = kept.select(kernels, rule, u64::MAX, &q, f32::NEG_INFINITY);
        for (pass, row) in passes.iter().zip(rows) {
            let want = all[row as usize].score;
            assert_eq!((pass.row, pass.query), (row, 1));
            assert_eq!(pass.score.to_bits(), want.to_bits(), "{:?} {rule:?} row {row}", kernels.isa);
        }
    });
}
