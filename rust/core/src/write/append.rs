//! Every token becomes an entry.

use std::ops::Range;

use super::{View, WritePolicy};
use crate::lane::Edit;

/// Append all.
pub struct Append;

impl WritePolicy for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn plan(&self, view: View) -> (Vec<Edit>, Vec<Range<usize>>) {
        #[expect(clippy::single_range_in_vec_init, reason = "one run of tokens, not a vector of numbers")]
        (Vec::new(), vec![0..view.arrival.rows.len()])
    }
}
