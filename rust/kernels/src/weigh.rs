//! Weighted sums of value rows for a panel of queries: the other product of attention.
#![expect(unsafe_code, reason = "unchecked loads in the innermost loops; lengths are asserted at entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::single::{BF16, F16, F32, Format, Stored, load};
use crate::tile::{PANEL, Rule, product};

/// `out[q][c] += sum over e of weights[e * 16 + q] * values[e * stride + c]`, e ascending, for the 16 queries of a panel.
///
/// `out` has rows of `stride` floats; `stride` is a multiple of 16 and columns are computed up to it.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn weigh<L: Lanes>(weights: &[f32], values: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    assert!(stride.is_multiple_of(PANEL), "value rows are padded to 16 floats");
    assert!(
        weights.len() >= n * PANEL && values.len() >= n * stride && out.len() >= PANEL * stride,
        "panels too short"
    );
    let mut column = 0;
    while column < stride {
        let vectors = (stride - column) / L::N;
        // SAFETY: lengths were asserted above; each arm covers at most the vectors that are left.
        unsafe {
            column += L::N
                * match (L::REGISTERS, vectors) {
                    (32, 4..) => columns::<L, 4, 4>(weights, values, stride, n, column, out),
                    (32, 3) => columns::<L, 4, 3>(weights, values, stride, n, column, out),
                    (32, 2) => columns::<L, 8, 2>(weights, values, stride, n, column, out),
                    (32, _) => columns::<L, 8, 1>(weights, values, stride, n, column, out),
                    _ => columns::<L, 4, 2>(weights, values, stride, n, column, out),
                };
        }
    }
}

#[inline(always)]
unsafe fn columns<L: Lanes, const R: usize, const V: usize>(
    weights: &[f32],
    values: &[f32],
    stride: usize,
    n: usize,
    column: usize,
    out: &mut [f32],
) -> usize {
    let mut b = [values.as_ptr(); V];
    for (v, b) in b.iter_mut().enumerate() {
        // SAFETY: column + V * L::N is at most `stride`.
        *b = unsafe { b.add(column + v * L::N) };
    }
    for first in (0..PANEL).step_by(R) {
        // SAFETY: R rows of a panel of 16 queries, and columns below `stride`, as `weigh` asserted.
        unsafe {
            let target = out.as_mut_ptr().add(first * stride + column);
            let mut acc = [[L::splat(0.0); V]; R];
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(target.add(r * stride + v * L::N));
                }
            }
            let a = weights.as_ptr().add(first);
            let acc = product::<L, R, V, false>(acc, a, 1, PANEL, b, stride, n);
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    acc.store(target.add(r * stride + v * L::N));
                }
            }
        }
    }
    V
}

/// Rows between two looks ahead.
const GROUP: usize = 8;

/// `out[q][c] += sum over r of weights[q * rows + r] * value r [c]`, r ascending, for `n` queries over values as they are
/// stored; half precision is widened in passing, once for four queries where registers are enough.
///
/// Each query's part of `out` is as long as a value, padded to a multiple of 16 numbers.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn weigh_few<L: Lanes>(weights: &[f32], rows: usize, values: Stored, n: usize, out: &mut [f32]) {
    let stride = out.len() / n;
    values.check(Rule::Dot, stride);
    assert!(out.len() == n * stride && values.n <= rows, "a part of `out` for each query");
    assert!(weights.len() >= (n - 1) * rows + values.n, "one weight per query and row");
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe {
        match values.format {
            Format::F32 => groups::<L, F32>(weights, rows, values, n, out),
            Format::F16 => groups::<L, F16>(weights, rows, values, n, out),
            Format::Bf16 => groups::<L, BF16>(weights, rows, values, n, out),
        }
    }
}

#[inline(always)]
unsafe fn groups<L: Lanes, const FORMAT: u8>(
    weights: &[f32],
    rows: usize,
    mut values: Stored,
    n: usize,
    out: &mut [f32],
) {
    let stride = out.len() / n;
    let mut done = 0;
    while done < n {
        let (weights, to) = (&weights[done * rows..], &mut out[done * stride..]);
        let queries = match (L::REGISTERS, n - done) {
            (32, 4..) => 4,
            (_, 2..) => 2,
            _ => 1,
        };
        let mut column = 0;
        while column < stride {
            // SAFETY: each arm covers at most the queries and vectors that are left.
            unsafe {
                column += L::N
                    * match (queries, (stride - column) / L::N) {
                        (4, 4..) => sums::<L, FORMAT, 4, 4>(weights, rows, values, column, to, stride),
                        (4, 2..) => sums::<L, FORMAT, 4, 2>(weights, rows, values, column, to, stride),
                        (4, _) => sums::<L, FORMAT, 4, 1>(weights, rows, values, column, to, stride),
                        (2, 4..) => sums::<L, FORMAT, 2, 4>(weights, rows, values, column, to, stride),
                        (2, 2..) => sums::<L, FORMAT, 2, 2>(weights, rows, values, column, to, stride),
                        (2, _) => sums::<L, FORMAT, 2, 1>(weights, rows, values, column, to, stride),
                        (_, 8..) => sums::<L, FORMAT, 1, 8>(weights, rows, values, column, to, stride),
                        (_, 4..) => sums::<L, FORMAT, 1, 4>(weights, rows, values, column, to, stride),
                        (_, 2..) => sums::<L, FORMAT, 1, 2>(weights, rows, values, column, to, stride),
                        _ => sums::<L, FORMAT, 1, 1>(weights, rows, values, column, to, stride),
                    };
            }
        }
        values.next = &[];
        done += queries;
    }
}

/// Q queries and V vectors of columns from `column` on. Returns V.
#[inline(always)]
unsafe fn sums<L: Lanes, const FORMAT: u8, const Q: usize, const V: usize>(
    weights: &[f32],
    rows: usize,
    values: Stored,
    column: usize,
    out: &mut [f32],
    stride: usize,
) -> usize {
    // SAFETY: `weigh_few` asserted that the columns are below `stride`, that rows are as long, and that there are weights
    // and room for Q queries.
    unsafe {
        let target = out.as_mut_ptr().add(column);
        let mut acc = [[L::splat(0.0); V]; Q];
        for (q, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = L::load(target.add(q * stride + v * L::N));
            }
        }
        for r in 0..values.n {
            if column == 0 && r.is_multiple_of(GROUP) {
                values.bring_next(r, GROUP);
            }
            let row = values.bytes.as_ptr().add(r * values.stride);
            let mut x = [L::splat(0.0); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = load::<L, FORMAT>(row, column + v * L::N);
            }
            for (q, acc) in acc.iter_mut().enumerate() {
                let weight = L::splat(*weights.as_ptr().add(q * rows + r));
                for (acc, &x) in acc.iter_mut().zip(&x) {
                    *acc = acc.mul_add(weight, x);
                }
            }
        }
        for (q, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                acc.store(target.add(q * stride + v * L::N));
            }
        }
    }
    V
}
