//! AVX-512: from ceilings and exact scores to the best pairs, for [`crate::halves`]. What passes is written side by side
//! without a branch: whether a row passes is as good as random.
#![expect(unsafe_code, reason = "intrinsics, and unchecked loads and stores in the innermost loops")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use std::arch::x86_64::*;

use crate::halves::{MOST_ROWS, ROWS, Sums};

/// Lanes.
const LANES: usize = 16;

/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub(crate) unsafe fn rows(ceilings: &[f32], threshold: f32, out: &mut Vec<u32>) {
    out.clear();
    out.reserve(ceilings.len() + ROWS);
    let (blocks, rest) = ceilings.as_chunks::<ROWS>();
    // SAFETY: as many numbers are read as there are; room for all rows and a block was reserved, and the first `n` of it
    // are written.
    unsafe {
        let threshold = _mm512_set1_ps(threshold);
        let (mut n, to) = (0, out.as_mut_ptr());
        for (block, ceilings) in blocks.iter().enumerate() {
            let mut passed = 0;
            for v in 0..ROWS / LANES {
                let x = _mm512_loadu_ps(ceilings.as_ptr().add(v * LANES));
                passed |= u64::from(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, threshold)) << (v * LANES);
            }
            n += append(passed, (block * ROWS) as u32, to.add(n));
        }
        let mut passed = 0;
        for at in (0..rest.len()).step_by(LANES) {
            let there = u16::MAX >> (LANES - (rest.len() - at).min(LANES));
            let x = _mm512_maskz_loadu_ps(there, rest.as_ptr().add(at));
            passed |= u64::from(there & _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, threshold)) << at;
        }
        n += append(passed, (blocks.len() * ROWS) as u32, to.add(n));
        out.set_len(n);
    }
}

/// Writes the rows of a block that passed. Mostly they are at most four, so four are written, whatever there is, and no
/// branch is to be foreseen. Returns how many passed.
///
/// # Safety
/// There is room for 64 rows.
#[inline(always)]
unsafe fn append(mut passed: u64, first: u32, to: *mut u32) -> usize {
    const MOSTLY: usize = 4;
    let (n, mut at) = (passed.count_ones() as usize, 0);
    while at < MOSTLY || passed != 0 {
        // SAFETY: the caller's promise.
        unsafe { to.add(at).write(first + passed.trailing_zeros()) };
        passed &= passed.wrapping_sub(1);
        at += 1;
    }
    n
}

/// Numbers of a vector of float64.
const DOUBLES: usize = 8;

/// Exact scores that may be part of a sum, and which they are.
struct Kept {
    scores: [f64; MOST_ROWS + LANES],
    at: [u32; MOST_ROWS + LANES],
    n: usize,
}

/// The largest number.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn largest(x: &[f64]) -> f64 {
    // SAFETY: the caller's promise; as many numbers are read as there are.
    unsafe {
        let least = _mm512_set1_pd(f64::NEG_INFINITY);
        let mut most = least;
        for at in (0..x.len()).step_by(DOUBLES) {
            let there = u8::MAX >> (DOUBLES - (x.len() - at).min(DOUBLES));
            most = _mm512_max_pd(_mm512_mask_loadu_pd(least, there, x.as_ptr().add(at)), most);
        }
        _mm512_reduce_max_pd(most)
    }
}

