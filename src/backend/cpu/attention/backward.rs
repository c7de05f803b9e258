//! Backward of attention: scores are computed again from q, k and the log-sum-exp, tile by tile.
//!
//! With `p = exp(s - lse)` and `delta = sum(d_z * z)`: `d_v = p^T d_z`, `d_s = p * (d_z v^T - delta)`,
//! `d_q = scale * d_s k`, `d_k = scale * d_s^T q`, under a soft cap with its slope in `d_s`. Gradients of queries are made
//! per block of queries, those of keys and values per block of keys, which collects from its own segment and then from its
//! descendants in ascending order. Threads share the blocks, which are never cut.

use std::ops::Range;

use super::super::context::{Context, Task, carve};
use super::super::gemm::tile::{BroadcastOperand, VectorOperand};
use super::super::parallel::{Shared, each_part, rows, workers};
use super::super::simd::{self, Element, Float, each_lanes, multiversion, softcap, some, some_mut, sum};
use super::blocks::{Block, Outputs, TILE, query_blocks};
use super::lanes::{Gather, Lanes};
use super::products::{HeadRows, Products};
use crate::backend::cpu::Cpu;
use crate::backend::ops::{AttentionBwd, AttentionDims};
use crate::pack::Pack;

/// What the backward reads.
struct Inputs<'a, A, C> {
    /// `[N, H, D]`.
    d_z: &'a [A],
    /// `[N, H]`.
    lse: &'a [A],
    /// `[N, H, D]`.
    q: &'a [C],
    /// `[N, K, D]`.
    k: &'a [C],
    /// `[N, K, D]`.
    v: &'a [C],
    /// `[N, H]`: `sum(d_z * z)`.
    delta: &'a [A],
    /// The rows that came out.
    outputs: Outputs<'a>,
}

/// See [`AttentionBwd`], in the compute dtype `C`.
pub fn bwd<A: Float, C: Element<A>>(cx: &mut Context<A>, op: AttentionBwd<'_, Cpu<A>>) {
    let AttentionBwd { d_q, d_k, d_v, delta, d_z, z, lse, q, k, v, pack, outputs, dims } = op;
    let [d_q, d_k, d_v] = [d_q, d_k, d_v].map(C::slice_mut);
    let [z, q, k, v] = [z, q, k, v].map(C::slice);
    let (isa, heads, width) = (cx.exec.isa, dims.heads, dims.head_dim);
    let products = Products::of::<C>(&cx.gemm, width);
    let (rounded, outputs) = (products.in_pairs(), products.outputs(outputs));
    if outputs.rows.is_some() {
        for rows in pack.segments().iter().flat_map(|segment| outputs.blocks(segment.rows.clone(), dims)) {
            let from = rows.start * heads * width;
            let delta = &mut delta[rows.start * heads..rows.end * heads];
            dots(isa, delta, &d_z[from..], &z[from..], width, rounded);
        }
        d_q[..pack.len() * heads * width].fill(C::default());
    } else {
        let cost = heads * width;
        each_part(&cx.exec.pool, pack.len(), cost, rows("attention_bwd", delta, pack.len(), heads), |first, delta| {
            let from = first * cost;
            dots(isa, delta, &d_z[from..], &z[from..], width, rounded);
        });
    }
    let inputs = &Inputs { d_z, lse, q, k, v, delta, outputs };
    bwd_queries(cx, d_q, inputs, pack, dims);
    bwd_keys(cx, [d_k, d_v], inputs, pack, dims);
}

multiversion! {
    /// `rounded` says that `d_z` is rounded for the products.
    fn dots[A: Float, C: Element<A>](delta: &mut [A], d_z: &[A], z: &[C], width: usize, rounded: bool) {
        for ((delta, d_z), z) in delta.iter_mut().zip(d_z.chunks_exact(width)).zip(z.chunks_exact(width)) {
            *delta = match rounded {
                true => sum(width, |i| C::narrow(d_z[i]).widen() * z[i].widen()),
                false => sum(width, |i| d_z[i] * z[i].widen()),
            };
        }
    }
}

