//! Whether staged tokens will find room where nothing may be evicted.

use crate::bank::Shared;
use crate::config::{Evict, Write};
use crate::error::{Kind, Result, ensure};
use crate::labels::Replaced;
use crate::lane::Lane;
use crate::stage::{StagedRow, Staging};
use crate::version::Version;

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
        let (Evict::Error, Some(capacity)) = (&shared.config.evict, shared.config.capacity) else { return Ok(None) };
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
        let live = lanes.iter().zip(&freed.live).map(|(lane, freed)| lane.len() - freed).max().unwrap_or(0);
        let staged = staged.map_or(0, StagedRow::len);
        let coming = staged + arriving - freed.staged;
        ensure((live + coming) as u64 <= capacity, Kind::Capacity, || {
            let staged = staged.min(coming);
            format!(
                "row {row} holds {live} entries and {staged} staged ones; {} more pass its capacity of {capacity}: \
                 delete or truncate first, raise capacity=, or make the bank with evict=\"fifo\"",
                coming - staged
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
