//! Every instruction set against float64 loops, over awkward lengths, offsets and values; output poisoned first.
#![allow(missing_docs, clippy::unwrap_used, clippy::needless_range_loop, reason = "tests")]

use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::softmax::Logit;
use mnemex_kernels::tile::{Queries, pack, packed_len};
use mnemex_kernels::{Isa, Kernels, Keys, PANEL, Pass, Rule};
use mnemex_oracle as oracle;

const METRICS: [(Metric, oracle::Metric, Rule); 3] = [
    (Metric::Dot, oracle::Metric::Dot, Rule::Dot),
    (Metric::Cos, oracle::Metric::Cos, Rule::Scaled),
    (Metric::L2, oracle::Metric::L2, Rule::L2),
];

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// One of the kinds of numbers that break kernels.
    fn vector(&mut self, kind: usize, dim: usize) -> Vec<f32> {
        (0..dim)
            .map(|j| match kind {
                0 => self.unit(),
                1 => self.unit() * 1e-42,
                2 => self.unit() * 1e18,
                3 => [0.0, -0.0][self.bits() as usize % 2],
                4 => 0.3,
                5 => f32::from(u8::from(j == dim / 2)),
                _ => (self.unit() * 8.0).round(),
            })
            .collect()
    }
}

fn tables() -> impl Iterator<Item = &'static Kernels> {
    Isa::available().map(|isa| Kernels::of(isa).unwrap())
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Keys and queries laid out as the kernels want them, the float after each row poisoned where it may not be read.
struct Block {
    keys: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
    rows: Vec<f32>,
    stride: usize,
    scale: Vec<f32>,
    panels: Vec<f32>,
}

impl Block {
    fn new(seed: u64, kind: usize, n: usize, n_queries: usize, dim: usize, rule: Rule) -> Block {
        let mut random = Random(seed);
        let keys: Vec<_> = (0..n).map(|_| random.vector(kind, dim)).collect();
        let queries: Vec<_> = (0..n_queries).map(|_| random.vector(kind.min(6), dim)).collect();
        let stride = dim + seed as usize % 8;
        let mut rows = vec![f32::NAN; n.next_multiple_of(8) * stride];
        for (at, key) in rows.chunks_exact_mut(stride).zip(&keys) {
            at[..dim].copy_from_slice(key);
        }
        let inverse = |x: f64| if x == 0.0 { 0.0 } else { (1.0 / x) as f32 };
        let scale = if rule == Rule::Scaled { keys.iter().map(|k| inverse(norm(k))).collect() } else { vec![] };
        let mut panels = vec![0.0; packed_len(n_queries, dim)];
        for (at, q) in queries.iter().enumerate() {
            let size = norm(q);
            let unit = |x: &f32| if size == 0.0 { 0.0 } else { (f64::from(*x) / size) as f32 };
            let q: Vec<f32> = if rule == Rule::Scaled { q.iter().map(unit).collect() } else { q.clone() };
            pack(&q, at, &mut panels);
        }
        Block { keys, queries, rows, stride, scale, panels }
    }

    fn keys(&self) -> Keys<'_> {
        Keys { rows: &self.rows, stride: self.stride, n: self.keys.len(), scale: &self.scale, next: &[] }
    }

    fn queries(&self, dim: usize) -> Queries<'_> {
        Queries { panels: &self.panels, dim, n: self.queries.len() }
    }
}

fn awkward(check: impl Fn(u64, usize, usize, usize, usize)) {
    let mut seed = 0;
    for dim in (1..=33).chain([63, 64, 65, 127, 128, 129, 256]) {
        for kind in 0..7 {
            seed += 1;
            let n = [1, 7, 8, 16, 33, 63, 64][seed as usize % 7];
            let n_queries = [1, 3, 15, 16, 17, 33, 64, 70, 80][seed as usize % 9];
            check(seed, kind, n, n_queries, dim);
        }
    }
}

