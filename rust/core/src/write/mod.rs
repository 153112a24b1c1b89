//! What becomes of arriving tokens: policies that read a lane and answer with edits.

mod append;

pub use append::Append;

use std::ops::Range;

use mnemex_kernels::Kernels;

use crate::block::Schema;
use crate::lane::{Arrival, Edit, Lane};
use crate::usage::{Touches, Use};

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
    /// Runs of arriving tokens that are to be written, ascending: the others were replaced while they were staged.
    pub tokens: &'a [Range<usize>],
    /// Entries of the lane that end at this commit, ascending: tokens replace them.
    pub replaced: &'a [i64],
    /// Number of the version that this commit makes.
    pub number: u64,
    /// What was staged of the use of entries.
    pub(crate) touches: Option<&'a Touches>,
}

impl View<'_> {
    /// How an entry of the lane was used; touches that were staged count, from version `number` on.
    pub fn usage(&self, id: i64) -> Use {
        let used = self.lane.usage().get(id);
        match self.touches.and_then(|touches| touches.get(&id)) {
            Some((hits, mass)) => Use { hits: used.hits + hits, mass: used.mass + mass, last: self.number },
            None => used,
        }
    }
}

/// Decides, for one lane and one commit, which tokens are appended, merged or take another's place.
pub trait WritePolicy: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &'static str;

    /// Edits of existing entries, and the runs of arriving tokens to append, ascending; the index routes those. Tokens
    /// that are not to be written, and entries that are replaced, stay out of it.
    fn plan(&self, view: View) -> (Vec<Edit>, Vec<Range<usize>>);
}
