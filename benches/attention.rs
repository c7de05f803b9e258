//! Attention over sequences and over forests. Elements are floating-point operations on the pairs that attend.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::{flat, real, shapes, shared_prefix, time, wide};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{AttentionDims, Backend};

fn attention<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("attention/{}", b.name()));
    let packs = [
        ("64", flat(&[64], None)),
        ("512", flat(&[512], None)),
        ("8x64", flat(&[64; 8], None)),
        ("512+16x32", shared_prefix(512, 16, 32)),
        ("512 alibi", flat(&[512], None)),
    ];
    for &shape in shapes() {
        for (name, pack) in &packs {
            let dims = AttentionDims { alibi: name.ends_with("alibi"), ..shape.attention() };
            let (n, pairs) = (pack.len(), pack.positions().iter().map(|&p| p as usize + 1).sum::<usize>());
            let (queries, keys) = (n * dims.heads * dims.head_dim, n * dims.kv_heads * dims.head_dim);
            let [q, mut z, mut d_q] = [(); 3].map(|()| real(&mut b, queries));
            let [k, v, mut d_k, mut d_v] = [(); 4].map(|()| real(&mut b, keys));
            let [mut lse, mut delta] = [(); 2].map(|()| wide(&mut b, n * dims.heads));
            let d_z = wide(&mut b, queries);
            let pack = b.pack(pack).expect("memory for a bench");
            let flops = (4 * pairs * dims.heads * dims.head_dim) as u64;
            let id = format!("{}/{name}", shape.name);
            group.throughput(Throughput::Elements(flops));
            group.bench("fwd", &id, |bench| {
                time(bench, &mut b, |b| b.attention_fwd(&mut z, &mut lse, &q, &k, &v, None, &pack, dims));
            });
            // The backward has five products to the forward's two.
            group.throughput(Throughput::Elements(flops / 2 * 5));
            group.bench("bwd", &id, |bench| {
                time(bench, &mut b, |b| {
                    b.attention_bwd(&mut d_q, &mut d_k, &mut d_v, &mut delta, &d_z, &z, &lse, &q, &k, &v, &pack, dims);
                });
            });
        }
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    on_devices!(c, attention);
}

criterion_group!(benches, all);
criterion_main!(benches);
