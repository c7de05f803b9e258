//! Attention over the forest: `z = softmax(cap(scale * q k^T) + bias) v` over what each row sees of its path.
//!
//! Online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): no N x N matrix is made. The cap is none, or soft
//! ([`AttentionDims::softcap`]); the bias is 0, or ALiBi's ([`AttentionDims::slope`], Press et al. 2022).

use super::check::{below, need, needs, same, softcap};
use super::linear::kernel_launches;
use super::{Launch, Op, Projected, Work, operations};
use crate::arch::RopePairs;
use crate::backend::{Buffers, DevicePack, Len};
use crate::pack::{Pack, Parent};

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDims {
    /// Query heads H, a multiple of `kv_heads`; head `h` reads key-value head `h / (H / K)`.
    pub heads: usize,
    /// Key-value heads K, each read by `H / K` query heads.
    pub kv_heads: usize,
    /// Width D of queries, keys and values.
    pub head_dim: usize,
    /// Multiplier of the scores, usually `1 / sqrt(D)`.
    pub scale: f64,
    /// How far rows see ([`Pack::visible`]).
    pub window: Option<usize>,
    /// Whether scores fall with the distance from the last key that the row sees: ALiBi.
    pub alibi: bool,
    /// Soft cap of the scores (Gemma 2): `cap * tanh(scale * q k^T / cap)` stands for `scale * q k^T`.
    pub softcap: Option<f64>,
}

impl AttentionDims {
    /// Query heads of a key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// By how much a score of query head `head` is less for every position that its key lies further back; 0 without
    /// ALiBi. With H a power of two it is `2^(-8 (head + 1) / H)`; the heads beyond the greatest power of two below H take
    /// every second slope of the next one.
    pub fn slope(&self, head: usize) -> f64 {
        match self.alibi_base() {
            0 => 0.0,
            base if head < base => (-8.0 * (head + 1) as f64 / base as f64).exp2(),
            base => (-4.0 * (2 * (head - base) + 1) as f64 / base as f64).exp2(),
        }
    }

    /// The greatest power of two that is not above the number of query heads; 0 without ALiBi.
    pub fn alibi_base(&self) -> usize {
        if self.alibi { 1 << self.heads.ilog2() } else { 0 }
    }

    /// Elements of a row of queries, H D.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a row of keys or values, K D.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Multiply-adds of one product of these rows' queries with what each sees, over all heads.
    fn pairs(&self, pack: &Pack, rows: impl Iterator<Item = usize>) -> u64 {
        let seen: usize = rows.map(|row| pack.visible(row, self.window).len()).sum();
        (seen * self.q_width()) as u64
    }

    #[track_caller]
    fn check(&self, op: &'static str) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{op}: {} heads, must be a multiple of the {} key-value heads",
            self.heads,
            self.kv_heads
        );
        assert!(self.window != Some(0), "{op}: window is 0, must be at least 1");
        softcap(op, self.softcap);
    }
}

/// Rows of the cache that a pack's paths reach.
fn cached_rows(pack: &Pack) -> usize {
    let spans = (0..pack.segments().len()).flat_map(|g| pack.path(g));
    spans.filter(|span| span.cached).map(|span| span.rows.end).max().unwrap_or(0)
}

/// Asserts that output rows are rows of the pack in ascending order.
#[track_caller]
fn check_outputs(op: &'static str, outputs: Option<&[usize]>, pack: &Pack) {
    let Some(rows) = outputs else { return };
    assert!(rows.is_sorted_by(|a, b| a < b), "{op}: output rows are not in ascending order");
    rows.last().iter().for_each(|&&row| below(op, "an output row", row, pack.len()));
}

/// How many rows come out of a pack, and multiply-adds of one product of their queries with what they see.
fn output_pairs(outputs: Option<&[usize]>, pack: &Pack, dims: AttentionDims) -> (usize, u64) {
    match outputs {
        None => (pack.len(), dims.pairs(pack, 0..pack.len())),
        Some(rows) => (rows.len(), dims.pairs(pack, rows.iter().copied())),
    }
}

