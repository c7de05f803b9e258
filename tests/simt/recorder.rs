//! Operations as launches of their kernels, by the contracts at the heads of `kernels/*.cu`.

use llamaprobe::backend::ops::LinearDims;

use super::machine::Build;
use super::tape::{Arg, Buffer, Tape};
use crate::ops::operation::Role;

/// What stands in a buffer that is written with `=`.
pub const FILL: f64 = f64::NAN;
/// What stands in a buffer that is written with `+=`.
pub const START: f64 = 0.5;

/// Where a result lies after a run.
pub struct Output {
    /// Which of the case's results: the outputs, then the gradients that the contract has.
    pub result: usize,
    pub buffer: Buffer,
    pub role: Role,
    /// Elements before the result.
    pub skip: usize,
    /// What was there before, if it is added to.
    pub start: f64,
    /// What remains to be done on the host: the product with the head.
    pub head: Option<(Vec<f64>, LinearDims)>,
}

/// Writes launches and says where their results will be.
pub struct Recorder<'a> {
    pub tape: &'a mut Tape,
    pub build: Build,
    pub outputs: Vec<Output>,
}

/// A grid of a block for each of `n` rows.
pub fn rows(n: usize) -> [usize; 3] {
    [n, 1, 1]
}

/// The grid of an operation on `len` elements.
pub fn elements(len: usize) -> [usize; 3] {
    rows(len.div_ceil(2048))
}

/// Row numbers or ids as kernels read them.
pub fn list(values: &[u32]) -> Vec<i32> {
    values.iter().map(|&x| x as i32).collect()
}

impl Recorder<'_> {
    /// A result of which nothing was there before.
    pub fn output(&mut self, result: usize, len: usize, role: Role) -> Buffer {
        let fill = vec![FILL; len];
        let buffer = match role {
            Role::Acc => self.tape.acc(&fill),
            Role::Compute => self.tape.compute(&fill),
        };
        self.in_place(result, buffer, role);
        buffer
    }

    /// A result that takes the place of what is in a buffer.
    pub fn in_place(&mut self, result: usize, buffer: Buffer, role: Role) {
        self.outputs.push(Output { result, buffer, role, skip: 0, start: 0.0, head: None });
    }

    /// A gradient to add to, `skip` elements inside its buffer.
    pub fn sum(&mut self, result: usize, len: usize, skip: usize) -> Buffer {
        let buffer = self.tape.acc(&vec![START; skip + len]);
        self.outputs.push(Output { result, buffer, role: Role::Acc, skip, start: START, head: None });
        buffer
    }

    /// A launch of a block for each of `n` rows, of whole warps that have 8 elements for every thread, up to 1024 threads.
    pub fn run_norm(&mut self, name: &str, n: usize, width: usize, args: &[Arg]) {
        let threads = width.div_ceil(8).next_multiple_of(32).min(1024);
        self.tape.launch(name, rows(n), threads, 0, args);
    }

    /// A launch of 256 threads in a block.
    pub fn run(&mut self, name: &str, grid: [usize; 3], args: &[Arg]) {
        self.tape.launch(name, grid, 256, 0, args);
    }
}
