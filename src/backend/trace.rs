//! A null device: it computes nothing, checks lengths and logs the names of operations.
//!
//! Tests run a whole pass on it to prove the order of its operations, and that none of them allocates or waits.
//!
//! ```
//! use llamaprobe::backend::ops::{Cast, RowOps};
//! use llamaprobe::backend::{Buffers, trace::Trace};
//!
//! let mut device = Trace::new();
//! let x = device.acc(6)?;
//! let mut out = device.compute(6)?;
//! device.clear();
//! device.cast(Cast { out: &mut out, x: &x, len: 6 });
//! assert_eq!(device.ops(), ["cast"]);
//! assert_eq!((device.allocations(), device.syncs()), (0, 0));
//! # Ok::<(), llamaprobe::Error>(())
//! ```

use super::blocks::BlockLayout;
use super::launches::Launches;
use super::op::{Launch, Op, Work};
use super::{Buffers, Capture, Captured, HostSlice, Len, OwnMemory, PassSize, Planning, Tensor, Transfer};
use crate::Result;
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::TensorView;
use crate::pack::Pack;

/// A wide buffer that has a length and no elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullAcc(usize);

/// A compute-dtype buffer that has a length and no elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullCompute(usize);

/// A frozen weight that has a length and no elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullWeight {
    len: usize,
    /// Bytes of one that is quantised.
    quantized: Option<usize>,
}

/// The null device. A buffer may be longer than an operation needs, never shorter; a weight has exactly its size.
#[derive(Clone, Debug)]
pub struct Trace {
    ops: Vec<&'static str>,
    allocations: usize,
    bytes: usize,
    elements: (usize, usize),
    syncs: usize,
    multiplied: u64,
    launches: Launches,
    element_sizes: (usize, usize),
}

impl Default for Trace {
    fn default() -> Self {
        Self::of_sizes((4, 4))
    }
}

impl Trace {
    /// A device with an empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// A device whose elements, of the accumulation and of the compute dtype, have so many bytes in a plan.
    pub fn of_sizes(element_sizes: (usize, usize)) -> Self {
        Self {
            ops: Vec::new(),
            allocations: 0,
            bytes: 0,
            elements: (0, 0),
            syncs: 0,
            multiplied: 0,
            launches: Launches::default(),
            element_sizes,
        }
    }

    /// The names of the operations since the last [`clear`](Self::clear), in order, transfers included.
    pub fn ops(&self) -> &[&'static str] {
        &self.ops
    }

    /// Forgets the log and sets all counts to 0.
    pub fn clear(&mut self) {
        *self = Self::of_sizes(self.element_sizes);
    }

    /// What a GPU would have been given since then.
    pub fn launches(&self) -> Launches {
        self.launches.clone().finished()
    }

    /// Number of buffers, weights, indices and packs made.
    pub fn allocations(&self) -> usize {
        self.allocations
    }

    /// Bytes of the buffers, weights and indices made, an element counted as 4 bytes; packs are not counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Elements of the wide and of the compute-dtype buffers made.
    pub fn elements(&self) -> (usize, usize) {
        self.elements
    }

    /// Times that the host waited for the device: syncs, downloads and arrivals.
    pub fn syncs(&self) -> usize {
        self.syncs
    }

    /// Multiply-adds of the products with weights.
    pub fn multiplied(&self) -> u64 {
        self.multiplied
    }

    /// A frozen weight without a checkpoint behind it, quantised if it has so many bytes.
    pub fn null_weight(&mut self, len: usize, quantized: Option<usize>) -> NullWeight {
        NullWeight { len: self.allocate(len), quantized }
    }

    fn allocate(&mut self, len: usize) -> usize {
        self.allocations += 1;
        self.bytes += 4 * len;
        len
    }

    fn log(&mut self, op: &'static str) {
        self.ops.push(op);
    }

    /// Checks and logs an operation.
    pub(super) fn record<O: Op>(&mut self, op: &O) {
        op.check();
        self.multiplied += op.multiply_adds();
        self.launches.add(O::NAME, op.projected(), op.launches());
        self.log(O::NAME);
    }

    /// The zeros of a new buffer.
    fn fill(&mut self, what: &'static str, work: Work) {
        if work != Work::default() {
            self.launches.add(what, None, vec![Launch::fill(work)]);
        }
    }

    /// Tables on their way to a GPU, or values on their way back.
    fn copy(&mut self, what: &'static str, acc: usize) {
        self.launches.add(what, None, vec![Launch::copy(Work::moved(acc, 0, 0))]);
    }

