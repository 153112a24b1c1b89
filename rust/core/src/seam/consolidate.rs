//! A write policy that searches first: a token near an entry is merged into it, another takes the oldest one's place.
//!
//! Each token is compared with the lane as it was before the commit; an entry takes part in one edit per commit. The
//! merge is the mean of the two vectors. Full lanes lose their oldest entry for each token that is appended, Kill and
//! Append, as a replacement in CAMELoT is.

use std::ops::Range;

use mnemex_kernels::canonical::Metric;

use crate::error::Result;
use crate::lane::Edit;
use crate::layout::{Layout, Vector};
use crate::write::{View, WritePolicy};

/// Merge at or above `threshold`.
pub(super) struct Consolidate {
    pub(super) threshold: f32,
    pub(super) capacity: usize,
}

/// The decision for one token: shared with the plain model, so that the two differ in storage alone.
pub(super) enum Fate {
    /// Into this entry.
    Merge(i64),
    /// An entry of its own, after ending another where the lane is full.
    Append(Option<i64>),
}

/// Decides for arriving keys `[n][dim]` against entries (id, key) in id order.
pub(super) fn fates(
    threshold: f32,
    capacity: usize,
    entries: &[(i64, Vec<f32>)],
    arriving: &[Vec<f32>],
    score: impl Fn(&[f32], &[f32]) -> f32,
) -> Vec<Fate> {
    let mut taken: Vec<i64> = Vec::new();
    let mut size = entries.len();
    arriving
        .iter()
        .map(|key| {
            let free = entries.iter().filter(|(id, _)| !taken.contains(id)).collect::<Vec<_>>();
            let nearest =
                free.iter().map(|(id, x)| (score(x, key), *id)).fold(None, |best: Option<(f32, i64)>, next| {
                    if best.is_some_and(|best| best.0 >= next.0) { best } else { Some(next) }
                });
            match nearest {
                Some((s, id)) if s >= threshold => {
                    taken.push(id);
                    Fate::Merge(id)
                }
                _ if size < capacity => {
                    size += 1;
                    Fate::Append(None)
                }
                _ => {
                    let oldest = free.first().map(|(id, _)| *id);
                    taken.extend(oldest);
                    Fate::Append(oldest)
                }
            }
        })
        .collect()
}

impl WritePolicy for Consolidate {
    fn name(&self) -> &'static str {
        "consolidate"
    }

    fn plan(&self, view: View) -> Result<(Vec<Edit>, Vec<Range<usize>>)> {
        let (schema, lane) = (view.schema, view.lane);
        let decode = |vector: Vector, layout: Layout| {
            let mut x = vec![0.0; layout.dim];
            vector.decode(&mut x);
            x
        };
        let mut ids = lane.live_ids();
        ids.retain(|id| view.replaced.binary_search(id).is_err());
        ids.sort_unstable();
        let entry = |id: i64| {
            let (r, slot) = lane.locate(id).unwrap();
            let key = decode(r.block.key(schema, slot), schema.key);
            let value = schema.value.map_or(vec![], |layout| decode(r.block.value(schema, slot).unwrap(), layout));
            (key, value)
        };
        let entries: Vec<_> = ids.iter().map(|&id| (id, entry(id).0)).collect();
        let tokens: Vec<usize> = view.tokens.iter().cloned().flatten().collect();
        let rows = view.arrival.rows;
        let key = |token: &usize| decode(rows.key(schema, *token), schema.key);
        let arriving: Vec<_> = tokens.iter().map(key).collect();
        let score = |x: &[f32], q: &[f32]| view.kernels.score_one(Metric::Dot, x, q, 0.0);
        let (mut edits, mut runs) = (Vec::new(), Vec::new());
        let fates = fates(self.threshold, self.capacity, &entries, &arriving, score);
        for ((fate, token), arriving) in fates.into_iter().zip(tokens).zip(&arriving) {
            match fate {
                Fate::Merge(id) => {
                    let (key, value) = entry(id);
                    let mean = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect();
                    let staged = |layout: Layout| &rows.value.bytes()[token * layout.staged_row_bytes()..];
                    let new = schema.value.map_or(vec![], |layout| decode(layout.staged(staged(layout)), layout));
                    let (key, value) = (mean(&key, arriving), mean(&value, &new));
                    edits.push(Edit::Merge { id, key, value, tokens: vec![token], taken: 0 });
                }
                Fate::Append(ended) => {
                    edits.extend(ended.map(|id| Edit::Kill { id }));
                    runs.push(token..token + 1);
                }
            }
        }
        Ok((edits, runs))
    }
}
