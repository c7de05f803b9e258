//! Edits of rows, one after another: they are few beside what a pass computes, and lie apart.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::simd::{Element, Float, Isa, multiversion, sum};
use crate::backend::TensorMut;
use crate::backend::ops::{EditBwd, EditFwd, EditMap, EditOps};

impl<A: Float> EditOps for Cpu<A> {
    fn edit_fwd(&mut self, op: EditFwd<'_, Self>) {
        let _span = self.begin(&op);
        let EditFwd { x, values, rows, value_rows, width, map, add } = op;
        self.run(Edit { x, values, rows, value_rows, width, map, add });
    }

    fn edit_bwd(&mut self, op: EditBwd<'_, Self>) {
        let _span = self.begin(&op);
        let EditBwd { d_x, values, rows, value_rows, width, map } = op;
        self.run(Edit { x: d_x, values, rows, value_rows, width, map, add: 0.0 });
    }
}

/// Either direction.
struct Edit<'a, A: Float> {
    x: TensorMut<'a, Cpu<A>>,
    values: &'a [A],
    rows: &'a [u32],
    value_rows: &'a [u32],
    width: usize,
    map: EditMap,
    add: f64,
}

impl<A: Float> Kernel<A> for Edit<'_, A> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { x, values, rows, value_rows, width, map, add } = self;
        let factors = [map.keep, add, map.along].map(A::from_f64);
        let list = Rows { values, rows, value_rows, width, factors };
        match x {
            TensorMut::Acc(x) => list.edit(cx.exec.isa, x),
            TensorMut::Compute(x) => list.edit(cx.exec.isa, C::slice_mut(x)),
        }
    }
}

/// The rows that are edited, with their values.
struct Rows<'a, A> {
    values: &'a [A],
    rows: &'a [u32],
    value_rows: &'a [u32],
    width: usize,
    factors: [A; 3],
}

impl<A: Float> Rows<'_, A> {
    fn edit<C: Element<A>>(&self, isa: Isa, x: &mut [C]) {
        for (&row, &value) in self.rows.iter().zip(self.value_rows) {
            let v = &self.values[value as usize * self.width..][..self.width];
            edit_row(isa, &mut x[row as usize * self.width..][..self.width], v, self.factors);
        }
    }
}

multiversion! {
    /// `x = keep * x + (add + along * (x . v)) * v`.
    fn edit_row[A: Float, C: Element<A>](x: &mut [C], v: &[A], factors: [A; 3]) {
        let [keep, add, along] = factors;
        let mut factor = add;
        if along != A::ZERO {
            factor += along * sum(x.len(), |i| x[i].widen() * v[i]);
        }
        if keep == A::ZERO {
            for (x, &v) in x.iter_mut().zip(v) {
                *x = C::narrow(factor * v);
            }
        } else {
            for (x, &v) in x.iter_mut().zip(v) {
                *x = C::narrow(keep * x.widen() + factor * v);
            }
        }
    }
}
