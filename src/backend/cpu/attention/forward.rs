//! Forward of attention: blocks of query rows pass over the tiles of their keys and values, FlashAttention's loop.
//!
//! Threads share the groups of blocks ([`Group`]) of each key-value head; a group's work is never cut, so that what is
//! added up in which order depends on no other row.

use std::ops::Range;

use super::super::context::{Context, Task, carve};
use super::super::gemm::tile::{BroadcastOperand, VectorOperand};
use super::super::parallel::{Shared, workers};
use super::super::simd::{self, Element, Float, each_lanes, multiversion, softcap, some, some_mut};
use super::blocks::{Block, Group, TILE, query_groups};
use super::lanes::{Gather, Lanes};
use super::products::Products;
use crate::backend::cpu::Cpu;
use crate::backend::ops::{AttentionDims, AttentionFwd};

/// Lanes that are worked on at a time: what a tile of keys and they need stays in the first-level cache.
const TOGETHER: usize = 64;

/// Rows of queries on their way over the tiles, as lanes, with the state of their online softmax.
struct QueryRows<'a, A> {
    lanes: Lanes,
    products: Products<A>,
    /// `[elements of D, n]`.
    queries: &'a mut [A],
    /// `[D, n]`: weighted values so far.
    acc: &'a mut [A],
    /// `[n]`: the largest score so far, m.
    row_max: &'a mut [A],
    /// `[n]`: the sum of weights so far, l.
    row_sum: &'a mut [A],
    /// `[n]`: what a tile multiplies earlier sums by, alpha.
    rescale: &'a mut [A],
    /// `[3, n]`: see [`Lanes::bounds`].
    bounds: &'a mut [A],
}

impl<'a, A: Float> QueryRows<'a, A> {
    /// Elements of memory for `n` lanes.
    fn len(n: usize, width: usize) -> usize {
        n * (2 * width + 6)
    }

    /// Before the first tile.
    fn new<C: Element<A>>(
        gather: Gather<'_, A>,
        lanes: Lanes,
        memory: &'a mut [A],
        q: &[C],
        rows: impl Fn(usize) -> usize + Copy,
        first: usize,
        head: usize,
    ) -> Self {
        let Gather { products, pack, dims } = gather;
        let (n, width) = (lanes.n, dims.head_dim);
        let (queries, rest) = memory.split_at_mut(n * width);
        let (acc, rest) = rest.split_at_mut(n * width);
        let (row_max, rest) = rest.split_at_mut(n);
        let (row_sum, rest) = rest.split_at_mut(n);
        let (rescale, rest) = rest.split_at_mut(n);
        let bounds = &mut rest[..3 * n];
        let elements = products.elements(width);
        let gathered = &mut acc[..lanes.count * elements];
        gather.queries(gathered, elements, q, rows, first..first + lanes.count, head);
        lanes.transpose(products.transposer, queries, gathered, elements, elements);
        lanes.bounds(bounds, rows, first, head, (pack, dims));
        acc.fill(A::ZERO);
        row_max.fill(A::NEG_INFINITY);
        row_sum.fill(A::ZERO);
        Self { lanes, products, queries, acc, row_max, row_sum, rescale, bounds }
    }

    /// Takes over how far some of the lanes of another are: from its `from` on to this one's `to` on.
    fn resume(&mut self, other: &QueryRows<'_, A>, from: usize, to: usize, count: usize) {
        let (own, others) = (to..to + count, from..from + count);
        self.row_max[own.clone()].copy_from_slice(&other.row_max[others.clone()]);
        self.row_sum[own.clone()].copy_from_slice(&other.row_sum[others.clone()]);
        let acc = self.acc.chunks_exact_mut(self.lanes.n).zip(other.acc.chunks_exact(other.lanes.n));
        acc.for_each(|(acc, other)| acc[own.clone()].copy_from_slice(&other[others.clone()]));
    }

