//! RMS norm: a task is some rows; the gradient of the weight is cut by columns, so that each sum runs over the rows in order.

use super::Cpu;
use super::context::{Context, Exec};
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion, sum};
use super::weight::Weight;
use crate::arch::RmsWeight;
use crate::backend::ops::{
    RmsNormBwd, RmsNormBwdWeight, RmsNormComputeBwd, RmsNormComputeBwdWeight, RmsNormComputeFwd, RmsNormFwd, RmsNormOps,
};

/// Columns of the weight's gradient that are summed together: four vectors of AVX-512, eight of AVX2.
const COLUMNS: usize = 64;

impl<A: Float> RmsNormOps for Cpu<A> {
    fn rms_norm_fwd(&mut self, op: RmsNormFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn rms_norm_bwd(&mut self, op: RmsNormBwd<'_, Self>) {
        let _span = self.begin(&op);
        let RmsNormBwd { d_x, d_out, x, rstd, weight, rows: count, width, form } = op;
        let Context { exec, memory, .. } = &mut self.cx;
        let weight = weight.widened(exec.isa, memory);
        each_part(&exec.pool, count, width, rows("rms_norm_bwd", d_x, count, width), |first, d_x| {
            let rows = Rows { x: &x[first * width..], rstd: &rstd[first..], scale: weight, one: one(form) };
            bwd_rows(exec.isa, d_x, &d_out[first * width..], rows);
        });
    }

    fn rms_norm_bwd_weight(&mut self, op: RmsNormBwdWeight<'_, Self>) {
        let _span = self.begin(&op);
        let RmsNormBwdWeight { d_weight, offset, d_out, x, rstd, rows, width } = op;
        let d_weight = &mut d_weight[offset..offset + width];
        bwd_weight::<A, A>(&self.cx.exec, d_weight, d_out, x, &rstd[..rows]);
    }

    fn rms_norm_compute_fwd(&mut self, op: RmsNormComputeFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn rms_norm_compute_bwd(&mut self, op: RmsNormComputeBwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn rms_norm_compute_bwd_weight(&mut self, op: RmsNormComputeBwdWeight<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for RmsNormFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, rstd, x, weight, rows, width, eps, form } = self;
        fwd::<A, A, C>(cx, [rows, width], C::slice_mut(out), rstd, x, weight, (A::from_f64(eps), form));
    }
}

impl<A: Float> Kernel<A> for RmsNormComputeFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, rstd, x, weight, rows, width, eps, form } = self;
        fwd::<A, C, C>(cx, [rows, width], C::slice_mut(out), rstd, C::slice(x), weight, (A::from_f64(eps), form));
    }
}

impl<A: Float> Kernel<A> for RmsNormComputeBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_x, x, rstd, weight, rows: count, width, form } = self;
        let Context { exec, memory, .. } = cx;
        let (x, weight) = (C::slice(x), weight.widened(exec.isa, memory));
        let d_x = rows("rms_norm_compute_bwd", C::slice_mut(d_x), count, width);
        each_part(&exec.pool, count, width, d_x, |first, d_x| {
            let rows = Rows { x: &x[first * width..], rstd: &rstd[first..], scale: weight, one: one(form) };
            bwd_rows_in_place(exec.isa, d_x, rows);
        });
    }
}

impl<A: Float> Kernel<A> for RmsNormComputeBwdWeight<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_weight, offset, d_out, x, rstd, rows, width } = self;
        let d_weight = &mut d_weight[offset..offset + width];
        bwd_weight(&cx.exec, d_weight, C::slice(d_out), C::slice(x), &rstd[..rows]);
    }
}

/// What a weight is more than what multiplies.
fn one<A: Float>(form: RmsWeight) -> A {
    if form == RmsWeight::OnePlus { A::ONE } else { A::ZERO }
}

/// The forward over `[rows, width]`, of rows of `S`.
fn fwd<A: Float, S: Element<A>, C: Element<A>>(
    cx: &mut Context<A>,
    [count, width]: [usize; 2],
    out: &mut [C],
    rstd: &mut [A],
    x: &[S],
    weight: &Weight,
    (eps, form): (A, RmsWeight),
) {
    let Context { exec, memory, .. } = cx;
    let weight = weight.widened(exec.isa, memory);
    let outs = (rows("rms_norm_fwd", out, count, width), rows("rms_norm_fwd", rstd, count, 1));
    each_part(&exec.pool, count, width, outs, |first, (out, rstd)| {
        let x = &x[first * width..];
        match form {
            RmsWeight::Rounded => fwd_rows_rounded::<A, S, C>(exec.isa, out, rstd, x, weight, eps),
            RmsWeight::Exact | RmsWeight::OnePlus => {
                fwd_rows_exact::<A, S, C>(exec.isa, out, rstd, x, weight, eps, one(form));
            }
        }
    });
}

