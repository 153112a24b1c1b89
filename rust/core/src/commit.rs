//! From what is staged to the next version: planned and built while readers go on, then performed.
//!
//! The writers' locks are held from plan to publication. Policies look at the version and answer with edits, everything
//! that can fail is built, and then the edits are performed under the version's lock, in place where nobody else holds
//! what they touch. Where a snapshot was taken since the plan, a last block is copied there after all.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bank::{Bank, Shared};
use crate::block::Schema;
use crate::cells::Numbers;
use crate::config::{Evict, Write};
use crate::error::{Kind, Result, ensure};
use crate::evict::Decided;
use crate::labels::Replaced;
use crate::landing::Landing;
use crate::lane::{Arrival, Edit, Lane, Prepared, Room};
use crate::stage::{StagedIds, StagedRow, Staging, Tokens};
use crate::usage::Touches;
use crate::version::{Row, Version};
use crate::work::{Ticker, Work};
use crate::write::pages::{PAGE, Paging};
use crate::write::{LanePlan, Scene, View};

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Number of the version that it published.
    pub version: u64,
    /// Ids of each stage call.
    pub ids: Vec<StagedIds>,
    /// Entries, over all lanes, that the evict policy ended or kept from being written.
    pub evicted: usize,
    /// Key/value heads.
    pub(crate) heads: usize,
    /// Of each row in which tokens arrived, by head.
    pub(crate) landings: BTreeMap<usize, Vec<Landing>>,
}

/// Arriving tokens of one lane.
struct Job<'a> {
    shared: &'a Shared,
    schema: &'a Schema,
    at: usize,
    row: &'a Row,
    head: usize,
    lane: &'a Lane,
    staged: &'a StagedRow,
    arrival: Arrival<'a>,
    replaced: &'a Replaced,
    touches: Option<&'a Touches>,
    /// Number of the version to be.
    number: u64,
    room: Room<'a>,
}

impl Bank {
    /// Publishes everything staged as one version.
    ///
    /// # Errors
    /// When memory is not to be had or the call is interrupted; nothing was published then, and everything stays staged.
    pub fn commit(&self, work: &Work) -> Result<Receipt> {
        commit_all(&[self], work).map(|mut receipts| receipts.remove(0))
    }

    /// Stages tokens and publishes everything staged, as one step.
    ///
    /// # Errors
    /// As for [`Bank::stage`] and [`Bank::commit`]; what was staged before stays staged then, and nothing else.
    pub fn write(&self, tokens: &Tokens, work: &Work) -> Result<Receipt> {
        let mut staging = self.writer();
        let before = staging.mark();
        staging.add(&self.shared, &self.snapshot().version, tokens, work)?;
        let mut staging = [staging];
        let committed = commit_locked(&[self], &mut staging, work).map(|mut receipts| receipts.remove(0));
        if committed.is_err() {
            staging[0].return_to(&before);
        }
        committed
    }
}

/// Publishes what is staged in several banks at once: all or nothing, and no reader sees one without the others.
///
/// # Errors
/// As for [`Bank::commit`].
pub fn commit_all(banks: &[&Bank], work: &Work) -> Result<Vec<Receipt>> {
    // One order for everybody, so that two commits cannot wait for each other; a bank named twice is locked once.
    let by_address: BTreeMap<*const Bank, &Bank> = banks.iter().map(|&bank| (std::ptr::from_ref(bank), bank)).collect();
    let distinct: Vec<&Bank> = by_address.values().copied().collect();
    let mut staged: Vec<_> = distinct.iter().map(|bank| bank.writer()).collect();
    let receipts = commit_locked(&distinct, &mut staged, work)?;
    let receipts: BTreeMap<_, _> = by_address.keys().zip(receipts).collect();
    Ok(banks.iter().filter_map(|&bank| receipts.get(&std::ptr::from_ref(bank)).cloned()).collect())
}

/// Commits distinct banks of which the writers' locks are held; a receipt for each.
fn commit_locked(banks: &[&Bank], staged: &mut [MutexGuard<Staging>], work: &Work) -> Result<Vec<Receipt>> {
    let mut plan = plan(banks, staged, work)?.into_iter();
    let mut versions: Vec<_> =
        banks.iter().map(|bank| bank.version.write().unwrap_or_else(PoisonError::into_inner)).collect();
    let mut receipts = Vec::with_capacity(banks.len());
    for ((bank, staging), version) in banks.iter().zip(&*staged).zip(&mut versions) {
        let mut receipt =
            Receipt { version: 0, ids: Vec::new(), evicted: 0, heads: bank.config().heads, landings: BTreeMap::new() };
        if !staging.is_empty() {
            publish(&bank.shared, Arc::make_mut(version), staging, &mut plan, &mut receipt);
        }
        receipt.version = version.number;
        receipts.push(receipt);
    }
    // Readers need not wait for what was staged to be freed.
    drop(versions);
    for (receipt, staging) in receipts.iter_mut().zip(staged) {
        receipt.ids = staging.clear();
    }
    Ok(receipts)
}

