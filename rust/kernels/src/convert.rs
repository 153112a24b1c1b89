//! Between float32 and the two half precisions, a row at a time.
//!
//! Widening is exact; narrowing rounds to nearest, ties to even. `half` dispatches to F16C by itself, [`join`] to the best
//! set; bfloat16 is a shift that the compiler vectorises.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::Kernels;

/// float16 bits to float32.
pub fn widen_f16(bits: &[u16], out: &mut [f32]) {
    bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
}

/// bfloat16 bits to float32.
pub fn widen_bf16(bits: &[u16], out: &mut [f32]) {
    assert_eq!(bits.len(), out.len());
    for (out, &b) in out.iter_mut().zip(bits) {
        *out = f32::from_bits(u32::from(b) << 16);
    }
}

/// float32 to float16 bits; beyond float16's range becomes infinite.
pub fn narrow_f16(x: &[f32], out: &mut [u16]) {
    out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(x);
}

/// float32 to bfloat16 bits.
pub fn narrow_bf16(x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len());
    for (out, &x) in out.iter_mut().zip(x) {
        *out = bf16::from_f32(x).to_bits();
    }
}

/// float32 as two halves: bfloat16 rounded to nearest, and the lower 16 bits, from which [`join`] makes it again. Numbers
/// that round beyond float32's range, NaN too, have upper halves that mean nothing.
pub fn split(x: &[f32], high: &mut [u16], low: &mut [u16]) {
    assert!(x.len() == high.len() && x.len() == low.len());
    for ((&x, high), low) in x.iter().zip(high).zip(low) {
        *high = (x.to_bits().wrapping_add(0x8000) >> 16) as u16;
        *low = x.to_bits() as u16;
    }
}

/// The float32 of [`split`], bit for bit: where the lower half is 0x8000 or more, the upper one was rounded up by one.
pub fn join(high: &[u16], low: &[u16], out: &mut [f32]) {
    match Kernels::best() {
        Ok(kernels) => (kernels.join)(high, low, out),
        Err(_) => joined(high, low, out),
    }
}

/// The same, to be compiled for an instruction set.
#[inline(always)]
pub(crate) fn joined(high: &[u16], low: &[u16], out: &mut [f32]) {
    assert!(out.len() == high.len() && out.len() == low.len());
    for ((out, &high), &low) in out.iter_mut().zip(high).zip(low) {
        let low = i32::from(low.cast_signed()).cast_unsigned();
        *out = f32::from_bits((u32::from(high) << 16).wrapping_add(low));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_make_every_float_again_and_the_upper_one_is_nearest() {
        let odd = (0..=u16::MAX).flat_map(|high| {
            [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|low| f32::from_bits(u32::from(high) << 16 | low))
        });
        let x: Vec<f32> = odd.collect();
        let (mut high, mut low, mut back) = (vec![7; x.len()], vec![7; x.len()], vec![7.0; x.len()]);
        split(&x, &mut high, &mut low);
        join(&high, &low, &mut back);
        for ((x, back), &high) in x.iter().zip(&back).zip(&high) {
            assert_eq!(x.to_bits(), back.to_bits());
            let (near, nearest) = (bf16::from_bits(high).to_f32(), bf16::from_f32(*x).to_f32());
            if nearest.is_finite() {
                assert_eq!((near - x).abs(), (nearest - x).abs(), "{x}");
            }
        }
    }

    #[test]
    fn every_half_survives_the_round_trip() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let mut wide = vec![f32::NAN; bits.len()];
        let mut back = vec![0xA5A5; bits.len()];
        widen_f16(&bits, &mut wide);
        narrow_f16(&wide, &mut back);
        for (&a, &b) in bits.iter().zip(&back) {
            assert!(a == b || (f16::from_bits(a).is_nan() && f16::from_bits(b).is_nan()));
        }
        widen_bf16(&bits, &mut wide);
        narrow_bf16(&wide, &mut back);
        for (&a, &b) in bits.iter().zip(&back) {
            assert!(a == b || (bf16::from_bits(a).is_nan() && bf16::from_bits(b).is_nan()));
        }
    }

    #[test]
    fn ties_go_to_even() {
        let mut out = [0u16; 2];
        narrow_bf16(&[f32::from_bits(0x3F80_8000), f32::from_bits(0x3F81_8000)], &mut out);
        assert_eq!(out, [0x3F80, 0x3F82]);
        narrow_f16(&[1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11)], &mut out);
        assert_eq!(out, [0x3C00, 0x3C02]);
    }
}
