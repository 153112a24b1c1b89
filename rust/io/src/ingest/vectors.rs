//! A column of vectors as one run of numbers, whatever form Arrow gives it.
//!
//! What the field alone says is checked before a row is read: the type, fixed lengths, a tensor's shape. What only the
//! rows say is checked on their offsets: a variable list is a vector where its length is right. The numbers are then
//! the column's own memory; they are copied only where they lie apart (list views), or where bytes are not aligned.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, UInt16Type};
use arrow_array::{Array, ArrayRef, OffsetSizeTrait, make_array};
use arrow_buffer::Buffer;
use arrow_data::transform::MutableArrayData;
use arrow_schema::{DataType, Field};
use mnemex_core::{Codec, Kind};
use serde_json::Value;

use super::place::{Place, Rows, shown};
use crate::error::{Error, Result};

/// Says which cast to write.
const CAST: &str = "cast it, as with pyarrow's column.cast(pa.list_(pa.float32(), dim)), polars' \
                    .cast(pl.Array(pl.Float32, dim)) or SQL's column::FLOAT[dim]";

/// Field metadata that name the type behind raw bits, ours first.
const DTYPE_KEYS: [&str; 2] = ["mnemex.dtype", "dtype"];

const TENSOR: &str = "arrow.fixed_shape_tensor";

/// How the vectors of one column are to be read: known from its field.
pub(super) struct VectorColumn {
    pub(super) at: usize,
    pub(super) name: String,
    pub(super) codec: Codec,
    /// Length of the lists of each level, outermost first; none for raw bytes.
    lens: Vec<usize>,
    /// Numbers of one table row.
    width: usize,
}

impl VectorColumn {
    /// The column of that field, of which each table row holds `[heads, dim]` numbers.
    pub(super) fn of(at: usize, field: &Field, [heads, dim]: [usize; 2], place: &Place) -> Result<VectorColumn> {
        let name = field.name();
        let width = heads * dim;
        let refuse = |kind, what: String| place.refuse(kind, name, None, what);
        let mut inner = match field.data_type() {
            DataType::Dictionary(_, values) => Arc::new(field.clone().with_data_type((**values).clone())),
            _ => Arc::new(field.clone()),
        };
        let mut levels = Vec::new();
        while let Some((item, len)) = list_level(inner.data_type()) {
            levels.push(len);
            inner = item;
        }
        let lens = match levels.len() {
            0 => vec![],
            1 => vec![width],
            2 => vec![heads, dim],
            n => {
                return Err(refuse(Kind::Shape, format!("holds lists {n} levels deep; expected [heads][dim] at most")));
            }
        };
        for (level, want) in levels.iter().zip(&lens) {
            if let Some(len) = level.filter(|len| len != want) {
                let each = if lens.len() == 2 { format!("[heads][dim] = [{heads}][{dim}]") } else { want.to_string() };
                return Err(refuse(Kind::Shape, format!("holds lists of {len}; expected {each}")));
            }
        }
        if field.extension_type_name() == Some(TENSOR) {
            check_tensor(field.extension_type_metadata(), heads, dim).map_err(|what| refuse(Kind::Shape, what))?;
        }
        let named = DTYPE_KEYS.iter().find_map(|&key| inner.metadata().get(key).or(field.metadata().get(key)));
        let codec = codec_of(inner.data_type(), lens.is_empty(), named.map(String::as_str), width)
            .map_err(|(kind, what)| refuse(kind, what))?;
        Ok(VectorColumn { at, name: name.clone(), codec, lens, width })
    }

    /// Bytes of one table row.
    pub(super) fn row_bytes(&self) -> usize {
        self.width * self.codec.item_bytes()
    }

    /// The numbers of rows that are not null themselves, aligned, `rows * width` of them.
    pub(super) fn numbers(&self, column: &ArrayRef, rows: &Rows, place: &Place) -> Result<Buffer> {
        let mut array = Arc::clone(column);
        let mut each = 1;
        for &len in &self.lens {
            let wrong = |list: usize, found: usize| {
                let what = format!("list of {found}; expected {len}");
                place.refuse(Kind::Shape, &self.name, Some(rows.number(list / each)), what)
            };
            array = items(&array, len, place, wrong)?;
            each *= len;
            if let Some(nulls) = array.nulls().filter(|nulls| nulls.null_count() > 0) {
                let at = (0..array.len()).find(|&at| nulls.is_null(at)).unwrap_or(0);
                let what = "null inside a vector: fill it, or leave the row out before ingest".into();
                return Err(place.refuse(Kind::Argument, &self.name, Some(rows.number(at / each)), what));
            }
        }
        let bytes = match array.data_type() {
            DataType::Float32 => array.as_primitive::<Float32Type>().values().inner().clone(),
            DataType::Float16 => array.as_primitive::<Float16Type>().values().inner().clone(),
            DataType::UInt16 => array.as_primitive::<UInt16Type>().values().inner().clone(),
            _ => {
                let (data, each) = (array.to_data(), self.row_bytes());
                data.buffers()[0].slice_with_length(data.offset() * each, data.len() * each)
            }
        };
        if bytes.len() != rows.len() * self.row_bytes() {
            let what =
                format!("holds {} bytes for {} rows: its Arrow data do not fit together", bytes.len(), rows.len());
            return Err(place.malformed(format!("column {:?} {what}", self.name)));
        }
        let aligned = bytes.as_ptr().align_offset(self.codec.item_bytes()) == 0;
        Ok(if aligned { bytes } else { Buffer::from_slice_ref(bytes.as_slice()) })
    }
}

