//! Learned position embedding.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{PositionBwdTable, PositionFwd};

use crate::ROWS;
use crate::common::{self, acc, bytes, flat, shapes, time, weight};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("position/{}", b.name()));
    for shape in shapes() {
        let (first, width, len) = (2, shape.width, ROWS * shape.width);
        let (mut x, table) = (acc(b, len), weight(b, (ROWS + first) * width));
        let mut d_table = acc(b, (ROWS + first) * width);
        let pack = b.pack(&flat(&[ROWS], None)).expect("memory for a bench");
        group.throughput(Throughput::Bytes(bytes(b, 2 * len, len)));
        group.bench("fwd", shape.name, |bench| {
            time(bench, b, |b| {
                b.position_fwd(PositionFwd { x: &mut x, pack: &pack, table: &table, first, width });
            });
        });
        group.throughput(Throughput::Bytes(bytes(b, 3 * len, 0)));
        group.bench("bwd_table", shape.name, |bench| {
            time(bench, b, |b| {
                let (d_table, d_x, pack) = (&mut d_table, &x, &pack);
                b.position_bwd_table(PositionBwdTable { d_table, offset: 0, d_x, pack, first, width });
            });
        });
    }
    group.finish();
}
