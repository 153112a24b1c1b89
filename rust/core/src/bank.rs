//! The bank: one version that everybody reads, one writer at a time.
//!
//! A read clones the `Arc` of the version and never waits for a writer's work. Writers hold the staging lock; how what is
//! staged becomes a version is in [`crate::commit`], and what changes at once is in [`crate::change`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use mnemex_kernels::Kernels;

use crate::arena::Arena;
use crate::block::Schema;
use crate::change::{Change, change_all};
use crate::codec::Codec;
use crate::config::{Config, Write};
use crate::error::{Error, Kind, Result, ensure};
use crate::evict::{EvictPolicy, policy};
use crate::index::{Flat, Index};
use crate::lane::Lane;
use crate::stage::{StagedIds, Staging, Tokens};
use crate::version::{Counts, Row, Version};
use crate::work::Work;
use crate::write::{self, Planner, WritePolicy};

/// What a bank and its snapshots have in common.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) kernels: &'static Kernels,
    pub(crate) index: Box<dyn Index>,
    pub(crate) write: Box<dyn WritePolicy>,
    pub(crate) evict: Box<dyn EvictPolicy>,
    /// Asked instead of the write policy, where the configuration names one.
    pub(crate) planner: Option<Arc<dyn Planner>>,
    pub(crate) arena: Arena,
}

impl Shared {
    /// Refuses writes to a bank whose policy nobody gave.
    pub(crate) fn check_planner(&self) -> Result<Option<&dyn Planner>> {
        match (&self.config.write, &self.planner) {
            (Write::Planned(_), Some(planner)) => Ok(Some(&**planner)),
            (Write::Planned(name), None) => Err(Error::new(
                Kind::State,
                format!(
                    "this bank was saved with the policy {name:?}, which a file cannot hold: it can be read, and written \
                     to once it is opened with it, mnemex.open(path, write=...)"
                ),
            )),
            _ => Ok(None),
        }
    }
}

/// The key/value memory of one attention layer: rows x heads independent lanes.
pub struct Bank {
    pub(crate) shared: Arc<Shared>,
    pub(crate) version: RwLock<Arc<Version>>,
    staging: Mutex<Staging>,
}

