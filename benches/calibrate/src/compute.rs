//! Single-precision multiply-add: the rate of the registers alone, and of the loop that exact search needs.
//!
//! `registers` keeps independent chains of fused multiply-adds busy and touches no memory. `panel` scores a few
//! queries against a panel of keys that lies in the second-level cache: loads of keys, broadcasts of query
//! elements, and a store of the scores after every 128 dimensions. Both return the operations done.
#![expect(unsafe_code, reason = "vector loads and stores, and calls into code compiled for a detected instruction set")]

const DIM: usize = 128;
const STEPS: usize = 4096;
/// Elements of a cache line; a load across two lines costs two.
const LINE: usize = 16;

/// Bytes of keys in a panel: half of a small second-level cache.
pub const PANEL_BYTES: usize = 512 << 10;

/// Queries and keys of one panel, and room for its scores.
pub struct Panel {
    queries: Vec<f32>,
    keys: Vec<f32>,
    first: usize,
    scores: Vec<f32>,
}

impl Panel {
    /// A panel of small, equal values: the rate does not depend on them.
    pub fn new() -> Self {
        let keys = vec![0.25; PANEL_BYTES / 4 + LINE];
        let first = keys.as_ptr().align_offset(4 * LINE).min(LINE);
        Self { queries: vec![0.5; 8 * DIM], keys, first, scores: vec![0.0; 8 * 64] }
    }
}

/// The two loops, compiled for one instruction set.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Name of the instruction set.
    pub isa: &'static str,
    /// Multiply-adds in registers.
    pub registers: fn() -> f64,
    /// Scores of a panel.
    pub panel: fn(&mut Panel) -> f64,
}

/// Kernels of the widest instruction set that this processor has.
pub fn best() -> Kernels {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return avx512::KERNELS;
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return avx2::KERNELS;
        }
    }
    portable::KERNELS
}

/// Kernels for AVX2 where the processor has more: what an engine that is held to AVX2 can do at best.
pub fn narrower() -> Option<Kernels> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return Some(avx2::KERNELS);
    }
    None
}

/// Both loops over one vector type; `rows` queries by `columns` vectors of keys fill the register file.
macro_rules! kernels {
    ($module:ident, $features:literal, $lanes:literal, $rows:literal x $columns:literal, $chains:literal,
     $set1:ident, $load:ident, $store:ident, $fma:ident) => {
        #[cfg(target_arch = "x86_64")]
        mod $module {
            use std::arch::x86_64::{$fma, $load, $set1, $store};
            use std::hint::black_box;

            use super::{DIM, Kernels, Panel, STEPS};

            pub(super) const KERNELS: Kernels = Kernels {
                isa: stringify!($module),
                // SAFETY: `best` hands these out only where the features were detected.
                registers: || unsafe { registers() },
                // SAFETY: as above.
                panel: |panel| unsafe { score(panel) },
            };

            #[target_feature(enable = $features)]
            fn registers() -> f64 {
                let (factor, term) = ($set1(black_box(0.5)), $set1(black_box(1.0)));
                let mut chains = [term; $chains];
                for _ in 0..STEPS {
                    for chain in &mut chains {
                        *chain = $fma(*chain, factor, term);
                    }
                }
                black_box(chains);
                (2 * $lanes * $chains * STEPS) as f64
            }

            #[target_feature(enable = $features)]
            fn score(panel: &mut Panel) -> f64 {
                const BLOCK: usize = DIM * $columns * $lanes;
                assert!(panel.queries.len() >= $rows * DIM && panel.scores.len() >= $rows * $columns * $lanes);
                let queries = black_box(panel.queries.as_ptr());
                let mut done = 0;
                for block in panel.keys[panel.first..].chunks_exact(BLOCK) {
                    let mut sums = [[$set1(0.0); $columns]; $rows];
                    for (j, keys) in block.chunks_exact($columns * $lanes).enumerate() {
                        let keys: [_; $columns] = std::array::from_fn(|column| {
                            let key = &keys[column * $lanes..][..$lanes];
                            // SAFETY: `key` is one whole vector.
                            unsafe { $load(key.as_ptr()) }
                        });
                        for (r, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: j < DIM and r < rows; the length was asserted above.
                            let query = $set1(unsafe { *queries.add(r * DIM + j) });
                            for (sum, key) in sums.iter_mut().zip(keys) {
                                *sum = $fma(query, key, *sum);
                            }
                        }
                    }
                    for (sum, out) in sums.as_flattened().iter().zip(panel.scores.chunks_exact_mut($lanes)) {
                        // SAFETY: `out` is one whole vector.
                        unsafe { $store(out.as_mut_ptr(), *sum) };
                    }
                    black_box(&mut panel.scores);
                    done += 2 * $rows * BLOCK;
                }
                done as f64
            }
        }
    };
}

kernels!(avx512, "avx512f", 16, 6 x 4, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps);
kernels!(avx2, "avx2,fma", 8, 6 x 2, 12, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);

/// Plain loops for every other processor; the compiler turns them into its vector instructions.
mod portable {
    use std::hint::black_box;

    use super::{DIM, Kernels, Panel, STEPS};

    const LANES: usize = 16;
    const CHAINS: usize = 6;
    const ROWS: usize = 4;

    pub(super) const KERNELS: Kernels = Kernels { isa: "portable", registers, panel: score };

    /// Fused where the target has the instruction; elsewhere `mul_add` would be a library call.
    fn multiply_add(sum: f32, a: f32, b: f32) -> f32 {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, sum) } else { sum + a * b }
    }

    fn registers() -> f64 {
        let (factor, term) = (black_box(0.5), black_box(1.0));
        let mut chains = [[1.0f32; LANES]; CHAINS];
        for _ in 0..STEPS {
            for x in chains.as_flattened_mut() {
                *x = multiply_add(term, *x, factor);
            }
        }
        black_box(chains);
        (2 * LANES * CHAINS * STEPS) as f64
    }

    fn score(panel: &mut Panel) -> f64 {
        let mut done = 0;
        for block in panel.keys[panel.first..].chunks_exact(DIM * LANES) {
            let mut sums = [[0.0f32; LANES]; ROWS];
            for (j, keys) in block.chunks_exact(LANES).enumerate() {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = multiply_add(*sum, panel.queries[r * DIM + j], *key);
                    }
                }
            }
            panel.scores[..ROWS * LANES].copy_from_slice(sums.as_flattened());
            black_box(&mut panel.scores);
            done += 2 * ROWS * block.len();
        }
        done as f64
    }
}
