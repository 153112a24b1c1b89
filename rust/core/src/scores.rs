//! The scores of a span, and the weights that they become: how queries meet keys and weights meet values.
//!
//! Few queries meet vectors one by one, as they are stored: memory sets the pace. Many meet them in panels of sixteen,
//! in float32, or with keys and queries in bfloat16 where that loses nothing and is faster. Which way it is depends on a
//! unit's queries alone, so that an answer does not depend on how entries lie in blocks.

use std::ops::Range;

use mnemex_kernels::canonical::Metric;
use mnemex_kernels::prefetch::prefetch_next;
use mnemex_kernels::select::Maxima;
use mnemex_kernels::short::{Short, ShortKeys, ShortQueries, pack, padded};
use mnemex_kernels::single::{Format, Stored};
use mnemex_kernels::softmax::Logit;
use mnemex_kernels::tile::Queries as Panels;
use mnemex_kernels::{Kernels, Keys, PANEL};

use crate::block::{BLOCK_ROWS, Schema};
use crate::codec::Codec;
use crate::error::Result;
use crate::first_pass::rule;
use crate::form::singles;
use crate::piece::Piece;
use crate::plane::{LINE, Plane};
use crate::query::{Packed, Queries};

/// Most entries of a span.
pub(crate) const ROWS: usize = 256;

/// Most queries of a unit that meet entries one by one, as they are stored: with more, panels of sixteen are faster
/// although some lanes idle.
const FEW: usize = 12;

/// A unit's queries and their scores.
pub(crate) struct Scores<'s> {
    kernels: &'static Kernels,
    schema: &'s Schema,
    pub(crate) packed: Packed,
    dim: usize,
    /// Queries per panel: one where they are few.
    pub(crate) width: usize,
    /// [`ROWS`] rows for each panel of queries.
    panels: Plane,
    /// The queries one after the other, where they are few; or nothing.
    singles: Vec<f32>,
    /// The queries in bfloat16 with what multiplies it, where nothing is lost by that.
    short: Option<(Short, Plane)>,
    /// Room to put a piece's vectors together in.
    floats: Vec<f32>,
    /// Room to widen them in.
    wide: Vec<f32>,
    /// Room to gather a piece in.
    shorts: Plane,
}

