//! Attention over the forest, with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! The keys that a row sees are those of its path, one sequence by position, however it is cut into segments. They
//! are taken in tiles at fixed positions, and masked keys are exactly neutral: their weight is 0, and a tile with
//! none to see changes nothing. A row's result is therefore the same bits in a forest, alone, and with a cache.
//!
//! Rows of queries are the lanes of all vectors ([`Lanes`]): keys and values are read as they lie, the softmax needs no
//! sums across a vector, and narrow heads waste nothing.

use std::collections::HashMap;
use std::ops::Range;

use super::context::{Context, Task, carve};
use super::gemm::{Operand, grow};
use super::pack::{copy, transpose};
use super::parallel::{Shared, workers};
use super::simd::{self, Element, Float, Isa, multiversion};
use super::tile::{Panels, Rows, Tiles};
use super::weight::Weight;
use crate::backend::AttentionDims;
use crate::shape::{Pack, Parent};

/// Positions of a tile of keys.
pub const TILE: usize = 64;
/// Rows of queries, over all heads of a group, that are one block.
const ROWS: usize = 64;
/// Rows of queries, over all heads of a group, that pass over shared tiles together.
const SHARED_ROWS: usize = 256;
/// Lanes that are worked on at a time: what a tile of keys and they need stays in the first-level cache.
const TOGETHER: usize = 64;

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
#[derive(Default)]
struct Group {
    blocks: Vec<Block>,
    /// The rows of all blocks.
    rows: Vec<usize>,
}

fn query_groups(pack: &Pack, dims: AttentionDims) -> Vec<Group> {
    let most = (SHARED_ROWS / dims.group()).max(1);
    let mut groups: Vec<Group> = Vec::new();
    let mut open: HashMap<Parent, usize> = HashMap::new();
    for (segment, s) in pack.segments().iter().enumerate() {
        let blocks = query_rows(s.rows.clone(), dims).map(|rows| Block { segment, head: 0, rows });
        let siblings = s.position >= TILE && query_rows(s.rows.clone(), dims).count() == 1;
        let mut last = if siblings { open.get(&s.parent).copied() } else { None };
        for block in blocks {
            let group = match last {
                Some(group) if groups[group].rows.len() + block.rows.len() <= most => group,
                _ => {
                    groups.push(Group::default());
                    groups.len() - 1
                }
            };
            last = Some(group);
            groups[group].rows.extend(block.rows.clone());
            groups[group].blocks.push(block);
        }
        if let (true, Some(group)) = (siblings, last) {
            open.insert(s.parent, group);
        }
    }
    groups
}

impl AttentionDims {
    /// The positions that the row at `position` sees.
    pub(super) fn visible(&self, position: usize) -> Range<usize> {
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start..position + 1
    }
}

