//! Adapters of one run and of many in one pack.

use criterion::{Criterion, Throughput};
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{Dropout, LoraBwd, LoraDeltaBwd, LoraFwd, LoraSite, RunRange};

use crate::common::{self, acc, compute, flat, shapes, time};

const RANK: usize = 8;

pub fn bench<B: Backend>(c: &mut Criterion, b: &mut B) {
    let mut group = common::group(c, &format!("lora/{}", b.name()));
    for shape in shapes() {
        let (input, output) = (shape.width, shape.width);
        let at = RANK * input;
        let site = LoraSite {
            a: 0,
            b: at,
            stride: at + output * RANK,
            rank: RANK,
            input,
            output,
            scale: 2.0,
            runs: RunRange::ALL,
        };
        for (runs, lengths) in [(1, vec![256]), (16, vec![16; 16])] {
            let pack = flat(&lengths, Some(runs));
            let (n, keys, seeds) = (pack.len(), (0..pack.len() as u32).collect::<Vec<_>>(), vec![7; runs]);
            let pack = &b.pack(&pack).expect("memory for a bench");
            let (mut y, x, mut xa) = (compute(b, n * output), compute(b, n * input), acc(b, n * RANK));
            let (params, mut d_params) = (acc(b, runs * site.stride), acc(b, runs * site.stride));
            let (x, params, mut d_x) = (&x, &params, acc(b, n * input));
            let flops = (2 * n * RANK * (input + output)) as u64;
            let mut d_xa = acc(b, n * RANK);
            group.throughput(Throughput::Elements(2 * (2 * n * RANK * output) as u64));
            group.bench("delta_bwd", format!("{}/{runs} runs", shape.name), |bench| {
                time(bench, b, |b| {
                    let (d_params, d_xa) = (&mut d_params, &mut d_xa);
                    b.lora_delta_bwd(LoraDeltaBwd { d_params, d_xa, d_y: &y, xa: &xa, params, pack, site });
                });
            });
            for p in [0.0, 0.1] {
                let dropout = (p > 0.0).then_some(Dropout { p, seeds: &seeds, site: 1, keys: &keys });
                let id = format!("{}/{runs} runs/dropout {p}", shape.name);
                group.throughput(Throughput::Elements(flops));
                group.bench("fwd", &id, |bench| {
                    time(bench, b, |b| {
                        b.lora_fwd(LoraFwd { y: Some(&mut y), xa: &mut xa, x, params, pack, site, dropout });
                    });
                });
                group.throughput(Throughput::Elements(2 * flops));
                group.bench("bwd", &id, |bench| {
                    time(bench, b, |b| {
                        b.lora_bwd(LoraBwd {
                            d_params: &mut d_params,
                            accumulate: true,
                            d_x: Some(&mut d_x),
                            d_y: &y,
                            xa: &xa,
                            x,
                            params,
                            pack,
                            site,
                            dropout,
                        });
                    });
                });
            }
        }
    }
    group.finish();
}
