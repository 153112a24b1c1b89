//! The way back through what was attended to: the gradient of queries, entries being constants.
//!
//! With s = <q, x>, z the logit of s and p = exp(z - lse), the softmax that the entries took part in gives
//! dq = sum of p (<dout, v> - delta) dz/ds x, where delta = <dout, out>: what a flash attention does (Dao et al. 2022,
//! appendix B), over the entries that each query read. Keys and values are read where they lie.

use mnemex_kernels::softmax::Logit;

use crate::bank::Snapshot;
use crate::error::{Error, Kind, Result, ensure, filled};
use crate::input::all_finite;
use crate::layout::Vector;
use crate::query::{Queries, Query};
use crate::reader::firsts;
use crate::work::Work;

/// What is known of a softmax over entries, and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// What each query read: `[rows, query_heads, T, k]`; -1 stands for nothing.
    pub ids: &'a [i64],
    /// Gradient of the output, `[rows, query_heads, T, value_dim]`.
    pub grad: &'a [f32],
    /// <dout, out> of the whole softmax, `[rows, query_heads, T]`.
    pub delta: &'a [f32],
    /// Log-sum-exp of the whole softmax, less what was added to the entries' logits: `[rows, query_heads, T]`.
    pub lse: &'a [f32],
    /// How scores became logits.
    pub logit: Logit,
}

/// Queries of one job.
const JOB_QUERIES: usize = 64;

impl Snapshot {
    /// Gradient of the queries, `[rows, query_heads, T, key_dim]`. A query with NaN or infinity has one of NaN.
    ///
    /// # Errors
    /// When shapes do not fit, an id is not there, the bank holds no values, or the caller interrupts.
    pub fn query_gradient(&self, query: &Query, given: &Given, work: &Work) -> Result<Vec<f32>> {
        let (queries, config) = (Queries::check(self, query)?, self.config());
        let (n, dim, value_dim) = (queries.len(), config.key_dim, config.value_dim());
        let k = given.ids.len().checked_div(n).unwrap_or(0);
        let lengths = [given.ids.len(), given.grad.len(), given.delta.len(), given.lse.len()];
        ensure(lengths == [n * k, n * value_dim, n, n], Kind::Shape, || {
            format!("{n} queries come with {lengths:?} ids and numbers of gradient, delta and log-sum-exp")
        })?;
        let mut out = filled(0.0, n * dim)?;
        let Some(schema) = self.version.schema.as_ref().filter(|_| k > 0) else {
            let bad = out.chunks_mut(dim).enumerate().filter(|(at, _)| !all_finite(queries.get(*at)));
            bad.for_each(|(_, gradient)| gradient.fill(f32::NAN));
            return Ok(out);
        };
        let per_row = queries.heads * queries.tokens;
        // Entry `at` of all that were read.
        let entry = |at: usize| -> Result<[Vector; 2]> {
            let id = given.ids[at];
            let (row, head) = (queries.rows[at / k / per_row], at / k % per_row / queries.tokens / queries.group);
            let (r, slot) = self.version.rows[row].lanes[head].locate(id).ok_or_else(|| {
                Error::new(Kind::Id, format!("ids name {id}, which row {row} does not hold in head {head}"))
            })?;
            let value =
                r.block.value(schema, slot).ok_or_else(|| Error::new(Kind::State, "this bank has no values"))?;
            Ok([r.block.key(schema, slot), value])
        };
        let kernels = self.shared.kernels;
        let jobs = n.div_ceil(JOB_QUERIES);
        let parts = work.for_size(n * k * (dim + value_dim)).map(jobs, |job, ticker| {
            let places = job * JOB_QUERIES..n.min((job + 1) * JOB_QUERIES);
            let mut gradients = vec![0.0; places.len() * dim];
            let (mut key, mut value) = (vec![0.0; dim], vec![0.0; value_dim]);
            let near = |query: usize| -> Result<Vec<[Vector; 2]>> {
                // Neighbourhoods may overlap: what stands there twice was weighed once.
                let ids = &given.ids[query * k..][..k];
                let places = firsts(ids.iter().copied()).into_iter();
                let entries = places.map(|place| entry(query * k + place)).collect::<Result<Vec<_>>>()?;
                entries.iter().flatten().for_each(Vector::prefetch);
                Ok(entries)
            };
            let mut next = near(places.start)?;
            for (at, gradient) in places.clone().zip(gradients.chunks_exact_mut(dim)) {
                ticker.tick()?;
                // The entries of the query after this one come near meanwhile.
                let more = if at + 1 < places.end { near(at + 1)? } else { Vec::new() };
                if !all_finite(queries.get(at)) {
                    gradient.fill(f32::NAN);
                }
                let grad = &given.grad[at * value_dim..][..value_dim];
                for [x, v] in std::mem::replace(&mut next, more) {
                    let x = x.floats(&mut key);
                    let (z, slope) = given.logit.with_slope((kernels.dot)(queries.get(at), x));
                    let weight = mnemex_kernels::softmax::exp(z - given.lse[at]);
                    // What weighs nothing does not matter, whatever it is: 0 times infinity would be NaN. Nor does
                    // anything in a softmax over nothing.
                    if weight == 0.0 || given.lse[at] == f32::NEG_INFINITY {
                        continue;
                    }
                    let of_weight = (kernels.dot)(grad, v.floats(&mut value)) - given.delta[at];
                    (kernels.add_scaled)(weight * of_weight * slope, x, gradient);
                }
            }
            Ok(gradients)
        })?;
        for (to, from) in out.chunks_mut(JOB_QUERIES * dim).zip(parts) {
            to.copy_from_slice(&from);
        }
        Ok(out)
    }
}
