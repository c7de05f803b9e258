//! Edits of rows.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::ops::{EditFwd, EditMap};
use llamaprobe::backend::{Backend, TensorMut};

use crate::ROWS;
use crate::common::{self, acc, bytes, compute, shapes, time};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("edit/{}", b.name()));
    let rows = b.index(&(0..ROWS as u32).collect::<Vec<_>>()).expect("memory for a bench");
    let value_rows = b.index(&vec![0; ROWS]).expect("memory for a bench");
    for shape in shapes() {
        let (width, len) = (shape.width, ROWS * shape.width);
        let (mut wide, mut real, values) = (acc(b, len), compute(b, len), acc(b, width));
        let (rows, value_rows, values) = (&rows, &value_rows, &values);
        for (name, keep, add, along) in [("add", 1.0, 1.0, 0.0), ("project_out", 1.0, 0.0, -1.0)] {
            let map = EditMap { keep, along };
            group.throughput(Throughput::Bytes(bytes(b, 2 * len, 0)));
            group.bench(&format!("{name} acc"), shape.name, |bench| {
                time(bench, b, |b| {
                    let x = TensorMut::Acc(&mut wide);
                    b.edit_fwd(EditFwd { x, values, rows, value_rows, width, map, add });
                });
            });
            group.throughput(Throughput::Bytes(bytes(b, 0, 2 * len)));
            group.bench(&format!("{name} compute"), shape.name, |bench| {
                time(bench, b, |b| {
                    let x = TensorMut::Compute(&mut real);
                    b.edit_fwd(EditFwd { x, values, rows, value_rows, width, map, add });
                });
            });
        }
    }
    group.finish();
}
