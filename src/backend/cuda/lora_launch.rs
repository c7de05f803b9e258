//! The launches of LoRAs: those of one input that are alike go through the same, up to [`TOGETHER`] of them.

pub mod gated;

use super::Cuda;
use super::context::Context;
use super::geometry::{LORA_ROWS, blocks, blocks3};
use super::launch::{Arg, Kernel, LaunchDims, Param, acc_ptr, bits, float, int, long, table, unsigned};
use super::memory::DevicePtr;
use super::pack::DeviceTables;
use crate::backend::DevicePack;
use crate::backend::ops::{AttentionBwd, Dropout, LoraSite, RunRange};
use crate::backend::scratch::{COLUMNS, RANKS, TOGETHER, lora_tickets, splits};

const FILE: &str = "lora";
/// Of the 64 columns of a warp those side by side.
const HALF: usize = 32;
/// Threads of a block of the products that write columns, and of those that write ranks.
const WIDE_BLOCK: u32 = 128;
const NARROW_BLOCK: u32 = 64;
/// Columns and ranks of a block that sums a run's rows into its parameters.
const SUM_COLUMNS: usize = 64;
const SUM_RANKS: usize = 16;

/// A LoRA of a pass.
pub struct Lora {
    common: Common,
    /// `A x [N, R]`.
    xa: Arg,
    /// `[N, output]`: what is added to, or in a backward its gradient; none where only `xa` is wanted.
    y: Option<Arg>,
    output: usize,
    a: usize,
    b: usize,
    /// Number of its dropout.
    draw: u64,
}

/// What the LoRAs of a launch have in common.
#[derive(Clone, Copy, PartialEq)]
struct Common {
    /// `[N, input]`.
    x: Arg,
    /// `[runs, stride]`.
    params: Arg,
    /// `[runs, stride]`, of a backward, and whether it is added to.
    d_params: Option<Arg>,
    accumulate: bool,
    rows: Rows,
    rank: usize,
    input: usize,
    stride: usize,
    scale: f64,
    /// Whether the rank and where matrices begin are multiples of 4.
    in_vectors: bool,
    /// Seeds, keys, threshold and factor.
    dropout: [Arg; 4],
}

/// The rows of a pack that are of some runs.
#[derive(Clone, Copy, PartialEq)]
struct Rows {
    /// Number N of all rows, and the run of each.
    count: usize,
    run_of: DevicePtr,
    /// Whether others are among them.
    others: bool,
    runs: RunRange,
    /// Tiles of all runs, and of these.
    all_tiles: DevicePtr,
    tiles: (DevicePtr, usize),
    by_run: (DevicePtr, usize),
}

impl Rows {
    fn new(pack: &DeviceTables, runs: RunRange) -> Self {
        let ours = pack.host().runs().iter().filter(|(run, _)| runs.contains(*run)).map(|(_, rows)| rows.len());
        Self {
            count: pack.len(),
            run_of: pack.run(),
            others: ours.sum::<usize>() < pack.len(),
            runs,
            all_tiles: pack.lora_tiles(RunRange::ALL).0,
            tiles: pack.lora_tiles(runs),
            by_run: pack.lora_runs(runs),
        }
    }
}

/// Addresses of a LoRA.
pub struct Operands {
    /// `[N, input]`.
    pub x: Arg,
    /// `[runs, stride]`.
    pub params: Arg,
    /// `[runs, stride]`, in a backward set or, if `accumulate`, added to.
    pub d_params: Option<Arg>,
    /// See [`Operands::d_params`].
    pub accumulate: bool,
    /// `[N, R]`, set in a forward.
    pub xa: Arg,
    /// `[N, output]`: what is added to, or in a backward its gradient; none where only `xa` is wanted.
    pub y: Option<Arg>,
}

