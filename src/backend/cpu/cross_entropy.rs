//! Cross-entropy of label rows against the head: the logits of a few rows at a time, never all of them.

use super::gemm::{Gemm, Operand, grow};
use super::linear::wide_product;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, largest, multiversion, sum};
use super::weight::Weight;
use crate::backend::LinearDims;

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
/// [`Backend::cross_entropy_bwd`](crate::backend::Backend::cross_entropy_bwd); `logits` is scratch.
#[allow(clippy::too_many_arguments)]
pub fn sweep<W: Float, R: Element<W>>(
    gemm: &mut Gemm<W>,
    logits: &mut Vec<W>,
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
    for first in (0..all).step_by(chunk) {
        let count = chunk.min(all - first);
        let logits = grow(logits, count * output);
        let x = &x[first * input..][..count * input];
        logits_fwd(gemm, logits, x, head, LinearDims { rows: count, ..dims });
        let targets = &targets[first..first + count];
        let outs = (rows("cross_entropy", logits, count, output), rows("cross_entropy", &mut loss[first..], count, 1));
        let weights = gradients.as_ref().map(|g| &g.row_weights[first..first + count]);
        each_part(gemm.team(), count, output, outs, |row, (logits, loss)| {
            for (i, (logits, loss)) in logits.chunks_exact_mut(output).zip(loss).enumerate() {
                let target = targets[row + i] as usize;
                assert!(target < output, "cross_entropy: target {target} of {output} classes");
                *loss = softmax(isa, logits, target, weights.map(|w| w[row + i]));
            }
        });
        let Some(Gradients { d_x, d_head, .. }) = &mut gradients else { continue };
        let d_x = &mut d_x[first * input..][..count * input];
        let right = head.operand(input).transposed();
        wide_product(gemm, [count, input, output], Operand::new(logits, output), right, d_x, false);
        if let Some(d_head) = d_head {
            let (left, right) = (Operand::new(logits, output).transposed(), Operand::new(x, input).transposed());
            wide_product(gemm, [output, input, count], left, right, d_head, true);
        }
    }
}

multiversion! {
    /// The loss of a row; with a weight, its logits become `weight * (softmax - onehot)`.
    fn softmax[W: Float](logits: &mut [W], target: usize, weight: Option<W>) -> W {
        let top = largest(logits);
        let wanted = logits[target];
        let total = match weight {
            None => sum(logits.len(), |i| (logits[i] - top).exp::<false>()),
            Some(weight) => {
                for x in logits.iter_mut() {
                    *x = (*x - top).exp::<false>();
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
