//! Persistent worker threads for loops a few microseconds long.
//!
//! A token needs about 200 hand-offs, so one may cost no more than a microsecond or two. Workers
//! therefore spin on one atomic word for a while before they park, and a worker that is late (not
//! scheduled, still waking) is not waited for: the caller takes parts itself, closes the job when
//! none is left, and waits only for workers that had entered it.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::isa::Isa;

/// How long an idle worker spins before it parks, unless [`Pool::with_options`] says otherwise.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(50);

/// Set in the state word while workers may enter the job.
const OPEN: u64 = 1 << 31;
/// Number of workers inside the job.
const ACTIVE: u64 = OPEN - 1;
/// The generation of the job sits above both.
const GENERATION: u32 = 32;

/// A fixed set of worker threads, with the instruction path its kernels use.
///
/// One caller at a time is served in parallel; a nested call, or one from another thread while
/// the pool is busy, runs inline on its caller. Results never depend on which happens.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    isa: Isa,
}

/// One cache line, so that the words the threads fight over do not share one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line<T>(T);

#[derive(Debug)]
struct Shared {
    /// `generation << 32 | OPEN | active workers`.
    state: Line<AtomicU64>,
    /// The next part to take.
    next: Line<AtomicUsize>,
    /// Workers that are parked or about to park.
    sleepers: Line<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    busy: AtomicBool,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spin: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    f: *const (dyn Fn(usize) + Sync),
    parts: usize,
}

