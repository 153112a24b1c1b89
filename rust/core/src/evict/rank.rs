//! What entries are worth, as numbers that can be compared at any time.
//!
//! A worth that fades by the same share with every commit keeps its order, so its logarithm is taken as if all had begun at
//! commit 0: nothing need be computed anew while nothing is used. A lot is a hash: no state, the same on every machine.

use std::cmp::Ordering;

use crate::config::Worth;
use crate::usage::Use;
use crate::write::View;

/// Where an entry stands among those of its lane: the least goes first. With the id, no two are equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rank {
    pub(crate) worth: f64,
    pub(crate) id: i64,
}

impl Rank {
    /// Above every entry.
    pub(crate) const MOST: Rank = Rank { worth: f64::INFINITY, id: i64::MAX };
}

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Rank) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Rank) -> Ordering {
        self.worth.total_cmp(&other.worth).then(self.id.cmp(&other.id))
    }
}

impl Worth {
    /// Whether the worth of an entry changes with its use alone, and never falls.
    pub(crate) fn only_rises(&self) -> bool {
        match self {
            Worth::Age
            | Worth::Update
            | Worth::Recency
            | Worth::Hits { .. }
            | Worth::Score { .. }
            | Worth::Reservoir { .. } => true,
            Worth::Mass { pool, window, .. } => *pool == 1 && window.is_none(),
            Worth::Retention { .. } | Worth::Lot { .. } => false,
        }
    }

    /// Where an entry or an arriving token stands; `column` is the place of the column that [`Worth::Score`] names.
    pub(crate) fn rank(&self, view: &View, column: usize, id: i64) -> Rank {
        let worth = match self {
            Worth::Age => 0.0,
            Worth::Update => view.usage(id).updated as f64,
            Worth::Recency => view.usage(id).last as f64,
            Worth::Mass { window: Some(window), .. } => view.usage(id).within(view.number, *window),
            Worth::Hits { decay } | Worth::Mass { decay, .. } => {
                let Use { heat, last, .. } = view.usage(id);
                fading(heat, last, *decay)
            }
            Worth::Retention { strength } => {
                let Use { hits, last, .. } = view.usage(id);
                -((view.number - last) as f64) / (strength + hits as f64)
            }
            Worth::Score { decay, .. } => {
                let born = if *decay == 1.0 { 0 } else { view.usage(id).born };
                fading(f64::from(view.float(column, id)), born, *decay)
            }
            Worth::Lot { seed } => lot(*seed, [view.head as u64, view.number, id as u64]),
            Worth::Reservoir { seed } => lot(*seed, [view.head as u64, 0, id as u64]),
        };
        // -0 is 0, and NaN nothing.
        Rank { worth: if worth.is_nan() { f64::NEG_INFINITY } else { worth + 0.0 }, id }
    }
}

/// A number that orders as `x decay^(now - since)` does, whatever `now` is. Positive ones are in the upper half of the
/// range, negative ones, which fade upwards, in the lower.
fn fading(x: f64, since: u64, decay: f64) -> f64 {
    /// Far more than a logarithm or a count of commits times one: what is left of the mantissa tells these apart to 1e-7.
    const HALF: f64 = 1e9;
    if decay == 1.0 {
        return x;
    }
    let size = x.abs().max(f64::MIN_POSITIVE).ln() - since as f64 * decay.ln();
    match x {
        x if x > 0.0 => (HALF + size).max(f64::MIN_POSITIVE),
        x if x < 0.0 => -(HALF + size).max(f64::MIN_POSITIVE),
        x => x,
    }
}

/// A number from 0 to 1 that looks drawn: SplitMix64 (Steele, Lea and Flood 2014) over the numbers in turn.
pub(crate) fn lot(seed: u64, of: [u64; 3]) -> f64 {
    let mixed = of.into_iter().fold(seed, |state, x| {
        let mut z = (state ^ x).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    });
    (mixed >> 11) as f64 * 2f64.powi(-53)
}