/// Those that are `least` or more.
///
/// # Safety
/// AVX-512 is enabled; there are at most [`MOST_ROWS`].
#[inline(always)]
unsafe fn kept(x: &[f64], least: f64, out: &mut Kept) {
    // SAFETY: the caller's promise; as many numbers are read as there are, and no more are kept.
    unsafe {
        let (mut n, mut lanes) = (0, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        for at in (0..x.len()).step_by(DOUBLES) {
            let there = u8::MAX >> (DOUBLES - (x.len() - at).min(DOUBLES));
            let scores = _mm512_maskz_loadu_pd(there, x.as_ptr().add(at));
            let passed = there & _mm512_cmp_pd_mask::<_CMP_NLT_UQ>(scores, _mm512_set1_pd(least));
            _mm512_storeu_pd(out.scores.as_mut_ptr().add(n), _mm512_maskz_compress_pd(passed, scores));
            let places = _mm256_maskz_compress_epi32(passed, lanes);
            _mm256_storeu_si256(out.at.as_mut_ptr().add(n).cast(), places);
            n += passed.count_ones() as usize;
            lanes = _mm256_add_epi32(lanes, _mm256_set1_epi32(DOUBLES as i32));
        }
        // What is no number makes no sum.
        for at in [n, n + DOUBLES] {
            _mm512_storeu_pd(out.scores.as_mut_ptr().add(at), _mm512_set1_pd(f64::NAN));
        }
        out.n = n;
    }
}

/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub(crate) unsafe fn sums([a, b]: [&[f64]; 2], least: f32, out: &mut Sums) {
    assert!(a.len().max(b.len()) <= MOST_ROWS, "few rows");
    let empty = || Kept { scores: [0.0; MOST_ROWS + LANES], at: [0; MOST_ROWS + LANES], n: 0 };
    let (mut first, mut second) = (empty(), empty());
    // What rounds to `least` may be less, by half of what float32 tells apart.
    let reach = f64::from(least) - f64::from(least.abs()) * f64::from(f32::EPSILON);
    // SAFETY: the caller's promise; lengths were asserted.
    unsafe {
        kept(a, reach - largest(b), &mut first);
        kept(b, reach - largest(a), &mut second);
    }
    out.scores.clear();
    out.pairs.clear();
    let mut n = 0;
    for i in 0..first.n {
        // SAFETY: whole vectors are read behind the last score too, where there is room; room for a vector more than all
        // of a row's sums is made behind the first `n`, which were written.
        unsafe {
            out.scores.set_len(n);
            out.pairs.set_len(n);
            out.scores.reserve(second.n + LANES);
            out.pairs.reserve(second.n + LANES);
            let (scores, pairs) = (out.scores.as_mut_ptr(), out.pairs.as_mut_ptr());
            let (a, least) = (_mm512_set1_pd(first.scores[i]), _mm512_set1_ps(least));
            let place = _mm512_set1_epi32((first.at[i] << 16).cast_signed());
            for j in (0..second.n).step_by(LANES) {
                let low = _mm512_loadu_pd(second.scores.as_ptr().add(j));
                let high = _mm512_loadu_pd(second.scores.as_ptr().add(j + DOUBLES));
                let low = _mm512_cvtpd_ps(_mm512_add_pd(a, low));
                let high = _mm512_cvtpd_ps(_mm512_add_pd(a, high));
                let sum = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
                let sum = _mm512_add_ps(sum, _mm512_setzero_ps());
                let passed = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(sum, least);
                _mm512_storeu_ps(scores.add(n), _mm512_maskz_compress_ps(passed, sum));
                let pair = _mm512_or_si512(place, _mm512_loadu_si512(second.at.as_ptr().add(j).cast()));
                _mm512_storeu_si512(pairs.add(n).cast(), _mm512_maskz_compress_epi32(passed, pair));
                n += passed.count_ones() as usize;
            }
        }
    }
    // SAFETY: so many were written to each.
    unsafe {
        out.scores.set_len(n);
        out.pairs.set_len(n);
    }
}

/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
pub(crate) unsafe fn order(sums: &mut Sums, k: usize) {
    let Sums { scores, pairs, spare } = sums;
    assert!(scores.len() == pairs.len(), "a pair of each sum");
    // SAFETY: the caller's promise; whole vectors are padded with sums that are below all others.
    unsafe {
        let mut n = scores.len();
        scores.resize(n.next_multiple_of(LANES), f32::NEG_INFINITY);
        pairs.resize(n.next_multiple_of(LANES), 0);
        if n > k {
            let least = _mm512_set1_ps(reached_by(&scores[..], n, k));
            let mut kept = 0;
            for first in (0..n).step_by(LANES) {
                let there = u16::MAX >> (LANES - (n - first).min(LANES));
                let x = _mm512_loadu_ps(scores.as_ptr().add(first));
                let pair = _mm512_loadu_si512(pairs.as_ptr().add(first).cast());
                let passed = there & _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, least);
                // What is written lies before what is read next.
                _mm512_storeu_ps(scores.as_mut_ptr().add(kept), _mm512_maskz_compress_ps(passed, x));
                let pair = _mm512_maskz_compress_epi32(passed, pair);
                _mm512_storeu_si512(pairs.as_mut_ptr().add(kept).cast(), pair);
                kept += passed.count_ones() as usize;
            }
            n = kept;
            scores.truncate(n);
            scores.resize(n.next_multiple_of(LANES), f32::NEG_INFINITY);
        }
        // Each stands behind all that are larger, and behind equal ones that come before it.
        spare.0.resize(n, 0.0);
        spare.1.resize(n, 0);
        for at in 0..n {
            let (x, own) = (_mm512_set1_ps(*scores.get_unchecked(at)), at / LANES * LANES);
            let mut rank = 0;
            for first in (0..own).step_by(LANES) {
                let others = _mm512_loadu_ps(scores.as_ptr().add(first));
                rank += _mm512_cmp_ps_mask::<_CMP_GE_OQ>(others, x).count_ones();
            }
            let others = _mm512_loadu_ps(scores.as_ptr().add(own));
            let equal = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(others, x) & ((1 << (at - own)) - 1);
            rank += (equal | _mm512_cmp_ps_mask::<_CMP_GT_OQ>(others, x)).count_ones();
            for first in (own + LANES..n).step_by(LANES) {
                let others = _mm512_loadu_ps(scores.as_ptr().add(first));
                rank += _mm512_cmp_ps_mask::<_CMP_GT_OQ>(others, x).count_ones();
            }
            spare.0[rank as usize] = scores[at];
            spare.1[rank as usize] = pairs[at];
        }
    }
    std::mem::swap(scores, &mut spare.0);
    std::mem::swap(pairs, &mut spare.1);
}

/// A sum that `k` or more of the first `n` reach.
///
/// # Safety
/// AVX-512 is enabled; there are `k` or more, and whole vectors of them.
#[inline(always)]
unsafe fn reached_by(sums: &[f32], n: usize, k: usize) -> f32 {
    const STEPS: usize = 12;
    // SAFETY: the caller's promise.
    unsafe {
        let (mut least, mut most) = (_mm512_set1_ps(f32::INFINITY), _mm512_set1_ps(f32::NEG_INFINITY));
        for first in (0..n).step_by(LANES) {
            let there = u16::MAX >> (LANES - (n - first).min(LANES));
            let x = _mm512_loadu_ps(sums.as_ptr().add(first));
            least = _mm512_mask_min_ps(least, there, x, least);
            most = _mm512_max_ps(x, most);
        }
        let (mut low, mut high) = (_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most));
        for _ in 0..STEPS {
            let middle = 0.5 * low + 0.5 * high;
            let mut count = 0;
            for first in (0..n).step_by(LANES) {
                let x = _mm512_loadu_ps(sums.as_ptr().add(first));
                count += _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(middle)).count_ones() as usize;
            }
            if count >= k {
                low = middle;
            } else {
                high = middle;
            }
            if count == k {
                break;
            }
        }
        low
    }
}
