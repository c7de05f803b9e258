//! Attention over the forest, with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! The keys that a row sees are those of its path, one sequence by position, however it is cut into segments. They
//! are taken in tiles at fixed positions, and masked keys are exactly neutral: their weight is 0, and a tile with
//! none to see changes nothing. A row's result is therefore the same bits in a forest, alone, and with a cache.
//!
//! Rows of queries are the lanes of all vectors ([`lanes`]): keys and values are read as they lie, the softmax needs no
//! sums across a vector, and narrow heads waste nothing. Products are those of the tiles of the matrix product, in
//! numbers or in pairs of bfloat16 ([`products`]); sums, weights and the state of a row are of the accumulation dtype.

mod backward;
mod blocks;
mod forward;
mod lanes;
mod patterns;
mod products;

use super::Cpu;
use super::context::Context;
use super::kernel::Kernel;
use super::simd::{Element, Float};
use crate::backend::ops::{AttentionBwd, AttentionFwd, AttentionOps, AttentionPattern, AttentionResult};

impl<A: Float> AttentionOps for Cpu<A> {
    fn attention_fwd(&mut self, op: AttentionFwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn attention_bwd(&mut self, op: AttentionBwd<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn attention_pattern(&mut self, op: AttentionPattern<'_, Self>) {
        let _span = self.begin(&op);
        self.run(op);
    }

    fn attention_result(&mut self, op: AttentionResult<'_, Self>) {
        let _span = self.begin(&op);
        patterns::result(&mut self.cx, op);
    }
}

impl<A: Float> Kernel<A> for AttentionFwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        forward::fwd::<A, C>(cx, self);
    }
}

impl<A: Float> Kernel<A> for AttentionBwd<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        backward::bwd::<A, C>(cx, self);
    }
}

