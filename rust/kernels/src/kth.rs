//! A score that at least k of a panel's rows reach, for sixteen queries at once: where a search sets its first floor.
//!
//! Bisection between the least and the greatest score: each step counts, and counting needs no branch. The answer is
//! near the k-th largest score and never above it; which rows reach it does not matter yet.

use crate::tile::PANEL;

/// Halvings of the range of scores: the answer is within a thousandth of it.
const STEPS: usize = 10;

/// For each query of a panel of scores `[n, 16]`, a score that at least `k` rows reach; -inf where there may be none.
#[inline(always)]
pub(crate) fn reached_by(panel: &[f32], k: usize, out: &mut [f32; PANEL]) {
    let (mut low, mut high) = ([f32::INFINITY; PANEL], [f32::NEG_INFINITY; PANEL]);
    for row in panel.chunks_exact(PANEL) {
        for i in 0..PANEL {
            low[i] = if row[i] < low[i] { row[i] } else { low[i] };
            high[i] = if row[i] > high[i] { row[i] } else { high[i] };
        }
    }
    for _ in 0..STEPS {
        let middle: [f32; PANEL] = std::array::from_fn(|i| 0.5 * low[i] + 0.5 * high[i]);
        let counts = count(panel, &middle);
        for i in 0..PANEL {
            if counts[i] as usize >= k {
                low[i] = middle[i];
            } else {
                high[i] = middle[i];
            }
        }
    }
    // NaN and infinite scores can lead the bisection astray, but not this count.
    let counts = count(panel, &low);
    for i in 0..PANEL {
        out[i] = if counts[i] as usize >= k { low[i] } else { f32::NEG_INFINITY };
    }
}

#[inline(always)]
fn count(panel: &[f32], least: &[f32; PANEL]) -> [u32; PANEL] {
    let mut counts = [0u32; PANEL];
    for row in panel.chunks_exact(PANEL) {
        for i in 0..PANEL {
            counts[i] += u32::from(row[i] >= least[i]);
        }
    }
    counts
}
