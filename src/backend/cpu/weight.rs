//! Frozen weights: the file's own elements, converted where they are read.

use super::aligned::AlignedVec;
use super::buffer::HostBuffer;
use super::dequantize::Coded;
use super::gemm::Operand;
use super::gemm::operand::Elements;
use super::interleaved::Interleaved;
use super::simd::{self, Float, Isa};
use super::thread_pool::ThreadPool;
use crate::arch::Dtype;
use crate::backend::{HostSlice, Len};
use crate::formats::quantized::QuantizedView;
use crate::formats::safetensors::TensorView;
use crate::{Error, Result};

/// A weight of the checkpoint, or one that is trained.
pub struct Weight {
    store: Store,
    /// The compute dtype, where reading must round to it.
    rounding: Option<Dtype>,
}

enum Store {
    /// In the file, its dtype and alignment checked.
    Mapped(TensorView, Dtype),
    Owned(HostBuffer),
    /// Where its bytes are, its parts checked.
    Quantized(QuantizedView),
    /// In memory of its own, and its name.
    Interleaved(Box<Interleaved>, String),
}

impl Weight {
    /// A weight left in its file. Elements wider than the compute dtype are rounded to it whenever they are read.
    ///
    /// # Errors
    /// If the elements are not floating-point numbers, or are misaligned in memory.
    pub fn mapped(view: &TensorView, compute: Dtype) -> Result<Self> {
        let Some(stored) = view.float() else {
            let found = format!("{} ({})", view.dtype, view.name);
            return Err(Error::unsupported("dtype of a weight", found, "floats"));
        };
        let misaligned = match stored {
            Dtype::F64 => view.as_slice::<f64>().err(),
            Dtype::F32 => view.as_slice::<f32>().err(),
            Dtype::BF16 => view.as_slice::<half::bf16>().err(),
            Dtype::F16 => view.as_slice::<half::f16>().err(),
        };
        if let Some(error) = misaligned {
            return Err(Error::Device { device: "cpu".to_string(), op: "weight", message: error.to_string() });
        }
        let exact = match compute {
            Dtype::F64 => true,
            Dtype::F32 => stored != Dtype::F64,
            Dtype::BF16 | Dtype::F16 => stored == compute,
        };
        Ok(Self { store: Store::Mapped(view.clone(), stored), rounding: (!exact).then_some(compute) })
    }

    /// A quantised weight where its bytes are: its values are decoded whenever they are read, and rounded to the compute dtype.
    ///
    /// # Errors
    /// If its parts are not as long as its shape says.
    pub fn quantized(view: &QuantizedView, compute: Dtype) -> Result<Self> {
        view.check().map_err(|error| {
            let message = format!("{}: {error}", view.name);
            Error::Device { device: "cpu".to_string(), op: "weight", message }
        })?;
        let rounding = matches!(compute, Dtype::BF16 | Dtype::F16).then_some(compute);
        Ok(Self { store: Store::Quantized(view.clone()), rounding })
    }

    /// The same in memory of its own, as products of a few rows are fast with; where there is nothing that is faster, where its bytes are.
    ///
    /// # Errors
    /// As [`Weight::quantized`]; no memory for it.
    pub fn interleaved(isa: Isa, pool: &ThreadPool, view: &QuantizedView, compute: Dtype) -> Result<Self> {
        let weight = Self::quantized(view, compute)?;
        match if compute == Dtype::BF16 { Interleaved::of(isa, pool, &view.matrix())? } else { None } {
            Some(matrix) => Ok(Self { store: Store::Interleaved(Box::new(matrix), view.name.clone()), ..weight }),
            None => Ok(weight),
        }
    }

