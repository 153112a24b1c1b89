//! Unnormalised softmax sums of a part of the entries, and how two parts become one.

use mnemex_kernels::Kernels;
use mnemex_kernels::softmax::exp;

/// Running softmax of the queries of a unit.
pub(crate) struct Sums {
    /// `[n, stride]`, relative to the largest logit, as are the sums.
    pub(crate) out: Vec<f32>,
    pub(crate) max: Vec<f32>,
    pub(crate) sum: Vec<f32>,
    /// Numbers of a value, padded.
    pub(crate) stride: usize,
}

impl Sums {
    pub(crate) fn empty(lanes: usize, stride: usize) -> Sums {
        Sums { out: vec![0.0; lanes * stride], max: vec![f32::NEG_INFINITY; lanes], sum: vec![0.0; lanes], stride }
    }

    /// Joins a later part.
    pub(crate) fn merge(&mut self, later: &Sums, kernels: &Kernels) {
        for i in 0..self.max.len() {
            let (a, b) = (self.max[i], later.max[i]);
            let max = if a > b { a } else { b };
            let share = |m: f32| match m {
                f32::NEG_INFINITY => 0.0,
                m if m == max => 1.0,
                m => exp(m - max),
            };
            let (keep, add) = (share(a), share(b));
            // A NaN sum, from a NaN logit, survives: it never comes with a share of 0 alone.
            self.sum[i] = self.sum[i] * keep + later.sum[i] * add;
            let at = i * self.stride..(i + 1) * self.stride;
            let (out, row) = (&mut self.out[at.clone()], &later.out[at]);
            if keep == 0.0 || add == 0.0 {
                out.iter_mut().zip(row).for_each(|(x, y)| *x = weighed(*x, keep) + weighed(*y, add));
            } else {
                (kernels.blend)(keep, out, add, row);
            }
            self.max[i] = max;
        }
    }
}

/// `x * share`; what has no share does not matter, whatever it is.
#[inline(always)]
fn weighed(x: f32, share: f32) -> f32 {
    if share == 0.0 && !x.is_finite() { 0.0 } else { x * share }
}
