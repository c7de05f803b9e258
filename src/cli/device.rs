//! The one choice of device and dtype. What runs on the chosen backend is a [`Job`], written once for all of them.

use super::args::{CommonArgs, Device, DtypeArg};
use super::{Failure, host, notes};
use crate::arch::Dtype;
use crate::backend::Backend;
use crate::backend::cpu::{Cpu, CpuSettings, Isa, ceiling};
#[cfg(feature = "cuda")]
use crate::backend::cuda::Cuda;
use crate::{Error, Result};

/// Maximum number of CPU threads: a larger one is a typing error, and threads would only wait for each other.
const MAX_THREADS: usize = 1024;
/// Stack of a thread that runs a job: as large as a main thread's.
const HOST_STACK: usize = 8 << 20;

/// Work for whatever backend was asked for.
pub trait Job: Send {
    /// Does it.
    fn run<B: Backend>(self, backend: B) -> Result<(), Failure>;
}

/// The dtype of the matrix products that `--dtype` asks for, for a model whose weights have the dtype `checkpoint`.
pub(super) fn dtype(asked: DtypeArg, checkpoint: Dtype) -> Result<Dtype> {
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
    with_threads(common.threads, |threads| open(common, checkpoint, threads, job))
}

/// Refuses numbers of threads that nobody means.
pub fn check_threads(threads: Option<usize>) -> Result<()> {
    match threads.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
        Some(threads) => Err(Error::argument("--threads", format!("from 1 to {MAX_THREADS}"), threads)),
        None => Ok(()),
    }
}

/// Runs what takes so many threads of the host; none are as many as there are, which RAYON_NUM_THREADS may limit.
pub fn with_threads(
    threads: Option<usize>,
    work: impl FnOnce(usize) -> Result<(), Failure> + Send,
) -> Result<(), Failure> {
    check_threads(threads)?;
    let Some(threads) = threads else { return work(rayon::current_num_threads()) };
    // What the host does beside the device (reading files, rounding weights) keeps to the same number.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(HOST_STACK).build();
    let pool = pool.map_err(|error| Error::argument("--threads", "threads that the system gives", error))?;
    let heard_by = host::current();
    pool.install(|| {
        host::adopt(heard_by);
        work(threads)
    })
}

fn open(common: &CommonArgs, checkpoint: Dtype, threads: usize, job: impl Job) -> Result<(), Failure> {
    let (dtype, split) = (dtype(common.dtype, checkpoint)?, common.dtype == DtypeArg::F32x3);
    let gpu = gpu(&common.device)?;
    notes::release();
    let interrupt = host::current().map(|host| host.interrupt.clone()).unwrap_or_default();
    match gpu {
        Some(gpu) if split => Err(Error::argument("--dtype f32x3", "--device cpu", format!("cuda:{gpu}")).into()),
        #[cfg(feature = "cuda")]
        Some(gpu) => {
            let mut cuda = Cuda::open(gpu, dtype, &super::cuda::settings()?)?.heeding(interrupt);
            if let Some(profile) = &common.profile {
                cuda.record(&profile.recorder)?;
            }
            job.run(cuda)
        }
        #[cfg(not(feature = "cuda"))]
        Some(gpu) => match gpu {},
        None => {
            let isa = isa()?;
            if split && !isa.has_pairs() {
                let expected = "an instruction set with products of bfloat16 (amx, avx512bf16)";
                return Err(Error::argument("--dtype f32x3", expected, isa.name()).into());
            }
            let settings = CpuSettings { dtype, threads, isa, split };
            let mut cpu = Cpu::<f32>::open(&settings).heeding(interrupt);
            let Some(profile) = &common.profile else { return job.run(cpu) };
            cpu.record(&profile.recorder);
            job.run(cpu)?;
            if !profile.recorder.is_empty() {
                profile.recorder.set_ceiling(ceiling(&settings));
            }
            Ok(())
        }
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

/// The number of the GPU that was asked for, or that is there to be taken; none is the CPU.
#[cfg(feature = "cuda")]
fn gpu(device: &Device) -> Result<Option<usize>, Failure> {
    match device {
        Device::Cpu => Ok(None),
        Device::Cuda(n) => Ok(Some(*n)),
        Device::Auto => {
            Ok(super::cuda::best().inspect_err(|why| super::cuda::say(format_args!("device: cpu ({why})"))).ok())
        }
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