fn forward_work(outputs: Option<&[usize]>, pack: &Pack, dims: AttentionDims) -> Work {
    let (rows, pairs) = output_pairs(outputs, pack, dims);
    let keys = 2 * (pack.len() + cached_rows(pack)) * dims.kv_width();
    Work::moved(rows * dims.heads, 2 * rows * dims.q_width() + keys, 0).multiplied(2 * pairs)
}

/// `z [N, H, D] =`, `lse [N, H] =` the log-sum-exp of each row's scores.
pub struct AttentionFwd<'a, B: Buffers + ?Sized> {
    /// `[N, H, D]`, set.
    pub z: &'a mut B::Compute,
    /// `[N, H]`, set.
    pub lse: &'a mut B::Acc,
    /// `[N, H, D]`.
    pub q: &'a B::Compute,
    /// `[N, K, D]`.
    pub k: &'a B::Compute,
    /// `[N, K, D]`.
    pub v: &'a B::Compute,
    /// Keys and values of cached ancestors, `[capacity, K, D]` each; needed if the pack has any.
    pub cached: Option<[&'a B::Compute; 2]>,
    /// N rows with their paths.
    pub pack: &'a B::Pack,
    /// Rows whose `z` and `lse` are read, ascending; none means all. A device may leave those of the others
    /// as they are, or compute them too, as CUDA does; a profile counts these alone.
    pub outputs: Option<&'a [usize]>,
    /// How many heads, how wide, and what they see.
    pub dims: AttentionDims,
}

impl<B: Buffers + ?Sized> Op for AttentionFwd<'_, B> {
    const NAME: &'static str = "attention_fwd";

    fn check(&self) {
        let (op, pack, dims) = (Self::NAME, self.pack.host(), self.dims);
        dims.check(op);
        needs(op, pack.len() * dims.q_width(), &[("z", self.z.len()), ("q", self.q.len())]);
        need(op, "lse", self.lse.len(), pack.len() * dims.heads);
        needs(op, pack.len() * dims.kv_width(), &[("k", self.k.len()), ("v", self.v.len())]);
        check_outputs(op, self.outputs, pack);
        let [k, v] = self.cached.map_or([0, 0], |cached| cached.map(|buffer| buffer.len()));
        needs(op, cached_rows(pack) * dims.kv_width(), &[("the cached keys", k), ("the cached values", v)]);
    }

    fn work(&self) -> Work {
        forward_work(self.outputs, self.pack.host(), self.dims)
    }

    /// Of all rows.
    fn launches(&self) -> Vec<Launch> {
        vec![Launch::kernel(forward_work(None, self.pack.host(), self.dims))]
    }
}

/// `d_q [N, H, D] =`, `d_k [N, K, D] =`, `d_v [N, K, D] =` from `d_z [N, H, D]`, of which nobody else has need: a device may leave
/// anything there. A key's gradient collects from its own segment and then from its descendants in
/// ascending order. No pack with cached ancestors has a backward.
pub struct AttentionBwd<'a, B: Buffers + ?Sized> {
    /// `[N, H, D]`, set.
    pub d_q: &'a mut B::Compute,
    /// `[N, K, D]`, set.
    pub d_k: &'a mut B::Compute,
    /// `[N, K, D]`, set.
    pub d_v: &'a mut B::Compute,
    /// `[N, H]`, scratch: `sum(d_z * z)` of each row and head.
    pub delta: &'a mut B::Acc,
    /// `[N, H, D]`, consumed.
    pub d_z: &'a mut B::Acc,
    /// `[N, H, D]`, of the forward.
    pub z: &'a B::Compute,
    /// `[N, H]`, of the forward.
    pub lse: &'a B::Acc,
    /// `[N, H, D]`.
    pub q: &'a B::Compute,
    /// `[N, K, D]`.
    pub k: &'a B::Compute,
    /// `[N, K, D]`.
    pub v: &'a B::Compute,
    /// N rows with their paths.
    pub pack: &'a B::Pack,
    /// Those of the forward, as which it left `z` and `lse`: of the other rows `d_z` is 0, and so is `d_q`.
    pub outputs: Option<&'a [usize]>,
    /// How many heads, how wide, and what they see.
    pub dims: AttentionDims,
}

