//! Banks on disk: Arrow files that any tool can read, and a manifest that lets none of them be wrong unnoticed.
//!
//! A save is a folder: `manifest.json` and one Arrow IPC file per bank, `bank-0.arrow`, `bank-1.arrow`, ... A data file
//! has the columns row, head, id, label, position, key, value and the caller's, live entries only, one lane after the
//! other, ids ascending; bfloat16 stands as uint16 with the field metadata `mnemex.dtype`. The [manifest](Manifest) says
//! what the banks are, how many entries each lane has, and the length and SHA-256 of each file; it is under a checksum
//! itself.
//!
//! [`save`](fn@save) builds the folder under a temporary name beside its place, syncs it, and moves it there in one step.
//! [`open`](fn@open) believes nothing: lengths, checksums, types, dimensions, ids and counts are checked before a bank is made of
//! them, and nothing is allocated that the files are not long enough to fill. A checksum is not a signature: it finds
//! damage, and the checks behind it keep a forged file from doing more than holding other numbers.

mod decode;
mod encode;
mod error;
mod export;
mod folder;
pub mod ingest;
mod interrupt;
mod manifest;
mod open;
mod pages;
mod policies;
mod publish;
mod save;
mod table;

pub use error::{Error, Result};
pub use export::Export;
pub use manifest::{Kind, Manifest};
pub use open::{Opened, open};
pub use save::{Contents, save};
