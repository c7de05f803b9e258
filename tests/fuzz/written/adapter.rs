use std::path::Path;

use llamaprobe::arch::ModelConfig;
use llamaprobe::formats::adapter::LoraAdapter;
use llamaprobe::formats::safetensors::{Dtype, Tensor, write};
use serde_json::{Value, json};

use super::{Case, case, put};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn read(dir: &Path) -> llamaprobe::Result<()> {
    let text = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 9}"#;
    LoraAdapter::read(dir, &ModelConfig::parse("config.json", text).expect("valid")).map(|_| ())
}

/// Writes q's A and B of rank 2, changed by `change`, and further tensors.
fn weights(dir: &Path, a: (&str, [usize; 2], f32), b: (&str, [usize; 2], f32), more: &[&str]) {
    let data = vec![0f32; 64];
    let (fill_a, fill_b) = (vec![a.2; a.1[0] * a.1[1]], vec![b.2; b.1[0] * b.1[1]]);
    let mut tensors = vec![
        Tensor { name: a.0, dtype: Dtype::F32, shape: &a.1, data: bytemuck::cast_slice(&fill_a) },
        Tensor { name: b.0, dtype: Dtype::F32, shape: &b.1, data: bytemuck::cast_slice(&fill_b) },
    ];
    for name in more {
        tensors.push(Tensor { name, dtype: Dtype::F32, shape: &[64], data: bytemuck::cast_slice(&data) });
    }
    write(dir.join(WEIGHTS), &tensors, &[]).expect("writes");
}

