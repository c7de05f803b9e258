//! How the kernels of a step read and write memory, counted on the CPU by `tests/simt/accesses.cpp` and held to a table
//! (`tests/counts/accesses.csv`): sectors of 32 bytes for each request of a warp to the memory behind a parameter, and
//! wavefronts for each request to shared memory, beside the fewest that as many bytes need.

use std::collections::BTreeMap;

use llamaprobe::arch::{self, Dtype, RmsWeight, RopePairs};
use llamaprobe::backend::ops::{AdamwStep, LinearDims, LoraSite, PromptSite, RunRange};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};
use llamaprobe::quantization::BlockFormat;

use crate::counts::{Column, Table, high, low};
use crate::ops::activation::Gated;
use crate::ops::adamw::Adamw;
use crate::ops::attention::Attention;
use crate::ops::cases::Case;
use crate::ops::cross_entropy::CrossEntropy;
use crate::ops::embed::Embed;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::lora::Lora;
use crate::ops::operation::Operation;
use crate::ops::packs;
use crate::ops::quantized;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::rope::Rope;
use crate::ops::rows::Cast;
use crate::ops::simt::machine::{self, Accesses, Build, Machine, Mode};
use crate::ops::simt::recorder::{self, Recorder};
use crate::ops::simt::tape::{Arg, Tape};

/// Units (sectors, or wavefronts) for each that as many bytes need, and how many of those a request needs.
static COLUMNS: [Column; 2] = [low("excess"), high("ideal")];

/// So many rows of one run.
fn rows(n: usize) -> Pack {
    let mut b = PackBuilder::default();
    let tokens: Vec<Token> = (0..n as u32).map(|i| Token::Id(i % packs::VOCAB as u32)).collect();
    b.push(&tokens, Parent::None, Some(0), Label::Text);
    b.build()
}

fn adamw() -> Adamw {
    let step = AdamwStep {
        active: true,
        learning_rate: 1e-3,
        fast_learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: Some(1.0),
        step: 1,
    };
    Adamw { steps: vec![step], stride: 4096, stopped: false, fast: false }
}

/// Cases of whole vectors.
fn cases() -> Vec<Case> {
    let (pack, width) = (rows(16), 2048);
    let site = |rank: usize| {
        let (input, output) = (512, 512);
        let (b, stride) = (rank * input, rank * (input + output));
        let site = LoraSite { a: 0, b, stride, rank, input, output, scale: 2.0, runs: RunRange::ALL };
        Lora { pack: pack.clone(), site, runs: 1, drop: None }
    };
    let none = PromptSite { offset: 0, stride: 0, rows: 0 };
    let embed = Embed { pack: pack.clone(), vocab: packs::VOCAB, width, site: none, runs: 0, scale: 1.0 };
    let rope = Rope {
        pack: pack.clone(),
        heads: 2,
        head_dim: 128,
        rotary_dim: 128,
        pairs: RopePairs::Halves,
        cos_sin: vec![0.5; 16 * 128],
    };
    let entropy = CrossEntropy {
        dims: LinearDims { rows: 2, input: 64, output: 4096 },
        biased: false,
        targets: vec![1, 2],
        softcap: None,
    };
    vec![
        Case::new("lora 8", site(8)),
        Case::new("lora 16", site(16)),
        Case::new("lora 32", site(32)),
        Case::new("norm", RmsNorm { rows: 3, width, eps: 1e-5, form: RmsWeight::Rounded }),
        Case::new("embed", embed),
        Case::new("rope", rope),
        Case::new("swiglu", Gated { f: arch::Activation::Silu, len: 4096 }),
        Case::new("entropy", entropy),
        Case::new("adamw", adamw()),
        Case::new("cast", Cast { len: 4096 }),
    ]
}

