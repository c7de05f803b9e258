//! The CPU as a backend: a pool of threads, vectors of the best instruction set there is.
//!
//! [`Cpu`] is told its compute dtype when it is opened; an operation whose loops depend on it is compiled for each
//! (`kernel.rs`), all else once. Weights stay in their file's mapping and are converted where they are read; quantised ones of a model
//! that generates text are brought into another layout (`interleaved.rs`).

mod activation;
mod adamw;
mod aligned;
mod attention;
mod buffer;
mod ceiling;
mod context;
mod cross_entropy;
mod dequantize;
mod distillation;
mod edit;
mod embed;
mod float;
mod gemm;
mod interleaved;
mod isa;
mod kernel;
mod layer_norm;
mod linear;
mod lora;
mod parallel;
mod position;
mod rms_norm;
mod rope;
mod rows;
mod scale;
mod simd;
mod thread_pool;
mod weight;

use std::sync::Arc;

use super::ops::Op;
use super::profile::{OpSpan, Recorder};
use super::{Buffers, Capture, Captured, HostSlice, Interrupt, OwnMemory, PassSize, Planning, Tensor, Transfer};
use crate::Result;
use crate::arch::Dtype;
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::TensorView;
use crate::pack::Pack;
pub use buffer::HostBuffer;
pub(crate) use buffer::zeros;
pub use ceiling::{Factors, ceiling};
#[doc(hidden)] // For `benches/ceiling.rs` alone.
pub use ceiling::{best, copy, multiply_add, read, stretches};
use context::Context;
pub use gemm::kernels::Kernels;
pub use isa::{InstructionSet, Isa};
pub use simd::{Element, Float};
#[doc(hidden)] // For `benches/pool.rs` alone.
pub use thread_pool::ThreadPool;
pub use weight::Weight;

/// The CPU. `A` is the accumulation dtype: `f32`, or `f64` in the oracle.
pub struct Cpu<A = f32> {
    cx: Context<A>,
    dtype: Dtype,
    /// Whether weights that are loaded are for passes of a few rows.
    few_rows: bool,
    recorder: Option<Recorder>,
    interrupt: Interrupt,
}

/// How a CPU is opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuSettings {
    /// What matrix products read and write: `F32`, `BF16` or `F16`; of the oracle `F64`.
    pub dtype: Dtype,
    /// Threads, the calling one included.
    pub threads: usize,
    /// The instruction set.
    pub isa: Isa,
    /// Whether products with weights in single precision are sums of products of bfloat16 (`--dtype f32x3`).
    pub split: bool,
}

impl CpuSettings {
    /// All threads and the best instruction set there is.
    pub fn new(dtype: Dtype) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { dtype, threads, isa: Isa::detect(), split: false }
    }
}

impl Cpu<f32> {
    /// With all threads and the best instruction set there is.
    pub fn new(dtype: Dtype) -> Self {
        Self::open(&CpuSettings::new(dtype))
    }
}

impl Cpu<f64> {
    /// Double precision throughout: what tests compare with.
    pub fn oracle() -> Self {
        Self::open(&CpuSettings::new(Dtype::F64))
    }
}

impl<A: Kernels> Cpu<A> {
    /// As the settings say.
    ///
    /// # Panics
    /// If `A` does not accumulate for the dtype or the instruction set has no pairs to split into.
    pub fn open(settings: &CpuSettings) -> Self {
        let CpuSettings { dtype, threads, isa, split } = *settings;
        assert!(A::DTYPES.contains(&dtype), "cpu: dtype {dtype} accumulated in {}", A::NAME);
        let mut cx = Context::new(isa, threads);
        if split {
            cx.gemm = cx.gemm.split();
        }
        Self { cx, dtype, few_rows: false, recorder: None, interrupt: Interrupt::default() }
    }

    /// The same, to be stopped by `interrupt`.
    pub fn heeding(self, interrupt: Interrupt) -> Self {
        Self { interrupt, ..self }
    }

    /// Records from now on what it does; a device has one recorder, the first.
    pub fn record(&mut self, recorder: &Recorder) {
        if self.recorder.is_none() {
            self.cx.exec.pool.record(recorder);
            self.recorder = Some(recorder.clone());
        }
    }
}

