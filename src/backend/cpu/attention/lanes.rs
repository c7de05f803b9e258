//! Rows of queries as the lanes of vectors, and the keys that they meet.

use std::ops::Range;

use super::super::gemm::transpose::Transposer;
use super::super::simd::{Element, Float};
use super::blocks::Block;
use super::products::{HeadRows, Products};
use crate::backend::ops::AttentionDims;
use crate::pack::Pack;

/// What gathers rows of a pack for products.
#[derive(Clone, Copy)]
pub struct Gather<'a, A> {
    /// As what elements they are gathered.
    pub products: Products<A>,
    /// Whose rows and paths.
    pub pack: &'a Pack,
    /// The heads.
    pub dims: AttentionDims,
}

impl<A: Float> Gather<'_, A> {
    /// `out [lanes, elements of D] = ` some of the queries (or anything of their shape) of rows: those numbered `lanes`,
    /// counting the heads of a group one by one and then the rows; rows of `out` are at distance `stride`.
    pub fn queries<S: Element<A>>(
        &self,
        out: &mut [A],
        stride: usize,
        x: &[S],
        rows: impl Fn(usize) -> usize,
        lanes: Range<usize>,
        head: usize,
    ) {
        let (dims, group, width) = (self.dims, self.dims.group(), self.dims.head_dim);
        let (mut lane, mut done) = (lanes.start, 0);
        while lane < lanes.end {
            let heads = (group - lane % group).min(lanes.end - lane);
            let from = (rows(lane / group) * dims.heads + head * group + lane % group) * width;
            self.products.read(&mut out[done * stride..], stride, &x[from..], width, heads, width);
            (lane, done) = (lane + heads, done + heads);
        }
    }

    /// The keys or values of one head at some positions of the path of a segment, `[positions, elements of D]`: where they
    /// lie, or else gathered in `out`.
    pub fn keys<'x, C: Element<A>>(
        &self,
        out: &'x mut [A],
        x: &'x [C],
        cached: Option<&'x [C]>,
        block: &Block,
        positions: Range<usize>,
    ) -> HeadRows<'x, A> {
        let own = (false, self.pack.segments()[block.segment].rows.clone());
        let path = self.pack.path(block.segment).iter().map(|span| (span.cached, span.rows.clone()));
        let (width, stride) = (self.dims.head_dim, self.dims.kv_heads * self.dims.head_dim);
        let elements = self.products.elements(width);
        let (mut position, mut done) = (0, 0);
        for (is_cached, rows) in path.chain([own]) {
            let source =
                if is_cached { cached.expect("attention: a pack with cached ancestors needs the cache") } else { x };
            let from = positions.start.saturating_sub(position).min(rows.len());
            let to = positions.end.saturating_sub(position).min(rows.len());
            if from < to {
                let source = &source[(rows.start + from) * stride + block.head * width..];
                if let Some(rows) = self.products.lying(source, stride, width).filter(|_| to - from == positions.len())
                {
                    return rows;
                }
                self.products.read(&mut out[done * elements..], elements, source, stride, to - from, width);
                done += to - from;
            }
            position += rows.len();
        }
        self.products.gathered(out, width)
    }
}

/// Rows of queries, or of anything of their shape, that are the lanes of vectors: element `e` of row `i` is
/// `[e * n + i]`. Their number is padded to whole vectors; what pads sees no key.
pub struct Lanes {
    /// Their number with padding, a multiple of a vector's elements.
    pub n: usize,
    /// Their number without.
    pub count: usize,
}

impl Lanes {
    /// For `count` rows.
    pub fn new(count: usize, vector: usize) -> Self {
        Self { n: count.next_multiple_of(vector), count }
    }

    /// `out [elements, n] = ` rows `[count, elements]` at distance `stride`, transposed.
    pub fn transpose<A: Float>(
        &self,
        transposer: Transposer<A>,
        out: &mut [A],
        rows: &[A],
        stride: usize,
        elements: usize,
    ) {
        transposer.transpose(out, self.n, rows, stride, [self.count, elements]);
        for row in out.chunks_exact_mut(self.n).take(elements) {
            row[self.count..].fill(A::ZERO);
        }
    }

    /// `bounds [3, n] = ` the first and the last position that each row sees (padding sees none), and its ALiBi slope.
    pub fn bounds<A: Float>(
        &self,
        bounds: &mut [A],
        rows: impl Fn(usize) -> usize,
        first: usize,
        head: usize,
        (pack, dims): (&Pack, AttentionDims),
    ) {
        let (from, rest) = bounds.split_at_mut(self.n);
        let (to, slopes) = rest.split_at_mut(self.n);
        for i in 0..self.n {
            let row = || rows((first + i) / dims.group());
            let seen = if i < self.count { pack.visible(row(), dims.window) } else { 0..0 };
            from[i] = A::from_f64(seen.start as f64);
            to[i] = A::from_f64(seen.end as f64 - 1.0);
            slopes[i] = A::from_f64(dims.slope(head * dims.group() + (first + i) % dims.group()));
        }
    }
}
