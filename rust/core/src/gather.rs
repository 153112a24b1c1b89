//! The stored vectors of given ids.

use crate::bank::Snapshot;
use crate::codec::Codec;
use crate::error::{Error, Kind, Result, ensure};
use crate::lane::Lane;
use crate::layout::{Layout, Vector};
use crate::work::Work;

/// Vectors as `gather` returns them: float16 banks give their bits, all others float32.
#[derive(Clone, Debug, PartialEq)]
pub enum Vectors {
    /// float32
    F32(Vec<f32>),
    /// float16 bits
    F16(Vec<u16>),
}

/// Which entries: one per place of the answer, in order.
pub struct Wanted<'a> {
    /// Bank row of each place.
    pub rows: &'a [usize],
    /// Head of each place.
    pub heads: &'a [usize],
    /// Id of each place; -1 gives zeros.
    pub ids: &'a [i64],
}

/// Places gathered by one job.
const JOB_PLACES: usize = 4096;

impl Snapshot {
    /// Keys and, where the bank has them, values.
    ///
    /// # Errors
    /// When rows, heads and ids are not equally many, a row, head or id is not there, or the caller interrupts.
    pub fn gather(&self, wanted: &Wanted, work: &Work) -> Result<(Vectors, Option<Vectors>)> {
        let config = self.config();
        let n = wanted.ids.len();
        ensure(wanted.rows.len() == n && wanted.heads.len() == n, Kind::Shape, || {
            format!("{n} ids come with {} rows and {} heads: give one of each", wanted.rows.len(), wanted.heads.len())
        })?;
        let n_rows = self.version.rows.len();
        if let Some(row) = wanted.rows.iter().find(|&&row| row >= n_rows) {
            return Err(Error::new(Kind::Row, format!("rows name row {row}; the bank has {n_rows} rows")));
        }
        if let Some(head) = wanted.heads.iter().find(|&&head| head >= config.heads) {
            let message = format!("heads name head {head}; the bank has {} heads", config.heads);
            return Err(Error::new(Kind::Argument, message));
        }
        let schema = match &self.version.schema {
            Some(schema) => *schema,
            None => crate::block::Schema::of(config, Codec::F32, Codec::F32),
        };
        let jobs = n.div_ceil(JOB_PLACES);
        let parts = work.for_size(n * config.key_dim).map(jobs, |job, ticker| {
            let places = job * JOB_PLACES..n.min((job + 1) * JOB_PLACES);
            let mut keys = Gathered::new(schema.key, places.len());
            let value = schema.value.or(schema.key_is_value.then_some(schema.key));
            let mut values = value.map(|layout| Gathered::new(layout, places.len()));
            for place in places {
                ticker.tick()?;
                let (row, head, id) = (wanted.rows[place], wanted.heads[place], wanted.ids[place]);
                if id == -1 {
                    keys.skip();
                    values.as_mut().map(Gathered::skip);
                    continue;
                }
                let lane = &self.version.rows[row].lanes[head];
                let (r, slot) = lane.locate(id).ok_or_else(|| {
                    Error::new(
                        Kind::Id,
                        format!(
                            "ids name {id}, which row {row} does not hold: it was deleted or evicted, or never written"
                        ),
                    )
                })?;
                keys.push(r.block.key(&schema, slot));
                if let (Some(values), Some(value)) = (&mut values, r.block.value(&schema, slot)) {
                    values.push(value);
                }
            }
            Ok((keys, values))
        })?;
        let mut keys = Gathered::new(schema.key, n);
        let value = schema.value.or(schema.key_is_value.then_some(schema.key));
        let mut values = value.map(|layout| Gathered::new(layout, n));
        for (more_keys, more_values) in parts {
            keys.append(more_keys);
            if let (Some(values), Some(more)) = (&mut values, more_values) {
                values.append(more);
            }
        }
        Ok((keys.vectors, values.map(|values| values.vectors)))
    }
}

impl Snapshot {
    /// Tokens that entries stand for, one number for each place: 0 at padding and in a bank that merges nothing.
    ///
    /// # Errors
    /// When rows, heads and ids are not equally many, or a row or head is not there.
    pub fn counts(&self, wanted: &Wanted) -> Result<Vec<i64>> {
        self.of_lanes(wanted, |lane, id| i64::try_from(lane.used(id).count).unwrap_or(i64::MAX))
    }

    /// The logarithms of the tokens that entries weigh in a softmax: what a bias of that name adds. 0 at padding.
    ///
    /// # Errors
    /// As for [`Snapshot::counts`].
    pub fn log_weights(&self, wanted: &Wanted) -> Result<Vec<f32>> {
        self.of_lanes(wanted, |lane, id| self.config().write.log_weight(lane, id))
    }

    fn of_lanes<T: Default>(&self, wanted: &Wanted, of: impl Fn(&Lane, i64) -> T) -> Result<Vec<T>> {
        let n = wanted.ids.len();
        let lane = |at: usize| self.version.rows.get(wanted.rows[at])?.lanes().get(wanted.heads[at]);
        let fits = wanted.rows.len() == n && wanted.heads.len() == n && (0..n).all(|at| lane(at).is_some());
        ensure(fits, Kind::Shape, || format!("{n} ids do not come with a row and a head each that are there"))?;
        let each = |at: usize| match lane(at) {
            Some(lane) if wanted.ids[at] >= 0 => of(lane, wanted.ids[at]),
            _ => T::default(),
        };
        Ok((0..n).map(each).collect())
    }
}

struct Gathered {
    layout: Layout,
    vectors: Vectors,
}

impl Gathered {
    fn new(layout: Layout, n: usize) -> Gathered {
        let vectors = match layout.codec {
            Codec::F16 => Vectors::F16(Vec::with_capacity(n * layout.dim)),
            _ => Vectors::F32(Vec::with_capacity(n * layout.dim)),
        };
        Gathered { layout, vectors }
    }

    fn skip(&mut self) {
        match &mut self.vectors {
            Vectors::F32(x) => x.resize(x.len() + self.layout.dim, 0.0),
            Vectors::F16(x) => x.resize(x.len() + self.layout.dim, 0),
        }
    }

    fn push(&mut self, vector: Vector) {
        self.skip();
        let dim = self.layout.dim;
        match &mut self.vectors {
            Vectors::F32(x) => {
                let at = x.len() - dim;
                vector.decode(&mut x[at..]);
            }
            Vectors::F16(x) => {
                let at = x.len() - dim;
                vector.copy_to(bytemuck::cast_slice_mut(&mut x[at..]));
            }
        }
    }

    fn append(&mut self, more: Gathered) {
        match (&mut self.vectors, more.vectors) {
            (Vectors::F32(x), Vectors::F32(mut more)) => x.append(&mut more),
            (Vectors::F16(x), Vectors::F16(mut more)) => x.append(&mut more),
            _ => unreachable!("parts of one gather have one type"),
        }
    }
}
