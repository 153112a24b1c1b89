//! One query against a block of keys as they are stored: for decoding, where memory is what takes time.
//!
//! The tiles of [`crate::tile`] serve sixteen queries at a time; for one, fifteen lanes would idle. Here lanes are the
//! numbers of a key: sixteen keys at a time (eight on AVX2) are multiplied with the query, each in a register of its
//! own, and the registers are then summed across, all of them together. Half precision is widened in passing. Nothing is
//! prefetched: the processor foresees sixteen rows by itself, and to ask for lines that are in its second-level cache
//! costs more than the arithmetic (measured: 42 instead of 115 GB/s).
#![expect(unsafe_code, reason = "unchecked loads in the innermost loops; lengths are asserted at each entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::tile::{PANEL, Pass, Rule};

/// How the numbers of a key are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// float32
    F32,
    /// float16
    F16,
    /// bfloat16
    Bf16,
}

/// At most 64 keys, or values, as they are stored.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// Row-major; `n` rows rounded up to a multiple of [`PANEL`]. Behind each row's numbers are zeros, up to a multiple
    /// of [`PANEL`] numbers.
    pub bytes: &'a [u8],
    /// How the numbers are stored.
    pub format: Format,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Rows.
    pub n: usize,
    /// One factor per row, for cosine, up to the next multiple of [`PANEL`]; empty otherwise.
    pub scale: &'a [f32],
    /// What the caller reads next, if known to lie in memory: see [`crate::Keys::next`]. Only what takes a few queries
    /// looks there.
    pub next: &'a [u8],
}

/// A query, and which of its scores are wanted.
#[derive(Clone, Copy)]
pub struct One<'a> {
    /// Its numbers, padded with zeros to a multiple of [`PANEL`].
    pub numbers: &'a [f32],
    /// Its number among the caller's queries.
    pub at: u32,
    /// Scores below are not wanted.
    pub threshold: f32,
}

impl Stored<'_> {
    pub(crate) fn check(&self, rule: Rule, numbers: usize) {
        let rows = self.n.next_multiple_of(PANEL);
        let bytes = numbers * if self.format == Format::F32 { 4 } else { 2 };
        assert!(numbers.is_multiple_of(PANEL), "a query is padded to whole vectors");
        assert!(self.n <= 64 && bytes <= self.stride, "a block is at most 64 rows of at least the padded dimension");
        assert!(self.bytes.len() >= rows * self.stride, "key rows must be readable in groups");
        assert!(rule != Rule::Scaled || self.scale.len() >= rows, "one scale per key row");
    }
}

/// Appends the scores of live rows that are not below the query's threshold, in row order.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn select<L: Lanes>(rule: Rule, keys: Stored, live: u64, query: One, out: &mut Vec<Pass>) {
    keys.check(rule, query.numbers.len());
    let mut scores = [0.0; 64];
    // SAFETY: lengths were asserted; the instructions are the caller's promise. One loop per rule and format, so that
    // nothing is decided inside.
    let passed = unsafe {
        match (rule == Rule::L2, keys.format) {
            (false, Format::F32) => rows::<L, F32, false>(keys, query, &mut scores),
            (false, Format::F16) => rows::<L, F16, false>(keys, query, &mut scores),
            (false, Format::Bf16) => rows::<L, BF16, false>(keys, query, &mut scores),
            (true, Format::F32) => rows::<L, F32, true>(keys, query, &mut scores),
            (true, Format::F16) => rows::<L, F16, true>(keys, query, &mut scores),
            (true, Format::Bf16) => rows::<L, BF16, true>(keys, query, &mut scores),
        }
    };
    append(passed & live, keys.n, &scores, query.at, out);
}

/// Appends the scores of the rows that passed, of the first `n`.
#[inline(always)]
pub(crate) fn append(passed: u64, n: usize, scores: &[f32; 64], query: u32, out: &mut Vec<Pass>) {
    let mut passed = passed & (u64::MAX >> (64 - n.max(1)));
    while passed != 0 {
        let row = passed.trailing_zeros();
        passed &= passed - 1;
        out.push(Pass { score: scores[row as usize], row, query });
    }
}