/// The staged rows that hold tokens.
fn arriving(staging: &Staging) -> impl Iterator<Item = (usize, &StagedRow)> {
    staging.rows.iter().map(|(&row, staged)| (row, staged)).filter(|(_, staged)| staged.len() > 0)
}

/// What is to be done to each lane that tokens arrive in: by bank, row and head.
fn plan(banks: &[&Bank], staged: &[MutexGuard<Staging>], work: &Work) -> Result<Vec<Prepared>> {
    let versions: Vec<_> =
        banks.iter().map(|bank| bank.version.read().unwrap_or_else(PoisonError::into_inner)).collect();
    let (mut jobs, mut size, mut planned) = (Vec::new(), 0, Vec::new());
    for ((bank, staging), version) in banks.iter().zip(staged).zip(&versions) {
        let Some(schema) = &staging.schema else { continue };
        let in_bank = arriving(staging).map(|(row, staged)| staged.len() * version.rows[row].lanes.len()).sum();
        for (at, staged) in arriving(staging) {
            let row = &version.rows[at];
            let held = Arc::strong_count(version) > 1 || Arc::strong_count(row) > 1;
            size += staged.len() * row.lanes.len() * schema.key.dim;
            let room = Room { in_bank, arena: &bank.shared.arena, held };
            jobs.extend(row.lanes.iter().zip(staged.lanes.iter()).enumerate().map(|(head, (lane, rows))| Job {
                shared: &bank.shared,
                schema,
                at,
                row,
                head,
                lane,
                staged,
                arrival: Arrival { id_lo: staged.id_lo, rows },
                replaced: &staged.replaced,
                touches: staging.touches.get(&(at, head)),
                number: version.number + 1,
                room,
            }));
        }
    }
    for ((bank, staging), version) in banks.iter().zip(staged).zip(&versions) {
        if let Some(schema) = &staging.schema {
            planned.extend(ask_planner(bank, version, staging, schema, work)?);
        }
    }
    work.for_size(size).map(jobs.len(), |at, ticker| {
        let given = planned.get(at).and_then(|plan| plan.lock().unwrap_or_else(PoisonError::into_inner).take());
        jobs[at].plan(given, ticker)
    })
}

/// What a planner wants done to each lane that tokens arrive in; None of each where the bank's own policy is asked.
fn ask_planner(
    bank: &Bank,
    version: &Version,
    staging: &Staging,
    schema: &Schema,
    work: &Work,
) -> Result<Vec<Mutex<Option<LanePlan>>>> {
    let shared = &*bank.shared;
    let Some(planner) = shared.check_planner()? else {
        let lanes = arriving(staging).map(|(at, _)| version.rows[at].lanes.len()).sum();
        return Ok(std::iter::repeat_with(Mutex::default).take(lanes).collect());
    };
    if arriving(staging).next().is_none() {
        return Ok(Vec::new());
    }
    let rows = arriving(staging).map(|(at, staged)| {
        let touches = |head: usize| staging.touches.get(&(at, head)).cloned().unwrap_or_default();
        (at, &version.rows[at], staged, (0..shared.config.heads).map(touches).collect())
    });
    let scene = Arc::new(work.once(|ticker| Scene::of(shared, schema, version.number + 1, rows, ticker))?);
    let planned = planner.plan(&scene)?;
    let lanes = work.once(|ticker| scene.by_lane(&planned, ticker))?;
    Ok(lanes.into_iter().map(|lane| Mutex::new(Some(lane))).collect())
}

