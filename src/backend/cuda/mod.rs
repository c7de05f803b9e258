//! NVIDIA GPUs, through kernels of our own (`kernels/*.cu`) and cuBLASLt.
//!
//! The driver and the libraries are loaded at run time: a build needs no toolkit, and a machine without a GPU gets an
//! error that says so. Operations only append commands to a list, and command lists that repeat are graphs (`queue.rs`).
//!
//! Two dtypes: buffers of the accumulation dtype ([`AccBuffer`]) are `f32`; those of the compute dtype
//! ([`ComputeBuffer`]), weights included ([`Weight`]), are what the device was opened with. Memory belongs to the device that it was
//! asked of: an operation that is given another's panics.

mod activation;
mod adamw;
mod algorithms;
mod attention;
mod balance;
mod blas;
mod buffers;
mod capture;
mod compile;
mod context;
mod cross_entropy;
mod cublaslt;
mod distillation;
mod driver;
mod dtype;
mod edit;
mod embed;
mod forest;
mod fused;
mod gemm;
mod geometry;
mod launch;
mod layer_norm;
mod library;
mod linear;
mod load;
mod lora;
mod lora_launch;
mod memory;
mod pack;
mod pinned;
mod plan;
mod position;
mod projections;
mod queue;
mod readback;
mod rms_norm;
mod rope;
mod rows;
mod scale;
mod sealed;
mod settings;
mod slot_state;
mod tensor_map;
mod timeline;
mod transfer;
mod variant;
mod weight;

pub use self::memory::{AccBuffer, ComputeBuffer};
pub use self::pack::{DeviceTables, Index};
pub use self::queue::Replays;
pub use self::readback::PendingReadback;
pub use self::settings::{GemmAlgorithms, Settings};
pub use self::weight::Weight;

use self::context::Context;
use self::dtype::ComputeDtype;
use crate::arch::Dtype;
use crate::backend::Interrupt;
use crate::backend::ops::Op;
use crate::backend::profile::Recorder;
use crate::{Error, Result};

/// The number of devices.
///
/// # Errors
/// If there is no driver, or it does not start.
pub fn devices() -> Result<usize> {
    driver::count()
}

/// A GPU with its queue, memory and kernels; dropping it waits for what it still does.
pub struct Cuda {
    cx: Context,
    interrupt: Interrupt,
    /// Number of multiprocessors, where the attention for compute capability 9.0 alone may be used.
    hopper: Option<usize>,
}

impl Cuda {
    /// Opens device `ordinal`; matrix products read and write `dtype`.
    ///
    /// # Errors
    /// No driver, no such device, a device older than compute capability 8.0, a dtype that no kernel is built for
    /// (F64), or cuBLASLt that is not found: one error that says which, and what to install.
    pub fn open(ordinal: usize, dtype: Dtype, settings: &Settings) -> Result<Self> {
        let named = |error| match error {
            Error::Device { op, message, .. } => Error::Device { device: format!("cuda:{ordinal}"), op, message },
            other => other,
        };
        let cx = Context::open(ordinal, ComputeDtype::new(dtype)?, settings).map_err(named)?;
        let hopper = settings.hopper && cx.device.arch() == (9, 0);
        let hopper = hopper.then(|| cx.device.multiprocessors());
        Ok(Self { cx, interrupt: Interrupt::default(), hopper })
    }

    /// The same, to be stopped by `interrupt`.
    pub fn heeding(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// Records from now on what it does; command lists are no graphs any more.
    ///
    /// # Errors
    /// If the device fails.
    pub fn record(&mut self, recorder: &Recorder) -> Result<()> {
        self.cx.record(recorder)
    }

    /// What every operation begins with: checks it, and notes that it begins.
    #[inline]
    fn begin<O: Op>(&mut self, op: &O) {
        op.check();
        self.cx.mark(op);
    }

    /// The dtype that matrix products read and write: F32, BF16 or F16.
    pub fn dtype(&self) -> Dtype {
        self.cx.dtype.dtype()
    }

    /// How many command lists there were, and how many went to the device as one graph since they repeat.
    pub fn replays(&self) -> Replays {
        self.cx.replays()
    }
}
