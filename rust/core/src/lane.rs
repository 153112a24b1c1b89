//! The entries of one key/value head of one row, and the edits that are the only way they change.

use std::collections::BTreeMap;
use std::ops::Range;

use mnemex_kernels::Kernels;

use crate::arena::Arena;
use crate::block::{Encoded, Schema};
use crate::error::Result;
use crate::evict::Line;
use crate::extent::Demand;
use crate::landing::Landing;
use crate::list::{Append, List, Ref};
use crate::pages::Cached;
use crate::usage::{Heat, Touches, Usage, Use};
use crate::work::Ticker;
use crate::write::pages::Paged;

/// What a policy asks for. A plan names an id once, so the order of its edits does not matter.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// End one entry.
    Kill {
        /// Its id.
        id: i64,
    },
    /// End one entry whose place a token takes, or that went into another one: like Kill, but nobody counts it as evicted.
    Replace {
        /// Its id.
        id: i64,
    },
    /// End every entry with a smaller id, arriving ones included.
    Floor {
        /// The smallest id that stays.
        id: i64,
    },
    /// Rewrite one entry under its id.
    Merge {
        /// Its id.
        id: i64,
        /// The new key.
        key: Vec<f32>,
        /// The new value; empty without values.
        value: Vec<f32>,
        /// Arriving tokens that it stands for from here on, counted from 0.
        tokens: Vec<usize>,
        /// Tokens that entries which end here stood for, and it does from here on.
        taken: u64,
    },
    /// Count arriving tokens as members of the cluster of one entry, which stays as it is.
    Join {
        /// Its id.
        id: i64,
        /// Arriving tokens, counted from 0, that are counted there and kept nowhere.
        tokens: Vec<usize>,
        /// Those that are appended too, as a sample of the cluster.
        sampled: Vec<usize>,
    },
    /// Add a run of the arriving tokens to a list; runs of one list ascend.
    Append {
        /// The list.
        list: usize,
        /// Arriving tokens, counted from 0.
        tokens: Range<usize>,
    },
}

impl Edit {
    /// The one entry that this edit merges into, if it is such an edit.
    pub(crate) fn merges(&self) -> Option<i64> {
        match self {
            Edit::Merge { id, .. } | Edit::Join { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// The one entry that this edit ends, if it is such an edit.
    pub(crate) fn ends(&self) -> Option<i64> {
        match self {
            Edit::Kill { id } | Edit::Replace { id } => Some(*id),
            _ => None,
        }
    }
}

/// Staged tokens on their way into a lane: consecutive ids, encoded.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// Id of the first.
    pub id_lo: i64,
    /// Their rows.
    pub rows: &'a Encoded,
}

/// Entries, in lists. Flat has one list; an index that routes has many.
#[derive(Clone, Default)]
pub struct Lane {
    lists: Vec<List>,
    n_live: usize,
    usage: Usage,
    /// Who goes next, where the evict policy keeps a line.
    line: Option<Line>,
    /// Its pages, if somebody read them.
    pub(crate) pages: Cached,
}

/// What a plan does, as far as the use of entries tells of it.
#[derive(Default)]
pub(crate) struct Noted {
    /// Ids of the tokens that it appends.
    written: Vec<Range<i64>>,
    /// Entries that it merges into or whose clusters grow, and how many tokens into each.
    pub(crate) merged: Vec<(i64, u64)>,
    /// Ids of tokens that it appends as samples, and of the representatives of their clusters.
    sampled: Vec<(i64, i64)>,
}

/// A plan with everything built that could fail.
#[derive(Default)]
pub(crate) struct Prepared {
    kills: Vec<i64>,
    replaced: Vec<i64>,
    floor: Option<i64>,
    merges: Vec<(i64, Vec<f32>, Vec<f32>)>,
    appends: Vec<(usize, Append)>,
    /// Arriving tokens that the plan drops.
    dropped: usize,
    pub(crate) noted: Noted,
    pub(crate) landing: Landing,
    /// What the evict policy keeps, if it was asked.
    pub(crate) line: Option<Line>,
    /// Of the first head: the pages of all that arrives in the row, and what comes after has to know.
    pub(crate) paged: Option<(Vec<i64>, Paged)>,
}

/// Where what a lane takes finds room.
#[derive(Clone, Copy)]
pub(crate) struct Room<'a> {
    /// Rows that all lanes of the bank are about to take.
    pub(crate) in_bank: usize,
    pub(crate) arena: &'a Arena,
    /// Whether another version has this lane too.
    pub(crate) held: bool,
}

impl Lane {
    /// Live entries.
    pub fn len(&self) -> usize {
        self.n_live
    }

