//! Fast scores of blocks of keys, with a proven error: in float32, in bfloat16 or in codes of eight bits where the
//! processor is faster at these, or from the bank's own copy in codes.

use mnemex_kernels::bound::{Bound, Precision, QueryBound, QueryBounds};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{self, Codes};
use mnemex_kernels::many;
use mnemex_kernels::select::Maxima;
use mnemex_kernels::short::{self, ShortKeys, ShortQueries};
use mnemex_kernels::single::{One, Stored};
use mnemex_kernels::tile::Queries as Panels;
use mnemex_kernels::{Kernels, Keys, PANEL, Pass, Rule};

use crate::block::{BLOCK_ROWS, Block, Schema};
use crate::codec::Codec;
use crate::error::{Result, filled};
use crate::form::{Form, format};
use crate::plane::Plane;
use crate::query::Packed;

/// Queries per call in float32: their panels stay in the first-level cache beside a block of keys.
pub(crate) const GROUP: usize = 4 * PANEL;

/// So many times k groups of rows are looked at where first floors are set.
const MORE_GROUPS: usize = 4;

/// Codes say too little of keys where more than k groups and this share of all may hold one of the best k, in the mean over
/// queries. Of normal numbers it is less than twice k of eight times k.
const LOOSE_GROUPS: (usize, usize) = (3, 8);

/// How row scores come from keys and queries.
pub(crate) fn rule(metric: Metric) -> Rule {
    match metric {
        Metric::Dot => Rule::Dot,
        Metric::Cos => Rule::Scaled,
        Metric::L2 => Rule::L2,
    }
}

/// The queries of a unit, ready to meet blocks.
pub(crate) struct FirstPass<'s> {
    kernels: &'static Kernels,
    schema: &'s Schema,
    pub(crate) packed: Packed,
    form: Form,
    /// The error bounds of the queries, and of the scores that are made better at once, if they are.
    bounds: QueryBounds,
    refined: Option<QueryBounds>,
}

/// What the keys of a block lose at most by the form in which they are scored: at first, and where that is made better.
#[derive(Clone, Copy)]
pub(crate) struct Lost {
    pub(crate) first: f32,
    pub(crate) refined: f32,
}