impl<A: Float> Cpu<A> {
    /// What every operation begins with: checks it, and records it until the guard is dropped, if there is a recorder.
    #[inline]
    #[must_use]
    fn begin<O: Op>(&self, op: &O) -> Option<OpSpan> {
        op.check();
        self.recorder.as_ref().map(|recorder| recorder.begin(op, self.element_sizes()))
    }
}

impl<A: Float> Buffers for Cpu<A> {
    type Acc = Vec<A>;
    type Compute = HostBuffer;
    type Weight = Weight;
    type Index = Vec<u32>;
    type Pack = Arc<Pack>;
    type Element = A;

    fn name(&self) -> String {
        let dtype = if self.cx.gemm.splits() { "f32x3" } else { self.dtype.flag() };
        format!("cpu {dtype}")
    }

    fn acc(&mut self, len: usize) -> Result<Vec<A>> {
        zeros(len)
    }

    fn compute(&mut self, len: usize) -> Result<HostBuffer> {
        HostBuffer::zeros(self.dtype, len)
    }

    fn weight(&mut self, view: &TensorView) -> Result<Weight> {
        Weight::mapped(view, self.dtype)
    }

    fn expect_few_rows(&mut self, expected: bool) {
        self.few_rows = expected;
    }

    fn quantized_weight(&mut self, view: &QuantizedView) -> Result<Weight> {
        match self.few_rows {
            true => Weight::interleaved(self.cx.exec.isa, &self.cx.exec.pool, view, self.dtype),
            false => Weight::quantized(view, self.dtype),
        }
    }

    fn trainable_weight(&mut self, params: &Vec<A>, offset: usize, len: usize) -> Result<Weight> {
        Weight::owned(self.cx.exec.isa, self.dtype, &params[offset..offset + len])
    }

    fn index(&mut self, values: &[u32]) -> Result<Vec<u32>> {
        Ok(values.to_vec())
    }

    fn pack(&mut self, pack: &Pack) -> Result<Arc<Pack>> {
        Ok(Arc::new(pack.clone()))
    }
}

impl<A: Float> Transfer for Cpu<A> {
    type PendingReadback = Vec<A>;

    fn upload(&mut self, buffer: &mut Vec<A>, offset: usize, values: &[A]) -> Result<()> {
        buffer[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn download(&mut self, values: &mut [A], buffer: &Vec<A>, offset: usize) -> Result<()> {
        values.copy_from_slice(&buffer[offset..offset + values.len()]);
        Ok(())
    }

    fn download_async(&mut self, buffer: &Vec<A>, len: usize) -> Result<Vec<A>> {
        Ok(buffer[..len].to_vec())
    }

    fn wait_readback(&mut self, pending: Vec<A>) -> Result<Vec<A>> {
        self.interrupt.check()?;
        Ok(pending)
    }

    fn borrow_acc<'a>(&self, buffer: &'a Vec<A>) -> Option<HostSlice<'a>> {
        Some(A::host(buffer))
    }

    fn borrow_compute<'a>(&self, buffer: &'a HostBuffer) -> Option<HostSlice<'a>> {
        Some(buffer.view())
    }

    fn sync(&mut self) -> Result<()> {
        self.interrupt.check()
    }
}

impl<A: Float> Capture for Cpu<A> {
    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured {
        let host = match x {
            Tensor::Acc(buffer) => A::host(buffer),
            Tensor::Compute(buffer) => buffer.view(),
        };
        let mut out = vec![0.0; rows.len() * width];
        for (out, &row) in out.chunks_exact_mut(width).zip(rows) {
            host.copy_f32(row * width, out);
        }
        Captured::Ready(out)
    }
}

impl<A: Float> Planning for Cpu<A> {
    const RUNS_AHEAD: bool = false;
    const REPEATS: bool = false;
    const ROW_INVARIANT: bool = true;
    const MAPS_WEIGHTS: bool = true;

    fn element_sizes(&self) -> (usize, usize) {
        (size_of::<A>(), self.dtype.size())
    }

    fn own_memory(&self, _: &PassSize) -> OwnMemory {
        OwnMemory::default()
    }
}
