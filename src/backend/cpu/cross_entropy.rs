//! The head: cross-entropy of label rows, the logits of a few rows at a time and never all of them. Products are cut into tasks
//! by [`Gemm`], the softmax by rows.

use super::Cpu;
use super::context::{Context, carve};
use super::gemm::{Gemm, Operand};
use super::kernel::Kernel;
use super::linear::{acc_product, add_columns};
use super::parallel::{each_part, rows};
use super::rows::accumulate;
use super::simd::{Element, Float, largest, multiversion, softcap, sum};
use super::weight::Weight;
use crate::backend::ops::{CrossEntropyBwd, CrossEntropyFwd, CrossEntropyOps, HeadGradient, LinearDims, LogitsFwd};
use crate::backend::{HostSlice, Len};

/// Logits that exist at a time, at most (if one row has no more): 32 MiB in single precision. Fewer were slower, since the
/// head is read again for each chunk.
const LOGITS: usize = 1 << 23;

impl<A: Float> CrossEntropyOps for Cpu<A> {
    fn logits_fwd(&mut self, op: LogitsFwd<'_, Self>) {
        let _span = self.begin(&op);
        let LogitsFwd { logits, x, head, bias, dims, softcap } = op;
        let Context { exec, gemm, memory, .. } = &mut self.cx;
        self::logits(gemm, logits, x.view(), head, dims);
        let bias = bias.map_or(&[][..], |bias| bias.widened(exec.isa, memory));
        let cap = softcap.map(A::from_f64);
        if cap.is_none() && bias.is_empty() {
            return;
        }
        let out = rows("logits_fwd", logits, dims.rows, dims.output);
        each_part(&exec.pool, dims.rows, dims.output, out, |_, part| {
            part.chunks_exact_mut(dims.output).for_each(|row| accumulate(exec.isa, row, bias));
            if let Some(cap) = cap {
                apply_softcap(exec.isa, part, &mut [], cap);
            }
        });
    }

    fn cross_entropy_fwd(&mut self, op: CrossEntropyFwd<'_, Self>) {
        let _span = self.begin(&op);
        let CrossEntropyFwd { loss, x, head, bias, targets, dims, softcap } = op;
        self.run(Sweep { loss, gradients: None, x: x.view(), head, bias, targets, dims, softcap });
    }

    fn cross_entropy_bwd(&mut self, op: CrossEntropyBwd<'_, Self>) {
        let _span = self.begin(&op);
        let CrossEntropyBwd { loss, d_x, d_head, x, head, bias, targets, row_weights, dims, softcap } = op;
        let gradients = Some(Gradients { d_x, d_head, row_weights });
        self.run(Sweep { loss, gradients, x: x.view(), head, bias, targets, dims, softcap });
    }
}

/// What the backward adds to the forward.
struct Gradients<'a, A: Float> {
    /// `[M, C]`, `=`.
    d_x: &'a mut [A],
    /// The head's own, `+=`.
    d_head: Option<HeadGradient<'a, Cpu<A>>>,
    /// `[M]`.
    row_weights: &'a [A],
}

/// Forward and, with `gradients`, backward.
struct Sweep<'a, A: Float> {
    loss: &'a mut [A],
    gradients: Option<Gradients<'a, A>>,
    x: HostSlice<'a>,
    head: &'a Weight,
    bias: Option<&'a Weight>,
    targets: &'a [u32],
    dims: LinearDims,
    softcap: Option<f64>,
}

/// `out [M, V] = x [M, C] head^T`.
fn logits<A: Float>(gemm: &mut Gemm<A>, out: &mut [A], x: HostSlice<'_>, head: &Weight, dims: LinearDims) {
    let LinearDims { rows, input, output } = dims;
    acc_product(gemm, [rows, output, input], Operand::host(x, input), head.operand(input), out, false);
}

