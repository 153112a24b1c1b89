//! Attention over everything where float32 is left: values that nobody sees or weighs, and scores whose sums overflow.
//! It then says what attention over as many best entries says.

use mnemex_core::attend::{Attention, Partial};
use mnemex_core::bias::Bias;
use mnemex_core::config::{NonFinite, Values};
use mnemex_core::query::{Bitmaps, Query};
use mnemex_core::work::Work;
use mnemex_core::{Bank, Codec, Config, Metric};
use mnemex_kernels::Kernels;
use mnemex_kernels::softmax::Logit;
use ndarray::Array4;

use crate::data::{Data, Random};
use crate::lanes::{METRICS, ask, bits, config, every_table, tokens, write};

const N: usize = 700;
const DIM: usize = 9;
const VALUE_DIM: usize = 21;

/// Numbers that poison whatever they are added to, times 0 too.
const POISONS: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn bank(kernels: &'static Kernels, config: Config, keys: &Array4<f32>, values: &Array4<f32>) -> Bank {
    let bank = Bank::with_kernels(config, 1, kernels).unwrap();
    write(&bank, keys, Some(values), [keys.dim().2]);
    bank
}

fn keeping(metric: Metric) -> Config {
    Config { nonfinite: NonFinite::Keep, ..config(metric, DIM, Values::Dim(VALUE_DIM)) }
}

/// Attention over everything, and over as many best entries as there are, the same whether they are scanned or not.
fn both(bank: &Bank, query: &Query, logit: Logit) -> [Partial; 2] {
    let attend = |with_hits, scan_small| {
        let attention = Attention { k: None, logit, bias: Bias::None, with_hits };
        bank.snapshot().attend(query, &attention, &Work { scan_small, ..Work::ALONE }).unwrap()
    };
    let [best, scanned] = [false, true].map(|scan_small| attend(true, scan_small));
    assert_eq!(bits(&best.out), bits(&scanned.out));
    assert_eq!(bits(&best.lse), bits(&scanned.lse));
    [attend(false, false), best]
}

const PLAIN: Logit = Logit { scale: 0.5, softcap: None };

/// The same within 1e-5, NaN and infinity where the other has them.
#[track_caller]
fn close(a: &[f32], b: &[f32]) {
    let size = b.iter().filter(|x| x.is_finite()).fold(1.0f32, |size, x| size.max(x.abs()));
    for (at, (a, b)) in a.iter().zip(b).enumerate() {
        let same = if b.is_finite() {
            (a - b).abs() <= 1e-5 * size
        } else {
            a.to_bits() == b.to_bits() || b.is_nan() && a.is_nan()
        };
        assert!(same, "{a} is not {b} at {at}");
    }
}

#[track_caller]
fn agree([dense, best]: &[Partial; 2]) {
    close(&dense.out, &best.out);
    close(&dense.lse, &best.lse);
}

#[test]
fn a_hidden_value_does_not_matter() {
    let mut random = Random::new(1);
    let keys = Data::Gaussian.array(&mut random, [1, 1, N, DIM]);
    let values = Data::Gaussian.array(&mut random, [1, 1, N, VALUE_DIM]);
    let queries = Data::Gaussian.array(&mut random, [1, 1, 20, DIM]);
    // Entries from 300 on are hidden: from some queries by `before`, which ends inside a span, from all by `where`.
    let mut poisoned = values.clone();
    for at in (300..N).step_by(7) {
        poisoned[[0, 0, at, at % VALUE_DIM]] = POISONS[at % 3];
    }
    let before: Vec<i64> = (0..20).map(|t| 15 * t + 1).collect();
    let allowed: Vec<bool> = (0..N).map(|id| id < 300).collect();
    let allowed = Bitmaps { bits: &allowed, rows: 1, ids: N };
    for kernels in every_table() {
        for codec in Codec::ALL {
            let config = Config { value_codec: Some(codec), ..keeping(Metric::Dot) };
            let clean = bank(kernels, config.clone(), &keys, &values);
            let poisoned = bank(kernels, config, &keys, &poisoned);
            for query in [
                Query { before: Some(&before), ..ask(&queries) },
                Query { allowed: Some(allowed), ..ask(&queries) },
                Query { before: Some(&before), allowed: Some(allowed), ..ask(&queries) },
            ] {
                let [want, _] = both(&clean, &query, PLAIN);
                let [dense, best] = both(&poisoned, &query, PLAIN);
                assert_eq!(bits(&dense.out), bits(&want.out), "{codec:?}, {:?}", kernels.isa);
                assert_eq!(bits(&dense.lse), bits(&want.lse));
                agree(&[dense, best]);
            }
        }
    }
}

