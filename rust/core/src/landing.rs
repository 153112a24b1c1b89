//! Where staged tokens ended: the answer that a receipt gives for each of them.
//!
//! A bulk write has as many answers as it has tokens and heads, and few callers ask; so a lane keeps what is unusual, and
//! the arrays are made when somebody looks.

use std::collections::{BTreeMap, BTreeSet};

use crate::commit::Receipt;
use crate::lane::{Arrival, Edit};

/// What became of the tokens that arrived in one lane at one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Landing {
    /// Entries with a smaller id were evicted.
    floor: i64,
    /// Tokens that did not become entries of their own: where they ended; -1: nowhere.
    elsewhere: BTreeMap<i64, i64>,
}

impl Landing {
    /// Reads a plan.
    pub(crate) fn of(arrival: Arrival, plan: &[Edit]) -> Landing {
        let mut landing = Landing::default();
        let (mut own, mut gone) = (Vec::new(), BTreeSet::new());
        for edit in plan {
            match edit {
                Edit::Append { tokens, .. } => own.push(tokens.clone()),
                Edit::Merge { id, tokens, .. } | Edit::Join { id, tokens, .. } => {
                    landing.elsewhere.extend(tokens.iter().map(|&token| (arrival.id_lo + token as i64, *id)));
                }
                Edit::Kill { id } | Edit::Replace { id } => _ = gone.insert(*id),
                Edit::Floor { id } => landing.floor = landing.floor.max(*id),
            }
        }
        own.sort_unstable_by_key(|run| run.start);
        // What no run holds: between the runs, and behind the last.
        let mut next = 0;
        let end = arrival.rows.len();
        own.push(end..end);
        for run in own {
            for token in next..run.start {
                landing.elsewhere.entry(arrival.id_lo + token as i64).or_insert(-1);
            }
            next = run.end;
        }
        for &id in gone.range(arrival.id_lo..) {
            landing.elsewhere.insert(id, -1);
        }
        landing.elsewhere.values_mut().filter(|to| gone.contains(to)).for_each(|to| *to = -1);
        landing
    }

    /// The id in which the token with the given id ended, or -1.
    fn of_token(&self, id: i64) -> i64 {
        let to = if id < 0 { -1 } else { self.elsewhere.get(&id).copied().unwrap_or(id) };
        if to < self.floor { -1 } else { to }
    }
}

impl Receipt {
    /// Key/value heads of the bank.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// For each stage call `[rows, heads, T]`: the id in which each token ended, its own unless a policy merged it; -1
    /// where it was not written, was replaced, or was evicted by this commit.
    pub fn landed(&self) -> Vec<Vec<i64>> {
        let of_call = |call: &crate::stage::StagedIds| {
            let n_tokens = call.tokens;
            let mut landed = Vec::with_capacity(call.ids.len() * self.heads);
            for (at, row) in call.rows.iter().enumerate() {
                let ids = &call.ids[at * n_tokens..][..n_tokens];
                match self.landings.get(row) {
                    Some(lanes) => landed.extend(lanes.iter().flat_map(|lane| ids.iter().map(|&id| lane.of_token(id)))),
                    // Nothing arrived in the row, so no id is one.
                    None => landed.resize(landed.len() + n_tokens * self.heads, -1),
                }
            }
            landed
        };
        self.ids.iter().map(of_call).collect()
    }
}
