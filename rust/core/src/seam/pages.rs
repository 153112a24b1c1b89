//! An index of blocks of time: every `size` ids are a list of their own.

use std::ops::Range;

use crate::block::Schema;
use crate::index::Index;
use crate::lane::{Arrival, Lane};

/// Lists by time; a query looks at all of them, which keeps it exact, or at the newest alone.
pub(super) struct Pages {
    pub(super) size: i64,
    pub(super) newest_only: bool,
}

impl Index for Pages {
    fn name(&self) -> &'static str {
        "pages"
    }

    fn route(&self, _: &Schema, _: &Lane, arrival: Arrival, tokens: Range<usize>) -> Vec<(usize, Range<usize>)> {
        let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
        for token in tokens {
            let list = ((arrival.id_lo + token as i64) / self.size) as usize;
            match runs.last_mut() {
                Some((last, run)) if *last == list => run.end = token + 1,
                _ => runs.push((list, token..token + 1)),
            }
        }
        runs
    }

    fn probe(&self, _: &Schema, lane: &Lane, _: &[f32]) -> Option<Vec<usize>> {
        self.newest_only.then(|| (0..lane.lists().len()).rev().take(1).collect())
    }
}
