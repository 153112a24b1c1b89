//! A score that at least k of a panel's rows reach, for sixteen queries at once: where a search sets its first floor.
//!
//! Bisection between the least and the greatest score: each step counts, and counting needs no branch. The answer is
//! near the k-th largest score and never above it; which rows reach it does not matter yet.
#![expect(unsafe_code, reason = "vector loads; the length is asserted at entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::tile::PANEL;

/// Halvings of the range of scores: the answer is within a thousandth of it.
const STEPS: usize = 10;

/// Rows per step: sums of their own, so that no addition waits for the one before.
const ROWS: usize = 4;

/// For each query of a panel of scores `[n, 16]`, a score that at least `k` rows reach; -inf where there may be none.
/// Counts are float32: at most 2^24 rows.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn reached_by<L: Lanes>(panel: &[f32], k: usize, out: &mut [f32; PANEL]) {
    assert!(panel.len().is_multiple_of(PANEL) && panel.len() / PANEL <= 1 << 24, "whole rows, countable in float32");
    let k = k as f32;
    for lane in (0..PANEL).step_by(L::N) {
        // SAFETY: `lane` is one of a row, and the instructions are enabled.
        unsafe {
            let (infinite, mut low, mut high) = (L::splat(f32::INFINITY), [0.0; PANEL], [0.0; PANEL]);
            fold(panel, lane, [infinite; ROWS], |a, b| a.min(b), |least, x| x.min(least)).store(low.as_mut_ptr());
            let least = L::splat(f32::NEG_INFINITY);
            fold(panel, lane, [least; ROWS], |a, b| a.max(b), |most, x| x.max(most)).store(high.as_mut_ptr());
            for _ in 0..STEPS {
                let middle: [f32; PANEL] = std::array::from_fn(|i| 0.5 * low[i] + 0.5 * high[i]);
                let counts = count::<L>(panel, lane, &middle);
                for i in 0..L::N {
                    if counts[i] >= k {
                        low[i] = middle[i];
                    } else {
                        high[i] = middle[i];
                    }
                }
            }
            // NaN and infinite scores can lead the bisection astray, but not this count.
            let counts = count::<L>(panel, lane, &low);
            for i in 0..L::N {
                out[lane + i] = if counts[i] >= k { low[i] } else { f32::NEG_INFINITY };
            }
        }
    }
}

/// Rows that reach `least`, for the queries of one vector.
#[inline(always)]
unsafe fn count<L: Lanes>(panel: &[f32], lane: usize, least: &[f32; PANEL]) -> [f32; PANEL] {
    let mut counts = [0.0; PANEL];
    // SAFETY: as for the caller; PANEL floats are at least L::N.
    unsafe {
        let (least, one) = (L::load(least.as_ptr()), L::splat(1.0));
        let add = |a: L, b: L| a.mul_add(b, one);
        fold(panel, lane, [L::splat(0.0); ROWS], add, |sum, x| sum.count(x, least)).store(counts.as_mut_ptr());
    }
    counts
}

/// Folds the rows of a panel into one vector, for the queries from `lane` on.
#[inline(always)]
unsafe fn fold<L: Lanes>(
    panel: &[f32],
    lane: usize,
    mut sums: [L; ROWS],
    join: impl Fn(L, L) -> L,
    step: impl Fn(L, L) -> L,
) -> L {
    let rows = panel.len() / PANEL;
    let whole = rows - rows % ROWS;
    let at = |row: usize| {
        // SAFETY: the caller's row and lane lie in the panel.
        unsafe { L::load(panel.as_ptr().add(row * PANEL + lane)) }
    };
    for row in (0..whole).step_by(ROWS) {
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum = step(*sum, at(row + r));
        }
    }
    for row in whole..rows {
        sums[0] = step(sums[0], at(row));
    }
    sums.into_iter().reduce(join).unwrap_or(sums[0])
}
