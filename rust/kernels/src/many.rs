//! A first pass in eight bits each number for many queries, for processors that multiply bytes several times faster than
//! float32 (AVX-512 VNNI does: 4 times on the Intel processors measured, 4 on Zen 4, where bfloat16 gives 2).
//!
//! Keys are in the codes of [`crate::codes`]: those of the bank's copy, or made of a block as it is met, which takes about
//! as long as thirty to forty queries' products with it and is worth it from some thirty on. Queries are rounded to bytes
//! too, so each side loses about as much; [`crate::bound::Precision::Codes`] says how much that can be, and who might pass
//! is rescored like everybody. Lanes are keys: what passes of a query's scores of a block is one mask, and factors of keys
//! need no broadcast.
//!
//! How far a score can be off is known row by row: a row's slack, which is what it loses plus a share of its norm, times a
//! query's, plus a constant of the query. That costs nothing, since thresholds take the query's factor in instead. Of keys
//! with a spectrum (a standard deviation of j^-1/2 in dimension j, and a mean) half as many pass as with the most that any
//! row of the block loses, and fewer of normal ones too.

use crate::bound::QueryBounds;
use crate::codes::{Codes, MOST, QUAD, ROWS, SHIFT, padded};
use crate::single::{Format, Stored};
use crate::tile::Pass;

/// The kernels of such a pass.
#[derive(Clone, Copy)]
pub struct Many {
    /// Codes of a block's keys, of `dim` numbers in half precision.
    pub code: fn(keys: Stored, dim: usize, shares: Shares, out: Room),
    /// Appends the scores of live rows that may not be below their query's threshold of [`Coded::thresholds`], query by
    /// query, in row order.
    pub select: fn(keys: CodedKeys, live: u64, queries: Bytes, thresholds: &[f32], out: &mut Vec<Pass>),
    /// Raises `out` to the largest of what the groups of a full block's rows reach at least: rows r, r + 16, and so on for
    /// each of sixteen groups. Those of query i are `out[i * stride..][..16]`; see [`Coded::floor`].
    pub maxima: fn(keys: CodedKeys, queries: Bytes, out: &mut [f32], stride: usize),
}

/// The keys of a block in codes, and how far the scores of each can be off.
#[derive(Clone, Copy)]
pub struct CodedKeys<'a> {
    /// The codes.
    pub codes: Codes<'a>,
    /// The slack of each row; infinite where the key is not finite.
    pub slack: &'a [f32; ROWS],
}

/// What the slack of a row is made of, beside what its codes lose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shares {
    /// What every row has lost before: the norm of it, for cosine as a share of the key's.
    pub before: f32,
    /// Times the key's norm: [`Coded::per_norm`], or 0 where `before` has that of the longest key of the block. Norms take
    /// a quarter of the time of codes.
    pub per_norm: f32,
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
    /// The slack of each row; infinite where the key is not finite.
    pub slack: &'a mut [f32; ROWS],
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
    /// What the slack of a row is multiplied by, divided by the factor.
    slacks: Vec<f32>,
    /// One over each factor; NaN for a query of which nothing can be said, since nothing is below a threshold of NaN.
    inverses: Vec<f32>,
    /// How far a score can be off whatever the row.
    constants: Vec<f32>,
    per_norm: f32,
}

/// A share that what is computed here is widened by, for the roundings of its own arithmetic.
const ROOM: f32 = 1.0 / (1 << 20) as f32;

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

    /// Takes the bounds of all queries that were added: before this, nothing can be said of any.
    pub fn bound(&mut self, bounds: &QueryBounds) {
        let sure = |&at: &usize| self.factors[at] > 0.0 && bounds.at(at, 0.0, 0.0).upper(0.0) < f32::INFINITY;
        let sure: Vec<usize> = (0..self.len()).filter(sure).collect();
        // A row's slack serves all queries, so norms get the share that is right in the mean; a query that loses more has
        // a larger slack of its own.
        let shares = sure.iter().map(|&at| f64::from(bounds.per_reach(at)) / f64::from(bounds.per_lost(at)));
        self.per_norm = ((shares.sum::<f64>() / sure.len().max(1) as f64) as f32).max(f32::MIN_POSITIVE);
        self.slacks = vec![0.0; self.len()];
        self.inverses = vec![f32::NAN; self.len()];
        self.constants = (0..self.len()).map(|at| bounds.constant(at)).collect();
        for at in sure {
            let per_slack = bounds.per_lost(at).max(bounds.per_reach(at) / self.per_norm);
            let slack = per_slack / self.factors[at] * (1.0 + ROOM);
            if slack < f32::INFINITY {
                (self.slacks[at], self.inverses[at]) = (slack, 1.0 / self.factors[at]);
            }
        }
    }

    /// What a key's norm counts beside what the key loses: see [`Shares`].
    pub fn per_norm(&self) -> f32 {
        self.per_norm
    }

    /// For each query, what a score of [`Many::select`] plus slacks is not less than where the exact score can reach its
    /// floor.
    pub fn thresholds(&self, floors: &[f32], out: &mut [f32]) {
        let parts = self.constants.iter().zip(&self.inverses);
        for ((out, &floor), (constant, inverse)) in out.iter_mut().zip(floors).zip(parts) {
            *out = (floor - (floor.abs() * ROOM + 1.25 * constant)) * inverse;
        }
    }

    /// A floor that those k rows reach which reach a score of [`Many::maxima`].
    pub fn floor(&self, query: usize, score: f32) -> f32 {
        let floor = score - (score.abs() * ROOM + 1.25 * self.constants[query]);
        if floor.is_nan() { f32::NEG_INFINITY } else { floor }
    }

    /// How far apart two rows of equal scores can be whose slack is this.
    pub fn width(&self, query: usize, slack: f32) -> f32 {
        2.0 * slack * self.slacks[query] * self.factors[query]
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
        Bytes { weights: &self.weights, offsets: &self.offsets, factors: &self.factors, slacks: &self.slacks }
    }
}

/// Queries in bytes, as the kernels take them.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    pub(crate) weights: &'a [i8],
    pub(crate) offsets: &'a [i32],
    pub(crate) factors: &'a [f32],
    pub(crate) slacks: &'a [f32],
}

impl Bytes<'_> {
    /// That everything the kernels read is there; bytes of a query.
    pub(crate) fn check(&self, keys: &Codes) -> usize {
        let width = self.weights.len().checked_div(self.factors.len()).unwrap_or(0);
        let n = self.factors.len();
        assert!(self.offsets.len() == n && self.slacks.len() == n, "one offset and one slack per query");
        assert!(width * n == self.weights.len() && width.is_multiple_of(QUAD), "queries of one length");
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