    /// Takes in a tile: `keys` along D and `values` along positions; `scores` holds `[TILE, n]`.
    fn take_tile(
        &mut self,
        [keys, values]: [BroadcastOperand<'_, A>; 2],
        scores: &mut [A],
        tile: Range<usize>,
        dims: AttentionDims,
    ) {
        let Self { lanes: Lanes { n, .. }, products, .. } = *self;
        let Products { isa, tiles, .. } = products;
        let (width, count) = (dims.head_dim, tile.len());
        let queries = VectorOperand::plain(self.queries, n, tiles.lanes);
        tiles.multiply([count, n, products.elements(width)], keys, queries, scores, n, false);
        let softmax = OnlineSoftmax {
            row_max: self.row_max,
            row_sum: self.row_sum,
            rescale: self.rescale,
            bounds: self.bounds,
            start: tile.start,
            scale: A::from_f64(dims.scale),
            cap: dims.softcap.map(A::from_f64),
        };
        online_softmax(isa, &mut scores[..count * n], softmax);
        rescale(isa, self.acc, self.rescale);
        products.pair_rows(scores, n, count);
        let scores = VectorOperand::plain(scores, n, tiles.lanes);
        tiles.multiply([width, n, products.elements(count)], values, scores, self.acc, n, true);
    }

    /// After the last tile: `z` and `lse` of every row.
    fn finish<C: Element<A>>(
        &mut self,
        z: &Shared<'_, C>,
        lse: &Shared<'_, A>,
        rows: impl Fn(usize) -> usize,
        head: usize,
        dims: AttentionDims,
    ) {
        let (n, width, group, isa) = (self.lanes.n, dims.head_dim, dims.group(), self.products.isa);
        divide(isa, self.acc, self.row_sum);
        let transposer = self.products.transposer;
        transposer.transpose(self.queries, width, self.acc, n, [width, self.lanes.count]);
        for (lane, z_row) in self.queries.chunks_exact(width).take(self.lanes.count).enumerate() {
            let index = rows(lane / group) * dims.heads + head * group + lane % group;
            // SAFETY: blocks have rows and heads of their own.
            let (z, lse) = unsafe { (z.at(index * width, width), lse.at(index, 1)) };
            simd::narrow(isa, z, z_row);
            lse[0] = self.row_max[lane] + self.row_sum[lane].ln();
        }
    }
}

/// See [`AttentionFwd`], in the compute dtype `C`.
pub fn fwd<A: Float, C: Element<A>>(cx: &mut Context<A>, op: AttentionFwd<'_, Cpu<A>>) {
    let AttentionFwd { z, lse, q, k, v, cached, pack, outputs, dims } = op;
    let [q, k, v] = [q, k, v].map(C::slice);
    let cached = cached.map(|buffers| buffers.map(C::slice));
    let (group, width) = (dims.group(), dims.head_dim);
    let (z, lse) = (Shared::new(C::slice_mut(z)), Shared::new(lse));
    let groups = query_groups(pack, Products::of::<C>(&cx.gemm, width).outputs(outputs), dims);
    workers(&cx.exec.pool, &mut cx.tasks, groups.len() * dims.kv_heads, |Task { gemm, memory }, i| {
        // The last rows see the most keys: first, so that no thread is left alone with them.
        let (head, products) = (i % dims.kv_heads, Products::of::<C>(gemm, width));
        let (vector, _tiles) = (products.tiles.lanes, products.tiles.acquire_tiles());
        let gather = Gather { products, pack, dims };
        let Group { blocks, rows, common } = &groups[groups.len() - 1 - i / dims.kv_heads];
        let all = rows.len() * group;
        let most = group * blocks.iter().map(|block| block.rows.len()).max().unwrap_or(0);
        let own = Lanes::new(most, vector).n;
        let shared = if blocks.len() > 1 { all.div_ceil(TOGETHER) } else { 0 };
        let tile = TILE * products.elements(width);
        let (of_own, of_shared) = (QueryRows::<A>::len(own, width), shared * QueryRows::<A>::len(TOGETHER, width));
        let lens = [tile, tile, products.transposing_len(width), TILE * own.max(TOGETHER), of_own, of_shared];
        let [keys, values, transposed, scores, own_memory, memory] = carve(memory, lens);
        let mut tile = |query_rows: &mut [QueryRows<'_, A>], block: &Block, positions: Range<usize>| {
            let block = Block { head, ..block.clone() };
            let keys = gather.keys(keys, k, cached.map(|cached| cached[0]), &block, positions.clone());
            let values = gather.keys(values, v, cached.map(|cached| cached[1]), &block, positions.clone());
            let keys = products.along_width(keys);
            let values = products.along_positions(transposed, values, positions.len(), width);
            for rows in query_rows {
                rows.take_tile([keys, values], scores, positions.clone(), dims);
            }
        };
        let seen = |block: &Block| pack.visible(block.rows.start, dims.window).start / TILE * TILE;
        // A tile that lies before all rows is the same for all; from there on each block has its own.
        let parts = memory.chunks_exact_mut(QueryRows::<A>::len(TOGETHER, width)).enumerate().map(|(part, memory)| {
            let from = part * TOGETHER;
            let lanes = Lanes::new(TOGETHER.min(all - from), vector);
            QueryRows::new(gather, lanes, memory, q, |row| rows[row], from, head)
        });
        let mut parts: Vec<QueryRows<'_, A>> = parts.collect();
        let common = if shared > 0 { common / TILE * TILE } else { 0 };
        let earliest = blocks.iter().map(seen).min().unwrap_or(0);
        for start in (earliest..common).step_by(TILE) {
            tile(&mut parts, &blocks[0], start..start + TILE);
        }
        let mut done = 0;
        for block in blocks {
            let (count, row) = (block.rows.len() * group, |row| block.rows.start + row);
            let lanes = Lanes::new(count, vector);
            let mut own = QueryRows::new(gather, lanes, own_memory, q, row, 0, head);
            for (part, passed) in parts.iter().enumerate() {
                let from = done.max(part * TOGETHER);
                let to = (done + count).min(part * TOGETHER + passed.lanes.count);
                if from < to {
                    own.resume(passed, from - part * TOGETHER, from - done, to - from);
                }
            }
            done += count;
            let end = pack.visible(block.rows.end - 1, dims.window).end;
            for start in (seen(block).max(common)..end).step_by(TILE) {
                tile(std::slice::from_mut(&mut own), block, start..end.min(start + TILE));
            }
            own.finish(&z, &lse, row, head, dims);
        }
    });
}

/// The online softmax of a tile, `n` lanes.
struct OnlineSoftmax<'a, A> {
    /// `[n]`, updated.
    row_max: &'a mut [A],
    /// `[n]`, updated.
    row_sum: &'a mut [A],
    /// `[n]`, set.
    rescale: &'a mut [A],
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
    /// Makes of a tile of products `[positions, n]` weights relative to each lane's largest score so far, and sets what
    /// earlier sums are to be multiplied by. Masked positions get the weight 0.
    fn online_softmax[A: Float; FUSED](scores: &mut [A], state: OnlineSoftmax<'_, A>) {
        let n = state.row_max.len();
        let mut state = state;
        each_lanes!(n, |first, N| state.update::<N, FUSED>(scores, n, first));
    }
}

