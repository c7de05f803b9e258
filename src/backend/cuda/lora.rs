//! LoRA over stacked runs, tile by tile of adapted rows.

use super::Cuda;
use super::context::Context;
use super::geometry::{blocks2, blocks3};
use super::launch::{Arg, Kernel, LaunchDims, Param, acc, acc_ptr, bits, compute, float, int, long, table, unsigned};
use crate::backend::ops::{Dropout, LoraBwd, LoraDelta, LoraDeltaBwd, LoraFwd, LoraOps, LoraSite, Op, RunRange};

const FILE: &str = "lora";
/// Columns of the input or output, and of the rank, that a block handles.
const COLUMNS: usize = 512;
const RANKS: usize = 32;
/// The same where a block sums a run's rows into its parameters.
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

impl LoraOps for Cuda {
    fn lora_fwd(&mut self, op: LoraFwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack) = (LoraFwd::<Self>::NAME, &mut self.cx, op.pack);
        let LoraSite { rank, output, .. } = op.site;
        let Some(dropout) = dropout_args(cx, op.dropout) else { return };
        let (tiles, count) = pack.lora_tiles(op.site.runs);
        cx.zero_acc(name, op.xa, pack.len() * rank);
        let rows = [acc(op.xa), compute(op.x), acc(op.params), table(tiles)];
        let args = [&rows[..], &dropout, &a_args(op.site)].concat();
        let dims = LaunchDims::new(blocks2(count, rank.div_ceil(RANKS)));
        cx.launch(name, Kernel::new(FILE, "lora_fwd_shrink"), dims, &args);
        let Some(y) = op.y else { return };
        let rows = [compute(y), acc(op.xa), acc(op.params), table(tiles)];
        let args = [&rows[..], &b_args(op.site)].concat();
        let dims = LaunchDims::new(blocks2(count, output.div_ceil(COLUMNS)));
        cx.launch(name, Kernel::new(FILE, "lora_fwd_expand"), dims, &args);
    }

    fn lora_bwd(&mut self, op: LoraBwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack, site) = (LoraBwd::<Self>::NAME, &mut self.cx, op.pack, op.site);
        let LoraSite { rank, input, output, .. } = site;
        let Some(dropout) = dropout_args(cx, op.dropout) else { return };
        let Some(d_xa) = cx.scratch(name, pack.len() * rank * size_of::<f32>()) else { return };
        let ((tiles, count), (runs, run_count)) = (pack.lora_tiles(site.runs), pack.lora_runs(site.runs));
        let all_tiles = pack.lora_tiles(RunRange::ALL).0;
        let rows = [acc_ptr(d_xa), compute(op.d_y), acc(op.params), table(tiles)];
        let args = [&rows[..], &b_args(site)].concat();
        let dims = LaunchDims::new(blocks2(count, rank.div_ceil(RANKS)));
        cx.launch(name, Kernel::new(FILE, "lora_bwd_xa"), dims, &args);
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
        let dims = LaunchDims::new(blocks2(count, input.div_ceil(COLUMNS)));
        cx.launch(name, Kernel::new(FILE, "lora_bwd_x"), dims, &args);
    }

    fn lora_delta(&mut self, op: LoraDelta<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack) = (LoraDelta::<Self>::NAME, &mut self.cx, op.pack);
        let (tiles, count) = pack.lora_tiles(op.site.runs);
        cx.zero_acc(name, op.out, pack.len() * op.site.output);
        let rows = [acc(op.out), acc(op.xa), acc(op.params), table(tiles)];
        let args = [&rows[..], &b_args(op.site)].concat();
        let dims = LaunchDims::new(blocks2(count, op.site.output.div_ceil(COLUMNS)));
        cx.launch(name, Kernel::new(FILE, name), dims, &args);
    }

    fn lora_delta_bwd(&mut self, op: LoraDeltaBwd<'_, Self>) {
        self.begin(&op);
        let (name, cx, pack, site) = (LoraDeltaBwd::<Self>::NAME, &mut self.cx, op.pack, op.site);
        let LoraSite { rank, output, .. } = site;
        let Some(dropout) = dropout_args(cx, None) else { return };
        let ((tiles, count), (runs, run_count)) = (pack.lora_tiles(site.runs), pack.lora_runs(site.runs));
        let all_tiles = pack.lora_tiles(RunRange::ALL).0;
        cx.zero_acc(name, op.d_xa, pack.len() * rank);
        let rows = [acc(op.d_xa), compute(op.d_y), acc(op.params), table(tiles)];
        let args = [&rows[..], &b_args(site)].concat();
        let dims = LaunchDims::new(blocks2(count, rank.div_ceil(RANKS)));
        cx.launch(name, Kernel::new(FILE, "lora_bwd_xa"), dims, &args);
        // Of an input of no columns there are no blocks.
        let rows = [acc(op.d_params), compute(op.d_y), acc(op.xa), compute(op.d_y), acc(op.d_xa)];
        let sizes = [int(rank), int(0), int(output)];
        let place = [long(site.stride), long(site.a), long(site.b), float(site.scale)];
        let args = [&rows[..], &[table(all_tiles), table(runs)], &dropout, &sizes, &place].concat();
        let grid = blocks3(output.div_ceil(SUM_COLUMNS), run_count, rank.div_ceil(SUM_RANKS));
        cx.launch(name, Kernel::new(FILE, "lora_bwd_params"), LaunchDims { grid, block: 128, shared: 0 }, &args);
    }
}
