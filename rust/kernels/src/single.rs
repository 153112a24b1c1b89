//! One query against a block of keys as they are stored: for decoding, where memory is what takes time.
//!
//! The tiles of [`crate::tile`] serve sixteen queries at a time; for one, fifteen lanes would idle. Here lanes are the
//! numbers of a key: sixteen keys at a time (eight on AVX2) are multiplied with the query, each in a register of its
//! own, and the registers are then summed across, all of them together. Half precision is widened in passing: bfloat16 by a
//! shift and a mask, which leave even and odd places apart, so the query has them apart too ([`arrange`]). What comes next
//! is asked for where the caller says that it lies in memory (Emerald Rapids: 26 instead of 29 milliseconds for a million
//! keys of 128 numbers); to ask for lines that are in the second-level cache costs more than the arithmetic (Zen 4: 42
//! instead of 115 GB/s).
#![expect(unsafe_code, reason = "unchecked loads in the innermost loops; lengths are asserted at each entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::prefetch::prefetch;
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
    /// What the caller reads next, if known to lie in memory: see [`crate::Keys::next`].
    pub next: &'a [u8],
}

/// A query, and which of its scores are wanted.
#[derive(Clone, Copy)]
pub struct One<'a> {
    /// Its numbers as [`arrange`] puts them.
    pub numbers: &'a [f32],
    /// Its number among the caller's queries.
    pub at: u32,
    /// Scores below are not wanted.
    pub threshold: f32,
}

/// Numbers of bfloat16 of which the even and the odd places are kept apart.
const APART: usize = 2 * PANEL;

/// Numbers that a query takes as it meets keys in a format.
pub fn arranged_len(format: Format, dim: usize) -> usize {
    dim.next_multiple_of(if format == Format::Bf16 { APART } else { PANEL })
}

/// Puts a query as it meets keys in a format: padded with zeros to whole vectors; for bfloat16, of every [`APART`] numbers
/// those with even places, then those with odd ones.
pub fn arrange(format: Format, query: &[f32], out: &mut [f32]) {
    assert_eq!(out.len(), arranged_len(format, query.len()));
    out.fill(0.0);
    for (j, &x) in query.iter().enumerate() {
        out[if format == Format::Bf16 { j / APART * APART + j % 2 * PANEL + j % APART / 2 } else { j }] = x;
    }
}

impl Stored<'_> {
    pub(crate) fn check(&self, rule: Rule, numbers: usize) {
        let rows = self.n.next_multiple_of(PANEL);
        let bytes = numbers * if self.format == Format::F32 { 4 } else { 2 };
        assert!(numbers.is_multiple_of(PANEL), "vectors are padded");
        assert!(self.n <= 64 && bytes <= self.stride, "a block is at most 64 rows of at least the padded dimension");
        assert!(self.bytes.len() >= rows * self.stride, "key rows must be readable in groups");
        assert!(rule != Rule::Scaled || self.scale.len() >= rows, "one scale per key row");
    }

    /// The same for queries of so many numbers.
    pub(crate) fn check_query(&self, rule: Rule, numbers: usize) {
        assert!(numbers == arranged_len(self.format, numbers), "a query is arranged for the format");
        self.check(rule, numbers);
    }
}

/// Appends the scores of live rows that are not below the query's threshold, in row order.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn select<L: Lanes>(rule: Rule, keys: Stored, live: u64, query: One, out: &mut Vec<Pass>) {
    keys.check_query(rule, query.numbers.len());
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

/// Puts float32 scores in the place of those that something coarser gave. Query i stands at `queries[i * padded..]`, as
/// [`arrange`] puts it.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn refine<L: Lanes>(keys: Stored, queries: &[f32], padded: usize, passes: &mut [Pass]) {
    keys.check_query(if keys.scale.is_empty() { Rule::Dot } else { Rule::Scaled }, padded);
    let n = queries.len() / padded.max(1);
    assert!(passes.iter().all(|pass| (pass.row as usize) < keys.n && (pass.query as usize) < n), "passes of these");
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe {
        match keys.format {
            Format::F32 => refine_stored::<L, F32>(keys, queries, padded, passes),
            Format::F16 => refine_stored::<L, F16>(keys, queries, padded, passes),
            Format::Bf16 => refine_stored::<L, BF16>(keys, queries, padded, passes),
        }
    }
}

