//! Values of slots, weighed and summed, and the way back: a gradient for each weight, and for the rows that were read.

use std::ops::Range;

use mnemex_kernels::Kernels;
use mnemex_kernels::product::Table;

use crate::codec::Codec;
use crate::error::{Error, Kind, Result, ensure, filled};
use crate::work::Work;

/// Rows of a table of values, and what each weighs, for each of some outputs.
#[derive(Clone, Copy)]
pub struct Bag<'a> {
    /// The values, `[n, dim]`.
    pub values: Table<'a>,
    /// `[T, m]`; -1 adds nothing.
    pub ids: &'a [i64],
    /// `[T, m]`
    pub weights: &'a [f32],
    /// Outputs, T.
    pub n: usize,
}

/// What [`Bag::gradient`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct BagGradient {
    /// Of the weights, `[T, m]`.
    pub weights: Vec<f32>,
    /// The rows that were read, ascending.
    pub rows: Vec<i64>,
    /// The gradient of each of them, `[rows, dim]`.
    pub values: Vec<f32>,
}

/// Outputs, or rows, of one job.
const JOB: usize = 32;

impl Bag<'_> {
    /// Rows of each output.
    fn each(&self) -> usize {
        self.ids.len().checked_div(self.n).unwrap_or(0)
    }

    fn check(&self) -> Result<()> {
        ensure(self.ids.len() == self.weights.len() && self.each() * self.n == self.ids.len(), Kind::Shape, || {
            format!("{} ids and {} weights for {} outputs", self.ids.len(), self.weights.len(), self.n)
        })?;
        let rows = self.values.len() as i64;
        ensure(self.values.dim > 0 && rows < 1 << 31, Kind::Shape, || {
            format!("a table of {rows} rows of {}: expected fewer than 2^31, not empty", self.values.dim)
        })?;
        match self.ids.iter().find(|&&id| id < -1 || id >= rows) {
            Some(id) => Err(Error::new(Kind::Id, format!("ids name row {id} of a table of {rows}"))),
            None => Ok(()),
        }
    }

    /// Sums of weighted rows, `[T, dim]`: float32, in the order of the ids, whatever the number of threads.
    ///
    /// # Errors
    /// When shapes do not fit, a row is not there, or the caller interrupts.
    pub fn sums(&self, kernels: &'static Kernels, work: &Work) -> Result<Vec<f32>> {
        self.check()?;
        let (dim, each) = (self.values.dim, self.each());
        let mut out = filled(0.0, self.n * dim)?;
        let work = work.for_size(self.ids.len().saturating_mul(dim));
        let parts = work.map(self.n.div_ceil(JOB), |job, ticker| {
            let outputs = of_job(job, self.n);
            let mut sums = vec![0.0; outputs.len() * dim];
            let (mut rows, mut weights) = (Vec::with_capacity(each), Vec::with_capacity(each));
            for (at, out) in outputs.zip(sums.chunks_exact_mut(dim)) {
                ticker.tick()?;
                rows.clear();
                weights.clear();
                for (&id, &weight) in self.ids[at * each..][..each].iter().zip(&self.weights[at * each..]) {
                    if id >= 0 {
                        rows.push(id as u32);
                        weights.push(weight);
                    }
                }
                (kernels.bag)(self.values, &rows, &weights, out);
            }
            Ok(sums)
        })?;
        for (out, part) in out.chunks_mut((JOB * dim).max(1)).zip(parts) {
            out.copy_from_slice(&part);
        }
        Ok(out)
    }

    /// The way back from `grad`, the gradient of the sums.
    ///
    /// # Errors
    /// As [`Bag::sums`].
    pub fn gradient(&self, kernels: &'static Kernels, grad: &[f32], work: &Work) -> Result<BagGradient> {
        self.check()?;
        let (dim, each) = (self.values.dim, self.each());
        ensure(grad.len() == self.n * dim, Kind::Shape, || {
            format!("a gradient of {} numbers; expected {} x {dim}", grad.len(), self.n)
        })?;
        ensure(self.ids.len() < 1 << 32, Kind::Argument, || "more than 2^32 rows are read: take fewer".into())?;
        let work = work.for_size(self.ids.len().saturating_mul(dim));
        let codec = match self.values.row_bytes() / dim {
            4 => Codec::F32,
            _ if self.values.format == mnemex_kernels::single::Format::F16 => Codec::F16,
            _ => Codec::Bf16,
        };
        let weights = work.map(self.n.div_ceil(JOB), |job, ticker| {
            let outputs = of_job(job, self.n);
            let mut weights = vec![0.0; outputs.len() * each];
            let mut wide = vec![0.0; dim];
            for (at, out) in outputs.zip(weights.chunks_exact_mut(each.max(1))) {
                ticker.tick()?;
                let ids = &self.ids[at * each..][..each];
                for (e, (&id, out)) in ids.iter().zip(out).enumerate() {
                    if let Some(&next) = ids.get(e + AHEAD).filter(|&&next| next >= 0) {
                        mnemex_kernels::prefetch::prefetch(self.values.row(next as usize));
                    }
                    if id >= 0 {
                        codec.decode(self.values.row(id as usize), &mut wide);
                        *out = (kernels.dot)(&grad[at * dim..][..dim], &wide);
                    }
                }
            }
            Ok(weights)
        })?;

        // Row by row, and in the order of the outputs within one: the same sums whatever the number of threads.
        let read = self.ids.iter().enumerate().filter(|(_, id)| **id >= 0);
        let mut read: Vec<u64> = read.map(|(at, &id)| (id as u64) << 32 | at as u64).collect();
        read.sort_unstable();
        let mut starts: Vec<usize> =
            (0..read.len()).filter(|&at| at == 0 || read[at - 1] >> 32 != read[at] >> 32).collect();
        let rows: Vec<i64> = starts.iter().map(|&at| (read[at] >> 32) as i64).collect();
        starts.push(read.len());
        let mut values = filled(0.0, rows.len() * dim)?;
        let parts = values.chunks_mut((JOB * dim).max(1)).map(std::sync::Mutex::new).collect::<Vec<_>>();
        work.map(parts.len(), |job, ticker| {
            ticker.tick()?;
            let mut out = parts[job].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (row, out) in of_job(job, rows.len()).zip(out.chunks_exact_mut(dim)) {
                for &read in &read[starts[row]..starts[row + 1]] {
                    let at = (read & u64::from(u32::MAX)) as usize;
                    (kernels.add_scaled)(self.weights[at], &grad[at / each * dim..][..dim], out);
                }
            }
            Ok(())
        })?;
        drop(parts);
        Ok(BagGradient { weights: weights.concat(), rows, values })
    }
}

/// Rows that are asked for ahead: they lie anywhere.
const AHEAD: usize = 12;

fn of_job(job: usize, n: usize) -> Range<usize> {
    job * JOB..n.min((job + 1) * JOB)
}
