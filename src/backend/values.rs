//! Views of buffers, what is on its way to the host, and the sizes of passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Buffers, Len};
use crate::{Error, Result};

/// The host's view of a buffer's elements, borrowed where the device lets the host read them in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HostSlice<'a> {
    /// 64-bit floats (the oracle).
    F64(&'a [f64]),
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [half::bf16]),
    /// IEEE half precision.
    F16(&'a [half::f16]),
}

impl HostSlice<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F64(s) => s.len(),
            Self::F32(s) => s.len(),
            Self::Bf16(s) => s.len(),
            Self::F16(s) => s.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of a range.
    pub fn range(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::F64(s) => Self::F64(&s[range]),
            Self::F32(s) => Self::F32(&s[range]),
            Self::Bf16(s) => Self::Bf16(&s[range]),
            Self::F16(s) => Self::F16(&s[range]),
        }
    }

    /// Element `i`, as `f64` (exact for every dtype).
    pub fn get(&self, i: usize) -> f64 {
        match self {
            Self::F64(s) => s[i],
            Self::F32(s) => f64::from(s[i]),
            Self::Bf16(s) => f64::from(s[i].to_f32()),
            Self::F16(s) => f64::from(s[i].to_f32()),
        }
    }

    /// The elements' bytes, as they lie in memory.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F64(s) => bytemuck::cast_slice(s),
            Self::F32(s) => bytemuck::cast_slice(s),
            Self::Bf16(s) => bytemuck::cast_slice(s),
            Self::F16(s) => bytemuck::cast_slice(s),
        }
    }

    /// Whether all elements are finite.
    pub fn is_finite(&self) -> bool {
        // Without a way out of the loop, it is of vectors.
        match self {
            Self::F64(s) => s.iter().fold(true, |all, x| all & x.is_finite()),
            Self::F32(s) => s.iter().fold(true, |all, x| all & x.is_finite()),
            Self::Bf16(s) => s.iter().fold(true, |all, x| all & x.is_finite()),
            Self::F16(s) => s.iter().fold(true, |all, x| all & x.is_finite()),
        }
    }

    /// The elements `from..from + out.len()` as `f32` (rounded for `f64`, exact otherwise).
    pub fn copy_f32(&self, from: usize, out: &mut [f32]) {
        let range = from..from + out.len();
        match self {
            Self::F64(s) => out.iter_mut().zip(&s[range]).for_each(|(o, &x)| *o = x as f32),
            Self::F32(s) => out.copy_from_slice(&s[range]),
            Self::Bf16(s) => out.iter_mut().zip(&s[range]).for_each(|(o, x)| *o = x.to_f32()),
            Self::F16(s) => out.iter_mut().zip(&s[range]).for_each(|(o, x)| *o = x.to_f32()),
        }
    }
}

/// A buffer of either role, to be read.
pub enum Tensor<'a, B: Buffers + ?Sized> {
    /// In the wide dtype.
    Acc(&'a B::Acc),
    /// In the compute dtype.
    Compute(&'a B::Compute),
}

impl<B: Buffers + ?Sized> Clone for Tensor<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Buffers + ?Sized> Copy for Tensor<'_, B> {}

/// A buffer of either role, to be edited.
pub enum TensorMut<'a, B: Buffers + ?Sized> {
    /// In the wide dtype.
    Acc(&'a mut B::Acc),
    /// In the compute dtype.
    Compute(&'a mut B::Compute),
}

impl<'a, B: Buffers + ?Sized> TensorMut<'a, B> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Acc(buffer) => buffer.len(),
            Self::Compute(buffer) => buffer.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_, B> {
        match self {
            Self::Acc(buffer) => TensorMut::Acc(&mut **buffer),
            Self::Compute(buffer) => TensorMut::Compute(&mut **buffer),
        }
    }

    /// The same, to be read.
    pub fn read(self) -> Tensor<'a, B> {
        match self {
            Self::Acc(buffer) => Tensor::Acc(buffer),
            Self::Compute(buffer) => Tensor::Compute(buffer),
        }
    }
}