#[test]
fn canonical_scores_are_the_oracles_bits() {
    for kernels in tables() {
        awkward(|seed, kind, n, n_queries, dim| {
            for (metric, meaning, rule) in METRICS {
                let block = Block::new(seed, kind, n, n_queries, dim, rule);
                for q in &block.queries {
                    let size = (kernels.square_norm)(q).sqrt();
                    for x in &block.keys {
                        let (got, want) = ((kernels.score)(metric, x, q, size), oracle::score(meaning, x, q));
                        assert_eq!(got.to_bits(), want.to_bits(), "{:?} {metric:?} dim {dim}", kernels.isa);
                    }
                }
            }
        });
    }
}

#[test]
fn first_pass_scores_are_within_the_proven_bound() {
    for kernels in tables() {
        awkward(|seed, kind, n, n_queries, dim| {
            for (metric, meaning, rule) in METRICS {
                let block = Block::new(seed, kind, n, n_queries, dim, rule);
                let room = n + 3;
                let mut out = vec![f32::NAN; n_queries.div_ceil(PANEL) * room * PANEL];
                (kernels.scores)(rule, block.keys(), block.queries(dim), &mut out, room, 2);
                for (t, q) in block.queries.iter().enumerate() {
                    for (r, x) in block.keys.iter().enumerate() {
                        let bound = QueryBound::of(metric, dim, norm(q), Precision::Single).at(reach(metric, norm(x)));
                        let got = out[(t / PANEL * room + 2 + r) * PANEL + t % PANEL];
                        let want = oracle::score(meaning, x, q);
                        assert!(
                            bound.lower(got) <= want && want <= bound.upper(got),
                            "{:?} {metric:?} dim {dim} kind {kind}: {got} for {want}, {bound:?}",
                            kernels.isa
                        );
                    }
                }
                assert!(out[0].is_nan() && out[(room - 1) * PANEL].is_nan(), "rows outside the block were written");
            }
        });
    }
}

#[test]
fn selection_passes_exactly_what_is_not_below_the_threshold() {
    for kernels in tables() {
        awkward(|seed, kind, n, n_queries, dim| {
            for (_, _, rule) in METRICS {
                let block = Block::new(seed, kind, n, n_queries, dim, rule);
                let lanes = n_queries.next_multiple_of(PANEL);
                let mut all = vec![f32::NAN; lanes * n];
                (kernels.scores)(rule, block.keys(), block.queries(dim), &mut all, n, 0);
                let at = |r: usize, t: usize| all[(t / PANEL * n + r) * PANEL + t % PANEL];
                let thresholds: Vec<f32> = (0..lanes).map(|t| if t < n_queries { at(t % n, t) } else { 0.0 }).collect();
                let live = Random(seed).bits();
                let mut passed = vec![];
                (kernels.select)(rule, block.keys(), live, block.queries(dim), &thresholds, &mut passed);
                let mut want = vec![];
                for t in 0..n_queries {
                    for r in (0..n).filter(|r| live >> r & 1 == 1) {
                        if at(r, t) >= thresholds[t] || at(r, t).is_nan() || thresholds[t].is_nan() {
                            want.push((r as u32, t as u32, at(r, t).to_bits()));
                        }
                    }
                }
                let mut got: Vec<_> = passed.iter().map(|p: &Pass| (p.row, p.query, p.score.to_bits())).collect();
                got.sort_unstable();
                want.sort_unstable();
                assert_eq!(got, want, "{:?} {rule:?} dim {dim}", kernels.isa);
            }
        });
    }
}

