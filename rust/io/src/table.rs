//! The columns of a data file, and how vectors of a codec and numbers of a caller's column stand in them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::types::{Float16Type, Float32Type, Float64Type, Int64Type, UInt16Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int64Array, PrimitiveArray,
};
use arrow_buffer::{Buffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema as ArrowSchema, SchemaRef};
use mnemex_core::block::Schema;
use mnemex_core::cells::{Cells, ColumnType, Declared};
use mnemex_core::layout::Layout;
use mnemex_core::usage::Use;
use mnemex_core::{Codec, Config};

/// Most entries of one record batch.
const MAX_BATCH_ROWS: usize = 1 << 16;

/// Bytes of vectors of one record batch, about; both sides hold one in memory.
const BATCH_BYTES: usize = 32 << 20;

/// The schema of a bank, or what it would be if it was written to with float32 where nothing else is asked for: a bank
/// that was never written to has a file too.
pub(crate) fn schema_or_default(config: &Config, schema: Option<Schema>) -> Schema {
    let default = |asked: Option<Codec>| asked.unwrap_or(Codec::F32);
    schema.unwrap_or_else(|| Schema::of(config, default(config.key_codec), default(config.value_codec)))
}

/// The columns: row, head, id, label, position, key, where values are stored value, and the caller's.
pub(crate) fn columns(schema: &Schema, own: &[Declared]) -> SchemaRef {
    let mut fields = vec![
        Field::new("row", DataType::Int32, false),
        Field::new("head", DataType::Int32, false),
        Field::new("id", DataType::Int64, false),
        Field::new("label", DataType::Int64, false),
        Field::new("position", DataType::Int64, false),
        vector_field("key", &schema.key),
    ];
    fields.extend(schema.value.map(|layout| vector_field("value", &layout)));
    fields.extend(own.iter().map(|column| {
        let data_type = match column.dtype {
            ColumnType::F32 => DataType::Float32,
            ColumnType::I64 => DataType::Int64,
            ColumnType::Bool => DataType::Boolean,
        };
        Field::new(&column.name, data_type, false)
    }));
    Arc::new(ArrowSchema::new(fields))
}

/// The same with how entries were used, behind all others.
pub(crate) fn columns_with_use(schema: &Schema, own: &[Declared]) -> SchemaRef {
    let columns = columns(schema, own);
    let (count, float) = (DataType::Int64, DataType::Float64);
    let types = [&count, &float, &float, &count, &count, &count, &count, &count, &float].map(DataType::clone);
    let names = ["used_hits", "used_mass", "used_heat", "used_last", "used_born", "used_updated", "used_count"];
    let names = names.into_iter().chain(["used_member", "used_before"]);
    let more = names.zip(types).map(|(name, data_type)| Arc::new(Field::new(name, data_type, false)));
    Arc::new(ArrowSchema::new(columns.fields().iter().cloned().chain(more).collect::<Vec<_>>()))
}

/// Largest number of a version in a file: keeps counts far from overflow. Larger ones, which a forged file can lead to, are
/// written as this one.
pub(crate) const MAX_NUMBER: u64 = 1 << 62;

/// How entries were used, as columns.
pub(crate) fn use_arrays(used: &[Use]) -> [ArrayRef; 9] {
    let counts = |of: fn(&Use) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(used.iter().map(|used| of(used).min(MAX_NUMBER) as i64)))
    };
    let floats = |of: fn(&Use) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(used.iter().map(of))) };
    [
        counts(|used| used.hits),
        floats(|used| used.mass),
        floats(|used| used.heat),
        counts(|used| used.last),
        counts(|used| used.born),
        counts(|used| used.updated),
        counts(|used| used.count),
        counts(|used| used.member),
        floats(|used| used.before),
    ]
}

/// How entries were used, out of the columns from `first` on; None where they hold anything else.
pub(crate) fn uses(columns: &[ArrayRef], first: usize) -> Option<Vec<Use>> {
    let column = |at: usize| columns.get(first + at).filter(|column| column.null_count() == 0);
    let counts = |at: usize| Some(column(at)?.as_any().downcast_ref::<PrimitiveArray<Int64Type>>()?.values());
    let floats = |at: usize| Some(column(at)?.as_any().downcast_ref::<PrimitiveArray<Float64Type>>()?.values());
    let (hits, mass, heat, last, born) = (counts(0)?, floats(1)?, floats(2)?, counts(3)?, counts(4)?);
    let (updated, tokens, members, before) = (counts(5)?, counts(6)?, counts(7)?, floats(8)?);
    let count = |n: i64| u64::try_from(n).ok();
    let used = |at: usize| {
        let (hits, last, born) = (count(hits[at])?, count(last[at])?, count(born[at])?);
        let (updated, member, count) = (count(updated[at])?, count(members[at])?, count(tokens[at])?);
        Some(Use { hits, mass: mass[at], heat: heat[at], last, born, updated, count, member, before: before[at] })
    };
    (0..hits.len()).map(used).collect()
}

