//! What PEFT makes of a model of each family (`tests/golden/adapters.py`), and what is read and written for it.

use llamaprobe::arch::{Family, ModelConfig};
use llamaprobe::formats::adapter::{
    LoraAdapter, LoraConfig, Modules, PromptConfig, PromptKind, SavedTensor, Slot, missing_level, todays_name,
};
use llamaprobe::formats::safetensors::{Checkpoint, Dtype, Tensor, write};
use serde_json::{Value, json};

use crate::support::{golden, temp};

/// Name, configuration and expectations of each golden model.
fn families() -> Vec<(String, ModelConfig, Value)> {
    let golden_file: Value = serde_json::from_str(include_str!("../golden/adapters.json")).expect("golden file");
    let families = golden_file["families"].as_object().expect("an object").clone();
    let load = |name: &str| ModelConfig::load(golden(&format!("model-{name}"))).expect("a golden model");
    families.into_iter().map(|(name, want)| (name.clone(), load(&name), want)).collect()
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

fn paths(config: &ModelConfig, slots: &[Slot]) -> Vec<String> {
    let mut paths: Vec<String> = slots.iter().map(|slot| config.family.path(slot.layer, slot.target)).collect();
    paths.sort();
    paths
}

#[test]
fn modules_of_a_family_are_those_of_transformers() {
    let families = families();
    let missing = Family::ALL.iter().filter(|family| !families.iter().any(|(_, config, _)| config.family == **family));
    let llamas = [Family::Llama, Family::Mistral, Family::Qwen2];
    assert_eq!(missing.copied().collect::<Vec<_>>(), llamas, "families without a golden model here");
    for (name, config, want) in families {
        let mut found: Vec<String> =
            config.family.all_modules(config.num_hidden_layers).into_iter().map(|module| module.path).collect();
        // Between the widths of OPT's table and blocks; and its last norm, where there is one.
        let mut expected = names(&want["modules"]);
        expected.retain(|path| !path.contains(".project_"));
        found.retain(|path| config.final_norm || !path.ends_with("decoder.final_layer_norm"));
        found.sort();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn default_modules_of_a_family_are_those_of_peft() {
    for (name, config, want) in families() {
        let family = config.family;
        let list = family.default_modules().iter().map(|&target| family.short_name(target).to_owned()).collect();
        let slots = |modules| {
            let slots = LoraConfig::new(8, 8.0, modules).slots(family, config.num_hidden_layers).expect("slots");
            paths(&config, &slots.blocks)
        };
        assert_eq!(family.has_peft_defaults(), !want["default"].is_null(), "{name}");
        if family.has_peft_defaults() {
            assert_eq!(slots(Modules::List(list)), names(&want["default"]), "{name}");
        }
        let mut linear = names(&want["all-linear"]);
        linear.retain(|path| !path.contains(".project_"));
        assert_eq!(slots(Modules::AllLinear), linear, "{name}");
    }
}

#[test]
fn widths_of_prompts_are_those_of_peft() {
    for (name, config, want) in families() {
        // PEFT takes the width of the stream where the table has another, and its model then stops.
        if config.embed_size != config.hidden_size {
            continue;
        }
        for (kind, method) in [(PromptKind::PromptTuning, "PROMPT_TUNING"), (PromptKind::PrefixTuning, "PREFIX_TUNING")]
        {
            let prompt = PromptConfig::new(kind, 2, &config);
            let found = json!([prompt.token_dim, prompt.num_attention_heads, prompt.num_layers]);
            assert_eq!(found, want["prompts"][method], "{name} {method}");
        }
    }
}

/// An adapter of the golden model of texts and images with other names of tensors, and some more tensors.
fn renamed(of: impl Fn(&str) -> String, more: &[&str]) -> (tempfile::TempDir, ModelConfig) {
    let dir = temp();
    let model = golden("model-gemma3-images");
    let file = Checkpoint::open(model.join("adapter/adapter_model.safetensors")).expect("opens");
    let extra = [0.0f32; 8];
    let named: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|view| (of(&view.name), view.shape.to_vec(), view.data.to_vec()))
        .chain(more.iter().map(|name| ((*name).to_owned(), vec![2, 4], bytemuck::cast_slice(&extra).to_vec())))
        .collect();
    let tensors: Vec<Tensor> =
        named.iter().map(|(name, shape, data)| Tensor { name, dtype: Dtype::F32, shape, data }).collect();
    write(dir.path().join("adapter_model.safetensors"), &tensors, &[]).expect("writes");
    std::fs::copy(model.join("adapter/adapter_config.json"), dir.path().join("adapter_config.json")).expect("copies");
    (dir, ModelConfig::load(&model).expect("loads"))
}

/// PEFT 0.21.2 computes the same logits from both; tensors of the images' part do not concern texts.
#[test]
fn names_of_older_releases_and_tensors_of_images_are_read() {
    let [old, new] = ["base_model.model.language_model.model.", "base_model.model.model.language_model."];
    let (dir, model) = renamed(str::to_owned, &[]);
    let plain = LoraAdapter::read(dir.path(), &model).expect("reads");
    assert_eq!(plain.modules.len(), 4);
    let vision = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight";
    let (dir, _) = renamed(|name| name.replace(new, old), &[vision]);
    assert_eq!(LoraAdapter::read(dir.path(), &model).expect("reads"), plain);
    assert_eq!(missing_level([vision].into_iter(), model.family), None);
    assert_eq!(todays_name(&format!("{old}layers"), model.family), format!("{new}layers"));
    assert_eq!(todays_name(&format!("{old}layers"), Family::Gemma3), format!("{old}layers"));
    // Names of the text model alone are those of another model: PEFT warns and applies nothing.
    let (dir, _) = renamed(|name| name.replace("language_model.", ""), &[]);
    let error = LoraAdapter::read(dir.path(), &model).expect_err("other names").to_string();
    assert!(error.contains("language_model"), "{error}");
}

/// Lists of ends of names mean modules of the images' part too, and what is written leaves them out.
#[test]
fn adapters_written_for_texts_leave_images_alone() {
    let (dir, model) = renamed(str::to_owned, &[]);
    let mut adapter = LoraAdapter::read(dir.path(), &model).expect("reads");
    let written = |adapter: &LoraAdapter| {
        let out = dir.path().join("written");
        adapter.write(&out).expect("writes");
        let text = std::fs::read_to_string(out.join("adapter_config.json")).expect("reads");
        let again = LoraAdapter::read(&out, &model).expect("reads back");
        assert_eq!(again.modules, adapter.modules);
        let slots = again.config.slots(model.family, 2).expect("nothing matches nothing");
        assert_eq!(slots.blocks.len(), adapter.modules.len());
        serde_json::from_str::<Value>(&text).expect("JSON")["exclude_modules"].clone()
    };
    assert_eq!(written(&adapter), Value::Null, "an expression says what it means");
    adapter.config.target_modules = Modules::List(vec!["k_proj".into(), "v_proj".into()]);
    assert_eq!(written(&adapter), json!(r"model\.vision_tower(\..*)?"));
}

/// PEFT 0.21.2 saves a tied GPT-2 with `modules_to_save: ["lm_head"]` and `ensure_weight_tying` as
/// `modules_to_save: ["transformer.wte"]`, with both tensors; with `["wte"]` the table alone, to which the head is not tied.
#[test]
fn a_head_that_is_tied_to_a_saved_table_is_known_by_its_tensor() {
    let model = golden("model-gpt2");
    let config = ModelConfig::load(&model).expect("a golden model");
    let [wide, tall] = [config.vocab_size, config.embed_size];
    let values: Vec<f32> = (0..wide * tall).map(|i| i as f32 / 64.0).collect();
    let table = SavedTensor { name: "transformer.wte.weight".into(), shape: vec![wide, tall], values };
    let mut adapter = LoraAdapter::read(model.join("adapter"), &config).expect("the adapter");
    adapter.config.modules_to_save = vec!["transformer.wte".into()];
    adapter.config.ensure_weight_tying = true;
    adapter.saved = vec![table];
    let saved = |name: &str| LoraConfig { modules_to_save: vec![name.into()], ..adapter.config.clone() };
    assert_eq!(saved("lm_head").saved_modules(&config).expect("a name that PEFT knows"), ["transformer.wte"]);
    assert!(saved("embed_tokens").saved_modules(&config).is_err());
    for ties_head in [true, false] {
        let dir = temp();
        let out = dir.path().join("adapter");
        let adapter = LoraAdapter { ties_head, ..adapter.clone() };
        adapter.write(&out).expect("writes");
        let file = out.join("adapter_model.safetensors");
        let written = Checkpoint::open(&file).expect("opens");
        let head = "base_model.model.lm_head.weight";
        assert_eq!(written.get(head).is_some(), ties_head);
        assert_eq!(LoraAdapter::read(&out, &config).expect("reads"), adapter);
        let mut tensors: Vec<_> =
            written.iter().map(|view| (view.name.clone(), view.shape.clone(), view.data.to_vec())).collect();
        let Some((_, _, data)) = tensors.iter_mut().find(|(name, ..)| name == head) else { continue };
        data[0] ^= 1;
        let tensors: Vec<Tensor> =
            tensors.iter().map(|(name, shape, data)| Tensor { name, dtype: Dtype::F32, shape, data }).collect();
        write(&file, &tensors, &[]).expect("writes");
        let error = LoraAdapter::read(&out, &config).expect_err("another head").to_string();
        assert!(error.contains(head) && error.contains("transformer.wte.weight"), "{error}");
    }
}
