//! Frozen weights: the file's own elements, converted where they are read.

use super::gemm::{Operand, Rounding};
use super::simd::{self, Element, Float, Isa, multiversion};
use crate::backend::HostSlice;
use crate::formats::safetensors::{Dtype, TensorView};
use crate::{Error, Result};

/// A weight of the checkpoint, or one that is trained.
pub struct Weight<W, R> {
    store: Store<R>,
    rounding: Option<Rounding<W>>,
}

enum Store<R> {
    Mapped(TensorView),
    Owned(Vec<R>),
}

impl<W: Float, R: Element<W>> Weight<W, R> {
    /// A weight left in its file. Elements wider than the compute dtype are rounded to it whenever they are read.
    ///
    /// # Errors
    /// If the elements are not floating-point numbers, or lie askew in memory.
    pub fn mapped(view: &TensorView) -> Result<Self> {
        let checked = match view.dtype {
            Dtype::F64 => view.as_slice::<f64>().err(),
            Dtype::F32 => view.as_slice::<f32>().err(),
            Dtype::BF16 => view.as_slice::<half::bf16>().err(),
            Dtype::F16 => view.as_slice::<half::f16>().err(),
            found => return Err(Error::unsupported("dtype of a weight", format!("{found} ({})", view.name), "floats")),
        };
        if let Some(error) = checked {
            return Err(Error::Device { device: "cpu".to_string(), op: "weight", message: error.to_string() });
        }
        let exact = match R::host(&[]) {
            HostSlice::F64(_) => true,
            HostSlice::F32(_) => view.dtype != Dtype::F64,
            HostSlice::Bf16(_) => view.dtype == Dtype::BF16,
            HostSlice::F16(_) => view.dtype == Dtype::F16,
        };
        Ok(Self { store: Store::Mapped(view.clone()), rounding: (!exact).then_some(round::<W, R>) })
    }

    /// A weight of the backend's own, `params` rounded.
    pub fn owned(isa: Isa, params: &[W]) -> Self {
        let mut own = vec![R::default(); params.len()];
        simd::narrow(isa, &mut own, params);
        Self { store: Store::Owned(own), rounding: None }
    }

    /// `weight = params`, rounded.
    ///
    /// # Panics
    /// If the weight is mapped.
    pub fn refresh(&mut self, isa: Isa, params: &[W]) {
        match &mut self.store {
            Store::Owned(own) => {
                let params = &params[..own.len()];
                simd::narrow(isa, own, params);
            }
            Store::Mapped(view) => panic!("refresh_weight: {} is frozen", view.name),
        }
    }

    fn host(&self) -> HostSlice<'_> {
        const CHECKED: &str = "dtype and alignment were checked when the weight was made";
        match &self.store {
            Store::Owned(own) => R::host(own),
            Store::Mapped(view) => match view.dtype {
                Dtype::F64 => HostSlice::F64(view.as_slice().expect(CHECKED)),
                Dtype::BF16 => HostSlice::Bf16(view.as_slice().expect(CHECKED)),
                Dtype::F16 => HostSlice::F16(view.as_slice().expect(CHECKED)),
                _ => HostSlice::F32(view.as_slice().expect(CHECKED)),
            },
        }
    }

    /// As the operand of a product, `[_, stride]`.
    pub fn operand(&self, stride: usize) -> Operand<'_, W> {
        Operand::host(self.host(), stride).rounded(self.rounding).of_weight()
    }

    /// `out = ` the elements from `from` on.
    pub fn read(&self, isa: Isa, out: &mut [W], from: usize) {
        simd::read(isa, out, self.host(), from);
        if let Some(round) = self.rounding {
            round(isa, out);
        }
    }
}

multiversion! {
    fn round[W: Float, R: Element<W>](x: &mut [W]) {
        for v in x {
            *v = R::narrow(*v).widen();
        }
    }
}