pub fn cases() -> Vec<Case> {
    let base = || json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]});
    let good = |dir: &Path| {
        let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
        weights(dir, (&a, [2, 8], 0.5), (&b, [8, 2], 0.5), &[]);
    };
    let with = |patch: Value, words: &[&str]| {
        let mut config = base();
        config.as_object_mut().expect("object").extend(patch.as_object().expect("object").clone());
        case(format!("adapter: {patch}"), &[&[CONFIG], words].concat(), move |dir| {
            good(dir);
            put(dir, CONFIG, config.to_string());
            read(dir)
        })
    };
    let tensors = |name: &str, words: &[&str], fill: fn(&Path, &str, &str)| {
        case(format!("adapter: {name}"), &[&[WEIGHTS], words].concat(), move |dir| {
            put(dir, CONFIG, base().to_string());
            fill(dir, &format!("{Q}.lora_A.weight"), &format!("{Q}.lora_B.weight"));
            read(dir)
        })
    };
    vec![
        case("adapter: nothing", &[CONFIG], read),
        case("adapter: no weights", &[WEIGHTS], move |dir| {
            put(dir, CONFIG, base().to_string());
            read(dir)
        }),
        with(json!({"peft_type": null}), &["peft_type"]),
        with(json!({"peft_type": "PROMPT_TUNING"}), &["peft_type", "PROMPT_TUNING"]),
        with(json!({"r": null}), &["r"]),
        with(json!({"r": 0}), &["r", "0"]),
        with(json!({"r": -2}), &["r", "-2"]),
        with(json!({"r": 1u64 << 60}), &["r"]),
        with(json!({"lora_alpha": null}), &["lora_alpha"]),
        with(json!({"lora_alpha": "8"}), &["lora_alpha"]),
        with(json!({"lora_dropout": 1.5}), &["lora_dropout"]),
        with(json!({"target_modules": null}), &["target_modules"]),
        with(json!({"target_modules": []}), &["target_modules"]),
        with(json!({"target_modules": 7}), &["target_modules"]),
        with(json!({"target_modules": ["q_proj", 1]}), &["target_modules"]),
        with(json!({"target_modules": ["c_attn"]}), &["target_modules", "c_attn"]),
        with(json!({"target_modules": ["q_proj", "mlp"]}), &["target_modules", "layers.0.mlp"]),
        with(json!({"target_modules": ["q_proj", "norm"]}), &["target_modules", "model.norm"]),
        with(json!({"target_modules": ".*"}), &["target_modules", "model"]),
        with(json!({"target_modules": "(q_proj"}), &["target_modules", "(q_proj"]),
        with(json!({"target_modules": r"(?!x).*zz_proj"}), &["target_modules", "none"]),
        with(json!({"target_modules": r".*nothing"}), &["target_modules", "none"]),
        with(json!({"exclude_modules": ["q_proj"]}), &["target_modules"]),
        with(json!({"layers_to_transform": [1]}), &["layers_to_transform", "1"]),
        with(json!({"layers_to_transform": ["a"]}), &["layers_to_transform"]),
        with(json!({"layers_pattern": "layers"}), &["layers_pattern", "layers_to_transform"]),
        with(json!({"rank_pattern": {"q_proj": 0}}), &["rank_pattern.q_proj"]),
        with(json!({"rank_pattern": {"(": 2}}), &["rank_pattern"]),
        with(json!({"rank_pattern": ["q_proj"]}), &["rank_pattern"]),
        with(json!({"alpha_pattern": {"q_proj": "x"}}), &["alpha_pattern.q_proj"]),
        with(json!({"bias": "some"}), &["bias", "some"]),
        with(json!({"lora_bias": true}), &["lora_bias"]),
        with(json!({"fan_in_fan_out": 1}), &["fan_in_fan_out"]),
        with(json!({"modules_to_save": ["mlp"]}), &["modules_to_save", "mlp"]),
        with(json!({"modules_to_save": [1]}), &["modules_to_save"]),
        with(json!({"task_type": "NEW_TASK"}), &["task_type", "NEW_TASK"]),
        with(json!({"init_lora_weights": "pissa"}), &["init_lora_weights", "pissa"]),
        with(json!({"alora_invocation_tokens": [1, 2]}), &["alora_invocation_tokens"]),
        with(json!({"trainable_token_indices": [-1]}), &["trainable_token_indices"]),
        with(json!({"target_parameters": ["x"]}), &["target_parameters"]),
        with(json!({"layer_replication": [[0, 1]]}), &["layer_replication"]),
        with(json!({"kasa_config": {}}), &["kasa_config"]),
        with(json!({"arrow_config": {}}), &["arrow_config"]),
        with(json!({"use_bdlora": false}), &["use_bdlora"]),
        with(json!({"megatron_config": {"a": 1}}), &["megatron_config"]),
        tensors("A missing", &["lora_A.weight", "none"], |dir, _, b| {
            weights(dir, (b, [8, 2], 0.0), ("x", [1, 1], 0.0), &[])
        }),
        tensors("B missing", &["lora_B.weight", "none"], |dir, a, _| {
            weights(dir, (a, [2, 8], 0.0), ("x", [1, 1], 0.0), &[])
        }),
        tensors("no prefix", &["base_model.model.", "none"], |dir, _, _| {
            let bare = "model.layers.0.self_attn.q_proj";
            weights(
                dir,
                (&format!("{bare}.lora_A.weight"), [2, 8], 0.0),
                (&format!("{bare}.lora_B.weight"), [8, 2], 0.0),
                &[],
            );
        }),
        tensors("another module", &["up_proj.lora_A.weight", "expected no such"], |dir, a, b| {
            weights(
                dir,
                (a, [2, 8], 0.0),
                (b, [8, 2], 0.0),
                &["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"],
            );
        }),
        tensors("another layer", &["layers.1.", "expected no such"], |dir, a, b| {
            weights(
                dir,
                (a, [2, 8], 0.0),
                (b, [8, 2], 0.0),
                &["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"],
            );
        }),
        tensors("magnitudes", &["lora_magnitude_vector"], |dir, a, b| {
            weights(
                dir,
                (a, [2, 8], 0.0),
                (b, [8, 2], 0.0),
                &["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"],
            );
        }),
        tensors("A of rank 3", &["lora_A.weight", "[2, 8]", "[3, 8]"], |dir, a, b| {
            weights(dir, (a, [3, 8], 0.0), (b, [8, 2], 0.0), &[])
        }),
        tensors("A transposed", &["lora_A.weight", "[2, 8]", "[8, 2]"], |dir, a, b| {
            weights(dir, (a, [8, 2], 0.0), (b, [8, 2], 0.0), &[])
        }),
        tensors("B of another width", &["lora_B.weight", "[8, 2]", "[4, 2]"], |dir, a, b| {
            weights(dir, (a, [2, 8], 0.0), (b, [4, 2], 0.0), &[])
        }),
        tensors("NaN", &["lora_B.weight", "NaN"], |dir, a, b| {
            weights(dir, (a, [2, 8], 0.0), (b, [8, 2], f32::NAN), &[])
        }),
        tensors("not a safetensors file", &["header"], |dir, _, _| {
            put(dir, WEIGHTS, "PK\x03\x04 a zip file, or a pickle")
        }),
    ]
}
