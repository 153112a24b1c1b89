//! A first pass in eight bits each number for many queries, for processors that multiply bytes several times faster than
//! float32 (AVX-512 VNNI does: 4 times on the Intel processors measured, 4 on Zen 4, where bfloat16 gives 2).
//!
//! Keys are in the codes of [`crate::codes`]: those of the bank's copy, or made of a block as it is met, which takes about
//! as long as thirty to forty queries' products with it and is worth it from some thirty on. Queries are rounded to bytes too, so each
//! side loses about as much; [`crate::bound::Precision::Codes`] says how much that can be, and who might pass is rescored
//! like everybody. Lanes are keys: what passes of a query's scores of a block is one mask, and factors of keys need no
//! broadcast.

use crate::codes::{Codes, MOST, QUAD, ROWS, SHIFT, padded};
use crate::single::{Format, Stored};
use crate::tile::Pass;

/// The kernels of such a pass.
#[derive(Clone, Copy)]
pub struct Many {
    /// Codes of a block's keys, of `dim` numbers in half precision. Returns the most that one of them loses.
    pub code: fn(keys: Stored, dim: usize, out: Room) -> f32,
    /// Appends the scores of live rows that are not below their query's threshold, query by query, in row order.
    pub select: fn(keys: Codes, live: u64, queries: Bytes, thresholds: &[f32], out: &mut Vec<Pass>),
    /// Raises `out` to the largest scores of the groups of a full block's rows: rows r, r + 16, and so on for each of
    /// sixteen groups. Those of query i are `out[i * stride..][..16]`.
    pub maxima: fn(keys: Codes, queries: Bytes, out: &mut [f32], stride: usize),
}

/// Groups of a block's rows that [`Many::maxima`] knows.
pub const GROUPS: usize = 16;

/// Most numbers of a key: sums of as many products of bytes are exact in 32 bits.
pub const MAX_DIM: usize = 1 << 16;

/// Where [`Many::code`] writes.
pub struct Room<'a> {
    /// As [`Codes::bytes`], for 64 rows.
    pub bytes: &'a mut [u8],
    /// The factor of each row.
    pub scale: &'a mut [f32; ROWS],
    /// Codes row by row, on the way: sixteen rows of [`row_bytes`].
    pub rows: &'a mut [u8],
}

/// Bytes of a row of codes on the way.
pub fn row_bytes(dim: usize) -> usize {
    dim.next_multiple_of(64)
}

/// Queries in bytes.
#[derive(Clone, Debug, Default)]
pub struct Coded {
    /// Query by query, each padded with zeros to whole quads.
    weights: Vec<i8>,
    /// What the sums are too large by, since codes are.
    offsets: Vec<i32>,
    factors: Vec<f32>,
}

impl Coded {
    /// Adds a query, and returns the norm of what it loses; of one that is not finite nothing is promised.
    pub fn push(&mut self, query: &[f32]) -> f64 {
        let most = query.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let factor = most / MOST;
        let factor = if factor.is_normal() { factor } else { 0.0 };
        let (mut square, mut sum) = (0.0, 0);
        for &x in query {
            let whole = if factor == 0.0 { 0.0 } else { (x / factor).round().clamp(-MOST, MOST) };
            square += (f64::from(x) - f64::from(factor) * f64::from(whole)).powi(2);
            self.weights.push(whole as i8);
            sum += i32::from(whole as i8);
        }
        self.weights.resize(self.weights.len().next_multiple_of(padded(query.len())), 0);
        self.offsets.push(SHIFT * sum);
        self.factors.push(factor);
        // Room for the roundings of the sum.
        f64::sqrt(square) * (1.0 + 1e-9)
    }

    /// Queries.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// All of them.
    pub fn all(&self) -> Bytes<'_> {
        Bytes { weights: &self.weights, offsets: &self.offsets, factors: &self.factors }
    }
}

/// Queries in bytes, as the kernels take them.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    pub(crate) weights: &'a [i8],
    pub(crate) offsets: &'a [i32],
    pub(crate) factors: &'a [f32],
}

impl Bytes<'_> {
    /// That everything the kernels read is there; bytes of a query.
    pub(crate) fn check(&self, keys: &Codes) -> usize {
        let width = self.weights.len().checked_div(self.factors.len()).unwrap_or(0);
        assert!(self.offsets.len() == self.factors.len(), "one offset per query");
        assert!(
            width * self.factors.len() == self.weights.len() && width.is_multiple_of(QUAD),
            "queries of one length"
        );
        keys.check(width / QUAD);
        width
    }
}

impl Room<'_> {
    /// That everything the kernels write has a place.
    pub(crate) fn check(&self, keys: &Stored, dim: usize) {
        assert!(dim.div_ceil(32) * 64 <= keys.stride, "rows are padded to whole vectors");
        assert!(keys.n <= ROWS && keys.format != Format::F32, "at most 64 rows in half precision");
        assert!(keys.bytes.len() >= keys.n.next_multiple_of(16) * keys.stride, "key rows must be readable in groups");
        assert!(keys.scale.is_empty() || keys.scale.len() >= keys.n.next_multiple_of(16), "one scale per key row");
        assert!(self.bytes.len() >= padded(dim) * ROWS, "room for 64 rows of codes");
        assert!(self.rows.len() >= 16 * row_bytes(dim), "room for sixteen rows");
    }
}
