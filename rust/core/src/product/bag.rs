//! Values of slots, weighed and summed, and the way back: a gradient for each weight, and for the rows that were read.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mnemex_kernels::Kernels;
use mnemex_kernels::product::Table;
use mnemex_kernels::single::Format;

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

    /// The rows that are read, and where from.
    ///
    /// # Errors
    /// As [`Bag::sums`], or when there are too many.
    pub fn reads(&self) -> Result<Reads> {
        self.check()?;
        ensure(self.ids.len() < 1 << 32, Kind::Argument, || "more than 2^32 rows are read: take fewer".into())?;
        let read = self.ids.iter().enumerate().filter(|(_, id)| **id >= 0);
        let mut read: Vec<u64> = read.map(|(at, &id)| (id as u64) << 32 | at as u64).collect();
        read.sort_unstable();
        let mut starts: Vec<usize> =
            (0..read.len()).filter(|&at| at == 0 || row(read[at - 1]) != row(read[at])).collect();
        let rows = starts.iter().map(|&at| row(read[at])).collect();
        starts.push(read.len());
        Ok(Reads { rows, read, starts })
    }

    /// The way back from `grad`, the gradient of the sums: that of the weights, `[T, m]`, and into `values` those of the
    /// rows that were read, `[rows, dim]`. Row by row, and in the order of the outputs within one: the same sums whatever
    /// the number of threads.
    ///
    /// # Errors
    /// When shapes do not fit, or the caller interrupts.
    pub fn gradient(
        &self,
        kernels: &'static Kernels,
        reads: &Reads,
        grad: &[f32],
        values: &mut [f32],
        work: &Work,
    ) -> Result<Vec<f32>> {
        self.check()?;
        let (dim, each) = (self.values.dim, self.each());
        ensure(grad.len() == self.n * dim, Kind::Shape, || {
            format!("a gradient of {} numbers; expected {} x {dim}", grad.len(), self.n)
        })?;
        ensure(values.len() == reads.rows.len() * dim && reads.of(self), Kind::Shape, || {
            format!("room for {} numbers; expected {} x {dim}", values.len(), reads.rows.len())
        })?;
        let work = work.for_size(self.ids.len().saturating_mul(dim));
        let mut weights = filled(0.0, self.ids.len())?;
        let parts =
            |numbers, each| <[f32]>::chunks_mut(numbers, usize::max(each, 1)).map(Mutex::new).collect::<Vec<_>>();
        let (of_weights, of_values) = (parts(&mut weights, JOB * each), parts(values, JOB * dim));
        let table = Table { bytes: bytemuck::cast_slice(grad), format: Format::F32, dim };
        work.map(of_weights.len() + of_values.len(), |job, ticker| {
            ticker.tick()?;
            match of_weights.get(job) {
                Some(out) => self.weights(kernels, grad, job, &mut locked(out)),
                None => {
                    let job = job - of_weights.len();
                    self.rows(kernels, reads, table, job, &mut locked(&of_values[job]));
                }
            }
            Ok(())
        })?;
        Ok(weights)
    }

    /// The gradients of the weights of some outputs.
    fn weights(&self, kernels: &Kernels, grad: &[f32], job: usize, out: &mut [f32]) {
        let (dim, each) = (self.values.dim, self.each());
        let (mut rows, mut places, mut products) =
            (Vec::with_capacity(each), Vec::with_capacity(each), vec![0.0; each]);
        for (at, out) in of_job(job, self.n).zip(out.chunks_exact_mut(each)) {
            rows.clear();
            places.clear();
            for (place, &id) in self.ids[at * each..][..each].iter().enumerate() {
                if id >= 0 {
                    rows.push(id as u32);
                    places.push(place);
                }
            }
            let products = &mut products[..rows.len()];
            (kernels.row_products)(self.values, &rows, &grad[at * dim..][..dim], products);
            places.iter().zip(products).for_each(|(&place, &mut product)| out[place] = product);
        }
    }

    /// The gradients of some rows, from those of the outputs that read them.
    fn rows(&self, kernels: &Kernels, reads: &Reads, grad: Table, job: usize, out: &mut [f32]) {
        let (mut outputs, mut weights) = (Vec::new(), Vec::new());
        for (row, out) in of_job(job, reads.rows.len()).zip(out.chunks_exact_mut(grad.dim)) {
            outputs.clear();
            weights.clear();
            for &read in &reads.read[reads.starts[row]..reads.starts[row + 1]] {
                let at = (read & u64::from(u32::MAX)) as usize;
                outputs.push((at / self.each()) as u32);
                weights.push(self.weights[at]);
            }
            out.fill(0.0);
            (kernels.bag)(grad, &outputs, &weights, out);
        }
    }
}

/// Which rows are read, and by which outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Reads {
    /// The rows, ascending.
    pub rows: Vec<i64>,
    /// The row and the place among the ids of each read, in order.
    read: Vec<u64>,
    /// Where those of each row start, and the end.
    starts: Vec<usize>,
}

impl Reads {
    /// Whether they are those of a bag, as far as lengths say.
    fn of(&self, bag: &Bag) -> bool {
        self.read.iter().all(|&read| bag.ids.get((read & u64::from(u32::MAX)) as usize) == Some(&row(read)))
    }
}

fn row(read: u64) -> i64 {
    (read >> 32) as i64
}

fn locked<'a, 'b>(part: &'a Mutex<&'b mut [f32]>) -> MutexGuard<'a, &'b mut [f32]> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of_job(job: usize, n: usize) -> Range<usize> {
    job * JOB..n.min((job + 1) * JOB)
}
