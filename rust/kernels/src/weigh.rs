//! Weighted sums of value rows for a panel of queries: the other product of attention.
#![expect(unsafe_code, reason = "unchecked loads in the innermost loops; lengths are asserted at entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::tile::{PANEL, product};

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
