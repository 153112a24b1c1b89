//! Exact search: a bounded first pass over blocks, then canonical scores for what may be among the best.

use std::time::Instant;

use mnemex_kernels::prefetch::prefetch_value;
use mnemex_kernels::select::Maxima;
use mnemex_kernels::{Kernels, PANEL, Pass};

use crate::bank::Snapshot;
use crate::block::Schema;
use crate::error::{Kind, Result, ensure, filled, room_for};
use crate::first_pass::{FirstPass, GROUP, Scratch};
use crate::layout::Vector;
use crate::list::{Ref, first_rows};
use crate::query::{Packed, Queries, Query, Unit, Visible};
use crate::reservoir::{Best, Reservoir};
use crate::tally::Tally;
use crate::work::{Ticker, Work};

/// Queries that share one pass over a lane's blocks.
pub(crate) const UNIT_QUERIES: usize = 256;

/// A lane is divided among threads only where it has more than a thread's share, in parts of at least this many blocks.
const SHARD_BLOCKS: usize = 64;

/// Of the blocks to be scanned, one in so many sets the first floors, and as many as these.
const SAMPLE_SHARE: usize = 12;

const SAMPLE_BLOCKS: std::ops::RangeInclusive<usize> = 16..=64;

/// So many blocks ahead, what a block says of itself is brought near: it lies anywhere.
const AHEAD: usize = 8;

/// Blocks that are looked at before all others.
const NEWEST_BLOCKS: usize = 4;

/// Queries whose arithmetic takes long enough to bring the next block near meanwhile; with fewer, to ask for it costs more
/// than it saves, since the processor foresees rows that are read in order.
const MANY: usize = 32;

/// The copy of keys in codes is not worth reading where more than one in so many of its scores passes, beside a few times
/// as many as a reservoir holds: keys of which one number is far larger than the others lose all of these in codes.
const LOOSE_SHARE: usize = 32;
const LOOSE_PASSES: usize = 8;

/// What an allocation takes beside what was asked for, about.
pub(crate) const PIECE_BYTES: usize = 32;

/// Most numbers in an answer.
const MAX_ANSWER: u128 = 1 << 31;

/// The best entries of each query, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Hits {
    /// `[rows, query_heads, T, k]`
    pub shape: [usize; 4],
    /// Canonical scores; -inf where there is no hit.
    pub scores: Vec<f32>,
    /// Ids; -1 where there is no hit.
    pub ids: Vec<i64>,
    /// Labels, where any entry of the bank has one; -1 where there is no hit.
    pub labels: Option<Vec<i64>>,
    /// Bank row of each query row.
    pub rows: Vec<usize>,
}

impl Snapshot {
    /// The `k` best entries of each query: larger score first, then the smaller id.
    ///
    /// # Errors
    /// When anything about the call is wrong, the answer would be too large, or the caller interrupts.
    pub fn search(&self, query: &Query, k: usize, work: &Work) -> Result<Hits> {
        let queries = Queries::check(self, query)?;
        self.check_k(&queries, k)?;
        let best = match &self.version.schema {
            Some(schema) => {
                self.best(schema, &queries, k, false, work)?.into_iter().flat_map(|(_, best)| best).collect()
            }
            None => Vec::new(),
        };
        self.hits(&queries, k, &best)
    }

    pub(crate) fn check_k(&self, queries: &Queries, k: usize) -> Result<()> {
        ensure(k >= 1, Kind::Argument, || "k=0 must be at least 1".into())?;
        ensure(queries.len() as u128 * k as u128 <= MAX_ANSWER, Kind::Argument, || {
            format!("k={k} for {} queries makes an answer of more than 2^31 entries: ask for less", queries.len())
        })
    }

    /// Arrays out of the best of each query, in query order.
    pub(crate) fn hits(&self, queries: &Queries, k: usize, best: &[Vec<Best>]) -> Result<Hits> {
        let n = queries.len() * k;
        let (mut scores, mut ids) = (filled(f32::NEG_INFINITY, n)?, filled(-1, n)?);
        let has_labels = self.version.rows.iter().any(|row| !row.labels.is_absent());
        let mut labels = if has_labels { Some(filled(-1, n)?) } else { None };
        for (at, best) in best.iter().enumerate() {
            let row = &self.version.rows[queries.rows[at / (queries.heads * queries.tokens)]];
            for (i, hit) in best.iter().enumerate() {
                scores[at * k + i] = hit.score;
                ids[at * k + i] = hit.id;
                if let Some(labels) = &mut labels {
                    labels[at * k + i] = row.label(hit.id);
                }
            }
        }
        let shape = [queries.rows.len(), queries.heads, queries.tokens, k];
        Ok(Hits { shape, scores, ids, labels, rows: queries.rows.clone() })
    }

