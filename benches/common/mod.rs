//! What the benches share: layer shapes, buffers of noise, packs.
//!
//! Throughput is counted in elements for products (one element is one floating-point operation, so that `Gelem/s` reads
//! as GFLOP/s) and in bytes for everything that memory bounds.
//!
//! A group of the CPU ends with each bench's share of the ceiling, measured in the same run.
//!
//! `LLAMAPROBE_BENCH=cuda` benches the GPU in the place of the CPU (`benches/gpu.sh` makes a table of it), and `tiny`
//! the GPU, or the CPU where there is none, with the smallest of shapes and times, to see that everything runs.
#![allow(dead_code, reason = "each bench uses its own part")]

pub mod ceiling;
pub mod checkpoint;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod predicted;
pub mod training;

use std::cell::Cell;
use std::fmt::Display;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::{CpuSettings, Isa};
use llamaprobe::backend::ops::{AttentionDims, Cast};
use llamaprobe::backend::{AccElement, Backend};
use llamaprobe::formats::quantized::{QuantizedView, RowOrderView, ScalesView};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};
use llamaprobe::quantization::BlockFormat;

/// The sizes of a model's layer and head.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its parameters, roughly.
    pub name: &'static str,
    /// Residual width C.
    pub width: usize,
    /// Feed-forward width F.
    pub feed_forward: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key-value heads K.
    pub kv_heads: usize,
    /// Vocabulary V.
    pub vocab: usize,
}

const fn shape(
    name: &'static str,
    width: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
) -> Shape {
    Shape { name, width, feed_forward, heads, kv_heads, vocab }
}

/// What is benched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The CPU.
    Cpu,
    /// The GPU.
    Gpu,
    /// The GPU, or the CPU where there is none, with next to no work.
    Tiny,
}

/// What `LLAMAPROBE_BENCH` says.
pub fn subject() -> Subject {
    match std::env::var("LLAMAPROBE_BENCH").as_deref() {
        Ok("cuda") => Subject::Gpu,
        Ok("tiny") => Subject::Tiny,
        _ => Subject::Cpu,
    }
}

/// Calls benches with the devices that are to be benched: the CPU in f32 and bf16, or the GPU in bf16.
#[allow(unused_macros, reason = "each bench uses its own part")]
macro_rules! on_devices {
    ($c:expr, $($bench:expr),+) => {
        #[cfg(feature = "cuda")]
        if common::gpu::open().is_some() {
            $(common::gpu::open().into_iter().for_each(|gpu| $bench($c, gpu));)+
            return;
        }
        if common::subject() != common::Subject::Gpu {
            for dtype in [Dtype::F32, Dtype::BF16] {
                $($bench($c, Cpu::<f32>::open(&common::settings(dtype)));)+
            }
        }
    };
}

/// A CPU with rayon's threads (`RAYON_NUM_THREADS`, on which the ceilings are measured too) and [`isa`].
pub fn settings(dtype: Dtype) -> CpuSettings {
    CpuSettings { threads: rayon::current_num_threads(), isa: isa(), ..CpuSettings::new(dtype) }
}

/// The instruction set that `LLAMAPROBE_ISA` names, or else the best of this CPU.
pub fn isa() -> Isa {
    let Some(asked) = std::env::var("LLAMAPROBE_ISA").ok().filter(|asked| !asked.is_empty()) else {
        return Isa::detect();
    };
    let found = Isa::available().iter().find(|isa| isa.name() == asked);
    *found.unwrap_or_else(|| panic!("LLAMAPROBE_ISA={asked}, this CPU has {:?}", Isa::available()))
}

/// The shapes of a run.
pub fn shapes() -> &'static [Shape] {
    if subject() == Subject::Tiny { &TINY } else { &SHAPES }
}

/// A shape for a machine without a GPU.
const TINY: [Shape; 1] = [shape("tiny", 64, 96, 2, 1, 300)];

/// From the smallest story model to one layer of LLaMA-2-7B.
const SHAPES: [Shape; 4] = [
    shape("15M", 288, 768, 6, 6, 32000),
    shape("110M", 768, 2048, 12, 12, 32000),
    shape("1B", 2048, 8192, 32, 8, 128_256),
    shape("7B", 4096, 11008, 32, 32, 32000),
];

/// A whole model that is neither small nor large.
pub const MIDDLE: Shape = shape("1.1B", 2048, 5632, 32, 4, 32000);

impl Shape {
    /// Heads of the attention.
    pub fn attention(&self) -> AttentionDims {
        let head_dim = self.width / self.heads;
        let scale = 1.0 / (head_dim as f64).sqrt();
        AttentionDims {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim,
            scale,
            window: None,
            alibi: false,
            softcap: None,
        }
    }
}

thread_local! {
    /// Seconds of the best iteration since somebody last took them.
    static BEST: Cell<f64> = const { Cell::new(f64::INFINITY) };
}

/// A group with short measurements that ends with shares of the ceiling.
pub struct Group<'a> {
    name: String,
    group: BenchmarkGroup<'a, WallTime>,
    work: Option<Throughput>,
    done: Vec<(String, Throughput, f64)>,
}

/// A group of this name.
pub fn group<'a>(c: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = c.benchmark_group(name);
    let (warm_up, measurement) = if subject() == Subject::Tiny { (1, 1) } else { (200, 800) };
    group.sample_size(10).warm_up_time(Duration::from_millis(warm_up));
    group.measurement_time(Duration::from_millis(measurement));
    Group { name: name.to_owned(), group, work: None, done: Vec::new() }
}