/// As many at a time as there are lanes.
///
/// # Safety
/// As for [`refine`], which checked the lengths.
#[inline(always)]
unsafe fn refine_stored<L: Lanes, const FORMAT: u8>(keys: Stored, queries: &[f32], padded: usize, passes: &mut [Pass]) {
    for passes in passes.chunks_mut(L::N) {
        // SAFETY: the caller's promise: rows and queries of `padded` numbers.
        unsafe {
            let mut sums = [L::splat(0.0); PANEL];
            for (sum, pass) in sums.iter_mut().zip(&*passes) {
                let row = keys.bytes.as_ptr().add(pass.row as usize * keys.stride);
                let query = queries.as_ptr().add(pass.query as usize * padded);
                *sum = row_products::<L, FORMAT, false>(*sum, row, query, padded);
            }
            let mut scores = [0.0; PANEL];
            L::sums(&sums).store(scores.as_mut_ptr());
            for (pass, score) in passes.iter_mut().zip(scores) {
                pass.score = if keys.scale.is_empty() { score } else { score * keys.scale[pass.row as usize] };
            }
        }
    }
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
                &keys.next
                    [keys.next.len() * row.min(keys.n) / keys.n..keys.next.len() * (row + L::N).min(keys.n) / keys.n],
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
/// as memory is read fastest. Where registers allow, the query stays in them. `next` is brought near meanwhile.
#[inline(always)]
unsafe fn products<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool>(
    row: *const u8,
    stride: usize,
    query: &[f32],
    next: &[u8],
) -> L {
    // SAFETY: the caller's promise; a query of four or eight vectors is read as such.
    unsafe {
        match (L::REGISTERS, query.len() / L::N) {
            (32, 4) => held::<L, FORMAT, DIFFERENCE, 4>(row, stride, query, next),
            (32, 8) => held::<L, FORMAT, DIFFERENCE, 8>(row, stride, query, next),
            _ => {
                let mut sums = [L::splat(0.0); PANEL];
                for (r, sum) in sums.iter_mut().enumerate().take(L::N) {
                    bring(next, r, L::N);
                    *sum =
                        row_products::<L, FORMAT, DIFFERENCE>(*sum, row.add(r * stride), query.as_ptr(), query.len());
                }
                L::sums(&sums)
            }
        }
    }
}

/// Brings near the r-th of `n` parts.
#[inline(always)]
fn bring(next: &[u8], r: usize, n: usize) {
    if !next.is_empty() {
        prefetch(&next[next.len() * r / n..next.len() * (r + 1) / n]);
    }
}

/// Adds to a sum the products of one row with the query of `n` numbers.
#[inline(always)]
unsafe fn row_products<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool>(
    mut sum: L,
    row: *const u8,
    query: *const f32,
    n: usize,
) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        if FORMAT == BF16 {
            for j in (0..n).step_by(APART) {
                for h in (0..PANEL).step_by(L::N) {
                    let [even, odd] = L::load_bf16_pairs(row.cast::<u16>().add(j + 2 * h));
                    sum = term::<L, DIFFERENCE>(sum, even, L::load(query.add(j + h)));
                    sum = term::<L, DIFFERENCE>(sum, odd, L::load(query.add(j + PANEL + h)));
                }
            }
        } else {
            for j in (0..n).step_by(L::N) {
                sum = term::<L, DIFFERENCE>(sum, load::<L, FORMAT>(row, j), L::load(query.add(j)));
            }
        }
        sum
    }
}

/// [`products`] for a query of Q vectors.
#[inline(always)]
unsafe fn held<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool, const Q: usize>(
    row: *const u8,
    stride: usize,
    query: &[f32],
    next: &[u8],
) -> L {
    // SAFETY: the caller's promise; vectors of PANEL numbers have 32 registers.
    unsafe {
        let mut q = [L::splat(0.0); Q];
        for (j, q) in q.iter_mut().enumerate() {
            *q = L::load(query.as_ptr().add(j * L::N));
        }
        let mut sums = [L::splat(0.0); PANEL];
        for (r, sum) in sums.iter_mut().enumerate().take(L::N) {
            bring(next, r, L::N);
            let row = row.add(r * stride);
            if FORMAT == BF16 {
                for j in 0..Q / 2 {
                    let [even, odd] = L::load_bf16_pairs(row.cast::<u16>().add(j * APART));
                    *sum = term::<L, DIFFERENCE>(*sum, even, q[2 * j]);
                    *sum = term::<L, DIFFERENCE>(*sum, odd, q[2 * j + 1]);
                }
            } else {
                for (j, q) in q.iter().enumerate() {
                    *sum = term::<L, DIFFERENCE>(*sum, load::<L, FORMAT>(row, j * L::N), *q);
                }
            }
        }
        L::sums(&sums)
    }
}

/// Adds the product of one vector of a row with one of the query, or the square of their difference.
#[inline(always)]
unsafe fn term<L: Lanes, const DIFFERENCE: bool>(sum: L, x: L, q: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        if DIFFERENCE {
            let d = x.sub(q);
            sum.mul_add(d, d)
        } else {
            sum.mul_add(x, q)
        }
    }
}
