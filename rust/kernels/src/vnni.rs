//! AVX-512 VNNI: four products of bytes, summed, in each of sixteen lanes at once; for one query as [`crate::codes`] says,
//! for many as [`crate::many`] does.
#![expect(
    unsafe_code,
    reason = "intrinsics, and unchecked loads in the innermost loops; lengths are asserted at each entry"
)]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]
#![expect(clippy::needless_range_loop, reason = "indices are registers: r a query, v a vector of keys")]

use std::arch::x86_64::*;

use crate::avx512::F32x16;
use crate::codes::{Codes, QUAD, Quads, Query, ROWS};
use crate::many::{Bytes, CodedKeys, GROUPS, Many};
use crate::prefetch::prefetch_next;
use crate::tile::Pass;
use crate::{Isa, Kernels};

/// AVX-512 with VNNI for codes.
pub(crate) static TABLE: Kernels = Kernels {
    isa: Isa::Avx512Vnni,
    select_codes: entry::select_codes,
    many: Some(Many { code: entry::code, select: entry::select, maxima: entry::maxima }),
    halves: Some(crate::halves_vnni::HALVES),
    ..crate::avx512::TABLE
};

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

/// Keys of one vector.
const LANES: usize = 16;

/// # Safety
/// AVX-512 VNNI is enabled.
#[inline(always)]
unsafe fn select(keys: CodedKeys, live: u64, queries: Bytes, thresholds: &[f32], out: &mut Vec<Pass>) {
    let width = queries.check(&keys.codes);
    assert!(thresholds.len() >= queries.factors.len(), "one threshold per query");
    let live = if keys.codes.n < ROWS { live & ((1 << keys.codes.n) - 1) } else { live };
    // SAFETY: lengths were checked; the rest is the caller's promise.
    unsafe {
        match keys.codes.rows / LANES {
            4 => select_of::<4>(&keys, live, &queries, width, thresholds, out),
            2 => select_of::<2>(&keys, live, &queries, width, thresholds, out),
            _ => select_of::<1>(&keys, live, &queries, width, thresholds, out),
        }
    }
}

/// For blocks with room for V vectors of keys.
///
/// # Safety
/// As for [`select`], which checked the lengths.
#[inline(always)]
unsafe fn select_of<const V: usize>(
    keys: &CodedKeys,
    live: u64,
    queries: &Bytes,
    width: usize,
    thresholds: &[f32],
    out: &mut Vec<Pass>,
) {
    let n = queries.factors.len();
    let mut at = 0;
    while at < n {
        let piece = |at: usize| keys.codes.next.len() * at.min(n) / n;
        prefetch_next(&keys.codes.next[piece(at)..piece(at + 6)]);
        // SAFETY: as many queries are left as each arm takes.
        at += unsafe {
            match n - at {
                6 | 9.. => select_tile::<6, V>(keys, live, queries, width, at, thresholds, out),
                4 | 5 | 7.. => select_tile::<4, V>(keys, live, queries, width, at, thresholds, out),
                2.. => select_tile::<2, V>(keys, live, queries, width, at, thresholds, out),
                _ => select_tile::<1, V>(keys, live, queries, width, at, thresholds, out),
            }
        };
    }
}

/// R queries from `at` on. Returns R.
///
/// # Safety
/// As for [`select_of`]; there are as many queries.
#[inline(always)]
unsafe fn select_tile<const R: usize, const V: usize>(
    keys: &CodedKeys,
    live: u64,
    queries: &Bytes,
    width: usize,
    at: usize,
    thresholds: &[f32],
    out: &mut Vec<Pass>,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let scores = tile::<R, V>(&keys.codes, queries, width, at);
        let mut numbers = [[0.0; ROWS]; R];
        let mut hits = 0u32;
        for r in 0..R {
            // `max` answers its second operand where either is NaN, which only a query's own slack can make; then its
            // threshold is NaN too, and everything passes.
            let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
            let weight = _mm512_set1_ps(*queries.slacks.get_unchecked(at + r));
            for v in 0..V {
                _mm512_storeu_ps(numbers[r].as_mut_ptr().add(v * LANES), scores[r][v]);
                let slack = _mm512_loadu_ps(keys.slack.as_ptr().add(v * LANES));
                largest = _mm512_max_ps(_mm512_fmadd_ps(slack, weight, scores[r][v]), largest);
            }
            let threshold = _mm512_set1_ps(*thresholds.get_unchecked(at + r));
            hits |= u32::from(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(largest, threshold) != 0) << r;
        }
        // Whether a query has any is as good as random: one loop over those that have costs less than a branch for each.
        while hits != 0 {
            let r = hits.trailing_zeros() as usize;
            hits &= hits - 1;
            let threshold = _mm512_set1_ps(*thresholds.get_unchecked(at + r));
            let numbers = numbers.get_unchecked(r);
            let weight = _mm512_set1_ps(*queries.slacks.get_unchecked(at + r));
            let mut passed = 0;
            for v in 0..V {
                let slack = _mm512_loadu_ps(keys.slack.as_ptr().add(v * LANES));
                let most = _mm512_fmadd_ps(slack, weight, _mm512_loadu_ps(numbers.as_ptr().add(v * LANES)));
                passed |= u64::from(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(most, threshold)) << (v * LANES);
            }
            append(passed & live, numbers, *queries.factors.get_unchecked(at + r), (at + r) as u32, out);
        }
    }
    R
}

