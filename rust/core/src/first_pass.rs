//! Fast scores of blocks of keys, with a proven error: in float32, in bfloat16 where the processor is faster at it, or
//! from a copy of the keys in codes where the bank has one and queries are few.

use mnemex_kernels::bound::{Bound, Precision, QueryBound};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{self, Codes};
use mnemex_kernels::select::Maxima;
use mnemex_kernels::short::{self, Short, ShortKeys, ShortOne, ShortQueries};
use mnemex_kernels::single::{Format, One, Stored};
use mnemex_kernels::tile::Queries as Panels;
use mnemex_kernels::{Kernels, Keys, PANEL, Pass, Rule};

use crate::block::{Block, Schema};
use crate::codec::Codec;
use crate::error::Result;
use crate::list::Ref;
use crate::plane::Plane;
use crate::query::Packed;

/// Queries per call in float32: their panels stay in the first-level cache beside a block of keys.
pub(crate) const GROUP: usize = 4 * PANEL;

/// Most queries that meet blocks one by one: with more, panels of sixteen are faster although some lanes idle. Measured:
/// tiles of bfloat16 that are read where they lie win soonest, and last what is widened for panels.
fn few(kernels: &Kernels, schema: &Schema) -> usize {
    match (kernels.short.is_some() && schema.metric != Metric::L2, schema.key.scanned()) {
        (true, Codec::Bf16) => 2,
        (false, Codec::F32) => 8,
        _ => 12,
    }
}

/// Most queries that read the copy in codes: from about 14 on, panels of sixteen are as fast. Measured.
const FEW_CODED: usize = 12;

/// Fewest queries that meet codes rounded to as much as a byte holds, where products are faster then: with fewer, memory
/// sets the pace.
const COARSE: usize = 4;

