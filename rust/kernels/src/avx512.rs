//! AVX-512: sixteen lanes, thirty-two registers; four key rows against four panels of sixteen queries.
#![expect(unsafe_code, reason = "intrinsics")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "what they need is one: that AVX-512 is enabled")]

use std::arch::x86_64::*;

use crate::codes::{Quads, Query};
use crate::lanes::Lanes;
use crate::table::kernel_table;
use crate::tile::PANEL;

#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

impl From<__m512> for F32x16 {
    #[inline(always)]
    fn from(x: __m512) -> F32x16 {
        F32x16(x)
    }
}

// SAFETY of every block below: the trait's contract enables AVX-512 around the call and makes pointers valid.
impl Lanes for F32x16 {
    const N: usize = 16;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: AVX-512F is enabled and the pointer is valid for sixteen floats.
        Self(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: AVX-512F is enabled and the pointer is valid for sixteen numbers.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: AVX-512F is enabled and the pointer is valid for sixteen numbers.
        let wide = unsafe { _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))) };
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_castsi512_ps(wide) })
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> [Self; 2] {
        // SAFETY: AVX-512F is enabled and the pointer is valid for thirty-two numbers.
        unsafe {
            let x = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xFFFF_0000u32.cast_signed()));
            [Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))), Self(_mm512_castsi512_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX-512F is enabled and the pointer is valid for sixteen floats.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn count(self, x: Self, least: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        let reached = unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x.0, least.0) };
        // SAFETY: AVX-512F is enabled.
        let one = unsafe { _mm512_set1_ps(1.0) };
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_mask_add_ps(self.0, reached, self.0, one) })
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0))) })
    }

    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, least: Self) -> Self {
        // SAFETY: AVX-512F is enabled.
        Self(unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, least.0), self.0) })
    }

    /// Pairs of vectors are halved and put into one, four times; the order in which they meet puts sum i into lane i.
    #[inline(always)]
    unsafe fn sums(vectors: &[Self; PANEL]) -> Self {
        // SAFETY: AVX-512F is enabled.
        unsafe {
            let [a, b, c, d] = [column(vectors, 0), column(vectors, 1), column(vectors, 2), column(vectors, 3)];
            Self(single(pairs(a, b), pairs(c, d)))
        }
    }

    #[inline(always)]
    unsafe fn dots<const M: usize>(x: [&[f32]; M], q: &[f32]) -> [f64; M] {
        assert!(x.iter().all(|x| x.len() == q.len()), "vectors of one length");
        let whole = q.len() / 8 * 8;
        // SAFETY: AVX-512F is enabled, and eight numbers from each place are of the vectors.
        unsafe {
            let mut sums = [_mm512_setzero_pd(); M];
            for at in (0..whole).step_by(8) {
                let q = eight(&q[at..]);
                for m in 0..M {
                    // A product of two float32 is exact: fused or not, the sum is the same.
                    sums[m] = _mm512_fmadd_pd(eight(x[m].get_unchecked(at..)), q, sums[m]);
                }
            }
            if whole < q.len() {
                // Zeros in the place of what is missing add nothing.
                let q = last(&q[whole..]);
                for m in 0..M {
                    sums[m] = _mm512_fmadd_pd(last(&x[m][whole..]), q, sums[m]);
                }
            }
            let mut out = [0.0; M];
            if M == 8 {
                let mut eight = [_mm512_setzero_pd(); 8];
                eight[..M].copy_from_slice(&sums);
                let mut all = [0.0; 8];
                _mm512_storeu_pd(all.as_mut_ptr(), canonical_sums(eight));
                out.copy_from_slice(&all[..M]);
                return out;
            }
            for m in 0..M {
                let four = _mm256_add_pd(_mm512_castpd512_pd256(sums[m]), _mm512_extractf64x4_pd::<1>(sums[m]));
                let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
                out[m] = _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn not_less(self, other: Self) -> u32 {
        // SAFETY: AVX-512F is enabled.
        u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, other.0) })
    }
}