impl Job<'_> {
    /// Replacement, write policy unless its plan is given, then eviction, then routing: edits, with everything built that
    /// can fail.
    fn plan(&self, given: Option<LanePlan>, ticker: &Ticker) -> Result<Prepared> {
        ticker.tick()?;
        let Job { shared, schema, lane, head, arrival, replaced, touches, number, room, .. } = *self;
        let tokens = self.staged.written();
        // Deleted ones, and what another head alone has, are not there to be replaced.
        let in_lane = |&(&id, _): &(&i64, &i64)| ticker.tick().is_err() || lane.locate(id).is_some();
        let replaced: Vec<i64> = replaced.range(..arrival.id_lo).filter(in_lane).map(|(&id, _)| id).collect();
        ticker.tick()?;
        let kernels = shared.kernels;
        let capacity = shared.config.room(head);
        let (row, staged, heat) = (self.row, self.staged, shared.evict.heat());
        let (tokens, replaced_ids) = (tokens.as_slice(), replaced.as_slice());
        let mut view = View {
            schema,
            kernels,
            lane,
            arrival,
            tokens,
            replaced: replaced_ids,
            merged: &[],
            number,
            head,
            capacity,
            row,
            staged,
            touches,
            heat,
            ticker,
        };
        let (mut edits, runs) = given.map_or_else(|| shared.write.plan(view), Ok)?;
        let mut merged: Vec<i64> = edits.iter().filter_map(Edit::merges).collect();
        merged.sort_unstable();
        view.merged = &merged;
        edits.extend(replaced.iter().map(|&id| Edit::Replace { id }));
        let mut leaving: Vec<i64> = edits.iter().filter_map(Edit::ends).collect();
        leaving.sort_unstable();
        let after = lane.len() - leaving.len() + runs.iter().map(ExactSizeIterator::len).sum::<usize>();
        let mut line = None;
        if after > capacity {
            ensure(shared.config.evict != Evict::Error, Kind::Capacity, || {
                format!(
                    "plan: {after} entries are left in row {}, head {head}, and the capacity is {capacity}: end or drop {} \
                     more, or name who goes, evict=\"fifo\" for one; nothing was changed, and everything stays staged",
                    self.at,
                    after - capacity
                )
            })?;
            let decided = Decided { leaving: &leaving, runs: &runs };
            let plan = shared.evict.plan(view, decided, after - capacity);
            edits.extend(plan.edits);
            line = plan.line;
        }
        for run in runs {
            let routed = shared.index.route(schema, lane, arrival, run);
            edits.extend(routed.into_iter().map(|(list, tokens)| Edit::Append { list, tokens }));
        }
        let mut prepared = lane.prepare(schema, arrival, edits, room, ticker)?;
        prepared.line = line;
        if let (Write::Pages(how), 0) = (&shared.config.write, head) {
            let ids = (arrival.id_lo, staged.len());
            prepared.paged = Some(how.divide(&shared.config, row, ids, &staged.columns, ticker)?);
        }
        Ok(prepared)
    }
}

impl StagedRow {
    /// Runs of the tokens that no later one replaces.
    pub(crate) fn written(&self) -> Vec<Range<usize>> {
        let (mut runs, mut start) = (Vec::new(), 0);
        let gone = self.replaced.range(self.id_lo..).map(|(id, _)| (id - self.id_lo) as usize);
        for gone in gone.chain([self.len()]) {
            if start < gone {
                runs.push(start..gone);
            }
            start = gone + 1;
        }
        runs
    }
}

/// Performs a plan on the version; cannot fail.
fn publish(
    shared: &Shared,
    version: &mut Version,
    staging: &Staging,
    plan: &mut impl Iterator<Item = Prepared>,
    receipt: &mut Receipt,
) {
    for (&(row, head), touches) in &staging.touches {
        Arc::make_mut(&mut version.rows[row]).lanes[head].touch(touches, version.number + 1, shared.evict.heat());
    }
    if let Some(schema) = &staging.schema {
        for (at, staged) in arriving(staging) {
            let row = Arc::make_mut(&mut version.rows[at]);
            let landings = receipt.landings.entry(at).or_default();
            let (mut emptied, mut paged) = (Vec::new(), None);
            for ((lane, rows), mut prepared) in row.lanes.iter_mut().zip(staged.lanes.iter()).zip(&mut *plan) {
                let arrival = Arrival { id_lo: staged.id_lo, rows };
                landings.push(std::mem::take(&mut prepared.landing));
                let noted = std::mem::take(&mut prepared.noted);
                paged = paged.or(prepared.paged.take());
                if !noted.merged.is_empty() {
                    // Ids that nobody has; the pages of their labels need not stay.
                    emptied.push(arrival.id_lo..arrival.id_lo + staged.len() as i64);
                }
                receipt.evicted += lane.apply(schema, shared.kernels, arrival, prepared, &mut emptied);
                if shared.config.tracks() {
                    lane.note(noted, version.number + 1, shared.evict.heat());
                }
            }
            row.next_id = staged.id_lo + staged.len() as i64;
            if staged.has_labels {
                row.labels.set(staged.id_lo, &staged.labels);
            }
            if staged.has_positions {
                row.positions.set(staged.id_lo, &staged.positions);
            }
            for (column, numbers) in staged.columns.given() {
                row.column_mut(&shared.config.columns, column).set(staged.id_lo, numbers);
            }
            if let Some((pages, state)) = paged {
                let at = Paging::column(&shared.config, PAGE);
                row.column_mut(&shared.config.columns, at).set(staged.id_lo, Numbers::I64(&pages));
                row.paged = Some(Arc::new(state));
            }
            row.drop_old_columns();
            row.drop_ended(emptied);
        }
    }
    version.schema = version.schema.or(staging.schema);
    version.number += 1;
    version.counts.commits += 1;
    version.counts.evicted += receipt.evicted as u64;
}
