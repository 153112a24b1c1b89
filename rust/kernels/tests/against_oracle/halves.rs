//! Product keys in codes beside exact half scores.

use mnemex_kernels::bound::{Precision, QueryBound};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::padded;
use mnemex_kernels::halves::{
    BEST, CodedHalf, CodedQuery, CodesMut, GROUPS, Halves, Pairs, QueryCodes, ROWS, Scored, Scores, Sums,
};
use mnemex_kernels::many::row_bytes;

use crate::block::{Random, awkward, tables};

fn all() -> impl Iterator<Item = Halves> {
    tables().filter_map(|kernels| kernels.halves)
}

/// Half keys in codes.
struct Coded {
    bytes: Vec<u8>,
    scale: Vec<f32>,
    slack: Vec<f32>,
    n: usize,
    dim: usize,
}

impl Coded {
    fn new(halves: &Halves, keys: &[f32], dim: usize, share: f32) -> Coded {
        let n = keys.len() / dim;
        let rows = n.next_multiple_of(ROWS);
        // What is not written must not be read.
        let (mut bytes, mut rest) = (vec![77; rows * padded(dim)], vec![77; 16 * row_bytes(dim)]);
        let (mut scale, mut slack) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
        let out = CodesMut { bytes: &mut bytes, scale: &mut scale, slack: &mut slack, rows: &mut rest, dim };
        (halves.code)(keys, share, out);
        Coded { bytes, scale, slack, n, dim }
    }

    fn half(&self) -> CodedHalf<'_> {
        CodedHalf { bytes: &self.bytes, scale: &self.scale, slack: &self.slack, n: self.n, dim: self.dim }
    }
}

fn exact(x: &[f32], q: &[f32]) -> f64 {
    x.iter().zip(q).map(|(&x, &q)| f64::from(x) * f64::from(q)).sum()
}

#[test]
fn exact_scores_lie_between_floors_and_ceilings() {
    let share = 0.01;
    for halves in all() {
        awkward(|seed, kind, n, many, dim| {
            let mut random = Random(seed);
            let n = n + seed as usize % 3 * ROWS;
            let keys: Vec<f32> = (0..n).flat_map(|_| random.vector(kind, dim)).collect();
            let coded = Coded::new(&halves, &keys, dim, share);
            let queries: Vec<Vec<f32>> = (0..many).map(|_| random.vector(kind, dim)).collect();
            let width = padded(dim);
            let mut weights = vec![0; queries.len() * width];
            let found: Vec<CodedQuery> = (queries.iter().zip(weights.chunks_mut(width)))
                .map(|(query, out)| (halves.code_query)(query, out))
                .collect();
            let bounds: Vec<QueryBound> = (found.iter())
                .map(|query| {
                    let precision = Precision::Codes { lost: query.lost.into() };
                    QueryBound::of(Metric::Dot, dim, query.norm.into(), precision)
                })
                .collect();
            let per_slack = |at: usize| bounds[at].per_slack(share) * 1.000_004 / found[at].factor;
            let sure = |at: usize| found[at].factor > 0.0 && per_slack(at).is_normal();
            let slacks: Vec<f32> = (0..queries.len()).map(|at| if sure(at) { per_slack(at) } else { 1.0 }).collect();
            let offsets: Vec<i32> = found.iter().map(|query| query.offset).collect();
            let rows = n.next_multiple_of(ROWS);
            let (mut ceilings, mut floors) = (vec![0.0; queries.len() * rows], vec![0.0; queries.len() * GROUPS]);
            let codes = QueryCodes { weights: &weights, offsets: &offsets, slacks: &slacks };
            let out = Scores { ceilings: &mut ceilings, floors: &mut floors };
            (halves.scores)(coded.half(), codes, out);
            for (at, query) in queries.iter().enumerate().filter(|(at, _)| sure(*at)) {
                let scores: Vec<f64> = keys.chunks(dim).map(|key| exact(key, query)).collect();
                let factor = f64::from(found[at].factor);
                for (row, &score) in scores.iter().enumerate().filter(|(_, score)| score.is_finite()) {
                    let ceiling = f64::from(ceilings[at * rows + row]) * factor;
                    let room = f64::from(bounds[at].constant()) * 1.25 + ceiling.abs() * 2f64.powi(-20);
                    assert!(score <= ceiling + room, "row {row} of {n}, dim {dim}, {kind:?}: {score} above {ceiling}");
                }
                for group in 0..GROUPS {
                    let floor = f64::from(floors[at * GROUPS + group]) * factor;
                    let most = scores.iter().skip(group).step_by(GROUPS).copied().fold(f64::NEG_INFINITY, f64::max);
                    let room = f64::from(bounds[at].constant()) * 1.25 + floor.abs() * 2f64.powi(-20);
                    assert!(
                        floor == f64::NEG_INFINITY || floor <= most + room,
                        "group {group} of {n} rows, dim {dim}: {floor} above {most}"
                    );
                    assert!(most.is_infinite() || floor > f64::NEG_INFINITY || !coded.slack[group].is_finite());
                }
            }
        });
    }
}

