//! `--predict`: what the goals for a GPU are about, as `inspect --device-model` predicts it for A100, H100 and H200, without a device;
//! beside it what the GPU takes that is there.

#[cfg(feature = "cuda")]
use std::time::Instant;

#[cfg(feature = "cuda")]
use llamaprobe::arch::Dtype;
use llamaprobe::backend::Backend;
#[cfg(feature = "cuda")]
use llamaprobe::backend::cuda::Cuda;
use llamaprobe::backend::ops::{AttentionBwd, AttentionFwd, LinearDims, LinearFwd};
use llamaprobe::backend::prediction::DeviceModel;
use llamaprobe::backend::trace::Trace;
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, Input, OutputRows, Save};
use llamaprobe::pack::Pack;

use super::checkpoint::Weights;
use super::training::{Checkpoint, trainers};
use super::{acc, compute, flat, shapes, shared_prefix, weight};

const MODELS: [DeviceModel; 3] = [DeviceModel::A100, DeviceModel::H100, DeviceModel::H200];
/// Layers of LLaMA-2-7B.
const LAYERS: usize = 32;
/// Bytes of an element of the accumulation dtype, and of bf16.
const SIZES: (usize, usize) = (4, 2);
/// Times that a device does some work before it is timed, and while it is.
#[cfg(feature = "cuda")]
const TIMES: [usize; 2] = [4, 5];

/// Some work in the shapes of LLaMA-2-7B.
enum Work {
    /// A product of so many rows, input and output elements.
    Product([usize; 3]),
    /// Attention of one sequence of so many rows, forward or backward.
    Attention { rows: usize, backward: bool },
    /// Steps one after another: trainers, runs of each, tokens of a run.
    Steps([usize; 3]),
    /// A forward of which the last row of every sequence is read.
    Forward(Pack),
}

/// Something that is done again and again on a device.
type Repeated<B> = Box<dyn FnMut(&mut B)>;

impl Work {
    fn on<B: Backend + 'static>(&self, b: &mut B, model: &Checkpoint) -> Repeated<B> {
        match *self {
            Self::Product([rows, input, output]) => {
                let (mut out, x, weight) =
                    (compute(b, rows * output), compute(b, rows * input), weight(b, input * output));
                let dims = LinearDims { rows, input, output };
                Box::new(move |b| b.linear_fwd(LinearFwd { out: &mut out, x: &x, weight: &weight, bias: None, dims }))
            }
            Self::Attention { rows, backward } => attention(b, rows, backward),
            Self::Steps(counts) => {
                let mut model = model.load(b);
                let mut trainers = trainers(b, &model, counts, Some(true));
                Box::new(move |b| {
                    trainers.iter_mut().for_each(|trainer| drop(trainer.step(b, &mut model).expect("a step")));
                })
            }
            Self::Forward(ref pack) => {
                let (model, pack) = (model.load(b), pack.clone());
                let mut acts =
                    Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory for a bench");
                let device = b.pack(&pack).expect("memory for a bench");
                let ends = (0..pack.segments().len()).filter(|&g| pack.descendants(g).is_empty());
                let rows: Vec<usize> = ends.map(|g| pack.segments()[g].rows.end - 1).collect();
                let read = OutputRows::new(b, &pack, rows).expect("memory for a bench");
                Box::new(move |b| {
                    let input = Input::new(&pack, &device).with_output_rows(read.as_ref());
                    model.forward(b, &mut acts, &input, None, &mut NoTaps).expect("a forward");
                })
            }
        }
    }

    /// Seconds on each of [`MODELS`]: of the second time, when everything is there.
    fn predicted(&self, model: &Checkpoint) -> [f64; 3] {
        let b = &mut Trace::of_sizes(SIZES);
        let mut work = self.on(b, model);
        work(b);
        b.clear();
        work(b);
        let launches = b.launches();
        MODELS.map(|model| model.predict(&launches, SIZES).total.seconds)
    }

    /// Seconds on a device, the fewest.
    #[cfg(feature = "cuda")]
    fn measured<B: Backend + 'static>(&self, b: &mut B, model: &Checkpoint) -> f64 {
        let mut work = self.on(b, model);
        let mut once = |b: &mut B| {
            let start = Instant::now();
            work(b);
            b.sync().expect("the device works");
            start.elapsed().as_secs_f64()
        };
        for _ in 0..TIMES[0] {
            once(b);
        }
        (0..TIMES[1]).map(|_| once(b)).fold(f64::INFINITY, f64::min)
    }
}

fn attention<B: Backend + 'static>(b: &mut B, rows: usize, backward: bool) -> Repeated<B> {
    let dims = shapes().last().expect("a shape").attention();
    let (q_len, kv_len) = (rows * dims.q_width(), rows * dims.kv_width());
    let [mut z, q, mut d_q] = [0; 3].map(|_| compute(b, q_len));
    let [k, v, mut d_k, mut d_v] = [0; 4].map(|_| compute(b, kv_len));
    let [mut lse, mut delta] = [0; 2].map(|_| acc(b, rows * dims.heads));
    let (mut d_z, pack) = (acc(b, q_len), b.pack(&flat(&[rows], None)).expect("memory for a bench"));
    Box::new(move |b| {
        let (q, k, v, pack, outputs) = (&q, &k, &v, &pack, None);
        if backward {
            let (d_q, d_k, d_v, delta) = (&mut d_q, &mut d_k, &mut d_v, &mut delta);
            let (d_z, z, lse) = (&mut d_z, &z, &lse);
            b.attention_bwd(AttentionBwd { d_q, d_k, d_v, delta, d_z, z, lse, q, k, v, pack, outputs, dims });
        } else {
            let (z, lse) = (&mut z, &mut lse);
            b.attention_fwd(AttentionFwd { z, lse, q, k, v, cached: None, pack, outputs, dims });
        }
    })
}

