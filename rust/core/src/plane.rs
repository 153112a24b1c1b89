//! Bytes that start on a cache line, row after row: one plane of a block.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use memmap2::MmapMut;

use crate::error::{Error, Kind, Result};

/// Bytes of a cache line; rows of a plane are padded to it.
pub(crate) const LINE: usize = 64;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; LINE]);

/// Bytes from which a plane has a mapping of its own. The allocator would put what an ingest stages, megabytes for a
/// moment, beside small things that stay, and could then give none of it back.
const MAPPED: usize = 1 << 20;

/// A zeroed, line-aligned run of bytes.
pub(crate) enum Plane {
    Heap(Vec<Line>),
    /// With its length; a mapping is as large as what it has room for.
    Mapped(MmapMut, usize),
}

impl Default for Plane {
    fn default() -> Plane {
        Plane::Heap(Vec::new())
    }
}

impl Clone for Plane {
    fn clone(&self) -> Plane {
        self.try_clone().unwrap_or_else(|_| Plane::copy_of(self.bytes()))
    }
}

impl Plane {
    /// `bytes` zeros; a multiple of [`LINE`].
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub(crate) fn zeroed(bytes: usize) -> Result<Plane> {
        let mut plane = Plane::with_room(bytes)?;
        match &mut plane {
            Plane::Heap(lines) => lines.resize(bytes / LINE, Line([0; LINE])),
            Plane::Mapped(_, len) => *len = bytes,
        }
        Ok(plane)
    }

    /// None yet, and room for so many.
    fn with_room(bytes: usize) -> Result<Plane> {
        debug_assert!(bytes.is_multiple_of(LINE));
        if bytes >= MAPPED {
            return MmapMut::map_anon(bytes).map(|map| Plane::Mapped(map, 0)).map_err(|_| no_memory(bytes));
        }
        let mut lines = Vec::new();
        lines.try_reserve_exact(bytes / LINE).map_err(|_| no_memory(bytes))?;
        Ok(Plane::Heap(lines))
    }

    /// Makes room for another's bytes.
    pub(crate) fn reserve(&mut self, more: &Plane) -> Result<()> {
        let (len, need) = (self.bytes().len(), self.bytes().len() + more.bytes().len());
        if need > self.nbytes() {
            // Twice as much each time, so that many small calls do not copy everything every time.
            let mut larger = Plane::with_room(need.max(2 * len))?;
            larger.extend(self);
            *self = larger;
        }
        Ok(())
    }

    /// Adds another's bytes behind these, for which there is room.
    pub(crate) fn extend(&mut self, more: &Plane) {
        let more = more.bytes();
        match self {
            Plane::Heap(lines) => lines.extend_from_slice(cast_slice(more)),
            Plane::Mapped(map, len) => {
                map[*len..*len + more.len()].copy_from_slice(more);
                *len += more.len();
            }
        }
    }

    /// The same bytes, which start on a cache line.
    pub(crate) fn copy_of(bytes: &[u8]) -> Plane {
        Plane::Heap(cast_slice(bytes).to_vec())
    }

    /// A copy.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub(crate) fn try_clone(&self) -> Result<Plane> {
        let mut copy = Plane::with_room(self.bytes().len())?;
        copy.extend(self);
        Ok(copy)
    }

    /// Keeps the first `bytes`, a multiple of [`LINE`]; gives the rest of the memory back if it can.
    pub(crate) fn truncate(&mut self, bytes: usize) {
        debug_assert!(bytes.is_multiple_of(LINE));
        match self {
            Plane::Heap(lines) => lines.truncate(bytes / LINE),
            Plane::Mapped(_, len) => *len = bytes.min(*len),
        }
        if let Ok(smaller) = self.try_clone() {
            *self = smaller;
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Plane::Heap(lines) => cast_slice(lines),
            Plane::Mapped(map, len) => &map[..*len],
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Plane::Heap(lines) => cast_slice_mut(lines),
            Plane::Mapped(map, len) => &mut map[..*len],
        }
    }

    /// The plane as float32.
    pub(crate) fn floats(&self) -> &[f32] {
        cast_slice(self.bytes())
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        cast_slice_mut(self.bytes_mut())
    }

    /// The plane as 16-bit numbers.
    pub(crate) fn shorts(&self) -> &[u16] {
        cast_slice(self.bytes())
    }

    pub(crate) fn shorts_mut(&mut self) -> &mut [u16] {
        cast_slice_mut(self.bytes_mut())
    }

    /// Bytes of memory held.
    pub(crate) fn nbytes(&self) -> usize {
        match self {
            Plane::Heap(lines) => lines.capacity() * LINE,
            Plane::Mapped(map, _) => map.len(),
        }
    }
}

fn no_memory(bytes: usize) -> Error {
    Error::new(Kind::Resource, format!("{bytes} bytes of memory are not to be had: write less at a time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(bytes: usize, mark: u8) -> Plane {
        let mut plane = Plane::zeroed(bytes).unwrap();
        assert!(plane.bytes().iter().all(|&byte| byte == 0));
        plane.bytes_mut().fill(mark);
        plane
    }

    #[test]
    fn planes_grow_and_shrink_across_the_size_that_is_mapped() {
        let (small, large) = (marked(3 * LINE, 1), marked(MAPPED, 2));
        assert!(matches!((&small, &large), (Plane::Heap(_), Plane::Mapped(..))));
        let mut plane = small.clone();
        for more in [&large, &small, &large] {
            plane.reserve(more).unwrap();
            plane.extend(more);
        }
        assert!(matches!(plane, Plane::Mapped(..)));
        assert_eq!(plane.bytes().as_ptr().addr() % LINE, 0);
        let want = [small.bytes(), large.bytes(), small.bytes(), large.bytes()].concat();
        assert!(plane.bytes() == want && plane.clone().bytes() == want && plane.nbytes() >= want.len());
        plane.truncate(4 * LINE);
        assert!(matches!(plane, Plane::Heap(_)));
        assert_eq!(plane.bytes(), &want[..4 * LINE]);
    }
}
