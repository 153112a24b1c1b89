//! Writes, and what a bank is made of.

use mnemex_core::config::{Config, NonFinite, ScanCodec, Values, Write};
use mnemex_core::labels::OnDuplicate;
use mnemex_core::stage::{StagedIds, Tokens};
use mnemex_core::usage::Found;
use mnemex_core::work::Work;
use mnemex_core::write::Planner;
use mnemex_core::{Bank, Change, Metric, Result};
use numpy::PyArray2;
use pyo3::prelude::*;

use crate::arrays::{Flat, Vectors, rows, slice};
use crate::call::run;
use crate::columns::{ColumnArray, declared, given};
use crate::error::raised;
use crate::parts::{
    CapacityArgument, EvictOptions, WriteOptions, codec_named, evict_named, metric_named, scan_named, unknown,
    write_named,
};
use crate::planner::{Policy, check_free, committing};
use crate::receipt::{NativeReceipt, ids_array};
use crate::snapshot::NativeSnapshot;

/// What a bank is, as far as it never changes.
type Described = (
    usize,
    usize,
    Option<usize>,
    bool,
    Option<CapacityArgument>,
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
);

/// The key/value memory of one attention layer.
#[pyclass(frozen, module = "mnemex._native")]
pub(crate) struct NativeBank(pub(crate) Bank);

impl NativeBank {
    /// The bank, for a call that waits for its writers.
    pub(crate) fn free(&self) -> PyResult<&Bank> {
        check_free(&self.0)?;
        Ok(&self.0)
    }
}

pub(crate) fn nonfinite_named(word: &str) -> PyResult<NonFinite> {
    match word {
        "raise" => Ok(NonFinite::Raise),
        "keep" => Ok(NonFinite::Keep),
        "skip" => Ok(NonFinite::Skip),
        _ => Err(unknown("nonfinite", word, "raise, keep, skip")),
    }
}

pub(crate) fn on_duplicate_named(word: &str) -> PyResult<OnDuplicate> {
    match word {
        "raise" => Ok(OnDuplicate::Raise),
        "skip" => Ok(OnDuplicate::Skip),
        "replace" => Ok(OnDuplicate::Replace),
        _ => Err(unknown("on_duplicate", word, "raise, skip, replace")),
    }
}

/// Tokens as the facade gives them: keys, values, rows, mask, labels, on_duplicate, positions, nonfinite, columns by
/// name, one_lane.
#[derive(FromPyObject)]
struct Given<'py>(
    Vectors<'py>,
    Option<Vectors<'py>>,
    Option<Flat<'py, i64>>,
    Option<Flat<'py, bool>>,
    Option<Flat<'py, i64>>,
    Option<String>,
    Option<Flat<'py, i64>>,
    Option<String>,
    Vec<(String, ColumnArray<'py>)>,
    bool,
);

impl Given<'_> {
    fn run<T: Send>(
        &self,
        py: Python,
        threads: Option<usize>,
        call: impl FnOnce(&Tokens, &Work) -> Result<T> + Send,
    ) -> PyResult<T> {
        let Given(keys, values, rows, mask, labels, on_duplicate, positions, nonfinite, columns, one_lane) = self;
        let rows = self::rows(rows.as_ref())?;
        let columns = given(columns)?;
        let tokens = Tokens {
            keys: keys.view()?,
            values: values.as_ref().map(Vectors::view).transpose()?,
            rows: rows.as_deref(),
            mask: slice(mask.as_ref())?,
            labels: slice(labels.as_ref())?,
            on_duplicate: on_duplicate.as_deref().map(on_duplicate_named).transpose()?,
            positions: slice(positions.as_ref())?,
            nonfinite: nonfinite.as_deref().map(nonfinite_named).transpose()?,
            columns: &columns,
            one_lane: *one_lane,
        };
        run(py, threads, |work| call(&tokens, work))
    }
}

#[pymethods]
impl NativeBank {
    #[new]
    #[pyo3(signature = (*, rows, heads, key_dim, value_dim, key_is_value, capacity, metric, key_codec, value_codec, scan_codec, write, write_options, evict, evict_options, nonfinite, columns, policy))]
    #[expect(clippy::too_many_arguments, reason = "what a bank is made of")]
    fn new(
        rows: usize,
        heads: usize,
        key_dim: usize,
        value_dim: Option<usize>,
        key_is_value: bool,
        capacity: Option<CapacityArgument>,
        metric: &str,
        key_codec: Option<&str>,
        value_codec: Option<&str>,
        scan_codec: Option<&str>,
        write: &str,
        write_options: Option<WriteOptions>,
        evict: &str,
        evict_options: EvictOptions,
        nonfinite: &str,
        columns: Vec<(String, String)>,
        policy: Option<Policy>,
    ) -> PyResult<NativeBank> {
        let config = Config {
            heads,
            key_dim,
            values: match (key_is_value, value_dim) {
                (true, _) => Values::Key,
                (false, Some(dim)) => Values::Dim(dim),
                (false, None) => Values::None,
            },
            capacity: capacity.map(CapacityArgument::capacity),
            metric: metric_named("metric", metric)?,
            key_codec: codec_named("key_codec", key_codec)?,
            value_codec: codec_named("value_codec", value_codec)?,
            scan_codec: scan_codec.map(scan_named).transpose()?,
            write: match &policy {
                Some(policy) => Write::Planned(policy.0.clone()),
                None => write_named(write, write_options.as_ref())?,
            },
            evict: evict_named(evict, &evict_options)?,
            nonfinite: nonfinite_named(nonfinite)?,
            columns: declared(columns)?,
        };
        let bank = NativeBank(Bank::new(config, rows).map_err(raised)?);
        match policy {
            Some(policy) => bank.with_policy(policy),
            None => Ok(bank),
        }
    }

