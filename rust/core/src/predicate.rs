//! Conditions on an entry's columns, and which rows of a block meet them.
//!
//! What a comparison means is what the numbers mean. An integer column is compared exactly, with a float too: no integer
//! is rounded to a float on the way. A float32 column is compared in its own precision: what it is compared with is
//! rounded to float32 first, so that a column that was given 0.1 equals 0.1. NaN is unequal to everything, itself
//! included. Booleans have no order.

use std::cmp::Ordering;

use crate::cells::{ALWAYS, ColumnType, Declared};
use crate::columns::{AnyColumn, Column};
use crate::error::{Error, Kind, Result};
use crate::list::{Ref, first_rows};
use crate::version::Row;

/// How an entry's number is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// One of several.
    In,
}

impl Op {
    /// Every way, by its name in Python.
    pub const ALL: [(&str, Op); 7] = [
        ("<", Op::Less),
        ("<=", Op::AtMost),
        (">", Op::Greater),
        (">=", Op::AtLeast),
        ("==", Op::Equal),
        ("!=", Op::Unequal),
        ("in", Op::In),
    ];

    /// The way of that name.
    pub fn named(name: &str) -> Option<Op> {
        Op::ALL.into_iter().find_map(|(known, op)| (known == name).then_some(op))
    }

    fn name(self) -> &'static str {
        Op::ALL.into_iter().find_map(|(name, op)| (op == self).then_some(name)).unwrap_or_default()
    }
}

