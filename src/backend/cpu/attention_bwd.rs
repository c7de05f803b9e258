//! Backward of attention: scores are computed again from q, k and the log-sum-exp, tile by tile.
//!
//! With `p = exp(s - lse)` and `delta = sum(d_z * z)`: `d_v = p^T d_z`, `d_s = p * (d_z v^T - delta)`,
//! `d_q = scale * d_s k`, `d_k = scale * d_s^T q`. Gradients of queries are made per block of queries, those of keys
//! and values per block of keys, which collects from its own segment and then from its readers in ascending order.

use std::ops::Range;

use super::attention::{Block, TILE, gather_keys, gather_queries, query_blocks, query_rows, turn_keys};
use super::context::{Context, Task, carve};
use super::gemm::{Gemm, Operand};
use super::linear::wide_product;
use super::parallel::{Shared, each_part, rows, workers};
use super::simd::{self, Element, Float, multiversion, sum};
use crate::backend::AttentionDims;
use crate::shape::Pack;

/// What the backward reads.
pub struct Inputs<'a, W, R> {
    /// `[N, H, D]`.
    pub d_z: &'a [W],
    /// `[N, H, D]`.
    pub z: &'a [R],
    /// `[N, H]`.
    pub lse: &'a [W],
    /// `[N, H, D]`.
    pub q: &'a [R],
    /// `[N, K, D]`.
    pub k: &'a [R],
    /// `[N, K, D]`.
    pub v: &'a [R],
}

/// See [`Backend::attention_bwd`](crate::backend::Backend::attention_bwd).
pub fn bwd<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    [d_q, d_k, d_v]: [&mut [R]; 3],
    delta: &mut [W],
    inputs: &Inputs<'_, W, R>,
    pack: &Pack,
    dims: AttentionDims,
) {
    assert!(!pack.has_kept(), "attention_bwd: a pack with kept ancestors has no backward");
    let (isa, heads, width) = (cx.isa, dims.heads, dims.head_dim);
    each_part(pack.len(), heads * width, rows("attention_bwd", delta, pack.len(), heads), |first, delta| {
        let from = first * heads * width;
        dots(isa, delta, &inputs.d_z[from..], &inputs.z[from..], width);
    });
    let delta = &*delta;
    bwd_queries(cx, d_q, delta, inputs, pack, dims);
    bwd_keys(cx, [d_k, d_v], delta, inputs, pack, dims);
}

multiversion! {
    fn dots[W: Float, R: Element<W>](delta: &mut [W], d_z: &[W], z: &[R], width: usize) {
        for ((delta, d_z), z) in delta.iter_mut().zip(d_z.chunks_exact(width)).zip(z.chunks_exact(width)) {
            *delta = sum(width, |i| d_z[i] * z[i].widen());
        }
    }
}

fn bwd_queries<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    d_q: &mut [R],
    delta: &[W],
    inputs: &Inputs<'_, W, R>,
    pack: &Pack,
    dims: AttentionDims,
) {
    let (group, width) = (dims.group(), dims.head_dim);
    let d_q = Shared::new(d_q);
    let blocks = query_blocks(pack, dims);
    workers(&mut cx.tasks, blocks.len(), |Task { gemm, memory }, i| {
        let (block, isa) = (&blocks[i], gemm.isa());
        let n = block.rows.len() * group;
        let (own, tile) = (n * width, TILE * width);
        let lens = [own, own, tile, tile, tile, tile, n * TILE, n * TILE, own];
        let [queries, d_out, keys, values, turned, turned_values, weights, d_scores, sums] = carve(memory, lens);
        gather_queries(isa, queries, inputs.q, block, dims);
        gather_queries(isa, d_out, inputs.d_z, block, dims);
        sums.fill(W::ZERO);
        let first = pack.positions()[block.rows.start] as usize;
        let end = first + block.rows.len();
        for start in (dims.visible(first).start / TILE * TILE..end).step_by(TILE) {
            let positions = start..end.min(start + TILE);
            gather_keys(isa, keys, inputs.k, None, pack, block, dims, positions.clone());
            gather_keys(isa, values, inputs.v, None, pack, block, dims, positions.clone());
            turn_keys(isa, turned, keys, positions.len(), width);
            turn_keys(isa, turned_values, values, positions.len(), width);
            let tile = Tile { queries, d_out, keys: turned, values: turned_values, positions: positions.clone() };
            tile.gradients(gemm, weights, d_scores, delta, inputs.lse, block, first, dims);
            let (left, right) = (Operand::new(d_scores, TILE), Operand::new(keys, width).transposed());
            wide_product(gemm, [n, width, positions.len()], left, right, sums, true);
        }
        for (r, row) in block.rows.clone().enumerate() {
            let width = group * width;
            // SAFETY: blocks have rows and heads of their own.
            let d_q = unsafe { d_q.at((row * dims.kv_heads + block.head) * width, width) };
            simd::narrow(isa, d_q, &sums[r * width..][..width]);
        }
    });
}

