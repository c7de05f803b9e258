//! The optimiser over the adapters of many runs. Bytes are those that must be read and written.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::{bytes, shapes, time, wide};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{AdamwStep, Backend};

/// Runs that step at once.
const RUNS: usize = 30;

fn adamw<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("adamw/{}", b.name()));
    for &shape in shapes() {
        // Rank 8 on the queries and values of one layer.
        let stride = 2 * 8 * 2 * shape.width;
        let len = RUNS * stride;
        let [mut params, mut m, d_params] = [(); 3].map(|()| wide(&mut b, len));
        let mut v = b.acc(len).expect("memory for a bench");
        let (mut norm_sq, stop) = (wide(&mut b, RUNS), b.acc(1).expect("memory for a bench"));
        let step = AdamwStep {
            active: true,
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
            step: 10,
        };
        let steps = vec![step; RUNS];
        group.throughput(Throughput::Bytes(bytes(&b, len, 0)));
        group.bench("grad_norm", shape.name, |bench| {
            time(bench, &mut b, |b| b.grad_norm(&mut norm_sq, &d_params, RUNS, stride));
        });
        group.throughput(Throughput::Bytes(bytes(&b, 7 * len, 0)));
        group.bench("step", shape.name, |bench| {
            time(bench, &mut b, |b| b.adamw(&mut params, &mut m, &mut v, &d_params, &norm_sq, &stop, &steps, stride));
        });
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    on_devices!(c, adamw);
}

criterion_group!(benches, all);
criterion_main!(benches);
