//! Attention over every entry: a flash attention on the processor, with the same bits for any thread count.
//!
//! Entries are taken in id order in spans of 256 ids; sixteen spans make a stretch, which one job reduces, and stretches
//! are merged in id order. Spans are counted by id, so the answer does not depend on how entries lie in blocks: it is
//! the same after deletion elsewhere, saving and opening.
//!
//! Two things float32 cannot do in passing, and both are made good only where they show: a sum of products may leave its
//! range although the score does not, and a value that is NaN or infinite spoils a sum that gives it a weight of 0.

use mnemex_kernels::PANEL;
use mnemex_kernels::bound::reach;
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::softmax::Logit;

use crate::attend::Partial;
use crate::bank::Snapshot;
use crate::bias::{ColumnBias, biased};
use crate::block::Schema;
use crate::error::Result;
use crate::input::all_finite;
use crate::piece::{Piece, in_floats, pieces};
use crate::query::{Packed, Queries, Unit, Visible};
use crate::scores::{ROWS, Scores};
use crate::sums::Sums;
use crate::version::Row;
use crate::work::{Ticker, Work};

/// Ids of one softmax step.
const SPAN: i64 = ROWS as i64;

/// Ids reduced by one job.
const STRETCH: i64 = 16 * SPAN;

/// Queries of one job: their score panels over a span stay in the second-level cache.
const UNIT_QUERIES: usize = 8 * PANEL;

/// How scores become logits.
#[derive(Clone, Copy)]
pub(crate) struct How<'s> {
    pub(crate) logit: Logit,
    /// What is added.
    pub(crate) bias: Option<&'s ColumnBias>,
}

/// Attends to all entries that each query may see.
pub(crate) fn attend(
    snapshot: &Snapshot,
    schema: &Schema,
    queries: &Queries,
    how: How,
    work: &Work,
    partial: &mut Partial,
) -> Result<()> {
    let work = &work.for_size(queries.operations(snapshot));
    let units = queries.units(snapshot, schema, UNIT_QUERIES, work)?;
    let jobs: Vec<(usize, i64)> = (units.iter().enumerate())
        .flat_map(|(at, unit)| stretches(&unit.refs).into_iter().map(move |first| (at, first)))
        .collect();
    let sums = work.map(jobs.len(), |at, ticker| {
        let (unit, first) = jobs[at];
        Reduction::new(snapshot, schema, queries, &units[unit], how)?.stretch(first, ticker)
    })?;
    let mut whole: Vec<Option<Sums>> = units.iter().map(|_| None).collect();
    for ((unit, _), sums) in jobs.iter().zip(sums) {
        match &mut whole[*unit] {
            Some(whole) => whole.merge(&sums, snapshot.shared.kernels),
            none => *none = Some(sums),
        }
    }
    let dim = snapshot.config().value_dim();
    for (unit, sums) in units.iter().zip(&whole) {
        let Some(sums) = sums else { continue };
        for (i, at) in (unit.first..unit.first + unit.n).enumerate() {
            // A sum of 0 is that of no entry; NaN, from logits beyond float32, is passed on.
            if sums.sum[i] != 0.0 {
                let row = &sums.out[i * sums.stride..][..dim];
                partial.out[at * dim..][..dim].iter_mut().zip(row).for_each(|(out, x)| *out = x / sums.sum[i]);
                partial.lse[at] = sums.max[i] + sums.sum[i].ln();
            }
        }
    }
    Ok(())
}

/// The first ids of the stretches that hold entries: ids can be far apart, and the stretches between cost nothing.
fn stretches(refs: &[Visible]) -> Vec<i64> {
    let mut firsts: Vec<i64> = Vec::new();
    for Visible { r, .. } in refs {
        let ends = [r.id_lo, r.id_hi() - 1];
        let gaps = r.offsets.as_ref().map_or(0..0, |offsets| 0..offsets.len());
        for id in gaps.map(|slot| r.id(slot)).chain(ends) {
            let first = id / STRETCH * STRETCH;
            if firsts.last() != Some(&first) {
                firsts.push(first);
            }
        }
    }
    firsts.sort_unstable();
    firsts.dedup();
    firsts
}

/// One unit's queries on their way through one stretch.
struct Reduction<'s> {
    snapshot: &'s Snapshot,
    schema: &'s Schema,
    queries: &'s Queries<'s>,
    unit: &'s Unit<'s>,
    row: &'s Row,
    how: How<'s>,
    scores: Scores<'s>,
    /// Whether values without weight are kept out: see [`Reduction::stretch`].
    careful: bool,
}

