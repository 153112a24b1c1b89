//! Rows built from what was saved: live entries with the ids they had, gaps included.
//!
//! A file cannot be trusted, so everything that the rest of the crate takes for granted is checked here: ids ascend,
//! stay below the next id, and come with as many bytes as their vectors need.

use std::sync::Arc;

use mnemex_kernels::Kernels;

use crate::arena::Arena;
use crate::block::{Encoded, Schema};
use crate::cells::{Declared, Numbers};
use crate::columns::Column;
use crate::error::{Error, Kind, Result, ensure};
use crate::lane::{Arrival, Lane, Room};
use crate::usage::Use;
use crate::version::Row;
use crate::write::pages::Paged;

/// Largest next id: keeps sums of ids and counts far from overflow.
pub const MAX_NEXT_ID: i64 = 1 << 62;

/// Entries encoded at a time.
const STEP: usize = 1024;

/// Live entries of one lane, ids ascending.
#[derive(Clone, Copy)]
pub struct Entries<'a> {
    /// Their ids.
    pub ids: &'a [i64],
    /// Stored bytes of their keys, without padding: `[n, key_dim]` numbers of the key codec.
    pub keys: &'a [u8],
    /// Likewise of values of their own; empty without.
    pub values: &'a [u8],
}

/// What rows of one bank share while they are put together: where their lanes find room.
#[derive(Default)]
pub struct Together {
    arena: Arena,
    entries: usize,
}

impl Together {
    /// For so many entries in all lanes of all rows.
    pub fn of(entries: usize) -> Together {
        Together { arena: Arena::default(), entries }
    }
}

/// Puts a row together, lane by lane.
pub struct RowBuilder<'s> {
    schema: &'s Schema,
    kernels: &'static Kernels,
    row: Row,
    together: Arc<Together>,
    /// Largest id of each lane so far.
    last: Vec<i64>,
}

impl<'s> RowBuilder<'s> {
    /// A row of `heads` empty lanes whose next token gets `next_id`.
    ///
    /// # Errors
    /// When `next_id` is out of range, or no instruction set can be chosen.
    pub fn new(schema: &'s Schema, heads: usize, next_id: i64) -> Result<Self> {
        ensure((0..=MAX_NEXT_ID).contains(&next_id), Kind::Argument, || {
            format!("next_id={next_id} must be from 0 to {MAX_NEXT_ID}")
        })?;
        let kernels = Kernels::best().map_err(|error| Error::new(Kind::Resource, error.to_string()))?;
        Ok(RowBuilder {
            schema,
            kernels,
            row: Row::empty(heads, next_id),
            together: Arc::default(),
            last: vec![-1; heads],
        })
    }

    /// The same, beside other rows of its bank.
    #[must_use]
    pub fn beside(mut self, together: &Arc<Together>) -> Self {
        self.together = Arc::clone(together);
        self
    }

    /// Adds entries behind those that the lane has; `expected` entries will be in it in the end.
    ///
    /// # Errors
    /// When ids do not ascend or pass the next id, bytes are not as many as the entries need, or memory is short.
    pub fn append(&mut self, head: usize, expected: usize, entries: &Entries) -> Result<()> {
        let (schema, n) = (self.schema, entries.ids.len());
        let key_bytes = schema.key.vector_bytes();
        let value_bytes = schema.value.map_or(0, |layout| layout.vector_bytes());
        let fits = |bytes: &[u8], each: usize| each.checked_mul(n) == Some(bytes.len());
        ensure(fits(entries.keys, key_bytes) && fits(entries.values, value_bytes), Kind::Shape, || {
            format!("{n} entries do not fit their {} and {} bytes", entries.keys.len(), entries.values.len())
        })?;
        ensure(head < self.last.len(), Kind::Argument, || format!("head {head} is not one of {}", self.last.len()))?;
        for &id in entries.ids {
            ensure(id > self.last[head] && id < self.row.next_id, Kind::Argument, || {
                format!("id {id} follows id {} where the next id is {}", self.last[head], self.row.next_id)
            })?;
            self.last[head] = id;
        }
        let mut key = vec![0.0; schema.key.dim];
        for first in (0..n).step_by(STEP) {
            let ids = &entries.ids[first..n.min(first + STEP)];
            let mut encoded = Encoded::zeroed(schema, ids.len())?;
            for row in 0..ids.len() {
                let at = first + row;
                schema.key.put(&entries.keys[at * key_bytes..][..key_bytes], encoded.key_row(schema, row));
                if let Some(layout) = schema.value {
                    layout.put(&entries.values[at * value_bytes..][..value_bytes], encoded.value_row(schema, row));
                }
                encoded.key(schema, row).decode(&mut key);
                encoded.note_key(schema, self.kernels, row, &key);
            }
            let in_bank = self.together.entries.max(expected);
            let room = Room { in_bank, arena: &self.together.arena, held: false };
            append_runs(&mut self.row.lanes[head], schema, (expected, room), ids, &encoded)?;
        }
        Ok(())
    }

