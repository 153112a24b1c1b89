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

/// Queries per panel.
pub const PANEL: usize = 16;

/// Key rows are processed in groups that divide this, so buffers of keys are readable up to the next multiple of it.
pub const ROW_GROUP: usize = 8;

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
    fn check(&self) {
        assert!(self.panels.len() >= packed_len(self.n, self.dim), "query panels are shorter than their count says");
    }
}

impl Keys<'_> {
    fn check(&self, rule: Rule, dim: usize) {
        assert!(self.n <= 64 && dim <= self.stride, "a block is at most 64 rows of at least `dim` floats");
        assert!(
            self.rows.len() >= self.n.next_multiple_of(ROW_GROUP) * self.stride,
            "key rows must be readable in groups"
        );
        assert!(rule != Rule::Scaled || self.scale.len() >= self.n, "one scale per key row");
    }
}

/// The scores of live rows that are not below their query's threshold, in row order within each panel.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn select<L: Lanes>(
    rule: Rule,
    keys: Keys,
    live: u64,
    queries: Queries,
    thresholds: &[f32],
    out: &mut Vec<Pass>,
) {
    keys.check(rule, queries.dim);
    queries.check();
    assert!(thresholds.len() >= queries.n.next_multiple_of(PANEL), "one threshold per lane");
    let live = if keys.n < 64 { live & ((1 << keys.n) - 1) } else { live };
    let mut emit = |row: usize, lane: usize, score: L| {
        // SAFETY: `lane` is a multiple of L::N below the padded query count, which the assertion covers.
        let passed = unsafe { score.not_less(L::load(thresholds.as_ptr().add(lane))) };
        if passed != 0 && live >> row & 1 != 0 {
            let mut scores = [0.0f32; PANEL];
            // SAFETY: PANEL floats are at least L::N.
            unsafe { score.store(scores.as_mut_ptr()) };
            spill(row, lane, &scores, passed, queries.n, out);
        }
    };
    // SAFETY: lengths were asserted above; the instructions are the caller's promise.
    unsafe { each_score::<L>(rule, keys, queries, &mut emit) };
}

/// Appends the lanes of one register that passed; kept out of the hot loop.
#[inline(never)]
fn spill(row: usize, lane: usize, scores: &[f32; PANEL], mut passed: u32, n_queries: usize, out: &mut Vec<Pass>) {
    while passed != 0 {
        let i = passed.trailing_zeros() as usize;
        passed &= passed - 1;
        if lane + i < n_queries {
            out.push(Pass { score: scores[i % PANEL], row: row as u32, query: (lane + i) as u32 });
        }
    }
}

/// All scores, panel by panel: score of row r and query lane l of panel p at `(p * rows + r) * 16 + l`, where `rows` is
/// the number of key rows that one panel of `out` has room for, and the block's rows start at `first`.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn scores<L: Lanes>(
    rule: Rule,
    keys: Keys,
    queries: Queries,
    out: &mut [f32],
    rows: usize,
    first: usize,
) {
    keys.check(rule, queries.dim);
    queries.check();
    assert!(first + keys.n <= rows, "the block's rows must fit the score panel");
    assert!(out.len() >= queries.n.div_ceil(PANEL) * rows * PANEL, "score panels are too short");
    let base = out.as_mut_ptr();
    let mut emit = |row: usize, lane: usize, score: L| {
        if row >= keys.n {
            return;
        }
        let at = (lane / PANEL * rows + first + row) * PANEL + lane % PANEL;
        // SAFETY: row < keys.n and lane < the padded query count, so the assertions above cover `at + L::N`.
        unsafe { score.store(base.add(at)) };
    };
    // SAFETY: lengths were asserted above; the instructions are the caller's promise.
    unsafe { each_score::<L>(rule, keys, queries, &mut emit) };
}

/// Calls `emit(row, first lane, scores)` for every register of scores.
#[inline(always)]
unsafe fn each_score<L: Lanes>(rule: Rule, keys: Keys, queries: Queries, emit: &mut impl FnMut(usize, usize, L)) {
    // SAFETY: the caller's promise; one loop per rule, so that nothing is decided inside.
    unsafe {
        match rule {
            Rule::Dot => strips::<L, DOT>(keys, queries, emit),
            Rule::Scaled => strips::<L, SCALED>(keys, queries, emit),
            Rule::L2 => strips::<L, L2>(keys, queries, emit),
        }
    }
}

/// [`Rule`] as a constant.
const DOT: u8 = 0;
const SCALED: u8 = 1;
const L2: u8 = 2;

#[inline(always)]
unsafe fn strips<L: Lanes, const RULE: u8>(keys: Keys, queries: Queries, emit: &mut impl FnMut(usize, usize, L)) {
    let lanes = queries.n.next_multiple_of(PANEL);
    let mut lane = 0;
    while lane < lanes {
        let vectors = (lanes - lane) / L::N;
        // SAFETY: the caller asserted the lengths; each arm covers at most the vectors that are left.
        unsafe {
            lane += L::N
                * match (L::N, vectors) {
                    (16, 4..) => strip::<L, RULE, 4, 4>(keys, queries, lane, emit),
                    (16, 3) => strip::<L, RULE, 4, 3>(keys, queries, lane, emit),
                    (16, 2) => strip::<L, RULE, 8, 2>(keys, queries, lane, emit),
                    (16, _) => strip::<L, RULE, 8, 1>(keys, queries, lane, emit),
                    _ => strip::<L, RULE, 4, 2>(keys, queries, lane, emit),
                };
        }
    }
}