/// By which whoever runs the work stops it: a device that heeds it ends with an error where it is next waited for.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Stops, or with `false` no longer.
    pub fn set(&self, stop: bool) {
        self.0.store(stop, Ordering::Relaxed);
    }

    /// Whether work may go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`], once it was stopped.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Captured rows that the device is still to write, or has written.
pub trait Readback: Send + Sync {
    /// The elements where they have arrived, in their own dtype, once they are there.
    fn elements(&self) -> Option<HostSlice<'_>>;

    /// The same as `f32`: of another dtype in memory of their own, from the first call on.
    fn rows(&self) -> Option<&[f32]>;
}

const TOO_EARLY: &str = "capture: read before the device was waited for";

/// Captured rows `[rows, width]`.
#[derive(Clone)]
pub enum Captured {
    /// They are there.
    Ready(Vec<f32>),
    /// The device copies them into memory of the host, which goes back to it when the last clone is dropped.
    Pending(Arc<dyn Readback>),
}

impl Captured {
    /// Whether they are there.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::Ready(_) => true,
            Self::Pending(readback) => readback.elements().is_some(),
        }
    }

    /// The elements where they lie: in the tensor's own dtype, if the device has not made them `f32`.
    ///
    /// # Panics
    /// As [`Captured::rows`].
    pub fn elements(&self) -> HostSlice<'_> {
        match self {
            Self::Ready(rows) => HostSlice::F32(rows),
            Self::Pending(readback) => readback.elements().expect(TOO_EARLY),
        }
    }

    /// The elements as `f32`, which of another dtype takes a copy.
    ///
    /// # Panics
    /// Before the [`Transfer::sync`](super::Transfer::sync) that they need.
    pub fn rows(&self) -> &[f32] {
        match self {
            Self::Ready(rows) => rows,
            Self::Pending(readback) => readback.rows().expect(TOO_EARLY),
        }
    }
}

impl std::fmt::Debug for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(rows) => f.debug_tuple("Ready").field(rows).finish(),
            Self::Pending(readback) => f.debug_tuple("Pending").field(&readback.elements()).finish(),
        }
    }
}

/// What the passes of a plan are at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassSize {
    /// Rows N.
    pub rows: usize,
    /// Rows of those that have a backward; 0 where there is none.
    pub backward_rows: usize,
    /// Label rows M; 0 where there is no backward.
    pub labels: usize,
    /// Query heads, and the width of each.
    pub heads: [usize; 2],
    /// Vocabulary V.
    pub vocab: usize,
    /// Rank of an adapted matrix; 0 for none.
    pub rank: usize,
    /// Most elements of an input or output row of an adapted matrix; 0 for none.
    pub adapted: usize,
    /// Elements of the terms of an input's gradient, where several products with adapters make them at once.
    pub terms: usize,
    /// Runs that are trained.
    pub runs: usize,
    /// Bytes of each download that may be on its way to the host at one time.
    pub readbacks: Vec<usize>,
    /// Bytes of each capture that may be, in the dtype of its tensor.
    pub captures: Vec<usize>,
}

/// Bytes that a backend takes of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnMemory {
    /// On the device: workspaces, scratch of operations, tables of packs.
    pub scratch: usize,
    /// Of the host, pinned, at most.
    pub pinned: usize,
}

/// Element of [`Buffers::Acc`] as the host sees it: `f32` everywhere but in the oracle.
pub trait AccElement: bytemuck::Pod + Default + PartialOrd + std::fmt::Debug + Send + Sync {
    /// From `f64`, rounded.
    fn from_f64(x: f64) -> Self;
    /// To `f64`, exact.
    fn to_f64(self) -> f64;
}

impl AccElement for f32 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl AccElement for f64 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}
