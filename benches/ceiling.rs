//! What this machine can do at best, on all threads: multiply-adds in registers, and reading and copying memory. The
//! other benches end with their shares of these. Elements are floating-point operations.
#![allow(missing_docs, reason = "the macros of the harness")]

mod common;

use common::ceiling;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::{self, Factors};

fn arithmetic(c: &mut Criterion) {
    let steps = 1 << 20;
    let bf16 = ceiling::factors("bf16");
    let narrow = ("bf16 in pairs", Factors::Pairs);
    let kinds = match bf16 {
        Factors::Single => vec![("f32", bf16)],
        Factors::Pairs => vec![("f32", Factors::Single), narrow],
        Factors::Tiles => vec![("f32", Factors::Single), narrow, ("bf16 in tiles", bf16)],
    };
    for (dtype, factors) in kinds {
        let mut group = common::group(c, &format!("ceiling/multiply-add {dtype}"));
        for threads in [1, rayon::current_num_threads()] {
            let pool = ceiling::pool(threads);
            group.throughput(Throughput::Elements(ceiling::multiply_add(factors, steps, &pool)));
            group.bench(&format!("{threads} threads"), "", |bench| {
                bench.iter(|| ceiling::multiply_add(factors, steps, &pool));
            });
        }
        group.finish();
    }
}

/// Products in tiles whose operands come from a cache: what a product of matrices could do at best.
#[cfg(target_arch = "x86_64")]
fn tiles(c: &mut Criterion) {
    if ceiling::factors("bf16") != Factors::Tiles {
        return;
    }
    let steps = 1 << 18;
    let mut group = common::group(c, "ceiling/bf16 in tiles from a cache");
    for (cache, bytes) in [("first level", 1 << 14), ("second level", 1 << 19)] {
        for threads in [1, rayon::current_num_threads()] {
            group.throughput(Throughput::Elements(ceiling::multiply_add_tiles(bytes, steps, threads)));
            group.bench(cache, format!("{threads} threads"), |bench| {
                bench.iter(|| ceiling::multiply_add_tiles(bytes, steps, threads));
            });
        }
    }
    group.finish();
}

#[cfg(not(target_arch = "x86_64"))]
fn tiles(_: &mut Criterion) {}

fn memory(c: &mut Criterion) {
    let [from, mut to] = ceiling::stretches();
    let mut group = common::group(c, "ceiling/memory");
    let pool = ceiling::pool(rayon::current_num_threads());
    group.throughput(Throughput::Bytes(cpu::read(&pool, &from)));
    group.bench("read", "", |bench| bench.iter(|| cpu::read(&pool, &from)));
    group.throughput(Throughput::Bytes(cpu::copy(&pool, &mut to, &from)));
    group.bench("copy", "", |bench| bench.iter(|| cpu::copy(&pool, &mut to, &from)));
    group.finish();
}

criterion_group!(benches, arithmetic, tiles, memory);
criterion_main!(benches);
