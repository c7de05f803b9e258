//! The head with its loss over label rows.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{CrossEntropyBwd, CrossEntropyFwd, LinearDims};

use crate::common::{self, acc, compute, shapes, time, weight};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("cross_entropy/{}", b.name()));
    for shape in shapes() {
        let head = &weight(b, shape.vocab * shape.width);
        for rows in [1, 32, 256] {
            if rows * shape.width * shape.vocab > 1 << 34 {
                // Seconds per iteration.
                continue;
            }
            let dims = LinearDims { rows, input: shape.width, output: shape.vocab };
            let (x, mut loss, mut d_x) = (compute(b, rows * shape.width), acc(b, rows), acc(b, rows * shape.width));
            let targets: Vec<u32> = (0..rows as u32).collect();
            let (x, targets, row_weights) = (&x, &b.index(&targets).expect("memory for a bench"), &acc(b, rows));
            let flops = 2 * (rows * shape.width * shape.vocab) as u64;
            let id = format!("{}/{rows}", shape.name);
            for (kind, softcap) in [("", None), (" capped", Some(30.0))] {
                group.throughput(Throughput::Elements(flops));
                group.bench(&format!("fwd{kind}"), &id, |bench| {
                    time(bench, b, |b| {
                        let loss = &mut loss;
                        b.cross_entropy_fwd(CrossEntropyFwd { loss, x, head, bias: None, targets, dims, softcap });
                    });
                });
                group.throughput(Throughput::Elements(2 * flops));
                group.bench(&format!("bwd{kind}"), &id, |bench| {
                    time(bench, b, |b| {
                        b.cross_entropy_bwd(CrossEntropyBwd {
                            loss: &mut loss,
                            d_x: &mut d_x,
                            d_head: None,
                            x,
                            head,
                            bias: None,
                            targets,
                            row_weights,
                            dims,
                            softcap,
                        });
                    });
                });
            }
        }
    }
    group.finish();
}
