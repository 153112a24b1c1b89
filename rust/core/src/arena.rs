//! Huge pages for banks that much arrives in: chunks of a few mebibytes from which planes take their bytes, one slot each.
//!
//! A scan of gigabytes in pages of 4 KiB spends about an eighth of its time on looking addresses up, and one of planes that
//! lie anywhere is several times slower than one of neighbours. The allocator cannot be asked for either block by block,
//! so lanes that are long, or that much arrives in at once, cut the planes of their full blocks out of chunks that the
//! operating system is asked to back with huge pages. A lane reserves a run of slots for what arrives, so that its planes
//! are neighbours, and goes on where it ended; lanes of one bank share chunks. A slot that is given back is taken again by
//! the lane's next blocks; the whole goes back to the system with its last slot.
#![expect(unsafe_code, reason = "slots of one chunk are disjoint, which the borrow checker cannot see")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

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
    /// Slots up to here are, or were, meant for some lane; the others are zeros as they came.
    reserved: AtomicUsize,
    /// A bit for each slot that has an owner.
    taken: Box<[AtomicU64]>,
    /// A bit for each slot that ever had one, and may hold what that left.
    used: Box<[AtomicU64]>,
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
        let none = || (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let reserved = AtomicUsize::new(0);
        Some(Arc::new(Chunk { map, start, slot_bytes, slots, reserved, taken: none(), used: none() }))
    }

    /// Bytes of memory held.
    pub(crate) fn nbytes(&self) -> usize {
        chunk_bytes(self.slot_bytes).unwrap_or(0)
    }

    /// Reserves up to `n` slots for a lane.
    fn reserve(&self, n: usize) -> Option<Range<usize>> {
        let end = |reserved: usize| self.slots.min(reserved + n);
        let more = |reserved: usize| (reserved < self.slots).then_some(end(reserved));
        self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|first| first..end(first))
    }

    /// Some slot below the reserved ones that was given back.
    fn returned(&self) -> Option<usize> {
        let reserved = self.reserved.load(Ordering::Relaxed);
        let free = |(word, bits): (usize, &AtomicU64)| {
            let free = !bits.load(Ordering::Relaxed) & self.used[word].load(Ordering::Relaxed);
            (free != 0).then(|| 64 * word + free.trailing_zeros() as usize)
        };
        self.taken.iter().enumerate().find_map(free).filter(|&at| at < reserved)
    }
}

/// The chunks that lanes of one bank reserve slots of next, by the size of their slots; gone with their last slot.
#[derive(Default)]
pub(crate) struct Arena(Mutex<BTreeMap<usize, Weak<Chunk>>>);

impl Arena {
    /// The first slot of a run of `n` for planes of `slot_bytes`, in the open chunk or a new one; fewer where the chunk
    /// ends. None where they fit no chunk, or the system has no memory to give.
    pub(crate) fn run(&self, slot_bytes: usize, n: usize) -> Option<Slot> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A neighbour that goes on may be quicker with the first of them.
        let first = |chunk: &Arc<Chunk>| chunk.reserve(n).and_then(|mut run| run.find_map(|at| Slot::take(chunk, at)));
        if let Some(slot) = open.get(&slot_bytes).and_then(Weak::upgrade).as_ref().and_then(first) {
            return Some(slot);
        }
        let chunk = Chunk::of(slot_bytes)?;
        let slot = first(&chunk);
        open.insert(slot_bytes, Arc::downgrade(&chunk));
        slot
    }
}

/// The only owner of one slot of a chunk; gives it back in the end.
pub(crate) struct Slot {
    chunk: Arc<Chunk>,
    at: usize,
}