    /// The same version, written to as the policy says; its name must be the one that the bank was made with.
    fn with_policy(&self, policy: Policy) -> PyResult<NativeBank> {
        self.0.with_planner(policy.planner()).map(NativeBank).map_err(raised)
    }

    /// Name of the write policy; with whether it is one in Python, and whether that is here.
    #[getter]
    fn policy(&self) -> (String, bool, bool) {
        let write = &self.0.config().write;
        (write.name().to_owned(), matches!(write, Write::Planned(_)), self.0.planner().is_some())
    }

    /// What the bank is, as the keyword arguments that make it.
    #[getter]
    fn config(&self) -> Described {
        let config = self.0.config();
        let value_dim = match config.values {
            Values::Dim(dim) => Some(dim),
            _ => None,
        };
        let metric = match config.metric {
            Metric::Dot => "dot",
            Metric::Cos => "cos",
            Metric::L2 => "l2",
        };
        let evict = config.evict.name();
        let nonfinite = match config.nonfinite {
            NonFinite::Raise => "raise",
            NonFinite::Keep => "keep",
            NonFinite::Skip => "skip",
        };
        let key_is_value = config.values == Values::Key;
        let scan = config.scan_codec.map(ScanCodec::name);
        (
            config.heads,
            config.key_dim,
            value_dim,
            key_is_value,
            CapacityArgument::of(config),
            metric,
            evict,
            nonfinite,
            scan,
        )
    }

    /// Whether the evict policy makes something of the use of entries.
    #[getter]
    fn wants_use(&self) -> bool {
        self.0.config().evict.wants_use() || self.0.planner().is_some_and(Planner::wants_use)
    }

