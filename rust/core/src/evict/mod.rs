//! Which entries go when a lane is full: policies that read a lane and answer with edits.

mod fifo;

pub use fifo::Fifo;

use crate::lane::Edit;
use crate::write::View;

/// Chooses the victims of one lane at one commit.
pub trait EvictPolicy: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &'static str;

    /// Edits that end `over` entries, arriving ones included.
    fn plan(&self, view: View, over: usize) -> Vec<Edit>;
}
