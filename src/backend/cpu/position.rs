//! Learned positions; a task is some rows of the forward, and the backward adds row by row, in order.

use super::Cpu;
use super::parallel::{each_part, rows};
use super::rows::accumulate;
use super::simd::Float;
use crate::backend::ops::{PositionBwdTable, PositionFwd, PositionOps};

impl<A: Float> PositionOps for Cpu<A> {
    fn position_fwd(&mut self, op: PositionFwd<'_, Self>) {
        let _span = self.begin(&op);
        let PositionFwd { x, pack, table, first, width } = op;
        let exec = &self.cx.exec;
        each_part(&exec.pool, pack.len(), width, rows("position_fwd", x, pack.len(), width), |from, part| {
            let mut row = vec![A::ZERO; width];
            for (x, &position) in part.chunks_exact_mut(width).zip(&pack.positions()[from..]) {
                table.read(exec.isa, &mut row, (first + position as usize) * width);
                accumulate(exec.isa, x, &row);
            }
        });
    }

    fn position_bwd_table(&mut self, op: PositionBwdTable<'_, Self>) {
        let _span = self.begin(&op);
        let PositionBwdTable { d_table, offset, d_x, pack, first, width } = op;
        let d_table = &mut d_table[offset..];
        for (d_x, &position) in d_x.chunks_exact(width).zip(pack.positions()) {
            accumulate(self.cx.exec.isa, &mut d_table[(first + position as usize) * width..][..width], d_x);
        }
    }
}
