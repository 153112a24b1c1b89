//! The same memory as plain vectors: what a bank must agree with.

use mnemex_oracle as oracle;

use super::consolidate::{Fate, fates};

/// (id, key, value)
pub(super) type Entry = (i64, Vec<f32>, Vec<f32>);

/// A staged token: id, and per head key and value.
pub(super) type Token = (i64, Vec<(Vec<f32>, Vec<f32>)>);

/// One row: per head its entries, ids ascending.
#[derive(Clone, Debug)]
pub(super) struct PlainRow {
    pub(super) heads: Vec<Vec<Entry>>,
    pub(super) next_id: i64,
}

/// Rows, and what is staged by row.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    pub(super) rows: Vec<PlainRow>,
    pub(super) staged: Vec<Vec<Token>>,
    pub(super) capacity: usize,
    /// None: every token becomes an entry.
    pub(super) threshold: Option<f32>,
    pub(super) metric: oracle::Metric,
}

impl Plain {
    pub(super) fn next_id(&self, row: usize) -> i64 {
        self.rows[row].next_id + self.staged[row].len() as i64
    }

    pub(super) fn commit(&mut self) {
        for (row, staged) in self.rows.iter_mut().zip(&mut self.staged) {
            row.next_id += staged.len() as i64;
            for (head, entries) in row.heads.iter_mut().enumerate() {
                match self.threshold {
                    None => entries.extend(staged.iter().map(|(id, at)| (*id, at[head].0.clone(), at[head].1.clone()))),
                    Some(threshold) => consolidate(entries, staged, head, threshold, self.capacity),
                }
                let over = entries.len().saturating_sub(self.capacity);
                entries.drain(..over);
            }
            staged.clear();
        }
    }

    /// Best k of one lane.
    pub(super) fn search(&self, row: usize, head: usize, q: &[f32], k: usize) -> Vec<(f32, i64)> {
        let keys: Vec<_> = self.rows[row].heads[head].iter().map(|(id, key, _)| (*id, key.clone())).collect();
        oracle::search(self.metric, &keys, q, k)
    }

    /// Attention over the best k, scale 0.5.
    pub(super) fn attend(&self, row: usize, head: usize, q: &[f32], k: usize, value_dim: usize) -> (Vec<f64>, f64) {
        let best = self.search(row, head, q, k);
        let logits: Vec<f64> = best.iter().map(|(s, _)| f64::from(*s) * 0.5).collect();
        let entries = &self.rows[row].heads[head];
        let value = |id: i64| entries.iter().find(|entry| entry.0 == id).unwrap().2.clone();
        let values: Vec<_> = best.iter().map(|(_, id)| value(*id)).collect();
        oracle::attention(&logits, &values, value_dim)
    }
}

fn consolidate(entries: &mut Vec<Entry>, staged: &[Token], head: usize, threshold: f32, capacity: usize) {
    let before: Vec<_> = entries.iter().map(|(id, key, _)| (*id, key.clone())).collect();
    let arriving: Vec<_> = staged.iter().map(|(_, at)| at[head].0.clone()).collect();
    let score = |x: &[f32], q: &[f32]| oracle::score(oracle::Metric::Dot, x, q);
    for ((id, at), fate) in staged.iter().zip(fates(threshold, capacity, &before, &arriving, score)) {
        let (key, value) = &at[head];
        match fate {
            Fate::Merge(into) => {
                let entry = entries.iter_mut().find(|entry| entry.0 == into).unwrap();
                entry.1.iter_mut().zip(key).for_each(|(a, b)| *a = (*a + b) / 2.0);
                entry.2.iter_mut().zip(value).for_each(|(a, b)| *a = (*a + b) / 2.0);
            }
            Fate::Append(ended) => {
                entries.retain(|entry| Some(entry.0) != ended);
                entries.push((*id, key.clone(), value.clone()));
            }
        }
    }
}
