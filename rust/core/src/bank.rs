//! The bank: one version that everybody reads, one writer at a time.
//!
//! A read clones the `Arc` of the version and never waits for a writer's work. Writers hold the staging lock from plan
//! to publication: policies look at the version and answer with edits, everything that can fail is built, and then the
//! edits are performed under the version's lock, in place where nobody else holds what they touch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use mnemex_kernels::Kernels;

use crate::block::Schema;
use crate::codec::Codec;
use crate::config::{Config, check_lanes};
use crate::error::{Error, Kind, Result, ensure};
use crate::evict::{Decided, EvictPolicy, Fifo};
use crate::index::{Flat, Index};
use crate::lane::{Arrival, Edit, Lane, Prepared};
use crate::stage::{StagedIds, Staging, Tokens};
use crate::version::{Row, Version};
use crate::work::Work;
use crate::write::{Append, View, WritePolicy};

/// What a bank and its snapshots have in common.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) kernels: &'static Kernels,
    pub(crate) index: Box<dyn Index>,
    pub(crate) write: Box<dyn WritePolicy>,
    pub(crate) evict: Box<dyn EvictPolicy>,
}

/// The key/value memory of one attention layer: rows x heads independent lanes.
pub struct Bank {
    shared: Arc<Shared>,
    version: RwLock<Arc<Version>>,
    staging: Mutex<Staging>,
}

/// A frozen version of a bank: the same reads, no writes.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) shared: Arc<Shared>,
    pub(crate) version: Arc<Version>,
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Number of the version that it published.
    pub version: u64,
    /// Ids of each stage call.
    pub ids: Vec<StagedIds>,
    /// Entries, over all lanes, that the evict policy ended or kept from being written.
    pub evicted: usize,
}

/// The prepared plan of one commit: per row, per head.
type Plan = Vec<(usize, Vec<Prepared>)>;

impl Bank {
    /// An empty bank.
    ///
    /// # Errors
    /// When the configuration cannot be, or `MNEMEX_ISA` names a path that cannot be taken.
    pub fn new(config: Config, rows: usize) -> Result<Bank> {
        Bank::with_kernels(config, rows, best_kernels()?)
    }

    /// An empty bank that computes with the given table: what compares instruction sets.
    ///
    /// # Errors
    /// When the configuration cannot be.
    pub fn with_kernels(config: Config, rows: usize, kernels: &'static Kernels) -> Result<Bank> {
        config.check(rows)?;
        let version = Version::empty(rows, config.heads);
        let (index, write, evict) = (Box::new(Flat), Box::new(Append), Box::new(Fifo));
        Ok(Bank::of(Shared { config, kernels, index, write, evict }, version))
    }

    /// A bank that starts from given rows: what opening a file does.
    ///
    /// # Errors
    /// As for [`Bank::new`], and when rows or schema are not of the configuration.
    pub fn from_rows(config: Config, rows: Vec<Arc<Row>>, schema: Option<Schema>) -> Result<Bank> {
        config.check(rows.len())?;
        let value_codec = |schema: &Schema| schema.value.map_or(Codec::F32, |layout| layout.codec);
        let fits = schema.is_none_or(|schema| schema == Schema::of(&config, schema.key.codec, value_codec(&schema)))
            && rows.iter().all(|row| row.lanes.len() == config.heads)
            && (schema.is_some() || rows.iter().all(|row| row.lanes.iter().all(Lane::is_empty)));
        ensure(fits, Kind::Shape, || "the rows or their schema do not fit the bank's heads, dims and metric".into())?;
        let version = Version { rows, schema, number: 0 };
        Bank::with_parts(config, version, Box::new(Flat), Box::new(Append), Box::new(Fifo))
    }

    pub(crate) fn with_parts(
        config: Config,
        version: Version,
        index: Box<dyn Index>,
        write: Box<dyn WritePolicy>,
        evict: Box<dyn EvictPolicy>,
    ) -> Result<Bank> {
        Ok(Bank::of(Shared { config, kernels: best_kernels()?, index, write, evict }, version))
    }

