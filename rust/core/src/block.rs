//! Sixteen to sixty-four rows of bytes: the unit that is shared, copied on write, scanned and saved.
//!
//! A block holds what was written and nothing about who still wants it: liveness is in the [`crate::list::Ref`], so that
//! two versions, or two beams, can share a block and disagree about what is alive in it. Within one version a block only
//! grows at its end or has a row rewritten by a merge, and both go through `Arc::make_mut`.

use bytemuck::{bytes_of, cast_slice, cast_slice_mut};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::Codes;
use mnemex_kernels::{Kernels, bound};

use crate::codec::Codec;
use crate::config::{Config, Values};
use crate::error::Result;
use crate::extent::{Demand, Extent};
use crate::layout::{Layout, Vector};
use crate::plane::Plane;

/// Rows of a full block: one bit each in a 64-bit mask.
pub const BLOCK_ROWS: usize = 64;

/// Rows of the smallest block, which short lanes start with.
const FIRST_ROWS: usize = 16;

/// What the blocks of a bank look like; fixed by the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// What entries are ranked by.
    pub metric: Metric,
    /// Keys.
    pub key: Layout,
    /// Values of their own, if any.
    pub value: Option<Layout>,
    /// Whether attention weighs the keys themselves.
    pub key_is_value: bool,
}

impl Schema {
    /// The schema of a bank whose codecs are known.
    pub fn of(config: &Config, key: Codec, value: Codec) -> Schema {
        Schema {
            metric: config.metric,
            key: Layout::of_keys(config.metric, key, config.key_dim, config.scan_codec),
            value: match config.values {
                Values::Dim(dim) => Some(Layout::whole(value, dim)),
                _ => None,
            },
            key_is_value: config.values == Values::Key,
        }
    }
}

/// Rows encoded for a block, in private memory.
#[derive(Clone, Default)]
pub struct Encoded {
    pub(crate) key: Plane,
    pub(crate) value: Plane,
    /// One over each key's norm, for cosine; empty otherwise.
    pub(crate) scale: Vec<f32>,
    /// Each key's part in the error bound: see [`bound::reach`].
    pub(crate) reach: Vec<f32>,
    /// What each key loses by rounding for a first pass.
    pub(crate) lost: Vec<f32>,
    /// What each key loses in codes; empty where there are none.
    pub(crate) code_lost: Vec<f32>,
    n: usize,
}

impl Encoded {
    /// Room for `n` rows.
    pub(crate) fn zeroed(schema: &Schema, n: usize) -> Result<Encoded> {
        Ok(Encoded {
            key: Plane::zeroed(n * schema.key.staged_row_bytes())?,
            value: Plane::zeroed(n * schema.value.map_or(0, |layout| layout.staged_row_bytes()))?,
            scale: if schema.metric == Metric::Cos { vec![0.0; n] } else { Vec::new() },
            reach: vec![0.0; n],
            lost: vec![0.0; n],
            code_lost: if schema.key.scan.is_some() { vec![0.0; n] } else { Vec::new() },
            n,
        })
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    pub(crate) fn key_row(&mut self, schema: &Schema, row: usize) -> &mut [u8] {
        let bytes = schema.key.staged_row_bytes();
        &mut self.key.bytes_mut()[row * bytes..][..bytes]
    }

    /// The key of one row.
    pub(crate) fn key(&self, schema: &Schema, row: usize) -> Vector<'_> {
        let bytes = schema.key.staged_row_bytes();
        schema.key.staged(&self.key.bytes()[row * bytes..][..bytes])
    }

