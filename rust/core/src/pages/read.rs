//! Reading pages whole: each query, or the queries of a lane together, take those whose representatives score best.

use std::sync::Arc;

use super::{Pages, Scratch, Source, entries_of};
use crate::bank::Snapshot;
use crate::block::Schema;
use crate::config::Paging;
use crate::error::{Result, room_for};
use crate::input::all_finite;
use crate::query::{Queries, Unit};
use crate::reader::{Choosers, Found, NOTHING, Reader};
use crate::rescore::{Rescorer, TOGETHER};
use crate::reservoir::{Best, Judge, Place};
use crate::work::{Ticker, Work};

/// Queries of a lane that one thread reads for.
const UNIT_QUERIES: usize = 32;

/// A unit's queries before the pages of its lane.
struct Desk<'a, 's> {
    snapshot: &'s Snapshot,
    schema: &'s Schema,
    queries: &'a Queries<'a>,
    unit: &'a Unit<'s>,
    pages: &'a Pages,
    source: Source<'s>,
    reader: Reader,
    /// Places of a page.
    room: usize,
    blank_bad: bool,
    scratch: Scratch,
    keys: Vec<f32>,
    /// What stands for the part of a page that a query sees.
    part: Vec<f32>,
    entries: Vec<(Place, i64)>,
    scores: Vec<f32>,
}

impl Snapshot {
    /// What each query reads of its lane's pages: see [`Snapshot::read`]. A page has as many places as the longest may need,
    /// and its entries stand in them in the order of ids; a page's neighbours follow it, those before it first.
    pub(crate) fn read_pages<'v>(
        &'v self,
        schema: &'v Schema,
        queries: &Queries,
        (reader, how, choosers): (Reader, &Paging, Choosers),
        blank_bad: bool,
        work: &Work,
    ) -> Result<Found<'v>> {
        let work = &work.for_size(queries.operations(self));
        let lanes = queries.units(self, schema, usize::MAX, work)?;
        let of = |unit: &Unit| (queries.rows[unit.row], queries.head(unit));
        let source = |unit: &Unit| Source::of(self.config(), schema, how, &self.version.rows[of(unit).0]);
        let pages = work.map(lanes.len(), |at, ticker| {
            let unit = &lanes[at];
            let all = self.pages_of(of(unit), how, ticker)?;
            if queries.shows_all() { Ok(all) } else { source(unit).pages(&unit.refs, Some(&all), ticker).map(Arc::new) }
        })?;
        // The most that a query of each lane can read, so that a large k of a small bank costs what is there.
        let room = how.longest as usize;
        let bytes = lanes.iter().zip(&pages).map(|(unit, pages)| {
            let places =
                reader.k.min(pages.runs.len()).saturating_mul(1 + reader.before + reader.after).saturating_mul(room);
            unit.n.saturating_mul(places.saturating_mul(size_of::<Best>()))
        });
        let bytes = bytes.fold(0, usize::saturating_add);
        room_for(bytes, || format!("{} pages of up to {room} entries for {} queries", reader.k, queries.len()))?;
        let together = match choosers {
            Choosers::Each => None,
            Choosers::Together => Some(work.map(lanes.len(), |at, ticker| {
                Desk::new(
                    self,
                    schema,
                    queries,
                    (&lanes[at], &pages[at]),
                    source(&lanes[at]),
                    (reader, room, blank_bad),
                )
                .choose_together(ticker)
            })?),
        };
        let mut units = Vec::new();
        for (at, lane) in lanes.iter().enumerate() {
            for first in (0..lane.n).step_by(UNIT_QUERIES) {
                let n = UNIT_QUERIES.min(lane.n - first);
                let unit = Unit { row: lane.row, first: lane.first + first, n, refs: Arc::clone(&lane.refs) };
                units.push((at, unit));
            }
        }
        let found = work.map(units.len(), |at, ticker| {
            let (lane, unit) = &units[at];
            let source = source(unit);
            let mut desk = Desk::new(self, schema, queries, (unit, &pages[*lane]), source, (reader, room, blank_bad));
            let chosen = together.as_ref().map(|together| together[*lane].as_slice());
            (0..unit.n).map(|query| desk.read(query, chosen, ticker)).collect::<Result<Vec<_>>>()
        })?;
        Ok(units.into_iter().map(|(_, unit)| unit).zip(found).collect())
    }
}

