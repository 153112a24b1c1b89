//! Sixteen queries of one head at a time: all half scores in float32, then ever fewer pairs, until few are left to be
//! scored exactly. For processors whose products of bytes are no faster, few queries, and a large k; see [`super::coded`].

use std::cell::Cell;
use std::ops::Range;

use mnemex_kernels::bound::{Bound, Precision, QueryBound, reach};
use mnemex_kernels::canonical::{Chosen, Metric};
use mnemex_kernels::product::Candidates;
use mnemex_kernels::tile::{Queries as Panels, ROW_GROUP, pack};
use mnemex_kernels::{Kernels, Keys, PANEL, Rule};

use super::{Slot, Slots, SubKeys, score, sorted};
use crate::error::{Result, filled};
use crate::input::all_finite;
use crate::plane::Plane;
use crate::work::Ticker;

/// Rows of keys that kernels take at a time.
const BLOCK: usize = 64;

/// Numbers of half scores that are kept, about: they stay in the second-level cache.
const SCORES: usize = 1 << 18;

/// Most queries at a time: four panels use what kernels load of a block.
const MOST: usize = 4 * PANEL;

/// So many times k groups of rows are looked at for a floor: hardly any of the best k share one.
const MORE_GROUPS: usize = 4;

/// Candidates from which on all scores are as soon sorted.
const MOST_CANDIDATES: usize = 512;

/// Bytes of half scores that a thread keeps at most.
const MOST_KEPT: usize = 1 << 20;

thread_local! {
    /// Room for half scores, kept from call to call: fresh pages cost as much as a tenth of a small call.
    static ROOM: Cell<[Plane; 2]> = Cell::default();
}

/// No row: there are fewer.
const NONE: u32 = u32::MAX;

/// One half of a head's keys.
struct Half<'a> {
    keys: &'a [f32],
    n: usize,
    dim: usize,
    /// The last rows, where they are too few for kernels to read in groups, with zeros behind.
    rest: Vec<f32>,
    /// At least the norm of the longest key; infinite where one is not finite.
    longest: f64,
    panels: Plane,
    scores: Plane,
    groups: Vec<f32>,
    candidates: [Candidates; PANEL],
    /// What rows outside the candidates are below, and what float32 scores can be off by: of each query.
    below: [f32; PANEL],
    bounds: Vec<Bound>,
    norms: Vec<f64>,
}

