//! The same memory as plain vectors: what a bank must agree with.

use std::collections::{BTreeMap, BTreeSet};

use mnemex_oracle as oracle;

use super::consolidate::{Fate, fates};
use crate::codec::Codec;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: i64,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
}

/// A staged token: per head what would be its entry.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) heads: Vec<Entry>,
    pub(super) label: Option<i64>,
    pub(super) position: Option<i64>,
    /// Ids that end when it is written: live ones, and staged ones.
    pub(super) replaces: Vec<i64>,
}

/// One row: per head its entries, ids ascending.
#[derive(Clone, Debug)]
pub(super) struct PlainRow {
    pub(super) heads: Vec<Vec<Entry>>,
    pub(super) next_id: i64,
    labels: BTreeMap<i64, i64>,
    positions: BTreeMap<i64, i64>,
    /// By head and id: hits and mass of what was touched.
    pub(super) used: BTreeMap<(usize, i64), (u64, f64)>,
}

impl PlainRow {
    pub(super) fn empty(heads: usize) -> PlainRow {
        let [labels, positions] = [BTreeMap::new(), BTreeMap::new()];
        PlainRow { heads: vec![vec![]; heads], next_id: 0, labels, positions, used: BTreeMap::new() }
    }

    pub(super) fn label(&self, id: i64) -> i64 {
        self.labels.get(&id).copied().unwrap_or(-1)
    }

    pub(super) fn position(&self, id: i64) -> i64 {
        self.positions.get(&id).copied().unwrap_or(id)
    }

    /// Ends the entries that are not to stay.
    pub(super) fn keep(&mut self, stays: impl Fn(i64) -> bool) {
        self.heads.iter_mut().for_each(|entries| entries.retain(|entry| stays(entry.id)));
    }
}

/// The lane that a query reads, and the smallest id that it may not see.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    pub(super) row: usize,
    pub(super) head: usize,
    pub(super) before: i64,
}

/// Where tokens ended, -1 for nowhere, by row, head and id.
pub(super) type Landed = BTreeMap<(usize, usize, i64), i64>;

/// Rows, and what is staged by row.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    pub(super) rows: Vec<PlainRow>,
    pub(super) staged: Vec<Vec<Token>>,
    /// Row, head and id of what was touched, and the weight.
    pub(super) touched: Vec<(usize, usize, i64, f64)>,
    pub(super) capacity: usize,
    /// None: every token becomes an entry.
    pub(super) threshold: Option<f32>,
    pub(super) metric: oracle::Metric,
    /// What keys and values are rounded to.
    pub(super) codec: Codec,
}

impl Plain {
    pub(super) fn next_id(&self, row: usize) -> i64 {
        self.rows[row].next_id + self.staged[row].len() as i64
    }

    /// Ids of a row, live in any head or staged, that have a label and are not to be replaced.
    pub(super) fn labelled(&self, row: usize, label: i64) -> Vec<i64> {
        let (lanes, staged) = (&self.rows[row], &self.staged[row]);
        let live = lanes.heads.iter().flatten().map(|entry| entry.id).filter(|&id| lanes.label(id) == label);
        let waiting = staged.iter().filter(|token| token.label == Some(label)).map(|token| token.heads[0].id);
        let ids: BTreeSet<i64> = live.chain(waiting).collect();
        ids.into_iter().filter(|id| !staged.iter().any(|token| token.replaces.contains(id))).collect()
    }

