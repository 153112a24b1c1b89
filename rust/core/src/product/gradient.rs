//! The way back through the scores of slots: to the queries and to the half keys.

use mnemex_kernels::Kernels;

use super::SubKeys;
use crate::error::{Error, Kind, Result, ensure, filled};
use crate::work::Work;

/// What [`SubKeys::gradient`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradient {
    /// `[T, heads, query_dim]`
    pub queries: Vec<f32>,
    /// `[heads, n, dim]` of each half.
    pub keys: [Vec<f32>; 2],
}

impl SubKeys<'_> {
    /// The way back from `grad`, the gradient of the scores of `ids`, both `[T, heads, k]`. An id of -1 has no score. One
    /// half of one head is one job: sums are in the order of the tokens, whatever the number of threads.
    ///
    /// # Errors
    /// When shapes do not fit, an id names no slot, or the caller interrupts.
    pub fn gradient(
        &self,
        kernels: &'static Kernels,
        queries: &[f32],
        ids: &[i64],
        grad: &[f32],
        work: &Work,
    ) -> Result<Gradient> {
        self.check()?;
        let (tokens, dim) = (self.count(queries.len())?, self.query_dim());
        let n = tokens * self.heads;
        let k = ids.len().checked_div(n).unwrap_or(0);
        ensure(ids.len() == n * k && grad.len() == ids.len(), Kind::Shape, || {
            format!("{} ids and {} gradients for {n} queries", ids.len(), grad.len())
        })?;
        if let Some(id) = ids.iter().find(|&&id| id < -1 || i128::from(id) >= self.slots() as i128) {
            return Err(Error::new(Kind::Id, format!("ids name slot {id} of {}", self.slots())));
        }
        let work = work.for_size(ids.len().saturating_mul(2 * dim));
        let parts = work.map(2 * self.heads, |job, ticker| {
            let (head, half) = (job / 2, job % 2);
            let (keys, width) = (self.half(head, half), self.dim[half]);
            let mut of_keys = filled(0.0, keys.len())?;
            let mut of_queries = filled(0.0, tokens * width)?;
            for (token, out) in of_queries.chunks_exact_mut(width).enumerate() {
                ticker.tick()?;
                let at = token * self.heads + head;
                let query = &queries[at * dim + half * self.dim[0]..][..width];
                for (&id, &grad) in ids[at * k..][..k].iter().zip(&grad[at * k..]) {
                    if id < 0 {
                        continue;
                    }
                    let [row, column] = [id as usize / self.n[1], id as usize % self.n[1]];
                    let row = if half == 0 { row } else { column } * width;
                    (kernels.add_scaled)(grad, &keys[row..][..width], out);
                    (kernels.add_scaled)(grad, query, &mut of_keys[row..][..width]);
                }
            }
            Ok((of_keys, of_queries))
        })?;
        let mut all = filled(0.0, queries.len())?;
        let mut keys = [Vec::new(), Vec::new()];
        for (job, (of_keys, of_queries)) in parts.into_iter().enumerate() {
            let (head, half) = (job / 2, job % 2);
            keys[half].extend(of_keys);
            for (token, numbers) in of_queries.chunks_exact(self.dim[half]).enumerate() {
                let to = (token * self.heads + head) * dim + half * self.dim[0];
                all[to..][..self.dim[half]].copy_from_slice(numbers);
            }
        }
        Ok(Gradient { queries: all, keys })
    }
}
