//! The operations of the contract under test: one list of cases, run on any device, and naively.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod cases;
pub mod device;
pub mod naive;
pub mod op;
pub mod parity;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// `len` normal numbers, the same for the same seed.
pub fn normal(seed: u64, len: usize) -> Vec<f64> {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    StandardNormal.sample_iter(rng).take(len).collect()
}
