//! Keys in codes: what they lose, and one query against them.

use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{Codes, QUAD, Query, padded};
use mnemex_kernels::{Kernels, Pass, Rule};
use mnemex_oracle as oracle;

use crate::block::{METRICS, Random, awkward, norm, tables};

/// A block's keys in codes; whatever belongs to no key is poisoned.
struct Coded {
    keys: Vec<Vec<f32>>,
    bytes: Vec<u8>,
    scale: Vec<f32>,
    rows: usize,
    lost: f32,
}

/// What a key is multiplied with before it is coded.
fn unit(metric: Metric, key: &[f32]) -> f64 {
    if metric == Metric::Cos && norm(key) > 0.0 { 1.0 / norm(key) } else { 1.0 }
}

impl Coded {
    fn new(kernels: &Kernels, metric: Metric, keys: Vec<Vec<f32>>) -> Coded {
        let rows = keys.len().next_power_of_two().max(16);
        let width = padded(keys[0].len());
        let (mut bytes, mut scale, mut lost) = (vec![0xFF; rows * width], vec![f32::NAN; rows], 0.0f32);
        for (r, key) in keys.iter().enumerate() {
            let mut codes = vec![0x55; width + 3];
            let coded = (kernels.code)(key, unit(metric, key), &mut codes);
            for (j, &code) in codes[..width].iter().enumerate() {
                bytes[(j / QUAD * rows + r) * QUAD + j % QUAD] = code;
            }
            (scale[r], lost) = (coded.scale, lost.max(coded.lost));
        }
        Coded { keys, bytes, scale, rows, lost }
    }

    /// What passes of a query, alone and as the last of several that let nothing pass.
    fn select(&self, kernels: &Kernels, live: u64, query: &Query, threshold: f32) -> Vec<Pass> {
        let Coded { ref keys, ref bytes, ref scale, rows, .. } = *self;
        let codes = Codes { bytes, scale, rows, n: keys.len(), next: &[] };
        let [alone, last] = [1, 8].map(|n| {
            let mut passed = vec![Pass { score: 1.0, row: 2, query: 3 }];
            let mut thresholds = vec![f32::INFINITY; n + 1];
            thresholds[n - 1] = threshold;
            (kernels.select_codes)(codes, live, &vec![query.clone(); n], &thresholds, &mut passed);
            assert_eq!(passed.remove(0), Pass { score: 1.0, row: 2, query: 3 }, "what was there stays");
            assert!(passed.iter().all(|pass| pass.query as usize == n - 1));
            passed
        });
        assert_eq!(bits(&alone), bits(&last));
        alone
    }

    /// That every score is within its bound.
    fn check(&self, kernels: &Kernels, (metric, meaning): (Metric, oracle::Metric), live: u64, q: &[f32]) {
        let query = &coded(metric, q);
        let passed = self.select(kernels, live, query, f32::NEG_INFINITY);
        let rows: Vec<u32> = (0..self.keys.len() as u32).filter(|r| live >> r & 1 == 1).collect();
        assert_eq!(passed.iter().map(|pass| pass.row).collect::<Vec<_>>(), rows, "all that live, in order");
        for pass in passed {
            let x = &self.keys[pass.row as usize];
            let bound = QueryBound::of(metric, q.len(), norm(q), Precision::Codes { lost: query.lost });
            let bound = bound.at(reach(metric, norm(x)), self.lost);
            let want = oracle::score(meaning, x, q);
            let within = bound.lower(pass.score) <= want && want <= bound.upper(pass.score);
            let (isa, dim) = (kernels.isa, q.len());
            assert!(within, "{isa:?} {metric:?} dim {dim}: {} for {want}, {bound:?}", pass.score);
        }
    }
}

/// What a score is to be the same in.
fn bits(passed: &[Pass]) -> Vec<(u32, u32)> {
    passed.iter().map(|p| (p.row, p.score.to_bits())).collect()
}

/// A query as the kernels take it.
fn coded(metric: Metric, q: &[f32]) -> Query {
    let unit = unit(metric, q);
    let q: Vec<f32> = q.iter().map(|&x| if metric == Metric::Cos { (f64::from(x) * unit) as f32 } else { x }).collect();
    Query::new(&q)
}

