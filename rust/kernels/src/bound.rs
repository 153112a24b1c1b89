//! How far a first-pass score can be from the exact one: what makes a filter a proof.
//!
//! For a sum of d products in any order, fused or not, |computed - exact| <= g sum |x_j q_j| with g = d u / (1 - d u),
//! u = 2^-24 (Higham 2002, section 3.1), and sum |x_j q_j| <= |x| |q|. For l2 the same holds with three more roundings
//! per term, relative to the result itself, since no term is negative. Products that underflow add at most 2^-149 each.
//! In bfloat16 ([`Precision::Bf16`]) the factors are rounded first, and what is below the least normal number, factor,
//! product or sum, may become 0: 2^-126 each. In codes ([`Precision::Codes`]) x = x^ + e and q = q^ + f with whole numbers
//! times a factor each, x^ and q^, so |<x, q> - <x^, q^>| <= |e| |q| + |x^| |f|, and |x^| <= |x| + |e|; <x^, q^> is a sum of
//! whole numbers, exact over a thousand dimensions at a time ([`crate::codes`]) or over all ([`crate::many`]), then rounded,
//! added and multiplied by both factors.
//! `MARGIN` further roundings are granted to the float32 arithmetic of this file and to float64's own rounding.

use crate::canonical::Metric;
use crate::codes;

/// Roundings granted beyond those of the sum itself.
const MARGIN: usize = 8;

/// Norms from here on let a sum leave float32's range; nothing is promised then.
const HUGE: f64 = 1e18;

/// For cosine, norms below this let the reciprocal leave float32's range.
const SMALL: f64 = 1e-15;

/// What the numbers of a first pass are rounded to before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Precision {
    /// float32: queries as they are. Keys too, or rounded to bfloat16; what one then loses is given to
    /// [`QueryBound::at`].
    Single,
    /// bfloat16, keys and queries.
    Bf16 {
        /// The norm of what the query loses.
        lost: f64,
    },
    /// Codes of [`crate::codes`] or [`crate::many`], keys and queries. What a key loses is given to [`QueryBound::at`].
    Codes {
        /// The norm of what the query loses.
        lost: f64,
    },
}

/// What a key's norm does to the bound of its block: the block keeps the largest. Infinite where nothing is promised.
pub fn reach(metric: Metric, key_norm: f64) -> f32 {
    let safe = key_norm < HUGE && (metric != Metric::Cos || key_norm == 0.0 || key_norm > SMALL);
    match (safe, metric) {
        (false, _) => f32::INFINITY,
        (true, Metric::Dot) => (key_norm as f32).next_up(),
        (true, _) => 0.0,
    }
}

/// A rounded number is off by at most this share of it, with room: half an ulp is 2^-9.
const U: f64 = 1.0 / 256.0;

/// How far a sum of products with a key of norm 1 can be off when the query loses a vector of norm `lost` and the sum is
/// off by `sum`, relatively: |<x, q> - <x^, q^>| <= |x - x^| |q| + |x^| |q - q^|, and the first term is the key's own.
fn rounded(query_norm: f64, lost: f64, sum: f64) -> f64 {
    ((1.0 + U) * lost + sum * (1.0 + U) * (query_norm + lost)) * ROOM
}

/// What bounds computed here are widened by, for the roundings of their own arithmetic.
const ROOM: f64 = 1.0 + 1.0 / (1 << 20) as f64;

/// The part of a bound that depends on the query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryBound {
    relative: f32,
    per_reach: f32,
    per_lost: f32,
    constant: f32,
}

