//! What every operation's arguments have in common.

/// What an operation has to do at least, by the shapes of its arguments.
///
/// Every element that is read or written counts once, one that is added to twice, wherever it comes from: a cache may save
/// some of it, and an operation that works through its arguments more than once moves more. Indices and tables of packs do
/// not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations of matrix products, two a multiply-add: with weights, adapters, keys and values. What is
    /// done element by element costs its bytes, and counts as these alone.
    pub flops: u64,
    /// Elements of the accumulation dtype.
    pub acc: u64,
    /// Elements of the compute dtype.
    pub compute: u64,
    /// Elements of weights.
    pub weight: u64,
}

impl Work {
    /// No products, and so many elements of the accumulation dtype, of the compute dtype and of weights.
    pub(super) fn moved(acc: usize, compute: usize, weight: usize) -> Self {
        Self { flops: 0, acc: acc as u64, compute: compute as u64, weight: weight as u64 }
    }

    /// The same with products of so many multiply-adds.
    pub(super) fn multiplied(self, multiply_adds: u64) -> Self {
        Self { flops: 2 * multiply_adds, ..self }
    }

    /// Bytes, of elements of the accumulation dtype and of the compute dtype of these sizes; weights count as in the compute
    /// dtype.
    pub fn bytes(self, (acc, compute): (usize, usize)) -> u64 {
        self.acc * acc as u64 + (self.compute + self.weight) * compute as u64
    }
}

/// What the arguments of every operation know of themselves.
pub trait Op {
    /// The operation's name, as errors, logs and profiles have it.
    const NAME: &'static str;

    /// Asserts that every buffer is as long as its shape and every dimension in its range.
    ///
    /// # Panics
    /// With the operation's name, the argument's, what it is and what it must be.
    fn check(&self);

    /// What it has to do at least.
    fn work(&self) -> Work;

    /// Multiply-adds of its products with weights.
    fn multiply_adds(&self) -> u64 {
        0
    }
}
