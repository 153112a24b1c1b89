//! Many queries where the processor multiplies bytes fastest: see [`mnemex_kernels::halves`] for what is looked at, and why
//! nothing is missed.
//!
//! Codes are made anew at each call, since keys are parameters that may change between calls; that takes as long as the
//! products of about twenty queries.

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use bytemuck::cast_slice_mut;
use mnemex_kernels::bound::{Precision, QueryBound, reach};
use mnemex_kernels::canonical::{Chosen, Metric};
use mnemex_kernels::codes::padded;
use mnemex_kernels::halves::{
    CodedHalf, CodesMut, GROUPS, Halves, MOST_ROWS, Pairs, QueryCodes, ROWS, Reached, Scored, Scores, Sums,
};
use mnemex_kernels::{Kernels, many};

use super::{Slot, Slots, SubKeys, fast, sorted};
use crate::error::{Result, filled};
use crate::input::all_finite;
use crate::plane::{LINE, Plane};
use crate::work::Ticker;

/// Queries of a call from which codes are worth making.
const WORTH_CODING: usize = 8;

/// Largest `k` for which the best sixteen groups of each half say where the k-th sum may be.
const MOST_K: usize = 64;

/// Rows of a half from which on a closer look at the floors is worth its time.
const MANY_ROWS: usize = 96;

/// Sums that are put in order by counting; more are sorted.
const MOST_SUMS: usize = 1024;

/// Queries whose scores are kept at a time: those that kernels take together.
const TOGETHER: usize = 6;

/// Bytes of codes that a thread keeps from call to call at most.
const MOST_KEPT: usize = 1 << 20;

/// A share of all that scores are made of, with much room: for the roundings of float32 sums, and so that what is left out
/// rounds to another number.
const ROOM: f64 = 1.0 / (1 << 18) as f64;

/// Queries that are asked how much they lose, before keys are coded.
const ASKED: usize = 16;

thread_local! {
    /// Room for codes, kept from call to call: fresh pages cost as much as a tenth of a small call.
    static KEPT: Cell<Plane> = Cell::default();
}

/// The codes of one half of one head's keys.
struct Codes<'a> {
    keys: CodedHalf<'a>,
    /// What a norm counts in a slack.
    share: f32,
    /// The largest slack.
    most: f32,
}

/// Where codes of a half go, until they are made.
struct Part<'a> {
    room: Mutex<Option<&'a mut [u8]>>,
    codes: OnceLock<Codes<'a>>,
}

/// All half keys of a call, coded when first asked for.
pub(super) struct Coded<'a> {
    keys: &'a SubKeys<'a>,
    queries: &'a [f32],
    kernels: &'static Kernels,
    halves: Halves,
    parts: Vec<Part<'a>>,
    pairs: Pairs,
    k: usize,
}

/// Calls `then` with the keys of a call, if it is one for which this is made and there is room.
pub(super) fn with<T>(
    keys: &SubKeys,
    kernels: &'static Kernels,
    queries: &[f32],
    k: usize,
    then: impl FnOnce(Option<&Coded>) -> T,
) -> T {
    let tokens = queries.len() / (keys.heads * keys.query_dim());
    let fits = tokens >= WORTH_CODING && k <= MOST_K && keys.dim.iter().all(|&dim| dim <= many::MAX_DIM);
    let Some(halves) = kernels.halves.filter(|_| fits) else {
        return then(None);
    };
    let bytes = [0, 1].map(|half| bytes_of(keys, half));
    let mut room = KEPT.take();
    if room.bytes().len() < keys.heads * (bytes[0] + bytes[1]) {
        let Ok(larger) = Plane::zeroed(keys.heads * (bytes[0] + bytes[1])) else {
            return then(None);
        };
        room = larger;
    }
    let mut rest = room.bytes_mut();
    let mut parts = Vec::with_capacity(2 * keys.heads);
    for part in 0..2 * keys.heads {
        let (own, others) = rest.split_at_mut(bytes[part % 2]);
        parts.push(Part { room: Mutex::new(Some(own)), codes: OnceLock::new() });
        rest = others;
    }
    let result = then(Some(&Coded { keys, queries, kernels, halves, parts, pairs: Pairs::new(k), k }));
    if room.bytes().len() <= MOST_KEPT {
        KEPT.set(room);
    }
    result
}

/// Bytes for the codes of a half: those, factors, slacks, and rows on the way.
fn bytes_of(keys: &SubKeys, half: usize) -> usize {
    let rows = keys.n[half].next_multiple_of(ROWS);
    let bytes = rows * (padded(keys.dim[half]) + 2 * size_of::<f32>()) + 16 * many::row_bytes(keys.dim[half]);
    bytes.next_multiple_of(LINE)
}

/// Room to work in.
#[derive(Default)]
struct Desk {
    rows: [Vec<u32>; 2],
    exact: [Vec<f64>; 2],
    sums: Sums,
    best: Vec<Slot>,
}

