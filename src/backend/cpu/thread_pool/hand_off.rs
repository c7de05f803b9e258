//! The hand-off of jobs from a caller to workers, without the threads: a state machine of atomics.
//!
//! A worker's slot is idle, or holds a job that was offered, or one that was taken. The caller offers (idle to offered); the
//! worker takes (offered to taken) and is done (taken to idle), or the caller takes back what no worker took (offered to
//! idle). The job is written while the slot is idle and read after it was taken, so that `state` orders the two. When
//! [`HandOff::run`] ends, all slots are idle: no worker holds the job, and none will take it up.
//!
//! `RUSTC_WORKSPACE_WRAPPER=$PWD/.ci/rustc-loom cargo test --lib loom` tries the interleavings of these steps with loom.
//! With Miri, where there is one: `cargo +nightly miri test --lib --no-default-features cpu::thread_pool`, and
//! `cpu::gemm`, which then takes the plain path and smaller shapes.

use self::sync::{AtomicBool, AtomicU8, JobCell, Ordering, park, spin_loop, yield_now};

/// The slot holds no job.
const IDLE: u8 = 0;
/// The slot holds a job that its worker may take, and the caller take back.
const OFFERED: u8 = 1;
/// The slot's worker has the job.
const TAKEN: u8 = 2;

/// Looks at a slot before its worker sleeps, or its caller yields: some tenths of a millisecond.
const SPIN_LIMIT: usize = if cfg!(any(loom, miri)) { 0 } else { 1 << 12 };

/// What the caller and one worker share.
pub struct WorkerSlot<J> {
    state: AtomicU8,
    asleep: AtomicBool,
    closed: AtomicBool,
    job: JobCell<Option<J>>,
}

// SAFETY: `job` is written by the one caller that `HandOff::run` lets in, while the slot is idle, and read by the one worker
// that took it; `state` orders the two, and jobs may go to another thread.
unsafe impl<J: Send> Sync for WorkerSlot<J> {}

impl<J: Copy> WorkerSlot<J> {
    fn new() -> Self {
        Self {
            state: AtomicU8::new(IDLE),
            asleep: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            job: JobCell::new(None),
        }
    }

    /// Offers a job; whether the worker may sleep, and has to be woken.
    ///
    /// # Safety
    /// The slot is idle, and nobody else offers.
    unsafe fn offer(&self, job: J) -> bool {
        // SAFETY: of an idle slot the worker does not touch the job, and this is the only caller.
        self.job.with_mut(|slot| unsafe { *slot = Some(job) });
        self.state.store(OFFERED, Ordering::SeqCst);
        self.asleep.load(Ordering::SeqCst)
    }

    /// Takes a job back that was not taken, and waits for the end of one that was.
    fn recall(&self) {
        let mut looks = 0;
        let back = self.state.compare_exchange(OFFERED, IDLE, Ordering::AcqRel, Ordering::Acquire);
        while back.is_err() && self.state.load(Ordering::Acquire) != IDLE {
            looks += 1;
            if looks < SPIN_LIMIT { spin_loop() } else { yield_now() }
        }
    }

    /// Takes up the job, if one is offered.
    fn take(&self) -> Option<J> {
        if self.state.load(Ordering::Relaxed) != OFFERED {
            return None;
        }
        self.state.compare_exchange(OFFERED, TAKEN, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // SAFETY: the job was taken, so the caller has set it and waits until the slot is idle.
        self.job.with(|slot| unsafe { *slot })
    }

    /// What a worker does until the slot is closed: all jobs that are offered, which must not unwind. It spins for a while
    /// when there is none, and then sleeps.
    pub fn worker_loop(&self, work: impl Fn(J)) {
        let mut looks = 0;
        while !self.closed.load(Ordering::Acquire) {
            if let Some(job) = self.take() {
                work(job);
                self.state.store(IDLE, Ordering::Release);
                looks = 0;
                continue;
            }
            looks += 1;
            if looks < SPIN_LIMIT {
                spin_loop();
                continue;
            }
            looks = 0;
            self.asleep.store(true, Ordering::SeqCst);
            if self.state.load(Ordering::SeqCst) != OFFERED && !self.closed.load(Ordering::SeqCst) {
                park();
            }
            self.asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Ends the worker's loop, once it is woken.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

/// The slots of all workers, and whether a run is under way.
pub struct HandOff<J> {
    slots: Vec<WorkerSlot<J>>,
    busy: AtomicBool,
}

/// Slots with a job that workers may take up until this is dropped.
struct Offered<'a, J: Copy> {
    slots: &'a [WorkerSlot<J>],
    busy: &'a AtomicBool,
}

impl<J: Copy> Drop for Offered<'_, J> {
    fn drop(&mut self) {
        self.slots.iter().for_each(WorkerSlot::recall);
        self.busy.store(false, Ordering::Release);
    }
}

impl<J: Copy + Send> HandOff<J> {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self { slots: (0..workers).map(|_| WorkerSlot::new()).collect(), busy: AtomicBool::new(false) }
    }

    /// The slots of the workers.
    pub fn slots(&self) -> &[WorkerSlot<J>] {
        &self.slots
    }

    /// Calls `own` while the first `workers` workers may take up the job; `wake(i)` wakes worker `i`. When it returns or
    /// unwinds, no worker has the job or will take it. `None`, with `own` not called, while another run is under way.
    pub fn run<R>(&self, workers: usize, job: J, wake: impl Fn(usize), own: impl FnOnce() -> R) -> Option<R> {
        if self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        let offered = Offered { slots: &self.slots[..workers], busy: &self.busy };
        for (i, slot) in offered.slots.iter().enumerate() {
            // SAFETY: runs end with all slots idle, and `busy` lets in one at a time.
            if unsafe { slot.offer(job) } {
                wake(i);
            }
        }
        Some(own())
    }
}

#[cfg(not(all(loom, test)))]
mod sync {
    use std::cell::UnsafeCell;
    pub use std::hint::spin_loop;
    pub use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
    pub use std::thread::{park, yield_now};

