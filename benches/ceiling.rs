//! What this machine can do at best, on all threads: multiply-adds in registers, and reading and copying memory. The
//! other benches end with their shares of these. Elements are floating-point operations.
#![allow(missing_docs, reason = "the macros of the harness")]

mod common;

use common::ceiling::{self, Factors};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn arithmetic(c: &mut Criterion) {
    let steps = 1 << 20;
    let pairs = ("bf16 in pairs", ceiling::factors("bf16"));
    for (dtype, factors) in
        [("f32", Factors::Single), pairs].into_iter().take(1 + usize::from(pairs.1 == Factors::Pairs))
    {
        let mut group = common::group(c, &format!("ceiling/multiply-add {dtype}"));
        for threads in [1, rayon::current_num_threads()] {
            group.throughput(Throughput::Elements(ceiling::multiply_add(factors, 1, threads) * steps as u64));
            group.bench(&format!("{threads} threads"), "", |bench| {
                bench.iter(|| ceiling::multiply_add(factors, steps, threads));
            });
        }
        group.finish();
    }
}

fn memory(c: &mut Criterion) {
    let [from, mut to] = ceiling::stretches();
    let mut group = common::group(c, "ceiling/memory");
    group.throughput(Throughput::Bytes(ceiling::read(&from)));
    group.bench("read", "", |bench| bench.iter(|| ceiling::read(&from)));
    group.throughput(Throughput::Bytes(ceiling::copy(&mut to, &from)));
    group.bench("copy", "", |bench| bench.iter(|| ceiling::copy(&mut to, &from)));
    group.finish();
}

criterion_group!(benches, arithmetic, memory);
criterion_main!(benches);
