//! The one choice of device and dtype. What runs on the chosen backend is a [`Job`], written once for all of them.

use half::{bf16, f16};

use super::Failure;
use super::args::{CommonArgs, Device, DtypeArg};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::formats::safetensors::Dtype;
use crate::{Error, Result};

/// Work for whatever backend was asked for.
pub trait Job {
    /// Does it.
    fn run<B: Backend>(self, backend: B) -> Result<(), Failure>;
}

/// The dtype of the matrix products of a model whose weights are in `checkpoint`'s.
pub fn dtype(asked: DtypeArg, checkpoint: Dtype) -> Result<Dtype> {
    match asked {
        DtypeArg::F32 => Ok(Dtype::F32),
        DtypeArg::Bf16 => Ok(Dtype::BF16),
        DtypeArg::F16 => Ok(Dtype::F16),
        DtypeArg::Auto => match checkpoint {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => Ok(checkpoint),
            other => Err(Error::unsupported("dtype", other, "F32, BF16, F16; name one with --dtype")),
        },
    }
}

/// Runs a job on the device and dtype asked for.
pub fn dispatch(common: &CommonArgs, checkpoint: Dtype, job: impl Job) -> Result<(), Failure> {
    if let Some(threads) = common.threads {
        if threads == 0 {
            return Err(Error::argument("--threads", "at least 1", threads).into());
        }
        // The pool may exist already when this is called as a library; then it stays as it is.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    match (&common.device, dtype(common.dtype, checkpoint)?) {
        (Device::Cuda(n), _) => {
            let found = format!("cuda:{n}, which this build has not");
            Err(Error::unsupported("device", found, "auto, cpu").into())
        }
        (Device::Auto | Device::Cpu, Dtype::BF16) => job.run(Cpu::<f32, bf16>::new()),
        (Device::Auto | Device::Cpu, Dtype::F16) => job.run(Cpu::<f32, f16>::new()),
        (Device::Auto | Device::Cpu, _) => job.run(Cpu::<f32>::new()),
    }
}
