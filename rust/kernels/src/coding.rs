//! AVX-512: codes of a block's keys, made as the block is met; see [`crate::many`].
//!
//! Per thirty-two numbers: two instructions to find the largest, fifteen to code and to say exactly what is lost, two more
//! for norms where they are asked for, and per
//! sixteen rows of sixteen quads sixty-four to turn them. About a microsecond for 64 keys of 64 numbers.
#![expect(unsafe_code, reason = "intrinsics; lengths are asserted at entry")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "what they need is one: that AVX-512 is enabled")]
#![expect(clippy::needless_range_loop, reason = "indices are registers: r a row, h a half, i and j rows and columns")]

use std::arch::x86_64::*;

use crate::avx512::F32x16;
use crate::codes::{MOST, QUAD, ROWS, SHIFT};
use crate::lanes::Lanes;
use crate::many::{Room, Shares, row_bytes};
use crate::single::{BF16, F16, Format, Stored};

/// Rows that are coded together.
pub(crate) const LANES: usize = 16;

/// Numbers of half precision in a vector.
const NUMBERS: usize = 32;

/// Sixteen rows at a time.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub(crate) unsafe fn code(keys: Stored, dim: usize, shares: Shares, mut out: Room) {
    out.check(&keys, dim);
    for row in (0..ROWS).step_by(LANES) {
        if row >= keys.n {
            out.scale[row..].fill(0.0);
            out.slack[row..].fill(0.0);
            break;
        }
        // SAFETY: lengths were checked; the rest is the caller's promise.
        unsafe {
            match (keys.format, shares.per_norm > 0.0) {
                (Format::Bf16, false) => code_rows::<BF16, false>(&keys, row, dim, shares, &mut out),
                (Format::Bf16, true) => code_rows::<BF16, true>(&keys, row, dim, shares, &mut out),
                (_, false) => code_rows::<F16, false>(&keys, row, dim, shares, &mut out),
                (_, true) => code_rows::<F16, true>(&keys, row, dim, shares, &mut out),
            }
            side_by_side(out.rows, dim, row, out.bytes);
        }
    }
}

