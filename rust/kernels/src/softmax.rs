//! Logits, exponentials and their sums, for panels of sixteen queries and for one query's hits.
//!
//! Written for the compiler to vectorise: every loop runs over the sixteen lanes of a panel. `exp` is within 3 ULP of
//! the exact value over its range, and 0 below -87; weights are float32 throughout, the log-sum-exp is natural.

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
}

/// e^x by range reduction to [-ln2/2, ln2/2] and a degree-6 polynomial; NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer kept in the low bits
    let clamped = x.clamp(-87.0, 88.0);
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts, the first with trailing zeros so that n * LN2_HIGH is exact (Cody and Waite 1980).
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // The sum's low bits hold n: build 2^n from it. A NaN leaves garbage here, which the last branch discards.
    let n = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
    let power = f32::from_bits(n.wrapping_add(127) << 23);
    let y = p * power;
    if x < -87.0 {
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
#[inline(always)]
pub(crate) fn exponentials(panel: &mut [f32], max: &mut [f32; PANEL], sum: &mut [f32; PANEL]) {
    *max = [f32::NEG_INFINITY; PANEL];
    for row in panel.chunks_exact(PANEL) {
        for i in 0..PANEL {
            max[i] = if row[i] > max[i] { row[i] } else { max[i] };
        }
    }
    let mut shift = [0.0; PANEL];
    for i in 0..PANEL {
        shift[i] = if max[i] == f32::NEG_INFINITY { 0.0 } else { max[i] };
    }
    *sum = [0.0; PANEL];
    for row in panel.chunks_exact_mut(PANEL) {
        for i in 0..PANEL {
            row[i] = exp(row[i] - shift[i]);
            sum[i] += row[i];
        }
    }
}

/// `out += weight * row`.
#[inline(always)]
pub(crate) fn add_scaled(weight: f32, row: &[f32], out: &mut [f32]) {
    assert_eq!(row.len(), out.len());
    for (out, &x) in out.iter_mut().zip(row) {
        *out += weight * x;
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
    fn tanh_is_close_and_odd() {
        for i in 0..=200_000 {
            let x = i as f32 * 1e-4;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() <= 2e-7, "tanh({x})");
            assert_eq!(tanh(-x), -tanh(x));
        }
        assert!(tanh(f32::NAN).is_nan());
    }
}
