use std::path::Path;

use llamaprobe::arch::Projection;
use llamaprobe::arch::{Family, ModelConfig};
use llamaprobe::formats::adapter::{
    Adapter, LoraAdapter, LoraConfig, LoraModule, Modules, PromptAdapter, PromptConfig, PromptKind,
};
use llamaprobe::formats::safetensors::{Checkpoint, Dtype, Tensor, write};
use serde_json::{Value, json};

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
    let golden: Value = serde_json::from_str(include_str!("../golden/adapters.json")).expect("golden file");
    let dir = temp();
    let path = dir.path().join("adapter_config.json");
    for case in golden["cases"].as_array().expect("cases") {
        let mut given = case["config"].clone();
        given["peft_type"] = "LORA".into();
        std::fs::write(&path, given.to_string()).expect("writes");
        let slots = LoraConfig::read(&path, Family::Llama)
            .and_then(|c| c.slots(Family::Llama, 3))
            .unwrap_or_else(|e| panic!("{given}: {e}"));
        let found: Vec<_> = slots.blocks.iter().map(|s| (Family::Llama.path(s.layer, s.target), s.r)).collect();
        let want = case["slots"].as_array().expect("a list");
        let names: Vec<_> = want
            .iter()
            .map(|w| (w[0].as_str().expect("a name").to_string(), w[1].as_u64().expect("a rank") as usize))
            .collect();
        assert_eq!(found, names, "{given}");
        for (slot, want) in slots.blocks.iter().zip(want) {
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

/// PEFT 0.21 writes the adapter of an `AutoModel` without the first level of names, and with a classifier its head.
#[test]
fn names_of_the_body_alone_and_heads_beside_it_are_read() {
    let whole = LoraAdapter::read(fixture(), &model()).expect("reads");
    let dir = temp();
    let copy = |rename: &dyn Fn(&str) -> String, more: Option<&str>| {
        std::fs::copy(fixture().join("adapter_config.json"), dir.path().join("adapter_config.json")).expect("copies");
        let file = Checkpoint::open(fixture().join("adapter_model.safetensors")).expect("opens");
        let views: Vec<_> = file.iter().map(|view| (rename(&view.name), view)).collect();
        let mut tensors: Vec<Tensor> = views
            .iter()
            .map(|(name, view)| Tensor { name, dtype: view.dtype, shape: &view.shape, data: &view.data })
            .collect();
        if let Some(name) = more {
            tensors.push(Tensor { name, dtype: Dtype::F32, shape: &[1], data: &[0; 4] });
        }
        write(dir.path().join("adapter_model.safetensors"), &tensors, &[]).expect("writes");
        LoraAdapter::read(dir.path(), &model())
    };
    let bare = |name: &str| name.replacen("base_model.model.model.", "base_model.model.", 1);
    assert_eq!(copy(&bare, None).expect("the body alone").modules, whole.modules);
    let same = |name: &str| name.to_owned();
    for head in ["base_model.model.score.weight", "v_head.summary.weight"] {
        assert_eq!(copy(&same, Some(head)).expect(head).modules, whole.modules);
    }
    for other in ["base_model.model.lm_head.weight", "base_model.model.model.norm.weight"] {
        let error = copy(&same, Some(other)).expect_err(other).to_string();
        assert!(error.contains(other), "{error}");
    }
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
    let card = || std::fs::read_to_string(out.join("README.md")).expect("a card");
    assert!(card().contains("- lora\n") && card().contains("### Framework versions"), "{}", card());
    // A card of the user's is updated, and not replaced, whether the directory is or its files are.
    std::fs::write(out.join("README.md"), "# Mine\n").expect("writes");
    other.write(&out).expect("replaces");
    let mine = card();
    assert!(mine.starts_with("---\n") && mine.contains("\n# Mine\n### Framework versions"), "{mine}");
    std::fs::write(out.join("trainer_log.jsonl"), "{}\n").expect("writes");
    adapter.write(&out).expect("writes beside");
    assert_eq!(LoraAdapter::read(&out, &model()).expect("reads"), adapter);
    let mut names: Vec<_> = std::fs::read_dir(&out).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["README.md", "adapter_config.json", "adapter_model.safetensors", "trainer_log.jsonl"]);
    assert_eq!(card(), mine);
    // One that cannot be read stays as it is.
    std::fs::write(out.join("README.md"), [0xff]).expect("writes");
    adapter.write(&out).expect("writes beside");
    assert_eq!(std::fs::read(out.join("README.md")).expect("a file"), [0xff]);
}

#[test]
fn widths_are_those_of_the_projections() {
    let m = model();
    assert_eq!(
        Projection::ALL.map(|t| t.widths(m.block_widths())),
        [(16, 24), (16, 12), (16, 12), (24, 16), (16, 24), (16, 24), (24, 16)]
    );
    let all = LoraConfig::new(4, 8.0, Modules::AllLinear).slots(Family::Llama, 3).expect("all");
    assert_eq!((all.blocks.len(), all.tables.len()), (21, 0));
}

/// A directory with q_proj and v_proj adapted in both layers of a small model, its configuration changed by `patch`.
fn small(dir: &Path, patch: &Value) -> ModelConfig {
    let text = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 9}"#;
    let model = ModelConfig::parse("config.json", text).expect("valid");
    let config = LoraConfig::new(2, 4.0, Modules::List(vec!["q_proj".into(), "v_proj".into()]));
    let slots = config.slots(Family::Llama, 2).expect("slots");
    let modules = slots
        .blocks
        .iter()
        .map(|s| LoraModule {
            layer: s.layer,
            target: s.target,
            r: s.r,
            scale: s.scale,
            a: vec![0.5; 16],
            b: vec![0.25; 16],
            magnitude: None,
        })
        .collect();
    LoraAdapter::new(config, &model, modules).write(dir).expect("writes");
    let path = dir.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).expect("reads");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config.as_object_mut().expect("an object").extend(patch.as_object().expect("an object").clone());
    std::fs::write(&path, config.to_string()).expect("writes");
    model
}