/// Room to decode a block in.
pub(crate) struct Scratch {
    floats: Vec<f32>,
    shorts: Plane,
    /// Codes of a block, and sixteen rows of them.
    codes: Plane,
    rows: Plane,
    scale: [f32; BLOCK_ROWS],
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch {
            floats: Vec::new(),
            shorts: Plane::default(),
            codes: Plane::default(),
            rows: Plane::default(),
            scale: [0.0; BLOCK_ROWS],
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
    /// In codes that were made of what is stored.
    Fresh(Codes<'a>, Stored<'a>),
}

impl<'a> Loaded<'a> {
    /// Names what is read after this block, to be brought near while it is scored.
    pub(crate) fn then(&mut self, bytes: &'a [u8]) {
        match self {
            Loaded::Panels(keys) => keys.next = bytes,
            Loaded::Stored(keys) => keys.next = bytes,
            Loaded::Short(keys) => keys.next = bytes,
            Loaded::Coded(keys) | Loaded::Fresh(keys, _) => keys.next = bytes,
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
        let form = Form::of(kernels, schema, &packed, codes, &mut lost)?;
        let precision = |lost| match form {
            Form::Panels | Form::Singles(_) => Precision::Single,
            Form::Short(..) => Precision::Bf16 { lost },
            Form::Coded(_) | Form::Many(..) | Form::Fresh(..) => Precision::Codes { lost },
        };
        let bound = |norm, precision| QueryBound::of(schema.metric, schema.key.dim, norm, precision);
        let bounds = packed.norms.iter().zip(&lost).map(|(&norm, &lost)| bound(norm, precision(lost))).collect();
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

    /// How far the scores of [`FirstPass::reached`] can be off.
    pub(crate) fn bound_of_reached(&self, query: usize, reached: &Reached) -> Bound {
        self.bounds.at(query, reached.reach, reached.lost)
    }

    /// For the queries from `first` on and one block: the first scores from which an entry of it can still reach the floor,
    /// and the absolute parts of the bounds of what [`FirstPass::select`] says.
    pub(crate) fn thresholds(
        &self,
        first: usize,
        (reach, lost): (f32, Lost),
        floors: &[f32],
        out: &mut [f32],
        absolutes: &mut [f32],
    ) {
        self.bounds.absolutes(first, reach, lost.first, absolutes);
        for ((out, &absolute), &floor) in out.iter_mut().zip(&*absolutes).zip(&floors[first..]) {
            *out = self.bounds.with(absolute).threshold(floor);
        }
        if let Some(refined) = &self.refined {
            refined.absolutes(first, reach, lost.refined, absolutes);
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

    /// The keys of a block.
    pub(crate) fn load<'a>(&self, block: &'a Block, scratch: &'a mut Scratch) -> Result<(Loaded<'a>, Lost)> {
        let layout = self.schema.key;
        let (n, scale, next) = (block.len(), block.scale(), &[][..]);
        let split = if layout.is_split() { block.lost() } else { 0.0 };
        let only = |first| Lost { first, refined: first };
        let stored = || {
            let (bytes, stride) = (block.scanned(), layout.row_bytes());
            Stored { bytes, format: format(layout.scanned()), stride, n, scale, next }
        };
        match (&self.form, block.coded(self.schema)) {
            (Form::Coded(_) | Form::Many(..), Some((codes, lost))) => Ok((Loaded::Coded(codes), only(lost))),
            (Form::Fresh(many, ..), _) => {
                if scratch.codes.bytes().is_empty() {
                    scratch.codes = Plane::zeroed(codes::padded(layout.dim) * BLOCK_ROWS)?;
                    scratch.rows = Plane::zeroed(PANEL * many::row_bytes(layout.dim))?;
                }
                let Scratch { codes, rows, scale, .. } = scratch;
                let room = many::Room { bytes: codes.bytes_mut(), scale, rows: rows.bytes_mut() };
                let lost = (many.code)(stored(), layout.dim, room);
                let codes = Codes { bytes: codes.bytes(), scale: &scale[..], rows: BLOCK_ROWS, n, next };
                Ok((Loaded::Fresh(codes, stored()), Lost { first: (split + lost).next_up(), refined: split }))
            }
            (Form::Singles(_) | Form::Coded(_) | Form::Many(..), _) => Ok((Loaded::Stored(stored()), only(split))),
            (Form::Panels, _) => {
                let (rows, stride) = block.scanned_floats(self.schema, &mut scratch.floats);
                Ok((Loaded::Panels(Keys { rows, stride, n, scale, next }), only(split)))
            }
            (Form::Short(short, _), _) => {
                let stride = short::padded(layout.dim);
                let bytes = short::ROWS * stride * size_of::<u16>();
                let scanned = block.scanned();
                if layout.scanned() == Codec::Bf16 && scanned.len() == bytes {
                    let rows = bytemuck::cast_slice(scanned);
                    return Ok((Loaded::Short(ShortKeys { rows, stride, n, scale, next }), only(split)));
                }
                if scratch.shorts.bytes().is_empty() {
                    scratch.shorts = Plane::zeroed(bytes)?;
                }
                let (rows, from) = block.scanned_floats(self.schema, &mut scratch.floats);
                let keys = Keys { rows, stride: from, n, scale, next };
                (short.shorten)(keys, layout.dim, scratch.shorts.shorts_mut());
                let keys = ShortKeys { rows: scratch.shorts.shorts(), stride, n, scale, next };
                Ok((Loaded::Short(keys), only(block.lost())))
            }
        }
    }

    /// Appends the scores that reach their query's threshold, of up to [`FirstPass::group`] queries from `first` on.
    pub(crate) fn select(&self, keys: &Loaded, live: u64, first: usize, thresholds: &[f32], out: &mut Vec<Pass>) {
        let rule = rule(self.schema.metric);
        match (&self.form, *keys) {
            (Form::Short(short, queries), Loaded::Short(keys)) => {
                (short.select)(keys, live, self.shorts(queries, first), thresholds, out);
            }
            (Form::Coded(queries), Loaded::Coded(keys)) => {
                (self.kernels.select_codes)(keys, live, queries, thresholds, out);
            }
            (Form::Many(many, queries), Loaded::Coded(keys)) => {
                (many.select)(keys, live, queries.all(), thresholds, out);
            }
            (Form::Fresh(many, queries, singles), Loaded::Fresh(keys, stored)) => {
                let before = out.len();
                (many.select)(keys, live, queries.all(), thresholds, out);
                (self.kernels.refine)(stored, singles, singles.len() / queries.len(), &mut out[before..]);
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
    }

    /// First-pass scores that k entries of these blocks reach, one for each query; nothing where that takes more blocks.
    /// Rows are taken in groups, of which only the largest score is kept: what k groups reach, k rows reach, and with many
    /// more groups than k hardly any of the best k share one.
    pub(crate) fn reached(&self, blocks: &[&Block], k: usize, scratch: &mut Scratch) -> Result<Option<Reached>> {
        let n = self.bounds.len();
        let reach = blocks.iter().map(|block| block.reach()).fold(0.0, f32::max);
        let mut lost = 0.0f32;
        let mut scores = Vec::with_capacity(n);
        if let Form::Many(many, queries) | Form::Fresh(many, queries, _) = &self.form {
            let full: Vec<&&Block> = blocks.iter().filter(|block| block.len() == BLOCK_ROWS).collect();
            // Blocks of which groups are made together: as many as leave enough groups, few of which stay in the cache.
            let together = (full.len() * many::GROUPS / (2 * MORE_GROUPS * k)).max(1);
            let groups = full.len().div_ceil(together) * many::GROUPS;
            if groups < MORE_GROUPS * k {
                return Ok(None);
            }
            // Not a power of two from query to query, which would compete for the same lines of the cache.
            let stride = groups + many::GROUPS;
            let mut maxima = filled(f32::NEG_INFINITY, stride * n)?;
            for (at, block) in full.iter().enumerate() {
                let (keys, loses) = self.load(block, scratch)?;
                lost = lost.max(loses.first);
                let (Loaded::Coded(keys) | Loaded::Fresh(keys, ..)) = keys else { return Ok(None) };
                (many.maxima)(keys, queries.all(), &mut maxima[at / together * many::GROUPS..], stride);
            }
            let (mut over, most) = (0, n * (k + groups * LOOSE_GROUPS.0 / LOOSE_GROUPS.1));
            for (query, of_one) in maxima.chunks_exact(stride).map(|of_one| &of_one[..groups]).enumerate() {
                let score = (self.kernels.reached_by_one)(of_one, k);
                let bound = self.bounds.at(query, reach, lost);
                let threshold = bound.threshold(bound.lower(score));
                over += of_one.iter().map(|&score| usize::from(score >= threshold)).sum::<usize>();
                scores.push(score);
            }
            return Ok(Some(Reached { scores, reach, lost, is_loose: over > most }));
        }
        let enough = |&per: &usize| blocks.iter().map(|block| block.len() / per).sum::<usize>() >= MORE_GROUPS * k;
        let Some(per) = [16, 4, 1].into_iter().find(enough) else { return Ok(None) };
        let groups = blocks.iter().map(|block| block.len().div_ceil(per)).sum::<usize>();
        let mut maxima = filled(f32::NEG_INFINITY, groups * n.next_multiple_of(PANEL))?;
        let mut at = 0;
        for block in blocks {
            let (keys, loses) = self.load(block, scratch)?;
            lost = lost.max(loses.first);
            for first in (0..n).step_by(self.group()) {
                let out = Maxima { out: &mut maxima[first * groups..], groups, first: at, per };
                match (&self.form, keys) {
                    (Form::Short(short, queries), Loaded::Short(keys)) => {
                        (short.maxima)(keys, self.shorts(queries, first), out);
                    }
                    (_, Loaded::Panels(keys)) => {
                        (self.kernels.maxima)(rule(self.schema.metric), keys, self.floats(first), out);
                    }
                    // Nobody asks: see `is_few`.
                    _ => return Ok(None),
                }
            }
            at += block.len().div_ceil(per);
        }
        for panel in maxima.chunks_exact(groups * PANEL) {
            let mut reached = [0.0; PANEL];
            (self.kernels.reached_by)(panel, k, &mut reached);
            scores.extend(reached);
        }
        scores.truncate(n);
        Ok(Some(Reached { scores, reach, lost, is_loose: false }))
    }

    fn floats(&self, first: usize) -> Panels<'_> {
        let dim = self.schema.key.dim;
        Panels {
            panels: &self.packed.panels.floats()[first * dim..],
            dim,
            n: self.group().min(self.bounds.len() - first),
        }
    }

    fn shorts<'a>(&self, queries: &'a Plane, first: usize) -> ShortQueries<'a> {
        let dim = self.schema.key.dim;
        let panels = &queries.shorts()[first * short::padded(dim)..];
        ShortQueries { panels, dim, n: self.group().min(self.bounds.len() - first) }
    }
}

/// What [`FirstPass::reached`] says, and what the bound of these scores takes.
pub(crate) struct Reached {
    pub(crate) scores: Vec<f32>,
    pub(crate) reach: f32,
    pub(crate) lost: f32,
    /// Whether these scores say too little to be worth reading: far more groups than k can have one of the best k.
    pub(crate) is_loose: bool,
}
