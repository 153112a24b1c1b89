//! What a read sees of each block: the rows that its `where` lets through.
//!
//! Conditions on columns and bitmaps by id become one mask of visible rows per block before anything is scanned: once
//! per block and call, whatever the number of queries, and once for all heads whose blocks hold the same ids. Blocks of
//! which nothing is visible are not scanned at all.

use std::sync::Arc;

use crate::bank::Snapshot;
use crate::cells::Declared;
use crate::error::{Kind, Result, ensure};
use crate::list::{List, Ref, first_rows};
use crate::predicate::{Predicate, Test, choose};
use crate::query::Bitmaps;
use crate::version::Row;
use crate::work::Work;

/// What a call's `where` lets through.
pub(crate) struct Filter<'a> {
    tests: Vec<Test>,
    allowed: Option<Bitmaps<'a>>,
}

/// Visible rows of each reference, `[head][reference]`.
pub(crate) type Masks = Vec<Vec<u64>>;

/// References of one job.
const JOB_REFS: usize = 512;

impl<'a> Filter<'a> {
    /// `n_rows`: query rows, or rows that are looked through.
    pub(crate) fn check(
        declared: &[Declared],
        predicates: &[Predicate],
        allowed: Option<Bitmaps<'a>>,
        n_rows: usize,
    ) -> Result<Filter<'a>> {
        if let Some(allowed) = &allowed {
            ensure(allowed.rows == 1 || allowed.rows == n_rows, Kind::Shape, || {
                format!("where has {} bitmaps for {n_rows} query rows: give one for all, or one per row", allowed.rows)
            })?;
            ensure(allowed.rows.checked_mul(allowed.ids) == Some(allowed.bits.len()), Kind::Shape, || {
                format!("where has {} numbers for {} rows of {} ids", allowed.bits.len(), allowed.rows, allowed.ids)
            })?;
        }
        let tests = predicates.iter().map(|predicate| Test::of(declared, predicate)).collect::<Result<_>>()?;
        Ok(Filter { tests, allowed })
    }

    /// Whether all that lives is visible.
    pub(crate) fn shows_all(&self) -> bool {
        self.tests.is_empty() && self.allowed.is_none()
    }

    /// The visible rows of every reference that the given bank rows have, for each of them; None: all live ones are.
    pub(crate) fn masks(&self, snapshot: &Snapshot, rows: &[usize], work: &Work) -> Result<Option<Vec<Arc<Masks>>>> {
        if self.tests.is_empty() && self.allowed.is_none() {
            return Ok(None);
        }
        let mut bank_rows = rows.to_vec();
        bank_rows.sort_unstable();
        bank_rows.dedup();
        // Conditions and a bitmap for all say the same to every query row that reads a bank row.
        let common = self.allowed.filter(|allowed| allowed.rows == 1);
        let masks = over_refs(snapshot, &bank_rows, work, |_, row, r| self.passing(row, r, common))?;
        let masks: Vec<Arc<Masks>> = masks.into_iter().map(Arc::new).collect();
        let of = |row: &usize| bank_rows.partition_point(|other| other < row);
        let masks: Vec<Arc<Masks>> = rows.iter().map(|row| Arc::clone(&masks[of(row)])).collect();
        let Some(each) = self.allowed.filter(|allowed| allowed.rows > 1) else { return Ok(Some(masks)) };
        let mut narrowed = over_refs(snapshot, rows, work, |at, _, r| bits(each, at, r))?;
        for (narrowed, common) in
            narrowed.iter_mut().flatten().flatten().zip(masks.iter().flat_map(|masks| masks.iter().flatten()))
        {
            *narrowed &= common;
        }
        Ok(Some(narrowed.into_iter().map(Arc::new).collect()))
    }

    /// The rows of a block that pass, alive or not.
    fn passing(&self, row: &Row, r: &Ref, allowed: Option<Bitmaps>) -> u64 {
        let all = allowed.map_or(first_rows(r.block.len()), |allowed| bits(allowed, 0, r));
        self.tests.iter().fold(all, |mask, test| if mask == 0 { 0 } else { test.passing(row, r, mask) })
    }
}

/// The rows of a block whose ids a bitmap has.
fn bits(allowed: Bitmaps, row: usize, r: &Ref) -> u64 {
    let bits = &allowed.bits[row * allowed.ids..][..allowed.ids];
    choose(first_rows(r.block.len()), |slot| usize::try_from(r.id(slot)).is_ok_and(|id| bits.get(id) == Some(&true)))
}

/// `mask(place of the row, row, reference)` and the reference's live rows, for every reference of the given rows. A head
/// whose block holds the same ids as the first head's is not asked again.
fn over_refs(
    snapshot: &Snapshot,
    rows: &[usize],
    work: &Work,
    mask: impl Fn(usize, &Row, &Ref) -> u64 + Sync,
) -> Result<Vec<Masks>> {
    let row = |at: usize| &*snapshot.version.rows[rows[at]];
    let refs: Vec<Vec<Vec<&Ref>>> = (0..rows.len())
        .map(|at| row(at).lanes.iter().map(|lane| lane.lists().iter().flat_map(List::refs).collect()).collect())
        .collect();
    let jobs: Vec<(usize, usize)> = (refs.iter().enumerate())
        .flat_map(|(at, heads)| {
            let longest = heads.iter().map(Vec::len).max().unwrap_or(0);
            (0..longest).step_by(JOB_REFS).map(move |first| (at, first))
        })
        .collect();
    // Seldom more than a few steps per id.
    let steps = jobs.len() * JOB_REFS * 64 * 4;
    let found = work.for_size(steps).map(jobs.len(), |job, ticker| {
        let (at, first) = jobs[job];
        let mut found: Vec<Vec<u64>> = Vec::with_capacity(refs[at].len());
        let mut asked: Vec<u64> = Vec::new();
        for (head, refs_of_head) in refs[at].iter().enumerate() {
            ticker.tick()?;
            let places = first.min(refs_of_head.len())..refs_of_head.len().min(first + JOB_REFS);
            let mut masks = Vec::with_capacity(places.len());
            for place in places {
                let r = refs_of_head[place];
                let as_first = head > 0 && refs[at][0].get(place).is_some_and(|other| same_ids(r, other));
                let passing = if as_first { asked[place - first] } else { mask(at, row(at), r) };
                if head == 0 {
                    asked.push(passing);
                }
                masks.push(passing & r.live);
            }
            found.push(masks);
        }
        Ok(found)
    })?;
    let mut masks: Vec<Masks> = refs.iter().map(|heads| vec![Vec::new(); heads.len()]).collect();
    for ((at, _), found) in jobs.into_iter().zip(found) {
        masks[at].iter_mut().zip(found).for_each(|(masks, mut more)| masks.append(&mut more));
    }
    Ok(masks)
}

fn same_ids(a: &Ref, b: &Ref) -> bool {
    a.id_lo == b.id_lo && a.block.len() == b.block.len() && a.offsets == b.offsets
}