/// The codes of sixteen rows from `row` on, row by row, their factors and their slack.
///
/// # Safety
/// AVX-512 is enabled; lengths are as [`Room`] asserts.
#[inline(always)]
unsafe fn code_rows<const FORMAT: u8, const NORMS: bool>(
    keys: &Stored,
    row: usize,
    dim: usize,
    shares: Shares,
    out: &mut Room,
) {
    let vectors = dim.div_ceil(NUMBERS);
    // SAFETY: rows are readable in groups of sixteen, and whole vectors of each: a stride is a multiple of cache lines.
    unsafe {
        let key = |r: usize, j: usize| keys.bytes.as_ptr().add((row + r) * keys.stride).cast::<__m512i>().add(j);
        // Magnitudes in half precision order like whole numbers.
        let mut most = [0u32; LANES];
        for (r, most) in most.iter_mut().enumerate() {
            let mut largest = _mm512_setzero_si512();
            for j in 0..vectors {
                let magnitude = _mm512_and_si512(key(r, j).read_unaligned(), _mm512_set1_epi16(0x7FFF));
                largest = _mm512_max_epu16(largest, magnitude);
            }
            let low = _mm512_and_si512(largest, _mm512_set1_epi32(0xFFFF));
            *most = _mm512_reduce_max_epu32(_mm512_max_epu32(low, _mm512_srli_epi32::<16>(largest)));
        }
        let most = _mm512_loadu_si512(most.as_ptr().cast());
        let (finite, most) = if FORMAT == BF16 {
            let most = _mm512_slli_epi32::<16>(most);
            (_mm512_cmplt_epu32_mask(most, _mm512_set1_epi32(0x7F80_0000)), _mm512_castsi512_ps(most))
        } else {
            let half = _mm512_cvtepi32_epi16(most);
            (_mm512_cmplt_epu32_mask(most, _mm512_set1_epi32(0x7C00)), _mm512_cvtph_ps(half))
        };
        let all = _mm512_set1_ps(MOST);
        let scale = _mm512_div_ps(most, all);
        // A key whose factor would not be a normal number is 0.
        let coded = finite & _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scale, _mm512_set1_ps(f32::MIN_POSITIVE));
        let scale = _mm512_maskz_mov_ps(coded, scale);
        let (mut scales, mut inverses) = ([0.0f32; LANES], [0.0f32; LANES]);
        _mm512_storeu_ps(scales.as_mut_ptr(), scale);
        _mm512_storeu_ps(inverses.as_mut_ptr(), _mm512_maskz_div_ps(coded, all, most));

        let (mut squares, mut lengths) = ([F32x16::splat(0.0); LANES], [F32x16::splat(0.0); LANES]);
        for r in 0..LANES {
            let (scale, inverse) = (_mm512_set1_ps(scales[r]), _mm512_set1_ps(inverses[r]));
            let (mut square, mut length) = ([_mm512_setzero_ps(); 2], [_mm512_setzero_ps(); 2]);
            let to = out.rows.as_mut_ptr().add(r * row_bytes(dim)).cast::<__m256i>();
            for j in 0..vectors {
                let halves = halves::<FORMAT>(key(r, j));
                let mut codes = [_mm512_setzero_si512(); 2];
                for h in 0..2 {
                    codes[h] = _mm512_cvtps_epi32(_mm512_mul_ps(halves[h], inverse));
                    let off = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(codes[h]), scale, halves[h]);
                    square[h] = _mm512_fmadd_ps(off, off, square[h]);
                    if NORMS {
                        length[h] = _mm512_fmadd_ps(halves[h], halves[h], length[h]);
                    }
                }
                let bytes = join::<FORMAT>(codes);
                to.add(j).write_unaligned(_mm256_xor_si256(bytes, _mm256_set1_epi8(SHIFT as i8)));
            }
            squares[r] = F32x16::from(_mm512_add_ps(square[0], square[1]));
            lengths[r] = F32x16::from(_mm512_add_ps(length[0], length[1]));
        }
        let mut slack = roots(&squares, dim);
        if NORMS {
            slack = _mm512_fmadd_ps(roots(&lengths, dim), _mm512_set1_ps(shares.per_norm), slack);
        }
        let mut scale = scale;
        if !keys.scale.is_empty() {
            // As a share of the key's norm, of which one over it is rounded, and so is the product: twice 2^-24 of a key
            // of codes that is longer than the key by half at most.
            let unit = _mm512_loadu_ps(keys.scale.as_ptr().add(row));
            scale = _mm512_mul_ps(scale, unit);
            slack = _mm512_fmadd_ps(slack, unit, _mm512_set1_ps(1.0 / (1 << 22) as f32));
        }
        let slack = _mm512_mul_ps(_mm512_add_ps(slack, _mm512_set1_ps(shares.before)), _mm512_set1_ps(1.000_01));
        let real = u16::MAX >> (LANES - (keys.n - row).min(LANES));
        // What is not finite has no score to be near to, nor has what is too long for its square.
        let infinite = _mm512_set1_ps(f32::INFINITY);
        let known = finite & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(slack, infinite);
        let slack = _mm512_mask_mov_ps(infinite, known, slack);
        _mm512_storeu_ps(out.scale.as_mut_ptr().add(row), _mm512_maskz_mov_ps(finite & real, scale));
        _mm512_storeu_ps(out.slack.as_mut_ptr().add(row), _mm512_maskz_mov_ps(real, slack));
    }
}

/// The norms of sixteen rows from the sums of their squares, with room for the roundings of the sums, and for squares that
/// are less than a normal number.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub(crate) unsafe fn roots(squares: &[F32x16; LANES], dim: usize) -> __m512 {
    let (mut sums, tiny) = ([0.0f32; LANES], (dim as f32).sqrt() * 1.1e-19);
    // SAFETY: the caller's promise; a vector is as long as `sums`.
    unsafe {
        F32x16::sums(squares).store(sums.as_mut_ptr());
        let root = _mm512_sqrt_ps(_mm512_loadu_ps(sums.as_ptr()));
        _mm512_fmadd_ps(root, _mm512_set1_ps(1.001), _mm512_set1_ps(tiny))
    }
}

