//! Learned positions.

use super::Cuda;
use super::launch::{Kernel, LaunchDims, acc, acc_at, compute_ptr, int, table};
use crate::backend::ops::{Op, PositionBwdTable, PositionFwd, PositionOps};

const FILE: &str = "position";

impl PositionOps for Cuda {
    fn position_fwd(&mut self, op: PositionFwd<'_, Self>) {
        self.begin(&op);
        let (name, pack) = (PositionFwd::<Self>::NAME, op.pack);
        let Some(rows) = op.table.elements(&mut self.cx, name) else { return };
        let sizes = [int(pack.len()), int(op.width), int(op.first)];
        let args = [&[acc(op.x), compute_ptr(rows), table(pack.positions())], &sizes[..]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(pack.len()), &args);
    }

    fn position_bwd_table(&mut self, op: PositionBwdTable<'_, Self>) {
        self.begin(&op);
        let name = PositionBwdTable::<Self>::NAME;
        let groups = op.pack.by_position();
        let [ids, starts, order] = groups.tables();
        let sizes = [int(groups.count), int(op.width), int(op.first)];
        let args = [&[acc_at(op.d_table, op.offset), acc(op.d_x), ids, starts, order], &sizes[..]].concat();
        self.cx.launch(name, Kernel::new(FILE, name), LaunchDims::rows(groups.count), &args);
    }
}