impl Lora {
    /// One whose dropout's tables are on the device. None after an error.
    pub fn new(
        cx: &mut Context,
        Operands { x, params, d_params, accumulate, xa, y }: Operands,
        pack: &DeviceTables,
        site: LoraSite,
        dropout: Option<Dropout<'_>>,
    ) -> Option<Self> {
        let LoraSite { a, b, stride, rank, input, output, scale, runs } = site;
        let draw = dropout.map_or(0, |dropout| dropout.site);
        let dropout = dropout_args(cx, dropout)?;
        let (rows, in_vectors) = (Rows::new(pack, runs), site.in_vectors());
        let common = Common { x, params, d_params, accumulate, rows, rank, input, stride, scale, in_vectors, dropout };
        Some(Self { common, xa, y, output, a, b, draw })
    }

    /// What it reads and writes.
    pub fn args(&self) -> Vec<Arg> {
        let Self { common: Common { x, params, d_params, .. }, xa, y, .. } = *self;
        [x, params, xa].into_iter().chain(d_params).chain(y).collect()
    }

    /// Whether one launch serves this and the one after it, which the gradients of one A must not be.
    fn goes_with(&self, next: &Self) -> bool {
        self.common == next.common && self.a != next.a && self.y.is_some() == next.y.is_some()
    }
}

/// The arguments that say what is dropped, but for the number of the projection. None after an error.
fn dropout_args(cx: &mut Context, dropout: Option<Dropout<'_>>) -> Option<[Arg; 4]> {
    let Some(Dropout { p, seeds, keys, .. }) = dropout else {
        let null = Arg::null(Param::Table);
        return Some([null, null, unsigned(0), float(1.0)]);
    };
    let seeds = cx.cached_list("dropout seeds", bytemuck::cast_slice(seeds))?;
    let keys = cx.cached_list("dropout keys", bytemuck::cast_slice(keys))?;
    Some([table(seeds), table(keys), unsigned((p * 2f64.powi(32)) as u32), float(1.0 / (1.0 - p))])
}

/// LoRAs that go through the same launches.
#[derive(Clone, Copy)]
struct Group<'a> {
    loras: &'a [Lora],
    common: &'a Common,
}

/// LoRAs in order, as many as may be at a time.
fn groups(loras: &[Lora]) -> impl Iterator<Item = Group<'_>> {
    let alike = loras.chunk_by(Lora::goes_with).flat_map(|alike| alike.chunks(TOGETHER));
    alike.map(|loras| Group { loras, common: &loras[0].common })
}

