//! Exact search: a bounded first pass over blocks, then canonical scores for what may be among the best.

use std::time::Instant;

use mnemex_kernels::prefetch::prefetch_value;
use mnemex_kernels::{Kernels, Pass};

use crate::bank::Snapshot;
use crate::block::{BLOCK_ROWS, Block, Schema};
use crate::error::{Result, filled, room_for};
use crate::first_pass::{FirstPass, GROUP, Scratch, Thresholds};
use crate::list::first_rows;
use crate::query::{Packed, Queries, Query, Unit, Visible};
use crate::reader::Reader;
use crate::rescore::{Rescorer, TOGETHER};
use crate::reservoir::{Best, Desk, Reservoir};
use crate::small::SmallLane;
use crate::tally::Tally;
use crate::work::{Ticker, Work};

/// Queries that share one pass over a lane's blocks.
pub(crate) const UNIT_QUERIES: usize = 256;

/// A lane is divided among threads only where it has more than a thread's share, in parts of at least this many blocks.
const SHARD_BLOCKS: usize = 64;

/// Of the blocks to be scanned, one in so many sets the first floors, and as many as these.
const SAMPLE_SHARE: usize = 8;

const SAMPLE_BLOCKS: std::ops::RangeInclusive<usize> = 16..=128;

/// So many blocks ahead, what a block says of itself is brought near: it lies anywhere.
const AHEAD: usize = 8;

/// Blocks that are looked at before all others.
const NEWEST_BLOCKS: usize = 4;

/// Queries whose arithmetic takes long enough to bring the next block near meanwhile; with fewer, to ask for it costs more
/// than it saves where it is in a cache, as less than [`FAR`] bytes mostly are.
const MANY: usize = 32;
const FAR: usize = 4 << 20;

/// Codes are not worth reading where more than one in so many of its scores passes, beside a few times
/// as many as a reservoir holds: keys of which one number is far larger than the others lose all of these in codes.
const LOOSE_SHARE: usize = 32;
const LOOSE_PASSES: usize = 8;

