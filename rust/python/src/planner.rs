//! A write policy in Python: asked in the middle of a commit, with the interpreter taken back for that long.
//!
//! While it is asked, the writer's lock of every bank of the commit is held by this thread; a bank that it called would
//! wait for itself, so such calls are refused. Other threads wait with the interpreter released, as for any commit.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use mnemex_core::error::{Error, Kind};
use mnemex_core::usage::Use;
use mnemex_core::write::{Planned, Planner, Scene, Side};
use mnemex_core::{Bank, Result};
use numpy::{PyArray1, PyArray2};
use pyo3::prelude::*;

use crate::arrays::{Flat, array, slice};
use crate::call::run;
use crate::columns::{CellArray, cell_array};
use crate::error::{StateError, raised};

thread_local! {
    /// Banks of which this thread is in the middle of a commit.
    static COMMITTING: RefCell<Vec<*const Bank>> = const { RefCell::new(Vec::new()) };
    /// What a policy raised, on its way to the caller.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// What a policy raised in the call that just failed.
pub(crate) fn raised_by_policy() -> Option<PyErr> {
    RAISED.take()
}

/// Runs a commit of these banks.
pub(crate) fn committing<T>(banks: &[&Bank], commit: impl FnOnce() -> T) -> T {
    /// Takes its banks off the list, after a panic too.
    struct Until(usize);
    impl Drop for Until {
        fn drop(&mut self) {
            COMMITTING.with_borrow_mut(|held| held.truncate(self.0));
        }
    }
    let _until = COMMITTING.with_borrow_mut(|held| {
        let before = held.len();
        held.extend(banks.iter().map(|&bank| std::ptr::from_ref(bank)));
        Until(before)
    });
    commit()
}

/// Refuses a bank that this thread is committing.
pub(crate) fn check_free(bank: &Bank) -> PyResult<()> {
    let held = COMMITTING.with_borrow(|held| held.contains(&std::ptr::from_ref(bank)));
    if !held {
        return Ok(());
    }
    Err(StateError::new_err(
        "this bank is in the middle of a commit, which asked the policy that makes this call: plan may read it, and \
         changes it by what it returns",
    ))
}

/// A policy: its name, whether it goes by the use of entries, and what answers a [`NativeScene`].
#[derive(FromPyObject)]
pub(crate) struct Policy(pub(crate) String, bool, Py<PyAny>);

impl Policy {
    pub(crate) fn planner(self) -> Arc<dyn Planner> {
        Arc::new(self)
    }
}

/// What the facade makes of what a policy returned: append, kill, merge_into, merge_token, rewrite, keys, values.
#[derive(FromPyObject)]
struct Answer<'py>(
    Flat<'py, bool>,
    Flat<'py, i64>,
    Flat<'py, i64>,
    Flat<'py, i64>,
    Flat<'py, i64>,
    Flat<'py, f32>,
    Flat<'py, f32>,
);

impl Planner for Policy {
    fn name(&self) -> &str {
        &self.0
    }

    fn wants_use(&self) -> bool {
        self.1
    }

    fn plan(&self, scene: &Arc<Scene>) -> Result<Planned> {
        let ask = |py: Python<'_>| -> PyResult<Planned> {
            let scene = Bound::new(py, NativeScene(Mutex::new(Some(Arc::clone(scene)))))?;
            let answer = self.2.bind(py).call1((&scene,));
            scene.get().close();
            let answer = answer?;
            let Answer(append, kill, merge_into, merge_token, rewrite, keys, values) = answer.extract()?;
            Ok(Planned {
                append: append.as_slice()?.to_vec(),
                kill: kill.as_slice()?.to_vec(),
                merge_into: merge_into.as_slice()?.to_vec(),
                merge_token: merge_token.as_slice()?.to_vec(),
                rewrite: rewrite.as_slice()?.to_vec(),
                keys: keys.as_slice()?.to_vec(),
                values: values.as_slice()?.to_vec(),
            })
        };
        Python::attach(ask).map_err(|error| {
            RAISED.set(Some(error));
            Error::new(Kind::State, "the policy raised; nothing was changed")
        })
    }
}

/// What a policy sees of a commit; empty once the commit went on.
#[pyclass(frozen, module = "mnemex._native")]
pub(crate) struct NativeScene(Mutex<Option<Arc<Scene>>>);

impl NativeScene {
    fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn open(&self) -> PyResult<Arc<Scene>> {
        let scene = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        scene.ok_or_else(|| {
            StateError::new_err("plan has returned, and what it was shown is gone: read inside plan what you keep")
        })
    }
}