fn bwd_queries<A: Float, C: Element<A>>(
    cx: &mut Context<A>,
    d_q: &mut [C],
    inputs: &Inputs<'_, A, C>,
    pack: &Pack,
    dims: AttentionDims,
) {
    let (group, width) = (dims.group(), dims.head_dim);
    let d_q = Shared::new(d_q);
    let blocks = query_blocks(pack, inputs.outputs, dims);
    workers(&cx.exec.pool, &mut cx.tasks, blocks.len(), |Task { gemm, memory }, i| {
        let (block, products) = (&blocks[i], Products::of::<C>(gemm, width));
        let Products { isa, tiles, .. } = products;
        let _tiles = tiles.acquire_tiles();
        let gather = Gather { products, pack, dims };
        let elements = products.elements(width);
        let lanes = Lanes::new(block.rows.len() * group, tiles.lanes);
        let (n, count) = (lanes.n, lanes.count);
        let (own, tile) = (n * width, TILE * elements);
        let lens = [own, own, tile, tile, products.transposing_len(width), QueryBlock::<A>::len(n, width)];
        let [rows, sums, keys, values, transposed, rest] = carve(memory, lens);
        let gathered = [&mut *rows, &mut *sums];
        let mut query_block = QueryBlock::new(gather, lanes, rest, gathered, elements, inputs, block);
        sums.fill(A::ZERO);
        let [first, last] = [block.rows.start, block.rows.end - 1].map(|row| pack.visible(row, dims.window));
        let end = last.end;
        for start in (first.start / TILE * TILE..end).step_by(TILE) {
            let positions = start..end.min(start + TILE);
            let keys = gather.keys(keys, inputs.k, None, block, positions.clone());
            let values = gather.keys(values, inputs.v, None, block, positions.clone());
            query_block.gradients([keys, values], positions.clone(), dims);
            products.pair_rows(query_block.d_scores, n, positions.len());
            let keys = products.along_positions(transposed, keys, positions.len(), width);
            let d_scores = VectorOperand::plain(query_block.d_scores, n, tiles.lanes);
            tiles.multiply([width, n, products.elements(positions.len())], keys, d_scores, sums, n, true);
        }
        products.transposer.transpose(rows, width, sums, n, [width, count]);
        for (row, d_row) in block.rows.clone().zip(rows.chunks_exact(group * width)) {
            let width = group * width;
            // SAFETY: blocks have rows and heads of their own.
            let d_q = unsafe { d_q.at((row * dims.kv_heads + block.head) * width, width) };
            simd::narrow(isa, d_q, d_row);
        }
    });
}

fn bwd_keys<A: Float, C: Element<A>>(
    cx: &mut Context<A>,
    [d_k, d_v]: [&mut [C]; 2],
    inputs: &Inputs<'_, A, C>,
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
    let all = Outputs { rows: None, ..inputs.outputs };
    let most = dims.group() * all.blocks(0..pack.len(), dims).next().map_or(0, |rows| rows.len());
    workers(&cx.exec.pool, &mut cx.tasks, blocks.len(), |Task { gemm, memory }, i| {
        let (block, products) = (&blocks[i], Products::of::<C>(gemm, width));
        let Products { isa, tiles, .. } = products;
        let _tiles = tiles.acquire_tiles();
        let gather = Gather { products, pack, dims };
        // What is multiplied with rows of queries as lanes needs whole vectors.
        let padded = width.next_multiple_of(tiles.lanes);
        let stride = products.stride(width, padded);
        let n = Lanes::new(most, products.vector()).n;
        let (own, tile, sums) = (n * stride, TILE * products.elements(width), TILE * padded);
        let lens =
            [own, own, tile, tile, sums, sums, products.interleaving_len(n, padded), QueryBlock::<A>::len(n, width)];
        let [queries, d_out, keys, values, d_keys, d_values, interleaved, rest] = carve(memory, lens);
        let first_key = pack.positions()[block.rows.start] as usize;
        let positions = first_key..first_key + block.rows.len();
        let keys = gather.keys(keys, inputs.k, None, block, positions.clone());
        let values = gather.keys(values, inputs.v, None, block, positions.clone());
        d_keys.fill(A::ZERO);
        d_values.fill(A::ZERO);
        for segment in [block.segment].into_iter().chain(pack.descendants(block.segment).iter().copied()) {
            for rows in inputs.outputs.blocks(pack.segments()[segment].rows.clone(), dims) {
                let [first, last] = [rows.start, rows.end - 1].map(|row| pack.visible(row, dims.window));
                if last.end <= positions.start || first.start >= positions.end {
                    continue;
                }
                let lanes = Lanes::new(rows.len() * group, products.vector());
                let by = Block { segment, head: block.head, rows };
                let (n, count) = (lanes.n, lanes.count);
                let gathered = [&mut *queries, &mut *d_out];
                let mut query_block = QueryBlock::new(gather, lanes, rest, gathered, stride, inputs, &by);
                query_block.gradients([keys, values], positions.clone(), dims);
                let shape = [positions.len(), padded, products.elements(count)];
                for (sums, weights, x) in [
                    (&mut *d_values, &mut *query_block.weights, &*d_out),
                    (&mut *d_keys, &mut *query_block.d_scores, &*queries),
                ] {
                    products.pair_columns(&mut weights[..positions.len() * n], n);
                    let weights = BroadcastOperand { data: weights, row: n, k: 1 };
                    let x = products.along_lanes(interleaved, x, count, width, padded);
                    tiles.multiply(shape, weights, x, sums, padded, true);
                }
            }
        }
        for (r, row) in block.rows.clone().enumerate() {
            let to = (row * dims.kv_heads + block.head) * width;
            // SAFETY: blocks have rows and heads of their own.
            let (d_k, d_v) = unsafe { (d_k.at(to, width), d_v.at(to, width)) };
            simd::narrow(isa, d_k, &d_keys[r * padded..][..width]);
            simd::narrow(isa, d_v, &d_values[r * padded..][..width]);
        }
    });
}

