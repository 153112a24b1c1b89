//! Logits, exponentials and their sums, for panels of sixteen queries and for one query's hits.
//!
//! `exp` is within 3 ULP of the exact value over its range, and 0 below -87; weights are float32 throughout, the
//! log-sum-exp is natural.
#![expect(unsafe_code, reason = "vectors of exponentials; every row of a panel has sixteen numbers")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same promise")]

use crate::lanes::Lanes;
use crate::tile::PANEL;

/// From score to logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logit {
    /// Factor on the score.
    pub scale: f32,
    /// `cap * tanh(logit / cap)`, if any.
    pub softcap: Option<f32>,
}

impl Logit {
    /// The logit of one score.
    #[inline(always)]
    pub fn of(&self, score: f32) -> f32 {
        let z = self.scale * score;
        match self.softcap {
            Some(cap) => cap * tanh(z / cap),
            None => z,
        }
    }

    /// The same, and how it grows with the score.
    #[inline(always)]
    pub fn with_slope(&self, score: f32) -> (f32, f32) {
        let z = self.scale * score;
        match self.softcap {
            Some(cap) => {
                let bent = tanh(z / cap);
                (cap * bent, self.scale * (1.0 - bent * bent))
            }
            None => (z, self.scale),
        }
    }
}

/// Below it, e^x is taken for 0: it is near the least normal number.
const LEAST: f32 = -87.0;

/// ln 2 in two parts, the first with trailing zeros so that its product with a small integer is exact (Cody and Waite
/// 1980).
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// The series of e^x from its sixth power down.
const TERMS: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// e^x by range reduction to [-ln2/2, ln2/2] and a degree-6 polynomial; NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer kept in the low bits
    let clamped = x.clamp(LEAST, 88.0);
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let p = TERMS[..5].iter().copied().reduce(|p, term| p * r + term).unwrap_or_default();
    let p = p * r * r + r + 1.0;
    // The sum's low bits hold n: build 2^n from it. A NaN leaves garbage here, which the last branch discards.
    let n = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
    let power = f32::from_bits(n.wrapping_add(127) << 23);
    let y = p * power;
    if x < LEAST {
        0.0
    } else if x > 88.0 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        y
    }
}

/// tanh, absolute error below 2e-7; odd, NaN stays NaN.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    let s = x * x;
    let near = x * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))));
    if x.abs() < 0.25 { near } else { far }
}

/// Turns a panel of scores `[n, 16]` into logits.
#[inline(always)]
pub(crate) fn logits(scores: &mut [f32], logit: Logit) {
    for z in scores {
        *z = logit.of(*z);
    }
}

/// Turns a panel of logits `[n, 16]` into `exp(z - max)`, and reports each query's maximum and sum. A query with no
/// finite logit has maximum -inf and sum 0; a NaN logit makes the sum NaN.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn exponentials<L: Lanes>(panel: &mut [f32], max: &mut [f32; PANEL], sum: &mut [f32; PANEL]) {
    // SAFETY: the caller's promise.
    unsafe {
        *max = largest::<L>(panel);
        *sum = shifted::<L>(panel, max.map(shift));
    }
}

/// The same for the logits of one query, a multiple of sixteen; returns its maximum and sum.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn exponentials_one<L: Lanes>(logits: &mut [f32]) -> (f32, f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let max = largest::<L>(logits).into_iter().fold(f32::NEG_INFINITY, |max, z| if z > max { z } else { max });
        (max, shifted::<L>(logits, [shift(max); PANEL]).into_iter().sum())
    }
}

/// What is taken off logits of which this is the largest.
#[inline(always)]
fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The largest of each column of `[n, 16]`; NaN counts for nothing.
#[inline(always)]
unsafe fn largest<L: Lanes>(rows: &[f32]) -> [f32; PANEL] {
    let mut largest = [f32::NEG_INFINITY; PANEL];
    for lane in (0..PANEL).step_by(L::N) {
        // SAFETY: `lane + L::N` is at most the sixteen numbers of a row; the instructions are the caller's promise.
        unsafe {
            // Four at a time: one waits for the one before it otherwise.
            let mut most = [L::splat(f32::NEG_INFINITY); 4];
            let mut fours = rows.chunks_exact(4 * PANEL);
            for four in fours.by_ref() {
                for (i, most) in most.iter_mut().enumerate() {
                    *most = L::load(four.as_ptr().add(i * PANEL + lane)).max(*most);
                }
            }
            for row in fours.remainder().chunks_exact(PANEL) {
                most[0] = L::load(row.as_ptr().add(lane)).max(most[0]);
            }
            let most = most[0].max(most[1]).max(most[2].max(most[3]));
            most.store(largest.as_mut_ptr().add(lane));
        }
    }
    largest
}