impl QueryBound {
    /// For one query against keys of `dim` numbers.
    pub fn of(metric: Metric, dim: usize, query_norm: f64, precision: Precision) -> QueryBound {
        let g = |n: usize| {
            let nu = (n + MARGIN) as f64 * 2f64.powi(-24);
            if nu < 0.25 { nu / (1.0 - nu) } else { f64::INFINITY }
        };
        let tiny = f64::from(f32::MIN_POSITIVE) * dim as f64;
        // A reach is finite and harmless (0) or infinite where `per_reach` need only be positive.
        let any = f64::from(f32::MIN_POSITIVE);
        // Roundings of a score from codes.
        let steps = 2 * dim.div_ceil(codes::EXACT) + 2;
        // The query of a cosine is scaled to norm 1 and the row's scale is one over its norm: four more roundings.
        let (relative, per_reach, constant) = match (metric, precision) {
            // A key that is taken rounded is longer by U at most.
            (Metric::Dot, Precision::Single) => (0.0, g(dim) * (1.0 + U) * query_norm * ROOM, tiny),
            (Metric::Cos, Precision::Single) => (0.0, any, g(dim + 4) * (1.0 + U) * ROOM),
            (Metric::Dot, Precision::Bf16 { lost }) => {
                let per_reach = rounded(query_norm, lost, g(2 * dim)) + 2.0 * tiny;
                (0.0, per_reach, 4.0 * tiny + 2.0 * tiny * query_norm)
            }
            (Metric::Cos, Precision::Bf16 { lost }) => {
                (0.0, any, rounded(1.0, lost, g(2 * dim + 4)) + 4.0 * tiny / SMALL)
            }
            (Metric::L2, Precision::Single) => (g(dim + 3), any, tiny),
            (Metric::Dot, Precision::Codes { lost }) => {
                // The first product may be flushed before the key's factor, no more than its norm, multiplies it; or the
                // last, where that factor comes first: with a whole number it makes a normal one.
                (0.0, (lost + g(steps) * (query_norm + lost)) * ROOM + any, 2.0 * any)
            }
            (Metric::Cos, Precision::Codes { lost }) => {
                (0.0, any, (lost + g(steps + 4) * (1.0 + lost)) * ROOM + 4.0 * any)
            }
            // Differences of rounded numbers promise nothing.
            (Metric::L2, Precision::Bf16 { .. } | Precision::Codes { .. }) => (0.0, any, f64::INFINITY),
        };
        let constant = if query_norm < HUGE { constant } else { f64::INFINITY };
        let length = if metric == Metric::Cos { 1.0 } else { query_norm.min(HUGE) };
        let per_lost = match precision {
            Precision::Codes { lost } => (length + lost) * (1.0 + g(steps + 4)) * ROOM,
            _ => length * ROOM,
        };
        QueryBound {
            relative: relative as f32,
            per_reach: (per_reach as f32).next_up(),
            per_lost: (per_lost as f32).next_up(),
            constant: constant as f32,
        }
    }

    /// What a key's slack is multiplied by: the norm of what it loses and `share` of its own.
    pub fn per_slack(&self, share: f32) -> f32 {
        self.per_lost.max(self.per_reach / share)
    }

    /// How far a score can be off whatever the key.
    pub fn constant(&self) -> f32 {
        self.constant
    }

    /// For all keys of a block with this [`reach`], of which none loses more than `lost` by rounding: the norm of it, for
    /// cosine as a share of the key's. 0 where keys are taken as they are.
    #[inline(always)]
    pub fn at(&self, reach: f32, lost: f32) -> Bound {
        Bound { relative: self.relative, absolute: self.per_reach * reach + self.per_lost * lost + self.constant }
    }
}

/// The bounds of many queries, number by number: what is computed for each of them and each block is computed for several
/// at once.
#[derive(Clone, Debug, Default)]
pub struct QueryBounds {
    /// The same for all.
    relative: f32,
    per_reach: Vec<f32>,
    per_lost: Vec<f32>,
    constant: Vec<f32>,
}

impl QueryBounds {
    /// Queries.
    pub fn len(&self) -> usize {
        self.constant.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.constant.is_empty()
    }

    /// [`QueryBound::at`] of one query.
    pub fn at(&self, query: usize, reach: f32, lost: f32) -> Bound {
        let absolute = self.per_reach[query] * reach + self.per_lost[query] * lost + self.constant[query];
        Bound { relative: self.relative, absolute }
    }

    /// How far a score of a query is off for each unit of a key's norm.
    pub fn per_reach(&self, query: usize) -> f32 {
        self.per_reach[query]
    }

    /// The same for each unit of the norm of what the key loses.
    pub fn per_lost(&self, query: usize) -> f32 {
        self.per_lost[query]
    }

    /// The same whatever the key.
    pub fn constant(&self, query: usize) -> f32 {
        self.constant[query]
    }

    /// The absolute parts of the bounds of the queries from `first` on.
    pub fn absolutes(&self, first: usize, reach: f32, lost: f32, out: &mut [f32]) {
        let parts = self.per_reach[first..].iter().zip(&self.per_lost[first..]).zip(&self.constant[first..]);
        for (out, ((per_reach, per_lost), constant)) in out.iter_mut().zip(parts) {
            *out = per_reach * reach + per_lost * lost + constant;
        }
    }

    /// The bound with an absolute part.
    #[inline(always)]
    pub fn with(&self, absolute: f32) -> Bound {
        Bound { relative: self.relative, absolute }
    }
}

