//! What hooks read of attention: patterns, and what each head adds.

use super::super::context::{Context, Task, carve};
use super::super::gemm::Operand;
use super::super::parallel::{Shared, workers};
use super::super::simd::{self, Element, Float, softcap};
use super::blocks::{Block, TILE};
use super::lanes::Gather;
use super::products::Products;
use crate::backend::cpu::Cpu;
use crate::backend::ops::{AttentionPattern, AttentionResult};

/// See [`AttentionPattern`], in the compute dtype `C`.
pub fn pattern<A: Float, C: Element<A>>(cx: &mut Context<A>, op: AttentionPattern<'_, Cpu<A>>) {
    let AttentionPattern { out, q, k, cached_k, lse, rows, pack, dims, longest, normalized } = op;
    let ([q, k], cached_k) = ([q, k].map(C::slice), cached_k.map(C::slice));
    let (group, width, scale) = (dims.group(), dims.head_dim, A::from_f64(dims.scale));
    let cap = dims.softcap.map(A::from_f64);
    let out = &mut out[..rows.len() * dims.heads * longest];
    out.fill(if normalized { A::ZERO } else { A::NEG_INFINITY });
    let out = Shared::new(out);
    workers(&cx.exec.pool, &mut cx.tasks, rows.len() * dims.kv_heads, |Task { gemm, memory }, task| {
        let (index, head, products) = (task / dims.kv_heads, task % dims.kv_heads, Products::numbers(gemm));
        let row = rows[index];
        let block = Block { segment: pack.segment_of(row), head, rows: row..row + 1 };
        let seen = pack.visible(row, dims.window);
        let gather = Gather { products, pack, dims };
        let [queries, keys] = carve(memory, [group * width, TILE * width]);
        gather.queries(queries, width, q, |_| row, 0..group, head);
        for start in (seen.start..seen.end).step_by(TILE) {
            let positions = start..seen.end.min(start + TILE);
            let keys = gather.keys(keys, k, cached_k, &block, positions.clone());
            let shape = [group, positions.len(), width];
            gemm.product(shape, Operand::new(queries, width), Operand::new(keys.data, keys.distance), &|i, j, x| {
                let head = head * group + i;
                // SAFETY: tasks have rows and heads of their own, and a product stores every element once.
                let out = unsafe { out.at((index * dims.heads + head) * longest + start + j, x.len()) };
                let slope = A::from_f64(dims.slope(head));
                for (n, (o, &x)) in out.iter_mut().zip(x).enumerate() {
                    let score = cap.map_or(x * scale, |cap| softcap::<A, false>(x * scale, cap).0);
                    let score = score - slope * A::from_f64((seen.end - 1 - start - j - n) as f64);
                    *o = if normalized { (score - lse[row * dims.heads + head]).exp::<false>() } else { score };
                }
            });
        }
    });
}

/// See [`AttentionResult`].
pub fn result<A: Float>(cx: &mut Context<A>, op: AttentionResult<'_, Cpu<A>>) {
    let AttentionResult { out, z, weight, rows, heads, head_dim, width } = op;
    let joined = heads * head_dim;
    let gathered = cx.memory.grow(rows.len() * joined);
    for (to, &row) in gathered.chunks_exact_mut(joined).zip(rows) {
        simd::read(cx.exec.isa, to, z.view(), row * joined);
    }
    let out = Shared::new(out);
    for head in 0..heads {
        let left = Operand::new(&*gathered, joined).along(head * head_dim);
        let right = weight.operand(joined).along(head * head_dim);
        cx.gemm.product([rows.len(), width, head_dim], left, right, &|i, j, x| {
            // SAFETY: heads have columns of their own, and a product stores every element once.
            unsafe { out.at((i * heads + head) * width + j, x.len()) }.copy_from_slice(x);
        });
    }
}
