//! What a policy outside this crate sees of a commit: all lanes in which tokens arrive, in flat arrays, made when asked.
//!
//! A scene holds rows and staged tokens by `Arc`, so that whoever keeps one keeps nothing that a commit must wait for;
//! what is held still is copied when it is written to, as for a snapshot. Entries and tokens are numbered by *place*: lane
//! by lane, by id within a lane. What this commit replaces, by label, is not among them.

use std::ops::Range;
use std::sync::Arc;

use crate::bank::Shared;
use crate::block::{Encoded, Schema};
use crate::cells::{Cells, Declared, StagedColumns};
use crate::error::{Result, filled};
use crate::lane::Lane;
use crate::list::Ref;
use crate::stage::StagedRow;
use crate::usage::{Heat, Touches, Use};
use crate::version::Row;
use crate::work::Ticker;

/// Which of the two vectors of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its key.
    Key,
    /// Its value; its key where that is the value.
    Value,
}

/// What was staged of the use of one entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Touched {
    /// Place of the entry.
    pub place: usize,
    /// Times that it was among the hits.
    pub times: u64,
    /// Sum of its softmax weights.
    pub mass: f64,
}

/// A row in which tokens arrive.
pub(super) struct Arriving {
    pub(super) at: usize,
    pub(super) row: Arc<Row>,
    pub(super) id_lo: i64,
    lanes: Arc<Vec<Encoded>>,
    labels: Vec<i64>,
    positions: Vec<i64>,
    columns: StagedColumns,
    /// Staged tokens that are to be written, ascending.
    pub(super) tokens: Vec<usize>,
    /// By head.
    touches: Vec<Touches>,
}

/// One bank at one commit.
pub struct Scene {
    pub(super) schema: Schema,
    pub(super) heads: usize,
    number: u64,
    heat: Heat,
    declared: Vec<Declared>,
    pub(super) rows: Vec<Arriving>,
    /// Ids of entries, by place.
    pub(super) ids: Vec<i64>,
    /// Place of each lane's first entry, and one past the last.
    entries: Vec<usize>,
    /// Likewise of tokens.
    tokens: Vec<usize>,
}

