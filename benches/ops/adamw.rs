//! The optimiser over the adapters of many runs.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{Adamw, AdamwStep, GradNorm};

use crate::common::{self, acc, bytes, shapes, time};

/// Runs that step at once.
const RUNS: usize = 30;

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("adamw/{}", b.name()));
    for shape in shapes() {
        // Rank 8 on the queries and values of one layer.
        let stride = 2 * 8 * 2 * shape.width;
        let len = RUNS * stride;
        let [mut params, mut m, d_params] = [(); 3].map(|()| acc(b, len));
        let mut v = b.acc(len).expect("memory for a bench");
        let (mut norm_sq, stop) = (acc(b, RUNS), b.acc(1).expect("memory for a bench"));
        let step = AdamwStep {
            active: true,
            learning_rate: 1e-4,
            fast_learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
            step: 10,
        };
        let steps = vec![step; RUNS];
        group.throughput(Throughput::Bytes(bytes(b, len, 0)));
        group.bench("grad_norm", shape.name, |bench| {
            time(bench, b, |b| {
                b.grad_norm(GradNorm { norm_sq: &mut norm_sq, d_params: &d_params, runs: RUNS, stride });
            });
        });
        group.throughput(Throughput::Bytes(bytes(b, 7 * len, 0)));
        group.bench("step", shape.name, |bench| {
            time(bench, b, |b| {
                b.adamw(Adamw {
                    params: &mut params,
                    m: &mut m,
                    v: &mut v,
                    d_params: &d_params,
                    norm_sq: &norm_sq,
                    stop: &stop,
                    steps: &steps,
                    fast: None,
                    stride,
                });
            });
        });
    }
    group.finish();
}
