//! Arrays across the border: `[rows, heads, T, dim]` views of the caller's memory in, owned arrays out.

use mnemex_core::Codec;
use mnemex_core::error::{Error, Kind};
use mnemex_core::input::Input;
use numpy::{PyArray, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray4};
use pyo3::prelude::*;

use crate::error::raised;

/// Numbers in float32, or half precisions as their bits.
#[derive(FromPyObject)]
enum Numbers<'py> {
    F32(PyReadonlyArray4<'py, f32>),
    Bits(PyReadonlyArray4<'py, u16>),
}

/// An array and the name of its type: "f32", "f16" or "bf16".
#[derive(FromPyObject)]
pub(crate) struct Vectors<'py>(Numbers<'py>, String);

impl Vectors<'_> {
    pub(crate) fn view(&self) -> PyResult<Input<'_>> {
        match (&self.0, Codec::named(&self.1)) {
            (Numbers::F32(x), Some(Codec::F32)) => Ok(Input::F32(x.as_array())),
            (Numbers::Bits(x), Some(Codec::F16)) => Ok(Input::F16(x.as_array())),
            (Numbers::Bits(x), Some(Codec::Bf16)) => Ok(Input::Bf16(x.as_array())),
            _ => Err(raised(Error::new(Kind::Dtype, format!("an array is not of type {:?}", self.1)))),
        }
    }
}

/// A one-dimensional contiguous array.
pub(crate) type Flat<'py, T> = PyReadonlyArray1<'py, T>;

/// The numbers of an optional array.
pub(crate) fn slice<'a, T: numpy::Element>(array: Option<&'a Flat<'_, T>>) -> PyResult<Option<&'a [T]>> {
    Ok(array.map(|array| array.as_slice()).transpose()?)
}

/// Row numbers, which the facade has made non-negative.
pub(crate) fn rows(array: Option<&Flat<'_, i64>>) -> PyResult<Option<Vec<usize>>> {
    let Some(rows) = slice(array)? else { return Ok(None) };
    let row = |&row: &i64| {
        let message = || format!("rows name row {row}; rows are numbered from 0");
        usize::try_from(row).map_err(|_| raised(Error::new(Kind::Row, message())))
    };
    rows.iter().map(row).collect::<PyResult<Vec<usize>>>().map(Some)
}

/// An owned numpy array of the given shape.
pub(crate) fn array<'py, T: numpy::Element, const N: usize>(
    py: Python<'py>,
    numbers: Vec<T>,
    shape: [usize; N],
) -> PyResult<Bound<'py, PyArray<T, ndarray::Dim<[usize; N]>>>>
where
    [usize; N]: ndarray::IntoDimension<Dim = ndarray::Dim<[usize; N]>>,
    ndarray::Dim<[usize; N]>: ndarray::Dimension,
{
    PyArray::from_vec(py, numbers).reshape(shape)
}
