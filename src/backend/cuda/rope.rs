//! Rotary position embedding.

use super::Cuda;
use super::launch::{Kernel, LaunchDims, acc, compute, int, table};
use crate::backend::ops::{Op, RopeBwd, RopeFwd, RopeOps};

const FILE: &str = "rope";

impl RopeOps for Cuda {
    fn rope_fwd(&mut self, op: RopeFwd<'_, Self>) {
        self.begin(&op);
        let (name, pack) = (RopeFwd::<Self>::NAME, op.pack);
        let rows = [compute(op.out), compute(op.x), table(pack.positions()), acc(op.cos_sin)];
        let args = [&rows[..], &[int(pack.len()), int(op.heads), int(op.head_dim), int(op.rotary_dim)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(pack.len()), &args);
    }

    fn rope_bwd(&mut self, op: RopeBwd<'_, Self>) {
        self.begin(&op);
        let (name, pack) = (RopeBwd::<Self>::NAME, op.pack);
        let rows = [compute(op.d_x), table(pack.positions()), acc(op.cos_sin)];
        let args = [&rows[..], &[int(pack.len()), int(op.heads), int(op.head_dim), int(op.rotary_dim)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(pack.len()), &args);
    }
}
