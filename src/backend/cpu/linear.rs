//! Linear maps: all products of [`Gemm`], which cuts them into tasks; what is stored is rounded, or added, in the same sweep.

use super::Cpu;
use super::context::Context;
use super::gemm::{Gemm, Operand};
use super::kernel::Kernel;
use super::parallel::{Shared, each_part, rows};
use super::rows::accumulate;
use super::simd::{self, Element, Float, multiversion};
use crate::backend::ops::{LinearBwdBias, LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd, LinearOps, Op};

impl<A: Float> LinearOps for Cpu<A> {
    fn linear_fwd(&mut self, op: LinearFwd<'_, Self>) {
        op.check();
        self.run(op);
    }

    fn linear_bwd_input(&mut self, op: LinearBwdInput<'_, Self>) {
        op.check();
        let LinearBwdInput { d_x, d_out, weight, dims: LinearDims { rows, input, output }, accumulate } = op;
        let (left, right) = (Operand::host(d_out.view(), output), weight.operand(input).transposed());
        acc_product(&mut self.cx.gemm, [rows, input, output], left, right, d_x, accumulate);
    }

    fn linear_bwd_weight(&mut self, op: LinearBwdWeight<'_, Self>) {
        op.check();
        let LinearBwdWeight { d_weight, offset, d_out, x, dims: LinearDims { rows, input, output } } = op;
        let (left, right) = (Operand::host(d_out.view(), output), Operand::host(x.view(), input));
        let (left, right) = (left.transposed(), right.transposed());
        acc_product(&mut self.cx.gemm, [output, input, rows], left, right, &mut d_weight[offset..], true);
    }

    fn linear_bwd_bias(&mut self, op: LinearBwdBias<'_, Self>) {
        op.check();
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for LinearFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, x, weight, bias, dims: LinearDims { rows, input, output } } = self;
        let Context { gemm, memory, .. } = cx;
        let isa = gemm.isa();
        let bias = bias.map(|bias| bias.widened(isa, memory));
        let out = Shared::new(C::slice_mut(out));
        let left = Operand::host(x.view(), input);
        gemm.product([rows, output, input], left, weight.operand(input), &|row, column, sums| {
            // SAFETY: a product stores every element once.
            let out = unsafe { out.at(row * output + column, sums.len()) };
            match bias {
                Some(bias) => narrow_sum(isa, out, sums, &bias[column..]),
                None => simd::narrow(isa, out, sums),
            }
        });
    }
}

impl<A: Float> Kernel<A> for LinearBwdBias<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_bias, offset, d_out, rows: count, output } = self;
        let (exec, d_out) = (&cx.exec, C::slice(d_out));
        let d_bias = rows("linear_bwd_bias", &mut d_bias[offset..], output, 1);
        each_part(&exec.pool, output, count, d_bias, |first, d_bias| {
            sum_columns(exec.isa, d_bias, &d_out[first..], count, output);
        });
    }
}

multiversion! {
    fn narrow_sum[A: Float, C: Element<A>](out: &mut [C], a: &[A], b: &[A]) {
        for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *o = C::narrow(a + b);
        }
    }
}

/// A product stored into `out [_, stride]`, or added to it.
pub fn acc_product<A: Float>(
    gemm: &mut Gemm<A>,
    shape: [usize; 3],
    left: Operand<'_, A>,
    right: Operand<'_, A>,
    out: &mut [A],
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

multiversion! {
    /// `d_bias += ` the sums of the columns, each from the first row to the last.
    fn sum_columns[A: Float, C: Element<A>](d_bias: &mut [A], d_out: &[C], count: usize, stride: usize) {
        for (part, d_bias) in d_bias.chunks_mut(64).enumerate() {
            let mut sums = [A::ZERO; 64];
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
