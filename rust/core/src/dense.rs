//! Attention over every entry: a flash attention on the processor, with the same bits for any thread count.
//!
//! Entries are taken in id order in spans of 256 ids; sixteen spans make a stretch, which one job reduces, and stretches
//! are merged in id order. Spans are counted by id, so the answer does not depend on how entries lie in blocks: it is
//! the same after deletion elsewhere, saving and opening.
//!
//! Two things float32 cannot do in passing, and both are made good only where they show: a sum of products may leave its
//! range although the score does not, and a value that is NaN or infinite spoils a sum that gives it a weight of 0.

use mnemex_kernels::bound::reach;
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::softmax::{Logit, exp};
use mnemex_kernels::tile::Queries as Panels;
use mnemex_kernels::{Keys, PANEL};

use crate::attend::Partial;
use crate::bank::Snapshot;
use crate::bias::{ColumnBias, biased};
use crate::block::Schema;
use crate::error::Result;
use crate::first_pass::rule;
use crate::input::all_finite;
use crate::piece::{Piece, pieces};
use crate::plane::Plane;
use crate::query::{Packed, Queries, Unit, Visible};
use crate::version::Row;
use crate::work::{Ticker, Work};

/// Ids of one softmax step.
const SPAN: i64 = 256;

/// Ids reduced by one job.
const STRETCH: i64 = 16 * SPAN;

/// Queries of one job: their score panels over a span stay in the second-level cache.
const UNIT_QUERIES: usize = 4 * PANEL;

/// Running softmax of the queries of a unit.
struct Sums {
    /// `[n, stride]`
    out: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    stride: usize,
}

impl Sums {
    fn empty(lanes: usize, stride: usize) -> Sums {
        Sums { out: vec![0.0; lanes * stride], max: vec![f32::NEG_INFINITY; lanes], sum: vec![0.0; lanes], stride }
    }

    /// Joins a later part: out and sum are relative to their max.
    fn merge(&mut self, later: &Sums) {
        for i in 0..self.max.len() {
            let (a, b) = (self.max[i], later.max[i]);
            let max = if a > b { a } else { b };
            let share = |m: f32| if m == f32::NEG_INFINITY { 0.0 } else { exp(m - max) };
            let (keep, add) = (share(a), share(b));
            // A NaN sum, from a NaN logit, survives: it never comes with a share of 0 alone.
            self.sum[i] = self.sum[i] * keep + later.sum[i] * add;
            let at = i * self.stride..(i + 1) * self.stride;
            let pairs = self.out[at.clone()].iter_mut().zip(&later.out[at]);
            if keep == 0.0 || add == 0.0 {
                pairs.for_each(|(x, y)| *x = weighed(*x, keep) + weighed(*y, add));
            } else {
                pairs.for_each(|(x, y)| *x = *x * keep + y * add);
            }
            self.max[i] = max;
        }
    }
}