fn for_every_query(check: impl Fn(&Kernels, &Coded, (Metric, oracle::Metric), u64, &[f32])) {
    for kernels in tables() {
        awkward(|seed, kind, n, _, dim| {
            let mut random = Random(seed);
            for (metric, meaning, _) in METRICS.into_iter().filter(|(_, _, rule)| *rule != Rule::L2) {
                let keys = (0..n).map(|_| random.vector(kind, dim)).collect();
                let block = Coded::new(kernels, metric, keys);
                for kind in [kind, 0] {
                    check(kernels, &block, (metric, meaning), seed, &random.vector(kind, dim));
                }
            }
        });
    }
}

#[test]
fn what_a_key_loses_is_said() {
    for kernels in tables() {
        awkward(|seed, kind, n, _, dim| {
            let mut random = Random(seed);
            for metric in [Metric::Dot, Metric::Cos] {
                let mut key = random.vector(kind, dim);
                key[dim / 2] *= [1.0, 1e4, 1e-30][n % 3];
                let (mut codes, unit) = (vec![0; dim + 3], unit(metric, &key));
                let got = (kernels.code)(&key, unit, &mut codes);
                let off =
                    |(&x, &code): (&f32, &u8)| f64::from(x) * unit - f64::from(got.scale) * (f64::from(code) - 128.0);
                let lost = key.iter().zip(&codes).map(off).map(|off| off * off).sum::<f64>().sqrt();
                let most = key.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                assert!(lost <= f64::from(got.lost), "{:?} kind {kind}: {lost} is lost, {got:?}", kernels.isa);
                // Where nothing is promised anyway, all may be lost.
                let promised = reach(metric, norm(&key)).is_finite();
                let room = f64::from(most) * unit / 253.0 * (dim as f64).sqrt() + 1e-18;
                assert!(
                    !promised || f64::from(got.lost) <= room,
                    "{:?} kind {kind}: {got:?} where {room} is usual",
                    kernels.isa
                );
                assert_eq!(codes[dim..], [128; 3], "0 behind a key");
            }
        });
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut codes = [0; 4];
            let got = (kernels.code)(&[1.0, odd, 2.0], 1.0, &mut codes);
            assert_eq!((got.scale, got.lost, codes), (0.0, 0.0, [128; 4]));
        }
    }
}

#[test]
fn scores_of_codes_are_within_the_proven_bound() {
    for_every_query(|kernels, block, metric, seed, q| block.check(kernels, metric, Random(seed).bits(), q));
}

#[test]
fn sums_of_the_longest_and_largest_keys_are_right() {
    for kernels in tables() {
        for dim in [1020, 1024, 1025, 2049, 4096, 1 << 16] {
            let mut random = Random(dim as u64);
            let sizes = [0.5, -0.5, 7.0].map(|x| vec![x; dim]);
            let mixed: Vec<Vec<f32>> = (0..3).map(|kind| random.vector(kind % 2 * 4, dim)).collect();
            let keys: Vec<Vec<f32>> = sizes.iter().chain(&mixed).cloned().collect();
            for (metric, meaning) in [(Metric::Dot, oracle::Metric::Dot), (Metric::Cos, oracle::Metric::Cos)] {
                let block = Coded::new(kernels, metric, keys.clone());
                for q in &keys {
                    block.check(kernels, (metric, meaning), u64::MAX, q);
                }
            }
        }
    }
}

#[test]
fn what_is_below_the_threshold_does_not_pass_and_all_sets_agree() {
    let first = tables().next().unwrap();
    for_every_query(|kernels, block, (metric, _), seed, q| {
        let query = coded(metric, q);
        let all = block.select(kernels, u64::MAX, &query, f32::NEG_INFINITY);
        assert_eq!(bits(&all), bits(&block.select(first, u64::MAX, &query, f32::NEG_INFINITY)), "{:?}", kernels.isa);
        let threshold = all[seed as usize % all.len()].score;
        let live = Random(seed).bits();
        let want: Vec<Pass> =
            all.into_iter().filter(|pass| live >> pass.row & 1 == 1 && pass.score >= threshold).collect();
        assert_eq!(bits(&block.select(kernels, live, &query, threshold)), bits(&want), "{:?}", kernels.isa);
    });
}
