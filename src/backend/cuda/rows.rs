//! Rows moved, converted and added.

use super::Cuda;
use super::context::Context;
use super::fused::{ResidualSum, RmsNormGradient};
use super::launch::{Arg, Kernel, LaunchDims, acc, acc_at, compute, int, long, table};
use super::memory::{AccBuffer, ComputeBuffer};
use super::queue::Action;
use crate::backend::DeviceIndex;
use crate::backend::ops::{
    Cast, GatherAcc, GatherCompute, KvAppend, Op, ResidualFwd, RowOps, ScatterAdd, ScatterAddCompute, Widen, Zero,
};
use crate::backend::{Buffers, Len};

/// The file of the kernels that move rows.
pub const FILE: &str = "rows";

/// `out [len] = x` from element `offset` on, rounded.
pub fn cast_from(
    cx: &mut Context,
    op: &'static str,
    out: &ComputeBuffer,
    (x, offset): (&AccBuffer, usize),
    len: usize,
) {
    let args = [compute(out), acc_at(x, offset), long(len)];
    cx.launch(op, Kernel::new(FILE, "cast"), LaunchDims::elements(len), &args);
}

impl Cuda {
    fn gather(&mut self, op: &'static str, [out, x]: [Arg; 2], rows: &<Self as Buffers>::Index, width: usize) {
        let args = [out, x, table(rows.ptr()), int(rows.len()), int(width)];
        self.cx.launch(op, Kernel::new(FILE, op), LaunchDims::rows(rows.len()), &args);
    }
}

impl RowOps for Cuda {
    fn zero(&mut self, op: Zero<'_, Self>) {
        self.begin(&op);
        self.cx.zero_acc(Zero::<Self>::NAME, op.x, op.x.len());
    }

    /// What a norm's backward has just made is rounded by the same kernel.
    fn cast(&mut self, op: Cast<'_, Self>) {
        self.begin(&op);
        let (x, len) = (op.x.ptr(0), op.len);
        let made = |norm: &RmsNormGradient| (norm.d_x, norm.rows * norm.width) == (x, len);
        if self.cx.fuse(made, |norm, cx| norm.launch(cx, Some(op.out.ptr(0)))) {
            return;
        }
        cast_from(&mut self.cx, Cast::<Self>::NAME, op.out, (op.x, 0), op.len);
    }

    fn widen(&mut self, op: Widen<'_, Self>) {
        self.begin(&op);
        let args = [acc(op.out), compute(op.x), long(op.len)];
        self.cx.launch(Widen::<Self>::NAME, Kernel::new(FILE, "cast_wide"), LaunchDims::elements(op.len), &args);
    }

    /// The next operation may be a norm that makes the sum in its own kernel.
    fn residual_fwd(&mut self, op: ResidualFwd<'_, Self>) {
        self.begin(&op);
        let sum = ResidualSum { out: op.out.ptr(0), a: op.a.ptr(0), b: op.b.ptr(0), len: op.len };
        self.cx.defer(ResidualFwd::<Self>::NAME, &sum.args(), sum);
    }

    fn gather_compute(&mut self, op: GatherCompute<'_, Self>) {
        self.begin(&op);
        self.gather(GatherCompute::<Self>::NAME, [compute(op.out), compute(op.x)], op.rows, op.width);
    }

    fn gather_acc(&mut self, op: GatherAcc<'_, Self>) {
        self.begin(&op);
        self.gather(GatherAcc::<Self>::NAME, [acc(op.out), acc(op.x)], op.rows, op.width);
    }

    fn scatter_add(&mut self, op: ScatterAdd<'_, Self>) {
        self.begin(&op);
        let name = ScatterAdd::<Self>::NAME;
        let groups = op.rows.groups();
        let [ids, starts, order] = groups.tables();
        let args = [acc(op.d_x), acc(op.d_out), ids, starts, order, int(groups.count), int(op.width)];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(groups.count), &args);
    }

    fn scatter_add_compute(&mut self, op: ScatterAddCompute<'_, Self>) {
        self.begin(&op);
        let name = ScatterAddCompute::<Self>::NAME;
        let groups = op.rows.groups();
        let [ids, starts, order] = groups.tables();
        let args = [compute(op.d_x), acc(op.d_out), ids, starts, order, int(groups.count), int(op.width)];
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(groups.count), &args);
    }

    fn kv_append(&mut self, op: KvAppend<'_, Self>) {
        self.begin(&op);
        let bytes = op.from.len() * op.width * op.x.element_size();
        if bytes > 0 {
            let (to, from) = (op.cache.ptr(op.to * op.width), op.x.ptr(op.from.start * op.width));
            self.cx.push(KvAppend::<Self>::NAME, Action::Copy { to, from, bytes });
        }
    }
}
