//! The nearest entry of each of many vectors, exactly: what a policy that merges asks of a lane.
//!
//! As in [`crate::small`], the lane is decoded and all scores are taken once, in float32, sixteen vectors to a panel. The
//! largest score of each vector and the error bound say which entries can be its nearest, and these alone are scored
//! canonically, which decides: the same answer on every instruction set. A lane of any length is looked at piece by piece;
//! what is known to be too far away never becomes a candidate, so where nothing is near, hardly anything is scored twice.

use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::product::Candidates;
use mnemex_kernels::tile::{Queries as Panels, ROW_GROUP, pack, packed_len};
use mnemex_kernels::{Keys, PANEL};

use super::{View, near_in_codes};
use crate::block::BLOCK_ROWS;
use crate::error::Result;
use crate::first_pass::{GROUP, rule};
use crate::list::{List, Ref};
use crate::plane::{LINE, Plane};
use crate::rescore::TOGETHER;
use crate::small::{NUMBERS, ROOM, SCORES};

/// Most entries of a piece: its scores stay in the cache.
const MOST: usize = 1 << 13;

/// Vectors that look for their nearest entry.
pub(super) struct Seekers {
    metric: Metric,
    dim: usize,
    /// `[n, dim]`
    numbers: Vec<f32>,
    norms: Vec<f64>,
    panels: Plane,
}

impl Seekers {
    /// Of vectors `[n, dim]`.
    pub(super) fn new(view: &View, metric: Metric, dim: usize, numbers: Vec<f32>) -> Result<Seekers> {
        let n = numbers.len() / dim;
        let mut panels = Plane::zeroed((packed_len(n, dim) * size_of::<f32>()).next_multiple_of(LINE))?;
        let mut norms = Vec::with_capacity(n);
        let mut unit = vec![0.0; dim];
        for (at, numbers) in numbers.chunks_exact(dim).enumerate() {
            let norm = (view.kernels.square_norm)(numbers).sqrt();
            if metric == Metric::Cos && norm > 0.0 {
                unit.iter_mut().zip(numbers).for_each(|(unit, &x)| *unit = (f64::from(x) / norm) as f32);
                pack(&unit, at, panels.floats_mut());
            } else {
                pack(numbers, at, panels.floats_mut());
            }
            norms.push(norm);
        }
        Ok(Seekers { metric, dim, numbers, norms, panels })
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.norms.len()
    }

    pub(super) fn metric(&self) -> Metric {
        self.metric
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn norm(&self, at: usize) -> f64 {
        self.norms[at]
    }

    /// One of them.
    pub(super) fn get(&self, at: usize) -> &[f32] {
        &self.numbers[at * self.dim..][..self.dim]
    }

    /// The canonical scores of keys `[n, dim]` for one of them.
    pub(super) fn exact(&self, view: &View, at: usize, keys: &[f32], out: &mut [f32]) {
        (view.kernels.score)(self.metric, keys, self.get(at), self.norms[at], out);
    }
}

/// An entry and its canonical score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Near {
    pub(super) score: f32,
    pub(super) id: i64,
}

impl Near {
    /// The nearer of two; of equally near ones the smaller id.
    pub(super) fn nearer(a: Option<Near>, b: Near) -> Near {
        match a {
            Some(a) if a.score > b.score || a.score == b.score && a.id < b.id => a,
            _ => b,
        }
    }
}

/// Entries of a lane, decoded, and their scores for some seekers.
#[derive(Default)]
pub(super) struct Piece {
    /// Ascending.
    ids: Vec<i64>,
    keys: Plane,
    /// One over the norm, for cosine.
    scale: Vec<f32>,
    reach: f32,
    /// Panels of all entries.
    scores: Plane,
    /// Entries that are no longer what they were: nobody's nearest.
    stale: Vec<bool>,
}

/// The live entries of a lane that no arriving token replaces and that are `sought`, ids ascending.
fn entries<'v>(view: &View<'v>, sought: &dyn Fn(i64) -> bool) -> Vec<(&'v Ref, usize)> {
    let refs = view.lane.lists().iter().flat_map(List::refs);
    let entries = refs.flat_map(|r| r.live_slots().map(move |slot| (r, slot)));
    let mut entries: Vec<_> = entries.filter(|(r, slot)| sought(r.id(*slot))).collect();
    if !view.replaced.is_empty() {
        entries.retain(|(r, slot)| view.replaced.binary_search(&r.id(*slot)).is_err());
    }
    if view.lane.lists().len() > 1 {
        entries.sort_unstable_by_key(|(r, slot)| r.id(*slot));
    }
    entries
}

/// Most entries of a piece, of vectors of so many numbers.
fn most(dim: usize) -> usize {
    (NUMBERS / dim).clamp(BLOCK_ROWS, MOST)
}

