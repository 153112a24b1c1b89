//! Those of least worth go, pinned ones aside.

use std::collections::{BTreeSet, VecDeque};

use super::rank::{Rank, lot};
use super::{Decided, EvictPolicy, Line, Plan};
use crate::cells::Declared;
use crate::config::{Pins, Worth};
use crate::lane::Edit;
use crate::usage::Heat;
use crate::write::View;

/// Entries in line for each that goes now, at least: a scan of the lane serves so many commits.
const IN_LINE: usize = 4;

/// Or one in so many of the lane.
const LINE_SHARE: usize = 8;

/// Draws find places in line one by one; where more than one in so many goes, to look at everything is sooner done.
const DRAWN_SHARE: usize = 64;

/// Ends what is worth least.
pub struct Least {
    worth: Worth,
    pins: Pins,
    /// Place of the column that the worth names.
    column: usize,
}

impl Least {
    /// Of a configuration that was checked.
    pub fn new(worth: Worth, pins: Pins, columns: &[Declared]) -> Least {
        let named = |declared: &Declared| matches!(&worth, Worth::Score { column, .. } if *column == declared.name);
        let column = columns.iter().position(named).unwrap_or(0);
        Least { worth, pins, column }
    }

    /// What may go: ids from the first to before the second.
    fn unpinned(&self, view: &View, decided: &Decided) -> (i64, i64) {
        let [sinks, recent] = self.pinned();
        let n = view.lane.len() - decided.leaving.len() + decided.arriving();
        let first = if sinks == 0 { Some(i64::MIN) } else { decided.nth_oldest(view, sinks) };
        let end = if recent == 0 { None } else { decided.nth_oldest(view, n.saturating_sub(recent)) };
        (first.unwrap_or(i64::MAX), end.unwrap_or(i64::MAX))
    }

    /// Entries that stay and tokens that arrive, in the order of ids.
    fn all(&self, view: &View, decided: &Decided) -> Vec<i64> {
        let mut ids = view.lane.live_ids();
        if view.lane.lists().len() > 1 {
            ids.sort_unstable();
        }
        if !decided.leaving.is_empty() {
            ids.retain(|id| decided.leaving.binary_search(id).is_err());
        }
        ids.extend(arriving(view, decided));
        ids
    }

    /// Where everything stands, sinks aside, which never go.
    fn ranks(&self, view: &View, decided: &Decided, first: i64) -> Vec<Rank> {
        let ids = self.all(view, decided);
        let mut ranks: Vec<Rank> = ids.iter().map(|&id| self.worth.rank(view, self.column, id)).collect();
        if let Worth::Mass { pool, .. } = self.worth
            && pool > 1
        {
            let largest = largest_around(&ranks, pool / 2);
            ranks.iter_mut().zip(largest).for_each(|(rank, worth)| rank.worth = worth);
        }
        ranks.retain(|rank| rank.id >= first);
        ranks
    }

    /// The `over` least of all that may go, found by looking at everything.
    fn scan(&self, view: &View, decided: &Decided, (first, end): (i64, i64), over: usize) -> Vec<i64> {
        let mut ranks = self.ranks(view, decided, first);
        ranks.retain(|rank| rank.id < end);
        if matches!(self.worth, Worth::Lot { .. }) {
            // What arrives goes last; lots are below 1.
            ranks.iter_mut().filter(|rank| rank.id >= view.arrival.id_lo).for_each(|rank| rank.worth += 1.0);
        }
        if over < ranks.len() {
            ranks.select_nth_unstable(over);
            ranks.truncate(over);
        }
        ranks.iter().map(|rank| rank.id).collect()
    }

