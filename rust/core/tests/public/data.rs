//! Numbers that are hard on an exact search, each kind for its own reason.

use ndarray::Array4;

/// Splitmix64: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// From 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Close to normal: the sum of twelve.
    fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32
    }

    fn normals(&mut self, dim: usize) -> Vec<f32> {
        (0..dim).map(|_| self.normal()).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Scores spread out.
    Gaussian,
    /// Many entries near the best.
    Clustered,
    /// Half of the entries are exact copies of the others: ties go by id.
    Duplicated,
    /// Every entry the same: nothing but ties.
    Constant,
    /// Norms from subnormal to where sums leave float32's range, and zeros: no bound holds.
    HugeAndTiny,
    /// Scores that differ below float32's rounding of a sum.
    NearTies,
    /// One number of each vector is far larger than the others: codes of it lose all of these.
    Spiked,
}

impl Data {
    pub(crate) const ALL: [Data; 7] = [
        Data::Gaussian,
        Data::Clustered,
        Data::Duplicated,
        Data::Constant,
        Data::HugeAndTiny,
        Data::NearTies,
        Data::Spiked,
    ];

    /// `n` vectors.
    pub(crate) fn vectors(self, random: &mut Random, n: usize, dim: usize) -> Vec<Vec<f32>> {
        let centres: Vec<_> = (0..4).map(|_| random.normals(dim)).collect();
        let mut made: Vec<Vec<f32>> = Vec::with_capacity(n);
        for i in 0..n {
            let vector = match self {
                Data::Gaussian => random.normals(dim),
                Data::Clustered => {
                    let centre = &centres[random.below(4)];
                    centre.iter().map(|c| c + 1e-5 * random.normal()).collect()
                }
                Data::Duplicated if i % 2 == 1 => made[random.below(i)].clone(),
                Data::Duplicated => random.normals(dim),
                Data::Constant => centres[0].clone(),
                Data::HugeAndTiny => {
                    let size = 10f64.powf(random.unit() * 76.0 - 42.0) as f32 * random.below(8).min(1) as f32;
                    random.normals(dim).iter().map(|x| x * size).collect()
                }
                Data::NearTies => (0..dim).map(|_| 1.0 + random.below(4) as f32 * f32::EPSILON).collect(),
                Data::Spiked => {
                    let mut vector = random.normals(dim);
                    vector[random.below(dim.min(2))] *= 1e4;
                    vector
                }
            };
            made.push(vector);
        }
        made
    }

    /// An array of such vectors.
    pub(crate) fn array(self, random: &mut Random, [rows, heads, tokens, dim]: [usize; 4]) -> Array4<f32> {
        let mut all = Vec::with_capacity(rows * heads * tokens * dim);
        for _ in 0..rows * heads {
            all.extend(self.vectors(random, tokens, dim).concat());
        }
        Array4::from_shape_vec([rows, heads, tokens, dim], all).unwrap()
    }
}
