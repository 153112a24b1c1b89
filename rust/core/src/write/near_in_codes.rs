//! The same as [`super::nearest`] by products of bytes, where the processor multiplies those faster than float32.
//!
//! Who is not as near as tokens have to be to be merged is of no interest, so that is every token's first floor, and a
//! block is met once: what may reach the floor is scored canonically at once and raises it. Where codes say too little of
//! the keys, or much is near, too much passes; then scores in float32 are sooner done.

use mnemex_kernels::bound::{Precision, QueryBound, QueryBounds, reach};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{self, Codes};
use mnemex_kernels::many::{self, Coded, CodedKeys, MAX_DIM, Many, Shares};
use mnemex_kernels::single::Stored;
use mnemex_kernels::{PANEL, Pass};

use super::View;
use super::nearest::{Near, Seekers};
use crate::block::{BLOCK_ROWS, Block};
use crate::codec::Codec;
use crate::error::Result;
use crate::form::format;
use crate::list::{List, Ref};
use crate::plane::Plane;

/// Fewest seekers that are worth making codes of keys for: see [`crate::form`].
const FEWEST: usize = 32;

/// Too much passes where it is more than one score in so many, beside a few for each seeker.
const LOOSE_SHARE: usize = 64;
const LOOSE_PASSES: usize = 8;

/// What a key loses at most by rounding to bfloat16, as a share of the norm of what is left; of normal numbers.
const ROUNDED: f32 = 1.01 / 256.0;

/// Norms from which numbers that are too small to be normal do not count.
const SMALL: f64 = 1e-15;

/// A block in codes.
struct Room {
    codes: Plane,
    rows: Plane,
    /// Keys in float32.
    floats: Vec<f32>,
    scale: [f32; BLOCK_ROWS],
    slack: [f32; BLOCK_ROWS],
    /// One over the norms, where the block does not know them.
    inverse: [f32; BLOCK_ROWS],
}

/// The nearest of the entries that are `sought`, for each seeker, as far as one scores `least` or more. None where float32 is
/// sooner done.
pub(super) fn nearest(
    view: &View,
    seekers: &Seekers,
    least: f32,
    sought: &dyn Fn(i64) -> bool,
) -> Result<Option<Vec<Option<Near>>>> {
    let (n, dim) = (seekers.len(), seekers.dim());
    // Whole float32 numbers, which keys of l2 are stored as, have no codes made of them.
    let able = n >= FEWEST && dim <= MAX_DIM && seekers.metric() != Metric::L2;
    let Some(many) = view.kernels.many.filter(|_| able && view.schema.key.scanned() != Codec::F32) else {
        return Ok(None);
    };
    let coded = coded(seekers);
    let mut room = Room {
        codes: Plane::zeroed(codes::padded(dim) * BLOCK_ROWS)?,
        rows: Plane::zeroed(PANEL * many::row_bytes(dim))?,
        floats: Vec::new(),
        scale: [0.0; BLOCK_ROWS],
        slack: [0.0; BLOCK_ROWS],
        inverse: [0.0; BLOCK_ROWS],
    };
    let (mut near, mut floors, mut thresholds) = (vec![None; n], vec![least; n], vec![0.0; n]);
    let (mut passes, mut passed, mut scored): (Vec<Pass>, usize, usize) = (Vec::new(), 0, 0);
    for r in view.lane.lists().iter().flat_map(List::refs) {
        view.ticker.tick()?;
        let candidate = |id: i64| sought(id) && (view.replaced.is_empty() || view.replaced.binary_search(&id).is_err());
        let live = r.live_slots().filter(|&slot| candidate(r.id(slot))).fold(0u64, |live, slot| live | 1 << slot);
        if live == 0 {
            continue;
        }
        let Some(keys) = room.load(view, seekers.metric(), &many, coded.per_norm(), &r.block) else { return Ok(None) };
        coded.thresholds(&floors, &mut thresholds);
        passes.clear();
        (many.select)(keys, live, coded.all(), &thresholds, &mut passes);
        (passed, scored) = (passed + passes.len(), scored + n * live.count_ones() as usize);
        if passed > scored / LOOSE_SHARE + n * LOOSE_PASSES {
            return Ok(None);
        }
        take(view, seekers, r, &passes, &mut room.floats, (&mut near, &mut floors));
    }
    Ok(Some(near))
}

