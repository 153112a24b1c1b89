//! Dividing a call among threads, within a cap, interruptibly.
//!
//! The calling thread works too and is the only one that asks whether to stop; the others come from one rayon pool that
//! is made at the first call that wants it, never at import, and made anew in a forked child, where the parent's threads
//! do not exist. Its size is `MNEMEX_NUM_THREADS`, or what the affinity mask and the cgroup's quota allow.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mnemex_kernels::rounding;
use rayon::ThreadPool;

use crate::error::{Error, Kind, Result};
use crate::tally::Tally;

/// How often the calling thread asks whether to stop.
const POLL: Duration = Duration::from_millis(20);

/// Multiplications that take about as long as it takes to wake a thread and hand it its share.
const WORTH_WAKING: usize = 8 << 20;

/// Most threads of one call, the caller included.
pub fn max_threads() -> usize {
    let asked = std::env::var("MNEMEX_NUM_THREADS").ok().and_then(|n| n.trim().parse().ok()).filter(|&n| n >= 1);
    // To ask the system takes as long as a small search: once is enough.
    static AVAILABLE: OnceLock<usize> = OnceLock::new();
    asked.unwrap_or_else(|| {
        *AVAILABLE.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    })
}

/// The process's pool; leaked on purpose, since a forked child can neither use nor join its parent's.
fn pool() -> Option<&'static ThreadPool> {
    static POOLS: Mutex<Vec<(u32, Option<&'static ThreadPool>)>> = Mutex::new(Vec::new());
    let pid = std::process::id();
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, pool)) = pools.iter().find(|(owner, _)| *owner == pid) {
        return *pool;
    }
    let n = max_threads() - 1;
    let name = |i| format!("mnemex-{i}");
    let made =
        if n == 0 { None } else { rayon::ThreadPoolBuilder::new().num_threads(n).thread_name(name).build().ok() };
    let made: Option<&'static ThreadPool> = made.map(|pool| &*Box::leak(Box::new(pool)));
    pools.push((pid, made));
    made
}

/// The terms under which a call may use the machine.
pub struct Work<'a> {
    /// Threads at most, the caller included; capped by [`max_threads`].
    pub threads: usize,
    /// Asked now and then on the calling thread; true stops the call with [`Kind::Interrupted`].
    pub interrupted: &'a dyn Fn() -> bool,
    /// What searches are counted in, if anybody wants to know.
    pub tally: Option<&'a Tally>,
    /// Whether small lanes are scanned as large ones are, for the same answers: tests compare.
    pub scan_small: bool,
}

impl Work<'_> {
    /// One thread, never interrupted.
    pub const ALONE: Work<'static> = Work { threads: 1, interrupted: &|| false, tally: None, scan_small: false };

    /// The same terms for a call of about so many multiplications or bytes: a small one stays on the calling thread,
    /// since to wake another takes longer.
    pub(crate) fn for_size(&self, operations: usize) -> Work<'_> {
        let threads = if operations < WORTH_WAKING { 1 } else { self.threads };
        Work { threads, ..*self }
    }

    /// One job on the calling thread.
    ///
    /// # Errors
    /// When the caller interrupted, or the job failed.
    pub(crate) fn once<T>(&self, job: impl FnOnce(&Ticker) -> Result<T>) -> Result<T> {
        let stop = AtomicBool::new(false);
        job(&Ticker { stop: &stop, interrupted: Some(self.interrupted), asked: Cell::new(Instant::now()) })
    }

    /// `job(0), ..., job(n - 1)`, in any order on any thread, results in order.
    ///
    /// # Errors
    /// When the caller interrupted, or a job failed: the first failure by number.
    pub(crate) fn map<T: Send>(&self, n: usize, job: impl Fn(usize, &Ticker) -> Result<T> + Sync) -> Result<Vec<T>> {
        let stop = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(n));
        let take_jobs = |ticker: &Ticker| {
            rounding::by_default(|| {
                let mut mine = Vec::new();
                while !ticker.stopped() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= n {
                        break;
                    }
                    let result = job(at, ticker);
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    mine.push((at, result));
                }
                done.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
            })
        };
        let caller = Ticker { stop: &stop, interrupted: Some(self.interrupted), asked: Cell::new(Instant::now()) };
        let helpers = self.threads.min(n).saturating_sub(1);
        match if helpers > 0 { pool() } else { None } {
            Some(pool) => pool.in_place_scope(|scope| {
                for _ in 0..helpers.min(pool.current_num_threads()) {
                    scope.spawn(|_| {
                        take_jobs(&Ticker { stop: &stop, interrupted: None, asked: Cell::new(Instant::now()) })
                    });
                }
                take_jobs(&caller);
            }),
            None => take_jobs(&caller),
        }
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|(at, _)| *at);
        let results = done.into_iter().map(|(_, result)| result).collect::<Result<Vec<T>>>()?;
        if results.len() < n { Err(interrupted()) } else { Ok(results) }
    }
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "the call was interrupted; nothing was changed")
}

/// Lets a job notice that it should stop.
pub(crate) struct Ticker<'a> {
    stop: &'a AtomicBool,
    interrupted: Option<&'a dyn Fn() -> bool>,
    asked: Cell<Instant>,
}

impl Ticker<'_> {
    /// For work that nobody interrupts.
    pub(crate) fn never() -> Ticker<'static> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Ticker { stop: &NEVER, interrupted: None, asked: Cell::new(Instant::now()) }
    }

    fn stopped(&self) -> bool {
        if let Some(interrupted) = self.interrupted
            && !self.stop.load(Ordering::Relaxed)
            && self.asked.get().elapsed() > POLL
        {
            self.asked.set(Instant::now());
            if interrupted() {
                self.stop.store(true, Ordering::Relaxed);
            }
        }
        self.stop.load(Ordering::Relaxed)
    }

    /// To be called every few microseconds to milliseconds within a job.
    pub(crate) fn tick(&self) -> Result<()> {
        if self.stopped() { Err(interrupted()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_from_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let work = Work { threads, ..Work::ALONE };
            let squares = work.map(1000, |i, _| Ok(i * i)).unwrap();
            assert_eq!(squares, (0..1000).map(|i| i * i).collect::<Vec<usize>>());
        }
    }

    #[test]
    fn an_interruption_stops_every_thread() {
        let work = Work { threads: 2, interrupted: &|| true, ..Work::ALONE };
        let endless = work.map(8, |_, ticker| {
            loop {
                ticker.tick()?;
            }
            #[expect(unreachable_code, reason = "gives the closure its type")]
            Ok(())
        });
        assert_eq!(endless.unwrap_err().kind, Kind::Interrupted);
    }

    #[test]
    fn a_failing_job_fails_the_call() {
        let fails = |i, _: &Ticker| if i == 3 { Err(Error::new(Kind::Resource, "three")) } else { Ok(i) };
        assert_eq!(Work::ALONE.map(9, fails).unwrap_err().message, "three");
    }
}
