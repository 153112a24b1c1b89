//! Fast scores of blocks of keys, with a proven error: in float32, in bfloat16 or in codes of eight bits where the
//! processor is faster at these, or from the bank's own copy in codes.

use mnemex_kernels::bound::{Bound, Precision, QueryBound, QueryBounds};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{self, Codes};
use mnemex_kernels::many::{self, CodedKeys, Shares};
use mnemex_kernels::short::{self, ShortKeys, ShortQueries};
use mnemex_kernels::single::{One, Stored};
use mnemex_kernels::tile::Queries as Panels;
use mnemex_kernels::{Kernels, Keys, PANEL, Pass, Rule};

use crate::block::{BLOCK_ROWS, Block, Schema};
use crate::codec::Codec;
use crate::error::Result;
use crate::form::{Form, format};
use crate::plane::Plane;
use crate::query::Packed;

/// Queries per call in float32: their panels stay in the first-level cache beside a block of keys.
pub(crate) const GROUP: usize = 4 * PANEL;

/// Queries for which it is worth to know the norm of each key of a block that is coded, not only the largest. Measured:
/// with 32, a million keys take 58 instead of 54 milliseconds.
const WORTH_NORMS: usize = 64;

/// How row scores come from keys and queries.
pub(crate) fn rule(metric: Metric) -> Rule {
    match metric {
        Metric::Dot => Rule::Dot,
        Metric::Cos => Rule::Scaled,
        Metric::L2 => Rule::L2,
    }
}

/// Drops, from `first` on, what is below its query's threshold. Returns how many there were of queries with one. About half
/// go, and which is as good as random, so nothing branches.
fn drop_below(thresholds: &[f32], passes: &mut Vec<Pass>, first: usize) -> usize {
    let (mut kept, mut known) = (first, 0);
    for at in first..passes.len() {
        let pass = passes[at];
        passes[kept] = pass;
        let threshold = thresholds[pass.query as usize];
        let is_below = pass.score < threshold;
        kept += usize::from(!is_below);
        known += usize::from(threshold > f32::NEG_INFINITY);
    }
    passes.truncate(kept);
    known
}

/// The queries of a unit, ready to meet blocks.
pub(crate) struct FirstPass<'s> {
    pub(crate) kernels: &'static Kernels,
    pub(crate) schema: &'s Schema,
    pub(crate) packed: Packed,
    pub(crate) form: Form,
    /// The error bounds of the queries, and of the scores that are made better at once, if they are.
    pub(crate) bounds: QueryBounds,
    refined: Option<QueryBounds>,
}

/// What a block asks of scores, query by query.
#[derive(Default)]
pub(crate) struct Thresholds {
    /// The first scores from which an entry of it can still reach the floor.
    first: Vec<f32>,
    /// The same for scores that were made better.
    refined: Vec<f32>,
    /// The absolute parts of the bounds of what [`FirstPass::select`] says.
    pub(crate) absolutes: Vec<f32>,
}

/// Room to decode a block in.
pub(crate) struct Scratch {
    floats: Vec<f32>,
    shorts: Plane,
    /// Codes of a block, and sixteen rows of them.
    codes: Plane,
    rows: Plane,
    scale: [f32; BLOCK_ROWS],
    slack: [f32; BLOCK_ROWS],
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch {
            floats: Vec::new(),
            shorts: Plane::default(),
            codes: Plane::default(),
            rows: Plane::default(),
            scale: [0.0; BLOCK_ROWS],
            slack: [0.0; BLOCK_ROWS],
        }
    }
}

