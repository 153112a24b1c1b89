//! What can be wrong with a call, in the caller's words.

use std::fmt;

/// The kind decides which exception a binding raises; the message says what was given, what was expected, what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number or word outside its range.
    Argument,
    /// An array of the wrong shape.
    Shape,
    /// An array of a type that would lose bits.
    Dtype,
    /// A row that is not there.
    Row,
    /// An id that is not there.
    Id,
    /// NaN or infinity where finite numbers are due.
    NonFinite,
    /// More entries than the bank may hold.
    Capacity,
    /// A call that does not fit the bank's state.
    State,
    /// The machine cannot do it (memory, instruction set).
    Resource,
    /// The caller interrupted the call.
    Interrupted,
}

/// A refused call. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind of mistake.
    pub kind: Kind,
    /// The whole sentence.
    pub message: String,
    /// The token of the call that is at fault, where it is one: for who knows it by another number.
    pub token: Option<usize>,
}

/// Result of a call that may be refused.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A refusal of the call as a whole.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), token: None }
    }

    /// The refusal of one of the call's tokens.
    pub(crate) fn at(token: usize, kind: Kind, message: impl Into<String>) -> Error {
        Error { token: Some(token), ..Error::new(kind, message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `n` times the same number, or a refusal where the memory is not to be had.
pub(crate) fn filled<T: Clone>(number: T, n: usize) -> Result<Vec<T>> {
    let mut numbers = Vec::new();
    let refusal =
        |_| Error::new(Kind::Resource, format!("an answer of {n} numbers does not fit in memory: ask for less"));
    numbers.try_reserve_exact(n).map_err(refusal)?;
    numbers.resize(n, number);
    Ok(numbers)
}

/// A refusal where so many more bytes are not to be had: asked before many small pieces are made that cannot fail singly.
pub(crate) fn room_for(bytes: usize, what: impl FnOnce() -> String) -> Result<()> {
    let room = Vec::<u8>::new().try_reserve_exact(bytes);
    room.map_err(|_| Error::new(Kind::Resource, format!("{} takes {bytes} bytes, which are not to be had", what())))
}

/// `Err` of the given kind unless `holds`.
pub(crate) fn ensure(holds: bool, kind: Kind, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::new(kind, message())) }
}