/// Numbers of entries or tokens.
#[derive(IntoPyObject)]
pub(crate) enum NumberArray<'py> {
    I64(Bound<'py, PyArray1<i64>>),
    F64(Bound<'py, PyArray1<f64>>),
}

fn unknown(name: &str) -> PyErr {
    raised(Error::new(Kind::Argument, format!("{name:?} is not something that entries and tokens have")))
}

#[pymethods]
impl NativeScene {
    /// Number of the version to be, key/value heads, numbers per key and per value, entries, tokens.
    #[getter]
    fn facts(&self) -> PyResult<(u64, usize, usize, Option<usize>, usize, usize)> {
        let scene = self.open()?;
        let dims = (scene.key_dim(), scene.value_dim());
        Ok((scene.number(), scene.heads(), dims.0, dims.1, scene.n_entries(), scene.n_tokens()))
    }

    /// The caller's columns.
    #[getter]
    fn columns(&self) -> PyResult<Vec<(String, &'static str)>> {
        let scene = self.open()?;
        Ok(scene.declared().iter().map(|column| (column.name.clone(), column.dtype.name())).collect())
    }

    /// Something that every entry has.
    fn entries<'py>(&self, py: Python<'py>, name: &str) -> PyResult<NumberArray<'py>> {
        let scene = self.open()?;
        let counts = |of: fn(&Use) -> u64| scene.uses(|used| i64::try_from(of(used)).unwrap_or(i64::MAX));
        let numbers = py.detach(|| match name {
            "lane" => Some(scene.entry_lanes()),
            "id" => Some(scene.entry_ids()),
            "label" => Some(scene.entry_labels()),
            "position" => Some(scene.entry_positions()),
            "count" => Some(counts(|used| used.count.max(1))),
            "hits" => Some(counts(|used| used.hits)),
            "written" => Some(counts(|used| used.born)),
            "last_update" => Some(counts(|used| used.updated)),
            "last_touch" => Some(counts(|used| used.last)),
            _ => None,
        });
        let n = [scene.n_entries()];
        match (numbers, name) {
            (Some(numbers), _) => Ok(NumberArray::I64(array(py, numbers, n)?)),
            (None, "mass") => Ok(NumberArray::F64(array(py, py.detach(|| scene.uses(|used| used.mass)), n)?)),
            _ => Err(unknown(name)),
        }
    }

    /// Something that every token has.
    fn tokens<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let scene = self.open()?;
        let numbers = py.detach(|| match name {
            "lane" => Some(scene.token_lanes()),
            "id" => Some(scene.token_ids()),
            "label" => Some(scene.token_labels()),
            "position" => Some(scene.token_positions()),
            _ => None,
        });
        array(py, numbers.ok_or_else(|| unknown(name))?, [scene.n_tokens()])
    }

    /// The numbers of entries, or of tokens, in one of the caller's columns.
    fn column<'py>(&self, py: Python<'py>, staged: bool, name: &str) -> PyResult<CellArray<'py>> {
        let scene = self.open()?;
        let at = scene.declared().iter().position(|column| column.name == name).ok_or_else(|| unknown(name))?;
        cell_array(py, py.detach(|| if staged { scene.token_cells(at) } else { scene.entry_cells(at) }))
    }

    /// What was staged of the use of entries: places, times, mass.
    #[expect(clippy::type_complexity, reason = "three arrays")]
    fn touched<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>)> {
        let scene = self.open()?;
        let touched = py.detach(|| scene.touched());
        let n = [touched.len()];
        let times = |times: u64| i64::try_from(times).unwrap_or(i64::MAX);
        Ok((
            array(py, touched.iter().map(|touched| touched.place as i64).collect(), n)?,
            array(py, touched.iter().map(|touched| times(touched.times)).collect(), n)?,
            array(py, touched.iter().map(|touched| touched.mass).collect(), n)?,
        ))
    }

    /// Keys, or values, of entries or tokens: of all, or at places.
    #[pyo3(signature = (staged, value, places))]
    fn vectors<'py>(
        &self,
        py: Python<'py>,
        staged: bool,
        value: bool,
        places: Option<Flat<'py, i64>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let scene = self.open()?;
        let side = if value { Side::Value } else { Side::Key };
        let places = slice(places.as_ref())?;
        let vectors = run(py, Some(1), |work| scene.vectors(staged, side, places, work))?;
        let dim = if value { scene.value_dim().unwrap_or(scene.key_dim()) } else { scene.key_dim() };
        let n = vectors.len() / dim;
        array(py, vectors, [n, dim])
    }
}
