//! Product keys: from all half scores of a panel of queries to those that may be among the best, and weighted sums of the
//! rows that pairs of them name.
//!
//! Nothing here decides: floors and thresholds come with proven bounds from the caller, who scores exactly what is left.
#![expect(unsafe_code, reason = "unchecked loads in the innermost loops; lengths are asserted at each entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use crate::lanes::Lanes;
use crate::prefetch::prefetch;
use crate::single::{BF16, F16, F32, Format, load};
use crate::tile::PANEL;

/// Rows of one half that may be among the best of a query, and their first-pass scores, in row order.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// First-pass scores.
    pub scores: Vec<f32>,
    /// Their rows.
    pub rows: Vec<u32>,
}

impl Candidates {
    /// Forgets them.
    pub fn clear(&mut self) {
        self.scores.clear();
        self.rows.clear();
    }
}

/// The largest score of each `per` neighbouring rows of a panel `[n, 16]`, for each query: `[n / per, 16]`, the rest of the
/// rows in the last group. `out` holds as many.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn group_maxima<L: Lanes>(panel: &[f32], per: usize, out: &mut [f32]) {
    let n = panel.len() / PANEL;
    assert!(panel.len() == n * PANEL && per > 0 && out.len() == (n / per).max(1) * PANEL && n > 0, "whole groups");
    let groups = out.len() / PANEL;
    for group in 0..groups {
        let rows = group * per..if group + 1 == groups { n } else { (group + 1) * per };
        for lane in (0..PANEL).step_by(L::N) {
            // SAFETY: rows and lanes of the panel, and a group of `out`.
            unsafe {
                let mut most = L::splat(f32::NEG_INFINITY);
                for row in rows.clone() {
                    most = L::load(panel.as_ptr().add(row * PANEL + lane)).max(most);
                }
                most.store(out.as_mut_ptr().add(group * PANEL + lane));
            }
        }
    }
}

/// Appends the rows of a panel `[n, 16]` whose score is not below its query's threshold, to each query's candidates.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn collect<L: Lanes>(panel: &[f32], thresholds: &[f32; PANEL], out: &mut [Candidates; PANEL]) {
    // So many rows are looked at together: one loop over what passed of them costs less than a branch for each.
    const ROWS: usize = 4;
    let n = panel.len() / PANEL;
    for first in (0..n).step_by(ROWS) {
        let rows = ROWS.min(n - first);
        let mut passed = 0u64;
        for row in 0..rows {
            for lane in (0..PANEL).step_by(L::N) {
                // SAFETY: a row and lanes of the panel.
                let mask = unsafe {
                    let scores = L::load(panel.as_ptr().add((first + row) * PANEL + lane));
                    scores.not_less(L::load(thresholds.as_ptr().add(lane)))
                };
                passed |= u64::from(mask) << (row * PANEL + lane);
            }
        }
        while passed != 0 {
            let at = passed.trailing_zeros() as usize;
            passed &= passed - 1;
            let candidates = &mut out[at % PANEL];
            candidates.scores.push(panel[first * PANEL + at]);
            candidates.rows.push((first + at / PANEL) as u32);
        }
    }
}

/// How many scores are above each: where it stands in descending order, before others that are equal. A few dozen are
/// counted sooner than sorted.
#[inline(always)]
pub(crate) fn ranks(scores: &[f32], out: &mut Vec<u32>) {
    out.clear();
    out.resize(scores.len(), 0);
    // Loops, not closures: those would be compiled without the instructions of the set.
    for at in 0..scores.len() {
        let (score, mut rank) = (scores[at], 0);
        for &other in scores {
            rank += u32::from(other > score);
        }
        out[at] = rank;
    }
}

/// Rows of values, one after the other.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// Their bytes.
    pub bytes: &'a [u8],
    /// How numbers stand in them.
    pub format: Format,
    /// Numbers of a row.
    pub dim: usize,
}

impl<'a> Table<'a> {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.dim * if self.format == Format::F32 { 4 } else { 2 }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.row_bytes().max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a row.
    pub fn row(&self, at: usize) -> &'a [u8] {
        &self.bytes[at * self.row_bytes()..][..self.row_bytes()]
    }
}

/// `out[c] += sum over e of weights[e] * table[rows[e]][c]`, e ascending: each product is added as [`Lanes::mul_add`] does.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn bag<L: Lanes>(table: Table, rows: &[u32], weights: &[f32], out: &mut [f32]) {
    let n = table.len();
    assert!(rows.iter().all(|&row| (row as usize) < n), "rows of the table");
    assert!(rows.len() == weights.len() && out.len() == table.dim, "a weight per row, and a number per column");
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe {
        match table.format {
            Format::F32 => bag_of::<L, F32>(table, rows, weights, out),
            Format::F16 => bag_of::<L, F16>(table, rows, weights, out),
            Format::Bf16 => bag_of::<L, BF16>(table, rows, weights, out),
        }
    }
}

/// Rows that are asked for ahead: they lie anywhere.
const AHEAD: usize = 12;

