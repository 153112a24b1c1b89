//! Which entries go when a lane is full: policies that read a lane and answer with edits.

mod fifo;

pub use fifo::Fifo;

use std::ops::Range;

use crate::lane::Edit;
use crate::write::View;

/// What the write policy decided.
#[derive(Clone, Copy)]
pub struct Decided<'a> {
    /// Entries that it ends, ascending.
    pub leaving: &'a [i64],
    /// Arriving tokens that it appends, ascending.
    pub runs: &'a [Range<usize>],
}

/// Chooses the victims of one lane at one commit.
pub trait EvictPolicy: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &'static str;

    /// Edits that end `over` entries of those that stay and those that arrive.
    fn plan(&self, view: View, decided: Decided, over: usize) -> Vec<Edit>;
}
