//! Products with quantised weights beside those with the same weights in bfloat16, at the shapes of LLaMA-2-7B's layers and head:
//! the ratio of rates, median, quartiles, over rounds in which all take turns; weights in rows, as files have them, and in groups of rows, as
//! `generate` brings them into memory.
//!
//! Weights of each kind take turns too, so that none is still in a cache: 128 MiB at least, as the layers of a model do when a
//! token is generated. `LLAMAPROBE_BENCH=tiny` runs everything once.
#![allow(missing_docs, reason = "a program of its own")]

mod common;

use std::time::Instant;

use common::{Subject, compute, isa, quantized, subject, weight};
use llamaprobe::arch::Dtype;
use llamaprobe::backend::Buffers;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Weight};
use llamaprobe::backend::ops::{LinearDims, LinearFwd, LinearOps};
use llamaprobe::quantization::BlockFormat;

/// Output and input widths.
const SHAPES: [[usize; 2]; 3] = [[4096, 4096], [11008, 4096], [32000, 4096]];
const FORMATS: [BlockFormat; 12] = [
    BlockFormat::NF4,
    BlockFormat::Int8Rows,
    BlockFormat::Q8_0,
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q2K,
    BlockFormat::Q3K,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
];
/// Bytes of the weights of a kind, at least.
const BYTES: usize = 128 << 20;
/// Rounds, and seconds of each kind of weight in one.
const ROUNDS: usize = 15;
const SECONDS: f64 = 0.02;

/// Weights of one kind, and whose turn it is.
struct Turns {
    weights: Vec<Weight>,
    next: usize,
}

impl Turns {
    fn new(bytes: usize, mut make: impl FnMut() -> Weight) -> Self {
        let count = if subject() == Subject::Tiny { 1 } else { BYTES.div_ceil(bytes) };
        Self { weights: (0..count).map(|_| make()).collect(), next: 0 }
    }

    /// Seconds of a product with one of them, of as many as take some time.
    fn time(&mut self, cpu: &mut Cpu, dims: LinearDims) -> f64 {
        let (x, mut out) = (compute(cpu, dims.rows * dims.input), compute(cpu, dims.rows * dims.output));
        let (start, mut count) = (Instant::now(), 0);
        loop {
            self.next = (self.next + 1) % self.weights.len();
            let weight = &self.weights[self.next];
            cpu.linear_fwd(LinearFwd { out: &mut out, x: &x, weight, bias: None, dims });
            count += 1;
            let seconds = start.elapsed().as_secs_f64();
            if seconds > SECONDS || subject() == Subject::Tiny {
                return seconds / f64::from(count);
            }
        }
    }
}

/// The quartiles of some numbers.
fn quartiles(mut x: Vec<f64>) -> [f64; 3] {
    x.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| x[(x.len() - 1) * quarter / 4])
}

fn bench([output, input]: [usize; 2], rows: usize, threads: usize) {
    let mut cpu = Cpu::<f32>::open(&CpuSettings { threads, isa: isa(), ..CpuSettings::new(Dtype::BF16) });
    let dims = LinearDims { rows, input, output };
    let mut plain = Turns::new(2 * output * input, || weight(&mut cpu, output * input));
    let mut turns = [false, true].map(|in_groups| {
        cpu.expect_few_rows(in_groups);
        FORMATS.map(|format| {
            let bytes = format.code_bytes(output, input).expect("whole blocks");
            Turns::new(bytes, || cpu.quantized_weight(&quantized(format, [output, input])).expect("memory for a bench"))
        })
    });
    let rounds = if subject() == Subject::Tiny { 1 } else { ROUNDS };
    let (mut seconds, mut ratios) = (Vec::new(), [const { Vec::new() }; 2 * FORMATS.len()]);
    for _ in 0..rounds {
        let of_plain = plain.time(&mut cpu, dims);
        seconds.push(of_plain);
        for (ratios, turns) in ratios.iter_mut().zip(turns.as_flattened_mut()) {
            ratios.push(of_plain / turns.time(&mut cpu, dims));
        }
    }
    let [_, of_plain, _] = quartiles(seconds);
    let rate = 1e-9 * (output * input) as f64 / of_plain;
    print!("{output} x {input}, {rows} rows, {threads} threads: bf16 {:.2} ms ({rate:.1} G weights/s)", 1e3 * of_plain);
    for (i, ratios) in ratios.into_iter().enumerate() {
        let (format, [low, middle, high]) = (FORMATS[i % FORMATS.len()], quartiles(ratios));
        let place = if i < FORMATS.len() { "in rows" } else { "in groups" };
        print!("; {format} {place} {middle:.2} ({low:.2} to {high:.2})");
    }
    println!();
}

fn main() {
    let (shapes, rows): (&[[usize; 2]], &[usize]) = match subject() {
        Subject::Tiny => (&[[64, 256]], &[1, 9]),
        _ => (&SHAPES, &[1, 256]),
    };
    println!("times of bf16, and how many times as fast (first and third quartile)");
    for &shape in shapes {
        for &rows in rows {
            [1, 2].into_iter().for_each(|threads| bench(shape, rows, threads));
        }
    }
}
