//! How vectors lie in blocks, and how one is read.
//!
//! Rows of a codec's bytes, padded to cache lines. float32 keys lie in two planes: the upper halves of all numbers, which
//! are the keys in bfloat16, rounded to nearest, and the lower halves. A first pass reads the first plane alone, half of the
//! bytes, and the exact key is there when it is wanted, for no byte more. Keys may also have a copy in codes of eight bits
//! ([`mnemex_kernels::codes`]), each number once more and a factor per row. The planes of neighbouring blocks lie side by
//! side (see [`crate::extent`]), not those of one block: memory is read twice as fast in one run.

use bytemuck::{cast_slice, cast_slice_mut};
use mnemex_kernels::canonical::Metric;
use mnemex_kernels::codes::{self, Codes, QUAD};
use mnemex_kernels::{convert, prefetch};

use crate::codec::Codec;
use crate::config::ScanCodec;
use crate::plane::LINE;

/// How vectors of one kind are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The codec.
    pub codec: Codec,
    /// Numbers per vector.
    pub dim: usize,
    /// Whether the halves of its numbers lie in two planes.
    split: bool,
    /// What a copy for first passes is stored as, if there is one.
    pub scan: Option<ScanCodec>,
}

/// Bytes of the factor of a row's codes.
const FACTOR: usize = size_of::<f32>();

impl Layout {
    /// Rows of whole numbers.
    pub fn whole(codec: Codec, dim: usize) -> Layout {
        Layout { codec, dim, split: false, scan: None }
    }

    /// Keys: float32 is split, except for distances, of which rounded keys say too little.
    pub fn of_keys(metric: Metric, codec: Codec, dim: usize, scan: Option<ScanCodec>) -> Layout {
        Layout { codec, dim, split: codec == Codec::F32 && metric != Metric::L2, scan }
    }

    /// The codec whose numbers stand in the first plane.
    pub(crate) fn scanned(&self) -> Codec {
        if self.split { Codec::Bf16 } else { self.codec }
    }

    /// Whether the first plane holds less than the vectors.
    pub(crate) fn is_split(&self) -> bool {
        self.split
    }

    /// Bytes from row to row of the first plane.
    pub fn row_bytes(&self) -> usize {
        self.scanned().row_bytes(self.dim)
    }

    /// Bytes from row to row of the second plane. Sixteen rows, the least of a block, fill cache lines.
    pub(crate) fn low_bytes(&self) -> usize {
        if self.split { (2 * self.dim).next_multiple_of(LINE / 16) } else { 0 }
    }

    /// Bytes of a row's codes and their factor; 0 where there is no copy.
    pub(crate) fn code_bytes(&self) -> usize {
        if self.scan.is_some() { codes::padded(self.dim) + FACTOR } else { 0 }
    }

    /// Bytes from row to row where rows are staged: the halves of a row and its codes, if any, stand side by side.
    pub(crate) fn staged_row_bytes(&self) -> usize {
        self.row_bytes() + self.low_bytes().next_multiple_of(LINE) + self.code_bytes().next_multiple_of(LINE)
    }

    /// Bytes of a vector as the codec writes it, without padding.
    pub fn vector_bytes(&self) -> usize {
        self.dim * self.codec.item_bytes()
    }

