//! Functions of one number, with and without a gate.

use criterion::{Criterion, Throughput};
use llamaprobe::arch::Activation;
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{ActivationBwd, ActivationFwd, GatedBwd, GatedFwd};

use crate::ROWS;
use crate::common::{self, acc, bytes, compute, shapes, time};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("activation/{}", b.name()));
    for shape in shapes() {
        let len = ROWS * shape.feed_forward;
        let ([mut act, x, up, mut d_x, mut d_up], mut d_act) = ([(); 5].map(|()| compute(b, len)), acc(b, len));
        for f in [Activation::Silu, Activation::GeluTanh] {
            group.throughput(Throughput::Bytes(bytes(b, 0, 3 * len)));
            group.bench(&format!("fwd gated {f:?}"), shape.name, |bench| {
                time(bench, b, |b| b.gated_fwd(GatedFwd { act: &mut act, gate: &x, up: &up, f, len }));
            });
            group.throughput(Throughput::Bytes(bytes(b, len, 4 * len)));
            group.bench(&format!("bwd gated {f:?}"), shape.name, |bench| {
                time(bench, b, |b| {
                    let (d_gate, d_up, d_act) = (&mut d_x, &mut d_up, &mut d_act);
                    b.gated_bwd(GatedBwd { d_gate, d_up, d_act, gate: &x, up: &up, f, len });
                });
            });
        }
        for f in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh, Activation::Silu] {
            group.throughput(Throughput::Bytes(bytes(b, 0, 2 * len)));
            group.bench(&format!("fwd {f:?}"), shape.name, |bench| {
                time(bench, b, |b| b.activation_fwd(ActivationFwd { act: &mut act, x: &x, f, len }));
            });
            group.throughput(Throughput::Bytes(bytes(b, len, 2 * len)));
            group.bench(&format!("bwd {f:?}"), shape.name, |bench| {
                time(bench, b, |b| b.activation_bwd(ActivationBwd { d_x: &mut d_x, d_act: &d_act, x: &x, f, len }));
            });
        }
    }
    group.finish();
}