impl<'s> Reduction<'s> {
    fn new(
        snapshot: &'s Snapshot,
        schema: &'s Schema,
        queries: &'s Queries,
        unit: &'s Unit,
        how: How<'s>,
    ) -> Result<Self> {
        let packed = Packed::new(snapshot, queries, unit, true)?;
        let scores = Scores::new(snapshot.shared.kernels, schema, queries, packed, how.logit)?;
        let row = &snapshot.version.rows[queries.rows[unit.row]];
        Ok(Reduction { snapshot, schema, queries, unit, row, how, scores, careful: false })
    }

    /// Reduces one stretch; again and with care where something not finite came out of it.
    fn stretch(mut self, first: i64, ticker: &Ticker) -> Result<Sums> {
        let sums = self.reduce(first, ticker)?;
        let dim = self.snapshot.config().value_dim();
        let fine = |query: usize| self.scores.packed.bad[query] || all_finite(&sums.out[query * sums.stride..][..dim]);
        if (0..self.unit.n).all(fine) {
            return Ok(sums);
        }
        self.careful = true;
        self.reduce(first, ticker)
    }

    /// Reduces the spans of one stretch, in id order.
    fn reduce(&mut self, first: i64, ticker: &Ticker) -> Result<Sums> {
        let lanes = self.unit.n.next_multiple_of(self.scores.width);
        let stride = self.snapshot.config().value_dim().next_multiple_of(PANEL);
        let (mut sums, mut part) = (Sums::empty(lanes, stride), Sums::empty(lanes, stride));
        let here = |seen: &&Visible| seen.r.id_lo < first + STRETCH && seen.r.id_hi() > first;
        let refs: Vec<Visible> = self.unit.refs.iter().filter(here).copied().collect();
        let mut next = pieces(&refs, first, first + SPAN);
        for span in (first..first + STRETCH).step_by(SPAN as usize) {
            ticker.tick()?;
            let now = std::mem::replace(&mut next, pieces(&refs, span + SPAN, span + 2 * SPAN));
            if !now.is_empty() && span < self.unseen() {
                self.span(&now, next.first(), span, &mut part, ticker)?;
                sums.merge(&part, self.snapshot.shared.kernels);
            }
        }
        Ok(sums)
    }

    /// The first id that no query may see.
    fn unseen(&self) -> i64 {
        self.scores.packed.before.iter().copied().max().unwrap_or(0)
    }

    /// The softmax of one span, into `part`; `next` is what comes after it.
    fn span(
        &mut self,
        pieces: &[Piece],
        next: Option<&Piece>,
        span: i64,
        part: &mut Sums,
        ticker: &Ticker,
    ) -> Result<()> {
        let kernels = self.snapshot.shared.kernels;
        let mut ids = Vec::with_capacity(ROWS);
        // In the order in which they are read: each is brought near while the one before it is worked on.
        let values = pieces.iter().map(|piece| piece.value_bytes(self.schema));
        let reads = pieces.iter().chain(next).map(Piece::key_bytes);
        let mut reads: Vec<&[u8]> = reads.collect();
        reads.splice(pieces.len()..pieces.len(), values);
        reads.resize(2 * pieces.len() + 1, &[]);
        for (at, piece) in pieces.iter().enumerate() {
            self.scores.score(piece, ids.len(), reads[at + 1])?;
            match piece {
                Piece::Whole(r) => ids.extend((0..r.block.len()).map(|slot| r.id(slot))),
                Piece::Rows(rows) => ids.extend(rows.iter().map(|(r, slot)| r.id(*slot))),
            }
        }
        let absent = if self.in_range(pieces) { Vec::new() } else { self.settle(pieces, ticker)? };
        let unseen = self.unseen();
        let seen = &ids[..ids.partition_point(|&id| id < unseen)];
        let biases = self
            .how
            .bias
            .map(|bias| bias.of((self.row, &self.row.lanes[self.queries.head(self.unit)]), seen))
            .transpose()?
            .unwrap_or_default();
        part.out.fill(0.0);
        let width = self.scores.width;
        for panel in self.scores.panels_mut() {
            let logits = &mut panel[..ids.len() * width];
            (kernels.logits)(logits, self.how.logit);
            for (z, &bias) in logits.chunks_exact_mut(width).zip(&biases) {
                z.iter_mut().for_each(|z| *z = biased(*z, bias));
            }
        }
        absent.into_iter().for_each(|(query, row)| self.scores.hide(query, row..row + 1));
        for query in 0..self.unit.n {
            let before = self.scores.packed.before[query];
            if before < span + SPAN {
                self.scores.hide(query, ids.partition_point(|&id| id < before)..ids.len());
            }
        }
        for (at, panel) in self.scores.panels_mut().enumerate() {
            if width == 1 {
                panel[ids.len()..ids.len().next_multiple_of(PANEL)].fill(f32::NEG_INFINITY);
                (part.max[at], part.sum[at]) =
                    (kernels.exponentials_one)(&mut panel[..ids.len().next_multiple_of(PANEL)]);
            } else {
                let (mut max, mut sum) = ([0.0; PANEL], [0.0; PANEL]);
                (kernels.exponentials)(&mut panel[..ids.len() * PANEL], &mut max, &mut sum);
                part.max[at * PANEL..][..PANEL].copy_from_slice(&max);
                part.sum[at * PANEL..][..PANEL].copy_from_slice(&sum);
            }
        }
        let mut first = 0;
        for (at, piece) in pieces.iter().enumerate() {
            let next = reads[pieces.len() + at + 1];
            if self.careful {
                self.weigh_with_care(first, piece, part);
            } else {
                self.scores.weigh(piece, first, next, &mut part.out);
            }
            first += piece.len();
        }
        Ok(())
    }

