//! A stream of tables into a bank, in batches of bytes, all or nothing or as it goes.
//!
//! The work is done on a copy of the bank, which shares every block with it: batches are staged and committed there, and
//! the bank takes the copy's version over in one step, at the end or after each batch. So a refusal, an interruption or a
//! source that breaks off leaves the bank as it was, eviction happens on the way, and what is held beside the bank is one
//! batch. If somebody else changed the bank in the meantime, the step is refused and their change stands.

mod columns;
mod piece;
mod place;
mod stage;
mod vectors;

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, StructArray};
use arrow_schema::{ArrowError, DataType, Field};
use arrow_select::concat::concat;
use mnemex_core::labels::OnDuplicate;
use mnemex_core::work::Work;
use mnemex_core::{Bank, Kind, Snapshot};

pub use columns::{Names, Numbers};
pub use place::Place;

use crate::error::Result;
use crate::interrupt::Interrupt;
use columns::Columns;
use piece::Piece;
use stage::Stage;

/// What to do with a row that is null, or null in a column that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nulls {
    /// Refuse it.
    Raise,
    /// Leave its token out.
    Skip,
}

/// When the bank sees what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// When everything is in.
    End,
    /// After each batch.
    Batch,
}

/// How to read.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Which columns.
    pub names: Names,
    /// Null rows.
    pub nulls: Nulls,
    /// What to do with a label that the row has already; None: labels may repeat.
    pub on_duplicate: Option<OnDuplicate>,
    /// All or nothing, or batch by batch.
    pub publish: Publish,
    /// Bytes of vectors that are staged before a commit, about.
    pub batch_bytes: usize,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows of the tables.
    pub rows: u64,
    /// Tokens that were taken.
    pub tokens: u64,
    /// Tokens left out because of a null.
    pub null: u64,
    /// Tokens that the bank leaves unwritten because they are not finite.
    pub nonfinite: u64,
    /// Tokens left out because the row has their label already.
    pub duplicate: u64,
    /// Commits.
    pub batches: u64,
    /// Bytes of vectors.
    pub bytes: u64,
    /// Entries that the evict policy ended.
    pub evicted: u64,
    /// Number of the bank's version.
    pub version: u64,
}

/// One ingest: fed with tables, then finished. Dropped before that, it has published what [`Publish`] says.
pub struct Ingest {
    terms: Terms,
    base: Snapshot,
    copy: Bank,
    /// Bytes staged in the copy.
    staged: usize,
    /// Whether the copy holds tokens that the bank does not.
    unpublished: bool,
    /// Rows of a token whose other heads are still to come, and the number of the first.
    carried: Option<(StructArray, u64)>,
    progress: Progress,
}

impl Ingest {
    /// An ingest into a bank.
    ///
    /// # Errors
    /// When tokens are staged in the bank, or there is no column of row numbers and the bank does not have one row.
    pub fn new(bank: &Bank, terms: Terms) -> Result<Ingest> {
        let place = Place::default();
        if bank.has_staged() {
            return Err(place.refuse_all(Kind::State, "tokens are staged: commit() or rollback() before ingest"));
        }
        let base = bank.snapshot();
        let n_rows = base.version().rows.len();
        if terms.names.row.is_none() && n_rows != 1 {
            let what =
                format!("row= is missing: the bank has {n_rows} rows, so name the column that says which is meant");
            return Err(place.refuse_all(Kind::Argument, &what));
        }
        let progress = Progress { version: base.version().number, ..Progress::default() };
        Ok(Ingest { terms, copy: base.copy(), base, staged: 0, unpublished: false, carried: None, progress })
    }

    /// Takes in tables of one type, as arrays of structs. Returns the number of rows. `report` is called after each commit.
    ///
    /// # Errors
    /// When the source fails or is not what it says, a column is missing or of another type, a row cannot be taken,
    /// somebody else changed the bank, or the call is interrupted. The ingest is over then.
    pub fn feed(
        &mut self,
        bank: &Bank,
        mut tables: impl Iterator<Item = Result<ArrayRef, ArrowError>>,
        field: &Field,
        place: &Place,
        report: &mut dyn FnMut(&Progress) -> Result<()>,
        work: &Work,
    ) -> Result<u64> {
        let DataType::Struct(fields) = field.data_type() else {
            let what =
                format!("the source holds {}; expected a table of named columns", place::shown(field.data_type()));
            return Err(place.refuse_all(Kind::Dtype, &what));
        };
        let columns = Columns::find(fields, &self.terms.names, bank.config(), place)?;
        let each = if columns.head.is_some() { bank.config().heads } else { 1 };
        let mut feed = Feed { bank, columns: &columns, each, place, report, work };
        let interrupt = Interrupt::new(work);
        let mut n = 0;
        while let Some(table) = guarded(place, || tables.next().transpose())? {
            interrupt.poll()?;
            let table = table.as_struct_opt().ok_or_else(|| place.malformed("the source holds no tables"))?;
            guarded(place, || {
                columns.all().iter().try_for_each(|&(_, at)| table.column(at).to_data().validate_full())
            })?;
            self.table(&mut feed, table, place.first + n)?;
            n += table.len() as u64;
        }
        Ok(n)
    }

