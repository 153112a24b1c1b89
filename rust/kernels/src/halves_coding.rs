//! AVX-512: codes of half keys and of queries, for [`crate::halves`].
#![expect(unsafe_code, reason = "intrinsics; lengths are asserted at entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "what they need is one: that AVX-512 is enabled")]
#![expect(clippy::needless_range_loop, reason = "indices are registers: r a row")]

use std::arch::x86_64::*;

use crate::avx512::F32x16;
use crate::codes::{MOST, ROWS, SHIFT, padded};
use crate::coding::{LANES, roots, side_by_side};
use crate::halves::{CodedQuery, CodesMut};
use crate::lanes::Lanes;
use crate::many::row_bytes;

/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub(crate) unsafe fn code(keys: &[f32], share: f32, out: CodesMut) {
    let (dim, n) = (out.dim, keys.len() / out.dim);
    let (blocks, block_bytes) = (n.div_ceil(ROWS), padded(dim) * ROWS);
    assert!(n > 0 && keys.len() == n * dim && out.bytes.len() >= blocks * block_bytes, "room for all rows");
    assert!(out.scale.len() >= blocks * ROWS && out.slack.len() >= blocks * ROWS, "a factor and a slack for each");
    assert!(out.rows.len() >= LANES * row_bytes(dim), "room for sixteen rows");
    for block in 0..blocks {
        for row in (0..ROWS).step_by(LANES) {
            let first = block * ROWS + row;
            let (scale, slack) = (&mut out.scale[first..][..LANES], &mut out.slack[first..][..LANES]);
            if first >= n {
                scale.fill(0.0);
                slack.fill(f32::INFINITY);
                continue;
            }
            // SAFETY: lengths were asserted; the rest is the caller's promise.
            unsafe {
                code_rows(keys, dim, first, share, (scale, slack), out.rows);
                side_by_side(out.rows, dim, row, &mut out.bytes[block * block_bytes..][..block_bytes]);
            }
        }
    }
}

/// The factor of codes, one over it, and which rows have one, from the bits of the largest magnitudes: of what is not finite
/// or has a factor that is not a normal number all codes are 0.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn factors(most: __m512i) -> (__mmask16, __m512, __m512) {
    // SAFETY: the caller's promise.
    unsafe {
        let finite = _mm512_cmplt_epu32_mask(most, _mm512_set1_epi32(0x7F80_0000));
        let (most, all) = (_mm512_castsi512_ps(most), _mm512_set1_ps(MOST));
        let scale = _mm512_div_ps(most, all);
        let coded = finite & _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scale, _mm512_set1_ps(f32::MIN_POSITIVE));
        (finite, _mm512_maskz_mov_ps(coded, scale), _mm512_maskz_div_ps(coded, all, most))
    }
}

/// At most sixteen numbers from `j` on, and zeros.
///
/// # Safety
/// AVX-512 is enabled; `j` is below the length.
#[inline(always)]
unsafe fn load(x: &[f32], j: usize) -> __m512 {
    let there = u16::MAX >> (LANES - (x.len() - j).min(LANES));
    // SAFETY: no more than there are.
    unsafe { _mm512_maskz_loadu_ps(there, x.as_ptr().add(j)) }
}

/// The bits of the largest magnitude.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn largest(x: &[f32]) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut most = _mm512_setzero_si512();
        for j in (0..x.len()).step_by(LANES) {
            let magnitude = _mm512_and_si512(_mm512_castps_si512(load(x, j)), _mm512_set1_epi32(0x7FFF_FFFF));
            most = _mm512_max_epu32(most, magnitude);
        }
        _mm512_reduce_max_epu32(most)
    }
}

/// Whole numbers, and the squares of what they lose and of the numbers, added up.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn whole(x: __m512, inverse: __m512, scale: __m512, [lost, norm]: [__m512; 2]) -> (__m512i, [__m512; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        let code = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
        let off = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(code), scale, x);
        (code, [_mm512_fmadd_ps(off, off, lost), _mm512_fmadd_ps(x, x, norm)])
    }
}