impl<B: Buffers + ?Sized> AttentionBwd<'_, B> {
    /// Whether the CUDA backend rotates the gradients of queries and keys back where it makes them, of heads of so many elements, of
    /// which so many are rotated in such pairs.
    pub(in crate::backend) fn rotates([head_dim, rotary_dim]: [usize; 2], pairs: RopePairs) -> bool {
        pairs == RopePairs::Halves && rotary_dim == head_dim && [64, 128].contains(&head_dim)
    }

    /// Whether the CUDA backend sums heads of so many elements, of rows of so many, where the last summand of `d_z` is added.
    pub(in crate::backend) fn sums_heads(head_dim: usize, width: usize) -> bool {
        [64, 128, 256].contains(&head_dim) && width.is_multiple_of(256)
    }
}

impl<B: Buffers + ?Sized> Op for AttentionBwd<'_, B> {
    const NAME: &'static str = "attention_bwd";

    fn check(&self) {
        let (op, pack, dims) = (Self::NAME, self.pack.host(), self.dims);
        dims.check(op);
        if let Some(g) = pack.segments().iter().position(|s| matches!(s.parent, Parent::Cached(_))) {
            panic!("{op}: segment {g} continues a cached one, which no backward can pass");
        }
        check_outputs(op, self.outputs, pack);
        let queries = [("d_q", self.d_q.len()), ("d_z", self.d_z.len()), ("z", self.z.len()), ("q", self.q.len())];
        let keys = [("d_k", self.d_k.len()), ("d_v", self.d_v.len()), ("k", self.k.len()), ("v", self.v.len())];
        needs(op, pack.len() * dims.q_width(), &queries);
        needs(op, pack.len() * dims.kv_width(), &keys);
        needs(op, pack.len() * dims.heads, &[("delta", self.delta.len()), ("lse", self.lse.len())]);
    }

    fn work(&self) -> Work {
        let (pack, dims) = (self.pack.host(), self.dims);
        let (rows, pairs) = output_pairs(self.outputs, pack, dims);
        let acc = rows * (dims.q_width() + 3 * dims.heads);
        let compute = (2 * rows + pack.len()) * dims.q_width() + 4 * pack.len() * dims.kv_width();
        Work::moved(acc, compute, 0).multiplied(5 * pairs)
    }

    fn projected(&self) -> Option<Projected> {
        let (width, rows) = (self.dims.q_width(), self.pack.host().len());
        Self::sums_heads(self.dims.head_dim, width).then_some(Projected::HeadGradient { len: rows * width })
    }

    /// `delta` and the rounded gradient; the queries' gradient; that of keys and values, which makes the scores again. All of
    /// all rows.
    fn launches(&self) -> Vec<Launch> {
        let (pack, dims) = (self.pack.host(), self.dims);
        let (rows, pairs) = output_pairs(None, pack, dims);
        let (q, kv, heads) = (rows * dims.q_width(), rows * dims.kv_width(), rows * dims.heads);
        let delta = Work::moved(q + heads, 2 * q, 0);
        let of_queries = Work::moved(2 * heads, 3 * q + 2 * kv, 0).multiplied(3 * pairs);
        let of_keys = Work::moved(2 * heads, 2 * q + 4 * kv, 0).multiplied(4 * pairs);
        [delta, of_queries, of_keys].map(Launch::kernel).to_vec()
    }
}

