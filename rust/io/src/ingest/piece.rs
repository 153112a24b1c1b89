//! One piece of a table: a few megabytes of rows, cleared of dictionaries and nulls, as tokens.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, StructArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_schema::ArrowError;
use arrow_select::{filter::filter, take::take};
use mnemex_core::Kind;

use super::Nulls;
use super::columns::{Columns, Named, Numbers};
use super::place::{Place, Rows};
use crate::error::Result;

/// Tokens in the order in which they came. The arrays beside the vectors hold one number per token.
pub(super) struct Piece {
    /// Table rows, `rows_per_token` for each token.
    pub(super) rows: Rows,
    pub(super) rows_per_token: usize,
    /// `[tokens, heads, key_dim]`
    pub(super) keys: Buffer,
    /// `[tokens, heads, value_dim]`
    pub(super) values: Option<Buffer>,
    pub(super) bank_rows: Option<Vec<i64>>,
    pub(super) labels: Option<Vec<i64>>,
    pub(super) positions: Option<Vec<i64>>,
    pub(super) columns: Vec<(String, Numbers)>,
}

impl Piece {
    /// Reads whole tokens, of which the first row is called `first`.
    pub(super) fn read(
        table: &StructArray,
        first: u64,
        columns: &Columns,
        rows_per_token: usize,
        nulls: Nulls,
        place: &Place,
    ) -> Result<Piece> {
        let broken = |error: ArrowError| place.malformed(error);
        let mut rows = Rows::run(first, table.len());
        let mut arrays = table.columns().to_vec();
        for (_, at) in columns.all() {
            if let Some(dictionary) = arrays[at].as_any_dictionary_opt() {
                arrays[at] = take(dictionary.values(), dictionary.keys(), None).map_err(broken)?;
            }
        }
        let valid = valid_rows(table, &arrays, columns);
        if valid.null_count() > 0 {
            if nulls == Nulls::Raise {
                return Err(null_refusal(&valid, &arrays, columns, &rows, place));
            }
            let kept = whole_tokens(valid.inner(), rows_per_token);
            rows = rows.keep(kept.set_indices().collect());
            let mask = BooleanArray::new(kept, None);
            for (_, at) in columns.all() {
                // A column may serve twice.
                if arrays[at].len() > rows.len() {
                    arrays[at] = filter(&arrays[at], &mask).map_err(broken)?;
                }
            }
        }
        let integers =
            |named: &Option<Named>| named.as_ref().map(|named| named.integers(&arrays, &rows, place)).transpose();
        let value = columns.value.as_ref();
        let own = columns.columns.iter();
        let own = own.map(|(bank, named)| Ok((bank.clone(), named.numbers(&arrays, &rows, place)?)));
        let mut piece = Piece {
            rows_per_token,
            keys: columns.key.numbers(&arrays[columns.key.at], &rows, place)?,
            values: value.map(|column| column.numbers(&arrays[column.at], &rows, place)).transpose()?,
            bank_rows: integers(&columns.row)?,
            labels: integers(&columns.label)?,
            positions: integers(&columns.position)?,
            columns: own.collect::<Result<_>>()?,
            rows,
        };
        if let Some(head) = &columns.head {
            let heads = head.integers(&arrays, &piece.rows, place)?;
            piece.join_heads(&heads, head, columns, place)?;
        }
        Ok(piece)
    }

    /// Tokens.
    pub(super) fn len(&self) -> usize {
        self.rows.len() / self.rows_per_token
    }

    /// The number of a token's first table row.
    pub(super) fn number(&self, token: usize) -> u64 {
        self.rows.number(token * self.rows_per_token)
    }

    /// Checks that each token's rows are its heads in order and say the same of it; keeps one of what they say.
    fn join_heads(&mut self, heads: &[i64], named: &Named, columns: &Columns, place: &Place) -> Result<()> {
        let n = self.rows_per_token;
        let refuse = |column: &str, row: usize, what: String| {
            let what = format!(
                "{what}: with head= a token takes {n} rows together, heads 0 to {} in order, as to_arrow() has them: \
                 sort the table by row, id and head",
                n - 1
            );
            Err(place.refuse(Kind::Argument, column, Some(self.rows.number(row)), what))
        };
        if let Some((row, head)) = heads.iter().enumerate().find(|&(row, &head)| head != (row % n) as i64) {
            return refuse(named.name(), row, format!("head {head} where head {} is due", row % n));
        }
        let places: Vec<usize> = (0..self.len()).map(|token| token * n).collect();
        let sides = [(&columns.row, &self.bank_rows), (&columns.label, &self.labels)];
        for (side, numbers) in sides.into_iter().chain([(&columns.position, &self.positions)]) {
            let (Some(side), Some(numbers)) = (side, numbers) else { continue };
            if let Some(row) = (0..numbers.len()).find(|&row| numbers[row] != numbers[row - row % n]) {
                return refuse(side.name(), row, "differs from the token's first head".into());
            }
        }
        for ((_, side), (_, numbers)) in columns.columns.iter().zip(&self.columns) {
            if let Some(row) = (0..self.rows.len()).find(|&row| !numbers.same(row, row - row % n)) {
                return refuse(side.name(), row, "differs from the token's first head".into());
            }
        }
        for numbers in [&mut self.bank_rows, &mut self.labels, &mut self.positions] {
            *numbers = numbers.take().map(|numbers| places.iter().map(|&at| numbers[at]).collect());
        }
        self.columns.iter_mut().for_each(|(_, numbers)| *numbers = numbers.at(&places));
        Ok(())
    }
}

/// Rows that are not null, neither themselves nor in a column that is read.
fn valid_rows(table: &StructArray, arrays: &[ArrayRef], columns: &Columns) -> NullBuffer {
    let read = columns.all().into_iter().map(|(_, at)| arrays[at].logical_nulls());
    let nulls = read.fold(table.nulls().cloned(), |nulls, more| NullBuffer::union(nulls.as_ref(), more.as_ref()));
    nulls.unwrap_or_else(|| NullBuffer::new_valid(table.len()))
}

fn null_refusal(
    valid: &NullBuffer,
    arrays: &[ArrayRef],
    columns: &Columns,
    rows: &Rows,
    place: &Place,
) -> crate::error::Error {
    let row = (0..valid.len()).find(|&row| valid.is_null(row)).unwrap_or(0);
    let is_null = |at: usize| arrays[at].logical_nulls().is_some_and(|nulls| nulls.is_null(row));
    let what = "null: pass nulls=\"skip\" to leave such rows out, or fill it".to_owned();
    match columns.all().into_iter().find(|&(_, at)| is_null(at)) {
        Some((name, _)) => place.refuse(Kind::Argument, name, Some(rows.number(row)), what),
        None => place.refuse_all(Kind::Argument, &format!("row {}: {what}", rows.number(row))),
    }
}

/// Rows of tokens of which every row is valid.
fn whole_tokens(valid: &BooleanBuffer, rows_per_token: usize) -> BooleanBuffer {
    if rows_per_token == 1 {
        return valid.clone();
    }
    let whole = |token: usize| (0..rows_per_token).all(|head| valid.value(token * rows_per_token + head));
    let tokens: Vec<bool> = (0..valid.len() / rows_per_token).map(whole).collect();
    BooleanBuffer::collect_bool(valid.len(), |row| tokens[row / rows_per_token])
}
