//! Reads, of a bank's version.

use mnemex_core::attend::Attention;
use mnemex_core::backward::Given;
use mnemex_core::bias::Bias;
use mnemex_core::config::NonFinite;
use mnemex_core::gather::{Vectors as Gathered, Wanted};
use mnemex_core::predicate::Predicate;
use mnemex_core::query::{Bitmaps, Query};
use mnemex_core::reader::{Choosers, Reader};
use mnemex_core::search::Hits;
use mnemex_core::tally::Tally;
use mnemex_core::work::Work;
use mnemex_core::{Codec, Snapshot};
use mnemex_kernels::softmax::Logit;
use numpy::{PyArray1, PyArray2, PyArray3, PyArray4, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::arrays::{Flat, Vectors, array, rows, slice};
use crate::bank::{NativeBank, nonfinite_named};
use crate::call::run;
use crate::columns::{CellArray, Condition, cell_array, predicates};

/// A frozen version of a bank.
#[pyclass(frozen, module = "mnemex._native")]
pub(crate) struct NativeSnapshot(pub(crate) Snapshot);

/// Scores, ids, labels (if there are any) and bank rows.
type HitArrays<'py> = (
    Bound<'py, PyArray4<f32>>,
    Bound<'py, PyArray4<i64>>,
    Option<Bound<'py, PyArray4<i64>>>,
    Bound<'py, PyArray1<i64>>,
);

