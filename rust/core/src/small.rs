//! Lanes so small that all scores of some queries stay in the cache: each score is taken once, in float32, where a scan
//! would take those twice that set its first floors, and keep a reservoir for each query.
//!
//! The rows that are seen are decoded, one after the other, so nothing else need know of deletions or filters. The largest
//! scores of groups of rows give each query a floor, what reaches it is collected, and the floor of these leaves hardly
//! more than the k that are scored canonically.

use std::cell::Cell;
use std::ops::Range;
use std::time::Instant;

use mnemex_kernels::bound::{Bound, Precision, QueryBound};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::product::Candidates;
use mnemex_kernels::tile::{Queries as Panels, ROW_GROUP};
use mnemex_kernels::{Isa, Kernels, Keys, PANEL};

use crate::block::{BLOCK_ROWS, Schema};
use crate::error::Result;
use crate::first_pass::{GROUP, rule};
use crate::list::first_rows;
use crate::plane::{LINE, Plane};
use crate::query::{Packed, Queries, Unit};
use crate::rescore::TOGETHER;
use crate::reservoir::{self, Best, Place, keep_best};
use crate::tally::Tally;
use crate::work::Ticker;

/// Fewest queries that are worth it: fewer meet blocks one by one.
const FEWEST: usize = PANEL;

/// Numbers of decoded keys at most: 4 MB.
pub(crate) const NUMBERS: usize = 1 << 20;

/// Scores that are kept at a time, about: 1 MB.
pub(crate) const SCORES: usize = 1 << 18;

/// So many times k groups of rows are looked at for a floor: hardly any of the best k share one.
const MORE_GROUPS: usize = 4;

thread_local! {
    /// Room for keys and scores, kept from call to call: fresh pages cost as much as a small call.
    pub(crate) static ROOM: Cell<[Plane; 2]> = Cell::default();
}

/// Most entries. With more, bytes or bfloat16 are faster, where the processor multiplies them faster; what is saved is the
/// same however many there are, and grows with `k`. Measured with AVX-512 VNNI: even at 5,500 for k = 8, and beyond 8,192
/// for k = 32. Where bfloat16 has twice float32's rate, or AMX more, it is an estimate.
fn most(kernels: &Kernels, k: usize) -> usize {
    let most = (4096 + k.saturating_mul(128)).min(8192);
    match (kernels.isa, kernels.short.is_some()) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx, _) => most / 4,
        (_, true) => most / 2,
        _ => most,
    }
}

/// What some queries see of a lane.
pub(crate) struct SmallLane<'s> {
    kernels: &'static Kernels,
    schema: &'s Schema,
    unit: &'s Unit<'s>,
    packed: &'s Packed,
    k: usize,
    /// The rows: decoded as they are in `keys`, one over the norm for cosine.
    places: Vec<Place>,
    scale: Vec<f32>,
    keys: Plane,
    scores: Plane,
    bounds: Vec<Bound>,
}

impl<'s> SmallLane<'s> {
    /// None where a scan has to look: more entries, few queries, entries that some of them do not see, or numbers of which
    /// nothing is known: too large, or none.
    pub(crate) fn new(
        kernels: &'static Kernels,
        schema: &'s Schema,
        unit: &'s Unit<'s>,
        refs: Range<usize>,
        (packed, blank_bad): (&'s Packed, bool),
        k: usize,
    ) -> Result<Option<SmallLane<'s>>> {
        let refs = refs.start..refs.end.min(refs.start + most(kernels, k) + 1);
        let (dim, seen) = (schema.key.dim, &unit.refs[refs.clone()]);
        let n = seen.iter().map(|seen| seen.rows.count_ones() as usize).sum::<usize>();
        if unit.n < FEWEST || n == 0 || n > most(kernels, k) || n * dim > NUMBERS {
            return Ok(None);
        }
        let first_seen = packed.before.iter().copied().min().unwrap_or(0);
        let reach = seen.iter().map(|seen| seen.r.block.reach()).fold(0.0, f32::max);
        let bound = |&norm: &f64| QueryBound::of(schema.metric, dim, norm, Precision::Single).at(reach, 0.0);
        let bounds: Vec<Bound> = packed.norms.iter().map(bound).collect();
        // A query that is no number was packed as zeros, if it is to have no hits.
        let known = |(bound, &bad): (&Bound, &bool)| bad && blank_bad || bound.lower(0.0) > f32::NEG_INFINITY;
        if seen.iter().any(|seen| seen.r.id_hi() > first_seen) || !bounds.iter().zip(&packed.bad).all(known) {
            return Ok(None);
        }
        let [mut keys, scores] = ROOM.take();
        let bytes = (n.next_multiple_of(ROW_GROUP) * dim * size_of::<f32>()).next_multiple_of(LINE);
        if keys.bytes().len() < bytes {
            keys = Plane::zeroed(bytes)?;
        }
        let (mut places, mut scale) = (Vec::with_capacity(n), Vec::new());
        let mut rows = keys.floats_mut().chunks_exact_mut(dim);
        for (at, seen) in refs.zip(seen) {
            let (block, mut live) = (&*seen.r.block, seen.rows & first_rows(seen.r.block.len()));
            while live != 0 {
                let slot = live.trailing_zeros() as usize;
                live &= live - 1;
                let Some(row) = rows.next() else { break };
                block.key(schema, slot).decode(row);
                places.push((at * BLOCK_ROWS + slot) as Place);
                if schema.metric == Metric::Cos {
                    scale.push(block.scale()[slot]);
                }
            }
        }
        Ok(Some(SmallLane { kernels, schema, unit, packed, k, places, scale, keys, scores, bounds }))
    }

