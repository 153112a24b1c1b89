//! What everything means, in float64 and plain loops. For tests alone; shares no code with what it judges.
#![forbid(unsafe_code)]

/// What a bank ranks by; larger is nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Inner product.
    Dot,
    /// Inner product over the product of the norms.
    Cos,
    /// Minus the squared distance.
    L2,
}

/// Adds `terms` the documented way: term j to accumulator j mod 8, then a fixed tree over the eight.
pub fn fixed_sum(terms: &[f64]) -> f64 {
    let mut a = [0.0; 8];
    for (j, term) in terms.iter().enumerate() {
        a[j % 8] += term;
    }
    ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
}

/// The canonical score of key `x` and query `q`, rounded once to float32.
pub fn score(metric: Metric, x: &[f32], q: &[f32]) -> f32 {
    let mut products = Vec::new();
    let mut squares_x = Vec::new();
    let mut squares_q = Vec::new();
    let mut differences = Vec::new();
    for j in 0..x.len() {
        let (a, b) = (f64::from(x[j]), f64::from(q[j]));
        products.push(a * b);
        squares_x.push(a * a);
        squares_q.push(b * b);
        differences.push((b - a) * (b - a));
    }
    let s = match metric {
        Metric::Dot => fixed_sum(&products),
        Metric::L2 => -fixed_sum(&differences),
        Metric::Cos => {
            let (x, q) = (fixed_sum(&squares_x).sqrt(), fixed_sum(&squares_q).sqrt());
            if x == 0.0 || q == 0.0 { 0.0 } else { fixed_sum(&products) / (x * q) }
        }
    };
    let rounded = s as f32;
    if rounded == 0.0 { 0.0 } else { rounded }
}

/// The best `k` of `keys` (id, vector) for `q`: larger score first, then the smaller id; NaN scores are left out.
pub fn search(metric: Metric, keys: &[(i64, Vec<f32>)], q: &[f32], k: usize) -> Vec<(f32, i64)> {
    let mut found = Vec::new();
    for (id, x) in keys {
        let s = score(metric, x, q);
        if !s.is_nan() {
            found.push((s, *id));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    found.truncate(k);
    found
}

/// Softmax attention over `logits` and `values`: the output and the natural log-sum-exp; 0 and -inf over nothing.
pub fn attention(logits: &[f64], values: &[Vec<f32>], value_dim: usize) -> (Vec<f64>, f64) {
    let mut out = vec![0.0; value_dim];
    let mut max = f64::NEG_INFINITY;
    for &z in logits {
        max = max.max(z);
    }
    if max == f64::NEG_INFINITY {
        return (out, max);
    }
    let mut sum = 0.0;
    for &z in logits {
        sum += (z - max).exp();
    }
    for (z, value) in logits.iter().zip(values) {
        for (out, &v) in out.iter_mut().zip(value) {
            *out += (z - max).exp() / sum * f64::from(v);
        }
    }
    (out, max + sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_worked_scores() {
        assert_eq!(score(Metric::Dot, &[1.0, 2.0], &[3.0, 4.0]), 11.0);
        assert_eq!(score(Metric::L2, &[1.0, 2.0], &[3.0, 5.0]), -13.0);
        assert_eq!(score(Metric::Cos, &[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(score(Metric::Cos, &[0.0, 0.0], &[6.0, 8.0]), 0.0);
    }

    #[test]
    fn hand_worked_order() {
        let keys = vec![(7, vec![1.0]), (3, vec![1.0]), (5, vec![2.0]), (9, vec![f32::NAN])];
        assert_eq!(search(Metric::Dot, &keys, &[1.0], 9), [(2.0, 5), (1.0, 3), (1.0, 7)]);
    }

    #[test]
    fn hand_worked_attention() {
        let (out, lse) = attention(&[0.0, 3f64.ln()], &[vec![0.0], vec![4.0]], 1);
        assert!((out[0] - 3.0).abs() < 1e-12 && (lse - 4f64.ln()).abs() < 1e-12);
        assert_eq!(attention(&[], &[], 2), (vec![0.0, 0.0], f64::NEG_INFINITY));
    }
}
