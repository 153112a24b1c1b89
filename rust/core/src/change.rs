//! What changes banks at once, without a commit: deletion, truncation, row moves, and taking back what is staged.
//!
//! One bank or several, all or nothing: the writers' locks of all are taken, everything that can be refused is checked in
//! all, and then each is changed. What holds a writer's lock sees rows that nobody else can change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use crate::bank::Bank;
use crate::config::check_lanes;
use crate::error::{Error, Kind, Result, ensure};
use crate::labels::Held;
use crate::stage::Staging;
use crate::version::{Row, Version};
use crate::work::{Ticker, Work};

/// Entries of a row that are ended faster than its pages are copied.
const FEW_ENDS: usize = 1024;

/// A change of one or several banks. Where `rows` is None, it is every row; `ends` is one id for all, or one per row.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// End entries by id and by label; what is not there is passed over, and staged tokens stay.
    Delete {
        /// Ids.
        ids: &'a [i64],
        /// Labels.
        labels: &'a [i64],
        /// Rows.
        rows: Option<&'a [usize]>,
    },
    /// Keep ids below an end.
    Truncate {
        /// One end, or one per row.
        ends: &'a [i64],
        /// Rows.
        rows: Option<&'a [usize]>,
    },
    /// Empty rows; their ids go on.
    Reset {
        /// Rows.
        rows: Option<&'a [usize]>,
    },
    /// Row i becomes a copy of row `index[i]`, ids and history included; any length.
    Reorder {
        /// Rows.
        index: &'a [usize],
    },
    /// Repeat each row in place.
    Fork {
        /// How often.
        repeats: usize,
    },
    /// Drop what is staged; with ends, only tokens with an id of the end or more, and no touches.
    Rollback {
        /// Rows.
        rows: Option<&'a [usize]>,
        /// One end, or one per row.
        ends: Option<&'a [i64]>,
    },
}

/// What a deletion ends in one row, found before readers have to wait.
struct Ending {
    row: usize,
    /// Of entries that the deletion names by label.
    named: Vec<i64>,
    /// The row without them, where they are many.
    without: Option<Arc<Row>>,
}

/// Changes several banks: all or nothing. A bank that is named twice is changed once.
///
/// # Errors
/// When one of the banks would refuse the change, memory is short or the caller interrupts; nothing was changed then.
pub fn change_all(banks: &[&Bank], change: &Change, work: &Work) -> Result<()> {
    // One order for everybody, so that two calls cannot wait for each other.
    let distinct: BTreeMap<*const Bank, &Bank> = banks.iter().map(|&bank| (std::ptr::from_ref(bank), bank)).collect();
    let mut held: Vec<_> = distinct.into_values().map(|bank| (bank, bank.writer())).collect();
    for (bank, staging) in &held {
        change.check(bank, staging)?;
    }
    let endings = work.once(|ticker| {
        held.iter_mut().map(|(bank, staging)| change.endings(bank, staging, ticker)).collect::<Result<Vec<_>>>()
    })?;
    for ((bank, staging), endings) in held.iter_mut().zip(endings) {
        change.perform(bank, staging, endings)?;
    }
    Ok(())
}

