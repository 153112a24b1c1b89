//! Taking staged tokens back: all of them, those of some rows, or those from an id on.
//!
//! Ids of staged tokens are given again, so whatever knows them by id forgets them here: the calls that a receipt will
//! list, what they were to replace, and the index of labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bank::Bank;
use crate::block::Schema;
use crate::change::{Change, change_all};
use crate::error::Result;
use crate::stage::{StagedIds, StagedRow, Staging};
use crate::work::Work;

impl StagedRow {
    /// One past the largest staged id.
    pub(crate) fn end(&self) -> i64 {
        self.id_lo + self.len() as i64
    }
}

/// Where staging stood at one time.
pub(crate) struct Mark {
    calls: usize,
    schema: Option<Schema>,
    /// The end of each row's ids, and whether any token had labels and positions.
    rows: BTreeMap<usize, (i64, bool, bool)>,
}

impl Staging {
    /// Where staging stands.
    pub(crate) fn mark(&self) -> Mark {
        let row = |(&row, staged): (&usize, &StagedRow)| (row, (staged.end(), staged.has_labels, staged.has_positions));
        Mark { calls: self.calls.len(), schema: self.schema, rows: self.rows.iter().map(row).collect() }
    }

    /// Drops what was added since.
    pub(crate) fn return_to(&mut self, mark: &Mark) {
        self.calls.truncate(mark.calls);
        self.schema = mark.schema;
        let rows: Vec<usize> = self.rows.keys().copied().collect();
        for row in rows {
            let marked = mark.rows.get(&row);
            self.cut(row, marked.map_or(0, |&(end, ..)| end));
            if let (Some(staged), Some(&(_, has_labels, has_positions))) = (self.rows.get_mut(&row), marked) {
                (staged.has_labels, staged.has_positions) = (has_labels, has_positions);
            }
        }
    }

    /// Drops everything that is staged, and returns the calls.
    pub(crate) fn clear(&mut self) -> Vec<StagedIds> {
        let label_index = std::mem::take(&mut self.label_index);
        std::mem::replace(self, Staging { label_index, ..Staging::default() }).calls
    }

    /// Drops the tokens of a row with an id of `end` or more.
    pub(crate) fn cut(&mut self, row: usize, end: i64) {
        let Some(staged) = self.rows.get_mut(&row) else { return };
        let n = (end - staged.id_lo).clamp(0, staged.len() as i64) as usize;
        if n < staged.len()
            && let Some(index) = self.label_index.get_mut(&row)
        {
            index.take_back(staged, end);
        }
        if n == 0 {
            self.rows.remove(&row);
        } else if n < staged.len() {
            Arc::make_mut(&mut staged.lanes).iter_mut().for_each(|lane| lane.truncate(n));
            staged.labels.truncate(n);
            staged.positions.truncate(n);
            staged.columns.truncate(n);
            // What was to be replaced by a token that is gone stays.
            staged.replaced.retain(|_, by| *by < end);
            staged.freed = None;
        }
    }

    /// Drops the staged tokens of each row with an id of its end or more, as if they had been masked out. A call of which
    /// nothing is left is forgotten, and so is the schema where no token is left.
    pub(crate) fn roll_back(&mut self, ends: &BTreeMap<usize, i64>) {
        ends.iter().for_each(|(&row, &end)| self.cut(row, end));
        self.calls.retain_mut(|call| {
            let mut dropped = false;
            for (at, row) in call.rows.iter().enumerate() {
                let Some(&end) = ends.get(row) else { continue };
                for id in call.ids[at * call.tokens..][..call.tokens].iter_mut().filter(|id| **id >= end) {
                    (*id, dropped) = (-1, true);
                }
            }
            !dropped || call.ids.iter().any(|&id| id >= 0)
        });
        if self.rows.is_empty() {
            self.schema = None;
        }
    }
}

impl Bank {
    /// Drops everything staged.
    pub fn rollback(&self) {
        let mut staging = self.writer();
        let rows: Vec<usize> = staging.rows.keys().copied().collect();
        rows.into_iter().for_each(|row| staging.cut(row, 0));
        staging.clear();
    }

    /// Drops what is staged for some rows (None: all): with `ends`, tokens with an id of `ends[i]` or more in the i-th of
    /// the rows (one number: in all of them); without, everything, touches too. Ids are given again.
    ///
    /// # Errors
    /// When a row is not there, or there is neither one end nor one per row.
    pub fn rollback_rows(&self, rows: Option<&[usize]>, ends: Option<&[i64]>) -> Result<()> {
        change_all(&[self], &Change::Rollback { rows, ends }, &Work::ALONE)
    }
}