impl<'a> Half<'a> {
    fn new(
        keys: &SubKeys<'a>,
        kernels: &Kernels,
        [head, half]: [usize; 2],
        queries: usize,
        room: Plane,
    ) -> Result<Half<'a>> {
        let (n, dim, keys) = (keys.n[half], keys.dim[half], keys.half(head, half));
        let whole = n - n % ROW_GROUP;
        let mut rest = keys[whole * dim..].to_vec();
        rest.resize(if whole < n { ROW_GROUP * dim } else { 0 }, 0.0);
        let squares = keys.chunks_exact(dim).map(|key| (kernels.dot)(key, key));
        // Far more than what float32 can lose of a sum of squares, or of numbers whose squares are too small for it.
        let larger = |most: f32, square| if most.is_nan() || square <= most { most } else { square };
        let square = squares.fold(0.0, larger);
        let longest = f64::from(square).sqrt() * 1.01 + 1e-18 * (dim as f64).sqrt();
        let lanes = queries.next_multiple_of(PANEL);
        let bytes = (lanes * n * size_of::<f32>()).next_multiple_of(64);
        Ok(Half {
            keys,
            n,
            dim,
            rest,
            longest: if longest.is_finite() { longest } else { f64::INFINITY },
            panels: Plane::zeroed((lanes * dim * size_of::<f32>()).next_multiple_of(64))?,
            scores: if room.bytes().len() < bytes { Plane::zeroed(bytes)? } else { room },
            groups: Vec::new(),
            candidates: Default::default(),
            below: [0.0; PANEL],
            bounds: Vec::new(),
            norms: Vec::new(),
        })
    }

    /// All scores of these queries.
    fn score<'q>(&mut self, kernels: &Kernels, queries: impl ExactSizeIterator<Item = &'q [f32]>) {
        let n = queries.len();
        self.bounds.clear();
        self.norms.clear();
        self.panels.floats_mut().fill(0.0);
        for (at, query) in queries.enumerate() {
            let norm = (kernels.square_norm)(query).sqrt();
            let bound = QueryBound::of(Metric::Dot, self.dim, norm, Precision::Single);
            self.bounds.push(bound.at(reach(Metric::Dot, self.longest), 0.0));
            self.norms.push(norm);
            // What is not finite has no hits, and could spoil no other lane.
            if norm.is_finite() {
                pack(query, at, self.panels.floats_mut());
            }
        }
        let queries = Panels { panels: self.panels.floats(), dim: self.dim, n };
        let whole = self.n - self.n % ROW_GROUP;
        for first in (0..whole).step_by(BLOCK) {
            let rows = BLOCK.min(whole - first);
            let keys = Keys { rows: &self.keys[first * self.dim..], stride: self.dim, n: rows, scale: &[], next: &[] };
            (kernels.scores)(Rule::Dot, keys, queries, self.scores.floats_mut(), self.n, first);
        }
        if whole < self.n {
            let keys = Keys { rows: &self.rest, stride: self.dim, n: self.n - whole, scale: &[], next: &[] };
            (kernels.scores)(Rule::Dot, keys, queries, self.scores.floats_mut(), self.n, whole);
        }
    }

    /// The candidates of the queries of one panel.
    fn collect(&mut self, kernels: &Kernels, panel: usize, k: usize) {
        let scores = &self.scores.floats()[panel * self.n * PANEL..][..self.n * PANEL];
        let mut floors = [f32::NEG_INFINITY; PANEL];
        let k = more(k);
        if k < self.n {
            let per = [16, 8, 4, 2].into_iter().find(|per| self.n / per >= MORE_GROUPS * k).unwrap_or(1);
            self.groups.resize(self.n / per * PANEL, 0.0);
            (kernels.group_maxima)(scores, per, &mut self.groups);
            (kernels.reached_by)(&self.groups, k, &mut floors);
        }
        let mut thresholds = [f32::INFINITY; PANEL];
        let bounds = self.bounds.iter().skip(panel * PANEL).take(PANEL);
        for (at, bound) in bounds.enumerate() {
            self.below[at] = bound.lower(floors[at]);
            thresholds[at] = bound.threshold(self.below[at]);
        }
        self.candidates.iter_mut().for_each(Candidates::clear);
        (kernels.collect)(scores, &thresholds, &mut self.candidates);
    }

    /// The candidates of a query in descending order of their first-pass scores.
    fn sort(&self, kernels: &Kernels, at: usize, ranks: &mut Vec<u32>, out: &mut Sorted) {
        let Candidates { scores, rows } = &self.candidates[at];
        (kernels.ranks)(scores, ranks);
        out.scores.resize(scores.len(), 0.0);
        out.rows.clear();
        out.rows.resize(scores.len(), NONE);
        for (&rank, (&score, &row)) in ranks.iter().zip(scores.iter().zip(rows)) {
            // Equal scores have the same rank.
            let mut to = rank as usize;
            while out.rows[to] != NONE {
                to += 1;
            }
            (out.scores[to], out.rows[to]) = (score, row);
        }
    }
}

/// Candidates of one query in descending order, and the exact scores of the first.
#[derive(Default)]
struct Sorted {
    scores: Vec<f32>,
    rows: Vec<u32>,
    exact: Vec<f64>,
}

/// Room to work in.
#[derive(Default)]
struct Desk {
    ranks: Vec<u32>,
    halves: [Sorted; 2],
    sums: Vec<f32>,
    /// How many of the second half each of the first makes a pair with.
    counts: Vec<usize>,
    pairs: Vec<Slot>,
    order: Vec<u64>,
}

/// Queries of one head.
struct Job<'a> {
    keys: &'a SubKeys<'a>,
    kernels: &'static Kernels,
    k: usize,
    /// For the i-th best of one half the least j with i j of k or more.
    partners: Vec<usize>,
}

