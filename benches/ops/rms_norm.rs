//! RMS norm.

use criterion::{Criterion, Throughput};
use llamaprobe::arch::RmsWeight;
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{
    RmsNormBwd, RmsNormBwdWeight, RmsNormComputeBwd, RmsNormComputeBwdWeight, RmsNormComputeFwd, RmsNormFwd,
};

use crate::ROWS;
use crate::common::{self, Shape, acc, bytes, compute, shapes, time, weight};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("rms_norm/{}", b.name()));
    for shape in shapes() {
        let (rows, width, len) = (ROWS, shape.width, ROWS * shape.width);
        let (mut out, mut rstd, x, weight) = (compute(b, len), acc(b, rows), acc(b, len), weight(b, width));
        for (name, form) in [("fwd", RmsWeight::Rounded), ("fwd OnePlus", RmsWeight::OnePlus)] {
            group.throughput(Throughput::Bytes(bytes(b, len, len)));
            group.bench(name, shape.name, |bench| {
                time(bench, b, |b| {
                    let (out, rstd) = (&mut out, &mut rstd);
                    b.rms_norm_fwd(RmsNormFwd { out, rstd, x: &x, weight: &weight, rows, width, eps: 1e-5, form });
                });
            });
        }
        let form = RmsWeight::Rounded;
        let (mut d_x, mut d_weight, mut d_out) = (acc(b, len), acc(b, width), acc(b, len));
        group.throughput(Throughput::Bytes(bytes(b, 4 * len, 0)));
        group.bench("bwd", shape.name, |bench| {
            time(bench, b, |b| {
                let (d_x, d_out, rstd, weight) = (&mut d_x, &mut d_out, &rstd, &weight);
                b.rms_norm_bwd(RmsNormBwd { d_x, d_out, x: &x, rstd, weight, rows, width, form });
            });
        });
        group.throughput(Throughput::Bytes(bytes(b, 2 * len, 0)));
        group.bench("bwd_weight", shape.name, |bench| {
            time(bench, b, |b| {
                let (d_weight, d_out, rstd) = (&mut d_weight, &d_out, &rstd);
                b.rms_norm_bwd_weight(RmsNormBwdWeight { d_weight, offset: 0, d_out, x: &x, rstd, rows, width });
            });
        });
        heads(&mut group, b, shape);
    }
    group.finish();
}

/// The norms of all queries of a row, each by itself.
fn heads<B: Backend>(group: &mut common::Group<'_>, b: &mut B, shape: &Shape) {
    let (rows, width, len) = (ROWS * shape.heads, shape.width / shape.heads, ROWS * shape.width);
    let (mut out, mut rstd, x, weight) = (compute(b, len), acc(b, rows), compute(b, len), weight(b, width));
    let (form, weight, x) = (RmsWeight::Rounded, &weight, &x);
    group.throughput(Throughput::Bytes(bytes(b, 0, 2 * len)));
    group.bench("fwd of heads", shape.name, |bench| {
        time(bench, b, |b| {
            let (out, rstd) = (&mut out, &mut rstd);
            b.rms_norm_compute_fwd(RmsNormComputeFwd { out, rstd, x, weight, rows, width, eps: 1e-5, form });
        });
    });
    let (mut d_x, mut d_weight, d_out) = (compute(b, len), acc(b, width), compute(b, len));
    group.throughput(Throughput::Bytes(bytes(b, 0, 3 * len)));
    group.bench("bwd of heads", shape.name, |bench| {
        time(bench, b, |b| {
            let (d_x, rstd) = (&mut d_x, &rstd);
            b.rms_norm_compute_bwd(RmsNormComputeBwd { d_x, x, rstd, weight, rows, width, form });
        });
    });
    group.throughput(Throughput::Bytes(bytes(b, 0, 2 * len)));
    group.bench("bwd_weight of heads", shape.name, |bench| {
        time(bench, b, |b| {
            let (d_weight, d_out, rstd) = (&mut d_weight, &d_out, &rstd);
            let op = RmsNormComputeBwdWeight { d_weight, offset: 0, d_out, x, rstd, rows, width };
            b.rms_norm_compute_bwd_weight(op);
        });
    });
}
