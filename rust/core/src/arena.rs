//! Huge pages for long lanes: chunks of a few mebibytes from which planes take their bytes, one slot each.
//!
//! A scan of gigabytes in pages of 4 KiB spends about an eighth of its time on looking addresses up. The allocator cannot
//! be asked for huge pages block by block, so a lane that is long, or that much arrives in at once, cuts the planes of its
//! full blocks out of chunks that the operating system is asked to back with huge pages. A chunk belongs to one plane of
//! one lane. A slot that is given back is taken again by the lane's next blocks; the whole goes back to the system with
//! its last slot. No lock is held, so a process may fork at any time.
#![expect(unsafe_code, reason = "slots of one chunk are disjoint, which the borrow checker cannot see")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// Bytes of a huge page.
pub(crate) const PAGE: usize = 2 << 20;

/// Most huge pages of a chunk: what a lane's last chunk may hold in vain grows with it.
const MOST_PAGES: usize = 4;

/// Slots of one size, each of which has one owner at a time.
pub(crate) struct Chunk {
    map: MmapRaw,
    /// Where the first slot begins: chunks start where a huge page does.
    start: usize,
    slot_bytes: usize,
    slots: usize,
    /// Slots given out for the first time: the others are zeros as they came.
    begun: AtomicUsize,
    /// A bit for each slot that was given back.
    returned: Box<[AtomicU64]>,
}

/// Bytes of a chunk for slots of `slot_bytes`: the fewest huge pages of which they leave at most a 32nd unused, if so few
/// are enough.
pub(crate) fn chunk_bytes(slot_bytes: usize) -> Option<usize> {
    let fits = |bytes: &usize| (1..=bytes / 2).contains(&slot_bytes) && bytes % slot_bytes <= bytes / 32;
    (1..=MOST_PAGES).map(|pages| pages * PAGE).find(fits)
}

impl Chunk {
    /// A chunk for slots of `slot_bytes`, a multiple of a cache line; None where they fit no chunk, or where the system
    /// has no memory to give.
    pub(crate) fn of(slot_bytes: usize) -> Option<Arc<Chunk>> {
        let bytes = chunk_bytes(slot_bytes)?;
        // Newer kernels align such mappings by themselves; elsewhere what is cut off is never touched.
        let map = |bytes| MmapOptions::new().len(bytes).map_anon().ok().map(MmapRaw::from);
        let lead = |map: &MmapRaw| map.as_ptr().addr().wrapping_neg() % PAGE;
        let map = map(bytes).filter(|map| lead(map) == 0).or_else(|| map(bytes + PAGE))?;
        let start = lead(&map);
        #[cfg(target_os = "linux")]
        // Refused where huge pages are off: slower, and nothing else.
        let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes);
        let slots = bytes / slot_bytes;
        let returned = (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Some(Arc::new(Chunk { map, start, slot_bytes, slots, begun: AtomicUsize::new(0), returned }))
    }

    /// Bytes of memory held.
    pub(crate) fn nbytes(&self) -> usize {
        chunk_bytes(self.slot_bytes).unwrap_or(0)
    }

    /// Takes a slot that was given back.
    fn take_returned(&self) -> Option<usize> {
        self.returned.iter().enumerate().find_map(|(word, bits)| {
            let lowest = |bits: u64| bits & bits.wrapping_sub(1);
            // Acquire: what the last owner wrote is done before the new one writes.
            let before =
                bits.fetch_update(Ordering::Acquire, Ordering::Relaxed, |bits| (bits != 0).then(|| lowest(bits)));
            before.ok().map(|before| 64 * word + before.trailing_zeros() as usize)
        })
    }
}

/// The only owner of one slot of a chunk; gives it back in the end.
pub(crate) struct Slot {
    chunk: Arc<Chunk>,
    at: usize,
}