    /// Stage tokens; the ids `[rows, T]`.
    #[pyo3(signature = (tokens, threads))]
    fn stage<'py>(
        &self,
        py: Python<'py>,
        tokens: Given<'py>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let bank = self.free()?;
        let staged: StagedIds = tokens.run(py, threads, |tokens, work| bank.stage(tokens, work))?;
        ids_array(py, &staged)
    }

    /// Stage tokens and publish what is staged; a failure leaves none of the tokens.
    #[pyo3(signature = (tokens, threads))]
    fn write(&self, py: Python, tokens: Given, threads: Option<usize>) -> PyResult<NativeReceipt> {
        let bank = self.free()?;
        let write = || tokens.run(py, threads, |tokens, work| bank.write(tokens, work));
        committing(&[bank], write).map(NativeReceipt)
    }

    /// Publish what is staged.
    #[pyo3(signature = (threads))]
    fn commit(&self, py: Python, threads: Option<usize>) -> PyResult<NativeReceipt> {
        let bank = self.free()?;
        committing(&[bank], || run(py, threads, |work| bank.commit(work))).map(NativeReceipt)
    }

    /// Drop everything staged; of the named rows, or from `ends` on: one id, or one per row.
    #[pyo3(signature = (rows, ends))]
    fn rollback(&self, py: Python, rows: Option<Flat<'_, i64>>, ends: Option<Flat<'_, i64>>) -> PyResult<()> {
        let (rows, ends) = (self::rows(rows.as_ref())?, slice(ends.as_ref())?);
        let bank = self.free()?;
        run(py, Some(1), |_| match (&rows, ends) {
            (None, None) => {
                bank.rollback();
                Ok(())
            }
            (rows, ends) => bank.rollback_rows(rows.as_deref(), ends),
        })
    }

    /// Stage the use of found ids `[rows, heads, T, k]`, which lie in the given bank rows.
    #[pyo3(signature = (rows, heads, k, ids, mass))]
    fn touch(
        &self,
        py: Python,
        rows: Flat<'_, i64>,
        heads: usize,
        k: usize,
        ids: Flat<'_, i64>,
        mass: Option<Flat<'_, f64>>,
    ) -> PyResult<()> {
        let rows = self::rows(Some(&rows))?.unwrap_or_default();
        let found = Found { rows: &rows, ids: ids.as_slice()?, k, heads, mass: slice(mass.as_ref())? };
        let bank = self.free()?;
        run(py, Some(1), |_| bank.touch(&found))
    }

    /// The version as it is.
    fn snapshot(&self, py: Python) -> NativeSnapshot {
        py.detach(|| NativeSnapshot(self.0.snapshot()))
    }

    /// End entries by id, and by label.
    #[pyo3(signature = (ids, labels, rows))]
    fn delete(
        &self,
        py: Python,
        ids: Flat<'_, i64>,
        labels: Flat<'_, i64>,
        rows: Option<Flat<'_, i64>>,
    ) -> PyResult<()> {
        let (ids, labels, rows) = (ids.as_slice()?, labels.as_slice()?, self::rows(rows.as_ref())?);
        let bank = self.free()?;
        run(py, Some(1), |work| bank.delete_named(ids, labels, rows.as_deref(), work))
    }

    /// Keep ids below `ends`: one number, or one per named row.
    #[pyo3(signature = (ends, rows))]
    fn truncate(&self, py: Python, ends: Flat<'_, i64>, rows: Option<Flat<'_, i64>>) -> PyResult<()> {
        let (ends, rows) = (ends.as_slice()?, self::rows(rows.as_ref())?);
        let bank = self.free()?;
        run(py, Some(1), |_| match ends {
            [end] => bank.truncate(*end, rows.as_deref()),
            ends => bank.truncate_each(ends, rows.as_deref()),
        })
    }

    /// Empty rows.
    #[pyo3(signature = (rows))]
    fn reset(&self, py: Python, rows: Option<Flat<'_, i64>>) -> PyResult<()> {
        let rows = self::rows(rows.as_ref())?;
        let bank = self.free()?;
        run(py, Some(1), |_| bank.reset(rows.as_deref()))
    }

    /// Row i becomes a copy of row `index[i]`.
    fn reorder(&self, py: Python, index: Flat<'_, i64>) -> PyResult<()> {
        let index = self::rows(Some(&index))?.unwrap_or_default();
        let bank = self.free()?;
        run(py, Some(1), |_| bank.reorder(&index))
    }

    /// Repeat each row in place.
    fn fork(&self, py: Python, repeats: usize) -> PyResult<()> {
        let bank = self.free()?;
        run(py, Some(1), |_| bank.fork(repeats))
    }

    /// Whether anything is staged.
    #[getter]
    fn has_staged(&self, py: Python) -> PyResult<bool> {
        let bank = self.free()?;
        Ok(py.detach(|| bank.has_staged()))
    }

    /// Bytes of what is staged, and of what finds entries by label.
    #[getter]
    fn staged_nbytes(&self, py: Python) -> PyResult<usize> {
        let bank = self.free()?;
        Ok(py.detach(|| bank.staged_nbytes()))
    }

    /// Bytes of memory, staged tokens included.
    #[getter]
    fn nbytes(&self, py: Python) -> PyResult<usize> {
        let bank = self.free()?;
        Ok(py.detach(|| bank.nbytes()))
    }
}

/// Publish what is staged in several banks at once.
#[pyfunction]
#[pyo3(signature = (banks, threads))]
pub(crate) fn commit_all(
    py: Python,
    banks: Vec<Bound<'_, NativeBank>>,
    threads: Option<usize>,
) -> PyResult<Vec<NativeReceipt>> {
    let banks: Vec<&Bank> = banks.iter().map(|bank| bank.get().free()).collect::<PyResult<_>>()?;
    let receipts = committing(&banks, || run(py, threads, |work| mnemex_core::commit_all(&banks, work)))?;
    Ok(receipts.into_iter().map(NativeReceipt).collect())
}

/// Change several banks at once, all or none: "delete" (ids, labels, rows), "truncate" (ids as ends, rows), "reset" (rows),
/// "reorder" (rows as index), "fork" (repeats), "rollback" (rows, ids as ends).
#[pyfunction]
#[pyo3(signature = (banks, change, *, ids=None, labels=None, rows=None, repeats=1))]
pub(crate) fn change_all(
    py: Python,
    banks: Vec<Bound<'_, NativeBank>>,
    change: &str,
    ids: Option<Flat<'_, i64>>,
    labels: Option<Flat<'_, i64>>,
    rows: Option<Flat<'_, i64>>,
    repeats: usize,
) -> PyResult<()> {
    let banks: Vec<&Bank> = banks.iter().map(|bank| bank.get().free()).collect::<PyResult<_>>()?;
    let (named, ends, labels) = (self::rows(rows.as_ref())?, slice(ids.as_ref())?, slice(labels.as_ref())?);
    let rows = named.as_deref();
    let ids = ends.unwrap_or_default();
    let change = match change {
        "delete" => Change::Delete { ids, labels: labels.unwrap_or_default(), rows },
        "truncate" => Change::Truncate { ends: ids, rows },
        "reset" => Change::Reset { rows },
        "reorder" => Change::Reorder { index: rows.unwrap_or_default() },
        "fork" => Change::Fork { repeats },
        "rollback" => Change::Rollback { rows, ends },
        _ => return Err(unknown("change", change, "delete, truncate, reset, reorder, fork, rollback")),
    };
    run(py, Some(1), |work| mnemex_core::change_all(&banks, &change, work))
}
