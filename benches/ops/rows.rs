//! Rows moved and added.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{GatherAcc, ResidualFwd, ScatterAdd, ScatterAddCompute};

use crate::ROWS;
use crate::common::{self, acc, bytes, compute, shapes, time};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("rows/{}", b.name()));
    for shape in shapes() {
        let (width, len) = (shape.width, ROWS * shape.width);
        let (mut out, x, mut y) = (acc(b, len), acc(b, len), compute(b, len));
        group.throughput(Throughput::Bytes(bytes(b, 2 * len, len)));
        group.bench("residual_fwd", shape.name, |bench| {
            time(bench, b, |b| b.residual_fwd(ResidualFwd { out: &mut out, a: &x, b: &y, len }));
        });
        let rows: Vec<u32> = (0..ROWS as u32).rev().collect();
        let rows = b.index(&rows).expect("memory for a bench");
        group.throughput(Throughput::Bytes(bytes(b, 2 * len, 0)));
        group.bench("gather_acc", shape.name, |bench| {
            time(bench, b, |b| b.gather_acc(GatherAcc { out: &mut out, x: &x, rows: &rows, width }));
        });
        group.throughput(Throughput::Bytes(bytes(b, 3 * len, 0)));
        group.bench("scatter_add", shape.name, |bench| {
            time(bench, b, |b| b.scatter_add(ScatterAdd { d_x: &mut out, d_out: &x, rows: &rows, width }));
        });
        group.throughput(Throughput::Bytes(bytes(b, len, 2 * len)));
        group.bench("scatter_add_compute", shape.name, |bench| {
            time(bench, b, |b| {
                b.scatter_add_compute(ScatterAddCompute { d_x: &mut y, d_out: &x, rows: &rows, width });
            });
        });
    }
    group.finish();
}
