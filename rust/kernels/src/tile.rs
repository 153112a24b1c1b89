//! Blocks of key rows against panels of queries: the loop that everything else waits for.
//!
//! Keys stand row-major as they were stored; queries are packed once per call, sixteen to a panel, so that one register
//! holds one dimension of sixteen queries and a key's number is broadcast to them. A register of scores is then one key
//! against sixteen queries, and selection is one compare with sixteen thresholds: a score that does not pass never
//! leaves its register.
#![expect(unsafe_code, reason = "unchecked loads in the innermost loops; lengths are asserted at each entry")]
#![expect(clippy::needless_range_loop, reason = "indices are registers: r a key row, v a vector of queries")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::prefetch::prefetch_next;

/// Queries per panel.
pub const PANEL: usize = 16;

/// Buffers of keys are readable up to the next multiple of so many rows: tiles are even.
pub const ROW_GROUP: usize = 8;

/// Most queries of a tile.
pub(crate) const STRIP: usize = 4 * PANEL;

/// How a float32 first-pass score comes from key row x and query q.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// sum of x_j q_j
    Dot,
    /// the same, times the row's `scale` (one over its norm, for cosine)
    Scaled,
    /// minus the sum of (x_j - q_j)^2
    L2,
}

/// At most 64 key rows in float32.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// Row-major; holds `n` rows rounded up to a multiple of [`ROW_GROUP`].
    pub rows: &'a [f32],
    /// Floats from one row to the next.
    pub stride: usize,
    /// Rows.
    pub n: usize,
    /// One float per row for [`Rule::Scaled`]; empty otherwise.
    pub scale: &'a [f32],
    /// What the caller reads next, if known: brought near piece by piece, in the shadow of the arithmetic.
    pub next: &'a [u8],
}

/// Queries packed by [`pack`]: number j of query i stands at `(i / 16 * dim + j) * 16 + i % 16`.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// The panels, one after the other.
    pub panels: &'a [f32],
    /// Numbers per query.
    pub dim: usize,
    /// Queries; the lanes beyond are never reported.
    pub n: usize,
}

/// One score that passed its query's threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// First-pass score; may be NaN or infinite where the data overflows float32.
    pub score: f32,
    /// Row within the block.
    pub row: u32,
    /// Query within the call.
    pub query: u32,
}

/// Floats that `n` queries of `dim` take when packed.
pub fn packed_len(n: usize, dim: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * dim
}

/// Writes query number `at` into its panel.
pub fn pack(query: &[f32], at: usize, panels: &mut [f32]) {
    let dim = query.len();
    let panel = &mut panels[at / PANEL * PANEL * dim..][..PANEL * dim];
    for (lanes, &x) in panel.chunks_exact_mut(PANEL).zip(query) {
        lanes[at % PANEL] = x;
    }
}

impl Queries<'_> {
    pub(crate) fn check(&self) {
        assert!(self.panels.len() >= packed_len(self.n, self.dim), "query panels are shorter than their count says");
    }
}

impl Keys<'_> {
    pub(crate) fn check(&self, rule: Rule, dim: usize) {
        assert!(self.n <= 64 && dim <= self.stride, "a block is at most 64 rows of at least `dim` floats");
        assert!(
            self.rows.len() >= self.n.next_multiple_of(ROW_GROUP) * self.stride,
            "key rows must be readable in groups"
        );
        assert!(rule != Rule::Scaled || self.scale.len() >= self.n, "one scale per key row");
    }
}

/// What is done with the scores of one tile, while they are in registers.
pub(crate) trait Sink<L: Lanes> {
    /// Scores of key rows `row..row + R` against the queries of V registers from `lane` on. Rows past the block's end
    /// come too: a loop of fixed length keeps the scores in registers.
    ///
    /// # Safety
    /// The instructions of `L` are enabled, and the rows and lanes are of the call that made the sink.
    unsafe fn take<const R: usize, const V: usize>(&mut self, row: usize, lane: usize, scores: [[L; V]; R]);
}

/// Hands every tile of scores to the sink.
#[inline(always)]
pub(crate) unsafe fn each_tile<L: Lanes>(rule: Rule, keys: Keys, queries: Queries, sink: &mut impl Sink<L>) {
    // SAFETY: the caller's promise; one loop per rule, so that nothing is decided inside.
    unsafe {
        match rule {
            Rule::Dot => strips::<L, DOT>(keys, queries, sink),
            Rule::Scaled => strips::<L, SCALED>(keys, queries, sink),
            Rule::L2 => strips::<L, L2>(keys, queries, sink),
        }
    }
}

/// [`Rule`] as a constant.
const DOT: u8 = 0;
const SCALED: u8 = 1;
const L2: u8 = 2;

