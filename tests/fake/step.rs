//! How many pieces of work the device runs in a step of training, held to a table (`tests/counts/step.csv`).

use std::fs;

use llamaprobe::arch::Projection;
use llamaprobe::backend::ops::LaunchKind;
use llamaprobe::backend::trace::Trace;
use llamaprobe::model::param_id::ParamId;
use llamaprobe::model::{Layout, LoraShape, Model};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::planned;
use serde_json::{Value, json};

use super::support::tiny_model::TinyModel;
use super::{program, succeed, workplace};
use crate::counts::{Column, Table, low};

static COLUMNS: [Column; 5] = [low("nodes"), low("kernels"), low("fills"), low("copies"), low("products")];
/// Layers of LLaMA-2-7B.
const LAYERS: f64 = 32.0;

/// The projections that have an adapter, as the flag has them: all, or two.
const ALL: &str = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj";
const TWO: &str = "q_proj,v_proj";

/// A model with as many heads of keys as of queries, of 64 elements, a multiple of 256 in all, and a feed-forward layer wider than all of
/// them.
fn model(layers: usize) -> TinyModel {
    TinyModel { layers, heads: 4, kv_heads: 4, head_dim: 64, ffn: 288, ..TinyModel::default() }
}

/// The same, with a layer of a multiple of 256 elements that is deep for a LoRA, as LLaMA-2-7B has.
fn deep_model(layers: usize) -> TinyModel {
    TinyModel { ffn: 17 * 256, ..model(layers) }
}

/// What the device runs in one step of a model of which these projections have an adapter: the difference of trainings of three steps
/// and of two.
fn of_a_step(model: &TinyModel, modules: &str, more: &str) -> [f64; 4] {
    let dir = workplace(safetensors::Dtype::F32);
    model.write(&dir.path().join("model"));
    let example = |i: usize| format!("{{\"prompt\": \"the pen {i} is\", \"completion\": \" in pot {i}\"}}\n");
    fs::write(dir.path().join("train.jsonl"), (0..9).map(example).collect::<String>()).expect("write a test's file");
    let report = dir.path().join("report.json");
    let [three, two] = [3, 2].map(|steps| {
        let line = format!(
            "train-lora --model {{}}/model --train {{}}/train.jsonl --r 4 --lora-alpha 8 --target-modules \
             {modules} --batch-size 3 --max-steps {steps} \
             --lr-scheduler-type constant --no-shuffle --seed 0 --device cuda:0 --out {{}}/{steps} --json {more}"
        );
        succeed(program(dir.path(), &line).env("FAKE_REPORT", &report));
        let found: Value = serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
        ["kernels", "fills", "copies", "products"].map(|what| found[what].as_f64().expect("a count"))
    });
    std::array::from_fn(|i| three[i] - two[i])
}

/// What a GPU would be given for such a step, as a plan has it.
fn planned_step(
    model: &TinyModel,
    modules: &str,
    dora: bool,
    quantized: impl Fn(ParamId) -> Option<usize>,
) -> [f64; 4] {
    let dir = workplace(safetensors::Dtype::F32);
    model.write(&dir.path().join("model"));
    let config = Model::load(&mut Trace::new(), &dir.path().join("model")).expect("the model loads").config;
    let has = |target: &Projection| modules.split(',').any(|name| name == target.name());
    let targets = Projection::ALL.into_iter().filter(has).collect();
    let shape = LoraShape { rank: 4, alpha: 8.0, rslora: false, dora, layers: None, targets };
    // More labels than rows that a product with a quantised weight decodes it for in registers.
    let sequence = TrainSequence::marked((0..30).collect(), |i| i > 8);
    let launches = planned::step(&config, quantized, Layout::lora(&config, &shape), vec![sequence]).expect("a step");
    let kinds = [LaunchKind::Kernel, LaunchKind::Fill, LaunchKind::Copy, LaunchKind::Product];
    kinds.map(|kind| launches.count(kind) as f64)
}

#[test]
fn step_has_the_nodes_of_the_table() {
    let mut table = Table::new(&COLUMNS);
    // The lowest layer is another than those above it, which are alike.
    let [few, more] = [2, 3].map(|layers| {
        let counts = of_a_step(&deep_model(layers), ALL, "");
        assert_eq!(
            counts,
            planned_step(&deep_model(layers), ALL, false, |_| None),
            "{layers} layers, as planned (src/backend/launches.rs)"
        );
        counts
    });
    assert_eq!(
        of_a_step(&model(2), TWO, ""),
        planned_step(&model(2), TWO, false, |_| None),
        "of two projections, as planned"
    );
    let normed = TinyModel { config: json!({"model_type": "qwen3"}), ..model(2) };
    let [found, planned] = [of_a_step(&normed, ALL, ""), planned_step(&normed, ALL, false, |_| None)];
    assert_eq!(found, planned, "with norms of queries and keys, as planned");
    // Weights are decoded one by one, and products are as many as of others.
    let bytes = |id| matches!(id, ParamId::Weight(..)).then_some(1);
    let quantized = of_a_step(&model(2), ALL, "--load-in nf4");
    assert_eq!(quantized, planned_step(&model(2), ALL, false, bytes), "of quantised weights, as planned");
    assert_eq!(quantized[3], few[3], "products of quantised weights");
    let dora = of_a_step(&model(2), TWO, "--load-in nf4 --use-dora");
    assert_eq!(dora, planned_step(&model(2), TWO, true, bytes), "of quantised weights with DoRA, as planned");
    let layer: [f64; 4] = std::array::from_fn(|i| more[i] - few[i]);
    let whole: [f64; 4] = std::array::from_fn(|i| few[i] + (LAYERS - 2.0) * layer[i]);
    for (part, counts) in [("a layer", layer), ("a step of 32 layers", whole)] {
        let nodes: f64 = counts.iter().sum();
        table.add(part.to_string(), &[&[nodes], &counts[..]].concat());
    }
    table.hold("step", "--test cuda_fake step_has");
}
