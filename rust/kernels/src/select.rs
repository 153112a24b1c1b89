//! What becomes of scores while they are in registers: those that pass a threshold are listed, or all
//! are stored, or the largest of groups.
#![expect(
    unsafe_code,
    reason = "unchecked loads and stores in the innermost loops; lengths are asserted at each entry"
)]
#![expect(clippy::needless_range_loop, reason = "indices are registers: r a key row, v a vector of queries")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::tile::{Keys, PANEL, Pass, Queries, Rule, STRIP, Sink, each_tile};

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
        let mut passed = [[0; V]; R];
        let mut any = 0;
        for v in 0..V {
            // SAFETY: every lane has a threshold, as `new` asserted; the instructions are enabled.
            let threshold = unsafe { L::load(self.thresholds.as_ptr().add(lane + v * L::N)) };
            for r in 0..R {
                // SAFETY: the instructions are enabled.
                passed[r][v] = unsafe { scores[r][v].not_less(threshold) };
                any |= passed[r][v];
            }
        }
        if any != 0 {
            let mut numbers = [[0.0f32; STRIP]; R];
            for r in 0..R {
                for v in 0..V {
                    // SAFETY: V vectors are at most a strip.
                    unsafe { scores[r][v].store(numbers[r].as_mut_ptr().add(v * L::N)) };
                }
            }
            self.append(row, lane, L::N, &numbers, &passed);
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
    fn append<const R: usize, const V: usize>(
        &mut self,
        row: usize,
        lane: usize,
        width: usize,
        scores: &[[f32; STRIP]; R],
        passed: &[[u32; V]; R],
    ) {
        let queries = if self.n_queries - lane < STRIP { (1 << (self.n_queries - lane)) - 1 } else { !0 };
        for r in 0..R {
            let live = self.live.checked_shr((row + r) as u32).unwrap_or(0) & 1;
            let row_passed = (0..V).fold(0, |bits, v| bits | u64::from(passed[r][v]) << (v * width));
            let mut passed = row_passed & queries & live.wrapping_neg();
            while passed != 0 {
                let at = passed.trailing_zeros() as usize;
                passed &= passed - 1;
                self.out.push(Pass { score: scores[r][at], row: (row + r) as u32, query: (lane + at) as u32 });
            }
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

/// Raises `out` to the largest score of each group of rows: that of rows `per * g..` and query lane l of panel p at
/// `(p * groups + first + g) * 16 + l`. `per` is a power of two; NaN counts for nothing.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn maxima<L: Lanes>(rule: Rule, keys: Keys, queries: Queries, out: Maxima) {
    keys.check(rule, queries.dim);
    queries.check();
    let mut largest = Largest::new(keys.n, queries.n, out);
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe { each_tile::<L>(rule, keys, queries, &mut largest) };
}

/// Where the largest scores of groups of rows go.
pub struct Maxima<'a> {
    /// Panels of `groups` rows; starts as -inf.
    pub out: &'a mut [f32],
    /// Groups that one panel has room for.
    pub groups: usize,
    /// Where the block's groups start.
    pub first: usize,
    /// Rows per group, a power of two.
    pub per: usize,
}

/// Keeps the largest scores.
pub(crate) struct Largest<'a> {
    n: usize,
    shift: u32,
    to: Maxima<'a>,
}

impl<'a> Largest<'a> {
    /// For a block of `n` rows.
    pub(crate) fn new(n: usize, n_queries: usize, to: Maxima<'a>) -> Self {
        assert!(to.per.is_power_of_two(), "rows per group are a power of two");
        assert!(to.first + n.div_ceil(to.per) <= to.groups, "the block's groups must fit the panel");
        assert!(to.out.len() >= n_queries.div_ceil(PANEL) * to.groups * PANEL, "panels are too short");
        Largest { n, shift: to.per.trailing_zeros(), to }
    }
}

impl<L: Lanes> Sink<L> for Largest<'_> {
    #[inline(always)]
    unsafe fn take<const R: usize, const V: usize>(&mut self, row: usize, lane: usize, scores: [[L; V]; R]) {
        for v in 0..V {
            let lane = lane + v * L::N;
            let at = (lane / PANEL * self.to.groups + self.to.first) * PANEL + lane % PANEL;
            for r in (0..R).take_while(|r| row + r < self.n) {
                // SAFETY: the row is below `n` and the lane below the padded query count: `new` asserted the place.
                unsafe {
                    let most = self.to.out.as_mut_ptr().add(at + ((row + r) >> self.shift) * PANEL);
                    scores[r][v].max(L::load(most)).store(most);
                }
            }
        }
    }
}