fn hit_arrays(py: Python<'_>, hits: Hits) -> PyResult<HitArrays<'_>> {
    let bank_rows = hits.rows.iter().map(|&row| row as i64).collect();
    Ok((
        array(py, hits.scores, hits.shape)?,
        array(py, hits.ids, hits.shape)?,
        hits.labels.map(|labels| array(py, labels, hits.shape)).transpose()?,
        array(py, bank_rows, [hits.rows.len()])?,
    ))
}

/// Vectors `[n, dim]`: float32, or float16 as its bits.
#[derive(IntoPyObject)]
pub(crate) enum VectorArray<'py> {
    F32(Bound<'py, PyArray2<f32>>),
    F16(Bound<'py, PyArray2<u16>>),
}

fn vector_array(py: Python<'_>, vectors: Gathered, n: usize, dim: usize) -> PyResult<VectorArray<'_>> {
    Ok(match vectors {
        Gathered::F32(x) => VectorArray::F32(array(py, x, [n, dim])?),
        Gathered::F16(x) => VectorArray::F16(array(py, x, [n, dim])?),
    })
}

#[pymethods]
impl NativeSnapshot {
    /// What a reader takes: scores, ids, labels (if any entry has one) and the bank row of each query row.
    #[pyo3(signature = (queries, reader, rows, before, allowed, predicates, nonfinite, threads))]
    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python call")]
    fn search<'py>(
        &self,
        py: Python<'py>,
        queries: Vectors,
        reader: ReaderNumbers,
        rows: Option<Flat<'py, i64>>,
        before: Option<Flat<'py, i64>>,
        allowed: Option<PyReadonlyArray2<'py, bool>>,
        predicates: Vec<Condition<'py>>,
        nonfinite: Option<&str>,
        threads: Option<usize>,
    ) -> PyResult<HitArrays<'py>> {
        let rows = self::rows(rows.as_ref())?;
        let predicates = self::predicates(&predicates)?;
        let seen = (slice(before.as_ref())?, allowed.as_ref(), predicates.as_slice());
        let query = query(&queries, rows.as_deref(), seen, nonfinite)?;
        let hits = run(py, threads, |work| self.0.search(&query, self::reader(reader), work))?;
        hit_arrays(py, hits)
    }

    /// What such a search costs beyond its first pass: entries that passed, canonical scores, and the seconds of all
    /// threads spent scanning and deciding.
    #[pyo3(signature = (queries, k, threads))]
    fn tally(&self, py: Python<'_>, queries: Vectors, k: usize, threads: usize) -> PyResult<(u64, u64, f64, f64)> {
        let query = Query::of(queries.view()?);
        let tally = Tally::default();
        run(py, Some(threads), |work| self.0.search(&query, k, &Work { tally: Some(&tally), ..*work }))?;
        let told = tally.told();
        Ok((told.passed, told.rescored, told.scanning.as_secs_f64(), told.deciding.as_secs_f64()))
    }

    /// Attention: out, lse and, if asked for, hits and mass.
    #[pyo3(signature = (queries, reader, rows, scale, softcap, bias, before, allowed, predicates, with_hits, nonfinite, threads))]
    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python call")]
    #[expect(clippy::type_complexity, reason = "a tuple that the facade names")]
    fn attend<'py>(
        &self,
        py: Python<'py>,
        queries: Vectors,
        reader: Option<ReaderNumbers>,
        rows: Option<Flat<'py, i64>>,
        scale: f32,
        softcap: Option<f32>,
        bias: Option<BiasArray<'py>>,
        before: Option<Flat<'py, i64>>,
        allowed: Option<PyReadonlyArray2<'py, bool>>,
        predicates: Vec<Condition<'py>>,
        with_hits: bool,
        nonfinite: Option<&str>,
        threads: Option<usize>,
    ) -> PyResult<(
        Bound<'py, PyArray4<f32>>,
        Bound<'py, PyArray3<f32>>,
        Option<(HitArrays<'py>, Bound<'py, PyArray4<f32>>)>,
    )> {
        let rows = self::rows(rows.as_ref())?;
        let predicates = self::predicates(&predicates)?;
        let seen = (slice(before.as_ref())?, allowed.as_ref(), predicates.as_slice());
        let query = query(&queries, rows.as_deref(), seen, nonfinite)?;
        let bias = match &bias {
            None => Bias::None,
            Some(BiasArray::Heads(numbers)) => Bias::Heads(numbers.as_slice()?),
            Some(BiasArray::Column(name)) => Bias::Column(name),
        };
        let attention = Attention { k: reader.map(self::reader), logit: Logit { scale, softcap }, bias, with_hits };
        let partial = run(py, threads, |work| self.0.attend(&query, &attention, work))?;
        let [r, h, t] = partial.shape;
        let hits = match partial.hits {
            Some((hits, mass)) => {
                let shape = hits.shape;
                Some((hit_arrays(py, hits)?, array(py, mass, shape)?))
            }
            None => None,
        };
        let out = array(py, partial.out, [r, h, t, self.0.config().value_dim()])?;
        Ok((out, array(py, partial.lse, [r, h, t])?, hits))
    }

    /// Gradient of queries through the entries that they read: see [`mnemex_core::backward`].
    #[pyo3(signature = (queries, rows, ids, grad, delta, lse, scale, softcap, threads))]
    #[expect(clippy::too_many_arguments, reason = "the arguments of the Python call")]
    fn query_gradient<'py>(
        &self,
        py: Python<'py>,
        queries: Vectors,
        rows: Flat<'py, i64>,
        ids: Flat<'py, i64>,
        grad: Flat<'py, f32>,
        delta: Flat<'py, f32>,
        lse: Flat<'py, f32>,
        scale: f32,
        softcap: Option<f32>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray4<f32>>> {
        let rows = self::rows(Some(&rows))?;
        let query = query(&queries, rows.as_deref(), (None, None, &[]), Some("keep"))?;
        let shape = query.queries.shape();
        let (grad, delta, lse) = (grad.as_slice()?, delta.as_slice()?, lse.as_slice()?);
        let given = Given { ids: ids.as_slice()?, grad, delta, lse, logit: Logit { scale, softcap } };
        array(py, run(py, threads, |work| self.0.query_gradient(&query, &given, work))?, shape)
    }

    /// Keys and values `[n, dim]` of n places.
    #[pyo3(signature = (rows, heads, ids, threads))]
    fn gather<'py>(
        &self,
        py: Python<'py>,
        rows: Flat<'py, i64>,
        heads: Flat<'py, i64>,
        ids: Flat<'py, i64>,
        threads: Option<usize>,
    ) -> PyResult<(VectorArray<'py>, Option<VectorArray<'py>>)> {
        let (rows, heads) =
            (self::rows(Some(&rows))?.unwrap_or_default(), self::rows(Some(&heads))?.unwrap_or_default());
        let ids = ids.as_slice()?;
        let wanted = Wanted { rows: &rows, heads: &heads, ids };
        let (keys, values) = run(py, threads, |work| self.0.gather(&wanted, work))?;
        let config = self.0.config();
        let keys = vector_array(py, keys, ids.len(), config.key_dim)?;
        let values = values.map(|values| vector_array(py, values, ids.len(), config.value_dim())).transpose()?;
        Ok((keys, values))
    }

    /// Tokens that the entries at n places stand for.
    #[pyo3(signature = (rows, heads, ids))]
    fn counts<'py>(
        &self,
        py: Python<'py>,
        rows: Flat<'py, i64>,
        heads: Flat<'py, i64>,
        ids: Flat<'py, i64>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let (rows, heads) =
            (self::rows(Some(&rows))?.unwrap_or_default(), self::rows(Some(&heads))?.unwrap_or_default());
        let wanted = Wanted { rows: &rows, heads: &heads, ids: ids.as_slice()? };
        let counts = run(py, Some(1), |_| self.0.counts(&wanted))?;
        Ok(PyArray1::from_vec(py, counts))
    }

    /// The logarithms of the tokens that the entries at n places weigh in a softmax.
    #[pyo3(signature = (rows, heads, ids))]
    fn log_weights<'py>(
        &self,
        py: Python<'py>,
        rows: Flat<'py, i64>,
        heads: Flat<'py, i64>,
        ids: Flat<'py, i64>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (rows, heads) =
            (self::rows(Some(&rows))?.unwrap_or_default(), self::rows(Some(&heads))?.unwrap_or_default());
        let wanted = Wanted { rows: &rows, heads: &heads, ids: ids.as_slice()? };
        let weights = run(py, Some(1), |_| self.0.log_weights(&wanted))?;
        Ok(PyArray1::from_vec(py, weights))
    }

    /// Whether the write policy merges tokens into entries, and counts them.
    #[getter]
    fn merges(&self) -> bool {
        self.0.config().write.merges()
    }

    /// The numbers of a column at n places.
    #[pyo3(signature = (name, rows, ids))]
    fn column<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        rows: Flat<'py, i64>,
        ids: Flat<'py, i64>,
    ) -> PyResult<CellArray<'py>> {
        let (rows, ids) = (self::rows(Some(&rows))?.unwrap_or_default(), ids.as_slice()?);
        let cells = run(py, Some(1), |_| self.0.column(name, &rows, ids))?;
        cell_array(py, cells)
    }

    /// Ids of the entries of each row that meet every condition.
    #[pyo3(signature = (allowed, predicates, rows, threads))]
    fn find<'py>(
        &self,
        py: Python<'py>,
        allowed: Option<PyReadonlyArray2<'py, bool>>,
        predicates: Vec<Condition<'py>>,
        rows: Option<Flat<'py, i64>>,
        threads: Option<usize>,
    ) -> PyResult<Vec<Bound<'py, PyArray1<i64>>>> {
        let rows = self::rows(rows.as_ref())?;
        let (predicates, allowed) = (self::predicates(&predicates)?, allowed.as_ref().map(bitmaps).transpose()?);
        let found = run(py, threads, |work| self.0.find(&predicates, allowed, rows.as_deref(), work))?;
        Ok(found.into_iter().map(|ids| PyArray1::from_vec(py, ids)).collect())
    }

    /// Names and types of the columns beside id, label and position.
    #[getter]
    fn columns(&self) -> Vec<(String, &'static str)> {
        self.0.config().columns.iter().map(|column| (column.name.clone(), column.dtype.name())).collect()
    }

    /// Live entries `[rows, heads]`.
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let lengths = self.0.lengths();
        let shape = [lengths.len(), self.0.config().heads];
        array(py, lengths.into_iter().flatten().map(|n| n as i64).collect(), shape)
    }

    /// An independent bank.
    fn copy(&self) -> NativeBank {
        NativeBank(self.0.copy())
    }

    /// Rows.
    #[getter]
    fn rows(&self) -> usize {
        self.0.version().rows.len()
    }

    /// Number of the version.
    #[getter]
    fn version(&self) -> u64 {
        self.0.version().number
    }

    /// Bytes of memory, each shared part counted once.
    #[getter]
    fn nbytes(&self, py: Python) -> usize {
        py.detach(|| self.0.nbytes())
    }

    /// Blocks, rows in them, dead rows of these; bytes of keys, of values, of everything; commits, evictions; touches and
    /// the mass that they told of.
    fn stats(&self, py: Python) -> (usize, usize, usize, usize, usize, usize, u64, u64, u64, f64) {
        let s = py.detach(|| self.0.stats());
        let (key, value) = (s.key_bytes, s.value_bytes);
        let (commits, evicted) = (s.counts.commits, s.counts.evicted);
        (s.blocks, s.block_rows, s.dead_rows, key, value, s.nbytes, commits, evicted, s.hits, s.mass)
    }

    /// Names of the codecs of keys and values; None until the first write decides.
    #[getter]
    fn codecs(&self) -> (Option<&'static str>, Option<&'static str>) {
        let schema = self.0.version().schema;
        let asked = self.0.config();
        let key = schema.map(|schema| schema.key.codec).or(asked.key_codec);
        let value = schema.and_then(|schema| schema.value).map(|layout| layout.codec).or(asked.value_codec);
        (key.map(Codec::name), value.map(Codec::name))
    }
}