impl Group<'_> {
    /// An argument of each; those that are not there are never read.
    fn each(&self, arg: impl Fn(&Lora) -> Arg) -> [Arg; TOGETHER] {
        std::array::from_fn(|i| arg(&self.loras[i.min(self.loras.len() - 1)]))
    }

    fn y(&self) -> [Arg; TOGETHER] {
        self.each(|lora| lora.y.unwrap_or(Arg::null(Param::Compute)))
    }

    fn outputs(&self) -> impl Iterator<Item = usize> {
        self.loras.iter().map(|lora| lora.output)
    }

    /// Elements of `[N, R]`.
    fn pitch(&self) -> usize {
        self.common.rows.count * self.common.rank
    }

    /// The workspace of so many blocks that share a depth as arguments: partial sums, tickets, elements of a LoRA's part. None after an
    /// error.
    fn workspace(&self, cx: &mut Context, blocks: usize) -> Option<[Arg; 3]> {
        let bytes = self.loras.len() * blocks * self.pitch() * size_of::<f32>();
        let parts = cx.scratch("lora parts", bytes)?;
        // Every launch leaves them as it found them.
        let tickets =
            cx.cached_list("lora tickets", &vec![0; lora_tickets(self.common.rows.tiles.1, self.common.rank)])?;
        Some([acc_ptr(parts), table(tickets), long(self.pitch())])
    }

    /// That of a product that writes ranks, of which a single block needs none. None after an error.
    fn narrow_workspace(&self, cx: &mut Context, depth: usize) -> Option<[Arg; 3]> {
        match splits(depth) {
            1 => Some([Arg::null(Param::Acc), Arg::null(Param::Table), long(self.pitch())]),
            splits => self.workspace(cx, splits),
        }
    }

    /// The launch of a product that writes ranks, of so many stretches of rows.
    fn narrow_dims(&self, stretches: usize, depth: usize) -> LaunchDims {
        let grid = blocks3(stretches, self.common.rank.div_ceil(RANKS) * self.loras.len(), splits(depth));
        LaunchDims { grid, block: NARROW_BLOCK, shared: 0 }
    }

    /// The seeds, the numbers of the projections, and the rest that says what is dropped.
    fn dropout(&self) -> [Arg; 7] {
        let [seeds, keys, threshold, factor] = self.common.dropout;
        let [first, second, third] = self.each(|lora| bits(lora.draw));
        [seeds, keys, first, second, third, threshold, factor]
    }

    /// `xa`. None after an error.
    fn shrink(&self, cx: &mut Context, op: &'static str) -> Option<()> {
        let &Common { x, params, rows, rank, input, stride, .. } = self.common;
        let workspace = self.narrow_workspace(cx, input)?;
        let tiles = table(rows.tiles.0);
        let run = |run: usize| int(run.min(i32::MAX as usize));
        let others = [table(rows.run_of), int(rows.count), run(rows.runs.first), run(rows.runs.end)];
        let a = self.each(|lora| long(lora.a));
        let sizes = [int(rank), int(input), long(stride)];
        let read = [x, params, tiles, int(rows.tiles.1)];
        let xa = self.each(|lora| lora.xa);
        let args = [&xa[..], &read, &others, &workspace, &self.dropout(), &sizes, &a].concat();
        let zeros = if rows.others { rows.count.div_ceil(LORA_ROWS) } else { 0 };
        let dims = self.narrow_dims(rows.tiles.1 + zeros, input);
        cx.launch(op, Kernel::new(FILE, "lora_fwd_shrink"), dims, &args);
        Some(())
    }

    /// What is added to `y`.
    fn expand(&self, cx: &mut Context, op: &'static str, Rotations { count, angles, half }: Rotations) {
        let &Common { params, rows, rank, stride, scale, .. } = self.common;
        let (tiles, xa) = (table(rows.tiles.0), self.each(|lora| lora.xa));
        let (output, b) = (self.each(|lora| int(lora.output)), self.each(|lora| long(lora.b)));
        let rotated = [&angles[..], &[count, half].map(int)].concat();
        let of_b = [&[int(rank)], &output[..], &[long(stride)], &b, &[float(scale)]].concat();
        let args = [&self.y()[..], &xa, &[params, tiles], &rotated, &of_b];
        let widest = self.outputs().max().unwrap_or(0).div_ceil(COLUMNS);
        let dims = LaunchDims { grid: blocks3(rows.tiles.1, widest, self.loras.len()), block: WIDE_BLOCK, shared: 0 };
        cx.launch(op, Kernel::new(FILE, "lora_fwd_expand"), dims, &args.concat());
    }

    /// `d_xa [LoRAs, N, R]`. None after an error.
    fn backward_xa(&self, cx: &mut Context, op: &'static str, d_xa: Arg) -> Option<()> {
        let &Common { params, rows, rank, stride, scale, .. } = self.common;
        let deepest = self.outputs().max()?;
        let workspace = self.narrow_workspace(cx, deepest)?;
        let (output, b) = (self.each(|lora| int(lora.output)), self.each(|lora| long(lora.b)));
        let args = [&[d_xa], &self.y()[..], &[params, table(rows.tiles.0)], &workspace, &[int(rank)], &output];
        let args = [&args.concat()[..], &[long(stride)], &b, &[float(scale)]].concat();
        cx.launch(op, Kernel::new(FILE, "lora_bwd_xa"), self.narrow_dims(rows.tiles.1, deepest), &args);
        Some(())
    }

    /// The same in memory of its own. None after an error.
    fn backward_xa_apart(&self, cx: &mut Context, op: &'static str) -> Option<Arg> {
        let d_xa = acc_ptr(cx.scratch("lora_bwd", self.loras.len() * self.pitch() * size_of::<f32>())?);
        self.backward_xa(cx, op, d_xa).map(|()| d_xa)
    }

    /// What the gradients of the parameters are added to, or else written to; what is added up to the gradient of the input.
    fn summed(&self, d_x: Option<InputGradient>) -> [Arg; 7] {
        let &Common { d_params, accumulate, .. } = self.common;
        let [d_params, sums_to] = [d_params, d_x.map(|d_x| d_x.d_x)].map(|d| d.unwrap_or(Arg::null(Param::Acc)));
        let none = Terms { at: Arg::null(Param::Compute), count: 0, len: 0, adds: true };
        let Terms { at, count, len, adds } = d_x.and_then(|d_x| d_x.terms).unwrap_or(none);
        [d_params, int(usize::from(accumulate)), sums_to, at, int(count), long(len), int(usize::from(adds))]
    }

    /// Tiles of all runs and of these, and those by run.
    fn tiles(&self) -> [Arg; 5] {
        let rows = self.common.rows;
        let [all, tiles, by_run] = [rows.all_tiles, rows.tiles.0, rows.by_run.0].map(table);
        [all, tiles, int(rows.tiles.1), by_run, int(rows.by_run.1)]
    }

    /// The launch of the gradients of the parameters and of the input.
    fn inputs_dims(&self, input: usize, of_x: bool) -> LaunchDims {
        let &Common { rows, rank, .. } = self.common;
        let of_a = input.div_ceil(SUM_COLUMNS);
        let columns: usize = self.outputs().map(|output| output.div_ceil(SUM_COLUMNS) + of_a).sum();
        let sums = columns * rank.div_ceil(SUM_RANKS) * rows.by_run.1;
        let of_x = if of_x { rows.tiles.1 * input.div_ceil(COLUMNS) } else { 0 };
        LaunchDims { grid: blocks(sums + of_x), block: WIDE_BLOCK, shared: 0 }
    }

    /// The gradients of the parameters and of the input, which may have no columns, from `d_xa`.
    fn backward_inputs(&self, cx: &mut Context, op: &'static str, d_xa: Arg, d_x: Option<InputGradient>, input: usize) {
        let &Common { x, params, rank, stride, scale, .. } = self.common;
        let (null, no_sums) = (Arg::null(Param::Compute), [Arg::null(Param::Acc), int(0)]);
        let (made, sums) = match d_x.and_then(|d_x| d_x.made) {
            None => ([null; 2], no_sums),
            Some(OfGradient::Rounded(out)) => ([out, null], no_sums),
            Some(OfGradient::Heads { rounded, z, delta, head_dim }) => ([rounded, z], [delta, int(head_dim)]),
        };
        let rows_read = [&self.y()[..], &self.each(|lora| lora.xa), &[x, d_xa, long(self.pitch()), params]].concat();
        let sizes = [int(self.loras.len()), int(rank), int(input)];
        let (output, [a, b]) =
            (self.each(|lora| int(lora.output)), [self.each(|lora| long(lora.a)), self.each(|lora| long(lora.b))]);
        let places = [&sizes[..], &output, &[long(stride)], &a, &b, &[float(scale)]].concat();
        let args = [&self.summed(d_x)[..], &made, &sums, &rows_read, &self.tiles(), &self.dropout(), &places].concat();
        let dims = self.inputs_dims(input, d_x.is_some());
        cx.launch(op, Kernel::new(FILE, "lora_bwd_inputs"), dims, &args);
    }
}

