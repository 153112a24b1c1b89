//! One state of a bank: what a read holds from start to end.
//!
//! Everything below is shared by `Arc`: a snapshot, a fork or a copy costs a pointer, and a write copies only what
//! somebody else still holds.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::block::Schema;
use crate::cells::{Cells, Declared};
use crate::columns::{AnyColumn, Column};
use crate::error::{Result, room_for};
use crate::evict::Line;
use crate::lane::Lane;
use crate::work::Ticker;
use crate::write::pages::Paged;

/// The lanes of one row, its id counter and its columns.
#[derive(Clone)]
pub struct Row {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) next_id: i64,
    pub(crate) labels: Column<i64>,
    pub(crate) positions: Column<i64>,
    /// The caller's, in the order in which they were declared; none before the first is given.
    pub(crate) columns: Vec<AnyColumn>,
    /// What the next token has to know of pages; None: it begins one, and nothing came before.
    pub(crate) paged: Option<Arc<Paged>>,
}

impl Row {
    pub(crate) fn empty(heads: usize, next_id: i64) -> Row {
        Row {
            lanes: vec![Lane::default(); heads],
            next_id,
            labels: Column::new(|_| -1),
            positions: Column::new(|id| id),
            columns: Vec::new(),
            paged: None,
        }
    }

    /// One lane per head.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The id that the next token will get.
    pub fn next_id(&self) -> i64 {
        self.next_id
    }

    /// The caller's integer; -1 where none was given.
    pub fn label(&self, id: i64) -> i64 {
        self.labels.get(id)
    }

    /// What the next token has to know of pages, where the write policy makes them.
    pub fn paged(&self) -> Option<&Paged> {
        self.paged.as_deref()
    }

    /// The caller's position; the id where none was given.
    pub fn position(&self, id: i64) -> i64 {
        self.positions.get(id)
    }

    /// Whether labels were given to any entry.
    pub fn has_labels(&self) -> bool {
        !self.labels.is_absent()
    }

    /// Whether positions were given to any entry.
    pub fn has_positions(&self) -> bool {
        !self.positions.is_absent()
    }

    /// The numbers of ids in the `at`-th of the declared columns; 0 or false where none was given.
    pub fn cells(&self, declared: &[Declared], at: usize, ids: &[i64]) -> Cells {
        match self.columns.get(at) {
            Some(column) => column.cells(ids),
            None => Cells::absent(declared[at].dtype, ids.len()),
        }
    }

    /// The `at`-th of the declared columns, to be written to.
    pub(crate) fn column_mut(&mut self, declared: &[Declared], at: usize) -> &mut AnyColumn {
        if self.columns.is_empty() {
            self.columns = declared.iter().map(|declared| AnyColumn::new(declared.dtype)).collect();
        }
        &mut self.columns[at]
    }

    /// Ends entries of every head, and gives back what pages they had to themselves; ids that are not there are passed
    /// over.
    ///
    /// # Errors
    /// When the caller interrupts; some have ended then.
    pub(crate) fn end(&mut self, ids: impl Iterator<Item = i64> + Clone, ticker: &Ticker) -> Result<()> {
        let mut emptied = Vec::new();
        for lane in &mut self.lanes {
            for id in ids.clone() {
                ticker.tick()?;
                lane.kill(id, &mut emptied);
            }
        }
        self.drop_old_columns();
        self.drop_ended(emptied);
        Ok(())
    }

    /// Keeps ids below `end`; what comes next begins a page.
    pub(crate) fn truncate(&mut self, end: i64) {
        if end < self.next_id {
            self.paged = None;
        }
        for lane in &mut self.lanes {
            lane.truncate(end);
        }
        self.labels.drop_from(end);
        self.positions.drop_from(end);
        self.columns.iter_mut().for_each(|column| column.drop_from(end));
    }

    /// Columns forget what no lane can hold any more.
    pub(crate) fn drop_old_columns(&mut self) {
        let oldest = self.lanes.iter().filter_map(|lane| lane.nth_oldest(0)).min().unwrap_or(self.next_id);
        self.labels.drop_below(oldest);
        self.positions.drop_below(oldest);
        self.columns.iter_mut().for_each(|column| column.drop_below(oldest));
    }

