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
        ("qwen3", json!(["q_proj", "v_proj"]), &[("model.layers.1.self_attn.q_proj", 24)]),
        ("gemma2", json!(["q_proj", "v_proj"]), &[("model.layers.1.self_attn.v_proj", 12)]),
        ("gemma3", json!(["q_proj", "v_proj"]), &[("model.layers.0.self_attn.q_proj", 24)]),
        ("gemma3-images", json!(["q_proj", "v_proj"]), &[("model.language_model.layers.0.self_attn.q_proj", 24)]),
        ("olmo2", json!(["q_proj", "v_proj"]), &[("model.layers.0.self_attn.v_proj", 12)]),
        ("olmo3", json!(["q_proj", "v_proj"]), &[("model.layers.1.self_attn.v_proj", 8)]),
        ("neox", json!(["query_key_value"]), &[("gpt_neox.layers.1.attention.query_key_value", 48)]),
        ("phi3", json!(["qkv_proj"]), &[("model.layers.1.self_attn.qkv_proj", 32)]),
        ("starcoder2", json!(["q_proj", "v_proj"]), &[("model.layers.0.self_attn.q_proj", 16)]),
        ("stablelm", json!(["q_proj", "v_proj"]), &[("model.layers.0.self_attn.v_proj", 8)]),
        ("smollm3", json!(["q_proj", "v_proj"]), &[("model.layers.1.self_attn.v_proj", 8)]),
        ("gptj", json!(["q_proj", "v_proj"]), &[("transformer.h.1.attn.v_proj", 16)]),
        ("phi", json!(["fc1", "fc2", "q_proj", "v_proj"]), &[("model.layers.1.mlp.fc1", 20)]),
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
        let widths = line(d, "inspect --model {}/model --json").json()["model"].clone();
        let width = widths["heads"].as_u64().expect("heads") * widths["head_dim"].as_u64().expect("a width");
        assert_eq!(shape, [7, width as usize], "{name}");
        let inspected = line(d, "inspect --model {}/model --adapter {}/out --json").json();
        assert_eq!((&inspected["adapter"]["readable"], &inspected["adapter"]["peft"]), (&json!(true), &json!([])));
        let all = train.replace("--r 2", "--r 1 --target-modules all-linear").replace("/out", "/all");
        line(d, &all).ok();
    }
}

/// PEFT 0.21.2 saves the base model's head beside an adapter of it, with its bias, and puts both in the model's place.
#[test]
fn family_head_with_a_bias_is_saved_and_read_as_by_peft() {
    let dir = workplace("phi");
    let d = dir.path();
    let train = "train-lora --model {}/model --train {}/ids.jsonl --target-modules q_proj,lm_head --r 2 --max-steps 1";
    line(d, &format!("{train} --out {{}}/out")).ok();
    let file = d.join("out/adapter_model.safetensors");
    let bias = tensor(&file, "base_model.model.lm_head.base_layer.bias");
    assert_eq!(bias, tensor(&d.join("model/model.safetensors"), "lm_head.bias"));
    let capture = "capture --model {}/model --adapter {}/out --input {}/ids.jsonl --sites logits --out";
    line(d, &format!("{capture} {{}}/own")).ok();
    line(d, &format!("{train} --init-adapter {{}}/out --out {{}}/further")).ok();
    let mut bytes = std::fs::read(&file).expect("the adapter");
    let found: Vec<u8> = bias.1.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    let at = bytes.windows(found.len()).position(|some| some == found).expect("the bias");
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let refused = line(d, &format!("{capture} {{}}/other")).refused();
    let expected = "lm_head.base_layer.bias: expected the values that the base model has, found others";
    assert!(refused.contains(expected), "{refused}");
}