impl Group<'_> {
    /// What an iteration of the next benches does.
    pub fn throughput(&mut self, work: Throughput) {
        self.work = Some(work.clone());
        self.group.throughput(work);
    }

    /// A bench called `what/of`, or only `what`; [`time`] is to time it.
    pub fn bench(&mut self, what: &str, of: impl Display, f: impl FnMut(&mut Bencher<'_>)) {
        let of = of.to_string();
        BEST.set(f64::INFINITY);
        let name = if of.is_empty() {
            self.group.bench_function(what, f);
            what.to_owned()
        } else {
            self.group.bench_function(BenchmarkId::new(what, &of), f);
            format!("{what}/{of}")
        };
        let best = BEST.get();
        self.done.extend(self.work.clone().filter(|_| best.is_finite()).map(|work| (name, work, best)));
    }

    /// Ends the group.
    pub fn finish(self) {
        self.group.finish();
        if !self.name.contains("/cpu ") {
            return;
        }
        for (name, work, best) in &self.done {
            let (done, of, what) = match *work {
                Throughput::Elements(flops) => {
                    (flops as f64, ceiling::of_products(&self.name), ceiling::factors(&self.name).name())
                }
                Throughput::Bytes(bytes) => (bytes as f64, ceiling::of_memory(), "memory"),
                _ => continue,
            };
            println!("{}/{name}: {:.1} % of the ceiling of {what}", self.name, 100.0 * done / best / of);
        }
    }

    /// Ends a group whose figures are shares of nothing.
    pub fn finish_without_shares(self) {
        self.group.finish();
    }
}

/// Small numbers of both signs.
fn noise_values(len: usize) -> impl Iterator<Item = f64> {
    let mut state = 1u32;
    (0..len).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 23) - 1.0
    })
}

/// A buffer of noise, of the accumulation dtype.
pub fn acc<B: Backend>(b: &mut B, len: usize) -> B::Acc {
    let mut buffer = b.acc(len).expect("memory for a bench");
    let values: Vec<B::Element> = noise_values(len).map(B::Element::from_f64).collect();
    b.upload(&mut buffer, 0, &values).expect("memory for a bench");
    buffer
}

/// A buffer of noise, of the compute dtype.
pub fn compute<B: Backend>(b: &mut B, len: usize) -> B::Compute {
    let x = acc(b, len);
    let mut out = b.compute(len).expect("memory for a bench");
    b.cast(Cast { out: &mut out, x: &x, len });
    out
}

/// A weight of noise.
pub fn weight<B: Backend>(b: &mut B, len: usize) -> B::Weight {
    let params = acc(b, len);
    b.trainable_weight(&params, 0, len).expect("memory for a bench")
}

/// A quantised weight of random codes, with scales of ordinary size.
pub fn quantized(format: BlockFormat, [rows, columns]: [usize; 2]) -> QuantizedView {
    let mut state = 1u64;
    let mut codes: Vec<u8> = (0..format.code_bytes(rows, columns).expect("whole blocks"))
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    for block in codes.chunks_exact_mut(format.block_bytes()) {
        format
            .halves()
            .iter()
            .for_each(|&at| block[at..at + 2].copy_from_slice(&half::f16::from_f32(1e-3).to_le_bytes()));
    }
    let scales = vec![0.02; format.scale_count(rows, columns)];
    let scales = if scales.is_empty() { ScalesView::Inline } else { ScalesView::Absmax(scales.into()) };
    let (name, shape, stored_rows, order) = ("weight".to_owned(), [rows, columns], rows, RowOrderView::From(0));
    QuantizedView { name, format, shape, stored_rows, codes: codes.into(), scales, order, rounding: None }
}

/// Bytes of `acc` elements of the accumulation dtype and `compute` of the compute dtype.
pub fn bytes<B: Backend>(b: &B, acc: usize, compute: usize) -> u64 {
    let (of_acc, of_compute) = b.element_sizes();
    (acc * of_acc + compute * of_compute) as u64
}

/// Operations that are asked for before the device is waited for, so that not the wait is measured.
const AT_ONCE: u64 = 64;

/// Times `op`.
pub fn time<B: Backend>(bench: &mut Bencher<'_>, b: &mut B, mut op: impl FnMut(&mut B)) {
    bench.iter_custom(|times| {
        let start = Instant::now();
        for i in 1..=times {
            op(b);
            if i % AT_ONCE == 0 || i == times {
                b.sync().expect("the device works");
            }
        }
        let taken = start.elapsed();
        BEST.set(BEST.get().min(taken.as_secs_f64() / times as f64));
        taken
    });
}

fn tokens(n: usize) -> Vec<Token> {
    (0..n as u32).map(|i| Token::Id(i * 37 % 300)).collect()
}

/// One sequence of each length, the runs given in turn.
pub fn flat(lengths: &[usize], runs: Option<usize>) -> Pack {
    let mut b = PackBuilder::default();
    for (i, &n) in lengths.iter().enumerate() {
        b.push(&tokens(n), Parent::None, runs.map(|runs| i % runs), Label::Text);
    }
    b.build()
}

/// `queries` sequences of `query` rows below one prefix.
pub fn shared_prefix(prefix: usize, queries: usize, query: usize) -> Pack {
    let mut b = PackBuilder::default();
    let root = b.push(&tokens(prefix), Parent::None, None, Label::Demonstration);
    for _ in 0..queries {
        b.push(&tokens(query), Parent::Pack(root), None, Label::Query);
    }
    b.build()
}