/// Some queries of one head, coded, and their scores.
struct Group {
    weights: [Vec<i8>; 2],
    ceilings: [Vec<f32>; 2],
    floors: [Vec<f32>; 2],
    /// Query by query.
    factors: [[f32; TOGETHER]; 2],
    offsets: [[i32; TOGETHER]; 2],
    slacks: [[f32; TOGETHER]; 2],
    /// How far from the truth a sum that looks too small can be; infinite where nothing can be said.
    off: [f64; TOGETHER],
}

impl<'a> Coded<'a> {
    /// The codes of a half of a head.
    fn half(&self, head: usize, half: usize) -> &Codes<'a> {
        let part = &self.parts[2 * head + half];
        part.codes.get_or_init(|| {
            let room = part.room.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.code(head, half, room.unwrap_or_default())
        })
    }

    fn code(&self, head: usize, half: usize, room: &'a mut [u8]) -> Codes<'a> {
        let (n, dim) = (self.keys.n[half], self.keys.dim[half]);
        let rows = n.next_multiple_of(ROWS);
        let share = self.share(head, half);
        let (bytes, room) = room.split_at_mut(rows * padded(dim));
        let (scale, room) = room.split_at_mut(rows * size_of::<f32>());
        let (slack, room) = room.split_at_mut(rows * size_of::<f32>());
        let (scale, slack): (&mut [f32], &mut [f32]) = (cast_slice_mut(scale), cast_slice_mut(slack));
        let out = CodesMut { bytes, scale, slack, rows: room, dim };
        (self.halves.code)(self.keys.half(head, half), share, out);
        let most = slack[..n].iter().fold(0.0f32, |most, &slack| most.max(slack));
        Codes { keys: CodedHalf { bytes, scale, slack, n, dim }, share, most }
    }

    /// What a key's norm counts beside what the key loses: right in the mean of some queries.
    fn share(&self, head: usize, half: usize) -> f32 {
        let width = self.keys.heads * self.keys.query_dim();
        let (tokens, mut codes) = (self.queries.len() / width, vec![0; padded(self.keys.dim[half])]);
        let (mut sum, mut n) = (0.0, 0.0f32);
        for token in (0..tokens).step_by(tokens.div_ceil(ASKED)) {
            let query = (self.halves.code_query)(self.keys.query(self.queries, token, head)[half], &mut codes);
            if query.factor > 0.0 && query.norm.is_finite() {
                sum += query.lost / query.norm;
                n += 1.0;
            }
        }
        if n > 0.0 { (sum / n).clamp(1e-6, 1.0) } else { 1.0 }
    }

    /// The best slots of the queries of some tokens and one head.
    pub(super) fn best(&self, head: usize, tokens: Range<usize>, odd: bool, ticker: &Ticker) -> Result<Slots> {
        let (keys, k) = (self.keys, self.k);
        // Threads that start together make the codes of one half each.
        let halves = if odd {
            let second = self.half(head, 1);
            [self.half(head, 0), second]
        } else {
            [self.half(head, 0), self.half(head, 1)]
        };
        let mut group = Group::new(&halves)?;
        let n = tokens.len() * k;
        let mut slots = Slots { scores: filled(f32::NEG_INFINITY, n)?, ids: filled(-1, n)? };
        let (mut desk, mut out) = (Desk::default(), 0);
        for first in tokens.clone().step_by(TOGETHER) {
            ticker.tick()?;
            let some = first..tokens.end.min(first + TOGETHER);
            group.score(self, &halves, head, some.clone());
            for (at, token) in some.enumerate() {
                let query = keys.query(self.queries, token, head);
                desk.best.clear();
                if !self.few(&halves, &group, at, (head, query), &mut desk) && query.iter().all(|part| all_finite(part))
                {
                    desk.best = sorted::best(&fast::scored(keys, self.kernels, head, query)?, k)?;
                }
                let (scores, ids) = (&mut slots.scores[out..out + k], &mut slots.ids[out..out + k]);
                for ((score, id), best) in scores.iter_mut().zip(ids).zip(&desk.best) {
                    (*score, *id) = (best.score, best.id);
                }
                out += k;
            }
        }
        Ok(slots)
    }

    /// Finds the best slots of a query by few exact scores. Returns whether these prove it.
    fn few(
        &self,
        halves: &[&Codes; 2],
        group: &Group,
        at: usize,
        (head, query): (usize, [&[f32]; 2]),
        desk: &mut Desk,
    ) -> bool {
        let off = group.off[at];
        if !off.is_finite() {
            return false;
        }
        let scored = [0, 1].map(|half: usize| {
            let n = halves[half].keys.n;
            Scored {
                ceilings: &group.ceilings[half][at * n.next_multiple_of(ROWS)..][..n],
                floors: &group.floors[half][at * GROUPS..][..GROUPS],
                factor: group.factors[half][at],
            }
        });
        let reached = (self.halves.reached)(scored, &self.pairs, self.k);
        if !reached.most.iter().all(|most| most.is_finite()) {
            return false;
        }
        let mut least = f64::from(reached.sum) - off;
        self.rows(&scored, &reached, least, &mut desk.rows);
        if desk.rows.iter().any(|rows| rows.len() > MANY_ROWS) {
            // Where a row is far above the others, the best pairs are those with it.
            for (half, first) in scored.iter().zip([reached.first[1], reached.first[0]]) {
                let floor = (self.kernels.reached_by_one)(half.floors, self.k) * half.factor;
                least = least.max(f64::from(floor + first) - off);
            }
            self.rows(&scored, &reached, least, &mut desk.rows);
        }
        if desk.rows.iter().any(|rows| rows.len() > MOST_ROWS) {
            return false;
        }
        for (half, (rows, exact)) in desk.rows.iter().zip(&mut desk.exact).enumerate() {
            exact.resize(rows.len(), 0.0);
            (self.kernels.products)(Chosen { table: self.keys.half(head, half), rows }, query[half], exact);
        }
        (self.halves.sums)(desk.exact.each_ref().map(Vec::as_slice), least as f32, &mut desk.sums);
        if desk.sums.scores.len() > MOST_SUMS {
            return false;
        }
        (self.halves.order)(&mut desk.sums, self.k);
        let [rows, columns] = &desk.rows;
        desk.best.extend(desk.sums.scores.iter().zip(&desk.sums.pairs).map(|(&score, &pair)| {
            let (row, column) = (rows[pair as usize >> 16], columns[pair as usize & 0xFFFF]);
            Slot { score, id: (u64::from(row) * self.keys.n[1] as u64 + u64::from(column)) as i64 }
        }));
        for equal in desk.best.chunk_by_mut(|a, b| a.score.to_bits() == b.score.to_bits()) {
            if equal.len() > 1 {
                equal.sort_unstable_by_key(|slot| slot.id);
            }
        }
        desk.best.truncate(self.k);
        true
    }
}

