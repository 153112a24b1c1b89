//! AVX2 + FMA: eight lanes, sixteen registers; four key rows against one panel of sixteen queries.
#![expect(unsafe_code, reason = "intrinsics")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "what they need is one: that AVX2 is enabled")]

use std::arch::x86_64::*;

use crate::codes::{Quads, Query};
use crate::lanes::Lanes;
use crate::table::kernel_table;
use crate::tile::PANEL;

#[derive(Clone, Copy)]
struct F32x8(__m256);

// SAFETY of every block below: the trait's contract enables AVX2 and FMA around the call and makes pointers valid.
impl Lanes for F32x8 {
    const N: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX2 is enabled.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: AVX2 is enabled and the pointer is valid for eight floats.
        Self(unsafe { _mm256_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: F16C is enabled and the pointer is valid for eight numbers.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: AVX2 is enabled and the pointer is valid for eight numbers.
        let wide = unsafe { _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))) };
        // SAFETY: AVX2 is enabled.
        Self(unsafe { _mm256_castsi256_ps(wide) })
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> [Self; 2] {
        // SAFETY: AVX2 is enabled and the pointer is valid for sixteen numbers.
        unsafe {
            let x = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF_0000u32.cast_signed()));
            [Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))), Self(_mm256_castsi256_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: AVX2 is enabled and the pointer is valid for eight floats.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: FMA is enabled.
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX is enabled.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX2 is enabled.
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX2 is enabled.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: AVX is enabled.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX is enabled.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn count(self, x: Self, least: Self) -> Self {
        // SAFETY: AVX is enabled.
        let one = unsafe { _mm256_set1_ps(1.0) };
        // SAFETY: AVX is enabled.
        let reached = unsafe { _mm256_cmp_ps::<_CMP_GE_OQ>(x.0, least.0) };
        // SAFETY: AVX is enabled; ands with all ones or zeros give 1 or 0.
        let more = unsafe { _mm256_and_ps(reached, one) };
        // SAFETY: AVX is enabled.
        Self(unsafe { _mm256_add_ps(self.0, more) })
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: AVX2 is enabled.
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0))) })
    }

    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, least: Self) -> Self {
        // SAFETY: AVX is enabled.
        Self(unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x.0, least.0), self.0) })
    }

    #[inline(always)]
    unsafe fn sums(vectors: &[Self; PANEL]) -> Self {
        // SAFETY: AVX is enabled.
        unsafe {
            let (a, b) = (halves(vectors, 0), halves(vectors, 4));
            Self(_mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)))
        }
    }

    #[inline(always)]
    unsafe fn not_less(self, other: Self) -> u32 {
        // SAFETY: AVX2 is enabled.
        let passed = unsafe { _mm256_cmp_ps::<_CMP_NLT_UQ>(self.0, other.0) };
        // SAFETY: AVX2 is enabled.
        unsafe { _mm256_movemask_ps(passed) }.cast_unsigned()
    }
}

/// In each half: the sums of that half of four vectors. No closure: it would not be compiled for AVX2.
#[inline(always)]
unsafe fn halves(v: &[F32x8; PANEL], at: usize) -> __m256 {
    // SAFETY: AVX is enabled.
    unsafe { _mm256_hadd_ps(_mm256_hadd_ps(v[at].0, v[at + 1].0), _mm256_hadd_ps(v[at + 2].0, v[at + 3].0)) }
}

/// Pairs of products: two lanes a row.
impl Quads for F32x8 {
    const N: usize = 8;
    type Sums = [__m256i; 2];
    type Weights = __m256i;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: AVX is enabled.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    unsafe fn weights(query: &Query, quad: usize) -> Self::Weights {
        // SAFETY: AVX is enabled; the caller's promise.
        unsafe { _mm256_set1_epi64x(query.weights(quad).as_ptr().cast::<i64>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add([a, b]: Self::Sums, codes: *const u8, weights: Self::Weights) -> Self::Sums {
        // SAFETY: AVX2 is enabled and the pointer is valid for 32 codes.
        unsafe {
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.cast()));
            let y = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.add(16).cast()));
            [_mm256_add_epi32(a, _mm256_madd_epi16(x, weights)), _mm256_add_epi32(b, _mm256_madd_epi16(y, weights))]
        }
    }

    #[inline(always)]
    unsafe fn store([a, b]: Self::Sums, out: *mut i32) {
        // SAFETY: AVX2 is enabled and the pointer is valid for eight numbers.
        unsafe { _mm256_storeu_si256(out.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b))) }
    }
}

kernel_table! {
    /// AVX2, FMA and F16C.
    isa: Avx2, lanes: F32x8, features: (enable = "avx2,fma,f16c,popcnt,lzcnt,bmi1,bmi2")
}
