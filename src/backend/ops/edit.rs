//! Edits of rows of a tensor in place: what interventions on hidden states are made of.
//!
//! Every edit is `x = keep * x + add * v + along * (x . v) * v` for a row x and its value v:
//!
//! | edit | keep | add | along |
//! |---|---|---|---|
//! | add | 1 | 1 | 0 |
//! | replace | 0 | 1 | 0 |
//! | scale by s | s | 0 | 0 |
//! | zero | 0 | 0 | 0 |
//! | project out a unit vector v | 1 | 0 | -1 |
//!
//! The map of x is symmetric: the gradient goes through the same map, without what is added.

use super::check::{need, same};
use super::{Op, Work, operations};
use crate::backend::{Buffers, DeviceIndex, Len, TensorMut};

/// What becomes of a row beside what is added to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EditMap {
    /// What multiplies the row; with 0 it is not even read, so that nothing of a NaN is left.
    pub keep: f64,
    /// What multiplies the row's part along its value, `(x . v) v`.
    pub along: f64,
}

/// `x [N, width] = keep * x + add * v + along * (x . v) * v` at `rows [M]`, v being rows `value_rows [M]` of `values`;
/// the other rows stay. In the accumulation dtype, rounded once.
pub struct EditFwd<'a, B: Buffers + ?Sized> {
    /// `[N, width]`, edited in place.
    pub x: TensorMut<'a, B>,
    /// `[_, width]`.
    pub values: &'a B::Acc,
    /// `[M]`, each below N and there once.
    pub rows: &'a B::Index,
    /// `[M]`, the value of each row.
    pub value_rows: &'a B::Index,
    /// Elements of a row.
    pub width: usize,
    /// What becomes of the row.
    pub map: EditMap,
    /// What multiplies the value that is added.
    pub add: f64,
}

impl<B: Buffers + ?Sized> Op for EditFwd<'_, B> {
    const NAME: &'static str = "edit_fwd";

    fn check(&self) {
        check::<B>(Self::NAME, ("x", &self.x), self.values, [self.rows, self.value_rows], self.width);
    }

    fn work(&self) -> Work {
        work::<B>(&self.x, self.rows.len() * self.width)
    }
}

/// `d_x [N, width] = keep * d_x + along * (d_x . v) * v` at `rows [M]`: from the gradient of what an edit left to that of what
/// it found, in place.
pub struct EditBwd<'a, B: Buffers + ?Sized> {
    /// `[N, width]`, edited in place.
    pub d_x: TensorMut<'a, B>,
    /// `[_, width]`, of the forward.
    pub values: &'a B::Acc,
    /// `[M]`, of the forward.
    pub rows: &'a B::Index,
    /// `[M]`, of the forward.
    pub value_rows: &'a B::Index,
    /// Elements of a row.
    pub width: usize,
    /// What the forward did to the rows.
    pub map: EditMap,
}

impl<B: Buffers + ?Sized> Op for EditBwd<'_, B> {
    const NAME: &'static str = "edit_bwd";

    fn check(&self) {
        check::<B>(Self::NAME, ("d_x", &self.d_x), self.values, [self.rows, self.value_rows], self.width);
    }

    fn work(&self) -> Work {
        work::<B>(&self.d_x, self.rows.len() * self.width)
    }
}

fn check<B: Buffers + ?Sized>(
    op: &'static str,
    (name, x): (&str, &TensorMut<'_, B>),
    values: &B::Acc,
    [rows, value_rows]: [&B::Index; 2],
    width: usize,
) {
    need(op, name, x.len(), rows.bound() * width);
    need(op, "values", values.len(), value_rows.bound() * width);
    same(op, "the number of value rows", value_rows.len(), rows.len());
}

/// Of `len` elements of the tensor, read and written, and as many of values.
fn work<B: Buffers + ?Sized>(x: &TensorMut<'_, B>, len: usize) -> Work {
    match x {
        TensorMut::Acc(_) => Work::moved(3 * len, 0, 0),
        TensorMut::Compute(_) => Work::moved(len, 2 * len, 0),
    }
}

operations! {
    /// Edits of rows, forward and backward.
    EditOps {
        edit_fwd(EditFwd);
        edit_bwd(EditBwd);
    }
}
