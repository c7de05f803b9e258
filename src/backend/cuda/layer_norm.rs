//! Layer norm.

use super::Cuda;
use super::launch::{Kernel, LaunchDims, acc, acc_at, compute, float, int};
use crate::backend::ops::{LayerNormBwd, LayerNormBwdAffine, LayerNormFwd, LayerNormOps, Op};

const FILE: &str = "layer_norm";

impl LayerNormOps for Cuda {
    fn layer_norm_fwd(&mut self, op: LayerNormFwd<'_, Self>) {
        self.begin(&op);
        let name = LayerNormFwd::<Self>::NAME;
        let rows = [compute(op.out), acc(op.mean), acc(op.rstd), acc(op.x)];
        let affine = [compute(op.weight.dense()), compute(op.bias.dense())];
        let args = [&rows[..], &affine, &[int(op.rows), int(op.width), float(op.eps)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::norm(op.rows, op.width), &args);
    }

    fn layer_norm_bwd(&mut self, op: LayerNormBwd<'_, Self>) {
        self.begin(&op);
        let name = LayerNormBwd::<Self>::NAME;
        let rows = [acc(op.d_x), acc(op.d_out), acc(op.x), acc(op.mean), acc(op.rstd)];
        let args = [&rows[..], &[compute(op.weight.dense()), int(op.rows), int(op.width)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::norm(op.rows, op.width), &args);
    }

    fn layer_norm_bwd_affine(&mut self, op: LayerNormBwdAffine<'_, Self>) {
        self.begin(&op);
        let name = LayerNormBwdAffine::<Self>::NAME;
        let rows = [acc_at(op.d_affine, op.offset), acc(op.d_out), acc(op.x), acc(op.mean), acc(op.rstd)];
        let args = [&rows[..], &[int(op.rows), int(op.width)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::columns(op.width), &args);
    }
}