/// All key rows, R at a time, against V registers of queries from `lane` on. Returns V. Rows are emitted in groups of R,
/// past `keys.n` too: a loop of fixed length keeps the scores in registers.
#[inline(always)]
unsafe fn strip<L: Lanes, const RULE: u8, const R: usize, const V: usize>(
    keys: Keys,
    queries: Queries,
    lane: usize,
    emit: &mut impl FnMut(usize, usize, L),
) -> usize {
    let mut b = [queries.panels.as_ptr(); V];
    for (v, b) in b.iter_mut().enumerate() {
        let at = lane + v * L::N;
        // SAFETY: `at` is a lane of an existing panel.
        *b = unsafe { b.add(at / PANEL * PANEL * queries.dim + at % PANEL) };
    }
    for first in (0..keys.n).step_by(R) {
        // SAFETY: R divides ROW_GROUP and keys are readable in groups, so R rows of `dim` floats follow.
        let acc = unsafe {
            let a = keys.rows.as_ptr().add(first * keys.stride);
            let zero = [[L::splat(0.0); V]; R];
            if RULE == L2 {
                product::<L, R, V, true>(zero, a, keys.stride, 1, b, PANEL, queries.dim)
            } else {
                product::<L, R, V, false>(zero, a, keys.stride, 1, b, PANEL, queries.dim)
            }
        };
        for r in 0..R {
            let row = first + r;
            for v in 0..V {
                // SAFETY: the instructions are enabled; there is one scale per row below `keys.n`.
                let score = unsafe {
                    match RULE {
                        SCALED => acc[r][v].mul(L::splat(*keys.scale.get_unchecked(row.min(keys.n - 1)))),
                        L2 => L::splat(0.0).sub(acc[r][v]),
                        _ => acc[r][v],
                    }
                };
                emit(row, lane + v * L::N, score);
            }
        }
    }
    V
}

/// `acc[r][v] += sum over i of a[r * row_step + i * step] * b[v][i * b_step ..]`, or of the squared differences.
///
/// # Safety
/// All those places are readable and the instructions of `L` are enabled.
#[inline(always)]
unsafe fn product<L: Lanes, const R: usize, const V: usize, const DIFFERENCE: bool>(
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

/// `out[q][c] += sum over e of weights[e * 16 + q] * values[e * stride + c]`, e ascending, for the 16 queries of a panel.
///
/// `out` has rows of `stride` floats; `stride` is a multiple of 16 and columns are computed up to it.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn weigh<L: Lanes>(weights: &[f32], values: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    assert!(stride.is_multiple_of(PANEL), "value rows are padded to 16 floats");
    assert!(
        weights.len() >= n * PANEL && values.len() >= n * stride && out.len() >= PANEL * stride,
        "panels too short"
    );
    let mut column = 0;
    while column < stride {
        let vectors = (stride - column) / L::N;
        // SAFETY: lengths were asserted above; each arm covers at most the vectors that are left.
        unsafe {
            column += L::N
                * match (L::N, vectors) {
                    (16, 4..) => columns::<L, 4, 4>(weights, values, stride, n, column, out),
                    (16, 3) => columns::<L, 4, 3>(weights, values, stride, n, column, out),
                    (16, 2) => columns::<L, 8, 2>(weights, values, stride, n, column, out),
                    (16, _) => columns::<L, 8, 1>(weights, values, stride, n, column, out),
                    _ => columns::<L, 4, 2>(weights, values, stride, n, column, out),
                };
        }
    }
}

#[inline(always)]
unsafe fn columns<L: Lanes, const R: usize, const V: usize>(
    weights: &[f32],
    values: &[f32],
    stride: usize,
    n: usize,
    column: usize,
    out: &mut [f32],
) -> usize {
    let mut b = [values.as_ptr(); V];
    for (v, b) in b.iter_mut().enumerate() {
        // SAFETY: column + V * L::N is at most `stride`.
        *b = unsafe { b.add(column + v * L::N) };
    }
    for first in (0..PANEL).step_by(R) {
        // SAFETY: R rows of a panel of 16 queries, and columns below `stride`, as `weigh` asserted.
        unsafe {
            let target = out.as_mut_ptr().add(first * stride + column);
            let mut acc = [[L::splat(0.0); V]; R];
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(target.add(r * stride + v * L::N));
                }
            }
            let a = weights.as_ptr().add(first);
            let acc = product::<L, R, V, false>(acc, a, 1, PANEL, b, stride, n);
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    acc.store(target.add(r * stride + v * L::N));
                }
            }
        }
    }
    V
}