    #[track_caller]
    fn transfer(&mut self, op: &'static str, has: usize, wanted: usize) {
        assert!(has >= wanted, "{op}: the buffer has {has} elements, needs {wanted}");
        self.log(op);
    }
}

macro_rules! lengths {
    ($($buffer:ty),*) => { $(impl Len for $buffer {
        fn len(&self) -> usize {
            self.0
        }
    })* };
}
lengths!(NullAcc, NullCompute);

impl Len for NullWeight {
    fn len(&self) -> usize {
        self.len
    }

    fn quantized_bytes(&self) -> Option<usize> {
        self.quantized
    }
}

impl Buffers for Trace {
    type Acc = NullAcc;
    type Compute = NullCompute;
    type Weight = NullWeight;
    type Index = Vec<u32>;
    type Pack = Pack;
    type Element = f32;

    fn name(&self) -> String {
        "trace".into()
    }

    fn acc(&mut self, len: usize) -> Result<NullAcc> {
        self.elements.0 += len;
        self.fill("acc", Work::moved(len, 0, 0));
        Ok(NullAcc(self.allocate(len)))
    }

    fn compute(&mut self, len: usize) -> Result<NullCompute> {
        self.elements.1 += len;
        self.fill("compute", Work::moved(0, len, 0));
        Ok(NullCompute(self.allocate(len)))
    }

    fn weight(&mut self, view: &TensorView) -> Result<NullWeight> {
        Ok(self.null_weight(view.len(), None))
    }

    fn quantized_weight(&mut self, view: &QuantizedView) -> Result<NullWeight> {
        Ok(self.null_weight(view.len(), Some(BlockLayout::new(&view.matrix()).bytes())))
    }

    fn trainable_weight(&mut self, params: &NullAcc, offset: usize, len: usize) -> Result<NullWeight> {
        let wanted = offset + len;
        assert!(params.0 >= wanted, "trainable_weight: params has {} elements, needs {wanted}", params.0);
        Ok(self.null_weight(len, None))
    }

    fn index(&mut self, values: &[u32]) -> Result<Vec<u32>> {
        self.allocate(values.len());
        self.copy("index", 0);
        Ok(values.to_vec())
    }

    fn pack(&mut self, pack: &Pack) -> Result<Pack> {
        self.allocations += 1;
        self.copy("pack", 0);
        Ok(pack.clone())
    }
}

impl Transfer for Trace {
    type PendingReadback = Vec<f32>;

    fn upload(&mut self, buffer: &mut NullAcc, offset: usize, values: &[f32]) -> Result<()> {
        self.transfer("upload", buffer.0, offset + values.len());
        self.copy("upload", values.len());
        Ok(())
    }

    fn download(&mut self, values: &mut [f32], buffer: &NullAcc, offset: usize) -> Result<()> {
        self.transfer("download", buffer.0, offset + values.len());
        self.copy("download", values.len());
        self.syncs += 1;
        values.fill(0.0);
        Ok(())
    }

    fn download_async(&mut self, buffer: &NullAcc, len: usize) -> Result<Vec<f32>> {
        self.transfer("download_async", buffer.0, len);
        self.copy("download", len);
        Ok(vec![0.0; len])
    }

    fn wait_readback(&mut self, pending: Vec<f32>) -> Result<Vec<f32>> {
        self.syncs += 1;
        Ok(pending)
    }

    fn borrow_acc<'a>(&self, _: &'a NullAcc) -> Option<HostSlice<'a>> {
        None
    }

    fn borrow_compute<'a>(&self, _: &'a NullCompute) -> Option<HostSlice<'a>> {
        None
    }

    fn sync(&mut self) -> Result<()> {
        self.syncs += 1;
        Ok(())
    }
}

impl Capture for Trace {
    fn capture(&mut self, x: Tensor<'_, Self>, rows: &[usize], width: usize) -> Captured {
        let (Tensor::Acc(NullAcc(len)) | Tensor::Compute(NullCompute(len))) = x;
        self.transfer("capture", *len, rows.iter().max().map_or(0, |row| row + 1) * width);
        Captured::Ready(vec![0.0; rows.len() * width])
    }
}

impl Planning for Trace {
    const RUNS_AHEAD: bool = false;
    const REPEATS: bool = false;
    const ROW_INVARIANT: bool = true;
    const MAPS_WEIGHTS: bool = false;

    fn element_sizes(&self) -> (usize, usize) {
        self.element_sizes
    }

    fn own_memory(&self, _: &PassSize) -> OwnMemory {
        OwnMemory::default()
    }
}