/// What an allocation takes beside what was asked for, about.
const PIECE_BYTES: usize = 32;

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
    /// The `k` best entries of each query: larger score first, then the smaller id. Or what a [`Reader`] takes.
    ///
    /// # Errors
    /// When anything about the call is wrong, the answer would be too large, or the caller interrupts.
    pub fn search(&self, query: &Query, k: impl Into<Reader>, work: &Work) -> Result<Hits> {
        let (queries, reader) = (Queries::check(self, query)?, k.into());
        reader.check()?;
        let room = reader.room(self.config())?;
        let places = reader.places(queries.len(), room)?;
        let best = match &self.version.schema {
            Some(schema) => {
                self.read(schema, &queries, reader, false, work)?.into_iter().flat_map(|(_, best)| best).collect()
            }
            None => Vec::new(),
        };
        self.hits(&queries, places, &best)
    }

    /// Arrays out of what each query read, in query order.
    pub(crate) fn hits(&self, queries: &Queries, k: usize, best: &[Vec<Best>]) -> Result<Hits> {
        let n = queries.len() * k;
        let (mut scores, mut ids) = (filled(f32::NEG_INFINITY, n)?, filled(-1, n)?);
        let has_labels = self.version.rows.iter().any(|row| !row.labels.is_absent());
        let mut labels = if has_labels { Some(filled(-1, n)?) } else { None };
        for (at, best) in best.iter().enumerate() {
            let row = &self.version.rows[queries.rows[at / (queries.heads * queries.tokens)]];
            for (i, hit) in best.iter().enumerate().filter(|(_, hit)| hit.id >= 0) {
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
        let far = blocks * BLOCK_ROWS * schema.key.row_bytes() > FAR;
        let size = blocks.div_ceil(work.threads).max(SHARD_BLOCKS);
        let shards: Vec<(usize, std::ops::Range<usize>)> = (units.iter().enumerate())
            .flat_map(|(at, unit)| {
                let n = unit.refs.len();
                (0..n.max(1)).step_by(size).map(move |first| (at, first..n.min(first + size)))
            })
            .collect();
        let (tally, scan_small) = (work.tally, work.scan_small);
        let found = work.map(shards.len(), |at, ticker| {
            let (unit, refs) = &shards[at];
            let (unit, kernels) = (&units[*unit], self.shared.kernels);
            let packed = Packed::new(self, queries, unit, blank_bad)?;
            if !scan_small
                && let Some(lane) = SmallLane::new(kernels, schema, unit, refs.clone(), (&packed, blank_bad), k)?
            {
                return lane.best(queries, ticker, tally);
            }
            Scan::new(kernels, schema, queries, (unit, packed), k, (blank_bad, far))?.run(refs.clone(), ticker, tally)
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
    /// Queries that are to have no hits.
    blank: Vec<usize>,
    /// Whether what is read is too much for caches.
    far: bool,
    k: usize,
    reservoirs: Vec<Reservoir>,
    /// The floor of each reservoir.
    floors: Vec<f32>,
    /// Scores from codes, and how many of them passed.
    scored: usize,
    passed: usize,
    keys: Vec<f32>,
    desk: Desk,
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
        kernels: &'static Kernels,
        schema: &'s Schema,
        queries: &'s Queries,
        (unit, packed): (&'s Unit, Packed),
        k: usize,
        (blank_bad, far): (bool, bool),
    ) -> Result<Scan<'s>> {
        let pass = FirstPass::new(kernels, schema, packed, true)?;
        let loose = pass.is_loose();
        let blank = (0..unit.n).filter(|&query| blank_bad && pass.packed.bad[query]).collect();
        Ok(Scan {
            kernels,
            schema,
            queries,
            unit,
            floors: vec![f32::NEG_INFINITY; unit.n],
            pass,
            blank,
            far,
            k,
            scored: 0,
            passed: 0,
            reservoirs: (0..unit.n).map(|_| Reservoir::new(k, loose)).collect(),
            keys: vec![0.0; TOGETHER * schema.key.dim],
            desk: Desk::default(),
            counts: [0; 2],
        })
    }

    fn run(mut self, refs: std::ops::Range<usize>, ticker: &Ticker, tally: Option<&Tally>) -> Result<Vec<Vec<Best>>> {
        let began = tally.map(|_| Instant::now());
        let (mut scratch, mut passes) = (Scratch::new(), Vec::new());
        let mut thresholds = Thresholds::default();
        let last_seen = self.pass.packed.before.iter().copied().max().unwrap_or(0);
        let first_seen = self.pass.packed.before.iter().copied().min().unwrap_or(0);
        let sampled = self.sample(refs.clone(), &mut scratch)?;
        // The newest first: neighbours in time are alike, so an early look at them raises the floors that keep the rest out;
        // and those that set the first floors, which are better known when the blocks are scanned. Then in the order of
        // addresses, which memory is read fastest in.
        let newest = refs.end - refs.len().min(NEWEST_BLOCKS);
        let sampled = newest.min(refs.end - sampled);
        let order = (newest..refs.end).rev().chain(sampled..newest).chain(refs.start..sampled);
        let mut order = order.enumerate().peekable();
        // Twice as many entries have half as many among their best, so it is worth to look again each time.
        let mut again = refs.end - sampled;
        while let Some((seen, at)) = order.next() {
            if seen == again && !self.pass.is_few() {
                self.raise_floors();
                again *= 2;
            }
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
            let (mut keys, lost) = self.pass.load(&r.block, &mut scratch)?;
            if self.unit.n >= MANY || self.far {
                keys.then(order.peek().map_or(&[], |&(_, next)| self.pass.reads(&self.unit.refs[next].r.block)));
            }
            let block = Seen { at, reach: r.block.reach(), lost, by_all: r.id_hi() <= first_seen };
            for first in (0..self.unit.n).step_by(self.pass.group()) {
                let floors = (&self.floors[..], &self.blank[..]);
                self.pass.thresholds(first, (block.reach, block.lost), floors, &mut thresholds);
                self.passed += self.pass.select(&keys, live, first, &thresholds, &mut passes);
                keys.then(&[]);
                self.take(first, &block, &thresholds.absolutes, &mut passes);
            }
            if self.pass.reads_codes() {
                self.scored += self.unit.n * r.block.len();
                if self.passed > self.unit.n * LOOSE_PASSES * (self.k + 64) + self.scored / LOOSE_SHARE {
                    self.read_keys()?;
                }
            }
        }
        let times = began.map(|began| [began, Instant::now()]);
        let mut reservoirs = std::mem::take(&mut self.reservoirs);
        let mut best = Vec::with_capacity(reservoirs.len());
        // The keys of one query come near while the one before it is decided.
        let mut desk = std::mem::take(&mut self.desk);
        for query in 0..=reservoirs.len() {
            if let Some(next) = reservoirs.get_mut(query) {
                next.close(self.kernels, &mut desk, &self.judge(query));
            }
            if let Some(before) = query.checked_sub(1) {
                ticker.tick()?;
                best.push(reservoirs[before].decide(&mut desk, &mut self.judge(before)));
            }
        }
        if let (Some(tally), Some(times)) = (tally, times) {
            tally.add(self.counts[0], self.counts[1], times);
        }
        Ok(best)
    }

    /// Reads the keys from here on, not codes: these say too little of them.
    fn read_keys(&mut self) -> Result<()> {
        let packed = std::mem::take(&mut self.pass.packed);
        self.pass = FirstPass::new(self.kernels, self.schema, packed, false)?;
        Ok(())
    }

    /// Sets the first floors from the newest blocks that all queries see whole: without, the first blocks would pass
    /// whole. Returns how many they are.
    fn sample(&mut self, refs: std::ops::Range<usize>, scratch: &mut Scratch) -> Result<usize> {
        if self.pass.is_few() {
            // A reservoir of its own gets there sooner.
            return Ok(0);
        }
        let first_seen = self.pass.packed.before.iter().copied().min().unwrap_or(0);
        let whole = |seen: &&Visible| seen.r.id_hi() <= first_seen && seen.rows == first_rows(seen.r.block.len());
        let n = (refs.len() / SAMPLE_SHARE).clamp(*SAMPLE_BLOCKS.start(), *SAMPLE_BLOCKS.end()).min(refs.len() / 2);
        let newest = self.unit.refs[refs].iter().rev().take(2 * n);
        let blocks: Vec<&Block> = newest.filter(whole).take(n).map(|seen| &*seen.r.block).collect();
        // A few tell whether codes are worth reading.
        if self.pass.reads_codes()
            && let some = &blocks[..blocks.len().min(*SAMPLE_BLOCKS.start())]
            && let Some(reached) = self.pass.reached(some, self.k, scratch)?
            && reached.is_loose
        {
            self.read_keys()?;
        }
        let Some(reached) = self.pass.reached(&blocks, self.k, scratch)? else { return Ok(0) };
        for (query, &floor) in reached.floors.iter().enumerate() {
            self.reservoirs[query].raise_to(floor);
            self.floors[query] = self.floors[query].max(floor);
        }
        Ok(blocks.len())
    }

    /// Raises every floor to what the candidates say.
    fn raise_floors(&mut self) {
        for (reservoir, floor) in self.reservoirs.iter_mut().zip(&mut self.floors) {
            reservoir.raise_floor(self.kernels, &mut self.desk);
            *floor = reservoir.floor();
        }
    }

    /// Hands what passed of a block to the reservoirs.
    fn take(&mut self, first: usize, block: &Seen, absolutes: &[f32], passes: &mut Vec<Pass>) {
        let r = self.unit.refs[block.at].r;
        self.counts[0] += passes.len() as u64;
        let mut reservoirs = std::mem::take(&mut self.reservoirs);
        let mut desk = std::mem::take(&mut self.desk);
        for pass in passes.drain(..) {
            let (query, slot) = (first + pass.query as usize, pass.row as usize);
            let (lower, upper) = self.pass.bound(absolutes[pass.query as usize]).both(pass.score);
            let hidden = !block.by_all && r.id(slot) >= self.pass.packed.before[query];
            if upper < self.floors[query] || hidden || (!self.blank.is_empty() && self.pass.packed.bad[query]) {
                continue;
            }
            let reservoir = &mut reservoirs[query];
            reservoir.push(lower, upper, (block.at * 64 + slot) as u64);
            if reservoir.is_full() {
                reservoir.shrink(self.kernels, &mut desk, &mut self.judge(query));
                self.floors[query] = reservoir.floor();
            }
        }
        (self.reservoirs, self.desk) = (reservoirs, desk);
    }

    /// Who decides about one query.
    fn judge(&mut self, query: usize) -> Rescorer<'_, 's> {
        Rescorer {
            kernels: self.kernels,
            schema: self.schema,
            unit: self.unit,
            query: self.queries.get(self.unit.first + query),
            norm: self.pass.packed.norms[query],
            keys: &mut self.keys,
            rescored: &mut self.counts[1],
        }
    }
}