/// Thirty-two numbers in float32: of bfloat16 those with even and those with odd places, of float16 the first and the
/// second sixteen.
///
/// # Safety
/// AVX-512 is enabled and the numbers are readable.
#[inline(always)]
unsafe fn halves<const FORMAT: u8>(numbers: *const __m512i) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        if FORMAT == BF16 {
            let x = numbers.read_unaligned();
            let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xFFFF_0000u32.cast_signed()));
            return [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(odd)];
        }
        let x = numbers.cast::<__m256i>();
        [_mm512_cvtph_ps(x.read_unaligned()), _mm512_cvtph_ps(x.add(1).read_unaligned())]
    }
}

/// Whole numbers of a byte each, of numbers as [`halves`] takes them apart, in order.
///
/// # Safety
/// AVX-512 BW is enabled.
#[inline(always)]
unsafe fn join<const FORMAT: u8>([a, b]: [__m512i; 2]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        if FORMAT == BF16 {
            let odd = _mm512_slli_epi32::<8>(b);
            // Bits of a where a bit of the byte is wanted, of b elsewhere.
            let both = _mm512_ternarylogic_epi32::<0xCA>(_mm512_set1_epi32(0xFF), a, odd);
            return _mm512_cvtepi32_epi16(both);
        }
        _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a))
    }
}

/// Puts sixteen rows of codes where [`crate::codes::Codes::bytes`] has them: squares of sixteen rows of sixteen quads are turned.
///
/// # Safety
/// AVX-512 is enabled; lengths are as [`Room`] asserts.
#[inline(always)]
pub(crate) unsafe fn side_by_side(rows: &[u8], dim: usize, row: usize, out: &mut [u8]) {
    let (stride, quads) = (row_bytes(dim), dim.div_ceil(QUAD));
    for first in (0..quads).step_by(LANES) {
        // SAFETY: rows are padded to whole vectors; a quad below `quads` has 64 rows in `out`.
        unsafe {
            let mut x = [_mm512_setzero_si512(); LANES];
            for r in 0..LANES {
                x[r] = _mm512_loadu_si512(rows.as_ptr().add(r * stride + first * QUAD).cast());
            }
            let x = turned(x);
            for quad in 0..LANES.min(quads - first) {
                let to = out.as_mut_ptr().add(((first + quad) * ROWS + row) * QUAD);
                _mm512_storeu_si512(to.cast(), x[quad]);
            }
        }
    }
}

/// Lane j of vector i where lane i of vector j was.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn turned(x: [__m512i; LANES]) -> [__m512i; LANES] {
    let zero = [x[0]; LANES];
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    // SAFETY: AVX-512F is enabled.
    unsafe {
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
        }
        // Now vector 4 i + j holds column j of rows 4 i to 4 i + 3, of every quarter.
        for i in 0..4 {
            for j in 0..2 {
                b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
                b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            }
        }
        for j in 0..4 {
            for i in 0..2 {
                c[8 * i + j] = _mm512_shuffle_i32x4::<0x88>(b[8 * i + j], b[8 * i + 4 + j]);
                c[8 * i + 4 + j] = _mm512_shuffle_i32x4::<0xDD>(b[8 * i + j], b[8 * i + 4 + j]);
            }
        }
        // c[8 i + j]: quarters 0 and 2 of column j, c[8 i + 4 + j]: quarters 1 and 3; of rows 8 i to 8 i + 7.
        for j in 0..8 {
            d[j] = _mm512_shuffle_i32x4::<0x88>(c[j], c[8 + j]);
            d[8 + j] = _mm512_shuffle_i32x4::<0xDD>(c[j], c[8 + j]);
        }
    }
    d
}
