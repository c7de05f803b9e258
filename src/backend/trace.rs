//! A null device: it computes nothing, checks lengths and logs the names of operations.
//!
//! Tests run a whole pass on it to prove the order of its operations, and that none of them allocates or waits.
//!
//! ```
//! use llamaprobe::backend::{Backend, trace::Trace};
//!
//! let mut device = Trace::new();
//! let a = device.acc(6)?;
//! let mut out = device.compute(6)?;
//! device.clear();
//! device.cast(&mut out, &a, 6);
//! assert_eq!(device.ops(), ["cast"]);
//! assert_eq!((device.allocations(), device.syncs()), (0, 0));
//! # Ok::<(), llamaprobe::Error>(())
//! ```

mod check;
mod ops;

use super::LinearDims;

/// A wide buffer that has a length and no elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullAcc(usize);

/// A compute-dtype buffer that has a length and no elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullCompute(usize);

/// A frozen weight that has a length and no elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullWeight(usize);

/// The null device. A buffer may be longer than an operation needs, never shorter; a weight has exactly its size.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    ops: Vec<&'static str>,
    allocations: usize,
    bytes: usize,
    elements: (usize, usize),
    syncs: usize,
    multiplied: u64,
}

impl Trace {
    /// A device with an empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// The names of the operations since the last [`clear`](Self::clear), in order, transfers included.
    pub fn ops(&self) -> &[&'static str] {
        &self.ops
    }

    /// Forgets the log and sets all counts to 0.
    pub fn clear(&mut self) {
        *self = Self::default();
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

    /// A frozen weight without a checkpoint behind it.
    pub fn null_weight(&mut self, len: usize) -> NullWeight {
        NullWeight(self.allocate(len))
    }

    fn allocate(&mut self, len: usize) -> usize {
        self.allocations += 1;
        self.bytes += 4 * len;
        len
    }

    fn log(&mut self, op: &'static str) -> &'static str {
        self.ops.push(op);
        op
    }

    /// An operation of as many products of these dimensions.
    fn log_products(&mut self, op: &'static str, count: u64, dims: LinearDims) -> &'static str {
        self.multiplied += count * (dims.rows * dims.input * dims.output) as u64;
        self.log(op)
    }
}
