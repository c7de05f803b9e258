//! Mapping a checkpoint of LLaMA-2-7B's shape: the header is read and checked, the weights stay where they are. Bytes are
//! those mapped; no ceiling bounds them.
#![allow(missing_docs, reason = "the macros of the harness")]

mod common;

use common::checkpoint::{self, Weights};
use common::{Subject, shapes, subject, time};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::arch::Dtype;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::model::Model;

fn load<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("load/{}", b.name()));
    let (shape, layers) = (shapes()[shapes().len() - 1], if subject() == Subject::Tiny { 2 } else { 32 });
    let dir = tempfile::tempdir().expect("a temporary directory");
    group.throughput(Throughput::Bytes(checkpoint::write(dir.path(), shape, layers, Weights::Sparse)));
    group.bench(shape.name, "", |bench| {
        time(bench, &mut b, |b| drop(Model::load(b, dir.path()).expect("a checkpoint")));
    });
    group.finish_without_shares();
}

fn all(c: &mut Criterion) {
    if subject() != Subject::Gpu {
        load(c, Cpu::<f32>::open(&common::settings(Dtype::BF16)));
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
