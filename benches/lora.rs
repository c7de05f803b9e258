//! Adapters of one run and of many in one pack. Elements are floating-point operations.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::{flat, real, shapes, time, wide};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Backend, Dropout, LoraSite};

const RANK: usize = 8;

fn lora<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("lora/{}", b.name()));
    for &shape in shapes() {
        let (input, output) = (shape.width, shape.width);
        let at = RANK * input;
        let site = LoraSite { a: 0, b: at, stride: at + output * RANK, rank: RANK, input, output, scale: 2.0 };
        for (runs, lengths) in [(1, vec![256]), (16, vec![16; 16])] {
            let pack = flat(&lengths, Some(runs));
            let (n, keys, seeds) = (pack.len(), (0..pack.len() as u32).collect::<Vec<_>>(), vec![7; runs]);
            let pack = b.pack(&pack).expect("memory for a bench");
            let (mut y, x, mut xa) = (real(&mut b, n * output), real(&mut b, n * input), wide(&mut b, n * RANK));
            let (params, mut d_params) = (wide(&mut b, runs * site.stride), wide(&mut b, runs * site.stride));
            let mut d_x = wide(&mut b, n * input);
            let flops = (2 * n * RANK * (input + output)) as u64;
            for p in [0.0, 0.1] {
                let dropout = (p > 0.0).then_some(Dropout { p, seeds: &seeds, site: 1, keys: &keys });
                let id = format!("{}/{runs} runs/dropout {p}", shape.name);
                group.throughput(Throughput::Elements(flops));
                group.bench("fwd", &id, |bench| {
                    time(bench, &mut b, |b| b.lora_fwd(&mut y, &mut xa, &x, &params, &pack, site, dropout));
                });
                group.throughput(Throughput::Elements(2 * flops));
                group.bench("bwd", &id, |bench| {
                    time(bench, &mut b, |b| {
                        b.lora_bwd(&mut d_params, Some(&mut d_x), &y, &xa, &x, &params, &pack, site, dropout);
                    });
                });
            }
        }
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    on_devices!(c, lora);
}

criterion_group!(benches, all);
criterion_main!(benches);
