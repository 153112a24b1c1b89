//! One exception per kind of mistake, message unchanged.

use mnemex_core::{Error, Kind};
use pyo3::PyErr;

mod exceptions {
    #![allow(missing_docs, reason = "documented in mnemex.errors")]
    pyo3::import_exception!(mnemex.errors, ArgumentError);
    pyo3::import_exception!(mnemex.errors, CapacityError);
    pyo3::import_exception!(mnemex.errors, DtypeError);
    pyo3::import_exception!(mnemex.errors, ExistsError);
    pyo3::import_exception!(mnemex.errors, FormatError);
    pyo3::import_exception!(mnemex.errors, IdError);
    pyo3::import_exception!(mnemex.errors, NonFinite);
    pyo3::import_exception!(mnemex.errors, NotFoundError);
    pyo3::import_exception!(mnemex.errors, ResourceError);
    pyo3::import_exception!(mnemex.errors, RowError);
    pyo3::import_exception!(mnemex.errors, ShapeError);
    pyo3::import_exception!(mnemex.errors, StateError);
}
pub(crate) use exceptions::*;

/// The exception of a refused call.
pub(crate) fn raised(error: Error) -> PyErr {
    let message = error.message;
    match error.kind {
        Kind::Argument => ArgumentError::new_err(message),
        Kind::Shape => ShapeError::new_err(message),
        Kind::Dtype => DtypeError::new_err(message),
        Kind::Row => RowError::new_err(message),
        Kind::Id => IdError::new_err(message),
        Kind::NonFinite => NonFinite::new_err(message),
        Kind::Capacity => CapacityError::new_err(message),
        Kind::State => StateError::new_err(message),
        Kind::Resource => ResourceError::new_err(message),
        Kind::Interrupted => pyo3::exceptions::PyKeyboardInterrupt::new_err(message),
    }
}
