//! What stands between the two outer projections of an MLP: a gate's function times the up-projection (Shazeer 2020), or a
//! function of the up-projection alone.

use super::check::needs;
use super::{Op, Projected, Work, operations};
use crate::arch::Activation;
use crate::backend::{Buffers, Len};

/// `act [len] = f(gate) * up`.
pub struct GatedFwd<'a, B: Buffers + ?Sized> {
    /// `[len]`, set.
    pub act: &'a mut B::Compute,
    /// `[len]`.
    pub gate: &'a B::Compute,
    /// `[len]`.
    pub up: &'a B::Compute,
    /// Which function is applied to the gate, element by element.
    pub f: Activation,
    /// Elements of the feed-forward layer, N F.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for GatedFwd<'_, B> {
    const NAME: &'static str = "gated_fwd";

    fn check(&self) {
        let buffers = [("act", self.act.len()), ("gate", self.gate.len()), ("up", self.up.len())];
        needs(Self::NAME, self.len, &buffers);
    }

    fn work(&self) -> Work {
        Work::moved(0, 3 * self.len, 0)
    }

    fn projected(&self) -> Option<Projected> {
        (self.f == Activation::Silu).then_some(Projected::Gated { len: self.len })
    }
}

/// `d_gate [len] =`, `d_up [len] =` from `d_act [len]`, of which nobody else has need: a device may make all three at once, and
/// leave anything in `d_act`.
pub struct GatedBwd<'a, B: Buffers + ?Sized> {
    /// `[len]`, set.
    pub d_gate: &'a mut B::Compute,
    /// `[len]`, set.
    pub d_up: &'a mut B::Compute,
    /// `[len]`, consumed.
    pub d_act: &'a mut B::Acc,
    /// `[len]`, of the forward.
    pub gate: &'a B::Compute,
    /// `[len]`, of the forward.
    pub up: &'a B::Compute,
    /// Which function is applied to the gate, element by element.
    pub f: Activation,
    /// Elements of the feed-forward layer, N F.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for GatedBwd<'_, B> {
    const NAME: &'static str = "gated_bwd";

    fn check(&self) {
        needs(Self::NAME, self.len, &[("d_gate", self.d_gate.len()), ("d_up", self.d_up.len())]);
        let inputs = [("d_act", self.d_act.len()), ("gate", self.gate.len()), ("up", self.up.len())];
        needs(Self::NAME, self.len, &inputs);
    }

    fn work(&self) -> Work {
        Work::moved(self.len, 4 * self.len, 0)
    }

    fn projected(&self) -> Option<Projected> {
        (self.f == Activation::Silu).then_some(Projected::GatedGradient { len: self.len })
    }
}

/// `act [len] = f(x)`, of an MLP without a gate.
pub struct ActivationFwd<'a, B: Buffers + ?Sized> {
    /// `[len]`, set.
    pub act: &'a mut B::Compute,
    /// `[len]`.
    pub x: &'a B::Compute,
    /// Which function is applied, element by element.
    pub f: Activation,
    /// Elements of the feed-forward layer, N F.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for ActivationFwd<'_, B> {
    const NAME: &'static str = "activation_fwd";

    fn check(&self) {
        needs(Self::NAME, self.len, &[("act", self.act.len()), ("x", self.x.len())]);
    }

    fn work(&self) -> Work {
        Work::moved(0, 2 * self.len, 0)
    }
}

/// `d_x [len] = d_act * f'(x)`.
pub struct ActivationBwd<'a, B: Buffers + ?Sized> {
    /// `[len]`, set.
    pub d_x: &'a mut B::Compute,
    /// `[len]`.
    pub d_act: &'a B::Acc,
    /// `[len]`, of the forward.
    pub x: &'a B::Compute,
    /// Which function is applied, element by element.
    pub f: Activation,
    /// Elements of the feed-forward layer, N F.
    pub len: usize,
}

impl<B: Buffers + ?Sized> Op for ActivationBwd<'_, B> {
    const NAME: &'static str = "activation_bwd";

    fn check(&self) {
        let buffers = [("d_x", self.d_x.len()), ("d_act", self.d_act.len()), ("x", self.x.len())];
        needs(Self::NAME, self.len, &buffers);
    }

    fn work(&self) -> Work {
        Work::moved(self.len, 2 * self.len, 0)
    }
}

operations! {
    /// Activations of MLPs, forward and backward.
    ActivationOps {
        gated_fwd(GatedFwd);
        gated_bwd(GatedBwd);
        activation_fwd(ActivationFwd);
        activation_bwd(ActivationBwd);
    }
}
