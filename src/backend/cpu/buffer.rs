//! Buffers of the compute dtype: which of the floating-point types it is, a device is told when it is opened.

use half::{bf16, f16};

use super::aligned::{AlignedVec, in_large_pages};
use crate::Result;
use crate::arch::Dtype;
use crate::backend::{HostSlice, Len};

/// Elements of one floating-point type in memory, from a line of the cache on.
#[derive(Clone, Debug, PartialEq)]
pub enum HostBuffer {
    /// IEEE double precision: the oracle's.
    F64(AlignedVec<f64>),
    /// IEEE single precision.
    F32(AlignedVec<f32>),
    /// bfloat16.
    Bf16(AlignedVec<bf16>),
    /// IEEE half precision.
    F16(AlignedVec<f16>),
}

impl HostBuffer {
    /// `len` zeros.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn zeros(dtype: Dtype, len: usize) -> Result<Self> {
        Ok(match dtype {
            Dtype::F64 => Self::F64(AlignedVec::zeros(len)?),
            Dtype::F32 => Self::F32(AlignedVec::zeros(len)?),
            Dtype::BF16 => Self::Bf16(AlignedVec::zeros(len)?),
            Dtype::F16 => Self::F16(AlignedVec::zeros(len)?),
        })
    }

    /// The type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F64(_) => Dtype::F64,
            Self::F32(_) => Dtype::F32,
            Self::Bf16(_) => Dtype::BF16,
            Self::F16(_) => Dtype::F16,
        }
    }

    /// The elements, borrowed.
    pub fn view(&self) -> HostSlice<'_> {
        match self {
            Self::F64(elements) => HostSlice::F64(elements),
            Self::F32(elements) => HostSlice::F32(elements),
            Self::Bf16(elements) => HostSlice::Bf16(elements),
            Self::F16(elements) => HostSlice::F16(elements),
        }
    }
}

impl Len for HostBuffer {
    fn len(&self) -> usize {
        self.view().len()
    }
}

/// Zeros, or an error rather than an abort if there is no memory for them.
pub fn zeros<T: Default + Clone>(len: usize) -> Result<Vec<T>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|error| crate::Error::Device {
        device: "cpu".to_string(),
        op: "allocation",
        message: format!("{} bytes: {error}", len.saturating_mul(size_of::<T>())),
    })?;
    in_large_pages(&mut buffer);
    buffer.resize(len, T::default());
    Ok(buffer)
}
