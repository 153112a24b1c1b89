//! Arrays as callers have them: any of the three float types, any strides.

use bytemuck::{cast_slice, cast_slice_mut};
use mnemex_kernels::convert;
use ndarray::ArrayView4;

use crate::codec::Codec;
use crate::error::{Error, Kind, Result};
use crate::layout::Layout;

/// A `[rows, heads, T, dim]` view of the caller's memory; half precisions as their bits.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// float32
    F32(ArrayView4<'a, f32>),
    /// float16 bits
    F16(ArrayView4<'a, u16>),
    /// bfloat16 bits
    Bf16(ArrayView4<'a, u16>),
}

impl Input<'_> {
    /// rows, heads, T, dim
    pub fn shape(&self) -> [usize; 4] {
        let (r, h, t, d) = match self {
            Input::F32(x) => x.dim(),
            Input::F16(x) | Input::Bf16(x) => x.dim(),
        };
        [r, h, t, d]
    }

    /// The codec that keeps these numbers bit for bit.
    pub fn codec(&self) -> Codec {
        match self {
            Input::F32(_) => Codec::F32,
            Input::F16(_) => Codec::F16,
            Input::Bf16(_) => Codec::Bf16,
        }
    }

    /// The name of the type in messages.
    pub fn dtype(&self) -> &'static str {
        match self {
            Input::F32(_) => "float32",
            Input::F16(_) => "float16",
            Input::Bf16(_) => "bfloat16",
        }
    }

    /// Copies one vector's bits into `out`, which has room for `dim` numbers of its type.
    fn copy_bits(&self, at: [usize; 3], out: &mut [u8]) {
        fn copy<T: Copy + bytemuck::Pod>(x: &ArrayView4<'_, T>, [r, h, t]: [usize; 3], out: &mut [u8]) {
            let x = x
                .index_axis(ndarray::Axis(0), r)
                .index_axis_move(ndarray::Axis(0), h)
                .index_axis_move(ndarray::Axis(0), t);
            match x.as_slice() {
                Some(x) => out.copy_from_slice(cast_slice(x)),
                None => cast_slice_mut::<u8, T>(out).iter_mut().zip(x).for_each(|(out, &x)| *out = x),
            }
        }
        match self {
            Input::F32(x) => copy(x, at, out),
            Input::F16(x) | Input::Bf16(x) => copy(x, at, out),
        }
    }
}

/// Reads vectors of an [`Input`] one at a time, through a buffer of its own.
pub(crate) struct VectorReader<'a> {
    input: Input<'a>,
    bits: Vec<u64>,
    wide: Vec<f32>,
}

impl<'a> VectorReader<'a> {
    pub(crate) fn new(input: Input<'a>) -> Self {
        let dim = input.shape()[3];
        VectorReader { input, bits: vec![0; (dim * 4).div_ceil(8)], wide: vec![0.0; dim] }
    }

    /// One vector as float32; exact.
    pub(crate) fn floats(&mut self, at: [usize; 3]) -> &[f32] {
        let codec = self.input.codec();
        if codec == Codec::F32 {
            self.input.copy_bits(at, cast_slice_mut(&mut self.wide));
        } else {
            let bits: &mut [u8] = cast_slice_mut(&mut self.bits);
            let bits = &mut bits[..self.wide.len() * 2];
            self.input.copy_bits(at, bits);
            match codec {
                Codec::F16 => convert::widen_f16(cast_slice(bits), &mut self.wide),
                _ => convert::widen_bf16(cast_slice(bits), &mut self.wide),
            }
        }
        &self.wide
    }

    /// Whether one vector is free of NaN and infinity.
    pub(crate) fn is_finite(&mut self, at: [usize; 3]) -> bool {
        all_finite(self.floats(at))
    }

    /// Whether one vector is still free of infinity when a narrower codec has rounded it.
    pub(crate) fn fits(&mut self, at: [usize; 3], codec: Codec) -> bool {
        if codec.holds(self.input.codec()) {
            return true;
        }
        let mut row = vec![0; self.wide.len() * codec.item_bytes()];
        codec.encode(self.floats(at), &mut row);
        let mut rounded = vec![0.0; self.wide.len()];
        codec.decode(&row, &mut rounded);
        all_finite(&rounded)
    }

    /// Encodes one vector into a staged row: bit for bit where the types agree.
    pub(crate) fn encode(&mut self, at: [usize; 3], layout: Layout, row: &mut [u8]) {
        if layout.codec == self.input.codec() && !layout.is_split() {
            self.input.copy_bits(at, &mut row[..layout.vector_bytes()]);
        } else {
            layout.encode(self.floats(at), row);
        }
    }
}

/// Whether no number is NaN or infinite; branch-free so that it vectorises.
pub(crate) fn all_finite(x: &[f32]) -> bool {
    x.iter().fold(true, |finite, x| finite & (x.to_bits() & 0x7F80_0000 != 0x7F80_0000))
}

/// The refusal of a non-finite number.
pub(crate) fn non_finite(argument: &str, row: usize, head: usize, token: usize) -> Error {
    let otherwise = if argument == "queries" { "leave that query out" } else { "mask that token out" };
    Error::new(
        Kind::NonFinite,
        format!(
            "{argument} hold NaN or infinity at row {row}, head {head}, token {token}: {otherwise}, or give \
             nonfinite=\"keep\", to the call or to the bank"
        ),
    )
}

/// `Ok` if `shape` is `want`, where -1 stands for any size.
pub(crate) fn check_shape(argument: &str, shape: [usize; 4], want: [Option<usize>; 4]) -> Result<()> {
    if shape.iter().zip(want).all(|(&have, want)| want.is_none_or(|want| want == have)) {
        return Ok(());
    }
    let names = ["rows", "heads", "T", "dim"];
    let want: Vec<String> =
        want.iter().zip(names).map(|(want, name)| want.map_or_else(|| name.to_string(), |n| n.to_string())).collect();
    Err(Error::new(
        Kind::Shape,
        format!("{argument} have shape {shape:?}; expected [rows, heads, T, dim] = [{}]", want.join(", ")),
    ))
}
