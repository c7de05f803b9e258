//! The dtypes that kernels compute in.

use cudarc::cublaslt::sys::cudaDataType_t;
use half::{bf16, f16};

use crate::formats::safetensors::Dtype;

/// A compute dtype of the kernels.
pub trait Compute: bytemuck::Pod + Default + Send + Sync {
    /// Its name in the kernels.
    const KERNEL: &'static str;
    /// Its name.
    const NAME: &'static str;
    /// As checkpoints have it.
    const DTYPE: Dtype;
    /// As cuBLASLt has it.
    const DATA: cudaDataType_t;
    /// Rounded.
    fn from_f64(x: f64) -> Self;
}

impl Compute for f32 {
    const KERNEL: &'static str = "float";
    const NAME: &'static str = "f32";
    const DTYPE: Dtype = Dtype::F32;
    const DATA: cudaDataType_t = cudaDataType_t::CUDA_R_32F;
    fn from_f64(x: f64) -> Self {
        x as f32
    }
}

impl Compute for bf16 {
    const KERNEL: &'static str = "bf16";
    const NAME: &'static str = "bf16";
    const DTYPE: Dtype = Dtype::BF16;
    const DATA: cudaDataType_t = cudaDataType_t::CUDA_R_16BF;
    fn from_f64(x: f64) -> Self {
        bf16::from_f64(x)
    }
}

impl Compute for f16 {
    const KERNEL: &'static str = "half";
    const NAME: &'static str = "f16";
    const DTYPE: Dtype = Dtype::F16;
    const DATA: cudaDataType_t = cudaDataType_t::CUDA_R_16F;
    fn from_f64(x: f64) -> Self {
        f16::from_f64(x)
    }
}
