//! Edits of rows.

use super::Cuda;
use super::launch::{Kernel, LaunchDims, acc, compute, float, int, table};
use super::memory::AccBuffer;
use super::pack::Index;
use crate::backend::ops::{EditBwd, EditFwd, EditMap, EditOps, Op};
use crate::backend::{DeviceIndex, TensorMut};

const FILE: &str = "edit";

impl Cuda {
    fn edit(
        &mut self,
        op: &'static str,
        x: TensorMut<'_, Self>,
        (values, [rows, value_rows], width): (&AccBuffer, [&Index; 2], usize),
        (EditMap { keep, along }, add): (EditMap, f64),
    ) {
        let (kernel, x) = match x {
            TensorMut::Acc(x) => ("edit_wide", acc(x)),
            TensorMut::Compute(x) => ("edit_real", compute(x)),
        };
        let tables = [table(rows.ptr()), table(value_rows.ptr())];
        let sizes = [int(rows.len()), int(width), float(keep), float(add), float(along)];
        let args = [&[x, acc(values)], &tables[..], &sizes[..]].concat();
        self.cx.launch(op, Kernel::new(FILE, kernel), LaunchDims::rows(rows.len()), &args);
    }
}

impl EditOps for Cuda {
    fn edit_fwd(&mut self, op: EditFwd<'_, Self>) {
        self.begin(&op);
        let EditFwd { x, values, rows, value_rows, width, map, add } = op;
        self.edit(EditFwd::<Self>::NAME, x, (values, [rows, value_rows], width), (map, add));
    }

    fn edit_bwd(&mut self, op: EditBwd<'_, Self>) {
        self.begin(&op);
        let EditBwd { d_x, values, rows, value_rows, width, map } = op;
        self.edit(EditBwd::<Self>::NAME, d_x, (values, [rows, value_rows], width), (map, 0.0));
    }
}
