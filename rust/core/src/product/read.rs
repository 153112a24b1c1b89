//! The values of the best slots, weighed and summed over all heads.

use mnemex_kernels::product::Table;
use mnemex_kernels::{Kernels, PANEL};

use super::{Bag, SubKeys};
use crate::error::{Kind, Result, ensure};
use crate::work::Work;

/// How slots are weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighing {
    /// By their scores, times a scale.
    Scores(f32),
    /// By the softmax of these over the slots of a head.
    Softmax(f32),
}

impl Weighing {
    /// Turns the scores of the slots of one query and head into weights; those that are none weigh nothing.
    fn weigh(self, kernels: &Kernels, scores: &mut [f32], ids: &[i64], room: &mut [f32]) {
        match self {
            Weighing::Scores(scale) => {
                for (score, &id) in scores.iter_mut().zip(ids) {
                    *score = if id >= 0 { *score * scale } else { 0.0 };
                }
            }
            Weighing::Softmax(scale) => {
                room.fill(f32::NEG_INFINITY);
                for ((logit, &score), &id) in room.iter_mut().zip(&*scores).zip(ids) {
                    if id >= 0 {
                        *logit = score * scale;
                    }
                }
                let (_, sum) = (kernels.exponentials_one)(room);
                let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                scores.iter_mut().zip(room).for_each(|(score, weight)| *score = *weight * factor);
            }
        }
    }
}

impl SubKeys<'_> {
    /// Sums of the values of the best `k` slots of each head, `[T, dim]`: slot s has row s modulo the rows. The same bits
    /// whatever the number of threads.
    ///
    /// # Errors
    /// As [`SubKeys::lookup`] and [`Bag::sums`], or when there are no values.
    pub fn read(
        &self,
        kernels: &'static Kernels,
        queries: &[f32],
        k: usize,
        weighing: Weighing,
        values: Table,
        work: &Work,
    ) -> Result<Vec<f32>> {
        ensure(!values.is_empty(), Kind::Shape, || "a table of no values".into())?;
        let mut slots = self.lookup(kernels, queries, k, work)?;
        let mut room = vec![0.0; k.next_multiple_of(PANEL)];
        for (scores, ids) in slots.scores.chunks_exact_mut(k).zip(slots.ids.chunks_exact(k)) {
            weighing.weigh(kernels, scores, ids, &mut room);
        }
        let rows = values.len() as u64;
        if u128::from(rows) < self.slots() {
            for id in slots.ids.iter_mut().filter(|id| **id >= 0) {
                *id = (*id as u64 % rows) as i64;
            }
        }
        let n = queries.len() / (self.heads * self.query_dim());
        Bag { values, ids: &slots.ids, weights: &slots.scores, n }.sums(kernels, work)
    }
}
