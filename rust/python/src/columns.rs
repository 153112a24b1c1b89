//! Columns across the border: their numbers by type, and the conditions of `where`.

use mnemex_core::cells::{Cells, ColumnType, Declared, Numbers};
use mnemex_core::error::{Error, Kind};
use mnemex_core::predicate::{Op, Predicate, Value};
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::arrays::{Flat, array};
use crate::error::raised;

fn refused(message: String) -> PyErr {
    raised(Error::new(Kind::Argument, message))
}

/// Columns as they are declared: names and types.
pub(crate) fn declared(columns: Vec<(String, String)>) -> PyResult<Vec<Declared>> {
    let column = |(name, dtype): (String, String)| {
        let known = ColumnType::ALL.map(ColumnType::name).join(", ");
        let unknown = || refused(format!("columns[{name:?}]={dtype:?} is not known; expected one of {known}"));
        let dtype = ColumnType::named(&dtype).ok_or_else(unknown)?;
        Ok(Declared { name, dtype })
    };
    columns.into_iter().map(column).collect()
}

/// The numbers of a column, one per token.
#[derive(FromPyObject)]
pub(crate) enum ColumnArray<'py> {
    F32(Flat<'py, f32>),
    I64(Flat<'py, i64>),
    Bool(Flat<'py, bool>),
}

/// Columns as a call gives them.
pub(crate) fn given<'a>(columns: &'a [(String, ColumnArray<'_>)]) -> PyResult<Vec<(&'a str, Numbers<'a>)>> {
    let column = |(name, numbers): &'a (String, ColumnArray<'_>)| {
        let numbers = match numbers {
            ColumnArray::F32(x) => Numbers::F32(x.as_slice()?),
            ColumnArray::I64(x) => Numbers::I64(x.as_slice()?),
            ColumnArray::Bool(x) => Numbers::Bool(x.as_slice()?),
        };
        Ok((name.as_str(), numbers))
    };
    columns.iter().map(column).collect()
}

/// The numbers of a column on their way out.
#[derive(IntoPyObject)]
pub(crate) enum CellArray<'py> {
    F32(Bound<'py, PyArray1<f32>>),
    I64(Bound<'py, PyArray1<i64>>),
    Bool(Bound<'py, PyArray1<bool>>),
}

pub(crate) fn cell_array(py: Python<'_>, cells: Cells) -> PyResult<CellArray<'_>> {
    let shape = [cells.len()];
    Ok(match cells {
        Cells::F32(x) => CellArray::F32(array(py, x, shape)?),
        Cells::I64(x) => CellArray::I64(array(py, x, shape)?),
        Cells::Bool(x) => CellArray::Bool(array(py, x, shape)?),
    })
}

/// What a column is compared with.
#[derive(FromPyObject)]
pub(crate) enum ValueArray<'py> {
    I64(Flat<'py, i64>),
    F64(Flat<'py, f64>),
    Bool(Flat<'py, bool>),
}

/// Column, operator and value.
pub(crate) type Condition<'py> = (String, String, ValueArray<'py>);

pub(crate) fn predicates<'a>(conditions: &'a [Condition<'_>]) -> PyResult<Vec<Predicate<'a>>> {
    let predicate = |(column, op, value): &'a Condition<'_>| {
        let known = Op::ALL.map(|(name, _)| name).join(" ");
        let unknown = || refused(format!("where compares {column:?} by {op:?}; expected one of {known}"));
        let value = match value {
            ValueArray::I64(x) => Value::I64(x.as_slice()?),
            ValueArray::F64(x) => Value::F64(x.as_slice()?),
            ValueArray::Bool(x) => Value::Bool(x.as_slice()?),
        };
        Ok(Predicate { column, op: Op::named(op).ok_or_else(unknown)?, value })
    };
    conditions.iter().map(predicate).collect()
}
