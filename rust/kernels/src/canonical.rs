//! The one answer: float64 sums in a fixed order, the same bits on every machine.
//!
//! Dimension j goes to accumulator j mod 8, ascending; then ((a0+a4)+(a2+a6))+((a1+a5)+(a3+a7)). A product of two
//! float32 is exact in float64, so it does not matter whether a compiler or processor fuses it with the addition; the
//! differences of l2 are not exact, so difference, square and sum are each rounded, which is what plain Rust does.

#![expect(unsafe_code, reason = "vectors do it where a set has them; lengths are checked by slices")]

use crate::lanes::Lanes;

/// What a bank ranks by; larger is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// S, the inner product.
    Dot,
    /// S / (|x| |q|); 0 where either norm is 0.
    Cos,
    /// Minus the squared Euclidean distance.
    L2,
}

#[inline(always)]
fn fold(a: [f64; 8]) -> f64 {
    ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

/// Sum of `term(x_j, q_j)` in the canonical order for each of some vectors; zeros that pad the last eight change nothing,
/// since no term is -0 where it could show: a sum that starts at +0 never becomes -0 by adding zeros. Additions wait for
/// those before them, so several vectors take little longer than one.
#[inline(always)]
fn sums<const N: usize>(x: [&[f32]; N], q: &[f32], term: impl Fn(f64, f64) -> f64) -> [f64; N] {
    let mut a = [[0.0f64; 8]; N];
    let whole = q.len() / 8 * 8;
    for at in (0..whole).step_by(8) {
        let q: [f32; 8] = std::array::from_fn(|i| q[at + i]);
        for (a, x) in a.iter_mut().zip(x) {
            for (i, &x) in x[at..at + 8].iter().enumerate() {
                a[i] += term(f64::from(x), f64::from(q[i]));
            }
        }
    }
    for (a, x) in a.iter_mut().zip(x) {
        for (i, (&x, &q)) in x[whole..].iter().zip(&q[whole..]).enumerate() {
            a[i] += term(f64::from(x), f64::from(q));
        }
    }
    a.map(fold)
}

/// Sums of products.
#[inline(always)]
pub(crate) fn dots<const N: usize>(x: [&[f32]; N], q: &[f32]) -> [f64; N] {
    sums(x, q, |x, q| x * q)
}

/// The canonical sum of squares of one vector.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn square_norm<L: Lanes>(x: &[f32]) -> f64 {
    // SAFETY: the caller's promise.
    unsafe { L::dots([x], x)[0] }
}

/// Some rows of a table of float32.
#[derive(Clone, Copy)]
pub struct Chosen<'a> {
    /// The numbers of all rows, one row after the other.
    pub table: &'a [f32],
    /// Which rows.
    pub rows: &'a [u32],
}

/// The canonical sums of products of some rows with a vector of their width, not rounded yet.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn products<L: Lanes>(chosen: Chosen, q: &[f32], out: &mut [f64]) {
    assert_eq!(chosen.rows.len(), out.len());
    let mut done = 0;
    if L::REGISTERS == 32 {
        // SAFETY: the caller's promise.
        done = unsafe { groups::<L, 8>(chosen, q, done, out) };
    }
    // SAFETY: the caller's promise.
    done = unsafe { groups::<L, 4>(chosen, q, done, out) };
    // SAFETY: the caller's promise.
    unsafe { groups::<L, 1>(chosen, q, done, out) };
}

/// Rows from `done` on, as many at a time while there are so many. Returns how many are done then.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
unsafe fn groups<L: Lanes, const TOGETHER: usize>(
    Chosen { table, rows }: Chosen,
    q: &[f32],
    mut done: usize,
    out: &mut [f64],
) -> usize {
    let width = q.len();
    while let Some(rows) = rows[done..].first_chunk::<TOGETHER>() {
        // A loop of fixed length: nothing of this goes through memory.
        let mut keys = [q; TOGETHER];
        for i in 0..TOGETHER {
            keys[i] = &table[rows[i] as usize * width..][..width];
        }
        // SAFETY: the caller's promise.
        out[done..][..TOGETHER].copy_from_slice(&unsafe { L::dots(keys, q) });
        done += TOGETHER;
    }
    done
}

/// The canonical scores of keys that stand one after the other, rounded once to float32; there is no -0. `query_norm` is
/// the square root of [`square_norm`] of q and is read by `Cos` alone.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
pub(crate) unsafe fn scores<L: Lanes>(metric: Metric, keys: &[f32], q: &[f32], query_norm: f64, out: &mut [f32]) {
    const TOGETHER: usize = 4;
    assert_eq!(keys.len(), q.len() * out.len());
    let width = q.len();
    let mut first = 0;
    let mut groups = out.chunks_exact_mut(TOGETHER);
    for out in &mut groups {
        let mut together = [q; TOGETHER];
        for (at, key) in together.iter_mut().enumerate() {
            *key = &keys[(first + at) * width..][..width];
        }
        // SAFETY: the caller's promise.
        out.copy_from_slice(&unsafe { some::<L, TOGETHER>(metric, together, q, query_norm) });
        first += TOGETHER;
    }
    for out in groups.into_remainder() {
        // SAFETY: the caller's promise.
        [*out] = unsafe { some::<L, 1>(metric, [&keys[first * width..][..width]], q, query_norm) };
        first += 1;
    }
}

/// The same of a few.
///
/// # Safety
/// The instructions of `L` are enabled.
#[inline(always)]
unsafe fn some<L: Lanes, const N: usize>(metric: Metric, keys: [&[f32]; N], q: &[f32], query_norm: f64) -> [f32; N] {
    let s = match metric {
        // SAFETY: the caller's promise.
        Metric::Dot => unsafe { L::dots(keys, q) },
        Metric::L2 => sums(keys, q, |x, q| {
            let d = q - x;
            d * d
        })
        .map(|s| -s),
        Metric::Cos => {
            // SAFETY: the caller's promise.
            let mut scores = unsafe { L::dots(keys, q) };
            for (score, key) in scores.iter_mut().zip(keys) {
                // SAFETY: likewise.
                let norm = unsafe { square_norm::<L>(key) }.sqrt();
                // Whatever the other is, infinite too.
                *score = if norm == 0.0 || query_norm == 0.0 { 0.0 } else { *score / (norm * query_norm) };
            }
            scores
        }
    };
    // Adding +0 turns -0 into +0 and changes nothing else.
    s.map(|s| s as f32 + 0.0)
}
