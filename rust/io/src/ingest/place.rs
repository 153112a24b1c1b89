//! Where in its source a mistake is, in words: file, column, and the number of the table row.

use arrow_schema::{ArrowError, DataType};
use mnemex_core::Kind;

use crate::error::Error;

/// Where tables come from.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The file; None where they come from a stream.
    pub file: Option<String>,
    /// The number of their first row there.
    pub first: u64,
}

impl Place {
    fn prefix(&self) -> String {
        self.file.as_ref().map_or_else(String::new, |file| format!("{file}, "))
    }

    /// The refusal of a column, or of one row of it.
    pub(super) fn refuse(&self, kind: Kind, column: &str, row: Option<u64>, what: String) -> Error {
        let message = match row {
            Some(row) => format!("{}column {column:?}, row {row}: {what}", self.prefix()),
            None => format!("{}column {column:?} {what}", self.prefix()),
        };
        Error::Core(mnemex_core::Error::new(kind, message))
    }

    /// The refusal of the whole source.
    pub(super) fn refuse_all(&self, kind: Kind, what: &str) -> Error {
        Error::Core(mnemex_core::Error::new(kind, format!("{}{what}", self.prefix())))
    }

    /// Data that are not what they say.
    pub(super) fn malformed(&self, what: impl std::fmt::Display) -> Error {
        Error::Format(format!("{}{what}", self.prefix()))
    }

    /// What the source answered instead of a batch.
    pub(super) fn failed(&self, error: &ArrowError) -> Error {
        self.malformed(format!("the source failed: {error}"))
    }
}

/// A type's name as numpy writes it.
pub(super) fn shown(data_type: &DataType) -> String {
    data_type.to_string().to_lowercase()
}

/// The rows of a piece of a table, and what they are called in their source: its rows are numbered from 0.
pub(super) struct Rows {
    first: u64,
    len: usize,
    /// Rows that are left, by their place in the piece; None: all.
    kept: Option<Vec<usize>>,
}

impl Rows {
    pub(super) fn run(first: u64, len: usize) -> Rows {
        Rows { first, len, kept: None }
    }

    pub(super) fn keep(self, kept: Vec<usize>) -> Rows {
        Rows { len: kept.len(), kept: Some(kept), ..self }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The number in the source.
    pub(super) fn number(&self, row: usize) -> u64 {
        self.first + self.kept.as_ref().map_or(row, |kept| kept[row]) as u64
    }
}
