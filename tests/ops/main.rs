//! The operations of the contract, each on every device: gradients, bits, parity, and the kernels on the CPU and as
//! compiled for real devices. `benches/gpu.sh` carries this program to a machine with a GPU.

#[cfg(feature = "cuda")]
#[path = "../support/cuda.rs"]
mod cuda;
#[path = "../support/ops/mod.rs"]
mod ops;
#[path = "../simt/mod.rs"]
mod simt;
#[path = "../support/skips.rs"]
mod skips;

mod bits;
mod gradcheck;
mod parity;
mod ptxas;
mod trace;
