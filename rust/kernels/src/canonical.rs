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

/// Sum of `term(x_j, q_j)` in the canonical order; zeros that pad the last eight change nothing, since no term is -0
/// where it could show: a sum that starts at +0 never becomes -0 by adding zeros.
#[inline(always)]
fn sum(x: &[f32], q: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    assert_eq!(x.len(), q.len());
    let mut a = [0.0f64; 8];
    let (xs, qs) = (x.chunks_exact(8), q.chunks_exact(8));
    let (x_rest, q_rest) = (xs.remainder(), qs.remainder());
    for (x, q) in xs.zip(qs) {
        for i in 0..8 {
            a[i] += term(f64::from(x[i]), f64::from(q[i]));
        }
    }
    for (i, (&x, &q)) in x_rest.iter().zip(q_rest).enumerate() {
        a[i] += term(f64::from(x), f64::from(q));
    }
    fold(a)
}

/// The canonical sum of squares of one vector.
#[inline(always)]
pub(crate) fn square_norm(x: &[f32]) -> f64 {
    sum(x, x, |x, q| x * q)
}

/// The canonical score, rounded once to float32; there is no -0. `query_norm` is the square root of [`square_norm`] of q
/// and is read by `Cos` alone.
#[inline(always)]
pub(crate) fn score(metric: Metric, x: &[f32], q: &[f32], query_norm: f64) -> f32 {
    let s = match metric {
        Metric::Dot => sum(x, q, |x, q| x * q),
        Metric::L2 => -sum(x, q, |x, q| {
            let d = q - x;
            d * d
        }),
        Metric::Cos => {
            let norm = square_norm(x).sqrt();
            // Whatever the other is, infinite too.
            if norm == 0.0 || query_norm == 0.0 { 0.0 } else { sum(x, q, |x, q| x * q) / (norm * query_norm) }
        }
    };
    // Adding +0 turns -0 into +0 and changes nothing else.
    s as f32 + 0.0
}