    /// A weight of the backend's own, `params` rounded to the compute dtype.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn owned<A: Float>(isa: Isa, compute: Dtype, params: &[A]) -> Result<Self> {
        let mut own = HostBuffer::zeros(compute, params.len())?;
        simd::narrow_into(isa, &mut own, params);
        Ok(Self { store: Store::Owned(own), rounding: None })
    }

    /// `weight = params`, rounded.
    ///
    /// # Panics
    /// If the weight is mapped.
    pub fn refresh<A: Float>(&mut self, isa: Isa, params: &[A]) {
        match &mut self.store {
            Store::Owned(own) => {
                let params = &params[..own.len()];
                simd::narrow_into(isa, own, params);
            }
            Store::Mapped(TensorView { name, .. }, _)
            | Store::Quantized(QuantizedView { name, .. })
            | Store::Interleaved(_, name) => {
                panic!("refresh_weight: {name} is frozen")
            }
        }
    }

    fn elements(&self) -> Elements<'_> {
        const CHECKED: &str = "dtype and alignment were checked when the weight was made";
        Elements::Floats(match &self.store {
            Store::Owned(own) => own.view(),
            Store::Mapped(view, dtype) => match dtype {
                Dtype::F64 => HostSlice::F64(view.as_slice().expect(CHECKED)),
                Dtype::F32 => HostSlice::F32(view.as_slice().expect(CHECKED)),
                Dtype::BF16 => HostSlice::Bf16(view.as_slice().expect(CHECKED)),
                Dtype::F16 => HostSlice::F16(view.as_slice().expect(CHECKED)),
            },
            Store::Quantized(view) => return Elements::Quantized(view.matrix()),
            Store::Interleaved(matrix, _) => return Elements::Interleaved(matrix),
        })
    }

    /// As the operand of a product, `[_, stride]`.
    ///
    /// # Panics
    /// If it is quantised, in rows of another length.
    pub fn operand<A: Float>(&self, stride: usize) -> Operand<'_, A> {
        let operand = match self.elements() {
            Elements::Floats(elements) => Operand::host(elements, stride).of_weight(),
            Elements::Quantized(matrix) => {
                assert!(matrix.columns == stride, "cpu: rows of {stride} of a quantised matrix of {}", matrix.columns);
                Operand::quantized(matrix)
            }
            Elements::Interleaved(matrix) => {
                let [_, columns] = matrix.shape();
                assert!(columns == stride, "cpu: rows of {stride} of a quantised matrix of {columns}");
                Operand::interleaved(matrix)
            }
        };
        operand.rounded(self.rounding.map(simd::rounding))
    }

    /// `out = ` the elements from `from` on.
    pub fn read<A: Float>(&self, isa: Isa, out: &mut [A], from: usize) {
        match self.elements() {
            Elements::Floats(elements) => simd::read(isa, out, elements, from),
            Elements::Quantized(matrix) => read_quantized(isa, out, &Coded::Rows(matrix), from),
            Elements::Interleaved(matrix) => read_quantized(isa, out, &Coded::Interleaved(matrix), from),
        }
        if let Some(dtype) = self.rounding {
            simd::rounding(dtype)(isa, out);
        }
    }

    /// All elements in `memory`.
    pub fn widened<'a, A: Float>(&self, isa: Isa, memory: &'a mut AlignedVec<A>) -> &'a [A] {
        let out = memory.grow(self.len());
        self.read(isa, out, 0);
        out
    }
}

impl Len for Weight {
    fn len(&self) -> usize {
        match &self.store {
            Store::Owned(own) => own.len(),
            Store::Mapped(view, _) => view.len(),
            Store::Quantized(view) => view.len(),
            Store::Interleaved(matrix, _) => matrix.shape().iter().product(),
        }
    }

    fn quantized_bytes(&self) -> Option<usize> {
        match &self.store {
            Store::Owned(_) | Store::Mapped(..) => None,
            Store::Quantized(view) => Some(view.stored_bytes()),
            Store::Interleaved(matrix, _) => Some(matrix.bytes()),
        }
    }
}

/// `out = ` the elements of all rows from `from` on, as many at once as stay in the first-level cache.
fn read_quantized<A: Float>(isa: Isa, mut out: &mut [A], matrix: &Coded<'_>, mut from: usize) {
    let [_, columns] = matrix.shape();
    let mut wide = [0.0f32; 1024];
    while !out.is_empty() {
        let (row, column) = (from / columns, from % columns);
        let len = out.len().min(wide.len()).min(columns - column);
        let (part, rest) = out.split_at_mut(len);
        matrix.dequantize(isa, &mut wide[..len], row, column);
        simd::read(isa, part, HostSlice::F32(&wide), 0);
        (out, from) = (rest, from + len);
    }
}