impl Coded<'_> {
    /// The rows of each half that may be part of a sum of `least`.
    fn rows(&self, scored: &[Scored; 2], reached: &Reached, least: f64, out: &mut [Vec<u32>; 2]) {
        for half in 0..2 {
            let threshold = (least - f64::from(reached.most[1 - half])) / f64::from(scored[half].factor);
            (self.halves.rows)(scored[half].ceilings, threshold as f32, &mut out[half]);
        }
    }
}

impl Group {
    fn new(halves: &[&Codes; 2]) -> Result<Group> {
        let rows = halves.map(|half| half.keys.n.next_multiple_of(ROWS));
        Ok(Group {
            weights: halves.map(|half| vec![0; TOGETHER * padded(half.keys.dim)]),
            ceilings: [filled(0.0, TOGETHER * rows[0])?, filled(0.0, TOGETHER * rows[1])?],
            floors: [vec![0.0; TOGETHER * GROUPS], vec![0.0; TOGETHER * GROUPS]],
            factors: [[0.0; TOGETHER]; 2],
            offsets: [[0; TOGETHER]; 2],
            slacks: [[0.0; TOGETHER]; 2],
            off: [0.0; TOGETHER],
        })
    }

    /// Codes the queries of some tokens, and scores them.
    fn score(&mut self, coded: &Coded, halves: &[&Codes; 2], head: usize, tokens: Range<usize>) {
        let n = tokens.len();
        self.off = [0.0; TOGETHER];
        for (at, token) in tokens.enumerate() {
            let query = coded.keys.query(coded.queries, token, head);
            for half in 0..2 {
                self.code(coded, halves[half], (half, at), query[half]);
            }
        }
        for (half, Codes { keys, .. }) in halves.iter().enumerate() {
            let queries = QueryCodes {
                weights: &self.weights[half][..n * padded(keys.dim)],
                offsets: &self.offsets[half][..n],
                slacks: &self.slacks[half][..n],
            };
            let out = Scores { ceilings: &mut self.ceilings[half], floors: &mut self.floors[half] };
            (coded.halves.scores)(*keys, queries, out);
        }
    }

    fn code(&mut self, coded: &Coded, codes: &Codes, (half, at): (usize, usize), query: &[f32]) {
        let width = padded(query.len());
        let found = (coded.halves.code_query)(query, &mut self.weights[half][at * width..][..width]);
        let precision = Precision::Codes { lost: found.lost.into() };
        let bound = QueryBound::of(Metric::Dot, query.len(), found.norm.into(), precision);
        let per_slack = bound.per_slack(codes.share);
        let slack = per_slack * (1.0 + ROOM as f32) / found.factor;
        // At least the norm of the longest key.
        let longest = f64::from(codes.most / codes.share) * (1.0 + ROOM);
        let size = longest * f64::from(found.norm) + f64::from(codes.most) * f64::from(per_slack);
        let sure = found.factor > 0.0 && slack.is_normal() && reach(Metric::Dot, longest).is_finite();
        let off = if sure { 2.5 * f64::from(bound.constant()) + ROOM * size } else { f64::INFINITY };
        self.off[at] += if off.is_nan() { f64::INFINITY } else { off };
        self.factors[half][at] = found.factor;
        self.offsets[half][at] = found.offset;
        self.slacks[half][at] = if sure { slack } else { 1.0 };
    }
}
