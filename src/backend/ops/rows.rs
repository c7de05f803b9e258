//! Rows moved, converted and added: what stands between the operations that compute.

use std::ops::Range;

use super::check::{need, needs, selected};
use super::{Launch, Op, Work, operations};
use crate::backend::{Buffers, DeviceIndex, Len};

/// `x = 0`, all of it.
pub struct Zero<'a, B: Buffers + ?Sized> {
    /// Of any length, set.
    pub x: &'a mut B::Acc,
}

impl<B: Buffers + ?Sized> Op for Zero<'_, B> {
    const NAME: &'static str = "zero";

    fn check(&self) {}

    fn work(&self) -> Work {
        Work::moved(self.x.len(), 0, 0)
    }

    fn launches(&self) -> Vec<Launch> {
        if self.x.is_empty() { Vec::new() } else { vec![Launch::fill(self.work())] }
    }
}

/// `out [len] = x`, rounded to the compute dtype.
pub struct Cast<'a, B: Buffers + ?Sized> {
    /// `[len]`, set.
    pub out: &'a mut B::Compute,
    /// `[len]`.
    pub x: &'a B::Acc,
    /// Elements that are read and written.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for Cast<'_, B> {
    const NAME: &'static str = "cast";

    fn check(&self) {
        needs(Self::NAME, self.len, &[("out", self.out.len()), ("x", self.x.len())]);
    }

    fn work(&self) -> Work {
        Work::moved(self.len, self.len, 0)
    }
}

/// `out [len] = x`, exactly.
pub struct Widen<'a, B: Buffers + ?Sized> {
    /// `[len]`, set.
    pub out: &'a mut B::Acc,
    /// `[len]`.
    pub x: &'a B::Compute,
    /// Elements that are read and written.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for Widen<'_, B> {
    const NAME: &'static str = "widen";

    fn check(&self) {
        needs(Self::NAME, self.len, &[("out", self.out.len()), ("x", self.x.len())]);
    }

    fn work(&self) -> Work {
        Work::moved(self.len, self.len, 0)
    }
}

/// `out [len] = a + b`: what a sublayer adds to the residual stream.
pub struct ResidualFwd<'a, B: Buffers + ?Sized> {
    /// `[len]`, set.
    pub out: &'a mut B::Acc,
    /// `[len]`, the residual stream.
    pub a: &'a B::Acc,
    /// `[len]`, the sublayer's output.
    pub b: &'a B::Compute,
    /// Elements of the residual stream, N C.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for ResidualFwd<'_, B> {
    const NAME: &'static str = "residual_fwd";

    fn check(&self) {
        let buffers = [("out", self.out.len()), ("a", self.a.len()), ("b", self.b.len())];
        needs(Self::NAME, self.len, &buffers);
    }

    fn work(&self) -> Work {
        Work::moved(2 * self.len, self.len, 0)
    }
}

/// `out [M, width] = x [N, width]` at `rows [M]`, in the compute dtype.
pub struct GatherCompute<'a, B: Buffers + ?Sized> {
    /// `[M, width]`, set.
    pub out: &'a mut B::Compute,
    /// `[N, width]`.
    pub x: &'a B::Compute,
    /// `[M]`, each below N.
    pub rows: &'a B::Index,
    /// Elements of a row.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for GatherCompute<'_, B> {
    const NAME: &'static str = "gather_compute";

    fn check(&self) {
        selected::<B>(Self::NAME, [self.x.len(), self.out.len()], self.rows, self.width);
    }

    fn work(&self) -> Work {
        Work::moved(0, 2 * self.rows.len() * self.width, 0)
    }
}

/// `out [M, width] = x [N, width]` at `rows [M]`, in the accumulation dtype.
pub struct GatherAcc<'a, B: Buffers + ?Sized> {
    /// `[M, width]`, set.
    pub out: &'a mut B::Acc,
    /// `[N, width]`.
    pub x: &'a B::Acc,
    /// `[M]`, each below N.
    pub rows: &'a B::Index,
    /// Elements of a row.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for GatherAcc<'_, B> {
    const NAME: &'static str = "gather_acc";

    fn check(&self) {
        selected::<B>(Self::NAME, [self.x.len(), self.out.len()], self.rows, self.width);
    }

    fn work(&self) -> Work {
        Work::moved(2 * self.rows.len() * self.width, 0, 0)
    }
}

/// Backward of the gathers: `d_x [N, width] += d_out [M, width]` at `rows [M]`, which may repeat; added in the order of
/// `rows`.
pub struct ScatterAdd<'a, B: Buffers + ?Sized> {
    /// `[N, width]`, added to.
    pub d_x: &'a mut B::Acc,
    /// `[M, width]`.
    pub d_out: &'a B::Acc,
    /// `[M]`, each below N.
    pub rows: &'a B::Index,
    /// Elements of a row.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for ScatterAdd<'_, B> {
    const NAME: &'static str = "scatter_add";

    fn check(&self) {
        selected::<B>(Self::NAME, [self.d_x.len(), self.d_out.len()], self.rows, self.width);
    }

    fn work(&self) -> Work {
        Work::moved(3 * self.rows.len() * self.width, 0, 0)
    }
}

/// The same in the compute dtype, each sum rounded once: `d_x [N, width] += d_out [M, width]` at `rows [M]`, which may repeat.
pub struct ScatterAddCompute<'a, B: Buffers + ?Sized> {
    /// `[N, width]`, added to.
    pub d_x: &'a mut B::Compute,
    /// `[M, width]`.
    pub d_out: &'a B::Acc,
    /// `[M]`, each below N.
    pub rows: &'a B::Index,
    /// Elements of a row.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for ScatterAddCompute<'_, B> {
    const NAME: &'static str = "scatter_add_compute";

    fn check(&self) {
        selected::<B>(Self::NAME, [self.d_x.len(), self.d_out.len()], self.rows, self.width);
    }

    fn work(&self) -> Work {
        let len = self.rows.len() * self.width;
        Work::moved(len, 2 * len, 0)
    }
}

/// `cache[to..] [rows, width] = x [N, width]` at the consecutive rows `from`: keys or values that later passes read.
pub struct KvAppend<'a, B: Buffers + ?Sized> {
    /// `[capacity, width]`, set from row `to` on.
    pub cache: &'a mut B::Compute,
    /// The first row of the cache that is written.
    pub to: usize,
    /// `[N, width]`.
    pub x: &'a B::Compute,
    /// Rows of `x`.
    pub from: Range<usize>,
    /// Elements of a row of keys or values, K D.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for KvAppend<'_, B> {
    const NAME: &'static str = "kv_append";

    fn check(&self) {
        need(Self::NAME, "cache", self.cache.len(), (self.to + self.from.len()) * self.width);
        need(Self::NAME, "x", self.x.len(), self.from.end * self.width);
    }

    fn work(&self) -> Work {
        Work::moved(0, 2 * self.from.len() * self.width, 0)
    }

    fn launches(&self) -> Vec<Launch> {
        vec![Launch::copy(self.work())]
    }
}

operations! {
    /// Rows moved, converted and added.
    RowOps {
        zero(Zero);
        cast(Cast);
        widen(Widen);
        residual_fwd(ResidualFwd);
        gather_compute(GatherCompute);
        gather_acc(GatherAcc);
        scatter_add(ScatterAdd);
        scatter_add_compute(ScatterAddCompute);
        kv_append(KvAppend);
    }
}
