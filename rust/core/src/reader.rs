//! What a read takes of a lane: the best k, none below a score, each followed by its neighbours in id order.
//!
//! Neighbours are what Neurocache reads beside what it finds (Safaya and Yuret 2024, arXiv 2407.02486): entries that were
//! written just before or after, of the same lane. They have their own canonical scores. One that is not there, or that
//! the query does not see, leaves its place empty. Neighbourhoods may overlap: a search tells of an entry wherever it
//! stands, a softmax takes it once.

use std::borrow::Cow;
use std::ops::Range;

use crate::bank::Snapshot;
use crate::block::Schema;
use crate::config::{Config, Write};
use crate::error::{Error, Kind, Result, ensure, room_for};
use crate::query::{Queries, Unit};
use crate::rescore::{Rescorer, TOGETHER};
use crate::reservoir::{Best, Judge, Place};
use crate::work::{Ticker, Work};

/// Most numbers in an answer.
const MAX_ANSWER: u128 = 1 << 31;

/// How many entries a query reads, and which. A number is the best so many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reader {
    /// The best so many.
    pub k: usize,
    /// Of these, none with a smaller score.
    pub least: f32,
    /// Neighbours with smaller ids that come with each of them.
    pub before: usize,
    /// Neighbours with larger ids that come with each of them.
    pub after: usize,
    /// Pages are what is read, and what the numbers above count, instead of entries.
    pub pages: Option<Choosers>,
}

/// Who chooses pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choosers {
    /// Each query its own.
    Each,
    /// The queries of a call that read one lane, together.
    Together,
}

impl From<usize> for Reader {
    fn from(k: usize) -> Reader {
        Reader { k, least: f32::NEG_INFINITY, before: 0, after: 0, pages: None }
    }
}

/// A place without an entry.
pub(crate) const NOTHING: Best = Best { score: f32::NEG_INFINITY, id: -1, place: 0 };

/// The units of a call and the best of each of their queries.
pub(crate) type Found<'v> = Vec<(Unit<'v>, Vec<Vec<Best>>)>;

impl Reader {
    /// Whether neighbours are read.
    pub(crate) fn has_neighbours(&self) -> bool {
        self.before > 0 || self.after > 0
    }

    /// Whether every entry that a query sees is read, once k is as many as there are.
    pub(crate) fn takes_all(&self) -> bool {
        self.least == f32::NEG_INFINITY && self.pages.is_none()
    }

    /// Refuses what reads nothing.
    pub(crate) fn check(&self) -> Result<()> {
        ensure(self.k > 0, Kind::Argument, || "k=0 must be at least 1".into())?;
        ensure(!self.least.is_nan(), Kind::Argument, || "score=NaN must be a number, or an infinity".into())
    }

    /// The places that each of what is read takes in an answer.
    ///
    /// # Errors
    /// When pages are asked of a bank that has none.
    pub(crate) fn room(&self, config: &Config) -> Result<usize> {
        match (self.pages, &config.write) {
            (None, _) => Ok(1),
            (Some(_), Write::Pages(how)) => Ok(how.longest as usize),
            (Some(_), write) => Err(Error::new(
                Kind::Argument,
                format!(
                    "k=Blocks(...) reads pages, and this bank has none, write={:?}: make it with write=Pages(size=128), or \
                     read entries, as with k=32",
                    write.name()
                ),
            )),
        }
    }

    /// Places in the answer of each of `n` queries, where each of what is read takes `room`.
    pub(crate) fn places(&self, n: usize, room: usize) -> Result<usize> {
        let Reader { k, before, after, pages, .. } = *self;
        let each = (k as u128).saturating_mul(1 + before as u128 + after as u128).saturating_mul(room as u128);
        ensure(each.saturating_mul(n.max(1) as u128) <= MAX_ANSWER, Kind::Argument, || {
            let with = if pages.is_some() {
                format!(" pages of up to {room} entries, each with {before} pages before it and {after} after,")
            } else if self.has_neighbours() {
                format!(", each with {before} entries before it and {after} after,")
            } else {
                String::new()
            };
            format!("k={k}{with} for {n} queries makes an answer of more than 2^31 entries: ask for less")
        })?;
        Ok(each as usize)
    }

