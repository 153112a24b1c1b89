//! Which entries go when a lane is full: policies that read a lane and answer with edits.

mod fifo;
mod least;
mod line;
mod rank;

pub use fifo::Fifo;
pub use least::Least;
pub(crate) use line::Line;
pub(crate) use rank::lot;

use std::ops::Range;

use crate::cells::Declared;
use crate::config::Evict;
use crate::lane::Edit;
use crate::usage::Heat;
use crate::write::View;

/// What the write policy decided.
#[derive(Clone, Copy)]
pub struct Decided<'a> {
    /// Entries that it ends, ascending.
    pub leaving: &'a [i64],
    /// Arriving tokens that it appends, ascending.
    pub runs: &'a [Range<usize>],
}

impl Decided<'_> {
    /// The id of the `n`-th oldest, counted from 0, of the entries that stay and the tokens that arrive.
    pub(crate) fn nth_oldest(&self, view: &View, n: usize) -> Option<i64> {
        // A place in line; each entry that leaves and stands before it moves it by one.
        let mut place = n;
        while let Some(id) = view.lane.nth_oldest(place) {
            let gone = self.leaving.partition_point(|&leaving| leaving <= id);
            if n + gone == place {
                return Some(id);
            }
            place = n + gone;
        }
        let arriving = n.checked_sub(view.lane.len() - self.leaving.len())?;
        let token = self.runs.iter().flat_map(Clone::clone).nth(arriving);
        token.map(|token| view.arrival.id_lo + token as i64)
    }

    /// Tokens that arrive.
    pub(crate) fn arriving(&self) -> usize {
        self.runs.iter().map(ExactSizeIterator::len).sum()
    }
}

/// What a policy decided.
pub struct Plan {
    /// Edits that end entries.
    pub edits: Vec<Edit>,
    /// What the lane keeps for the next time.
    pub(crate) line: Option<Line>,
}

/// Chooses the victims of one lane at one commit.
pub trait EvictPolicy: Send + Sync {
    /// The name in files and messages.
    fn name(&self) -> &'static str;

    /// Edits that end `over` entries of those that stay and those that arrive.
    fn plan(&self, view: View, decided: Decided, over: usize) -> Plan;

    /// What it makes of the use of entries.
    fn heat(&self) -> Heat {
        Heat::default()
    }
}

/// The policy of a configuration.
pub(crate) fn policy(evict: &Evict, columns: &[Declared]) -> Box<dyn EvictPolicy> {
    match evict {
        // Refused writes never get as far as to ask it.
        Evict::Fifo | Evict::Error => Box::new(Fifo),
        Evict::Least(worth, pins) => Box::new(Least::new(worth.clone(), *pins, columns)),
    }
}