/// `1 / rms(x)`.
#[inline(always)]
fn inverse<A: Float, S: Element<A>>(x: &[S], eps: A) -> A {
    let mean = sum(x.len(), |i| x[i].widen() * x[i].widen()) / A::from_f64(x.len() as f64);
    A::ONE / (mean + eps).sqrt()
}

multiversion! {
    fn fwd_rows_rounded[A: Float, S: Element<A>, C: Element<A>](
        out: &mut [C], rstd: &mut [A], x: &[S], scale: &[A], eps: A,
    ) {
        let width = scale.len();
        for ((out, rstd), x) in out.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
            *rstd = inverse(x, eps);
            for ((o, &x), &s) in out.iter_mut().zip(x).zip(scale) {
                *o = C::narrow(C::narrow(x.widen() * *rstd).widen() * s);
            }
        }
    }
}

multiversion! {
    fn fwd_rows_exact[A: Float, S: Element<A>, C: Element<A>](
        out: &mut [C], rstd: &mut [A], x: &[S], scale: &[A], eps: A, one: A,
    ) {
        let width = scale.len();
        for ((out, rstd), x) in out.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
            *rstd = inverse(x, eps);
            for ((o, &x), &s) in out.iter_mut().zip(x).zip(scale) {
                *o = C::narrow(x.widen() * *rstd * (one + s));
            }
        }
    }
}

/// What a backward reads of the forward.
struct Rows<'a, A, S> {
    /// `[N, C]`.
    x: &'a [S],
    /// `[N]`.
    rstd: &'a [A],
    /// `[C]`.
    scale: &'a [A],
    /// What is added to the scale.
    one: A,
}

impl<A: Float, S: Element<A>> Rows<'_, A, S> {
    /// Of a row with the gradient `d_out` of its output: by element, that of its input.
    #[inline(always)]
    fn gradient(&self, row: usize, d_out: impl Fn(usize) -> A, mut set: impl FnMut(usize, A)) {
        let (width, scale, one) = (self.scale.len(), self.scale, self.one);
        let (x, rstd) = (&self.x[row * width..][..width], self.rstd[row]);
        let dot = sum(width, |i| d_out(i) * (one + scale[i]) * x[i].widen());
        let along = dot * rstd * rstd / A::from_f64(width as f64);
        for i in 0..width {
            set(i, rstd * (d_out(i) * (one + scale[i]) - x[i].widen() * along));
        }
    }
}

multiversion! {
    fn bwd_rows[A: Float](d_x: &mut [A], d_out: &[A], rows: Rows<'_, A, A>) {
        let width = rows.scale.len();
        for (row, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let d_out = &d_out[row * width..][..width];
            rows.gradient(row, |i| d_out[i], |i, d| d_x[i] += d);
        }
    }
}

multiversion! {
    fn bwd_rows_in_place[A: Float, C: Element<A>](d_x: &mut [C], rows: Rows<'_, A, C>) {
        let width = rows.scale.len();
        for (row, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let d_x = std::cell::Cell::from_mut(d_x).as_slice_of_cells();
            rows.gradient(row, |i| d_x[i].get().widen(), |i, d| d_x[i].set(C::narrow(d)));
        }
    }
}

/// `d_weight [C] +=`; a task is some columns, so that each sum runs over the rows in order.
fn bwd_weight<A: Float, S: Element<A>>(exec: &Exec, d_weight: &mut [A], d_out: &[S], x: &[S], rstd: &[A]) {
    let (width, count) = (d_weight.len(), rstd.len());
    let whole = width / COLUMNS;
    let (columns, rest) = d_weight.split_at_mut(whole * COLUMNS);
    let columns = rows("rms_norm_bwd_weight", columns, whole, COLUMNS);
    each_part(&exec.pool, whole, COLUMNS * count, columns, |first, part| {
        bwd_columns(exec.isa, part, &d_out[first * COLUMNS..], &x[first * COLUMNS..], rstd, width);
    });
    bwd_columns(exec.isa, rest, &d_out[whole * COLUMNS..], &x[whole * COLUMNS..], rstd, width);
}

multiversion! {
    fn bwd_columns[A: Float, S: Element<A>](d_weight: &mut [A], d_out: &[S], x: &[S], rstd: &[A], width: usize) {
        for (part, d_weight) in d_weight.chunks_mut(COLUMNS).enumerate() {
            let mut sums = [A::ZERO; COLUMNS];
            for (row, &rstd) in rstd.iter().enumerate() {
                let from = row * width + part * COLUMNS;
                let (d_out, x) = (&d_out[from..][..d_weight.len()], &x[from..][..d_weight.len()]);
                for ((s, &d), &x) in sums.iter_mut().zip(d_out).zip(x) {
                    *s += d.widen() * x.widen() * rstd;
                }
            }
            for (d, &s) in d_weight.iter_mut().zip(&sums) {
                *d += s;
            }
        }
    }
}
