//! Attention over the forest, with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! The keys that a row sees are those of its path, one sequence by position, however it is cut into segments. They
//! are taken in tiles at fixed positions, and masked keys are exactly neutral: their weight is 0, and a tile with
//! none to see changes nothing. A row's result is therefore the same bits in a forest, alone, and with a cache.

use std::collections::HashMap;
use std::ops::Range;

use super::context::{Context, Task, carve};
use super::gemm::{Gemm, Operand, grow};
use super::pack::transpose;
use super::parallel::{Shared, workers};
use super::simd::{self, Element, Float, Isa, largest, multiversion, sum};
use super::weight::Weight;
use crate::backend::AttentionDims;
use crate::shape::{Pack, Parent};

/// Positions of a tile of keys.
pub const TILE: usize = 64;
/// Rows of queries, over all heads of a group, that are one block.
const ROWS: usize = 64;
/// Rows of queries, over all heads of a group, that pass over shared tiles together.
const SHARED_ROWS: usize = 256;

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

/// Blocks of queries that see the same tiles up to the position of the first: of one segment, or of several that
/// continue the same one and are a block each. Those of head 0 stand for every head.
fn query_groups(pack: &Pack, dims: AttentionDims) -> Vec<Vec<Block>> {
    let most = (SHARED_ROWS / dims.group()).max(1);
    let mut groups: Vec<(usize, Vec<Block>)> = Vec::new();
    let mut open: HashMap<Parent, usize> = HashMap::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        let blocks = query_rows(s.rows.clone(), dims).map(|rows| Block { segment, head: 0, rows });
        let siblings = s.position >= TILE && query_rows(s.rows.clone(), dims).count() == 1;
        let mut last = if siblings { open.get(&s.parent).copied() } else { None };
        for block in blocks {
            let len = block.rows.len();
            match last {
                Some(group) if groups[group].0 + len <= most => {
                    groups[group].0 += len;
                    groups[group].1.push(block);
                }
                _ => {
                    last = Some(groups.len());
                    groups.push((len, vec![block]));
                }
            }
        }
        if let (true, Some(group)) = (siblings, last) {
            open.insert(s.parent, group);
        }
    }
    groups.into_iter().map(|(_, blocks)| blocks).collect()
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

/// `out [D, TILE] = keys [count, D]` transposed: as a product reads them without turning its result.
pub fn turn_keys<W: Float>(isa: Isa, out: &mut [W], keys: &[W], count: usize, width: usize) {
    transpose(isa, out, TILE, keys, width, count, width);
}

/// Some rows of queries on their way over the tiles.
struct Rows<'a, W> {
    /// `[n, D]`.
    queries: &'a [W],
    /// `[n, TILE]`: products with the tile, then weights.
    scores: &'a mut [W],
    /// `[n, D]`: weighted values so far.
    sums: &'a mut [W],
    /// `[n]`: the largest score so far.
    top: &'a mut [W],
    /// `[n]`: the sum of weights so far.
    total: &'a mut [W],
    /// `[n]`: what the tile leaves of the earlier sums.
    fade: &'a mut [W],
}

