//! Product keys: lookups, sums of values, and the ways back. No state: the arrays are the caller's.

use mnemex_core::Codec;
use mnemex_core::error::{Error, Kind};
use mnemex_core::product::{Bag, SubKeys, Weighing};
use mnemex_kernels::Kernels;
use mnemex_kernels::product::Table;
use mnemex_kernels::single::Format;
use numpy::{PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::arrays::array;
use crate::call::run;
use crate::error::{ResourceError, raised};

fn kernels() -> PyResult<&'static Kernels> {
    Kernels::best().map_err(|error| ResourceError::new_err(error.to_string()))
}

/// Views of both halves; an error where heads differ.
fn sub_keys<'a>(
    rows: &'a PyReadonlyArray3<'_, f32>,
    columns: &'a PyReadonlyArray3<'_, f32>,
    queries: &PyReadonlyArray3<'_, f32>,
) -> PyResult<SubKeys<'a>> {
    let ([heads, n, dim], [also, m, width]) = (shape(rows), shape(columns));
    let [_, asked, query_dim] = shape(queries);
    if [also, asked, query_dim] != [heads, heads, dim + width] {
        let message = format!(
            "rows are [{heads}, {n}, {dim}], columns [{also}, {m}, {width}], queries [T, {asked}, {query_dim}]: expected as many heads, and halves that make a query"
        );
        return Err(raised(Error::new(Kind::Shape, message)));
    }
    Ok(SubKeys { keys: [rows.as_slice()?, columns.as_slice()?], heads, n: [n, m], dim: [dim, width] })
}

fn shape<T: numpy::Element>(array: &PyReadonlyArray3<'_, T>) -> [usize; 3] {
    let [a, b, c] = *array.shape() else { unreachable!("three dimensions") };
    [a, b, c]
}

/// Scores and ids.
type SlotArrays<'py> = (Bound<'py, PyArray3<f32>>, Bound<'py, PyArray3<i64>>);

/// The best k slots: scores and ids `[T, heads, k]`.
#[pyfunction]
#[pyo3(signature = (rows, columns, queries, k, threads))]
pub(crate) fn product_lookup<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray3<'py, f32>,
    columns: PyReadonlyArray3<'py, f32>,
    queries: PyReadonlyArray3<'py, f32>,
    k: usize,
    threads: Option<usize>,
) -> PyResult<SlotArrays<'py>> {
    let (keys, kernels) = (sub_keys(&rows, &columns, &queries)?, kernels()?);
    let ([tokens, heads, _], numbers) = (shape(&queries), queries.as_slice()?);
    let slots = run(py, threads, |work| keys.lookup(kernels, numbers, k, work))?;
    Ok((array(py, slots.scores, [tokens, heads, k])?, array(py, slots.ids, [tokens, heads, k])?))
}

/// The way back from the gradient of scores `[T, heads, k]`: gradients of queries, rows and columns.
#[pyfunction]
#[pyo3(signature = (rows, columns, queries, ids, grad, threads))]
#[expect(clippy::type_complexity, reason = "a tuple that the facade names")]
pub(crate) fn product_backward<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray3<'py, f32>,
    columns: PyReadonlyArray3<'py, f32>,
    queries: PyReadonlyArray3<'py, f32>,
    ids: PyReadonlyArray3<'py, i64>,
    grad: PyReadonlyArray3<'py, f32>,
    threads: Option<usize>,
) -> PyResult<(Bound<'py, PyArray3<f32>>, Bound<'py, PyArray3<f32>>, Bound<'py, PyArray3<f32>>)> {
    let (keys, kernels) = (sub_keys(&rows, &columns, &queries)?, kernels()?);
    let (numbers, ids, grad) = (queries.as_slice()?, ids.as_slice()?, grad.as_slice()?);
    let found = run(py, threads, |work| keys.gradient(kernels, numbers, ids, grad, work))?;
    let [of_rows, of_columns] = found.keys;
    Ok((
        array(py, found.queries, shape(&queries))?,
        array(py, of_rows, shape(&rows))?,
        array(py, of_columns, shape(&columns))?,
    ))
}

/// Numbers in float32, or half precisions as their bits.
#[derive(FromPyObject)]
enum Numbers<'py> {
    F32(PyReadonlyArray2<'py, f32>),
    Bits(PyReadonlyArray2<'py, u16>),
}

/// A table `[n, dim]` and the name of its type: "f32", "f16" or "bf16".
#[derive(FromPyObject)]
pub(crate) struct Values<'py>(Numbers<'py>, String);

