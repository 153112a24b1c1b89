//! Neighbours in time that are alike become one, until few are left (MovieChat, Song et al. 2024, arXiv 2307.16449).
//!
//! A segment is merged by the commit that completes it, so what comes of a stream does not depend on how it was cut into
//! commits. The pair that is most alike goes first; what it becomes is compared with its own neighbours from then on.
//! Sums are in float64, the older of two first, with one division and one rounding to float32 for each merge.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;

use super::{LanePlan, Runs, View, WritePolicy, decoded};
use crate::config::{Adjacency, Beyond, Weigh};
use crate::error::Result;
use crate::lane::Edit;
use crate::list::List;

/// Merge neighbours, append what is left.
pub struct MergeAdjacent(pub Adjacency);

/// An entry of the lane, or a token on its way to become one.
struct Node {
    key: Vec<f32>,
    value: Vec<f32>,
    /// Tokens that it stands for, and for how many it stood before this commit merged any into it.
    count: u64,
    before: u64,
    /// Arriving tokens that went into it.
    tokens: Vec<usize>,
}

/// What a lane would hold if nothing were merged, ids ascending.
struct Chain<'v> {
    how: Adjacency,
    view: &'v View<'v>,
    ids: Vec<i64>,
    /// Those that were looked at.
    nodes: Vec<Option<Box<Node>>>,
    /// Those that went into an older one.
    gone: Vec<bool>,
    left: usize,
}

/// A number that orders as a score does: there is no NaN and no -0 among them.
fn ordered(score: f32) -> i32 {
    let bits = score.to_bits() as i32;
    if bits < 0 { i32::MIN - bits } else { bits }
}