/// # Safety
/// As for [`bag`], which checked the lengths.
#[inline(always)]
unsafe fn bag_of<L: Lanes, const FORMAT: u8>(table: Table, rows: &[u32], weights: &[f32], out: &mut [f32]) {
    const V: usize = 8;
    let (stride, number) = (table.row_bytes(), if FORMAT == F32 { 4 } else { 2 });
    let whole = out.len() - out.len() % L::N;
    for &row in &rows[..rows.len().min(AHEAD)] {
        prefetch(table.row(row as usize));
    }
    let mut column = 0;
    while column < whole {
        let vectors = ((whole - column) / L::N).min(V);
        // SAFETY: whole vectors of a row, and of `out`.
        unsafe {
            let mut sums = [L::splat(0.0); V];
            for (v, sum) in sums.iter_mut().enumerate().take(vectors) {
                *sum = L::load(out.as_ptr().add(column + v * L::N));
            }
            for (e, (&row, &weight)) in rows.iter().zip(weights).enumerate() {
                if column == 0
                    && let Some(&next) = rows.get(e + AHEAD)
                {
                    prefetch(table.row(next as usize));
                }
                let from = table.bytes.as_ptr().add(row as usize * stride + column * number);
                let weight = L::splat(weight);
                if vectors == V {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.mul_add(load::<L, FORMAT>(from, v * L::N), weight);
                    }
                } else {
                    for (v, sum) in sums.iter_mut().enumerate().take(vectors) {
                        *sum = sum.mul_add(load::<L, FORMAT>(from, v * L::N), weight);
                    }
                }
            }
            for (v, sum) in sums.iter().enumerate().take(vectors) {
                sum.store(out.as_mut_ptr().add(column + v * L::N));
            }
        }
        column += vectors * L::N;
    }
    if whole == out.len() {
        return;
    }
    // The last few columns, in a vector of their own.
    let rest = out.len() - whole;
    let mut last = [0.0f32; PANEL];
    last[..rest].copy_from_slice(&out[whole..]);
    // SAFETY: vectors of arrays that are long enough.
    unsafe {
        let mut sum = L::load(last.as_ptr());
        for (&row, &weight) in rows.iter().zip(weights) {
            let mut numbers = [0u32; PANEL];
            let bytes = &table.row(row as usize)[whole * number..];
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), numbers.as_mut_ptr().cast::<u8>(), bytes.len());
            sum = sum.mul_add(load::<L, FORMAT>(numbers.as_ptr().cast(), 0), L::splat(weight));
        }
        sum.store(last.as_mut_ptr());
    }
    out[whole..].copy_from_slice(&last[..rest]);
}

/// The inner product of a vector with each of some rows of a table, in an order that depends on the width alone.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn row_products<L: Lanes>(table: Table, rows: &[u32], q: &[f32], out: &mut [f32]) {
    let n = table.len();
    assert!(rows.iter().all(|&row| (row as usize) < n), "rows of the table");
    assert!(rows.len() == out.len() && q.len() == table.dim, "a product per row, and a number per column");
    // SAFETY: lengths were asserted; the instructions are the caller's promise.
    unsafe {
        match table.format {
            Format::F32 => row_products_of::<L, F32>(table, rows, q, out),
            Format::F16 => row_products_of::<L, F16>(table, rows, q, out),
            Format::Bf16 => row_products_of::<L, BF16>(table, rows, q, out),
        }
    }
}

/// # Safety
/// As for [`row_products`], which checked the lengths.
#[inline(always)]
unsafe fn row_products_of<L: Lanes, const FORMAT: u8>(table: Table, rows: &[u32], q: &[f32], out: &mut [f32]) {
    const V: usize = 4;
    let number = if FORMAT == F32 { 4 } else { 2 };
    let whole = q.len() - q.len() % L::N;
    let unrolled = whole - whole % (V * L::N);
    let mut last = [0.0f32; PANEL];
    last[..q.len() - whole].copy_from_slice(&q[whole..]);
    for &row in &rows[..rows.len().min(AHEAD)] {
        prefetch(table.row(row as usize));
    }
    for (first, out) in (0..rows.len()).step_by(L::N).zip(out.chunks_mut(L::N)) {
        // SAFETY: whole vectors of a row and of `q`, and arrays that are long enough.
        unsafe {
            let mut all = [L::splat(0.0); PANEL];
            for (e, all) in (first..first + out.len()).zip(&mut all) {
                if let Some(&next) = rows.get(e + AHEAD) {
                    prefetch(table.row(next as usize));
                }
                let row = table.row(rows[e] as usize);
                let mut sums = [L::splat(0.0); V];
                for column in (0..unrolled).step_by(V * L::N) {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let at = column + v * L::N;
                        *sum = sum.mul_add(load::<L, FORMAT>(row.as_ptr(), at), L::load(q.as_ptr().add(at)));
                    }
                }
                for column in (unrolled..whole).step_by(L::N) {
                    let x = load::<L, FORMAT>(row.as_ptr(), column);
                    sums[0] = sums[0].mul_add(x, L::load(q.as_ptr().add(column)));
                }
                if whole < q.len() {
                    let mut numbers = [0u32; PANEL];
                    let bytes = &row[whole * number..];
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), numbers.as_mut_ptr().cast::<u8>(), bytes.len());
                    let x = load::<L, FORMAT>(numbers.as_ptr().cast(), 0);
                    sums[1] = sums[1].mul_add(x, L::load(last.as_ptr()));
                }
                *all = sums[0].add(sums[1]).add(sums[2].add(sums[3]));
            }
            let mut products = [0.0; PANEL];
            L::sums(&all).store(products.as_mut_ptr());
            out.copy_from_slice(&products[..out.len()]);
        }
    }
}