fn bwd_keys<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    [d_k, d_v]: [&mut [R]; 2],
    delta: &[W],
    inputs: &Inputs<'_, W, R>,
    pack: &Pack,
    dims: AttentionDims,
) {
    let (group, width) = (dims.group(), dims.head_dim);
    let (d_k, d_v) = (Shared::new(d_k), Shared::new(d_v));
    let mut blocks = Vec::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        for head in 0..dims.kv_heads {
            let starts = s.rows.clone().step_by(TILE);
            blocks.extend(starts.map(|row| Block { segment, head, rows: row..s.rows.end.min(row + TILE) }));
        }
    }
    let most = dims.group() * query_rows(0..pack.len(), dims).next().map_or(0, |rows| rows.len());
    workers(&mut cx.tasks, blocks.len(), |Task { gemm, memory }, i| {
        let (block, isa) = (&blocks[i], gemm.isa());
        let (own, tile) = (most * width, TILE * width);
        let lens = [own, own, tile, tile, tile, most * TILE, most * TILE, tile, tile];
        let [queries, d_out, gathered, keys, values, weights, d_scores, d_keys, d_values] = carve(memory, lens);
        let first_key = pack.positions()[block.rows.start] as usize;
        let positions = first_key..first_key + block.rows.len();
        for (turned, x) in [(&mut *keys, inputs.k), (&mut *values, inputs.v)] {
            gather_keys(isa, gathered, x, None, pack, block, dims, positions.clone());
            turn_keys(isa, turned, gathered, positions.len(), width);
        }
        d_keys.fill(W::ZERO);
        d_values.fill(W::ZERO);
        for segment in [block.segment].into_iter().chain(pack.readers(block.segment).iter().copied()) {
            for rows in query_rows(pack.segments()[segment].rows.clone(), dims) {
                let first = pack.positions()[rows.start] as usize;
                if first + rows.len() <= positions.start || dims.visible(first).start >= positions.end {
                    continue;
                }
                let reader = Block { segment, head: block.head, rows };
                let n = reader.rows.len() * group;
                gather_queries(isa, &mut queries[..n * width], inputs.q, &reader, dims);
                gather_queries(isa, &mut d_out[..n * width], inputs.d_z, &reader, dims);
                let tile = Tile { queries, d_out, keys, values, positions: positions.clone() };
                tile.gradients(gemm, weights, d_scores, delta, inputs.lse, &reader, first, dims);
                let shape = [positions.len(), width, n];
                let left = |x| Operand::new(x, TILE).transposed();
                let right = |x| Operand::new(x, width).transposed();
                wide_product(gemm, shape, left(&*weights), right(&*d_out), d_values, true);
                wide_product(gemm, shape, left(&*d_scores), right(&*queries), d_keys, true);
            }
        }
        for (r, row) in block.rows.clone().enumerate() {
            let to = (row * dims.kv_heads + block.head) * width;
            // SAFETY: blocks have rows and heads of their own.
            let (d_k, d_v) = unsafe { (d_k.at(to, width), d_v.at(to, width)) };
            simd::narrow(isa, d_k, &d_keys[r * width..][..width]);
            simd::narrow(isa, d_v, &d_values[r * width..][..width]);
        }
    });
}

/// A block of queries against some keys of its path.
struct Tile<'a, W> {
    queries: &'a [W],
    d_out: &'a [W],
    /// `[D, TILE]`, as are the values.
    keys: &'a [W],
    values: &'a [W],
    positions: Range<usize>,
}

impl<W: Float> Tile<'_, W> {
    /// `weights [n, TILE] = p`, `d_scores [n, TILE] = scale * d_s`.
    #[allow(clippy::too_many_arguments)]
    fn gradients(
        &self,
        gemm: &mut Gemm<W>,
        weights: &mut [W],
        d_scores: &mut [W],
        delta: &[W],
        lse: &[W],
        block: &Block,
        first: usize,
        dims: AttentionDims,
    ) {
        let (isa, width) = (gemm.isa(), dims.head_dim);
        let shape = [block.rows.len() * dims.group(), self.positions.len(), width];
        tile_product(gemm, shape, self.queries, self.keys, weights);
        tile_product(gemm, shape, self.d_out, self.values, d_scores);
        weigh(isa, weights, d_scores, delta, lse, block, first, self.positions.clone(), dims);
    }
}

/// `out [n, TILE] = left [n, D] right [D, TILE]`, of which `count` columns.
fn tile_product<W: Float>(gemm: &mut Gemm<W>, shape: [usize; 3], left: &[W], right: &[W], out: &mut [W]) {
    let (left, right) = (Operand::new(left, shape[2]), Operand::new(right, TILE).transposed());
    let out = Shared::new(out);
    gemm.product(shape, left, right, &|i, j, x| {
        // SAFETY: a product stores every element once.
        unsafe { out.at(i * TILE + j, x.len()) }.copy_from_slice(x);
    });
}

multiversion! {
    /// Turns products into weights and gradients of scores; masked ones are 0.
    fn weigh[W: Float](
        weights: &mut [W],
        d_scores: &mut [W],
        delta: &[W],
        lse: &[W],
        block: &Block,
        first: usize,
        tile: Range<usize>,
        dims: AttentionDims,
    ) {
        let (group, scale) = (dims.group(), W::from_f64(dims.scale));
        for i in 0..block.rows.len() * group {
            let seen = dims.visible(first + i / group);
            let from = seen.start.clamp(tile.start, tile.end) - tile.start;
            let to = seen.end.clamp(tile.start, tile.end) - tile.start;
            let (weights, d_scores) = (&mut weights[i * TILE..][..TILE], &mut d_scores[i * TILE..][..TILE]);
            for hidden in [0..from, to.max(from)..TILE] {
                weights[hidden.clone()].fill(W::ZERO);
                d_scores[hidden].fill(W::ZERO);
            }
            let head = (block.rows.start + i / group) * dims.heads + block.head * group + i % group;
            let (lse, delta) = (lse[head], delta[head]);
            for j in from..to {
                weights[j] = (weights[j] * scale - lse).exp();
                d_scores[j] = weights[j] * (d_scores[j] - delta) * scale;
            }
        }
    }
}
