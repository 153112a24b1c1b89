//! Which columns of a table are which, and the integers and the caller's own columns beside the vectors.

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float16Type, Float32Type};
use arrow_array::types::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, Field, Fields};
use mnemex_core::Kind;
use mnemex_core::cells::{self, ColumnType};
use mnemex_core::config::{Config, Values};

use super::place::{Place, Rows, shown};
use super::vectors::VectorColumn;
use crate::error::Result;

/// The names of a table's columns by what they are for.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Vectors.
    pub key: String,
    /// Vectors; None where the bank stores no values of its own.
    pub value: Option<String>,
    /// Row numbers of the bank; None: everything goes into its only row.
    pub row: Option<String>,
    /// Head numbers: a token takes `heads` table rows, head 0 first. None: one, which holds every head.
    pub head: Option<String>,
    /// Integers.
    pub label: Option<String>,
    /// Integers.
    pub position: Option<String>,
    /// The bank's column, and the table's.
    pub columns: Vec<(String, String)>,
}

/// A column that is read, and its place among the fields.
pub(super) struct Named {
    at: usize,
    name: String,
}

/// The columns of one table.
pub(super) struct Columns {
    pub(super) key: VectorColumn,
    pub(super) value: Option<VectorColumn>,
    pub(super) row: Option<Named>,
    pub(super) head: Option<Named>,
    pub(super) label: Option<Named>,
    pub(super) position: Option<Named>,
    pub(super) columns: Vec<(String, Named)>,
}

/// Numbers of one of the bank's own columns, one per token.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// float32
    F32(Vec<f32>),
    /// int64
    I64(Vec<i64>),
    /// bool
    Bool(Vec<bool>),
}

impl Numbers {
    /// The numbers as the core takes them.
    pub(super) fn view(&self) -> cells::Numbers<'_> {
        match self {
            Numbers::F32(numbers) => cells::Numbers::F32(numbers),
            Numbers::I64(numbers) => cells::Numbers::I64(numbers),
            Numbers::Bool(numbers) => cells::Numbers::Bool(numbers),
        }
    }
}

impl Columns {
    /// Finds the columns and checks what their types alone say.
    pub(super) fn find(fields: &Fields, names: &Names, config: &Config, place: &Place) -> Result<Columns> {
        let find = |argument: &str, name: &str| {
            let mut found = fields.iter().enumerate().filter(|(_, field)| field.name() == name);
            match (found.next(), found.next()) {
                (Some((at, _)), None) => Ok(at),
                (Some(_), Some(_)) => Err(place.refuse_all(
                    Kind::Argument,
                    &format!("{argument}={name:?} names two columns: give one of them another name"),
                )),
                (None, _) => {
                    let known: Vec<_> = fields.iter().map(|field| format!("{:?}", field.name())).collect();
                    let known = known.join(", ");
                    Err(place.refuse_all(
                        Kind::Argument,
                        &format!("{argument}={name:?} is not a column of the table; it has {known}"),
                    ))
                }
            }
        };
        let named = |argument: &str, name: &Option<String>| -> Result<Option<Named>> {
            name.as_ref().map(|name| Ok(Named { at: find(argument, name)?, name: name.clone() })).transpose()
        };
        let heads = if names.head.is_some() { 1 } else { config.heads };
        let vectors = |argument: &str, name: &str, dim| {
            let at = find(argument, name)?;
            VectorColumn::of(at, &fields[at], [heads, dim], place)
        };
        let key = vectors("key", &names.key, config.key_dim)?;
        let value = match (config.values, &names.value) {
            (Values::Dim(dim), Some(name)) => Some(vectors("value", name, dim)?),
            (Values::Dim(dim), None) => {
                let what = format!("value= is missing: this bank stores a value of {dim} numbers with each key");
                return Err(place.refuse_all(Kind::Argument, &what));
            }
            (Values::None, Some(name)) => {
                let what = format!("value={name:?} was given, and this bank stores no values: make it with value_dim=");
                return Err(place.refuse_all(Kind::Argument, &what));
            }
            (Values::Key, Some(name)) => {
                let what = format!("value={name:?} was given, and this bank's keys are its values (value_dim=\"key\")");
                return Err(place.refuse_all(Kind::Argument, &what));
            }
            (_, None) => None,
        };
        let own = |(bank, table): &(String, String)| {
            let at = find(&format!("columns[{bank:?}]"), table)?;
            let declared = config.columns.iter().find(|declared| declared.name == *bank);
            if let Some(dtype) = declared.map(|declared| declared.dtype).filter(|&dtype| !fits(dtype, &fields[at])) {
                let what = format!(
                    "holds {}; the bank's column {bank:?} is {}: cast it first",
                    shown(fields[at].data_type()),
                    dtype.name()
                );
                return Err(place.refuse(Kind::Dtype, table, None, what));
            }
            Ok((bank.clone(), Named { at, name: table.clone() }))
        };
        Ok(Columns {
            key,
            value,
            row: named("row", &names.row)?,
            head: named("head", &names.head)?,
            label: named("label", &names.label)?,
            position: named("position", &names.position)?,
            columns: names.columns.iter().map(own).collect::<Result<_>>()?,
        })
    }