/// A block of queries as lanes, against a tile of keys of its path.
struct QueryBlock<'a, A> {
    lanes: Lanes,
    products: Products<A>,
    /// `[elements of D, n]`.
    queries: &'a mut [A],
    /// `[elements of D, n]`.
    d_out: &'a mut [A],
    /// `[n]`.
    lse: &'a mut [A],
    /// `[n]`.
    delta: &'a mut [A],
    /// `[3, n]`: see [`Lanes::bounds`].
    bounds: &'a mut [A],
    /// `[TILE, n]`: `p`.
    weights: &'a mut [A],
    /// `[TILE, n]`: `scale * d_s`.
    d_scores: &'a mut [A],
}

impl<'a, A: Float> QueryBlock<'a, A> {
    /// Elements of memory for `n` lanes.
    fn len(n: usize, width: usize) -> usize {
        n * (2 * width + 5 + 2 * TILE)
    }

    /// Reads a block; what it read stays in `[queries, d_out]`, rows `[n, elements of D]` at distance `stride` with zeros
    /// between.
    fn new<C: Element<A>>(
        gather: Gather<'_, A>,
        lanes: Lanes,
        memory: &'a mut [A],
        [query_rows, d_rows]: [&mut [A]; 2],
        stride: usize,
        inputs: &Inputs<'_, A, C>,
        block: &Block,
    ) -> Self {
        let Gather { products, pack, dims } = gather;
        let (n, count, width) = (lanes.n, lanes.count, dims.head_dim);
        let (queries, rest) = memory.split_at_mut(n * width);
        let (d_out, rest) = rest.split_at_mut(n * width);
        let (lse, rest) = rest.split_at_mut(n);
        let (delta, rest) = rest.split_at_mut(n);
        let (bounds, rest) = rest.split_at_mut(3 * n);
        let (weights, rest) = rest.split_at_mut(TILE * n);
        let row = |i: usize| block.rows.start + i;
        let (query_rows, d_rows) = (&mut query_rows[..count * stride], &mut d_rows[..count * stride]);
        let elements = products.elements(width);
        if stride > elements {
            query_rows.fill(A::ZERO);
            d_rows.fill(A::ZERO);
        }
        gather.queries(query_rows, stride, inputs.q, row, 0..count, block.head);
        gather.queries(d_rows, stride, inputs.d_z, row, 0..count, block.head);
        lanes.transpose(products.transposer, queries, query_rows, stride, elements);
        lanes.transpose(products.transposer, d_out, d_rows, stride, elements);
        lanes.bounds(bounds, row, 0, block.head, (pack, dims));
        lse.fill(A::ZERO);
        delta.fill(A::ZERO);
        let group = dims.group();
        for (r, row) in block.rows.clone().enumerate() {
            let from = row * dims.heads + block.head * group;
            lse[r * group..][..group].copy_from_slice(&inputs.lse[from..][..group]);
            delta[r * group..][..group].copy_from_slice(&inputs.delta[from..][..group]);
        }
        Self { lanes, products, queries, d_out, lse, delta, bounds, weights, d_scores: &mut rest[..TILE * n] }
    }