/// PEFT 0.21.2 has no default modules for OLMo, Phi 3, SmolLM3, StarCoder 2 and models of texts and images, and reads the older names of the last.
#[test]
fn family_adapters_are_described_as_peft_takes_them() {
    let report = |name: &str, change: &dyn Fn(&mut Value), prefix: (&str, &str)| {
        let dir = workplace(name);
        let d = dir.path();
        let adapter = crate::support::golden(&format!("model-{name}/adapter"));
        std::fs::create_dir(d.join("adapter")).expect("a folder");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).expect("reads")).expect("JSON");
        change(&mut config);
        put(d, "adapter/adapter_config.json", &config.to_string());
        let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).expect("reads");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let renamed = file.tensors().into_iter().map(|(name, view)| (name.replace(prefix.0, prefix.1), view));
        let bytes = safetensors::serialize(renamed, None).expect("bytes");
        std::fs::write(d.join("adapter/adapter_model.safetensors"), bytes).expect("writes");
        line(d, "inspect --model {}/model --adapter {}/adapter --json").json()["adapter"].clone()
    };
    let unchanged = |_: &mut Value| ();
    let without = |config: &mut Value| drop(config.as_object_mut().expect("an object").remove("target_modules"));
    for name in ["olmo2", "olmo3", "phi3", "gemma3-images", "smollm3", "starcoder2"] {
        assert_eq!(report(name, &unchanged, ("", ""))["peft"], json!([]), "{name}");
        let found = report(name, &without, ("", ""))["peft"].to_string();
        assert!(found.contains("stops: ValueError") && found.contains("target_modules"), "{name}: {found}");
    }
    for (name, default) in
        [("qwen3", "q_proj and v_proj"), ("neox", "query_key_value"), ("phi", "q_proj and v_proj and fc1 and fc2")]
    {
        assert_eq!(report(name, &unchanged, ("", ""))["peft"], json!([]), "{name}");
        let found = report(name, &without, ("", ""))["peft"].to_string();
        assert!(found.contains(&format!("silently takes {default} for target_modules")), "{name}: {found}");
    }
    let [new, old] = ["model.model.language_model.", "model.language_model.model."];
    let found = report("gemma3-images", &unchanged, (new, old));
    assert_eq!((&found["peft"], &found["readable"], &found["ignored"]), (&json!([]), &json!(true), &json!([])));
    let found = report("gemma3-images", &unchanged, (".language_model.layers.1.", ".vision_tower.layers.1."));
    assert!(found["peft"].to_string().contains("the part of images"), "{found}");
}

/// What `inspect` says of norms, caps, windows and rotations is what `config.json` says.
#[test]
fn family_shows_what_it_is_made_of() {
    let of = |name: &str| {
        let dir = workplace(name);
        line(dir.path(), "inspect --model {}/model --json").json()["model"].clone()
    };
    let gemma = of("gemma2");
    assert_eq!((&gemma["norm"], &gemma["qk_norm"]), (&json!("rms, 1 + weight"), &json!("none")));
    assert_eq!(gemma["norm_placement"], "before each sublayer and of its output");
    assert_eq!((&gemma["score_softcap"], &gemma["logit_softcap"]), (&json!(1.5), &json!(2.0)));
    assert_eq!((&gemma["window"], &gemma["layers_without_window"]), (&json!(5), &json!([1])));
    assert_eq!(gemma["score_scale"], json!(5f64.powf(-0.5)));
    let gemma = of("gemma3-images");
    assert_eq!((&gemma["family"], &gemma["qk_norm"]), (&json!("gemma3"), &json!("each head")));
    assert_eq!((&gemma["rope_theta"], &gemma["other_rope_theta"]), (&json!(10000.0), &json!(1000000.0)));
    assert_eq!((&gemma["logit_softcap"], &gemma["dtype"]), (&Value::Null, &json!("F32")));
    let olmo = of("olmo3");
    assert_eq!(
        (&olmo["norm_placement"], &olmo["qk_norm"]),
        (&json!("of each sublayer's output"), &json!("all heads of a row"))
    );
    assert_eq!(olmo["other_rope_layers"], json!([1]));
    let neox = of("neox");
    assert_eq!((&neox["norm"], &neox["parallel"], &neox["rope_width"]), (&json!("layer"), &json!(true), &json!(2)));
    assert_eq!(of("neox-sequential")["parallel"], false);
    assert_eq!(of("smollm3")["layers_without_rope"], json!([1]));
    let gptj = of("gptj");
    assert_eq!((&gptj["rope_width"], &gptj["rope_pairs"]), (&json!(4), &json!("neighbours")));
    let phi = of("phi");
    assert_eq!((&phi["parallel"], &phi["one_norm"], &phi["head_bias"]), (&json!(true), &json!(true), &json!(true)));
    let gpt2 = of("gpt2");
    assert_eq!((&gpt2["norm_placement"], &gpt2["post_norm"]), (&json!("before each sublayer"), &json!(false)));
    assert_eq!(of("opt-behind")["norm_placement"], "behind each sum");
    assert_eq!(gpt2["score_scale"], json!([0.5, 0.25]), "divided by the layer's number");
}

/// The rotation of GPT-J is a table of 24 positions in transformers, which stops behind it.
#[test]
fn family_goes_no_further_than_its_positions() {
    for name in ["gpt2", "gptj"] {
        let dir = workplace(name);
        let long: Vec<String> = (0..25).map(|i| (3 + i % 9).to_string()).collect();
        put(dir.path(), "long.jsonl", &format!("{{\"input_ids\": [{}]}}\n", long.join(",")));
        let capture = "capture --model {}/model --input {}/long.jsonl --out {}/out --sites logits";
        let said = line(dir.path(), capture).refused();
        assert!(said.contains("24 positions") && said.contains("25"), "{name}: {said}");
        assert!(!dir.path().join("out").join("activations.safetensors").exists());
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
}
