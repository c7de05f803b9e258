//! The GPU of the tests that need one.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::path::PathBuf;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cuda::{Cuda, GemmAlgorithms, Settings};

use crate::skips::{Reason, skip};

/// Where the libraries and the cache are.
pub fn settings() -> Settings {
    let asked = |variable: &str| std::env::var(variable).is_ok_and(|value| value == "1");
    let libraries = std::env::var_os("LLAMAPROBE_CUDA_LIBS").unwrap_or_default();
    let gemm = std::env::var("LLAMAPROBE_GEMM").unwrap_or_default();
    Settings {
        library_dirs: std::env::split_paths(&libraries).collect(),
        cache_dir: std::env::var_os("LLAMAPROBE_CUDA_CACHE").map(PathBuf::from),
        hopper: asked("LLAMAPROBE_HOPPER"),
        pdl: asked("LLAMAPROBE_PDL"),
        gemm: GemmAlgorithms::named(&gemm).unwrap_or_default(),
        ..Settings::default()
    }
}

/// The first GPU, computing in a dtype; `None`, and the test is recorded as skipped, where there is none, unless
/// `LLAMAPROBE_REQUIRE_CUDA=1`.
///
/// # Panics
/// If one is required and there is none.
pub fn device(dtype: Dtype) -> Option<Cuda> {
    match Cuda::open(0, dtype, &settings()) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("LLAMAPROBE_REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "LLAMAPROBE_REQUIRE_CUDA=1: {error}");
            println!("{error}");
            skip(Reason::Cuda);
            None
        }
    }
}