/// `out [heads of the group, D] = ` some of the queries (or anything of their shape) of rows: those numbered `lanes`,
/// counting the heads of a group one by one and then the rows; rows of `out` are at distance `stride`.
#[allow(clippy::too_many_arguments)]
pub fn gather_queries<W: Float, S: Element<W>>(
    isa: Isa,
    out: &mut [W],
    stride: usize,
    x: &[S],
    rows: impl Fn(usize) -> usize,
    lanes: Range<usize>,
    head: usize,
    dims: AttentionDims,
) {
    let (group, width) = (dims.group(), dims.head_dim);
    let (mut lane, mut done) = (lanes.start, 0);
    while lane < lanes.end {
        let heads = (group - lane % group).min(lanes.end - lane);
        let from = (rows(lane / group) * dims.heads + head * group + lane % group) * width;
        copy(isa, &mut out[done * stride..], stride, &x[from..], width, heads, width);
        (lane, done) = (lane + heads, done + heads);
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
    let (width, stride) = (dims.head_dim, dims.kv_heads * dims.head_dim);
    let (mut position, mut done) = (0, 0);
    for (is_kept, rows) in path.chain([own]) {
        let source = if is_kept { kept.expect("attention: a pack with kept ancestors needs the cache") } else { x };
        let from = positions.start.saturating_sub(position).min(rows.len());
        let to = positions.end.saturating_sub(position).min(rows.len());
        if from < to {
            let source = &source[(rows.start + from) * stride + block.head * width..];
            copy(isa, &mut out[done * width..], width, source, stride, to - from, width);
            done += to - from;
        }
        position += rows.len();
    }
}

/// Rows of queries, or of anything of their shape, that are the lanes of vectors: element `d` of row `i` is
/// `[d * n + i]`. Their number is padded to whole vectors; what pads sees no key.
pub struct Lanes {
    /// Their number, with padding.
    pub n: usize,
    /// Those that there are.
    pub count: usize,
}

impl Lanes {
    /// For `count` rows.
    pub fn new(count: usize, vector: usize) -> Self {
        Self { n: count.next_multiple_of(vector), count }
    }

    /// `out [D, n] = ` rows `[count, D]` at distance `stride`, turned.
    pub fn turn<W: Float>(&self, isa: Isa, out: &mut [W], rows: &[W], stride: usize, width: usize) {
        transpose(isa, out, self.n, rows, stride, self.count, width);
        for row in out.chunks_exact_mut(self.n).take(width) {
            row[self.count..].fill(W::ZERO);
        }
    }

    /// `bounds [3, n] = ` the first and the last position that each row sees (padding sees none), and its ALiBi slope.
    pub fn bounds<W: Float>(
        &self,
        bounds: &mut [W],
        rows: impl Fn(usize) -> usize,
        first: usize,
        head: usize,
        pack: &Pack,
        dims: AttentionDims,
    ) {
        let (from, rest) = bounds.split_at_mut(self.n);
        let (to, slopes) = rest.split_at_mut(self.n);
        let position = |i: usize| pack.positions()[rows((first + i) / dims.group())] as usize;
        for i in 0..self.n {
            let seen = if i < self.count { dims.visible(position(i)) } else { 0..0 };
            from[i] = W::from_f64(seen.start as f64);
            to[i] = W::from_f64(seen.end as f64 - 1.0);
            slopes[i] = W::from_f64(dims.slope(head * dims.group() + (first + i) % dims.group()));
        }
    }
}

/// Lanes on their way over the tiles.
struct Passing<'a, W> {
    lanes: Lanes,
    /// `[D, n]`.
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
        isa: Isa,
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
        let gathered = &mut sums[..lanes.count * width];
        gather_queries(isa, gathered, width, q, rows, first..first + lanes.count, head, dims);
        lanes.turn(isa, queries, gathered, width, width);
        lanes.bounds(bounds, rows, first, head, pack, dims);
        sums.fill(W::ZERO);
        top.fill(W::NEG_INFINITY);
        total.fill(W::ZERO);
        Self { lanes, queries, sums, top, total, fade, bounds }
    }

    /// Takes over how far some of the lanes of another are: from its `from` on to this one's `to` on.
    fn resume(&mut self, other: &Passing<'_, W>, from: usize, to: usize, count: usize) {
        let (own, others) = (to..to + count, from..from + count);
        self.top[own.clone()].copy_from_slice(&other.top[others.clone()]);
        self.total[own.clone()].copy_from_slice(&other.total[others.clone()]);
        let sums = self.sums.chunks_exact_mut(self.lanes.n).zip(other.sums.chunks_exact(other.lanes.n));
        sums.for_each(|(sums, other)| sums[own.clone()].copy_from_slice(&other[others.clone()]));
    }

    /// Takes in a tile: `keys` and `values` `[positions, D]`; `scores` holds `[TILE, n]`.
    fn attend(
        &mut self,
        isa: Isa,
        tiles: Tiles<W>,
        [keys, values]: [&[W]; 2],
        scores: &mut [W],
        tile: Range<usize>,
        dims: AttentionDims,
    ) {
        let (n, width, count) = (self.lanes.n, dims.head_dim, tile.len());
        let scores = &mut scores[..count * n];
        let keys = Rows { data: keys, row: width, k: 1 };
        tiles.multiply([count, n, width], keys, Panels::plain(self.queries, n, tiles.lanes), scores, n, false);
        let scale = W::from_f64(dims.scale);
        soften(isa, scores, self.top, self.total, self.fade, self.bounds, tile.start, scale);
        fade_out(isa, self.sums, self.fade);
        let values = Rows { data: values, row: 1, k: width };
        tiles.multiply([width, n, count], values, Panels::plain(scores, n, tiles.lanes), self.sums, n, true);
    }

    /// After the last tile: `z` and `lse` of every row.
    fn finish<R: Element<W>>(
        &mut self,
        isa: Isa,
        z: &Shared<'_, R>,
        lse: &Shared<'_, W>,
        rows: impl Fn(usize) -> usize,
        head: usize,
        dims: AttentionDims,
    ) {
        let (n, width, group) = (self.lanes.n, dims.head_dim, dims.group());
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
    workers(&cx.on.team, &mut cx.tasks, groups.len() * dims.kv_heads, |Task { gemm, memory }, i| {
        // The last rows see the most keys: first, so that no thread is left alone with them.
        let (head, isa, tiles) = (i % dims.kv_heads, gemm.isa(), gemm.tiles());
        let Group { blocks, rows } = &groups[groups.len() - 1 - i / dims.kv_heads];
        let all = rows.len() * group;
        let most = group * blocks.iter().map(|block| block.rows.len()).max().unwrap_or(0);
        let own = Lanes::new(most, tiles.lanes).n;
        let shared = if blocks.len() > 1 { all.div_ceil(TOGETHER) } else { 0 };
        let tile = TILE * width;
        let (of_own, of_shared) = (Passing::<W>::len(own, width), shared * Passing::<W>::len(TOGETHER, width));
        let lens = [tile, tile, TILE * own.max(TOGETHER), of_own, of_shared];
        let [keys, values, scores, own_memory, memory] = carve(memory, lens);
        let mut tile = |passing: &mut [Passing<'_, W>], block: &Block, positions: Range<usize>| {
            let block = Block { head, ..block.clone() };
            gather_keys(isa, keys, k, kept.map(|kept| kept[0]), pack, &block, dims, positions.clone());
            gather_keys(isa, values, v, kept.map(|kept| kept[1]), pack, &block, dims, positions.clone());
            for lanes in passing {
                lanes.attend(isa, tiles, [keys, values], scores, positions.clone(), dims);
            }
        };
        let first = |block: &Block| pack.positions()[block.rows.start] as usize;
        let seen = |block: &Block| dims.visible(first(block)).start / TILE * TILE;
        // A tile that lies before all rows is the same for all; from there on each block has its own.
        let parts = memory.chunks_exact_mut(Passing::<W>::len(TOGETHER, width)).enumerate().map(|(part, memory)| {
            let from = part * TOGETHER;
            let lanes = Lanes::new(TOGETHER.min(all - from), tiles.lanes);
            Passing::new(isa, lanes, memory, q, |row| rows[row], from, head, pack, dims)
        });
        let mut parts: Vec<Passing<'_, W>> = parts.collect();
        let common = if shared > 0 { first(&blocks[0]) / TILE * TILE } else { 0 };
        for start in (seen(&blocks[0])..common).step_by(TILE) {
            tile(&mut parts, &blocks[0], start..start + TILE);
        }
        let mut done = 0;
        for block in blocks {
            let (count, row) = (block.rows.len() * group, |row| block.rows.start + row);
            let lanes = Lanes::new(count, tiles.lanes);
            let mut own = Passing::new(isa, lanes, own_memory, q, row, 0, head, pack, dims);
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
            own.finish(isa, &z, &lse, row, head, dims);
        }
    });
}

