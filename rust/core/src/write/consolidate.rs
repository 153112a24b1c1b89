//! Search, then merge or append: what is near an entry becomes part of it (CAMELoT, He et al. 2024, arXiv 2402.13449).
//!
//! Sums are in float64, in one order whatever the number of threads and the instruction set: an entry's own numbers, times
//! the tokens that it stands for, then the merged tokens as they came; one division, and one rounding to float32.

use std::collections::HashMap;

use super::nearest::{Near, Seekers, Unchanged, nearest};
use super::{LanePlan, Runs, View, WritePolicy, decoded};
use crate::config::{Conflicts, Consolidation, Merge};
use crate::error::Result;
use crate::lane::Edit;
use crate::rescore::TOGETHER;

/// Merge what is near enough, append the rest.
pub struct Consolidate(pub Consolidation);

/// An entry that changes at this commit, or comes to be.
struct Working {
    id: i64,
    value: Vec<f32>,
    /// Tokens that it stands for.
    count: u64,
    /// Those that are merged into it at this commit.
    tokens: Vec<usize>,
}

/// What arrives, decoded.
struct Arriving {
    /// Tokens of the arrival that are written, ascending.
    tokens: Vec<usize>,
    seekers: Seekers,
    /// `[n, value_dim]`; empty without values of their own.
    values: Vec<f32>,
    value_dim: usize,
}

impl Arriving {
    fn value(&self, at: usize) -> &[f32] {
        &self.values[at * self.value_dim..][..self.value_dim]
    }
}

impl Merge {
    /// What becomes of numbers that stand for `count` tokens when `n` more are merged into them.
    fn merge<'x>(self, old: &[f32], count: u64, n: usize, new: impl Iterator<Item = &'x [f32]>) -> Vec<f32> {
        let own = match self {
            Merge::Mean => count as f64,
            Merge::Ema { .. } => 0.0,
        };
        let mut sums: Vec<f64> = old.iter().map(|&x| own * f64::from(x)).collect();
        for new in new {
            sums.iter_mut().zip(new).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        match self {
            Merge::Mean => sums.into_iter().map(|sum| (sum / (count as f64 + n as f64)) as f32).collect(),
            Merge::Ema { rate } => {
                let blend = |(sum, &x): (f64, &f32)| ((1.0 - rate) * f64::from(x) + rate * (sum / n as f64)) as f32;
                sums.into_iter().zip(old).map(blend).collect()
            }
        }
    }
}

impl Consolidate {
    /// The tokens that are to be written, in float32.
    fn arriving(&self, view: &View) -> Result<Arriving> {
        let (schema, rows) = (view.schema, view.arrival.rows);
        let tokens = super::arriving(view);
        let (dim, value_dim) = (schema.key.dim, schema.value.map_or(0, |layout| layout.dim));
        let mut keys = vec![0.0; tokens.len() * dim];
        for (key, &token) in keys.chunks_exact_mut(dim).zip(&tokens) {
            rows.key(schema, token).decode(key);
        }
        let mut values = vec![0.0; tokens.len() * value_dim];
        if let Some(layout) = schema.value {
            for (value, &token) in values.chunks_exact_mut(value_dim).zip(&tokens) {
                rows.value(layout, token).decode(value);
            }
        }
        let seekers = Seekers::new(view, self.0.similarity, dim, keys)?;
        Ok(Arriving { tokens, seekers, values, value_dim })
    }

    /// The key and value of an entry, and how many tokens it stands for.
    fn entry(view: &View, id: i64) -> (Vec<f32>, Vec<f32>, u64) {
        let (key, value) = decoded(view, id);
        (key, value, view.lane.used(id).count.max(1))
    }

    /// The least float32 that a score near enough can be, or one below.
    fn least(&self) -> f32 {
        let least = self.0.threshold as f32;
        if f64::from(least) > self.0.threshold { least.next_down() } else { least }
    }

    fn is_near(&self, near: Option<Near>) -> Option<Near> {
        near.filter(|near| f64::from(near.score) >= self.0.threshold)
    }