    /// The value of one row, of their layout.
    pub(crate) fn value(&self, layout: Layout, row: usize) -> Vector<'_> {
        layout.staged(&self.value.bytes()[row * layout.staged_row_bytes()..][..layout.staged_row_bytes()])
    }

    pub(crate) fn value_row(&mut self, schema: &Schema, row: usize) -> &mut [u8] {
        let bytes = schema.value.map_or(0, |layout| layout.staged_row_bytes());
        &mut self.value.bytes_mut()[row * bytes..][..bytes]
    }

    /// Notes what the first pass needs to know of a key, its codes included: called with the key as it will be decoded.
    pub(crate) fn note_key(&mut self, schema: &Schema, kernels: &Kernels, row: usize, key: &[f32]) {
        let facts = key_facts(schema, kernels, key, self.key_row(schema, row));
        (self.reach[row], self.lost[row]) = (facts.reach, facts.lost);
        if let Some(at) = self.code_lost.get_mut(row) {
            *at = facts.code_lost;
        }
        if let Some(at) = self.scale.get_mut(row) {
            *at = facts.scale;
        }
    }

    /// Makes room for another's rows.
    pub(crate) fn reserve(&mut self, more: &Encoded) -> Result<()> {
        self.key.reserve(&more.key)?;
        self.value.reserve(&more.value)
    }

    /// Adds another's rows behind these.
    pub(crate) fn append(&mut self, more: Encoded) {
        if self.is_empty() {
            *self = more;
            return;
        }
        self.key.extend(&more.key);
        self.value.extend(&more.value);
        self.scale.extend(more.scale);
        self.reach.extend(more.reach);
        self.lost.extend(more.lost);
        self.code_lost.extend(more.code_lost);
        self.n += more.n;
    }

    /// Keeps the first `n` rows.
    pub(crate) fn truncate(&mut self, n: usize) {
        for plane in [&mut self.key, &mut self.value] {
            plane.truncate(plane.bytes().len() / self.n.max(1) * n);
        }
        for numbers in [&mut self.scale, &mut self.reach, &mut self.lost, &mut self.code_lost] {
            numbers.truncate(n);
            numbers.shrink_to_fit();
        }
        self.n = n;
    }

    /// Bytes of memory held.
    pub(crate) fn nbytes(&self) -> usize {
        let facts = [&self.scale, &self.reach, &self.lost, &self.code_lost].map(Vec::capacity);
        self.key.nbytes() + self.value.nbytes() + 4 * facts.iter().sum::<usize>()
    }
}

/// What the first pass needs to know of a key.
struct Facts {
    /// One over the norm, for cosine.
    scale: f32,
    reach: f32,
    /// The norm of what rounding to bfloat16 loses, where a first pass sees it so; for cosine as a share of the key's.
    lost: f32,
    /// The same of what its codes lose.
    code_lost: f32,
}

/// Finds them, and writes the key's codes, if any, to its staged row.
fn key_facts(schema: &Schema, kernels: &Kernels, key: &[f32], row: &mut [u8]) -> Facts {
    let norm = (kernels.square_norm)(key).sqrt();
    let cosine = schema.metric == Metric::Cos;
    let scale = if !cosine || norm == 0.0 { 0.0 } else { (1.0 / norm) as f32 };
    let shortened = kernels.short.is_some() && schema.key.codec == Codec::F16 && schema.metric != Metric::L2;
    let rounds = schema.key.is_split() || shortened;
    let lost = if rounds { (kernels.lost)(key) } else { 0.0 };
    let mut code_lost = 0.0;
    if schema.key.scan.is_some() {
        let (codes, factor) = schema.key.codes(row);
        let coded = (kernels.code)(key, if cosine && norm > 0.0 { 1.0 / norm } else { 1.0 }, codes);
        factor.copy_from_slice(bytes_of(&coded.scale));
        code_lost = coded.lost;
    }
    let lost = if cosine { lost * scale } else { lost };
    Facts { scale, reach: bound::reach(schema.metric, norm), lost, code_lost }
}

/// Rows of keys and values.
pub struct Block {
    key: Extent,
    /// The second plane of keys, where they are split.
    low: Extent,
    /// The copy of keys in codes, if there is one.
    codes: Extent,
    value: Extent,
    scale: Vec<f32>,
    reach: f32,
    lost: f32,
    code_lost: f32,
    n: usize,
    capacity: usize,
}

