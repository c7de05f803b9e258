//! Backward of attention: scores are computed again from q, k and the log-sum-exp, tile by tile.
//!
//! With `p = exp(s - lse)` and `delta = sum(d_z * z)`: `d_v = p^T d_z`, `d_s = p * (d_z v^T - delta)`,
//! `d_q = scale * d_s k`, `d_k = scale * d_s^T q`. Gradients of queries are made per block of queries, those of keys
//! and values per block of keys, which collects from its own segment and then from its readers in ascending order.

use std::ops::Range;

use super::super::context::{Context, Task, carve};
use super::super::pack::transpose;
use super::super::parallel::{Shared, each_part, rows, workers};
use super::super::simd::{self, Element, Float, multiversion, sum};
use super::super::tile::{Panels, Rows};
use super::blocks::{Block, TILE, query_blocks, query_rows};
use super::lanes::{Lanes, each_lanes, gather_keys, gather_queries, some, some_mut};
use super::products::Products;
use crate::backend::cpu::Cpu;
use crate::backend::ops::{AttentionBwd, AttentionDims};
use crate::pack::Pack;

/// What the backward reads, in the compute dtype.
struct Inputs<'a, W, R> {
    /// `[N, H, D]`.
    d_z: &'a [W],
    /// `[N, H, D]`.
    z: &'a [R],
    /// `[N, H]`.
    lse: &'a [W],
    /// `[N, H, D]`.
    q: &'a [R],
    /// `[N, K, D]`.
    k: &'a [R],
    /// `[N, K, D]`.
    v: &'a [R],
}

/// See [`AttentionBwd`], in the compute dtype `R`.
pub fn bwd<W: Float, R: Element<W>>(cx: &mut Context<W>, op: AttentionBwd<'_, Cpu<W>>) {
    let AttentionBwd { d_q, d_k, d_v, delta, d_z, z, lse, q, k, v, pack, dims } = op;
    let [d_q, d_k, d_v] = [d_q, d_k, d_v].map(R::slice_mut);
    let [z, q, k, v] = [z, q, k, v].map(R::slice);
    let inputs = &Inputs { d_z, z, lse, q, k, v };
    let (isa, heads, width) = (cx.exec.isa, dims.heads, dims.head_dim);
    let rounded = Products::of::<R>(&cx.gemm, width).in_pairs();
    each_part(
        &cx.exec.pool,
        pack.len(),
        heads * width,
        rows("attention_bwd", delta, pack.len(), heads),
        |first, delta| {
            let from = first * heads * width;
            dots(isa, delta, &inputs.d_z[from..], &inputs.z[from..], width, rounded);
        },
    );
    let delta = &*delta;
    bwd_queries(cx, d_q, delta, inputs, pack, dims);
    bwd_keys(cx, [d_k, d_v], delta, inputs, pack, dims);
}

