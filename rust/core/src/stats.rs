//! What a version holds and what it costs, in numbers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::bank::{Bank, Snapshot};
use crate::lane::Lane;
use crate::list::List;
use crate::version::Counts;

/// Counts and bytes of one version; what versions or rows share is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Blocks.
    pub blocks: usize,
    /// Rows written to them.
    pub block_rows: usize,
    /// Of these, rows that no lane of the version has any more.
    pub dead_rows: usize,
    /// Bytes of key planes, room for more rows included.
    pub key_bytes: usize,
    /// Bytes of value planes, likewise; 0 where the key is the value.
    pub value_bytes: usize,
    /// Bytes of everything, the two above included: see [`Snapshot::nbytes`].
    pub nbytes: usize,
    /// Touches of live entries.
    pub hits: u64,
    /// Sum of the softmax weights of these touches.
    pub mass: f64,
    /// Commits and evictions that led here.
    pub counts: Counts,
}

impl Snapshot {
    /// Looks at every block and every entry that was touched.
    pub fn stats(&self) -> Stats {
        let version = self.version();
        let mut stats = Stats { nbytes: self.nbytes(), counts: version.counts, ..Stats::default() };
        // Rows of the version may share a block and disagree about what lives in it.
        let mut live = HashMap::new();
        let lanes = || version.rows.iter().flat_map(|row| &row.lanes);
        for r in lanes().flat_map(Lane::lists).flat_map(List::refs) {
            *live.entry(Arc::as_ptr(&r.block)).or_insert_with(|| {
                stats.blocks += 1;
                stats.block_rows += r.block.len();
                let (key, value) = r.block.plane_bytes();
                stats.key_bytes += key;
                stats.value_bytes += value;
                0
            }) |= r.live;
        }
        stats.dead_rows = stats.block_rows - live.values().map(|live| live.count_ones() as usize).sum::<usize>();
        for lane in lanes().filter(|lane| !lane.usage().is_empty()) {
            for used in lane.live_ids().into_iter().map(|id| lane.usage().get(id)) {
                stats.hits = stats.hits.saturating_add(used.hits);
                stats.mass = (stats.mass + used.mass).min(f64::MAX);
            }
        }
        stats
    }

    /// How one entry was used; None where it is not there.
    pub fn usage(&self, row: usize, head: usize, id: i64) -> Option<crate::usage::Use> {
        let lane = self.version().rows.get(row)?.lanes.get(head)?;
        lane.locate(id).map(|_| lane.usage().get(id))
    }
}

impl Bank {
    /// Bytes of what is staged, and of what finds entries by label.
    pub fn staged_nbytes(&self) -> usize {
        self.writer().nbytes()
    }
}
