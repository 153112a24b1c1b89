//! Where a new key lives, and where a query looks.
//!
//! An index routes arriving tokens to the lists of a lane, and says which lists a query's answer can be in. It neither
//! scores nor stores: scanning, selection and rescoring are the same for every index ([`crate::search`]).

mod flat;

pub use flat::Flat;

use std::ops::Range;

use crate::block::Schema;
use crate::lane::{Arrival, Lane};

/// How a lane's entries are divided into lists.
pub trait Index: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &'static str;

    /// The list of each run of arriving tokens; the runs cover `tokens` in order.
    fn route(&self, schema: &Schema, lane: &Lane, arrival: Arrival, tokens: Range<usize>)
    -> Vec<(usize, Range<usize>)>;

    /// The lists to scan for queries `[n, dim]` of one lane; None: all of them, which is what makes an answer exact.
    fn probe(&self, schema: &Schema, lane: &Lane, queries: &[f32]) -> Option<Vec<usize>>;
}
