//! What becomes of arriving tokens: policies that read a lane and answer with edits.

mod append;

pub use append::Append;

use std::ops::Range;

use mnemex_kernels::Kernels;

use crate::block::Schema;
use crate::lane::{Arrival, Edit, Lane};

/// What a policy may look at.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Layout of the lane's blocks.
    pub schema: &'a Schema,
    /// Kernels for scoring.
    pub kernels: &'a Kernels,
    /// The lane as it is.
    pub lane: &'a Lane,
    /// What arrives.
    pub arrival: Arrival<'a>,
}

/// Decides, for one lane and one commit, which tokens are appended, merged or take another's place.
pub trait WritePolicy: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &'static str;

    /// Edits of existing entries, and the runs of arriving tokens to append, ascending; the index routes those.
    fn plan(&self, view: View) -> (Vec<Edit>, Vec<Range<usize>>);
}
