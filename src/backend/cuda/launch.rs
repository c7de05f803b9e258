//! What a launch passes, checked against the kernel's own text.
//!
//! The driver takes arguments as bare addresses and cannot tell an `int` from a `long long`. So the parameter list is
//! read from the text that the kernel was compiled from, and every launch is compared with it.

use std::collections::HashMap;

use super::memory::Buffer;

/// Threads of a block where a kernel's head comment does not say otherwise.
pub const BLOCK: u32 = 256;

/// Most arguments that a kernel takes.
const MAX_ARGS: usize = 32;

/// A kernel's parameter, as far as launches care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Param {
    /// Address of wide elements.
    Floats,
    /// Address of elements of the compute dtype.
    Reals,
    /// Address of anything else.
    Table,
    /// `float`.
    Float,
    /// `int` or `unsigned`.
    Int,
    /// `long long` or `unsigned long long` (`i64`, `u64`).
    Long,
}

/// An argument: what it is, and its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arg {
    /// What it is.
    pub param: Param,
    bits: u64,
}

/// All elements of a wide buffer.
pub fn wide(buffer: &Buffer<f32>) -> Arg {
    wide_at(buffer, 0)
}

/// The elements of a wide buffer from `offset` on.
pub fn wide_at(buffer: &Buffer<f32>, offset: usize) -> Arg {
    Arg { param: Param::Floats, bits: buffer.address(offset) }
}

/// Wide elements at an address.
pub fn floats(address: u64) -> Arg {
    Arg { param: Param::Floats, bits: address }
}

/// All elements of a buffer of the compute dtype.
pub fn real<R>(buffer: &Buffer<R>) -> Arg {
    reals(buffer.address(0))
}

/// Elements of the compute dtype at an address.
pub fn reals(address: u64) -> Arg {
    Arg { param: Param::Reals, bits: address }
}

/// A table at an address; 0 for none.
pub fn table(address: u64) -> Arg {
    Arg { param: Param::Table, bits: address }
}

/// `float`.
pub fn float(x: f64) -> Arg {
    Arg { param: Param::Float, bits: u64::from((x as f32).to_bits()) }
}

/// `int`.
///
/// # Panics
/// If the number does not fit.
pub fn int(x: usize) -> Arg {
    let x = i32::try_from(x).unwrap_or_else(|_| panic!("launch: {x} in an int"));
    Arg { param: Param::Int, bits: u64::from(x as u32) }
}

/// `unsigned`, of which only the bits count.
pub fn unsigned(x: u32) -> Arg {
    Arg { param: Param::Int, bits: u64::from(x) }
}

/// `long long`.
pub fn long(x: usize) -> Arg {
    bits(x as u64)
}

/// `unsigned long long`.
pub fn bits(x: u64) -> Arg {
    Arg { param: Param::Long, bits: x }
}

/// Arguments by value, so that a launch can be kept, compared and repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Args {
    bits: [u64; MAX_ARGS],
    count: usize,
}

impl Args {
    /// The arguments of a launch of `kernel`, which takes `params`.
    ///
    /// # Panics
    /// If they are not what the kernel takes.
    pub fn new(kernel: &str, params: &[Param], args: &[Arg]) -> Self {
        assert!(args.len() == params.len(), "{kernel}: {} arguments, takes {}", args.len(), params.len());
        let mut bits = [0; MAX_ARGS];
        for (i, (arg, param)) in args.iter().zip(params).enumerate() {
            assert!(arg.param == *param, "{kernel}: argument {i} is {:?}, must be {param:?}", arg.param);
            bits[i] = arg.bits;
        }
        Self { bits, count: args.len() }
    }

    /// The address of each argument, as the driver takes them (little-endian: a narrow value lies at the start).
    pub fn addresses(&mut self) -> Vec<*mut std::ffi::c_void> {
        self.bits[..self.count].iter_mut().map(|bits| std::ptr::from_mut(bits).cast()).collect()
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
        (true, true, _) => Param::Floats,
        (true, _, true) => Param::Reals,
        (true, ..) => Param::Table,
        (false, true, _) => Param::Float,
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
        extern \"C\" __global__ void second(const unsigned long long* seeds, unsigned threshold, int4 *tiles, i64 at) {}";

    #[test]
    fn parameter_lists_are_read_from_the_text() {
        let kernels = parameters(SOURCE);
        assert_eq!(kernels.len(), 2);
        use Param::{Float, Floats, Int, Long, Reals, Table};
        assert_eq!(kernels["first"], [Reals, Floats, Table, Int, Long, Float]);
        assert_eq!(kernels["second"], [Table, Int, Table, Long]);
    }

    #[test]
    #[should_panic(expected = "first: argument 3 is Long, must be Int")]
    fn a_wrong_width_is_found() {
        let args = [reals(0), floats(0), table(0), long(1), long(2), float(3.0)];
        Args::new("first", &parameters(SOURCE)["first"], &args);
    }

    #[test]
    #[should_panic(expected = "second: 2 arguments, takes 4")]
    fn a_missing_argument_is_found() {
        Args::new("second", &parameters(SOURCE)["second"], &[table(0), int(1)]);
    }
}
