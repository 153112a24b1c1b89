//! Product keys in bytes: half scores with proven bounds, and from these the few slots that can be among the best.
//!
//! For processors that multiply bytes several times faster than float32. Half keys are rounded to the codes of
//! [`crate::codes`], queries as [`crate::many`] rounds them. Lanes are keys, so all scores of one query lie side by side.
//!
//! What is said of a query. Let x(i) be the exact score of row i of a half. The first pass keeps a ceiling c(i) >= x(i),
//! and for each of 64 groups of rows the largest floor f(i) <= x(i), both but for a constant that the caller knows. Of each
//! half the sixteen best groups are taken: the k-th largest of their sums is a score that k different slots reach, so a row
//! can matter only if its ceiling and the largest ceiling of the other half together reach that. These rows, some dozens,
//! are scored exactly, and of their pairs those are left whose exact score reaches it: about k, whatever k rows of either
//! half would be.

/// Rows of a block of codes.
pub use crate::codes::ROWS;

/// Groups of rows whose largest floors are kept: row r is in group r modulo this.
pub const GROUPS: usize = ROWS;

/// Of each half so many groups are paired.
pub const BEST: usize = 16;

/// Most rows of a half whose exact scores are paired.
pub const MOST_ROWS: usize = 256;

/// The kernels.
#[derive(Clone, Copy)]
pub struct Halves {
    /// Codes of half keys that stand one after the other.
    pub code: fn(keys: &[f32], share: f32, out: CodesMut),
    /// The codes of a query's half; `out` holds [`crate::codes::padded`] bytes.
    pub code_query: fn(query: &[f32], out: &mut [i8]) -> CodedQuery,
    /// Ceilings of all rows, and the largest floor of each group, of some queries.
    pub scores: fn(keys: CodedHalf, queries: QueryCodes, out: Scores),
    /// A sum of scores that `k` pairs of rows reach, and the largest ceiling of each half.
    pub reached: fn(halves: [Scored; 2], pairs: &Pairs, k: usize) -> Reached,
    /// The rows whose ceiling is not below a threshold, ascending, in place of what is in `out`.
    pub rows: fn(ceilings: &[f32], threshold: f32, out: &mut Vec<u32>),
    /// The pairs of exact half scores whose sum, rounded once, is `least` or more.
    pub sums: fn(halves: [&[f64]; 2], least: f32, out: &mut Sums),
    /// The best `k` of some sums, those equal to the last of them, and perhaps a few more, best first; none is NaN.
    pub order: fn(sums: &mut Sums, k: usize),
}

/// Half keys of a head in codes: blocks of [`ROWS`] rows, each as [`crate::codes::Codes::bytes`] has them.
#[derive(Clone, Copy)]
pub struct CodedHalf<'a> {
    /// The codes.
    pub bytes: &'a [u8],
    /// The factor of each row; 0 behind the last one.
    pub scale: &'a [f32],
    /// The slack of each row: the norm of what it loses and `share` times its own. Infinite where it is not finite, and
    /// behind the last row.
    pub slack: &'a [f32],
    /// Rows.
    pub n: usize,
    /// Numbers of a row.
    pub dim: usize,
}

/// Where codes are written, as [`CodedHalf`] has them.
pub struct CodesMut<'a> {
    /// The codes.
    pub bytes: &'a mut [u8],
    /// The factors.
    pub scale: &'a mut [f32],
    /// The slacks.
    pub slack: &'a mut [f32],
    /// Sixteen rows of [`crate::many::row_bytes`], on the way.
    pub rows: &'a mut [u8],
    /// Numbers of a row.
    pub dim: usize,
}

/// What the half of a query is beside its codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodedQuery {
    /// What its codes are multiplied by; 0 where nothing can be said.
    pub factor: f32,
    /// At least the norm of what it loses.
    pub lost: f32,
    /// At least its norm; NaN or infinite where it is not finite, or too long.
    pub norm: f32,
    /// What sums of products with stored codes are too large by.
    pub offset: i32,
}

/// Queries in codes.
#[derive(Clone, Copy)]
pub struct QueryCodes<'a> {
    /// Query by query, each padded with zeros to whole quads.
    pub weights: &'a [i8],
    /// [`CodedQuery::offset`] of each.
    pub offsets: &'a [i32],
    /// What the slack of a row is multiplied by, in scores divided by the query's factor: finite and above 0.
    pub slacks: &'a [f32],
}

/// Where scores of some queries are written, all divided by the queries' factors.
pub struct Scores<'a> {
    /// Ceilings: `[queries, n]`, n rounded up to whole blocks.
    pub ceilings: &'a mut [f32],
    /// The largest floors: `[queries, GROUPS]`; -inf where a group has no rows.
    pub floors: &'a mut [f32],
}

/// The scores of one query with one half.
#[derive(Clone, Copy)]
pub struct Scored<'a> {
    /// Of all rows.
    pub ceilings: &'a [f32],
    /// Of the groups.
    pub floors: &'a [f32],
    /// The query's factor.
    pub factor: f32,
}

/// The pairs of best groups among which the best `k` sums are looked for: (i, j), from 0, with (i + 1) (j + 1) <= k.
pub struct Pairs {
    /// i and j of each, padded to whole vectors.
    pub(crate) at: [Vec<i32>; 2],
    /// How many there are.
    pub(crate) n: usize,
    /// For each i the least j with (i + 1) (j + 1) >= k.
    pub(crate) partners: [i32; BEST],
}

impl Pairs {
    /// For a `k`.
    pub fn new(k: usize) -> Pairs {
        let pairs = || (0..BEST as i32).flat_map(|i| (0..BEST as i32).map(move |j| (i, j)));
        let able = || pairs().filter(|(i, j)| (i + 1) as usize * (j + 1) as usize <= k);
        let (mut first, mut second): (Vec<i32>, Vec<i32>) = able().unzip();
        let n = first.len();
        first.resize(n.next_multiple_of(BEST), 0);
        second.resize(n.next_multiple_of(BEST), 0);
        let partners = std::array::from_fn(|i| k.div_ceil(i + 1).saturating_sub(1).min(BEST) as i32);
        Pairs { at: [first, second], n, partners }
    }
}

/// What [`Halves::reached`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reached {
    /// A sum of floors that `k` pairs of rows reach; -inf where there may be none.
    pub sum: f32,
    /// The largest ceiling of each half.
    pub most: [f32; 2],
    /// The largest floor of each.
    pub first: [f32; 2],
}

/// Sums of pairs of exact half scores, rounded once to float32; there is no -0.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// The sums.
    pub scores: Vec<f32>,
    /// Of which pairs: 65536 i + j.
    pub pairs: Vec<u32>,
    /// Room for the same, on the way.
    pub(crate) spare: (Vec<f32>, Vec<u32>),
}

impl CodedHalf<'_> {
    /// That everything the kernels read is there; blocks.
    pub(crate) fn check(&self) -> usize {
        let blocks = self.n.div_ceil(ROWS);
        assert!(self.bytes.len() >= blocks * crate::codes::padded(self.dim) * ROWS, "codes of whole blocks");
        assert!(self.scale.len() >= blocks * ROWS && self.slack.len() >= blocks * ROWS, "a factor and a slack per row");
        assert!(self.n > 0 && self.dim <= crate::many::MAX_DIM, "sums of products fit 32 bits");
        blocks
    }
}
