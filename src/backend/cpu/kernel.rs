//! From a compute dtype that is known when a device is opened to loops that are compiled for it.

use super::Cpu;
use super::context::Context;
use super::simd::{DtypeVisitor, Element, Float};

/// An operation whose loops depend on the compute dtype `C`. (Others are implemented without it, so that they are
/// compiled once.)
pub trait Kernel<A: Float> {
    /// Runs it; all buffers of the compute dtype are of `C`.
    fn run<C: Element<A>>(self, cx: &mut Context<A>);
}

impl<A: Float> Cpu<A> {
    /// Runs an operation in the device's compute dtype.
    pub(super) fn run(&mut self, op: impl Kernel<A>) {
        A::with_dtype(self.dtype, Call { op, cx: &mut self.cx });
    }
}

/// An operation that waits for its compute dtype.
struct Call<'a, A, K> {
    op: K,
    cx: &'a mut Context<A>,
}

impl<A: Float, K: Kernel<A>> DtypeVisitor<A> for Call<'_, A, K> {
    type Output = ();
    fn visit<C: Element<A>>(self) {
        self.op.run::<C>(self.cx);
    }
}
