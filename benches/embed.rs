//! The embedding and its gradient. Bytes are those that must be read and written.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::{bytes, flat, shapes, time, weight, wide};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;

/// Rows of the pack.
const ROWS: usize = 256;
/// Rows of the table; the packs' ids are below.
const TABLE: usize = 1000;

fn embed<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("embed/{}", b.name()));
    for &shape in shapes() {
        let len = ROWS * shape.width;
        let (mut out, table) = (wide(&mut b, len), weight(&mut b, TABLE * shape.width));
        let mut d_table = wide(&mut b, TABLE * shape.width);
        let pack = b.pack(&flat(&[ROWS], None)).expect("memory for a bench");
        group.throughput(Throughput::Bytes(bytes(&b, len, len)));
        group.bench("fwd", shape.name, |bench| {
            time(bench, &mut b, |b| b.embed_fwd(&mut out, &pack, &table, None, shape.width));
        });
        group.throughput(Throughput::Bytes(bytes(&b, 3 * len, 0)));
        group.bench("bwd_table", shape.name, |bench| {
            time(bench, &mut b, |b| b.embed_bwd_table(&mut d_table, 0, &out, &pack, shape.width));
        });
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    on_devices!(c, embed);
}

criterion_group!(benches, all);
criterion_main!(benches);
