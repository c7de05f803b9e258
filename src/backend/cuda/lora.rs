//! LoRA over stacked runs, tile by tile of adapted rows.

use super::Cuda;
use super::context::Context;
use super::geometry::{LORA_ROWS, blocks, blocks2, blocks3};
use super::launch::{Arg, Kernel, LaunchDims, Param, acc, acc_ptr, bits, compute, float, int, long, table, unsigned};
use super::pack::DeviceTables;
use crate::backend::DevicePack;
use crate::backend::ops::{Dropout, LoraBwd, LoraDelta, LoraDeltaBwd, LoraFwd, LoraOps, LoraSite, Op, RunRange};

const FILE: &str = "lora";
/// Columns of the input or output, and of the rank, that a block handles.
const COLUMNS: usize = 256;
const RANKS: usize = 32;
/// Threads of a block of the products that write columns, and of those that write ranks.
const WIDE_BLOCK: u32 = 128;
const NARROW_BLOCK: u32 = 64;
/// Of the depth of a product that writes ranks, what a block takes at a time, and the most blocks that share one.
const SHARE: usize = 128;
const SPLITS: usize = 32;
/// Fewest tickets that there is memory for.
const TICKETS: usize = 1024;
/// Columns and ranks of a block that sums a run's rows into its parameters.
const SUM_COLUMNS: usize = 64;
const SUM_RANKS: usize = 16;

/// The arguments that say what is dropped. None after an error.
fn dropout_args(cx: &mut Context, dropout: Option<Dropout<'_>>) -> Option<[Arg; 5]> {
    let Some(Dropout { p, seeds, site, keys }) = dropout else {
        let null = Arg::null(Param::Table);
        return Some([null, null, bits(0), unsigned(0), float(1.0)]);
    };
    let seeds = cx.cached_list("dropout seeds", bytemuck::cast_slice(seeds))?;
    let keys = cx.cached_list("dropout keys", bytemuck::cast_slice(keys))?;
    let threshold = (p * 2f64.powi(32)) as u32;
    Some([table(seeds), table(keys), bits(site), unsigned(threshold), float(1.0 / (1.0 - p))])
}

/// The arguments that say where A is.
fn a_args(site: LoraSite) -> [Arg; 4] {
    [int(site.rank), int(site.input), long(site.stride), long(site.a)]
}

/// The arguments that say where B is, and what its product is multiplied by.
fn b_args(site: LoraSite) -> [Arg; 5] {
    [int(site.rank), int(site.output), long(site.stride), long(site.b), float(site.scale)]
}

/// The arguments that say which rows are not of so many tiles, which are those of these runs.
fn others(pack: &DeviceTables, runs: RunRange, tiles: usize) -> [Arg; 5] {
    let run = |run: usize| int(run.min(i32::MAX as usize));
    [int(tiles), table(pack.run()), int(pack.len()), run(runs.first), run(runs.end)]
}

/// Blocks that write the zeros of rows of other runs and of the base model.
fn zero_blocks(pack: &DeviceTables, runs: RunRange) -> u32 {
    let ours = pack.host().runs().iter().filter(|(run, _)| runs.contains(*run)).map(|(_, rows)| rows.len());
    if ours.sum::<usize>() == pack.len() { 0 } else { blocks(pack.len().div_ceil(LORA_ROWS))[0] }
}

/// Blocks that share a depth: as many whatever the pack, so that a row's sums are the same bits in any.
fn splits(depth: usize) -> usize {
    let shares = depth.div_ceil(SHARE);
    shares.div_ceil(shares.div_ceil(SPLITS).max(1)).max(1)
}

/// Number of tickets for so many tiles; few sizes, so that they seldom move.
fn tickets(tiles: usize, rank: usize) -> usize {
    (tiles * rank.div_ceil(RANKS)).next_power_of_two().max(TICKETS)
}

/// Most bytes of the scratch in which blocks that share a depth of at most `width` meet, in a pass of so many rows: parts and tickets.
/// None where no depth is shared.
pub fn meeting_bytes(rows: usize, rank: usize, width: usize) -> Option<[usize; 2]> {
    // A smaller depth may have more splits, and a tile may have one row.
    let splits = width.div_ceil(SHARE).min(SPLITS);
    (rank > 0 && splits > 1).then(|| [splits * rows * rank * size_of::<f32>(), tickets(rows, rank) * size_of::<i32>()])
}

/// A product that writes ranks.
struct Narrow {
    depth: usize,
    rank: usize,
    /// Rows of the pack.
    rows: usize,
    /// Tiles of adapted rows.
    tiles: usize,
}

