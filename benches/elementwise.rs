//! Operations that memory bounds: norms, positions, rotation, activations, residual. Bytes are those that must be read and written.
#![allow(missing_docs, reason = "the macros of the harness")]

#[macro_use]
mod common;

use common::{Shape, bytes, flat, real, shapes, time, weight, wide};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Activation, Backend};

/// Rows of the pack.
const ROWS: usize = 256;

fn rms_norm<B: Backend>(c: &mut Criterion, b: &mut B, Shape { name, width, .. }: Shape) {
    let mut group = common::group(c, &format!("rms_norm/{}", b.name()));
    let len = ROWS * width;
    let (mut out, mut rstd, x, gain) = (real(b, len), wide(b, ROWS), wide(b, len), weight(b, width));
    group.throughput(Throughput::Bytes(bytes(b, len, len)));
    group.bench("fwd", name, |bench| {
        time(bench, b, |b| b.rms_norm_fwd(&mut out, &mut rstd, &x, &gain, ROWS, width, 1e-5));
    });
    let (mut d_x, d_out) = (wide(b, len), wide(b, len));
    group.throughput(Throughput::Bytes(bytes(b, 4 * len, 0)));
    group.bench("bwd", name, |bench| {
        time(bench, b, |b| b.rms_norm_bwd(&mut d_x, &d_out, &x, &rstd, &gain, ROWS, width));
    });
    group.finish();
}

fn layer_norm<B: Backend>(c: &mut Criterion, b: &mut B, Shape { name, width, .. }: Shape) {
    let mut group = common::group(c, &format!("layer_norm/{}", b.name()));
    let len = ROWS * width;
    let (mut out, x, gain, shift) = (real(b, len), wide(b, len), weight(b, width), weight(b, width));
    let [mut mean, mut rstd] = [(); 2].map(|()| wide(b, ROWS));
    group.throughput(Throughput::Bytes(bytes(b, len, len)));
    group.bench("fwd", name, |bench| {
        time(bench, b, |b| b.layer_norm_fwd(&mut out, &mut mean, &mut rstd, &x, &gain, &shift, ROWS, width, 1e-5));
    });
    let (mut d_x, d_out) = (wide(b, len), wide(b, len));
    group.throughput(Throughput::Bytes(bytes(b, 4 * len, 0)));
    group.bench("bwd", name, |bench| {
        time(bench, b, |b| b.layer_norm_bwd(&mut d_x, &d_out, &x, &mean, &rstd, &gain, ROWS, width));
    });
    group.finish();
}

fn position<B: Backend>(c: &mut Criterion, b: &mut B, Shape { name, width, .. }: Shape) {
    let mut group = common::group(c, &format!("position/{}", b.name()));
    let (mut x, table) = (wide(b, ROWS * width), weight(b, (ROWS + 2) * width));
    let pack = b.pack(&flat(&[ROWS], None)).expect("memory for a bench");
    group.throughput(Throughput::Bytes(bytes(b, 2 * ROWS * width, ROWS * width)));
    group.bench("fwd", name, |bench| {
        time(bench, b, |b| b.position_fwd(&mut x, &pack, &table, 2, width));
    });
    group.finish();
}

fn rope<B: Backend>(c: &mut Criterion, b: &mut B, shape: Shape) {
    let mut group = common::group(c, &format!("rope/{}", b.name()));
    let (heads, head_dim, len) = (shape.heads, shape.width / shape.heads, ROWS * shape.width);
    let (mut out, x, cos_sin) = (real(b, len), real(b, len), wide(b, ROWS * head_dim));
    let pack = b.pack(&flat(&[ROWS], None)).expect("memory for a bench");
    group.throughput(Throughput::Bytes(bytes(b, 0, 2 * len)));
    group.bench("fwd", shape.name, |bench| {
        time(bench, b, |b| b.rope_fwd(&mut out, &x, &pack, &cos_sin, heads, head_dim));
    });
    group.bench("bwd", shape.name, |bench| {
        time(bench, b, |b| b.rope_bwd(&mut out, &pack, &cos_sin, heads, head_dim));
    });
    group.finish();
}

fn swiglu<B: Backend>(c: &mut Criterion, b: &mut B, shape: Shape) {
    let mut group = common::group(c, &format!("swiglu/{}", b.name()));
    let len = ROWS * shape.feed_forward;
    let [mut act, gate, up, mut d_gate] = [(); 4].map(|()| real(b, len));
    group.throughput(Throughput::Bytes(bytes(b, 0, 3 * len)));
    group.bench("fwd", shape.name, |bench| {
        time(bench, b, |b| b.swiglu_fwd(&mut act, &gate, &up, len));
    });
    let d_act = wide(b, len);
    group.throughput(Throughput::Bytes(bytes(b, len, 4 * len)));
    group.bench("bwd", shape.name, |bench| {
        time(bench, b, |b| b.swiglu_bwd(&mut d_gate, &mut act, &d_act, &gate, &up, len));
    });
    group.finish();
}

fn activation<B: Backend>(c: &mut Criterion, b: &mut B, shape: Shape) {
    let mut group = common::group(c, &format!("activation/{}", b.name()));
    let len = ROWS * shape.feed_forward;
    let ([mut act, x, mut d_x], d_act) = ([(); 3].map(|()| real(b, len)), wide(b, len));
    for f in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh] {
        group.throughput(Throughput::Bytes(bytes(b, 0, 2 * len)));
        group.bench(&format!("fwd {f:?}"), shape.name, |bench| {
            time(bench, b, |b| b.activation_fwd(&mut act, &x, f, len));
        });
        group.throughput(Throughput::Bytes(bytes(b, len, 2 * len)));
        group.bench(&format!("bwd {f:?}"), shape.name, |bench| {
            time(bench, b, |b| b.activation_bwd(&mut d_x, &d_act, &x, f, len));
        });
    }
    group.finish();
}

fn residual<B: Backend>(c: &mut Criterion, b: &mut B, shape: Shape) {
    let mut group = common::group(c, &format!("residual/{}", b.name()));
    let len = ROWS * shape.width;
    let (mut out, x, y) = (wide(b, len), wide(b, len), real(b, len));
    group.throughput(Throughput::Bytes(bytes(b, 2 * len, len)));
    group.bench("fwd", shape.name, |bench| {
        time(bench, b, |b| b.residual_fwd(&mut out, &x, &y, len));
    });
    group.finish();
}

fn on<B: Backend>(c: &mut Criterion, mut b: B) {
    for &shape in shapes() {
        rms_norm(c, &mut b, shape);
        layer_norm(c, &mut b, shape);
        position(c, &mut b, shape);
        rope(c, &mut b, shape);
        swiglu(c, &mut b, shape);
        activation(c, &mut b, shape);
        residual(c, &mut b, shape);
    }
}

fn all(c: &mut Criterion) {
    on_devices!(c, on);
}

criterion_group!(benches, all);
criterion_main!(benches);