/// What an entry's number is compared with: one number, or for [`Op::In`] any number of them.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// Integers.
    I64(&'a [i64]),
    /// Floats.
    F64(&'a [f64]),
    /// Booleans.
    Bool(&'a [bool]),
}

/// One condition.
#[derive(Clone, Copy, Debug)]
pub struct Predicate<'a> {
    /// "id", "label", "position", or a column of the bank's own.
    pub column: &'a str,
    /// How it is compared.
    pub op: Op,
    /// With what.
    pub value: Value<'a>,
}

/// Where an integer comes from.
#[derive(Clone, Copy)]
pub(crate) enum Whole {
    Id,
    Label,
    Position,
    Own(usize),
}

/// A condition, ready to be asked of a block.
pub(crate) enum Test {
    Ints(Whole, Ints),
    Floats(usize, Floats),
    /// Whether false passes, and whether true does.
    Bools(usize, [bool; 2]),
}

pub(crate) enum Ints {
    /// From the first to the second, both included.
    Within(i64, i64),
    Unequal(i64),
    /// Ascending.
    Among(Vec<i64>),
}

pub(crate) enum Floats {
    Compare(Op, f64),
    /// Ascending, without NaN and -0.
    Among(Vec<f32>),
}

impl Test {
    pub(crate) fn of(declared: &[Declared], predicate: &Predicate) -> Result<Test> {
        let Predicate { column: name, op, value } = *predicate;
        let whole = match name {
            "id" => Some(Whole::Id),
            "label" => Some(Whole::Label),
            "position" => Some(Whole::Position),
            _ => None,
        };
        if let Some(whole) = whole {
            return Ok(Test::Ints(whole, ints(name, op, value)?));
        }
        let at = declared.iter().position(|declared| declared.name == name);
        let at = at.ok_or_else(|| unknown("where", declared, name))?;
        Ok(match declared[at].dtype {
            ColumnType::I64 => Test::Ints(Whole::Own(at), ints(name, op, value)?),
            ColumnType::F32 => Test::Floats(at, floats(name, op, value)?),
            ColumnType::Bool => Test::Bools(at, bools(name, op, value)?),
        })
    }

    /// The rows of `mask` that pass.
    pub(crate) fn passing(&self, row: &Row, r: &Ref, mask: u64) -> u64 {
        match self {
            Test::Ints(Whole::Id, ints) => ints.ids(r, mask),
            Test::Ints(Whole::Label, ints) => ints.column(&row.labels, r, mask),
            Test::Ints(Whole::Position, ints) => ints.column(&row.positions, r, mask),
            Test::Ints(Whole::Own(at), ints) => match row.columns.get(*at) {
                Some(AnyColumn::I64(column)) => ints.column(column, r, mask),
                _ => all_or_none(ints.hold(0), mask),
            },
            Test::Floats(at, floats) => match row.columns.get(*at) {
                Some(AnyColumn::F32(column)) => floats.column(column, r, mask),
                _ => all_or_none(floats.hold(0.0), mask),
            },
            Test::Bools(at, passes) => match row.columns.get(*at) {
                Some(AnyColumn::Bool(column)) => where_column(column, r, mask, |x| passes[usize::from(x)]),
                _ => all_or_none(passes[0], mask),
            },
        }
    }
}

fn all_or_none(holds: bool, mask: u64) -> u64 {
    if holds { mask } else { 0 }
}

/// The rows of `mask` whose number in a column `holds`.
fn where_column<T: Copy>(column: &Column<T>, r: &Ref, mask: u64, holds: impl Fn(T) -> bool) -> u64 {
    let n = r.block.len();
    match if r.offsets.is_none() { column.run(r.id_lo, n) } else { None } {
        // Without branches: the compiler takes several rows at a time.
        Some(run) => mask & run.iter().rev().fold(0, |chosen, &x| chosen << 1 | u64::from(holds(x))),
        None => choose(mask, |slot| holds(column.get(r.id(slot)))),
    }
}

impl Ints {
    fn hold(&self, x: i64) -> bool {
        match self {
            Ints::Within(lo, hi) => (*lo..=*hi).contains(&x),
            Ints::Unequal(other) => x != *other,
            Ints::Among(numbers) => numbers.binary_search(&x).is_ok(),
        }
    }

    fn column(&self, column: &Column<i64>, r: &Ref, mask: u64) -> u64 {
        match *self {
            Ints::Within(lo, hi) => where_column(column, r, mask, |x| (lo <= x) & (x <= hi)),
            Ints::Unequal(other) => where_column(column, r, mask, |x| x != other),
            Ints::Among(_) => where_column(column, r, mask, |x| self.hold(x)),
        }
    }

    /// The same of ids, which ascend within a block.
    fn ids(&self, r: &Ref, mask: u64) -> u64 {
        let below = |id: i64| first_rows(r.rows_below(id));
        match self {
            Ints::Within(lo, hi) => mask & hi.checked_add(1).map_or(u64::MAX, below) & !below(*lo),
            Ints::Unequal(id) => mask & !(id.checked_add(1).map_or(u64::MAX, below) & !below(*id)),
            Ints::Among(ids) => {
                let first = ids.partition_point(|&id| id < r.id_lo);
                let here = ids[first..].iter().take_while(|&&id| id < r.id_hi());
                let slot = |&id: &i64| Some(r.rows_below(id)).filter(|&slot| r.id(slot) == id);
                mask & here.filter_map(slot).fold(0, |chosen, slot| chosen | 1 << slot)
            }
        }
    }
}

impl Floats {
    fn hold(&self, x: f32) -> bool {
        match self {
            Floats::Compare(op, value) => compare(*op, f64::from(x), *value),
            Floats::Among(numbers) => numbers.binary_search_by(|y| y.partial_cmp(&x).unwrap_or(Ordering::Less)).is_ok(),
        }
    }

    fn column(&self, column: &Column<f32>, r: &Ref, mask: u64) -> u64 {
        let with =
            |holds: fn(f64, f64) -> bool, value| where_column(column, r, mask, move |x| holds(f64::from(x), value));
        match *self {
            Floats::Compare(Op::Less, value) => with(|x, y| x < y, value),
            Floats::Compare(Op::AtMost, value) => with(|x, y| x <= y, value),
            Floats::Compare(Op::Greater, value) => with(|x, y| x > y, value),
            Floats::Compare(Op::AtLeast, value) => with(|x, y| x >= y, value),
            _ => where_column(column, r, mask, |x| self.hold(x)),
        }
    }
}

fn compare(op: Op, x: f64, y: f64) -> bool {
    match op {
        Op::Less => x < y,
        Op::AtMost => x <= y,
        Op::Greater => x > y,
        Op::AtLeast => x >= y,
        Op::Equal | Op::In => x == y,
        Op::Unequal => x != y,
    }
}

/// The rows of a mask for which `holds`.
pub(crate) fn choose(mask: u64, holds: impl Fn(usize) -> bool) -> u64 {
    let (mut left, mut chosen) = (mask, 0);
    while left != 0 {
        let slot = left.trailing_zeros() as usize;
        left &= left - 1;
        chosen |= u64::from(holds(slot)) << slot;
    }
    chosen
}

/// What a condition of integers asks for.
fn ints(column: &str, op: Op, value: Value) -> Result<Ints> {
    let every = |numbers: &mut dyn Iterator<Item = i64>| {
        let mut numbers: Vec<i64> = numbers.collect();
        numbers.sort_unstable();
        Ok(Ints::Among(numbers))
    };
    match (op, value) {
        (Op::In, Value::I64(x)) => return every(&mut x.iter().copied()),
        (Op::In, Value::F64(x)) => return every(&mut x.iter().filter_map(|&x| whole(x))),
        _ => {}
    }
    // The whole numbers around the one that is compared with: the same one twice where it is whole.
    let (floor, ceil) = match value {
        Value::I64(x) => one(column, op, x).map(|x| (i128::from(x), i128::from(x)))?,
        Value::F64(x) => match one(column, op, x)? {
            x if x.is_nan() && op == Op::Unequal => (0, 1),
            x if x.is_nan() => return Ok(Ints::Within(1, 0)),
            x => (x.floor() as i128, x.ceil() as i128),
        },
        Value::Bool(_) => return Err(mismatch(column, "int64", "a bool")),
    };
    let (lo, hi) = match op {
        Op::Less => (i128::MIN, ceil.saturating_sub(1)),
        Op::AtMost => (i128::MIN, floor),
        Op::Greater => (floor.saturating_add(1), i128::MAX),
        Op::AtLeast => (ceil, i128::MAX),
        Op::Equal | Op::In => (ceil, floor),
        Op::Unequal => {
            let other = i64::try_from(floor).ok().filter(|_| floor == ceil);
            return Ok(other.map_or(Ints::Within(i64::MIN, i64::MAX), Ints::Unequal));
        }
    };
    // A bound beyond int64 lets everything through on its side, or nothing.
    let (least, most) = (i128::from(i64::MIN), i128::from(i64::MAX));
    Ok(match (i64::try_from(lo.max(least)), i64::try_from(hi.min(most))) {
        (Ok(lo), Ok(hi)) => Ints::Within(lo, hi),
        _ => Ints::Within(1, 0),
    })
}

/// The int64 that a float is, if it is one.
fn whole(x: f64) -> Option<i64> {
    if x.fract() == 0.0 { i64::try_from(x as i128).ok() } else { None }
}

/// What a condition of float32 asks for.
fn floats(column: &str, op: Op, value: Value) -> Result<Floats> {
    // A finite number beyond float32's range stays as it is: nothing that is stored equals it.
    let rounded = |x: f64| if x.is_finite() && (x as f32).is_infinite() { x } else { f64::from(x as f32) };
    if op == Op::In {
        let mut numbers: Vec<f32> = match value {
            Value::I64(x) => x.iter().map(|&x| x as f32).collect(),
            Value::F64(x) => {
                x.iter().filter(|&&x| rounded(x) == f64::from(x as f32)).map(|&x| x as f32 + 0.0).collect()
            }
            Value::Bool(_) => return Err(mismatch(column, "float32", "bools")),
        };
        numbers.sort_unstable_by(f32::total_cmp);
        return Ok(Floats::Among(numbers));
    }
    match value {
        Value::I64(x) => Ok(Floats::Compare(op, f64::from(one(column, op, x)? as f32))),
        Value::F64(x) => Ok(Floats::Compare(op, rounded(one(column, op, x)?))),
        Value::Bool(_) => Err(mismatch(column, "float32", "a bool")),
    }
}

/// Whether false passes, and whether true does.
fn bools(column: &str, op: Op, value: Value) -> Result<[bool; 2]> {
    let Value::Bool(values) = value else {
        if op == Op::In && matches!(value, Value::I64([]) | Value::F64([])) {
            return Ok([false; 2]);
        }
        return Err(mismatch(column, "bool", "a number"));
    };
    let passes = |x: bool| match op {
        Op::In => Ok(values.contains(&x)),
        Op::Equal => Ok(one(column, op, values)? == x),
        Op::Unequal => Ok(one(column, op, values)? != x),
        _ => Err(Error::new(
            Kind::Argument,
            format!("where compares {column:?} with {:?}: a bool column has no order; use ==, != or in", op.name()),
        )),
    };
    Ok([passes(false)?, passes(true)?])
}

/// The one number that everything but `in` compares with.
fn one<T: Copy>(column: &str, op: Op, values: &[T]) -> Result<T> {
    match values {
        [value] => Ok(*value),
        _ => Err(Error::new(
            Kind::Argument,
            format!("where compares {column:?} {} {} numbers; expected one", op.name(), values.len()),
        )),
    }
}

fn mismatch(column: &str, dtype: &str, given: &str) -> Error {
    let want = if dtype == "bool" { "True or False" } else { "numbers" };
    Error::new(Kind::Dtype, format!("where compares {column:?}, a column of {dtype}, with {given}; give {want}"))
}

/// The refusal of a column that the bank does not have.
pub(crate) fn unknown(argument: &str, declared: &[Declared], name: &str) -> Error {
    let own = declared.iter().map(|declared| declared.name.as_str());
    let known: Vec<&str> = ALWAYS.into_iter().chain(own).collect();
    Error::new(Kind::Argument, format!("{argument} names the column {name:?}; this bank has {}", known.join(", ")))
}