/// What is said of the seconds of some work.
enum Unit {
    /// TFLOP/s of so many floating-point operations.
    Teraflops(f64),
    Milliseconds,
    /// Tokens a second, of so many tokens.
    Tokens(usize),
    /// How many times as long other work takes.
    Times(Work),
}

impl Unit {
    const fn name(&self) -> &'static str {
        match self {
            Self::Teraflops(_) => "TFLOP/s",
            Self::Milliseconds => "ms",
            Self::Tokens(_) => "tokens/s",
            Self::Times(_) => "times",
        }
    }

    fn value(&self, seconds: f64, other: f64) -> String {
        match self {
            Self::Teraflops(flops) => format!("{:.0}", flops / seconds / 1e12),
            Self::Milliseconds => format!("{:.2}", 1e3 * seconds),
            Self::Tokens(tokens) => format!("{:.0}", *tokens as f64 / seconds),
            Self::Times(_) => format!("{:.2}", other / seconds),
        }
    }
}

/// What the goals are about, in the order in which they are written down.
fn goals() -> Vec<(String, Unit, Work)> {
    let shape = shapes().last().expect("a shape");
    let (dims, width) = (shape.attention(), shape.width);
    let mut all = Vec::new();
    for sizes @ [rows, input, output] in
        [[64, width, width], [512, width, width], [512, width, shape.feed_forward], [2048, width, shape.feed_forward]]
    {
        let flops = 2.0 * (rows * input * output) as f64;
        all.push((format!("product {rows} x {input} x {output}"), Unit::Teraflops(flops), Work::Product(sizes)));
    }
    for (way, backward, share) in [("forward", false, 1.0), ("backward", true, 2.5)] {
        for rows in [512, 2048, 4096, 16384] {
            // As FlashAttention counts them: half of the products of all pairs.
            let flops = share * 2.0 * (rows * rows * dims.q_width()) as f64;
            let name = format!("attention {way}, {rows} rows, width {}", dims.head_dim);
            all.push((name, Unit::Teraflops(flops), Work::Attention { rows, backward }));
        }
    }
    all.push(("LoRA step, 64 tokens".into(), Unit::Milliseconds, Work::Steps([1, 1, 64])));
    for tokens in [512, 2048] {
        all.push((format!("LoRA step, {tokens} tokens"), Unit::Tokens(tokens), Work::Steps([1, 1, tokens])));
    }
    for tokens in [32, 64] {
        let name = format!("16 runs of {tokens} tokens in one pass, one after another");
        all.push((name, Unit::Times(Work::Steps([16, 1, tokens])), Work::Steps([1, 16, tokens])));
    }
    let repeated = Unit::Times(Work::Forward(flat(&[850; 25], None)));
    all.push((
        "25 x 50 tokens under a prefix of 800, repeated".into(),
        repeated,
        Work::Forward(shared_prefix(800, 25, 50)),
    ));
    all
}

/// Prints all of them.
pub fn print() {
    let shape = *shapes().last().expect("a shape");
    // A sparse file: no time depends on what stands in it.
    let model = Checkpoint::write("7B", shape, LAYERS, Weights::Sparse);
    #[cfg(feature = "cuda")]
    let mut gpu = Cuda::open(0, Dtype::BF16, &super::gpu::settings()).ok();
    println!(
        "of LLaMA-2-7B in bf16, LoRA of rank 8 on q and v; predicted by the constants of inspect --device-model, not measured,"
    );
    println!("but for the last column. Neither captures nor loading are predicted, nor the whole experiment.");
    println!("{:<58} {:>8} {:>9} {:>9} {:>9} {:>9}", "", "", "a100", "h100", "h200", "measured");
    for (name, unit, work) in goals() {
        let predicted = work.predicted(&model);
        let other = if let Unit::Times(other) = &unit { other.predicted(&model) } else { [0.0; 3] };
        let mut line = format!("{name:<58} {:>8}", unit.name());
        for (seconds, other) in predicted.into_iter().zip(other) {
            line += &format!(" {:>9}", unit.value(seconds, other));
        }
        #[cfg(feature = "cuda")]
        let measured = gpu.as_mut().map(|gpu| {
            let seconds = work.measured(gpu, &model);
            unit.value(seconds, if let Unit::Times(other) = &unit { other.measured(gpu, &model) } else { 0.0 })
        });
        #[cfg(feature = "cuda")]
        let measured = measured.as_deref().unwrap_or("-");
        #[cfg(not(feature = "cuda"))]
        let measured = "-";
        println!("{line} {measured:>9}");
    }
}
