//! A score that at least k of a panel's rows reach, for sixteen queries at once or for one: where a search sets its first
//! floor.
//!
//! Bisection between the least and the greatest score: each step counts, and counting needs no branch. The answer is
//! near the k-th largest score and never above it; which rows reach it does not matter yet.
#![expect(unsafe_code, reason = "vector loads; the length is asserted at entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::tile::PANEL;

/// Halvings of the range of scores: the answer is within a thousandth of it.
const STEPS: usize = 10;

/// The same for one query, which stops where k scores are told from the rest: a few that are far larger need more.
const MORE_STEPS: usize = 24;

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

/// The same for the scores of one query, a multiple of [`PANEL`]; none of them is NaN.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn reached_by_one<L: Lanes>(scores: &[f32], k: usize) -> f32 {
    assert!(scores.len().is_multiple_of(PANEL), "whole vectors");
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    // SAFETY: whole vectors are read; the instructions are the caller's promise.
    unsafe {
        let (mut least, mut most) = (L::splat(low), L::splat(high));
        for scores in scores.chunks_exact(L::N) {
            let x = L::load(scores.as_ptr());
            (least, most) = (x.min(least), x.max(most));
        }
        let mut ends = [[0.0; PANEL]; 2];
        least.store(ends[0].as_mut_ptr());
        most.store(ends[1].as_mut_ptr());
        for (&least, &most) in ends[0].iter().zip(&ends[1]).take(L::N) {
            (low, high) = (low.min(least), high.max(most));
        }
        for _ in 0..MORE_STEPS {
            let middle = 0.5 * low + 0.5 * high;
            let count = count_one::<L>(scores, middle);
            if count >= k {
                low = middle;
            } else {
                high = middle;
            }
            if count == k {
                break;
            }
        }
        // Infinite scores can lead the bisection astray, but not this count.
        if count_one::<L>(scores, low) >= k { low } else { f32::NEG_INFINITY }
    }
}

/// Scores of one query that are not less than `least`, NaN among them: none if that is NaN.
///
/// # Safety
/// As for [`reached_by_one`].
#[inline(always)]
unsafe fn count_one<L: Lanes>(scores: &[f32], least: f32) -> usize {
    let mut count = 0;
    for scores in scores.chunks_exact(L::N) {
        // SAFETY: as for the caller; a whole vector is read.
        count += unsafe { L::load(scores.as_ptr()).not_less(L::splat(least)) }.count_ones() as usize;
    }
    if least.is_nan() { 0 } else { count }
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
