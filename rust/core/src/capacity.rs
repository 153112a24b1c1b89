//! How many entries lanes hold, and whether staged tokens will find room where nothing may be evicted.

use crate::bank::Shared;
use crate::config::{Config, Evict, Write};
use crate::error::{Kind, Result, ensure};
use crate::labels::Replaced;
use crate::lane::Lane;
use crate::stage::{StagedRow, Staging};
use crate::version::Version;

/// Live entries per lane at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// As many in every lane.
    Lane(u64),
    /// A number for each head, the same in every row.
    Heads(Vec<u64>),
}

impl From<u64> for Capacity {
    fn from(entries: u64) -> Capacity {
        Capacity::Lane(entries)
    }
}

impl Capacity {
    /// Of a lane of that head.
    pub fn of(&self, head: usize) -> u64 {
        match self {
            Capacity::Lane(entries) => *entries,
            Capacity::Heads(each) => each[head],
        }
    }

    /// Of the smallest lane.
    pub(crate) fn least(&self) -> u64 {
        match self {
            Capacity::Lane(entries) => *entries,
            Capacity::Heads(each) => each.iter().copied().min().unwrap_or(0),
        }
    }

    /// Refuses what cannot be.
    pub(crate) fn check(&self, heads: usize) -> Result<()> {
        match self {
            Capacity::Lane(entries) => {
                ensure(*entries > 0, Kind::Argument, || "capacity=0 must be at least 1, or None".into())
            }
            Capacity::Heads(each) => {
                ensure(each.len() == heads, Kind::Shape, || {
                    format!("capacity has {} numbers for heads={heads}: give one per head, or one for all", each.len())
                })?;
                let zero = each.iter().position(|&entries| entries == 0);
                ensure(zero.is_none(), Kind::Argument, || {
                    format!("capacity of head {} is 0: it must be at least 1", zero.unwrap_or(0))
                })
            }
        }
    }
}

impl Config {
    /// Live entries at most in a lane of that head.
    pub(crate) fn room(&self, head: usize) -> usize {
        let entries = self.capacity.as_ref().map(|capacity| capacity.of(head));
        entries.and_then(|entries| usize::try_from(entries).ok()).unwrap_or(usize::MAX)
    }
}

impl Staging {
    /// Refuses what would pass the capacity, where nothing may be evicted; what the call's tokens replace makes room.
    pub(crate) fn check_capacity(
        &self,
        shared: &Shared,
        version: &Version,
        row: usize,
        arriving: usize,
        replaced: &Replaced,
    ) -> Result<Option<Freed>> {
        let (Evict::Error, Some(capacity)) = (&shared.config.evict, &shared.config.capacity) else { return Ok(None) };
        // How much a planner leaves is known at the commit, which refuses it then.
        if matches!(shared.config.write, Write::Planned(_)) {
            return Ok(None);
        }
        let staged = self.rows.get(&row);
        let lanes = &version.rows[row].lanes;
        let id_lo = staged.map_or(version.rows[row].next_id, |staged| staged.id_lo);
        let known = staged.and_then(|staged| staged.freed.clone().filter(|freed| freed.number == version.number));
        let mut freed = known.unwrap_or_else(|| {
            let mut freed = Freed { number: version.number, live: vec![0; lanes.len()], staged: 0 };
            staged.iter().for_each(|staged| freed.add(lanes, id_lo, &staged.replaced));
            freed
        });
        freed.add(lanes, id_lo, replaced);
        let staged = staged.map_or(0, StagedRow::len);
        let coming = staged + arriving - freed.staged;
        let live = lanes.iter().zip(&freed.live).map(|(lane, freed)| lane.len() - freed);
        // The lane that would be too full by most.
        let lacking = |&(head, live): &(usize, usize)| ((live + coming) as u64).saturating_sub(capacity.of(head));
        let fullest = live.enumerate().max_by_key(|lane| (lacking(lane), lane.1));
        let (head, live) = fullest.unwrap_or((0, 0));
        ensure(fullest.as_ref().is_none_or(|lane| lacking(lane) == 0), Kind::Capacity, || {
            let staged = staged.min(coming);
            let of_head =
                if matches!(capacity, Capacity::Heads(_)) { format!(" in head {head}") } else { String::new() };
            format!(
                "row {row} holds {live} entries and {staged} staged ones{of_head}; {} more pass its capacity of {}: \
                 delete or truncate first, raise capacity=, or make the bank with evict=\"fifo\"",
                coming - staged,
                capacity.of(head)
            )
        })?;
        Ok(Some(freed))
    }
}

/// What the replaced entries of a row leave room for, counted once per version and not at every call.
#[derive(Clone)]
pub(crate) struct Freed {
    /// Number of the version.
    number: u64,
    /// Live entries, by head.
    live: Vec<usize>,
    /// Tokens that are staged or about to be.
    staged: usize,
}

impl Freed {
    fn add(&mut self, lanes: &[Lane], id_lo: i64, replaced: &Replaced) {
        for (lane, live) in lanes.iter().zip(&mut self.live) {
            *live += replaced.range(..id_lo).filter(|&(&id, _)| lane.locate(id).is_some()).count();
        }
        self.staged += replaced.range(id_lo..).count();
    }
}