    /// The best of each query, unit by unit. `blank_bad`: a query with NaN or infinity has none.
    pub(crate) fn best<'v>(
        &'v self,
        schema: &Schema,
        queries: &Queries,
        k: usize,
        blank_bad: bool,
        work: &Work,
    ) -> Result<Vec<(Unit<'v>, Vec<Vec<Best>>)>> {
        let each = size_of::<Vec<Best>>() + PIECE_BYTES + size_of::<Best>() * k.min(self.version.longest());
        room_for(queries.len().saturating_mul(each), || format!("the best {k} of {} queries", queries.len()))?;
        let work = &work.for_size(queries.operations(self));
        // Queries are divided first: to divide a lane, every part has to find k entries of its own.
        let lanes = queries.rows.len() * self.config().heads;
        let parts = if work.threads == 1 { 1 } else { (2 * work.threads).div_ceil(lanes.max(1)) };
        let most = (queries.len() / lanes.max(1)).div_ceil(parts).next_multiple_of(GROUP).min(UNIT_QUERIES);
        let units = queries.units(self, schema, most.max(GROUP), work)?;
        let blocks = units.iter().map(|unit| unit.refs.len()).sum::<usize>();
        let size = blocks.div_ceil(work.threads).max(SHARD_BLOCKS);
        let shards: Vec<(usize, std::ops::Range<usize>)> = (units.iter().enumerate())
            .flat_map(|(at, unit)| {
                let n = unit.refs.len();
                (0..n.max(1)).step_by(size).map(move |first| (at, first..n.min(first + size)))
            })
            .collect();
        let tally = work.tally;
        let found = work.map(shards.len(), |at, ticker| {
            let (unit, refs) = &shards[at];
            Scan::new(self, schema, queries, &units[*unit], k, blank_bad)?.run(refs.clone(), ticker, tally)
        })?;
        let mut units: Vec<_> = units.into_iter().map(|unit| (unit, Vec::new())).collect();
        for ((at, _), found) in shards.iter().zip(found) {
            let best: &mut Vec<Vec<Best>> = &mut units[*at].1;
            if best.is_empty() {
                *best = found;
            } else {
                for (best, mut more) in best.iter_mut().zip(found) {
                    best.append(&mut more);
                    best.sort_unstable_by(Best::order);
                    best.truncate(k);
                }
            }
        }
        Ok(units)
    }
}

/// One pass of a unit's queries over some of its blocks.
struct Scan<'s> {
    kernels: &'static Kernels,
    schema: &'s Schema,
    queries: &'s Queries<'s>,
    unit: &'s Unit<'s>,
    pass: FirstPass<'s>,
    blank_bad: bool,
    k: usize,
    reservoirs: Vec<Reservoir>,
    /// The floor of each reservoir.
    floors: Vec<f32>,
    /// Scores from the copy in codes, and how many of them passed.
    scored: usize,
    passed: usize,
    key: Vec<f32>,
    /// Entries that passed, and that were scored canonically.
    counts: [u64; 2],
}

/// A block under the scan.
struct Seen {
    at: usize,
    reach: f32,
    lost: f32,
    /// Whether every query sees all of it.
    by_all: bool,
}

