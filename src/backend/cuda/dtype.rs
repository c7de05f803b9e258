//! The compute dtypes that the kernels are built for.

use cudarc::cublaslt::sys::cudaDataType_t;

use crate::arch::Dtype;
use crate::{Error, Result};

/// What matrix products read and write. Sums are made in `f32` whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComputeDtype {
    /// IEEE single precision.
    F32,
    /// bfloat16: 8 bits of exponent, 8 of precision.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl ComputeDtype {
    /// The kernels' dtype of this name.
    ///
    /// # Errors
    /// For `F64`, which no kernel is built for.
    pub fn new(dtype: Dtype) -> Result<Self> {
        match dtype {
            Dtype::F32 => Ok(Self::F32),
            Dtype::BF16 => Ok(Self::Bf16),
            Dtype::F16 => Ok(Self::F16),
            Dtype::F64 => Err(Error::unsupported("compute dtype on CUDA", dtype, "F32, BF16, F16")),
        }
    }

    /// As the rest of the program has it.
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        self.dtype().size()
    }

    /// What `REAL` is where kernels are compiled for it.
    pub const fn kernel_type(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::Bf16 => "bf16",
            Self::F16 => "half",
        }
    }

    /// As cuBLASLt has it.
    pub const fn cublas_type(self) -> cudaDataType_t {
        match self {
            Self::F32 => cudaDataType_t::CUDA_R_32F,
            Self::Bf16 => cudaDataType_t::CUDA_R_16BF,
            Self::F16 => cudaDataType_t::CUDA_R_16F,
        }
    }
}
