//! Gradient norm and AdamW, over all runs at once.

use super::context::{Context, Kernel, Shape};
use super::geometry::{blocks, blocks2};
use super::launch::{BLOCK, floats, int, long, wide};
use super::memory::{Buffer, needs};
use crate::backend::AdamwStep;

const FILE: &str = "adamw";
/// Parts into which a run's gradient is cut to be summed.
pub const NORM_PARTS: usize = 64;
/// Elements of a run that a block moves.
const ELEMENTS: usize = 1024;
/// Numbers that say what a run's step is.
pub const NUMBERS: usize = 10;

/// See [`Backend::grad_norm`](crate::backend::Backend::grad_norm).
pub fn grad_norm(cx: &mut Context, norm_sq: &Buffer<f32>, d_params: &Buffer<f32>, runs: usize, stride: usize) {
    let op = "grad_norm";
    norm_sq.need(op, "norm_sq", runs);
    d_params.need(op, "d_params", runs * stride);
    let Some(parts) = cx.scratch(op, runs * NORM_PARTS * size_of::<f32>()) else { return };
    let shape = Shape { grid: blocks2(NORM_PARTS, runs), block: BLOCK, shared: 0 };
    cx.launch(op, Kernel::new(FILE, "grad_norm_parts"), shape, &[floats(parts), wide(d_params), long(stride)]);
    let shape = Shape { grid: blocks(runs), block: 32, shared: 0 };
    cx.launch(op, Kernel::new(FILE, op), shape, &[wide(norm_sq), floats(parts), int(NORM_PARTS)]);
}

/// See [`Backend::check_finite`](crate::backend::Backend::check_finite).
pub fn check_finite(cx: &mut Context, stop: &Buffer<f32>, values: &Buffer<f32>, len: usize) {
    let op = "check_finite";
    stop.need(op, "stop", 1);
    values.need(op, "values", len);
    if len > 0 {
        let shape = Shape { grid: blocks(1), block: BLOCK, shared: 0 };
        cx.launch(op, Kernel::new(FILE, op), shape, &[wide(stop), wide(values), int(len)]);
    }
}

/// A run's step as the kernel reads it, computed in `f64`.
fn numbers(step: &AdamwStep) -> [f32; NUMBERS] {
    if !step.active {
        return [0.0; NUMBERS];
    }
    let AdamwStep { learning_rate, beta1, beta2, epsilon, weight_decay, max_grad_norm, step, .. } = *step;
    let t = step as f64;
    [
        1.0,
        1.0 - learning_rate * weight_decay,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        (1.0 - beta2.powf(t)).sqrt(),
        epsilon,
        -learning_rate / (1.0 - beta1.powf(t)),
        max_grad_norm.unwrap_or(-1.0),
    ]
    .map(|x| x as f32)
}

/// See [`Backend::adamw`](crate::backend::Backend::adamw).
#[allow(clippy::too_many_arguments)]
pub fn adamw(
    cx: &mut Context,
    params: &Buffer<f32>,
    m: &Buffer<f32>,
    v: &Buffer<f32>,
    d_params: &Buffer<f32>,
    norm_sq: &Buffer<f32>,
    stop: &Buffer<f32>,
    steps: &[AdamwStep],
    stride: usize,
) {
    let op = "adamw";
    let (runs, len) = (steps.len(), steps.len() * stride);
    needs(op, len, &[("params", params), ("m", m), ("v", v), ("d_params", d_params)]);
    norm_sq.need(op, "norm_sq", runs);
    stop.need(op, "stop", 1);
    for step in steps.iter().filter(|step| step.active) {
        assert!(step.step > 0, "{op}: step is {}, must be at least 1", step.step);
    }
    let numbers: Vec<f32> = steps.iter().flat_map(numbers).collect();
    let Some(at) = cx.scratch(op, size_of_val(numbers.as_slice())) else { return };
    let written = cx.write(op, at, bytemuck::cast_slice(&numbers));
    if cx.keep(written).is_none() {
        return;
    }
    let shape = Shape { grid: blocks2(stride.div_ceil(ELEMENTS), runs), block: BLOCK, shared: 0 };
    let args = [wide(params), wide(m), wide(v), wide(d_params), wide(norm_sq), wide(stop), floats(at), long(stride)];
    cx.launch(op, Kernel::new(FILE, op), shape, &args);
}
