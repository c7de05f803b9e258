//! Sharing some ten microseconds of work with the other threads: the CPU backend's pool beside rayon's, and alone. Elements
//! are floating-point operations.
//!
//! Operations of a small model come one after another, or with some work of the host between them (the reading of
//! results, the cutting of packs), in which a thread may fall asleep.
#![allow(missing_docs, reason = "the macros of the harness")]

mod common;

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::ThreadPool;

/// Parts of an operation, of which a thread takes the next that is left.
const PARTS: usize = 16;
/// Multiply-adds of a part, each of which waits for the last: with all parts some 10 microseconds on one thread.
const STEPS: usize = 240;
/// Work of the host between two operations.
const PAUSES: [(&str, Duration); 3] =
    [("none", Duration::ZERO), ("20 us", Duration::from_micros(20)), ("2 ms", Duration::from_millis(2))];

fn part() {
    let (by, plus) = (black_box(0.999_f32), black_box(1e-3_f32));
    black_box((0..STEPS).fold(1.0, |sum, _| sum * by + plus));
}

/// Takes parts until none is left.
fn work(next: &AtomicUsize) {
    while next.fetch_add(1, Ordering::Relaxed) < PARTS {
        part();
    }
}

/// Times operations alone, with the host busy between them.
fn time(pause: Duration, times: u64, mut operation: impl FnMut(&AtomicUsize)) -> Duration {
    let mut taken = Duration::ZERO;
    for _ in 0..times {
        let rest = Instant::now();
        while rest.elapsed() < pause {
            std::hint::spin_loop();
        }
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        operation(&next);
        taken += start.elapsed();
        assert!(next.into_inner() >= PARTS, "work was left");
    }
    taken
}

fn sharing(c: &mut Criterion) {
    let threads = rayon::current_num_threads();
    let pool = ThreadPool::new(threads);
    let mut group = common::group(c, &format!("pool/{threads} threads"));
    group.throughput(Throughput::Elements((2 * PARTS * STEPS) as u64));
    for (name, pause) in PAUSES {
        group.bench("alone", name, |bench| bench.iter_custom(|times| time(pause, times, work)));
        group.bench("pool", name, |bench| {
            bench.iter_custom(|times| time(pause, times, |next| pool.run(threads, &|_| work(next))));
        });
        // The caller is one of rayon's threads, so that it takes part in the work as it does in the pool.
        group.bench("rayon broadcast", name, |bench| {
            bench.iter_custom(|times| {
                rayon::scope(|_| {
                    time(pause, times, |next| {
                        rayon::broadcast(|_| work(next));
                    })
                })
            });
        });
        group.bench("rayon scope", name, |bench| {
            bench.iter_custom(|times| {
                rayon::scope(|_| {
                    time(pause, times, |next| {
                        rayon::scope(|scope| (0..threads).for_each(|_| scope.spawn(|_| work(next))));
                    })
                })
            });
        });
    }
    group.finish_without_shares();
}

criterion_group!(benches, sharing);
criterion_main!(benches);
