//! AVX-512 VNNI for [`crate::halves`]: sixteen rows of half keys a vector.
#![expect(
    unsafe_code,
    reason = "intrinsics, and unchecked loads in the innermost loops; lengths are asserted at each entry"
)]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]
#![expect(clippy::needless_range_loop, reason = "indices are registers: r a query or a row, v a vector of rows")]

use std::arch::x86_64::*;

use crate::codes::{Codes, ROWS, padded};
use crate::halves::{BEST, CodedHalf, GROUPS, Halves, Pairs, QueryCodes, Reached, Scored, Scores};
use crate::many::Bytes;
use crate::vnni::tile;

/// For every set that has the instruction.
pub(crate) const HALVES: Halves = Halves {
    code: entry::code,
    code_query: entry::code_query,
    scores: entry::scores,
    reached: entry::reached,
    rows: entry::rows,
    sums: entry::sums,
    order: entry::order,
};

/// Lanes.
const LANES: usize = 16;

/// Vectors of a block's rows.
const V: usize = ROWS / LANES;

/// # Safety
/// AVX-512 VNNI is enabled.
#[inline(always)]
unsafe fn scores(keys: CodedHalf, queries: QueryCodes, out: Scores) {
    let (blocks, width, n) = (keys.check(), padded(keys.dim), queries.offsets.len());
    assert!(queries.weights.len() >= n * width && queries.slacks.len() == n, "codes and a slack of each query");
    assert!(out.ceilings.len() >= n * blocks * ROWS && out.floors.len() >= n * GROUPS, "room for all scores");
    let mut at = 0;
    while at < n {
        // SAFETY: lengths were checked, and as many queries are left as each arm takes.
        at += unsafe {
            match n - at {
                6 | 9.. => some::<6>(&keys, &queries, at, out.ceilings, out.floors),
                4 | 5 | 7.. => some::<4>(&keys, &queries, at, out.ceilings, out.floors),
                2.. => some::<2>(&keys, &queries, at, out.ceilings, out.floors),
                _ => some::<1>(&keys, &queries, at, out.ceilings, out.floors),
            }
        };
    }
}

/// R queries from `at` on. Returns R.
///
/// # Safety
/// As for [`scores`], which checked the lengths; there are as many queries.
#[inline(always)]
unsafe fn some<const R: usize>(
    keys: &CodedHalf,
    queries: &QueryCodes,
    at: usize,
    ceilings: &mut [f32],
    floors: &mut [f32],
) -> usize {
    let (width, blocks) = (padded(keys.dim), keys.n.div_ceil(ROWS));
    let bytes = Bytes { weights: queries.weights, offsets: queries.offsets, factors: &[], slacks: queries.slacks };
    // SAFETY: the caller's promise.
    unsafe {
        let mut largest = [[_mm512_set1_ps(f32::NEG_INFINITY); V]; R];
        for block in 0..blocks {
            let codes = Codes {
                bytes: keys.bytes.get_unchecked(block * width * ROWS..),
                scale: keys.scale.get_unchecked(block * ROWS..),
                rows: ROWS,
                n: ROWS,
                next: &[],
            };
            let scores = tile::<R, V>(&codes, &bytes, width, at);
            for r in 0..R {
                let weight = _mm512_set1_ps(*queries.slacks.get_unchecked(at + r));
                let to = ceilings.as_mut_ptr().add(((at + r) * blocks + block) * ROWS);
                for v in 0..V {
                    let slack = _mm512_loadu_ps(keys.slack.as_ptr().add(block * ROWS + v * LANES));
                    _mm512_storeu_ps(to.add(v * LANES), _mm512_fmadd_ps(slack, weight, scores[r][v]));
                    largest[r][v] = _mm512_max_ps(_mm512_fnmadd_ps(slack, weight, scores[r][v]), largest[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                _mm512_storeu_ps(floors.as_mut_ptr().add((at + r) * GROUPS + v * LANES), largest[r][v]);
            }
        }
    }
    R
}

/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn reached(halves: [Scored; 2], pairs: &Pairs, k: usize) -> Reached {
    /// Halvings of what is left between two sums: what remains is small beside what codes lose.
    const STEPS: usize = 8;
    const MOST: usize = BEST * BEST;
    assert!(halves.iter().all(|half| half.floors.len() == GROUPS), "floors of all groups");
    assert!(pairs.n <= MOST && pairs.at.iter().all(|at| at.len() == pairs.n.next_multiple_of(LANES)), "padded");
    // SAFETY: lengths were asserted; the rest is the caller's promise.
    unsafe {
        let (a, b) = (best_groups(&halves[0]), best_groups(&halves[1]));
        let most = [most(halves[0].ceilings) * halves[0].factor, most(halves[1].ceilings) * halves[1].factor];
        let first = [_mm512_cvtss_f32(a), _mm512_cvtss_f32(b)];
        // The i best of one half and the j best of the other make i j pairs that reach the sum of their last.
        let partner = _mm512_loadu_si512(pairs.partners.as_ptr().cast());
        let able = _mm512_cmplt_epi32_mask(partner, _mm512_set1_epi32(BEST as i32));
        let sums = _mm512_add_ps(a, _mm512_permutexvar_ps(partner, b));
        let mut low = _mm512_reduce_max_ps(_mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), able, sums));
        let mut high = first[0] + first[1];
        if low == f32::NEG_INFINITY {
            return Reached { sum: low, most, first };
        }
        let mut sums = [0.0f32; MOST];
        for first in (0..pairs.n).step_by(LANES) {
            let i = _mm512_loadu_si512(pairs.at[0].as_ptr().add(first).cast());
            let j = _mm512_loadu_si512(pairs.at[1].as_ptr().add(first).cast());
            let there = u16::MAX >> (LANES - (pairs.n - first).min(LANES));
            let sum = _mm512_add_ps(_mm512_permutexvar_ps(i, a), _mm512_permutexvar_ps(j, b));
            let sum = _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), there, sum);
            _mm512_storeu_ps(sums.as_mut_ptr().add(first), sum);
        }
        for _ in 0..STEPS {
            let middle = 0.5 * low + 0.5 * high;
            let mut count = 0;
            for first in (0..pairs.n).step_by(LANES) {
                let sum = _mm512_loadu_ps(sums.as_ptr().add(first));
                count += _mm512_cmp_ps_mask::<_CMP_GE_OQ>(sum, _mm512_set1_ps(middle)).count_ones();
            }
            if count as usize >= k {
                low = middle;
            } else {
                high = middle;
            }
        }
        Reached { sum: low, most, first }
    }
}

