//! A few queries against keys as they are stored, and vectors widened: what attention over every entry reads.
//!
//! Like [`crate::single`], but every score is wanted, and four queries share what is loaded where registers are enough.
//! Entries are read once, from memory more often than not, so what comes next is asked for.
#![expect(unsafe_code, reason = "unchecked loads in the innermost loops; lengths are asserted at each entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::prefetch::prefetch_next;
use crate::single::{BF16, F16, F32, Format, Stored, load};
use crate::tile::{PANEL, Rule};

impl Stored<'_> {
    /// Brings near what is read next, as much of it as `rows` are of these.
    #[inline(always)]
    pub(crate) fn bring_next(&self, row: usize, rows: usize) {
        if !self.next.is_empty() {
            let piece = |row: usize| self.next.len() * row.min(self.n) / self.n;
            prefetch_next(&self.next[piece(row)..piece(row + rows)]);
        }
    }
}

/// All scores of `n` queries that stand one after the other, each padded: that of query q and row r at
/// `q * rows + r`. Four queries at a time share what is loaded, where registers are enough; a score has the same
/// bits whatever the number of queries.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn scores<L: Lanes>(
    rule: Rule,
    mut keys: Stored,
    queries: &[f32],
    n: usize,
    out: &mut [f32],
    rows: usize,
) {
    let numbers = queries.len() / n;
    keys.check(rule, numbers);
    assert!(queries.len() == n * numbers && keys.n <= rows, "`n` queries, and room for their scores");
    assert!(out.len() >= (n - 1) * rows + keys.n, "room for every score");
    let mut done = 0;
    while done < n {
        let (queries, out) = (&queries[done * numbers..], &mut out[done * rows..]);
        // SAFETY: lengths were asserted, and each arm takes at most the queries that are left; the instructions are the
        // caller's promise.
        unsafe {
            done += match (L::REGISTERS, n - done) {
                (32, 4..) => by_format::<L, 4>(rule, keys, queries, numbers, out, rows),
                (_, 2..) => by_format::<L, 2>(rule, keys, queries, numbers, out, rows),
                _ => by_format::<L, 1>(rule, keys, queries, numbers, out, rows),
            };
        }
        keys.next = &[];
    }
}

/// Q queries. Returns Q.
#[inline(always)]
unsafe fn by_format<L: Lanes, const Q: usize>(
    rule: Rule,
    keys: Stored,
    queries: &[f32],
    numbers: usize,
    out: &mut [f32],
    rows: usize,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (rule == Rule::L2, keys.format) {
            (false, Format::F32) => group::<L, F32, false, Q>(keys, queries, numbers, out, rows),
            (false, Format::F16) => group::<L, F16, false, Q>(keys, queries, numbers, out, rows),
            (false, Format::Bf16) => group::<L, BF16, false, Q>(keys, queries, numbers, out, rows),
            (true, Format::F32) => group::<L, F32, true, Q>(keys, queries, numbers, out, rows),
            (true, Format::F16) => group::<L, F16, true, Q>(keys, queries, numbers, out, rows),
            (true, Format::Bf16) => group::<L, BF16, true, Q>(keys, queries, numbers, out, rows),
        }
    }
    Q
}

#[inline(always)]
unsafe fn group<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool, const Q: usize>(
    keys: Stored,
    queries: &[f32],
    numbers: usize,
    out: &mut [f32],
    rows: usize,
) {
    let step = L::N / Q;
    for row in (0..keys.n).step_by(step) {
        keys.bring_next(row, step);
        let mut scores = [0.0; PANEL];
        // SAFETY: whole groups of rows are readable, Q queries of so many numbers follow, and a vector fits a panel.
        unsafe {
            let from = keys.bytes.as_ptr().add(row * keys.stride);
            products::<L, FORMAT, DIFFERENCE, Q>(from, keys.stride, queries.as_ptr(), numbers)
                .store(scores.as_mut_ptr());
        }
        for (q, scores) in scores.chunks_exact(step).enumerate().take(Q) {
            for (r, &score) in scores.iter().enumerate().take(keys.n - row) {
                let scale = keys.scale.get(row + r).copied();
                out[q * rows + row + r] = if DIFFERENCE { 0.0 - score } else { scale.map_or(score, |s| score * s) };
            }
        }
    }
}

/// Sums of products with Q queries, or of squared differences from them, of as many rows as fill the lanes: in lane
/// `q * N / Q + r` that of query q and row r.
#[inline(always)]
unsafe fn products<L: Lanes, const FORMAT: u8, const DIFFERENCE: bool, const Q: usize>(
    row: *const u8,
    stride: usize,
    queries: *const f32,
    numbers: usize,
) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [L::splat(0.0); PANEL];
        for j in (0..numbers).step_by(L::N) {
            let mut query = [L::splat(0.0); Q];
            for (i, query) in query.iter_mut().enumerate() {
                *query = L::load(queries.add(i * numbers + j));
            }
            for r in 0..L::N / Q {
                let x = load::<L, FORMAT>(row.add(r * stride), j);
                for (i, &query) in query.iter().enumerate() {
                    let sum = &mut sums[i * (L::N / Q) + r];
                    *sum = if DIFFERENCE {
                        let d = x.sub(query);
                        sum.mul_add(d, d)
                    } else {
                        sum.mul_add(x, query)
                    };
                }
            }
        }
        L::sums(&sums)
    }
}

/// The numbers in float32, `stride` from row to row of `out`: as many as a row has with its padding.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn widen<L: Lanes>(from: Stored, out: &mut [f32], stride: usize) {
    from.check(Rule::Dot, stride);
    assert!(out.len() >= from.n * stride, "a row for each");
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe {
        match from.format {
            Format::F32 => widen_rows::<L, F32>(from, out, stride),
            Format::F16 => widen_rows::<L, F16>(from, out, stride),
            Format::Bf16 => widen_rows::<L, BF16>(from, out, stride),
        }
    }
}

#[inline(always)]
unsafe fn widen_rows<L: Lanes, const FORMAT: u8>(from: Stored, out: &mut [f32], stride: usize) {
    for (r, to) in out.chunks_exact_mut(stride).enumerate().take(from.n) {
        for j in (0..stride).step_by(L::N) {
            // SAFETY: `j + L::N` is at most `stride`, the numbers of either row.
            unsafe { load::<L, FORMAT>(from.bytes.as_ptr().add(r * from.stride), j).store(to.as_mut_ptr().add(j)) };
        }
    }
}