    /// Columns and usage forget pages of which no id is live any more, near ids of blocks that ran empty; so the work is
    /// in proportion to what ended.
    pub(crate) fn drop_ended(&mut self, mut emptied: Vec<Range<i64>>) {
        emptied.sort_unstable_by_key(|ids| ids.start);
        // Neighbours as one, so that a page is looked at once.
        emptied.dedup_by(|later, ids| {
            let meet = later.start <= ids.end;
            ids.end = if meet { ids.end.max(later.end) } else { ids.end };
            meet
        });
        let Row { lanes, labels, positions, columns, .. } = self;
        let live = |ids: Range<i64>| lanes.iter().any(|lane| lane.has_any(&ids));
        labels.drop_ended(&emptied, live);
        positions.drop_ended(&emptied, live);
        columns.iter_mut().for_each(|column| column.drop_ended(&emptied, live));
        lanes.iter_mut().for_each(|lane| lane.drop_ended_usage(&emptied));
    }
}

/// All rows.
#[derive(Clone)]
pub struct Version {
    /// The rows; copies share.
    pub rows: Vec<Arc<Row>>,
    /// None until the first commit of anything.
    pub schema: Option<Schema>,
    /// Counts changes.
    pub number: u64,
    /// What led here.
    pub counts: Counts,
}

/// What commits did to a bank since it was made or opened; a copy starts with what its source had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commits of anything.
    pub commits: u64,
    /// Entries, over all lanes, that evict policies ended or kept from being written.
    pub evicted: u64,
}

impl Version {
    /// So many rows without entries.
    ///
    /// # Errors
    /// When memory is short.
    pub(crate) fn empty(rows: usize, heads: usize) -> Result<Version> {
        let row = size_of::<Row>() + heads * size_of::<Lane>() + 64;
        room_for(rows.saturating_mul(row), || format!("rows={rows} times heads={heads}"))?;
        let rows = (0..rows).map(|_| Arc::new(Row::empty(heads, 0))).collect();
        Ok(Version { rows, schema: None, number: 0, counts: Counts::default() })
    }

    /// Live entries of the fullest lane.
    pub(crate) fn longest(&self) -> usize {
        self.rows.iter().flat_map(|row| row.lanes.iter().map(Lane::len)).max().unwrap_or(0)
    }

    /// Bytes of memory, each shared part counted once.
    pub(crate) fn nbytes(&self) -> usize {
        let mut seen = HashSet::new();
        let mut total = self.rows.capacity() * size_of::<Arc<Row>>();
        let mut add = |address: *const u8, bytes: usize| total += if seen.insert(address) { bytes } else { 0 };
        for row in &self.rows {
            let lines = row.lanes.iter().filter_map(Lane::line).map(Line::nbytes).sum::<usize>();
            let usage = row.lanes.iter().map(|lane| lane.usage().nbytes()).sum::<usize>() + lines;
            let lists = row.lanes.capacity() * size_of::<Lane>() + row.columns.capacity() * size_of::<AnyColumn>();
            add(Arc::as_ptr(row).cast(), size_of::<Row>() + lists + usage);
            let own = row.columns.iter().flat_map(AnyColumn::page_bytes);
            for (address, bytes) in row.labels.page_bytes().chain(row.positions.page_bytes()).chain(own) {
                add(address, bytes);
            }
            for (address, bytes) in row.lanes.iter().flat_map(|lane| lane.usage().page_bytes()) {
                add(address.cast(), bytes);
            }
            for (address, bytes) in row.lanes.iter().filter_map(|lane| lane.pages.bytes()) {
                add(address, bytes);
            }
            for list in row.lanes.iter().flat_map(Lane::lists) {
                for (address, bytes) in list.page_bytes() {
                    add(address.cast(), bytes);
                }
                for r in list.refs() {
                    r.block.parts().into_iter().for_each(|(address, bytes)| add(address, bytes));
                    if let Some(offsets) = &r.offsets {
                        add(Arc::as_ptr(offsets).cast(), offsets.capacity() * 4);
                    }
                }
            }
        }
        total
    }
}