// SAFETY: `job` is written only by the caller that holds `busy`, while the state word is closed
// with no active worker, and read only by workers counted in the state word; the word's
// release/acquire pairs order both. The closure behind the pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the raw closure pointer is the only field that is not `Send`; see above.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool in which `threads` threads take part, the caller among them (so `threads - 1`
    /// workers are started; 0 counts as 1). Uses [`Isa::active`], or the best path if that is an
    /// error: ask `Isa::active` first to report it. A worker that cannot be started is left out.
    pub fn new(threads: usize) -> Pool {
        Pool::start(threads, Isa::active().unwrap_or_else(|_| Isa::best()), DEFAULT_SPIN)
    }

    /// Like [`Pool::new`], with the instruction path and the spin time of idle workers given.
    /// Errors when this machine lacks `isa`.
    pub fn with_options(threads: usize, isa: Isa, spin: Duration) -> Result<Pool> {
        Ok(Pool::start(threads, isa.require()?, spin))
    }

    fn start(threads: usize, isa: Isa, spin: Duration) -> Pool {
        let shared = Arc::new(Shared {
            state: Line::default(),
            next: Line::default(),
            sleepers: Line::default(),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            spin,
        });
        let workers = (1..threads)
            .filter_map(|i| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("tessera-{i}"))
                    .spawn(move || shared.serve())
                    .ok()
            })
            .collect();
        Pool { shared, workers, isa }
    }

    /// Threads that take part in a run, the caller included; at least 1.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The instruction path of the kernels that run on this pool.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `f(0)` .. `f(parts - 1)`, each once, in any order and on any of the threads, and
    /// returns when all have returned. A panic in a part is carried on here after every thread
    /// has left; parts not begun by then may be skipped.
    pub fn run(&self, parts: usize, f: &(dyn Fn(usize) + Sync)) {
        let alone =
            self.workers.is_empty() || parts <= 1 || self.shared.busy.swap(true, Ordering::Acquire);
        if alone {
            (0..parts).for_each(f);
            return;
        }
        let payload = self.shared.lead(parts, f, &self.workers);
        self.shared.busy.store(false, Ordering::Release);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of parts, so there is no payload to lose here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The caller's side of one job; returns the payload of a panic, if any part panicked.
    fn lead(
        &self,
        parts: usize,
        f: &(dyn Fn(usize) + Sync),
        workers: &[JoinHandle<()>],
    ) -> Option<Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes. No worker keeps the pointer past this call: it is
        // read after entering the job (state word), and this call returns only once the job is
        // closed and the count of entered workers is zero.
        let erased: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(f) };
        let job = Job { f: erased, parts };
        // SAFETY: the job is closed with nobody in it, and `busy` keeps other callers out.
        unsafe { *self.job.get() = Some(job) };
        self.next.0.store(0, Ordering::Relaxed);
        let generation = (self.state.0.load(Ordering::Relaxed) >> GENERATION).wrapping_add(1);
        // Sequentially consistent with `sleepers`: either a worker about to park sees the new
        // generation, or it is seen here and unparked.
        self.state.0.store((generation << GENERATION) | OPEN, Ordering::SeqCst);
        if self.sleepers.0.load(Ordering::SeqCst) > 0 {
            for worker in workers {
                worker.thread().unpark();
            }
        }
        self.take_parts(job);
        self.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut waits = 0u32;
        while self.state.0.load(Ordering::Acquire) & ACTIVE != 0 {
            waits += 1;
            // A worker inside a part may have lost its core; give it ours after a while.
            if waits.is_multiple_of(1024) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn take_parts(&self, job: Job) {
        // SAFETY: the caller is inside the job (see `lead`), so the closure is alive.
        let f = unsafe { &*job.f };
        let caught = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let part = self.next.0.fetch_add(1, Ordering::Relaxed);
                if part >= job.parts {
                    break;
                }
                f(part);
            }
        }));
        if let Err(payload) = caught {
            // Leave the rest undone; `usize::MAX / 2` cannot wrap by later increments.
            self.next.0.store(usize::MAX / 2, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            let state = self.wait_for_news(seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if state & OPEN == 0 {
                // The job came and went without this worker.
                seen = state >> GENERATION;
                continue;
            }
            let entered = self
                .state
                .0
                .compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
            if entered {
                seen = state >> GENERATION;
                // SAFETY: entered, so the caller waits for this worker and leaves `job` alone.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.take_parts(job);
                }
                self.state.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Spins, then parks, until the generation differs from `seen` or the pool stops.
    fn wait_for_news(&self, seen: u64) -> u64 {
        let mut begun: Option<Instant> = None;
        loop {
            for _ in 0..32 {
                let state = self.state.0.load(Ordering::Acquire);
                if state >> GENERATION != seen || self.stop.load(Ordering::Relaxed) {
                    return state;
                }
                std::hint::spin_loop();
            }
            let begun = *begun.get_or_insert_with(Instant::now);
            if begun.elapsed() < self.spin {
                continue;
            }
            self.sleepers.0.fetch_add(1, Ordering::SeqCst);
            loop {
                let state = self.state.0.load(Ordering::SeqCst);
                if state >> GENERATION != seen || self.stop.load(Ordering::SeqCst) {
                    self.sleepers.0.fetch_sub(1, Ordering::SeqCst);
                    return state;
                }
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_part_runs_exactly_once() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for parts in [0, 1, 2, 7, 64, 1000] {
                let hits: Vec<AtomicU32> = (0..parts).map(|_| AtomicU32::new(0)).collect();
                pool.run(parts, &|i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_runs_with_and_without_parking() {
        for spin in [Duration::ZERO, Duration::from_millis(1)] {
            let pool = Pool::with_options(3, Isa::Scalar, spin).unwrap();
            let sum = AtomicUsize::new(0);
            for _ in 0..2000 {
                pool.run(4, &|i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            }
            assert_eq!(sum.into_inner(), 2000 * 6);
        }
    }

    #[test]
    fn nested_runs_are_inline() {
        let pool = Pool::new(2);
        let hits = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|_| {
                hits.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(hits.into_inner(), 20);
    }

    #[test]
    fn two_callers_share_one_pool() {
        let pool = Pool::new(2);
        let hits = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..500 {
                        pool.run(3, &|_| {
                            hits.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(hits.into_inner(), 3000);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2);
        for bad in [0, 3] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, &|i| assert_ne!(i, bad, "part failed"));
            }));
            assert!(caught.is_err());
            let hits = AtomicUsize::new(0);
            pool.run(8, &|_| {
                hits.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(hits.into_inner(), 8);
        }
    }
}
