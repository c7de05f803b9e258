//! Attention over the forest.

use super::Compute;
use super::context::{Context, Kernel, Shape};
use super::forest::{self, SLOTS};
use super::geometry::{blocks, blocks2};
use super::launch::{Arg, BLOCK, float, int, real, reals, table, wide};
use super::memory::{Buffer, needs};
use super::pack::Pack;
use super::variant::Variant;
use crate::Error;
use crate::backend::AttentionDims;
use crate::pack::Parent;

const FILE: &str = "attention";
/// Widest heads.
const WIDEST: usize = 256;

fn kernel(name: &'static str, dims: AttentionDims) -> Kernel {
    Kernel { file: FILE, name, head: dims.head_dim }
}

/// Whether there are kernels for the head width; an error is kept if not.
fn supported(cx: &mut Context, dims: AttentionDims) -> bool {
    let supported = dims.head_dim <= WIDEST;
    if !supported {
        cx.fail(Error::unsupported("head width on CUDA", dims.head_dim, format!("up to {WIDEST}")));
    }
    supported
}

fn check(op: &'static str, dims: AttentionDims) {
    let AttentionDims { heads, kv_heads, window, .. } = dims;
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "{op}: {heads} heads, must be a multiple of the {kv_heads} key-value heads"
    );
    assert!(window != Some(0), "{op}: window is 0, must be at least 1");
}

/// Rows of the cache that the pack's paths reach.
fn cached_rows(pack: &Pack) -> usize {
    let spans = (0..pack.host.segments().len()).flat_map(|g| pack.host.path(g));
    spans.filter(|span| span.cached).map(|span| span.rows.end).max().unwrap_or(0)
}

/// The launch of the blocks of queries.
fn queries<R>(pack: &Pack, dims: AttentionDims, backward: bool) -> Shape {
    let variant = Variant::new(dims.head_dim, size_of::<R>());
    let parts = SLOTS / (16 * variant.warps);
    let shared = if backward { variant.bwd_shared(size_of::<R>()) } else { variant.fwd_shared(size_of::<R>()) };
    Shape { grid: blocks2(pack.slots().1 * parts, dims.heads), block: 32 * variant.warps as u32, shared }
}

/// The arguments that say which keys the blocks of queries see.
fn tables(pack: &Pack) -> [Arg; 5] {
    [pack.slots().0, pack.visit_starts(), pack.visits(), pack.tiles(), pack.positions()].map(table)
}

/// The arguments that say what heads there are.
fn heads_of(dims: AttentionDims) -> [Arg; 3] {
    [dims.heads, dims.kv_heads, dims.head_dim].map(int)
}

/// The same, how scores are scaled, how far rows see, and how scores fall with the distance.
fn sizes(dims: AttentionDims) -> [Arg; 6] {
    let [heads, kv_heads, head_dim] = heads_of(dims);
    [heads, kv_heads, head_dim, float(dims.scale), int(dims.window.unwrap_or(0)), int(dims.alibi_base())]
}

/// See [`Backend::attention_fwd`](crate::backend::Backend::attention_fwd).
#[allow(clippy::too_many_arguments)]
pub fn fwd<R: Compute>(
    cx: &mut Context,
    z: &Buffer<R>,
    lse: &Buffer<f32>,
    q: &Buffer<R>,
    [k, v]: [&Buffer<R>; 2],
    kept: Option<[&Buffer<R>; 2]>,
    pack: &Pack,
    dims: AttentionDims,
) {
    let op = "attention_fwd";
    let AttentionDims { heads, kv_heads, head_dim, .. } = dims;
    check(op, dims);
    needs(op, pack.len() * heads * head_dim, &[("z", z), ("q", q)]);
    needs(op, pack.len() * kv_heads * head_dim, &[("k", k), ("v", v)]);
    lse.need(op, "lse", pack.len() * heads);
    let [kept_k, kept_v] = kept_keys(op, kept, [k, v], pack, dims);
    if !supported(cx, dims) {
        return;
    }
    let rows = [real(z), wide(lse), real(q), real(k), real(v), real(kept_k), real(kept_v)];
    let args = [&rows[..], &tables(pack), &sizes(dims)].concat();
    cx.launch(op, kernel(op, dims), queries::<R>(pack, dims, false), &args);
}

/// The cache's keys and values; those of the pack stand in where nothing is kept.
fn kept_keys<'a, const T: usize, R>(
    op: &'static str,
    kept: Option<[&'a Buffer<R>; T]>,
    own: [&'a Buffer<R>; T],
    pack: &Pack,
    dims: AttentionDims,
) -> [&'a Buffer<R>; T] {
    let rows = cached_rows(pack);
    assert!(kept.is_some() || rows == 0, "{op}: no kept keys, the pack's paths reach {rows} rows of them");
    for buffer in kept.iter().flatten() {
        buffer.need(op, "what is kept", rows * dims.kv_heads * dims.head_dim);
    }
    kept.unwrap_or(own)
}

/// What the backward reads of the forward.
pub struct Saved<'a, R> {
    /// Gradient of the output.
    pub d_z: &'a Buffer<f32>,
    /// The output.
    pub z: &'a Buffer<R>,
    /// Log-sum-exp of the scores.
    pub lse: &'a Buffer<f32>,
    /// Queries.
    pub q: &'a Buffer<R>,
    /// Keys.
    pub k: &'a Buffer<R>,
    /// Values.
    pub v: &'a Buffer<R>,
}

