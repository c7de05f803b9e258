//! Layer norm.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{LayerNormBwd, LayerNormBwdAffine, LayerNormFwd};

use crate::ROWS;
use crate::common::{self, acc, bytes, compute, shapes, time, weight};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("layer_norm/{}", b.name()));
    for shape in shapes() {
        let (rows, width, len) = (ROWS, shape.width, ROWS * shape.width);
        let (mut out, x, weight, bias) = (compute(b, len), acc(b, len), weight(b, width), weight(b, width));
        let [mut mean, mut rstd] = [(); 2].map(|()| acc(b, rows));
        group.throughput(Throughput::Bytes(bytes(b, len, len)));
        group.bench("fwd", shape.name, |bench| {
            time(bench, b, |b| {
                let (out, mean, rstd, weight, bias) = (&mut out, &mut mean, &mut rstd, &weight, &bias);
                b.layer_norm_fwd(LayerNormFwd { out, mean, rstd, x: &x, weight, bias, rows, width, eps: 1e-5 });
            });
        });
        let (mut d_x, mut d_affine, d_out) = (acc(b, len), acc(b, 2 * width), acc(b, len));
        let (x, mean, rstd, d_out) = (&x, &mean, &rstd, &d_out);
        group.throughput(Throughput::Bytes(bytes(b, 4 * len, 0)));
        group.bench("bwd", shape.name, |bench| {
            time(bench, b, |b| {
                let (d_x, weight) = (&mut d_x, &weight);
                b.layer_norm_bwd(LayerNormBwd { d_x, d_out, x, mean, rstd, weight, rows, width });
            });
        });
        group.throughput(Throughput::Bytes(bytes(b, 2 * len, 0)));
        group.bench("bwd_affine", shape.name, |bench| {
            time(bench, b, |b| {
                let d_affine = &mut d_affine;
                b.layer_norm_bwd_affine(LayerNormBwdAffine { d_affine, offset: 0, d_out, x, mean, rstd, rows, width });
            });
        });
    }
    group.finish();
}