    /// The vector of a staged row.
    pub(crate) fn staged(self, row: &[u8]) -> Vector<'_> {
        let (row, low) = row.split_at(self.row_bytes());
        Vector { layout: self, row, low }
    }

    /// The halves of a staged row.
    fn halves<'a>(&self, row: &'a mut [u8]) -> (&'a mut [u16], &'a mut [u16]) {
        let (high, low) = row.split_at_mut(self.row_bytes());
        (&mut cast_slice_mut(high)[..self.dim], &mut cast_slice_mut(low)[..self.dim])
    }

    /// Writes float32 numbers into a staged row, rounding to nearest even where the codec does.
    pub(crate) fn encode(&self, x: &[f32], row: &mut [u8]) {
        if self.split {
            let (high, low) = self.halves(row);
            convert::split(x, high, low);
        } else {
            self.codec.encode(x, row);
        }
    }

    /// Writes a vector's bytes, as the codec writes them, into a staged row.
    pub(crate) fn put(&self, bytes: &[u8], row: &mut [u8]) {
        if self.split {
            // Bytes of a file can start anywhere.
            let x: Vec<f32> = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
            self.encode(&x, row);
        } else {
            row[..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// A staged row's codes, and the bytes of their factor behind them.
    pub(crate) fn codes<'a>(&self, row: &'a mut [u8]) -> (&'a mut [u8], &'a mut [u8]) {
        let codes = &mut row[self.row_bytes() + self.low_bytes().next_multiple_of(LINE)..][..self.code_bytes()];
        codes.split_at_mut(codes::padded(self.dim))
    }

    /// The copy in codes out of the plane of a block of `n` rows: all codes, then the factors.
    pub(crate) fn coded<'a>(&self, plane: &'a [u8], n: usize) -> Codes<'a> {
        let rows = plane.len() / self.code_bytes();
        let (bytes, factors) = plane.split_at(rows * codes::padded(self.dim));
        Codes { bytes, scale: cast_slice(factors), rows, n, next: &[] }
    }

    /// Copies the codes of `n` staged rows to the plane of a block, from row `at` on.
    pub(crate) fn place_codes(&self, staged: &[u8], n: usize, plane: &mut [u8], at: usize) {
        if self.scan.is_none() {
            return;
        }
        let width = codes::padded(self.dim);
        let rows = plane.len() / self.code_bytes();
        let (quads, factors) = plane.split_at_mut(rows * width);
        let before = self.row_bytes() + self.low_bytes().next_multiple_of(LINE);
        for (row, staged) in (at..at + n).zip(staged.chunks_exact(self.staged_row_bytes())) {
            let (codes, factor) = staged[before..][..self.code_bytes()].split_at(width);
            for (all, quad) in quads.chunks_exact_mut(rows * QUAD).zip(codes.chunks_exact(QUAD)) {
                all[row * QUAD..][..QUAD].copy_from_slice(quad);
            }
            factors[row * FACTOR..][..FACTOR].copy_from_slice(factor);
        }
    }

    /// Copies `n` staged rows to the planes of a block, from row `at` on.
    pub(crate) fn place(&self, staged: &[u8], n: usize, [first, second]: [&mut [u8]; 2], at: usize) {
        let (row_bytes, low_bytes) = (self.row_bytes(), self.low_bytes());
        let first = &mut first[at * row_bytes..][..n * row_bytes];
        if low_bytes == 0 {
            if self.scan.is_none() {
                first.copy_from_slice(&staged[..n * row_bytes]);
                return;
            }
            for (row, staged) in first.chunks_exact_mut(row_bytes).zip(staged.chunks_exact(self.staged_row_bytes())) {
                row.copy_from_slice(&staged[..row_bytes]);
            }
            return;
        }
        let second = second[at * low_bytes..].chunks_exact_mut(low_bytes);
        let rows = first.chunks_exact_mut(row_bytes).zip(second).zip(staged.chunks_exact(self.staged_row_bytes()));
        for ((high, low), staged) in rows {
            high.copy_from_slice(&staged[..row_bytes]);
            low.copy_from_slice(&staged[row_bytes..][..low_bytes]);
        }
    }

    /// The vector in one row of a block's planes.
    pub(crate) fn vector<'a>(&self, [first, second]: [&'a [u8]; 2], slot: usize) -> Vector<'a> {
        let (row_bytes, low_bytes) = (self.row_bytes(), self.low_bytes());
        let low = &second[slot * low_bytes..][..low_bytes];
        Vector { layout: *self, row: &first[slot * row_bytes..][..row_bytes], low }
    }
}

/// One stored vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vector<'a> {
    layout: Layout,
    row: &'a [u8],
    low: &'a [u8],
}

impl<'a> Vector<'a> {
    /// Its numbers in float32; exact.
    pub fn decode(&self, out: &mut [f32]) {
        let dim = self.layout.dim;
        if self.layout.split {
            convert::join(&cast_slice(self.row)[..dim], &cast_slice(self.low)[..dim], out);
        } else {
            self.layout.codec.decode(self.row, out);
        }
    }

    /// The same, in place where they stand so, otherwise in `scratch`, which has room for them.
    pub(crate) fn floats<'b>(&self, scratch: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        if self.layout.scanned() == Codec::F32 {
            return &cast_slice(self.row)[..self.layout.dim];
        }
        self.decode(scratch);
        scratch
    }

    /// Its bytes as the codec writes them, into room for them that is aligned for its numbers.
    pub fn copy_to(&self, out: &mut [u8]) {
        if self.layout.split {
            self.decode(cast_slice_mut(out));
        } else {
            out.copy_from_slice(&self.row[..out.len()]);
        }
    }

    /// Brings it near.
    pub(crate) fn prefetch(&self) {
        prefetch::prefetch(self.row);
        prefetch::prefetch(self.low);
    }
}
