//! Models of GGUF files.

use std::fs;

use half::f16;
use llamaprobe::formats::gguf::model::GgufModel;
use llamaprobe::formats::safetensors::Loading;
use serde_json::json;

use super::{line, put, workplace};
use crate::support::golden;

#[test]
fn inspect_says_the_format_of_blocks_and_what_they_take() {
    let dir = workplace();
    let d = dir.path();
    let model = golden("gguf/llama-blocks.gguf");
    let shown = line(d, &format!("inspect --model {} --device cpu --dtype f32 --json", model.display())).json();
    let format = |name: &str| {
        let groups = shown["weights"].as_array().expect("weights").iter();
        groups.filter(|group| group["tensors"] == name).map(|group| group["format"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(format("model.layers.*.self_attn.v_proj.weight"), ["Q4_K"]);
    assert_eq!((format("model.embed_tokens.weight"), format("lm_head.weight")), (vec![json!("Q6_K")], vec![]));
    assert_eq!(shown["model"]["tied"], json!(true));
    assert_eq!(format("model.layers.*.input_layernorm.weight"), ["F32"]);
    let sum = |numbers: bool| -> u64 {
        let groups = shown["weights"].as_array().expect("weights").iter();
        let those = groups.filter(|group| (group["format"] == "F32") == numbers);
        those.map(|group| group["bytes"].as_u64().expect("bytes")).sum()
    };
    assert_eq!(shown["capture"]["weights__quantised"], sum(false));
    assert_eq!(shown["capture"]["weights__mapped"], sum(true));
    // While it is loaded, another is quantised too, but for its table, its head and its norms.
    let base = golden("bnb/llama-int8/base");
    for (to, format) in [("nf4", "nf4"), ("int8", "int8")] {
        let shown = line(d, &format!("inspect --model {} --load-in {to} --json", base.display())).json();
        let groups = shown["weights"].as_array().expect("weights");
        let of_blocks = groups.iter().filter(|group| group["format"] == format).count();
        assert_eq!((of_blocks, groups.len()), (7, 12), "{to}");
    }
}

#[test]
fn scale_that_is_not_finite_is_named_by_what_computes_with_it() {
    let dir = workplace();
    let d = dir.path();
    let path = golden("gguf/llama-blocks.gguf");
    let GgufModel { checkpoint, .. } = GgufModel::open(&path, Loading::Mapped).expect("a model");
    let value = checkpoint.quantized().find(|view| view.name.ends_with("v_proj.weight")).expect("blocks of Q4_K");
    let mut bytes = fs::read(&path).expect("the file");
    let at = bytes.windows(value.codes.len()).position(|bytes| *bytes == *value.codes).expect("the blocks");
    bytes[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
    fs::write(d.join("bad.gguf"), bytes).expect("write");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    line(d, "inspect --model {}/bad.gguf").ok();
    for command in ["capture --input {}/ids.jsonl --out {}/states", "generate --input {}/ids.jsonl"] {
        let error = line(d, &format!("{command} --model {{}}/bad.gguf")).refused();
        assert!(error.contains("bad.gguf: tensor blk.0.attn_v.weight: ") && error.contains("NaN"), "{error}");
    }
}

#[test]
fn gguf_models_run_by_ids_and_by_texts_of_another_tokenizer() {
    let dir = workplace();
    let d = dir.path();
    let model = golden("gguf/llama-f16.gguf");
    let model = model.to_str().expect("a path");
    let shown = line(d, &format!("inspect --model {model} --json")).json();
    assert_eq!((&shown["model"]["family"], &shown["model"]["dtype"]), (&json!("llama"), &json!("F16")));
    let weights = shown["weights"].as_array().expect("weights");
    let table = weights.iter().find(|group| group["tensors"] == "model.embed_tokens.weight").expect("the table");
    assert_eq!((&table["format"], &table["count"], &table["bytes"]), (&json!("F16"), &json!(1), &json!(29 * 16 * 2)));
    let query = weights.iter().find(|group| group["tensors"] == "model.layers.*.self_attn.q_proj.weight").expect("q");
    assert_eq!((&query["format"], &query["count"]), (&json!("F16"), &json!(2)));
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    line(d, &format!("capture --model {model} --input {{}}/ids.jsonl --out {{}}/states")).ok();
    // The file has no vocabulary, and the folder of the other model has one.
    let error = line(d, &format!("generate --model {model} --prompt a")).refused();
    assert!(
        error.contains("llama-f16.gguf: tokenizer.ggml.tokens: expected a list of texts, found nothing"),
        "{error}"
    );
    let words = "--prompt a --max-new-tokens 2";
    let error = line(d, &format!("generate --model {model} --tokenizer {{}}/nowhere {words}")).refused();
    assert!(error.contains("nowhere"), "{error}");
    let error = line(d, &format!("merge --model {model} --adapter {{}}/a --out {{}}/b")).refused();
    assert!(
        error.contains("--model: expected a directory of safetensors (a GGUF file is read, but not written)"),
        "{error}"
    );
    let error = line(d, &format!("inspect --model {model} --revision main")).refused();
    assert!(error.contains("revision: expected none for the file"), "{error}");
}

#[test]
fn gguf_model_of_scaled_frequencies_continues_prompts_of_any_length() {
    let dir = workplace();
    let d = dir.path();
    let model = golden("gguf/llama.gguf");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n{\"input_ids\": [5, 6, 7, 8, 9, 10, 11]}\n");
    let words = "--input {}/ids.jsonl --max-new-tokens 3 --json";
    let shown = line(d, &format!("generate --model {} --device cpu {words}", model.display())).json();
    let results = shown["results"].as_array().expect("results");
    assert_eq!(results.len(), 2);
    assert!(results.iter().all(|result| result["ids"].as_array().is_some_and(|ids| ids.len() == 3)), "{shown}");
}

#[test]
fn inspect_describes_adapters_of_llama_cpp() {
    let dir = workplace();
    let inspect = |model: &str, more: &str| {
        let [model, adapter] = [model, "gguf/lora.gguf"].map(|name| golden(name).display().to_string());
        line(dir.path(), &format!("inspect --model {model} --adapter {adapter}{more}"))
    };
    let shown = inspect("gguf/llama.gguf", " --json").json();
    let adapter = &shown["adapter"];
    let modules = adapter["modules"].as_array().expect("modules");
    assert_eq!(adapter["config"]["adapter.lora.alpha"], json!(3.0));
    assert_eq!(adapter["tensors"], json!(2 * modules.len()));
    assert_eq!(modules[0], json!({"module": "blk.0.attn_k.weight", "rank": 2}));
    assert_eq!((&adapter["readable"], &adapter["refusal"]), (&json!(true), &json!(null)));
    assert!(adapter["peft"][0].as_str().is_some_and(|text| text.starts_with("stops: ValueError")), "{adapter}");
    let text = inspect("gguf/llama.gguf", "").ok().out;
    assert!(text.contains("adapter.lora.alpha") && text.contains("llamaprobe: reads it"), "{text}");
    let text = inspect("gguf/gpt2.gguf", "").ok().out;
    assert!(text.contains("refuses it") && text.contains("general.architecture: expected that of the"), "{text}");
}

#[test]
fn shards_know_an_adapter_of_llama_cpp_by_its_content() {
    let dir = workplace();
    let d = dir.path();
    let adapter = d.join("lora.gguf");
    fs::copy(golden("gguf/lora.gguf"), &adapter).expect("copies");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    let model = golden("gguf/llama.gguf");
    let capture = format!("capture --model {} --adapter {{}}/lora.gguf --input {{}}/ids.jsonl", model.display());
    let capture = format!("{capture} --device cpu --shard-tokens 9 --out {{}}/shards");
    line(d, &capture).ok();
    // What stands behind the last tensor says nothing.
    let content = fs::read(&adapter).expect("a file");
    fs::write(&adapter, [content, vec![0; 32]].concat()).expect("writes");
    let error = line(d, &format!("{capture} --append")).refused();
    assert!(error.contains("adapter_sha256"), "{error}");
}

#[test]
fn quantised_model_is_planned_by_its_stored_bytes_and_tuned_by_lora() {
    let dir = workplace();
    let d = dir.path();
    let model = golden("gguf/llama-blocks.gguf");
    let model = model.to_str().expect("a path");
    let shown = line(d, &format!("inspect --model {model} --device cpu --dtype f32 --json")).json();
    let mut formats = std::collections::BTreeMap::new();
    for group in shown["weights"].as_array().expect("weights") {
        *formats.entry(group["format"].as_str().expect("a format")).or_insert(0) +=
            group["count"].as_u64().expect("count");
    }
    assert_eq!(json!(formats), json!({"F32": 3, "Q4_0": 2, "Q4_K": 1, "Q5_K": 1, "Q6_K": 2, "Q8_0": 2}));
    // Rows of 256 but for o, of 64, and down, of 32: table, q, k, v, o, gate, up, down.
    let of_attention = 64 * 210 + 32 * 176 + 32 * 144 + 256 * 2 * 34;
    let stored = 29 * 210 + of_attention + 32 * 8 * 18 + 32 * 8 * 34 + 256 * 18;
    assert_eq!(shown["capture"]["weights__quantised"], json!(stored));
    assert_eq!(shown["capture"]["weights__mapped"], json!(3 * 256 * 4));
    put(d, "rows.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9], \"labels\": [-100, -100, -100, 8, 9]}\n");
    let train = format!("train-lora --model {model} --train {{}}/rows.jsonl --r 2 --max-steps 2 --device cpu");
    line(d, &format!("{train} --save-steps 1 --out {{}}/tuned")).ok();
    // The adapter alone brings the base that it names.
    let generate =
        |words: &str| line(d, &format!("generate {words} --input {{}}/ids.jsonl --max-new-tokens 3 --json")).json();
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    assert_eq!(generate("--model {}/tuned"), generate(&format!("--model {model} --adapter {{}}/tuned")));
    let base = golden("bnb/llama-nf4/base");
    let train =
        format!("train-lora --model {} --train {{}}/rows.jsonl --r 2 --max-steps 2 --device cpu", base.display());
    line(d, &format!("{train} --load-in nf4 --save-steps 1 --out {{}}/quantised")).ok();
    let error =
        line(d, &format!("{train} --out {{}}/more --resume-from-checkpoint {{}}/quantised/checkpoint-1")).refused();
    assert!(error.contains("load_in"), "{error}");
    let train = format!("train-lora --model {model} --train {{}}/rows.jsonl --r 2 --max-steps 2 --device cpu");
    let error = line(d, &format!("{train} --init-lora-weights pissa --out {{}}/other")).refused();
    assert!(error.contains("blk.0.attn_") && error.contains("a checkpoint that is not quantised"), "{error}");
    assert!(!d.join("other").exists());
}