impl<'s> Scores<'s> {
    pub(crate) fn new(
        kernels: &'static Kernels,
        schema: &'s Schema,
        queries: &Queries,
        packed: Packed,
        logit: Logit,
    ) -> Result<Scores<'s>> {
        let (n, dim) = (packed.norms.len(), queries.dim);
        let width = if n <= FEW { 1 } else { PANEL };
        let mut short = None;
        if let Some(kernels) =
            kernels.short.filter(|_| width == PANEL && exact_in_bf16(schema, queries, &packed, logit))
        {
            let mut panels = Plane::zeroed(n.next_multiple_of(PANEL) * padded(dim) * size_of::<u16>())?;
            pack(packed.panels.floats(), dim, panels.shorts_mut(), &mut vec![0.0; n]);
            short = Some((kernels, panels));
        }
        Ok(Scores {
            kernels,
            schema,
            dim,
            width,
            panels: Plane::zeroed((n.next_multiple_of(width) * ROWS * size_of::<f32>()).next_multiple_of(LINE))?,
            singles: if width == 1 { singles(&packed, dim) } else { Vec::new() },
            short,
            packed,
            floats: Vec::new(),
            wide: Vec::new(),
            shorts: Plane::default(),
        })
    }

    /// The scores of a query panel, `[ROWS, width]` each.
    pub(crate) fn panels_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.panels.floats_mut().chunks_exact_mut(ROWS * self.width)
    }

    /// The score of one query and row, or what became of it.
    pub(crate) fn at(&mut self, query: usize, row: usize) -> &mut f32 {
        let place = (query / self.width * ROWS + row) * self.width + query % self.width;
        &mut self.panels.floats_mut()[place]
    }

    /// Takes rows from one query.
    pub(crate) fn hide(&mut self, query: usize, rows: Range<usize>) {
        let first = (query / self.width * ROWS + rows.start) * self.width + query % self.width;
        let scores = self.panels.floats_mut().iter_mut().skip(first).step_by(self.width).take(rows.len());
        scores.for_each(|z| *z = f32::NEG_INFINITY);
    }

    /// Scores a piece whose rows start at row `first` of the span; `next` is what is read after its keys.
    pub(crate) fn score(&mut self, piece: &Piece, first: usize, next: &[u8]) -> Result<()> {
        let (rule, n, dim) = (rule(self.schema.metric), self.packed.norms.len(), self.dim);
        let (scale, panels) = (piece.scale(), self.panels.floats_mut());
        if self.width == 1 {
            let keys = Stored { next, ..piece.stored_keys(self.schema, &mut self.floats, &scale) };
            (self.kernels.scores_few)(rule, keys, &self.singles, n, &mut panels[first..], ROWS);
        } else if let Some((short, queries)) = &self.short {
            for panel in panels.chunks_exact_mut(ROWS * PANEL) {
                panel[first * PANEL..][..piece.len() * PANEL].fill(f32::NEG_INFINITY);
            }
            let rows = piece.bf16_keys(self.schema, &mut self.shorts)?;
            let keys = ShortKeys { rows, stride: padded(dim), n: piece.len(), scale: &[], next };
            // The largest of groups of one row: every score.
            let to = Maxima { out: panels, groups: ROWS, first, per: 1 };
            (short.maxima)(keys, ShortQueries { panels: queries.shorts(), dim, n }, to);
        } else {
            let stored = piece.stored_keys(self.schema, &mut self.floats, &[]);
            let (rows, stride) = in_floats(self.kernels, stored, dim, &mut self.wide);
            let keys = Keys { rows, stride, n: piece.len(), scale: &scale, next };
            let queries = Panels { panels: self.packed.panels.floats(), dim, n };
            (self.kernels.scores)(rule, keys, queries, panels, ROWS, first);
        }
        Ok(())
    }

    /// Adds a piece's values, weighed, to each query's row of `out`; `next` is what is read after them.
    pub(crate) fn weigh(&mut self, piece: &Piece, first: usize, next: &[u8], out: &mut [f32]) {
        let (mut floats, mut wide) = (std::mem::take(&mut self.floats), std::mem::take(&mut self.wide));
        if self.width == 1 {
            self.weigh_stored(first, Stored { next, ..piece.stored_values(self.schema, &mut floats) }, out);
        } else {
            let stored = piece.stored_values(self.schema, &mut floats);
            let dim = self.schema.value.unwrap_or(self.schema.key).dim;
            let (values, stride) = in_floats(self.kernels, stored, dim, &mut wide);
            self.weigh_floats(first, values, stride, piece.len(), next, out);
        }
        (self.floats, self.wide) = (floats, wide);
    }

    /// The same for values as they are stored and few queries.
    pub(crate) fn weigh_stored(&self, first: usize, values: Stored, out: &mut [f32]) {
        let n = self.packed.norms.len();
        (self.kernels.weigh_few)(&self.panels.floats()[first..], ROWS, values, n, out);
    }

    /// The same for `n` values in float32 and panels of queries.
    pub(crate) fn weigh_floats(
        &self,
        first: usize,
        values: &[f32],
        stride: usize,
        n: usize,
        next: &[u8],
        out: &mut [f32],
    ) {
        let panels = self.panels.floats().chunks_exact(ROWS * PANEL);
        let mut next = next.chunks(next.len().div_ceil(panels.len()).next_multiple_of(LINE).max(LINE));
        for (panel, out) in panels.zip(out.chunks_exact_mut(stride * PANEL)) {
            prefetch_next(next.next().unwrap_or_default());
            (self.kernels.weigh)(&panel[first * PANEL..], values, stride, n, out);
        }
    }
}

/// A piece's vectors in float32, with the floats from row to row: in place if they are, or in `wide`.
fn in_floats<'a>(kernels: &Kernels, stored: Stored<'a>, dim: usize, wide: &'a mut Vec<f32>) -> (&'a [f32], usize) {
    if stored.format == Format::F32 {
        return (bytemuck::cast_slice(stored.bytes), stored.stride / size_of::<f32>());
    }
    let stride = dim.next_multiple_of(PANEL);
    wide.resize(BLOCK_ROWS * stride, 0.0);
    (kernels.widen)(stored, wide, stride);
    (wide, stride)
}

/// Whether products of these queries and the bank's keys are the same in bfloat16, sums being float32 as ever. What
/// multiplies bfloat16 takes the smallest numbers for 0: queries hold none of them, and are not so large that a key's
/// would show in a logit.
fn exact_in_bf16(schema: &Schema, queries: &Queries, packed: &Packed, logit: Logit) -> bool {
    const LARGE: f64 = (1u64 << 40) as f64;
    schema.metric == Metric::Dot
        && (schema.key.codec, queries.codec) == (Codec::Bf16, Codec::Bf16)
        && f64::from(logit.scale).abs() <= LARGE
        && packed.norms.iter().zip(&packed.bad).all(|(&norm, &bad)| bad || norm <= LARGE)
        && !packed.panels.floats().iter().any(|x| x.is_subnormal())
}
