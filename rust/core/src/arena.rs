//! Huge pages for long lanes: chunks of two mebibytes from which planes take their bytes, one slot each.
//!
//! A scan of gigabytes in pages of 4 KiB spends about an eighth of its time on looking addresses up. The allocator cannot
//! be asked for huge pages block by block, so a lane that is long, or that much arrives in at once, cuts the planes of its
//! full blocks out of chunks that the operating system is asked to back with one huge page each. A chunk belongs to one
//! plane of one lane, whose blocks die in order, and goes back to the system as a whole with its last slot.
#![expect(unsafe_code, reason = "slots of one chunk are disjoint, which the borrow checker cannot see")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Bytes of a chunk: one huge page.
pub(crate) const CHUNK: usize = 2 << 20;

/// Zeroed memory in slots of one size, each given out once.
pub(crate) struct Chunk {
    map: MmapRaw,
    /// Where the first slot begins: chunks start where a huge page does.
    start: usize,
    slot_bytes: usize,
    /// Slots given out.
    taken: AtomicUsize,
}

impl Chunk {
    /// A chunk for slots of `slot_bytes`, a multiple of a cache line; None where the system has no memory to give.
    pub(crate) fn of(slot_bytes: usize) -> Option<Arc<Chunk>> {
        // Newer kernels align such mappings by themselves; elsewhere what is cut off is never touched.
        let map = |bytes| MmapOptions::new().len(bytes).map_anon().ok().map(MmapRaw::from);
        let lead = |map: &MmapRaw| map.as_ptr().addr().wrapping_neg() % CHUNK;
        let map = map(CHUNK).filter(|map| lead(map) == 0).or_else(|| map(2 * CHUNK))?;
        let start = lead(&map);
        #[cfg(target_os = "linux")]
        // Refused where huge pages are off: slower, and nothing else.
        let _ = map.advise_range(memmap2::Advice::HugePage, start, CHUNK);
        Some(Arc::new(Chunk { map, start, slot_bytes, taken: AtomicUsize::new(0) }))
    }
}

/// The only owner of one slot of a chunk.
pub(crate) struct Slot {
    chunk: Arc<Chunk>,
    /// Where it begins in the chunk's map.
    start: usize,
}

impl Slot {
    /// The next slot of a chunk, zeroed, if there is one.
    pub(crate) fn of(chunk: &Arc<Chunk>) -> Option<Slot> {
        let slots = CHUNK / chunk.slot_bytes;
        let take = |taken: usize| (taken < slots).then_some(taken + 1);
        let at = chunk.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Slot { chunk: Arc::clone(chunk), start: chunk.start + at * chunk.slot_bytes })
    }

    pub(crate) fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    /// Bytes of the slot.
    pub(crate) fn len(&self) -> usize {
        self.chunk.slot_bytes
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `of` keeps slots within the map, which lives as long as `chunk`.
        let first = unsafe { self.chunk.map.as_ptr().add(self.start) };
        // SAFETY: the map is initialised (zeros); a slot is given out once, so its bytes change only through `bytes_mut`
        // of this very value.
        unsafe { std::slice::from_raw_parts(first, self.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        let first = unsafe { self.chunk.map.as_mut_ptr().add(self.start) };
        // SAFETY: as in `bytes`, and `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(first, self.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_zeroed_aligned_and_apart() {
        let bytes = CHUNK / 8 - 64;
        let chunk = Chunk::of(bytes).unwrap();
        let mut slots: Vec<Slot> = std::iter::from_fn(|| Slot::of(&chunk)).collect();
        assert_eq!(slots.len(), 8);
        assert_eq!(slots[0].bytes().as_ptr().addr() % CHUNK, 0);
        for (slot, mark) in slots.iter_mut().zip(1..) {
            assert!(slot.bytes().len() == bytes && slot.bytes().iter().all(|&byte| byte == 0));
            slot.bytes_mut().fill(mark);
        }
        for (slot, mark) in slots.iter().zip(1..) {
            assert!(slot.bytes().iter().all(|&byte| byte == mark), "a slot overlaps another");
        }
        let last = slots.pop().unwrap();
        drop((chunk, slots));
        assert!(last.bytes().iter().all(|&byte| byte == 8), "a slot keeps its chunk");
    }

    #[test]
    fn a_slot_is_given_out_once_whatever_happens_at_the_same_time() {
        let chunk = Chunk::of(64).unwrap();
        let take = || std::iter::from_fn(|| Slot::of(&chunk)).map(|slot| slot.start).collect::<Vec<_>>();
        let mut starts: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), CHUNK / 64, "none twice, none left out");
    }
}
