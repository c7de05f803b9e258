//! Attention over the forest.

use super::Cuda;
use super::balance::{Parts, pairs_are_worth_it};
use super::forest;
use super::fused::{AttentionGradients, Call, HeadGradients};
use super::geometry::{blocks, blocks2};
use super::launch::{Arg, Kernel, LaunchDims, Param, acc, acc_ptr, boxes, compute, compute_ptr, float, int, table};
use super::lora_launch::OfGradient;
use super::pack::{DeviceQueryBlocks, DeviceTables};
use super::projections::Projections;
use super::variant::{Heads, LONG_BLOCK, Variant};
use crate::Error;
use crate::backend::DevicePack;
use crate::backend::Len;
use crate::backend::ops::{
    AttentionBwd, AttentionDims, AttentionFwd, AttentionOps, AttentionPattern, AttentionResult, Op,
};
use crate::backend::scratch::{BLOCK_ROWS, key_parts_bytes};

const FILE: &str = "attention";
/// The file of the forward for compute capability 9.0.
const HOPPER: &str = "attention_hopper";
/// A distance beyond every position, to which a position can be added.
const FAR: usize = 1 << 30;
/// Widest heads that there are kernels for.
const MAX_HEAD_DIM: usize = 256;

/// A kernel as it is compiled for these heads.
fn kernel(name: &'static str, dims: AttentionDims) -> Kernel {
    Kernel { file: FILE, name, heads: heads(dims) }
}

fn heads(dims: AttentionDims) -> Heads {
    Heads { width: dims.head_dim, capped: dims.softcap.is_some() }
}

/// The soft cap, which builds without one do not read.
fn cap(dims: AttentionDims) -> Arg {
    float(dims.softcap.unwrap_or(0.0))
}

/// The arguments that say which keys some query blocks see.
fn tile_lists(pack: &DeviceTables, blocks: DeviceQueryBlocks) -> Vec<Arg> {
    [&blocks.tables()[..], &[pack.tiles(), pack.positions(), pack.lasts()].map(table)].concat()
}

/// The arguments that say what heads there are.
fn head_args(dims: AttentionDims) -> [Arg; 3] {
    [dims.heads, dims.kv_heads, dims.head_dim].map(int)
}

/// How far behind (as the kernels count it: 0 for all, else one more than the distance) and ahead of their own position
/// rows see ([`Pack::visible`](crate::pack::Pack::visible)).
fn reach(pack: &DeviceTables, window: Option<usize>) -> [usize; 2] {
    match (window, pack.host().is_bidirectional()) {
        (None, _) => [0, FAR],
        (Some(window), false) => [window, FAR],
        (Some(window), true) => [window + 1, window.min(FAR)],
    }
}

/// The same as [`head_args`], how scores are scaled, how far rows see, how scores fall with the distance, and their cap.
fn dims_args(pack: &DeviceTables, dims: AttentionDims) -> [Arg; 8] {
    let ([heads, kv_heads, head_dim], [behind, ahead]) = (head_args(dims), reach(pack, dims.window).map(int));
    [heads, kv_heads, head_dim, float(dims.scale), behind, ahead, int(dims.alibi_base()), cap(dims)]
}

impl Cuda {
    /// Whether there are kernels for the head width; an error is kept if not.
    fn supports(&mut self, head_dim: usize) -> bool {
        let supported = head_dim <= MAX_HEAD_DIM;
        if !supported {
            let limit = format!("up to {MAX_HEAD_DIM}");
            self.cx.fail(Error::unsupported("head width on CUDA", head_dim, limit));
        }
        supported
    }

    fn variant(&self, dims: AttentionDims) -> Variant {
        Variant::new(heads(dims), self.cx.dtype.size())
    }

    /// The arguments that say which blocks of a grid of so many heads are the first ones of their multiprocessors.
    fn first_blocks(&self, heads: usize) -> [Arg; 2] {
        let multiprocessors = self.cx.device.multiprocessors();
        [multiprocessors / heads, multiprocessors % heads].map(int)
    }

    /// A launch of so many blocks for each of `heads`, given their shared memory.
    fn block_dims(&self, count: usize, heads: usize, dims: AttentionDims, shared: usize) -> LaunchDims {
        let warps = self.variant(dims).warps;
        let parts = BLOCK_ROWS / (16 * warps);
        LaunchDims { grid: blocks2(heads, count * parts), block: 32 * warps as u32, shared }
    }

    /// The arguments that say what parts of the work on keys there are: where they leave their sums, their tickets, and rows of a
    /// part. None after an error.
    fn key_parts(&mut self, parts: Option<Parts>, most_rows: usize, dims: AttentionDims) -> Option<[Arg; 3]> {
        let none = [Arg::null(Param::Acc), Arg::null(Param::Table), int(0)];
        // What the largest pass may need is there from the first one on, as planned.
        let Some([sums, tickets]) = key_parts_bytes(most_rows, [dims.heads, dims.head_dim]) else { return Some(none) };
        let sums = self.cx.scratch("attention sums", sums)?;
        self.cx.scratch("attention tickets", tickets)?;
        let Some(Parts { rows, .. }) = parts else { return Some(none) };
        // Every launch leaves them as it found them.
        let tickets = self.cx.cached_list("attention tickets", &vec![0; tickets / size_of::<i32>()])?;
        Some([acc_ptr(sums), table(tickets), int(rows)])
    }