impl<A: Float> Kernel<A> for Sweep<'_, A> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { loss, mut gradients, x, head, bias, targets, dims, softcap } = self;
        let cap = softcap.map(A::from_f64);
        let Context { exec, gemm, memory, .. } = cx;
        let LinearDims { rows: all, input, output } = dims;
        let isa = gemm.isa();
        let chunk = (LOGITS / output).max(1);
        // Gradients of logits are tiny: they are multiplied in the compute dtype where it reaches as far as single precision.
        let narrow = gradients.is_some() && matches!(C::host(&[]), HostSlice::Bf16(_));
        for first in (0..all).step_by(chunk) {
            let count = chunk.min(all - first);
            let narrowed = if narrow { count * output } else { 0 };
            // What capped logits let through of their gradients.
            let slopes = if cap.is_some() && gradients.is_some() { count * output } else { 0 };
            let narrowed_len = narrowed.div_ceil(size_of::<A>() / size_of::<C>());
            let lens = [count * output, narrowed_len, slopes, bias.map_or(0, Len::len)];
            let [logits, d_logits, slopes, wide_bias] = carve(memory, lens);
            if let Some(bias) = bias {
                bias.read(isa, wide_bias, 0);
            }
            let of_row = slopes.len() / count;
            let d_logits = &mut bytemuck::cast_slice_mut::<A, C>(d_logits)[..narrowed];
            let x = x.range(first * input..(first + count) * input);
            self::logits(gemm, logits, x, head, LinearDims { rows: count, ..dims });
            let targets = &targets[first..first + count];
            let outs =
                (rows("cross_entropy", logits, count, output), rows("cross_entropy", &mut loss[first..], count, 1));
            let outs = (outs, rows("cross_entropy", d_logits, count, narrowed / count));
            let outs = (outs, rows("cross_entropy", slopes, count, of_row));
            let weights = gradients.as_ref().map(|g| &g.row_weights[first..first + count]);
            each_part(gemm.pool(), count, output, outs, |row, (((logits, loss), d_logits), slopes)| {
                let mut d_logits = d_logits.chunks_exact_mut(output);
                for (i, (logits, loss)) in logits.chunks_exact_mut(output).zip(loss).enumerate() {
                    let slopes = &mut slopes[i * of_row..][..of_row];
                    accumulate(isa, logits, wide_bias);
                    if let Some(cap) = cap {
                        apply_softcap(isa, logits, slopes, cap);
                    }
                    let target = targets[row + i] as usize;
                    *loss = match (weights.map(|w| w[row + i]), d_logits.next()) {
                        (None, _) => softmax_loss(isa, logits, target),
                        (Some(weight), None) => softmax_in_place(isa, logits, slopes, target, weight),
                        (Some(weight), Some(d_logits)) => softmax(isa, d_logits, logits, slopes, target, weight),
                    };
                }
            });
            let Some(Gradients { d_x, d_head, .. }) = &mut gradients else { continue };
            let d_x = &mut d_x[first * input..][..count * input];
            let left = if narrow { Operand::new(&*d_logits, output) } else { Operand::new(&*logits, output) };
            acc_product(gemm, [count, input, output], left, head.operand(input).transposed(), d_x, false);
            if let Some(HeadGradient { d, weight, bias }) = d_head {
                let right = Operand::host(x, input).transposed();
                acc_product(gemm, [output, input, count], left.transposed(), right, &mut d[*weight..], true);
                let d_bias = bias.map(|from| &mut d[from..from + output]);
                match d_bias {
                    Some(d_bias) if narrow => add_columns(exec, d_bias, d_logits, count),
                    Some(d_bias) => add_columns(exec, d_bias, logits, count),
                    None => {}
                }
            }
        }
    }
}

multiversion! {
    /// Caps a row's logits; where there is room, their slopes go there.
    fn apply_softcap[A: Float; FUSED](logits: &mut [A], slopes: &mut [A], cap: A) {
        if slopes.is_empty() {
            for x in logits {
                *x = softcap::<A, FUSED>(*x, cap).0;
            }
            return;
        }
        for (x, slope) in logits.iter_mut().zip(slopes) {
            (*x, *slope) = softcap::<A, FUSED>(*x, cap);
        }
    }
}

multiversion! {
    /// The loss of a row, whose logits become `exp(x - max)`.
    fn softmax_loss[A: Float; FUSED](logits: &mut [A], target: usize) -> A {
        exponentials::<A, FUSED>(logits, target).0
    }
}

multiversion! {
    /// The loss of a row, whose logits become `weight * (softmax - onehot)`, times `slopes`, if there are any.
    fn softmax_in_place[A: Float; FUSED](logits: &mut [A], slopes: &[A], target: usize, weight: A) -> A {
        let (loss, row_sum) = exponentials::<A, FUSED>(logits, target);
        let scale = weight / row_sum;
        for x in logits.iter_mut() {
            *x = *x * scale;
        }
        logits[target] = logits[target] - weight;
        for (x, &slope) in logits.iter_mut().zip(slopes) {
            *x = *x * slope;
        }
        loss
    }
}

multiversion! {
    /// The same into `d_logits`, rounded.
    fn softmax[A: Float, C: Element<A>; FUSED](
        d_logits: &mut [C],
        logits: &mut [A],
        slopes: &[A],
        target: usize,
        weight: A,
    ) -> A {
        let (loss, row_sum) = exponentials::<A, FUSED>(logits, target);
        let scale = weight / row_sum;
        let of_target = logits[target] * scale - weight;
        if slopes.is_empty() {
            for (d, &x) in d_logits.iter_mut().zip(&*logits) {
                *d = C::narrow(x * scale);
            }
            d_logits[target] = C::narrow(of_target);
        } else {
            for ((d, &x), &slope) in d_logits.iter_mut().zip(&*logits).zip(slopes) {
                *d = C::narrow(x * scale * slope);
            }
            d_logits[target] = C::narrow(of_target * slopes[target]);
        }
        loss
    }
}

/// The loss of a row, and the sum of what its logits become: `exp(x - max)`, in a pass of its own, which is then in vectors.
#[inline(always)]
fn exponentials<A: Float, const FUSED: bool>(logits: &mut [A], target: usize) -> (A, A) {
    let row_max = largest(logits);
    let target_logit = logits[target];
    for x in logits.iter_mut() {
        *x = (*x - row_max).exp::<FUSED>();
    }
    let row_sum = sum(logits.len(), |i| logits[i]);
    (row_sum.ln() + (row_max - target_logit), row_sum)
}