/// In lane i the sum of vector i, added up in the canonical order: lanes four apart, then two, then one.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn canonical_sums(x: [__m512d; 8]) -> __m512d {
    // SAFETY: the caller's promise.
    unsafe {
        let mut four = [_mm512_setzero_pd(); 4];
        for i in 0..4 {
            // The four sums of vector i, then those of vector i + 4.
            let low = _mm512_shuffle_f64x2::<0x44>(x[i], x[i + 4]);
            four[i] = _mm512_add_pd(low, _mm512_shuffle_f64x2::<0xEE>(x[i], x[i + 4]));
        }
        let mut two = [_mm512_setzero_pd(); 2];
        for i in 0..2 {
            // Two each of vectors i, i + 4, i + 2 and i + 6.
            let low = _mm512_shuffle_f64x2::<0x88>(four[i], four[i + 2]);
            two[i] = _mm512_add_pd(low, _mm512_shuffle_f64x2::<0xDD>(four[i], four[i + 2]));
        }
        // Of vectors 0, 1, 4, 5, 2, 3, 6 and 7.
        let one = _mm512_add_pd(_mm512_unpacklo_pd(two[0], two[1]), _mm512_unpackhi_pd(two[0], two[1]));
        _mm512_shuffle_f64x2::<0b1101_1000>(one, one)
    }
}

/// The first eight numbers, in float64.
///
/// # Safety
/// AVX-512 is enabled, and there are as many.
#[inline(always)]
unsafe fn eight(x: &[f32]) -> __m512d {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(x.as_ptr())) }
}

/// Fewer than eight, with zeros behind.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn last(x: &[f32]) -> __m512d {
    let mut padded = [0.0; 8];
    padded[..x.len()].copy_from_slice(x);
    // SAFETY: the caller's promise.
    unsafe { eight(&padded) }
}

/// In quarter i: four numbers with the sum of vector `4 i + at`. No closure: it would not be compiled for AVX-512.
#[inline(always)]
unsafe fn column(v: &[F32x16; PANEL], at: usize) -> __m512 {
    // SAFETY: AVX-512F is enabled.
    unsafe { quarters(halves(v[at].0, v[at + 4].0), halves(v[at + 8].0, v[at + 12].0)) }
}

/// The sums of the halves of a, then of b: 256 bits each.
#[inline(always)]
unsafe fn halves(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512F is enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b)) }
}

/// The sums of neighbouring quarters of a, then of b: 128 bits each.
#[inline(always)]
unsafe fn quarters(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512F is enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b)) }
}

/// In each quarter: the sums of the halves of a's, then of b's.
#[inline(always)]
unsafe fn pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512F is enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xEE>(a, b)) }
}

/// In each quarter: the sums of neighbours of a's, then of b's.
#[inline(always)]
unsafe fn single(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512F is enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xDD>(a, b)) }
}

/// Pairs of products: two lanes a row.
impl Quads for F32x16 {
    const N: usize = 16;
    type Sums = [__m512i; 2];
    type Weights = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: AVX-512F is enabled.
        [unsafe { _mm512_setzero_si512() }; 2]
    }

    #[inline(always)]
    unsafe fn weights(query: &Query, quad: usize) -> Self::Weights {
        // SAFETY: AVX-512F is enabled; the caller's promise.
        unsafe { _mm512_set1_epi64(query.weights(quad).as_ptr().cast::<i64>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add([a, b]: Self::Sums, codes: *const u8, weights: Self::Weights) -> Self::Sums {
        // SAFETY: AVX-512BW is enabled and the pointer is valid for 64 codes.
        unsafe {
            let x = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.cast()));
            let y = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.add(32).cast()));
            [_mm512_add_epi32(a, _mm512_madd_epi16(x, weights)), _mm512_add_epi32(b, _mm512_madd_epi16(y, weights))]
        }
    }

    #[inline(always)]
    unsafe fn store([a, b]: Self::Sums, out: *mut i32) {
        // SAFETY: AVX-512F is enabled and the pointer is valid for sixteen numbers.
        unsafe {
            let first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(1));
            let sums =
                _mm512_add_epi32(_mm512_permutex2var_epi32(a, first, b), _mm512_permutex2var_epi32(a, second, b));
            _mm512_storeu_si512(out.cast(), sums);
        }
    }
}

kernel_table! {
    /// AVX-512 F, BW, DQ and VL.
    isa: Avx512, lanes: F32x16, features: (enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,lzcnt,bmi1,bmi2")
}
