//! A bank's live entries as a stream of Arrow record batches, for whoever asks: one batch in memory at a time.
//!
//! Row after row, ids ascending, the heads of an id together, so that a reader has a whole token before the next begins;
//! a save goes lane after lane instead, as it will be opened. One version is held from start to end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use arrow_array::{Int32Array, RecordBatch};
use arrow_schema::{ArrowError, SchemaRef};
use mnemex_core::Snapshot;
use mnemex_core::block::Schema;
use mnemex_core::lane::Lane;
use mnemex_core::list::Ref;
use mnemex_core::version::Row;

use crate::encode;
use crate::table;

/// The record batches of a version.
pub struct Export {
    snapshot: Snapshot,
    schema: Schema,
    columns: SchemaRef,
    /// Bank row that is next, or whose entries are being read.
    row: usize,
    /// Its lists, behind those of rows before it in the same batch, and the next entry of each by id and head.
    lists: Vec<Cursor>,
    next: BinaryHeap<Reverse<(i64, i32, usize)>>,
}

/// A list, and how far it was read.
struct Cursor {
    refs: Vec<Ref>,
    at: usize,
    /// Live rows of the current block that were not read.
    left: u64,
}

impl Cursor {
    fn new(refs: Vec<Ref>) -> Cursor {
        let left = refs.first().map_or(0, |r| r.live);
        Cursor { refs, at: 0, left }
    }

    /// Where the next entry is: its reference and row.
    fn peek(&mut self) -> Option<(usize, usize)> {
        while self.left == 0 {
            self.at += 1;
            self.left = self.refs.get(self.at)?.live;
        }
        Some((self.at, self.left.trailing_zeros() as usize))
    }
}

impl Export {
    /// Everything that is alive in a version.
    pub fn new(snapshot: &Snapshot) -> Export {
        let schema = table::schema_or_default(snapshot.config(), snapshot.version().schema);
        let columns = table::columns(&schema, &snapshot.config().columns);
        let mut export =
            Export { snapshot: snapshot.clone(), schema, columns, row: 0, lists: Vec::new(), next: BinaryHeap::new() };
        export.enter_row();
        export
    }

    /// The columns: row, head, id, label, position, key, where values are stored value, and the caller's.
    pub fn columns(&self) -> SchemaRef {
        Arc::clone(&self.columns)
    }

    /// Points at the first entries of the current row.
    fn enter_row(&mut self) {
        let Some(row) = self.snapshot.version().rows.get(self.row) else { return };
        for (head, lane) in row.lanes().iter().enumerate() {
            for list in lane.lists() {
                let mut cursor = Cursor::new(list.refs().cloned().collect());
                if let Some((r, slot)) = cursor.peek() {
                    self.next.push(Reverse((cursor.refs[r].id(slot), head as i32, self.lists.len())));
                }
                self.lists.push(cursor);
            }
        }
    }

    /// Takes the next entry of the current row: its head, its list, and where it is there.
    fn take(&mut self) -> Option<(i32, usize, usize, usize)> {
        let Reverse((_, head, list)) = self.next.pop()?;
        let cursor = &mut self.lists[list];
        let (r, slot) = cursor.peek()?;
        cursor.left &= cursor.left - 1;
        if let Some((r, slot)) = cursor.peek() {
            self.next.push(Reverse((cursor.refs[r].id(slot), head, list)));
        }
        Some((head, list, r, slot))
    }
}

impl Iterator for Export {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let most = table::batch_rows(&self.schema);
        let (mut heads, mut taken, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        if self.next.is_empty() {
            self.lists.clear();
        }
        loop {
            let before = heads.len();
            while heads.len() < most
                && let Some((head, list, r, slot)) = self.take()
            {
                heads.push(head);
                taken.push((list, r, slot));
            }
            if heads.len() > before {
                runs.push((self.row, heads.len() - before));
            }
            // A batch takes whole rows after the first, so that no list is kept longer than its batch and its row.
            let Some(row) = self.snapshot.version().rows.get(self.row + 1) else { break };
            let len: usize = row.lanes().iter().map(Lane::len).sum();
            if !self.next.is_empty() || (!heads.is_empty() && heads.len() + len > most) {
                break;
            }
            self.row += 1;
            self.enter_row();
        }
        if heads.is_empty() {
            return None;
        }
        let entries: Vec<(&Ref, usize)> =
            taken.into_iter().map(|(list, r, slot)| (&self.lists[list].refs[r], slot)).collect();
        let rows = &self.snapshot.version().rows;
        let runs: Vec<(i32, &Row, usize)> = runs.into_iter().map(|(at, n)| (at as i32, &*rows[at], n)).collect();
        let own = (&self.schema, self.snapshot.config().columns.as_slice());
        let batch = encode::batch(&self.columns, own, &runs, Int32Array::from(heads), (&entries, None));
        Some(batch.map(|(batch, _)| batch))
    }
}
