use std::path::Path;

use llamaprobe::arch::Projection;
use llamaprobe::arch::{Family, ModelConfig};
use llamaprobe::formats::adapter::{LoraAdapter, LoraConfig, Modules};
use serde_json::Value;

use crate::support::temp;

fn model() -> ModelConfig {
    let text = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 32}"#;
    ModelConfig::parse("config.json", text).expect("valid")
}

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft_adapter")
}

/// Modules, ranks and scales for every way of naming them are those that PEFT itself arrives at.
#[test]
fn modules_are_those_of_peft() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../golden/adapters.json")).expect("golden file");
    let dir = temp();
    let path = dir.path().join("adapter_config.json");
    for case in &cases {
        let mut given = case["config"].clone();
        given["peft_type"] = "LORA".into();
        std::fs::write(&path, given.to_string()).expect("writes");
        let slots = LoraConfig::read(&path, Family::Llama)
            .and_then(|c| c.slots(Family::Llama, 3))
            .unwrap_or_else(|e| panic!("{given}: {e}"));
        let found: Vec<_> = slots.iter().map(|s| (Family::Llama.path(s.layer, s.target), s.r)).collect();
        let want = case["slots"].as_array().expect("a list");
        let names: Vec<_> = want
            .iter()
            .map(|w| (w[0].as_str().expect("a name").to_string(), w[1].as_u64().expect("a rank") as usize))
            .collect();
        assert_eq!(found, names, "{given}");
        for (slot, want) in slots.iter().zip(want) {
            let scale = want[2].as_f64().expect("a scale");
            assert!((slot.scale - scale).abs() <= 1e-12 * scale, "{given}: {} {scale}", slot.scale);
        }
    }
}

/// PEFT's own directory is read, and writing it again gives the same weights file byte for byte.
#[test]
fn a_peft_directory_survives_reading_and_writing() {
    let adapter = LoraAdapter::read(fixture(), &model()).expect("reads");
    assert_eq!(adapter.modules.len(), 9);
    assert_eq!((adapter.config.r, adapter.config.lora_alpha, adapter.config.lora_dropout), (2, 8.0, 0.25));
    let down = adapter.modules.iter().find(|m| m.target == Projection::Down).expect("there");
    assert_eq!((down.r, down.scale, down.a.len(), down.b.len()), (3, 8.0 / 3.0, 3 * 24, 16 * 3));
    let dir = temp();
    let out = dir.path().join("adapter");
    adapter.write(&out).expect("writes");
    let read = |dir: &Path| std::fs::read(dir.join("adapter_model.safetensors")).expect("reads");
    assert!(read(&out) == read(&fixture()), "weights differ");
    assert_eq!(LoraAdapter::read(&out, &model()).expect("reads"), adapter);
    let config = std::fs::read_to_string(out.join("adapter_config.json")).expect("reads");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let original = std::fs::read_to_string(fixture().join("adapter_config.json")).expect("reads");
    let original: Value = serde_json::from_str(&original).expect("JSON");
    let keys: Vec<_> = config.as_object().expect("object").keys().collect();
    assert!(keys.is_sorted(), "{keys:?}");
    for (key, value) in config.as_object().expect("object") {
        if !["init_lora_weights", "target_modules"].contains(&key.as_str()) {
            assert_eq!(value, &original[key], "{key}");
        }
    }
    assert_eq!(config["target_modules"], serde_json::json!(["down_proj", "q_proj", "v_proj"]));
}

#[test]
fn writing_replaces_an_adapter_and_spares_other_files() {
    let adapter = LoraAdapter::read(fixture(), &model()).expect("reads");
    let dir = temp();
    let out = dir.path().join("adapter");
    adapter.write(&out).expect("writes");
    let mut other = adapter.clone();
    other.config.lora_dropout = 0.5;
    other.write(&out).expect("replaces");
    assert_eq!(LoraAdapter::read(&out, &model()).expect("reads"), other);
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1, "no temporaries");
    std::fs::write(out.join("trainer_log.jsonl"), "{}\n").expect("writes");
    adapter.write(&out).expect("writes beside");
    assert_eq!(LoraAdapter::read(&out, &model()).expect("reads"), adapter);
    let mut names: Vec<_> = std::fs::read_dir(&out).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "trainer_log.jsonl"]);
}

#[test]
fn widths_are_those_of_the_projections() {
    let m = model();
    assert_eq!(
        Projection::ALL.map(|t| t.widths(m.block_widths())),
        [(16, 24), (16, 12), (16, 12), (24, 16), (16, 24), (16, 24), (24, 16)]
    );
    let all = LoraConfig::new(4, 8.0, Modules::AllLinear).slots(Family::Llama, 3).expect("all");
    assert_eq!(all.len(), 21);
}
