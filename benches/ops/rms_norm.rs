//! RMS norm.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{RmsNormBwd, RmsNormBwdWeight, RmsNormFwd};

use crate::ROWS;
use crate::common::{self, acc, bytes, compute, shapes, time, weight};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("rms_norm/{}", b.name()));
    for shape in shapes() {
        let (rows, width, len) = (ROWS, shape.width, ROWS * shape.width);
        let (mut out, mut rstd, x, weight) = (compute(b, len), acc(b, rows), acc(b, len), weight(b, width));
        group.throughput(Throughput::Bytes(bytes(b, len, len)));
        group.bench("fwd", shape.name, |bench| {
            time(bench, b, |b| {
                let (out, rstd) = (&mut out, &mut rstd);
                b.rms_norm_fwd(RmsNormFwd { out, rstd, x: &x, weight: &weight, rows, width, eps: 1e-5 });
            });
        });
        let (mut d_x, mut d_weight, d_out) = (acc(b, len), acc(b, width), acc(b, len));
        group.throughput(Throughput::Bytes(bytes(b, 4 * len, 0)));
        group.bench("bwd", shape.name, |bench| {
            time(bench, b, |b| {
                let (d_x, d_out, rstd, weight) = (&mut d_x, &d_out, &rstd, &weight);
                b.rms_norm_bwd(RmsNormBwd { d_x, d_out, x: &x, rstd, weight, rows, width });
            });
        });
        group.throughput(Throughput::Bytes(bytes(b, 2 * len, 0)));
        group.bench("bwd_weight", shape.name, |bench| {
            time(bench, b, |b| {
                let (d_weight, d_out, rstd) = (&mut d_weight, &d_out, &rstd);
                b.rms_norm_bwd_weight(RmsNormBwdWeight { d_weight, offset: 0, d_out, x: &x, rstd, rows, width });
            });
        });
    }
    group.finish();
}