/// `x * share`; what has no share does not matter, whatever it is.
#[inline(always)]
fn weighed(x: f32, share: f32) -> f32 {
    if share == 0.0 && !x.is_finite() { 0.0 } else { x * share }
}

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
            Some(whole) => whole.merge(&sums),
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
    packed: Packed,
    /// Score panels of `SPAN` rows.
    panels: Plane,
    scratch: Vec<f32>,
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
        let panels = Plane::zeroed(unit.n.next_multiple_of(PANEL) * SPAN as usize * size_of::<f32>())?;
        let row = &snapshot.version.rows[queries.rows[unit.row]];
        let scratch = Vec::new();
        Ok(Reduction { snapshot, schema, queries, unit, row, how, packed, panels, scratch, careful: false })
    }

    /// Reduces one stretch; again and with care where something not finite came out of it.
    fn stretch(mut self, first: i64, ticker: &Ticker) -> Result<Sums> {
        let sums = self.reduce(first, ticker)?;
        let dim = self.snapshot.config().value_dim();
        let fine = |query: usize| self.packed.bad[query] || all_finite(&sums.out[query * sums.stride..][..dim]);
        if (0..self.unit.n).all(fine) {
            return Ok(sums);
        }
        self.careful = true;
        self.reduce(first, ticker)
    }

    /// Reduces the spans of one stretch, in id order.
    fn reduce(&mut self, first: i64, ticker: &Ticker) -> Result<Sums> {
        let lanes = self.unit.n.next_multiple_of(PANEL);
        let stride = self.snapshot.config().value_dim().next_multiple_of(PANEL);
        let (mut sums, mut part) = (Sums::empty(lanes, stride), Sums::empty(lanes, stride));
        let here = |seen: &&Visible| seen.r.id_lo < first + STRETCH && seen.r.id_hi() > first;
        let refs: Vec<Visible> = self.unit.refs.iter().filter(here).copied().collect();
        for span in (first..first + STRETCH).step_by(SPAN as usize) {
            ticker.tick()?;
            let pieces = pieces(&refs, span, span + SPAN);
            if !pieces.is_empty() {
                self.span(&pieces, span, &mut part, ticker)?;
                sums.merge(&part);
            }
        }
        Ok(sums)
    }

    /// The softmax of one span, into `part`.
    fn span(&mut self, pieces: &[Piece], span: i64, part: &mut Sums, ticker: &Ticker) -> Result<()> {
        let kernels = self.snapshot.shared.kernels;
        let rows = SPAN as usize;
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut ids = Vec::with_capacity(rows);
        for piece in pieces {
            let (keys, stride) = piece.keys(self.schema, &mut scratch);
            let keys = Keys { rows: keys, stride, n: piece.len(), scale: &piece.scale(), next: &[] };
            let queries = Panels { panels: self.packed.panels.floats(), dim: self.queries.dim, n: self.unit.n };
            (kernels.scores)(rule(self.schema.metric), keys, queries, self.panels.floats_mut(), rows, ids.len());
            match piece {
                Piece::Whole(r) => ids.extend((0..r.block.len()).map(|slot| r.id(slot))),
                Piece::Rows(rows) => ids.extend(rows.iter().map(|(r, slot)| r.id(*slot))),
            }
        }
        let absent = if self.in_range(pieces) { Vec::new() } else { self.settle(pieces, ticker)? };
        let last_seen = self.packed.before.iter().copied().max().unwrap_or(0);
        let seen = &ids[..ids.partition_point(|&id| id < last_seen)];
        let biases = self.how.bias.map(|bias| bias.of(self.row, seen)).transpose()?.unwrap_or_default();
        part.out.fill(0.0);
        for (at, panel) in self.panels.floats_mut().chunks_exact_mut(rows * PANEL).enumerate() {
            let logits = &mut panel[..ids.len() * PANEL];
            (kernels.logits)(logits, self.how.logit);
            for (z, &bias) in logits.chunks_exact_mut(PANEL).zip(&biases) {
                z.iter_mut().for_each(|z| *z = biased(*z, bias));
            }
            for place in absent.iter().filter(|&&place| place / (rows * PANEL) == at) {
                logits[place % (rows * PANEL)] = f32::NEG_INFINITY;
            }
            for (lane, &before) in self.packed.before.iter().skip(at * PANEL).take(PANEL).enumerate() {
                if before < span + SPAN {
                    let visible = ids.partition_point(|&id| id < before);
                    logits.iter_mut().skip(visible * PANEL + lane).step_by(PANEL).for_each(|z| *z = f32::NEG_INFINITY);
                }
            }
            let (mut max, mut sum) = ([0.0; PANEL], [0.0; PANEL]);
            (kernels.exponentials)(logits, &mut max, &mut sum);
            part.max[at * PANEL..][..PANEL].copy_from_slice(&max);
            part.sum[at * PANEL..][..PANEL].copy_from_slice(&sum);
        }
        let mut first = 0;
        for piece in pieces {
            let (values, stride) = piece.values(self.schema, &mut scratch);
            if self.careful {
                self.weigh_with_care(first, values, piece.len(), part);
            } else {
                self.weigh(first, values, stride, piece.len(), &mut part.out);
            }
            first += piece.len();
        }
        self.scratch = scratch;
        Ok(())
    }

    /// Adds weighed values, whose weights stand in the panels from row `first` on.
    fn weigh(&self, first: usize, values: &[f32], stride: usize, n: usize, out: &mut [f32]) {
        let panels = self.panels.floats().chunks_exact(SPAN as usize * PANEL);
        for (panel, out) in panels.zip(out.chunks_exact_mut(stride * PANEL)) {
            (self.snapshot.shared.kernels.weigh)(&panel[first * PANEL..], values, stride, n, out);
        }
    }

    /// The same, where a value that is not finite counts for the queries that give it a weight, and for no other.
    fn weigh_with_care(&self, first: usize, values: &[f32], n: usize, part: &mut Sums) {
        let (stride, dim) = (part.stride, self.snapshot.config().value_dim());
        let mut finite = values.to_vec();
        let bad: Vec<usize> = (0..n).filter(|row| !all_finite(&values[row * stride..][..dim])).collect();
        bad.iter().for_each(|row| finite[row * stride..][..dim].fill(0.0));
        self.weigh(first, &finite, stride, n, &mut part.out);
        for row in bad {
            let value = &values[row * stride..][..dim];
            for query in 0..self.unit.n {
                let weight = self.panels.floats()[place(query, first + row)];
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
        let promised = |query: usize| reach(Metric::Dot, self.packed.norms[query]).is_finite();
        pieces.iter().all(|piece| piece.reach().is_finite())
            && (0..self.unit.n).all(|query| self.packed.bad[query] || promised(query))
    }

    /// Replaces scores that came out NaN or infinite by the canonical ones. Returns the places of those that are no
    /// number by any sum: like search, attention passes them over.
    fn settle(&mut self, pieces: &[Piece], ticker: &Ticker) -> Result<Vec<usize>> {
        let (kernels, metric, layout) = (self.snapshot.shared.kernels, self.schema.metric, self.schema.key);
        let mut absent = Vec::new();
        let mut key = vec![0.0; layout.dim];
        for (row, (r, slot)) in pieces.iter().flat_map(Piece::rows).enumerate() {
            ticker.tick()?;
            r.block.key(self.schema, slot).decode(&mut key);
            for query in (0..self.unit.n).filter(|&query| !self.packed.bad[query]) {
                let score = &mut self.panels.floats_mut()[place(query, row)];
                if !score.is_finite() {
                    let q = self.queries.get(self.unit.first + query);
                    *score = (kernels.score)(metric, &key, q, self.packed.norms[query]);
                    absent.extend(score.is_nan().then_some(place(query, row)));
                }
            }
        }
        Ok(absent)
    }
}

/// Where the score of a query and a row of the span stands in the panels.
fn place(query: usize, row: usize) -> usize {
    (query / PANEL * SPAN as usize + row) * PANEL + query % PANEL
}
