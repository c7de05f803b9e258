//! Looking into a pass: a forward is generic over [`Taps`], which is handed tensors as they are made.
//!
//! [`NoTaps`] is a zero-sized type whose answers are constants, so that a pass without taps pays nothing. A tapped
//! tensor is a buffer that the forward makes anyway; the tap sees it before anything else is written to it. On the CPU
//! the host reads it in place ([`Tapped::host`]).

use crate::backend::{Backend, HostSlice, Tensor};
use crate::shape::Pack;

pub mod capture;
pub mod site;

pub use capture::{Record, Reduce, Reduction};
pub use site::{Selection, Site};

/// A tensor handed to a tap.
pub struct Tapped<'a, B: Backend> {
    /// Where it arises.
    pub site: Site,
    /// In which layer (0 outside the blocks).
    pub layer: usize,
    /// The pack rows that the tensor's rows belong to; none means every row of the pack, in order.
    pub rows: Option<&'a [usize]>,
    /// Elements of a row.
    pub width: usize,
    /// The elements, `[rows, width]`; the buffer may be longer.
    pub data: Tensor<'a, B>,
    /// The pack.
    pub pack: &'a Pack,
}

impl<'a, B: Backend> Tapped<'a, B> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.map_or(self.pack.len(), <[usize]>::len)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in place, where the host can read them without a copy.
    pub fn host(&self, backend: &B) -> Option<HostSlice<'a>> {
        match self.data {
            Tensor::Wide(buffer) => backend.borrow_wide(buffer),
            Tensor::Real(buffer) => backend.borrow_real(buffer),
        }
    }

    /// The row of this tensor that belongs to pack row `row`, if it is there.
    pub fn find(&self, row: usize) -> Option<usize> {
        match self.rows {
            None => (row < self.pack.len()).then_some(row),
            Some(rows) => rows.iter().position(|&r| r == row),
        }
    }
}

/// What looks into a forward.
pub trait Taps<B: Backend> {
    /// Whether [`Taps::tap`] is to be called for a place. Asked once per place and pass.
    fn wants(&self, site: Site, layer: usize) -> bool;

    /// Called as soon as the tensor is there.
    fn tap(&mut self, backend: &mut B, tapped: Tapped<'_, B>);

    /// The pack rows for which the sites computed on demand ([`Site::on_demand`]) are computed; none means all.
    fn rows(&self) -> Option<&[usize]> {
        None
    }

    /// The first layer that is not computed, if the rest of the model is not needed.
    fn stop_at_layer(&self) -> Option<usize> {
        None
    }
}

/// Looks at nothing and costs nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTaps;

impl<B: Backend> Taps<B> for NoTaps {
    #[inline(always)]
    fn wants(&self, _: Site, _: usize) -> bool {
        false
    }

    #[inline(always)]
    fn tap(&mut self, _: &mut B, _: Tapped<'_, B>) {}
}
