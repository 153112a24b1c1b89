//! AVX-512 VNNI: four products of bytes, summed, in each of sixteen lanes at once; see [`crate::codes`]. Every processor
//! with AVX-512 BF16 or AMX has it, so it has no table of its own.
#![expect(unsafe_code, reason = "intrinsics")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "what they need is one: that AVX-512 VNNI is enabled")]

use std::arch::x86_64::*;

use crate::avx512::F32x16;
use crate::codes::{Codes, QUAD, Quads, Query, together};
use crate::tile::Pass;

/// [`crate::Kernels::select_codes`].
pub(crate) const SELECT: fn(Codes, u64, &[Query], &[f32], &mut Vec<Pass>) = entry::select_codes;

/// Sums with a and with b of a query's numbers 128 a + b.
struct Parts;

// SAFETY of every block below: the trait's contract enables AVX-512 and VNNI around the call and makes pointers valid.
impl Quads for Parts {
    const N: usize = 16;
    type Sums = [__m512i; 2];
    type Weights = [__m512i; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: AVX-512F is enabled.
        [unsafe { _mm512_setzero_si512() }; 2]
    }

    #[inline(always)]
    unsafe fn weights(query: &Query, quad: usize) -> Self::Weights {
        // SAFETY: AVX-512F is enabled; the caller's promise.
        unsafe {
            let parts = query.parts(quad).as_ptr().cast::<i32>();
            [_mm512_set1_epi32(parts.read_unaligned()), _mm512_set1_epi32(parts.add(1).read_unaligned())]
        }
    }

    #[inline(always)]
    unsafe fn add([a, b]: Self::Sums, codes: *const u8, [high, low]: Self::Weights) -> Self::Sums {
        const { assert!(QUAD == 4) };
        // SAFETY: AVX-512 VNNI is enabled and the pointer is valid for 64 codes.
        unsafe {
            let x = _mm512_loadu_si512(codes.cast());
            [_mm512_dpbusd_epi32(a, x, high), _mm512_dpbusd_epi32(b, x, low)]
        }
    }

    #[inline(always)]
    unsafe fn store([a, b]: Self::Sums, out: *mut i32) {
        // SAFETY: AVX-512F is enabled and the pointer is valid for sixteen numbers.
        unsafe { _mm512_storeu_si512(out.cast(), _mm512_add_epi32(_mm512_slli_epi32::<7>(a), b)) }
    }
}

/// Sums with a alone, of queries of which b is 0.
struct High;

impl Quads for High {
    const N: usize = 16;
    type Sums = __m512i;
    type Weights = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        // SAFETY: AVX-512F is enabled.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn weights(query: &Query, quad: usize) -> Self::Weights {
        // SAFETY: AVX-512F is enabled; the caller's promise.
        unsafe { _mm512_set1_epi32(query.parts(quad).as_ptr().cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, codes: *const u8, weights: Self::Weights) -> Self::Sums {
        // SAFETY: AVX-512 VNNI is enabled and the pointer is valid for 64 codes.
        unsafe { _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(codes.cast()), weights) }
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, out: *mut i32) {
        // SAFETY: AVX-512F is enabled and the pointer is valid for sixteen numbers.
        unsafe { _mm512_storeu_si512(out.cast(), _mm512_slli_epi32::<7>(sums)) }
    }
}

/// Coarse queries four at a time, others one by one.
///
/// # Safety
/// AVX-512 VNNI is enabled.
#[inline(always)]
unsafe fn select(keys: Codes, live: u64, queries: &[Query], thresholds: &[f32], out: &mut Vec<Pass>) {
    const TOGETHER: usize = 4;
    let coarse = queries.iter().all(Query::is_coarse);
    let mut at = 0;
    while at < queries.len() {
        // SAFETY: the caller's promise.
        at += unsafe {
            match (coarse, queries.len() - at) {
                (true, TOGETHER..) => {
                    together::<F32x16, High, TOGETHER>(keys, live, queries, thresholds, at, out);
                    TOGETHER
                }
                (true, _) => {
                    together::<F32x16, High, 1>(keys, live, queries, thresholds, at, out);
                    1
                }
                (false, _) => {
                    together::<F32x16, Parts, 1>(keys, live, queries, thresholds, at, out);
                    1
                }
            }
        };
    }
}

/// Safe entries of the table's types.
mod entry {
    use crate::codes::{Codes, Query};
    use crate::tile::Pass;

    crate::table::kernel_table!(@entries (enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
        select_codes(keys: Codes, live: u64, queries: &[Query], thresholds: &[f32], out: &mut Vec<Pass>)
            => super::select;
    );
}
