//! Every operation, a file each, of the names of `backend/ops`: `cargo bench --bench ops -- rms_norm`.
//!
//! Elements are floating-point operations; bytes are those that must be read and written.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod activation;
mod adamw;
mod attention;
mod cross_entropy;
mod distillation;
mod edit;
mod embed;
mod layer_norm;
mod linear;
mod lora;
mod position;
mod rms_norm;
mod rope;
mod rows;
mod scale;

use criterion::{Criterion, criterion_group, criterion_main};
use llamaprobe::arch::Dtype;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings};

/// Rows of the pack of operations that memory bounds.
const ROWS: usize = 256;

fn every_operation<B: Backend>(c: &mut Criterion, mut b: B) {
    let b = &mut b;
    activation::bench(c, b);
    adamw::bench(c, b);
    attention::bench(c, b);
    cross_entropy::bench(c, b);
    distillation::bench(c, b);
    edit::bench(c, b);
    embed::bench(c, b);
    layer_norm::bench(c, b);
    linear::bench(c, b);
    lora::bench(c, b);
    position::bench(c, b);
    rms_norm::bench(c, b);
    rope::bench(c, b);
    rows::bench(c, b);
    scale::bench(c, b);
}

fn all(c: &mut Criterion) {
    on_devices!(c, every_operation);
    let settings = common::settings(Dtype::F32);
    if common::subject() == common::Subject::Cpu && settings.isa.has_pairs() {
        let mut split = Cpu::<f32>::open(&CpuSettings { split: true, ..settings });
        linear::bench(c, &mut split);
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
