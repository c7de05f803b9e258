//! What a launch passes, checked against the kernel's own text.
//!
//! The driver takes arguments as bare addresses and cannot tell an `int` from a `long long`. So the parameter list is
//! read from the text that the kernel was compiled from, and every launch is compared with it.

use std::collections::HashMap;

use cudarc::driver::result;

use super::driver::Device;
use super::dtype::ComputeDtype;
use super::geometry::{COLUMNS, blocks, elements};
use super::memory::{AccBuffer, ComputeBuffer, DevicePtr};
use super::tensor_map::{Boxes, Matrix};
use super::variant::Heads;
use crate::backend::Len;

/// Threads of a block where a kernel's head comment does not say otherwise.
pub const BLOCK: u32 = 256;

/// Most threads of a block.
const MAX_BLOCK: usize = 1024;
/// Most arguments that a kernel takes.
const MAX_ARGS: usize = 48;

/// A kernel: its file, its name, and the heads that it is compiled for.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// File in `kernels/`.
    pub file: &'static str,
    /// Its name in that file.
    pub name: &'static str,
    /// Heads; the default where it does not vary with them.
    pub heads: Heads,
}

impl Kernel {
    /// A kernel that does not vary with the heads.
    pub fn new(file: &'static str, name: &'static str) -> Self {
        Self { file, name, heads: Heads::default() }
    }
}

/// Grid, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub struct LaunchDims {
    /// Blocks along x, y and z; with a 0 among them there is nothing to launch.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: usize,
}

impl LaunchDims {
    /// Blocks of [`BLOCK`] threads without dynamic shared memory.
    pub fn new(grid: [u32; 3]) -> Self {
        Self { grid, block: BLOCK, shared: 0 }
    }

    /// Of an element-wise kernel over `len` elements.
    pub fn elements(len: usize) -> Self {
        Self::new(elements(len))
    }

    /// Of a kernel with one block for each of `rows`.
    pub fn rows(rows: usize) -> Self {
        Self::new(blocks(rows))
    }

    /// Of a norm of each of `rows`: one block, of whole warps that have 8 elements for every thread, as far as there may be
    /// so many, so that a row stays in registers between its statistics and its result.
    pub fn norm(rows: usize, width: usize) -> Self {
        let threads = width.div_ceil(8).next_multiple_of(32).clamp(32, MAX_BLOCK);
        Self { block: threads as u32, ..Self::rows(rows) }
    }

    /// Of a sum over rows, column by column.
    pub fn columns(width: usize) -> Self {
        Self::new(blocks(width.div_ceil(COLUMNS)))
    }
}

/// A kernel's parameter, as far as launches care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Param {
    /// Address of elements of the accumulation dtype.
    Acc,
    /// Address of elements of the compute dtype.
    Compute,
    /// Address of anything else.
    Table,
    /// `float`.
    Float,
    /// `int` or `unsigned`.
    Int,
    /// `long long` or `unsigned long long` (`i64`, `u64`).
    Long,
    /// A matrix of elements of the compute dtype, of which boxes are copied.
    Boxes,
}

/// What is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Bits(u64),
    Matrix(Matrix),
}

/// An argument: what it is, its value, and the memory that this is the address of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arg {
    /// The type that the kernel's parameter must have.
    pub param: Param,
    value: Value,
    ptr: Option<DevicePtr>,
}

impl Arg {
    /// The address of memory that the launch reads or writes.
    pub fn ptr(param: Param, ptr: DevicePtr) -> Self {
        Self { param, value: Value::Bits(ptr.address()), ptr: Some(ptr) }
    }

    /// A null pointer, where an operand is optional.
    pub fn null(param: Param) -> Self {
        Self::value(param, 0)
    }

    fn value(param: Param, bits: u64) -> Self {
        Self { param, value: Value::Bits(bits), ptr: None }
    }
}

/// All elements of a buffer of the accumulation dtype.
pub fn acc(buffer: &AccBuffer) -> Arg {
    acc_at(buffer, 0)
}

/// The elements of a buffer of the accumulation dtype from `offset` on.
pub fn acc_at(buffer: &AccBuffer, offset: usize) -> Arg {
    acc_ptr(buffer.ptr(offset))
}