/// Sixteen rows from `first` on, of which the last are repeated where there are fewer.
///
/// # Safety
/// AVX-512 is enabled; lengths are as [`code`] asserts.
#[inline(always)]
unsafe fn code_rows(
    keys: &[f32],
    dim: usize,
    first: usize,
    share: f32,
    (scales, slacks): (&mut [f32], &mut [f32]),
    out: &mut [u8],
) {
    let n = keys.len() / dim;
    let row = |r: usize| &keys[(first + r).min(n - 1) * dim..][..dim];
    // SAFETY: the caller's promise; sixteen rows of codes have room in `out`, whole vectors of each.
    unsafe {
        let mut most = [0u32; LANES];
        for r in 0..LANES {
            most[r] = largest(row(r));
        }
        let (finite, scale, inverse) = factors(_mm512_loadu_si512(most.as_ptr().cast()));
        let (mut scale_of, mut inverse_of) = ([0.0f32; LANES], [0.0f32; LANES]);
        _mm512_storeu_ps(scale_of.as_mut_ptr(), scale);
        _mm512_storeu_ps(inverse_of.as_mut_ptr(), inverse);
        let (mut lost, mut norms) = ([F32x16::splat(0.0); LANES], [F32x16::splat(0.0); LANES]);
        for r in 0..LANES {
            let (scale, inverse) = (_mm512_set1_ps(scale_of[r]), _mm512_set1_ps(inverse_of[r]));
            let (mut squares, x) = ([_mm512_setzero_ps(); 2], row(r));
            for j in (0..dim).step_by(LANES) {
                let code;
                (code, squares) = whole(load(x, j), inverse, scale, squares);
                let bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(code), _mm_set1_epi8(SHIFT as i8));
                _mm_storeu_si128(out.as_mut_ptr().add(r * row_bytes(dim) + j).cast(), bytes);
            }
            (lost[r], norms[r]) = (F32x16::from(squares[0]), F32x16::from(squares[1]));
        }
        let slack = _mm512_fmadd_ps(roots(&norms, dim), _mm512_set1_ps(share), roots(&lost, dim));
        let slack = _mm512_mul_ps(slack, _mm512_set1_ps(1.000_01));
        // What is not finite has no score to be near to, nor has what is too long for its square.
        let infinite = _mm512_set1_ps(f32::INFINITY);
        let real = u16::MAX >> (LANES - (n - first).min(LANES));
        let known = real & finite & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(slack, infinite);
        _mm512_storeu_ps(slacks.as_mut_ptr(), _mm512_mask_mov_ps(infinite, known, slack));
        _mm512_storeu_ps(scales.as_mut_ptr(), _mm512_maskz_mov_ps(known, scale));
    }
}

/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub(crate) unsafe fn code_query(query: &[f32], out: &mut [i8]) -> CodedQuery {
    let dim = query.len();
    assert!(out.len() == padded(dim), "whole quads");
    // SAFETY: the caller's promise; no more codes are written than there are.
    unsafe {
        let (_, scale, inverse) = factors(_mm512_set1_epi32(largest(query).cast_signed()));
        let (mut squares, mut sum) = ([_mm512_setzero_ps(); 2], _mm512_setzero_si512());
        for j in (0..dim).step_by(LANES) {
            let code;
            (code, squares) = whole(load(query, j), inverse, scale, squares);
            sum = _mm512_add_epi32(sum, code);
            let there = u16::MAX >> (LANES - (out.len() - j).min(LANES));
            _mm512_mask_cvtepi32_storeu_epi8(out.as_mut_ptr().add(j), there, code);
        }
        // As `roots` has them, with room for the roundings of the sum.
        let tiny = (dim as f32).sqrt() * 1.1e-19;
        let root = |squares| f32::sqrt(squares) * 1.001 + tiny;
        CodedQuery {
            factor: _mm512_cvtss_f32(scale),
            lost: root(_mm512_reduce_add_ps(squares[0])),
            norm: root(_mm512_reduce_add_ps(squares[1])),
            // What is not finite has codes of anything, and no factor.
            offset: SHIFT.wrapping_mul(_mm512_reduce_add_epi32(sum)),
        }
    }
}