impl Scene {
    /// Of a commit that makes version `number`; `arriving` are rows in which tokens arrive, ascending.
    pub(crate) fn of<'s>(
        shared: &Shared,
        schema: &Schema,
        number: u64,
        arriving: impl Iterator<Item = (usize, &'s Arc<Row>, &'s StagedRow, Vec<Touches>)>,
        ticker: &Ticker,
    ) -> Result<Scene> {
        let (heads, heat, declared) = (shared.config.heads, shared.evict.heat(), shared.config.columns.clone());
        let (mut rows, mut ids, mut entries, mut tokens) = (Vec::new(), Vec::new(), vec![0], vec![0]);
        for (at, row, staged, touches) in arriving {
            let written: Vec<usize> = staged.written().into_iter().flatten().collect();
            for lane in &row.lanes {
                ticker.tick()?;
                let first = ids.len();
                ids.extend(lane.live_ids());
                // A list ascends; an index that routes has many.
                ids[first..].sort_unstable();
                if !staged.replaced.is_empty() {
                    let kept: Vec<i64> = ids.drain(first..).filter(|id| !staged.replaced.contains_key(id)).collect();
                    ids.extend(kept);
                }
                entries.push(ids.len());
                tokens.push(tokens.last().map_or(0, |last| last + written.len()));
            }
            rows.push(Arriving {
                at,
                row: Arc::clone(row),
                id_lo: staged.id_lo,
                lanes: Arc::clone(&staged.lanes),
                labels: staged.labels.clone(),
                positions: staged.positions.clone(),
                columns: staged.columns.clone(),
                tokens: written,
                touches,
            });
        }
        Ok(Scene { schema: *schema, heads, number, heat, declared, rows, ids, entries, tokens })
    }

    /// Number of the version that the commit makes.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Key/value heads of the bank.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Numbers per key.
    pub fn key_dim(&self) -> usize {
        self.schema.key.dim
    }

    /// Numbers per value of their own; None without.
    pub fn value_dim(&self) -> Option<usize> {
        self.schema.value.map(|layout| layout.dim)
    }

    /// The caller's columns.
    pub fn declared(&self) -> &[Declared] {
        &self.declared
    }

    /// How many entries.
    pub fn n_entries(&self) -> usize {
        self.ids.len()
    }

    /// How many tokens, in all lanes.
    pub fn n_tokens(&self) -> usize {
        self.tokens.last().copied().unwrap_or(0)
    }

    pub(super) fn n_lanes(&self) -> usize {
        self.rows.len() * self.heads
    }

    pub(super) fn lane(&self, at: usize) -> &Lane {
        &self.rows[at / self.heads].row.lanes[at % self.heads]
    }

    pub(super) fn entries_of(&self, lane: usize) -> Range<usize> {
        self.entries[lane]..self.entries[lane + 1]
    }

    pub(super) fn tokens_of(&self, lane: usize) -> Range<usize> {
        self.tokens[lane]..self.tokens[lane + 1]
    }

    /// The lane that a place is in, of those of the scene.
    pub(super) fn lane_of_entry(&self, place: usize) -> usize {
        self.entries.partition_point(|&first| first <= place) - 1
    }

    pub(super) fn lane_of_token(&self, place: usize) -> usize {
        self.tokens.partition_point(|&first| first <= place) - 1
    }

    /// The staged token of its row that stands at a place.
    pub(super) fn token(&self, place: usize) -> usize {
        let lane = self.lane_of_token(place);
        self.rows[lane / self.heads].tokens[place - self.tokens[lane]]
    }

    /// One number per place, from runs of places of each lane; lanes go by their number in the bank, row * heads + head.
    fn lanes(&self, firsts: &[usize]) -> Vec<i64> {
        let mut lanes = Vec::with_capacity(firsts.last().copied().unwrap_or(0));
        for (at, run) in firsts.windows(2).enumerate() {
            let number = self.rows[at / self.heads].at * self.heads + at % self.heads;
            lanes.resize(run[1], number as i64);
        }
        lanes
    }

    /// Lane of each entry.
    pub fn entry_lanes(&self) -> Vec<i64> {
        self.lanes(&self.entries)
    }

    /// Lane of each token.
    pub fn token_lanes(&self) -> Vec<i64> {
        self.lanes(&self.tokens)
    }

    /// Id of each entry.
    pub fn entry_ids(&self) -> Vec<i64> {
        self.ids.clone()
    }

    /// The id that each token gets if it becomes an entry.
    pub fn token_ids(&self) -> Vec<i64> {
        self.by_token(|row, token| row.id_lo + token as i64)
    }

    fn by_entry<T>(&self, of: impl Fn(&Row, i64) -> T) -> Vec<T> {
        let lanes = (0..self.n_lanes()).map(|lane| (&*self.rows[lane / self.heads].row, self.entries_of(lane)));
        let of = &of;
        lanes.flat_map(|(row, places)| self.ids[places].iter().map(move |&id| of(row, id))).collect()
    }

    fn by_token<T>(&self, of: impl Fn(&Arriving, usize) -> T) -> Vec<T> {
        let mut all = Vec::with_capacity(self.n_tokens());
        for row in &self.rows {
            (0..self.heads).for_each(|_| all.extend(row.tokens.iter().map(|&token| of(row, token))));
        }
        all
    }

    /// Label of each entry.
    pub fn entry_labels(&self) -> Vec<i64> {
        self.by_entry(Row::label)
    }

    /// Label of each token.
    pub fn token_labels(&self) -> Vec<i64> {
        self.by_token(|row, token| row.labels[token])
    }

    /// Position of each entry.
    pub fn entry_positions(&self) -> Vec<i64> {
        self.by_entry(Row::position)
    }

    /// Position of each token.
    pub fn token_positions(&self) -> Vec<i64> {
        self.by_token(|row, token| row.positions[token])
    }

    /// The entries' numbers in the `at`-th of the caller's columns.
    pub fn entry_cells(&self, at: usize) -> Cells {
        let mut all = Cells::absent(self.declared[at].dtype, 0);
        for lane in 0..self.n_lanes() {
            all.append(self.rows[lane / self.heads].row.cells(&self.declared, at, &self.ids[self.entries_of(lane)]));
        }
        all
    }

    /// The tokens' numbers in the `at`-th of the caller's columns.
    pub fn token_cells(&self, at: usize) -> Cells {
        let dtype = self.declared[at].dtype;
        let mut all = Cells::absent(dtype, 0);
        for row in &self.rows {
            let cells = row.columns.chosen(at, &row.tokens);
            let cells = cells.unwrap_or_else(|| Cells::absent(dtype, row.tokens.len()));
            (0..self.heads).for_each(|_| all.append(cells.clone()));
        }
        all
    }

    /// Something of how each entry was used; what was staged of it counts, as if it had been committed.
    pub fn uses<T>(&self, of: impl Fn(&Use) -> T) -> Vec<T> {
        let mut all = Vec::with_capacity(self.n_entries());
        for lane in 0..self.n_lanes() {
            let (places, usage) = (self.entries_of(lane), self.lane(lane).usage());
            usage.each(&self.ids[places.clone()], |used| all.push(of(used)));
            for (place, &touches) in self.touches_of(lane) {
                all[place] = of(&usage.get(self.ids[place]).touched(touches, self.number, self.heat));
            }
        }
        all
    }

    /// Places of a lane's entries that touches were staged for, and those.
    fn touches_of(&self, lane: usize) -> impl Iterator<Item = (usize, &(u64, f64))> {
        let places = self.entries_of(lane);
        let touches = &self.rows[lane / self.heads].touches[lane % self.heads];
        touches.iter().filter_map(move |(id, touches)| {
            Some((places.start + self.ids[places.clone()].binary_search(id).ok()?, touches))
        })
    }

    /// What was staged of the use of entries, by place.
    pub fn touched(&self) -> Vec<Touched> {
        let touched = |(place, &(times, mass)): (usize, &(u64, f64))| Touched { place, times, mass };
        (0..self.n_lanes()).flat_map(|lane| self.touches_of(lane).map(touched)).collect()
    }

    fn dim(&self, side: Side) -> usize {
        match side {
            Side::Key => self.key_dim(),
            Side::Value => self.value_dim().unwrap_or(self.key_dim()),
        }
    }

    /// Keys or values of entries, decoded: `[n, dim]`. `places` None: of all.
    ///
    /// # Errors
    /// When memory is short, or the caller interrupts.
    pub(crate) fn entry_vectors(&self, side: Side, places: Option<&[usize]>, ticker: &Ticker) -> Result<Vec<f32>> {
        let dim = self.dim(side);
        let mut vectors = filled(0.0, places.map_or(self.n_entries(), <[usize]>::len) * dim)?;
        let mut out = vectors.chunks_exact_mut(dim);
        let Some(places) = places else {
            for lane in 0..self.n_lanes() {
                ticker.tick()?;
                let (mut ids, lane) = (self.ids[self.entries_of(lane)].iter().peekable(), self.lane(lane));
                if let [list] = lane.lists() {
                    for (r, slot) in list.refs().flat_map(|r| r.live_slots().map(move |slot| (r, slot))) {
                        // Passed over: those that are replaced.
                        if ids.next_if_eq(&&r.id(slot)).is_some()
                            && let Some(out) = out.next()
                        {
                            self.decode(side, r, slot, out);
                        }
                    }
                } else {
                    for (&id, out) in ids.zip(&mut out) {
                        lane.locate(id).into_iter().for_each(|(r, slot)| self.decode(side, r, slot, out));
                    }
                }
            }
            return Ok(vectors);
        };
        for (&place, out) in places.iter().zip(out) {
            ticker.tick()?;
            let lane = self.lane(self.lane_of_entry(place));
            lane.locate(self.ids[place]).into_iter().for_each(|(r, slot)| self.decode(side, r, slot, out));
        }
        Ok(vectors)
    }

    fn decode(&self, side: Side, r: &Ref, slot: usize, out: &mut [f32]) {
        let value = if side == Side::Value { r.block.value(&self.schema, slot) } else { None };
        value.unwrap_or_else(|| r.block.key(&self.schema, slot)).decode(out);
    }

    /// Keys or values of tokens, as they will be stored: `[n, dim]`. `places` None: of all.
    ///
    /// # Errors
    /// When memory is short, or the caller interrupts.
    pub(crate) fn token_vectors(&self, side: Side, places: Option<&[usize]>, ticker: &Ticker) -> Result<Vec<f32>> {
        let (dim, n) = (self.dim(side), places.map_or(self.n_tokens(), <[usize]>::len));
        let mut vectors = filled(0.0, n * dim)?;
        let mut lane = 0;
        for (at, out) in vectors.chunks_exact_mut(dim).enumerate() {
            ticker.tick()?;
            let place = places.map_or(at, |places| places[at]);
            if !self.tokens_of(lane).contains(&place) {
                lane = self.lane_of_token(place);
            }
            let row = &self.rows[lane / self.heads];
            let (encoded, token) = (&row.lanes[lane % self.heads], row.tokens[place - self.tokens[lane]]);
            match self.schema.value {
                Some(layout) if side == Side::Value => encoded.value(layout, token).decode(out),
                _ => encoded.key(&self.schema, token).decode(out),
            }
        }
        Ok(vectors)
    }
}
