//! The pages of a lane as a read sees them: which there are, and one key for each.
//!
//! Both are derived from the entries that the read sees, never stored: what was deleted, evicted or is hidden has no part
//! in them, and forks, copies and files need nothing. Decoding reads a lane again and again while little changes, so a
//! lane keeps what was derived last, and only pages of which entries came or went are looked at anew.

mod read;

use std::mem::size_of;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bank::Snapshot;
use crate::block::Schema;
use crate::columns::{AnyColumn, Column};
use crate::config::{Config, Paging, Representatives, Write};
use crate::error::{Result, room_for};
use crate::query::{Queries, Visible, all_visible};
use crate::reservoir::Place;
use crate::version::Row;
use crate::work::{Ticker, Work};
use crate::write::pages::{PAGE, REPRESENTATIVE, chosen};

/// The entries of a page that a read sees: at least one.
///
/// No entry of such a lane is ever rewritten, and what comes has a larger id than all that was there. So if the last one and
/// the count are what they were, so are the entries.
#[derive(Clone, Copy, PartialEq)]
struct Run {
    /// The number of the page.
    page: i64,
    first: i64,
    last: i64,
    n: usize,
}

/// The pages of a lane, ascending.
pub(crate) struct Pages {
    runs: Vec<Run>,
    /// What stands for each: `[pages, key_dim]`.
    keys: Vec<f32>,
}

/// What was derived from a lane when somebody last read its pages.
#[derive(Default)]
pub(crate) struct Cached {
    /// Counts what might have changed them.
    changes: u64,
    kept: Mutex<Option<(u64, Arc<Pages>)>>,
}

impl Clone for Cached {
    fn clone(&self) -> Cached {
        Cached { changes: self.changes, kept: Mutex::new(self.get()) }
    }
}

impl Cached {
    /// Entries came or went.
    pub(crate) fn changed(&mut self) {
        self.changes += 1;
    }

    fn get(&self) -> Option<(u64, Arc<Pages>)> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, pages: &Arc<Pages>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.changes, Arc::clone(pages)));
    }

    /// Where the pages lie, and their bytes.
    pub(crate) fn bytes(&self) -> Option<(*const u8, usize)> {
        let (_, pages) = self.get()?;
        let bytes = pages.runs.capacity() * size_of::<Run>() + pages.keys.capacity() * size_of::<f32>();
        Some((Arc::as_ptr(&pages).cast(), bytes))
    }
}

/// What says of entries which page they are in, and how well they stand for it.
struct Source<'a> {
    schema: &'a Schema,
    how: Representatives,
    pages: Option<&'a Column<i64>>,
    numbers: Option<&'a Column<f32>>,
}

impl<'a> Source<'a> {
    fn of(config: &Config, schema: &'a Schema, how: &Paging, row: &'a Row) -> Source<'a> {
        let pages = match row.columns.get(Paging::column(config, PAGE)) {
            Some(AnyColumn::I64(column)) => Some(column),
            _ => None,
        };
        let numbers = match row.columns.get(Paging::column(config, REPRESENTATIVE)) {
            Some(AnyColumn::F32(column)) => Some(column),
            _ => None,
        };
        Source { schema, how: how.representatives, pages, numbers }
    }

    fn page(&self, id: i64) -> i64 {
        self.pages.map_or(id, |pages| pages.get(id))
    }

    /// The pages of visible entries, ids ascending.
    fn runs(&self, refs: &[Visible], ticker: &Ticker) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |page: i64, first: i64, last: i64, n: usize| match runs.last_mut() {
            Some(run) if run.page == page => (run.last, run.n) = (last, run.n + n),
            _ => runs.push(Run { page, first, last, n }),
        };
        for &Visible { r, rows } in refs {
            ticker.tick()?;
            let (lo, hi) = (r.id(rows.trailing_zeros() as usize), r.id(63 - rows.leading_zeros() as usize));
            let page = self.page(lo);
            // Most pages are longer than blocks.
            if page == self.page(hi) {
                add(page, lo, hi, rows.count_ones() as usize);
                continue;
            }
            for id in slots(rows).map(|slot| r.id(slot)) {
                add(self.page(id), id, id, 1);
            }
        }
        Ok(runs)
    }

    /// What stands for entries of one page: the mean of the chosen keys, summed in float64 in the order of ids, rounded once.
    fn represent(&self, refs: &[Visible], entries: &[(Place, i64)], scratch: &mut Scratch, out: &mut [f32]) {
        let of = |at: usize| self.numbers.map_or(0.0, |numbers| numbers.get(entries[at].1));
        let chosen = chosen(self.how, entries.len(), of);
        scratch.sums.fill(0.0);
        for &at in &chosen {
            let place = entries[at].0;
            let key = refs[(place / 64) as usize].r.block.key(self.schema, (place % 64) as usize);
            key.decode(&mut scratch.key);
            scratch.sums.iter_mut().zip(&scratch.key).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let n = chosen.len() as f64;
        out.iter_mut().zip(&scratch.sums).for_each(|(out, &sum)| *out = (sum / n) as f32);
    }

    /// The pages of visible entries and what stands for them; those that are as in `old` are taken from there.
    fn pages(&self, refs: &[Visible], old: Option<&Pages>, ticker: &Ticker) -> Result<Pages> {
        let runs = self.runs(refs, ticker)?;
        let dim = self.schema.key.dim;
        room_for(runs.len().saturating_mul(dim * size_of::<f32>()), || {
            format!("the representatives of {} pages", runs.len())
        })?;
        let mut keys = vec![0.0; runs.len() * dim];
        let (mut scratch, mut entries, mut before) = (Scratch::new(dim), Vec::new(), 0);
        let (old_runs, old_keys) = old.map_or((&[] as &[Run], &[] as &[f32]), |old| (&old.runs, &old.keys));
        for (run, out) in runs.iter().zip(keys.chunks_exact_mut(dim)) {
            before += old_runs[before..].iter().take_while(|old| old.page < run.page).count();
            if old_runs.get(before).is_some_and(|old| old.page == run.page && old.last == run.last && old.n == run.n) {
                out.copy_from_slice(&old_keys[before * dim..][..dim]);
                continue;
            }
            ticker.tick()?;
            entries_of(refs, run.first, run.last + 1, &mut entries);
            self.represent(refs, &entries, &mut scratch, out);
        }
        Ok(Pages { runs, keys })
    }
}

