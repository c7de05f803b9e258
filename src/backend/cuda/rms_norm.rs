//! RMS norm.

use super::Cuda;
use super::launch::{Kernel, LaunchDims, acc, acc_at, compute, float, int};
use crate::backend::ops::{Op, RmsNormBwd, RmsNormBwdWeight, RmsNormFwd, RmsNormOps};

const FILE: &str = "rms_norm";

impl RmsNormOps for Cuda {
    /// A residual sum that was asked for just before, and that nobody has read, is made by the same kernel.
    fn rms_norm_fwd(&mut self, op: RmsNormFwd<'_, Self>) {
        op.check();
        let (name, dims) = (RmsNormFwd::<Self>::NAME, LaunchDims::rows(op.rows));
        let (out, rstd, x, weight) = (compute(op.out), acc(op.rstd), acc(op.x), compute(op.weight));
        let sizes = [int(op.rows), int(op.width), float(op.eps)];
        if let Some([a, b]) = self.cx.take_residual(op.x, op.rows * op.width) {
            let args = [&[x, out, rstd, a, b, weight], &sizes[..]].concat();
            self.cx.launch(name, Kernel::new(FILE, "residual_rms_norm_fwd"), dims, &args);
            return;
        }
        let args = [&[out, rstd, x, weight], &sizes[..]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), dims, &args);
    }

    fn rms_norm_bwd(&mut self, op: RmsNormBwd<'_, Self>) {
        op.check();
        let name = RmsNormBwd::<Self>::NAME;
        let rows = [acc(op.d_x), acc(op.d_out), acc(op.x), acc(op.rstd)];
        let args = [&rows[..], &[compute(op.weight), int(op.rows), int(op.width)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(op.rows), &args);
    }

    fn rms_norm_bwd_weight(&mut self, op: RmsNormBwdWeight<'_, Self>) {
        op.check();
        let name = RmsNormBwdWeight::<Self>::NAME;
        let rows = [acc_at(op.d_weight, op.offset), acc(op.d_out), acc(op.x), acc(op.rstd)];
        let args = [&rows[..], &[int(op.rows), int(op.width)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::columns(op.width), &args);
    }
}