    /// Gives labels to ids; with none, notes that entries had some.
    pub fn labels(&mut self, labels: impl IntoIterator<Item = (i64, i64)>) {
        set(&mut self.row.labels, self.row.next_id, labels);
    }

    /// Gives positions to ids; with none, notes that entries had some.
    pub fn positions(&mut self, positions: impl IntoIterator<Item = (i64, i64)>) {
        set(&mut self.row.positions, self.row.next_id, positions);
    }

    /// Gives entries that were added to a head their numbers in the `at`-th of the declared columns.
    ///
    /// # Errors
    /// When the numbers are of another type or not as many as the ids, or a head before this one has an entry with
    /// another number.
    pub fn column(
        &mut self,
        head: usize,
        ids: &[i64],
        (declared, at): (&[Declared], usize),
        numbers: Numbers,
    ) -> Result<()> {
        let name = &declared[at].name;
        ensure(numbers.len() == ids.len(), Kind::Shape, || {
            format!("{} ids come with {} numbers of the column {name:?}", ids.len(), numbers.len())
        })?;
        self.row.column_mut(declared, at);
        let Row { lanes, columns, .. } = &mut self.row;
        let fixed = |id| lanes.iter().take(head).any(|lane| lane.locate(id).is_some());
        let restored = columns[at].restore(ids, numbers, fixed);
        ensure(restored == Some(true), Kind::Argument, || {
            format!("the column {name:?} has another type, or different numbers of one id: heads must agree")
        })
    }

    /// Says how entries that were added to a head were used.
    ///
    /// # Errors
    /// When they are not as many as the ids, or were used after version `number`, or a weight is no number.
    pub fn used(&mut self, head: usize, ids: &[i64], uses: &[Use], number: u64) -> Result<()> {
        let can_be = |(used, &id): (&Use, &i64)| {
            used.last <= number
                && used.member <= id as u64
                && (used.member == 0 || used.count == 0)
                && used.born <= used.updated
                && used.updated <= used.last
                && used.count <= MAX_NEXT_ID as u64
                && [used.mass, used.heat, used.before].iter().all(|x| x.is_finite() && *x >= 0.0)
        };
        ensure(uses.len() == ids.len() && uses.iter().zip(ids).all(can_be), Kind::Argument, || {
            format!("{} ids come with {} uses, or some that cannot be", ids.len(), uses.len())
        })?;
        ids.iter().zip(uses).for_each(|(&id, &used)| self.row.lanes[head].usage_mut().set(id, used));
        Ok(())
    }

    /// What the next token has to know of pages; a bank that takes the row checks it.
    pub fn paged(&mut self, paged: Paged) {
        self.row.paged = Some(Arc::new(paged));
    }

    /// The row.
    pub fn finish(self) -> Arc<Row> {
        Arc::new(self.row)
    }
}

fn set(column: &mut Column<i64>, next_id: i64, numbers: impl IntoIterator<Item = (i64, i64)>) {
    for (id, number) in numbers {
        column.set(id, &[number]);
    }
    if column.is_absent() {
        column.note((next_id - 1).max(0));
    }
}

/// Appends encoded entries run by run of consecutive ids; `end` is how many the lane will have, and where they find room.
fn append_runs(lane: &mut Lane, schema: &Schema, end: (usize, Room), ids: &[i64], rows: &Encoded) -> Result<()> {
    let mut start = 0;
    while start < ids.len() {
        let run =
            (start + 1..ids.len()).take_while(|&at| ids[at] == ids[at - 1] + 1).last().map_or(start + 1, |at| at + 1);
        // Row i of the encoded rows has id `id_lo + i` within this run.
        let arrival = Arrival { id_lo: ids[start] - start as i64, rows };
        lane.restore(schema, arrival, start..run, end)?;
        start = run;
    }
    Ok(())
}