/// Captures of rows, as the backend launches them.
fn captures(r: &mut Recorder<'_>) {
    let (count, width) = (4, 2048);
    let rows = Arg::At(r.tape.ints(&[4, 0, 4, 2]));
    let wide = [count, 5].map(|n| Arg::At(r.tape.acc(&vec![0.5; n * width])));
    let real = [count, 5].map(|n| Arg::At(r.tape.compute(&vec![0.5; n * width])));
    for (name, [out, x]) in [("gather_acc", wide), ("gather_compute", real)] {
        r.run(name, recorder::rows(count), &[out, x, rows, Arg::Int(count), Arg::Int(width)]);
    }
}

/// A matrix that is decoded, and one that few rows are multiplied with.
fn quantized(format: BlockFormat, r: &mut Recorder<'_>) {
    let (shape @ [rows, columns], few) = ([16, 512], 2);
    let matrix = quantized::args(r.tape, &quantized::view(format, shape));
    let [out, x, y] = [rows * columns, few * columns, few * rows].map(|n| Arg::At(r.tape.compute(&vec![0.5; n])));
    let args = [&[out], &matrix[..], &[Arg::Int(rows)]].concat();
    r.run("dequantize", recorder::elements(rows * columns), &args);
    let args = [&[y, x, Arg::Null], &matrix[..], &[few, rows].map(Arg::Int)].concat();
    r.run("quantized_linear_fwd", recorder::rows(1), &args);
}

/// What kernels of a text access, by name, build, parameter and direction.
fn count(table: &mut Table, text: &str, accesses: Vec<Accesses>, of: &str) {
    let kernels: BTreeMap<&str, Vec<&str>> =
        machine::signatures(text).into_iter().map(|k| (k.name, k.params)).collect();
    for Accesses { kernel, param, stores, requests, units, ideal } in accesses {
        let param = param.map_or("shared", |at| kernels[kernel.as_str()][at]);
        let direction = if stores { "store" } else { "load" };
        let counts = [units as f64 / ideal as f64, ideal as f64 / requests as f64];
        table.add(format!("{kernel}{of} {param} {direction}"), &counts);
    }
}

#[test]
fn accesses_are_those_of_the_table() {
    if !machine::compiler() {
        return;
    }
    let (dtype, mut table) = (Dtype::BF16, Table::new(&COLUMNS));
    let text = machine::text(&machine::simple());
    let machine = Machine::new(&machine::simple(), dtype, Mode::Accesses, &Build::new(dtype, 16).macros());
    for case in cases() {
        let mut tape = Tape::new(dtype);
        let build = Build::new(dtype, 16);
        case.op.launch(&case, &mut Recorder { tape: &mut tape, build, outputs: vec![] });
        let rank = case.name.strip_prefix("lora").unwrap_or_default();
        count(&mut table, &text, machine.accesses(&tape), rank);
    }
    let mut tape = Tape::new(dtype);
    captures(&mut Recorder { tape: &mut tape, build: Build::new(dtype, 16), outputs: vec![] });
    count(&mut table, &text, machine.accesses(&tape), "");
    for format in [BlockFormat::Int8Rows, BlockFormat::NF4, BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q6K] {
        let mut tape = Tape::new(dtype);
        quantized(format, &mut Recorder { tape: &mut tape, build: Build::new(dtype, 16), outputs: vec![] });
        count(&mut table, &text, machine.accesses(&tape), &format!(" {format}"));
    }
    let text = machine::text(&["attention"]);
    for width in [64, 128] {
        let build = Build::new(dtype, width);
        let op = Attention { pack: rows(128), cached: vec![], dims: packs::heads(1, 1, width, None) };
        let case = Case::new("attention", op);
        let mut tape = Tape::new(dtype);
        case.op.launch(&case, &mut Recorder { tape: &mut tape, build, outputs: vec![] });
        let machine = Machine::new(&["attention"], dtype, Mode::Accesses, &build.macros());
        count(&mut table, &text, machine.accesses(&tape), &format!(" {width}"));
    }
    table.hold("accesses", "--test ops accesses_are");
}

