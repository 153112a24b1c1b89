//! Bytes per second: sequential reads of a buffer on huge pages, and copies from one to another.
#![expect(unsafe_code, reason = "memory on huge pages, and code compiled for a detected instruction set")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::hint::black_box;
use std::slice;

const HUGE_PAGE: usize = 2 << 20;
const LANES: usize = 64;

/// 64-bit words on 2 MiB pages where the system grants them.
pub struct Buffer {
    words: *mut u64,
    layout: Layout,
}

impl Buffer {
    /// A buffer of `bytes` bytes, every page of it in place.
    ///
    /// # Panics
    /// If `bytes` is 0 or no valid size.
    #[expect(clippy::expect_used, reason = "sizes are constants of the calibration")]
    pub fn new(bytes: usize) -> Self {
        assert!(bytes >= 8 * LANES, "a buffer holds at least {} bytes, asked for {bytes}", 8 * LANES);
        let layout = Layout::from_size_align(bytes, HUGE_PAGE).expect("a size below half the address space");
        // SAFETY: the layout is not empty.
        let words = unsafe { alloc(layout) }.cast::<u64>();
        if words.is_null() {
            handle_alloc_error(layout);
        }
        ask_for_huge_pages(words, bytes);
        // SAFETY: the allocation is that long; zero is a valid word.
        unsafe { words.write_bytes(1, bytes / 8) };
        Self { words, layout }
    }

    fn words(&self) -> &[u64] {
        // SAFETY: `new` filled that many words, and `self` owns them.
        unsafe { slice::from_raw_parts(self.words, self.layout.size() / 8) }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `words`, and the borrow is unique.
        unsafe { slice::from_raw_parts_mut(self.words, self.layout.size() / 8) }
    }

    /// Reads every word once; returns the bytes read.
    pub fn read(&self) -> f64 {
        black_box(fold(self.words()));
        self.layout.size() as f64
    }

    /// Copies `source` over this buffer; returns the bytes read and written.
    pub fn copy_from(&mut self, source: &Self) -> f64 {
        self.words_mut().copy_from_slice(source.words());
        black_box(self.words_mut());
        2.0 * self.layout.size() as f64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.words.cast(), self.layout) };
    }
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(words: *mut u64, bytes: usize) {
    const MADV_HUGEPAGE: i32 = 14;
    // SAFETY: declared as in the system's C library.
    unsafe extern "C" {
        fn madvise(address: *mut u64, length: usize, advice: i32) -> i32;
    }
    // SAFETY: the range is ours and page-aligned. The advice changes no contents, and a refusal is no error here.
    unsafe { madvise(words, bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_words: *mut u64, _bytes: usize) {}

/// Instruction set of the reads.
pub fn isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    "portable"
}

fn fold(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(words: &[u64]) -> u64 {
            fold_lanes(words)
        }
        #[target_feature(enable = "avx2")]
        fn avx2(words: &[u64]) -> u64 {
            fold_lanes(words)
        }
        match isa() {
            // SAFETY: `isa` detected the feature.
            "avx512" => return unsafe { avx512(words) },
            // SAFETY: as above.
            "avx2" => return unsafe { avx2(words) },
            _ => {}
        }
    }
    fold_lanes(words)
}

/// Exclusive or over independent lanes: one load and almost nothing else per vector.
#[inline(always)]
fn fold_lanes(words: &[u64]) -> u64 {
    let mut lanes = [0u64; LANES];
    for chunk in words.as_chunks::<LANES>().0 {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane ^= word;
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}
