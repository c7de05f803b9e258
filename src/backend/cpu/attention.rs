//! Attention over the forest, with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! The keys that a row sees are those of its path, one sequence by position, however it is cut into segments. They
//! are taken in tiles at fixed positions, and masked keys are exactly neutral: their weight is 0, and a tile with
//! none to see changes nothing. A row's result is therefore the same bits in a forest, alone, and with a cache.
//!
//! Rows of queries are the lanes of all vectors ([`lanes`]): keys and values are read as they lie, the softmax needs no
//! sums across a vector, and narrow heads waste nothing. Products are those of the tiles of the matrix product, in
//! numbers or in pairs of bfloat16 ([`products`]); sums, weights and what is kept of a row stay wide.

pub mod backward;
mod blocks;
pub mod forward;
mod lanes;
pub mod patterns;
mod products;

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backend::AttentionDims;
    use crate::backend::cpu::context::Context;
    use crate::backend::cpu::isa::tests::isas;
    use crate::backend::cpu::simd::{Element, Isa};
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

    /// `z`, the log-sum-exp, and the gradients of queries, keys and values, all stored as `R`.
    fn results<R: Element<f32>>(isa: Isa, pack: &Pack, dims: AttentionDims) -> [Vec<f32>; 5] {
        let (n, cx) = (pack.len(), &mut Context::<f32>::new(isa));
        let (wide, narrow) = (n * dims.heads * dims.head_dim, n * dims.kv_heads * dims.head_dim);
        let stored = |count, seed| numbers(count, seed).into_iter().map(R::narrow).collect::<Vec<_>>();
        let (q, k, v, d_z) = (stored(wide, 1), stored(narrow, 2), stored(narrow, 3), numbers(wide, 4));
        let (mut z, mut lse, mut delta) =
            (vec![R::default(); wide], vec![0.0; n * dims.heads], vec![0.0; n * dims.heads]);
        forward::fwd(cx, &mut z, &mut lse, &q, [&k, &v], None, pack, dims);
        let [mut d_q, mut d_k, mut d_v] = [wide, narrow, narrow].map(|count| vec![R::default(); count]);
        let inputs = backward::Inputs { d_z: &d_z, z: &z, lse: &lse, q: &q, k: &k, v: &v };
        backward::bwd(cx, [&mut d_q, &mut d_k, &mut d_v], &mut delta, &inputs, pack, dims);
        let [z, d_q, d_k, d_v] = [z, d_q, d_k, d_v].map(|x| x.into_iter().map(R::widen).collect());
        [z, lse, d_q, d_k, d_v]
    }

    #[test]
    fn pairs_on_every_instruction_set_agree_with_single_precision() {
        let pack = pack();
        for (heads, kv_heads, head_dim) in [(2, 1, 16), (1, 1, 17), (5, 1, 24), (3, 3, 48), (4, 2, 64), (1, 1, 80)] {
            let scale = 1.0 / (head_dim as f64).sqrt();
            let dims = AttentionDims { heads, kv_heads, head_dim, scale, window: None, alibi: false };
            let exact = results::<f32>(Isa::Plain, &pack, dims);
            for isa in isas() {
                let found = results::<bf16>(isa, &pack, dims);
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
}
