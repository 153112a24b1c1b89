//! Products of short numbers in vector registers: pairs of bfloat16 (`vdpbf16ps`) and fours of int8 (`vpdpbusd`).
//!
//! The loops are those of `compute`, for 32-bit words that hold two or four numbers: one instruction multiplies the
//! numbers of a word and adds all products to a 32-bit sum.
#![expect(unsafe_code, reason = "vector loads and stores, and calls into code compiled for a detected instruction set")]
#![cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "the instructions exist on x86-64 alone"))]

const DIM: usize = 128;
const STEPS: usize = 4096;
/// Words of a cache line; a load across two lines costs two.
const LINE: usize = 16;
const ROWS: usize = 6;
const COLUMNS: usize = 4;

/// Bytes of keys in a panel, as many as in the panel of `compute`.
pub const PANEL_BYTES: usize = crate::compute::PANEL_BYTES;

/// Queries and keys of one panel as words, and room for its sums.
pub struct Panel {
    queries: Vec<u32>,
    keys: Vec<u32>,
    first: usize,
    sums: Vec<u32>,
}

impl Panel {
    /// A panel of ones, as bfloat16 or as int8 other than zero: the rate does not depend on them.
    pub fn new() -> Self {
        let keys = vec![0x3f80_3f80; PANEL_BYTES / 4 + LINE];
        let first = keys.as_ptr().align_offset(4 * LINE).min(LINE);
        Self { queries: vec![0x3f80_3f80; ROWS * DIM], keys, first, sums: vec![0; ROWS * COLUMNS * LINE] }
    }
}

/// The two loops for one kind of number.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Name of the instruction set, and of the metric.
    pub name: &'static str,
    /// Unit of the rate.
    pub unit: &'static str,
    /// Products in registers.
    pub registers: fn() -> f64,
    /// Scores of a panel.
    pub panel: fn(&mut Panel) -> f64,
}

/// The kinds that this processor has.
pub fn available() -> Vec<Kernels> {
    #[cfg(target_arch = "x86_64")]
    {
        let (f, bf16, vnni) = (
            std::arch::is_x86_feature_detected!("avx512f"),
            std::arch::is_x86_feature_detected!("avx512bf16"),
            std::arch::is_x86_feature_detected!("avx512vnni"),
        );
        let kinds = [(f && bf16, avx512_bf16::KERNELS), (f && vnni, avx512_vnni::KERNELS)];
        kinds.into_iter().filter_map(|(present, kernels)| present.then_some(kernels)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Both loops for words of `numbers` numbers: `dot` adds their products to a sum, `zero` makes one, `short` turns a
/// vector of words into an operand, and `whole` a sum into words.
macro_rules! kernels {
    ($module:ident, $features:literal, $unit:literal, $numbers:literal, $dot:ident, $zero:ident, $short:expr, $whole:expr) => {
        #[cfg(target_arch = "x86_64")]
        mod $module {
            use std::arch::x86_64::*;
            use std::hint::black_box;

            use super::{COLUMNS, DIM, Kernels, LINE, Panel, ROWS, STEPS};

            pub(super) const KERNELS: Kernels = Kernels {
                name: stringify!($module),
                unit: $unit,
                // SAFETY: `available` hands these out only where the features were detected.
                registers: || unsafe { registers() },
                // SAFETY: as above.
                panel: |panel| unsafe { score(panel) },
            };

            #[target_feature(enable = $features)]
            fn registers() -> f64 {
                const CHAINS: usize = 16;
                let short = $short;
                let (a, b) = (short(_mm512_set1_epi32(black_box(1))), short(_mm512_set1_epi32(black_box(2))));
                let mut chains = [$zero(); CHAINS];
                for _ in 0..STEPS {
                    for chain in &mut chains {
                        *chain = $dot(*chain, a, b);
                    }
                }
                black_box(chains);
                (2 * $numbers * LINE * CHAINS * STEPS) as f64
            }

            #[target_feature(enable = $features)]
            fn score(panel: &mut Panel) -> f64 {
                const WORDS: usize = DIM / $numbers;
                const BLOCK: usize = WORDS * COLUMNS * LINE;
                assert!(panel.queries.len() >= ROWS * WORDS && panel.sums.len() >= ROWS * COLUMNS * LINE);
                let (short, whole) = ($short, $whole);
                let queries = black_box(panel.queries.as_ptr());
                let mut done = 0;
                for block in panel.keys[panel.first..].chunks_exact(BLOCK) {
                    let mut sums = [[$zero(); COLUMNS]; ROWS];
                    for (j, keys) in block.chunks_exact(COLUMNS * LINE).enumerate() {
                        let keys: [_; COLUMNS] = std::array::from_fn(|column| {
                            let key = &keys[column * LINE..][..LINE];
                            // SAFETY: `key` is one whole vector.
                            short(unsafe { _mm512_loadu_si512(key.as_ptr().cast()) })
                        });
                        for (r, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: j < words and r < rows; the length was asserted above.
                            let query = short(_mm512_set1_epi32(unsafe { *queries.add(r * WORDS + j) }.cast_signed()));
                            for (sum, key) in sums.iter_mut().zip(keys) {
                                *sum = $dot(*sum, key, query);
                            }
                        }
                    }
                    for (sum, out) in sums.as_flattened().iter().zip(panel.sums.chunks_exact_mut(LINE)) {
                        // SAFETY: `out` is one whole vector.
                        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), whole(*sum)) };
                    }
                    black_box(&mut panel.sums);
                    done += 2 * $numbers * ROWS * BLOCK;
                }
                done as f64
            }
        }
    };
}

kernels!(
    avx512_bf16,
    "avx512f,avx512bf16",
    "GFLOP/s",
    2,
    _mm512_dpbf16_ps,
    _mm512_setzero_ps,
    // SAFETY: both are 512 bits, and any bits are bfloat16 numbers.
    |words: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) },
    |sum: __m512| _mm512_castps_si512(sum)
);
kernels!(
    avx512_vnni,
    "avx512f,avx512vnni",
    "GOP/s",
    4,
    _mm512_dpbusd_epi32,
    _mm512_setzero_si512,
    |words: __m512i| words,
    |sum: __m512i| sum
);
