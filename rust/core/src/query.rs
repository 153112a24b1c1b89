//! Queries, checked and laid out for the kernels, and the lanes they go to.

use std::sync::Arc;

use mnemex_kernels::canonical::Metric;
use mnemex_kernels::tile::{pack, packed_len};

use crate::bank::Snapshot;
use crate::block::Schema;
use crate::codec::Codec;
use crate::config::NonFinite;
use crate::error::{Error, Kind, Result, ensure};
use crate::filter::Filter;
use crate::input::{Input, VectorReader, all_finite, check_shape, non_finite};
use crate::lane::Lane;
use crate::layout::Vector;
use crate::list::Ref;
use crate::plane::Plane;
use crate::predicate::Predicate;
use crate::reservoir::Best;
use crate::work::Work;

/// Booleans by id, row after row.
#[derive(Clone, Copy)]
pub struct Bitmaps<'a> {
    /// `[rows * ids]`
    pub bits: &'a [bool],
    /// One for all query rows, or one for each.
    pub rows: usize,
    /// Ids per row.
    pub ids: usize,
}

/// What every read takes.
pub struct Query<'a> {
    /// `[rows, query_heads, T, key_dim]`
    pub queries: Input<'a>,
    /// Bank row of each query row; None: all, or row 0 for all if the bank has one row.
    pub rows: Option<&'a [usize]>,
    /// `[rows * T]`: a query sees ids below.
    pub before: Option<&'a [i64]>,
    /// Bitmaps by id, one for all query rows or one per row: a query sees ids that are true there. Ids beyond are false.
    pub allowed: Option<Bitmaps<'a>>,
    /// What must hold of an entry for it to be seen: all of it.
    pub predicates: &'a [Predicate<'a>],
    /// None: the bank's.
    pub nonfinite: Option<NonFinite>,
}

impl<'a> Query<'a> {
    /// Queries that see everything, of every row.
    pub fn of(queries: Input<'a>) -> Query<'a> {
        Query { queries, rows: None, before: None, allowed: None, predicates: &[], nonfinite: None }
    }
}

/// Queries in float32, `[rows, query_heads, T, key_dim]`.
pub(crate) struct Queries<'a> {
    pub(crate) rows: Vec<usize>,
    pub(crate) heads: usize,
    pub(crate) tokens: usize,
    pub(crate) dim: usize,
    /// What holds these numbers bit for bit.
    pub(crate) codec: Codec,
    /// Query heads per key/value head.
    pub(crate) group: usize,
    before: Option<&'a [i64]>,
    filter: Filter<'a>,
    data: Vec<f32>,
}

/// A block, and the rows of it that a query row sees; at least one.
#[derive(Clone, Copy)]
pub(crate) struct Visible<'v> {
    pub(crate) r: &'v Ref,
    pub(crate) rows: u64,
}

/// A run of queries of one query row that read one lane.
pub(crate) struct Unit<'v> {
    /// Query row.
    pub(crate) row: usize,
    /// Number of the first query, counted over `[rows, query_heads, T]`.
    pub(crate) first: usize,
    /// Queries.
    pub(crate) n: usize,
    /// What may hold their answers.
    pub(crate) refs: Arc<Vec<Visible<'v>>>,
}

impl<'v> Unit<'v> {
    /// A hit's value, if there are values.
    pub(crate) fn value(&self, schema: &Schema, hit: &Best) -> Option<Vector<'v>> {
        self.refs[(hit.place / 64) as usize].r.block.value(schema, (hit.place % 64) as usize)
    }
}

