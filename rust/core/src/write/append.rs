//! Every token becomes an entry.

use std::ops::Range;

use super::{View, WritePolicy};
use crate::error::Result;
use crate::lane::Edit;

/// Append all.
pub struct Append;

impl WritePolicy for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn plan(&self, view: View) -> Result<(Vec<Edit>, Vec<Range<usize>>)> {
        Ok((Vec::new(), view.tokens.to_vec()))
    }
}
