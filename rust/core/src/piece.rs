//! A span of ids cut into what one kernel call takes, however the entries lie in blocks: what makes the answer of
//! [`crate::dense`] independent of that.

use mnemex_kernels::PANEL;
use mnemex_kernels::single::{Format, Stored};

use crate::block::{BLOCK_ROWS, Block, Schema};
use crate::codec::Codec;
use crate::error::Result;
use crate::form::format;
use crate::layout::{Layout, Vector};
use crate::list::{Ref, first_rows};
use crate::plane::Plane;
use crate::query::Visible;

/// Entries of a span that are scored in one kernel call, ids ascending: at most 64.
pub(crate) enum Piece<'v> {
    /// Every row of a block, read in place where it holds float32.
    Whole(&'v Ref),
    /// Single rows.
    Rows(Vec<(&'v Ref, usize)>),
}

impl Piece<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Piece::Whole(r) => r.block.len(),
            Piece::Rows(rows) => rows.len(),
        }
    }

    /// Reference and slot of each row.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&Ref, usize)> {
        (0..self.len()).map(|at| match self {
            Piece::Whole(r) => (*r, at),
            Piece::Rows(rows) => rows[at],
        })
    }
}

/// The pieces of the ids from `id_lo` to below `id_hi`, in id order, out of references and their visible rows.
pub(crate) fn pieces<'v>(refs: &[Visible<'v>], id_lo: i64, id_hi: i64) -> Vec<Piece<'v>> {
    let mut runs: Vec<(&Ref, u64)> = (refs.iter())
        .map(|&Visible { r, rows }| (r, rows & first_rows(r.rows_below(id_hi)) & !first_rows(r.rows_below(id_lo))))
        .filter(|(_, live)| *live != 0)
        .collect();
    runs.sort_by_key(|(r, _)| r.id_lo);
    let rows = |&(r, live): &(&'v Ref, u64)| {
        (0..BLOCK_ROWS).filter(move |slot| live >> slot & 1 == 1).map(move |slot| (r, slot))
    };
    if runs.windows(2).any(|pair| pair[0].0.id_hi() > pair[1].0.id_lo) {
        // Lists that interleave: entry by entry.
        let mut entries: Vec<(&Ref, usize)> = runs.iter().flat_map(rows).collect();
        entries.sort_by_key(|(r, slot)| r.id(*slot));
        return entries.chunks(BLOCK_ROWS).map(|chunk| Piece::Rows(chunk.to_vec())).collect();
    }
    let piece = |run: &(&'v Ref, u64)| {
        if run.1 == first_rows(run.0.block.len()) { Piece::Whole(run.0) } else { Piece::Rows(rows(run).collect()) }
    };
    runs.iter().map(piece).collect()
}

impl<'v> Piece<'v> {
    /// The piece's vectors in float32 with the floats from row to row; `whole` and `single` say which vectors.
    fn vectors<'a>(
        &'a self,
        layout: Layout,
        scratch: &'a mut Vec<f32>,
        whole: impl Fn(&'a Block, &'a mut Vec<f32>) -> (&'a [f32], usize),
        single: impl Fn(&'v Block, usize) -> Option<Vector<'v>>,
    ) -> (&'a [f32], usize) {
        match self {
            Piece::Whole(r) => whole(&r.block, scratch),
            Piece::Rows(rows) => {
                let stride = layout.dim.next_multiple_of(PANEL);
                scratch.clear();
                scratch.resize(rows.len().next_multiple_of(PANEL) * stride, 0.0);
                for ((r, slot), out) in rows.iter().zip(scratch.chunks_exact_mut(stride)) {
                    single(&r.block, *slot).into_iter().for_each(|vector| vector.decode(&mut out[..layout.dim]));
                }
                (scratch, stride)
            }
        }
    }

    pub(crate) fn keys<'a>(&'a self, schema: &'a Schema, scratch: &'a mut Vec<f32>) -> (&'a [f32], usize)
    where
        'a: 'v,
    {
        self.vectors(schema.key, scratch, |b, s| b.keys(schema, s), |b, slot| Some(b.key(schema, slot)))
    }

    pub(crate) fn values<'a>(&'a self, schema: &'a Schema, scratch: &'a mut Vec<f32>) -> (&'a [f32], usize)
    where
        'a: 'v,
    {
        let layout = schema.value.unwrap_or(schema.key);
        self.vectors(layout, scratch, |b, s| b.values(schema, s), |b, slot| b.value(schema, slot))
    }

    /// Keys as one query takes them: as they are stored where that is half the precision, in float32 otherwise.
    pub(crate) fn stored_keys<'a>(
        &'a self,
        schema: &'a Schema,
        scratch: &'a mut Vec<f32>,
        scale: &'a [f32],
    ) -> Stored<'a>
    where
        'a: 'v,
    {
        let stored = match self {
            Piece::Whole(r) if schema.key.codec != Codec::F32 => as_stored(r.block.scanned(), schema.key, self.len()),
            _ => in_floats(self.keys(schema, scratch), self.len()),
        };
        Stored { scale, ..stored }
    }

