//! What a commit did; arrays are made when they are asked for.

use mnemex_core::Receipt;
use mnemex_core::stage::StagedIds;
use numpy::{PyArray2, PyArray3};
use pyo3::prelude::*;

use crate::arrays::array;

/// Result of a commit.
#[pyclass(frozen, module = "mnemex._native")]
pub(crate) struct NativeReceipt(pub(crate) Receipt);

pub(crate) fn ids_array<'py>(py: Python<'py>, call: &StagedIds) -> PyResult<Bound<'py, PyArray2<i64>>> {
    array(py, call.ids.clone(), [call.rows.len(), call.tokens])
}

#[pymethods]
impl NativeReceipt {
    /// Number of the version.
    #[getter]
    fn version(&self) -> u64 {
        self.0.version
    }

    /// Entries that the evict policy ended or kept from being written.
    #[getter]
    fn evicted(&self) -> usize {
        self.0.evicted
    }

    /// Whether each stage call was given one lane.
    #[getter]
    fn one_lane(&self) -> Vec<bool> {
        self.0.ids.iter().map(|call| call.one_lane).collect()
    }

    /// Ids `[rows, T]` of each stage call.
    fn ids<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyArray2<i64>>>> {
        self.0.ids.iter().map(|call| ids_array(py, call)).collect()
    }

    /// Where the tokens of each stage call ended, `[rows, heads, T]`.
    fn landed<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyArray3<i64>>>> {
        let landed = py.detach(|| self.0.landed());
        let shaped = landed
            .into_iter()
            .zip(&self.0.ids)
            .map(|(landed, call)| array(py, landed, [call.rows.len(), self.0.heads(), call.tokens]));
        shaped.collect()
    }
}