    /// Adds a piece's values, where one that is not finite counts for the queries that give it a weight, and for no other.
    fn weigh_with_care(&mut self, first: usize, piece: &Piece, part: &mut Sums) {
        let (stride, dim, n) = (part.stride, self.snapshot.config().value_dim(), piece.len());
        let mut scratch = Vec::new();
        let values = piece.values(self.schema, &mut scratch).0;
        let mut finite = values.to_vec();
        let bad: Vec<usize> = (0..n).filter(|row| !all_finite(&values[row * stride..][..dim])).collect();
        bad.iter().for_each(|row| finite[row * stride..][..dim].fill(0.0));
        if self.scores.width == 1 {
            self.scores.weigh_stored(first, in_floats((&finite, stride), n), &mut part.out);
        } else {
            self.scores.weigh_floats(first, &finite, stride, n, &[], &mut part.out);
        }
        for row in bad {
            let value = &values[row * stride..][..dim];
            for query in 0..self.unit.n {
                let weight = *self.scores.at(query, first + row);
                if weight != 0.0 {
                    let out = &mut part.out[query * stride..][..dim];
                    (self.snapshot.shared.kernels.add_scaled)(weight, value, out);
                }
            }
        }
    }

    /// Whether norms promise that no sum of these scores leaves float32's range: a key's [`reach`] is finite if so, and
    /// what it says of a key's norm holds of a query's.
    fn in_range(&self, pieces: &[Piece]) -> bool {
        let promised = |query: usize| reach(Metric::Dot, self.scores.packed.norms[query]).is_finite();
        pieces.iter().all(|piece| piece.reach().is_finite())
            && (0..self.unit.n).all(|query| self.scores.packed.bad[query] || promised(query))
    }

    /// Replaces scores that came out NaN or infinite by the canonical ones. Returns query and row of those that are no
    /// number by any sum: like search, attention passes them over.
    fn settle(&mut self, pieces: &[Piece], ticker: &Ticker) -> Result<Vec<(usize, usize)>> {
        let (kernels, metric, layout) = (self.snapshot.shared.kernels, self.schema.metric, self.schema.key);
        let mut absent = Vec::new();
        let mut key = vec![0.0; layout.dim];
        for (row, (r, slot)) in pieces.iter().flat_map(Piece::rows).enumerate() {
            ticker.tick()?;
            r.block.key(self.schema, slot).decode(&mut key);
            for query in 0..self.unit.n {
                if !self.scores.packed.bad[query] && !self.scores.at(query, row).is_finite() {
                    let q = self.queries.get(self.unit.first + query);
                    let score = kernels.score_one(metric, &key, q, self.scores.packed.norms[query]);
                    *self.scores.at(query, row) = score;
                    absent.extend(score.is_nan().then_some((query, row)));
                }
            }
        }
        Ok(absent)
    }
}