impl Block {
    /// An empty block behind `before` in a lane.
    pub(crate) fn for_lane(schema: &Schema, before: Option<&Block>, demand: Demand) -> Result<Block> {
        let capacity = demand.in_all.next_power_of_two().clamp(FIRST_ROWS, BLOCK_ROWS);
        let value_bytes = schema.value.map_or(0, |layout| layout.row_bytes());
        let [key, low, codes, value] = [0, 1, 2, 3].map(|at| before.map(|block| block.extents()[at]));
        Ok(Block {
            key: Extent::zeroed(capacity, schema.key.row_bytes(), key, demand)?,
            low: Extent::zeroed(capacity, schema.key.low_bytes(), low, demand)?,
            codes: Extent::zeroed(capacity, schema.key.code_bytes(), codes, demand)?,
            value: Extent::zeroed(capacity, value_bytes, value, demand)?,
            scale: if schema.metric == Metric::Cos { vec![0.0; capacity] } else { Vec::new() },
            reach: 0.0,
            lost: 0.0,
            code_lost: 0.0,
            n: 0,
            capacity,
        })
    }

    /// A copy with the same room, where memory for it is to be had.
    pub(crate) fn try_clone(&self) -> Result<Block> {
        let Block { key, low, codes, value, .. } = self;
        Ok(self.with([key.try_clone()?, low.try_clone()?, codes.try_clone()?, value.try_clone()?]))
    }

    fn extents(&self) -> [&Extent; 4] {
        [&self.key, &self.low, &self.codes, &self.value]
    }

    /// The block with its bytes elsewhere.
    fn with(&self, [key, low, codes, value]: [Extent; 4]) -> Block {
        let Block { ref scale, reach, lost, code_lost, n, capacity, .. } = *self;
        Block { key, low, codes, value, scale: scale.clone(), reach, lost, code_lost, n, capacity }
    }

    /// Rows written.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether no row was written.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Rows that still fit.
    pub(crate) fn room(&self) -> usize {
        self.capacity - self.n
    }

