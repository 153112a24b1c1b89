//! Saving and opening folders of banks.

use std::path::Path;

use mnemex_core::Snapshot;
use mnemex_io::{Contents, Error, Kind};
use pyo3::prelude::*;

use crate::bank::NativeBank;
use crate::call::run_with;
use crate::error::{ExistsError, FormatError, NotFoundError, raised};
use crate::snapshot::NativeSnapshot;

/// What a manifest says besides its banks, and the banks.
type Opened = (&'static str, String, Vec<NativeBank>);

pub(crate) fn exception(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::NotFound(_) => NotFoundError::new_err(message),
        Error::Exists(_) => ExistsError::new_err(message),
        Error::Format(_) | Error::Os { .. } => FormatError::new_err(message),
        Error::Core(error) => raised(error),
    }
}

/// Save versions of banks as one folder; `metadata` is JSON.
#[pyfunction]
#[pyo3(signature = (path, kind, snapshots, metadata, overwrite))]
pub(crate) fn save(
    py: Python,
    path: &str,
    kind: &str,
    snapshots: Vec<Bound<'_, NativeSnapshot>>,
    metadata: &str,
    overwrite: bool,
) -> PyResult<()> {
    let banks: Vec<Snapshot> = snapshots.iter().map(|snapshot| snapshot.get().0.clone()).collect();
    let kind = Kind::named(kind).ok_or_else(|| FormatError::new_err(format!("kind={kind:?} is not known")))?;
    let contents = Contents { kind, banks: &banks, metadata };
    run_with(py, None, exception, |work| mnemex_io::save(Path::new(path), &contents, overwrite, work))
}

/// Open a folder: kind, metadata as JSON, banks.
#[pyfunction]
#[pyo3(signature = (path))]
pub(crate) fn open(py: Python, path: &str) -> PyResult<Opened> {
    let opened = run_with(py, None, exception, |work| mnemex_io::open(Path::new(path), work))?;
    Ok((opened.kind.name(), opened.metadata, opened.banks.into_iter().map(NativeBank).collect()))
}
