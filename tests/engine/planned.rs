//! What a GPU would be given for a step of LLaMA-2-7B, beside what its shapes say by hand.

use llamaprobe::arch::{ModelConfig, Projection};
use llamaprobe::backend::launches::{Issued, Launches};
use llamaprobe::backend::ops::LaunchKind;
use llamaprobe::backend::prediction::DeviceModel;
use llamaprobe::model::{Layout, LoraShape};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::planned;

use crate::counts::{Column, Table, low};

/// Width, feed-forward width and vocabulary of LLaMA-2-7B; rank of the adapters; rows of the step.
const C: u64 = 4096;
const F: u64 = 11008;
const V: u64 = 32000;
const R: u64 = 16;
const N: u64 = 512;
/// In bf16.
const SIZES: (usize, usize) = (4, 2);
static COLUMNS: [Column; 4] = [low("launches"), low("gigabytes"), low("products' gigabytes"), low("LoRA's gigabytes")];

fn config(layers: usize) -> ModelConfig {
    let text = format!(
        "{{\"model_type\": \"llama\", \"hidden_size\": {C}, \"intermediate_size\": {F}, \"vocab_size\": {V}, \
         \"num_hidden_layers\": {layers}, \"num_attention_heads\": 32, \"max_position_embeddings\": 4096, \"rms_norm_eps\": 1e-5}}"
    );
    ModelConfig::parse("config.json", &text).expect("a configuration")
}

/// A step of so many layers, all of whose projections have an adapter, over one sequence whose last `labels` rows have a label.
fn step(layers: usize, labels: u64) -> Launches {
    let config = config(layers);
    let (rank, targets) = (R as usize, Projection::ALL.to_vec());
    let shape = LoraShape { rank, alpha: 32.0, rslora: false, dora: false, layers: None, targets };
    let sequence = TrainSequence::marked((0..=N as u32).collect(), |i| i as u64 > N - labels);
    planned::step(&config, |_| None, Layout::lora(&config, &shape), vec![sequence]).expect("a step")
}

/// Bytes and floating-point operations of the launches that are asked for.
fn sums(launches: &Launches, wanted: impl Fn(&Issued) -> bool) -> [u64; 2] {
    let works = || launches.iter().filter(&wanted).map(|issued| issued.launch.work);
    [works().map(|work| work.bytes(SIZES)).sum(), works().map(|work| work.flops).sum()]
}

fn is_product(issued: &Issued) -> bool {
    issued.launch.kind == LaunchKind::Product
}

fn is_lora(issued: &Issued) -> bool {
    issued.op.starts_with("lora")
}

/// What a layer adds that is not the lowest, of whose input nobody wants the gradient.
fn of_a_layer(wanted: impl Fn(&Issued) -> bool) -> [u64; 2] {
    let [few, more] = [2, 3].map(|layers| sums(&step(layers, N), &wanted));
    [more[0] - few[0], more[1] - few[1]]
}

/// Input and output widths of the projections.
const PROJECTIONS: [[u64; 2]; 7] = [[C, C], [C, C], [C, C], [C, C], [C, F], [C, F], [F, C]];

#[test]
fn planned_products_of_a_layer_are_those_of_its_shapes() {
    let weights: u64 = PROJECTIONS.iter().map(|[input, output]| input * output).sum();
    let [bytes, flops] = of_a_layer(is_product);
    assert_eq!(flops, 2 * (2 * N * weights), "forward, and the gradient of the input");
    let widths: u64 = PROJECTIONS.iter().map(|[input, output]| input + output).sum();
    let (outputs, inputs) = (5 * C + 2 * F, 6 * C + F);
    // q, k and v, and gate and up, are one product, and read their input once.
    let forward = 2 * weights + 2 * N * (widths - 3 * C);
    // Terms of gradients, which are rounded apart.
    assert_eq!(bytes, forward + 2 * weights + 2 * N * outputs + 2 * N * inputs);
}