/// Seekers in bytes, and how far their scores can be off.
fn coded(seekers: &Seekers) -> Coded {
    let (metric, dim, mut coded) = (seekers.metric(), seekers.dim(), Coded::default());
    let mut unit = vec![0.0; dim];
    let bounds: QueryBounds = (0..seekers.len())
        .map(|at| {
            let norm = seekers.norm(at);
            let lost = if metric == Metric::Cos && norm > 0.0 {
                unit.iter_mut().zip(seekers.get(at)).for_each(|(unit, &x)| *unit = (f64::from(x) / norm) as f32);
                coded.push(&unit)
            } else {
                coded.push(seekers.get(at))
            };
            QueryBound::of(metric, dim, norm, Precision::Codes { lost })
        })
        .collect();
    coded.bound(&bounds);
    coded
}

impl Room {
    /// Makes codes of a block, unless it holds keys of which codes promise nothing. What it knows of its keys is about the
    /// bank's own metric; another one takes their norms.
    fn load(
        &mut self,
        view: &View,
        metric: Metric,
        many: &Many,
        per_norm: f32,
        block: &Block,
    ) -> Option<CodedKeys<'_>> {
        let (schema, layout) = (view.schema, view.schema.key);
        let Room { codes, rows, floats, scale, slack, inverse } = self;
        let (mut factors, mut sure) = (block.scale(), block.reach() < f32::INFINITY);
        let mut shares = Shares { before: if layout.is_split() { block.lost() } else { 0.0 }, per_norm };
        if metric != schema.metric {
            let rounded = if layout.is_split() { ROUNDED } else { 0.0 };
            shares = Shares { before: 0.0, per_norm: per_norm + rounded };
            sure = true;
            let (keys, stride) = block.keys(schema, floats);
            for (inverse, key) in inverse.iter_mut().zip(keys.chunks(stride)).take(block.len()) {
                let norm = (view.kernels.square_norm)(&key[..layout.dim]).sqrt();
                sure &= reach(metric, norm) < f32::INFINITY && (norm == 0.0 || norm > SMALL);
                *inverse = if norm == 0.0 { 0.0 } else { (1.0 / norm) as f32 };
            }
            factors = if metric == Metric::Cos { &inverse[..] } else { &[] };
        }
        if !sure {
            return None;
        }
        let stored = Stored {
            bytes: block.scanned(),
            format: format(layout.scanned()),
            stride: layout.row_bytes(),
            n: block.len(),
            scale: factors,
            next: &[],
        };
        let room = many::Room { bytes: codes.bytes_mut(), scale, slack, rows: rows.bytes_mut() };
        (many.code)(stored, layout.dim, shares, room);
        let codes = Codes { bytes: codes.bytes(), scale: &scale[..], rows: BLOCK_ROWS, n: block.len(), next: &[] };
        Some(CodedKeys { codes, slack })
    }
}

/// Scores what passed of a block.
fn take(
    view: &View,
    seekers: &Seekers,
    r: &Ref,
    passes: &[Pass],
    floats: &mut Vec<f32>,
    (near, floors): (&mut [Option<Near>], &mut [f32]),
) {
    if passes.is_empty() {
        return;
    }
    let (keys, stride) = r.block.keys(view.schema, floats);
    for pass in passes {
        let (at, row) = (pass.query as usize, pass.row as usize);
        let mut score = [0.0];
        seekers.exact(view, at, &keys[row * stride..][..seekers.dim()], &mut score);
        let nearest = Near::nearer(near[at], Near { score: score[0], id: r.id(row) });
        near[at] = Some(nearest);
        floors[at] = floors[at].max(nearest.score);
    }
}
