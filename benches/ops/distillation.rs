//! Distances to a teacher.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{KlLoss, StateLoss};

use crate::ROWS;
use crate::common::{self, acc, bytes, compute, shapes, time};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("distillation/{}", b.name()));
    let (mut loss, row_weights) = (acc(b, ROWS), &acc(b, ROWS));
    for shape in shapes() {
        let (width, len) = (shape.width, ROWS * shape.width);
        let (mut d_x, x, target) = (acc(b, len), &acc(b, len), &acc(b, len));
        group.throughput(Throughput::Bytes(bytes(b, 3 * len, 0)));
        group.bench("state_loss", shape.name, |bench| {
            time(bench, b, |b| {
                let (loss, d_x, rows) = (&mut loss, &mut d_x, ROWS);
                b.state_loss(StateLoss { loss, d_x, x, target, row_weights, rows, width });
            });
        });
        let (rows, vocab) = (16, shape.vocab);
        let len = rows * vocab;
        let (mut d_logits, logits, teacher) = (compute(b, len), &acc(b, len), &acc(b, len));
        group.throughput(Throughput::Bytes(bytes(b, 2 * len, len)));
        group.bench("kl_loss", shape.name, |bench| {
            time(bench, b, |b| {
                let (loss, d_logits) = (&mut loss, &mut d_logits);
                let (from, temperature, softcap) = (0, 2.0, None);
                let op =
                    KlLoss { loss, d_logits, logits, teacher, row_weights, from, rows, vocab, temperature, softcap };
                b.kl_loss(op);
            });
        });
    }
    group.finish();
}
