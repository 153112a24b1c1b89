//! The bfloat16 first pass, where there is one.
#![expect(unsafe_code, reason = "sets how the thread treats small numbers")]

use half::bf16;
use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::select::Maxima;
use mnemex_kernels::short::{self, Short, ShortKeys, ShortQueries};
use mnemex_kernels::{Kernels, Keys, PANEL, Rule};
use mnemex_oracle as oracle;

use crate::block::{Block, METRICS, Random, awkward, norm, tables};

/// All scores of a block, as panels of `rows` from row `first` on.
fn scores(short: &Short, keys: ShortKeys, queries: ShortQueries, rows: usize, first: usize) -> Vec<f32> {
    let mut out = vec![f32::NEG_INFINITY; queries.n.div_ceil(PANEL) * rows * PANEL];
    (short.maxima)(keys, queries, Maxima { out: &mut out, groups: rows, first, per: 1 });
    out
}

/// A block's numbers, rounded; memory that may not be read, or has to be written, poisoned first.
struct Rounded {
    rows: Vec<u16>,
    panels: Vec<u16>,
    lost: Vec<f64>,
    keys_lost: f32,
    stride: usize,
}

impl Rounded {
    fn new(short: &Short, block: &Block, dim: usize) -> Rounded {
        let (n, stride) = (block.queries.len(), short::padded(dim));
        let mut rows = vec![poison(); short::ROWS * stride];
        (short.shorten)(block.keys(), dim, &mut rows);
        let lose = |(key, at): (&Vec<f32>, usize)| (best().lost)(key) * block.scale.get(at).copied().unwrap_or(1.0);
        let keys_lost = block.keys.iter().zip(0..).map(lose).fold(0.0, f32::max);
        let mut panels = vec![0; n.next_multiple_of(PANEL) * stride];
        let mut lost = vec![0.0; n];
        short::pack(&block.panels, dim, &mut panels, &mut lost);
        Rounded { rows, panels, lost, keys_lost, stride }
    }

    fn keys<'a>(&'a self, block: &'a Block) -> ShortKeys<'a> {
        let (rows, stride, n, scale) = (&self.rows[..], self.stride, block.keys.len(), &block.scale[..]);
        ShortKeys { rows, stride, n, scale, next: &[] }
    }

    fn queries(&self, block: &Block, dim: usize) -> ShortQueries<'_> {
        ShortQueries { panels: &self.panels, dim, n: block.queries.len() }
    }
}

fn best() -> &'static Kernels {
    Kernels::best().unwrap()
}

fn poison() -> u16 {
    bf16::NAN.to_bits()
}

fn for_every_short_block(check: impl Fn(&Short, &Block, Metric, oracle::Metric, u64, usize)) {
    for short in tables().filter_map(|kernels| kernels.short) {
        awkward(|seed, kind, n, n_queries, dim| {
            for (metric, meaning, rule) in METRICS.into_iter().filter(|(_, _, rule)| *rule != Rule::L2) {
                check(&short, &Block::new(seed, kind, n, n_queries, dim, rule), metric, meaning, seed, dim);
            }
        });
    }
}

#[test]
fn keys_are_rounded_to_nearest_even_and_padded_with_zeros() {
    for_every_short_block(|short, block, _, _, _, dim| {
        let rounded = Rounded::new(short, block, dim);
        for (r, row) in rounded.rows.chunks_exact(rounded.stride).enumerate() {
            for (j, &got) in row.iter().enumerate() {
                let x = block.keys.get(r).and_then(|key| key.get(j)).copied().unwrap_or(0.0);
                let want = if x.abs() < f32::MIN_POSITIVE { 0.0 } else { bf16::from_f32(x).to_f32() };
                assert_eq!(bf16::from_bits(got).to_f32(), want, "row {r} number {j}: {x}");
            }
        }
    });
}