impl<'a, 's> Desk<'a, 's> {
    fn new(
        snapshot: &'s Snapshot,
        schema: &'s Schema,
        queries: &'a Queries<'a>,
        (unit, pages): (&'a Unit<'s>, &'a Pages),
        source: Source<'s>,
        (reader, room, blank_bad): (Reader, usize, bool),
    ) -> Desk<'a, 's> {
        let dim = schema.key.dim;
        Desk {
            snapshot,
            schema,
            queries,
            unit,
            pages,
            source,
            reader,
            room,
            blank_bad,
            scratch: Scratch::new(dim),
            keys: vec![0.0; TOGETHER * dim],
            part: vec![0.0; dim],
            entries: Vec::new(),
            scores: Vec::new(),
        }
    }

    /// Whether a query is not answered.
    fn is_blank(&self, query: usize) -> bool {
        self.blank_bad && !all_finite(self.queries.get(self.unit.first + query))
    }

    /// Scores what stands for each page that a query sees; pages ascend, so these are the first so many. Where it sees a part
    /// of the last one, that part has a representative of its own.
    fn score(&mut self, query: usize, ticker: &Ticker) -> Result<()> {
        ticker.tick()?;
        let Desk { schema, unit, pages, .. } = *self;
        let (q, before) = (self.queries.get(unit.first + query), self.queries.before(unit.first + query));
        let kernels = self.snapshot.shared.kernels;
        let norm = (kernels.square_norm)(q).sqrt();
        let whole = pages.runs.partition_point(|run| run.last < before);
        let part = pages.runs.get(whole).filter(|run| run.first < before);
        self.scores.clear();
        self.scores.resize(whole, 0.0);
        (kernels.score)(schema.metric, &pages.keys[..whole * schema.key.dim], q, norm, &mut self.scores);
        if let Some(run) = part {
            entries_of(&unit.refs, run.first, before, &mut self.entries);
            self.source.represent(&unit.refs, &self.entries, &mut self.scratch, &mut self.part);
            self.scores.push(kernels.score_one(schema.metric, &self.part, q, norm));
        }
        Ok(())
    }

    /// The pages that score best for all queries together: the sum of their scores, in float64, in their order. A query counts
    /// where it sees a page and has a score for it.
    fn choose_together(mut self, ticker: &Ticker) -> Result<Vec<usize>> {
        let mut sums: Vec<Option<f64>> = vec![None; self.pages.runs.len()];
        for query in (0..self.unit.n).filter(|&query| !self.is_blank(query)).collect::<Vec<_>>() {
            self.score(query, ticker)?;
            for (sum, &score) in sums.iter_mut().zip(&self.scores).filter(|(_, score)| !score.is_nan()) {
                *sum = Some(sum.unwrap_or(0.0) + f64::from(score));
            }
        }
        let scored = sums.into_iter().enumerate().filter_map(|(at, sum)| Some((sum.filter(|sum| !sum.is_nan())?, at)));
        Ok(best(scored.collect(), self.reader.k))
    }

    /// What a query reads: of the pages that were chosen for all, or that it chooses.
    fn read(&mut self, query: usize, together: Option<&[usize]>, ticker: &Ticker) -> Result<Vec<Best>> {
        if self.is_blank(query) {
            return Ok(Vec::new());
        }
        let before = self.queries.before(self.unit.first + query);
        let own: Vec<usize>;
        let chosen = if let Some(together) = together {
            together
        } else {
            self.score(query, ticker)?;
            let scored = self.scores.iter().enumerate().filter(|(_, score)| !score.is_nan());
            own = best(scored.map(|(at, &score)| (f64::from(score), at)).collect(), self.reader.k);
            &own
        };
        let Reader { before: lower, after: higher, .. } = self.reader;
        let seen = self.pages.runs.partition_point(|run| run.first < before);
        let width = 1 + lower + higher;
        let mut read = vec![NOTHING; chosen.len() * width * self.room];
        // Where each page stands that was read.
        let mut known: Vec<(usize, usize)> = Vec::new();
        for (i, &page) in chosen.iter().enumerate().filter(|(_, page)| **page < seen) {
            let below = (1..=lower).rev().map(|steps| page.checked_sub(steps));
            let above = (1..=higher).map(|steps| page.checked_add(steps).filter(|&page| page < seen));
            for (j, page) in std::iter::once(Some(page)).chain(below).chain(above).enumerate() {
                let (Some(page), slot) = (page, (i * width + j) * self.room) else { continue };
                ticker.tick()?;
                if let Some(&(_, other)) = known.iter().find(|(known, _)| *known == page) {
                    read.copy_within(other..other + self.room, slot);
                    continue;
                }
                known.push((page, slot));
                let entries = self.entries(query, page, before);
                read[slot..][..entries.len()].copy_from_slice(&entries);
            }
        }
        let used = read.iter().rposition(|hit| hit.id >= 0).map_or(0, |at| at + 1);
        read.truncate(used);
        Ok(read)
    }

    /// The entries of a page that a query sees, with their scores, in the order of ids.
    fn entries(&mut self, query: usize, page: usize, before: i64) -> Vec<Best> {
        let run = self.pages.runs[page];
        entries_of(&self.unit.refs, run.first, before.min(run.last + 1), &mut self.entries);
        let places: Vec<Place> = self.entries.iter().map(|&(place, _)| place).collect();
        let (q, kernels) = (self.queries.get(self.unit.first + query), self.snapshot.shared.kernels);
        let mut judge = Rescorer {
            kernels,
            schema: self.schema,
            unit: self.unit,
            query: q,
            norm: (kernels.square_norm)(q).sqrt(),
            keys: &mut self.keys,
            rescored: &mut 0,
        };
        let mut found = Vec::with_capacity(places.len());
        judge.prepare(&places);
        judge.exact(&places, &mut found);
        // What has no score is nobody's hit.
        found.retain(|hit| !hit.score.is_nan());
        found
    }
}

/// The best `k` pages, best first: the larger score, then the older page. No score is NaN.
fn best(mut scored: Vec<(f64, usize)>, k: usize) -> Vec<usize> {
    let order = |a: &(f64, usize), b: &(f64, usize)| {
        b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal).then(a.1.cmp(&b.1))
    };
    if k < scored.len() {
        scored.select_nth_unstable_by(k, order);
        scored.truncate(k);
    }
    scored.sort_unstable_by(order);
    scored.into_iter().map(|(_, page)| page).collect()
}
