//! Attention over the forest, with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! The keys that a row sees are those of its path, one sequence by position, however it is cut into segments. They
//! are taken in tiles at fixed positions, and masked keys are exactly neutral: their weight is 0, and a tile with
//! none to see changes nothing. A row's result is therefore the same bits in a forest, alone, and with a cache.

use std::ops::Range;

use super::context::{Context, Task, carve};
use super::gemm::{Operand, grow};
use super::parallel::{Shared, workers};
use super::simd::{self, Element, Float, Isa, largest, multiversion, sum};
use super::weight::Weight;
use crate::backend::AttentionDims;
use crate::shape::Pack;

/// Positions of a tile of keys.
pub const TILE: usize = 64;
/// Rows of queries, over all heads of a group, that are handled together.
const ROWS: usize = 64;

/// Some rows of a segment with the query heads that share a key-value head.
#[derive(Clone, Debug)]
pub struct Block {
    /// The segment.
    pub segment: usize,
    /// The key-value head.
    pub head: usize,
    /// The rows of the pack.
    pub rows: Range<usize>,
}

/// Cuts the rows of a segment into blocks of queries.
pub fn query_rows(rows: Range<usize>, dims: AttentionDims) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let step = (ROWS / dims.group()).max(1);
    let count = rows.len().div_ceil(step);
    (0..count).map(move |i| rows.start + i * step..rows.end.min(rows.start + (i + 1) * step))
}

/// All blocks of queries of a pack.
pub fn query_blocks(pack: &Pack, dims: AttentionDims) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        for head in 0..dims.kv_heads {
            // The last rows see the most keys: first, so that no thread is left alone with them.
            blocks.extend(query_rows(s.rows.clone(), dims).rev().map(|rows| Block { segment, head, rows }));
        }
    }
    blocks
}

impl AttentionDims {
    /// Query heads of a key-value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that the row at `position` sees.
    pub(super) fn visible(&self, position: usize) -> Range<usize> {
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start..position + 1
    }
}

/// `out [rows, H / K, D] = ` the queries (or anything of their shape) of a block.
pub fn gather_queries<W: Float, S: Element<W>>(isa: Isa, out: &mut [W], q: &[S], block: &Block, dims: AttentionDims) {
    let width = dims.group() * dims.head_dim;
    for (out, row) in out.chunks_exact_mut(width).zip(block.rows.clone()) {
        simd::widen(isa, out, &q[(row * dims.kv_heads + block.head) * width..][..width]);
    }
}

/// `out [positions, D] = ` the keys or values of one head at some positions of the path of a segment.
#[allow(clippy::too_many_arguments)]
pub fn gather_keys<W: Float, R: Element<W>>(
    isa: Isa,
    out: &mut [W],
    x: &[R],
    kept: Option<&[R]>,
    pack: &Pack,
    block: &Block,
    dims: AttentionDims,
    positions: Range<usize>,
) {
    let own = (false, pack.segments()[block.segment].rows.clone());
    let path = pack.path(block.segment).iter().map(|span| (span.kept, span.rows.clone()));
    let mut out = out.chunks_exact_mut(dims.head_dim);
    let mut position = 0;
    for (is_kept, rows) in path.chain([own]) {
        let source = if is_kept { kept.expect("attention: a pack with kept ancestors needs the cache") } else { x };
        let from = positions.start.saturating_sub(position).min(rows.len());
        let to = positions.end.saturating_sub(position).min(rows.len());
        for (row, out) in (rows.start + from..rows.start + to).zip(out.by_ref()) {
            simd::widen(isa, out, &source[(row * dims.kv_heads + block.head) * dims.head_dim..][..dims.head_dim]);
        }
        position += rows.len();
    }
}

/// See [`Backend::attention_fwd`](crate::backend::Backend::attention_fwd).
#[allow(clippy::too_many_arguments)]
pub fn fwd<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    z: &mut [R],
    lse: &mut [W],
    q: &[R],
    [k, v]: [&[R]; 2],
    kept: Option<[&[R]; 2]>,
    pack: &Pack,
    dims: AttentionDims,
) {
    let (group, width) = (dims.group(), dims.head_dim);
    let (z, lse) = (Shared::new(z), Shared::new(lse));
    let blocks = query_blocks(pack, dims);
    workers(&mut cx.tasks, blocks.len(), |Task { gemm, memory }, i| {
        let (block, isa) = (&blocks[i], gemm.isa());
        let segment = &pack.segments()[block.segment];
        let n = block.rows.len() * group;
        let lens = [n * width, TILE * width, TILE * width, n * TILE, n * width, n, n, n];
        let [queries, keys, values, scores, sums, top, total, fade] = carve(memory, lens);
        gather_queries(isa, queries, q, block, dims);
        sums.fill(W::ZERO);
        top.fill(W::NEG_INFINITY);
        total.fill(W::ZERO);
        let first = segment.position + block.rows.start - segment.rows.start;
        let end = first + block.rows.len();
        for start in (dims.visible(first).start / TILE * TILE..end).step_by(TILE) {
            let positions = start..end.min(start + TILE);
            let count = positions.len();
            gather_keys(isa, keys, k, kept.map(|kept| kept[0]), pack, block, dims, positions.clone());
            gather_keys(isa, values, v, kept.map(|kept| kept[1]), pack, block, dims, positions.clone());
            let shared = Shared::new(scores);
            gemm.product([n, count, width], Operand::new(queries, width), Operand::new(keys, width), &|i, j, x| {
                // SAFETY: a product stores every element once.
                unsafe { shared.at(i * TILE + j, x.len()) }.copy_from_slice(x);
            });
            soften(isa, scores, top, total, fade, first, positions, dims);
            let (shared, fade) = (Shared::new(sums), &*fade);
            let right = Operand::new(values, width).transposed();
            gemm.product([n, width, count], Operand::new(scores, TILE), right, &|i, j, x| {
                // SAFETY: as above.
                let sums = unsafe { shared.at(i * width + j, x.len()) };
                sums.iter_mut().zip(x).for_each(|(s, &x)| *s = *s * fade[i] + x);
            });
        }
        for (r, row) in block.rows.clone().enumerate() {
            let head = row * dims.heads + block.head * group;
            // SAFETY: blocks have rows and heads of their own.
            let (z, lse) = unsafe { (z.at(head * width, group * width), lse.at(head, group)) };
            for j in 0..group {
                let i = r * group + j;
                lse[j] = top[i] + total[i].ln();
                let sums = &mut sums[i * width..][..width];
                sums.iter_mut().for_each(|s| *s = *s / total[i]);
                simd::narrow(isa, &mut z[j * width..][..width], sums);
            }
        }
    });
}