impl<'s> Scan<'s> {
    fn new(
        snapshot: &'s Snapshot,
        schema: &'s Schema,
        queries: &'s Queries,
        unit: &'s Unit,
        k: usize,
        blank_bad: bool,
    ) -> Result<Scan<'s>> {
        let packed = Packed::new(snapshot, queries, unit, blank_bad)?;
        let pass = FirstPass::new(snapshot.shared.kernels, schema, packed, true)?;
        let loose = pass.reads_copy();
        Ok(Scan {
            kernels: snapshot.shared.kernels,
            schema,
            queries,
            unit,
            floors: vec![f32::NEG_INFINITY; unit.n],
            pass,
            blank_bad,
            k,
            scored: 0,
            passed: 0,
            reservoirs: (0..unit.n).map(|_| Reservoir::new(k, loose)).collect(),
            key: vec![0.0; schema.key.dim],
            counts: [0; 2],
        })
    }

    fn run(mut self, refs: std::ops::Range<usize>, ticker: &Ticker, tally: Option<&Tally>) -> Result<Vec<Vec<Best>>> {
        let began = tally.map(|_| Instant::now());
        let (mut scratch, mut passes) = (Scratch::default(), Vec::new());
        let mut thresholds = vec![f32::INFINITY; self.pass.group()];
        let last_seen = self.pass.packed.before.iter().copied().max().unwrap_or(0);
        let first_seen = self.pass.packed.before.iter().copied().min().unwrap_or(0);
        self.sample(refs.clone(), &mut scratch)?;
        // The newest first: neighbours in time are alike, so an early look at them raises the floors that keep the rest out.
        // Then in the order of addresses, which memory is read fastest in.
        let newest = refs.end - refs.len().min(NEWEST_BLOCKS);
        let mut order = (newest..refs.end).rev().chain(refs.start..newest).peekable();
        while let Some(at) = order.next() {
            // A block takes few queries less time than to look at the clock.
            if !self.pass.is_few() || at % 16 == 0 {
                ticker.tick()?;
            }
            let Visible { r, rows } = self.unit.refs[at];
            if let Some(ahead) = self.unit.refs.get(at + AHEAD) {
                prefetch_value(&*ahead.r.block);
            }
            let live = rows & first_rows(r.rows_below(last_seen));
            if live == 0 {
                continue;
            }
            let mut keys = self.pass.load(r, &mut scratch)?;
            if self.unit.n >= MANY {
                keys.then(order.peek().map_or(&[], |&next| self.unit.refs[next].r.block.scanned()));
            }
            let block =
                Seen { at, reach: r.block.reach(), lost: self.pass.lost(&r.block), by_all: r.id_hi() <= first_seen };
            for first in (0..self.unit.n).step_by(self.pass.group()) {
                self.thresholds(first, &block, &mut thresholds);
                self.pass.select(&keys, live, first, &thresholds, &mut passes);
                keys.then(&[]);
                self.passed += passes.len();
                self.take(first, &block, &mut passes);
            }
            if self.pass.reads_copy() {
                self.scored += self.unit.n * r.block.len();
                if self.passed > self.unit.n * LOOSE_PASSES * (self.k + 64) + self.scored / LOOSE_SHARE {
                    self.read_keys()?;
                    thresholds.resize(self.pass.group(), f32::INFINITY);
                }
            }
        }
        let times = began.map(|began| [began, Instant::now()]);
        let mut reservoirs = std::mem::take(&mut self.reservoirs);
        let mut best = Vec::with_capacity(reservoirs.len());
        // The keys of one query come near while the one before it is decided.
        reservoirs.first_mut().into_iter().for_each(|first| self.close(first));
        for query in 0..reservoirs.len() {
            ticker.tick()?;
            reservoirs.get_mut(query + 1).into_iter().for_each(|next| self.close(next));
            best.push(reservoirs[query].decide(&mut |place| self.exact(query, place)));
        }
        if let (Some(tally), Some(times)) = (tally, times) {
            tally.add(self.counts[0], self.counts[1], times);
        }
        Ok(best)
    }

    /// Reads the keys from here on, not their copy in codes: it says too little of these.
    fn read_keys(&mut self) -> Result<()> {
        let packed = std::mem::take(&mut self.pass.packed);
        self.pass = FirstPass::new(self.kernels, self.schema, packed, false)?;
        Ok(())
    }

    /// Sets the first floors from the newest blocks that all queries see whole: without, the first blocks would pass
    /// whole. Rows are taken in groups, of which only the largest score is kept: what k groups reach, k rows reach, and
    /// with many more groups than k hardly any of the best k share one.
    fn sample(&mut self, refs: std::ops::Range<usize>, scratch: &mut Scratch) -> Result<()> {
        if self.pass.is_few() {
            // A reservoir of its own gets there sooner.
            return Ok(());
        }
        let first_seen = self.pass.packed.before.iter().copied().min().unwrap_or(0);
        let whole = |seen: &&Visible| seen.r.id_hi() <= first_seen && seen.rows == first_rows(seen.r.block.len());
        let n = (refs.len() / SAMPLE_SHARE).clamp(*SAMPLE_BLOCKS.start(), *SAMPLE_BLOCKS.end());
        let newest = self.unit.refs[refs].iter().rev().take(2 * n);
        let blocks: Vec<&Ref> = newest.filter(whole).take(n).map(|seen| seen.r).collect();
        let enough = |&per: &usize| blocks.iter().map(|r| r.block.len() / per).sum::<usize>() >= 4 * self.k;
        let Some(per) = [16, 4, 1].into_iter().find(enough) else { return Ok(()) };
        let groups = blocks.iter().map(|r| r.block.len().div_ceil(per)).sum::<usize>();
        let reach = blocks.iter().map(|r| r.block.reach()).fold(0.0, f32::max);
        let lanes = self.unit.n.next_multiple_of(PANEL);
        let mut maxima = filled(f32::NEG_INFINITY, groups * lanes)?;
        let lost = blocks.iter().map(|r| self.pass.lost(&r.block)).fold(0.0, f32::max);
        let mut at = 0;
        for r in blocks {
            let keys = self.pass.load(r, scratch)?;
            for first in (0..self.unit.n).step_by(self.pass.group()) {
                let out = Maxima { out: &mut maxima[first * groups..], groups, first: at, per };
                self.pass.maxima(&keys, first, out);
            }
            at += r.block.len().div_ceil(per);
        }
        for (first, panel) in (0..).step_by(PANEL).zip(maxima.chunks_exact(groups * PANEL)) {
            let mut reached = [0.0; PANEL];
            (self.kernels.reached_by)(panel, self.k, &mut reached);
            for (query, &score) in (first..self.unit.n).zip(&reached) {
                let floor = self.pass.bound(query, reach, lost).lower(score);
                self.reservoirs[query].raise_to(floor);
                self.floors[query] = self.floors[query].max(floor);
            }
        }
        Ok(())
    }

    /// The first-pass scores from which an entry of a block can still be among the best, for the queries from `first` on.
    fn thresholds(&self, first: usize, block: &Seen, out: &mut [f32]) {
        let floors = &self.floors[first..];
        let (wanted, none) = out.split_at_mut(floors.len().min(out.len()));
        for ((query, out), &floor) in (first..).zip(&mut *wanted).zip(floors) {
            *out = self.pass.bound(query, block.reach, block.lost).threshold(floor);
        }
        none.fill(f32::INFINITY);
        if self.blank_bad {
            let blank = (first..).zip(wanted).filter(|(query, _)| self.pass.packed.bad[*query]);
            blank.for_each(|(_, out)| *out = f32::INFINITY);
        }
    }

    /// Whether a query is to have no hits.
    fn is_blank(&self, query: usize) -> bool {
        self.blank_bad && self.pass.packed.bad[query]
    }

    /// Hands what passed of a block to the reservoirs.
    fn take(&mut self, first: usize, block: &Seen, passes: &mut Vec<Pass>) {
        let r = self.unit.refs[block.at].r;
        self.counts[0] += passes.len() as u64;
        let mut reservoirs = std::mem::take(&mut self.reservoirs);
        for pass in passes.drain(..) {
            let (query, slot) = (first + pass.query as usize, pass.row as usize);
            let hidden = !block.by_all && r.id(slot) >= self.pass.packed.before[query];
            if hidden || self.is_blank(query) {
                continue;
            }
            let bound = self.pass.bound(query, block.reach, block.lost);
            let (lower, upper) = (bound.lower(pass.score), bound.upper(pass.score));
            let reservoir = &mut reservoirs[query];
            reservoir.push(lower, upper, (block.at * 64 + slot) as u64);
            if reservoir.is_full() {
                reservoir.shrink(&mut |place| self.exact(query, place));
                self.floors[query] = reservoir.floor();
            }
        }
        self.reservoirs = reservoirs;
    }

    /// Leaves who can be among the best, and brings their keys near.
    fn close(&self, reservoir: &mut Reservoir) {
        reservoir.close().for_each(|place| self.key(place).prefetch());
    }

    /// One key.
    fn key(&self, place: u64) -> Vector<'s> {
        self.unit.refs[(place / 64) as usize].r.block.key(self.schema, (place % 64) as usize)
    }

    /// The canonical score of one entry, and its id.
    fn exact(&mut self, query: usize, place: u64) -> (f32, i64) {
        let (r, slot) = (self.unit.refs[(place / 64) as usize].r, (place % 64) as usize);
        self.counts[1] += 1;
        let key = self.key(place);
        let q = self.queries.get(self.unit.first + query);
        let norm = self.pass.packed.norms[query];
        ((self.kernels.score)(self.schema.metric, key.floats(&mut self.key), q, norm), r.id(slot))
    }
}