#[test]
fn planned_lora_of_a_layer_is_that_of_its_shapes() {
    let [bytes, flops] = of_a_layer(is_lora);
    let of = |f: fn([u64; 2]) -> u64| -> u64 { PROJECTIONS.iter().map(|widths| f(*widths)).sum() };
    // A x and B (A x); B^T d_y, the gradients of A and B, and that of x.
    assert_eq!(flops, of(|[i, o]| 2 * N * R * ((i + o) + (o + (i + o) + i))));
    // q, k and v, and gate and up, read their input once.
    let again = 3 * C;
    let shrink = of(|[i, _]| 2 * N * i + 4 * R * i + 4 * N * R) - 2 * N * again;
    let expand = of(|[_, o]| 2 * (2 * N * o) + 4 * R * o + 4 * N * R);
    let of_xa = of(|[_, o]| 2 * N * o + 4 * R * o + 4 * N * R);
    // Gradients of parameters are set where there are none.
    let of_params = of(|[i, o]| 2 * N * (i + o) + 4 * R * (i + o) + 2 * (4 * N * R)) - 2 * N * again;
    let of_x = of(|[i, _]| 2 * (4 * N * i) + 4 * R * i) - 2 * (4 * N * again);
    // Seven terms of four gradients, of which nothing is there before.
    let (terms, before) = (2 * N * (6 * C + F), 4 * N * (3 * C + F));
    // The gradients of the norms' outputs are rounded.
    let rounded = 2 * (4 * N * C - 2 * N * C);
    // The activation is made of gate and up in registers, and in them their gradients of its own, which is read once; narrow products of
    // all three are made of them there.
    let gated = 2 * N * F + 2 * N * (4 * F) - 4 * N * F - 2 * N * (3 * F);
    // So are queries and keys rotated, by the angles of each row.
    let rotated = 2 * (4 * N * 128);
    // The gradient of the attention's output is read once, and rounded, and summed over heads with that.
    let attended = 2 * (2 * N * C) + 4 * N * 32 - 4 * N * C;
    assert_eq!(
        bytes,
        shrink + expand + of_xa + of_params + of_x + terms + gated + rotated + attended - before - rounded
    );
}

#[test]
fn planned_attention_of_a_layer_makes_the_scores_three_times() {
    let [_, flops] = of_a_layer(|issued| issued.op.starts_with("attention"));
    // Scores and sums; scores, d_p and d_q; scores, d_p, d_v and d_k.
    assert_eq!(flops, 2 * (N * (N + 1) / 2) * C * (2 + 3 + 4));
}

#[test]
fn planned_head_is_that_of_its_shapes() {
    let labels = 64;
    let head = sums(&step(2, labels), |issued| issued.op == "cross_entropy_bwd" && is_product(issued));
    let logits = 2 * labels * C + 2 * V * C + 4 * labels * V;
    let d_x = 2 * labels * V + 2 * V * C + 4 * labels * C;
    assert_eq!(head, [logits + d_x, 2 * (2 * labels * C * V)]);
}

#[test]
fn planned_step_of_many_tokens_is_cut_at_the_last_position() {
    let sequences = planned::sequences(&config(1), 4096 + 100);
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.ids.len() - 1).collect();
    assert_eq!(lengths, [4096, 100]);
    assert_ne!(sequences[0].ids[..4], sequences[1].ids[..4], "nothing is shared");
}

#[test]
fn planned_step_takes_the_bytes_of_the_table() {
    let mut table = Table::new(&COLUMNS);
    let launches = step(32, 64);
    let gigabytes = |wanted: &dyn Fn(&Issued) -> bool| sums(&launches, wanted)[0] as f64 / 1e9;
    let counts = [gigabytes(&|_| true), gigabytes(&is_product), gigabytes(&is_lora)];
    let whole = launches.iter().count() as f64;
    table.add("a step of 512 tokens".to_owned(), &[&[whole], &counts[..]].concat());
    table.hold("step_bytes", "--test engine planned_step_takes");
    // The device that has more of the memory's rate is the faster, and one of half the products' the slower.
    let seconds = |model: DeviceModel| model.predict(&launches, SIZES).total.seconds;
    assert!(seconds(DeviceModel::H200) < seconds(DeviceModel::H100));
    assert!(seconds(DeviceModel::H100) < seconds(DeviceModel::A100));
    let slower = DeviceModel { half_flops: DeviceModel::H200.half_flops / 2.0, ..DeviceModel::H200 };
    assert!(seconds(slower) > 1.2 * seconds(DeviceModel::H200));
}
