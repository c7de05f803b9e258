//! `inspect`.

use std::fs;

use safetensors::tensor::TensorView;
use serde_json::Value;

use super::{line, put, workplace};
use crate::support::tiny_model::TinyModel;

#[test]
fn inspect_shows_shapes_and_parameters_of_the_file() {
    let dir = workplace();
    let json = line(dir.path(), "inspect --model {}/model --rows 100 --json").json();
    let elements: usize = TinyModel::default().tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(json["model"]["parameters"], elements);
    assert_eq!(json["capture"]["weights__mapped"], 4 * elements);
    let total = |plan: &Value| plan["total"].as_u64().expect("a sum");
    assert!(total(&json["train_lora"]) > total(&json["capture"]));
    let text = line(dir.path(), "inspect --model {}/model").ok().out;
    assert!(text.contains("layers") && text.contains("activations"), "{text}");
}

#[test]
fn inspect_says_what_peft_does_silently() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/adapter --max-steps 1").ok();
    let inspect = || line(d, "inspect --model {}/model --adapter {}/adapter --json").json()["adapter"].clone();
    let found = |report: &Value, text: &str| {
        report["peft"].as_array().expect("findings").iter().any(|f| f.as_str().is_some_and(|f| f.contains(text)))
    };
    let good = inspect();
    assert_eq!((good["readable"].as_bool(), good["tensors"].as_u64()), (Some(true), Some(8)));
    assert_eq!(good["peft"], serde_json::json!([]));

    let weights = d.join("adapter/adapter_model.safetensors");
    let intact = fs::read(&weights).expect("weights");
    let file = safetensors::SafeTensors::deserialize(&intact).expect("safetensors");
    let extra = vec![0u8; 4 * 8 * 24];
    let view = TensorView::new(safetensors::Dtype::F32, vec![8, 24], &extra).expect("a tensor");
    let name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight";
    let more = file.tensors().into_iter().chain([(name.to_owned(), view)]);
    fs::write(&weights, safetensors::serialize(more, None).expect("bytes")).expect("write");
    let report = inspect();
    assert!(found(&report, "without a warning") && found(&report, "up_proj"), "{report}");
    assert_eq!(report["readable"], false);

    fs::write(&weights, &intact).expect("write");
    let config = d.join("adapter/adapter_config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).expect("config")).expect("JSON");
    value.as_object_mut().expect("an object").remove("lora_alpha");
    fs::write(&config, value.to_string()).expect("write");
    let report = inspect();
    assert!(found(&report, "silently takes 8 for lora_alpha"), "{report}");
    assert!(report["refusal"].as_str().is_some_and(|r| r.contains("lora_alpha")), "{report}");
}