/// A frozen version of a bank: the same reads, no writes.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) shared: Arc<Shared>,
    pub(crate) version: Arc<Version>,
}

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
        let version = Version::empty(rows, config.heads)?;
        let evict = policy(&config.evict, &config.columns);
        let (index, write) = (Box::new(Flat), write::policy(&config.write));
        Ok(Bank::of(Shared { config, kernels, index, write, evict, planner: None, arena: Arena::default() }, version))
    }

    /// A bank that starts from given rows, as version `number`: what opening a file does.
    ///
    /// # Errors
    /// As for [`Bank::new`], and when rows or schema are not of the configuration.
    pub fn from_rows(config: Config, rows: Vec<Arc<Row>>, schema: Option<Schema>, number: u64) -> Result<Bank> {
        config.check(rows.len())?;
        let value_codec = |schema: &Schema| schema.value.map_or(Codec::F32, |layout| layout.codec);
        let fits = schema.is_none_or(|schema| schema == Schema::of(&config, schema.key.codec, value_codec(&schema)))
            && (!config.write.averages()
                || schema.is_none_or(|schema| schema == Schema::of(&config, Codec::F32, Codec::F32)))
            && rows.iter().all(|row| row.lanes.len() == config.heads)
            && (schema.is_some() || rows.iter().all(|row| row.lanes.iter().all(Lane::is_empty)));
        ensure(fits, Kind::Shape, || "the rows or their schema do not fit the bank's heads, dims and metric".into())?;
        if let Write::Pages(how) = &config.write {
            how.check_rows(&config, &rows)?;
        }
        let version = Version { rows, schema, number, counts: Counts::default() };
        let (write, evict) = (write::policy(&config.write), policy(&config.evict, &config.columns));
        Bank::with_parts(config, version, Box::new(Flat), write, evict)
    }

    pub(crate) fn with_parts(
        config: Config,
        version: Version,
        index: Box<dyn Index>,
        write: Box<dyn WritePolicy>,
        evict: Box<dyn EvictPolicy>,
    ) -> Result<Bank> {
        let (kernels, arena) = (best_kernels()?, Arena::default());
        Ok(Bank::of(Shared { config, kernels, index, write, evict, planner: None, arena }, version))
    }

    fn of(shared: Shared, version: Version) -> Bank {
        Bank { shared: Arc::new(shared), version: RwLock::new(Arc::new(version)), staging: Mutex::default() }
    }

    /// A bank of the same version that asks this planner what becomes of tokens; nothing is staged in it.
    ///
    /// # Errors
    /// When the bank was not made for a planner of that name.
    pub fn with_planner(&self, planner: Arc<dyn Planner>) -> Result<Bank> {
        let Shared { config, kernels, .. } = &*self.shared;
        let asked = config.write.name();
        ensure(matches!(&config.write, Write::Planned(name) if name == planner.name()), Kind::Argument, || {
            format!("write: the bank was made with {asked:?}, not with the policy {:?}", planner.name())
        })?;
        let (write, evict) = (write::policy(&config.write), policy(&config.evict, &config.columns));
        let (config, index, arena) = (config.clone(), Box::new(Flat), Arena::default());
        let shared = Shared { config, kernels, index, write, evict, planner: Some(planner), arena };
        Ok(Bank { shared: Arc::new(shared), version: RwLock::new(self.snapshot().version), staging: Mutex::default() })
    }

    /// Who is asked what becomes of tokens, where that lies outside this crate.
    pub fn planner(&self) -> Option<&dyn Planner> {
        self.shared.planner.as_deref()
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

    pub(crate) fn writer(&self) -> MutexGuard<'_, Staging> {
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

    /// An independent bank that shares every block until one side writes.
    pub fn copy(&self) -> Bank {
        self.snapshot().copy()
    }

    /// Ends entries by id; ids that are not there are passed over. `rows` None: in every row.
    ///
    /// # Errors
    /// When a row is not there.
    pub fn delete(&self, ids: &[i64], rows: Option<&[usize]>) -> Result<()> {
        self.delete_named(ids, &[], rows, &Work::ALONE)
    }

    /// Ends entries by id and entries by label, as one version; what is not there is passed over, and staged tokens stay.
    ///
    /// # Errors
    /// When a row is not there, memory is short, or the caller interrupts: nothing was deleted then.
    pub fn delete_named(&self, ids: &[i64], labels: &[i64], rows: Option<&[usize]>, work: &Work) -> Result<()> {
        change_all(&[self], &Change::Delete { ids, labels, rows }, work)
    }

    /// Keeps ids below `end`.
    ///
    /// # Errors
    /// When a row is not there or anything is staged.
    pub fn truncate(&self, end: i64, rows: Option<&[usize]>) -> Result<()> {
        change_all(&[self], &Change::Truncate { ends: &[end], rows }, &Work::ALONE)
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
        change_all(&[self], &Change::Truncate { ends, rows }, &Work::ALONE)
    }

    /// Empties rows; their ids go on.
    ///
    /// # Errors
    /// When a row is not there or anything is staged.
    pub fn reset(&self, rows: Option<&[usize]>) -> Result<()> {
        change_all(&[self], &Change::Reset { rows }, &Work::ALONE)
    }

    /// Row i becomes a copy of row `index[i]`, ids and history included; any length.
    ///
    /// # Errors
    /// When a row is not there, there would be too many lanes, or anything is staged.
    pub fn reorder(&self, index: &[usize]) -> Result<()> {
        change_all(&[self], &Change::Reorder { index }, &Work::ALONE)
    }

    /// Repeats each row `repeats` times in place.
    ///
    /// # Errors
    /// As for [`Bank::reorder`], and when `repeats` is 0.
    pub fn fork(&self, repeats: usize) -> Result<()> {
        change_all(&[self], &Change::Fork { repeats }, &Work::ALONE)
    }

    /// Takes over the version of a copy that was made from `base` and written to since, as one version, and returns it.
    ///
    /// # Errors
    /// When the bank changed since `base`, or anything is staged: nothing was changed then.
    pub fn adopt(&self, base: &Snapshot, copy: &Bank) -> Result<Snapshot> {
        let next = copy.snapshot().version;
        let staging = self.writer();
        let mut version = self.version.write().unwrap_or_else(PoisonError::into_inner);
        ensure(staging.is_empty() && Arc::ptr_eq(&base.version, &version), Kind::State, || {
            "the bank was changed by another call meanwhile, and that change stands: give it all again".into()
        })?;
        let number = version.number + 1;
        *version = Arc::new(Version { number, ..Version::clone(&next) });
        Ok(Snapshot { shared: Arc::clone(&self.shared), version: Arc::clone(&version) })
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