multiversion! {
    /// `rounded` says that `d_z` is rounded for the products.
    fn dots[W: Float, R: Element<W>](delta: &mut [W], d_z: &[W], z: &[R], width: usize, rounded: bool) {
        for ((delta, d_z), z) in delta.iter_mut().zip(d_z.chunks_exact(width)).zip(z.chunks_exact(width)) {
            *delta = match rounded {
                true => sum(width, |i| R::narrow(d_z[i]).widen() * z[i].widen()),
                false => sum(width, |i| d_z[i] * z[i].widen()),
            };
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
    workers(&cx.exec.pool, &mut cx.tasks, blocks.len(), |Task { gemm, memory }, i| {
        let (block, products) = (&blocks[i], Products::of::<R>(gemm, width));
        let Products { isa, tiles, .. } = products;
        let _held = tiles.hold();
        let elements = products.elements(width);
        let lanes = Lanes::new(block.rows.len() * group, tiles.lanes);
        let (n, count) = (lanes.n, lanes.count);
        let (own, tile) = (n * width, TILE * elements);
        let lens = [own, own, tile, tile, products.turning(width), Reader::<W>::len(n, width)];
        let [rows, sums, keys, values, turned, rest] = carve(memory, lens);
        let places = [&mut *rows, &mut *sums];
        let mut reader = Reader::new(products, lanes, rest, places, elements, inputs, delta, block, pack, dims);
        sums.fill(W::ZERO);
        let first = pack.positions()[block.rows.start] as usize;
        let end = first + block.rows.len();
        for start in (dims.visible(first).start / TILE * TILE..end).step_by(TILE) {
            let positions = start..end.min(start + TILE);
            gather_keys(products, keys, inputs.k, None, pack, block, dims, positions.clone());
            gather_keys(products, values, inputs.v, None, pack, block, dims, positions.clone());
            reader.gradients([keys, values], positions.clone(), dims);
            products.pair_rows(reader.d_scores, n, positions.len());
            let keys = products.along_positions(turned, keys, positions.len(), width);
            let d_scores = Panels::plain(reader.d_scores, n, tiles.lanes);
            tiles.multiply([width, n, products.elements(positions.len())], keys, d_scores, sums, n, true);
        }
        transpose(isa, rows, width, sums, n, width, count);
        for (row, d_row) in block.rows.clone().zip(rows.chunks_exact(group * width)) {
            let width = group * width;
            // SAFETY: blocks have rows and heads of their own.
            let d_q = unsafe { d_q.at((row * dims.kv_heads + block.head) * width, width) };
            simd::narrow(isa, d_q, d_row);
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
    workers(&cx.exec.pool, &mut cx.tasks, blocks.len(), |Task { gemm, memory }, i| {
        let (block, products) = (&blocks[i], Products::of::<R>(gemm, width));
        let Products { isa, tiles, .. } = products;
        let _held = tiles.hold();
        // What is multiplied with rows of queries as lanes needs whole vectors.
        let padded = width.next_multiple_of(tiles.lanes);
        let stride = products.stride(width, padded);
        let n = Lanes::new(most, products.vector()).n;
        let (own, tile, sums) = (n * stride, TILE * products.elements(width), TILE * padded);
        let lens = [own, own, tile, tile, sums, sums, products.laying(n, padded), Reader::<W>::len(n, width)];
        let [queries, d_out, keys, values, d_keys, d_values, laid, rest] = carve(memory, lens);
        let first_key = pack.positions()[block.rows.start] as usize;
        let positions = first_key..first_key + block.rows.len();
        gather_keys(products, keys, inputs.k, None, pack, block, dims, positions.clone());
        gather_keys(products, values, inputs.v, None, pack, block, dims, positions.clone());
        d_keys.fill(W::ZERO);
        d_values.fill(W::ZERO);
        for segment in [block.segment].into_iter().chain(pack.descendants(block.segment).iter().copied()) {
            for rows in query_rows(pack.segments()[segment].rows.clone(), dims) {
                let first = pack.positions()[rows.start] as usize;
                if first + rows.len() <= positions.start || dims.visible(first).start >= positions.end {
                    continue;
                }
                let lanes = Lanes::new(rows.len() * group, products.vector());
                let by = Block { segment, head: block.head, rows };
                let (n, count) = (lanes.n, lanes.count);
                let places = [&mut *queries, &mut *d_out];
                let mut reader = Reader::new(products, lanes, rest, places, stride, inputs, delta, &by, pack, dims);
                reader.gradients([keys, values], positions.clone(), dims);
                let shape = [positions.len(), padded, products.elements(count)];
                for (sums, weights, x) in
                    [(&mut *d_values, &mut *reader.weights, &*d_out), (&mut *d_keys, &mut *reader.d_scores, &*queries)]
                {
                    products.pair_columns(&mut weights[..positions.len() * n], n);
                    let weights = Rows { data: weights, row: n, k: 1 };
                    let x = products.along_lanes(laid, x, count, width, padded);
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

/// A block of queries as lanes, against keys of its path.
struct Reader<'a, W> {
    lanes: Lanes,
    products: Products<W>,
    /// `[elements of D, n]`.
    queries: &'a mut [W],
    /// `[elements of D, n]`.
    d_out: &'a mut [W],
    /// `[n]`.
    lse: &'a mut [W],
    /// `[n]`.
    delta: &'a mut [W],
    /// `[3, n]`: see [`Lanes::bounds`].
    bounds: &'a mut [W],
    /// `[TILE, n]`: `p`.
    weights: &'a mut [W],
    /// `[TILE, n]`: `scale * d_s`.
    d_scores: &'a mut [W],
}

impl<'a, W: Float> Reader<'a, W> {
    /// Elements of memory for `n` lanes.
    fn len(n: usize, width: usize) -> usize {
        n * (2 * width + 5 + 2 * TILE)
    }

    /// Reads a block; what it read stays in `[queries, d_out]`, rows `[n, elements of D]` at distance `stride` with zeros
    /// between.
    #[allow(clippy::too_many_arguments)]
    fn new<R: Element<W>>(
        products: Products<W>,
        lanes: Lanes,
        memory: &'a mut [W],
        [query_rows, d_rows]: [&mut [W]; 2],
        stride: usize,
        inputs: &Inputs<'_, W, R>,
        all_delta: &[W],
        block: &Block,
        pack: &Pack,
        dims: AttentionDims,
    ) -> Self {
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
            query_rows.fill(W::ZERO);
            d_rows.fill(W::ZERO);
        }
        gather_queries(products, query_rows, stride, inputs.q, row, 0..count, block.head, dims);
        gather_queries(products, d_rows, stride, inputs.d_z, row, 0..count, block.head, dims);
        lanes.turn(products.isa, queries, query_rows, stride, elements);
        lanes.turn(products.isa, d_out, d_rows, stride, elements);
        lanes.bounds(bounds, row, 0, block.head, pack, dims);
        lse.fill(W::ZERO);
        delta.fill(W::ZERO);
        let group = dims.group();
        for (r, row) in block.rows.clone().enumerate() {
            let from = row * dims.heads + block.head * group;
            lse[r * group..][..group].copy_from_slice(&inputs.lse[from..][..group]);
            delta[r * group..][..group].copy_from_slice(&all_delta[from..][..group]);
        }
        Self { lanes, products, queries, d_out, lse, delta, bounds, weights, d_scores: &mut rest[..TILE * n] }
    }

    /// `weights [positions, n] = p`, `d_scores [positions, n] = scale * d_s`, given `keys` and `values`
    /// `[positions, elements of D]`.
    fn gradients(&mut self, [keys, values]: [&[W]; 2], positions: Range<usize>, dims: AttentionDims) {
        let Self { lanes: Lanes { n, .. }, products, .. } = *self;
        let (tiles, width, count) = (products.tiles, dims.head_dim, positions.len());
        let (weights, d_scores) = (&mut self.weights[..count * n], &mut self.d_scores[..count * n]);
        let shape = [count, n, products.elements(width)];
        for (rows, lanes, out) in [(keys, &*self.queries, &mut *weights), (values, &*self.d_out, &mut *d_scores)] {
            let lanes = Panels::plain(lanes, n, tiles.lanes);
            tiles.multiply(shape, products.along_width(rows, width), lanes, out, n, false);
        }
        let scale = W::from_f64(dims.scale);
        weigh(products.isa, weights, d_scores, self.lse, self.delta, self.bounds, positions.start, scale);
    }
}

multiversion! {
    /// Turns products into weights and gradients of scores; those of hidden positions are 0.
    fn weigh[W: Float; FUSED](
        weights: &mut [W],
        d_scores: &mut [W],
        lse: &[W],
        delta: &[W],
        bounds: &[W],
        start: usize,
        scale: W,
    ) {
        let n = lse.len();
        each_lanes!(n, |first, N| weigh_some::<W, N, FUSED>(weights, d_scores, lse, delta, bounds, first, start, scale));
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn weigh_some<W: Float, const N: usize, const FUSED: bool>(
    weights: &mut [W],
    d_scores: &mut [W],
    lse: &[W],
    delta: &[W],
    bounds: &[W],
    first: usize,
    start: usize,
    scale: W,
) {
    let n = lse.len();
    let (from, to, slope) =
        (some::<W, N>(bounds, first), some::<W, N>(bounds, n + first), some::<W, N>(bounds, 2 * n + first));
    let leans = slope.iter().any(|&slope| slope > W::ZERO);
    let (lse, delta) = (some::<W, N>(lse, first), some::<W, N>(delta, first));
    for (j, (weights, d_scores)) in weights.chunks_exact_mut(n).zip(d_scores.chunks_exact_mut(n)).enumerate() {
        let (weights, d_scores) = (some_mut::<W, N>(weights, first), some_mut::<W, N>(d_scores, first));
        let at = W::from_f64((start + j) as f64);
        let (mut p, mut d) = (*weights, *d_scores);
        for p in &mut p {
            *p = *p * scale;
        }
        if leans {
            for i in 0..N {
                p[i] = p[i] - slope[i] * (to[i] - at);
            }
        }
        for i in 0..N {
            let hidden = (at < from[i]) | (at > to[i]);
            let weight = (p[i] - lse[i]).weight::<FUSED>();
            p[i] = if hidden { W::ZERO } else { weight };
            d[i] = if hidden { W::ZERO } else { weight * (d[i] - delta[i]) * scale };
        }
        (*weights, *d_scores) = (p, d);
    }
}
