//! How a vector stands in memory: the types that keep a number per dimension.
//!
//! A codec says how many bytes a row takes, encodes a row, and decodes it to float32. Rows of a plane are padded to 64
//! bytes. Decoding is what `gather` returns and what the canonical score is computed from.

use bytemuck::{cast_slice, cast_slice_mut};
use mnemex_kernels::convert;

use crate::plane::LINE;

/// A raw codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl Codec {
    /// Every codec: the list that names, files and tests go by.
    pub const ALL: [Codec; 3] = [Codec::F32, Codec::F16, Codec::Bf16];

    /// Its name in Python and in files.
    pub fn name(self) -> &'static str {
        match self {
            Codec::F32 => "f32",
            Codec::F16 => "f16",
            Codec::Bf16 => "bf16",
        }
    }

    /// The codec of that name.
    pub fn named(name: &str) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// Bytes of one number.
    pub fn item_bytes(self) -> usize {
        match self {
            Codec::F32 => 4,
            Codec::F16 | Codec::Bf16 => 2,
        }
    }

    /// Bytes from one row of a plane to the next.
    pub fn row_bytes(self, dim: usize) -> usize {
        (dim * self.item_bytes()).next_multiple_of(LINE)
    }

    /// Whether every number of `other` can be stored without loss.
    pub fn holds(self, other: Codec) -> bool {
        self == other || self == Codec::F32
    }

    /// Writes float32 numbers into the front of a row, rounding to nearest even.
    pub fn encode(self, x: &[f32], row: &mut [u8]) {
        let row = &mut row[..x.len() * self.item_bytes()];
        match self {
            Codec::F32 => row.copy_from_slice(cast_slice(x)),
            Codec::F16 => convert::narrow_f16(x, cast_slice_mut(row)),
            Codec::Bf16 => convert::narrow_bf16(x, cast_slice_mut(row)),
        }
    }

    /// Reads a row back as float32; exact.
    pub fn decode(self, row: &[u8], x: &mut [f32]) {
        let row = &row[..x.len() * self.item_bytes()];
        match self {
            Codec::F32 => x.copy_from_slice(cast_slice(row)),
            Codec::F16 => convert::widen_f16(cast_slice(row), x),
            Codec::Bf16 => convert::widen_bf16(cast_slice(row), x),
        }
    }
}