/// How row scores come from keys and queries.
pub(crate) fn rule(metric: Metric) -> Rule {
    match metric {
        Metric::Dot => Rule::Dot,
        Metric::Cos => Rule::Scaled,
        Metric::L2 => Rule::L2,
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

/// The queries of a unit, ready to meet blocks.
pub(crate) struct FirstPass<'s> {
    kernels: &'static Kernels,
    schema: &'s Schema,
    pub(crate) packed: Packed,
    /// What multiplies bfloat16, where it is to be used: distances would lose too much.
    short: Option<Short>,
    /// The queries in bfloat16, or nothing.
    shorts: Plane,
    /// Whether keys are scored rounded to bfloat16.
    rounds: bool,
    /// The queries one after the other, where they are few; or nothing.
    singles: Vec<f32>,
    /// What scores such queries, and their parts in bfloat16, where keys are scanned in it.
    parted: Option<(Short, Vec<u16>)>,
    /// The queries as they meet codes, where the copy is read.
    coded: Vec<codes::Query>,
    /// The error bound of each query.
    bounds: Vec<QueryBound>,
}

/// Room to decode a block in.
#[derive(Default)]
pub(crate) struct Scratch {
    floats: Vec<f32>,
    shorts: Plane,
}

/// The keys of one block, as the kernels take them.
pub(crate) enum Loaded<'a> {
    Panels(Keys<'a>),
    /// As they are stored, for few queries.
    Stored(Stored<'a>),
    Short(Short, ShortKeys<'a>),
    /// The copy in codes, for few queries.
    Coded(Codes<'a>),
}

impl<'a> Loaded<'a> {
    /// Names what is read after this block, to be brought near while it is scored.
    pub(crate) fn then(&mut self, bytes: &'a [u8]) {
        match self {
            Loaded::Panels(keys) => keys.next = bytes,
            Loaded::Stored(_) | Loaded::Coded(_) => {}
            Loaded::Short(_, keys) => keys.next = bytes,
        }
    }
}

impl<'s> FirstPass<'s> {
    /// `copy`: whether a copy in codes may be read, where there is one.
    pub(crate) fn new(
        kernels: &'static Kernels,
        schema: &'s Schema,
        packed: Packed,
        copy: bool,
    ) -> Result<FirstPass<'s>> {
        let (metric, dim) = (schema.metric, schema.key.dim);
        let n = packed.norms.len();
        let by_codes = copy && schema.key.scan.is_some() && n <= FEW_CODED;
        let few = by_codes || n <= few(kernels, schema);
        let singles = if few { singles(&packed, dim) } else { Vec::new() };
        let coarse = kernels.coarse && n >= COARSE;
        let each = singles.chunks_exact(dim.next_multiple_of(PANEL)).map(|query| &query[..dim]);
        let coded: Vec<codes::Query> =
            if by_codes { each.map(|query| codes::Query::new(query, coarse)).collect() } else { Vec::new() };
        let short = kernels.short.filter(|_| metric != Metric::L2 && !few);
        let (mut shorts, mut lost) = (Plane::default(), vec![0.0; packed.norms.len()]);
        if short.is_some() {
            let numbers = lost.len().next_multiple_of(PANEL) * short::padded(dim);
            shorts = Plane::zeroed(numbers * size_of::<u16>())?;
            short::pack(packed.panels.floats(), dim, shorts.shorts_mut(), &mut lost);
        }
        let parted =
            kernels.short.filter(|_| metric != Metric::L2 && few && !by_codes && schema.key.scanned() == Codec::Bf16);
        let parted = parted.map(|short| {
            let each = 2 * short::padded(dim);
            let mut parts = vec![0; lost.len() * each];
            let singles = singles.chunks_exact(dim.next_multiple_of(PANEL));
            for ((query, parts), lost) in singles.zip(parts.chunks_exact_mut(each)).zip(&mut lost) {
                *lost = short::part(&query[..dim], parts);
            }
            (short, parts)
        });
        let bound = |(at, (&norm, square)): (usize, (&f64, &f64))| {
            let precision = match (&short, &parted, coded.get(at)) {
                (_, _, Some(query)) => Precision::Codes { lost: query.lost },
                (Some(_), _, _) => Precision::Bf16 { lost: square.sqrt(), parts: 1 },
                (_, Some(_), _) => Precision::Bf16 { lost: square.sqrt(), parts: 2 },
                _ => Precision::Single,
            };
            QueryBound::of(metric, dim, norm, precision)
        };
        let bounds = packed.norms.iter().zip(&lost).enumerate().map(bound).collect();
        let rounds = schema.key.is_split() || short.is_some();
        Ok(FirstPass { kernels, schema, packed, short, shorts, rounds, singles, parted, coded, bounds })
    }

    /// Whether the queries meet blocks one by one, which knows no [`FirstPass::maxima`].
    pub(crate) fn is_few(&self) -> bool {
        !self.singles.is_empty()
    }

    /// Whether the copy in codes is read instead of the keys.
    pub(crate) fn reads_copy(&self) -> bool {
        !self.coded.is_empty()
    }

    /// Most queries of one [`FirstPass::select`]: where a block is rounded first, all queries had best share that.
    pub(crate) fn group(&self) -> usize {
        match (self.is_few(), self.short) {
            (true, _) => self.bounds.len(),
            (false, Some(_)) => self.bounds.len().next_multiple_of(PANEL),
            (false, None) => GROUP,
        }
    }

    /// The most that a key of a block loses by the form in which it is scored.
    pub(crate) fn lost(&self, block: &Block) -> f32 {
        match block.coded(self.schema) {
            Some((_, lost)) if self.reads_copy() => lost,
            _ if self.rounds => block.lost(),
            _ => 0.0,
        }
    }

    /// How far the scores of one query can be off; `lost` is that of [`FirstPass::lost`].
    #[inline]
    pub(crate) fn bound(&self, query: usize, reach: f32, lost: f32) -> Bound {
        self.bounds[query].at(reach, lost)
    }

    /// The keys of a block.
    pub(crate) fn load<'a>(&self, r: &'a Ref, scratch: &'a mut Scratch) -> Result<Loaded<'a>> {
        let (block, layout) = (&r.block, self.schema.key);
        let (n, scale, next) = (block.len(), block.scale(), &[][..]);
        if let Some((codes, _)) = block.coded(self.schema)
            && self.reads_copy()
        {
            return Ok(Loaded::Coded(codes));
        }
        if self.is_few() {
            let (bytes, stride) = (block.scanned(), layout.row_bytes());
            return Ok(Loaded::Stored(Stored { bytes, format: format(layout.scanned()), stride, n, scale, next }));
        }
        let Some(short) = self.short else {
            let (rows, stride) = block.scanned_floats(self.schema, &mut scratch.floats);
            return Ok(Loaded::Panels(Keys { rows, stride, n, scale, next }));
        };
        let stride = short::padded(layout.dim);
        let bytes = short::ROWS * stride * size_of::<u16>();
        let scanned = block.scanned();
        if layout.scanned() == Codec::Bf16 && scanned.len() == bytes {
            let rows = bytemuck::cast_slice(scanned);
            return Ok(Loaded::Short(short, ShortKeys { rows, stride, n, scale, next }));
        }
        if scratch.shorts.bytes().is_empty() {
            scratch.shorts = Plane::zeroed(bytes)?;
        }
        let (rows, from) = block.scanned_floats(self.schema, &mut scratch.floats);
        let keys = Keys { rows, stride: from, n, scale, next };
        (short.shorten)(keys, layout.dim, scratch.shorts.shorts_mut());
        Ok(Loaded::Short(short, ShortKeys { rows: scratch.shorts.shorts(), stride, n, scale, next }))
    }

    /// Appends the scores that reach their query's threshold, of up to [`FirstPass::group`] queries from `first` on.
    pub(crate) fn select(&self, keys: &Loaded, live: u64, first: usize, thresholds: &[f32], out: &mut Vec<Pass>) {
        match keys {
            Loaded::Short(short, keys) => {
                (short.select)(*keys, live, self.shorts(first), thresholds, out);
            }
            Loaded::Panels(keys) => {
                let rule = rule(self.schema.metric);
                (self.kernels.select)(rule, *keys, live, self.floats(first), thresholds, out);
            }
            Loaded::Coded(keys) => {
                (self.kernels.select_codes)(*keys, live, &self.coded, thresholds, out);
            }
            Loaded::Stored(keys) if self.parted.is_some() => {
                let Some((short, parts)) = &self.parted else { return };
                let queries = parts.chunks_exact(parts.len() / self.bounds.len());
                for (at, (parts, &threshold)) in queries.zip(thresholds).enumerate() {
                    let query = ShortOne { parts, at: at as u32, threshold };
                    (short.select_one)(*keys, live, query, out);
                }
            }
            Loaded::Stored(keys) => {
                let rule = rule(self.schema.metric);
                let padded = self.singles.len() / self.bounds.len();
                for (at, (numbers, &threshold)) in self.singles.chunks_exact(padded).zip(thresholds).enumerate() {
                    let query = One { numbers, at: at as u32, threshold };
                    (self.kernels.select_one)(rule, *keys, live, query, out);
                }
            }
        }
    }

    /// The largest scores of groups of a block's rows, for up to [`FirstPass::group`] queries from `first` on.
    pub(crate) fn maxima(&self, keys: &Loaded, first: usize, out: Maxima) {
        match keys {
            Loaded::Short(short, keys) => (short.maxima)(*keys, self.shorts(first), out),
            Loaded::Panels(keys) => (self.kernels.maxima)(rule(self.schema.metric), *keys, self.floats(first), out),
            // Nobody asks: see `is_few`.
            Loaded::Stored(_) | Loaded::Coded(_) => {}
        }
    }

    fn floats(&self, first: usize) -> Panels<'_> {
        let dim = self.schema.key.dim;
        Panels {
            panels: &self.packed.panels.floats()[first * dim..],
            dim,
            n: self.group().min(self.bounds.len() - first),
        }
    }

    fn shorts(&self, first: usize) -> ShortQueries<'_> {
        let dim = self.schema.key.dim;
        let panels = &self.shorts.shorts()[first * short::padded(dim)..];
        ShortQueries { panels, dim, n: self.group().min(self.bounds.len() - first) }
    }
}