    /// What of an answer takes part in a softmax: each entry once, and the places where these stand.
    pub(crate) fn distinct<'h>(&self, hits: &'h [Best]) -> (Cow<'h, [Best]>, Option<Vec<usize>>) {
        if !self.has_neighbours() && self.pages.is_none() {
            return (Cow::Borrowed(hits), None);
        }
        let places = firsts(hits.iter().map(|hit| hit.id));
        (Cow::Owned(places.iter().map(|&at| hits[at]).collect()), Some(places))
    }
}

/// Where each id stands for the first time, ascending; -1 stands for nothing.
pub(crate) fn firsts(ids: impl Iterator<Item = i64>) -> Vec<usize> {
    let given: Vec<(i64, usize)> = ids.zip(0..).filter(|(id, _)| *id != -1).collect();
    let mut sorted = given.clone();
    sorted.sort_unstable();
    // Mostly there is nothing to be left out.
    let once = sorted.windows(2).all(|pair| pair[0].0 != pair[1].0);
    if !once {
        sorted.dedup_by_key(|(id, _)| *id);
        sorted.sort_unstable_by_key(|(_, at)| *at);
    }
    let kept = if once { given } else { sorted };
    kept.into_iter().map(|(_, at)| at).collect()
}

impl Snapshot {
    /// What each query reads, in the places of its answer; empty places at the end are left out. `blank_bad`: a query
    /// with NaN or infinity reads nothing.
    pub(crate) fn read<'v>(
        &'v self,
        schema: &'v Schema,
        queries: &Queries,
        reader: Reader,
        blank_bad: bool,
        work: &Work,
    ) -> Result<Found<'v>> {
        if let (Some(choosers), Write::Pages(how)) = (reader.pages, &self.config().write) {
            return self.read_pages(schema, queries, (reader, how, choosers), blank_bad, work);
        }
        let mut units = self.best(schema, queries, reader.k, blank_bad, work)?;
        if !reader.takes_all() {
            for best in units.iter_mut().flat_map(|(_, best)| best) {
                best.truncate(best.partition_point(|hit| hit.score >= reader.least));
            }
        }
        if !reader.has_neighbours() {
            return Ok(units);
        }
        let width = 1 + reader.before + reader.after;
        let hits: usize = units.iter().flat_map(|(_, best)| best).map(Vec::len).sum();
        let bytes = hits.saturating_mul(width).saturating_mul(size_of::<Best>());
        room_for(bytes, || format!("{hits} hits with {} neighbours each", width - 1))?;
        let work = work.for_size(hits.saturating_mul(width * queries.dim));
        let read = work.map(units.len(), |at, ticker| {
            let (unit, best) = &units[at];
            let mut near = Neighbourhood::new(self, schema, unit, reader);
            let each = best.iter().enumerate();
            each.map(|(at, best)| near.around(best, queries, unit.first + at, ticker)).collect::<Result<Vec<_>>>()
        })?;
        for ((_, best), read) in units.iter_mut().zip(read) {
            *best = read;
        }
        Ok(units)
    }
}

/// Looks around what the queries of a unit found.
struct Neighbourhood<'s> {
    snapshot: &'s Snapshot,
    schema: &'s Schema,
    unit: &'s Unit<'s>,
    reader: Reader,
    /// Runs of the unit's references along which ids ascend: one per list.
    runs: Vec<Range<usize>>,
    keys: Vec<f32>,
}

