//! Linear maps: all products of [`Gemm`], which cuts them into tasks; what is stored is rounded, or added, in the same sweep.

use super::Cpu;
use super::context::{Context, Exec};
use super::gemm::transpose::transpose_rounded;
use super::gemm::{Gemm, Operand, Sink};
use super::kernel::Kernel;
use super::parallel::{Shared, each_part, rows};
use super::rows::accumulate;
use super::simd::{self, Element, Float, Isa, multiversion};
use crate::backend::HostSlice;
use crate::backend::ops::{LinearBwdBias, LinearBwdInput, LinearBwdWeight, LinearDims, LinearFwd, LinearOps};

impl<A: Float> LinearOps for Cpu<A> {
    fn linear_fwd(&mut self, op: LinearFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn linear_bwd_input(&mut self, op: LinearBwdInput<'_, Self>) {
        let _span = self.begin(&op);
        let LinearBwdInput { d_x, d_out, weight, dims: LinearDims { rows, input, output }, accumulate } = op;
        let (left, right) = (Operand::host(d_out.view(), output), weight.operand(input).transposed());
        acc_product(&mut self.cx.gemm, [rows, input, output], left, right, d_x, accumulate);
    }

    fn linear_bwd_weight(&mut self, op: LinearBwdWeight<'_, Self>) {
        let _span = self.begin(&op);
        let LinearBwdWeight { d_weight, offset, d_out, x, dims: LinearDims { rows, input, output } } = op;
        let (left, right) = (Operand::host(d_out.view(), output), Operand::host(x.view(), input));
        let (left, right) = (left.transposed(), right.transposed());
        acc_product(&mut self.cx.gemm, [output, input, rows], left, right, &mut d_weight[offset..], true);
    }

    fn linear_bwd_bias(&mut self, op: LinearBwdBias<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for LinearFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { out, x, weight, bias, dims: LinearDims { rows, input, output } } = self;
        let Context { gemm, memory, .. } = cx;
        let isa = gemm.isa();
        let bias = bias.map(|bias| bias.widened(isa, memory));
        let sink = Rounded { isa, out: Shared::new(C::slice_mut(out)), output, bias };
        let left = Operand::host(x.view(), input);
        gemm.product_into([rows, output, input], left, weight.operand(input), &sink);
    }
}

/// `out [_, output] = sums + bias`, rounded.
struct Rounded<'a, A, C> {
    isa: Isa,
    out: Shared<'a, C>,
    output: usize,
    bias: Option<&'a [A]>,
}

impl<A: Float, C: Element<A>> Sink<A> for Rounded<'_, A, C> {
    fn row(&self, row: usize, column: usize, sums: &[A]) {
        // SAFETY: a product stores every element once.
        let out = unsafe { self.out.at(row * self.output + column, sums.len()) };
        match self.bias {
            Some(bias) => narrow_sum(self.isa, out, sums, &bias[column..]),
            None => simd::narrow(self.isa, out, sums),
        }
    }

    fn transposed(&self, [row, column]: [usize; 2], sums: &[A], stride: usize, [rows, columns]: [usize; 2]) -> bool {
        if let (HostSlice::Bf16(_), HostSlice::F32(sums)) = (C::host(&[]), A::host(sums)) {
            let bias = self.bias.and_then(|bias| f32::same(A::host(&bias[column..])));
            let to = self.out.rows(row * self.output + column, self.output, [rows, columns]);
            // SAFETY: a product stores every element once; `C` is bfloat16.
            return unsafe {
                transpose_rounded(self.isa, (to.cast(), self.output), (sums, stride), bias, [rows, columns])
            };
        }
        false
    }
}

impl<A: Float> Kernel<A> for LinearBwdBias<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { d_bias, offset, d_out, rows: count, output } = self;
        add_columns(&cx.exec, &mut d_bias[offset..][..output], C::slice(d_out), count);
    }
}

