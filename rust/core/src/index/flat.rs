//! One list, looked at whole: exact.

use std::ops::Range;

use super::Index;
use crate::block::Schema;
use crate::lane::{Arrival, Lane};

/// Every entry, in id order.
pub struct Flat;

impl Index for Flat {
    fn name(&self) -> &'static str {
        "flat"
    }

    fn route(&self, _: &Schema, _: &Lane, _: Arrival, tokens: Range<usize>) -> Vec<(usize, Range<usize>)> {
        vec![(0, tokens)]
    }

    fn probe(&self, _: &Schema, _: &Lane, _: &[f32]) -> Option<Vec<usize>> {
        None
    }
}