    fn of(shared: Shared, version: Version) -> Bank {
        Bank { shared: Arc::new(shared), version: RwLock::new(Arc::new(version)), staging: Mutex::default() }
    }

    /// What the bank is.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The version as it is.
    pub fn snapshot(&self) -> Snapshot {
        let version = Arc::clone(&self.version.read().unwrap_or_else(PoisonError::into_inner));
        Snapshot { shared: Arc::clone(&self.shared), version }
    }

    fn writer(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Validates and encodes tokens; they stay invisible until a commit.
    ///
    /// # Errors
    /// When anything about the call is wrong; earlier staged tokens stay as they were.
    pub fn stage(&self, tokens: &Tokens, work: &Work) -> Result<StagedIds> {
        let mut staging = self.writer();
        let version = self.snapshot().version;
        staging.add(&self.shared, &version, tokens, work)
    }

    /// Drops everything staged.
    pub fn rollback(&self) {
        *self.writer() = Staging::default();
    }

    /// Publishes everything staged as one version.
    ///
    /// # Errors
    /// When memory is not to be had or the call is interrupted; nothing was published then, and everything stays staged.
    pub fn commit(&self, work: &Work) -> Result<Receipt> {
        commit_all(&[self], work).map(|mut receipts| receipts.remove(0))
    }

    fn plan(&self, staging: &Staging, version: &Version, work: &Work) -> Result<Plan> {
        let Some(schema) = &staging.schema else { return Ok(Vec::new()) };
        let heads = self.shared.config.heads;
        let rows: Vec<_> = staging.rows.iter().filter(|(_, staged)| staged.len() > 0).collect();
        let size = rows.iter().map(|(_, staged)| staged.len()).sum::<usize>() * heads * self.shared.config.key_dim;
        let lanes = work.for_size(size).map(rows.len() * heads, |at, ticker| {
            ticker.tick()?;
            let (&row, staged) = rows[at / heads];
            let arrival = Arrival { id_lo: staged.id_lo, rows: &staged.lanes[at % heads] };
            self.plan_lane(schema, &version.rows[row].lanes[at % heads], arrival)
        })?;
        let mut lanes = lanes.into_iter();
        Ok(rows.iter().map(|(row, _)| (**row, lanes.by_ref().take(heads).collect())).collect())
    }

    /// Write policy, then eviction, then routing: edits, with everything built that can fail.
    fn plan_lane(&self, schema: &Schema, lane: &Lane, arrival: Arrival) -> Result<Prepared> {
        let view = View { schema, kernels: self.shared.kernels, lane, arrival };
        let (mut edits, runs) = self.shared.write.plan(view);
        let mut leaving: Vec<i64> = edits.iter().filter_map(Edit::ends).collect();
        leaving.sort_unstable();
        let after = lane.len() - leaving.len() + runs.iter().map(ExactSizeIterator::len).sum::<usize>();
        let capacity = self.shared.config.capacity.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        if after > capacity {
            let decided = Decided { leaving: &leaving, runs: &runs };
            edits.extend(self.shared.evict.plan(view, decided, after - capacity));
        }
        for run in runs {
            let routed = self.shared.index.route(schema, lane, arrival, run);
            edits.extend(routed.into_iter().map(|(list, tokens)| Edit::Append { list, tokens }));
        }
        lane.prepare(schema, arrival, edits)
    }

    /// Performs a plan on the version; cannot fail.
    fn publish(&self, version: &mut Version, staging: Staging, plan: Plan) -> Receipt {
        let mut evicted = 0;
        for (at, lanes) in plan {
            let (Some(schema), Some(staged)) = (staging.schema, staging.rows.get(&at)) else { continue };
            let row = Arc::make_mut(&mut version.rows[at]);
            for ((lane, arriving), prepared) in row.lanes.iter_mut().zip(&staged.lanes).zip(lanes) {
                let arrival = Arrival { id_lo: staged.id_lo, rows: arriving };
                evicted += lane.apply(&schema, self.shared.kernels, arrival, prepared);
            }
            row.next_id = staged.id_lo + staged.len() as i64;
            if staged.has_labels {
                row.labels.set(staged.id_lo, &staged.labels);
            }
            if staged.has_positions {
                row.positions.set(staged.id_lo, &staged.positions);
            }
            row.drop_old_columns();
        }
        if !staging.is_empty() {
            version.schema = version.schema.or(staging.schema);
            version.number += 1;
        }
        Receipt { version: version.number, ids: staging.calls, evicted }
    }

    /// An independent bank that shares every block until one side writes.
    pub fn copy(&self) -> Bank {
        self.snapshot().copy()
    }

    /// Ends entries by id; ids that are not there are passed over. `rows` None: in every row.
    ///
    /// # Errors
    /// When a row is not there.
    pub fn delete(&self, ids: &[i64], rows: Option<&[usize]>) -> Result<()> {
        self.change_rows(true, rows, |_, row| {
            for lane in &mut row.lanes {
                for &id in ids {
                    lane.kill(id);
                }
            }
        })
    }

    /// Keeps ids below `end`.
    ///
    /// # Errors
    /// When a row is not there or anything is staged.
    pub fn truncate(&self, end: i64, rows: Option<&[usize]>) -> Result<()> {
        self.change_rows(false, rows, |_, row| row.truncate(end))
    }

    /// Keeps ids below `ends[i]` in the i-th of the named rows.
    ///
    /// # Errors
    /// When there is not one end per row, a row is not there or anything is staged.
    pub fn truncate_each(&self, ends: &[i64], rows: Option<&[usize]>) -> Result<()> {
        let n = rows.map_or_else(|| self.snapshot().version.rows.len(), <[usize]>::len);
        ensure(ends.len() == n, Kind::Shape, || {
            format!("end has {} numbers for {n} rows: give one per row", ends.len())
        })?;
        self.change_rows(false, rows, |at, row| row.truncate(ends[at]))
    }

    /// Empties rows; their ids go on.
    ///
    /// # Errors
    /// When a row is not there or anything is staged.
    pub fn reset(&self, rows: Option<&[usize]>) -> Result<()> {
        self.change_rows(false, rows, |_, row| *row = Row::empty(row.lanes.len(), row.next_id))
    }

    fn change_rows(
        &self,
        with_staged: bool,
        rows: Option<&[usize]>,
        mut change: impl FnMut(usize, &mut Row),
    ) -> Result<()> {
        let staging = self.writer();
        ensure(with_staged || staging.is_empty(), Kind::State, still_staged)?;
        let mut version = self.version.write().unwrap_or_else(PoisonError::into_inner);
        let n = version.rows.len();
        if let Some(row) = rows.unwrap_or(&[]).iter().find(|&&row| row >= n) {
            return Err(Error::new(Kind::Row, format!("rows name row {row}; the bank has {n} rows")));
        }
        let version = Arc::make_mut(&mut version);
        let every: Vec<usize> = (0..n).collect();
        for (at, &row) in rows.unwrap_or(&every).iter().enumerate() {
            let row = Arc::make_mut(&mut version.rows[row]);
            change(at, row);
            row.drop_old_columns();
        }
        version.number += 1;
        Ok(())
    }

    /// Row i becomes a copy of row `index[i]`, ids and history included; any length.
    ///
    /// # Errors
    /// When a row is not there, there would be too many lanes, or anything is staged.
    pub fn reorder(&self, index: &[usize]) -> Result<()> {
        self.rearrange(&self.writer(), index.len(), |at| index[at])
    }

    /// Repeats each row `repeats` times in place.
    ///
    /// # Errors
    /// As for [`Bank::reorder`], and when `repeats` is 0.
    pub fn fork(&self, repeats: usize) -> Result<()> {
        ensure(repeats >= 1, Kind::Argument, || {
            "repeats=0 must be at least 1: fork(r) makes r copies of each row".into()
        })?;
        // Rows are counted under the writer's lock, where nobody else can change them.
        let staging = self.writer();
        let n = self.snapshot().version.rows.len();
        self.rearrange(&staging, n.saturating_mul(repeats), |at| at / repeats)
    }

    /// Row i of `n` becomes a copy of row `source(i)`.
    fn rearrange(&self, staging: &Staging, n: usize, source: impl Fn(usize) -> usize) -> Result<()> {
        ensure(staging.is_empty(), Kind::State, still_staged)?;
        check_lanes(n, self.shared.config.heads)?;
        let mut version = self.version.write().unwrap_or_else(PoisonError::into_inner);
        let n_rows = version.rows.len();
        if let Some(row) = (0..n).map(&source).find(|&row| row >= n_rows) {
            return Err(Error::new(Kind::Row, format!("index names row {row}; the bank has {n_rows} rows")));
        }
        let version = Arc::make_mut(&mut version);
        version.rows = (0..n).map(|at| Arc::clone(&version.rows[source(at)])).collect();
        version.number += 1;
        Ok(())
    }

    /// Whether anything is staged.
    pub fn has_staged(&self) -> bool {
        !self.writer().is_empty()
    }

    /// Bytes of memory, staged tokens included, each shared part counted once.
    pub fn nbytes(&self) -> usize {
        let staged = self.writer().nbytes();
        self.snapshot().nbytes() + staged
    }
}

fn best_kernels() -> Result<&'static Kernels> {
    Kernels::best().map_err(|error| Error::new(Kind::Resource, error.to_string()))
}