/// Where the gradient of an input goes.
#[derive(Clone, Copy)]
pub struct InputGradient {
    /// `[N, input]`, added to.
    pub d_x: Arg,
    /// What is added too, beside the first launch's LoRAs.
    pub terms: Option<Terms>,
    /// What is made of it. Then it is left nowhere itself.
    pub made: Option<OfGradient>,
}

/// What is made of the gradient of an input where its last summand is added.
#[derive(Clone, Copy)]
pub enum OfGradient {
    /// `[N, input]`, rounded, which may lie where the gradient does.
    Rounded(Arg),
    /// Of attention's output what its backward begins with.
    Heads {
        /// The gradient, rounded `[N, input]`.
        rounded: Arg,
        /// The input `[N, input]`.
        z: Arg,
        /// Sums of their products over heads `[N, input / head_dim]`.
        delta: Arg,
        /// Elements of a head.
        head_dim: usize,
    },
}

/// Terms of the gradient of an input.
#[derive(Clone, Copy)]
pub struct Terms {
    /// `[count, len]` of the compute dtype.
    pub at: Arg,
    /// Number of terms.
    pub count: usize,
    /// Elements of a term.
    pub len: usize,
    /// Whether they are added to what is there, not put in its place.
    pub adds: bool,
}

/// Whether the first launch of the backward of these adds to the input's gradient in all rows.
pub fn adds_terms(loras: &[Lora]) -> bool {
    loras.first().is_some_and(|lora| !lora.common.rows.others)
}

