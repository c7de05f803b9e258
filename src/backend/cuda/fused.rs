//! Launches that the next operation may do in one of its own.

use super::Cuda;
use super::context::{Context, Deferred};
use super::launch::{Arg, Kernel, LaunchDims, Param, acc_ptr, compute_ptr, long};
use super::memory::DevicePtr;
use crate::backend::ops::{Op, ResidualFwd, RmsNormBwd};

/// `out [len] = a + b`, which a norm may read.
pub struct ResidualSum {
    /// `[len]` of the accumulation dtype.
    pub out: DevicePtr,
    /// `[len]` of the accumulation dtype.
    pub a: DevicePtr,
    /// `[len]` of the compute dtype.
    pub b: DevicePtr,
    /// Number of elements.
    pub len: usize,
}

impl ResidualSum {
    /// The sum and the summands.
    pub fn args(&self) -> [Arg; 3] {
        [acc_ptr(self.out), acc_ptr(self.a), compute_ptr(self.b)]
    }
}

impl Deferred for ResidualSum {
    fn launch(self: Box<Self>, cx: &mut Context) {
        let name = ResidualFwd::<Cuda>::NAME;
        let args = [&self.args()[..], &[long(self.len)]].concat();
        cx.launch(name, Kernel::new("rows", name), LaunchDims::elements(self.len), &args);
    }
}

/// The gradient through an RMS norm, added to `d_x [rows, width]`, which may be rounded then.
pub struct RmsNormGradient {
    /// `[rows, width]` of the accumulation dtype, added to.
    pub d_x: DevicePtr,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// The other arguments.
    pub rest: Vec<Arg>,
}

impl RmsNormGradient {
    /// The launch, which also sets `rounded [rows, width]`, if that is wanted, to what `d_x` is then.
    pub fn launch(&self, cx: &mut Context, rounded: Option<DevicePtr>) {
        let name = RmsNormBwd::<Cuda>::NAME;
        let rounded = rounded.map_or(Arg::null(Param::Compute), compute_ptr);
        let args = [&[acc_ptr(self.d_x), rounded], &self.rest[..]].concat();
        cx.launch(name, Kernel::new("rms_norm", name), LaunchDims::norm(self.rows, self.width), &args);
    }
}

impl Deferred for RmsNormGradient {
    fn launch(self: Box<Self>, cx: &mut Context) {
        Self::launch(&self, cx, None);
    }
}