    /// Blocks of 128 rows, if the forward is to take them: there is such a build, their rows see much in common, and it ends sooner.
    fn long_blocks(&self, pack: &DeviceTables, dims: AttentionDims) -> Option<DeviceQueryBlocks> {
        let built = self.variant(dims).has_long_blocks(self.cx.dtype.size());
        let sooner = |pairs: &DeviceQueryBlocks| pairs_are_worth_it(pairs.load, pack.query_blocks().load, dims.heads);
        pack.query_block_pairs().filter(|pairs| built && sooner(pairs))
    }
}

/// A launch of the forward: its kernel, its blocks, whether it copies keys and values in boxes, and its arguments behind these.
struct Forward {
    kernel: Kernel,
    launch: LaunchDims,
    boxes: bool,
    args: Vec<Arg>,
}

impl Cuda {
    /// The forward for compute capability 9.0, if it is to be used: there is such a build, and much of what it multiplies is seen.
    fn hopper_forward(&self, pack: &DeviceTables, dims: AttentionDims) -> Option<Forward> {
        let (multiprocessors, pairs) = (self.hopper?, pack.pairs_for_warpgroups()?);
        let (works, size) = (pairs.count * dims.heads, self.cx.dtype.size());
        if !Variant::has_hopper(heads(dims), size) || works < multiprocessors {
            return None;
        }
        let kernel = Kernel { file: HOPPER, name: "attention_fwd_hopper", heads: heads(dims) };
        let shared = self.variant(dims).hopper_shared(size);
        let launch = LaunchDims { grid: blocks(multiprocessors), block: 384, shared };
        let ([behind, ahead], alibi) = (reach(pack, dims.window).map(int), int(dims.alibi_base()));
        let sizes = [int(pairs.count), int(dims.heads), int(dims.kv_heads), float(dims.scale), behind, ahead, alibi];
        let args = [&tile_lists(pack, pairs)[..], &sizes].concat();
        Some(Forward { kernel, launch, boxes: true, args })
    }

    fn forward(&self, pack: &DeviceTables, dims: AttentionDims) -> Forward {
        let (variant, size, arch) = (self.variant(dims), self.cx.dtype.size(), self.cx.device.arch());
        let (name, blocks, block_rows) = match self.long_blocks(pack, dims) {
            Some(pairs) => ("attention_fwd_128", pairs, LONG_BLOCK),
            None => (AttentionFwd::<Self>::NAME, pack.query_blocks(), 16 * variant.warps),
        };
        let launch = self.block_dims(blocks.count, dims.heads, dims, variant.fwd_shared(block_rows, size, arch));
        let args = [&tile_lists(pack, blocks)[..], &dims_args(pack, dims), &self.first_blocks(dims.heads)].concat();
        Forward { kernel: kernel(name, dims), launch, boxes: false, args }
    }
}

impl AttentionOps for Cuda {
    fn attention_fwd(&mut self, op: AttentionFwd<'_, Self>) {
        self.begin(&op);
        let (name, dims) = (AttentionFwd::<Self>::NAME, op.dims);
        if !self.supports(dims.head_dim) {
            return;
        }
        // The pack's own keys and values stand in where nothing is cached.
        let [cached_k, cached_v] = op.cached.unwrap_or([op.k, op.v]);
        let forward = self.hopper_forward(op.pack, dims).unwrap_or_else(|| self.forward(op.pack, dims));
        let (width, dtype) = (dims.kv_width(), self.cx.dtype);
        let of_keys = |x| if forward.boxes { boxes(x, width, dtype) } else { compute(x) };
        let keys = [op.k, op.v, cached_k, cached_v].map(of_keys);
        let args = [&[compute(op.z), acc(op.lse), compute(op.q)], &keys[..], &forward.args].concat();
        self.cx.launch(name, forward.kernel, forward.launch, &args);
    }

