//! Linear maps: `out = x weight^T + bias` and its gradients, all products of [`Gemm`].

use super::context::Exec;
use super::gemm::{Gemm, Operand};
use super::parallel::{Shared, each_part, rows};
use super::rows::accumulate;
use super::simd::{self, Element, Float, multiversion};
use super::weight::Weight;
use crate::backend::LinearDims;

/// See [`Backend::linear_fwd`](crate::backend::Backend::linear_fwd); `wide_bias` is scratch.
pub fn fwd<W: Float, R: Element<W>>(
    gemm: &mut Gemm<W>,
    wide_bias: &mut Vec<W>,
    out: &mut [R],
    x: &[R],
    weight: &Weight<W, R>,
    bias: Option<&Weight<W, R>>,
    dims: LinearDims,
) {
    let LinearDims { rows, input, output } = dims;
    let isa = gemm.isa();
    let bias = bias.map(|bias| {
        let wide = super::gemm::grow(wide_bias, output);
        bias.read(isa, wide, 0);
        &*wide
    });
    let out = Shared::new(out);
    gemm.product([rows, output, input], Operand::new(x, input), weight.operand(input), &|row, column, sums| {
        // SAFETY: a product stores every element once.
        let out = unsafe { out.at(row * output + column, sums.len()) };
        match bias {
            Some(bias) => narrow_sum(isa, out, sums, &bias[column..]),
            None => simd::narrow(isa, out, sums),
        }
    });
}

multiversion! {
    fn narrow_sum[W: Float, R: Element<W>](out: &mut [R], a: &[W], b: &[W]) {
        for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *o = R::narrow(a + b);
        }
    }
}

/// A product stored into `out [_, stride]`, or added to it.
pub fn wide_product<W: Float>(
    gemm: &mut Gemm<W>,
    shape: [usize; 3],
    left: Operand<'_, W>,
    right: Operand<'_, W>,
    out: &mut [W],
    add: bool,
) {
    let (isa, stride) = (gemm.isa(), shape[1]);
    let out = Shared::new(out);
    gemm.product(shape, left, right, &|row, column, sums| {
        // SAFETY: a product stores every element once.
        let out = unsafe { out.at(row * stride + column, sums.len()) };
        if add { accumulate(isa, out, sums) } else { out.copy_from_slice(sums) }
    });
}

/// See [`Backend::linear_bwd_input`](crate::backend::Backend::linear_bwd_input).
pub fn bwd_input<W: Float, R: Element<W>>(
    gemm: &mut Gemm<W>,
    d_x: &mut [W],
    d_out: &[R],
    weight: &Weight<W, R>,
    LinearDims { rows, input, output }: LinearDims,
    add: bool,
) {
    let (left, right) = (Operand::new(d_out, output), weight.operand(input).transposed());
    wide_product(gemm, [rows, input, output], left, right, d_x, add);
}

/// See [`Backend::linear_bwd_weight`](crate::backend::Backend::linear_bwd_weight).
pub fn bwd_weight<W: Float, R: Element<W>>(
    gemm: &mut Gemm<W>,
    d_weight: &mut [W],
    d_out: &[R],
    x: &[R],
    LinearDims { rows, input, output }: LinearDims,
) {
    let (left, right) = (Operand::new(d_out, output).transposed(), Operand::new(x, input).transposed());
    wide_product(gemm, [output, input, rows], left, right, d_weight, true);
}

/// See [`Backend::linear_bwd_bias`](crate::backend::Backend::linear_bwd_bias).
pub fn bwd_bias<W: Float, R: Element<W>>(exec: &Exec, d_bias: &mut [W], d_out: &[R], count: usize, output: usize) {
    each_part(&exec.pool, output, count, rows("linear_bwd_bias", d_bias, output, 1), |first, d_bias| {
        sum_columns(exec.isa, d_bias, &d_out[first..], count, output);
    });
}

multiversion! {
    /// `d_bias += ` the sums of the columns, each from the first row to the last.
    fn sum_columns[W: Float, R: Element<W>](d_bias: &mut [W], d_out: &[R], count: usize, stride: usize) {
        for (part, d_bias) in d_bias.chunks_mut(64).enumerate() {
            let mut sums = [W::ZERO; 64];
            for row in 0..count {
                for (s, x) in sums.iter_mut().zip(&d_out[row * stride + part * 64..][..d_bias.len()]) {
                    *s += x.widen();
                }
            }
            for (d, &s) in d_bias.iter_mut().zip(&sums) {
                *d += s;
            }
        }
    }
}
