//! Cross-entropy of label rows against the head: the logits of a few rows at a time, never all of them.

use super::context::carve;
use super::gemm::{Gemm, Operand};
use super::linear::wide_product;
use super::parallel::{each_part, rows};
use super::simd::{self, Element, Float, largest, multiversion, sum};
use super::weight::Weight;
use crate::backend::{HostSlice, LinearDims};

/// Logits that exist at a time, at most (if one row has no more).
const LOGITS: usize = 1 << 23;

/// What the backward adds to the forward.
pub struct Gradients<'a, W> {
    /// `[M, C]`, `=`.
    pub d_x: &'a mut [W],
    /// `[V, C]`, `+=`.
    pub d_head: Option<&'a mut [W]>,
    /// `[M]`.
    pub row_weights: &'a [W],
}

/// See [`Backend::logits_fwd`](crate::backend::Backend::logits_fwd).
pub fn logits_fwd<W: Float, R: Element<W>>(
    gemm: &mut Gemm<W>,
    logits: &mut [W],
    x: &[R],
    head: &Weight<W, R>,
    LinearDims { rows, input, output }: LinearDims,
) {
    wide_product(gemm, [rows, output, input], Operand::new(x, input), head.operand(input), logits, false);
}

/// See [`Backend::cross_entropy_fwd`](crate::backend::Backend::cross_entropy_fwd) and, with `gradients`,
/// [`Backend::cross_entropy_bwd`](crate::backend::Backend::cross_entropy_bwd); `memory` is scratch.
#[allow(clippy::too_many_arguments)]
pub fn sweep<W: Float, R: Element<W>>(
    gemm: &mut Gemm<W>,
    memory: &mut Vec<W>,
    loss: &mut [W],
    mut gradients: Option<Gradients<'_, W>>,
    x: &[R],
    head: &Weight<W, R>,
    targets: &[u32],
    dims: LinearDims,
) {
    let LinearDims { rows: all, input, output } = dims;
    let isa = gemm.isa();
    let chunk = (LOGITS / output).max(1);
    // Gradients of logits are tiny: they are multiplied in the compute dtype where it reaches as far as single precision.
    let narrow = gradients.is_some() && matches!(R::host(&[]), HostSlice::Bf16(_));
    for first in (0..all).step_by(chunk) {
        let count = chunk.min(all - first);
        let narrowed = if narrow { count * output } else { 0 };
        let [logits, d_logits] = carve(memory, [count * output, narrowed.div_ceil(size_of::<W>() / size_of::<R>())]);
        let d_logits = &mut bytemuck::cast_slice_mut::<W, R>(d_logits)[..narrowed];
        let x = &x[first * input..][..count * input];
        logits_fwd(gemm, logits, x, head, LinearDims { rows: count, ..dims });
        let targets = &targets[first..first + count];
        let outs = (rows("cross_entropy", logits, count, output), rows("cross_entropy", &mut loss[first..], count, 1));
        let outs = (outs, rows("cross_entropy", d_logits, count, narrowed / count));
        let weights = gradients.as_ref().map(|g| &g.row_weights[first..first + count]);
        each_part(gemm.pool(), count, output, outs, |row, ((logits, loss), d_logits)| {
            let mut d_logits = d_logits.chunks_exact_mut(output);
            for (i, (logits, loss)) in logits.chunks_exact_mut(output).zip(loss).enumerate() {
                let target = targets[row + i] as usize;
                assert!(target < output, "cross_entropy: target {target} of {output} classes");
                *loss = softmax(isa, logits, target, weights.map(|w| w[row + i]));
                // While the row is in cache.
                d_logits.next().into_iter().for_each(|d_logits| simd::narrow(isa, d_logits, logits));
            }
        });
        let Some(Gradients { d_x, d_head, .. }) = &mut gradients else { continue };
        let d_x = &mut d_x[first * input..][..count * input];
        let left = if narrow { Operand::new(&*d_logits, output) } else { Operand::new(&*logits, output) };
        wide_product(gemm, [count, input, output], left, head.operand(input).transposed(), d_x, false);
        if let Some(d_head) = d_head {
            wide_product(
                gemm,
                [output, input, count],
                left.transposed(),
                Operand::new(x, input).transposed(),
                d_head,
                true,
            );
        }
    }
}

multiversion! {
    /// The loss of a row; with a weight, its logits become `weight * (softmax - onehot)`.
    fn softmax[W: Float; FUSED](logits: &mut [W], target: usize, weight: Option<W>) -> W {
        let top = largest(logits);
        let wanted = logits[target];
        let total = match weight {
            None => sum(logits.len(), |i| (logits[i] - top).exp::<FUSED>()),
            Some(weight) => {
                for x in logits.iter_mut() {
                    *x = (*x - top).exp::<FUSED>();
                }
                let total = sum(logits.len(), |i| logits[i]);
                let scale = weight / total;
                for x in logits.iter_mut() {
                    *x = *x * scale;
                }
                logits[target] = logits[target] - weight;
                total
            }
        };
        total.ln() + (top - wanted)
    }
}