/// Elements of the accumulation dtype at an address.
pub fn acc_ptr(ptr: DevicePtr) -> Arg {
    Arg::ptr(Param::Acc, ptr)
}

/// All elements of a buffer of the compute dtype.
pub fn compute(buffer: &ComputeBuffer) -> Arg {
    compute_ptr(buffer.ptr(0))
}

/// Elements of the compute dtype at an address.
pub fn compute_ptr(ptr: DevicePtr) -> Arg {
    Arg::ptr(Param::Compute, ptr)
}

/// A whole buffer as a matrix of so many columns, of which boxes are copied.
pub fn boxes(buffer: &ComputeBuffer, columns: usize, dtype: ComputeDtype) -> Arg {
    let ptr = buffer.ptr(0);
    let matrix = Matrix { address: ptr.address(), rows: buffer.len() / columns, columns, dtype };
    Arg { param: Param::Boxes, value: Value::Matrix(matrix), ptr: Some(ptr) }
}

/// A table at an address.
pub fn table(ptr: DevicePtr) -> Arg {
    Arg::ptr(Param::Table, ptr)
}

/// `float`.
pub fn float(x: f64) -> Arg {
    Arg::value(Param::Float, u64::from((x as f32).to_bits()))
}

/// `int`.
///
/// # Panics
/// If the number does not fit.
pub fn int(x: usize) -> Arg {
    let x = i32::try_from(x).unwrap_or_else(|_| panic!("launch: {x} in an int"));
    Arg::value(Param::Int, u64::from(x as u32))
}

/// `unsigned`, of which only the bits count.
pub fn unsigned(x: u32) -> Arg {
    Arg::value(Param::Int, u64::from(x))
}

/// `long long`.
pub fn long(x: usize) -> Arg {
    bits(x as u64)
}

/// `unsigned long long`.
pub fn bits(x: u64) -> Arg {
    Arg::value(Param::Long, x)
}

/// Asserts that every address among the arguments is one of `device`.
#[track_caller]
pub fn assert_on(op: &'static str, args: &[Arg], device: &Device) {
    for ptr in args.iter().filter_map(|arg| arg.ptr) {
        ptr.on(op, device);
    }
}

/// Arguments by value, so that a launch can be kept, compared and repeated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Args {
    bits: [u64; MAX_ARGS],
    count: usize,
    /// Which of them are matrices.
    matrices: Vec<(usize, Matrix)>,
}

/// Arguments as the driver takes them.
pub struct Encoded {
    bits: [u64; MAX_ARGS],
    count: usize,
    boxes: Vec<(usize, Boxes)>,
}

impl Args {
    /// The arguments of a launch of `kernel`, which takes `params`.
    ///
    /// # Panics
    /// If they are not what the kernel takes.
    pub fn new(kernel: &str, params: &[Param], args: &[Arg]) -> Self {
        assert!(args.len() == params.len(), "{kernel}: {} arguments, takes {}", args.len(), params.len());
        let (mut bits, mut matrices) = ([0; MAX_ARGS], Vec::new());
        for (i, (arg, param)) in args.iter().zip(params).enumerate() {
            assert!(arg.param == *param, "{kernel}: argument {i} is {:?}, must be {param:?}", arg.param);
            match arg.value {
                Value::Bits(value) => bits[i] = value,
                Value::Matrix(matrix) => matrices.push((i, matrix)),
            }
        }
        Self { bits, count: args.len(), matrices }
    }

    /// The same for the driver, which encodes the matrices.
    ///
    /// # Errors
    /// Of the driver.
    pub fn encode(&self) -> Result<Encoded, result::DriverError> {
        let &Self { bits, count, ref matrices } = self;
        let boxes = matrices.iter().map(|(i, matrix)| Ok((*i, matrix.encode()?))).collect::<Result<_, _>>()?;
        Ok(Encoded { bits, count, boxes })
    }
}

impl Encoded {
    /// The address of each argument (little-endian: a narrow value lies at the start).
    pub fn addresses(&mut self) -> Vec<*mut std::ffi::c_void> {
        let bits = self.bits[..self.count].iter_mut();
        let mut addresses: Vec<_> = bits.map(|bits| std::ptr::from_mut(bits).cast()).collect();
        for (i, boxes) in &mut self.boxes {
            addresses[*i] = std::ptr::from_mut(boxes).cast();
        }
        addresses
    }
}

