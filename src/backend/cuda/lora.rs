//! LoRA over stacked runs: those of projections that share an input go through launches together.

use super::Cuda;
use super::launch::{acc, compute};
use super::lora_launch::{self, Lora, Operands};
use super::projections::{Projections, Shared};
use crate::backend::ops::{LoraBwd, LoraDelta, LoraDeltaBwd, LoraFwd, LoraOps, Op};

impl LoraOps for Cuda {
    fn lora_fwd(&mut self, op: LoraFwd<'_, Self>) {
        self.begin(&op);
        let (shared, y) = (Shared::Input(op.x.ptr(0)), op.y.map(|y| compute(y)));
        let (x, params, xa) = (compute(op.x), acc(op.params), acc(op.xa));
        let operands = Operands { x, params, d_params: None, accumulate: false, xa, y };
        if let Some(lora) = Lora::new(&mut self.cx, operands, op.pack, op.site, op.dropout) {
            Projections::add_lora(&mut self.cx, LoraFwd::<Self>::NAME, shared, lora);
        }
    }

    fn lora_bwd(&mut self, op: LoraBwd<'_, Self>) {
        self.begin(&op);
        let (shared, d_params) = (Shared::InputGradient(op.d_x.map(|d_x| d_x.ptr(0))), Some(acc(op.d_params)));
        let y = Some(compute(op.d_y));
        let (x, params, xa, accumulate) = (compute(op.x), acc(op.params), acc(op.xa), op.accumulate);
        let operands = Operands { x, params, d_params, accumulate, xa, y };
        if let Some(lora) = Lora::new(&mut self.cx, operands, op.pack, op.site, op.dropout) {
            Projections::add_lora(&mut self.cx, LoraBwd::<Self>::NAME, shared, lora);
        }
    }

    fn lora_delta(&mut self, op: LoraDelta<'_, Self>) {
        self.begin(&op);
        let (name, cx) = (LoraDelta::<Self>::NAME, &mut self.cx);
        cx.zero_acc(name, op.out, op.pack.len() * op.site.output);
        lora_launch::delta(cx, name, [acc(op.out), acc(op.xa), acc(op.params)], op.pack, op.site);
    }

    fn lora_delta_bwd(&mut self, op: LoraDeltaBwd<'_, Self>) {
        self.begin(&op);
        let (name, cx) = (LoraDeltaBwd::<Self>::NAME, &mut self.cx);
        // No input is read, of which there are no columns.
        let (x, d_params) = (compute(op.d_y), Some(acc(op.d_params)));
        let (params, xa, accumulate) = (acc(op.params), acc(op.xa), true);
        let operands = Operands { x, params, d_params, accumulate, xa, y: Some(x) };
        let Some(lora) = Lora::new(cx, operands, op.pack, op.site, None) else { return };
        cx.zero_acc(name, op.d_xa, op.pack.len() * op.site.rank);
        lora_launch::backward_b(cx, name, &lora, acc(op.d_xa));
    }
}