/// See [`Backend::attention_bwd`](crate::backend::Backend::attention_bwd).
pub fn bwd<R: Compute>(
    cx: &mut Context,
    [d_q, d_k, d_v]: [&Buffer<R>; 3],
    delta: &Buffer<f32>,
    saved: &Saved<'_, R>,
    pack: &Pack,
    dims: AttentionDims,
) {
    let op = "attention_bwd";
    let AttentionDims { heads, kv_heads, head_dim, .. } = dims;
    let Saved { d_z, z, lse, q, k, v } = *saved;
    check(op, dims);
    if let Some(g) = pack.host.segments().iter().position(|s| matches!(s.parent, Parent::Cached(_))) {
        panic!("{op}: segment {g} continues a kept one, which no backward can pass");
    }
    let (rows, query_len, key_len) = (pack.len(), pack.len() * heads * head_dim, pack.len() * kv_heads * head_dim);
    needs(op, query_len, &[("d_q", d_q), ("z", z), ("q", q)]);
    needs(op, key_len, &[("d_k", d_k), ("d_v", d_v), ("k", k), ("v", v)]);
    d_z.need(op, "d_z", query_len);
    needs(op, rows * heads, &[("delta", delta), ("lse", lse)]);
    if !supported(cx, dims) {
        return;
    }
    let Some(rounded) = cx.scratch("attention_bwd", query_len * size_of::<R>()) else { return };
    let shape = Shape { grid: blocks((rows * heads).div_ceil(8)), block: BLOCK, shared: 0 };
    let args = [wide(delta), reals(rounded), wide(d_z), real(z), int(rows), int(heads), int(head_dim)];
    cx.launch(op, kernel("attention_bwd_delta", dims), shape, &args);
    let saved = [wide(delta), reals(rounded), wide(lse), real(q), real(k), real(v)];
    let args = [&[real(d_q)], &saved[..], &tables(pack), &sizes(dims)].concat();
    cx.launch(op, kernel("attention_bwd_dq", dims), queries::<R>(pack, dims, true), &args);
    let order = [table(pack.order()), table(pack.ends()), table(pack.positions()), int(rows)];
    let args = [&[real(d_k), real(d_v)], &saved[..], &order, &sizes(dims)].concat();
    let variant = Variant::new(head_dim, size_of::<R>());
    let shape = Shape {
        grid: blocks2(rows.div_ceil(16 * variant.warps), kv_heads),
        block: 32 * variant.warps as u32,
        shared: variant.bwd_shared(size_of::<R>()),
    };
    cx.launch(op, kernel("attention_bwd_dkv", dims), shape, &args);
}

/// See [`Backend::attention_pattern`](crate::backend::Backend::attention_pattern).
#[allow(clippy::too_many_arguments)]
pub fn pattern<R: Compute>(
    cx: &mut Context,
    out: &Buffer<f32>,
    q: &Buffer<R>,
    k: &Buffer<R>,
    kept: Option<&Buffer<R>>,
    lse: &Buffer<f32>,
    rows: &[usize],
    pack: &Pack,
    dims: AttentionDims,
    longest: usize,
    normalised: bool,
) {
    let op = "attention_pattern";
    let AttentionDims { heads, kv_heads, head_dim, .. } = dims;
    check(op, dims);
    out.need(op, "out", rows.len() * heads * longest);
    q.need(op, "q", pack.len() * heads * head_dim);
    k.need(op, "k", pack.len() * kv_heads * head_dim);
    lse.need(op, "lse", pack.len() * heads);
    for &row in rows {
        assert!(row < pack.len(), "{op}: a row is {row}, must be below {}", pack.len());
        let position = pack.host.positions()[row] as usize;
        assert!(position < longest, "{op}: a row's position is {position}, must be below {longest}");
    }
    let [kept_k] = kept_keys(op, kept.map(|kept| [kept]), [k], pack, dims);
    let keys = forest::keys(&pack.host, rows, longest, dims.window);
    let list: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let Some(list) = cx.numbers("rows of the pattern", &list) else { return };
    let Some(keys) = cx.numbers("keys of the pattern", &keys) else { return };
    let lists = [table(list), table(keys), table(pack.positions())];
    let how = [float(dims.scale), int(dims.alibi_base()), int(longest), int(usize::from(normalised))];
    let args = [&[wide(out), real(q), real(k), real(kept_k), wide(lse)], &lists[..], &heads_of(dims), &how].concat();
    let shape = Shape { grid: blocks2(rows.len(), heads), block: 128, shared: 0 };
    cx.launch(op, kernel(op, dims), shape, &args);
}

/// See [`Backend::attention_result`](crate::backend::Backend::attention_result).
#[allow(clippy::too_many_arguments)]
pub fn result<R: Compute>(
    cx: &mut Context,
    out: &Buffer<f32>,
    z: &Buffer<R>,
    weight: &Buffer<R>,
    rows: &[usize],
    heads: usize,
    head_dim: usize,
    width: usize,
) {
    let op = "attention_result";
    let last = rows.iter().max().map_or(0, |row| row + 1);
    out.need(op, "out", rows.len() * heads * width);
    z.need(op, "z", last * heads * head_dim);
    weight.need(op, "weight", width * heads * head_dim);
    let list: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let Some(list) = cx.numbers(op, &list) else { return };
    let args = [wide(out), real(z), real(weight), table(list), int(heads), int(head_dim), int(width)];
    let shape = Shape { grid: blocks2(rows.len(), heads), block: BLOCK, shared: 0 };
    cx.launch(op, Kernel { file: FILE, name: op, head: head_dim }, shape, &args);
}
