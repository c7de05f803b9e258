//! Products with weights.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd};

use crate::common::{self, acc, compute, shapes, time, weight};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("linear/{}", b.name()));
    for shape in shapes() {
        for (part, input, output) in [("attention", shape.width, shape.width), ("mlp", shape.width, shape.feed_forward)]
        {
            let weight = &weight(b, output * input);
            for rows in [1, 16, 64, 128, 256, 512] {
                let dims = LinearDims { rows, input, output };
                let (x, mut out) = (compute(b, rows * input), compute(b, rows * output));
                let mut d_x = acc(b, rows * input);
                group.throughput(Throughput::Elements(2 * (rows * input * output) as u64));
                let id = format!("{}/{part}/{rows}", shape.name);
                group.bench("fwd", &id, |bench| {
                    time(bench, b, |b| b.linear_fwd(LinearFwd { out: &mut out, x: &x, weight, bias: None, dims }));
                });
                let d_out = &out;
                group.bench("bwd_input", &id, |bench| {
                    time(bench, b, |b| {
                        b.linear_bwd_input(LinearBwdInput { d_x: &mut d_x, d_out, weight, dims, accumulate: false });
                    });
                });
                if shape.width > 1000 {
                    // Full tuning is for small models.
                    continue;
                }
                let mut d_weight = acc(b, output * input);
                group.bench("bwd_weight", &id, |bench| {
                    time(bench, b, |b| {
                        b.linear_bwd_weight(LinearBwdWeight { d_weight: &mut d_weight, offset: 0, d_out, x: &x, dims });
                    });
                });
            }
        }
    }
    group.finish();
}
