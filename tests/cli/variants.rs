//! What is said of adapters that multiply, of teachers, and of settings that nothing would come of.

use serde_json::{Value, json};

use super::{line, put, workplace};

const PAIR: &str = "{\"prompt\": \"the pen is\", \"completion\": \" in the pot\"}\n";
const OTHER: &str = "{\"prompt\": \"a pot\", \"completion\": \" is thin\"}\n";
const OWN: &str = "{\"demonstrations\": [\"a is b.\"], \"query\": \"the pen\", \"completion\": \" is thin\"}\n";

#[test]
fn ia3_is_described_and_told_from_a_lora() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", PAIR);
    let train = "train-lora --model {}/model --train {}/train.jsonl --max-steps 1";
    line(d, &format!("{train} --peft-type ia3 --out {{}}/ia3")).ok();
    let inspect = || line(d, "inspect --model {}/model --adapter {}/ia3 --json").json()["adapter"].clone();
    let report = inspect();
    assert_eq!((&report["peft"], &report["readable"]), (&json!([]), &json!(true)));
    let module = |path: &str, multiplies: &str| json!({"module": path, "multiplies": multiplies});
    let modules = report["modules"].as_array().expect("modules");
    assert_eq!(modules.len(), 6);
    assert!(modules.contains(&module("model.layers.1.self_attn.k_proj", "output")), "{modules:?}");
    assert!(modules.contains(&module("model.layers.0.mlp.down_proj", "input")), "{modules:?}");
    assert_eq!(report["loaded"].as_array().map(Vec::len), Some(6));
    let text = line(d, "inspect --model {}/model --adapter {}/ia3").ok().out;
    assert!(text.contains("feedforward_modules") && text.contains("PEFT: loads it as it is"), "{text}");
    // What PEFT fills up, and what it ignores then.
    let path = d.join("ia3/adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
    config["target_modules"] = json!(["k_proj", "down_proj"]);
    config.as_object_mut().expect("an object").remove("feedforward_modules");
    std::fs::write(&path, config.to_string()).expect("writes");
    let report = inspect();
    let said = report["peft"].to_string();
    assert!(said.contains("silently takes down_proj for feedforward_modules"), "{said}");
    assert!(said.contains("ignores 2 tensors") && said.contains("v_proj.ia3_l"), "{said}");
    assert_eq!(report["readable"], false);

    line(d, &format!("{train} --peft-type ia3 --out {{}}/ia3")).ok();
    let error = line(d, &format!("{train} --init-adapter {{}}/ia3 --out {{}}/no")).refused();
    assert!(
        error.contains("--init-adapter: expected a LoRA, or --peft-type ia3 beside an IA3, found an IA3 ("),
        "{error}"
    );
    let capture =
        "capture --model {}/model --adapter {}/ia3 --input {}/texts.jsonl --out {}/no --sites k_proj.hook_lora_delta";
    let error = line(d, capture).refused();
    assert!(
        error.contains("--adapter: expected a LoRA on ") && error.contains("found the vector of an IA3"),
        "{error}"
    );
    line(d, "train-prompt --model {}/model --train {}/train.jsonl --max-steps 1 --out {}/pt").ok();
    let error = line(d, &format!("{train} --init-adapter {{}}/pt --out {{}}/no")).refused();
    assert!(error.contains("train-prompt for a soft prompt, found PROMPT_TUNING ("), "{error}");
}

#[test]
fn teachers_that_change_or_teach_nothing_are_named() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", &[PAIR, OTHER, &PAIR.replace("pot", "tin")].concat());
    put(d, "own.jsonl", OWN);
    put(d, "some.jsonl", &[OWN, PAIR, OTHER].concat());
    let train = "train-lora --model {}/model --objective activations --learning-rate 0.01";
    let with = |args: &str| line(d, &format!("{train} {args}"));
    let error = with("--train {}/own.jsonl --demos 2 --max-steps 1 --out {}/no").refused();
    assert!(error.contains("--demos: expected none, since all examples of ") && error.contains("own.jsonl"), "{error}");
    let said = with("--train {}/some.jsonl --demos 1 --max-steps 1 --out {}/some").ok().err;
    assert!(said.contains("1 of 3 examples have demonstrations of their own, which --demos does not change"), "{said}");
    // Values of layer 0 are of what no query projection moves; those of layer 1 are.
    let of_values = "--train {}/train.jsonl --target-modules q_proj --objective-sites attn.hook_v --max-steps 1";
    let error = with(&format!("{of_values} --objective-layers 0 --out {{}}/no")).refused();
    let expected = "--objective-sites: expected a site that the adapter moves: of or behind a module that it adapts, found \
                    blocks.0.attn.hook_v";
    assert!(error.contains(expected), "{error}");
    with(&format!("{of_values} --out {{}}/values")).ok();
    let error = with("--train {}/train.jsonl --demos 1 --modules-to-save norm --max-steps 1 --out {}/no").refused();
    assert!(
        error.contains("--objective: expected ce, where weights of the base model, which is the teacher,"),
        "{error}"
    );
    assert!(!d.join("no").exists());

    let begun = "--train {}/train.jsonl --out {}/run --save-steps 1 --max-steps 2";
    with(&format!("{begun} --demos 1")).ok();
    let again = format!("{begun} --resume-from-checkpoint latest");
    for (args, field) in [
        ("--demos 2", "identity.objective.of_context.demos: expected 2 as in this training, found 1"),
        ("--demos 1 --demos-separator ;", "identity.objective.of_context.demos_separator"),
        ("--demos 1 --objective-sites mlp_out", "objective.hooks[0]"),
    ] {
        let error = with(&format!("{again} {args}")).refused();
        assert!(error.contains(field), "{args}: {error}");
    }
    let error =
        line(d, &again.replacen("--train", "train-lora --model {}/model --learning-rate 0.01 --train", 1)).refused();
    assert!(error.contains("identity.objective: expected null as in this training"), "{error}");
}