/// The parameters of every kernel in a source text.
///
/// # Panics
/// If a parameter is of a kind that no launch passes.
pub fn parameters(source: &str) -> HashMap<String, Vec<Param>> {
    let source = without_comments(source);
    let mut kernels = HashMap::new();
    for (at, marker) in source.match_indices("__global__") {
        let Some((name, list)) = signature(&source[at + marker.len()..]) else { continue };
        let params = list.split(',').map(str::trim).filter(|param| !param.is_empty());
        kernels.insert(name.to_owned(), params.map(|param| self::param(name, param)).collect());
    }
    kernels
}

/// Name and parameter list that follow `__global__`.
fn signature(text: &str) -> Option<(&str, &str)> {
    let mut rest = text;
    loop {
        let open = rest.find('(')?;
        let name = rest[..open].trim_end().rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next()?;
        let close = open + rest[open..].find(')')?;
        if name != "__launch_bounds__" {
            return Some((name, &rest[open + 1..close]));
        }
        rest = &rest[close + 1..];
    }
}

fn param(kernel: &str, text: &str) -> Param {
    let has = |word: &str| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == word);
    match (text.contains('*'), has("float"), has("real")) {
        (true, true, _) => Param::Acc,
        (true, _, true) => Param::Compute,
        (true, ..) => Param::Table,
        (false, true, _) => Param::Float,
        _ if has("Boxes") => Param::Boxes,
        _ if ["long", "i64", "u64", "size_t"].into_iter().any(has) => Param::Long,
        _ if ["int", "unsigned", "u32"].into_iter().any(has) => Param::Int,
        _ => panic!("{kernel}: a parameter `{text}`"),
    }
}

fn without_comments(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        text.push_str(&rest[..at]);
        let (end, skip) = if rest[at..].starts_with("//") { ("\n", 0) } else { ("*/", 2) };
        rest = rest[at..].find(end).map_or("", |to| &rest[at + to + skip..]);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "
        // extern \"C\" __global__ void comment(int x)
        __device__ float helper(float x) { return x; }
        extern \"C\" __global__ void __launch_bounds__(128)
        first(real* __restrict__ out, const float* __restrict__ x, /* rows */ const int* rows, int n,
              long long stride, float eps) {}
        extern \"C\" __global__ void second(const unsigned long long* seeds, unsigned threshold, int4 *tiles, i64 at) {}
        extern \"C\" __global__ void third(const __grid_constant__ Boxes k) {}";

    #[test]
    fn parameters_are_read_from_the_text() {
        let kernels = parameters(SOURCE);
        assert_eq!(kernels.len(), 3);
        use Param::{Acc, Compute, Float, Int, Long, Table};
        assert_eq!(kernels["first"], [Compute, Acc, Table, Int, Long, Float]);
        assert_eq!(kernels["second"], [Table, Int, Table, Long]);
        assert_eq!(kernels["third"], [Param::Boxes]);
    }

    #[test]
    #[should_panic(expected = "first: argument 3 is Long, must be Int")]
    fn args_of_a_wrong_width_panic() {
        let [c, a, t] = [Param::Compute, Param::Acc, Param::Table].map(Arg::null);
        let args = [c, a, t, long(1), long(2), float(3.0)];
        Args::new("first", &parameters(SOURCE)["first"], &args);
    }

    /// Lists that copy boxes of other matrices are other lists.
    #[test]
    fn args_are_told_apart_by_their_matrices() {
        let args = |address, rows| {
            let matrix = Matrix { address, rows, columns: 64, dtype: ComputeDtype::Bf16 };
            let arg = Arg { param: Param::Boxes, value: Value::Matrix(matrix), ptr: None };
            Args::new("third", &parameters(SOURCE)["third"], &[arg])
        };
        assert_eq!(args(256, 8), args(256, 8));
        assert_ne!(args(256, 8), args(512, 8));
        assert_ne!(args(256, 8), args(256, 9));
    }

    #[test]
    #[should_panic(expected = "second: 2 arguments, takes 4")]
    fn args_that_are_missing_panic() {
        Args::new("second", &parameters(SOURCE)["second"], &[Arg::null(Param::Table), int(1)]);
    }
}
