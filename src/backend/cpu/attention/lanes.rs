//! Rows of queries as the lanes of vectors, and the keys that they meet.

use std::ops::Range;

use super::super::pack::transpose;
use super::super::simd::{Element, Float, Isa};
use super::blocks::Block;
use super::products::Products;
use crate::backend::ops::AttentionDims;
use crate::pack::Pack;

/// `out [lanes, elements of D] = ` some of the queries (or anything of their shape) of rows: those numbered `lanes`,
/// counting the heads of a group one by one and then the rows; rows of `out` are at distance `stride`.
#[allow(clippy::too_many_arguments)]
pub fn gather_queries<W: Float, S: Element<W>>(
    products: Products<W>,
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
        products.read(&mut out[done * stride..], stride, &x[from..], width, heads, width);
        (lane, done) = (lane + heads, done + heads);
    }
}

/// `out [positions, elements of D] = ` the keys or values of one head at some positions of the path of a segment.
#[allow(clippy::too_many_arguments)]
pub fn gather_keys<W: Float, R: Element<W>>(
    products: Products<W>,
    out: &mut [W],
    x: &[R],
    kept: Option<&[R]>,
    pack: &Pack,
    block: &Block,
    dims: AttentionDims,
    positions: Range<usize>,
) {
    let own = (false, pack.segments()[block.segment].rows.clone());
    let path = pack.path(block.segment).iter().map(|span| (span.cached, span.rows.clone()));
    let (width, stride) = (dims.head_dim, dims.kv_heads * dims.head_dim);
    let elements = products.elements(width);
    let (mut position, mut done) = (0, 0);
    for (is_kept, rows) in path.chain([own]) {
        let source = if is_kept { kept.expect("attention: a pack with kept ancestors needs the cache") } else { x };
        let from = positions.start.saturating_sub(position).min(rows.len());
        let to = positions.end.saturating_sub(position).min(rows.len());
        if from < to {
            let source = &source[(rows.start + from) * stride + block.head * width..];
            products.read(&mut out[done * elements..], elements, source, stride, to - from, width);
            done += to - from;
        }
        position += rows.len();
    }
}

/// Rows of queries, or of anything of their shape, that are the lanes of vectors: element `e` of row `i` is
/// `[e * n + i]`. Their number is padded to whole vectors; what pads sees no key.
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

    /// `out [elements, n] = ` rows `[count, elements]` at distance `stride`, turned.
    pub fn turn<W: Float>(&self, isa: Isa, out: &mut [W], rows: &[W], stride: usize, elements: usize) {
        transpose(isa, out, self.n, rows, stride, self.count, elements);
        for row in out.chunks_exact_mut(self.n).take(elements) {
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