    /// Draws from the entries that were there before, where they are many more than are to go.
    fn draw(&self, seed: u64, view: &View, decided: &Decided, over: usize) -> Option<Vec<i64>> {
        let [sinks, recent] = self.pinned();
        let before = view.lane.len() - decided.leaving.len();
        let old = before.checked_sub(sinks)?.checked_sub(recent.saturating_sub(decided.arriving()))?;
        if over >= old / DRAWN_SHARE {
            return None;
        }
        // Each place with the same chance; one that was drawn is drawn again.
        let (mut drawn, mut at) = (BTreeSet::new(), 0);
        while drawn.len() < over {
            let chance = lot(seed, [view.head as u64, view.number, at]);
            drawn.insert(((chance * old as f64) as usize).min(old - 1));
            at += 1;
        }
        Some(drawn.into_iter().filter_map(|place| decided.nth_oldest(view, sinks + place)).collect())
    }

    /// The `over` least, from the lane's line where it has one that is long enough; and the line to keep.
    fn take(&self, view: &View, decided: &Decided, (first, end): (i64, i64), over: usize) -> (Vec<i64>, Option<Line>) {
        let rank = |id: i64| self.worth.rank(view, self.column, id);
        let may_go = |id: i64| (first..end).contains(&id);
        let is_there = |id: i64| {
            id >= view.arrival.id_lo || decided.leaving.binary_search(&id).is_err() && view.lane.locate(id).is_some()
        };
        let now = |id: i64| is_there(id).then(|| rank(id));
        let arrive = arriving(view, decided).map(rank);
        if let Some((taken, line)) = view.lane.line().and_then(|line| line.take(over, arrive, now, may_go)) {
            return (taken, Some(line));
        }
        let ranks = self.ranks(view, decided, first);
        let most = (IN_LINE * over).max(ranks.len() / LINE_SHARE).saturating_add(self.pinned()[1]);
        let taken = Line::of(ranks, most).take(over, std::iter::empty(), now, may_go);
        taken.map_or_else(|| (self.scan(view, decided, (first, end), over), None), |(taken, line)| (taken, Some(line)))
    }

    fn pinned(&self) -> [usize; 2] {
        [self.pins.sinks, self.pins.recent].map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    }
}

/// The largest worth of each rank and of `half` on either side, in one pass: those that may still be the largest wait in
/// descending order.
fn largest_around(ranks: &[Rank], half: usize) -> Vec<f64> {
    let (mut waiting, mut next) = (VecDeque::new(), 0);
    let largest = |at: usize| {
        while next < ranks.len() && next - at.min(next) <= half {
            while waiting.back().is_some_and(|&before: &usize| ranks[before].worth <= ranks[next].worth) {
                waiting.pop_back();
            }
            waiting.push_back(next);
            next += 1;
        }
        while waiting.front().is_some_and(|&first| at.saturating_sub(half) > first) {
            waiting.pop_front();
        }
        waiting.front().map_or(f64::NEG_INFINITY, |&first| ranks[first].worth)
    };
    (0..ranks.len()).map(largest).collect()
}

/// The ids of tokens that arrive.
fn arriving(view: &View, decided: &Decided) -> impl Iterator<Item = i64> {
    let id_lo = view.arrival.id_lo;
    decided.runs.iter().flat_map(Clone::clone).map(move |token| id_lo + token as i64)
}

impl EvictPolicy for Least {
    fn name(&self) -> &'static str {
        self.worth.name()
    }

    fn plan(&self, view: View, decided: Decided, over: usize) -> Plan {
        let bounds = self.unpinned(&view, &decided);
        let (gone, line) = match self.worth {
            Worth::Lot { seed } => {
                let drawn = self.draw(seed, &view, &decided, over);
                (drawn.unwrap_or_else(|| self.scan(&view, &decided, bounds, over)), None)
            }
            _ if self.worth.only_rises() => self.take(&view, &decided, bounds, over),
            _ => (self.scan(&view, &decided, bounds, over), None),
        };
        Plan { edits: gone.into_iter().map(|id| Edit::Kill { id }).collect(), line }
    }

    fn heat(&self) -> Heat {
        match self.worth {
            Worth::Hits { decay } => Heat { decay, by_mass: false, window: 0 },
            Worth::Mass { decay, window, .. } => Heat { decay, by_mass: true, window: window.unwrap_or(0) },
            _ => Heat::default(),
        }
    }
}