    /// All tokens see the lane as it was.
    fn together(&self, view: &View) -> Result<LanePlan> {
        let arriving = self.arriving(view)?;
        let (mut runs, mut joining) = (Runs::default(), Vec::new());
        for (at, near) in nearest(view, &arriving.seekers, self.least(), &|_| true)?.into_iter().enumerate() {
            match self.is_near(near) {
                Some(near) => joining.push((near.id, at)),
                None => runs.push(arriving.tokens[at]),
            }
        }
        joining.sort_unstable();
        let merge = |joining: &[(i64, usize)]| {
            let (id, n) = (joining[0].0, joining.len());
            let (key, value, count) = Consolidate::entry(view, id);
            let each = || joining.iter().map(|&(_, at)| at);
            Edit::Merge {
                id,
                key: self.0.merge.merge(&key, count, n, each().map(|at| arriving.seekers.get(at))),
                value: self.0.merge.merge(&value, count, n, each().map(|at| arriving.value(at))),
                tokens: each().map(|at| arriving.tokens[at]).collect(),
                taken: 0,
            }
        };
        Ok((joining.chunk_by(|a, b| a.0 == b.0).map(merge).collect(), runs.0))
    }

    /// One token after the other.
    fn in_turn(&self, view: &View) -> Result<LanePlan> {
        let arriving = self.arriving(view)?;
        let (seekers, dim) = (&arriving.seekers, view.schema.key.dim);
        let mut unchanged = Unchanged::new(view, seekers, self.least())?;
        // Entries that changed, keys apart so that they are scored together; and which of them an id is.
        let (mut working, mut keys): (Vec<Working>, Vec<f32>) = (Vec::new(), Vec::new());
        let (mut at_work, mut runs) = (HashMap::new(), Runs::default());
        let mut scores = [0.0; TOGETHER];
        for (at, &token) in arriving.tokens.iter().enumerate() {
            let mut near = unchanged.nearest(at)?;
            for (working, keys) in working.chunks(TOGETHER).zip(keys.chunks(TOGETHER * dim)) {
                seekers.exact(view, at, keys, &mut scores[..working.len()]);
                for (working, &score) in working.iter().zip(&scores) {
                    near = Some(Near::nearer(near, Near { score, id: working.id }));
                }
            }
            let Some(near) = self.is_near(near) else {
                let id = view.arrival.id_lo + token as i64;
                runs.push(token);
                at_work.insert(id, working.len());
                keys.extend_from_slice(seekers.get(at));
                working.push(Working { id, value: arriving.value(at).to_vec(), count: 1, tokens: Vec::new() });
                continue;
            };
            let place = match at_work.get(&near.id) {
                Some(&place) => place,
                None => {
                    let (key, value, count) = Consolidate::entry(view, near.id);
                    unchanged.change(near.id);
                    at_work.insert(near.id, working.len());
                    keys.extend_from_slice(&key);
                    working.push(Working { id: near.id, value, count, tokens: Vec::new() });
                    working.len() - 1
                }
            };
            let Working { value, count, tokens, .. } = &mut working[place];
            let key = &mut keys[place * dim..][..dim];
            let one = std::iter::once;
            let merged = self.0.merge.merge(key, *count, 1, one(seekers.get(at)));
            key.copy_from_slice(&merged);
            *value = self.0.merge.merge(value, *count, 1, one(arriving.value(at)));
            *count += 1;
            tokens.push(token);
        }
        let changed = working.into_iter().zip(keys.chunks_exact(dim)).filter(|(entry, _)| !entry.tokens.is_empty());
        let merge = |(Working { id, value, tokens, .. }, key): (Working, &[f32])| Edit::Merge {
            id,
            key: key.to_vec(),
            value,
            tokens,
            taken: 0,
        };
        Ok((changed.map(merge).collect(), runs.0))
    }
}

impl WritePolicy for Consolidate {
    fn name(&self) -> &'static str {
        "consolidate"
    }

    fn plan(&self, view: View) -> Result<LanePlan> {
        match self.0.conflicts {
            Conflicts::BatchMean => self.together(&view),
            Conflicts::Sequential => self.in_turn(&view),
        }
    }
}