/// The best slots of the queries of some tokens and one head: `k` each, the missing ones with an id of -1.
pub(super) fn best(
    keys: &SubKeys,
    kernels: &'static Kernels,
    (head, k): (usize, usize),
    queries: &[f32],
    tokens: Range<usize>,
    ticker: &Ticker,
) -> Result<Slots> {
    if (0..2).any(|half| is_too_much(keys.n[half], k)) {
        return by_sorting(keys, kernels, (head, k), queries, tokens, ticker).map(Slots::from);
    }
    let together = (SCORES / (keys.n[0] + keys.n[1]) / PANEL * PANEL).clamp(PANEL, MOST).min(tokens.len());
    let half = |half, room| Half::new(keys, kernels, [head, half], together, room);
    let [first, second] = ROOM.take();
    let (mut halves, job) =
        ([half(0, first)?, half(1, second)?], Job { keys, kernels, k, partners: partners(keys, k) });
    let (mut best, mut desk) = (Vec::with_capacity(tokens.len() * k), Desk::default());
    for first in tokens.clone().step_by(together) {
        let some = first..tokens.end.min(first + together);
        halves[0].score(kernels, some.clone().map(|token| keys.query(queries, token, head)[0]));
        halves[1].score(kernels, some.clone().map(|token| keys.query(queries, token, head)[1]));
        for (at, token) in some.enumerate() {
            if at % PANEL == 0 {
                ticker.tick()?;
                halves.iter_mut().for_each(|half| half.collect(kernels, at / PANEL, k));
            }
            let parts = keys.query(queries, token, head);
            let before = best.len();
            if parts.iter().all(|part| all_finite(part)) && !job.few(&halves, at, parts, &mut desk, &mut best) {
                best.truncate(before);
                best.extend(sorted::best(&scored(keys, kernels, head, parts)?, k)?);
            }
            best.resize(before + k, Slot { score: f32::NEG_INFINITY, id: -1 });
        }
    }
    let rooms = halves.map(|half| half.scores);
    ROOM.set(rooms.map(|room| if room.bytes().len() > MOST_KEPT { Plane::default() } else { room }));
    Ok(best.into())
}

/// Whether so many candidates are due of `n` rows that all are as soon sorted; counts of rows are float32.
fn is_too_much(n: usize, k: usize) -> bool {
    n > MOST_CANDIDATES && (more(k) > MOST_CANDIDATES || n > 1 << 24)
}

/// A few more than `k`, so that the k-th is known to be above what is left out.
fn more(k: usize) -> usize {
    k.saturating_add(1 + k / 16)
}

/// The same as [`best`], all scores sorted.
fn by_sorting(
    keys: &SubKeys,
    kernels: &'static Kernels,
    (head, k): (usize, usize),
    queries: &[f32],
    tokens: Range<usize>,
    ticker: &Ticker,
) -> Result<Vec<Slot>> {
    let mut best = Vec::with_capacity(tokens.len() * k);
    for token in tokens {
        ticker.tick()?;
        let (parts, before) = (keys.query(queries, token, head), best.len());
        if parts.iter().all(|part| all_finite(part)) {
            best.extend(sorted::best(&scored(keys, kernels, head, parts)?, k)?);
        }
        best.resize(before + k, Slot { score: f32::NEG_INFINITY, id: -1 });
    }
    Ok(best)
}

/// The exact scores of all rows of both halves.
pub(super) fn scored(keys: &SubKeys, kernels: &Kernels, head: usize, query: [&[f32]; 2]) -> Result<[Vec<f64>; 2]> {
    let score = |half: usize| {
        let n = keys.n[half];
        let (mut rows, mut exact) = (filled(0, n)?, filled(0.0, n)?);
        rows.iter_mut().zip(0..).for_each(|(row, at)| *row = at);
        (kernels.products)(Chosen { table: keys.half(head, half), rows: &rows }, query[half], &mut exact);
        Ok(exact)
    };
    Ok([score(0)?, score(1)?])
}