/// Seekers that meet a piece of `n` entries together: whole panels.
fn together(n: usize) -> usize {
    (SCORES / n.max(1) / PANEL * PANEL).clamp(PANEL, GROUP)
}

impl Piece {
    /// Decodes entries, in the given room.
    fn new(view: &View, metric: Metric, entries: &[(&Ref, usize)], [mut keys, scores]: [Plane; 2]) -> Result<Piece> {
        let (schema, dim, n) = (view.schema, view.schema.key.dim, entries.len());
        let bytes = (n.next_multiple_of(ROW_GROUP) * dim * size_of::<f32>()).next_multiple_of(LINE);
        if keys.bytes().len() < bytes {
            keys = Plane::zeroed(bytes)?;
        }
        let mut piece = Piece { ids: Vec::with_capacity(n), keys, scores, stale: vec![false; n], ..Piece::default() };
        for (&(r, slot), key) in entries.iter().zip(piece.keys.floats_mut().chunks_exact_mut(dim)) {
            r.block.key(schema, slot).decode(key);
            piece.ids.push(r.id(slot));
            // What a block knows of its keys is about the bank's own metric.
            if metric == schema.metric {
                piece.reach = piece.reach.max(r.block.reach());
                piece.scale.extend(r.block.scale().get(slot));
            } else {
                let norm = (view.kernels.square_norm)(key).sqrt();
                piece.reach = piece.reach.max(reach(metric, norm));
                if metric == Metric::Cos {
                    piece.scale.push(if norm == 0.0 { 0.0 } else { (1.0 / norm) as f32 });
                }
            }
        }
        Ok(piece)
    }

    /// Takes all scores of `n` seekers from `first` on, which begins a panel.
    fn score(&mut self, view: &View, seekers: &Seekers, first: usize, n: usize) -> Result<()> {
        let (dim, rows) = (seekers.dim, self.ids.len());
        let bytes = (n.next_multiple_of(PANEL) * rows * size_of::<f32>()).next_multiple_of(LINE);
        if self.scores.bytes().len() < bytes {
            self.scores = Plane::zeroed(bytes)?;
        }
        let queries = Panels { panels: &seekers.panels.floats()[first * dim..], dim, n };
        for at in (0..rows).step_by(BLOCK_ROWS) {
            let n = BLOCK_ROWS.min(rows - at);
            let scale = self.scale.get(at..at + n).unwrap_or(&[]);
            let keys = Keys { rows: &self.keys.floats()[at * dim..], stride: dim, n, scale, next: &[] };
            (view.kernels.scores)(rule(seekers.metric), keys, queries, self.scores.floats_mut(), rows, at);
        }
        for row in (0..rows).filter(|&row| self.stale[row]) {
            Piece::hide(&mut self.scores, rows, row);
        }
        Ok(())
    }

    /// Takes a row out of all panels.
    fn hide(scores: &mut Plane, rows: usize, row: usize) {
        for panel in scores.floats_mut().chunks_exact_mut(rows * PANEL) {
            panel[row * PANEL..][..PANEL].fill(f32::NEG_INFINITY);
        }
    }

    /// Finds the nearest of seekers `first..first + near.len()`, of the panel of the scores that `panel` counts, `from` lanes
    /// into it; what is further away than `least`, or than `near` says, is passed over.
    fn choose(&self, view: &View, seekers: &Seekers, at: Chosen, near: &mut [Option<Near>], desk: &mut Desk) {
        let Chosen { first, panel, from, least } = at;
        let (rows, dim) = (self.ids.len(), seekers.dim);
        let scores = &self.scores.floats()[panel * rows * PANEL..][..rows * PANEL];
        let mut largest = [f32::NEG_INFINITY; PANEL];
        (view.kernels.group_maxima)(scores, rows, &mut largest);
        let mut thresholds = [f32::INFINITY; PANEL];
        for (i, near) in near.iter().enumerate() {
            let norm = seekers.norms[first + i];
            let bound = QueryBound::of(seekers.metric, dim, norm, Precision::Single).at(self.reach, 0.0);
            let floor = near.map_or(least, |near| near.score).max(least);
            // Where nothing is promised of the scores, everything passes.
            thresholds[from + i] = bound.threshold(floor.max(bound.lower(largest[from + i])));
        }
        desk.candidates.iter_mut().for_each(Candidates::clear);
        (view.kernels.collect)(scores, &thresholds, &mut desk.candidates);
        desk.keys.resize(TOGETHER * dim, 0.0);
        for (i, near) in near.iter_mut().enumerate() {
            let passed = &mut desk.candidates[from + i].rows;
            passed.retain(|&row| !self.stale[row as usize]);
            for passed in passed.chunks(TOGETHER) {
                for (key, &row) in desk.keys.chunks_exact_mut(dim).zip(passed) {
                    key.copy_from_slice(&self.keys.floats()[row as usize * dim..][..dim]);
                }
                let mut scores = [0.0; TOGETHER];
                let scores = &mut scores[..passed.len()];
                seekers.exact(view, first + i, &desk.keys[..passed.len() * dim], scores);
                for (&row, &score) in passed.iter().zip(&*scores) {
                    *near = Some(Near::nearer(*near, Near { score, id: self.ids[row as usize] }));
                }
            }
        }
    }
}