#[inline(always)]
unsafe fn strips<L: Lanes, const RULE: u8>(keys: Keys, queries: Queries, sink: &mut impl Sink<L>) {
    let lanes = queries.n.next_multiple_of(PANEL);
    let mut lane = 0;
    while lane < lanes {
        let vectors = (lanes - lane) / L::N;
        // SAFETY: the caller asserted the lengths; each arm covers at most the vectors that are left.
        unsafe {
            lane += L::N
                * match (L::REGISTERS, vectors) {
                    (32, 4..) => strip::<L, RULE, 6, 4>(keys, queries, lane, sink),
                    (32, 3) => strip::<L, RULE, 8, 3>(keys, queries, lane, sink),
                    (32, 2) => strip::<L, RULE, 8, 2>(keys, queries, lane, sink),
                    (32, _) => strip::<L, RULE, 8, 1>(keys, queries, lane, sink),
                    (16, _) => strip::<L, RULE, 6, 2>(keys, queries, lane, sink),
                    _ => strip::<L, RULE, 4, 2>(keys, queries, lane, sink),
                };
        }
    }
}

/// All key rows, R at a time while there are as many, then four or two, against V registers of queries from `lane` on.
/// Returns V.
#[inline(always)]
unsafe fn strip<L: Lanes, const RULE: u8, const R: usize, const V: usize>(
    keys: Keys,
    queries: Queries,
    lane: usize,
    sink: &mut impl Sink<L>,
) -> usize {
    let mut b = [queries.panels.as_ptr(); V];
    for (v, b) in b.iter_mut().enumerate() {
        let at = lane + v * L::N;
        // SAFETY: `at` is a lane of an existing panel.
        *b = unsafe { b.add(at / PANEL * PANEL * queries.dim + at % PANEL) };
    }
    let mut row = 0;
    while row < keys.n {
        // SAFETY: an odd number of rows is read one past its end at most, so within a group; see ROW_GROUP.
        unsafe {
            row += match keys.n - row {
                left if left >= R => tile::<L, RULE, R, V>(keys, row, b, queries.dim, lane, sink),
                3.. => tile::<L, RULE, 4, V>(keys, row, b, queries.dim, lane, sink),
                _ => tile::<L, RULE, 2, V>(keys, row, b, queries.dim, lane, sink),
            };
        }
    }
    V
}

/// R key rows from `row` on. Returns R.
#[inline(always)]
unsafe fn tile<L: Lanes, const RULE: u8, const R: usize, const V: usize>(
    keys: Keys,
    row: usize,
    b: [*const f32; V],
    dim: usize,
    lane: usize,
    sink: &mut impl Sink<L>,
) -> usize {
    if lane == 0 && !keys.next.is_empty() {
        let piece = |row: usize| keys.next.len() * row.min(keys.n) / keys.n;
        prefetch_next(&keys.next[piece(row)..piece(row + R)]);
    }
    // SAFETY: the caller's promise: R rows of `dim` floats follow, there is one scale per row below `keys.n`, and the
    // instructions are enabled.
    unsafe {
        let a = keys.rows.as_ptr().add(row * keys.stride);
        let zero = [[L::splat(0.0); V]; R];
        let mut scores = if RULE == L2 {
            product::<L, R, V, true>(zero, a, keys.stride, 1, b, PANEL, dim)
        } else {
            product::<L, R, V, false>(zero, a, keys.stride, 1, b, PANEL, dim)
        };
        for r in 0..R {
            for v in 0..V {
                scores[r][v] = match RULE {
                    SCALED => scores[r][v].mul(L::splat(*keys.scale.get_unchecked((row + r).min(keys.n - 1)))),
                    L2 => L::splat(0.0).sub(scores[r][v]),
                    _ => scores[r][v],
                };
            }
        }
        sink.take(row, lane, scores);
    }
    R
}

/// `acc[r][v] += sum over i of a[r * row_step + i * step] * b[v][i * b_step ..]`, or of the squared differences.
///
/// # Safety
/// All those places are readable and the instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn product<L: Lanes, const R: usize, const V: usize, const DIFFERENCE: bool>(
    mut acc: [[L; V]; R],
    a: *const f32,
    row_step: usize,
    step: usize,
    b: [*const f32; V],
    b_step: usize,
    n: usize,
) -> [[L; V]; R] {
    for i in 0..n {
        // SAFETY: the caller's promise.
        unsafe {
            let mut q = [L::splat(0.0); V];
            for v in 0..V {
                q[v] = L::load(b[v].add(i * b_step));
            }
            for r in 0..R {
                let x = L::splat(*a.add(r * row_step + i * step));
                for v in 0..V {
                    acc[r][v] = if DIFFERENCE {
                        let d = x.sub(q[v]);
                        acc[r][v].mul_add(d, d)
                    } else {
                        acc[r][v].mul_add(x, q[v])
                    };
                }
            }
        }
    }
    acc
}
