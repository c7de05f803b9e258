//! The embedding and its gradient.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{EmbedBwdTable, EmbedFwd};

use crate::ROWS;
use crate::common::{self, acc, bytes, flat, shapes, time, weight};

/// Rows of the table; the packs' ids are below.
const TABLE: usize = 1000;

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("embed/{}", b.name()));
    for shape in shapes() {
        let (width, len) = (shape.width, ROWS * shape.width);
        let (mut out, table, mut d_table) = (acc(b, len), weight(b, TABLE * width), acc(b, TABLE * width));
        let pack = b.pack(&flat(&[ROWS], None)).expect("memory for a bench");
        group.throughput(Throughput::Bytes(bytes(b, len, len)));
        for (name, scale) in [("fwd", 1.0), ("fwd scaled", (width as f64).sqrt())] {
            group.bench(name, shape.name, |bench| {
                time(bench, b, |b| {
                    let (out, pack, table) = (&mut out, &pack, &table);
                    b.embed_fwd(EmbedFwd { out, pack, table, prompt: None, width, scale });
                });
            });
        }
        group.throughput(Throughput::Bytes(bytes(b, 3 * len, 0)));
        group.bench("bwd_table", shape.name, |bench| {
            time(bench, b, |b| {
                let (d_table, d_out) = (&mut d_table, &out);
                b.embed_bwd_table(EmbedBwdTable { d_table, offset: 0, d_out, pack: &pack, width, scale: 1.0 });
            });
        });
    }
    group.finish();
}