impl<'a> Queries<'a> {
    pub(crate) fn check(snapshot: &Snapshot, query: &Query<'a>) -> Result<Queries<'a>> {
        let config = snapshot.config();
        let n_bank_rows = snapshot.version.rows.len();
        let [n_rows, heads, tokens, dim] = query.queries.shape();
        check_shape("queries", query.queries.shape(), [None, None, None, Some(config.key_dim)])?;
        ensure(heads > 0 && heads.is_multiple_of(config.heads), Kind::Shape, || {
            format!("queries have {heads} heads; expected a multiple of the bank's {} key/value heads", config.heads)
        })?;
        let rows = match query.rows {
            Some(rows) => rows.to_vec(),
            None if n_bank_rows == 1 => vec![0; n_rows],
            None => (0..n_bank_rows).collect(),
        };
        ensure(rows.len() == n_rows, Kind::Shape, || {
            let given = if query.rows.is_some() { "rows name" } else { "the bank has" };
            format!("queries have {n_rows} rows and {given} {}: give one bank row per query row in rows=", rows.len())
        })?;
        if let Some(row) = rows.iter().find(|&&row| row >= n_bank_rows) {
            return Err(Error::new(Kind::Row, format!("rows name row {row}; the bank has {n_bank_rows} rows")));
        }

        let filter = Filter::check(&config.columns, query.predicates, query.allowed, n_rows)?;
        if let Some(before) = query.before {
            ensure(before.len() == n_rows * tokens, Kind::Shape, || {
                format!("before has {} numbers; expected [rows, T] = [{n_rows}, {tokens}]", before.len())
            })?;
        }

        let mut reader = VectorReader::new(query.queries);
        let mut data = Vec::with_capacity(n_rows * heads * tokens * dim);
        let raise = query.nonfinite.unwrap_or(config.nonfinite) == NonFinite::Raise;
        for row in 0..n_rows {
            for head in 0..heads {
                for token in 0..tokens {
                    let q = reader.floats([row, head, token]);
                    if raise && !all_finite(q) {
                        return Err(non_finite("queries", row, head, token));
                    }
                    data.extend_from_slice(q);
                }
            }
        }
        let (codec, group) = (query.queries.codec(), heads / config.heads);
        Ok(Queries { rows, heads, tokens, dim, codec, group, before: query.before, filter, data })
    }

    /// Queries in all.
    pub(crate) fn len(&self) -> usize {
        self.rows.len() * self.heads * self.tokens
    }

    /// Multiplications of scoring every entry.
    pub(crate) fn operations(&self, snapshot: &Snapshot) -> usize {
        let per_entry = self.group * self.tokens * self.dim;
        let entries = self.rows.iter().flat_map(|&row| snapshot.version.rows[row].lanes.iter().map(Lane::len));
        entries.sum::<usize>().saturating_mul(per_entry)
    }

    /// One query.
    pub(crate) fn get(&self, at: usize) -> &[f32] {
        &self.data[at * self.dim..][..self.dim]
    }

    /// The smallest id that the query may not see.
    pub(crate) fn before(&self, at: usize) -> i64 {
        let row = at / (self.heads * self.tokens);
        self.before.map_or(i64::MAX, |before| before[row * self.tokens + at % self.tokens])
    }

    /// Whether no condition hides anything.
    pub(crate) fn shows_all(&self) -> bool {
        self.filter.shows_all()
    }

    /// The key/value head that a unit reads.
    pub(crate) fn head(&self, unit: &Unit) -> usize {
        unit.first / self.tokens % self.heads / self.group
    }

    /// Units of at most `most` queries, with what they see of the lists that the index wants scanned.
    pub(crate) fn units<'v>(
        &self,
        snapshot: &'v Snapshot,
        schema: &Schema,
        most: usize,
        work: &Work,
    ) -> Result<Vec<Unit<'v>>> {
        let per_lane = self.group * self.tokens;
        let masks = self.filter.masks(snapshot, &self.rows, work)?;
        let mut units = Vec::new();
        for (row, &bank_row) in self.rows.iter().enumerate() {
            for (head, lane) in snapshot.version.rows[bank_row].lanes.iter().enumerate() {
                let lists = visible(lane, masks.as_ref().map(|masks| masks[row][head].as_slice()));
                let everything = Arc::new(lists.concat());
                let base = (row * self.heads + head * self.group) * self.tokens;
                for first in (0..per_lane).step_by(most) {
                    let n = most.min(per_lane - first);
                    let queries = &self.data[(base + first) * self.dim..][..n * self.dim];
                    let refs = match snapshot.shared.index.probe(schema, lane, queries) {
                        None => Arc::clone(&everything),
                        Some(probed) => Arc::new(probed.iter().flat_map(|&list| &lists[list]).copied().collect()),
                    };
                    units.push(Unit { row, first: base + first, n, refs });
                }
            }
        }
        Ok(units)
    }
}

/// What a lane shows to a call that hides nothing.
pub(crate) fn all_visible(lane: &Lane) -> Vec<Visible<'_>> {
    visible(lane, None).concat()
}

/// What a lane's lists show under masks of their references, in order; None: whatever lives.
fn visible<'v>(lane: &'v Lane, masks: Option<&[u64]>) -> Vec<Vec<Visible<'v>>> {
    let mut masks = masks.map(|masks| masks.iter());
    let mut of = |r: &'v Ref| {
        let rows = masks.as_mut().map_or(Some(&r.live), Iterator::next).copied().unwrap_or(0);
        Visible { r, rows }
    };
    lane.lists().iter().map(|list| list.refs().map(&mut of).filter(|seen| seen.rows != 0).collect()).collect()
}

/// The queries of one unit as kernels take them.
#[derive(Default)]
pub(crate) struct Packed {
    pub(crate) panels: Plane,
    /// Norm of each query.
    pub(crate) norms: Vec<f64>,
    pub(crate) before: Vec<i64>,
    /// Queries that hold NaN or infinity; packed as zeros where `blank_bad` asked for it.
    pub(crate) bad: Vec<bool>,
}

impl Packed {
    pub(crate) fn new(snapshot: &Snapshot, queries: &Queries, unit: &Unit, blank_bad: bool) -> Result<Packed> {
        let metric = snapshot.config().metric;
        let mut packed = Packed {
            panels: Plane::zeroed(packed_len(unit.n, queries.dim) * size_of::<f32>())?,
            norms: Vec::with_capacity(unit.n),
            before: Vec::with_capacity(unit.n),
            bad: Vec::with_capacity(unit.n),
        };
        let mut unit_length = vec![0.0; queries.dim];
        for at in 0..unit.n {
            let q = queries.get(unit.first + at);
            let norm = (snapshot.shared.kernels.square_norm)(q).sqrt();
            let bad = !all_finite(q);
            if !(bad && blank_bad) {
                if metric == Metric::Cos && norm > 0.0 {
                    unit_length.iter_mut().zip(q).for_each(|(u, &q)| *u = (f64::from(q) / norm) as f32);
                    pack(&unit_length, at, packed.panels.floats_mut());
                } else {
                    pack(q, at, packed.panels.floats_mut());
                }
            }
            packed.norms.push(norm);
            packed.before.push(queries.before(unit.first + at));
            packed.bad.push(bad);
        }
        Ok(packed)
    }
}