#[test]
fn a_value_without_weight_does_not_matter_and_one_with_weight_does() {
    let values = Array4::from_shape_fn((1, 1, 600, VALUE_DIM), |(.., t, d)| (t * 7 + d) as f32 % 5.0 - 2.0);
    let mut poisoned = values.clone();
    for (at, poison) in [(10, f32::NAN), (100, f32::INFINITY), (599, f32::NEG_INFINITY)] {
        poisoned[[0, 0, at, 3]] = poison;
    }
    // One number per key: 1 weighs nothing beside 1000 for the first query, all for the second.
    let keys = Array4::from_shape_fn((1, 1, 600, DIM), |(.., t, d)| match (t, d) {
        (10 | 100 | 599, 0) => 1.0,
        (_, 0) => 1000.0,
        _ => 0.0,
    });
    let queries = Array4::from_shape_fn((1, 1, 2, DIM), |(.., t, d)| match (t, d) {
        (0, 0) => 1.0,
        (1, 0) => -1.0,
        _ => 0.0,
    });
    for kernels in every_table() {
        // A call may keep such numbers in a bank that does not.
        let config = Config { nonfinite: NonFinite::Raise, ..keeping(Metric::Dot) };
        let clean = bank(kernels, config.clone(), &keys, &values);
        let kept = Bank::with_kernels(config, 1, kernels).unwrap();
        let how = mnemex_core::stage::Tokens { nonfinite: Some(NonFinite::Keep), ..tokens(&keys, Some(&poisoned)) };
        kept.stage(&how, &Work::ALONE).unwrap();
        kept.commit(&Work::ALONE).unwrap();
        let [want, _] = both(&clean, &ask(&queries), PLAIN);
        let [dense, best] = both(&kept, &ask(&queries), PLAIN);
        assert_eq!(bits(&dense.out[..VALUE_DIM]), bits(&want.out[..VALUE_DIM]), "{:?}", kernels.isa);
        assert!(dense.out[VALUE_DIM + 3].is_nan() && dense.out[VALUE_DIM..].iter().filter(|x| x.is_nan()).count() == 1);
        agree(&[dense, best]);
    }
}

#[test]
fn scores_that_float32_sums_cannot_hold_are_the_canonical_ones() {
    let mut random = Random::new(2);
    for (metric, _) in METRICS {
        for (scale, softcap) in [(1e-38, None), (-1e-38, None), (1e-37, Some(2.0))] {
            // Sums that pass float32's largest on the way and come back: infinite or NaN in float32, finite in float64.
            let mut keys = Data::Gaussian.array(&mut random, [1, 1, N, DIM]);
            for t in (0..N).step_by(3) {
                let sizes = [1.5e19, 1.9e19, -1.7e19, -1.6e19, 0.0];
                (0..DIM).for_each(|d| keys[[0, 0, t, d]] = sizes[(t / 3 + d) % 5] * (1.0 + t as f32 / 7e3));
            }
            // Keys whose norm has no float32 reciprocal, for cosine.
            (0..DIM).for_each(|d| keys[[0, 0, 1, d]] = f32::from_bits(1 + d as u32));
            let values = Data::Gaussian.array(&mut random, [1, 1, N, VALUE_DIM]);
            let mut queries = Data::Gaussian.array(&mut random, [1, 1, 20, DIM]);
            queries.slice_mut(ndarray::s![.., .., 7.., ..]).fill(1.6e19);
            let logit = Logit { scale: if metric == Metric::Cos { 1.0 } else { scale }, softcap };
            for kernels in every_table() {
                let bank = bank(kernels, config(metric, DIM, Values::Dim(VALUE_DIM)), &keys, &values);
                let parts = both(&bank, &ask(&queries), logit);
                if metric == Metric::Dot {
                    assert!(parts[0].lse.iter().all(|lse| lse.is_finite()), "canonical scores are finite");
                }
                agree(&parts);
            }
        }
    }
}

#[test]
fn scores_that_are_not_numbers_are_passed_over() {
    let mut random = Random::new(3);
    for ((metric, _), n) in METRICS.into_iter().flat_map(|metric| [20, 70].map(|n| (metric, n))) {
        let mut keys = Data::Gaussian.array(&mut random, [1, 1, N, DIM]);
        let values = Data::Gaussian.array(&mut random, [1, 1, N, VALUE_DIM]);
        let mut queries = Data::Gaussian.array(&mut random, [1, 1, n, DIM]);
        queries[[0, 0, 4, 2]] = f32::NAN;
        for t in (0..N).step_by(11) {
            keys[[0, 0, t, t % DIM]] = f32::NAN;
        }
        for kernels in every_table() {
            let bank = bank(kernels, keeping(metric), &keys, &values);
            let parts = both(&bank, &ask(&queries), PLAIN);
            assert_eq!(parts[0].lse.iter().filter(|lse| lse.is_nan()).count(), 1, "the query that is none");
            agree(&parts);
        }
    }
}