#[test]
fn settings_of_which_nothing_would_come_are_refused() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", PAIR);
    let train = "train-lora --model {}/model --train {}/train.jsonl --eval {}/train.jsonl --predict-with-generate --max-steps 1 \
                 --out {}/no";
    for (args, expected) in [
        ("--stop=", "--stop: expected a text, found an empty one"),
        ("--max-new-tokens 0", "--max-new-tokens: expected from 1 to 1048576"),
    ] {
        let error = line(d, &format!("{train} {args}")).refused();
        assert!(error.contains(expected), "{args}: {error}");
    }
    assert!(!d.join("no").exists());
}

#[test]
fn probe_plans_the_memory_of_teachers() {
    let dir = workplace();
    let d = dir.path();
    let probe = "probe --queries 4 --seeds 2 --demos 3 --device cpu --dry-run --json --out {}/no";
    let plan = |arms: &str| line(d, &format!("{probe} {arms}")).json();
    let objective = |arms: &str| plan(arms)["plan"].get("objective").and_then(Value::as_u64);
    assert_eq!(objective(""), None);
    assert_eq!(objective("--arms pt"), None);
    let [states, logits, both] = ["it-act", "it-kl", "it-act,it-kl"]
        .map(|arms| objective(&format!("--arms {arms}")).expect("bytes of a teacher"));
    assert!(states > 0 && logits > 0 && both == states.max(logits), "{states} {logits} {both}");
    assert!(!d.join("no").exists());
}

#[test]
fn tables_of_an_adapter_that_are_the_models_rounded_are_told_from_another_models() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", PAIR);
    line(
        d,
        "train-lora --model {}/model --train {}/train.jsonl --target-modules q_proj,embed_tokens --max-steps 2 --out {}/a",
    )
    .ok();
    let weights = d.join("a/adapter_model.safetensors");
    let intact = std::fs::read(&weights).expect("weights");
    let capture =
        "capture --model {}/model --adapter {}/a --input {}/texts.jsonl --sites hook_embed --dtype bf16 --out";
    line(d, &format!("{capture} {{}}/exact")).ok();
    let with = |changed: fn(f32) -> f32| {
        let file = safetensors::SafeTensors::deserialize(&intact).expect("safetensors");
        let name = "base_model.model.model.embed_tokens.base_layer.weight";
        let table = file.tensor(name).expect("the base model's table");
        let values = table.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
        let bytes: Vec<u8> = values.flat_map(|x| changed(x).to_le_bytes()).collect();
        let other = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, table.shape().to_vec(), &bytes);
        let other = std::iter::once((name, other.expect("a tensor")));
        let rest = file.tensors().into_iter().filter(|(n, _)| n != name);
        let all: Vec<_> = rest.chain(other.map(|(n, view)| (n.to_owned(), view))).collect();
        std::fs::write(&weights, safetensors::serialize(all, None).expect("bytes")).expect("written");
    };
    with(|x| half::bf16::from_f32(x).to_f32());
    let told = line(d, &format!("{capture} {{}}/rounded")).ok().err;
    assert!(
        told.contains("model.embed_tokens.base_layer.weight: the base model's values rounded to bfloat16"),
        "{told}"
    );
    let found = |out: &str| super::tensor(&d.join(out).join("activations.safetensors"), "hook_embed");
    assert_eq!(found("exact"), found("rounded"));
    line(d, "train-lora --model {}/model --train {}/train.jsonl --init-adapter {}/a --max-steps 1 --out {}/b").ok();
    with(|x| x * 1.01);
    let error = line(d, &format!("{capture} {{}}/no")).refused();
    let expected =
        "/a: model.embed_tokens.base_layer.weight: expected the values that the base model has, found others";
    assert!(error.contains(expected), "{error}");
}