/// The keys of one block, as the kernels take them.
#[derive(Clone, Copy)]
pub(crate) enum Loaded<'a> {
    Panels(Keys<'a>),
    /// As they are stored, for few queries.
    Stored(Stored<'a>),
    Short(ShortKeys<'a>),
    /// In codes.
    Coded(Codes<'a>),
    /// In codes for many queries.
    Many(CodedKeys<'a>),
    /// In codes that were made of what is stored.
    Fresh(CodedKeys<'a>, Stored<'a>),
}

impl<'a> Loaded<'a> {
    /// Names what is read after this block, to be brought near while it is scored.
    pub(crate) fn then(&mut self, bytes: &'a [u8]) {
        match self {
            Loaded::Panels(keys) => keys.next = bytes,
            Loaded::Stored(keys) => keys.next = bytes,
            Loaded::Short(keys) => keys.next = bytes,
            Loaded::Coded(codes)
            | Loaded::Many(CodedKeys { codes, .. })
            | Loaded::Fresh(CodedKeys { codes, .. }, _) => {
                codes.next = bytes;
            }
        }
    }
}

impl<'s> FirstPass<'s> {
    /// `codes`: whether codes may be read.
    pub(crate) fn new(
        kernels: &'static Kernels,
        schema: &'s Schema,
        packed: Packed,
        codes: bool,
    ) -> Result<FirstPass<'s>> {
        let mut lost = vec![0.0; packed.norms.len()];
        let mut form = Form::of(kernels, schema, &packed, codes, &mut lost)?;
        let precision = |lost| match form {
            Form::Panels | Form::Singles(_) => Precision::Single,
            Form::Short(..) => Precision::Bf16 { lost },
            Form::Coded(_) | Form::Many(..) | Form::Fresh(..) => Precision::Codes { lost },
        };
        let bound = |norm, precision| QueryBound::of(schema.metric, schema.key.dim, norm, precision);
        let bounds = packed.norms.iter().zip(&lost).map(|(&norm, &lost)| bound(norm, precision(lost)));
        let bounds: QueryBounds = bounds.collect();
        if let Form::Many(_, queries) | Form::Fresh(_, queries, _) = &mut form {
            queries.bound(&bounds);
        }
        let is_refined = matches!(form, Form::Fresh(..));
        let refined = is_refined.then(|| packed.norms.iter().map(|&norm| bound(norm, Precision::Single)).collect());
        Ok(FirstPass { kernels, schema, packed, form, bounds, refined })
    }

    /// Whether the queries meet blocks one by one, which knows no [`FirstPass::reached`].
    pub(crate) fn is_few(&self) -> bool {
        matches!(self.form, Form::Singles(_) | Form::Coded(_))
    }

    /// Whether codes are read, which can turn out to say too little of the keys.
    pub(crate) fn reads_codes(&self) -> bool {
        matches!(self.form, Form::Coded(_) | Form::Many(..) | Form::Fresh(..))
    }

    /// Whether scores stay as wide of the exact ones as codes make them.
    pub(crate) fn is_loose(&self) -> bool {
        matches!(self.form, Form::Coded(_) | Form::Many(..))
    }

    /// Most queries of one [`FirstPass::select`]: where a block is rounded first, all queries had best share that.
    pub(crate) fn group(&self) -> usize {
        match self.form {
            Form::Panels => GROUP,
            Form::Short(..) => self.bounds.len().next_multiple_of(PANEL),
            _ => self.bounds.len(),
        }
    }

    /// For the queries from `first` on and one block, of which every key loses `lost` at most by the form in which it is
    /// loaded. Nothing reaches what `blank` queries ask.
    pub(crate) fn thresholds(
        &self,
        first: usize,
        (reach, lost): (f32, f32),
        (floors, blank): (&[f32], &[usize]),
        out: &mut Thresholds,
    ) {
        let (n, floors) = (self.group(), &floors[first..]);
        out.absolutes.resize(n, 0.0);
        out.first.clear();
        out.first.resize(n, f32::INFINITY);
        let bounds = self.refined.as_ref().unwrap_or(&self.bounds);
        bounds.absolutes(first, reach, lost, &mut out.absolutes);
        let threshold = |(&absolute, &floor): (&f32, &f32)| bounds.with(absolute).threshold(floor);
        let thresholds = out.absolutes.iter().zip(floors).map(threshold);
        match &self.form {
            Form::Many(_, queries) => queries.thresholds(floors, &mut out.first),
            Form::Fresh(_, queries, _) => {
                queries.thresholds(floors, &mut out.first);
                out.refined.clear();
                out.refined.extend(thresholds);
            }
            _ => out.first.iter_mut().zip(thresholds).for_each(|(out, threshold)| *out = threshold),
        }
        for &query in blank {
            if let Some(out) = query.checked_sub(first).and_then(|at| out.first.get_mut(at)) {
                *out = f32::INFINITY;
            }
        }
    }

    /// How far what [`FirstPass::select`] says can be off.
    #[inline]
    pub(crate) fn bound(&self, absolute: f32) -> Bound {
        self.refined.as_ref().unwrap_or(&self.bounds).with(absolute)
    }

    /// What is read of a block.
    pub(crate) fn reads<'a>(&self, block: &'a Block) -> &'a [u8] {
        match block.coded(self.schema) {
            Some((codes, _)) if self.reads_codes() => codes.bytes,
            _ => block.scanned(),
        }
    }

    /// The keys of a block, and what one of them loses at most until [`FirstPass::select`] has scored it.
    pub(crate) fn load<'a>(&self, block: &'a Block, scratch: &'a mut Scratch) -> Result<(Loaded<'a>, f32)> {
        let layout = self.schema.key;
        let (n, scale, next) = (block.len(), block.scale(), &[][..]);
        let split = if layout.is_split() { block.lost() } else { 0.0 };
        // Where nothing is promised of a block, everything passes.
        let sure = block.reach() < f32::INFINITY;
        let stored = || {
            let (bytes, stride) = (block.scanned(), layout.row_bytes());
            Stored { bytes, format: format(layout.scanned()), stride, n, scale, next }
        };
        match (&self.form, block.coded(self.schema)) {
            (Form::Coded(_), Some((codes, lost))) => Ok((Loaded::Coded(codes), lost)),
            (Form::Many(_, queries), Some((codes, lost))) => {
                scratch.slack.fill((lost + queries.per_norm() * block.reach()) * (1.0 + f32::EPSILON).powi(4));
                Ok((Loaded::Many(CodedKeys { codes, slack: &scratch.slack }), lost))
            }
            (Form::Fresh(many, queries, _), _) => {
                if scratch.codes.bytes().is_empty() {
                    scratch.codes = Plane::zeroed(codes::padded(layout.dim) * BLOCK_ROWS)?;
                    scratch.rows = Plane::zeroed(PANEL * many::row_bytes(layout.dim))?;
                }
                let Scratch { codes, rows, scale, slack, .. } = scratch;
                let room = many::Room { bytes: codes.bytes_mut(), scale, slack, rows: rows.bytes_mut() };
                let per_norm = queries.per_norm();
                let shares = if queries.len() < WORTH_NORMS {
                    Shares { before: split + per_norm * block.reach(), per_norm: 0.0 }
                } else {
                    Shares { before: split, per_norm }
                };
                (many.code)(stored(), layout.dim, shares, room);
                if !sure {
                    slack.fill(f32::INFINITY);
                }
                let codes = Codes { bytes: codes.bytes(), scale: &scale[..], rows: BLOCK_ROWS, n, next };
                Ok((Loaded::Fresh(CodedKeys { codes, slack }, stored()), split))
            }
            (Form::Singles(_) | Form::Coded(_) | Form::Many(..), _) => Ok((Loaded::Stored(stored()), split)),
            (Form::Panels, _) => {
                let (rows, stride) = block.scanned_floats(self.schema, &mut scratch.floats);
                Ok((Loaded::Panels(Keys { rows, stride, n, scale, next }), split))
            }
            (Form::Short(short, _), _) => {
                let stride = short::padded(layout.dim);
                let bytes = short::ROWS * stride * size_of::<u16>();
                let scanned = block.scanned();
                if layout.scanned() == Codec::Bf16 && scanned.len() == bytes {
                    let rows = bytemuck::cast_slice(scanned);
                    return Ok((Loaded::Short(ShortKeys { rows, stride, n, scale, next }), split));
                }
                if scratch.shorts.bytes().is_empty() {
                    scratch.shorts = Plane::zeroed(bytes)?;
                }
                let (rows, from) = block.scanned_floats(self.schema, &mut scratch.floats);
                let keys = Keys { rows, stride: from, n, scale, next };
                (short.shorten)(keys, layout.dim, scratch.shorts.shorts_mut());
                let keys = ShortKeys { rows: scratch.shorts.shorts(), stride, n, scale, next };
                Ok((Loaded::Short(keys), block.lost()))
            }
        }
    }

    /// Appends the scores that reach their query's threshold, of up to [`FirstPass::group`] queries from `first` on.
    /// Returns how many passed at first of those of which something can be said.
    pub(crate) fn select(
        &self,
        keys: &Loaded,
        live: u64,
        first: usize,
        thresholds: &Thresholds,
        out: &mut Vec<Pass>,
    ) -> usize {
        let (rule, before) = (rule(self.schema.metric), out.len());
        let Thresholds { first: thresholds, refined, .. } = thresholds;
        match (&self.form, *keys) {
            (Form::Short(short, queries), Loaded::Short(keys)) => {
                (short.select)(keys, live, self.shorts(queries, first), thresholds, out);
            }
            (Form::Coded(queries), Loaded::Coded(keys)) => {
                (self.kernels.select_codes)(keys, live, queries, thresholds, out);
            }
            (Form::Many(many, queries), Loaded::Many(keys)) => {
                (many.select)(keys, live, queries.all(), thresholds, out);
            }
            (Form::Fresh(many, queries, singles), Loaded::Fresh(keys, stored)) => {
                (many.select)(keys, live, queries.all(), thresholds, out);
                (self.kernels.refine)(stored, singles, singles.len() / queries.len(), &mut out[before..]);
                return drop_below(refined, out, before);
            }
            (Form::Singles(queries), Loaded::Stored(keys)) => {
                let queries = queries.chunks_exact(queries.len() / self.bounds.len());
                for (at, (numbers, &threshold)) in queries.zip(thresholds).enumerate() {
                    // What comes next need be asked for once.
                    let keys = Stored { next: if at == 0 { keys.next } else { &[] }, ..keys };
                    let query = One { numbers, at: at as u32, threshold };
                    (self.kernels.select_one)(rule, keys, live, query, out);
                }
            }
            (_, Loaded::Panels(keys)) => {
                (self.kernels.select)(rule, keys, live, self.floats(first), thresholds, out);
            }
            // What was loaded for one form is not given to another.
            _ => unreachable!("keys as this pass loads them"),
        }
        let known = |pass: &&Pass| thresholds[pass.query as usize] > f32::NEG_INFINITY;
        if self.reads_codes() { out[before..].iter().filter(known).count() } else { 0 }
    }

    pub(crate) fn floats(&self, first: usize) -> Panels<'_> {
        let dim = self.schema.key.dim;
        Panels {
            panels: &self.packed.panels.floats()[first * dim..],
            dim,
            n: self.group().min(self.bounds.len() - first),
        }
    }

    pub(crate) fn shorts<'a>(&self, queries: &'a Plane, first: usize) -> ShortQueries<'a> {
        let dim = self.schema.key.dim;
        let panels = &queries.shorts()[first * short::padded(dim)..];
        ShortQueries { panels, dim, n: self.group().min(self.bounds.len() - first) }
    }
}