    /// Whether there is no live entry.
    pub fn is_empty(&self) -> bool {
        self.n_live == 0
    }

    /// The lists.
    pub fn lists(&self) -> &[List] {
        &self.lists
    }

    /// The reference and row of a live id. Lists are few until an index that routes brings a map from id to list.
    pub fn locate(&self, id: i64) -> Option<(&Ref, usize)> {
        self.lists.iter().find_map(|list| list.locate(id))
    }

    /// The id of the `n`-th oldest live entry, counted from 0.
    pub fn nth_oldest(&self, n: usize) -> Option<i64> {
        if let [list] = self.lists.as_slice() {
            let mut left = n;
            for r in list.refs() {
                if left < r.n_live() {
                    return r.live_slots().nth(left).map(|slot| r.id(slot));
                }
                left -= r.n_live();
            }
            return None;
        }
        let mut ids = self.live_ids();
        (n < ids.len()).then(|| *ids.select_nth_unstable(n).1)
    }

    /// All live ids, list by list.
    pub fn live_ids(&self) -> Vec<i64> {
        let refs = self.lists.iter().flat_map(List::refs);
        refs.flat_map(|r| r.live_slots().map(|slot| r.id(slot))).collect()
    }

    /// Builds what a plan needs; may fail, changes nothing.
    pub(crate) fn prepare(
        &self,
        schema: &Schema,
        arrival: Arrival,
        plan: Vec<Edit>,
        room: Room,
        ticker: &Ticker,
    ) -> Result<Prepared> {
        let mut prepared = Prepared { landing: Landing::of(arrival, &plan), ..Prepared::default() };
        let mut runs: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
        for edit in plan {
            match edit {
                Edit::Kill { id } => prepared.kills.push(id),
                Edit::Replace { id } => prepared.replaced.push(id),
                Edit::Floor { id } => prepared.floor = prepared.floor.max(Some(id)),
                Edit::Merge { id, key, value, tokens, taken } => {
                    prepared.noted.merged.push((id, taken.saturating_add(tokens.len() as u64)));
                    prepared.merges.push((id, key, value));
                }
                Edit::Join { id, tokens, sampled } => {
                    prepared.noted.merged.push((id, (tokens.len() + sampled.len()) as u64));
                    prepared.noted.sampled.extend(sampled.iter().map(|&token| (arrival.id_lo + token as i64, id)));
                }
                Edit::Append { list, tokens } => {
                    prepared.noted.written.push(arrival.id_lo + tokens.start as i64..arrival.id_lo + tokens.end as i64);
                    runs.entry(list).or_default().push(tokens);
                }
            }
        }
        let below = prepared.floor.map_or(0, |id| (id - arrival.id_lo).clamp(0, arrival.rows.len() as i64) as usize);
        let empty = List::default();
        for (list, mut runs) in runs {
            for run in &mut runs {
                let kept = run.start.max(below).min(run.end);
                prepared.dropped += kept - run.start;
                run.start = kept;
            }
            let target = self.lists.get(list).unwrap_or(&empty);
            let now = runs.iter().map(Range::len).sum();
            let demand = Demand { now, in_all: self.n_live + now, in_bank: room.in_bank, arena: room.arena };
            let append = target.prepare(schema, demand, arrival, &runs, room.held, ticker)?;
            prepared.appends.push((list, append));
        }
        Ok(prepared)
    }