impl Slot {
    /// A slot of a chunk, zeroed, if one is left.
    pub(crate) fn of(chunk: &Arc<Chunk>) -> Option<Slot> {
        if let Some(at) = chunk.take_returned() {
            let mut slot = Slot { chunk: Arc::clone(chunk), at };
            slot.bytes_mut().fill(0);
            return Some(slot);
        }
        let begin = |begun: usize| (begun < chunk.slots).then_some(begun + 1);
        let at = chunk.begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, begin).ok()?;
        Some(Slot { chunk: Arc::clone(chunk), at })
    }

    pub(crate) fn chunk(&self) -> &Arc<Chunk> {
        &self.chunk
    }

    /// Bytes of the slot.
    pub(crate) fn len(&self) -> usize {
        self.chunk.slot_bytes
    }

    /// Where it begins in the chunk's map.
    fn start(&self) -> usize {
        self.chunk.start + self.at * self.chunk.slot_bytes
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `of` keeps slots within the map, which lives as long as `chunk`.
        let first = unsafe { self.chunk.map.as_ptr().add(self.start()) };
        // SAFETY: the map is initialised (zeros); a slot has one owner at a time, so its bytes change only through
        // `bytes_mut` of this very value.
        unsafe { std::slice::from_raw_parts(first, self.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        let first = unsafe { self.chunk.map.as_mut_ptr().add(self.start()) };
        // SAFETY: as in `bytes`, and `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(first, self.len()) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Release: see `take_returned`.
        self.chunk.returned[self.at / 64].fetch_or(1 << (self.at % 64), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_zeroed_aligned_and_apart() {
        let bytes = PAGE / 8 - 64;
        let chunk = Chunk::of(bytes).unwrap();
        let mut slots: Vec<Slot> = std::iter::from_fn(|| Slot::of(&chunk)).collect();
        assert_eq!(slots.len(), 8);
        assert_eq!(slots[0].bytes().as_ptr().addr() % PAGE, 0);
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
        let next = Slot::of(last.chunk()).unwrap();
        assert!(next.bytes().iter().all(|&byte| byte == 0), "what was given back comes as zeros");
        assert_eq!(std::iter::from_fn(|| Slot::of(last.chunk())).collect::<Vec<_>>().len(), 6);
    }

    #[test]
    fn a_slot_has_one_owner_whatever_happens_at_the_same_time() {
        let chunk = Chunk::of(64).unwrap();
        let slots = PAGE / 64;
        let work = |mark: u8| {
            // Half of what is taken goes back at once, to be taken by others.
            for round in 0..40 {
                let mut mine: Vec<Slot> = std::iter::from_fn(|| Slot::of(&chunk)).take(slots / 5).collect();
                mine.iter_mut().for_each(|slot| slot.bytes_mut().fill(mark));
                mine.truncate(mine.len() / 2);
                std::thread::yield_now();
                assert!(mine.iter().all(|slot| slot.bytes().iter().all(|&byte| byte == mark)), "round {round}");
            }
        };
        std::thread::scope(|scope| (1..5).for_each(|mark| drop(scope.spawn(move || work(mark)))));
        let mut every: Vec<usize> = std::iter::from_fn(|| Slot::of(&chunk))
            .map(|slot| {
                let at = slot.at;
                std::mem::forget(slot);
                at
            })
            .collect();
        every.sort_unstable();
        assert!(every.iter().copied().eq(0..slots), "none lost, none twice");
    }

    #[test]
    fn a_chunk_has_little_that_no_slot_can_use() {
        let row = 64 * 64;
        for (dim_bytes, pages) in
            [(64, Some(1)), (768 * 4, Some(2)), (3072 * 4, Some(3)), (2752 * 4, None), (1 << 15, Some(2))]
        {
            assert_eq!(chunk_bytes(row / 64 * dim_bytes), pages.map(|pages| pages * PAGE), "{dim_bytes}");
        }
        assert_eq!(chunk_bytes(0), None);
        assert_eq!(chunk_bytes(usize::MAX), None);
    }
}