/// Lanes that fit vectors of every instruction set, the most first.
macro_rules! each_lanes {
    ($n:expr, |$first:ident, $count:ident| $body:expr) => {
        let mut $first = 0;
        while $first < $n {
            let left = $n - $first;
            if left >= 16 {
                const $count: usize = 16;
                $body;
                $first += 16;
            } else if left >= 8 {
                const $count: usize = 8;
                $body;
                $first += 8;
            } else if left >= 4 {
                const $count: usize = 4;
                $body;
                $first += 4;
            } else {
                const $count: usize = 1;
                $body;
                $first += 1;
            }
        }
    };
}
pub(super) use each_lanes;

/// `N` elements of a row.
#[inline(always)]
pub fn some<W, const N: usize>(x: &[W], from: usize) -> &[W; N] {
    x[from..].first_chunk().expect("attention: rows hold whole vectors")
}

/// [`some`], to be written.
#[inline(always)]
pub fn some_mut<W, const N: usize>(x: &mut [W], from: usize) -> &mut [W; N] {
    x[from..].first_chunk_mut().expect("attention: rows hold whole vectors")
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
        fade[i] = (top[i] - shift[i]).exp::<FUSED>();
    }
    let mut sum = *total;
    for i in 0..N {
        sum[i] = sum[i] * fade[i];
    }
    for row in scores.chunks_exact_mut(n) {
        let row = some_mut::<W, N>(row, first);
        let mut x = *row;
        for i in 0..N {
            x[i] = (x[i] - shift[i]).exp::<FUSED>();
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
    workers(&cx.on.team, &mut cx.tasks, rows.len() * dims.kv_heads, |Task { gemm, memory }, task| {
        let (index, head, isa) = (task / dims.kv_heads, task % dims.kv_heads, gemm.isa());
        let row = rows[index];
        let segment = pack.segments().partition_point(|s| s.rows.end <= row);
        let block = Block { segment, head, rows: row..row + 1 };
        let seen = dims.visible(pack.positions()[row] as usize);
        assert!(seen.end <= longest, "attention_pattern: position {} of {longest}", seen.end - 1);
        let [queries, keys] = carve(memory, [group * width, TILE * width]);
        gather_queries(isa, queries, width, q, |_| row, 0..group, head, dims);
        for start in (seen.start..seen.end).step_by(TILE) {
            let positions = start..seen.end.min(start + TILE);
            gather_keys(isa, keys, k, kept, pack, &block, dims, positions.clone());
            let shape = [group, positions.len(), width];
            gemm.product(shape, Operand::new(queries, width), Operand::new(keys, width), &|i, j, x| {
                let head = head * group + i;
                // SAFETY: tasks have rows and heads of their own, and a product stores every element once.
                let out = unsafe { out.at((index * dims.heads + head) * longest + start + j, x.len()) };
                let slope = W::from_f64(dims.slope(head));
                for (n, (o, &x)) in out.iter_mut().zip(x).enumerate() {
                    let score = x * scale - slope * W::from_f64((seen.end - 1 - start - j - n) as f64);
                    *o = if normalised { (score - lse[row * dims.heads + head]).exp::<false>() } else { score };
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
        simd::widen(cx.on.isa, to, &z[row * joined..][..joined]);
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
