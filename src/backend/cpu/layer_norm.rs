//! Layer norm: a task is some rows; the gradients of weight and bias are cut by columns, so that each sum runs over the rows
//! in order.

use super::Cpu;
use super::context::{Context, carve};
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, multiversion, sum};
use crate::backend::ops::{LayerNormBwd, LayerNormBwdAffine, LayerNormFwd, LayerNormOps};

/// Columns of the gradients of weight and bias that are summed together: four vectors of AVX-512, eight of AVX2.
const COLUMNS: usize = 64;

impl<A: Float> LayerNormOps for Cpu<A> {
    fn layer_norm_fwd(&mut self, op: LayerNormFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn layer_norm_bwd(&mut self, op: LayerNormBwd<'_, Self>) {
        let _span = self.begin(&op);
        let LayerNormBwd { d_x, d_out, x, mean, rstd, weight, rows: count, width } = op;
        let Context { exec, memory, .. } = &mut self.cx;
        let weight = weight.widened(exec.isa, memory);
        each_part(&exec.pool, count, width, rows("layer_norm_bwd", d_x, count, width), |first, d_x| {
            let from = first * width;
            bwd_rows(exec.isa, d_x, &d_out[from..], &x[from..], &mean[first..], &rstd[first..], weight);
        });
    }

    fn layer_norm_bwd_affine(&mut self, op: LayerNormBwdAffine<'_, Self>) {
        let _span = self.begin(&op);
        let LayerNormBwdAffine { d_affine, offset, d_out, x, mean, rstd, rows: count, width } = op;
        let (exec, mean, rstd) = (&self.cx.exec, &mean[..count], &rstd[..count]);
        let (d_weight, d_bias) = d_affine[offset..offset + 2 * width].split_at_mut(width);
        let [d_weight, d_bias] = [d_weight, d_bias].map(|out| rows("layer_norm_bwd_affine", out, width, 1));
        each_part(&exec.pool, width, count, (d_weight, d_bias), |first, (d_weight, d_bias)| {
            bwd_columns(exec.isa, d_weight, d_bias, &d_out[first..], &x[first..], mean, rstd, width);
        });
    }
}

impl<A: Float> Kernel<A> for LayerNormFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, mean, rstd, x, weight, bias, rows: count, width, eps } = self;
        let Context { exec, memory, .. } = cx;
        let [scale, shift] = carve(memory, [width; 2]);
        weight.read(exec.isa, scale, 0);
        bias.read(exec.isa, shift, 0);
        let (op, eps) = ("layer_norm_fwd", A::from_f64(eps));
        let [mean, rstd] = [mean, rstd].map(|out| rows(op, out, count, 1));
        let outs = (rows(op, C::slice_mut(out), count, width), (mean, rstd));
        each_part(&exec.pool, count, width, outs, |first, (out, (mean, rstd))| {
            fwd_rows::<A, C>(exec.isa, out, mean, rstd, &x[first * width..], scale, shift, eps);
        });
    }
}

multiversion! {
    fn fwd_rows[A: Float, C: Element<A>](
        out: &mut [C],
        mean: &mut [A],
        rstd: &mut [A],
        x: &[A],
        scale: &[A],
        shift: &[A],
        eps: A,
    ) {
        let (width, count) = (scale.len(), A::from_f64(scale.len() as f64));
        for (row, (out, x)) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            let row_mean = sum(width, |i| x[i]) / count;
            let variance = sum(width, |i| (x[i] - row_mean) * (x[i] - row_mean)) / count;
            let row_rstd = A::ONE / (variance + eps).sqrt();
            (mean[row], rstd[row]) = (row_mean, row_rstd);
            for i in 0..width {
                out[i] = C::narrow((x[i] - row_mean) * row_rstd * scale[i] + shift[i]);
            }
        }
    }
}

multiversion! {
    fn bwd_rows[A: Float](d_x: &mut [A], d_out: &[A], x: &[A], mean: &[A], rstd: &[A], scale: &[A]) {
        let (width, count) = (scale.len(), A::from_f64(scale.len() as f64));
        for (row, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let (d_out, x) = (&d_out[row * width..][..width], &x[row * width..][..width]);
            let (mean, rstd) = (mean[row], rstd[row]);
            let mean_g = sum(width, |i| d_out[i] * scale[i]) / count;
            let proj = sum(width, |i| d_out[i] * scale[i] * (x[i] - mean)) * rstd * rstd / count;
            for i in 0..width {
                d_x[i] += rstd * (d_out[i] * scale[i] - mean_g - (x[i] - mean) * proj);
            }
        }
    }
}

multiversion! {
    /// Sums of columns, each from the first row to the last.
    fn bwd_columns[A: Float](
        d_weight: &mut [A],
        d_bias: &mut [A],
        d_out: &[A],
        x: &[A],
        mean: &[A],
        rstd: &[A],
        width: usize,
    ) {
        let parts = d_weight.chunks_mut(COLUMNS).zip(d_bias.chunks_mut(COLUMNS));
        for (part, (d_weight, d_bias)) in parts.enumerate() {
            let (mut scales, mut shifts) = ([A::ZERO; COLUMNS], [A::ZERO; COLUMNS]);
            for (row, (&mean, &rstd)) in mean.iter().zip(rstd).enumerate() {
                let from = row * width + part * COLUMNS;
                let (d_out, x) = (&d_out[from..][..d_weight.len()], &x[from..][..d_weight.len()]);
                for i in 0..d_weight.len() {
                    scales[i] += d_out[i] * (x[i] - mean) * rstd;
                    shifts[i] += d_out[i];
                }
            }
            for i in 0..d_weight.len() {
                d_weight[i] += scales[i];
                d_bias[i] += shifts[i];
            }
        }
    }
}
