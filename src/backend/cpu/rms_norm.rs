//! RMS norm: a task is some rows; the gradient of the weight is cut by columns, so that each sum runs over the rows in order.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion, sum};
use crate::backend::ops::{Op, RmsNormBwd, RmsNormBwdWeight, RmsNormFwd, RmsNormOps};

/// Columns of the weight's gradient that are summed together: four vectors of AVX-512, eight of AVX2.
const COLUMNS: usize = 64;

impl<A: Float> RmsNormOps for Cpu<A> {
    fn rms_norm_fwd(&mut self, op: RmsNormFwd<'_, Self>) {
        op.check();
        self.run(op);
    }

    fn rms_norm_bwd(&mut self, op: RmsNormBwd<'_, Self>) {
        op.check();
        let RmsNormBwd { d_x, d_out, x, rstd, weight, rows: count, width } = op;
        let Context { exec, memory, .. } = &mut self.cx;
        let weight = weight.widened(exec.isa, memory);
        each_part(&exec.pool, count, width, rows("rms_norm_bwd", d_x, count, width), |first, d_x| {
            bwd_rows(exec.isa, d_x, &d_out[first * width..], &x[first * width..], &rstd[first..], weight);
        });
    }

    fn rms_norm_bwd_weight(&mut self, op: RmsNormBwdWeight<'_, Self>) {
        op.check();
        let RmsNormBwdWeight { d_weight, offset, d_out, x, rstd, rows: count, width } = op;
        let (exec, rstd) = (&self.cx.exec, &rstd[..count]);
        let whole = width / COLUMNS;
        let (columns, rest) = d_weight[offset..offset + width].split_at_mut(whole * COLUMNS);
        let columns = rows("rms_norm_bwd_weight", columns, whole, COLUMNS);
        each_part(&exec.pool, whole, COLUMNS * count, columns, |first, part| {
            bwd_columns(exec.isa, part, &d_out[first * COLUMNS..], &x[first * COLUMNS..], rstd, width);
        });
        bwd_columns(exec.isa, rest, &d_out[whole * COLUMNS..], &x[whole * COLUMNS..], rstd, width);
    }
}

impl<A: Float> Kernel<A> for RmsNormFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, rstd, x, weight, rows: count, width, eps } = self;
        let Context { exec, memory, .. } = cx;
        let weight = weight.widened(exec.isa, memory);
        let out = rows("rms_norm_fwd", C::slice_mut(out), count, width);
        let outs = (out, rows("rms_norm_fwd", rstd, count, 1));
        each_part(&exec.pool, count, width, outs, |first, (out, rstd)| {
            fwd_rows::<A, C>(exec.isa, out, rstd, &x[first * width..], weight, A::from_f64(eps));
        });
    }
}

multiversion! {
    fn fwd_rows[A: Float, C: Element<A>](out: &mut [C], rstd: &mut [A], x: &[A], scale: &[A], eps: A) {
        let width = scale.len();
        for ((out, rstd), x) in out.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
            let mean = sum(width, |i| x[i] * x[i]) / A::from_f64(width as f64);
            *rstd = A::ONE / (mean + eps).sqrt();
            for ((o, &x), &s) in out.iter_mut().zip(x).zip(scale) {
                *o = C::narrow(C::narrow(x * *rstd).widen() * s);
            }
        }
    }
}

multiversion! {
    fn bwd_rows[A: Float](d_x: &mut [A], d_out: &[A], x: &[A], rstd: &[A], scale: &[A]) {
        let width = scale.len();
        for (row, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let (d_out, x, rstd) = (&d_out[row * width..][..width], &x[row * width..][..width], rstd[row]);
            let dot = sum(width, |i| d_out[i] * scale[i] * x[i]);
            let along = dot * rstd * rstd / A::from_f64(width as f64);
            for i in 0..width {
                d_x[i] += rstd * (d_out[i] * scale[i] - x[i] * along);
            }
        }
    }
}

multiversion! {
    fn bwd_columns[A: Float](d_weight: &mut [A], d_out: &[A], x: &[A], rstd: &[A], width: usize) {
        for (part, d_weight) in d_weight.chunks_mut(COLUMNS).enumerate() {
            let mut sums = [A::ZERO; COLUMNS];
            for (row, &rstd) in rstd.iter().enumerate() {
                let from = row * width + part * COLUMNS;
                let (d_out, x) = (&d_out[from..][..d_weight.len()], &x[from..][..d_weight.len()]);
                for ((s, &d), &x) in sums.iter_mut().zip(d_out).zip(x) {
                    *s += d * x * rstd;
                }
            }
            for (d, &s) in d_weight.iter_mut().zip(&sums) {
                *d += s;
            }
        }
    }
}