impl Change<'_> {
    /// Whether a bank of which the writer's lock is held can be changed.
    fn check(&self, bank: &Bank, staging: &Staging) -> Result<()> {
        if !matches!(self, Change::Delete { .. } | Change::Rollback { .. }) {
            ensure(staging.is_empty(), Kind::State, || {
                "tokens or touches are staged: commit() or rollback() first".into()
            })?;
        }
        let (n, heads) = (bank.snapshot().version.rows.len(), bank.config().heads);
        match *self {
            Change::Delete { rows, .. } | Change::Reset { rows } => check_rows("rows", rows, n),
            Change::Truncate { ends, rows } => check_ends(Some(ends), rows, n),
            Change::Rollback { rows, ends } => check_ends(ends, rows, n),
            Change::Reorder { index } => {
                check_lanes(index.len(), heads)?;
                check_rows("index", Some(index), n)
            }
            Change::Fork { repeats } => {
                ensure(repeats >= 1, Kind::Argument, || {
                    "repeats=0 must be at least 1: fork(r) makes r copies of each row".into()
                })?;
                check_lanes(n.saturating_mul(repeats), heads)
            }
        }
    }

    /// What goes from each row of a deletion. Where it is much, it goes from a copy of the row, while readers go on.
    fn endings(&self, bank: &Bank, staging: &mut Staging, ticker: &Ticker) -> Result<Vec<Ending>> {
        let Change::Delete { ids, labels, rows } = *self else { return Ok(Vec::new()) };
        let version = bank.snapshot().version;
        let rows: BTreeSet<usize> =
            rows.map_or_else(|| (0..version.rows.len()).collect(), |rows| rows.iter().copied().collect());
        let mut endings = Vec::with_capacity(rows.len());
        for at in rows {
            let row = &version.rows[at];
            let mut named = Vec::new();
            if !labels.is_empty() {
                let held = Held { row, staged: staging.rows.get(&at) };
                named = staging.label_index.entry(at).or_default().named(labels, held, ticker)?;
            }
            let mut without = None;
            if ids.len() + named.len() > FEW_ENDS {
                let mut copy = Row::clone(row);
                copy.end(ids.iter().chain(&named).copied(), ticker)?;
                without = Some(Arc::new(copy));
            }
            endings.push(Ending { row: at, named, without });
        }
        Ok(endings)
    }

    /// Changes a bank of which the writer's lock is held since it was checked; nobody is asked whether to stop, so it does
    /// not fail.
    fn perform(&self, bank: &Bank, staging: &mut Staging, mut endings: Vec<Ending>) -> Result<()> {
        if let Change::Rollback { rows, ends } = *self {
            roll_back(staging, rows, ends, bank.snapshot().version.rows.len());
            return Ok(());
        }
        let mut guard = bank.version.write().unwrap_or_else(PoisonError::into_inner);
        let version = Arc::make_mut(&mut guard);
        match *self {
            Change::Delete { ids, .. } => {
                for Ending { row, named, without } in &mut endings {
                    let row = &mut version.rows[*row];
                    match without {
                        Some(without) => std::mem::swap(row, without),
                        None => Arc::make_mut(row).end(ids.iter().chain(&*named).copied(), &Ticker::never())?,
                    }
                }
            }
            Change::Truncate { ends, rows } => {
                each_row(version, rows, |i, _, row| row.truncate(if ends.len() == 1 { ends[0] } else { ends[i] }));
            }
            Change::Reset { rows } => {
                each_row(version, rows, |_, _, row| *row = Row::empty(row.lanes.len(), row.next_id));
            }
            Change::Reorder { index } => {
                version.rows = index.iter().map(|&at| Arc::clone(&version.rows[at])).collect();
                // It goes by number of the row.
                staging.label_index.clear();
            }
            Change::Fork { repeats } => {
                let n = version.rows.len() * repeats;
                version.rows = (0..n).map(|at| Arc::clone(&version.rows[at / repeats])).collect();
                staging.label_index.clear();
            }
            Change::Rollback { .. } => {}
        }
        version.number += 1;
        // What ended is freed after readers can go on.
        drop(guard);
        Ok(())
    }
}

/// Takes back what is staged for some of `n` rows; where a row is named twice, from its smaller end on.
fn roll_back(staging: &mut Staging, rows: Option<&[usize]>, ends: Option<&[i64]>, n: usize) {
    let every: Vec<usize> = (0..n).collect();
    let mut row_ends = BTreeMap::new();
    for (i, &row) in rows.unwrap_or(&every).iter().enumerate() {
        let end = ends.map_or(0, |ends| ends[if ends.len() == 1 { 0 } else { i }]);
        row_ends.entry(row).and_modify(|least: &mut i64| *least = end.min(*least)).or_insert(end);
    }
    staging.roll_back(&row_ends);
    if ends.is_none() {
        staging.touches.retain(|(row, _), _| !row_ends.contains_key(row));
    }
    if rows.is_none() && ends.is_none() {
        // Calls that wrote nothing belong to no row.
        staging.clear();
    }
}

/// Changes the i-th of some rows, which has the number `at`.
fn each_row(version: &mut Version, rows: Option<&[usize]>, mut change: impl FnMut(usize, usize, &mut Row)) {
    let every: Vec<usize> = (0..version.rows.len()).collect();
    for (i, &at) in rows.unwrap_or(&every).iter().enumerate() {
        let row = Arc::make_mut(&mut version.rows[at]);
        change(i, at, row);
        row.drop_old_columns();
    }
}

fn check_rows(name: &str, rows: Option<&[usize]>, n: usize) -> Result<()> {
    match rows.unwrap_or(&[]).iter().find(|&&row| row >= n) {
        Some(row) => Err(Error::new(Kind::Row, format!("{name} name row {row}; the bank has {n} rows"))),
        None => Ok(()),
    }
}

fn check_ends(ends: Option<&[i64]>, rows: Option<&[usize]>, n: usize) -> Result<()> {
    check_rows("rows", rows, n)?;
    let n = rows.map_or(n, <[usize]>::len);
    ensure(ends.is_none_or(|ends| ends.len() == 1 || ends.len() == n), Kind::Shape, || {
        format!("end has {} numbers for {n} rows: give one, or one per row", ends.map_or(0, <[i64]>::len))
    })
}
