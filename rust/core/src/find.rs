//! Entries by what their columns say, and columns by id: scans of columns alone, without a key.

use crate::bank::Snapshot;
use crate::cells::Cells;
use crate::error::{Error, Kind, Result, ensure};
use crate::filter::Filter;
use crate::list::List;
use crate::predicate::{Predicate, unknown};
use crate::query::Bitmaps;
use crate::version::Row;
use crate::work::Work;

impl Snapshot {
    /// The ids, ascending, of the entries of each row that meet every condition and are in the bitmap, if there is one:
    /// one for all of these rows, or one for each. An entry is there while any head has it.
    ///
    /// # Errors
    /// When a row or column is not there, a condition cannot be, or the caller interrupts.
    pub fn find(
        &self,
        predicates: &[Predicate],
        allowed: Option<Bitmaps>,
        rows: Option<&[usize]>,
        work: &Work,
    ) -> Result<Vec<Vec<i64>>> {
        let rows = self.named_rows(rows)?;
        let masks = Filter::check(&self.config().columns, predicates, allowed, rows.len())?;
        let masks = masks.masks(self, &rows, work)?;
        let entries: usize = self.version.longest().saturating_mul(rows.len());
        work.for_size(entries).map(rows.len(), |at, ticker| {
            let row = &self.version.rows[rows[at]];
            let mut ids: Vec<i64> = Vec::new();
            for (head, lane) in row.lanes.iter().enumerate() {
                ticker.tick()?;
                let mut masks = masks.as_ref().map(|masks| masks[at][head].iter());
                let refs = lane.lists().iter().flat_map(List::refs);
                let seen = refs.flat_map(|r| {
                    let mask = masks.as_mut().map_or(Some(&r.live), Iterator::next).copied().unwrap_or(0);
                    (0..64).filter(move |slot| mask >> slot & 1 == 1).map(|slot| r.id(slot))
                });
                let mut seen: Vec<i64> = seen.collect();
                seen.sort_unstable();
                if head == 0 {
                    ids = seen;
                } else if ids != seen {
                    // Only a policy ends entries head by head.
                    ids.append(&mut seen);
                    ids.sort_unstable();
                    ids.dedup();
                }
            }
            Ok(ids)
        })
    }

    /// The numbers of a column at ids, each of its row; -1 gives what is absent: -1 of id, label and position, else 0 or
    /// false. Whether an id is there is not looked at: see [`Snapshot::gather`].
    ///
    /// # Errors
    /// When there is no such column or row, or rows and ids are not equally many.
    pub fn column(&self, name: &str, rows: &[usize], ids: &[i64]) -> Result<Cells> {
        ensure(rows.len() == ids.len(), Kind::Shape, || {
            format!("{} ids come with {} rows: give one of each", ids.len(), rows.len())
        })?;
        self.named_rows(Some(rows))?;
        let declared = &self.config().columns;
        let integers = |of: fn(&Row, i64) -> i64| {
            let number = |(&row, &id): (&usize, &i64)| if id < 0 { -1 } else { of(&self.version.rows[row], id) };
            Ok(Cells::I64(rows.iter().zip(ids).map(number).collect()))
        };
        match name {
            "id" => return integers(|_, id| id),
            "label" => return integers(Row::label),
            "position" => return integers(Row::position),
            _ => {}
        }
        let at = declared.iter().position(|declared| declared.name == name);
        let at = at.ok_or_else(|| unknown("columns", declared, name))?;
        let mut cells = Cells::absent(declared[at].dtype, 0);
        let mut left = ids;
        for run in rows.chunk_by(|a, b| a == b) {
            let (here, later) = left.split_at(run.len());
            cells.append(self.version.rows[run[0]].cells(declared, at, here));
            left = later;
        }
        Ok(cells)
    }

    /// Every row, or those that are named.
    fn named_rows(&self, rows: Option<&[usize]>) -> Result<Vec<usize>> {
        let n = self.version.rows.len();
        match rows {
            None => Ok((0..n).collect()),
            Some(rows) => match rows.iter().find(|&&row| row >= n) {
                Some(row) => Err(Error::new(Kind::Row, format!("rows name row {row}; the bank has {n} rows"))),
                None => Ok(rows.to_vec()),
            },
        }
    }
}
