//! Products with weights.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd};

use llamaprobe::quantization::BlockFormat;

use crate::common::{self, Group, acc, compute, quantized, shapes, time, weight};

/// Those of quantised weights.
const FORMATS: [BlockFormat; 4] = [BlockFormat::NF4, BlockFormat::Int8Rows, BlockFormat::Q8_0, BlockFormat::Q4K];

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
                if rows == 1 || rows == 256 {
                    for format in FORMATS.into_iter().filter(|_| shape.width % 256 == 0) {
                        let dims = LinearDims { rows, input, output };
                        // A device without kernels for them has none.
                        let Ok(weight) = b.quantized_weight(&quantized(format, [output, input])) else { continue };
                        quantized_weight(&mut group, b, &id, (&weight, format), dims);
                    }
                }
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

/// Forward and the gradient of the input, named after the format.
fn quantized_weight<B: Backend>(
    group: &mut Group<'_>,
    b: &mut B,
    id: &str,
    (weight, format): (&B::Weight, BlockFormat),
    dims: LinearDims,
) {
    let LinearDims { rows, input, output } = dims;
    let (x, mut out) = (compute(b, rows * input), compute(b, rows * output));
    let mut d_x = acc(b, rows * input);
    group.bench(&format!("fwd_{format}"), id, |bench| {
        time(bench, b, |b| b.linear_fwd(LinearFwd { out: &mut out, x: &x, weight, bias: None, dims }));
    });
    let d_out = &out;
    group.bench(&format!("bwd_input_{format}"), id, |bench| {
        time(bench, b, |b| {
            b.linear_bwd_input(LinearBwdInput { d_x: &mut d_x, d_out, weight, dims, accumulate: false });
        });
    });
}