/// Where the first of the caller's columns is.
pub(crate) fn first_own(schema: &Schema) -> usize {
    6 + usize::from(schema.value.is_some())
}

/// A column of the caller's.
pub(crate) fn array(cells: Cells) -> ArrayRef {
    match cells {
        Cells::F32(x) => Arc::new(Float32Array::from(x)),
        Cells::I64(x) => Arc::new(Int64Array::from(x)),
        Cells::Bool(x) => Arc::new(BooleanArray::from(x)),
    }
}

/// The numbers of a column of the caller's; None where it is of another type, or has nulls.
pub(crate) fn cells(dtype: ColumnType, column: &ArrayRef) -> Option<Cells> {
    let column = Some(column).filter(|column| column.null_count() == 0)?.as_any();
    Some(match dtype {
        ColumnType::F32 => Cells::F32(column.downcast_ref::<PrimitiveArray<Float32Type>>()?.values().to_vec()),
        ColumnType::I64 => Cells::I64(column.downcast_ref::<PrimitiveArray<Int64Type>>()?.values().to_vec()),
        ColumnType::Bool => Cells::Bool(column.downcast_ref::<BooleanArray>()?.values().iter().collect()),
    })
}

fn item_field(codec: Codec) -> Field {
    let (data_type, dtype) = match codec {
        Codec::F32 => (DataType::Float32, None),
        Codec::F16 => (DataType::Float16, None),
        Codec::Bf16 => (DataType::UInt16, Some("bfloat16")),
    };
    let metadata: HashMap<_, _> =
        dtype.map(|dtype| ("mnemex.dtype".to_owned(), dtype.to_owned())).into_iter().collect();
    Field::new("item", data_type, false).with_metadata(metadata)
}

fn vector_field(name: &str, layout: &Layout) -> Field {
    let item = item_field(layout.codec);
    let metadata = item.metadata().clone();
    Field::new(name, DataType::FixedSizeList(Arc::new(item), list_len(layout)), false).with_metadata(metadata)
}

fn list_len(layout: &Layout) -> i32 {
    i32::try_from(layout.dim).unwrap_or(i32::MAX)
}

/// Most entries of one record batch of such vectors.
pub(crate) fn batch_rows(schema: &Schema) -> usize {
    let bytes = schema.key.vector_bytes() + schema.value.map_or(0, |layout| layout.vector_bytes());
    (BATCH_BYTES / bytes.max(1)).clamp(1, MAX_BATCH_ROWS)
}

/// A column of vectors, of their bytes.
pub(crate) fn vectors(layout: &Layout, bytes: Buffer) -> Result<ArrayRef, ArrowError> {
    let items: ArrayRef = match layout.codec {
        Codec::F32 => Arc::new(PrimitiveArray::<Float32Type>::new(ScalarBuffer::from(bytes), None)),
        Codec::F16 => Arc::new(PrimitiveArray::<Float16Type>::new(ScalarBuffer::from(bytes), None)),
        Codec::Bf16 => Arc::new(PrimitiveArray::<UInt16Type>::new(ScalarBuffer::from(bytes), None)),
    };
    let list = FixedSizeListArray::try_new(Arc::new(item_field(layout.codec)), list_len(layout), items, None)?;
    Ok(Arc::new(list))
}

/// The bytes of a column of vectors; None where it is not one of them, or not of as many.
pub(crate) fn bytes_of<'a>(layout: &Layout, column: &'a ArrayRef) -> Option<&'a [u8]> {
    let list = column.as_any().downcast_ref::<FixedSizeListArray>()?;
    let items = list.values();
    if list.null_count() != 0 || items.null_count() != 0 || list.value_length() != list_len(layout) {
        return None;
    }
    let bytes = match layout.codec {
        Codec::F32 => items.as_any().downcast_ref::<PrimitiveArray<Float32Type>>()?.values().inner().as_slice(),
        Codec::F16 => items.as_any().downcast_ref::<PrimitiveArray<Float16Type>>()?.values().inner().as_slice(),
        Codec::Bf16 => items.as_any().downcast_ref::<PrimitiveArray<UInt16Type>>()?.values().inner().as_slice(),
    };
    (list.len().checked_mul(layout.vector_bytes()) == Some(bytes.len())).then_some(bytes)
}

/// Whether no number is NaN or infinite: none has an exponent of ones.
pub(crate) fn all_finite(codec: Codec, bytes: &[u8]) -> bool {
    let halves = |exponent: u16| {
        let bits = bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        bits.fold(true, |finite, bits| finite & (bits & exponent != exponent))
    };
    match codec {
        Codec::F32 => {
            let bits = bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
            bits.fold(true, |finite, bits| finite & (bits & 0x7F80_0000 != 0x7F80_0000))
        }
        Codec::F16 => halves(0x7C00),
        Codec::Bf16 => halves(0x7F80),
    }
}
