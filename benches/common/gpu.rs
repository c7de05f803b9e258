//! The GPU that is benched.

use std::path::PathBuf;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cuda::{Cuda, GemmAlgorithms, Settings};

use super::{Subject, subject};

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

/// The first GPU in bf16, if it is the subject and is there.
///
/// # Panics
/// If `LLAMAPROBE_REQUIRE_CUDA=1` and it is not there.
pub fn open() -> Option<Cuda> {
    if subject() == Subject::Cpu {
        return None;
    }
    match Cuda::open(0, Dtype::BF16, &settings()) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("LLAMAPROBE_REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "LLAMAPROBE_REQUIRE_CUDA=1: {error}");
            eprintln!("no CUDA device: {error}");
            None
        }
    }
}