    /// What a LoRA adds to `d_z` just before is added by the same kernel that makes of it what comes first here, and leaves the sum
    /// nowhere. The next operations may rotate the gradients of queries and keys back in the kernels that make them.
    fn attention_bwd(&mut self, op: AttentionBwd<'_, Self>) {
        self.begin(&op);
        let (name, dims, rows) = (AttentionBwd::<Self>::NAME, op.dims, op.pack.len());
        if !self.supports(dims.head_dim) {
            return;
        }
        let (size, len) = (self.cx.dtype.size(), rows * dims.q_width());
        let Some(rounded) = self.cx.scratch(name, len * size) else { return };
        let (rounded, z, delta, d_z) = (compute_ptr(rounded), compute(op.z), acc(op.delta), op.d_z.ptr(0));
        let heads = OfGradient::Heads { rounded, z, delta, head_dim: dims.head_dim };
        let made = |group: &Projections| group.makes_input_gradient(d_z, len, heads);
        let fused = self.cx.fuse(made, |group, cx| group.launch(cx, Some(heads)));
        let delta = (!fused).then(|| {
            let sizes = [rows, dims.heads, dims.head_dim].map(int);
            let args = [&[delta, rounded, acc(op.d_z), z], &sizes[..]].concat();
            let launch = LaunchDims::new(blocks((rows * dims.heads).div_ceil(8)));
            Call { kernel: kernel("attention_bwd_delta", dims), dims: launch, args }
        });
        let saved = [acc(op.delta), rounded, acc(op.lse), compute(op.q), compute(op.k), compute(op.v)];
        let (queries, sizes) = (op.pack.query_blocks(), dims_args(op.pack, dims));
        let tables = [&tile_lists(op.pack, queries)[..], &sizes, &self.first_blocks(dims.heads)].concat();
        let args = [&[compute(op.d_q)], &saved[..], &tables].concat();
        let shared = self.variant(dims).bwd_shared(size);
        let launch = self.block_dims(queries.count, dims.heads, dims, shared);
        let call = Call { kernel: kernel("attention_bwd_dq", dims), dims: launch, args };
        let of_queries = HeadGradients { rotated: (compute(op.d_q), dims.heads), cos_sin: None, call };
        let [begins, ends] = op.pack.seen_by();
        let order =
            [op.pack.key_blocks(), op.pack.order(), begins, ends, op.pack.positions(), op.pack.lasts()].map(table);
        let parts = op.pack.key_load().parts(dims.heads, dims.kv_heads);
        // A buffer has the rows of the largest pass.
        let most_rows = op.delta.len() / dims.heads;
        let Some(workspace) = self.key_parts(parts, most_rows, dims) else { return };
        let sizes = [&[int(rows)], &workspace[..], &sizes, &self.first_blocks(dims.kv_heads)].concat();
        let args = [&[compute(op.d_k), compute(op.d_v)], &saved[..], &order, &sizes].concat();
        let count = parts.map_or(rows.div_ceil(BLOCK_ROWS), |parts| parts.count);
        let launch = self.block_dims(count, dims.kv_heads, dims, shared);
        let call = Call { kernel: kernel("attention_bwd_dkv", dims), dims: launch, args };
        let of_keys = HeadGradients { rotated: (compute(op.d_k), dims.kv_heads), cos_sin: None, call };
        let rows = (rows, table(op.pack.positions()));
        let work = AttentionGradients { delta, of: [of_queries, of_keys], rows };
        self.cx.defer(name, &work.args(), work);
    }

    fn attention_pattern(&mut self, op: AttentionPattern<'_, Self>) {
        self.begin(&op);
        let (name, cx, dims, pack) = (AttentionPattern::<Self>::NAME, &mut self.cx, op.dims, op.pack);
        let keys = forest::keys(pack.host(), op.rows, op.longest, dims.window);
        let Some(list) = cx.row_list("rows of the pattern", op.rows) else { return };
        let Some(keys) = cx.cached_list("keys of the pattern", &keys) else { return };
        let cached_k = op.cached_k.unwrap_or(op.k);
        let rows = [acc(op.out), compute(op.q), compute(op.k), compute(cached_k), acc(op.lse)];
        let lists = [table(list), table(keys), table(pack.positions()), table(pack.lasts())];
        let [_, ahead] = reach(pack, dims.window).map(int);
        let scores = [float(dims.scale), ahead, int(dims.alibi_base()), cap(dims)];
        let shown = [int(op.longest), int(usize::from(op.normalized))];
        let args = [&rows[..], &lists, &head_args(dims), &scores, &shown].concat();
        let launch = LaunchDims { grid: blocks2(op.rows.len(), dims.heads), block: 128, shared: 0 };
        cx.launch(name, kernel(name, dims), launch, &args);
    }

    fn attention_result(&mut self, op: AttentionResult<'_, Self>) {
        self.begin(&op);
        let (name, cx) = (AttentionResult::<Self>::NAME, &mut self.cx);
        let Some(list) = cx.row_list(name, op.rows) else { return };
        let Some(weight) = op.weight.elements(cx, name) else { return };
        let rows = [acc(op.out), compute(op.z), compute_ptr(weight), table(list)];
        let args = [&rows[..], &[op.heads, op.head_dim, op.width].map(int)].concat();
        let launch = LaunchDims::new(blocks2(op.rows.len(), op.heads));
        let heads = Heads { width: op.head_dim, capped: false };
        cx.launch(name, Kernel { file: FILE, name, heads }, launch, &args);
    }
}