    /// The best of each query.
    pub(crate) fn best(mut self, queries: &Queries, ticker: &Ticker, tally: Option<&Tally>) -> Result<Vec<Vec<Best>>> {
        let began = Instant::now();
        let n = self.places.len();
        let together = (SCORES / n / PANEL * PANEL).clamp(PANEL, GROUP).min(self.unit.n.next_multiple_of(PANEL));
        let bytes = (together * n * size_of::<f32>()).next_multiple_of(LINE);
        if self.scores.bytes().len() < bytes {
            self.scores = Plane::zeroed(bytes)?;
        }
        let mut desk = Desk::default();
        let mut best = Vec::with_capacity(self.unit.n);
        for first in (0..self.unit.n).step_by(together) {
            ticker.tick()?;
            let some = together.min(self.unit.n - first);
            self.score(first, some);
            for panel in (0..some).step_by(PANEL) {
                self.collect(first, panel, &mut desk);
                for lane in 0..PANEL.min(some - panel) {
                    let query = first + panel + lane;
                    // A query that is no number has no hits.
                    let found = if self.packed.bad[query] {
                        Vec::new()
                    } else {
                        self.decide(query, queries.get(self.unit.first + query), lane, &mut desk)
                    };
                    best.push(found);
                }
            }
        }
        if let Some(tally) = tally {
            tally.add(desk.counts[0], desk.counts[1], [began, Instant::now()]);
        }
        ROOM.set([self.keys, self.scores]);
        Ok(best)
    }

    /// All scores of `n` queries from `first` on.
    fn score(&mut self, first: usize, n: usize) {
        let (dim, rows) = (self.schema.key.dim, self.places.len());
        let queries = Panels { panels: &self.packed.panels.floats()[first * dim..], dim, n };
        for at in (0..rows).step_by(BLOCK_ROWS) {
            let n = BLOCK_ROWS.min(rows - at);
            let scale = self.scale.get(at..at + n).unwrap_or(&[]);
            let keys = Keys { rows: &self.keys.floats()[at * dim..], stride: dim, n, scale, next: &[] };
            (self.kernels.scores)(rule(self.schema.metric), keys, queries, self.scores.floats_mut(), rows, at);
        }
    }

    /// What may be among the best of the queries of a panel.
    fn collect(&self, first: usize, panel: usize, desk: &mut Desk) {
        let n = self.places.len();
        let scores = &self.scores.floats()[panel * n..][..n * PANEL];
        let mut floors = [f32::NEG_INFINITY; PANEL];
        if self.k < n {
            let enough = |&per: &usize| n / per >= MORE_GROUPS * self.k;
            let per = [16, 8, 4, 2].into_iter().find(enough).unwrap_or(1);
            desk.groups.resize(n / per * PANEL, 0.0);
            (self.kernels.group_maxima)(scores, per, &mut desk.groups);
            (self.kernels.reached_by)(&desk.groups, self.k, &mut floors);
        }
        let mut thresholds = [f32::INFINITY; PANEL];
        let bounds = self.bounds[first + panel..].iter().zip(&self.packed.bad[first + panel..]);
        for ((threshold, &floor), (bound, _)) in
            thresholds.iter_mut().zip(&floors).zip(bounds).filter(|(_, (_, bad))| !**bad)
        {
            *threshold = bound.threshold(bound.lower(floor));
        }
        desk.candidates.iter_mut().for_each(Candidates::clear);
        (self.kernels.collect)(scores, &thresholds, &mut desk.candidates);
    }

    /// The best of one query, in order, out of what was collected for it.
    fn decide(&self, query: usize, numbers: &[f32], lane: usize, desk: &mut Desk) -> Vec<Best> {
        let (k, dim, bound) = (self.k, self.schema.key.dim, self.bounds[query]);
        let Candidates { scores, rows } = &mut desk.candidates[lane];
        desk.counts[0] += rows.len() as u64;
        if rows.len() > k {
            // All of them reach the least of them.
            let (n, least) = (scores.len(), scores.iter().copied().fold(f32::INFINITY, f32::min));
            scores.resize(n.next_multiple_of(PANEL), least);
            let threshold = bound.threshold(bound.lower((self.kernels.reached_by_one)(scores, k)));
            let mut kept = 0;
            for at in 0..n {
                rows[kept] = rows[at];
                kept += usize::from(scores[at] >= threshold);
            }
            rows.truncate(kept);
        }
        desk.counts[1] += rows.len() as u64;
        desk.keys.resize(TOGETHER * dim, 0.0);
        let mut best = Vec::with_capacity(rows.len());
        for rows in rows.chunks(TOGETHER) {
            for (key, &row) in desk.keys.chunks_exact_mut(dim).zip(rows) {
                key.copy_from_slice(&self.keys.floats()[row as usize * dim..][..dim]);
            }
            let mut scores = [0.0; TOGETHER];
            let (scores, keys) = (&mut scores[..rows.len()], &desk.keys[..rows.len() * dim]);
            (self.kernels.score)(self.schema.metric, keys, numbers, self.packed.norms[query], scores);
            for (&row, &score) in rows.iter().zip(&*scores) {
                let place = self.places[row as usize];
                let r = self.unit.refs[place as usize / BLOCK_ROWS].r;
                best.push(Best { score, id: r.id(place as usize % BLOCK_ROWS), place });
            }
        }
        best.retain(|best| !best.score.is_nan());
        keep_best(&mut best, k, &mut desk.sorting);
        best
    }
}

/// Room to work in.
#[derive(Default)]
struct Desk {
    groups: Vec<f32>,
    candidates: [Candidates; PANEL],
    keys: Vec<f32>,
    sorting: reservoir::Desk,
    /// Entries that passed, and that were scored canonically.
    counts: [u64; 2],
}
