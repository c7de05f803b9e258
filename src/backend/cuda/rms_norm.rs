//! RMS norm.

use super::Cuda;
use super::fused::{ResidualSum, RmsNormGradient};
use super::launch::{Kernel, LaunchDims, acc, acc_at, compute, compute_ptr, float, int};
use super::lora_launch::OfGradient;
use super::projections::Projections;
use crate::arch::RmsWeight;
use crate::backend::ops::{
    Op, RmsNormBwd, RmsNormBwdWeight, RmsNormComputeBwd, RmsNormComputeBwdWeight, RmsNormComputeFwd, RmsNormFwd,
    RmsNormOps,
};

const FILE: &str = "rms_norm";

/// The form's number in the kernels.
fn form(weight: RmsWeight) -> usize {
    match weight {
        RmsWeight::Rounded => 0,
        RmsWeight::Exact => 1,
        RmsWeight::OnePlus => 2,
    }
}

impl RmsNormOps for Cuda {
    /// A residual sum that was asked for just before is made by the same kernel.
    fn rms_norm_fwd(&mut self, op: RmsNormFwd<'_, Self>) {
        self.begin(&op);
        let (name, dims) = (RmsNormFwd::<Self>::NAME, LaunchDims::norm(op.rows, op.width));
        let (out, rstd, x, weight) = (compute(op.out), acc(op.rstd), acc(op.x), compute(op.weight.dense()));
        let sizes = [int(op.rows), int(op.width), float(op.eps), int(form(op.form))];
        let (read, len) = (op.x.ptr(0), op.rows * op.width);
        let made = |sum: &ResidualSum| (sum.out, sum.len) == (read, len);
        let fused = self.cx.fuse(made, |residual, cx| {
            let [sum, a, b] = residual.args();
            let args = [&[sum, out, rstd, a, b, weight], &sizes[..]].concat();
            cx.launch(name, Kernel::new(FILE, "residual_rms_norm_fwd"), dims, &args);
        });
        if fused {
            return;
        }
        let args = [&[out, rstd, x, weight], &sizes[..]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), dims, &args);
    }

    /// What projections just before add up is rounded by their kernel, where all is added there. The next operation may round the
    /// gradient in the same kernel.
    fn rms_norm_bwd(&mut self, op: RmsNormBwd<'_, Self>) {
        self.begin(&op);
        let RmsNormBwd { d_x, rows, width, .. } = op;
        let (from, len, size) = (op.d_out.ptr(0), rows * width, self.cx.dtype.size());
        let made = |group: &Projections| group.makes_rounded_gradient(from, len, size);
        let rounded = OfGradient::Rounded(compute_ptr(from));
        let (kernel, d_out) = match self.cx.fuse(made, |group, cx| group.launch(cx, Some(rounded))) {
            true => ("rms_norm_bwd_rounded", compute_ptr(from)),
            false => ("rms_norm_bwd", acc(op.d_out)),
        };
        let inputs = [d_out, acc(op.x), acc(op.rstd), compute(op.weight.dense())];
        let rest = [&inputs[..], &[int(rows), int(width), int(form(op.form))]].concat();
        let work = RmsNormGradient { kernel, d_x: d_x.ptr(0), rows, width, rest };
        self.cx.defer(RmsNormBwd::<Self>::NAME, &[&[acc(d_x)], &inputs[..]].concat(), work);
    }

    fn rms_norm_bwd_weight(&mut self, op: RmsNormBwdWeight<'_, Self>) {
        self.begin(&op);
        let name = RmsNormBwdWeight::<Self>::NAME;
        let rows = [acc_at(op.d_weight, op.offset), acc(op.d_out), acc(op.x), acc(op.rstd)];
        let args = [&rows[..], &[int(op.rows), int(op.width)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::columns(op.width), &args);
    }

    fn rms_norm_compute_fwd(&mut self, op: RmsNormComputeFwd<'_, Self>) {
        self.begin(&op);
        let name = RmsNormComputeFwd::<Self>::NAME;
        let rows = [compute(op.out), acc(op.rstd), compute(op.x), compute(op.weight.dense())];
        let args = [&rows[..], &[int(op.rows), int(op.width), float(op.eps), int(form(op.form))]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::norm(op.rows, op.width), &args);
    }

    fn rms_norm_compute_bwd(&mut self, op: RmsNormComputeBwd<'_, Self>) {
        self.begin(&op);
        let name = RmsNormComputeBwd::<Self>::NAME;
        let rows = [compute(op.d_x), compute(op.x), acc(op.rstd), compute(op.weight.dense())];
        let args = [&rows[..], &[int(op.rows), int(op.width), int(form(op.form))]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::norm(op.rows, op.width), &args);
    }

    fn rms_norm_compute_bwd_weight(&mut self, op: RmsNormComputeBwdWeight<'_, Self>) {
        self.begin(&op);
        let name = RmsNormComputeBwdWeight::<Self>::NAME;
        let rows = [acc_at(op.d_weight, op.offset), compute(op.d_out), compute(op.x), acc(op.rstd)];
        let args = [&rows[..], &[int(op.rows), int(op.width)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::columns(op.width), &args);
    }
}