impl Values<'_> {
    fn table(&self) -> PyResult<Table<'_>> {
        let (bytes, shape): (&[u8], _) = match &self.0 {
            Numbers::F32(x) => (bytemuck::cast_slice(x.as_slice()?), x.shape()),
            Numbers::Bits(x) => (bytemuck::cast_slice(x.as_slice()?), x.shape()),
        };
        let format = match (&self.0, Codec::named(&self.1)) {
            (Numbers::F32(_), Some(Codec::F32)) => Format::F32,
            (Numbers::Bits(_), Some(Codec::F16)) => Format::F16,
            (Numbers::Bits(_), Some(Codec::Bf16)) => Format::Bf16,
            _ => return Err(raised(Error::new(Kind::Dtype, format!("values are not of type {:?}", self.1)))),
        };
        Ok(Table { bytes, format, dim: shape[1] })
    }
}

/// Sums of the values of the best k slots of all heads, `[T, dim]`, weighed by scores or by their softmax.
#[pyfunction]
#[pyo3(signature = (rows, columns, queries, k, values, softmax, scale, threads))]
#[expect(clippy::too_many_arguments, reason = "the facade names them")]
pub(crate) fn product_read<'py>(
    py: Python<'py>,
    rows: PyReadonlyArray3<'py, f32>,
    columns: PyReadonlyArray3<'py, f32>,
    queries: PyReadonlyArray3<'py, f32>,
    k: usize,
    values: Values<'py>,
    softmax: bool,
    scale: f32,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (keys, kernels, values) = (sub_keys(&rows, &columns, &queries)?, kernels()?, values.table()?);
    let ([tokens, ..], numbers) = (shape(&queries), queries.as_slice()?);
    let weighing = if softmax { Weighing::Softmax(scale) } else { Weighing::Scores(scale) };
    let sums = run(py, threads, |work| keys.read(kernels, numbers, k, weighing, values, work))?;
    array(py, sums, [tokens, values.dim])
}

/// Sums of weighted rows of a table, `[T, dim]`.
#[pyfunction]
#[pyo3(signature = (values, ids, weights, threads))]
pub(crate) fn bag<'py>(
    py: Python<'py>,
    values: Values<'py>,
    ids: PyReadonlyArray2<'py, i64>,
    weights: PyReadonlyArray2<'py, f32>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (values, kernels, n) = (values.table()?, kernels()?, ids.shape()[0]);
    let bag = Bag { values, ids: ids.as_slice()?, weights: weights.as_slice()?, n };
    array(py, run(py, threads, |work| bag.sums(kernels, work))?, [n, values.dim])
}

/// The way back from the gradient of such sums: of the weights, the rows that were read, ascending, and their gradients.
#[pyfunction]
#[pyo3(signature = (values, ids, weights, grad, threads))]
#[expect(clippy::type_complexity, reason = "a tuple that the facade names")]
pub(crate) fn bag_backward<'py>(
    py: Python<'py>,
    values: Values<'py>,
    ids: PyReadonlyArray2<'py, i64>,
    weights: PyReadonlyArray2<'py, f32>,
    grad: PyReadonlyArray2<'py, f32>,
    threads: Option<usize>,
) -> PyResult<(Bound<'py, PyArray2<f32>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray2<f32>>)> {
    let (values, kernels, n) = (values.table()?, kernels()?, ids.shape()[0]);
    let (each, grad) = (ids.shape()[1], grad.as_slice()?);
    let bag = Bag { values, ids: ids.as_slice()?, weights: weights.as_slice()?, n };
    let reads = run(py, threads, |_| bag.reads())?;
    // numpy asks for large pages, and memory that is not cleared first: half of the time would go there.
    let empty = py.import("numpy")?.getattr("empty")?.call1(((reads.rows.len(), values.dim), "float32"))?;
    let of_values = empty.cast_into::<PyArray2<f32>>()?;
    let weights = {
        let mut room = of_values.readwrite();
        let room = room.as_slice_mut()?;
        run(py, threads, |work| bag.gradient(kernels, &reads, grad, room, work))?
    };
    Ok((array(py, weights, [n, each])?, PyArray1::from_vec(py, reads.rows), of_values))
}
