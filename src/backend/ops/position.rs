//! Learned position embedding (Gehring et al. 2017): a row of a table is added at each position.

use super::check::need;
use super::linear::kernel_launches;
use super::{Launch, Op, Work, operations};
use crate::backend::{Buffers, DevicePack, Len};

/// `x [N, C] += table [_, C]` at `first +` the row's position.
pub struct PositionFwd<'a, B: Buffers + ?Sized> {
    /// `[N, C]`, added to.
    pub x: &'a mut B::Acc,
    /// N rows with their positions.
    pub pack: &'a B::Pack,
    /// `[_, C]`.
    pub table: &'a B::Weight,
    /// The table's row of position 0.
    pub first: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for PositionFwd<'_, B> {
    const NAME: &'static str = "position_fwd";

    fn check(&self) {
        let pack = self.pack.host();
        need(Self::NAME, "x", self.x.len(), pack.len() * self.width);
        need(Self::NAME, "table", self.table.len(), (self.first + pack.longest()) * self.width);
    }

    fn work(&self) -> Work {
        let len = self.pack.host().len() * self.width;
        Work::moved(2 * len, 0, len)
    }

    fn launches(&self) -> Vec<Launch> {
        kernel_launches(self.table, self.work())
    }
}

/// `d_table [_, C] (from element `offset` on) += d_x [N, C]` at `first +` the rows' positions, in row order.
pub struct PositionBwdTable<'a, B: Buffers + ?Sized> {
    /// `[_, C]` from element `offset` on, added to.
    pub d_table: &'a mut B::Acc,
    /// Where the table's gradient begins.
    pub offset: usize,
    /// `[N, C]`.
    pub d_x: &'a B::Acc,
    /// N rows with their positions.
    pub pack: &'a B::Pack,
    /// The table's row of position 0.
    pub first: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for PositionBwdTable<'_, B> {
    const NAME: &'static str = "position_bwd_table";

    fn check(&self) {
        let pack = self.pack.host();
        need(Self::NAME, "d_x", self.d_x.len(), pack.len() * self.width);
        let rows = self.first + pack.longest();
        need(Self::NAME, "d_table", self.d_table.len(), self.offset + rows * self.width);
    }

    fn work(&self) -> Work {
        Work::moved(3 * self.pack.host().len() * self.width, 0, 0)
    }
}

operations! {
    /// Learned position embedding, forward and backward.
    PositionOps {
        position_fwd(PositionFwd);
        position_bwd_table(PositionBwdTable);
    }
}