/// The forward of LoRAs, of which the first have rotations, and whose `xa` may be there already.
pub fn forward(cx: &mut Context, op: &'static str, loras: &[Lora], xa: Option<Arg>, rotations: Rotations) {
    for group in groups(loras) {
        let shrunk = if xa.is_some() { Some(()) } else { group.shrink(cx, op) };
        if shrunk.is_some() && group.loras[0].y.is_some() {
            group.expand(cx, op, rotations);
        }
    }
}

/// How the outputs of the first LoRAs of a launch are rotated.
#[derive(Clone, Copy, PartialEq)]
pub struct Rotations {
    /// Number of those LoRAs.
    pub count: usize,
    /// Positions and the table of cosines and sines.
    pub angles: [Arg; 2],
    /// Half of a head.
    pub half: usize,
}

impl Default for Rotations {
    fn default() -> Self {
        Self { count: 0, angles: [Arg::null(Param::Table), Arg::null(Param::Acc)], half: 0 }
    }
}

/// Whether the launch of these, queries, keys and values in all rows, may have one more rotation, of this tensor `[len]`.
pub fn rotates(loras: &[Lora], before: Rotations, next: Rotations, (tensor, len): (Arg, usize)) -> bool {
    let alike = before.count == 0 || before == Rotations { count: before.count, ..next };
    let one_launch = loras.len() == TOGETHER && groups(loras).count() == 1 && adds_terms(loras);
    let of = |lora: &Lora| lora.y == Some(tensor) && lora.common.rows.count * lora.output == len;
    alike && one_launch && next.half.is_multiple_of(HALF) && loras.get(before.count).is_some_and(of)
}

/// Whether these are of a gate and an up-projection `[len]`, of all rows, and go through the same launches.
pub fn makes_gated(loras: &[Lora], gate_up: [Arg; 2], len: usize) -> bool {
    let [gate, up] = loras else { return false };
    let alike = gate.goes_with(up) && gate.output == up.output && !gate.common.rows.others;
    alike && [gate.y, up.y] == gate_up.map(Some) && gate.common.rows.count * gate.output == len
}

/// Whether the backward of these adds to the input's gradient `[len]` by one launch that goes over all rows, and can make this of it,
/// if anything.
pub fn makes_input_gradient(loras: &[Lora], len: usize, made: Option<OfGradient>) -> bool {
    let one_launch = groups(loras).count() == 1 && adds_terms(loras);
    let fits = |Common { rows, input, in_vectors, .. }: &Common| {
        let whole = match made {
            None | Some(OfGradient::Rounded(_)) => true,
            Some(OfGradient::Heads { head_dim, .. }) => {
                *in_vectors && AttentionBwd::<Cuda>::sums_heads(head_dim, *input)
            }
        };
        whole && rows.count * input == len
    };
    one_launch && loras.first().is_some_and(|lora| fits(&lora.common))
}

