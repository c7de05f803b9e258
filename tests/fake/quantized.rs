//! Quantised models on the fake driver: what the CPU gives, in the memory that is planned.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{CAPTURE, TRAIN, both, difference, losses, program, root, succeed, workplace};
use crate::support::tiny_model::TinyModel;

/// A folder as [`workplace`], with a model whose queries, keys and values are multiplied at once.
fn quantizable() -> tempfile::TempDir {
    let dir = workplace(safetensors::Dtype::F32);
    TinyModel { heads: 4, kv_heads: 4, width: 32, ..TinyModel::default() }.write(&dir.path().join("model"));
    dir
}

fn number(of: &Value, what: &str) -> u64 {
    of[what].as_u64().unwrap_or_else(|| panic!("{what}: {of}"))
}

#[test]
fn quantized_training_is_that_of_the_cpu_in_the_memory_that_is_planned() {
    let dir = quantizable();
    let d = dir.path();
    for (extra, folder) in
        [("--load-in nf4 --use-dora --target-modules q_proj,up_proj", "nf4"), ("--load-in int8", "int8")]
    {
        let line = format!("{TRAIN} {extra}");
        both(d, &line, folder);
        let file = |device: &str, name: &str| d.join(format!("{folder}-{device}")).join(name);
        let [a, b] = ["cpu", "cud"].map(|device| file(device, "adapter_model.safetensors"));
        let off = difference(&a, &b);
        println!("adapter {folder}: off by {off:.1e}");
        assert!(off <= 2e-3, "{folder}: {off:.1e}");
        let [a, b] = ["cpu", "cud"].map(|device| losses(&file(device, "trainer_log.jsonl")));
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * a.abs(), "losses {a} and {b}"));

        let line = format!("{line} --device cuda:0 --out {{}}/{folder}-plan");
        assert!(decoded_as_planned(d, &line) > 0);
    }
}

/// Bytes that the plan of a command has for decoded weights; the command takes as many in all as are planned, but for what blocks are
/// rounded up to.
fn decoded_as_planned(dir: &Path, line: &str) -> u64 {
    let report = dir.join("report.json");
    let planned: Value =
        serde_json::from_str(&succeed(&mut program(dir, &format!("{line} --dry-run")))).expect("a plan");
    succeed(program(dir, line).env("FAKE_REPORT", &report));
    let found: Value = serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
    let (total, taken) = (number(&planned["plan"], "total"), number(&found, "device"));
    assert!(total.abs_diff(taken) <= 256 * number(&found, "blocks"), "{line}: {total} planned, {taken} taken");
    planned["plan"]["weights__decoded"].as_u64().unwrap_or(0)
}

/// With a head that is larger than all other matrices, and than what blocks are rounded up to.
#[test]
fn captures_of_a_quantized_model_decode_the_head_where_its_logits_are_captured() {
    let dir = workplace(safetensors::Dtype::F32);
    let (d, vocab) = (dir.path(), 4096);
    TinyModel { vocab, heads: 4, kv_heads: 4, width: 32, ..TinyModel::default() }.write(&d.join("model"));
    succeed(&mut program(d, "quantize --model {}/model --to q8_0 --out {}/model.gguf"));
    let ids: String = (0..4).map(|i| format!("{{\"input_ids\": [5, {i}, 7, 9, 2]}}\n")).collect();
    fs::write(d.join("ids.jsonl"), ids).expect("write");
    let [states, logits] = ["resid_post", "logits"].map(|site| {
        let line = "capture --model {}/model.gguf --input {}/ids.jsonl --dtype f32 --device cuda:0 --json --out {}/";
        decoded_as_planned(d, &format!("{line}{site} --sites {site}"))
    });
    assert_eq!([states, logits], [3 * 32 * 32, vocab as u64 * 32].map(|elements| 4 * elements));
}

/// Models of GGUF whose matrices are in its block formats, their tables and the head of one too.
#[test]
fn quantized_models_of_gguf_are_those_of_the_cpu() {
    let dir = quantizable();
    let d = dir.path();
    fs::write(d.join("ids.jsonl"), "{\"input_ids\": [5, 6, 7, 8, 1, 2, 9, 4, 3, 11]}\n{\"input_ids\": [5, 6, 3]}\n")
        .expect("write");
    for name in ["llama-blocks", "qwen2-blocks"] {
        let model = root().join(format!("tests/golden/gguf/{name}.gguf")).display().to_string();
        let line = CAPTURE.replace("{}/model", &model).replace("texts.jsonl", "ids.jsonl");
        both(d, &line, name);
        let file = |device: &str| d.join(format!("{name}-{device}")).join("activations.safetensors");
        let off = difference(&file("cpu"), &file("cud"));
        println!("capture {name}: off by {off:.1e}");
        assert!(off <= 2e-5, "{name}: {off:.1e}");
    }
}

#[test]
fn quantized_generation_is_that_of_the_cpu() {
    let dir = quantizable();
    let d = dir.path();
    let of = |line: &str, device: &str| succeed(&mut program(d, &format!("{line} --device {device}")));
    for format in ["nf4", "int8"] {
        let line =
            format!("generate --model {{}}/model --prompt the --max-new-tokens 8 --temperature 0 --load-in {format}");
        assert_eq!(of(&line, "cpu"), of(&line, "cuda:0"), "{format}");
    }
    // Of so many prompts that the head is decoded as a whole, for which there is no room at first.
    let prompts: String = (0..12).map(|i| format!("{{\"input_ids\": [5, {i}, 7]}}\n")).collect();
    fs::write(d.join("prompts.jsonl"), prompts).expect("write");
    let model = root().join("tests/golden/gguf/llama-blocks.gguf").display().to_string();
    let line = format!("generate --model {model} --input {{}}/prompts.jsonl --max-new-tokens 4 --temperature 0 --json");
    assert_eq!(of(&line, "cpu"), of(&line, "cuda:0"), "blocks of GGUF");
}
