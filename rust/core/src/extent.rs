//! The bytes of one plane of a block, and where they lie: in memory of their own, or in a chunk that blocks share.

use bytemuck::cast_slice;

use crate::arena::{Arena, Slot, chunk_bytes};
use crate::error::Result;
use crate::plane::Plane;

/// As many bytes as a block was made for, zeroed, starting on a cache line.
pub(crate) enum Extent {
    Own(Plane),
    Slot(Slot),
}

/// What is about to be written.
#[derive(Clone, Copy)]
pub(crate) struct Demand<'a> {
    /// Rows that the lane is about to take.
    pub(crate) now: usize,
    /// Rows that it then has.
    pub(crate) in_all: usize,
    /// Rows that all lanes of the bank are about to take.
    pub(crate) in_bank: usize,
    /// Where they find room.
    pub(crate) arena: &'a Arena,
}

/// Blocks that a lane has to take at once to be given a run of neighbours.
const RUN_BLOCKS: usize = 4;

impl Extent {
    /// Room for `rows` rows of `row_bytes`, beside the extent `before` it in the lane where that is in a chunk.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub(crate) fn zeroed(rows: usize, row_bytes: usize, before: Option<&Extent>, demand: Demand) -> Result<Extent> {
        let bytes = rows * row_bytes;
        let open = before.and_then(|extent| match extent {
            Extent::Slot(slot) if slot.len() == bytes => slot.next(),
            _ => None,
        });
        let blocks = demand.now / rows.max(1);
        // A chunk pays where it is filled at once, or where what lies idle in it is at most an eighth of the lane.
        let pays = chunk_bytes(bytes).is_some_and(|chunk| {
            let [now, in_all, in_bank] =
                [demand.now, demand.in_all, demand.in_bank].map(|rows| rows.saturating_mul(row_bytes));
            now >= chunk || in_all >= 8 * chunk || blocks >= RUN_BLOCKS && in_bank >= 2 * chunk
        });
        let fresh = || if pays { demand.arena.run(bytes, blocks.max(1)) } else { None };
        open.or_else(fresh).map_or_else(|| Plane::zeroed(bytes).map(Extent::Own), |slot| Ok(Extent::Slot(slot)))
    }

    /// A copy in memory of its own, where that is to be had.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub(crate) fn try_clone(&self) -> Result<Extent> {
        match self {
            Extent::Own(plane) => plane.try_clone(),
            Extent::Slot(slot) => Plane::zeroed(slot.len()).map(|mut copy| {
                copy.bytes_mut().copy_from_slice(slot.bytes());
                copy
            }),
        }
        .map(Extent::Own)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Extent::Own(plane) => plane.bytes(),
            Extent::Slot(slot) => slot.bytes(),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Extent::Own(plane) => plane.bytes_mut(),
            Extent::Slot(slot) => slot.bytes_mut(),
        }
    }

    /// The bytes as float32.
    pub(crate) fn floats(&self) -> &[f32] {
        cast_slice(self.bytes())
    }

    /// What holds the bytes, by address, and its size; chunks are held by many extents.
    pub(crate) fn holder(&self) -> (*const u8, usize) {
        match self {
            Extent::Own(plane) => (plane.bytes().as_ptr(), plane.nbytes()),
            Extent::Slot(slot) => (std::sync::Arc::as_ptr(slot.chunk()).cast(), slot.chunk().nbytes()),
        }
    }
}

impl Clone for Extent {
    fn clone(&self) -> Extent {
        Extent::Own(Plane::copy_of(self.bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: usize = 256;
    const CHUNK: usize = crate::arena::PAGE;

    fn extent(arena: &Arena, before: Option<&Extent>, now: usize, in_all: usize) -> Extent {
        Extent::zeroed(64, ROW, before, Demand { now, in_all, in_bank: now, arena }).unwrap()
    }

    #[test]
    fn long_lanes_lie_in_chunks_and_short_ones_do_not() {
        let (chunk_rows, arena) = (CHUNK / ROW, &Arena::default());
        assert!(matches!(extent(arena, None, chunk_rows - 1, chunk_rows - 1), Extent::Own(_)));
        let bulk = extent(arena, None, chunk_rows, chunk_rows);
        assert!(matches!(bulk, Extent::Slot(_)), "a chunk's worth at once");
        let next = extent(arena, Some(&bulk), 64, chunk_rows + 64);
        assert_eq!(next.holder(), bulk.holder(), "what follows takes the chunk's next slot");
        assert_eq!(next.bytes().as_ptr().addr(), bulk.bytes().as_ptr().addr() + 64 * ROW);
        assert!(
            matches!(extent(arena, None, 64, 8 * chunk_rows), Extent::Slot(_)),
            "little at a time into a long lane"
        );
        for row in [2752 * 4, 0] {
            let demand = Demand { now: 1 << 40, in_all: 1 << 40, in_bank: 1 << 40, arena };
            assert!(matches!(Extent::zeroed(64, row, None, demand).unwrap(), Extent::Own(_)), "rows of {row} bytes");
        }
    }

    #[test]
    fn short_lanes_of_a_bank_that_much_arrives_in_are_neighbours_in_one_chunk() {
        let arena = &Arena::default();
        let demand = |now: usize| Demand { now, in_all: now, in_bank: 2 * CHUNK / ROW, arena };
        let lane = |rows: usize| {
            let first = Extent::zeroed(64, ROW, None, demand(rows)).unwrap();
            let second = Extent::zeroed(64, ROW, Some(&first), demand(rows - 64)).unwrap();
            [first, second]
        };
        let ([a, b], [c, d]) = (lane(256), lane(512));
        let addresses = [&a, &b, &c, &d].map(|extent| extent.bytes().as_ptr().addr());
        assert_eq!(addresses.map(|at| (at - addresses[0]) / (64 * ROW)), [0, 1, 4, 5]);
        assert!(matches!(&lane(128)[0], Extent::Own(_)), "two blocks are not worth it");
    }

    #[test]
    fn a_copy_has_the_bytes_and_none_of_the_chunk() {
        let mut slot = extent(&Arena::default(), None, CHUNK, CHUNK);
        slot.bytes_mut()[5] = 7;
        for mut copy in [slot.clone(), slot.try_clone().unwrap()] {
            assert_eq!(copy.bytes(), slot.bytes());
            copy.bytes_mut()[5] = 8;
            assert_eq!(slot.bytes()[5], 7);
            assert_ne!(copy.holder(), slot.holder());
        }
    }
}