#[test]
fn codes_lose_little_and_say_what_is_not_finite() {
    for halves in all() {
        let (n, dim) = (70, 33);
        let mut random = Random(5);
        let mut keys: Vec<f32> = (0..n * dim).map(|_| random.unit()).collect();
        (keys[3 * dim], keys[4 * dim + 1], keys[65 * dim + 32]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        keys[5 * dim..6 * dim].fill(0.0);
        let coded = Coded::new(&halves, &keys, dim, 0.0);
        for row in 0..2 * ROWS {
            let odd = [3, 4, 65].contains(&row) || row >= n;
            assert_eq!(coded.slack[row].is_infinite(), odd, "row {row}");
            assert!(!odd || coded.scale[row] == 0.0, "row {row}");
            // Numbers of at most 1, each off by half of 1 / 127 at most.
            assert!(odd || coded.slack[row] <= 0.004 * (dim as f32).sqrt(), "row {row}");
        }
    }
}

#[test]
fn enough_pairs_reach_what_is_reached() {
    for halves in all() {
        for (seed, k) in [(1, 1), (2, 5), (3, 32), (4, 33), (5, 64)] {
            for groups in [3, 16, 64] {
                let mut random = Random(seed + groups as u64);
                let mut lists = [0, 1].map(|_| [f32::NEG_INFINITY; GROUPS]);
                lists.iter_mut().for_each(|list| list[..groups].iter_mut().for_each(|x| *x = random.unit()));
                let ceilings = [0, 1].map(|half| -> Vec<f32> { (0..60 + 70 * half).map(|_| random.unit()).collect() });
                let factors = [2.0, 0.5];
                let scored = [0, 1].map(|half: usize| Scored {
                    ceilings: &ceilings[half],
                    floors: &lists[half],
                    factor: factors[half],
                });
                let got = (halves.reached)(scored, &Pairs::new(k), k);
                let mut sums: Vec<f32> = lists[0].iter().flat_map(|a| lists[1].map(|b| 2.0 * a + 0.5 * b)).collect();
                sums.sort_by(|a, b| b.total_cmp(a));
                assert!(got.sum <= sums[k - 1], "{k} of {groups}: {} above {}", got.sum, sums[k - 1]);
                // The best sixteen of each half have the best pairs for few, and nearly for more.
                assert!(k > BEST || groups * groups < k || got.sum > sums[k - 1] - 0.05, "{k} of {groups}");
                let largest = |list: &[f32]| list.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(got.most, [2.0 * largest(&ceilings[0]), 0.5 * largest(&ceilings[1])]);
                assert_eq!(got.first, [2.0 * largest(&lists[0]), 0.5 * largest(&lists[1])]);
            }
        }
    }
}

#[test]
fn rows_are_those_that_reach_the_threshold() {
    for halves in all() {
        for n in [0, 1, 15, 16, 64, 65, 200] {
            let mut random = Random(n as u64);
            let scores: Vec<f32> = (0..n).map(|_| random.unit()).collect();
            for threshold in [f32::NEG_INFINITY, -0.5, 0.0, 0.9, f32::INFINITY] {
                let mut got = vec![7; 3];
                (halves.rows)(&scores, threshold, &mut got);
                let want: Vec<u32> = (0..n as u32).filter(|&row| scores[row as usize] >= threshold).collect();
                assert_eq!(got, want, "{n} rows from {threshold}");
            }
        }
    }
}

#[test]
fn sums_are_rounded_once_and_put_in_order() {
    for halves in all() {
        for (seed, [n, m], k) in [(1, [1, 1], 1), (2, [20, 37], 32), (3, [64, 9], 5), (4, [33, 256], 64)] {
            let mut random = Random(seed);
            // Many are equal.
            let mut list =
                |n| -> Vec<f64> { (0..n).map(|_| f64::from((random.unit() * 40.0).round()) / 3.0).collect() };
            let (a, b) = (list(n), list(m));
            let pairs = || (0..n).flat_map(|i| (0..m).map(move |j| (i, j)));
            let mut every: Vec<(f32, u32)> =
                pairs().map(|(i, j)| ((a[i] + b[j]) as f32 + 0.0, (i << 16 | j) as u32)).collect();
            every.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
            let last = every[(k - 1).min(every.len() - 1)].0;
            for least in [f32::NEG_INFINITY, last - 1.0, last] {
                let mut sums = Sums::default();
                (sums.scores, sums.pairs) = (vec![3.0], vec![3]);
                (halves.sums)([&a, &b], least, &mut sums);
                let mut got: Vec<(f32, u32)> = sums.scores.iter().copied().zip(sums.pairs.iter().copied()).collect();
                got.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
                let want: Vec<_> = every.iter().copied().filter(|(score, _)| *score >= least).collect();
                assert_eq!(got, want, "{n} and {m} from {least}");
                (halves.order)(&mut sums, k);
                assert!(sums.scores.is_sorted_by(|a, b| a >= b), "best first");
                let mut kept: Vec<(f32, u32)> = sums.scores.iter().copied().zip(sums.pairs.iter().copied()).collect();
                kept.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
                assert_eq!(kept, want[..kept.len()], "none is made up, and none but the last are left out");
                assert!(kept.len() == want.len() || kept.len() >= k && want[kept.len()].0 < last, "k and their equals");
            }
        }
    }
}
