//! Blocks of keys and queries that break kernels.

use mnemex_kernels::canonical::Metric;
use mnemex_kernels::tile::{Queries, pack, packed_len};
use mnemex_kernels::{Isa, Kernels, Keys, Rule};
use mnemex_oracle as oracle;

pub(crate) const METRICS: [(Metric, oracle::Metric, Rule); 3] = [
    (Metric::Dot, oracle::Metric::Dot, Rule::Dot),
    (Metric::Cos, oracle::Metric::Cos, Rule::Scaled),
    (Metric::L2, oracle::Metric::L2, Rule::L2),
];

/// SplitMix64: the same numbers on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// One of the kinds of numbers that break kernels.
    pub(crate) fn vector(&mut self, kind: usize, dim: usize) -> Vec<f32> {
        (0..dim)
            .map(|j| match kind {
                0 => self.unit(),
                1 => self.unit() * 1e-42,
                2 => self.unit() * 1e18,
                3 => [0.0, -0.0][self.bits() as usize % 2],
                4 => 0.3,
                5 => f32::from(u8::from(j == dim / 2)),
                _ => (self.unit() * 8.0).round(),
            })
            .collect()
    }
}

pub(crate) fn tables() -> impl Iterator<Item = &'static Kernels> {
    Isa::available().map(|isa| Kernels::of(isa).unwrap())
}

pub(crate) fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Keys and queries laid out as the kernels want them, the float after each row poisoned where it may not be read.
pub(crate) struct Block {
    pub(crate) keys: Vec<Vec<f32>>,
    pub(crate) queries: Vec<Vec<f32>>,
    pub(crate) rows: Vec<f32>,
    pub(crate) stride: usize,
    pub(crate) scale: Vec<f32>,
    pub(crate) panels: Vec<f32>,
}

impl Block {
    pub(crate) fn new(seed: u64, kind: usize, n: usize, n_queries: usize, dim: usize, rule: Rule) -> Block {
        let mut random = Random(seed);
        let keys: Vec<_> = (0..n).map(|_| random.vector(kind, dim)).collect();
        let queries: Vec<_> = (0..n_queries).map(|_| random.vector(kind.min(6), dim)).collect();
        let stride = dim + seed as usize % 8;
        let mut rows = vec![f32::NAN; n.next_multiple_of(8) * stride];
        for (at, key) in rows.chunks_exact_mut(stride).zip(&keys) {
            at[..dim].copy_from_slice(key);
        }
        let inverse = |x: f64| if x == 0.0 { 0.0 } else { (1.0 / x) as f32 };
        let scale = if rule == Rule::Scaled { keys.iter().map(|k| inverse(norm(k))).collect() } else { vec![] };
        let mut panels = vec![0.0; packed_len(n_queries, dim)];
        for (at, q) in queries.iter().enumerate() {
            let size = norm(q);
            let unit = |x: &f32| if size == 0.0 { 0.0 } else { (f64::from(*x) / size) as f32 };
            let q: Vec<f32> = if rule == Rule::Scaled { q.iter().map(unit).collect() } else { q.clone() };
            pack(&q, at, &mut panels);
        }
        Block { keys, queries, rows, stride, scale, panels }
    }

    pub(crate) fn keys(&self) -> Keys<'_> {
        Keys { rows: &self.rows, stride: self.stride, n: self.keys.len(), scale: &self.scale, next: &[] }
    }

    pub(crate) fn queries(&self, dim: usize) -> Queries<'_> {
        Queries { panels: &self.panels, dim, n: self.queries.len() }
    }
}

pub(crate) fn awkward(check: impl Fn(u64, usize, usize, usize, usize)) {
    let mut seed = 0;
    for dim in (1..=33).chain([63, 64, 65, 127, 128, 129, 256]) {
        for kind in 0..7 {
            seed += 1;
            let n = [1, 7, 8, 16, 33, 63, 64][seed as usize % 7];
            let n_queries = [1, 3, 15, 16, 17, 33, 64, 70, 80][seed as usize % 9];
            check(seed, kind, n, n_queries, dim);
        }
    }
}
