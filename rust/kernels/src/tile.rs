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

/// Key rows are processed in groups that divide this, so buffers of keys are readable up to the next multiple of it.
pub const ROW_GROUP: usize = 8;

/// Most queries of a tile.
const STRIP: usize = 4 * PANEL;

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
    let mut passing = Passing::new(keys.n, live, queries.n, thresholds, out);
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe { each_tile::<L>(rule, keys, queries, &mut passing) };
}

/// Takes the scores that are not below their query's threshold.
pub(crate) struct Passing<'a> {
    live: u64,
    thresholds: &'a [f32],
    n_queries: usize,
    out: &'a mut Vec<Pass>,
}

impl<L: Lanes> Sink<L> for Passing<'_> {
    #[inline(always)]
    unsafe fn take<const R: usize, const V: usize>(&mut self, row: usize, lane: usize, scores: [[L; V]; R]) {
        let mut passed = [0; R];
        for v in 0..V {
            // SAFETY: every lane has a threshold, as `new` asserted; the instructions are enabled.
            let threshold = unsafe { L::load(self.thresholds.as_ptr().add(lane + v * L::N)) };
            for r in 0..R {
                // SAFETY: the instructions are enabled.
                passed[r] |= u64::from(unsafe { scores[r][v].not_less(threshold) }) << (v * L::N);
            }
        }
        if passed.iter().fold(0, |any, row| any | row) != 0 {
            let mut numbers = [[0.0f32; STRIP]; R];
            for r in 0..R {
                for v in 0..V {
                    // SAFETY: V vectors are at most a strip.
                    unsafe { scores[r][v].store(numbers[r].as_mut_ptr().add(v * L::N)) };
                }
            }
            self.append(row, lane, &numbers, &passed);
        }
    }
}

impl<'a> Passing<'a> {
    /// For a block of `n` rows, of which those in `live` may pass.
    pub(crate) fn new(n: usize, live: u64, n_queries: usize, thresholds: &'a [f32], out: &'a mut Vec<Pass>) -> Self {
        assert!(thresholds.len() >= n_queries.next_multiple_of(PANEL), "one threshold per lane");
        let live = if n < 64 { live & ((1 << n) - 1) } else { live };
        Passing { live, thresholds, n_queries, out }
    }

    /// Appends what passed of one tile; kept out of the hot loop.
    #[inline(never)]
    fn append<const R: usize>(&mut self, row: usize, lane: usize, scores: &[[f32; STRIP]; R], passed: &[u64; R]) {
        let queries = if self.n_queries - lane < STRIP { (1 << (self.n_queries - lane)) - 1 } else { !0 };
        for r in 0..R {
            let live = self.live.checked_shr((row + r) as u32).unwrap_or(0) & 1;
            let mut passed = passed[r] & queries & live.wrapping_neg();
            while passed != 0 {
                let at = passed.trailing_zeros() as usize;
                passed &= passed - 1;
                self.out.push(Pass { score: scores[r][at], row: (row + r) as u32, query: (lane + at) as u32 });
            }
        }
    }
}

/// The scores of a panel `[rows, 16]` that are not below their query's threshold, for its first `n` queries.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn filter<L: Lanes>(panel: &[f32], n: usize, thresholds: &[f32; PANEL], out: &mut Vec<Pass>) {
    let queries = (1 << n.min(PANEL)) - 1;
    for (row, scores) in panel.as_chunks::<PANEL>().0.iter().enumerate() {
        let mut passed = 0;
        for lane in (0..PANEL).step_by(L::N) {
            // SAFETY: lane + L::N is at most PANEL; the instructions are enabled.
            unsafe {
                let threshold = L::load(thresholds.as_ptr().add(lane));
                passed |= L::load(scores.as_ptr().add(lane)).not_less(threshold) << lane;
            }
        }
        passed &= queries;
        while passed != 0 {
            let query = passed.trailing_zeros();
            passed &= passed - 1;
            out.push(Pass { score: scores[query as usize % PANEL], row: row as u32, query });
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
    let mut all = All::new(keys.n, queries.n, out, rows, first);
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe { each_tile::<L>(rule, keys, queries, &mut all) };
}

/// Stores every score.
pub(crate) struct All<'a> {
    n: usize,
    first: usize,
    rows: usize,
    out: &'a mut [f32],
}

impl<'a> All<'a> {
    /// For a block of `n` rows, at row `first` of panels of `rows`.
    pub(crate) fn new(n: usize, n_queries: usize, out: &'a mut [f32], rows: usize, first: usize) -> Self {
        assert!(first + n <= rows, "the block's rows must fit the score panel");
        assert!(out.len() >= n_queries.div_ceil(PANEL) * rows * PANEL, "score panels are too short");
        All { n, first, rows, out }
    }
}

impl<L: Lanes> Sink<L> for All<'_> {
    #[inline(always)]
    unsafe fn take<const R: usize, const V: usize>(&mut self, row: usize, lane: usize, scores: [[L; V]; R]) {
        for r in (0..R).take_while(|r| row + r < self.n) {
            for v in 0..V {
                let lane = lane + v * L::N;
                let at = (lane / PANEL * self.rows + self.first + row + r) * PANEL + lane % PANEL;
                // SAFETY: the row is below `n` and the lane below the padded query count: `new` asserted `at + L::N`.
                unsafe { scores[r][v].store(self.out.as_mut_ptr().add(at)) };
            }
        }
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
unsafe fn each_tile<L: Lanes>(rule: Rule, keys: Keys, queries: Queries, sink: &mut impl Sink<L>) {
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
                * match (L::REGISTERS, vectors) {
                    (32, 4..) => columns::<L, 4, 4>(weights, values, stride, n, column, out),
                    (32, 3) => columns::<L, 4, 3>(weights, values, stride, n, column, out),
                    (32, 2) => columns::<L, 8, 2>(weights, values, stride, n, column, out),
                    (32, _) => columns::<L, 8, 1>(weights, values, stride, n, column, out),
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
