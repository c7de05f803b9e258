//! The one choice of device and dtype. What runs on the chosen backend is a [`Job`], written once for all of them.

use std::fmt::Display;

use half::{bf16, f16};

use super::Failure;
use super::args::{CommonArgs, Device, DtypeArg};
use crate::arch::Dtype;
use crate::backend::Backend;
use crate::backend::cpu::{Cpu, CpuF32, Isa};
#[cfg(feature = "cuda")]
use crate::backend::cuda::Cuda;
use crate::{Error, Result};

/// Maximum number of CPU threads: a larger one is a typing error, and threads would only wait for each other.
const MAX_THREADS: usize = 1024;

/// Work for whatever backend was asked for.
pub trait Job {
    /// Does the work, and prints its results.
    ///
    /// # Errors
    /// Whatever the library meets, or a closed stdout.
    fn run<B: Backend>(self, backend: B) -> Result<(), Failure>;
}

/// The dtype of the matrix products that `--dtype` asks for, for a model whose weights have the dtype `checkpoint`.
fn dtype(asked: DtypeArg, checkpoint: Dtype) -> Result<Dtype> {
    match asked {
        DtypeArg::F32 | DtypeArg::F32x3 => Ok(Dtype::F32),
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
        limit_threads(threads)?;
    }
    let dtype = dtype(common.dtype, checkpoint)?;
    let gpu = gpu(&common.device)?;
    if common.dtype == DtypeArg::F32x3 {
        return job.run(split(gpu)?);
    }
    match (gpu, dtype) {
        #[cfg(feature = "cuda")]
        (Some(n), Dtype::BF16) => job.run(Cuda::<bf16>::new(n, &super::cuda::settings())?),
        #[cfg(feature = "cuda")]
        (Some(n), Dtype::F16) => job.run(Cuda::<f16>::new(n, &super::cuda::settings())?),
        #[cfg(feature = "cuda")]
        (Some(n), _) => job.run(Cuda::<f32>::new(n, &super::cuda::settings())?),
        #[cfg(not(feature = "cuda"))]
        (Some(gpu), _) => match gpu {},
        (None, Dtype::BF16) => job.run(Cpu::<f32, bf16>::with_isa(isa()?)),
        (None, Dtype::F16) => job.run(Cpu::<f32, f16>::with_isa(isa()?)),
        (None, _) => job.run(Cpu::<f32>::with_isa(isa()?)),
    }
}

/// Sets the number of CPU threads for the whole process.
fn limit_threads(threads: usize) -> Result<()> {
    if !(1..=MAX_THREADS).contains(&threads) {
        return Err(Error::argument("--threads", format!("from 1 to {MAX_THREADS}"), threads));
    }
    // The pool may exist already when this is called as a library; then it stays as it is.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    Ok(())
}

/// The backend of `--dtype f32x3`, which is of the CPU only.
fn split(gpu: Option<impl Display>) -> Result<CpuF32> {
    let refuse = |expected, found| Err(Error::argument("--dtype f32x3", expected, found));
    if let Some(gpu) = gpu {
        return refuse("--device cpu", format!("cuda:{gpu}"));
    }
    match isa()? {
        isa if isa.has_pairs() => Ok(CpuF32::split(isa)),
        isa => refuse("an instruction set with products of bfloat16 (amx, avx512bf16)", isa.name().to_string()),
    }
}

/// The instruction set that `LLAMAPROBE_ISA` names, or else the best that this CPU has.
fn isa() -> Result<Isa> {
    let Some(asked) = std::env::var_os("LLAMAPROBE_ISA").filter(|asked| !asked.is_empty()) else {
        return Ok(Isa::detect());
    };
    let available = Isa::available();
    available.iter().find(|isa| asked == isa.name()).copied().ok_or_else(|| {
        let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
        Error::unsupported("LLAMAPROBE_ISA", asked.to_string_lossy(), format!("{} on this CPU", names.join(", ")))
    })
}

/// The ordinal of the GPU that was asked for, or that `auto` found; none stands for the CPU.
#[cfg(feature = "cuda")]
fn gpu(device: &Device) -> Result<Option<usize>, Failure> {
    match device {
        Device::Cpu => Ok(None),
        Device::Cuda(n) => Ok(Some(*n)),
        Device::Auto => Ok(super::cuda::best().inspect_err(|why| eprintln!("device: cpu ({why})")).ok()),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(device: &Device) -> Result<Option<std::convert::Infallible>, Failure> {
    match device {
        Device::Cuda(n) => {
            let found = format!("cuda:{n}, which this build has not (feature `cuda`)");
            Err(Error::unsupported("device", found, "auto, cpu").into())
        }
        Device::Auto | Device::Cpu => Ok(None),
    }
}
