//! "Here are keys, values and queries; remember, and answer": banks without Python, files or a batch loop.
//!
//! A [`Bank`] has rows, a [`Row`](version::Row) has one [`Lane`](lane::Lane) per head, a lane has
//! [lists](list::List) of references to [blocks](block::Block). Everything is shared by `Arc` and copied on write, so a
//! snapshot, a fork and a copy cost a pointer. Writes are [staged](stage), planned by the parts
//! ([`index`], [`write`](mod@write), [`evict`]) as [edits](lane::Edit), and published as one [version](version::Version).
//! Reads take a [`Snapshot`]: [`search`] is exact to the bit, [`attend`] is softmax over what search takes, [`dense`]
//! is softmax over everything.
//!
//! No I/O here, no clock but the interrupt poll, no thread but those of [`work`].

pub mod bias;
pub mod cells;
pub mod codec;
pub mod config;
pub mod error;
pub mod input;
pub mod work;

pub mod block;
mod capacity;
pub mod lane;
pub mod layout;
pub mod list;
pub mod version;

pub mod evict;
pub mod index;
pub mod write;

pub mod attend;
pub mod backward;
pub mod bank;
pub mod change;
pub mod commit;
pub mod find;
pub mod gather;
pub mod labels;
pub mod predicate;
pub mod product;
pub mod query;
pub mod reader;
pub mod restore;
pub mod search;
pub mod stage;
pub mod stats;
pub mod tally;
pub mod usage;

mod arena;
mod columns;
mod dense;
mod extent;
mod filter;
mod first_floors;
mod first_pass;
mod form;
mod landing;
mod pages;
mod piece;
mod plane;
mod rescore;
mod reservoir;
mod rollback;
mod scores;
#[cfg(test)]
mod seam;
mod small;
mod sums;

pub use bank::{Bank, Snapshot};
pub use change::{Change, change_all};
pub use codec::Codec;
pub use commit::{Receipt, commit_all};
pub use config::Config;
pub use error::{Error, Kind, Result};
pub use mnemex_kernels::canonical::Metric;
