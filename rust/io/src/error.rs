//! What can go wrong with files, told apart as far as a caller can act on it.

use std::fmt;
use std::io;
use std::path::Path;

/// A refused save or open. A save that failed left nothing behind and harmed nothing.
#[derive(Debug)]
pub enum Error {
    /// Nothing is at that path.
    NotFound(String),
    /// Something is at that path already.
    Exists(String),
    /// A truncated, altered or foreign file.
    Format(String),
    /// The operating system refused.
    Os {
        /// The whole sentence.
        message: String,
        /// What it answered.
        source: io::Error,
    },
    /// An argument that is out of range, memory that is not to be had, an interruption.
    Core(mnemex_core::Error),
}

/// Result of a save or open.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Turns the operating system's answer into an error that says what was attempted, for `map_err`.
    pub(crate) fn os(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let what = format!("cannot {action} {}", path.display());
        move |source| Error::Os { message: format!("{what}: {source}"), source }
    }

    pub(crate) fn format(path: &Path, message: impl fmt::Display) -> Error {
        Error::Format(format!("{}: {message}", path.display()))
    }

    pub(crate) fn argument(message: impl Into<String>) -> Error {
        Error::Core(mnemex_core::Error::new(mnemex_core::Kind::Argument, message))
    }
}

impl From<mnemex_core::Error> for Error {
    fn from(error: mnemex_core::Error) -> Error {
        Error::Core(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound(message) | Error::Exists(message) | Error::Format(message) | Error::Os { message, .. } => {
                f.write_str(message)
            }
            Error::Core(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Os { source, .. } => Some(source),
            Error::Core(error) => Some(error),
            _ => None,
        }
    }
}
