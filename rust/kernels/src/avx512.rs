//! AVX-512: sixteen lanes, thirty-two registers; four key rows against four panels of sixteen queries.
#![expect(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use crate::lanes::Lanes;
use crate::table::kernel_table;

#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

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
    unsafe fn not_less(self, other: Self) -> u32 {
        // SAFETY: AVX-512F is enabled.
        u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, other.0) })
    }
}

kernel_table! {
    /// AVX-512 F, BW, DQ and VL.
    isa: Avx512, lanes: F32x16, features: (enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
}