/// `out [rows, H, longest] =`: for each of `rows`, per head, its scores over its path by position and then `-inf`
/// (`normalized = false`), or `exp(score - lse)` and then 0 (`normalized = true`).
pub struct AttentionPattern<'a, B: Buffers + ?Sized> {
    /// `[rows, H, longest]`, set.
    pub out: &'a mut B::Acc,
    /// `[N, H, D]`.
    pub q: &'a B::Compute,
    /// `[N, K, D]`.
    pub k: &'a B::Compute,
    /// Keys of cached ancestors `[capacity, K, D]`; needed if the pack has any.
    pub cached_k: Option<&'a B::Compute>,
    /// `[N, H]`, of the forward.
    pub lse: &'a B::Acc,
    /// Rows of the pack.
    pub rows: &'a [usize],
    /// N rows with their paths.
    pub pack: &'a B::Pack,
    /// How many heads, how wide, and what they see.
    pub dims: AttentionDims,
    /// Positions of a row of `out`; more than any of `rows` has before it.
    pub longest: usize,
    /// Whether probabilities are wanted, not scores.
    pub normalized: bool,
}

impl<B: Buffers + ?Sized> Op for AttentionPattern<'_, B> {
    const NAME: &'static str = "attention_pattern";

    fn check(&self) {
        let (op, pack, dims) = (Self::NAME, self.pack.host(), self.dims);
        dims.check(op);
        need(op, "out", self.out.len(), self.rows.len() * dims.heads * self.longest);
        need(op, "q", self.q.len(), pack.len() * dims.q_width());
        need(op, "k", self.k.len(), pack.len() * dims.kv_width());
        let cached = self.cached_k.map_or(0, |k| k.len());
        need(op, "the cached keys", cached, cached_rows(pack) * dims.kv_width());
        need(op, "lse", self.lse.len(), pack.len() * dims.heads);
        for &row in self.rows {
            below(op, "a row", row, pack.len());
            below(op, "a row's last key", pack.visible(row, self.dims.window).end - 1, self.longest);
        }
    }

    fn work(&self) -> Work {
        let (pack, dims, count) = (self.pack.host(), self.dims, self.rows.len());
        let keys = (pack.len() + cached_rows(pack)) * dims.kv_width();
        let work = Work::moved(count * dims.heads * (self.longest + 1), count * dims.q_width() + keys, 0);
        work.multiplied(dims.pairs(pack, self.rows.iter().copied()))
    }
}

/// `out [rows, H, C] =` each head's share of the output projection: `z` of that head times the columns of `weight [C, H D]`
/// that read it.
pub struct AttentionResult<'a, B: Buffers + ?Sized> {
    /// `[rows, H, C]`, set.
    pub out: &'a mut B::Acc,
    /// `[N, H, D]`.
    pub z: &'a B::Compute,
    /// `[C, H D]`.
    pub weight: &'a B::Weight,
    /// Rows of `z`.
    pub rows: &'a [usize],
    /// Query heads of a row, H.
    pub heads: usize,
    /// Elements of a head, D.
    pub head_dim: usize,
    /// Elements of a row of the residual stream, C.
    pub width: usize,
}

impl<B: Buffers + ?Sized> Op for AttentionResult<'_, B> {
    const NAME: &'static str = "attention_result";

    fn check(&self) {
        let (op, q_width) = (Self::NAME, self.heads * self.head_dim);
        need(op, "out", self.out.len(), self.rows.len() * self.heads * self.width);
        need(op, "z", self.z.len(), self.rows.iter().max().map_or(0, |row| row + 1) * q_width);
        same(op, "the weight's length", self.weight.len(), self.width * q_width);
    }

    fn work(&self) -> Work {
        let (count, q_width) = (self.rows.len(), self.heads * self.head_dim);
        let work = Work::moved(count * self.heads * self.width, count * q_width, self.weight.len());
        work.multiplied((count * q_width * self.width) as u64)
    }

    fn launches(&self) -> Vec<Launch> {
        kernel_launches(self.weight, self.work())
    }
}

operations! {
    /// Attention, forward and backward, and what captures read of it.
    AttentionOps {
        attention_fwd(AttentionFwd);
        attention_bwd(AttentionBwd);
        attention_pattern(AttentionPattern);
        attention_result(AttentionResult);
    }
}
