//! Asking for memory before it is needed: rows that are read in random order cost a wait each otherwise.
#![expect(unsafe_code, reason = "the prefetch intrinsic takes a pointer")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Starts to bring these bytes into the first-level cache; changes nothing else.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    hint::<true>(bytes.as_ptr(), bytes.len());
}

/// The same for a value.
#[inline]
pub fn prefetch_value<T>(value: &T) {
    hint::<true>(std::ptr::from_ref(value).cast(), size_of::<T>());
}

/// Starts to bring these bytes into the second-level cache: what is wanted after the work at hand.
#[inline(always)]
pub fn prefetch_next(bytes: &[u8]) {
    hint::<false>(bytes.as_ptr(), bytes.len());
}

#[inline(always)]
fn hint<const NOW: bool>(first: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..len).step_by(LINE) {
        let line = first.wrapping_add(at).cast();
        if NOW {
            // SAFETY: a prefetch is a hint, which reads nothing, and every x86_64 processor has SSE.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
        } else {
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, len);
}
