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
        (Vec::new(), view.tokens.to_vec())
    }
}
