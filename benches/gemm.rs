//! Products with weights, forward and backward. Elements are floating-point operations.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::{real, shapes, time, weight, wide};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::{Cpu, CpuF32, Isa};
use llamaprobe::backend::{Backend, LinearDims};

fn linear<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("gemm/{}", b.name()));
    for &shape in shapes() {
        for (part, input, output) in [("attention", shape.width, shape.width), ("mlp", shape.width, shape.feed_forward)]
        {
            let matrix = weight(&mut b, output * input);
            for rows in [1, 16, 64, 128, 256, 512] {
                let dims = LinearDims { rows, input, output };
                let (x, mut out) = (real(&mut b, rows * input), real(&mut b, rows * output));
                let mut d_x = wide(&mut b, rows * input);
                group.throughput(Throughput::Elements(2 * (rows * input * output) as u64));
                let id = format!("{}/{part}/{rows}", shape.name);
                group.bench("fwd", &id, |bench| {
                    time(bench, &mut b, |b| b.linear_fwd(&mut out, &x, &matrix, None, dims));
                });
                group.bench("bwd_input", &id, |bench| {
                    time(bench, &mut b, |b| b.linear_bwd_input(&mut d_x, &out, &matrix, dims, false));
                });
                if shape.width > 1000 {
                    // Full tuning is for small models.
                    continue;
                }
                let mut d_weight = wide(&mut b, output * input);
                group.bench("bwd_weight", &id, |bench| {
                    time(bench, &mut b, |b| b.linear_bwd_weight(&mut d_weight, 0, &out, &x, dims));
                });
            }
        }
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    on_devices!(c, linear);
    if common::subject() == common::Subject::Cpu && Isa::detect().has_pairs() {
        linear(c, CpuF32::split(Isa::detect()));
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
