//! The form in which queries meet blocks: whichever is answered soonest.

use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes;
use mnemex_kernels::many::{self, Many};
use mnemex_kernels::short::{self, Short};
use mnemex_kernels::single::{self, Format};
use mnemex_kernels::{Isa, Kernels, PANEL};

use crate::block::Schema;
use crate::codec::Codec;
use crate::error::Result;
use crate::plane::Plane;
use crate::query::Packed;

/// Most queries that meet blocks one by one: with more, panels of sixteen are faster although some lanes idle. Measured:
/// tiles of bfloat16 that are read where they lie win soonest, and last what is widened for panels.
fn few(kernels: &Kernels, schema: &Schema) -> usize {
    match (kernels.short.is_some() && schema.metric != Metric::L2, schema.key.scanned()) {
        (true, Codec::Bf16) => 2,
        (false, Codec::F32) => 8,
        _ => 12,
    }
}

/// Most queries that meet a copy in codes one by one where the processor knows nothing faster for many: from about 14 on,
/// panels of sixteen are as fast. Measured.
const FEW_CODED: usize = 12;

/// Fewest queries for which codes for many are used: with fewer, memory sets the pace, and a query loses less alone.
const MANY_CODED: usize = 4;

/// Fewest queries that are worth making codes of keys for: measured where float32 is what else there is, and twice as many
/// where bfloat16 is, since that is twice as fast.
fn worth_coding(kernels: &Kernels) -> usize {
    if kernels.short.is_some() { 64 } else { 32 }
}

/// What queries are for the kernels.
pub(crate) enum Form {
    /// The panels that they are packed in.
    Panels,
    /// Panels in bfloat16.
    Short(Short, Plane),
    /// One after the other, for few.
    Singles(Vec<f32>),
    /// The same, each in whole numbers, for the copy in codes.
    Coded(Vec<codes::Query>),
    /// In bytes, for the copy in codes.
    Many(Many, many::Coded),
    /// The same for codes that are made of each block, and one after the other: a block that was coded is in the cache,
    /// so what passes is scored in float32 at once.
    Fresh(Many, many::Coded, Vec<f32>),
}

impl Form {
    /// The form in which these queries are answered soonest. Adds to `lost` the norm of what each loses by it.
    pub(crate) fn of(
        kernels: &'static Kernels,
        schema: &Schema,
        packed: &Packed,
        codes: bool,
        lost: &mut [f64],
    ) -> Result<Form> {
        let (dim, n) = (schema.key.dim, packed.norms.len());
        let padded = dim.next_multiple_of(PANEL);
        let product = schema.metric != Metric::L2;
        let (short, many) =
            (kernels.short.filter(|_| product), kernels.many.filter(|_| product && dim <= many::MAX_DIM));
        let (has_copy, stored) = (schema.key.scan.is_some(), format(schema.key.scanned()));
        if codes && has_copy && n <= if many.is_some() { MANY_CODED - 1 } else { FEW_CODED } {
            let queries = singles(packed, dim);
            let queries = queries.chunks_exact(padded).map(|query| codes::Query::new(&query[..dim]));
            let queries: Vec<codes::Query> = queries.collect();
            lost.iter_mut().zip(&queries).for_each(|(lost, query)| *lost = query.lost);
            return Ok(Form::Coded(queries));
        }
        // AMX multiplies bfloat16 faster still; fewer bytes count for more where queries are few.
        let most = if kernels.isa == Isa::Amx { FEW_CODED } else { usize::MAX };
        if let Some(many) = many
            && codes
            && (if has_copy { MANY_CODED } else { worth_coding(kernels) }..=most).contains(&n)
        {
            let (mut queries, singles) = (many::Coded::default(), singles(packed, dim));
            for (query, lost) in singles.chunks_exact(padded).zip(lost) {
                *lost = queries.push(&query[..dim]);
            }
            return Ok(if has_copy {
                Form::Many(many, queries)
            } else {
                Form::Fresh(many, queries, arranged(&singles, stored, dim))
            });
        }
        if n <= few(kernels, schema) {
            return Ok(Form::Singles(arranged(&singles(packed, dim), stored, dim)));
        }
        let Some(short) = short else { return Ok(Form::Panels) };
        let mut queries = Plane::zeroed(n.next_multiple_of(PANEL) * short::padded(dim) * size_of::<u16>())?;
        short::pack(packed.panels.floats(), dim, queries.shorts_mut(), lost);
        lost.iter_mut().for_each(|square| *square = square.sqrt());
        Ok(Form::Short(short, queries))
    }
}

/// How a codec's numbers stand in memory.
pub(crate) fn format(codec: Codec) -> Format {
    match codec {
        Codec::F32 => Format::F32,
        Codec::F16 => Format::F16,
        Codec::Bf16 => Format::Bf16,
    }
}

/// Queries out of their panels, one after the other, each padded to whole vectors.
pub(crate) fn singles(packed: &Packed, dim: usize) -> Vec<f32> {
    let padded = dim.next_multiple_of(PANEL);
    let mut singles = vec![0.0; packed.norms.len() * padded];
    for (lane, query) in singles.chunks_exact_mut(padded).enumerate() {
        let panel = &packed.panels.floats()[lane / PANEL * PANEL * dim..];
        let numbers = panel.iter().skip(lane % PANEL).step_by(PANEL);
        query.iter_mut().zip(numbers).take(dim).for_each(|(x, &number)| *x = number);
    }
    singles
}

/// The same as they meet keys that are stored in a format.
fn arranged(singles: &[f32], format: Format, dim: usize) -> Vec<f32> {
    let singles = singles.chunks_exact(dim.next_multiple_of(PANEL));
    let len = single::arranged_len(format, dim);
    let mut arranged = vec![0.0; singles.len() * len];
    for (out, query) in arranged.chunks_exact_mut(len).zip(singles) {
        single::arrange(format, &query[..dim], out);
    }
    arranged
}