#[test]
fn short_scores_are_within_the_proven_bound() {
    for_every_short_block(|short, block, metric, meaning, _, dim| {
        let rounded = Rounded::new(short, block, dim);
        let (n, room) = (block.keys.len(), block.keys.len() + 3);
        let out = scores(short, rounded.keys(block), rounded.queries(block, dim), room, 2);
        for (t, q) in block.queries.iter().enumerate() {
            let precision = Precision::Bf16 { lost: rounded.lost[t].sqrt() };
            for (r, x) in block.keys.iter().enumerate() {
                let bound =
                    QueryBound::of(metric, dim, norm(q), precision).at(reach(metric, norm(x)), rounded.keys_lost);
                let got = out[(t / PANEL * room + 2 + r) * PANEL + t % PANEL];
                let want = oracle::score(meaning, x, q);
                let within = bound.lower(got) <= want && want <= bound.upper(got);
                assert!(within, "{metric:?} dim {dim}: {got} for {want}, {bound:?}");
            }
        }
        assert_eq!(
            (out[0], out[(n + 2) * PANEL]),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            "rows outside the block were written"
        );
    });
}

#[test]
fn short_selection_passes_exactly_what_is_not_below_the_threshold() {
    for_every_short_block(|short, block, _, _, seed, dim| {
        let rounded = Rounded::new(short, block, dim);
        let (n, n_queries) = (block.keys.len(), block.queries.len());
        let lanes = n_queries.next_multiple_of(PANEL);
        let all = scores(short, rounded.keys(block), rounded.queries(block, dim), n, 0);
        let at = |r: usize, t: usize| all[(t / PANEL * n + r) * PANEL + t % PANEL];
        let thresholds: Vec<f32> = (0..lanes).map(|t| if t < n_queries { at(t % n, t) } else { 0.0 }).collect();
        let live = Random(seed).bits();
        let mut passed = vec![];
        (short.select)(rounded.keys(block), live, rounded.queries(block, dim), &thresholds, &mut passed);
        // Maxima know no NaN.
        let number = |score: f32| if score.is_nan() { f32::NEG_INFINITY } else { score };
        let mut got: Vec<_> = passed.iter().map(|p| (p.query, p.row, number(p.score).to_bits())).collect();
        got.sort_unstable();
        let pairs = (0..n_queries).flat_map(|t| (0..n).map(move |r| (r, t))).filter(|(r, _)| live >> r & 1 == 1);
        let passes = pairs.filter(|&(r, t)| at(r, t) >= thresholds[t]);
        let want: Vec<_> = passes.map(|(r, t)| (t as u32, r as u32, at(r, t).to_bits())).collect();
        assert_eq!(got, want, "dim {dim}");
    });
}

/// Runs with results below 2^-126 flushed to 0, as some libraries leave a thread.
#[cfg(target_arch = "x86_64")]
fn flushing<T>(body: impl FnOnce() -> T) -> T {
    const FLUSH_TO_ZERO: u32 = 1 << 15;
    let (mut before, mut flush) = (0u32, 0u32);
    // SAFETY: reads and writes the thread's own control register; it is put back below.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack)) };
    flush |= before | FLUSH_TO_ZERO;
    // SAFETY: as above.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const flush, options(nostack)) };
    let result = body();
    // SAFETY: as above.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const before, options(nostack)) };
    result
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_a_key_loses_is_not_underestimated_where_small_numbers_are_flushed() {
    for short in tables().filter_map(|kernels| kernels.short) {
        for exponent in [-22, -20, -18, -17, -16, -10, 0] {
            let mut random = Random(7);
            let dim = 8;
            let key: Vec<f32> = (0..dim).map(|_| random.unit() * 10f32.powi(exponent)).collect();
            let mut rows = vec![f32::NAN; 8 * dim];
            rows[..dim].copy_from_slice(&key);
            let mut out = vec![0; short::ROWS * short::padded(dim)];
            let keys = Keys { rows: &rows, stride: dim, n: 1, scale: &[], next: &[] };
            let bound = flushing(|| {
                (short.shorten)(keys, dim, &mut out);
                (best().lost)(&key)
            });
            let rounded = out.iter().map(|&x| bf16::from_bits(x).to_f64());
            let lost = key.iter().zip(rounded).map(|(&x, short)| (f64::from(x) - short).powi(2)).sum::<f64>().sqrt();
            assert!(lost <= f64::from(bound), "1e{exponent}: {lost} is lost, {bound} was said");
        }
    }
}