impl Slot {
    /// A slot of a chunk, zeroed, if it has no owner.
    fn take(chunk: &Arc<Chunk>, at: usize) -> Option<Slot> {
        let (word, bit) = (at / 64, 1 << (at % 64));
        // Acquire: what the last owner wrote is done before the new one writes.
        if chunk.taken[word].fetch_or(bit, Ordering::Acquire) & bit != 0 {
            return None;
        }
        let mut slot = Slot { chunk: Arc::clone(chunk), at };
        if chunk.used[word].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            slot.bytes_mut().fill(0);
        }
        Some(slot)
    }

    /// The slot behind this one, where nobody has it, or one of the same chunk that was given back.
    pub(crate) fn next(&self) -> Option<Slot> {
        let (chunk, next) = (&self.chunk, self.at + 1);
        let _ = chunk.reserved.compare_exchange(next, chunk.slots.min(next + 1), Ordering::Relaxed, Ordering::Relaxed);
        let behind = (next < chunk.reserved.load(Ordering::Relaxed)).then(|| Slot::take(chunk, next)).flatten();
        behind.or_else(|| Slot::take(chunk, chunk.returned()?))
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
        // Release: see `take`.
        self.chunk.taken[self.at / 64].fetch_and(!(1 << (self.at % 64)), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every slot that a lane can still get.
    fn rest(arena: &Arena, bytes: usize) -> impl Iterator<Item = Slot> {
        let mut next = arena.run(bytes, 1);
        std::iter::from_fn(move || {
            let slot = next.take()?;
            next = slot.next();
            Some(slot)
        })
    }

    #[test]
    fn slots_are_zeroed_aligned_and_apart() {
        let bytes = PAGE / 8 - 64;
        let mut slots: Vec<Slot> = rest(&Arena::default(), bytes).collect();
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
        drop(slots);
        assert!(last.bytes().iter().all(|&byte| byte == 8), "a slot keeps its chunk");
        let next = last.next().unwrap();
        assert!(next.bytes().iter().all(|&byte| byte == 0), "what was given back comes as zeros");
        let more: Vec<Slot> = std::iter::from_fn(|| last.next()).collect();
        assert_eq!(more.len(), 6);
    }

    #[test]
    fn lanes_of_a_bank_get_runs_of_neighbours_and_go_on_behind_them() {
        let (arena, bytes) = (Arena::default(), PAGE / 16);
        let lane = |n: usize| {
            let mut slots = vec![arena.run(bytes, n).unwrap()];
            while slots.len() < n {
                slots.push(slots.last().unwrap().next().unwrap());
            }
            slots
        };
        let places = |slots: &[Slot]| slots.iter().map(|slot| slot.at).collect::<Vec<_>>();
        let (one, two) = (lane(3), lane(4));
        assert_eq!((places(&one), places(&two)), (vec![0, 1, 2], vec![3, 4, 5, 6]));
        assert!(Arc::ptr_eq(one[0].chunk(), two[0].chunk()));
        assert!(one[2].next().is_none(), "what another lane has is left to it");
        let behind = two[3].next().unwrap();
        assert_eq!(behind.at, 7, "what nobody has is taken");
        let three = arena.run(bytes, 4).unwrap();
        assert_eq!(three.at, 8);
        drop(two);
        assert_eq!(one[2].next().unwrap().at, 3, "what was given back is taken");
    }

    #[test]
    fn a_slot_has_one_owner_whatever_happens_at_the_same_time() {
        let arena = Arena::default();
        let work = |mark: u8| {
            // Half of what is taken goes back at once, to be taken by others.
            for round in 0..40 {
                let mut mine: Vec<Slot> = rest(&arena, 4096).take(100).collect();
                mine.iter_mut().for_each(|slot| slot.bytes_mut().fill(mark));
                mine.truncate(mine.len() / 2);
                std::thread::yield_now();
                assert!(mine.iter().all(|slot| slot.bytes().iter().all(|&byte| byte == mark)), "round {round}");
            }
        };
        std::thread::scope(|scope| (1..5).for_each(|mark| drop(scope.spawn(move || work(mark)))));
        let left = arena.0.lock().unwrap();
        assert!(left.values().all(|chunk| chunk.upgrade().is_none()), "chunks are gone with their last slot");
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
