//! Threads that operations are shared with.
//!
//! Operations of small models take some ten microseconds, less than it takes to wake a thread. So a member that has
//! nothing to do first spins for a while, watching its seat, and only then sleeps. The caller takes part in the work,
//! and takes back offers that no member has taken up when all is done: it never waits for a thread to wake.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Looks at a seat before its member sleeps: some tenths of a millisecond.
const SPIN_LIMIT: usize = 1 << 12;

/// A seat without an offer.
const IDLE: u8 = 0;
/// A seat with an offer that its member may take up, and the caller take back.
const OFFERED: u8 = 1;
/// A seat whose member works.
const TAKEN: u8 = 2;

/// Work, given the number of the member that does it.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// The calling thread and others. Clones are the same pool.
#[derive(Clone)]
pub struct ThreadPool(Arc<Members>);

struct Members {
    seats: Vec<Arc<WorkerSlot>>,
    threads: Vec<JoinHandle<()>>,
    busy: AtomicBool,
}

/// Where a member waits.
struct WorkerSlot {
    state: AtomicU8,
    asleep: AtomicBool,
    closed: AtomicBool,
    work: UnsafeCell<Option<*const Work<'static>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written by the caller while the seat is idle and read by the member after it has taken the offer;
// `state` orders the two. The work itself is `Sync`.
unsafe impl Send for WorkerSlot {}
// SAFETY: as above.
unsafe impl Sync for WorkerSlot {}

impl ThreadPool {
    /// Of so many threads, the calling one included. Where the system refuses a thread, of fewer.
    pub fn new(members: usize) -> Self {
        let (mut seats, mut threads) = (Vec::new(), Vec::new());
        for number in 1..members {
            let seat = Arc::new(WorkerSlot {
                state: AtomicU8::new(IDLE),
                asleep: AtomicBool::new(false),
                closed: AtomicBool::new(false),
                work: UnsafeCell::new(None),
                panic: Mutex::new(None),
            });
            let own = Arc::clone(&seat);
            let Ok(thread) =
                thread::Builder::new().name(format!("cpu-{number}")).spawn(move || own.worker_loop(number))
            else {
                break;
            };
            seats.push(seat);
            threads.push(thread);
        }
        Self(Arc::new(Members { seats, threads, busy: AtomicBool::new(false) }))
    }

    /// The calling thread alone.
    pub fn alone() -> Self {
        Self::new(1)
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.0.seats.len() + 1
    }

    /// Calls `work` on the calling thread, as number 0, and at the same time on up to `most - 1` others, each with a
    /// number of its own below `most`. Each call must go on until nothing is left to do, since there may be no other.
    ///
    /// # Panics
    /// If `work` does, in any thread, after all have ended.
    pub fn run(&self, most: usize, work: &Work<'_>) {
        let Members { seats, threads, busy } = &*self.0;
        let used = seats.len().min(most.saturating_sub(1));
        // Work within work is done where it is.
        if used == 0 || busy.swap(true, Ordering::Acquire) {
            return if most > 0 {
                work(0)
            };
        }
        let offer = Job { seats: &seats[..used], busy };
        // SAFETY: only the lifetime changes. `offer` is dropped before this function ends, even by a panic, and by then
        // no member works or will take the work up.
        let work_of_members = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        for (seat, thread) in offer.seats.iter().zip(threads) {
            // SAFETY: the seat is idle: offers end with all seats idle, and `busy` lets in one caller at a time.
            unsafe { *seat.work.get() = Some(work_of_members) };
            seat.state.store(OFFERED, Ordering::SeqCst);
            if seat.asleep.load(Ordering::SeqCst) {
                thread.thread().unpark();
            }
        }
        work(0);
        drop(offer);
        for seat in &seats[..used] {
            let panic = seat.panic.lock().ok().and_then(|mut panic| panic.take());
            if let Some(panic) = panic {
                resume_unwind(panic);
            }
        }
    }
}

/// Work that members may take up until this is dropped.
struct Job<'a> {
    seats: &'a [Arc<WorkerSlot>],
    busy: &'a AtomicBool,
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        for seat in self.seats {
            let mut looks = 0;
            let back = seat.state.compare_exchange(OFFERED, IDLE, Ordering::AcqRel, Ordering::Acquire);
            while back.is_err() && seat.state.load(Ordering::Acquire) != IDLE {
                looks += 1;
                if looks < SPIN_LIMIT { std::hint::spin_loop() } else { thread::yield_now() }
            }
        }
        self.busy.store(false, Ordering::Release);
    }
}

impl WorkerSlot {
    /// What the member does until the seat is closed.
    fn worker_loop(&self, number: usize) {
        let mut looks = 0;
        while !self.closed.load(Ordering::Acquire) {
            if self.state.load(Ordering::Relaxed) != OFFERED {
                looks += 1;
                if looks < SPIN_LIMIT {
                    std::hint::spin_loop();
                    continue;
                }
                looks = 0;
                self.asleep.store(true, Ordering::SeqCst);
                if self.state.load(Ordering::SeqCst) != OFFERED && !self.closed.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            if self.state.compare_exchange(OFFERED, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            looks = 0;
            // SAFETY: the offer was taken, so the caller has set the work and waits until the seat is idle.
            let work = unsafe { (*self.work.get()).map(|work| &*work) };
            let result = catch_unwind(AssertUnwindSafe(|| work.into_iter().for_each(|work| work(number))));
            if let (Err(panic), Ok(mut kept)) = (result, self.panic.lock()) {
                *kept = Some(panic);
            }
            self.state.store(IDLE, Ordering::Release);
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for (seat, thread) in self.seats.iter().zip(self.threads.drain(..)) {
            seat.closed.store(true, Ordering::SeqCst);
            thread.thread().unpark();
            // A member's panic was handed to the caller.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn all_is_done_once_whoever_does_it_and_however_deep() {
        let pool = ThreadPool::new(3);
        for round in 0..2000 {
            let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run(3, &|member| {
                assert!(member < 3);
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= 100 {
                        return;
                    }
                    pool.run(3, &|_| {
                        sum.fetch_add(task, Ordering::Relaxed);
                    });
                }
            });
            assert_eq!(sum.into_inner(), 99 * 50, "round {round}");
            if round % 500 == 0 {
                thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        pool.run(0, &|_| panic!("nobody was asked"));
    }

    #[test]
    fn a_panic_comes_back_and_the_team_goes_on() {
        let pool = ThreadPool::new(2);
        for guilty in 0..2 {
            let met = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(2, &|member| {
                    met.fetch_add(1, Ordering::SeqCst);
                    while met.load(Ordering::SeqCst) < 2 {
                        thread::yield_now();
                    }
                    assert_ne!(member, guilty);
                });
            }));
            assert!(result.is_err(), "member {guilty}");
        }
        let met = AtomicUsize::new(0);
        pool.run(2, &|_| {
            met.fetch_add(1, Ordering::Relaxed);
        });
        assert!(met.into_inner() >= 1);
    }
}
