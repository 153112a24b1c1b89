//! Running core code without the interpreter, within the caller's threads, interruptible by Ctrl-C.

use std::sync::Mutex;

use mnemex_core::Result;
use mnemex_core::work::Work;
use mnemex_kernels::{Isa, Kernels, rounding};
use pyo3::prelude::*;

use crate::error::{ResourceError, raised};
use crate::planner::raised_by_policy;

/// Runs `body` with the interpreter released. A signal handler that raises, as Ctrl-C's does, stops it, and its
/// exception is what the caller sees.
pub(crate) fn run<T: Send>(
    py: Python,
    threads: Option<usize>,
    body: impl FnOnce(&Work) -> Result<T> + Send,
) -> PyResult<T> {
    run_with(py, threads, raised, body)
}

/// The same for a body with errors of its own; `exception` turns them into what is raised.
pub(crate) fn run_with<T: Send, E: Send>(
    py: Python,
    threads: Option<usize>,
    exception: impl FnOnce(E) -> PyErr,
    body: impl FnOnce(&Work) -> std::result::Result<T, E> + Send,
) -> PyResult<T> {
    let raised_by_signal = Mutex::new(None);
    let result = py.detach(|| {
        let interrupted = || {
            Python::attach(|py| match py.check_signals() {
                Ok(()) => false,
                Err(error) => {
                    if let Ok(mut slot) = raised_by_signal.lock() {
                        *slot = Some(error);
                    }
                    true
                }
            })
        };
        let threads = threads.unwrap_or_else(mnemex_core::work::max_threads);
        // What is not divided among threads is computed on this one.
        rounding::by_default(|| body(&Work { threads, interrupted: &interrupted, tally: None, scan_small: false }))
    });
    result.map_err(|error| {
        let raised = raised_by_signal.into_inner().ok().flatten();
        raised.or_else(raised_by_policy).unwrap_or_else(|| exception(error))
    })
}

/// Name of the instruction set in use.
#[pyfunction]
pub(crate) fn isa() -> PyResult<&'static str> {
    Kernels::best().map(|kernels| kernels.isa.name()).map_err(|error| ResourceError::new_err(error.to_string()))
}

/// Names of the instruction sets that run here, slowest first.
#[pyfunction]
pub(crate) fn isas() -> Vec<&'static str> {
    Isa::available().map(Isa::name).collect()
}

/// Most threads that a call uses.
#[pyfunction]
pub(crate) fn max_threads() -> usize {
    mnemex_core::work::max_threads()
}