/// The [`BEST`] largest floors, in descending order.
///
/// # Safety
/// AVX-512 is enabled; there are [`GROUPS`] floors.
#[inline(always)]
unsafe fn best_groups(half: &Scored) -> __m512 {
    const { assert!(GROUPS == 4 * LANES && BEST == LANES) };
    // SAFETY: the caller's promise.
    unsafe {
        let mut x = [_mm512_setzero_ps(); 4];
        for v in 0..4 {
            x[v] = _mm512_loadu_ps(half.floors.as_ptr().add(v * LANES));
        }
        let x = sorted(x);
        let best = merged(merged(x[0], x[1]), merged(x[2], x[3]));
        _mm512_mul_ps(best, _mm512_set1_ps(half.factor))
    }
}

/// Every lane beside the one whose number differs in one bit: the larger of both where `larger` says so, else the smaller.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn exchanged(x: __m512, other: __m512, larger: u16) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_mask_max_ps(_mm512_min_ps(x, other), larger, x, other) }
}

/// Lanes that keep the larger one where lanes i and i + `step` are exchanged and runs of `size` lanes are to descend and
/// ascend in turn.
const fn keeps(step: usize, size: usize) -> u16 {
    let (mut mask, mut lane) = (0, 0);
    while lane < LANES {
        if (lane & step == 0) == (lane & size == 0) {
            mask |= 1 << lane;
        }
        lane += 1;
    }
    mask
}

/// One step of the network with each distance between lanes, from `SIZE / 2` down, for four vectors.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn steps<const N: usize>(mut x: [__m512; N], size: usize) -> [__m512; N] {
    for v in 0..N {
        // SAFETY: the caller's promise.
        unsafe {
            if size >= 16 {
                x[v] = exchanged(x[v], _mm512_shuffle_f32x4::<0b0100_1110>(x[v], x[v]), keeps(8, size));
            }
            if size >= 8 {
                x[v] = exchanged(x[v], _mm512_shuffle_f32x4::<0b1011_0001>(x[v], x[v]), keeps(4, size));
            }
            if size >= 4 {
                x[v] = exchanged(x[v], _mm512_permute_ps::<0b0100_1110>(x[v]), keeps(2, size));
            }
            x[v] = exchanged(x[v], _mm512_permute_ps::<0b1011_0001>(x[v]), keeps(1, size));
        }
    }
    x
}

/// Each vector in descending order (Batcher 1968).
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn sorted<const N: usize>(x: [__m512; N]) -> [__m512; N] {
    // SAFETY: the caller's promise.
    unsafe { steps(steps(steps(steps(x, 2), 4), 8), 16) }
}

/// The sixteen largest of two vectors in descending order, in that order.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn merged(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let back = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        steps([_mm512_max_ps(a, _mm512_permutexvar_ps(back, b))], 16)[0]
    }
}

/// The largest ceiling.
///
/// # Safety
/// AVX-512 is enabled.
#[inline(always)]
unsafe fn most(ceilings: &[f32]) -> f32 {
    let least = f32::NEG_INFINITY;
    // SAFETY: the caller's promise; whole vectors of the slice, and of the rest as many numbers as there are.
    unsafe {
        let mut most = [_mm512_set1_ps(least); 4];
        let (chunks, rest) = ceilings.as_chunks::<ROWS>();
        for chunk in chunks {
            for v in 0..4 {
                most[v] = _mm512_max_ps(_mm512_loadu_ps(chunk.as_ptr().add(v * LANES)), most[v]);
            }
        }
        for chunk in rest.chunks(LANES) {
            let there = u16::MAX >> (LANES - chunk.len());
            let x = _mm512_mask_loadu_ps(_mm512_set1_ps(least), there, chunk.as_ptr());
            most[0] = _mm512_max_ps(x, most[0]);
        }
        _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])))
    }
}

/// Safe entries of the table's types.
mod entry {
    use crate::halves::{CodedHalf, CodedQuery, CodesMut, Pairs, QueryCodes, Reached, Scored, Scores, Sums};
    use crate::{halves_best, halves_coding};

    crate::table::kernel_table!(@entries (enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,popcnt,lzcnt,bmi1,bmi2")
        code(keys: &[f32], share: f32, out: CodesMut) => halves_coding::code;
        code_query(query: &[f32], out: &mut [i8]) -> CodedQuery => halves_coding::code_query;
        scores(keys: CodedHalf, queries: QueryCodes, out: Scores) => super::scores;
        reached(halves: [Scored; 2], pairs: &Pairs, k: usize) -> Reached => super::reached;
        rows(ceilings: &[f32], threshold: f32, out: &mut Vec<u32>) => halves_best::rows;
        sums(halves: [&[f64]; 2], least: f32, out: &mut Sums) => halves_best::sums;
        order(sums: &mut Sums, k: usize) => halves_best::order;
    );
}
