//! Bytes that start on a cache line, row after row: one plane of a block.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};

use crate::error::{Error, Kind, Result};

/// Bytes of a cache line; rows of a plane are padded to it.
pub(crate) const LINE: usize = 64;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A zeroed, line-aligned run of bytes.
#[derive(Clone, Default)]
pub(crate) struct Plane(Vec<Line>);

impl Plane {
    /// `bytes` zeros; a multiple of [`LINE`].
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub(crate) fn zeroed(bytes: usize) -> Result<Plane> {
        debug_assert!(bytes.is_multiple_of(LINE));
        let mut lines = Vec::new();
        lines.try_reserve_exact(bytes / LINE).map_err(|_| no_memory(bytes))?;
        lines.resize(bytes / LINE, Line([0; LINE]));
        Ok(Plane(lines))
    }

    /// Makes room for another's bytes.
    pub(crate) fn reserve(&mut self, more: &Plane) -> Result<()> {
        self.0.try_reserve(more.0.len()).map_err(|_| no_memory(more.0.len() * LINE))
    }

    /// Adds another's bytes behind these.
    pub(crate) fn extend(&mut self, more: &Plane) {
        self.0.extend_from_slice(&more.0);
    }

    /// The same bytes, which start on a cache line.
    pub(crate) fn copy_of(bytes: &[u8]) -> Plane {
        Plane(cast_slice(bytes).to_vec())
    }

    /// A copy.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub(crate) fn try_clone(&self) -> Result<Plane> {
        let mut copy = Plane::default();
        copy.0.try_reserve_exact(self.0.len()).map_err(|_| no_memory(self.0.len() * LINE))?;
        copy.extend(self);
        Ok(copy)
    }

    /// Keeps the first `bytes`, a multiple of [`LINE`]; gives the rest of the memory back if it can.
    pub(crate) fn truncate(&mut self, bytes: usize) {
        debug_assert!(bytes.is_multiple_of(LINE));
        self.0.truncate(bytes / LINE);
        if let Ok(smaller) = self.try_clone() {
            *self = smaller;
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        cast_slice(&self.0)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        cast_slice_mut(&mut self.0)
    }

    /// The plane as float32.
    pub(crate) fn floats(&self) -> &[f32] {
        cast_slice(&self.0)
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        cast_slice_mut(&mut self.0)
    }

    /// The plane as 16-bit numbers.
    pub(crate) fn shorts(&self) -> &[u16] {
        cast_slice(&self.0)
    }

    pub(crate) fn shorts_mut(&mut self) -> &mut [u16] {
        cast_slice_mut(&mut self.0)
    }

    /// Bytes of memory held.
    pub(crate) fn nbytes(&self) -> usize {
        self.0.capacity() * LINE
    }
}

fn no_memory(bytes: usize) -> Error {
    Error::new(Kind::Resource, format!("{bytes} bytes of memory are not to be had: write less at a time"))
}