    /// Publishes what is staged; how many entries ended, or never came to be, over all lanes, and where each token ended
    /// by row, head and id.
    pub(super) fn commit(&mut self) -> (usize, Landed) {
        let (mut ended, mut landed) = (0, Landed::new());
        for (row, head, id, mass) in self.touched.drain(..) {
            if self.rows[row].heads[head].iter().any(|entry| entry.id == id) {
                let used = self.rows[row].used.entry((head, id)).or_default();
                *used = (used.0 + 1, used.1 + mass);
            }
        }
        for (at, (row, staged)) in self.rows.iter_mut().zip(&mut self.staged).enumerate() {
            let replaced: Vec<i64> = staged.iter().flat_map(|token| token.replaces.clone()).collect();
            row.keep(|id| !replaced.contains(&id));
            for token in &*staged {
                row.labels.extend(token.label.map(|label| (token.heads[0].id, label)));
                row.positions.extend(token.position.map(|position| (token.heads[0].id, position)));
            }
            row.next_id += staged.len() as i64;
            for (head, entries) in row.heads.iter_mut().enumerate() {
                let all = staged.iter().map(|token| token.heads[head].clone());
                let arriving: Vec<Entry> = all.filter(|entry| !replaced.contains(&entry.id)).collect();
                let mut to: Vec<i64> = arriving.iter().map(|entry| entry.id).collect();
                let ids = to.clone();
                match self.threshold {
                    None => entries.extend(arriving),
                    Some(threshold) => {
                        ended += consolidate(entries, arriving, threshold, self.capacity, self.codec, &mut to);
                    }
                }
                let over = entries.len().saturating_sub(self.capacity);
                entries.drain(..over);
                ended += over;
                let stays = |id: i64| if entries.iter().any(|entry| entry.id == id) { id } else { -1 };
                landed.extend(ids.into_iter().zip(to).map(|(id, to)| ((at, head, id), stays(to))));
            }
            staged.clear();
        }
        (ended, landed)
    }

    /// Best k of one lane.
    pub(super) fn search(&self, sight: Sight, q: &[f32], k: usize) -> Vec<(f32, i64)> {
        let seen = self.rows[sight.row].heads[sight.head].iter().filter(|entry| entry.id < sight.before);
        let keys: Vec<_> = seen.map(|entry| (entry.id, entry.key.clone())).collect();
        oracle::search(self.metric, &keys, q, k)
    }

    /// Attention over the best k, scale 0.5: the output, the log-sum-exp, and the largest logit's size.
    pub(super) fn attend(&self, sight: Sight, q: &[f32], k: usize, value_dim: usize) -> (Vec<f64>, f64, f64) {
        let best = self.search(sight, q, k);
        let logits: Vec<f64> = best.iter().map(|(s, _)| f64::from(*s) * 0.5).collect();
        let entries = &self.rows[sight.row].heads[sight.head];
        let value = |id: i64| entries.iter().find(|entry| entry.id == id).unwrap().value.clone();
        let values: Vec<_> = best.iter().map(|(_, id)| value(*id)).collect();
        let (out, lse) = oracle::attention(&logits, &values, value_dim);
        (out, lse, logits.iter().fold(0.0, |max, z| max.max(z.abs())))
    }
}

/// Merges or replaces, as the policy decides; how many entries ended. `to` becomes where each token ends.
fn consolidate(
    entries: &mut Vec<Entry>,
    arriving: Vec<Entry>,
    threshold: f32,
    capacity: usize,
    codec: Codec,
    to: &mut [i64],
) -> usize {
    let before: Vec<_> = entries.iter().map(|entry| (entry.id, entry.key.clone())).collect();
    let keys: Vec<_> = arriving.iter().map(|entry| entry.key.clone()).collect();
    let score = |x: &[f32], q: &[f32]| oracle::score(oracle::Metric::Dot, x, q);
    let fates = fates(threshold, capacity, &before, &keys, score);
    let mut replaced = 0;
    for ((new, fate), to) in arriving.into_iter().zip(fates).zip(to) {
        match fate {
            Fate::Merge(into) => {
                let entry = entries.iter_mut().find(|entry| entry.id == into).unwrap();
                mean(&mut entry.key, &new.key, codec);
                mean(&mut entry.value, &new.value, codec);
                *to = into;
            }
            Fate::Append(ended) => {
                let n = entries.len();
                entries.retain(|entry| Some(entry.id) != ended);
                replaced += n - entries.len();
                entries.push(new);
            }
        }
    }
    replaced
}

/// The mean of two vectors as the codec keeps it.
fn mean(a: &mut [f32], b: &[f32], codec: Codec) {
    let mean: Vec<f32> = a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect();
    let mut row = vec![0u32; mean.len()];
    codec.encode(&mean, bytemuck::cast_slice_mut(&mut row));
    codec.decode(bytemuck::cast_slice(&row), a);
}
