//! What this machine can do at best, on all threads: multiply-adds in registers, and reading and copying memory. The
//! figures of the other benches are shares of these; run them together. Elements are floating-point operations.
#![allow(missing_docs, reason = "the macros of the harness")]

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;

/// Accumulators: enough to hide the latency of an addition in two pipes.
const CHAINS: usize = 16;
/// Lanes of an accumulator: a vector of 512 bits.
const LANES: usize = 16;

/// Steps of all chains; returns something that depends on every one.
#[inline(always)]
fn chains(steps: usize) -> f32 {
    let (by, plus) = (black_box(0.999_f32), black_box(1e-3_f32));
    let mut sums = [[1.0f32; LANES]; CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            for x in sum {
                *x = x.mul_add(by, plus);
            }
        }
    }
    sums.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(steps: usize) -> f32 {
    chains(steps)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(steps: usize) -> f32 {
    chains(steps)
}

fn multiply_add(steps: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions were detected.
            return unsafe { avx512(steps) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { avx2(steps) };
        }
    }
    chains(steps)
}

fn arithmetic(c: &mut Criterion) {
    let mut group = common::group(c, "ceiling/multiply-add f32");
    let steps = 1 << 20;
    for threads in [1, rayon::current_num_threads()] {
        group.throughput(Throughput::Elements((2 * steps * CHAINS * LANES * threads) as u64));
        group.bench_function(format!("{threads} threads"), |bench| {
            bench.iter(|| (0..threads).into_par_iter().map(|_| multiply_add(steps)).sum::<f32>());
        });
    }
    group.finish();
}

fn memory(c: &mut Criterion) {
    // Far more than any cache.
    let from = vec![1.0f32; 1 << 27];
    let mut to = vec![0.0f32; from.len()];
    let part = from.len() / rayon::current_num_threads();
    let mut group = common::group(c, "ceiling/memory");
    group.throughput(Throughput::Bytes(4 * from.len() as u64));
    group.bench_function("read", |bench| {
        let sum = |part: &[f32]| part.as_chunks::<64>().0.iter().map(|x| x[0] + x[16] + x[32] + x[48]).sum::<f32>();
        bench.iter(|| from.par_chunks(part).map(sum).sum::<f32>());
    });
    group.throughput(Throughput::Bytes(8 * from.len() as u64));
    group.bench_function("copy", |bench| {
        bench.iter(|| {
            to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        });
    });
    group.finish();
}

criterion_group!(benches, arithmetic, memory);
criterion_main!(benches);