    /// Bytes of the vectors of one table row.
    pub(super) fn row_bytes(&self) -> usize {
        self.key.row_bytes() + self.value.as_ref().map_or(0, VectorColumn::row_bytes)
    }

    /// Name and place of every column that is read.
    pub(super) fn all(&self) -> Vec<(&str, usize)> {
        let vectors = std::iter::once(&self.key).chain(&self.value).map(|column| (column.name.as_str(), column.at));
        let numbers = [&self.row, &self.head, &self.label, &self.position].into_iter().flatten();
        let numbers = numbers.chain(self.columns.iter().map(|(_, named)| named));
        vectors.chain(numbers.map(|named| (named.name.as_str(), named.at))).collect()
    }
}

impl Named {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The integers of rows that are not null.
    pub(super) fn integers(&self, table: &[ArrayRef], rows: &Rows, place: &Place) -> Result<Vec<i64>> {
        let array = &table[self.at];
        let refuse = |row: Option<usize>, what: String| {
            let kind = if row.is_some() { Kind::Argument } else { Kind::Dtype };
            place.refuse(kind, &self.name, row.map(|row| rows.number(row)), what)
        };
        match array.data_type() {
            DataType::Int64 => Ok(array.as_primitive::<Int64Type>().values().to_vec()),
            DataType::Int32 => Ok(widened::<Int32Type>(array)),
            DataType::Int16 => Ok(widened::<Int16Type>(array)),
            DataType::Int8 => Ok(widened::<Int8Type>(array)),
            DataType::UInt32 => Ok(widened::<UInt32Type>(array)),
            DataType::UInt16 => Ok(widened::<UInt16Type>(array)),
            DataType::UInt8 => Ok(widened::<UInt8Type>(array)),
            DataType::UInt64 => {
                let numbers = array.as_primitive::<UInt64Type>().values().iter().enumerate();
                let fit = |(row, &n): (usize, &u64)| {
                    i64::try_from(n).map_err(|_| refuse(Some(row), format!("{n} is beyond int64")))
                };
                numbers.map(fit).collect()
            }
            other => Err(refuse(None, format!("holds {}; expected whole numbers, such as int64", shown(other)))),
        }
    }

    /// The numbers of rows that are not null, as the bank has them.
    pub(super) fn numbers(&self, table: &[ArrayRef], rows: &Rows, place: &Place) -> Result<Numbers> {
        let array = &table[self.at];
        match array.data_type() {
            DataType::Float32 => Ok(Numbers::F32(array.as_primitive::<Float32Type>().values().to_vec())),
            DataType::Float16 => {
                Ok(Numbers::F32(array.as_primitive::<Float16Type>().values().iter().map(|x| x.to_f32()).collect()))
            }
            DataType::Boolean => Ok(Numbers::Bool(array.as_boolean().values().iter().collect())),
            other if other.is_integer() => self.integers(table, rows, place).map(Numbers::I64),
            other => {
                let what = format!("holds {}; expected float32, int64 or bool: cast it first", shown(other));
                Err(place.refuse(Kind::Dtype, &self.name, None, what))
            }
        }
    }
}

/// Whether a table's column can be one of the bank's.
fn fits(dtype: ColumnType, field: &Field) -> bool {
    let data_type = match field.data_type() {
        DataType::Dictionary(_, of) => of,
        plain => plain,
    };
    match dtype {
        ColumnType::F32 => matches!(data_type, DataType::Float32 | DataType::Float16),
        ColumnType::I64 => data_type.is_integer(),
        ColumnType::Bool => *data_type == DataType::Boolean,
    }
}

fn widened<T: ArrowPrimitiveType<Native: Into<i64>>>(array: &ArrayRef) -> Vec<i64> {
    array.as_primitive::<T>().values().iter().map(|&n| n.into()).collect()
}

impl Numbers {
    /// Whether two of them are the same, bit for bit: NaN is.
    pub(super) fn same(&self, a: usize, b: usize) -> bool {
        match self {
            Numbers::F32(x) => x[a].to_bits() == x[b].to_bits(),
            Numbers::I64(x) => x[a] == x[b],
            Numbers::Bool(x) => x[a] == x[b],
        }
    }

    /// Those at the given places.
    pub(super) fn at(&self, places: &[usize]) -> Numbers {
        match self {
            Numbers::F32(x) => Numbers::F32(places.iter().map(|&at| x[at]).collect()),
            Numbers::I64(x) => Numbers::I64(places.iter().map(|&at| x[at]).collect()),
            Numbers::Bool(x) => Numbers::Bool(places.iter().map(|&at| x[at]).collect()),
        }
    }
}