/// The codec of what a column holds in the end, lists or none around it; `named` is what its metadata say.
fn codec_of(item: &DataType, bare: bool, named: Option<&str>, width: usize) -> Result<Codec, (Kind, String)> {
    let refuse = |what| Err((Kind::Dtype, what));
    let codec = named.and_then(codec_named);
    match (item, bare) {
        (DataType::Float32, false) => Ok(Codec::F32),
        (DataType::Float16, false) => Ok(Codec::F16),
        (DataType::UInt16, false) => match codec {
            Some(codec @ (Codec::F16 | Codec::Bf16)) => Ok(codec),
            _ => refuse(format!(
                "holds uint16, which may be bfloat16 or float16 bits or whole numbers: say which in the field's \
                 metadata, as with field.with_metadata({{{:?}: \"bfloat16\"}})",
                DTYPE_KEYS[0]
            )),
        },
        (DataType::FixedSizeBinary(bytes), true) => {
            let Some(codec) = codec else {
                let said = named.map_or_else(|| "nothing".into(), |named| format!("{named:?}"));
                return refuse(format!(
                    "holds bytes, of whose type its field metadata say {said}: set {:?} to \"float32\", \
                     \"float16\" or \"bfloat16\"",
                    DTYPE_KEYS[0]
                ));
            };
            let want = width * codec.item_bytes();
            if usize::try_from(*bytes) == Ok(want) {
                return Ok(codec);
            }
            let what = format!("holds {bytes} bytes a row; expected {want}: {width} numbers in {}", codec.name());
            Err((Kind::Shape, what))
        }
        (found, true) => {
            refuse(format!("holds {}; expected vectors: lists of {width} float32 or float16 numbers", shown(found)))
        }
        (found, false) => refuse(format!("holds {}; expected float32 or float16: {CAST}", shown(found))),
    }
}

fn codec_named(dtype: &str) -> Option<Codec> {
    match dtype {
        "float32" | "f32" => Some(Codec::F32),
        "float16" | "f16" => Some(Codec::F16),
        "bfloat16" | "bf16" => Some(Codec::Bf16),
        _ => None,
    }
}

/// The item field of a list type, and its length where the type fixes it.
fn list_level(data_type: &DataType) -> Option<(Arc<Field>, Option<usize>)> {
    match data_type {
        DataType::FixedSizeList(item, len) => Some((Arc::clone(item), Some(usize::try_from(*len).unwrap_or(0)))),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
            Some((Arc::clone(item), None))
        }
        _ => None,
    }
}

/// Whether a tensor extension says `[heads, dim]`, or that many numbers, in the order in which they stand.
fn check_tensor(metadata: Option<&str>, heads: usize, dim: usize) -> Result<(), String> {
    let said: Value = metadata.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let list = |key: &str| -> Option<Vec<u64>> { said.get(key)?.as_array()?.iter().map(Value::as_u64).collect() };
    let [heads, dim] = [heads as u64, dim as u64];
    let shape = list("shape").unwrap_or_default();
    if shape != [heads, dim] && shape != [heads * dim] {
        return Err(format!("holds tensors of shape {shape:?}; expected [heads, dim] = [{heads}, {dim}]"));
    }
    match list("permutation") {
        Some(order) if order.iter().enumerate().any(|(at, &axis)| at as u64 != axis) => {
            Err(format!("holds tensors with permuted axes {order:?}: store them in the order [heads, dim]"))
        }
        _ => Ok(()),
    }
}

/// The items of lists that all have `len` of them, in order; `wrong` words the first list that has not.
fn items(array: &ArrayRef, len: usize, place: &Place, wrong: impl Fn(usize, usize) -> Error) -> Result<ArrayRef> {
    fn uniform<O: OffsetSizeTrait>(
        array: &ArrayRef,
        len: usize,
        wrong: impl Fn(usize, usize) -> Error,
    ) -> Result<ArrayRef> {
        let list = array.as_list::<O>();
        let offsets = list.value_offsets();
        if let Some(at) = (0..list.len()).find(|&at| (offsets[at + 1] - offsets[at]).as_usize() != len) {
            return Err(wrong(at, (offsets[at + 1] - offsets[at]).as_usize()));
        }
        Ok(list.values().slice(offsets[0].as_usize(), list.len() * len))
    }
    fn views<O: OffsetSizeTrait>(
        array: &ArrayRef,
        len: usize,
        place: &Place,
        wrong: impl Fn(usize, usize) -> Error,
    ) -> Result<ArrayRef> {
        let list = array.as_list_view::<O>();
        let (offsets, sizes) = (list.value_offsets(), list.value_sizes());
        if let Some(at) = (0..list.len()).find(|&at| sizes[at].as_usize() != len) {
            return Err(wrong(at, sizes[at].as_usize()));
        }
        let data = list.values().to_data();
        let mut items = MutableArrayData::new(vec![&data], false, list.len() * len);
        for offset in offsets {
            items.try_extend(0, offset.as_usize(), offset.as_usize() + len).map_err(|error| place.failed(&error))?;
        }
        Ok(make_array(items.freeze()))
    }
    match array.data_type() {
        DataType::List(_) => uniform::<i32>(array, len, wrong),
        DataType::LargeList(_) => uniform::<i64>(array, len, wrong),
        DataType::ListView(_) => views::<i32>(array, len, place, wrong),
        DataType::LargeListView(_) => views::<i64>(array, len, place, wrong),
        _ => Ok(Arc::clone(array.as_fixed_size_list().values())),
    }
}