    /// Performs a prepared plan; nothing in it can fail. Returns how many entries ended or never came to be,
    /// replaced ones aside, and adds to `emptied` as [`Lane::kill`] does.
    pub(crate) fn apply(
        &mut self,
        schema: &Schema,
        kernels: &Kernels,
        arrival: Arrival,
        plan: Prepared,
        emptied: &mut Vec<Range<i64>>,
    ) -> usize {
        self.pages.changed();
        // Where no policy was asked, nobody put in line what arrives.
        self.line = plan.line;
        // First, while the last block that rows were meant for is surely there: a floor may end all that is in it.
        for (list, append) in plan.appends {
            if self.lists.len() <= list {
                self.lists.resize(list + 1, List::default());
            }
            self.n_live += self.lists[list].append(schema, arrival, append);
        }
        for id in plan.replaced {
            self.kill(id, emptied);
        }
        let mut ended = plan.dropped;
        for id in plan.kills {
            ended += usize::from(self.kill(id, emptied));
        }
        if let Some(id) = plan.floor {
            let gone: usize = self.lists.iter_mut().map(|list| list.floor(id)).sum();
            self.n_live -= gone;
            ended += gone;
            self.usage.drop_below(id);
        }
        for (id, key, value) in plan.merges {
            if let Some((block, slot)) = self.lists.iter_mut().find_map(|list| list.block_mut(id)) {
                block.rewrite(schema, kernels, slot, &key, &value);
            }
        }
        ended
    }

    /// Adds a run of rows, consecutive ids, to the first list of a lane that will hold `expected` entries.
    pub(crate) fn restore(
        &mut self,
        schema: &Schema,
        arrival: Arrival,
        run: Range<usize>,
        (expected, room): (usize, Room),
    ) -> Result<()> {
        self.pages.changed();
        if self.lists.is_empty() {
            self.lists.push(List::default());
        }
        let now = expected.saturating_sub(self.n_live).max(run.len());
        let demand = Demand { now, in_all: expected, in_bank: room.in_bank, arena: room.arena };
        let runs = std::slice::from_ref(&run);
        let append = self.lists[0].prepare(schema, demand, arrival, runs, room.held, &Ticker::never())?;
        self.n_live += self.lists[0].append(schema, arrival, append);
        Ok(())
    }

    /// Ends one entry; whether there was one. The ids of a block of which nothing is left are added to `emptied`.
    pub(crate) fn kill(&mut self, id: i64, emptied: &mut Vec<Range<i64>>) -> bool {
        let ended = self.lists.iter_mut().any(|list| list.kill(id, emptied));
        self.n_live -= usize::from(ended);
        self.pages.changed();
        ended
    }

    /// Whether any of the ids is live.
    pub(crate) fn has_any(&self, ids: &Range<i64>) -> bool {
        self.lists.iter().any(|list| list.has_any(ids))
    }

    /// Forgets how entries near the ended ids were used where none of them is left.
    pub(crate) fn drop_ended_usage(&mut self, ended: &[Range<i64>]) {
        let Lane { lists, usage, .. } = self;
        usage.drop_ended(ended, |ids| lists.iter().any(|list| list.has_any(&ids)));
    }

    /// Ends every entry with an id of `end` or more.
    pub(crate) fn truncate(&mut self, end: i64) {
        self.n_live -= self.lists.iter_mut().map(|list| list.ceil(end)).sum::<usize>();
        self.usage.drop_from(end);
        self.pages.changed();
    }

    /// How an entry was used; nothing where nobody noted it.
    pub fn used(&self, id: i64) -> Use {
        self.usage.get(id)
    }

    /// How entries were used.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The same, to be changed.
    pub(crate) fn usage_mut(&mut self) -> &mut Usage {
        &mut self.usage
    }

    /// Who goes next, if that is known.
    pub(crate) fn line(&self) -> Option<&Line> {
        self.line.as_ref()
    }

    /// Notes what version `number` wrote, sampled and merged, as far as it is there.
    pub(crate) fn note(&mut self, noted: Noted, number: u64, heat: Heat) {
        for ids in noted.written {
            self.usage.begin(ids, number);
        }
        for (id, founder) in noted.sampled {
            if self.locate(id).is_some() {
                self.usage.set(id, self.usage.get(id).sampled(founder));
            }
        }
        for (id, tokens) in noted.merged {
            if self.locate(id).is_some() {
                self.usage.set(id, self.usage.get(id).merged(tokens, number, heat));
            }
        }
    }

    /// Counts touches of entries that are there, seen from version `number` on.
    pub(crate) fn touch(&mut self, touches: &Touches, number: u64, heat: Heat) {
        for (&id, &touch) in touches {
            if self.locate(id).is_some() {
                self.usage.add(id, touch, number, heat);
            }
        }
    }
}
