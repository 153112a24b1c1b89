//! The one answer: float64 sums in a fixed order, the same bits on every machine.
//!
//! Dimension j goes to accumulator j mod 8, ascending; then ((a0+a4)+(a2+a6))+((a1+a5)+(a3+a7)). A product of two
//! float32 is exact in float64, so it does not matter whether a compiler or processor fuses it with the addition; the
//! differences of l2 are not exact, so difference, square and sum are each rounded, which is what plain Rust does.

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

/// The canonical sum of squares of one vector.
#[inline(always)]
pub(crate) fn square_norm(x: &[f32]) -> f64 {
    sums([x], x, |x, q| x * q)[0]
}

/// The canonical sums of products of some rows of a table with a vector of its width, not rounded yet, appended to `out`.
#[inline(always)]
pub(crate) fn products(table: &[f32], rows: &[u32], q: &[f32], out: &mut Vec<f64>) {
    const TOGETHER: usize = 4;
    let row = |&row: &u32| &table[row as usize * q.len()..][..q.len()];
    let mut groups = rows.chunks_exact(TOGETHER);
    for group in &mut groups {
        let keys: [&[f32]; TOGETHER] = std::array::from_fn(|at| row(&group[at]));
        out.extend(sums(keys, q, |x, q| x * q));
    }
    for one in groups.remainder() {
        out.extend(sums([row(one)], q, |x, q| x * q));
    }
}

/// The canonical scores of keys that stand one after the other, rounded once to float32; there is no -0. `query_norm` is
/// the square root of [`square_norm`] of q and is read by `Cos` alone.
#[inline(always)]
pub(crate) fn scores(metric: Metric, keys: &[f32], q: &[f32], query_norm: f64, out: &mut [f32]) {
    const TOGETHER: usize = 4;
    assert_eq!(keys.len(), q.len() * out.len());
    let mut keys = (0..out.len()).map(|at| &keys[at * q.len()..][..q.len()]);
    let mut groups = out.chunks_exact_mut(TOGETHER);
    for out in &mut groups {
        let keys: [&[f32]; TOGETHER] = std::array::from_fn(|_| keys.next().unwrap_or(q));
        out.copy_from_slice(&some(metric, keys, q, query_norm));
    }
    for (out, key) in groups.into_remainder().iter_mut().zip(keys) {
        [*out] = some(metric, [key], q, query_norm);
    }
}

/// The same of a few.
#[inline(always)]
fn some<const N: usize>(metric: Metric, keys: [&[f32]; N], q: &[f32], query_norm: f64) -> [f32; N] {
    let s = match metric {
        Metric::Dot => sums(keys, q, |x, q| x * q),
        Metric::L2 => sums(keys, q, |x, q| {
            let d = q - x;
            d * d
        })
        .map(|s| -s),
        Metric::Cos => {
            let products = sums(keys, q, |x, q| x * q);
            std::array::from_fn(|at| {
                let norm = square_norm(keys[at]).sqrt();
                // Whatever the other is, infinite too.
                if norm == 0.0 || query_norm == 0.0 { 0.0 } else { products[at] / (norm * query_norm) }
            })
        }
    };
    // Adding +0 turns -0 into +0 and changes nothing else.
    s.map(|s| s as f32 + 0.0)
}