/// With each of these fields PEFT 0.21.2 computes the logits that it computes without, to the last bit.
#[test]
fn fields_without_effect_in_peft_have_none() {
    let plain = temp();
    let model = small(plain.path(), &json!({}));
    let plain = LoraAdapter::read(plain.path(), &model).expect("reads");
    for patch in [
        json!({"alora_invocation_tokens": []}),
        json!({"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}}),
        json!({"bias": "all"}),
        json!({"bias": "lora_only"}),
        json!({"brand_new": [1]}),
        json!({"corda_config": {"corda_method": "kpm"}}),
        json!({"enable_lora": null, "merge_weights": false}),
        json!({"ensure_weight_tying": true}),
        json!({"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"}),
        json!({"exclude_modules": ""}),
        json!({"exclude_modules": ["zz"]}),
        json!({"fan_in_fan_out": true}),
        json!({"inference_mode": false}),
        json!({"init_lora_weights": "Gaussian"}),
        json!({"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "ArBr"}}),
        json!({"init_lora_weights": "mica"}),
        json!({"init_lora_weights": "orthogonal"}),
        json!({"init_lora_weights": null}),
        json!({"layer_replication": []}),
        json!({"layers_to_transform": [0, 1, 9], "layers_pattern": ["layers"]}),
        json!({"loftq_config": {"loftq_bits": 4}}),
        json!({"megatron_config": {}, "megatron_core": "other.core"}),
        json!({"modules_to_save": ["no_such"]}),
        json!({"peft_version": "0.99.0", "revision": "abc"}),
        json!({"rank_pattern": {"zzz": 4}}),
        json!({"runtime_config": {"ephemeral_gpu_offload": true}}),
        json!({"target_modules": ["q_proj", "v_proj", "Wqkv", ""]}),
        json!({"target_modules": r".*\.(q|v)_proj"}),
        json!({"target_modules": r"(?!.*k_proj).*self_attn\.[qv]_proj"}),
        json!({"target_modules": r".*[qv]_proj\Z"}),
        json!({"target_parameters": []}),
        json!({"task_type": "FEATURE_EXTRACTION"}),
        json!({"task_type": "SEQ_CLS"}),
        json!({"trainable_token_indices": {}}),
        json!({"use_qalora": true, "qalora_group_size": 4}),
    ] {
        let dir = temp();
        small(dir.path(), &patch);
        let read = LoraAdapter::read(dir.path(), &model).unwrap_or_else(|e| panic!("{patch}: {e}"));
        assert_eq!(read.modules, plain.modules, "{patch}");
    }
    // In PEFT the scale follows an expression that looks ahead.
    let dir = temp();
    small(dir.path(), &json!({"alpha_pattern": {"(?!.*v_proj).*": 16}}));
    let read = LoraAdapter::read(dir.path(), &model).expect("reads");
    assert_eq!(read.modules.iter().map(|m| m.scale).collect::<Vec<_>>(), [8.0, 2.0, 8.0, 2.0]);
}

/// The defaults of `LoraConfig` in PEFT 0.21.2.
#[test]
fn absent_rank_and_alpha_are_those_of_peft() {
    let dir = temp();
    let path = dir.path().join("adapter_config.json");
    std::fs::write(&path, r#"{"peft_type": "LORA", "target_modules": ["q_proj"]}"#).expect("writes");
    let config = LoraConfig::read(&path, Family::Llama).expect("defaults");
    assert_eq!((config.r, config.lora_alpha), (8, 8.0));
}

/// With each of these fields PEFT 0.21.2 computes something else, or stops.
#[test]
fn fields_that_peft_acts_on_are_refused_by_name() {
    for (patch, field) in [
        (json!({"alora_invocation_tokens": [1, 9]}), "alora_invocation_tokens"),
        (json!({"arrow_config": {}}), "arrow_config"),
        (json!({"bias": "some"}), "bias"),
        (json!({"init_lora_weights": "corda"}), "init_lora_weights"),
        (json!({"init_lora_weights": "olora"}), "init_lora_weights"),
        (json!({"init_lora_weights": "pissa_niter_4"}), "init_lora_weights"),
        (json!({"init_lora_weights": "true"}), "init_lora_weights"),
        (json!({"kasa_config": {}}), "kasa_config"),
        (json!({"layer_replication": [[0, 2], [1, 2]]}), "layer_replication"),
        (json!({"layers_to_transform": [9]}), "layers_to_transform"),
        (json!({"lora_bias": true}), "lora_bias"),
        (json!({"lora_dropout": 2.0}), "lora_dropout"),
        (json!({"megatron_config": {"x": 1}}), "megatron_config"),
        (json!({"modules_to_save": ["mlp"]}), "modules_to_save"),
        (json!({"modules_to_save": ["_proj"]}), "modules_to_save"),
        (json!({"monteclora_config": {}}), "monteclora_config"),
        (json!({"target_modules": ["q_proj", "v_proj", "act_fn"]}), "act_fn"),
        (json!({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": true}), "ensure_weight_tying"),
        (json!({"target_modules": ["q_proj", "embed_positions", "mlp"]}), "layers.0.mlp"),
        (json!({"target_modules": ["q_proj", "v_proj", "lm_head"], "use_dora": true}), "lm_head"),
        (json!({"target_modules": ["q_proj", "v_proj", "layers.0"]}), "layers.0"),
        (json!({"target_modules": ["all-linear"]}), "all-linear"),
        (json!({"target_modules": "q_proj"}), "target_modules"),
        (json!({"target_parameters": ["mlp.up_proj.weight"]}), "target_parameters"),
        (json!({"task_type": "NONSENSE"}), "task_type"),
        (json!({"trainable_token_indices": []}), "trainable_token_indices"),
        (json!({"trainable_token_indices": [3, 3]}), "trainable_token_indices"),
        (json!({"trainable_token_indices": [1_000_000]}), "trainable_token_indices"),
        (json!({"trainable_token_indices": [-1]}), "trainable_token_indices"),
        (json!({"trainable_token_indices": {"lm_head": [1]}}), "trainable_token_indices"),
        (json!({"trainable_token_indices": {"embed_tokens": [1], "lm_head": [1]}}), "trainable_token_indices"),
        (json!({"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]}), "embed_tokens"),
        (json!({"use_bdlora": {"nblocks": 2}}), "use_bdlora"),
        (json!({"velora_config": {}}), "velora_config"),
    ] {
        let dir = temp();
        let model = small(dir.path(), &patch);
        let error = LoraAdapter::read(dir.path(), &model).expect_err(field).to_string();
        assert!(error.contains("adapter_config.json") && error.contains(field), "{patch}: {error}");
    }
    // What is said of the file's tensors.
    for (patch, tensor) in [
        (json!({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}), "model.embed_tokens.lora_embedding_A"),
        (json!({"target_modules": ["q_proj", "v_proj", "lm_head"]}), "lm_head.lora_A.weight"),
        (json!({"modules_to_save": ["model.norm"]}), "model.norm.weight"),
        (json!({"trainable_token_indices": [2]}), "model.embed_tokens.token_adapter.trainable_tokens_delta"),
        // A pattern that matches nothing is a note beside them too.
        (
            json!({"trainable_token_indices": [2], "rank_pattern": {"zzz": 4}}),
            "model.embed_tokens.token_adapter.trainable_tokens_delta",
        ),
    ] {
        let dir = temp();
        let model = small(dir.path(), &patch);
        let error = LoraAdapter::read(dir.path(), &model).expect_err(tensor).to_string();
        assert!(error.contains(&format!("base_model.model.{tensor}: expected it")), "{error}");
    }
}

/// PEFT applies trained biases, which this library does not; without such a choice a bias is a tensor like any other.
#[test]
fn trained_biases_are_refused_by_their_field() {
    for (choice, expected) in [
        (
            "lora_only",
            "adapter_config.json: bias: expected none, since trained biases are not applied, found lora_only, and ",
        ),
        ("none", "q_proj.base_layer.bias: expected no such tensor"),
    ] {
        let dir = temp();
        let model = small(dir.path(), &json!({"bias": choice}));
        let path = dir.path().join("adapter_model.safetensors");
        let file = Checkpoint::open(&path).expect("opens");
        let views: Vec<_> = file.iter().collect();
        let mut tensors: Vec<Tensor> = views
            .iter()
            .map(|view| Tensor { name: &view.name, dtype: view.dtype, shape: &view.shape, data: &view.data })
            .collect();
        let name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias";
        tensors.push(Tensor { name, dtype: Dtype::F32, shape: &[8], data: &[0; 32] });
        write(&path, &tensors, &[]).expect("writes");
        let error = LoraAdapter::read(dir.path(), &model).expect_err("a bias").to_string();
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
}

#[test]
fn other_layouts_of_a_directory_are_named() {
    let dir = temp();
    let model = small(&dir.path().join("top/default"), &json!({}));
    let top = dir.path().join("top");
    let error = |path: &Path| LoraAdapter::read(path, &model).expect_err("refused").to_string();
    assert!(error(&top).contains("it lies in default"), "{}", error(&top));
    let file = top.join("default/adapter_config.json");
    assert!(error(&file).contains("expected a directory"), "{}", error(&file));
    let weights = top.join("default/adapter_model.safetensors");
    std::fs::rename(&weights, weights.with_extension("bin")).expect("renames");
    let other = error(&top.join("default"));
    assert!(other.contains("adapter_model.bin") && other.contains("torch.save"), "{other}");
}

/// Fields of soft prompts with which PEFT 0.21.2 computes the same logits, and those with which it stops.
#[test]
fn prompt_fields_are_those_of_peft() {
    let dir = temp();
    let model = small(&dir.path().join("lora"), &json!({}));
    let read = |kind: PromptKind, patch: Value| {
        let config = PromptConfig::new(kind, 3, &model);
        let rows = vec![0.5; 3 * config.width()];
        let out = dir.path().join("prompt");
        Adapter::Prompt(PromptAdapter { config, rows, encoder: None }).write(&out).expect("writes");
        let path = out.join("adapter_config.json");
        let text = std::fs::read_to_string(&path).expect("reads");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        config.as_object_mut().expect("an object").extend(patch.as_object().expect("an object").clone());
        std::fs::write(&path, config.to_string()).expect("writes");
        Adapter::read(&out, &model).map(|_| ()).map_err(|e| e.to_string())
    };
    use PromptKind::{PTuning, PrefixTuning, PromptTuning};
    for (kind, patch) in [
        (PromptTuning, json!({"num_layers": 9, "num_attention_heads": 9})),
        (PromptTuning, json!({"task_type": "FEATURE_EXTRACTION"})),
        (PromptTuning, json!({"brand_new": 1, "modules_to_save": []})),
        (PTuning, json!({"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 5, "num_layers": 1})),
        (PrefixTuning, json!({"token_dim": 9, "num_attention_heads": 1, "init_weights": "zero"})),
        (PrefixTuning, json!({"token_dim": null, "num_layers": null, "num_attention_heads": null})),
    ] {
        read(kind, patch.clone()).unwrap_or_else(|e| panic!("{patch}: {e}"));
    }
    for (kind, patch, field) in [
        (PromptTuning, json!({"token_dim": 9}), "token_dim"),
        (PromptTuning, json!({"task_type": null}), "task_type"),
        (PromptTuning, json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
        (PTuning, json!({"num_transformer_submodules": 2}), "num_transformer_submodules"),
        (PrefixTuning, json!({"num_layers": 9}), "num_layers"),
        (PrefixTuning, json!({"task_type": "SEQ_CLS"}), "task_type"),
    ] {
        let error = read(kind, patch.clone()).expect_err(field);
        assert!(error.contains(field), "{patch}: {error}");
    }
}
