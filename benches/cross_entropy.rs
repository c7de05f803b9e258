//! The head with its loss over label rows. Elements are floating-point operations.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::{real, shapes, time, weight, wide};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Backend, LinearDims};

fn cross_entropy<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("cross_entropy/{}", b.name()));
    for &shape in shapes() {
        let head = weight(&mut b, shape.vocab * shape.width);
        for rows in [1, 32, 256] {
            if rows * shape.width * shape.vocab > 1 << 34 {
                // Seconds per iteration.
                continue;
            }
            let dims = LinearDims { rows, input: shape.width, output: shape.vocab };
            let (x, mut loss, mut d_x) =
                (real(&mut b, rows * shape.width), wide(&mut b, rows), wide(&mut b, rows * shape.width));
            let targets: Vec<u32> = (0..rows as u32).collect();
            let (targets, weights) = (b.index(&targets).expect("memory for a bench"), wide(&mut b, rows));
            let flops = 2 * (rows * shape.width * shape.vocab) as u64;
            let id = format!("{}/{rows}", shape.name);
            group.throughput(Throughput::Elements(flops));
            group.bench("fwd", &id, |bench| {
                time(bench, &mut b, |b| b.cross_entropy_fwd(&mut loss, &x, &head, &targets, dims));
            });
            group.throughput(Throughput::Elements(2 * flops));
            group.bench("bwd", &id, |bench| {
                time(bench, &mut b, |b| {
                    b.cross_entropy_bwd(&mut loss, &mut d_x, None, &x, &head, &targets, &weights, dims);
                });
            });
        }
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    on_devices!(c, cross_entropy);
}

criterion_group!(benches, all);
criterion_main!(benches);
