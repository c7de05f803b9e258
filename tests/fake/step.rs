//! How many pieces of work the device runs in a step of training, held to a table (`tests/counts/step.csv`).

use std::fs;

use serde_json::Value;

use super::support::tiny_model::TinyModel;
use super::{program, succeed, workplace};
use crate::counts::{Column, Table, low};

static COLUMNS: [Column; 5] = [low("nodes"), low("kernels"), low("fills"), low("copies"), low("products")];
/// Layers of LLaMA-2-7B.
const LAYERS: f64 = 32.0;

/// What the device runs in one step of a model of so many layers, all of whose projections have an adapter: the difference of
/// trainings of three steps and of two.
fn of_a_step(layers: usize) -> [f64; 4] {
    let dir = workplace(safetensors::Dtype::F32);
    // As many heads of keys as of queries, as there are in LLaMA-2-7B.
    let heads = TinyModel::default().heads;
    TinyModel { layers, kv_heads: heads, ..TinyModel::default() }.write(&dir.path().join("model"));
    let example = |i: usize| format!("{{\"prompt\": \"the pen {i} is\", \"completion\": \" in pot {i}\"}}\n");
    fs::write(dir.path().join("train.jsonl"), (0..9).map(example).collect::<String>()).expect("write a test's file");
    let report = dir.path().join("report.json");
    let [three, two] = [3, 2].map(|steps| {
        let line = format!(
            "train-lora --model {{}}/model --train {{}}/train.jsonl --r 4 --lora-alpha 8 --target-modules \
             q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --batch-size 3 --max-steps {steps} \
             --lr-scheduler-type constant --no-shuffle --seed 0 --device cuda:0 --out {{}}/{steps} --json"
        );
        succeed(program(dir.path(), &line).env("FAKE_REPORT", &report));
        let found: Value = serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
        ["kernels", "fills", "copies", "products"].map(|what| found[what].as_f64().expect("a count"))
    });
    std::array::from_fn(|i| three[i] - two[i])
}

#[test]
fn step_has_the_nodes_of_the_table() {
    let mut table = Table::new(&COLUMNS);
    // The lowest layer is another than those above it, which are alike.
    let [few, more] = [2, 3].map(of_a_step);
    let layer: [f64; 4] = std::array::from_fn(|i| more[i] - few[i]);
    let whole: [f64; 4] = std::array::from_fn(|i| few[i] + (LAYERS - 2.0) * layer[i]);
    for (part, counts) in [("a layer", layer), ("a step of 32 layers", whole)] {
        let nodes: f64 = counts.iter().sum();
        table.add(part.to_string(), &[&[nodes], &counts[..]].concat());
    }
    table.hold("step", "--test cuda_fake step_has");
}