impl<A: Float> OnlineSoftmax<'_, A> {
    /// The lanes from `first` on.
    #[inline(always)]
    fn update<const N: usize, const FUSED: bool>(&mut self, scores: &mut [A], n: usize, first: usize) {
        let Self { bounds, start, scale, cap, .. } = *self;
        let (from, to, slope) =
            (*some::<A, N>(bounds, first), *some::<A, N>(bounds, n + first), *some::<A, N>(bounds, 2 * n + first));
        let has_alibi = slope.iter().any(|&slope| slope > A::ZERO);
        let (row_max, row_sum) = (some_mut::<A, N>(self.row_max, first), some_mut::<A, N>(self.row_sum, first));
        let rescale = some_mut::<A, N>(self.rescale, first);
        let count = scores.len() / n;
        let (begin, end) = (A::from_f64(start as f64), A::from_f64((start + count) as f64 - 1.0));
        let mut has_masked = false;
        for i in 0..N {
            has_masked |= from[i] > begin || to[i] < end;
        }
        let old_max = *row_max;
        let mut new_max = old_max;
        for (j, row) in scores.chunks_exact_mut(n).enumerate() {
            let row = some_mut::<A, N>(row, first);
            let (mut x, at) = (*row, A::from_f64((start + j) as f64));
            for x in &mut x {
                *x = *x * scale;
            }
            if let Some(cap) = cap {
                for x in &mut x {
                    *x = softcap::<A, FUSED>(*x, cap).0;
                }
            }
            if has_alibi {
                for i in 0..N {
                    x[i] = x[i] - slope[i] * (to[i] - at);
                }
            }
            if has_masked {
                for i in 0..N {
                    x[i] = if (at < from[i]) | (at > to[i]) { A::NEG_INFINITY } else { x[i] };
                }
            }
            for i in 0..N {
                new_max[i] = new_max[i].larger(x[i]);
            }
            *row = x;
        }
        let (mut shift, mut alpha) = (new_max, new_max);
        for i in 0..N {
            // Where nothing was seen so far, there is nothing to shift, and no difference of infinities.
            shift[i] = if new_max[i] == A::NEG_INFINITY { A::ZERO } else { new_max[i] };
            alpha[i] = (old_max[i] - shift[i]).softmax_exp::<FUSED>();
        }
        let mut sum = *row_sum;
        for i in 0..N {
            sum[i] = sum[i] * alpha[i];
        }
        for row in scores.chunks_exact_mut(n) {
            let row = some_mut::<A, N>(row, first);
            let mut x = *row;
            for i in 0..N {
                x[i] = (x[i] - shift[i]).softmax_exp::<FUSED>();
            }
            for i in 0..N {
                sum[i] += x[i];
            }
            *row = x;
        }
        (*row_sum, *row_max, *rescale) = (sum, new_max, alpha);
    }
}

multiversion! {
    /// `x [_, n] *= by`.
    fn rescale[A: Float](x: &mut [A], by: &[A]) {
        for row in x.chunks_exact_mut(by.len()) {
            for (x, &by) in row.iter_mut().zip(by) {
                *x = *x * by;
            }
        }
    }
}

multiversion! {
    /// `x [_, n] /= by`.
    fn divide[A: Float](x: &mut [A], by: &[A]) {
        for row in x.chunks_exact_mut(by.len()) {
            for (x, &by) in row.iter_mut().zip(by) {
                *x = *x / by;
            }
        }
    }
}
