//! AVX-512 BF16: a first pass in bfloat16 at twice the rate of float32, on processors that have the instruction and no
//! matrix unit: a register holds two numbers of sixteen queries, and two numbers of a key are broadcast to them.
#![expect(
    unsafe_code,
    reason = "intrinsics, and unchecked loads in the innermost loops; lengths are asserted at entry"
)]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "the operations of one step rest on the same assertion")]

use std::arch::x86_64::*;

use crate::avx512::F32x16;
use crate::lanes::Lanes;
use crate::prefetch::prefetch_next;
use crate::select::{Largest, Maxima, Passing};
use crate::short::{self, Short, ShortKeys, ShortQueries};
use crate::tile::{Keys, PANEL, Pass, Rule, Sink};
use crate::{Isa, Kernels};

/// AVX-512 BF16 for first passes, VNNI for those of codes; AVX-512 for the rest.
pub(crate) static TABLE: Kernels = Kernels { isa: Isa::Avx512Bf16, short: Some(SHORT), ..crate::vnni::TABLE };

/// Its first pass.
pub(crate) const SHORT: Short = Short { shorten: entry::shorten, select: entry::select, maxima: entry::maxima };

/// Two numbers.
const PAIR: usize = 2;

/// Hands all scores to the sink.
///
/// # Safety
/// AVX-512 BF16 is enabled.
#[inline(always)]
unsafe fn each_tile(keys: ShortKeys, queries: ShortQueries, sink: &mut impl Sink<F32x16>) {
    keys.check(&queries);
    let panels = queries.n.div_ceil(PANEL);
    for panel in (0..panels).step_by(4) {
        // SAFETY: lengths were checked; each arm covers the panels that there are.
        unsafe {
            match panels - panel {
                4.. => strip::<6, 4>(&keys, &queries, panel, sink),
                3 => strip::<8, 3>(&keys, &queries, panel, sink),
                2 => strip::<12, 2>(&keys, &queries, panel, sink),
                _ => strip::<16, 1>(&keys, &queries, panel, sink),
            }
        }
    }
}

/// All key rows, R at a time while there are as many, then four, against V panels of queries.
///
/// # Safety
/// AVX-512 BF16 is enabled; lengths are as [`ShortKeys`] and [`ShortQueries`] assert.
#[inline(always)]
unsafe fn strip<const R: usize, const V: usize>(
    keys: &ShortKeys,
    queries: &ShortQueries,
    panel: usize,
    sink: &mut impl Sink<F32x16>,
) {
    let mut row = 0;
    while row < keys.n {
        // SAFETY: four rows from one below `n` on are readable: there are 64, and R or four at a time never pass that
        // unless R rows are left.
        unsafe {
            row += if keys.n - row >= R {
                tile::<R, V>(keys, queries, row, panel, sink)
            } else {
                tile::<4, V>(keys, queries, row, panel, sink)
            };
        }
    }
}

/// R key rows from `row` on. Returns R.
///
/// # Safety
/// AVX-512 BF16 is enabled; R rows and V panels follow.
#[inline(always)]
unsafe fn tile<const R: usize, const V: usize>(
    keys: &ShortKeys,
    queries: &ShortQueries,
    row: usize,
    panel: usize,
    sink: &mut impl Sink<F32x16>,
) -> usize {
    if panel == 0 && !keys.next.is_empty() {
        let piece = |row: usize| keys.next.len() * row.min(keys.n) / keys.n;
        prefetch_next(&keys.next[piece(row)..piece(row + R)]);
    }
    let (padded, steps) = (short::padded(queries.dim), queries.dim.div_ceil(PAIR));
    // SAFETY: the caller's promise; a key has `padded` numbers, a panel sixteen times as many. There is one scale per row
    // below `n`, if any.
    unsafe {
        let a = keys.rows.as_ptr().add(row * keys.stride).cast::<i32>();
        let b = queries.panels.as_ptr().add(panel * padded * PANEL).cast::<__m512bh>();
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for step in 0..steps {
            let q: [__m512bh; V] = std::array::from_fn(|v| b.add(v * padded / PAIR + step).read_unaligned());
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(r * keys.stride / PAIR + step).read_unaligned());
                let x = std::mem::transmute::<__m512i, __m512bh>(x);
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_dpbf16_ps(*sum, q[v], x);
                }
            }
        }
        let mut scores = [[F32x16::splat(0.0); V]; R];
        for r in 0..R {
            let scale = if keys.scale.is_empty() { 1.0 } else { *keys.scale.get_unchecked((row + r).min(keys.n - 1)) };
            for v in 0..V {
                let sum = F32x16::from(sums[r][v]);
                scores[r][v] = if keys.scale.is_empty() { sum } else { sum.mul(F32x16::splat(scale)) };
            }
        }
        sink.take(row, panel * PANEL, scores);
    }
    R
}

/// Rounds rows to bfloat16, to nearest even; denormals become 0, as the unit takes them.
///
/// # Safety
/// AVX-512 BF16 is enabled.
#[inline(always)]
unsafe fn shorten(keys: Keys, dim: usize, out: &mut [u16]) {
    let (padded, n) = (short::padded(dim), keys.n);
    keys.check(Rule::Dot, dim);
    assert!(out.len() >= short::ROWS * padded, "room for 64 rows");
    let whole = dim / 16 * 16;
    for row in 0..n {
        // SAFETY: a row has `dim` numbers, the mask ends the last load with it, and a row of `out` has room for whole
        // steps.
        unsafe {
            let (from, to) = (keys.rows.as_ptr().add(row * keys.stride), out.as_mut_ptr().add(row * padded));
            for at in (0..whole).step_by(16) {
                let short = _mm512_cvtneps_pbh(_mm512_loadu_ps(from.add(at)));
                to.add(at).cast::<__m256bh>().write_unaligned(short);
            }
            for at in (whole..padded).step_by(16) {
                let left = dim.saturating_sub(at);
                let x = _mm512_maskz_loadu_ps(((1u32 << left) - 1) as u16, from.wrapping_add(at));
                to.add(at).cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(x));
            }
        }
    }
    out[n * padded..short::ROWS * padded].fill(0);
}

/// # Safety
/// AVX-512 BF16 is enabled.
#[inline(always)]
unsafe fn select(keys: ShortKeys, live: u64, queries: ShortQueries, thresholds: &[f32], out: &mut Vec<Pass>) {
    let mut passing = Passing::new(keys.n, live, queries.n, thresholds, out);
    // SAFETY: the caller's promise.
    unsafe { each_tile(keys, queries, &mut passing) };
}

/// # Safety
/// AVX-512 BF16 is enabled.
#[inline(always)]
unsafe fn maxima(keys: ShortKeys, queries: ShortQueries, out: Maxima) {
    let mut largest = Largest::new(keys.n, queries.n, out);
    // SAFETY: the caller's promise.
    unsafe { each_tile(keys, queries, &mut largest) };
}

/// Safe entries of the table's types.
mod entry {
    use crate::select::Maxima;
    use crate::short::{ShortKeys, ShortQueries};
    use crate::tile::{Keys, Pass};

    crate::table::kernel_table!(@entries (enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,popcnt,lzcnt,bmi1,bmi2")
        shorten(keys: Keys, dim: usize, out: &mut [u16]) => super::shorten;
        select(keys: ShortKeys, live: u64, queries: ShortQueries, thresholds: &[f32], out: &mut Vec<Pass>)
            => super::select;
        maxima(keys: ShortKeys, queries: ShortQueries, out: Maxima) => super::maxima;
    );
}