/// The best so many, the least score, neighbours before and after; 0 of entries, 1 of pages that each query chooses, 2 of
/// pages that the queries of a lane choose together.
type ReaderNumbers = (usize, f32, usize, usize, u8);

fn reader((k, least, before, after, of): ReaderNumbers) -> Reader {
    let pages = match of {
        0 => None,
        1 => Some(Choosers::Each),
        _ => Some(Choosers::Together),
    };
    Reader { k, least, before, after, pages }
}

/// A number per query head, or the name of a column.
#[derive(FromPyObject)]
enum BiasArray<'py> {
    Heads(Flat<'py, f32>),
    Column(String),
}

fn bitmaps<'a>(array: &'a PyReadonlyArray2<'_, bool>) -> PyResult<Bitmaps<'a>> {
    let [rows, ids] = *array.shape() else { unreachable!("two dimensions") };
    Ok(Bitmaps { bits: array.as_slice()?, rows, ids })
}

/// What queries see: ids below, bitmaps by id, conditions.
type Seen<'a, 'py> = (Option<&'a [i64]>, Option<&'a PyReadonlyArray2<'py, bool>>, &'a [Predicate<'a>]);

fn query<'a>(
    queries: &'a Vectors,
    rows: Option<&'a [usize]>,
    (before, allowed, predicates): Seen<'a, '_>,
    nonfinite: Option<&str>,
) -> PyResult<Query<'a>> {
    let nonfinite: Option<NonFinite> = nonfinite.map(nonfinite_named).transpose()?;
    let allowed = allowed.map(bitmaps).transpose()?;
    Ok(Query { queries: queries.view()?, rows, before, allowed, predicates, nonfinite })
}
