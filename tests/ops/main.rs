//! The operations of the contract, each on every device: gradients, bits, parity, refusals, and the kernels on the CPU and
//! as compiled for real devices. `benches/gpu.sh` carries this program to a machine with a GPU.
//!
//! What is particular to an operation stands in the file of its name, which `support/ops` declares; the files below are the
//! checks that go over all of them.

#[cfg(feature = "cuda")]
#[path = "../support/cuda.rs"]
mod cuda;
#[macro_use]
#[path = "../support/ops/mod.rs"]
mod ops;
#[path = "../support/counts.rs"]
mod counts;
#[path = "../support/skips.rs"]
mod skips;

mod accesses;
mod bits;
mod compiled;
mod dependent;
mod gradcheck;
mod parity;
mod ptxas;
mod quantized;
mod refusals;
mod sass;
mod simt;
mod tensor_copies;
mod trace;
