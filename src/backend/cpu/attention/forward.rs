//! Forward of attention: lanes pass over the tiles of their keys and values.

use std::ops::Range;

use super::super::context::{Context, Task, carve};
use super::super::pack::transpose;
use super::super::parallel::{Shared, workers};
use super::super::simd::{self, Element, Float, multiversion};
use super::super::tile::{Panels, Rows};
use super::blocks::{Block, Group, TILE, query_groups};
use super::lanes::{Lanes, each_lanes, gather_keys, gather_queries, some, some_mut};
use super::products::Products;
use crate::backend::cpu::Cpu;
use crate::backend::ops::{AttentionDims, AttentionFwd};
use crate::pack::Pack;

/// Lanes that are worked on at a time: what a tile of keys and they need stays in the first-level cache.
const TOGETHER: usize = 64;

/// Lanes on their way over the tiles.
struct Passing<'a, W> {
    lanes: Lanes,
    products: Products<W>,
    /// `[elements of D, n]`.
    queries: &'a mut [W],
    /// `[D, n]`: weighted values so far.
    sums: &'a mut [W],
    /// `[n]`: the largest score so far.
    top: &'a mut [W],
    /// `[n]`: the sum of weights so far.
    total: &'a mut [W],
    /// `[n]`: what a tile leaves of the earlier sums.
    fade: &'a mut [W],
    /// `[3, n]`: see [`Lanes::bounds`].
    bounds: &'a mut [W],
}

impl<'a, W: Float> Passing<'a, W> {
    /// Elements of memory for `n` lanes.
    fn len(n: usize, width: usize) -> usize {
        n * (2 * width + 6)
    }

    /// Before the first tile.
    #[allow(clippy::too_many_arguments)]
    fn new<R: Element<W>>(
        products: Products<W>,
        lanes: Lanes,
        memory: &'a mut [W],
        q: &[R],
        rows: impl Fn(usize) -> usize + Copy,
        first: usize,
        head: usize,
        pack: &Pack,
        dims: AttentionDims,
    ) -> Self {
        let (n, width) = (lanes.n, dims.head_dim);
        let (queries, rest) = memory.split_at_mut(n * width);
        let (sums, rest) = rest.split_at_mut(n * width);
        let (top, rest) = rest.split_at_mut(n);
        let (total, rest) = rest.split_at_mut(n);
        let (fade, rest) = rest.split_at_mut(n);
        let bounds = &mut rest[..3 * n];
        let elements = products.elements(width);
        let gathered = &mut sums[..lanes.count * elements];
        gather_queries(products, gathered, elements, q, rows, first..first + lanes.count, head, dims);
        lanes.turn(products.isa, queries, gathered, elements, elements);
        lanes.bounds(bounds, rows, first, head, pack, dims);
        sums.fill(W::ZERO);
        top.fill(W::NEG_INFINITY);
        total.fill(W::ZERO);
        Self { lanes, products, queries, sums, top, total, fade, bounds }
    }

    /// Takes over how far some of the lanes of another are: from its `from` on to this one's `to` on.
    fn resume(&mut self, other: &Passing<'_, W>, from: usize, to: usize, count: usize) {
        let (own, others) = (to..to + count, from..from + count);
        self.top[own.clone()].copy_from_slice(&other.top[others.clone()]);
        self.total[own.clone()].copy_from_slice(&other.total[others.clone()]);
        let sums = self.sums.chunks_exact_mut(self.lanes.n).zip(other.sums.chunks_exact(other.lanes.n));
        sums.for_each(|(sums, other)| sums[own.clone()].copy_from_slice(&other[others.clone()]));
    }