/// [`Format`] as a constant.
pub(crate) const F32: u8 = 0;
pub(crate) const F16: u8 = 1;
pub(crate) const BF16: u8 = 2;

/// A vector of numbers from number `j` of a row on.
///
/// # Safety
/// As many numbers are readable there, and the instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn load<L: Lanes, const FORMAT: u8>(row: *const u8, j: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        match FORMAT {
            F32 => L::load(row.cast::<f32>().add(j)),
            F16 => L::load_f16(row.cast::<u16>().add(j)),
            _ => L::load_bf16(row.cast::<u16>().add(j)),
        }
    }
}

/// Scores every row, and says of which the score is not below the threshold; rows past the end count too.
#[inline(always)]
unsafe fn rows<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool>(
    keys: Stored,
    query: One,
    scores: &mut [f32; 64],
) -> u64 {
    let mut passed = 0;
    for row in (0..keys.n).step_by(L::N) {
        // SAFETY: whole groups of rows are readable, as are their scales; `scores` has room for them.
        unsafe {
            let mut sums = products::<L, FORMAT, DIFFERENCE>(
                keys.bytes.as_ptr().add(row * keys.stride),
                keys.stride,
                query.numbers,
            );
            if DIFFERENCE {
                sums = L::splat(0.0).sub(sums);
            } else if !keys.scale.is_empty() {
                sums = sums.mul(L::load(keys.scale.as_ptr().add(row)));
            }
            sums.store(scores.as_mut_ptr().add(row));
            passed |= u64::from(sums.not_less(L::splat(query.threshold))) << row;
        }
    }
    passed
}

/// Sums of products with the query, or of squared differences from it, of as many rows as there are lanes: row after row,
/// as memory is read fastest. Where registers allow, the query stays in them.
#[inline(always)]
unsafe fn products<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool>(
    row: *const u8,
    stride: usize,
    query: &[f32],
) -> L {
    // SAFETY: the caller's promise; a query of four or eight vectors is read as such.
    unsafe {
        match (L::REGISTERS, query.len() / L::N) {
            (32, 4) => held::<L, FORMAT, DIFFERENCE, 4>(row, stride, query),
            (32, 8) => held::<L, FORMAT, DIFFERENCE, 8>(row, stride, query),
            _ => {
                let mut sums = [L::splat(0.0); PANEL];
                for (r, sum) in sums.iter_mut().enumerate().take(L::N) {
                    for j in (0..query.len()).step_by(L::N) {
                        let q = L::load(query.as_ptr().add(j));
                        *sum = term::<L, FORMAT, DIFFERENCE>(*sum, row.add(r * stride), j, q);
                    }
                }
                L::sums(&sums)
            }
        }
    }
}

/// The same for a query of Q vectors.
#[inline(always)]
unsafe fn held<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool, const Q: usize>(
    row: *const u8,
    stride: usize,
    query: &[f32],
) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let mut q = [L::splat(0.0); Q];
        for (j, q) in q.iter_mut().enumerate() {
            *q = L::load(query.as_ptr().add(j * L::N));
        }
        let mut sums = [L::splat(0.0); PANEL];
        for (r, sum) in sums.iter_mut().enumerate().take(L::N) {
            for (j, q) in q.iter().enumerate() {
                *sum = term::<L, FORMAT, DIFFERENCE>(*sum, row.add(r * stride), j * L::N, *q);
            }
        }
        L::sums(&sums)
    }
}

/// Adds the product of one vector of a row, from number `j` on, with one of the query, or the square of their difference.
#[inline(always)]
unsafe fn term<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool>(sum: L, row: *const u8, j: usize, q: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let x = load::<L, FORMAT>(row, j);
        if DIFFERENCE {
            let d = x.sub(q);
            sum.mul_add(d, d)
        } else {
            sum.mul_add(x, q)
        }
    }
}