    /// `weights [positions, n] = p`, `d_scores [positions, n] = scale * d_s`, given `keys` and `values`
    /// `[positions, elements of D]`.
    fn gradients(&mut self, [keys, values]: [HeadRows<'_, A>; 2], positions: Range<usize>, dims: AttentionDims) {
        let Self { lanes: Lanes { n, .. }, products, .. } = *self;
        let (tiles, width, count) = (products.tiles, dims.head_dim, positions.len());
        let (weights, d_scores) = (&mut self.weights[..count * n], &mut self.d_scores[..count * n]);
        let shape = [count, n, products.elements(width)];
        for (rows, lanes, out) in [(keys, &*self.queries, &mut *weights), (values, &*self.d_out, &mut *d_scores)] {
            let lanes = VectorOperand::plain(lanes, n, tiles.lanes);
            tiles.multiply(shape, products.along_width(rows), lanes, out, n, false);
        }
        let tile = TileGradients {
            weights,
            d_scores,
            lse: self.lse,
            delta: self.delta,
            bounds: self.bounds,
            start: positions.start,
            scale: A::from_f64(dims.scale),
            cap: dims.softcap.map(A::from_f64),
        };
        softmax_bwd(products.isa, tile);
    }
}

/// The gradients of a tile, `n` lanes.
struct TileGradients<'a, A> {
    /// `[positions, n]`: `q k^T`, made `p`.
    weights: &'a mut [A],
    /// `[positions, n]`: `d_z v^T`, made `scale * d_s`.
    d_scores: &'a mut [A],
    /// `[n]`.
    lse: &'a [A],
    /// `[n]`.
    delta: &'a [A],
    /// `[3, n]`: see [`Lanes::bounds`].
    bounds: &'a [A],
    /// Position of the tile's first key.
    start: usize,
    /// Multiplier of the scores.
    scale: A,
    /// Soft cap of the scores.
    cap: Option<A>,
}

multiversion! {
    /// Makes of products weights and gradients of scores; those of masked positions are 0.
    fn softmax_bwd[A: Float; FUSED](tile: TileGradients<'_, A>) {
        let n = tile.lse.len();
        let mut tile = tile;
        each_lanes!(n, |first, N| tile.update::<N, FUSED>(n, first));
    }
}

impl<A: Float> TileGradients<'_, A> {
    /// The lanes from `first` on.
    #[inline(always)]
    fn update<const N: usize, const FUSED: bool>(&mut self, n: usize, first: usize) {
        let Self { lse, delta, bounds, start, scale, cap, .. } = *self;
        let (from, to, slope) =
            (*some::<A, N>(bounds, first), *some::<A, N>(bounds, n + first), *some::<A, N>(bounds, 2 * n + first));
        let has_alibi = slope.iter().any(|&slope| slope > A::ZERO);
        let (lse, delta) = (*some::<A, N>(lse, first), *some::<A, N>(delta, first));
        let rows = self.weights.chunks_exact_mut(n).zip(self.d_scores.chunks_exact_mut(n));
        for (j, (weights, d_scores)) in rows.enumerate() {
            let (weights, d_scores) = (some_mut::<A, N>(weights, first), some_mut::<A, N>(d_scores, first));
            let at = A::from_f64((start + j) as f64);
            let (mut p, mut d) = (*weights, *d_scores);
            for p in &mut p {
                *p = *p * scale;
            }
            let mut slopes = [scale; N];
            if let Some(cap) = cap {
                for i in 0..N {
                    let (capped, slope) = softcap::<A, FUSED>(p[i], cap);
                    (p[i], slopes[i]) = (capped, slope * scale);
                }
            }
            if has_alibi {
                for i in 0..N {
                    p[i] = p[i] - slope[i] * (to[i] - at);
                }
            }
            for i in 0..N {
                let masked = (at < from[i]) | (at > to[i]);
                let weight = (p[i] - lse[i]).softmax_exp::<FUSED>();
                p[i] = if masked { A::ZERO } else { weight };
                d[i] = if masked { A::ZERO } else { weight * (d[i] - delta[i]) * slopes[i] };
            }
            (*weights, *d_scores) = (p, d);
        }
    }
}