impl<W: Float> Rows<'_, W> {
    fn part(&mut self, rows: Range<usize>, width: usize) -> Rows<'_, W> {
        let wide = rows.start * width..rows.end * width;
        Rows {
            queries: &self.queries[wide.clone()],
            scores: &mut self.scores[rows.start * TILE..rows.end * TILE],
            sums: &mut self.sums[wide],
            top: &mut self.top[rows.clone()],
            total: &mut self.total[rows.clone()],
            fade: &mut self.fade[rows],
        }
    }

    /// Takes in a tile: `keys [D, TILE]`, `values [positions, D]`; `blocks` are those of the rows.
    fn attend(
        &mut self,
        gemm: &mut Gemm<W>,
        [keys, values]: [&[W]; 2],
        blocks: &[Block],
        pack: &Pack,
        positions: Range<usize>,
        dims: AttentionDims,
    ) {
        let (isa, n, count, width) = (gemm.isa(), self.top.len(), positions.len(), dims.head_dim);
        let shared = Shared::new(self.scores);
        let (left, right) = (Operand::new(self.queries, width), Operand::new(keys, TILE).transposed());
        gemm.product([n, count, width], left, right, &|i, j, x| {
            // SAFETY: a product stores every element once.
            unsafe { shared.at(i * TILE + j, x.len()) }.copy_from_slice(x);
        });
        let mut row = 0;
        for block in blocks {
            let rows = row..row + block.rows.len() * dims.group();
            row = rows.end;
            let Rows { scores, top, total, fade, .. } = self.part(rows, width);
            let first = pack.positions()[block.rows.start] as usize;
            soften(isa, scores, top, total, fade, first, positions.clone(), dims);
        }
        let (shared, fade) = (Shared::new(self.sums), &*self.fade);
        let (left, right) = (Operand::new(&*self.scores, TILE), Operand::new(values, width).transposed());
        gemm.product([n, width, count], left, right, &|i, j, x| {
            // SAFETY: as above.
            let sums = unsafe { shared.at(i * width + j, x.len()) };
            sums.iter_mut().zip(x).for_each(|(s, &x)| *s = *s * fade[i] + x);
        });
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
    let groups = query_groups(pack, dims);
    workers(&mut cx.tasks, groups.len() * dims.kv_heads, |Task { gemm, memory }, i| {
        // The last rows see the most keys: first, so that no thread is left alone with them.
        let (head, isa) = (i % dims.kv_heads, gemm.isa());
        let blocks = &groups[groups.len() - 1 - i / dims.kv_heads];
        let n = group * blocks.iter().map(|block| block.rows.len()).sum::<usize>();
        let tile = TILE * width;
        let lens = [tile, tile, tile, n * width, n * TILE, n * width, n, n, n];
        let [keys, turned, values, queries, scores, sums, top, total, fade] = carve(memory, lens);
        sums.fill(W::ZERO);
        top.fill(W::NEG_INFINITY);
        total.fill(W::ZERO);
        let mut rest = &mut *queries;
        for block in blocks {
            let (part, behind) = rest.split_at_mut(block.rows.len() * group * width);
            gather_queries(isa, part, q, &Block { head, ..block.clone() }, dims);
            rest = behind;
        }
        let mut all = Rows { queries, scores, sums, top, total, fade };
        let mut pass = |rows: Range<usize>, blocks: &[Block], positions: Range<usize>| {
            let block = Block { head, ..blocks[0].clone() };
            let count = positions.len();
            gather_keys(isa, keys, k, kept.map(|kept| kept[0]), pack, &block, dims, positions.clone());
            gather_keys(isa, values, v, kept.map(|kept| kept[1]), pack, &block, dims, positions.clone());
            turn_keys(isa, turned, keys, count, width);
            all.part(rows, width).attend(gemm, [turned, values], blocks, pack, positions, dims);
        };
        let first = |block: &Block| pack.positions()[block.rows.start] as usize;
        let seen = |block: &Block| dims.visible(first(block)).start / TILE * TILE;
        // A tile that lies before all rows is the same for all; from there on each block has its own.
        let common = first(&blocks[0]) / TILE * TILE;
        for start in (seen(&blocks[0])..common).step_by(TILE) {
            pass(0..n, blocks, start..start + TILE);
        }
        let mut row = 0;
        for block in blocks {
            let rows = row..row + block.rows.len() * group;
            row = rows.end;
            let end = first(block) + block.rows.len();
            for start in (seen(block).max(common)..end).step_by(TILE) {
                pass(rows.clone(), std::slice::from_ref(block), start..end.min(start + TILE));
            }
        }
        let Rows { sums, top, total, .. } = all;
        let rows = blocks.iter().flat_map(|block| block.rows.clone());
        for (r, row) in rows.enumerate() {
            let head = row * dims.heads + head * group;
            // SAFETY: groups have rows and heads of their own.
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
        let (group, scale) = (dims.group(), W::from_f64(dims.scale));
        for (i, row) in scores.chunks_exact_mut(TILE).enumerate() {
            let seen = dims.visible(first + i / group);
            let from = seen.start.clamp(tile.start, tile.end) - tile.start;
            let to = seen.end.clamp(tile.start, tile.end) - tile.start;
            if from >= to {
                row.fill(W::ZERO);
                fade[i] = W::ONE;
                continue;
            }
            // The whole tile is computed, which is faster than its part: hidden scores end up as exact zeros.
            for x in row.iter_mut() {
                *x = *x * scale;
            }
            row[..from].fill(W::NEG_INFINITY);
            row[to..].fill(W::NEG_INFINITY);
            let largest = top[i].larger(largest(row));
            for x in row.iter_mut() {
                *x = (*x - largest).exp();
            }
            fade[i] = (top[i] - largest).exp();
            total[i] = total[i] * fade[i] + sum(TILE, |j| row[j]);
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
