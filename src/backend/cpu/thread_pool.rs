//! Threads that operations are shared with.
//!
//! Operations of small models take some ten microseconds, less than it takes to wake a thread. So a worker that has
//! nothing to do first spins for a while, watching its slot, and only then sleeps. The caller takes part in the work,
//! and takes jobs back that no worker has taken up when all is done: it never waits for a thread to wake.
//!
//! `cargo bench --bench pool`, two threads of an AMD EPYC, 2026-11-28; work of 6.4 us on one thread takes, after the host's own
//! work of
//!
//! | | none | 20 us | 2 ms |
//! |---|---|---|---|
//! | here | 3.1 us | 3.1 us | 15 us |
//! | `rayon::scope` | 3.8 us | 7.4 us | 19 us |
//! | `rayon::broadcast` | 3.9 us | 13.6 us | 60 us |

mod hand_off;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use self::hand_off::HandOff;
use crate::backend::profile::Recorder;

/// Work, given the number of the thread that does it.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// What a worker's call panicked with.
type Panic = Mutex<Option<Box<dyn Any + Send>>>;

/// What a run asks of workers. Both are the caller's, and live until the run ends.
#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    panic: *const Panic,
}

// SAFETY: what it points to is `Sync`.
unsafe impl Send for Job {}

/// The calling thread and workers. Clones are the same pool.
#[derive(Clone)]
pub struct ThreadPool(Arc<Workers>);

struct Workers {
    hand_off: Arc<HandOff<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// Where it is recorded when each thread works.
    recorder: OnceLock<Recorder>,
}

impl ThreadPool {
    /// Of so many threads, the calling one included. Where the system refuses a thread, of fewer.
    pub fn new(threads: usize) -> Self {
        let hand_off = Arc::new(HandOff::new(threads.saturating_sub(1)));
        let mut workers = Workers { hand_off, threads: Vec::new(), recorder: OnceLock::new() };
        for number in 1..threads {
            let hand_off = Arc::clone(&workers.hand_off);
            let spawned = thread::Builder::new().name(format!("cpu-{number}")).spawn(move || {
                hand_off.slots()[number - 1].worker_loop(|job| do_job(job, number));
            });
            let Ok(thread) = spawned else { break };
            workers.threads.push(thread);
        }
        Self(Arc::new(workers))
    }

    /// The calling thread alone.
    pub fn alone() -> Self {
        Self::new(1)
    }

    /// How many threads it has, the calling one included.
    pub fn threads(&self) -> usize {
        self.0.threads.len() + 1
    }

    /// Calls `work` on the calling thread, as number 0, and at the same time on up to `most - 1` workers, each with a
    /// number of its own below `most`. Each call must go on until nothing is left to do, since there may be no other.
    ///
    /// # Panics
    /// If `work` does, in any thread, after all have ended.
    pub fn run(&self, most: usize, work: &Work<'_>) {
        let Some(recorder) = self.0.recorder.get() else { return self.hand_out(most, work, work) };
        let recorded = |thread| {
            let start = recorder.now();
            work(thread);
            recorder.worked(thread, start);
        };
        self.hand_out(most, work, &recorded);
    }

    /// Records from now on when each thread works.
    pub(super) fn record(&self, recorder: &Recorder) {
        self.0.recorder.get_or_init(|| recorder.clone());
    }

    /// [`ThreadPool::run`]; work within work is done as `nested`, all else as `work`.
    fn hand_out(&self, most: usize, nested: &Work<'_>, work: &Work<'_>) {
        let Workers { hand_off, threads, .. } = &*self.0;
        let workers = threads.len().min(most.saturating_sub(1));
        if workers == 0 {
            return if most > 0 {
                work(0)
            };
        }
        let panic = Panic::default();
        // SAFETY: only the lifetime changes. No worker has the job when `HandOff::run` ends, even by a panic.
        let shared = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        let job = Job { work: shared, panic: &panic };
        let ran = hand_off.run(workers, job, |i| threads[i].thread().unpark(), || work(0));
        // Work within work, or of a second caller, is done where it is.
        if ran.is_none() {
            nested(0);
        }
        if let Some(panic) = panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

/// What worker `number` does with a job.
fn do_job(job: Job, number: usize) {
    // SAFETY: the caller keeps both until the worker is done with the job.
    let (work, panic) = unsafe { (&*job.work, &*job.panic) };
    if let Err(why) = catch_unwind(AssertUnwindSafe(|| work(number))) {
        panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (slot, thread) in self.hand_off.slots().iter().zip(self.threads.drain(..)) {
            slot.close();
            thread.thread().unpark();
            // A worker's panic was handed to the caller.
            let _ = thread.join();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Runs of the pool; fewer in an interpreter.
    const ROUNDS: usize = if cfg!(miri) { 20 } else { 2000 };

    #[test]
    fn pool_does_all_once_whoever_does_it_and_however_deep() {
        let pool = ThreadPool::new(3);
        for round in 0..ROUNDS {
            let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run(3, &|thread| {
                assert!(thread < 3);
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

    /// A run of two threads that are both at work when those that `panics` chooses panic; whether the run did.
    fn run_panics(pool: &ThreadPool, panics: impl Fn(usize) -> bool + Sync) -> bool {
        let met = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, &|thread| {
                met.fetch_add(1, Ordering::SeqCst);
                while met.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
                assert!(!panics(thread));
            });
        }));
        result.is_err()
    }

    #[test]
    fn pool_hands_a_panic_to_the_caller_and_goes_on() {
        let pool = ThreadPool::new(2);
        for guilty in 0..2 {
            assert!(run_panics(&pool, |thread| thread == guilty), "thread {guilty}");
            assert!(!run_panics(&pool, |_| false), "after thread {guilty}");
        }
    }

    #[test]
    fn pool_forgets_a_workers_panic_where_the_caller_panicked_too() {
        let pool = ThreadPool::new(2);
        assert!(run_panics(&pool, |_| true));
        assert!(!run_panics(&pool, |_| false), "a panic of the run before");
    }
}