    /// The keys of a bfloat16 bank as [`ShortKeys`](mnemex_kernels::short::ShortKeys) are: sixty-four rows.
    pub(crate) fn bf16_keys<'a>(&'a self, schema: &Schema, scratch: &'a mut Plane) -> Result<&'a [u16]> {
        let stride = schema.key.row_bytes();
        if let Piece::Whole(r) = self
            && r.block.scanned().len() == BLOCK_ROWS * stride
        {
            return Ok(bytemuck::cast_slice(r.block.scanned()));
        }
        if scratch.bytes().is_empty() {
            *scratch = Plane::zeroed(BLOCK_ROWS * stride)?;
        }
        for ((r, slot), row) in self.rows().zip(scratch.bytes_mut().chunks_exact_mut(stride)) {
            r.block.key(schema, slot).copy_to(&mut row[..schema.key.vector_bytes()]);
        }
        Ok(scratch.shorts())
    }

    /// Values, likewise.
    pub(crate) fn stored_values<'a>(&'a self, schema: &'a Schema, scratch: &'a mut Vec<f32>) -> Stored<'a>
    where
        'a: 'v,
    {
        let layout = schema.value.unwrap_or(schema.key);
        match self {
            Piece::Whole(r) if layout.codec != Codec::F32 => as_stored(r.block.all_values(schema), layout, self.len()),
            _ => in_floats(self.values(schema, scratch), self.len()),
        }
    }

    /// The stored bytes of its keys where they lie together; nothing otherwise.
    pub(crate) fn key_bytes(&self) -> &[u8] {
        match self {
            Piece::Whole(r) => r.block.scanned(),
            Piece::Rows(_) => &[],
        }
    }

    /// The stored bytes of its values, likewise.
    pub(crate) fn value_bytes(&self, schema: &Schema) -> &[u8] {
        match self {
            Piece::Whole(r) => r.block.all_values(schema),
            Piece::Rows(_) => &[],
        }
    }

    /// The keys' part in the error bound.
    pub(crate) fn reach(&self) -> f32 {
        match self {
            Piece::Whole(r) => r.block.reach(),
            Piece::Rows(rows) => rows.iter().map(|(r, _)| r.block.reach()).fold(0.0, f32::max),
        }
    }

    /// One over each key's norm, for cosine, up to the next multiple of [`PANEL`].
    pub(crate) fn scale(&self) -> Vec<f32> {
        let mut scale: Vec<f32> = match self {
            Piece::Whole(r) => r.block.scale().to_vec(),
            Piece::Rows(rows) => rows.iter().filter_map(|(r, slot)| r.block.scale().get(*slot).copied()).collect(),
        };
        scale.resize(scale.len().next_multiple_of(PANEL), 0.0);
        scale
    }
}

/// Rows where and as they are stored.
fn as_stored(bytes: &[u8], layout: Layout, n: usize) -> Stored<'_> {
    Stored { bytes, format: format(layout.codec), stride: layout.row_bytes(), n, scale: &[], next: &[] }
}

/// Rows in float32, with the floats from row to row.
pub(crate) fn in_floats((rows, stride): (&[f32], usize), n: usize) -> Stored<'_> {
    Stored {
        bytes: bytemuck::cast_slice(rows),
        format: Format::F32,
        stride: stride * size_of::<f32>(),
        n,
        scale: &[],
        next: &[],
    }
}