    /// Takes in one table, piece by piece.
    fn table(&mut self, feed: &mut Feed, table: &StructArray, first: u64) -> Result<()> {
        let each = feed.each;
        let mut at = 0;
        if let Some((carried, number)) = self.carried.take() {
            at = (each - carried.len()).min(table.len());
            let joined = guarded(feed.place, || concat(&[&carried, &table.slice(0, at)]))?.as_struct().clone();
            if joined.len() < each {
                self.carried = Some((joined, number));
            } else {
                self.piece(feed, &joined, number)?;
            }
        }
        while table.len() - at >= each {
            let room = self.terms.batch_bytes.saturating_sub(self.staged) / feed.columns.row_bytes().max(1);
            let n = (room / each).max(1).min((table.len() - at) / each) * each;
            self.piece(feed, &table.slice(at, n), first + at as u64)?;
            at += n;
        }
        if at < table.len() {
            self.carried = Some((table.slice(at, table.len() - at), first + at as u64));
        }
        Ok(())
    }

    /// Stages whole tokens, and commits once there are enough.
    fn piece(&mut self, feed: &mut Feed, table: &StructArray, first: u64) -> Result<()> {
        let Feed { bank, columns, each, place, work, .. } = *feed;
        let nulls = self.terms.nulls;
        let piece = caught(place, || Piece::read(table, first, columns, each, nulls, place))?;
        let on_duplicate = self.terms.on_duplicate;
        let unwritten = Stage { bank: &self.copy, columns, on_duplicate, place, work }.piece(&piece)?;
        let bytes = piece.rows.len() * columns.row_bytes();
        self.staged += bytes;
        self.unpublished |= piece.len() > unwritten.len();
        self.progress.rows += table.len() as u64;
        self.progress.tokens += (piece.len() - unwritten.len()) as u64;
        self.progress.null += (table.len() / each - piece.len()) as u64;
        self.progress.nonfinite += unwritten.nonfinite as u64;
        self.progress.duplicate += unwritten.duplicate as u64;
        self.progress.bytes += bytes as u64;
        if self.staged >= self.terms.batch_bytes {
            self.commit(bank, work)?;
            (feed.report)(&self.progress)?;
        }
        Ok(())
    }

    /// Commits to the copy, and shows it to the bank where that is wanted batch by batch.
    fn commit(&mut self, bank: &Bank, work: &Work) -> Result<()> {
        let receipt = self.copy.commit(work)?;
        self.staged = 0;
        self.progress.batches += 1;
        self.progress.evicted += receipt.evicted as u64;
        if self.terms.publish == Publish::Batch { self.publish(bank) } else { Ok(()) }
    }

    fn publish(&mut self, bank: &Bank) -> Result<()> {
        self.base = bank.adopt(&self.base, &self.copy)?;
        self.progress.version = self.base.version().number;
        self.unpublished = false;
        Ok(())
    }

    /// Ends a source: a file, or the stream.
    ///
    /// # Errors
    /// When a token lacks heads.
    pub fn end_source(&mut self, place: &Place) -> Result<()> {
        match self.carried.take() {
            None => Ok(()),
            Some((rows, first)) => {
                let column = self.terms.names.head.clone().unwrap_or_default();
                let what = format!("the source ends within a token: {} of its heads are there", rows.len());
                Err(place.refuse(Kind::Argument, &column, Some(first), what))
            }
        }
    }

    /// Commits what is left and publishes what was not.
    ///
    /// # Errors
    /// When somebody else changed the bank, or the call is interrupted; nothing more was published then.
    pub fn finish(mut self, bank: &Bank, work: &Work) -> Result<Progress> {
        if self.copy.has_staged() {
            self.commit(bank, work)?;
        }
        if self.unpublished {
            self.publish(bank)?;
        }
        Ok(self.progress)
    }
}

/// What stays the same for all tables of one call.
struct Feed<'a> {
    bank: &'a Bank,
    columns: &'a Columns,
    /// Table rows of a token.
    each: usize,
    place: &'a Place,
    report: &'a mut dyn FnMut(&Progress) -> Result<()>,
    work: &'a Work<'a>,
}

/// What the Arrow reader answers, which returns an error, or panics, at data that do not fit together.
fn guarded<T>(place: &Place, read: impl FnOnce() -> Result<T, ArrowError>) -> Result<T> {
    caught(place, || read().map_err(|error| place.failed(&error)))
}

fn caught<T>(place: &Place, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(place.malformed("the source's Arrow data do not fit together")))
}