impl<A: Float> Kernel<A> for AttentionPattern<'_, Cpu<A>> {
    fn run<C: Element<A>>(self, cx: &mut Context<A>) {
        patterns::pattern::<A, C>(cx, self);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use half::bf16;

    use super::*;
    use crate::arch::Dtype;
    use crate::backend::cpu::isa::tests::isas;
    use crate::backend::cpu::simd::narrow_into;
    use crate::backend::cpu::{CpuSettings, HostBuffer, Isa};
    use crate::backend::ops::AttentionDims;
    use crate::pack::{Label, Pack, PackBuilder, Parent, Token};

    /// A tree: more than a tile of rows, children that share it, and a sequence apart.
    fn pack() -> Pack {
        let mut pack = PackBuilder::default();
        let mut push = |count: u32, parent| {
            let tokens: Vec<Token> = (0..count).map(Token::Id).collect();
            pack.push(&tokens, parent, None, Label::Text)
        };
        let root = push(150, Parent::None);
        for count in [3, 20, 70] {
            push(count, Parent::Pack(root));
        }
        push(33, Parent::None);
        pack.build()
    }

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| bf16::from_f32(next()).to_f32()).collect()
    }

    /// What makes of the gradient of `z` at a row of the pack that of a test.
    type OfRow<'a> = &'a dyn Fn(usize, f32) -> f32;

    /// `z`, the log-sum-exp, and the gradients of queries, keys and values, all stored as `dtype`; `z` and the log-sum-exp
    /// begin as not-a-numbers.
    fn results(
        isa: Isa,
        dtype: Dtype,
        (pack, outputs): (&Arc<Pack>, Option<&[usize]>),
        dims: AttentionDims,
        d_z_of: OfRow<'_>,
    ) -> [Vec<f32>; 5] {
        let mut cpu = Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(dtype) });
        let (n, q_len, kv_len) = (pack.len(), pack.len() * dims.q_width(), pack.len() * dims.kv_width());
        let stored = |count, seed| {
            let mut buffer = HostBuffer::zeros(dtype, count).expect("memory");
            narrow_into(isa, &mut buffer, &numbers(count, seed));
            buffer
        };
        let (q, k, v, mut d_z) = (stored(q_len, 1), stored(kv_len, 2), stored(kv_len, 3), numbers(q_len, 4));
        d_z.iter_mut().enumerate().for_each(|(i, x)| *x = d_z_of(i / dims.q_width(), *x));
        let (mut lse, mut delta) = (vec![f32::NAN; n * dims.heads], vec![f32::NAN; n * dims.heads]);
        let unset = |len| {
            let mut buffer = HostBuffer::zeros(dtype, len).expect("memory");
            narrow_into(isa, &mut buffer, &vec![f32::NAN; len]);
            buffer
        };
        let [mut z, mut d_q, mut d_k, mut d_v] = [q_len, q_len, kv_len, kv_len].map(unset);
        let (q, k, v) = (&q, &k, &v);
        cpu.attention_fwd(AttentionFwd { z: &mut z, lse: &mut lse, q, k, v, cached: None, pack, outputs, dims });
        let (d_q, d_k, d_v) = (&mut d_q, &mut d_k, &mut d_v);
        let (d_z, lse) = (&mut d_z, &lse);
        cpu.attention_bwd(AttentionBwd {
            d_q,
            d_k,
            d_v,
            delta: &mut delta,
            d_z,
            z: &z,
            lse,
            q,
            k,
            v,
            pack,
            outputs,
            dims,
        });
        let widened = |buffer: &HostBuffer| (0..buffer.view().len()).map(|i| buffer.view().get(i) as f32).collect();
        [widened(&z), lse.clone(), widened(d_q), widened(d_k), widened(d_v)]
    }

    #[test]
    fn attention_in_pairs_on_every_instruction_set_agrees_with_single_precision() {
        let pack = Arc::new(pack());
        for (heads, kv_heads, head_dim) in [(2, 1, 16), (1, 1, 17), (5, 1, 24), (3, 3, 48), (4, 2, 64), (1, 1, 80)] {
            let scale = 1.0 / (head_dim as f64).sqrt();
            let dims = AttentionDims { heads, kv_heads, head_dim, scale, window: None, alibi: false, softcap: None };
            let exact = results(Isa::PLAIN, Dtype::F32, (&pack, None), dims, &|_, x| x);
            for isa in isas() {
                let found = results(isa, Dtype::BF16, (&pack, None), dims, &|_, x| x);
                for ((what, found), exact) in ["z", "lse", "d_q", "d_k", "d_v"].iter().zip(&found).zip(&exact) {
                    let largest = exact.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                    let worst = found.iter().zip(exact).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
                    assert!(
                        worst <= largest / 150.0,
                        "{isa:?} heads of {head_dim}: {what} differs by {worst} of {largest}"
                    );
                }
            }
        }
    }

    /// The rows that come out have the bits that they have among all, and so has every gradient; what nobody asked for is
    /// not made, and not read.
    #[test]
    fn attention_of_output_rows_has_the_bits_of_the_whole() {
        let pack = Arc::new(pack());
        let rows: &[usize] = &[69, 71, 100, 149, 150, 152, 172, 238, 240, 275];
        let d_z = |row: usize, x: f32| if rows.contains(&row) { x } else { 0.0 };
        for (window, dtype, heads, head_dim) in [
            (None, Dtype::F32, 2, 32),
            (Some(40), Dtype::F32, 4, 16),
            (None, Dtype::BF16, 2, 32),
            (Some(90), Dtype::BF16, 4, 16),
        ] {
            let scale = 1.0 / (head_dim as f64).sqrt();
            let dims = AttentionDims { heads, kv_heads: 2, head_dim, scale, window, alibi: false, softcap: None };
            for isa in isas() {
                let whole = results(isa, dtype, (&pack, None), dims, &d_z);
                let found = results(isa, dtype, (&pack, Some(rows)), dims, &d_z);
                let mut left_out = 0;
                for (i, width) in [dims.q_width(), heads].into_iter().enumerate() {
                    for row in 0..pack.len() {
                        let [found, whole] = [&found, &whole].map(|of| &of[i][row * width..(row + 1) * width]);
                        let untouched = found.iter().all(|x| x.is_nan());
                        assert!(found == whole || untouched && !rows.contains(&row), "{isa:?} {dtype}: row {row}");
                        left_out += usize::from(untouched);
                    }
                }
                assert!(left_out > 2 * pack.len() / 3, "{isa:?} {dtype}: {left_out} of {} left out", 2 * pack.len());
                assert!(found[2..] == whole[2..], "{isa:?} {dtype} {window:?} {heads} heads: gradients");
            }
        }
    }
}
