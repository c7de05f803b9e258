//! Rotary position embedding.

use criterion::{Criterion, Throughput};
use llamaprobe::arch::RopePairs;
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{RopeBwd, RopeFwd};

use crate::ROWS;
use crate::common::{self, acc, bytes, compute, flat, shapes, time};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("rope/{}", b.name()));
    for shape in shapes() {
        let (heads, head_dim, len) = (shape.heads, shape.width / shape.heads, ROWS * shape.width);
        let (mut x, cos_sin) = (compute(b, len), acc(b, ROWS * head_dim));
        let pack = b.pack(&flat(&[ROWS], None)).expect("memory for a bench");
        let (pack, cos_sin, rotary_dim, pairs) = (&pack, &cos_sin, head_dim, RopePairs::Halves);
        group.throughput(Throughput::Bytes(bytes(b, 0, 2 * len)));
        group.bench("fwd", shape.name, |bench| {
            time(bench, b, |b| {
                b.rope_fwd(RopeFwd { x: &mut x, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
            });
        });
        group.bench("bwd", shape.name, |bench| {
            time(bench, b, |b| b.rope_bwd(RopeBwd { d_x: &mut x, pack, cos_sin, heads, head_dim, rotary_dim, pairs }));
        });
        // A quarter, as in GPT-NeoX.
        let rotary_dim = head_dim / 4;
        group.bench("fwd of a quarter", shape.name, |bench| {
            time(bench, b, |b| {
                b.rope_fwd(RopeFwd { x: &mut x, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
            });
        });
        let pairs = RopePairs::Neighbours;
        group.bench("fwd of a quarter, neighbours", shape.name, |bench| {
            time(bench, b, |b| {
                b.rope_fwd(RopeFwd { x: &mut x, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
            });
        });
    }
    group.finish();
}
