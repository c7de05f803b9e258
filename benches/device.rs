//! What a GPU does at most (the ceilings of the CPU are in `ceiling`), and how captures leave a device. Bytes are
//! those that must be read and written, elements floating-point operations.
//!
//! `--predict` prints what the goals for a GPU would take on GPUs that are not here.
#![allow(missing_docs, reason = "the macros of the harness")]

mod common;

use common::{Shape, Subject, compute, shapes, subject, time, weight};
#[cfg(feature = "cuda")]
use common::{acc, bytes};
use criterion::{Criterion, Throughput, criterion_group};
use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use llamaprobe::backend::ops::KvAppend;
use llamaprobe::backend::ops::{LinearDims, LinearFwd};
use llamaprobe::backend::{Backend, Tensor};

/// Layers of a pass with captures.
const LAYERS: usize = 8;
/// Rows of its pack.
const ROWS: usize = 512;

#[cfg(feature = "cuda")]
fn ceilings<B: Backend>(c: &mut Criterion, mut b: B) {
    let mut group = common::group(c, &format!("ceiling/{}", b.name()));
    let (len, width) = match subject() {
        Subject::Tiny => (1 << 16, 64),
        _ => (1 << 28, 8192),
    };
    let (mut to, from) = (compute(&mut b, len), compute(&mut b, len));
    group.throughput(Throughput::Bytes(bytes(&b, 0, 2 * len)));
    group.bench("copy", "", |bench| {
        time(bench, &mut b, |b| b.kv_append(KvAppend { cache: &mut to, to: 0, x: &from, from: 0..len, width: 1 }));
    });
    drop((to, from));
    let dims = LinearDims { rows: width, input: width, output: width };
    let (mut out, x, weight) =
        (compute(&mut b, width * width), compute(&mut b, width * width), weight(&mut b, width * width));
    group.throughput(Throughput::Elements(2 * (width * width * width) as u64));
    group.bench("product", "", |bench| {
        time(bench, &mut b, |b| {
            b.linear_fwd(LinearFwd { out: &mut out, x: &x, weight: &weight, bias: None, dims });
        });
    });
    let mut buffer = acc(&mut b, len / 4);
    let mut host = vec![B::Element::default(); len / 4];
    group.throughput(Throughput::Bytes(bytes(&b, len / 4, 0)));
    group.bench("to the device", "", |bench| {
        time(bench, &mut b, |b| b.upload(&mut buffer, 0, &host).expect("the device works"));
    });
    group.bench("to the host", "", |bench| {
        time(bench, &mut b, |b| b.download(&mut host, &buffer, 0).expect("the device works"));
    });
    group.finish();
}

/// Passes of square products with nothing, a row or all rows captured after each of them.
fn captures<B: Backend>(c: &mut Criterion, way: &str, mut b: B) {
    let mut group = common::group(c, &format!("capture/{}", b.name()));
    let chosen = shapes().iter().filter(|shape| subject() != Subject::Cpu || shape.width < 1000);
    for &Shape { name, width, .. } in chosen {
        let dims = LinearDims { rows: ROWS, input: width, output: width };
        let (mut x, mut out, weight) =
            (compute(&mut b, ROWS * width), compute(&mut b, ROWS * width), weight(&mut b, width * width));
        for (what, rows) in [("nothing", vec![]), ("last row", vec![ROWS - 1]), ("all rows", (0..ROWS).collect())] {
            group.throughput(Throughput::Elements(2 * (LAYERS * ROWS * width * width) as u64));
            group.bench(way, format!("{name}/{what}"), |bench| {
                time(bench, &mut b, |b| {
                    let mut captured = Vec::new();
                    for _ in 0..LAYERS {
                        b.linear_fwd(LinearFwd { out: &mut out, x: &x, weight: &weight, bias: None, dims });
                        if !rows.is_empty() {
                            captured.push(b.capture(Tensor::Compute(&out), &rows, width));
                        }
                        std::mem::swap(&mut x, &mut out);
                    }
                    b.sync().expect("the device works");
                });
            });
        }
    }
    group.finish();
}

fn all(c: &mut Criterion) {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = common::gpu::open() {
        ceilings(c, gpu);
        let gpu = llamaprobe::backend::cuda::Cuda::open(0, Dtype::BF16, &common::gpu::settings());
        captures(c, "copied", gpu.expect("the GPU of the other benches"));
        return;
    }
    if subject() != Subject::Gpu {
        captures(c, "in place", Cpu::<f32>::open(&common::settings(Dtype::F32)));
    }
}

criterion_group!(benches, all);

fn main() {
    if std::env::args().any(|arg| arg == "--predict") {
        return common::predicted::print();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
