//! Product keys: the best k of n x m slots whose keys are all pairs of two small sets of half keys, without a scan over
//! the slots (Lample et al. 2019). Parameters of a model, not a memory: nothing here is kept between calls.
//!
//! The score of slot i m + j is the sum of two halves, S1(i) + S2(j): each the canonical float64 sum of products of
//! [`mnemex_kernels::canonical`], added and rounded once to float32. Larger first, then the smaller slot.
//!
//! What is read: all half scores of some queries at a time, in float32 or, of many queries where the processor is faster at
//! that, in products of bytes ([`coded`]); with proven bounds. Of each half stay the rows
//! that may be among its best k; of their pairs those that may be among the best k sums; only these are scored exactly.
//! A slot outside has k slots above it, unless sums that differ round to the same number: then, or where bounds say too
//! little, [`sorted`] decides.

mod bag;
mod coded;
mod fast;
mod gradient;
mod read;
mod sorted;

pub use bag::{Bag, Reads};
pub use gradient::Gradient;
pub use read::Weighing;

use mnemex_kernels::{Kernels, PANEL};

use crate::error::{Kind, Result, ensure, filled, room_for};
use crate::work::Work;

/// Two sets of half keys for each head.
#[derive(Clone, Copy)]
pub struct SubKeys<'a> {
    /// `[heads, n, dim]` of the first and of the second halves.
    pub keys: [&'a [f32]; 2],
    /// Heads; each has keys of its own.
    pub heads: usize,
    /// Keys of each half.
    pub n: [usize; 2],
    /// Numbers of each half.
    pub dim: [usize; 2],
}

/// The best slots of each query of each head: `[T, heads, k]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slots {
    /// Scores, best first; -inf where there is no slot.
    pub scores: Vec<f32>,
    /// Slots i m + j; -1 where there is none.
    pub ids: Vec<i64>,
}

impl From<Vec<Slot>> for Slots {
    fn from(slots: Vec<Slot>) -> Slots {
        let (scores, ids) = slots.into_iter().map(|slot| (slot.score, slot.id)).unzip();
        Slots { scores, ids }
    }
}

/// Most numbers in an answer.
const MAX_ANSWER: u128 = 1 << 31;

/// Most keys of a half: rows are numbered in 32 bits.
const MAX_KEYS: usize = 1 << 31;

/// One of the best of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    score: f32,
    id: i64,
}

impl Slot {
    /// Larger score first, then the smaller id.
    fn order(&self, other: &Slot) -> std::cmp::Ordering {
        other.score.total_cmp(&self.score).then(self.id.cmp(&other.id))
    }
}

/// The score of a slot: there is no -0.
fn score(first: f64, second: f64) -> f32 {
    (first + second) as f32 + 0.0
}

impl<'a> SubKeys<'a> {
    /// Numbers of a query.
    pub fn query_dim(&self) -> usize {
        self.dim[0] + self.dim[1]
    }

    /// Slots of a head.
    pub fn slots(&self) -> u128 {
        self.n[0] as u128 * self.n[1] as u128
    }

    /// Both halves of the query of a token and a head, of `[T, heads, query_dim]`.
    fn query<'q>(&self, queries: &'q [f32], token: usize, head: usize) -> [&'q [f32]; 2] {
        let (first, second) =
            queries[(token * self.heads + head) * self.query_dim()..][..self.query_dim()].split_at(self.dim[0]);
        [first, second]
    }

    /// The keys of one half of one head.
    fn half(&self, head: usize, half: usize) -> &'a [f32] {
        let len = self.n[half] * self.dim[half];
        &self.keys[half][head * len..][..len]
    }

    fn check(&self) -> Result<()> {
        for half in 0..2 {
            let (n, dim) = (self.n[half], self.dim[half]);
            let len = self.heads as u128 * n as u128 * dim as u128;
            ensure(self.keys[half].len() as u128 == len && len > 0 && n <= MAX_KEYS, Kind::Shape, || {
                format!("half {half} has {} numbers; expected {} x {n} x {dim}", self.keys[half].len(), self.heads)
            })?;
        }
        ensure(self.slots() <= i64::MAX as u128, Kind::Shape, || "more than 2^63 slots: take fewer keys".into())
    }

    /// The number of queries in `len` numbers.
    fn count(&self, len: usize) -> Result<usize> {
        let each = self.heads * self.query_dim();
        ensure(each > 0 && len.is_multiple_of(each), Kind::Shape, || {
            format!("queries have {len} numbers; expected a multiple of {} x {}", self.heads, self.query_dim())
        })?;
        Ok(len / each)
    }

    /// The best `k` slots of each query, of `[T, heads, query_dim]`. A query with NaN or infinity has none, and a half key
    /// with one is never found.
    ///
    /// # Errors
    /// When shapes do not fit, the answer would be too large, or the caller interrupts.
    pub fn lookup(&self, kernels: &'static Kernels, queries: &[f32], k: usize, work: &Work) -> Result<Slots> {
        self.check()?;
        let tokens = self.count(queries.len())?;
        let n = tokens * self.heads;
        ensure(k >= 1, Kind::Argument, || "k=0 must be at least 1".into())?;
        ensure(n.max(1) as u128 * k as u128 <= MAX_ANSWER, Kind::Argument, || {
            format!("k={k} for {n} queries makes an answer of more than 2^31 slots: ask for less")
        })?;
        // Jobs keep what they found until all are done.
        room_for((n * k).saturating_mul(2 * size_of::<Slot>()), || format!("the best {k} slots of {n} queries"))?;
        let operations = n.saturating_mul(self.n[0] + self.n[1]).saturating_mul(self.query_dim() / 2 + 1);
        let work = work.for_size(operations);
        // A head's keys are looked through once for each job, so there are few.
        let parts = if work.threads == 1 { 1 } else { (2 * work.threads).div_ceil(self.heads) };
        let per_job = tokens.div_ceil(parts).next_multiple_of(PANEL).max(1);
        let jobs = tokens.div_ceil(per_job);
        let mut found = coded::with(self, kernels, queries, k, |coded| {
            work.map(self.heads * jobs, |job, ticker| {
                let (head, first) = (job / jobs, job % jobs * per_job);
                let some = first..tokens.min(first + per_job);
                match coded {
                    Some(coded) => coded.best(head, some, job % 2 == 1, ticker),
                    None => fast::best(self, kernels, (head, k), queries, some, ticker),
                }
            })
        })?;
        if let [all] = &mut found[..] {
            return Ok(std::mem::take(all));
        }
        let mut slots = Slots { scores: filled(f32::NEG_INFINITY, n * k)?, ids: filled(-1, n * k)? };
        for (job, found) in found.into_iter().enumerate() {
            let (head, first) = (job / jobs, job % jobs * per_job);
            let best = found.scores.chunks_exact(k).zip(found.ids.chunks_exact(k));
            for (at, (scores, ids)) in best.enumerate() {
                let to = ((first + at) * self.heads + head) * k;
                slots.scores[to..][..k].copy_from_slice(scores);
                slots.ids[to..][..k].copy_from_slice(ids);
            }
        }
        Ok(slots)
    }
}
