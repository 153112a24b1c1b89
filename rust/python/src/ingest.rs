//! Arrow across the border: capsules in, capsules out, through the C interfaces and without pyarrow.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{ArrayRef, StructArray};
use arrow_schema::{Field, FieldRef, Schema};
use mnemex_core::work::Work;
use mnemex_io::Export;
use mnemex_io::ingest::{Ingest, Names, Nulls, Place, Progress, Publish, Terms};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use pyo3_arrow::ffi::{ArrayIterator, ArrayReader, to_schema_pycapsule, to_stream_pycapsule};
use pyo3_arrow::input::AnyArray;

use crate::bank::{NativeBank, on_duplicate_named};
use crate::call::run_with;
use crate::error::{FormatError, StateError};
use crate::files::exception;
use crate::snapshot::NativeSnapshot;

/// Rows, tokens, tokens left out for a null, for not being finite and for their label, commits, bytes, evicted entries, version.
type Done = (u64, u64, u64, u64, u64, u64, u64, u64, u64);

fn done(progress: &Progress) -> Done {
    let Progress { rows, tokens, null, nonfinite, duplicate, batches, bytes, evicted, version } = *progress;
    (rows, tokens, null, nonfinite, duplicate, batches, bytes, evicted, version)
}

/// Key, value, row, head, label, position, and the bank's own columns by the bank's name and the table's.
#[derive(FromPyObject)]
struct Given(
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Vec<(String, String)>,
);

/// An ingest under way.
#[pyclass(frozen, module = "mnemex._native")]
pub(crate) struct NativeIngest {
    bank: Py<NativeBank>,
    /// None once it ended, well or not.
    ingest: Mutex<Option<Ingest>>,
}

impl NativeIngest {
    /// The ingest, which is over unless it is put back.
    fn take(&self) -> PyResult<Ingest> {
        let ingest = self.ingest.lock().unwrap_or_else(PoisonError::into_inner).take();
        ingest.ok_or_else(|| StateError::new_err("this ingest has ended: begin another"))
    }

    fn put_back(&self, ingest: Ingest) {
        *self.ingest.lock().unwrap_or_else(PoisonError::into_inner) = Some(ingest);
    }
}

#[pymethods]
impl NativeIngest {
    #[new]
    #[pyo3(signature = (bank, names, skip_nulls, by_batch, on_duplicate, batch_bytes))]
    fn new(
        py: Python,
        bank: Py<NativeBank>,
        names: Given,
        skip_nulls: bool,
        by_batch: bool,
        on_duplicate: Option<String>,
        batch_bytes: usize,
    ) -> PyResult<NativeIngest> {
        let Given(key, value, row, head, label, position, columns) = names;
        let terms = Terms {
            names: Names { key, value, row, head, label, position, columns },
            nulls: if skip_nulls { Nulls::Skip } else { Nulls::Raise },
            on_duplicate: on_duplicate.as_deref().map(on_duplicate_named).transpose()?,
            publish: if by_batch { Publish::Batch } else { Publish::End },
            batch_bytes,
        };
        let target = bank.get().free()?;
        let ingest = py.detach(|| Ingest::new(target, terms)).map_err(exception)?;
        Ok(NativeIngest { bank, ingest: Mutex::new(Some(ingest)) })
    }

    /// Take in an object with `__arrow_c_stream__` or `__arrow_c_array__` whose first row is row `first` of its source;
    /// the number of rows. `report` is called after each commit with what was done.
    #[pyo3(signature = (source, file, first, report, threads))]
    fn feed(
        &self,
        py: Python,
        source: &Bound<'_, PyAny>,
        file: Option<String>,
        first: u64,
        report: Option<Py<PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<u64> {
        let mut ingest = self.take()?;
        let place = Place { file, first };
        let reader = reader(source, &place)?;
        let field = reader.field();
        let failed = Mutex::new(None);
        let mut told = |progress: &Progress| {
            let Some(report) = &report else { return Ok(()) };
            Python::attach(|py| report.call1(py, (done(progress),))).map(drop).map_err(|error| {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                let message = "the progress callback raised";
                mnemex_io::Error::Core(mnemex_core::Error::new(mnemex_core::Kind::Interrupted, message))
            })
        };
        let bank = self.bank.get().free()?;
        let fed = run_with(py, threads, exception, |work: &Work| {
            let n = ingest.feed(bank, reader, &field, &place, &mut told, work)?;
            Ok((ingest, n))
        });
        let raised = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (ingest, n) = fed.map_err(|error| raised.unwrap_or(error))?;
        self.put_back(ingest);
        Ok(n)
    }

    /// End a file, or the stream.
    #[pyo3(signature = (file))]
    fn end_source(&self, file: Option<String>) -> PyResult<()> {
        let mut ingest = self.take()?;
        ingest.end_source(&Place { file, first: 0 }).map_err(exception)?;
        self.put_back(ingest);
        Ok(())
    }

    /// Publish what was not; what was done.
    #[pyo3(signature = (threads))]
    fn finish(&self, py: Python, threads: Option<usize>) -> PyResult<Done> {
        let bank = self.bank.get().free()?;
        let ingest = self.take()?;
        let progress = run_with(py, threads, exception, |work: &Work| ingest.finish(bank, work))?;
        Ok(done(&progress))
    }
}

/// The arrays of a source. What the source itself raises comes through; what is broken in its C structures is named.
fn reader(source: &Bound<'_, PyAny>, place: &Place) -> PyResult<Box<dyn ArrayReader + Send>> {
    let py = source.py();
    let broken = |why: &str| {
        let file = place.file.as_ref().map_or_else(String::new, |file| format!("{file}, "));
        FormatError::new_err(format!("{file}the source's Arrow data do not fit together{why}"))
    };
    // What Python code raised has a traceback; what the reader says of the structures that it was given has none.
    let named = |error: PyErr| {
        let ours = error.is_instance_of::<PyTypeError>(py) || error.is_instance_of::<PyValueError>(py);
        if ours && error.traceback(py).is_none() { broken(&format!(": {}", error.value(py))) } else { error }
    };
    let read = || source.extract::<AnyArray>()?.into_reader();
    catch_unwind(AssertUnwindSafe(read)).map_or_else(|_| Err(broken("")), |read| read.map_err(named))
}

fn stream_field(schema: &Schema) -> FieldRef {
    Arc::new(Field::new_struct("", schema.fields().clone(), false))
}

/// A version's live entries as an Arrow C stream.
#[pyfunction]
#[pyo3(signature = (snapshot, requested_schema))]
pub(crate) fn stream<'py>(
    py: Python<'py>,
    snapshot: &NativeSnapshot,
    requested_schema: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let requested = requested_schema.map(|schema| schema.cast_into::<PyCapsule>()).transpose()?;
    let export = Export::new(&snapshot.0);
    let field = stream_field(&export.columns());
    let arrays = export.map(|batch| batch.map(|batch| Arc::new(StructArray::from(batch)) as ArrayRef));
    let reader: Box<dyn ArrayReader + Send> = Box::new(ArrayIterator::<_>::new(arrays, field));
    Ok(to_stream_pycapsule(py, reader, requested)?.into_any())
}

/// The columns of that stream, as an Arrow C schema.
#[pyfunction]
#[pyo3(signature = (snapshot))]
pub(crate) fn stream_schema<'py>(py: Python<'py>, snapshot: &NativeSnapshot) -> PyResult<Bound<'py, PyAny>> {
    let schema = Export::new(&snapshot.0).columns();
    Ok(to_schema_pycapsule(py, schema.as_ref()).map_err(pyo3::PyErr::from)?.into_any())
}
