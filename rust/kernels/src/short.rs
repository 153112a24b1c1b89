//! A first pass in bfloat16, for processors that multiply it several times faster than float32.
//!
//! It is a filter like the float32 one, with a wider bound ([`crate::bound::Precision::Bf16`]): keys and queries are
//! rounded to eight bits each, products are exact, sums are float32. Distances would lose too much to cancellation, so
//! they stay with float32.

use half::bf16;

use crate::select::Maxima;
use crate::tile::{Keys, PANEL, Pass};

/// Numbers of one step: rows are padded with zeros to a multiple of it.
pub const NUMBERS: usize = 32;

/// Rows of a block of keys that must be readable, whatever the number of keys.
pub const ROWS: usize = 64;

/// The kernels of such a pass.
#[derive(Clone, Copy)]
pub struct Short {
    /// Rounds key rows: `out` gets [`ROWS`] rows of [`padded`] numbers. What they lose is said by [`lost`].
    pub shorten: fn(keys: Keys, dim: usize, out: &mut [u16]),
    /// [`crate::Kernels::select`] over such keys.
    pub select: fn(keys: ShortKeys, live: u64, queries: ShortQueries, thresholds: &[f32], out: &mut Vec<Pass>),
    /// [`crate::Kernels::maxima`] over such keys.
    pub maxima: fn(keys: ShortKeys, queries: ShortQueries, out: Maxima),
}

/// At most 64 key rows in bfloat16.
#[derive(Clone, Copy)]
pub struct ShortKeys<'a> {
    /// Row-major, zeros behind each row's numbers; [`ROWS`] rows.
    pub rows: &'a [u16],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Rows.
    pub n: usize,
    /// One factor per row, for cosine; empty otherwise.
    pub scale: &'a [f32],
    /// What the caller reads next, if known: see [`crate::Keys::next`].
    pub next: &'a [u8],
}

/// Queries rounded and packed by [`pack`].
#[derive(Clone, Copy)]
pub struct ShortQueries<'a> {
    /// The panels, one after the other.
    pub panels: &'a [u16],
    /// Numbers per query.
    pub dim: usize,
    /// Queries.
    pub n: usize,
}

/// Numbers that a row of `dim` takes.
pub fn padded(dim: usize) -> usize {
    dim.next_multiple_of(NUMBERS)
}

/// A bound of the norm of what a key loses by rounding: to nearest even, and to 0 below the least normal number. 0 for a
/// key that is not finite: it has no score to be near to.
#[inline(always)]
pub(crate) fn lost(key: &[f32]) -> f32 {
    const LANES: usize = 8;
    let off = |x: f32| f64::from(x) - f64::from(bf16::from_f32(x).to_f32());
    let mut squares = [0.0f64; LANES];
    for chunk in key.chunks(LANES) {
        for (square, &x) in squares.iter_mut().zip(chunk) {
            *square += off(x) * off(x);
        }
    }
    let flushed = f64::from(f32::MIN_POSITIVE) * (key.len() as f64).sqrt();
    // Room for the roundings of the sum.
    let lost = squares.iter().sum::<f64>().sqrt() * (1.0 + 1e-9) + flushed;
    if lost.is_nan() { 0.0 } else { (lost as f32).next_up() }
}

/// Rounds and packs panels of [`crate::tile::pack`]: number j of query i stands at
/// `(i / 16 * padded + j / 2 * 2) * 16 + i % 16 * 2 + j % 2`. Adds to `lost` the square of what each query loses.
pub fn pack(panels: &[f32], dim: usize, out: &mut [u16], lost: &mut [f64]) {
    let panels = panels.chunks_exact(PANEL * dim).zip(out.chunks_exact_mut(PANEL * padded(dim)));
    for ((from, to), lost) in panels.zip(lost.chunks_mut(PANEL)) {
        for (j, lanes) in from.chunks_exact(PANEL).enumerate() {
            for (i, &x) in lanes.iter().enumerate() {
                let short = bf16::from_f32(x);
                to[(j / 2 * PANEL + i) * 2 + j % 2] = short.to_bits();
                if let Some(lost) = lost.get_mut(i) {
                    *lost += f64::from(x - short.to_f32()).powi(2);
                }
            }
        }
    }
}

impl ShortKeys<'_> {
    /// That everything the kernels read is there.
    pub(crate) fn check(&self, queries: &ShortQueries) {
        let row = padded(queries.dim);
        assert!(self.n <= ROWS && row <= self.stride, "a block is at most 64 rows of at least the padded dimension");
        assert!(self.rows.len() >= ROWS * self.stride, "64 key rows must be readable");
        assert!(self.scale.is_empty() || self.scale.len() >= self.n, "one scale per key row");
        assert!(queries.panels.len() >= queries.n.next_multiple_of(PANEL) * row, "query panels are too short");
    }
}
