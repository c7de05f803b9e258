//! Distances to a teacher.

use super::Cuda;
use super::launch::{Kernel, LaunchDims, acc, acc_at, compute, float, int};
use crate::backend::ops::{DistillationOps, KlLoss, Op, StateLoss};

const FILE: &str = "distillation";

impl DistillationOps for Cuda {
    fn state_loss(&mut self, op: StateLoss<'_, Self>) {
        self.begin(&op);
        let name = StateLoss::<Self>::NAME;
        let buffers = [acc(op.loss), acc(op.d_x), acc(op.x), acc(op.target), acc(op.row_weights)];
        let args = [&buffers[..], &[int(op.rows), int(op.width)]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(op.rows), &args);
    }

    fn kl_loss(&mut self, op: KlLoss<'_, Self>) {
        self.begin(&op);
        let name = KlLoss::<Self>::NAME;
        let args = [
            acc_at(op.loss, op.from),
            compute(op.d_logits),
            acc(op.logits),
            acc(op.teacher),
            acc_at(op.row_weights, op.from),
            int(op.rows),
            int(op.vocab),
            float(op.temperature),
            float(1.0 / op.temperature),
            float(op.softcap.map_or(0.0, |cap| 1.0 / cap)),
        ];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(op.rows), &args);
    }
}