    /// Takes in a tile: `keys` along D and `values` along positions; `scores` holds `[TILE, n]`.
    fn take_tile(
        &mut self,
        [keys, values]: [Rows<'_, W>; 2],
        scores: &mut [W],
        tile: Range<usize>,
        dims: AttentionDims,
    ) {
        let Self { lanes: Lanes { n, .. }, products, .. } = *self;
        let Products { isa, tiles, .. } = products;
        let (width, count) = (dims.head_dim, tile.len());
        let queries = Panels::plain(self.queries, n, tiles.lanes);
        tiles.multiply([count, n, products.elements(width)], keys, queries, scores, n, false);
        let scale = W::from_f64(dims.scale);
        soften(isa, &mut scores[..count * n], self.top, self.total, self.fade, self.bounds, tile.start, scale);
        fade_out(isa, self.sums, self.fade);
        products.pair_rows(scores, n, count);
        let scores = Panels::plain(scores, n, tiles.lanes);
        tiles.multiply([width, n, products.elements(count)], values, scores, self.sums, n, true);
    }

    /// After the last tile: `z` and `lse` of every row.
    fn finish<R: Element<W>>(
        &mut self,
        z: &Shared<'_, R>,
        lse: &Shared<'_, W>,
        rows: impl Fn(usize) -> usize,
        head: usize,
        dims: AttentionDims,
    ) {
        let (n, width, group, isa) = (self.lanes.n, dims.head_dim, dims.group(), self.products.isa);
        divide(isa, self.sums, self.total);
        transpose(isa, self.queries, width, self.sums, n, width, self.lanes.count);
        for (lane, z_row) in self.queries.chunks_exact(width).take(self.lanes.count).enumerate() {
            let place = rows(lane / group) * dims.heads + head * group + lane % group;
            // SAFETY: blocks have rows and heads of their own.
            let (z, lse) = unsafe { (z.at(place * width, width), lse.at(place, 1)) };
            simd::narrow(isa, z, z_row);
            lse[0] = self.top[lane] + self.total[lane].ln();
        }
    }
}

/// See [`AttentionFwd`], in the compute dtype `R`.
pub fn fwd<W: Float, R: Element<W>>(cx: &mut Context<W>, op: AttentionFwd<'_, Cpu<W>>) {
    let AttentionFwd { z, lse, q, k, v, cached, pack, dims } = op;
    let [q, k, v] = [q, k, v].map(R::slice);
    let cached = cached.map(|buffers| buffers.map(R::slice));
    let (group, width) = (dims.group(), dims.head_dim);
    let (z, lse) = (Shared::new(R::slice_mut(z)), Shared::new(lse));
    let groups = query_groups(pack, dims);
    workers(&cx.exec.pool, &mut cx.tasks, groups.len() * dims.kv_heads, |Task { gemm, memory }, i| {
        // The last rows see the most keys: first, so that no thread is left alone with them.
        let (head, products) = (i % dims.kv_heads, Products::of::<R>(gemm, width));
        let (vector, _held) = (products.tiles.lanes, products.tiles.hold());
        let Group { blocks, rows } = &groups[groups.len() - 1 - i / dims.kv_heads];
        let all = rows.len() * group;
        let most = group * blocks.iter().map(|block| block.rows.len()).max().unwrap_or(0);
        let own = Lanes::new(most, vector).n;
        let shared = if blocks.len() > 1 { all.div_ceil(TOGETHER) } else { 0 };
        let tile = TILE * products.elements(width);
        let (of_own, of_shared) = (Passing::<W>::len(own, width), shared * Passing::<W>::len(TOGETHER, width));
        let lens = [tile, tile, products.turning(width), TILE * own.max(TOGETHER), of_own, of_shared];
        let [keys, values, turned, scores, own_memory, memory] = carve(memory, lens);
        let mut tile = |passing: &mut [Passing<'_, W>], block: &Block, positions: Range<usize>| {
            let block = Block { head, ..block.clone() };
            gather_keys(products, keys, k, cached.map(|cached| cached[0]), pack, &block, dims, positions.clone());
            gather_keys(products, values, v, cached.map(|cached| cached[1]), pack, &block, dims, positions.clone());
            let keys = products.along_width(keys, width);
            let values = products.along_positions(turned, values, positions.len(), width);
            for lanes in passing {
                lanes.take_tile([keys, values], scores, positions.clone(), dims);
            }
        };
        let first = |block: &Block| pack.positions()[block.rows.start] as usize;
        let seen = |block: &Block| dims.visible(first(block)).start / TILE * TILE;
        // A tile that lies before all rows is the same for all; from there on each block has its own.
        let parts = memory.chunks_exact_mut(Passing::<W>::len(TOGETHER, width)).enumerate().map(|(part, memory)| {
            let from = part * TOGETHER;
            let lanes = Lanes::new(TOGETHER.min(all - from), vector);
            Passing::new(products, lanes, memory, q, |row| rows[row], from, head, pack, dims)
        });
        let mut parts: Vec<Passing<'_, W>> = parts.collect();
        let common = if shared > 0 { first(&blocks[0]) / TILE * TILE } else { 0 };
        for start in (seen(&blocks[0])..common).step_by(TILE) {
            tile(&mut parts, &blocks[0], start..start + TILE);
        }
        let mut done = 0;
        for block in blocks {
            let (count, row) = (block.rows.len() * group, |row| block.rows.start + row);
            let lanes = Lanes::new(count, vector);
            let mut own = Passing::new(products, lanes, own_memory, q, row, 0, head, pack, dims);
            for (part, passed) in parts.iter().enumerate() {
                let from = done.max(part * TOGETHER);
                let to = (done + count).min(part * TOGETHER + passed.lanes.count);
                if from < to {
                    own.resume(passed, from - part * TOGETHER, from - done, to - from);
                }
            }
            done += count;
            let end = first(block) + block.rows.len();
            for start in (seen(block).max(common)..end).step_by(TILE) {
                tile(std::slice::from_mut(&mut own), block, start..end.min(start + TILE));
            }
            own.finish(&z, &lse, row, head, dims);
        }
    });
}

multiversion! {
    /// Turns a tile of products `[positions, n]` into weights relative to each lane's largest score so far, and says by
    /// how much the earlier sums fade. Hidden positions get the weight 0.
    fn soften[W: Float; FUSED](
        scores: &mut [W],
        top: &mut [W],
        total: &mut [W],
        fade: &mut [W],
        bounds: &[W],
        start: usize,
        scale: W,
    ) {
        let n = top.len();
        each_lanes!(n, |first, N| soften_some::<W, N, FUSED>(scores, top, total, fade, bounds, n, first, start, scale));
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn soften_some<W: Float, const N: usize, const FUSED: bool>(
    scores: &mut [W],
    top: &mut [W],
    total: &mut [W],
    fade: &mut [W],
    bounds: &[W],
    n: usize,
    first: usize,
    start: usize,
    scale: W,
) {
    let (from, to, slope) =
        (some::<W, N>(bounds, first), some::<W, N>(bounds, n + first), some::<W, N>(bounds, 2 * n + first));
    let leans = slope.iter().any(|&slope| slope > W::ZERO);
    let (top, total) = (some_mut::<W, N>(top, first), some_mut::<W, N>(total, first));
    let fade = some_mut::<W, N>(fade, first);
    let count = scores.len() / n;
    let (begin, end) = (W::from_f64(start as f64), W::from_f64((start + count) as f64 - 1.0));
    let mut hidden = false;
    for i in 0..N {
        hidden |= from[i] > begin || to[i] < end;
    }
    let mut best = *top;
    for (j, row) in scores.chunks_exact_mut(n).enumerate() {
        let row = some_mut::<W, N>(row, first);
        let (mut x, at) = (*row, W::from_f64((start + j) as f64));
        for x in &mut x {
            *x = *x * scale;
        }
        if leans {
            for i in 0..N {
                x[i] = x[i] - slope[i] * (to[i] - at);
            }
        }
        if hidden {
            for i in 0..N {
                x[i] = if (at < from[i]) | (at > to[i]) { W::NEG_INFINITY } else { x[i] };
            }
        }
        for i in 0..N {
            best[i] = best[i].larger(x[i]);
        }
        *row = x;
    }
    let mut shift = best;
    for i in 0..N {
        // Where nothing was seen so far, there is nothing to shift, and no difference of infinities.
        shift[i] = if best[i] == W::NEG_INFINITY { W::ZERO } else { best[i] };
        fade[i] = (top[i] - shift[i]).weight::<FUSED>();
    }
    let mut sum = *total;
    for i in 0..N {
        sum[i] = sum[i] * fade[i];
    }
    for row in scores.chunks_exact_mut(n) {
        let row = some_mut::<W, N>(row, first);
        let mut x = *row;
        for i in 0..N {
            x[i] = (x[i] - shift[i]).weight::<FUSED>();
        }
        for i in 0..N {
            sum[i] += x[i];
        }
        *row = x;
    }
    (*total, *top) = (sum, best);
}

multiversion! {
    /// `x [_, n] *= by`.
    fn fade_out[W: Float](x: &mut [W], by: &[W]) {
        for row in x.chunks_exact_mut(by.len()) {
            for (x, &by) in row.iter_mut().zip(by) {
                *x = *x * by;
            }
        }
    }
}

multiversion! {
    /// `x [_, n] /= by`.
    fn divide[W: Float](x: &mut [W], by: &[W]) {
        for row in x.chunks_exact_mut(by.len()) {
            for (x, &by) in row.iter_mut().zip(by) {
                *x = *x / by;
            }
        }
    }
}