#[test]
fn exponentials_and_weighted_sums_are_softmax_attention() {
    for kernels in tables() {
        for (seed, n) in (0..).zip((1..=33usize).chain([64, 256])) {
            for value_dim in [1usize, 15, 16, 17, 40, 64, 80, 128] {
                let mut random = Random(seed);
                let stride = value_dim.next_multiple_of(16);
                let softcap = (seed % 2 == 0).then_some(3.0);
                let logit = Logit { scale: 0.7, softcap };
                let mut panel: Vec<f32> = (0..n * PANEL).map(|_| random.unit() * 20.0).collect();
                let scores = panel.clone();
                let mut values = vec![0.0; n * stride];
                for row in values.chunks_exact_mut(stride) {
                    row[..value_dim].fill_with(|| random.unit());
                }
                let (mut max, mut sum) = ([f32::NAN; PANEL], [f32::NAN; PANEL]);
                let mut out = vec![0.0; PANEL * stride];
                (kernels.logits)(&mut panel, logit);
                (kernels.exponentials)(&mut panel, &mut max, &mut sum);
                (kernels.weigh)(&panel, &values, stride, n, &mut out);
                for t in 0..PANEL {
                    let cap = |z: f64| softcap.map_or(z, |c| f64::from(c) * (z / f64::from(c)).tanh());
                    let logits: Vec<f64> = (0..n).map(|e| cap(0.7 * f64::from(scores[e * PANEL + t]))).collect();
                    let rows: Vec<Vec<f32>> = values.chunks_exact(stride).map(|v| v[..value_dim].to_vec()).collect();
                    let (want, lse) = oracle::attention(&logits, &rows, value_dim);
                    assert!((f64::from(max[t] + sum[t].ln()) - lse).abs() < 1e-5 * (1.0 + lse.abs()));
                    for c in 0..value_dim {
                        let got = f64::from(out[t * stride + c]) / f64::from(sum[t]);
                        assert!(
                            (got - want[c]).abs() < 1e-5,
                            "{:?} n {n} dv {value_dim}: {got} for {}",
                            kernels.isa,
                            want[c]
                        );
                    }
                    assert!(out[t * stride + value_dim..(t + 1) * stride].iter().all(|&x| x == 0.0));
                }
            }
        }
    }
}

#[test]
fn a_query_without_logits_weighs_nothing_and_nan_stays_nan() {
    for kernels in tables() {
        let mut panel = vec![f32::NEG_INFINITY; 3 * PANEL];
        panel[1] = f32::NAN;
        let (mut max, mut sum) = ([0.0; PANEL], [f32::NAN; PANEL]);
        (kernels.exponentials)(&mut panel, &mut max, &mut sum);
        assert_eq!((max[0], sum[0], panel[0]), (f32::NEG_INFINITY, 0.0, 0.0));
        assert!(sum[1].is_nan());
    }
}

#[test]
fn at_least_k_rows_reach_the_answer_and_hardly_more() {
    for kernels in tables() {
        for (seed, n) in (0..).zip([1usize, 2, 7, 64, 500]) {
            let mut random = Random(seed);
            for kind in 0..7 {
                let panel: Vec<f32> = (0..n).flat_map(|_| random.vector(kind, PANEL)).collect();
                for k in [1, n.div_ceil(3), n, n + 1] {
                    let mut out = [f32::NAN; PANEL];
                    (kernels.reached_by)(&panel, k, &mut out);
                    for i in 0..PANEL {
                        let column: Vec<f32> = panel.iter().skip(i).step_by(PANEL).copied().collect();
                        let reached = column.iter().filter(|&&s| s >= out[i]).count();
                        assert!(if k > n { out[i] == f32::NEG_INFINITY } else { reached >= k });
                        if kind == 0 && k <= n {
                            let range = column.iter().copied().fold(f32::MIN, f32::max)
                                - column.iter().copied().fold(f32::MAX, f32::min);
                            let above = column.iter().filter(|&&s| s > out[i] + range / 512.0).count();
                            assert!(above < k, "{:?}: {above} rows are well above the {k}-th", kernels.isa);
                        }
                    }
                }
            }
        }
        let mut panel = vec![f32::INFINITY; 4 * PANEL];
        panel[..PANEL].fill(f32::NAN);
        let mut out = [0.0; PANEL];
        (kernels.reached_by)(&panel, 4, &mut out);
        assert_eq!(out, [f32::NEG_INFINITY; PANEL], "three rows have a score, four were asked for");
    }
}
