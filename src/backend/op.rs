//! What every operation's arguments have in common.

use super::Len;

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
    /// Elements of weights that are not quantised.
    pub weight: u64,
    /// Bytes of quantised weights.
    pub quantized: u64,
}

impl Work {
    /// No products, and so many elements of the accumulation dtype, of the compute dtype and of weights.
    pub(super) fn moved(acc: usize, compute: usize, weight: usize) -> Self {
        Self { flops: 0, acc: acc as u64, compute: compute as u64, weight: weight as u64, quantized: 0 }
    }

    /// The work of this without that of another, which is a part of it.
    pub(super) fn without(self, part: Self) -> Self {
        Self {
            flops: self.flops - part.flops,
            acc: self.acc - part.acc,
            compute: self.compute - part.compute,
            weight: self.weight - part.weight,
            quantized: self.quantized - part.quantized,
        }
    }

    /// The work of this and of another.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            flops: self.flops + other.flops,
            acc: self.acc + other.acc,
            compute: self.compute + other.compute,
            weight: self.weight + other.weight,
            quantized: self.quantized + other.quantized,
        }
    }

    /// The same with a weight that is read.
    pub(super) fn reading(self, weight: &impl Len) -> Self {
        match weight.quantized_bytes() {
            Some(bytes) => Self { quantized: self.quantized + bytes as u64, ..self },
            None => Self { weight: self.weight + weight.len() as u64, ..self },
        }
    }

    /// The same with products of so many multiply-adds.
    pub(super) fn multiplied(self, multiply_adds: u64) -> Self {
        Self { flops: 2 * multiply_adds, ..self }
    }

    /// Bytes, of elements of the accumulation dtype and of the compute dtype of these sizes; weights that are not quantised count as
    /// in the compute dtype.
    pub fn bytes(self, (acc, compute): (usize, usize)) -> u64 {
        self.acc * acc as u64 + (self.compute + self.weight) * compute as u64 + self.quantized
    }
}

/// What a launch runs on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LaunchKind {
    /// A kernel of ours.
    Kernel,
    /// A matrix product of the vendor's library.
    Product,
    /// Zeros.
    Fill,
    /// A copy on the device, or between it and the host.
    Copy,
}

impl LaunchKind {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Product => "product",
            Self::Fill => "fill",
            Self::Copy => "copy",
        }
    }
}

/// What a GPU is given at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What it runs.
    pub kind: LaunchKind,
    /// What that multiplies, reads and writes: of an operation of several launches each has its own, and what two of them read
    /// counts twice.
    pub work: Work,
}

impl Launch {
    /// A kernel of ours.
    pub(super) const fn kernel(work: Work) -> Self {
        Self { kind: LaunchKind::Kernel, work }
    }

    /// A matrix product of the vendor's library.
    pub(super) const fn product(work: Work) -> Self {
        Self { kind: LaunchKind::Product, work }
    }

    /// Zeros.
    pub(super) const fn fill(work: Work) -> Self {
        Self { kind: LaunchKind::Fill, work }
    }

    /// A copy.
    pub(super) const fn copy(work: Work) -> Self {
        Self { kind: LaunchKind::Copy, work }
    }
}

/// What an operation does for a projection. Those that do it for projections of one input, one after another, share launches, and
/// so may what comes before or behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projected {
    /// The product of its forward: rows, widths of input and output, and whether it has a bias.
    Product {
        /// Rows, elements of an input row, elements of an output row.
        dims: [usize; 3],
        /// Whether a bias is added.
        bias: bool,
    },
    /// The product that is its input's gradient.
    InputGradient {
        /// Rows, elements of an input row, elements of an output row.
        dims: [usize; 3],
        /// Whether it is added to what is there.
        adds: bool,
    },
    /// Its LoRA.
    Lora(ProjectedLora),
    /// The gradients of that: of the input too, if it adds.
    LoraGradient(ProjectedLora),
    /// The rotation of its output.
    Rotated {
        /// Elements that are rotated.
        len: usize,
    },
    /// What goes through a norm of the gradient of what several projections read.
    NormGradient {
        /// Elements of it.
        len: usize,
    },
    /// What attention's backward makes of the gradient of the input of the next projection, before all else.
    HeadGradient {
        /// Elements of it.
        len: usize,
    },
    /// The rotation of the gradient of what attention reads, where that can make it.
    RotatedGradient,
    /// What is made of the outputs of two, a gate and an up-projection.
    Gated {
        /// Elements of each.
        len: usize,
    },
    /// The gradients of those two, of that of the input of the next projection.
    GatedGradient {
        /// Elements of each.
        len: usize,
    },
}

/// What LoRAs that share launches have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectedLora {
    /// Adapted rows.
    pub rows: usize,
    /// Whether all rows of the pack are.
    pub all: bool,
    /// Elements of an input row.
    pub input: usize,
    /// Rank R.
    pub rank: usize,
    /// Whether that and where its matrices begin are multiples of 4.
    pub in_vectors: bool,
    /// Whether the output, in a backward the input's gradient, is added to.
    pub adds: bool,
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

    /// What it does for a projection, if it does.
    fn projected(&self) -> Option<Projected> {
        None
    }

    /// How the CUDA backend launches it, in order, where no neighbour shares a launch with it
    /// ([`launches`](super::launches)). Of how often it runs what, `tests/cuda_fake.rs` asks the driver.
    fn launches(&self) -> Vec<Launch> {
        vec![Launch::kernel(self.work())]
    }

    /// Multiply-adds of its products with weights.
    fn multiply_adds(&self) -> u64 {
        0
    }
}
