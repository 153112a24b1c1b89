//! The table every machine has: plain arrays that the compiler vectorises for its baseline (SSE2, NEON).
#![expect(
    unsafe_code,
    reason = "the vector trait is unsafe for the sets that need enabling; plain arrays need nothing"
)]

use crate::codes::{QUAD, Quads, Query};
use crate::lanes::Lanes;
use crate::table::kernel_table;
use crate::tile::PANEL;

#[derive(Clone, Copy)]
struct F32x8([f32; 8]);

impl Lanes for F32x8 {
    const N: usize = 8;
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for eight floats; the read asks for no alignment.
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller's pointer is valid for eight numbers; the read asks for no alignment.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        Self(bits.map(|bits| half::f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: as for `load_f16`.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> [Self; 2] {
        // SAFETY: as for `load_f16`, of twice as many.
        let pairs = unsafe { p.cast::<[[u16; 2]; 8]>().read_unaligned() };
        [0, 1].map(|at| Self(pairs.map(|pair| f32::from_bits(u32::from(pair[at]) << 16))))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn count(self, x: Self, least: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + if x.0[i] >= least.0[i] { 1.0 } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn zero_where_less(self, x: Self, least: Self) -> Self {
        Self(std::array::from_fn(|i| if x.0[i] < least.0[i] { 0.0 } else { self.0[i] }))
    }

    #[inline(always)]
    unsafe fn sums(vectors: &[Self; PANEL]) -> Self {
        Self(std::array::from_fn(|i| vectors[i].0.iter().sum()))
    }

    #[inline(always)]
    #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must pass the filter")]
    unsafe fn not_less(self, other: Self) -> u32 {
        (0..8).fold(0, |bits, i| bits | (u32::from(!(self.0[i] < other.0[i])) << i))
    }
}

/// The codes of a row are taken out of one 32-bit number: the compiler vectorises that, and none of what seems nearer.
impl Quads for F32x8 {
    const N: usize = 8;
    type Sums = [i32; 8];
    type Weights = [i32; QUAD];

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        [0; 8]
    }

    #[inline(always)]
    unsafe fn weights(query: &Query, quad: usize) -> Self::Weights {
        // SAFETY: the caller's promise.
        unsafe { query.weights(quad) }.map(i32::from)
    }

    #[inline(always)]
    unsafe fn add(sums: Self::Sums, codes: *const u8, [a, b, c, d]: Self::Weights) -> Self::Sums {
        // SAFETY: the caller's pointer is valid for 32 codes.
        let rows = unsafe { codes.cast::<[[u8; QUAD]; 8]>().read() }.map(i32::from_le_bytes);
        let product = |r: usize, shift: i32, weight: i32| ((rows[r] >> shift) & 0xFF) * weight;
        std::array::from_fn(|r| {
            let sum = product(r, 0, a) + product(r, 8, b) + product(r, 16, c) + product(r, 24, d);
            sums[r].wrapping_add(sum)
        })
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, out: *mut i32) {
        // SAFETY: the caller's pointer is valid for eight numbers.
        unsafe { out.cast::<[i32; 8]>().write_unaligned(sums) }
    }
}

kernel_table! {
    /// Plain Rust.
    isa: Portable, lanes: F32x8, features: ()
}
