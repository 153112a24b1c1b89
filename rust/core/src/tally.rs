//! What exact search costs beyond its first pass, counted where somebody asks: benches do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Sums over the calls that it is given to by [`crate::work::Work::tally`].
#[derive(Debug, Default)]
pub struct Tally {
    passed: AtomicU64,
    rescored: AtomicU64,
    scanning: AtomicU64,
    deciding: AtomicU64,
}

/// What a [`Tally`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// Entries that a first pass let through, counted for each query.
    pub passed: u64,
    /// Canonical scores that were computed.
    pub rescored: u64,
    /// Time of first passes, of all threads together.
    pub scanning: Duration,
    /// Time of deciding among what they left, likewise.
    pub deciding: Duration,
}

impl Tally {
    /// What was counted so far.
    pub fn told(&self) -> Told {
        let [passed, rescored, scanning, deciding] =
            [&self.passed, &self.rescored, &self.scanning, &self.deciding].map(|n| n.load(Ordering::Relaxed));
        Told { passed, rescored, scanning: Duration::from_nanos(scanning), deciding: Duration::from_nanos(deciding) }
    }

    /// Adds one scan, which began to scan and to decide at these times and is over now.
    pub(crate) fn add(&self, passed: u64, rescored: u64, [scanning, deciding]: [Instant; 2]) {
        let nanoseconds = |time: Duration| time.as_nanos() as u64;
        for (sum, n) in [
            (&self.passed, passed),
            (&self.rescored, rescored),
            (&self.scanning, nanoseconds(deciding - scanning)),
            (&self.deciding, nanoseconds(deciding.elapsed())),
        ] {
            sum.fetch_add(n, Ordering::Relaxed);
        }
    }
}
