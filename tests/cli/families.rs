//! Every command on checkpoints of the other families (`tests/golden/families.py`).

use std::path::Path;

use serde_json::{Value, json};

use super::{line, put, tensor};

const DATA: &str = "{\"input_ids\": [5, 6, 7, 8], \"labels\": [-100, 6, 7, 8]}\n\
                    {\"input_ids\": [5, 9, 3], \"labels\": [-100, -100, 3]}\n";

/// A folder with the golden checkpoint of a family in `model`.
fn workplace(name: &str) -> tempfile::TempDir {
    let dir = crate::support::temp();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("model-{name}"));
    std::fs::create_dir(dir.path().join("model")).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), dir.path().join("model").join(file)).expect("copied");
    }
    put(dir.path(), "ids.jsonl", DATA);
    dir
}

#[test]
fn family_default_modules_are_trained_and_read_back() {
    for (name, modules, tensors) in [
        ("gpt2", json!(["c_attn"]), &[("transformer.h.1.attn.c_attn", 36)][..]),
        ("opt", json!(["q_proj", "v_proj"]), &[("model.decoder.layers.1.self_attn.v_proj", 12)]),
        ("opt-behind", json!(["q_proj", "v_proj"]), &[("model.decoder.layers.0.self_attn.q_proj", 12)]),
        ("bloom", json!(["query_key_value"]), &[("transformer.h.0.self_attention.query_key_value", 36)]),
    ] {
        let dir = workplace(name);
        let d = dir.path();
        let train = "train-lora --model {}/model --train {}/ids.jsonl --out {}/out --r 2 --max-steps 3 --learning-rate 0.01 --json";
        assert_eq!(line(d, train).json()["steps"], 3, "{name}");
        let config = std::fs::read_to_string(d.join("out/adapter_config.json")).expect("the configuration");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(config["target_modules"], modules, "{name}");
        assert_eq!(config["fan_in_fan_out"], json!(name == "gpt2"), "{name}");
        for (module, output) in tensors {
            let (shape, values) =
                tensor(&d.join("out/adapter_model.safetensors"), &format!("base_model.model.{module}.lora_B.weight"));
            assert_eq!(shape, [*output, 2], "{name}");
            assert!(values.iter().any(|&x| x != 0.0), "{name}: B has not moved");
        }
        let capture =
            "capture --model {}/model --input {}/ids.jsonl --sites hook_embed,resid_post,q_proj.hook_lora_delta,logits";
        line(d, &format!("{capture} --adapter {{}}/out --out {{}}/tuned")).ok();
        let (shape, _) = tensor(&d.join("tuned/activations.safetensors"), "blocks.1.q_proj.hook_lora_delta");
        assert_eq!(shape, [7, 12], "{name}");
        let inspected = line(d, "inspect --model {}/model --adapter {}/out --json").json();
        assert_eq!((&inspected["adapter"]["readable"], &inspected["adapter"]["peft"]), (&json!(true), &json!([])));
        let all = train.replace("--r 2", "--r 1 --target-modules all-linear").replace("/out", "/all");
        line(d, &all).ok();
    }
}

#[test]
fn family_refuses_what_it_lacks_by_name() {
    let dir = workplace("gpt2");
    let d = dir.path();
    for (site, word) in [("mlp.hook_pre_linear", "gpt2"), ("rot_q", "gpt2")] {
        let said = line(d, &format!("capture --model {{}}/model --input {{}}/ids.jsonl --out {{}}/out --sites {site}"))
            .refused();
        assert!(said.contains(word) && said.contains("--sites"), "{said}");
    }
    let said =
        line(d, "train-lora --model {}/model --train {}/ids.jsonl --out {}/out --target-modules q_proj").refused();
    assert!(said.contains("c_attn") && said.contains("q_proj"), "{said}");
    let long: Vec<String> = (0..25).map(|i| (3 + i % 9).to_string()).collect();
    put(d, "long.jsonl", &format!("{{\"input_ids\": [{}]}}\n", long.join(",")));
    let said = line(d, "capture --model {}/model --input {}/long.jsonl --out {}/out --sites logits").refused();
    assert!(said.contains("24 positions") && said.contains("25"), "{said}");
    assert!(!d.join("out").join("activations.safetensors").exists());
}