/// What [`Piece::choose`] looks at.
#[derive(Clone, Copy)]
struct Chosen {
    first: usize,
    panel: usize,
    from: usize,
    least: f32,
}

/// Room to work in.
#[derive(Default)]
struct Desk {
    candidates: [Candidates; PANEL],
    keys: Vec<f32>,
}

/// The nearest of the entries that are `sought`, for each seeker, as far as one scores `least` or more; others may be named
/// too.
pub(super) fn nearest(
    view: &View,
    seekers: &Seekers,
    least: f32,
    sought: &dyn Fn(i64) -> bool,
) -> Result<Vec<Option<Near>>> {
    if let Some(near) = near_in_codes::nearest(view, seekers, least, sought)? {
        return Ok(near);
    }
    let mut near = vec![None; seekers.len()];
    let mut desk = Desk::default();
    for entries in entries(view, sought).chunks(most(seekers.dim)) {
        let mut piece = Piece::new(view, seekers.metric, entries, ROOM.take())?;
        let some = together(entries.len());
        for (at, near) in near.chunks_mut(some).enumerate() {
            view.ticker.tick()?;
            piece.score(view, seekers, at * some, near.len())?;
            for (panel, near) in near.chunks_mut(PANEL).enumerate() {
                let first = at * some + panel * PANEL;
                piece.choose(view, seekers, Chosen { first, panel, from: 0, least }, near, &mut desk);
            }
        }
        ROOM.set([piece.keys, piece.scores]);
    }
    Ok(near)
}

/// A lane that changes while seekers ask, in their order: the entries that did not change yet.
pub(super) struct Unchanged<'a> {
    view: &'a View<'a>,
    seekers: &'a Seekers,
    least: f32,
    pieces: Vec<Piece>,
    /// What was found for the seekers of one panel, from `first` on.
    near: Vec<Option<Near>>,
    first: usize,
    desk: Desk,
}

impl<'a> Unchanged<'a> {
    pub(super) fn new(view: &'a View, seekers: &'a Seekers, least: f32) -> Result<Unchanged<'a>> {
        let piece = |entries: &[_]| Piece::new(view, seekers.metric, entries, Default::default());
        let pieces = entries(view, &|_| true).chunks(most(seekers.dim)).map(piece).collect::<Result<_>>()?;
        Ok(Unchanged { view, seekers, least, pieces, near: Vec::new(), first: 0, desk: Desk::default() })
    }

    /// The piece and row of an entry.
    fn place(&self, id: i64) -> Option<(usize, usize)> {
        let piece = self.pieces.partition_point(|piece| piece.ids.last().is_some_and(|&last| last < id));
        Some((piece, self.pieces.get(piece)?.ids.binary_search(&id).ok()?))
    }

    /// Passes an entry over from here on.
    pub(super) fn change(&mut self, id: i64) {
        if let Some((piece, row)) = self.place(id) {
            let Piece { ids, scores, stale, .. } = &mut self.pieces[piece];
            stale[row] = true;
            Piece::hide(scores, ids.len(), row);
        }
    }

    /// The nearest of the entries that did not change, for one seeker; they come in order.
    pub(super) fn nearest(&mut self, at: usize) -> Result<Option<Near>> {
        let Unchanged { view, seekers, least, .. } = *self;
        if at.is_multiple_of(PANEL) {
            view.ticker.tick()?;
            self.first = at;
            self.near.clear();
            self.near.resize(PANEL.min(seekers.len() - at), None);
            for piece in &mut self.pieces {
                piece.score(view, seekers, at, self.near.len())?;
                let chosen = Chosen { first: at, panel: 0, from: 0, least };
                piece.choose(view, seekers, chosen, &mut self.near, &mut self.desk);
            }
        }
        let from = at - self.first;
        let changed = |near: Near| self.place(near.id).is_none_or(|(piece, row)| self.pieces[piece].stale[row]);
        if self.near[from].is_some_and(changed) {
            // The scores are there still: one more look at them.
            self.near[from] = None;
            for piece in &self.pieces {
                let chosen = Chosen { first: at, panel: 0, from, least };
                piece.choose(view, seekers, chosen, &mut self.near[from..=from], &mut self.desk);
            }
        }
        Ok(self.near[from])
    }
}
