//! Distances to a teacher; a task is a stretch of rows.

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::parallel::{each_part, rows};
use super::simd::{Element, Float, largest, multiversion, sum};
use crate::backend::ops::{DistillationOps, KlLoss, StateLoss};

impl<A: Float> DistillationOps for Cpu<A> {
    fn state_loss(&mut self, op: StateLoss<'_, Self>) {
        let _span = self.begin(&op);
        let StateLoss { loss, d_x, x, target, row_weights, rows: count, width } = op;
        let (exec, factor) = (&self.cx.exec, A::from_f64(2.0 / width as f64));
        let outs = (rows("state_loss", loss, count, 1), rows("state_loss", d_x, count, width));
        each_part(&exec.pool, count, width, outs, |first, (loss, d_x)| {
            for (i, (loss, d_x)) in loss.iter_mut().zip(d_x.chunks_exact_mut(width)).enumerate() {
                let row = (first + i) * width..(first + i + 1) * width;
                let squared = difference(exec.isa, d_x, &x[row.clone()], &target[row], row_weights[first + i] * factor);
                *loss += squared / A::from_f64(width as f64);
            }
        });
    }

    fn kl_loss(&mut self, op: KlLoss<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }
}

impl<A: Float> Kernel<A> for KlLoss<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        let Self { loss, d_logits, logits, teacher, row_weights, from, rows: count, vocab, temperature, softcap } =
            self;
        let exec = &cx.exec;
        let [inverse, temperature] = [1.0 / temperature, temperature].map(A::from_f64);
        let inverse_cap = A::from_f64(softcap.map_or(0.0, |cap| 1.0 / cap));
        let (loss, weights) = (&mut loss[from..], &row_weights[from..]);
        let d_logits = C::slice_mut(d_logits);
        let outs = (rows("kl_loss", loss, count, 1), rows("kl_loss", d_logits, count, vocab));
        each_part(&exec.pool, count, vocab, outs, |first, (loss, d_logits)| {
            for (i, (loss, d_logits)) in loss.iter_mut().zip(d_logits.chunks_exact_mut(vocab)).enumerate() {
                let row = (first + i) * vocab..(first + i + 1) * vocab;
                let (x, t) = (&logits[row.clone()], &teacher[row]);
                let factors = [inverse, weights[first + i] * temperature, inverse_cap];
                *loss = temperature * temperature * divergence(exec.isa, d_logits, x, t, factors);
            }
        });
    }
}

multiversion! {
    /// `d = factor * (x - target)`; the sum of the squares of `x - target`.
    fn difference[A: Float](d: &mut [A], x: &[A], target: &[A], factor: A) -> A {
        for ((d, &x), &t) in d.iter_mut().zip(x).zip(target) {
            *d = factor * (x - t);
        }
        sum(x.len(), |i| (x[i] - target[i]) * (x[i] - target[i]))
    }
}

multiversion! {
    /// `KL(softmax(t * inverse) || softmax(x * inverse))`, and `d = weight * (softmax(x) - softmax(t)) * (1 - (x / cap)^2)`.
    fn divergence[A: Float, C: Element<A>; FUSED](d: &mut [C], x: &[A], t: &[A], factors: [A; 3]) -> A {
        let [inverse, weight, inverse_cap] = factors;
        let [x_max, t_max] = [largest(x), largest(t)];
        let x_exp = |i: usize| ((x[i] - x_max) * inverse).exp::<FUSED>();
        let t_exp = |i: usize| ((t[i] - t_max) * inverse).exp::<FUSED>();
        let [x_sum, t_sum] = [sum(x.len(), x_exp), sum(t.len(), t_exp)];
        // Of each token the difference of its log-probabilities, rather than of two sums that are nearly the same.
        let shift = x_sum.ln() - t_sum.ln();
        let log_ratio = |i: usize| ((t[i] - t_max) - (x[i] - x_max)) * inverse + shift;
        let divergence = sum(t.len(), |i| t_exp(i) * log_ratio(i)) / t_sum;
        for (i, d) in d.iter_mut().enumerate() {
            let capped = x[i] * inverse_cap;
            let difference = x_exp(i) / x_sum - t_exp(i) / t_sum;
            *d = C::narrow(weight * difference * (A::from_f64(1.0) - capped * capped));
        }
        divergence
    }
}
