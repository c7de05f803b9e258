//! What a file of `tests/ops` says of each of its operations.

use std::fmt::Debug;

use llamaprobe::backend::Backend;
use llamaprobe::pack::Pack;

use super::cases::Case;
use super::device::{Given, Outputs};
use super::naive::Precision;
use super::simt::recorder::Recorder;

/// What an array is held in, which decides how it is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A buffer of the accumulation dtype.
    Acc,
    /// A buffer of the compute dtype, or a weight.
    Compute,
}

/// How a gradient is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gradient {
    pub role: Role,
    /// Whether it is added to what is there (`+=`).
    pub added: bool,
}

/// An array of a case.
#[derive(Clone, Copy, Debug)]
pub struct Array {
    pub name: &'static str,
    /// Elements.
    pub len: usize,
    pub role: Role,
    /// What multiplies the normal numbers that fill it.
    pub scale: f64,
    /// Whether it holds their magnitudes.
    pub positive: bool,
    /// Of an input, the gradient that the contract has; of an output, the one that comes in through it.
    pub gradient: Option<Gradient>,
}

const fn array(name: &'static str, len: usize, role: Role) -> Array {
    Array { name, len, role, scale: 1.0, positive: false, gradient: None }
}

/// An array of the accumulation dtype.
pub const fn acc(name: &'static str, len: usize) -> Array {
    array(name, len, Role::Acc)
}

/// An array of the compute dtype.
pub const fn compute(name: &'static str, len: usize) -> Array {
    array(name, len, Role::Compute)
}

impl Array {
    pub const fn scaled(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    pub const fn positive(self) -> Self {
        Self { positive: true, ..self }
    }

    /// Of an input: its gradient is set. Of an output: a gradient comes in.
    pub const fn gradient(self, role: Role) -> Self {
        Self { gradient: Some(Gradient { role, added: false }), ..self }
    }

    /// Its gradient, of the accumulation dtype, is added to.
    pub const fn gradient_added(self) -> Self {
        Self { gradient: Some(Gradient { role: Role::Acc, added: true }), ..self }
    }
}

/// What an operation's products may be made of, on devices that split numbers into sums of shorter ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// Whole numbers, or it has no products.
    Whole,
    /// A checkpoint's weights.
    Weights,
    /// An adapter's factors.
    Adapters,
}

/// Which of an operation's arrays have one row for each row of the case.
pub struct RowResults {
    pub inputs: &'static [usize],
    /// Of the gradients, by input; outputs all have.
    pub gradients: &'static [bool],
}

/// An operation with everything that is not an array of numbers.
pub trait Operation: Clone + Debug {
    fn factors(&self) -> Factors {
        Factors::Whole
    }

    fn inputs(&self) -> Vec<Array>;

    fn outputs(&self) -> Vec<Array>;

    /// The outputs in the most straightforward way, rounded after each step.
    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>>;

    /// The gradients `d` of the inputs, zeros before, from that of the first output.
    fn naive_backward(&self, _: Precision, _: &[Vec<f64>], _d_out: &[f64], _d: &mut [Vec<f64>]) {}

    /// Writes the outputs.
    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>);

    /// The gradients of the inputs, none where the contract has none.
    fn backward<B: Backend>(&self, _: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        vec![None; given.inputs.len()]
    }

    /// Records launches of its kernels by the contract at the head of their file; false if it has none.
    fn launch(&self, _: &Case, _: &mut Recorder<'_>) -> bool {
        false
    }

    /// None if its rows do not stand alone.
    fn row_results(&self) -> Option<RowResults> {
        None
    }

    /// The same on these rows alone; `pack` says what they are, for operations on packs.
    fn select(&self, _rows: &[usize], _pack: Option<Pack>) -> Option<Self> {
        None
    }

    fn has_backward(&self) -> bool {
        self.inputs().iter().any(|input| input.gradient.is_some())
    }
}