/// Rows of norms stay in registers: what is read of them is read once up to 8192 elements.
#[test]
fn norms_read_a_row_once() {
    if !machine::compiler() {
        return;
    }
    let files = ["rms_norm", "layer_norm"];
    let (dtype, build, text) = (Dtype::BF16, Build::new(Dtype::BF16, 16), machine::text(&files));
    let machine = Machine::new(&files, dtype, Mode::Accesses, &build.macros());
    let times = |width: usize| {
        let (rms, layer) = (
            Case::new("rms", RmsNorm { rows: 1, width, eps: 1e-5, form: RmsWeight::Rounded }),
            Case::new("layer", LayerNorm { rows: 1, width, eps: 1e-5 }),
        );
        let mut tape = Tape::new(dtype);
        for case in [rms, layer] {
            case.op.launch(&case, &mut Recorder { tape: &mut tape, build, outputs: vec![] });
        }
        let signatures = machine::signatures(&text);
        let times = |Accesses { kernel, param, stores, units, .. }: Accesses| {
            let signature = signatures.iter().find(|s| s.name == kernel)?;
            let param = signature.params[param?];
            let of_row =
                ["a", "x", "d_out"].contains(&param) && !kernel.ends_with("weight") && !kernel.ends_with("affine");
            // The backward runs twice, with and without rounding what it makes.
            let launches = if kernel == "rms_norm_bwd" { 2 } else { 1 };
            (of_row && !stores).then(|| (format!("{kernel} {param}"), units as usize * 32 / (4 * width * launches)))
        };
        machine.accesses(&tape).into_iter().filter_map(times).collect::<Vec<_>>()
    };
    for width in [4096, 8192] {
        let times = times(width);
        assert_eq!(times.len(), 7, "{times:?}");
        assert!(times.iter().all(|(_, n)| *n == 1), "{width}: {times:?}");
    }
    // A wider one is read again, but for the sum that stands in its place.
    let again = times(16384).into_iter().filter(|(_, n)| *n > 1).count();
    assert_eq!(again, 6);
}

/// A vector of 16 bytes in turn, one at a stride, a store of words that others lie between, and rows of banks that collide.
const PLANTED: &str = "
extern \"C\" __global__ void __launch_bounds__(32)
    planted(float* __restrict__ out, const float* __restrict__ x, int stride) {
    begin_kernel();
    __shared__ float tile[32][32];
    float v[4];
    load4_aligned(v, x + threadIdx.x * stride);
    tile[threadIdx.x][0] = v[0];
    __syncthreads();
    out[threadIdx.x * stride / 4] = tile[threadIdx.x][0] + v[1] + v[2] + v[3];
}";

#[test]
fn accesses_that_get_worse_are_counted() {
    if !machine::compiler() {
        return;
    }
    let text = machine::text(&[]) + PLANTED;
    let machine = Machine::of_text(&text, Dtype::BF16, Mode::Accesses, &[]);
    let counts = |stride: usize| {
        let mut tape = Tape::new(Dtype::BF16);
        let [out, x] = [32 * stride, 32 * stride].map(|n| Arg::At(tape.acc(&vec![1.0; n])));
        tape.launch("planted", [1, 1, 1], 32, 0, &[out, x, Arg::Int(stride)]);
        let of = |a: Accesses| (a.param, a.stores, a.requests, a.units, a.ideal);
        machine.accesses(&tape).into_iter().map(of).collect::<Vec<_>>()
    };
    let shared = [(None, false, 1, 32, 1), (None, true, 1, 32, 1)];
    assert_eq!(counts(4), [&shared[..], &[(Some(0), true, 1, 4, 4), (Some(1), false, 1, 16, 16)]].concat());
    assert_eq!(counts(8), [&shared[..], &[(Some(0), true, 1, 8, 4), (Some(1), false, 1, 32, 16)]].concat());
}