/// Room for one key and its sums.
struct Scratch {
    key: Vec<f32>,
    sums: Vec<f64>,
}

impl Scratch {
    fn new(dim: usize) -> Scratch {
        Scratch { key: vec![0.0; dim], sums: vec![0.0; dim] }
    }
}

/// The rows of a mask, ascending.
fn slots(mut rows: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let slot = rows.trailing_zeros() as usize;
        rows &= rows.wrapping_sub(1);
        (slot < 64).then_some(slot)
    })
}

/// The visible entries with ids from `first` to below `end`, ascending.
fn entries_of(refs: &[Visible], first: i64, end: i64, out: &mut Vec<(Place, i64)>) {
    out.clear();
    let start = refs.partition_point(|seen| seen.r.id_lo <= first).saturating_sub(1);
    for (at, &Visible { r, rows }) in refs.iter().enumerate().skip(start).take_while(|(_, seen)| seen.r.id_lo < end) {
        let ids = slots(rows).map(|slot| ((at * 64 + slot) as Place, r.id(slot)));
        out.extend(ids.filter(|&(_, id)| first <= id && id < end));
    }
}

impl Snapshot {
    /// The pages of a lane of which nothing is hidden.
    fn pages_of(&self, (row, head): (usize, usize), how: &Paging, ticker: &Ticker) -> Result<Arc<Pages>> {
        let row = &*self.version.rows[row];
        let lane = &row.lanes[head];
        let kept = lane.pages.get();
        if let Some((changes, pages)) = &kept
            && *changes == lane.pages.changes
        {
            return Ok(Arc::clone(pages));
        }
        let Some(schema) = &self.version.schema else {
            return Ok(Arc::new(Pages { runs: Vec::new(), keys: Vec::new() }));
        };
        let source = Source::of(self.config(), schema, how, row);
        let old = kept.as_ref().map(|(_, pages)| &**pages);
        let pages = Arc::new(source.pages(&all_visible(lane), old, ticker)?);
        lane.pages.keep(&pages);
        Ok(pages)
    }

    /// Pages of the lane that has the most, of those that the queries read.
    pub(crate) fn most_pages(&self, queries: &Queries, work: &Work) -> Result<usize> {
        let Write::Pages(how) = &self.config().write else { return Ok(0) };
        let mut rows = queries.rows.clone();
        rows.sort_unstable();
        rows.dedup();
        let heads = self.config().heads;
        let size = rows.iter().flat_map(|&row| &self.version.rows[row].lanes).map(|lane| lane.len()).sum::<usize>();
        let counts = work.for_size(size.saturating_mul(queries.dim)).map(rows.len() * heads, |at, ticker| {
            Ok(self.pages_of((rows[at / heads], at % heads), how, ticker)?.runs.len())
        })?;
        Ok(counts.into_iter().max().unwrap_or(0))
    }
}