impl FromIterator<QueryBound> for QueryBounds {
    /// Of queries against the same keys in the same precision.
    fn from_iter<I: IntoIterator<Item = QueryBound>>(bounds: I) -> QueryBounds {
        let mut all = QueryBounds::default();
        for QueryBound { relative, per_reach, per_lost, constant } in bounds {
            all.relative = relative;
            all.per_reach.push(per_reach);
            all.per_lost.push(per_lost);
            all.constant.push(constant);
        }
        all
    }
}

/// |first-pass score s - exact score| <= `relative` |s| + `absolute`; a NaN promises nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    relative: f32,
    absolute: f32,
}

impl Bound {
    /// The least value that the exact score, rounded to float32, can have.
    #[inline]
    pub fn lower(&self, score: f32) -> f32 {
        let low = score - (self.relative * score.abs() + self.absolute);
        if low.is_nan() { f32::NEG_INFINITY } else { low }
    }

    /// The greatest value that the exact score, rounded to float32, can have.
    #[inline]
    pub fn upper(&self, score: f32) -> f32 {
        let high = score + (self.relative * score.abs() + self.absolute);
        if high.is_nan() { f32::INFINITY } else { high }
    }

    /// Both.
    #[inline(always)]
    pub fn both(&self, score: f32) -> (f32, f32) {
        let width = self.relative * score.abs() + self.absolute;
        let (low, high) = (score - width, score + width);
        if low.is_nan() || high.is_nan() { (self.lower(score), self.upper(score)) } else { (low, high) }
    }

    /// A first-pass score below this has no exact score of `floor` or more. NaN, which nothing is below, where nothing
    /// can be said: s < floor - 2 r |floor| - a gives s + r |s| + a < floor for r < 1/4; a quarter more for roundings.
    #[inline(always)]
    pub fn threshold(&self, floor: f32) -> f32 {
        floor - (2.0 * self.relative * floor.abs() + 1.25 * self.absolute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_below_the_threshold_can_reach_the_floor() {
        let short = Precision::Bf16 { lost: 0.003 };
        let single = [Metric::Dot, Metric::L2, Metric::Cos].map(|metric| (metric, Precision::Single));
        let codes = Precision::Codes { lost: 1e-4 };
        let rounded = [short, codes].map(|precision| [Metric::Dot, Metric::Cos].map(|metric| (metric, precision)));
        for (metric, precision) in single.into_iter().chain(rounded.into_iter().flatten()) {
            for dim in [1, 8, 128, 4096] {
                for size in [1e-30, 1e-3, 1.0, 77.0, 1e12] {
                    let size = if metric == Metric::Cos { 1.0 } else { size };
                    let lost = if precision == Precision::Single { 0.0 } else { 0.003 * size as f32 };
                    let bound = QueryBound::of(metric, dim, 1.0, precision).at(reach(metric, size), lost);
                    let scale = if metric == Metric::L2 { (size as f32 + 1.0).powi(2) } else { size as f32 };
                    for step in -40..=40 {
                        let floor = scale * step as f32 / 40.0;
                        let below = bound.threshold(floor).next_down();
                        assert!(bound.upper(below) < floor, "{metric:?} dim {dim} size {size} floor {floor}");
                        assert!(bound.lower(floor) <= floor && bound.upper(floor) >= floor);
                    }
                }
            }
        }
    }

    #[test]
    fn overflow_and_non_finite_norms_promise_nothing() {
        for norm in [f64::INFINITY, f64::NAN, 1e18] {
            for metric in [Metric::Dot, Metric::L2, Metric::Cos] {
                for bound in [
                    QueryBound::of(metric, 8, 2.0, Precision::Single).at(reach(metric, norm), 0.0),
                    QueryBound::of(metric, 8, norm, Precision::Bf16 { lost: norm }).at(reach(metric, 2.0), 0.0),
                    QueryBound::of(metric, 8, norm, Precision::Codes { lost: norm }).at(reach(metric, 2.0), 0.0),
                    QueryBound::of(metric, 8, 2.0, Precision::Codes { lost: 0.0 }).at(reach(metric, norm), 0.0),
                    QueryBound::of(metric, 8, 0.0, Precision::Single).at(reach(metric, norm), 0.0),
                ] {
                    let threshold = bound.threshold(5.0);
                    assert!(threshold.is_nan() || threshold == f32::NEG_INFINITY);
                    assert_eq!((bound.upper(1.0), bound.lower(1.0)), (f32::INFINITY, f32::NEG_INFINITY));
                }
            }
        }
    }
}
