//! Between float32 and the two half precisions, a row at a time.
//!
//! Widening is exact; narrowing rounds to nearest, ties to even. `half` dispatches to F16C by itself; bfloat16 is a
//! shift that the compiler vectorises.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

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

#[cfg(test)]
mod tests {
    use super::*;

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