/// `d_bias [output] +=` the sum over the `count` rows of `d_out`, in row order.
pub fn add_columns<A: Float, C: Element<A>>(exec: &Exec, d_bias: &mut [A], d_out: &[C], count: usize) {
    let output = d_bias.len();
    each_part(&exec.pool, output, count, rows("linear_bwd_bias", d_bias, output, 1), |first, d_bias| {
        sum_columns(exec.isa, d_bias, &d_out[first..], count, output);
    });
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
    let sink = Sums { isa: gemm.isa(), out: Shared::new(out), stride: shape[1], add };
    gemm.product_into(shape, left, right, &sink);
}

/// `out [_, stride]` `=` or `+=` sums.
struct Sums<'a, A> {
    isa: Isa,
    out: Shared<'a, A>,
    stride: usize,
    add: bool,
}

impl<A: Float> Sink<A> for Sums<'_, A> {
    fn row(&self, row: usize, column: usize, sums: &[A]) {
        // SAFETY: a product stores every element once.
        let out = unsafe { self.out.at(row * self.stride + column, sums.len()) };
        if self.add { accumulate(self.isa, out, sums) } else { out.copy_from_slice(sums) }
    }

    fn place(&self, [row, column]: [usize; 2], shape: [usize; 2]) -> Option<(*mut A, usize)> {
        (!self.add).then(|| (self.out.rows(row * self.stride + column, self.stride, shape), self.stride))
    }
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::arch::Dtype;
    use crate::backend::cpu::isa::tests::isas;
    use crate::backend::cpu::{CpuSettings, HostBuffer, Weight};

    /// What `linear_fwd` gives, and the f32 sums of the same product, row by row.
    fn both(cpu: &mut Cpu, dims: LinearDims, x: &[f32], weight: &Weight, bias: Option<&Weight>) -> [Vec<u16>; 2] {
        let LinearDims { rows, input, output } = dims;
        let isa = cpu.cx.exec.isa;
        let [mut x_buffer, mut out] =
            [rows * input, rows * output].map(|n| HostBuffer::zeros(Dtype::BF16, n).expect("memory"));
        simd::narrow_into(isa, &mut x_buffer, x);
        cpu.linear_fwd(LinearFwd { out: &mut out, x: &x_buffer, weight, bias, dims });
        let mut sums = vec![0.0f32; rows * output];
        let left = Operand::host(x_buffer.view(), input);
        acc_product(&mut cpu.cx.gemm, [rows, output, input], left, weight.operand(input), &mut sums, false);
        let wide = bias.map(|bias| bias.widened(isa, &mut cpu.cx.memory).to_vec());
        let rounded = sums
            .iter()
            .enumerate()
            .map(|(i, &x)| Element::<f32>::to_bf16(wide.as_ref().map_or(x, |bias| x + bias[i % output])).to_bits());
        [<bf16 as Element<f32>>::slice(&out).iter().map(|x| x.to_bits()).collect(), rounded.collect()]
    }

    #[test]
    #[cfg_attr(miri, ignore = "millions of multiply-adds")]
    fn linear_rounds_sums_and_bias_once_wherever_blocks_end() {
        let number = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 1024) as f32 / 512.0 - 1.0;
        for isa in isas() {
            let mut cpu = Cpu::<f32>::open(&CpuSettings { dtype: Dtype::BF16, threads: 2, isa, split: false });
            for [rows, input, output] in [[1, 64, 40], [33, 96, 70], [70, 96, 144], [70, 256, 33], [400, 256, 40]] {
                let dims = LinearDims { rows, input, output };
                let numbers = |count: usize, from: usize| (from..from + count).map(number).collect::<Vec<f32>>();
                let weight = Weight::owned(isa, Dtype::BF16, &numbers(input * output, 5)).expect("memory");
                let bias = Weight::owned(isa, Dtype::BF16, &numbers(output, 9)).expect("memory");
                let wrong = Weight::owned(isa, Dtype::BF16, &numbers(output, 10)).expect("memory");
                let x = numbers(rows * input, 1);
                let mut found = Vec::new();
                for bias in [None, Some(&bias), Some(&wrong)] {
                    let [out, expected] = both(&mut cpu, dims, &x, &weight, bias);
                    assert!(out == expected, "{isa:?} {dims:?}: bias {}", bias.is_some());
                    found.push(out);
                }
                assert!(found[0] != found[1] && found[1] != found[2], "{isa:?} {dims:?}: a bias counts for nothing");
            }
        }
    }
}