    /// A cell with loom's way of access.
    pub struct JobCell<T>(UnsafeCell<T>);

    impl<T> JobCell<T> {
        pub fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

#[cfg(all(loom, test))]
mod sync {
    pub use loom::cell::UnsafeCell as JobCell;
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicBool, AtomicU8, Ordering};
    pub use loom::thread::{park, yield_now};
}

#[cfg(all(loom, test))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    use crate::backend::cpu::thread_pool::hand_off::HandOff;

    /// A hand-off, what jobs write to, and how many were taken up.
    struct Model {
        hand_off: HandOff<usize>,
        written: [UnsafeCell<usize>; 2],
        taken: AtomicUsize,
    }

    // SAFETY: the cells are what the model is about: loom says if two threads access one at the same time.
    unsafe impl Sync for Model {}
    // SAFETY: as above.
    unsafe impl Send for Model {}

    /// A model with running workers, and what ends these.
    fn start(workers: usize) -> (Arc<Model>, Vec<thread::JoinHandle<()>>) {
        let written = [UnsafeCell::new(0), UnsafeCell::new(0)];
        let model = Arc::new(Model { hand_off: HandOff::new(workers), written, taken: AtomicUsize::new(0) });
        let threads = (0..workers).map(|i| {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                model.hand_off.slots()[i].worker_loop(|job| {
                    model.taken.fetch_add(1, Ordering::Relaxed);
                    // SAFETY: checked by loom. Jobs `0..` are of cell 0, `1000..` of cell 1.
                    model.written[job / 1000].with_mut(|cell| unsafe { *cell = job });
                });
            })
        });
        let threads = threads.collect();
        (model, threads)
    }

    fn end(model: &Model, threads: Vec<thread::JoinHandle<()>>) {
        for (slot, worker) in model.hand_off.slots().iter().zip(threads) {
            slot.close();
            worker.thread().unpark();
            worker.join().expect("a worker");
        }
    }

    fn bounded() -> loom::model::Builder {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder
    }

    #[test]
    fn loom_no_worker_has_a_job_when_its_run_ends() {
        bounded().check(|| {
            let (model, threads) = start(1);
            for job in 1..=2 {
                let taken = model.taken.load(Ordering::Relaxed);
                let ran = model.hand_off.run(1, job, |i| threads[i].thread().unpark(), || ());
                assert!(ran.is_some(), "nobody else runs");
                // Were a worker still at it, or to begin later, this access would be a race.
                let written = model.written[0].with_mut(|cell| {
                    // SAFETY: checked by loom.
                    unsafe { std::mem::replace(&mut *cell, 0) }
                });
                let times = model.taken.load(Ordering::Relaxed) - taken;
                assert!(times <= 1 && written == times * job, "job {job} taken {times} times wrote {written}");
            }
            end(&model, threads);
        });
    }

    #[test]
    fn loom_two_callers_never_share_a_worker() {
        bounded().check(|| {
            let (model, threads) = start(1);
            let worker = threads[0].thread().clone();
            let call = |model: &Model, worker: &thread::Thread, caller: usize| {
                let own = || {
                    // SAFETY: checked by loom: the run is this caller's alone, but for the worker, which has the other cell.
                    model.written[1 - caller].with_mut(|cell| unsafe { *cell = 7 });
                };
                model.hand_off.run(1, 1000 * caller, |_| worker.unpark(), own).is_some()
            };
            let other = {
                let (model, worker) = (Arc::clone(&model), worker.clone());
                thread::spawn(move || call(&model, &worker, 1))
            };
            let first = call(&model, &worker, 0);
            let second = other.join().expect("the other caller");
            assert!(first || second, "both found the workers busy");
            end(&model, threads);
        });
    }
}
