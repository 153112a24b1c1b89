//! A few queries against keys and values as they are stored, in every format.

use mnemex_kernels::single::{Format, Stored};
use mnemex_kernels::{PANEL, Rule};

use crate::block::{Block, Random, awkward, tables};
use crate::single::{Kept, for_every_query, padded};

#[test]
fn all_scores_are_those_that_pass_any_threshold() {
    for_every_query(|kernels, kept, (_, _, rule), _, q| {
        let (q, n) = (padded(q, rule, Format::F32), kept.keys.len());
        // Those of the same numbers in float32.
        let wide = kept.widened();
        let want = wide.select(kernels, rule, u64::MAX, &q, f32::NEG_INFINITY);
        let want: Vec<u32> = want.iter().map(|pass| pass.score.to_bits()).collect();
        // The query among others, whatever the group that it falls into.
        for (queries, at) in [(1, 0), (2, 1), (3, 2), (5, 1), (7, 5)] {
            let mut all = vec![0.5; queries * q.len()];
            all[at * q.len()..][..q.len()].copy_from_slice(&q);
            let (rows, first) = (n + 3, 2);
            let mut out = vec![f32::NAN; queries * rows];
            let scale = if rule == Rule::Scaled { &kept.scale[..] } else { &[] };
            (kernels.scores_few)(rule, Stored { scale, ..kept.stored() }, &all, queries, &mut out[first..], rows);
            let got: Vec<u32> = out[at * rows..][first..][..n].iter().map(|x| x.to_bits()).collect();
            assert_eq!(got, want, "{:?} {rule:?} query {at} of {queries}", kernels.isa);
            let outside = |out: &[f32]| out[..first].iter().chain(&out[first + n..]).all(|x| x.is_nan());
            assert!(out.chunks_exact(rows).all(outside), "places of other rows were written");
        }
    });
}

#[test]
fn weighed_values_are_added_in_any_format() {
    for kernels in tables() {
        awkward(|seed, _, n, _, dim| {
            let block = Block::new(seed, 0, n, 1, dim, Rule::Dot);
            let mut random = Random(seed);
            let (queries, rows, stride) = (1 + seed as usize % 7, n + 2, dim.next_multiple_of(PANEL));
            let weights: Vec<f32> = (0..queries * rows).map(|_| random.unit()).collect();
            for format in [Format::F32, Format::F16, Format::Bf16] {
                let kept = Kept::new(&block, format, dim);
                let before: Vec<f32> = (0..queries * stride).map(|_| random.unit()).collect();
                let mut out = before.clone();
                (kernels.weigh_few)(&weights, rows, kept.stored(), queries, &mut out);
                for (at, (&got, &before)) in out.iter().zip(&before).enumerate() {
                    let (q, c) = (at / stride, at % stride);
                    let terms = kept
                        .keys
                        .iter()
                        .zip(&weights[q * rows..])
                        .map(|(value, &weight)| f64::from(weight) * value.get(c).map_or(0.0, |&x| f64::from(x)));
                    let want = f64::from(before) + terms.sum::<f64>();
                    // At most n + 1 sums of size n + 1, each rounded once or twice.
                    let tolerance = (n + 1).pow(2) as f64 * f64::from(f32::EPSILON);
                    let (isa, off) = (kernels.isa, (f64::from(got) - want).abs());
                    assert!(off <= tolerance, "{isa:?} {format:?} dim {dim} n {n}: {got} for {want}");
                }
            }
        });
    }
}

#[test]
fn exponentials_of_one_query_are_softmax() {
    for kernels in tables() {
        for (seed, n) in (0..).zip([1usize, 2, 15, 16, 17, 40, 255, 256]) {
            let mut random = Random(seed);
            let logits: Vec<f32> = (0..n).map(|_| random.unit() * 60.0).collect();
            let mut out = logits.clone();
            out.resize(n.next_multiple_of(PANEL), f32::NEG_INFINITY);
            let (max, sum) = (kernels.exponentials_one)(&mut out);
            assert_eq!(max, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let want: Vec<f64> = logits.iter().map(|&z| f64::from(z - max).exp()).collect();
            for (&got, &want) in out.iter().zip(&want) {
                let off = (f64::from(got) - want).abs();
                assert!(off <= 4e-7 * want + 1.2e-38, "{:?}: {got:e} for {want:e}", kernels.isa);
            }
            let whole: f64 = want.iter().sum();
            assert!((f64::from(sum) - whole).abs() <= 1e-6 * whole && out[n..].iter().all(|&x| x == 0.0));
        }
        let mut nothing = [f32::NEG_INFINITY; PANEL];
        assert_eq!((kernels.exponentials_one)(&mut nothing), (f32::NEG_INFINITY, 0.0));
        assert_eq!(nothing, [0.0; PANEL]);
        let mut one_nan = [0.0; PANEL];
        one_nan[3] = f32::NAN;
        assert!((kernels.exponentials_one)(&mut one_nan).1.is_nan());
    }
}

#[test]
fn widened_vectors_are_the_stored_ones_and_zeros_behind_them() {
    for kernels in tables() {
        awkward(|seed, kind, n, _, dim| {
            let block = Block::new(seed, kind, n, 1, dim, Rule::Dot);
            for format in [Format::F32, Format::F16, Format::Bf16] {
                let (kept, stride) = (Kept::new(&block, format, dim), dim.next_multiple_of(PANEL));
                let mut out = vec![f32::NAN; (n + 1) * stride];
                (kernels.widen)(kept.stored(), &mut out, stride);
                for (key, row) in kept.keys.iter().zip(out.chunks_exact(stride)) {
                    let want = key.iter().copied().chain(std::iter::repeat(0.0)).take(stride);
                    assert!(row.iter().map(|x| x.to_bits()).eq(want.map(f32::to_bits)), "{:?}", kernels.isa);
                }
                assert!(out[n * stride..].iter().all(|x| x.is_nan()), "rows outside were written");
            }
        });
    }
}
