//! Learned scales, and the norms of adapted weights.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::ops::{LoraSite, NormSite, RunRange, ScaleBwd, ScaleDelta, ScaleFwd, ScaleSite, WeightNorm};
use llamaprobe::backend::{Backend, TensorMut};

use crate::common::{self, acc, bytes, compute, flat, shapes, time, weight};

const RANK: usize = 8;

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("scale/{}", b.name()));
    for shape in shapes() {
        let width = shape.width;
        let (at, runs) = (2 * RANK * width, RunRange::ALL);
        let to = NormSite { at: 0, stride: width };
        let stride = at + width;
        let lora =
            LoraSite { a: 0, b: RANK * width, stride, rank: RANK, input: width, output: width, scale: 2.0, runs };
        let site = ScaleSite { at, stride, width, norms: Some(to), runs };
        let of = weight(b, width * width);
        for (runs, lengths) in [(1, vec![256]), (16, vec![16; 16])] {
            let pack = flat(&lengths, Some(runs));
            let len = pack.len() * width;
            let pack = &b.pack(&pack).expect("memory for a bench");
            let (mut y, mut unscaled) = (compute(b, len), compute(b, len));
            let (params, mut d_params) = (acc(b, runs * stride), acc(b, runs * stride));
            let (params, mut norms) = (&params, acc(b, runs * width));
            let id = format!("{}/{runs} runs", shape.name);
            group.throughput(Throughput::Elements((2 * runs * RANK * width * width) as u64));
            group.bench("weight norm", &id, |bench| {
                time(bench, b, |b| {
                    let (norms, weight) = (&mut norms, &of);
                    b.weight_norm(WeightNorm { norms, weight, params, site: lora, to, runs });
                });
            });
            let norms = Some(&norms);
            group.throughput(Throughput::Bytes(bytes(b, 0, 3 * len)));
            group.bench("fwd", &id, |bench| {
                time(bench, b, |b| {
                    let (y, unscaled, bias) = (&mut y, Some(&mut unscaled), None);
                    b.scale_fwd(ScaleFwd { y, unscaled, params, norms, bias, pack, site });
                });
            });
            let mut wide = acc(b, len);
            group.throughput(Throughput::Bytes(bytes(b, len, len)));
            group.bench("delta", &id, |bench| {
                time(bench, b, |b| {
                    b.scale_delta(ScaleDelta { out: &mut wide, unscaled: &unscaled, params, norms, pack, site });
                });
            });
            group.throughput(Throughput::Bytes(bytes(b, 2 * len, len)));
            group.bench("bwd of the stream", &id, |bench| {
                time(bench, b, |b| {
                    let (d_params, d_y) = (&mut d_params, TensorMut::Acc(&mut wide));
                    b.scale_bwd(ScaleBwd { d_params, d_y, unscaled: &unscaled, params, norms, pack, site });
                });
            });
            group.throughput(Throughput::Bytes(bytes(b, 0, 3 * len)));
            group.bench("bwd", &id, |bench| {
                time(bench, b, |b| {
                    let (d_params, d_y) = (&mut d_params, TensorMut::Compute(&mut y));
                    b.scale_bwd(ScaleBwd { d_params, d_y, unscaled: &unscaled, params, norms, pack, site });
                });
            });
        }
    }
    group.finish();
}