/// The backward of LoRAs, which adds to `d_x [N, input]`, unless nobody needs it; their `d_xa` may be there already.
pub fn backward(cx: &mut Context, op: &'static str, loras: &[Lora], d_xa: Option<Arg>, mut d_x: Option<InputGradient>) {
    for group in groups(loras) {
        let Some(d_xa) = d_xa.or_else(|| group.backward_xa_apart(cx, op)) else { return };
        group.backward_inputs(cx, op, d_xa, d_x, group.common.input);
        d_x.iter_mut().for_each(|d_x| d_x.terms = None);
    }
}

/// The backward of B alone, with the gradient `d_xa [N, R]` of what it reads.
pub fn backward_b(cx: &mut Context, op: &'static str, lora: &Lora, d_xa: Arg) {
    let group = Group { loras: std::slice::from_ref(lora), common: &lora.common };
    if group.backward_xa(cx, op, d_xa).is_some() {
        group.backward_inputs(cx, op, d_xa, None, 0);
    }
}

/// `out [N, output] = scale * B xa` of the rows of some runs.
pub fn delta(cx: &mut Context, op: &'static str, [out, xa, params]: [Arg; 3], pack: &DeviceTables, site: LoraSite) {
    let LoraSite { rank, output, stride, b, scale, runs, .. } = site;
    let (tiles, count) = pack.lora_tiles(runs);
    let args = [out, xa, params, table(tiles), int(rank), int(output), long(stride), long(b), float(scale)];
    let dims = LaunchDims { grid: blocks3(count, output.div_ceil(COLUMNS), 1), block: WIDE_BLOCK, shared: 0 };
    cx.launch(op, Kernel::new(FILE, op), dims, &args);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::scratch::{SHARE, SPLITS, split_k_bytes};

    #[test]
    fn depths_are_shared_by_many_blocks_and_wholly() {
        for depth in [1, 5, 128, 129, 300, 1024, 4096, 5120, 11008, 28672, 1 << 20] {
            let splits = splits(depth);
            let part = if splits <= SPLITS && depth <= SPLITS * SHARE { SHARE } else { COLUMNS };
            assert!(part * splits >= depth && part * (splits - 1) < depth, "{depth}: {splits} of {part}");
        }
        // 64 rows of LLaMA-2-7B: a block for each of a GPU's 108 to 132 multiprocessors.
        assert_eq!(64 / LORA_ROWS * splits(4096), 128);
    }

    #[test]
    fn plan_has_the_scratch_of_every_depth_up_to_the_widest() {
        for width in [1, 128, 300, 4096, 11008, 14336, 28672] {
            let planned = split_k_bytes(100, 8, width).map_or(0, |[parts, _]| parts);
            for depth in 1..=width {
                let splits = splits(depth);
                let parts = if splits > 1 { TOGETHER * splits * 100 * 8 * size_of::<f32>() } else { 0 };
                assert!(parts <= planned, "{depth} of {width}: {parts} of {planned}");
            }
        }
        let tiles = 100; // of a row each
        assert!(split_k_bytes(100, 8, 4096).expect("shared")[1] >= lora_tickets(tiles, 8) * size_of::<i32>());
    }

    #[test]
    fn constants_are_those_of_the_kernels() {
        let text = include_str!("../../../kernels/lora.cuh");
        let warps = NARROW_BLOCK as usize / 32;
        for (name, value) in [
            ("NARROW_WARPS", warps),
            ("NARROW_STEPS", SHARE / 16 / warps),
            ("NARROW_SPLITS", SPLITS),
            ("WIDE_WARPS", WIDE_BLOCK as usize / 32),
            ("NEIGHBOURS", HALF),
        ] {
            assert!(text.contains(&format!("constexpr int {name} = {value};")), "{name} = {value}");
        }
        // What is made in a block of columns is a part of the depth of what reads it.
        assert_eq!([COLUMNS, 2 * SHARE], [WIDE_BLOCK as usize / 32 * 64; 2]);
    }
}