/// Turns `[n, 16]` into `exp(z - shift)` by column, where no difference is above 0, and sums each column in order.
#[inline(always)]
unsafe fn shifted<L: Lanes>(rows: &mut [f32], shift: [f32; PANEL]) -> [f32; PANEL] {
    let mut sums = [0.0; PANEL];
    for lane in (0..PANEL).step_by(L::N) {
        // SAFETY: as in `largest`.
        unsafe {
            let (shift, mut sum) = (L::load(shift.as_ptr().add(lane)), L::splat(0.0));
            for row in rows.chunks_exact_mut(PANEL) {
                let at = row.as_mut_ptr().add(lane);
                let y = exp_down(L::load(at).sub(shift));
                y.store(at);
                sum = sum.add(y);
            }
            sum.store(sums.as_mut_ptr().add(lane));
        }
    }
    sums
}

/// [`exp`] of numbers not above 0, a vector at a time.
#[inline(always)]
unsafe fn exp_down<L: Lanes>(x: L) -> L {
    // 1.5 * 2^23 + 127: added to x / ln 2 it rounds to n, and leaves n + 127 in the low bits, the exponent of 2^n.
    const ROUND: f32 = 12_583_039.0;
    // SAFETY: the caller's promise.
    unsafe {
        let least = L::splat(LEAST);
        // NaN stays NaN: see `Lanes::max`.
        let clamped = least.max(x);
        let power = L::splat(ROUND).mul_add(clamped, L::splat(std::f32::consts::LOG2_E));
        let n = power.sub(L::splat(ROUND));
        let r = clamped.mul_add(n, L::splat(-LN2_HIGH)).mul_add(n, L::splat(-LN2_LOW));
        let mut p = L::splat(TERMS[0]);
        for &term in &TERMS[1..] {
            p = L::splat(term).mul_add(p, r);
        }
        p.mul(power.power_of_two()).zero_where_less(x, least)
    }
}

/// A float32 inner product, in an order that depends on the length alone.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    const LANES: usize = 32;
    assert_eq!(x.len(), y.len());
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x * y).sum();
    let mut sums = [0.0f32; LANES];
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `out += weight * row`.
#[inline(always)]
pub(crate) fn add_scaled(weight: f32, row: &[f32], out: &mut [f32]) {
    assert_eq!(row.len(), out.len());
    for (out, &x) in out.iter_mut().zip(row) {
        *out += weight * x;
    }
}

/// `out = keep * out + add * row`.
#[inline(always)]
pub(crate) fn blend(keep: f32, out: &mut [f32], add: f32, row: &[f32]) {
    assert_eq!(row.len(), out.len());
    for (out, &x) in out.iter_mut().zip(row) {
        *out = keep * *out + add * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_ulp() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let ulp = f64::from((want as f32).next_up()) - f64::from(want as f32);
            assert!((f64::from(exp(x)) - want).abs() <= 3.0 * ulp, "exp({x}) = {} not {want}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn a_product_of_any_length_is_near_the_exact_one() {
        for n in 0..200 {
            let numbers = |seed: usize| (0..n).map(|i| ((i * seed) as f32 * 0.37).sin()).collect::<Vec<f32>>();
            let (x, y) = (numbers(3), numbers(7));
            let want: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            assert!((f64::from(dot(&x, &y)) - want).abs() <= 1e-6 * n as f64, "{n} numbers");
        }
    }

    #[test]
    fn slopes_are_those_of_the_logits() {
        for softcap in [None, Some(3.0)] {
            let logit = Logit { scale: 0.7, softcap };
            for score in [-9.0, -1.0, 0.0, 0.3, 4.0] {
                let (z, slope) = logit.with_slope(score);
                assert_eq!(z, logit.of(score));
                let step = 1e-2;
                let rise = (logit.of(score + step) - logit.of(score - step)) / (2.0 * step);
                assert!((slope - rise).abs() < 1e-3, "{softcap:?} at {score}: {slope} not {rise}");
            }
        }
    }

    #[test]
    fn tanh_is_close_and_odd() {
        for i in 0..=200_000 {
            let x = i as f32 * 1e-4;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() <= 2e-7, "tanh({x})");
            assert_eq!(tanh(-x), -tanh(x));
        }
        assert!(tanh(f32::NAN).is_nan());
    }
}