/// Appends the scores of the rows that passed. Mostly they are one or two, so two are written, whatever there is, and no
/// branch is to be foreseen.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn append(mut passed: u64, scores: &[f32; ROWS], factor: f32, query: u32, out: &mut Vec<Pass>) {
    const MOSTLY: usize = 2;
    let (before, n) = (out.len(), passed.count_ones() as usize);
    out.reserve(n + MOSTLY);
    // SAFETY: there is room for `n` and two more, all of which are written up to the new length.
    unsafe {
        let to = out.as_mut_ptr().add(before);
        let mut at = 0;
        while at < MOSTLY || passed != 0 {
            let row = passed.trailing_zeros() % ROWS as u32;
            passed &= passed.wrapping_sub(1);
            to.add(at).write(Pass { score: scores[row as usize] * factor, row, query });
            at += 1;
        }
        out.set_len(before + n);
    }
}

/// Scores of V vectors of keys with R queries from `at` on, but for the queries' factors.
///
/// # Safety
/// AVX-512 VNNI is enabled; there are as many keys and queries.
#[inline(always)]
pub(crate) unsafe fn tile<const R: usize, const V: usize>(
    keys: &Codes,
    queries: &Bytes,
    width: usize,
    at: usize,
) -> [[__m512; V]; R] {
    // SAFETY: the caller's promise: V vectors of codes per quad, and `width` bytes per query.
    unsafe {
        let codes = keys.bytes.as_ptr();
        let weights = queries.weights.as_ptr().add(at * width);
        let mut sums = [[_mm512_setzero_si512(); V]; R];
        for r in 0..R {
            sums[r] = [_mm512_set1_epi32(-*queries.offsets.get_unchecked(at + r)); V];
        }
        for quad in 0..width / QUAD {
            let mut x = [_mm512_setzero_si512(); V];
            for v in 0..V {
                x[v] = _mm512_loadu_si512(codes.add((quad * V + v) * LANES * QUAD).cast());
            }
            for r in 0..R {
                let four = weights.add(r * width + quad * QUAD).cast::<i32>().read_unaligned();
                let four = _mm512_set1_epi32(four);
                for v in 0..V {
                    sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], x[v], four);
                }
            }
        }
        let mut scores = [[_mm512_setzero_ps(); V]; R];
        for v in 0..V {
            let scale = _mm512_loadu_ps(keys.scale.as_ptr().add(v * LANES));
            for r in 0..R {
                scores[r][v] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][v]), scale);
            }
        }
        scores
    }
}

/// # Safety
/// AVX-512 VNNI is enabled.
#[inline(always)]
unsafe fn maxima(keys: CodedKeys, queries: Bytes, out: &mut [f32], stride: usize) {
    let (width, n) = (queries.check(&keys.codes), queries.factors.len());
    assert!(keys.codes.n == ROWS && stride >= GROUPS, "groups of a full block");
    assert!(n == 0 || out.len() >= (n - 1) * stride + GROUPS, "room for the groups of each query");
    let mut at = 0;
    while at < n {
        // SAFETY: lengths were checked, and as many queries are left as each arm takes.
        at += unsafe {
            match n - at {
                6 | 9.. => maxima_tile::<6>(&keys, &queries, width, at, out, stride),
                4 | 5 | 7.. => maxima_tile::<4>(&keys, &queries, width, at, out, stride),
                2.. => maxima_tile::<2>(&keys, &queries, width, at, out, stride),
                _ => maxima_tile::<1>(&keys, &queries, width, at, out, stride),
            }
        };
    }
}

/// R queries from `at` on. Returns R.
///
/// # Safety
/// As for [`maxima`], which checked the lengths; there are as many queries.
#[inline(always)]
unsafe fn maxima_tile<const R: usize>(
    keys: &CodedKeys,
    queries: &Bytes,
    width: usize,
    at: usize,
    out: &mut [f32],
    stride: usize,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let scores = tile::<R, { ROWS / LANES }>(&keys.codes, queries, width, at);
        for r in 0..R {
            let weight = _mm512_set1_ps(*queries.slacks.get_unchecked(at + r));
            let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
            for v in 0..ROWS / LANES {
                let slack = _mm512_loadu_ps(keys.slack.as_ptr().add(v * LANES));
                most = _mm512_max_ps(_mm512_fnmadd_ps(slack, weight, scores[r][v]), most);
            }
            let most = _mm512_mul_ps(most, _mm512_set1_ps(*queries.factors.get_unchecked(at + r)));
            let to = out.as_mut_ptr().add((at + r) * stride);
            _mm512_storeu_ps(to, _mm512_max_ps(most, _mm512_loadu_ps(to)));
        }
    }
    R
}

/// Safe entries of the table's types.
mod entry {
    use crate::codes::{self, Codes, Query};
    use crate::coding;
    use crate::many::{Bytes, CodedKeys, Room, Shares};
    use crate::single::Stored;
    use crate::tile::Pass;

    use super::{F32x16, Parts};

    crate::table::kernel_table!(@entries (enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt,lzcnt,bmi1,bmi2")
        select_codes(keys: Codes, live: u64, queries: &[Query], thresholds: &[f32], out: &mut Vec<Pass>)
            => codes::select::<F32x16, Parts>;
        code(keys: Stored, dim: usize, shares: Shares, out: Room) => coding::code;
        select(keys: CodedKeys, live: u64, queries: Bytes, thresholds: &[f32], out: &mut Vec<Pass>)
            => super::select;
        maxima(keys: CodedKeys, queries: Bytes, out: &mut [f32], stride: usize) => super::maxima;
    );
}