impl<'v> Chain<'v> {
    fn new(how: Adjacency, view: &'v View<'v>) -> Chain<'v> {
        let refs = view.lane.lists().iter().flat_map(List::refs);
        let mut ids: Vec<i64> = refs.flat_map(|r| r.live_slots().map(|slot| r.id(slot))).collect();
        ids.sort_unstable();
        ids.retain(|id| view.replaced.binary_search(id).is_err());
        ids.extend(view.tokens.iter().flat_map(Clone::clone).map(|token| view.arrival.id_lo + token as i64));
        let n = ids.len();
        Chain { how, view, ids, nodes: (0..n).map(|_| None).collect(), gone: vec![false; n], left: n }
    }

    /// Places of ids from the first to before the second.
    fn places(&self, ids: &Range<i64>) -> Range<usize> {
        let place = |end: i64| self.ids.partition_point(|&id| id < end);
        place(ids.start)..place(ids.end)
    }

    /// Looks at an entry, or a token.
    fn look(&mut self, at: usize) {
        if self.nodes[at].is_none() {
            let (key, value) = decoded(self.view, self.ids[at]);
            let count =
                if self.ids[at] < self.view.arrival.id_lo { self.view.lane.used(self.ids[at]).count.max(1) } else { 1 };
            self.nodes[at] = Some(Box::new(Node { key, value, count, before: count, tokens: Vec::new() }));
        }
    }

    /// How alike two neighbours are: their canonical score.
    fn alike(&mut self, older: usize, younger: usize) -> f32 {
        self.look(older);
        self.look(younger);
        let (Some(older), Some(younger)) = (&self.nodes[older], &self.nodes[younger]) else { return f32::NEG_INFINITY };
        let kernels = self.view.kernels;
        let norm = (kernels.square_norm)(&younger.key).sqrt();
        let mut score = [0.0];
        (kernels.score)(self.how.similarity, &older.key, &younger.key, norm, &mut score);
        score[0]
    }

    /// Makes one of two, under the name of the older.
    fn merge(&mut self, older: usize, younger: usize) {
        let (Some(from), Some(to)) = (self.nodes[younger].take(), self.nodes[older].as_deref_mut()) else { return };
        let (mine, other) = match self.how.weigh {
            Weigh::Count => (to.count as f64, from.count as f64),
            Weigh::Equal => (1.0, 1.0),
        };
        let mean = |(x, y): (&mut f32, &f32)| {
            *x = ((mine * f64::from(*x) + other * f64::from(*y)) / (mine + other)) as f32;
        };
        to.key.iter_mut().zip(&from.key).for_each(mean);
        to.value.iter_mut().zip(&from.value).for_each(mean);
        to.count = to.count.saturating_add(from.count);
        to.tokens.extend(from.tokens);
        if let Ok(token) = usize::try_from(self.ids[younger] - self.view.arrival.id_lo) {
            to.tokens.push(token);
        }
        self.gone[younger] = true;
        self.left -= 1;
    }

    /// Merges neighbours among some places until `n` are left of these.
    fn shorten(&mut self, places: Range<usize>, n: usize) -> Result<()> {
        let live: Vec<usize> = places.filter(|&at| !self.gone[at]).collect();
        let (end, over) = (live.len(), live.len().saturating_sub(n.max(1)));
        if over == 0 {
            return Ok(());
        }
        // Neighbours of each, in `live`, as long as both are there.
        let mut before: Vec<usize> = (0..end).map(|at| at.saturating_sub(1)).collect();
        let mut after: Vec<usize> = (1..=end).collect();
        // A pair goes by the younger of the two.
        let (mut scores, mut pairs) = (vec![0; end], BTreeSet::new());
        for at in 1..end {
            self.view.ticker.tick()?;
            scores[at] = ordered(self.alike(live[at - 1], live[at]));
            pairs.insert((Reverse(scores[at]), at));
        }
        for _ in 0..over {
            self.view.ticker.tick()?;
            // Of pairs that are as much alike, the oldest.
            let Some((_, at)) = pairs.pop_first() else { break };
            let (older, next) = (before[at], after[at]);
            self.merge(live[older], live[at]);
            after[older] = next;
            if next < end {
                before[next] = older;
            }
            for at in [older, next].into_iter().filter(|at| (1..end).contains(at)) {
                pairs.remove(&(Reverse(scores[at]), at));
                scores[at] = ordered(self.alike(live[before[at]], live[at]));
                pairs.insert((Reverse(scores[at]), at));
            }
        }
        Ok(())
    }

    /// What becomes of the lane.
    fn edits(self) -> LanePlan {
        let id_lo = self.view.arrival.id_lo;
        let (mut edits, mut runs) = (Vec::new(), Runs::default());
        for ((id, node), gone) in self.ids.into_iter().zip(self.nodes).zip(self.gone) {
            match usize::try_from(id - id_lo) {
                Ok(token) if !gone => runs.push(token),
                Err(_) if gone => edits.push(Edit::Replace { id }),
                _ => {}
            }
            if let Some(node) = node.filter(|node| node.count > node.before) {
                let Node { key, value, count, before, tokens } = *node;
                let taken = count - before - tokens.len() as u64;
                edits.push(Edit::Merge { id, key, value, tokens, taken });
            }
        }
        (edits, runs.0)
    }
}

impl WritePolicy for MergeAdjacent {
    fn name(&self) -> &'static str {
        "merge_adjacent"
    }

    fn plan(&self, view: View) -> Result<LanePlan> {
        let Adjacency { n, segment, beyond, .. } = self.0;
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        let mut chain = Chain::new(self.0, &view);
        let (first, end) = (view.arrival.id_lo, view.arrival.id_lo + view.arrival.rows.len() as i64);
        match segment.and_then(|segment| i64::try_from(segment).ok()) {
            // Those that end among what arrives; they may have begun before.
            Some(segment) => {
                for number in first / segment..end / segment {
                    let places = chain.places(&(number * segment..(number + 1) * segment));
                    chain.shorten(places, n)?;
                }
            }
            None if segment.is_none() => {
                let places = chain.places(&(first..end));
                chain.shorten(places, n)?;
            }
            // So long that it never ends.
            None => {}
        }
        if beyond == Beyond::Merge && chain.left > view.capacity {
            let places = 0..chain.ids.len();
            chain.shorten(places, view.capacity)?;
        }
        Ok(chain.edits())
    }
}
