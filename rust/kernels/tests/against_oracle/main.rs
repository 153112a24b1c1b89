//! Every instruction set against float64 loops, over awkward lengths, offsets and values; output poisoned first.
#![allow(missing_docs, clippy::unwrap_used, clippy::needless_range_loop, reason = "tests")]

use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::select::Maxima;
use mnemex_kernels::softmax::Logit;
use mnemex_kernels::{PANEL, Pass};
use mnemex_oracle as oracle;

mod block;
mod codes;
mod few;
mod halves;
mod many;
mod product;
mod short;
mod single;

use block::{Block, METRICS, Random, awkward, norm, tables};

#[test]
fn canonical_scores_are_the_oracles_bits() {
    for kernels in tables() {
        awkward(|seed, kind, n, n_queries, dim| {
            for (metric, meaning, rule) in METRICS {
                let block = Block::new(seed, kind, n, n_queries, dim, rule);
                for q in &block.queries {
                    let size = (kernels.square_norm)(q).sqrt();
                    for x in &block.keys {
                        let (got, want) = (kernels.score_one(metric, x, q, size), oracle::score(meaning, x, q));
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
                        let bound = QueryBound::of(metric, dim, norm(q), Precision::Single);
                        let bound = bound.at(reach(metric, norm(x)), 0.0);
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
fn maxima_are_the_largest_scores_of_groups_of_rows() {
    for kernels in tables() {
        awkward(|seed, kind, n, n_queries, dim| {
            for (_, _, rule) in METRICS {
                let block = Block::new(seed, kind, n, n_queries, dim, rule);
                let panels = n_queries.div_ceil(PANEL);
                let mut all = vec![f32::NAN; panels * n * PANEL];
                (kernels.scores)(rule, block.keys(), block.queries(dim), &mut all, n, 0);
                for per in [1, 4, 16] {
                    let groups = n.div_ceil(per) + 2;
                    let mut out = vec![f32::NEG_INFINITY; panels * groups * PANEL];
                    let to = Maxima { out: &mut out, groups, first: 1, per };
                    (kernels.maxima)(rule, block.keys(), block.queries(dim), to);
                    for t in 0..n_queries {
                        let score = |r: usize| all[(t / PANEL * n + r) * PANEL + t % PANEL];
                        let at = |group: usize| out[(t / PANEL * groups + group) * PANEL + t % PANEL];
                        for group in 0..n.div_ceil(per) {
                            let rows = group * per..n.min((group + 1) * per);
                            let want = rows.map(score).fold(f32::NEG_INFINITY, f32::max);
                            assert_eq!(at(group + 1), want, "{:?} {rule:?} dim {dim}", kernels.isa);
                        }
                        assert_eq!((at(0), at(groups - 1)), (f32::NEG_INFINITY, f32::NEG_INFINITY));
                    }
                }
            }
        });
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
                        let mut of_one = column.clone();
                        of_one.resize(n.next_multiple_of(PANEL), column.iter().copied().fold(f32::MAX, f32::min));
                        let one = (kernels.reached_by_one)(&of_one, k);
                        let reached = of_one.iter().filter(|&&s| s >= one).count();
                        assert!(if k > of_one.len() { one == f32::NEG_INFINITY } else { reached >= k });
                        if kind == 0 && k <= n && n.is_multiple_of(PANEL) {
                            assert_eq!(reached, k, "{:?}: of {n}, none of which are equal", kernels.isa);
                        }
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