fn still_staged() -> String {
    "tokens are staged: commit() or rollback() first".into()
}

/// Publishes what is staged in several banks at once: all or nothing, and no reader sees one without the others.
///
/// # Errors
/// As for [`Bank::commit`].
pub fn commit_all(banks: &[&Bank], work: &Work) -> Result<Vec<Receipt>> {
    // One order for everybody, so that two commits cannot wait for each other; a bank named twice is locked once.
    let by_address: BTreeMap<*const Bank, &Bank> = banks.iter().map(|&bank| (std::ptr::from_ref(bank), bank)).collect();
    let mut staged: Vec<_> = by_address.values().map(|bank| bank.writer()).collect();
    let mut plans = Vec::with_capacity(staged.len());
    for (bank, staging) in by_address.values().zip(&staged) {
        let version = bank.version.read().unwrap_or_else(PoisonError::into_inner);
        plans.push(bank.plan(staging, &version, work)?);
    }
    let mut versions: Vec<_> =
        by_address.values().map(|bank| bank.version.write().unwrap_or_else(PoisonError::into_inner)).collect();
    let mut receipts = BTreeMap::new();
    for (((bank, staging), version), plan) in by_address.values().zip(&mut staged).zip(&mut versions).zip(plans) {
        let staging = std::mem::take(&mut **staging);
        let receipt = if staging.is_empty() {
            Receipt { version: version.number, ids: Vec::new(), evicted: 0 }
        } else {
            bank.publish(Arc::make_mut(version), staging, plan)
        };
        receipts.insert(std::ptr::from_ref::<Bank>(bank), receipt);
    }
    Ok(banks.iter().filter_map(|&bank| receipts.get(&std::ptr::from_ref(bank)).cloned()).collect())
}

impl Snapshot {
    /// What the bank is.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The version.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// An independent bank that shares every block until one side writes.
    pub fn copy(&self) -> Bank {
        Bank {
            shared: Arc::clone(&self.shared),
            version: RwLock::new(Arc::clone(&self.version)),
            staging: Mutex::default(),
        }
    }

    /// Live entries per row and head.
    pub fn lengths(&self) -> Vec<Vec<usize>> {
        self.version.rows.iter().map(|row| row.lanes.iter().map(Lane::len).collect()).collect()
    }

    /// Bytes of memory, each shared part counted once.
    pub fn nbytes(&self) -> usize {
        self.version.nbytes()
    }
}
