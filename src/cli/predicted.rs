//! `inspect --device-model`: what a step of train-lora would take on a GPU that need not be here.

use serde_json::{Value, json};

use super::args::{DtypeArg, InspectArgs};
use super::plan::Plan;
use super::resolve::ModelFiles;
use super::{Failure, device, output};
use crate::arch::Dtype;
use crate::backend::blocks::BlockLayout;
use crate::backend::prediction::{DeviceModel, Predicted, Prediction, Rates};
use crate::backend::scratch::scratch;
use crate::backend::trace::Trace;
use crate::model::Layout;
use crate::model::param_id::Source;
use crate::train::passes::pass_size;
use crate::train::planned;
use crate::{Error, Result};

/// Most tokens of a step that is predicted.
const MAX_ROWS: u32 = 1 << 20;

/// A step on a GPU, by constants.
pub struct PredictedStep {
    model: DeviceModel,
    rows: u32,
    dtype: Dtype,
    /// Bytes of an element of the compute dtype.
    element: usize,
    prediction: Prediction,
    memory: Plan,
}

impl PredictedStep {
    /// That of one run of this layout, every token with a label.
    pub fn new(model: DeviceModel, args: &InspectArgs, files: &ModelFiles, layout: Layout) -> Result<Self> {
        let rows = args.rows;
        if rows > MAX_ROWS {
            return Err(Error::argument("--rows", format!("at most {MAX_ROWS} beside --device-model"), rows));
        }
        if args.common.dtype == DtypeArg::F32x3 {
            return Err(Error::argument("dtype", "f32, bf16 or f16 beside --device-model", "f32x3"));
        }
        let dtype = device::dtype(args.common.dtype, files.dtype)?;
        let element = if dtype == Dtype::F32 { 4 } else { 2 };
        let (gpu, sizes) = (Trace::of_sizes((4, element)), (4, element));
        let memory = Plan::new(&gpu, files, true).tuning(&gpu, &files.config, &layout, 1, rows as usize);
        let pass = pass_size(&files.config, Some(&layout), 1, (rows as usize, rows as usize));
        let memory = memory.with("scratch", scratch(&pass, sizes));
        let sequences = planned::sequences(&files.config, rows as usize);
        let source = Source::new(&files.config, &files.checkpoint)?;
        let quantized = |id| source.blocks(id).ok().flatten().map(BlockLayout::bytes);
        let launches = planned::step(&files.config, quantized, layout, sequences)?;
        Ok(Self { model, rows, dtype, element, prediction: model.predict(&launches, sizes), memory })
    }

    fn tokens_per_second(&self) -> f64 {
        f64::from(self.rows) / self.prediction.total.seconds
    }

    fn fits(&self) -> bool {
        self.memory.total() <= self.model.memory
    }

    /// By operation, the longest time first.
    fn ops(&self) -> Vec<(&'static str, &'static str, Predicted)> {
        let shares = self.prediction.shares.iter();
        let mut ops: Vec<_> = shares.map(|(&(op, kind), &predicted)| (op, kind.name(), predicted)).collect();
        ops.sort_by(|(.., a), (.., b)| b.seconds.total_cmp(&a.seconds));
        ops
    }

    fn share(&self, predicted: &Predicted) -> f64 {
        predicted.seconds / self.prediction.total.seconds
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let DeviceModel { name, bandwidth, memory, multiprocessors, rates, .. } = self.model;
        let sums = |predicted: &Predicted| {
            let Predicted { launches, bytes, flops, seconds } = *predicted;
            json!({ "launches": launches, "bytes": bytes, "flops": flops, "ms": 1e3 * seconds, "share": self.share(predicted) })
        };
        let ops = self.ops().into_iter().map(|(op, runs, predicted)| {
            let mut found = sums(&predicted);
            (found["op"], found["runs"]) = (json!(op), json!(runs));
            found
        });
        let Rates { product_flops, product_bandwidth, kernel_flops, kernel_bandwidth, gap, start, move_start } = rates;
        json!({
            "measured": false, "device_model": name, "dtype": self.dtype.name(), "ops": ops.collect::<Vec<_>>(),
            "step": sums(&self.prediction.total), "tokens_per_second": self.tokens_per_second(),
            "memory": self.memory.json(), "device_memory": memory, "fits": self.fits(),
            "constants": {
                "flops_per_second": self.model.flops(self.element), "bytes_per_second": bandwidth,
                "multiprocessors": multiprocessors, "product_share_of_flops": product_flops,
                "product_share_of_bytes": product_bandwidth, "kernel_share_of_flops": kernel_flops,
                "kernel_share_of_bytes": kernel_bandwidth, "gap_us": 1e6 * gap, "start_us": 1e6 * start,
                "fill_or_copy_us": 1e6 * move_start,
            },
        })
    }

    /// In words; `adapter` is what is trained.
    pub fn print(&self, adapter: &str) -> Result<(), Failure> {
        let DeviceModel { name, bandwidth, memory, rates, .. } = self.model;
        output::line(format_args!(
            "\npredicted, not measured: a step of train-lora on {name}, {} tokens, {adapter}, {}",
            self.rows,
            self.dtype.name()
        ))?;
        let row = |(op, runs, predicted): (&str, &str, Predicted)| {
            let Predicted { launches, bytes, flops, seconds } = predicted;
            let [gigabytes, teraflops, ms] = [bytes as f64 / 1e9, flops as f64 / 1e12, 1e3 * seconds];
            let share = format!("{:.1} %", 100.0 * self.share(&predicted));
            let numbers = [format!("{gigabytes:.2}"), format!("{teraflops:.2}"), format!("{ms:.2}"), share];
            [op.to_owned(), runs.to_owned(), launches.to_string()].into_iter().chain(numbers).collect()
        };
        let rows = self.ops().into_iter().chain([("all", "", self.prediction.total)]).map(row);
        output::table(&["op", "runs", "launches", "GB", "TFLOP", "ms", "share"], rows)?;
        output::line(format_args!("{:.0} tokens a second", self.tokens_per_second()))?;
        output::line("")?;
        self.memory.print(false)?;
        let verdict = if self.fits() { "fits in" } else { "does not fit in" };
        output::line(format_args!("{verdict} {}, beside what the driver takes", output::bytes(memory)))?;
        let Rates { product_flops, product_bandwidth, kernel_flops, kernel_bandwidth, gap, start, move_start } = rates;
        let percent = |share: f64| 100.0 * share;
        output::line(format_args!(
            "by these constants: {:.0} TFLOP/s and {:.0} GB/s at most; products reach {:.0} % and {:.0} % of them, kernels {:.0} % and \
             {:.0} %; {:.1} us a launch, {:.1} us a fill or copy, {:.1} us to the next",
            self.model.flops(self.element) / 1e12,
            bandwidth / 1e9,
            percent(product_flops),
            percent(product_bandwidth),
            percent(kernel_flops),
            percent(kernel_bandwidth),
            1e6 * start,
            1e6 * move_start,
            1e6 * gap,
        ))
    }
}
