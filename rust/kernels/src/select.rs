//! What becomes of scores while they are in registers: those that pass a threshold are listed, or all are stored.
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
