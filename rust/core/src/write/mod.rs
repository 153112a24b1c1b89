//! What becomes of arriving tokens: policies that read a lane and answer with edits.

mod adjacent;
mod append;
mod cluster;
mod consolidate;
pub mod how;
mod near_in_codes;
mod nearest;
pub mod pages;
mod planner;
mod scene;

pub use adjacent::MergeAdjacent;
pub use append::Append;
pub use cluster::Cluster;
pub use consolidate::Consolidate;
pub use planner::{Planned, Planner};
pub use scene::{Scene, Side, Touched};

use std::ops::Range;

use mnemex_kernels::Kernels;

use crate::block::Schema;
use crate::columns::AnyColumn;
use crate::config::Write;
use crate::error::Result;
use crate::lane::{Arrival, Edit, Lane};
use crate::stage::StagedRow;
use crate::usage::{Heat, Touches, Use};
use crate::version::Row;
use crate::work::Ticker;

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
    /// Entries that tokens were merged into at this commit, ascending: known once the write policy has decided.
    pub merged: &'a [i64],
    /// Number of the version that this commit makes.
    pub number: u64,
    /// Which head of its row the lane is.
    pub head: usize,
    /// Live entries that the lane may have.
    pub capacity: usize,
    /// The row, and what is staged for it.
    pub(crate) row: &'a Row,
    pub(crate) staged: &'a StagedRow,
    /// What was staged of the use of entries.
    pub(crate) touches: Option<&'a Touches>,
    /// What the evict policy makes of it.
    pub(crate) heat: Heat,
    /// Whether to stop.
    pub(crate) ticker: &'a Ticker<'a>,
}

impl View<'_> {
    /// How an entry of the lane was used; touches that were staged count, from version `number` on, which writes what
    /// arrives and merges what is merged.
    pub fn usage(&self, id: i64) -> Use {
        if id >= self.arrival.id_lo {
            return Use::written(self.number);
        }
        let mut used = self.lane.usage().get(id);
        if let Some(&touches) = self.touches.and_then(|touches| touches.get(&id)) {
            used = used.touched(touches, self.number, self.heat);
        }
        if self.merged.binary_search(&id).is_ok() {
            used = used.merged(0, self.number, self.heat);
        }
        used
    }

    /// The number that an entry or an arriving token has in the `at`-th of the caller's columns; 0 where it was given none,
    /// or where the column holds no float32.
    pub fn float(&self, at: usize, id: i64) -> f32 {
        match usize::try_from(id - self.arrival.id_lo) {
            Ok(token) => self.staged.columns.float(at, token),
            Err(_) => match self.row.columns.get(at) {
                Some(AnyColumn::F32(column)) => column.get(id),
                _ => 0.0,
            },
        }
    }
}

/// Edits of existing entries, and runs of arriving tokens to append, ascending.
pub type LanePlan = (Vec<Edit>, Vec<Range<usize>>);

/// Decides, for one lane and one commit, which tokens are appended, merged or take another's place.
pub trait WritePolicy: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &'static str;

    /// Edits of existing entries, and the runs of arriving tokens to append, ascending; the index routes those. Tokens
    /// that are not to be written, and entries that are replaced, stay out of it.
    ///
    /// # Errors
    /// When memory is short, or the caller interrupts.
    fn plan(&self, view: View) -> Result<LanePlan>;
}

/// The policy of a configuration.
pub(crate) fn policy(write: &Write) -> Box<dyn WritePolicy> {
    match write {
        // Where there is a planner, it is asked instead.
        Write::Append | Write::Planned(_) => Box::new(Append),
        Write::Consolidate(how) => Box::new(Consolidate(*how)),
        Write::MergeAdjacent(how) => Box::new(MergeAdjacent(*how)),
        Write::Cluster(how) => Box::new(Cluster(*how)),
        Write::Pages(_) => Box::new(pages::Pages),
    }
}

/// Runs of tokens as policies give them.
#[derive(Default)]
struct Runs(Vec<Range<usize>>);

impl Runs {
    fn push(&mut self, token: usize) {
        match self.0.last_mut() {
            Some(run) if run.end == token => run.end += 1,
            _ => self.0.push(token..token + 1),
        }
    }
}

/// The tokens that are to be written, ascending.
fn arriving(view: &View) -> Vec<usize> {
    view.tokens.iter().flat_map(Clone::clone).collect()
}

/// The key and value of an entry or an arriving token; zeros for one that is not there, an empty value without values.
fn decoded(view: &View, id: i64) -> (Vec<f32>, Vec<f32>) {
    let (schema, rows) = (view.schema, view.arrival.rows);
    let mut key = vec![0.0; schema.key.dim];
    let mut value = vec![0.0; schema.value.map_or(0, |layout| layout.dim)];
    match usize::try_from(id - view.arrival.id_lo) {
        Ok(token) => {
            rows.key(schema, token).decode(&mut key);
            if let Some(layout) = schema.value {
                rows.value(layout, token).decode(&mut value);
            }
        }
        Err(_) => {
            if let Some((r, slot)) = view.lane.locate(id) {
                r.block.key(schema, slot).decode(&mut key);
                // Where keys are the values, they are not values of their own.
                if let Some(stored) = r.block.value(schema, slot).filter(|_| schema.value.is_some()) {
                    stored.decode(&mut value);
                }
            }
        }
    }
    (key, value)
}