    /// Appends rows `first..first + n` of `from`.
    pub(crate) fn extend<'f>(&mut self, schema: &Schema, from: &'f Encoded, first: usize, n: usize) {
        let staged = |plane: &'f Plane, layout: Layout| &plane.bytes()[first * layout.staged_row_bytes()..];
        let planes = [self.key.bytes_mut(), self.low.bytes_mut()];
        schema.key.place(staged(&from.key, schema.key), n, planes, self.n);
        schema.key.place_codes(staged(&from.key, schema.key), n, self.codes.bytes_mut(), self.n);
        if let Some(layout) = schema.value {
            layout.place(staged(&from.value, layout), n, [self.value.bytes_mut(), &mut []], self.n);
        }
        if schema.metric == Metric::Cos {
            self.scale[self.n..][..n].copy_from_slice(&from.scale[first..][..n]);
        }
        let most = |of: &[f32], before: f32| of.iter().skip(first).take(n).fold(before, |a, &b| a.max(b));
        (self.reach, self.lost) = (most(&from.reach, self.reach), most(&from.lost, self.lost));
        self.code_lost = most(&from.code_lost, self.code_lost);
        self.n += n;
    }

    /// Replaces one row: what a merge does.
    pub(crate) fn rewrite(&mut self, schema: &Schema, kernels: &Kernels, slot: usize, key: &[f32], value: &[f32]) {
        let staged = |layout: Layout, x: &[f32]| {
            let mut row = vec![0.0f32; layout.staged_row_bytes() / 4];
            layout.encode(x, cast_slice_mut(&mut row));
            row
        };
        let mut row = staged(schema.key, key);
        // The bound is about the key as it will be decoded.
        let mut stored = vec![0.0; schema.key.dim];
        schema.key.staged(cast_slice(&row)).decode(&mut stored);
        let facts = key_facts(schema, kernels, &stored, cast_slice_mut(&mut row));
        schema.key.place(cast_slice(&row), 1, [self.key.bytes_mut(), self.low.bytes_mut()], slot);
        schema.key.place_codes(cast_slice(&row), 1, self.codes.bytes_mut(), slot);
        if let Some(at) = self.scale.get_mut(slot) {
            *at = facts.scale;
        }
        (self.reach, self.lost) = (self.reach.max(facts.reach), self.lost.max(facts.lost));
        self.code_lost = self.code_lost.max(facts.code_lost);
        if let Some(layout) = schema.value {
            let row = staged(layout, value);
            layout.place(cast_slice(&row), 1, [self.value.bytes_mut(), &mut []], slot);
        }
    }

    /// The part of this block's keys in the error bound.
    pub(crate) fn reach(&self) -> f32 {
        self.reach
    }

    /// The most that one of its keys loses by rounding to bfloat16: see [`bound::QueryBound::at`].
    pub(crate) fn lost(&self) -> f32 {
        self.lost
    }

    /// The copy of keys in codes, if there is one, and the most that one of them loses by it.
    pub(crate) fn coded(&self, schema: &Schema) -> Option<(Codes<'_>, f32)> {
        schema.key.scan.map(|_| (schema.key.coded(self.codes.bytes(), self.n), self.code_lost))
    }

    /// One over each key's norm, for cosine; empty otherwise.
    pub(crate) fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// One key.
    pub fn key(&self, schema: &Schema, slot: usize) -> Vector<'_> {
        schema.key.vector([self.key.bytes(), self.low.bytes()], slot)
    }

    /// One value, which may be the key; None without values.
    pub fn value(&self, schema: &Schema, slot: usize) -> Option<Vector<'_>> {
        match schema.value {
            Some(layout) => Some(layout.vector([self.value.bytes(), &[]], slot)),
            None => schema.key_is_value.then(|| self.key(schema, slot)),
        }
    }

    /// What a first pass reads: the first plane of all keys, numbers of [`Layout::scanned`] row after row.
    pub(crate) fn scanned(&self) -> &[u8] {
        self.key.bytes()
    }

    /// The stored bytes of all values, or of the first plane of all keys where they are the values.
    pub(crate) fn all_values(&self, schema: &Schema) -> &[u8] {
        if schema.value.is_some() { self.value.bytes() } else { self.scanned() }
    }

    /// The same in float32 with the floats from row to row: in place, or widened into `scratch`.
    pub(crate) fn scanned_floats<'a>(&'a self, schema: &Schema, scratch: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        let layout = Layout::whole(schema.key.scanned(), schema.key.dim);
        self.floats([&self.key, &self.low], layout, scratch)
    }

    /// All keys in float32, likewise.
    pub(crate) fn keys<'a>(&'a self, schema: &Schema, scratch: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        self.floats([&self.key, &self.low], schema.key, scratch)
    }

    /// All values, likewise.
    pub(crate) fn values<'a>(&'a self, schema: &Schema, scratch: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        match schema.value {
            Some(layout) => self.floats([&self.value, &self.low], layout, scratch),
            None => self.keys(schema, scratch),
        }
    }

    fn floats<'a>(&self, planes: [&'a Extent; 2], layout: Layout, scratch: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        if layout.scanned() == Codec::F32 {
            return (planes[0].floats(), layout.row_bytes() / 4);
        }
        let stride = layout.dim.next_multiple_of(mnemex_kernels::PANEL);
        scratch.resize(self.capacity * stride, 0.0);
        for (slot, out) in scratch.chunks_exact_mut(stride).enumerate().take(self.n) {
            layout.vector(planes.map(Extent::bytes), slot).decode(&mut out[..layout.dim]);
            // What the room held before may be no number, and whole vectors are read.
            out[layout.dim..].fill(0.0);
        }
        (scratch, stride)
    }

    /// Bytes of keys, their copy included, and of values of their own, with room for more rows.
    pub(crate) fn plane_bytes(&self) -> (usize, usize) {
        let [key, low, codes, value] = self.extents().map(|extent| extent.bytes().len());
        (key + low + codes, value)
    }

    /// What the block holds, by address, and the bytes of each; several blocks may hold the same.
    pub(crate) fn parts(&self) -> [(*const u8, usize); 5] {
        let own = size_of::<Block>() + 4 * self.scale.capacity();
        let [key, low, codes, value] = self.extents().map(Extent::holder);
        [(std::ptr::from_ref(self).cast(), own), key, low, codes, value]
    }
}

impl Clone for Block {
    fn clone(&self) -> Block {
        self.with(self.extents().map(Extent::clone))
    }
}
