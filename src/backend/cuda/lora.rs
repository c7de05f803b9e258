//! LoRA over stacked runs, tile by tile of adapted rows.

use super::context::{Context, Kernel, Shape};
use super::geometry::{blocks2, blocks3};
use super::launch::{Arg, BLOCK, bits, float, floats, int, long, real, table, unsigned, wide};
use super::memory::Buffer;
use super::pack::Pack;
use crate::backend::{Dropout, LoraSite};

const FILE: &str = "lora";
/// Columns of the wide side, and of the rank, that a block handles.
const COLUMNS: usize = 512;
const RANKS: usize = 32;
/// The same where a block sums a run's rows into its parameters.
const SUM_COLUMNS: usize = 64;
const SUM_RANKS: usize = 16;

fn check(op: &'static str, site: LoraSite, params: &Buffer<f32>, pack: &Pack) {
    let LoraSite { a, b, stride, rank, input, output, .. } = site;
    assert!(a + rank * input <= stride, "{op}: A ends at {}, a run has {stride}", a + rank * input);
    assert!(b + output * rank <= stride, "{op}: B ends at {}, a run has {stride}", b + output * rank);
    params.need(op, "params", pack.runs() * stride);
}

/// The arguments that say what is dropped.
fn dropped(cx: &mut Context, op: &'static str, dropout: Option<Dropout<'_>>, pack: &Pack) -> Option<[Arg; 5]> {
    let Some(Dropout { p, seeds, site, keys }) = dropout else {
        return Some([table(0), table(0), bits(0), unsigned(0), float(1.0)]);
    };
    assert!((0.0..1.0).contains(&p), "{op}: dropout is {p}, must be in [0, 1)");
    assert!(seeds.len() >= pack.runs(), "{op}: {} dropout seeds, needs {}", seeds.len(), pack.runs());
    assert!(keys.len() >= pack.len(), "{op}: {} dropout keys, needs {}", keys.len(), pack.len());
    let seeds = cx.numbers("dropout seeds", bytemuck::cast_slice(seeds))?;
    let keys = cx.numbers("dropout keys", bytemuck::cast_slice(keys))?;
    let threshold = (p * 2f64.powi(32)) as u32;
    Some([table(seeds), table(keys), bits(site), unsigned(threshold), float(1.0 / (1.0 - p))])
}

/// The arguments that say where A is.
fn of_a(site: LoraSite) -> [Arg; 4] {
    [int(site.rank), int(site.input), long(site.stride), long(site.a)]
}

/// The arguments that say where B is, and what its product is multiplied by.
fn of_b(site: LoraSite) -> [Arg; 5] {
    [int(site.rank), int(site.output), long(site.stride), long(site.b), float(site.scale)]
}

fn over(grid: [u32; 3]) -> Shape {
    Shape { grid, block: BLOCK, shared: 0 }
}

/// See [`Backend::lora_fwd`](crate::backend::Backend::lora_fwd).
#[allow(clippy::too_many_arguments)]
pub fn fwd<R>(
    cx: &mut Context,
    y: &Buffer<R>,
    xa: &Buffer<f32>,
    x: &Buffer<R>,
    params: &Buffer<f32>,
    pack: &Pack,
    site: LoraSite,
    dropout: Option<Dropout<'_>>,
) {
    let op = "lora_fwd";
    let LoraSite { rank, input, output, .. } = site;
    check(op, site, params, pack);
    y.need(op, "y", pack.len() * output);
    xa.need(op, "xa", pack.len() * rank);
    x.need(op, "x", pack.len() * input);
    let Some(dropped) = dropped(cx, op, dropout, pack) else { return };
    let (tiles, count) = pack.lora_tiles();
    cx.zero(op, xa, pack.len() * rank);
    let args = [&[wide(xa), real(x), wide(params), table(tiles)], &dropped[..], &of_a(site)].concat();
    cx.launch(op, Kernel::new(FILE, "lora_fwd_shrink"), over(blocks2(count, rank.div_ceil(RANKS))), &args);
    let args = [&[real(y), wide(xa), wide(params), table(tiles)], &of_b(site)[..]].concat();
    let grid = blocks2(count, output.div_ceil(COLUMNS));
    cx.launch(op, Kernel::new(FILE, "lora_fwd_expand"), over(grid), &args);
}

/// See [`Backend::lora_bwd`](crate::backend::Backend::lora_bwd).
#[allow(clippy::too_many_arguments)]
pub fn bwd<R>(
    cx: &mut Context,
    d_params: &Buffer<f32>,
    d_x: Option<&Buffer<f32>>,
    d_y: &Buffer<R>,
    xa: &Buffer<f32>,
    x: &Buffer<R>,
    params: &Buffer<f32>,
    pack: &Pack,
    site: LoraSite,
    dropout: Option<Dropout<'_>>,
) {
    let op = "lora_bwd";
    let LoraSite { rank, input, output, stride, .. } = site;
    check(op, site, params, pack);
    d_params.need(op, "d_params", pack.runs() * stride);
    d_y.need(op, "d_y", pack.len() * output);
    xa.need(op, "xa", pack.len() * rank);
    x.need(op, "x", pack.len() * input);
    if let Some(d_x) = d_x {
        d_x.need(op, "d_x", pack.len() * input);
    }
    let Some(dropped) = dropped(cx, op, dropout, pack) else { return };
    let Some(d_xa) = cx.scratch(op, pack.len() * rank * size_of::<f32>()) else { return };
    let ((tiles, count), (runs, run_count)) = (pack.lora_tiles(), pack.lora_runs());
    let args = [&[floats(d_xa), real(d_y), wide(params), table(tiles)], &of_b(site)[..]].concat();
    cx.launch(op, Kernel::new(FILE, "lora_bwd_xa"), over(blocks2(count, rank.div_ceil(RANKS))), &args);
    let rows = [wide(d_params), real(d_y), wide(xa), real(x), floats(d_xa), table(tiles), table(runs)];
    let sizes = [int(rank), int(input), int(output), long(site.stride), long(site.a), long(site.b), float(site.scale)];
    let args = [&rows[..], &dropped, &sizes].concat();
    let columns = output.div_ceil(SUM_COLUMNS) + input.div_ceil(SUM_COLUMNS);
    let grid = blocks3(columns, run_count, rank.div_ceil(SUM_RANKS));
    cx.launch(op, Kernel::new(FILE, "lora_bwd_params"), Shape { grid, block: 128, shared: 0 }, &args);
    let Some(d_x) = d_x else { return };
    let args = [&[wide(d_x), floats(d_xa), wide(params), table(tiles)], &dropped[..], &of_a(site)].concat();
    let grid = blocks2(count, input.div_ceil(COLUMNS));
    cx.launch(op, Kernel::new(FILE, "lora_bwd_x"), over(grid), &args);
}

/// See [`Backend::lora_delta`](crate::backend::Backend::lora_delta).
pub fn delta(cx: &mut Context, out: &Buffer<f32>, xa: &Buffer<f32>, params: &Buffer<f32>, pack: &Pack, site: LoraSite) {
    let op = "lora_delta";
    let LoraSite { rank, output, .. } = site;
    check(op, site, params, pack);
    out.need(op, "out", pack.len() * output);
    xa.need(op, "xa", pack.len() * rank);
    let (tiles, count) = pack.lora_tiles();
    cx.zero(op, out, pack.len() * output);
    let args = [&[wide(out), wide(xa), wide(params), table(tiles)], &of_b(site)[..]].concat();
    let grid = blocks2(count, output.div_ceil(COLUMNS));
    cx.launch(op, Kernel::new(FILE, op), over(grid), &args);
}