impl<'s> Neighbourhood<'s> {
    fn new(snapshot: &'s Snapshot, schema: &'s Schema, unit: &'s Unit<'s>, reader: Reader) -> Neighbourhood<'s> {
        let mut runs = Vec::new();
        for run in unit.refs.chunk_by(|a, b| a.r.id_lo < b.r.id_lo) {
            let first = runs.last().map_or(0, |run: &Range<usize>| run.end);
            runs.push(first..first + run.len());
        }
        let keys = vec![0.0; TOGETHER * schema.key.dim];
        Neighbourhood { snapshot, schema, unit, reader, runs, keys }
    }

    /// The best of a query, each followed by its neighbours.
    fn around(&mut self, best: &[Best], queries: &Queries, query: usize, ticker: &Ticker) -> Result<Vec<Best>> {
        let Reader { before, after, .. } = self.reader;
        let (end, width) = (queries.before(query), 1 + before + after);
        let (mut places, mut found): (Vec<(usize, Place)>, Vec<Best>) = (Vec::new(), Vec::new());
        let mut read = vec![NOTHING; best.len() * width];
        for (i, hit) in best.iter().enumerate() {
            ticker.tick()?;
            read[i * width] = *hit;
            let mut near = (hit.place / 64) as usize;
            let of = |steps: usize| i64::try_from(steps).unwrap_or(i64::MAX);
            let lower = (1..=before).rev().map(|steps| hit.id.checked_sub(of(steps)));
            let ids = lower.chain((1..=after).map(|steps| hit.id.checked_add(of(steps))));
            for (at, id) in ids.enumerate() {
                if let Some(id) = id.filter(|&id| 0 <= id && id < end)
                    && let Some(place) = self.seen(id, near)
                {
                    near = (place / 64) as usize;
                    places.push((i * width + 1 + at, place));
                }
            }
        }
        let q = queries.get(query);
        let kernels = self.snapshot.shared.kernels;
        let mut judge = Rescorer {
            kernels,
            schema: self.schema,
            unit: self.unit,
            query: q,
            norm: (kernels.square_norm)(q).sqrt(),
            keys: &mut self.keys,
            rescored: &mut 0,
        };
        let of_keys: Vec<Place> = places.iter().map(|&(_, place)| place).collect();
        judge.prepare(&of_keys);
        judge.exact(&of_keys, &mut found);
        for ((at, _), neighbour) in places.into_iter().zip(found) {
            // What has no score is nobody's hit.
            if !neighbour.score.is_nan() {
                read[at] = neighbour;
            }
        }
        Ok(read)
    }

    /// Where an id stands among what the unit sees; it may be in the reference `near`.
    fn seen(&self, id: i64, near: usize) -> Option<Place> {
        let here = |at: usize| {
            let seen = self.unit.refs[at];
            let slot = seen.r.slot(id)?;
            (seen.rows >> slot & 1 == 1).then_some((at * 64 + slot) as Place)
        };
        here(near).or_else(|| {
            self.runs.iter().find_map(|run| {
                let after = self.unit.refs[run.clone()].partition_point(|seen| seen.r.id_lo <= id);
                here(run.start + after.checked_sub(1)?)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_counts_where_it_stands_first() {
        let of = |ids: &[i64]| firsts(ids.iter().copied());
        assert_eq!(of(&[]), [0; 0]);
        assert_eq!(of(&[7, 3, -1, 3, 7, 5, -1]), [0, 1, 5]);
    }

    #[test]
    fn answers_have_a_place_for_every_neighbour() {
        let reader = Reader { before: 2, after: 1, ..Reader::from(5) };
        assert_eq!(reader.places(3, 1), Ok(20));
        assert_eq!(Reader::from(5).places(3, 1), Ok(5));
        for reader in [Reader { before: usize::MAX, after: usize::MAX, ..reader }, Reader { k: 1 << 29, ..reader }] {
            assert_eq!(reader.places(3, 1).map_err(|error| error.kind), Err(Kind::Argument));
        }
        let pages = Reader { pages: Some(Choosers::Each), ..reader };
        assert_eq!(pages.places(3, 128), Ok(20 * 128));
        assert_eq!(pages.places(3, 1 << 30).map_err(|error| error.kind), Err(Kind::Argument));
        for reader in [Reader { least: f32::NAN, ..reader }, Reader { k: 0, ..reader }] {
            assert_eq!(reader.check().map_err(|error| error.kind), Err(Kind::Argument));
        }
    }
}
