//! Learned scales, tile by tile of adapted rows.

use super::Cuda;
use super::geometry::blocks2;
use super::launch::{Arg, Kernel, LaunchDims, Param, acc, compute, compute_ptr, float, int, long, table};
use super::memory::AccBuffer;
use crate::backend::TensorMut;
use crate::backend::ops::{LoraSite, Op, RunRange, ScaleBwd, ScaleDelta, ScaleFwd, ScaleOps, ScaleSite, WeightNorm};

const FILE: &str = "scale";
/// Rows of a weight that a block takes the norms of, a warp each.
const NORMS: usize = 8;
/// Columns that a block handles, and that it sums.
const COLUMNS: usize = 2048;
const SUM_COLUMNS: usize = 128;

/// The arguments that say where the factors are.
fn site_args(site: ScaleSite) -> [Arg; 5] {
    let (norm_stride, norm_at) = site.norms.map_or((0, 0), |norms| (norms.stride, norms.at));
    [int(site.width), long(site.stride), long(site.at), long(norm_stride), long(norm_at)]
}

/// The factors and what they are divided by.
fn factor_args(params: &AccBuffer, norms: Option<&AccBuffer>) -> [Arg; 2] {
    [acc(params), norms.map_or_else(|| Arg::null(Param::Acc), acc)]
}

impl ScaleOps for Cuda {
    fn weight_norm(&mut self, op: WeightNorm<'_, Self>) {
        self.begin(&op);
        let WeightNorm { norms, weight, params, site, to, runs } = op;
        let LoraSite { rank, input, output, stride, a, b, scale, .. } = site;
        let (first, end) = (site.runs.first.min(runs), site.runs.end.min(runs));
        let Some(weight) = weight.elements(&mut self.cx, WeightNorm::<Self>::NAME) else { return };
        let buffers = [acc(norms), compute_ptr(weight), acc(params), int(first)];
        let sizes = [int(rank), int(input), int(output), long(stride), long(a), long(b), float(scale)];
        let args = [&buffers[..], &sizes, &[long(to.stride), long(to.at)]].concat();
        let dims = LaunchDims::new(blocks2(output.div_ceil(NORMS), end - first));
        self.cx.launch(WeightNorm::<Self>::NAME, Kernel::new(FILE, "weight_norm"), dims, &args);
    }

    fn scale_fwd(&mut self, op: ScaleFwd<'_, Self>) {
        self.begin(&op);
        let ScaleFwd { y, unscaled, params, norms, bias, pack, site } = op;
        let (tiles, count) = pack.lora_tiles(site.runs);
        let unscaled = unscaled.map_or_else(|| Arg::null(Param::Compute), |unscaled| compute(unscaled));
        let bias = bias.map_or_else(|| Arg::null(Param::Compute), |bias| compute(bias.dense()));
        let args = [&[compute(y), unscaled], &factor_args(params, norms)[..], &[bias, table(tiles)], &site_args(site)]
            .concat();
        let dims = LaunchDims::new(blocks2(count, site.width.div_ceil(COLUMNS)));
        self.cx.launch(ScaleFwd::<Self>::NAME, Kernel::new(FILE, "scale_fwd"), dims, &args);
    }

    fn scale_bwd(&mut self, op: ScaleBwd<'_, Self>) {
        self.begin(&op);
        let ScaleBwd { d_params, d_y, unscaled, params, norms, pack, site } = op;
        let (runs, count) = pack.lora_runs(site.runs);
        let (kernel, d_y) = match d_y {
            TensorMut::Acc(d_y) => ("scale_bwd_wide", acc(d_y)),
            TensorMut::Compute(d_y) => ("scale_bwd_real", compute(d_y)),
        };
        // The runs know their tiles by number among all.
        let tables = [table(pack.lora_tiles(RunRange::ALL).0), table(runs)];
        let buffers = [acc(d_params), d_y, compute(unscaled)];
        let args = [&buffers[..], &factor_args(params, norms), &tables, &site_args(site)].concat();
        let dims = LaunchDims::new(blocks2(site.width.div_ceil(SUM_COLUMNS), count));
        self.cx.launch(ScaleBwd::<Self>::NAME, Kernel::new(FILE, kernel), dims, &args);
    }

    fn scale_delta(&mut self, op: ScaleDelta<'_, Self>) {
        self.begin(&op);
        let ScaleDelta { out, unscaled, params, norms, pack, site } = op;
        let (tiles, count) = pack.lora_tiles(site.runs);
        let buffers = [acc(out), compute(unscaled)];
        let args = [&buffers[..], &factor_args(params, norms), &[table(tiles)], &site_args(site)].concat();
        let dims = LaunchDims::new(blocks2(count, site.width.div_ceil(COLUMNS)));
        self.cx.launch(ScaleDelta::<Self>::NAME, Kernel::new(FILE, "scale_delta"), dims, &args);
    }
}