impl Job<'_> {
    /// Appends the best slots of a query, by few exact scores. Returns whether these prove it.
    fn few(&self, halves: &[Half; 2], at: usize, query: [&[f32]; 2], desk: &mut Desk, out: &mut Vec<Slot>) -> bool {
        let (kernels, k, lane, first_out) = (self.kernels, self.k, at % PANEL, out.len());
        if halves.iter().any(|half| half.candidates[lane].rows.len() > MOST_CANDIDATES) {
            return false;
        }
        // How far sums can be off: with room for their own roundings, and so much more that what is left out rounds to
        // another number.
        let size = [0, 1].map(|half: usize| halves[half].longest * halves[half].norms[at]);
        let off = [0, 1].map(|half: usize| f64::from(halves[half].bounds[at].upper(0.0)));
        let off = (off[0] + off[1] + (size[0] + size[1]) * 2f64.powi(-20)) as f32;
        if !off.is_finite() {
            return false;
        }
        for (half, sorted) in halves.iter().zip(&mut desk.halves) {
            half.sort(kernels, lane, &mut desk.ranks, sorted);
        }
        let [a, b] = desk.halves.each_ref().map(|sorted| &sorted.scores[..]);

        // The i-th and the j-th best make i j pairs at least as good. The best such floor leaves about twice as many as
        // are wanted; the k-th sum of these is the next.
        let some = a.iter().zip(&self.partners).filter_map(|(a, &j)| b.get(j - 1).map(|b| a + b));
        let least = some.fold(f32::NEG_INFINITY, f32::max) - 2.0 * off;
        staircase(a, b, least, &mut desk.counts);

        desk.sums.clear();
        desk.counts.iter().zip(a).for_each(|(&n, a)| desk.sums.extend(b[..n].iter().map(|b| a + b)));
        if desk.sums.len() > k {
            desk.sums.resize(desk.sums.len().next_multiple_of(PANEL), least);
            staircase(a, b, (kernels.reached_by_one)(&desk.sums, k) - 2.0 * off, &mut desk.counts);
        }

        let first = [desk.counts.len(), desk.counts.first().copied().unwrap_or(0)];
        for (half, sorted) in desk.halves.iter_mut().enumerate() {
            sorted.exact.resize(first[half], 0.0);
            let rows = Chosen { table: halves[half].keys, rows: &sorted.rows[..first[half]] };
            (kernels.products)(rows, query[half], &mut sorted.exact);
        }
        let [a, b] = &desk.halves;
        desk.pairs.clear();
        for (i, &n) in desk.counts.iter().enumerate() {
            let id = u64::from(a.rows[i]) * self.keys.n[1] as u64;
            let slot = |j: usize| Slot { score: score(a.exact[i], b.exact[j]), id: (id + u64::from(b.rows[j])) as i64 };
            desk.pairs.extend((0..n).map(slot));
        }
        best_of(&desk.pairs, k, &mut desk.order, out);

        // What is not a candidate is below some score. With whatever of the other half, k candidates beat it, if they are so
        // far above that the sums round to other numbers; or even with the best of the other half it is below the last.
        let last = out.get(first_out + k - 1).map_or(f32::NEG_INFINITY, |last| last.score);
        let apart = (size[0] + size[1]) * 2f64.powi(-20) + f64::from(off);
        (0..2).all(|half| {
            let (this, other) = (&desk.halves[half].scores, &desk.halves[1 - half].scores);
            let below = f64::from(halves[half].below[lane]);
            let bounds = [half, 1 - half].map(|half| halves[half].bounds[at]);
            let beaten = this.get(k - 1).is_some_and(|&x| f64::from(bounds[0].lower(x)) - below > apart);
            let most = bounds[1].upper(other.first().copied().unwrap_or(f32::NEG_INFINITY));
            this.len() == halves[half].n || beaten || score(below, most.into()) < last
        })
    }
}

/// Appends the best `k` of some slots, in order. Numbers that order as scores do are sorted sooner than slots.
fn best_of(slots: &[Slot], k: usize, order: &mut Vec<u64>, out: &mut Vec<Slot>) {
    order.clear();
    order.extend(slots.iter().enumerate().map(|(at, slot)| {
        let bits = slot.score.to_bits();
        let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        u64::from(!ascending) << 32 | at as u64
    }));
    order.sort_unstable();
    let first = out.len();
    out.extend(order.iter().map(|&at| slots[at as u32 as usize]));
    for equal in out[first..].chunk_by_mut(|a, b| a.score.to_bits() == b.score.to_bits()) {
        if equal.len() > 1 {
            equal.sort_unstable_by_key(|slot| slot.id);
        }
    }
    out.truncate(first + k);
}

fn partners(keys: &SubKeys, k: usize) -> Vec<usize> {
    (1..=k.min(keys.n[0]).min(MOST_CANDIDATES)).map(|i| k.div_ceil(i)).collect()
}

/// How many of `b` make a sum of `least` or more with each of `a`, both descending, up to the last that has any.
fn staircase(a: &[f32], b: &[f32], least: f32, counts: &mut Vec<usize>) {
    counts.clear();
    let mut n = b.len();
    for a in a {
        while n > 0 && a + b[n - 1] < least {
            n -= 1;
        }
        if n == 0 {
            return;
        }
        counts.push(n);
    }
}
