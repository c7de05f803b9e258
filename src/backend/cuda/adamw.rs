//! Gradient norm and AdamW, over all runs at once.

use super::geometry::{blocks, blocks2};
use super::launch::{Arg, Kernel, LaunchDims, Param, acc, acc_ptr, int, long};
use super::{Cuda, rows};
use crate::backend::Len;
use crate::backend::ops::{Adamw, AdamwOps, AdamwStep, CheckFinite, GradNorm, Op, RefreshWeight};
use crate::backend::scratch::{NORM_PARTS, STEP_FIELDS};

const FILE: &str = "adamw";
/// Elements of a run that a block moves.
const ELEMENTS: usize = 1024;

/// A run's step as the kernel reads it, computed in `f64`.
fn step_fields(step: &AdamwStep) -> [f32; STEP_FIELDS] {
    if !step.active {
        return [0.0; STEP_FIELDS];
    }
    let AdamwStep {
        learning_rate, fast_learning_rate, beta1, beta2, epsilon, weight_decay, max_grad_norm, step, ..
    } = *step;
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
        1.0 - fast_learning_rate * weight_decay,
        -fast_learning_rate / (1.0 - beta1.powf(t)),
    ]
    .map(|x| x as f32)
}

impl AdamwOps for Cuda {
    fn grad_norm(&mut self, op: GradNorm<'_, Self>) {
        self.begin(&op);
        let name = GradNorm::<Self>::NAME;
        let Some(parts) = self.cx.scratch(name, op.runs * NORM_PARTS * size_of::<f32>()) else { return };
        let args = [acc_ptr(parts), acc(op.d_params), long(op.stride)];
        let dims = LaunchDims::new(blocks2(NORM_PARTS, op.runs));
        self.cx.launch(name, Kernel::new(FILE, "grad_norm_parts"), dims, &args);
        let args = [acc(op.norm_sq), acc_ptr(parts), int(NORM_PARTS)];
        let dims = LaunchDims { grid: blocks(op.runs), block: 32, shared: 0 };
        self.cx.launch(name, Kernel::new(FILE, name), dims, &args);
    }

    fn check_finite(&mut self, op: CheckFinite<'_, Self>) {
        self.begin(&op);
        let name = CheckFinite::<Self>::NAME;
        if op.len > 0 {
            let args = [acc(op.stop), acc(op.values), int(op.len)];
            self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::new(blocks(1)), &args);
        }
    }

    fn adamw(&mut self, op: Adamw<'_, Self>) {
        self.begin(&op);
        let (name, cx) = (Adamw::<Self>::NAME, &mut self.cx);
        let steps: Vec<f32> = op.steps.iter().flat_map(step_fields).collect();
        let Some(at) = cx.scratch(name, size_of_val(steps.as_slice())) else { return };
        let written = cx.write(name, at, bytemuck::cast_slice(&steps));
        if cx.or_fail(written).is_none() {
            return;
        }
        let fast = op.fast.map_or(Arg::null(Param::Acc), acc);
        let moved = [acc(op.params), acc(op.m), acc(op.v)];
        let read = [acc(op.d_params), acc(op.norm_sq), acc(op.stop), acc_ptr(at), fast, long(op.stride)];
        let dims = LaunchDims::new(blocks2(op.stride.div_ceil(ELEMENTS), op.steps.len()));
        cx.launch(name, Kernel::new(FILE, name), dims, &[&moved[..], &read].concat());
    }

    fn refresh_weight(&mut self, op: RefreshWeight<'_, Self>) {
        self.begin(&op);
        let len = op.weight.len();
        rows::cast_from(&mut self.cx, RefreshWeight::<Self>::NAME, op.weight.dense(), (op.params, op.offset), len);
    }
}