impl Narrow {
    /// The arguments that say where the blocks that share the depth meet. None after an error.
    fn meeting(&self, cx: &mut Context) -> Option<[Arg; 3]> {
        let &Self { depth, rank, rows, tiles } = self;
        if splits(depth) == 1 {
            return Some([Arg::null(Param::Acc), Arg::null(Param::Table), long(0)]);
        }
        let parts = cx.scratch("lora parts", splits(depth) * rows * rank * size_of::<f32>())?;
        // Every launch leaves them as it found them.
        let tickets = cx.cached_list("lora tickets", &vec![0; tickets(tiles, rank)])?;
        Some([acc_ptr(parts), table(tickets), long(rows * rank)])
    }

    fn dims(&self) -> LaunchDims {
        let grid = blocks3(self.tiles, self.rank.div_ceil(RANKS), splits(self.depth));
        LaunchDims { grid, block: NARROW_BLOCK, shared: 0 }
    }
}

/// The launch of a product that writes `width` columns of so many tiles.
fn wide_dims(tiles: usize, width: usize) -> LaunchDims {
    LaunchDims { grid: blocks2(tiles, width.div_ceil(COLUMNS)), block: WIDE_BLOCK, shared: 0 }
}

impl LoraOps for Cuda {
    fn lora_fwd(&mut self, op: LoraFwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack) = (LoraFwd::<Self>::NAME, &mut self.cx, op.pack);
        let LoraSite { rank, input, output, .. } = op.site;
        let Some(dropout) = dropout_args(cx, op.dropout) else { return };
        let (tiles, count) = pack.lora_tiles(op.site.runs);
        let narrow = Narrow { depth: input, rank, rows: pack.len(), tiles: count };
        let Some(meeting) = narrow.meeting(cx) else { return };
        let rows = [acc(op.xa), compute(op.x), acc(op.params), table(tiles)];
        let args = [&rows[..], &others(pack, op.site.runs, count), &meeting, &dropout, &a_args(op.site)].concat();
        let mut dims = narrow.dims();
        dims.grid[0] += zero_blocks(pack, op.site.runs);
        cx.launch(name, Kernel::new(FILE, "lora_fwd_shrink"), dims, &args);
        let Some(y) = op.y else { return };
        let rows = [compute(y), acc(op.xa), acc(op.params), table(tiles)];
        let args = [&rows[..], &b_args(op.site)].concat();
        cx.launch(name, Kernel::new(FILE, "lora_fwd_expand"), wide_dims(count, output), &args);
    }

    fn lora_bwd(&mut self, op: LoraBwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack, site) = (LoraBwd::<Self>::NAME, &mut self.cx, op.pack, op.site);
        let LoraSite { rank, input, output, .. } = site;
        let Some(dropout) = dropout_args(cx, op.dropout) else { return };
        let Some(d_xa) = cx.scratch(name, pack.len() * rank * size_of::<f32>()) else { return };
        let ((tiles, count), (runs, run_count)) = (pack.lora_tiles(site.runs), pack.lora_runs(site.runs));
        let all_tiles = pack.lora_tiles(RunRange::ALL).0;
        let narrow = Narrow { depth: output, rank, rows: pack.len(), tiles: count };
        let Some(meeting) = narrow.meeting(cx) else { return };
        let rows = [acc_ptr(d_xa), compute(op.d_y), acc(op.params), table(tiles)];
        let args = [&rows[..], &meeting, &b_args(site)].concat();
        cx.launch(name, Kernel::new(FILE, "lora_bwd_xa"), narrow.dims(), &args);
        let rows = [acc(op.d_params), compute(op.d_y), acc(op.xa), compute(op.x), acc_ptr(d_xa)];
        let sizes = [int(rank), int(input), int(output)];
        let place = [long(site.stride), long(site.a), long(site.b), float(site.scale)];
        // The runs know their tiles by number among all.
        let args = [&rows[..], &[table(all_tiles), table(runs)], &dropout, &sizes, &place].concat();
        let columns = output.div_ceil(SUM_COLUMNS) + input.div_ceil(SUM_COLUMNS);
        let grid = blocks3(columns, run_count, rank.div_ceil(SUM_RANKS));
        cx.launch(name, Kernel::new(FILE, "lora_bwd_params"), LaunchDims { grid, block: 128, shared: 0 }, &args);
        let Some(d_x) = op.d_x else { return };
        let rows = [acc(d_x), acc_ptr(d_xa), acc(op.params), table(tiles)];
        let args = [&rows[..], &dropout, &a_args(site)].concat();
        cx.launch(name, Kernel::new(FILE, "lora_bwd_x"), wide_dims(count, input), &args);
    }

    fn lora_delta(&mut self, op: LoraDelta<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack) = (LoraDelta::<Self>::NAME, &mut self.cx, op.pack);
        let (tiles, count) = pack.lora_tiles(op.site.runs);
        cx.zero_acc(name, op.out, pack.len() * op.site.output);
        let rows = [acc(op.out), acc(op.xa), acc(op.params), table(tiles)];
        let args = [&rows[..], &b_args(op.site)].concat();
        cx.launch(name, Kernel::new(FILE, name), wide_dims(count, op.site.output), &args);
    }

    fn lora_delta_bwd(&mut self, op: LoraDeltaBwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack, site) = (LoraDeltaBwd::<Self>::NAME, &mut self.cx, op.pack, op.site);
        let LoraSite { rank, output, .. } = site;
        let Some(dropout) = dropout_args(cx, None) else { return };
        let ((tiles, count), (runs, run_count)) = (pack.lora_tiles(site.runs), pack.lora_runs(site.runs));
        let all_tiles = pack.lora_tiles(RunRange::ALL).0;
        let narrow = Narrow { depth: output, rank, rows: pack.len(), tiles: count };
        let Some(meeting) = narrow.meeting(cx) else { return };
        cx.zero_acc(name, op.d_xa, pack.len() * rank);
        let rows = [acc(op.d_xa), compute(op.d_y), acc(op.params), table(tiles)];
        let args = [&rows[..], &meeting, &b_args(site)].concat();
        cx.launch(name, Kernel::new(FILE, "lora_bwd_xa"), narrow.dims(), &args);
        // Of an input of no columns there are no blocks.
        let rows = [acc(op.d_params), compute(op.d_y), acc(op.xa), compute(op.d_y), acc(op.d_xa)];
        let sizes = [int(rank), int(0), int(output)];
        let place = [long(site.stride), long(site.a), long(site.b), float(site.scale)];
        let args = [&rows[..], &[table(all_tiles), table(runs)], &dropout, &sizes, &place].concat();
        let grid = blocks3(output.div_ceil(SUM_COLUMNS), run_count, rank.div_ceil(SUM_RANKS));
        cx.launch(name, Kernel::new(FILE, "lora_bwd_params"), LaunchDims { grid, block: 128, shared: 0 }, &args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_shared_by_many_blocks_and_wholly() {
        for depth in [1, 5, 128, 129, 300, 1024, 4096, 5120, 11008, 28672, 1 << 20] {
            let splits = splits(depth);
            let part = depth.div_ceil(SHARE * splits) * SHARE;
            assert!(
                splits <= SPLITS && part * splits >= depth && part * (splits - 1) < depth,
                "{depth}: {splits} of {part}"
            );
        }
        // 64 rows of LLaMA-2-7B: a block for each of a GPU's 108 to 132 multiprocessors.
        let narrow = Narrow { depth: 4096, rank: 16, rows: 64, tiles: 64 / LORA_ROWS };
        assert_eq!(narrow.dims().grid.iter().product::<u32>(), 128);
    }

    #[test]
    fn plan_has_the_scratch_of_every_depth_up_to_the_widest() {
        for width in [1, 128, 300, 4096, 11008, 14336] {
            let planned = meeting_bytes(100, 8, width).map_or(0, |[parts, _]| parts);
            for depth in 1..=width {
                let parts = if splits(depth) > 1 { splits(depth) * 100 * 8 * size_of::<f32>() } else { 0 };
                assert!(parts <= planned, "{depth} of {width}: {parts} of {planned}");
            }
        }
        let tiles = 100; // of a row each
        assert!(meeting_bytes(100, 8, 4096).expect("shared")[1] >= tickets(tiles, 8) * size_of::<i32>());
    }

    #[test]
    fn constants_are_those_of_the_kernels() {
        let text = include_str!("../../../kernels/lora.cu");
        let warps = NARROW_BLOCK as usize / 32;
        for (name, value) in [
            ("NARROW_WARPS", warps),
            ("NARROW_STEPS", SHARE / 16 / warps),
            ("NARROW_SPLITS", SPLITS),
            ("WIDE_WARPS", WIDE_BLOCK as usize / 32),
        ] {
            assert!(text.contains(&format!("constexpr int {name} = {value};")), "{name} = {value}");
        }
        assert_eq!(COLUMNS, WIDE_BLOCK as usize / 32 * 64);
    }
}
