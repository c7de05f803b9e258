//! Attention over sequences and over forests; what counts are the pairs that attend.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{AttentionBwd, AttentionDims, AttentionFwd};
use llamaprobe::pack::{Label, Sequence, bidirectional};

use crate::common::{self, acc, compute, flat, shapes, shared_prefix, time};

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("attention/{}", b.name()));
    let packs = [
        ("64", flat(&[64], None)),
        ("512", flat(&[512], None)),
        ("8x64", flat(&[64; 8], None)),
        ("512+16x32", shared_prefix(512, 16, 32)),
        ("512 alibi", flat(&[512], None)),
        ("512 capped", flat(&[512], None)),
        ("512 to 16", flat(&[512], None)),
        ("512 bidirectional", bidirectional(&[Sequence::ids(&[0; 512], None, Label::Text)]).pack),
    ];
    for shape in shapes() {
        for (name, pack) in &packs {
            let softcap = name.ends_with("capped").then_some(50.0);
            let dims = AttentionDims { alibi: name.ends_with("alibi"), softcap, ..shape.attention() };
            let n = pack.len();
            let read: Option<Vec<usize>> = name.ends_with("to 16").then(|| (n - 16..n).collect());
            let outputs = read.as_deref();
            let visible = |row| pack.visible(row, None).len();
            let pairs: usize = read.clone().unwrap_or_else(|| (0..n).collect()).into_iter().map(visible).sum();
            let (queries, keys) = (n * dims.q_width(), n * dims.kv_width());
            let [q, mut z, mut d_q] = [(); 3].map(|()| compute(b, queries));
            let [k, v, mut d_k, mut d_v] = [(); 4].map(|()| compute(b, keys));
            let [mut lse, mut delta] = [(); 2].map(|()| acc(b, n * dims.heads));
            let (q, k, v, d_z) = (&q, &k, &v, &mut acc(b, queries));
            let pack = &b.pack(pack).expect("memory for a bench");
            let flops = (4 * pairs * dims.q_width()) as u64;
            let id = format!("{}/{name}", shape.name);
            group.throughput(Throughput::Elements(flops));
            group.bench("fwd", &id, |bench| {
                time(bench, b, |b| {
                    b.attention_fwd(AttentionFwd {
                        z: &mut z,
                        lse: &mut lse,
                        q,
                        k,
                        v,
                        cached: None,
                        pack,
                        outputs,
                        dims,
                    });
                });
            });
            let (z, lse) = (&z, &lse);
            // The backward has five products to the forward's two.
            group.throughput(Throughput::Elements(flops / 2 * 5));
            group.bench("bwd", &id, |bench| {
                time(bench, b, |b| {
                    b.attention_bwd(AttentionBwd {
                        d_q: &mut d_q,
                        d_k: &mut d_k,
                        d_v: &mut d_v,
                        delta: &mut delta,
                        d_z: &mut *d_z,
                        z,
                        lse,
                        q,
                        k,
                        v,
                        pack,
                        outputs,
                        dims,
                    });
                });
            });
        }
    }
    group.finish();
}
