//! Asks now and then whether the caller wants to stop.

use std::cell::Cell;
use std::time::{Duration, Instant};

use mnemex_core::work::Work;

use crate::error::{Error, Result};

/// Asking may take a lock of the caller's.
const POLL: Duration = Duration::from_millis(20);

/// The caller's question, asked at most every 20 ms.
pub(crate) struct Interrupt<'a> {
    work: &'a Work<'a>,
    asked: Cell<Option<Instant>>,
}

impl<'a> Interrupt<'a> {
    pub(crate) fn new(work: &'a Work<'a>) -> Self {
        Interrupt { work, asked: Cell::new(None) }
    }

    /// To be called every few milliseconds.
    pub(crate) fn poll(&self) -> Result<()> {
        if self.asked.get().is_some_and(|asked| asked.elapsed() < POLL) {
            return Ok(());
        }
        self.asked.set(Some(Instant::now()));
        if (self.work.interrupted)() {
            let message = "the call was interrupted; nothing was changed";
            return Err(Error::Core(mnemex_core::Error::new(mnemex_core::Kind::Interrupted, message)));
        }
        Ok(())
    }
}