multiversion! {
    /// Turns a tile of products `[n, TILE]` into weights relative to each row's largest score so far, and says by how
    /// much the earlier sums fade.
    fn soften[W: Float](
        scores: &mut [W],
        top: &mut [W],
        total: &mut [W],
        fade: &mut [W],
        first: usize,
        tile: Range<usize>,
        dims: AttentionDims,
    ) {
        let scale = W::from_f64(dims.scale);
        for (i, row) in scores.chunks_exact_mut(TILE).enumerate() {
            let seen = dims.visible(first + i / dims.group());
            let from = seen.start.clamp(tile.start, tile.end) - tile.start;
            let to = seen.end.clamp(tile.start, tile.end) - tile.start;
            if from >= to {
                row.fill(W::ZERO);
                fade[i] = W::ONE;
                continue;
            }
            row[..from].fill(W::ZERO);
            row[to..].fill(W::ZERO);
            let row = &mut row[from..to];
            for x in row.iter_mut() {
                *x = *x * scale;
            }
            let largest = top[i].larger(largest(row));
            for x in row.iter_mut() {
                *x = (*x - largest).exp();
            }
            fade[i] = (top[i] - largest).exp();
            total[i] = total[i] * fade[i] + sum(row.len(), |j| row[j]);
            top[i] = largest;
        }
    }
}

/// See [`Backend::attention_pattern`](crate::backend::Backend::attention_pattern).
#[allow(clippy::too_many_arguments)]
pub fn pattern<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    out: &mut [W],
    q: &[R],
    k: &[R],
    kept: Option<&[R]>,
    lse: &[W],
    rows: &[usize],
    pack: &Pack,
    dims: AttentionDims,
    longest: usize,
    normalised: bool,
) {
    let (group, width, scale) = (dims.group(), dims.head_dim, W::from_f64(dims.scale));
    let out = &mut out[..rows.len() * dims.heads * longest];
    out.fill(if normalised { W::ZERO } else { W::NEG_INFINITY });
    let out = Shared::new(out);
    workers(&mut cx.tasks, rows.len() * dims.kv_heads, |Task { gemm, memory }, task| {
        let (index, head, isa) = (task / dims.kv_heads, task % dims.kv_heads, gemm.isa());
        let row = rows[index];
        let segment = pack.segments().partition_point(|s| s.rows.end <= row);
        let block = Block { segment, head, rows: row..row + 1 };
        let seen = dims.visible(pack.positions()[row] as usize);
        assert!(seen.end <= longest, "attention_pattern: position {} of {longest}", seen.end - 1);
        let [queries, keys] = carve(memory, [group * width, TILE * width]);
        gather_queries(isa, queries, q, &block, dims);
        for start in (seen.start..seen.end).step_by(TILE) {
            let positions = start..seen.end.min(start + TILE);
            gather_keys(isa, keys, k, kept, pack, &block, dims, positions.clone());
            let shape = [group, positions.len(), width];
            gemm.product(shape, Operand::new(queries, width), Operand::new(keys, width), &|i, j, x| {
                let head = head * group + i;
                // SAFETY: tasks have rows and heads of their own, and a product stores every element once.
                let out = unsafe { out.at((index * dims.heads + head) * longest + start + j, x.len()) };
                for (o, &x) in out.iter_mut().zip(x) {
                    let score = x * scale;
                    *o = if normalised { (score - lse[row * dims.heads + head]).exp() } else { score };
                }
            });
        }
    });
}

/// See [`Backend::attention_result`](crate::backend::Backend::attention_result).
#[allow(clippy::too_many_arguments)]
pub fn result<W: Float, R: Element<W>>(
    cx: &mut Context<W>,
    out: &mut [W],
    z: &[R],
    weight: &Weight<W, R>,
    rows: &[usize],
    heads: usize,
    head_dim: usize,
    width: usize,
) {
    let joined = heads * head_dim;
    let gathered = grow(&mut cx.memory, rows.len() * joined);
    for (to, &row) in gathered.chunks_exact_mut(joined).zip(rows) {
        simd::widen(cx.isa, to, &z[row * joined..][..joined]);
    }
    let out = Shared::new(out);
    for head in 0..heads {
        let left = Operand::new(&*gathered, joined).along(head * head_dim);
        let right = weight.operand(joined).along(head * head_dim);
        cx.gemm.product([rows.len(), width, head_dim], left, right, &|i, j, x| {
            // SAFETY: heads have places of their own, and a product stores every element once.
            unsafe { out.at((i * heads + head) * width + j, x.len()) }.copy_from_slice(x);
        });
    }
}
