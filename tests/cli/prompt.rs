//! `train-prompt`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::trained::{DATA, files, log, survives};
use super::{leftovers, line, put, run, tensor, words, workplace};

const SHOWN: &str = "{\"demonstrations\": [\"a is b.\\n\", \"c is d.\\n\"], \"query\": \"the pen is\", \"completion\": \" thin\"}\n\
                     {\"demonstrations\": [], \"query\": \"the pot is\", \"completion\": \" in\"}\n";

fn rows(dir: &Path) -> (Vec<usize>, Vec<f64>) {
    tensor(&dir.join("adapter_model.safetensors"), "prompt_embeddings")
}

#[test]
fn prompt_is_trained_logged_and_applied() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let json = line(
        d,
        "train-prompt --model {}/model --train {}/train.jsonl --out {}/out --num-virtual-tokens 6 --learning-rate 3e-2 \
         --batch-size 5 --max-steps 60 --lr-scheduler-type constant --seed 0 --save-steps 25 --json",
    )
    .json();
    assert_eq!((&json["steps"], &json["seed"], &json["num_virtual_tokens"]), (&60.into(), &0.into(), &6.into()));
    let lines = log(&d.join("out"));
    assert_eq!(lines.len(), 60);
    let loss = |i: usize| lines[i]["loss"].as_f64().expect("a loss");
    assert!(loss(59) < 0.9 * loss(0), "{} to {}", loss(0), loss(59));
    let config: Value = serde_json::from_slice(&files(&d.join("out"))[1]).expect("JSON");
    assert_eq!((&config["peft_type"], &config["task_type"]), (&"PROMPT_TUNING".into(), &"CAUSAL_LM".into()));
    assert_eq!((&config["num_virtual_tokens"], &config["token_dim"]), (&6.into(), &24.into()));
    assert_eq!(rows(&d.join("out")).0, [6, 24]);
    assert!(d.join("out/checkpoint-25/adapter_model.safetensors").exists() && leftovers(d).is_empty());

    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/base").ok();
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/tuned --adapter {}/out").ok();
    let states = |name: &str, of: &str| tensor(&d.join(name).join("activations.safetensors"), of).1;
    let (base, tuned) = (states("base", "token_id"), states("tuned", "token_id"));
    assert_eq!(tuned[..6], [-1.0; 6], "the prompt's rows are in the file");
    assert_eq!(base, tuned.iter().copied().filter(|&t| t >= 0.0).collect::<Vec<_>>());
    let text = |adapter: &str| {
        let found = line(d, &format!("generate --model {{}}/model --prompt the --max-new-tokens 12 --json {adapter}"));
        found.json()["results"][0]["ids"].clone()
    };
    assert_ne!(text(""), text("--adapter {}/out"), "the prompt has no effect");
    let report = line(d, "inspect --model {}/model --adapter {}/out --json").json()["adapter"].clone();
    assert_eq!((&report["readable"], &report["parameters"]), (&true.into(), &(6 * 24).into()), "{report}");
}

#[test]
fn prompt_runs_together_equal_runs_alone() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train = "train-prompt --model {}/model --train {}/train.jsonl --batch-size 2 --max-steps 6 --save-steps 4";
    let json = line(d, &format!("{train} --out {{}}/grid --num-virtual-tokens 3,7 --seeds 2 --seed 5 --json")).json();
    let runs = json["runs"].as_array().expect("the runs");
    assert_eq!(runs.len(), 4);
    for (i, run) in runs.iter().enumerate() {
        let (rows, seed) = (&run["num_virtual_tokens"], &run["seed"]);
        line(d, &format!("{train} --out {{}}/alone-{i} --num-virtual-tokens {rows} --seed {seed}")).ok();
        let found = Path::new(run["adapter"].as_str().expect("a directory"));
        assert_eq!(files(found), files(&d.join(format!("alone-{i}"))), "{rows} rows, seed {seed}");
        assert!(d.join(format!("grid/checkpoint-4/run-{i:03}/adapter_config.json")).exists());
    }
    let text = line(d, &format!("{train} --out {{}}/table --num-virtual-tokens 3,7")).ok().out;
    assert!(text.contains("num_virtual_tokens") && text.contains("run-001"), "{text}");
}

#[test]
fn prompt_init_follows_flags() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let still = "train-prompt --model {}/model --train {}/train.jsonl --max-steps 1 --lr 0 --num-virtual-tokens 7";
    let (_, table) = tensor(&d.join("model/model.safetensors"), "model.embed_tokens.weight");
    let table: Vec<&[f64]> = table.chunks(24).collect();
    let ids = |name: &str| -> Vec<usize> {
        let (_, rows) = rows(&d.join(name));
        let id = |row: &[f64]| table.iter().position(|known| *known == row).expect("a row of the embedding table");
        rows.chunks(24).map(id).collect()
    };
    line(d, &format!("{still} --out {{}}/sampled")).ok();
    line(d, &format!("{still} --out {{}}/other --seed 7")).ok();
    assert_ne!(ids("sampled"), ids("other"), "the seed matters");
    let mut args = words(d, &format!("{still} --out {{}}/text --prompt-tuning-init text --prompt-tuning-init-text"));
    args.push("the pot".to_owned());
    run(&args).ok();
    put(d, "one.jsonl", "{\"text\": \"the pot\"}\n");
    line(d, "capture --model {}/model --input {}/one.jsonl --out {}/ids --sites embed").ok();
    let (_, tokens) = tensor(&d.join("ids/activations.safetensors"), "token_id");
    let expected: Vec<usize> = tokens.iter().map(|&id| id as usize).cycle().take(7).collect();
    assert_eq!(ids("text"), expected, "the text's tokens, <s> first, repeated");
    line(d, &format!("{still} --out {{}}/random --prompt-tuning-init RANDOM")).ok();
    let (_, random) = rows(&d.join("random"));
    let square = random.iter().map(|x| x * x).sum::<f64>() / random.len() as f64;
    assert!((0.6..1.6).contains(&square), "{square}");

    // From an adapter, which is that adapter at a rate of 0.
    line(d, &format!("{} --out {{}}/again --init-adapter {{}}/random", still.replace(" --num-virtual-tokens 7", "")))
        .ok();
    assert_eq!(files(&d.join("again")), files(&d.join("random")));
}

#[test]
fn prompt_ipt_has_demonstrations_before_the_query() {
    let dir = workplace();
    let d = dir.path();
    put(d, "shown.jsonl", SHOWN);
    let train =
        "train-prompt --model {}/model --out {}/out --num-virtual-tokens 2 --max-steps 2 --batch-size 2 --no-shuffle";
    let json = line(d, &format!("{train} --method ipt --train {{}}/shown.jsonl --json")).json();
    let tokens = |text: &str| {
        put(d, "one.jsonl", &format!("{{\"text\": \"{text}\"}}\n"));
        line(d, "capture --model {}/model --input {}/one.jsonl --out {}/states --sites embed --json").json()["tokens"]
            .as_u64()
            .expect("a number")
    };
    let whole = tokens("a is b.\\nc is d.\\nthe pen is thin") + tokens("the pot is in");
    assert_eq!(json["tokens"], 2 * whole);

    fs::remove_dir_all(d.join("out")).expect("remove");
    put(d, "train.jsonl", DATA);
    for (args, expected) in [
        ("--method ipt --train {}/train.jsonl", "train.jsonl:1"),
        ("--method pt --train {}/shown.jsonl", "shown.jsonl:1"),
    ] {
        let found = line(d, &format!("{train} {args}")).refused();
        assert!(found.contains(expected) && found.contains("demonstrations"), "{args}: {found}");
    }
    for (text, expected) in [
        ("{\"demonstrations\": \"a\", \"query\": \"b\", \"completion\": \"c\"}\n", "demonstrations"),
        ("{\"demonstrations\": [1], \"query\": \"b\", \"completion\": \"c\"}\n", "demonstrations"),
        ("{\"demonstrations\": [\"a\"], \"completion\": \"c\"}\n", "query"),
        ("{\"demonstrations\": [\"a\"], \"query\": \"b\"}\n", "completion"),
        ("{\"demonstrations\": [\"a\"], \"prompt\": \"b\", \"completion\": \"c\"}\n", "one form"),
    ] {
        put(d, "bad.jsonl", text);
        let found = line(d, &format!("{train} --method ipt --train {{}}/bad.jsonl")).refused();
        assert!(found.contains("bad.jsonl:1") && found.contains(expected), "{text}: {found}");
    }
    assert!(!d.join("out").exists() && leftovers(d).is_empty());
}

#[test]
fn prompt_refuses_bad_settings_before_writing() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/lora --max-steps 1").ok();
    let train = "train-prompt --model {}/model --train {}/train.jsonl";
    line(d, &format!("{train} --out {{}}/prompt --max-steps 1 --num-virtual-tokens 3")).ok();
    for (args, expected) in [
        ("--num-virtual-tokens 0", "--num-virtual-tokens"),
        ("--num-virtual-tokens 3,0", "--num-virtual-tokens"),
        ("--num-virtual-tokens 99999999", "--num-virtual-tokens"),
        ("--seeds 0", "--seeds"),
        ("--prompt-tuning-init text", "--prompt-tuning-init-text"),
        ("--prompt-tuning-init-text the", "--prompt-tuning-init"),
        ("--init-adapter {}/none", "adapter_config.json"),
        ("--init-adapter {}/lora", "soft prompt"),
        ("--init-adapter {}/prompt --num-virtual-tokens 4", "--num-virtual-tokens"),
        ("--learning-rate nan", "--learning-rate"),
    ] {
        let found = line(d, &format!("{train} --out {{}}/out {args}")).refused();
        assert!(found.contains(expected), "{args}: {found}");
    }
    assert!(!d.join("out").exists() && leftovers(d).is_empty());
    let found = line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/out --init-adapter {}/prompt");
    assert!(found.refused().contains("--init-adapter: expected a LoRA, or train-prompt for a soft prompt"));
}

#[test]
fn prompt_adapter_errors_name_the_file() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train = "train-prompt --model {}/model --train {}/train.jsonl --num-virtual-tokens 3 --max-steps 1";
    line(d, &format!("{train} --out {{}}/prompt")).ok();
    let config = d.join("prompt/adapter_config.json");
    let weights = d.join("prompt/adapter_model.safetensors");
    let text = fs::read_to_string(&config).expect("config");
    let refused = |expected: &str| {
        let found =
            line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/states --adapter {}/prompt").refused();
        assert!(found.contains(expected), "{expected}: {found}");
        assert!(!d.join("states").exists());
    };
    for (from, to, expected) in [
        ("\"PROMPT_TUNING\"", "\"MULTITASK_PROMPT_TUNING\"", "peft_type"),
        ("\"PROMPT_TUNING\"", "7", "peft_type"),
        ("\"task_type\": \"CAUSAL_LM\"", "\"task_type\": null", "task_type"),
        ("\"task_type\": \"CAUSAL_LM\"", "\"task_type\": \"TOKEN_CLS\"", "task_type"),
        ("\"num_virtual_tokens\": 3", "\"num_virtual_tokens\": 4", "adapter_model.safetensors"),
        ("\"num_virtual_tokens\": 3", "\"num_virtual_tokens\": 0", "num_virtual_tokens"),
        ("\"num_virtual_tokens\": 3", "\"num_virtual_tokens\": null", "num_virtual_tokens"),
        ("\"num_virtual_tokens\": 3", "\"num_virtual_tokens\": 3.0", "num_virtual_tokens"),
        ("\"token_dim\": 24", "\"token_dim\": 32", "token_dim"),
        ("\"num_transformer_submodules\": 1", "\"num_transformer_submodules\": 2", "num_transformer_submodules"),
        ("\"revision\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&config, text.replace(from, to)).expect("write");
        refused(expected);
    }
    // What only PEFT minds is read.
    let tuned = text.replace("\"prompt_tuning_init\": \"RANDOM\"", "\"prompt_tuning_init\": \"TEXT\"");
    fs::write(&config, &tuned).expect("write");
    let report = line(d, "inspect --model {}/model --adapter {}/prompt --json").json()["adapter"].clone();
    assert!(
        report["peft"].to_string().contains("ValueError, the start is a TEXT") && report["readable"] == true,
        "{report}"
    );
    fs::write(&config, text.replace("\"CAUSAL_LM\"", "null")).expect("write");
    let report = line(d, "inspect --model {}/model --adapter {}/prompt --json").json()["adapter"].clone();
    assert!(report["peft"].to_string().contains("does not apply it") && report["readable"] == false, "{report}");
    fs::write(&config, &text).expect("write");

    let intact = fs::read(&weights).expect("weights");
    let mut infinite = intact.clone();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let lora = d.join("lora");
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/lora --max-steps 1").ok();
    let others = fs::read(lora.join("adapter_model.safetensors")).expect("weights");
    for bytes in [&[][..], &intact[..end - 1], &infinite, &others] {
        fs::write(&weights, bytes).expect("write");
        refused("adapter_model.safetensors");
    }
    fs::remove_file(&weights).expect("remove");
    refused("adapter_model.safetensors");
}

#[test]
fn prompt_mlp_computes_the_prompt_and_is_saved() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train = "train-prompt --model {}/model --train {}/train.jsonl --batch-size 5 --num-virtual-tokens 4";
    let first = |name: &str| log(&d.join(name))[0]["loss"].clone();
    let steps = "--max-steps 30 --lr 3e-3 --lr-scheduler-type constant";
    line(d, &format!("{train} {steps} --out {{}}/made --method p-tuning --encoder-hidden-size 10")).ok();
    let losses = log(&d.join("made"));
    let loss = |i: usize| losses[i]["loss"].as_f64().expect("a loss");
    assert!(loss(29) < 0.95 * loss(0), "{} to {}", loss(0), loss(29));
    let config: Value = serde_json::from_slice(&files(&d.join("made"))[1]).expect("JSON");
    assert_eq!((&config["peft_type"], &config["encoder_hidden_size"]), (&"P_TUNING".into(), &10.into()));
    let (shape, _) = tensor(&d.join("made/prompt_encoder.safetensors"), "prompt_encoder.default.mlp_head.4.weight");
    assert_eq!(shape, [24, 10]);
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/states --adapter {}/made").ok();

    // It goes on with its MLP, and without the file of it only as rows.
    let still = format!("{train} --max-steps 1 --lr 0");
    line(d, &format!("{still} --out {{}}/again --method p-tuning --init-adapter {{}}/made")).ok();
    assert_eq!(files(&d.join("again")), files(&d.join("made")));
    let found =
        line(d, &format!("{still} --out {{}}/x --method p-tuning --init-adapter {{}}/made --encoder-hidden-size 9"));
    assert!(found.refused().contains("--encoder-hidden-size"));
    let side = d.join("again/prompt_encoder.safetensors");
    let intact = fs::read(&side).expect("the MLP");
    fs::write(&side, &intact[..intact.len() - 1]).expect("write");
    let found = line(d, "inspect --model {}/model --adapter {}/again --json").json()["adapter"]["refusal"].clone();
    assert!(found.as_str().is_some_and(|text| text.contains("prompt_encoder.safetensors")), "{found}");
    fs::remove_file(&side).expect("remove");
    let found = line(d, &format!("{still} --out {{}}/x --method p-tuning --init-adapter {{}}/again")).refused();
    assert!(found.contains("only what it made") && !d.join("x").exists(), "{found}");
    line(d, &format!("{still} --out {{}}/rows --method pt --init-adapter {{}}/again")).ok();
    assert_eq!(rows(&d.join("rows")), rows(&d.join("made")));

    // A residual one begins where there is none.
    let rate = "--max-steps 2 --lr 3e-3 --seed 4";
    line(d, &format!("{train} {rate} --out {{}}/plain")).ok();
    line(d, &format!("{train} {rate} --out {{}}/residual --encoder-reparameterization-type residual")).ok();
    assert_eq!(first("plain"), first("residual"));
    assert_ne!(rows(&d.join("plain")), rows(&d.join("residual")));
    let config: Value = serde_json::from_slice(&files(&d.join("residual"))[1]).expect("JSON");
    assert_eq!(config["peft_type"], "PROMPT_TUNING");
    for (args, expected) in [
        ("--encoder-hidden-size 8", "--encoder-reparameterization-type"),
        ("--method p-tuning --encoder-hidden-size 0", "--encoder-hidden-size"),
        ("--method p-tuning --encoder-reparameterization-type none", "--encoder-reparameterization-type"),
        ("--method prefix --encoder-reparameterization-type residual", "--encoder-reparameterization-type"),
        ("--method prefix --prompt-tuning-init SAMPLE_VOCAB", "--prompt-tuning-init"),
        ("--method prefix --init-adapter {}/made", "PREFIX_TUNING"),
    ] {
        let found =
            line(d, &format!("{} --max-steps 1 --out {{}}/x {args}", train.replace(" --num-virtual-tokens 4", "")));
        let found = found.refused();
        assert!(found.contains(expected) && !d.join("x").exists(), "{args}: {found}");
    }
    assert!(leftovers(d).is_empty());
}

#[test]
fn prefix_is_keys_and_values() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train =
        "train-prompt --model {}/model --train {}/train.jsonl --batch-size 5 --num-virtual-tokens 4 --method prefix";
    let steps = "--max-steps 40 --lr 3e-2 --lr-scheduler-type constant";
    line(d, &format!("{train} {steps} --out {{}}/prefix")).ok();
    let losses = log(&d.join("prefix"));
    let loss = |i: usize| losses[i]["loss"].as_f64().expect("a loss");
    assert!(loss(39) < 0.95 * loss(0), "{} to {}", loss(0), loss(39));
    assert_eq!(rows(&d.join("prefix")).0, [4, 2 * 2 * 16]);
    let ids = |adapter: &str| {
        let found = line(d, &format!("generate --model {{}}/model --prompt the --max-new-tokens 12 --json {adapter}"));
        found.json()["results"][0]["ids"].clone()
    };
    assert_ne!(ids(""), ids("--adapter {}/prefix"), "the prefix has no effect");
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/states --adapter {}/prefix --sites rot_k,v").ok();
    let file = d.join("states/activations.safetensors");
    let (_, rows) = rows(&d.join("prefix"));
    for (layer, site, part) in [(0, "hook_rot_k", 0), (1, "hook_rot_k", 2), (1, "hook_v", 3)] {
        let (_, states) = tensor(&file, &format!("blocks.{layer}.attn.{site}"));
        assert_eq!(
            states[16..32],
            rows[64 + 16 * part..64 + 16 * (part + 1)],
            "layer {layer} {site}: row 1 of the prefix"
        );
    }
    line(
        d,
        &format!("{train} --max-steps 2 --out {{}}/made --encoder-reparameterization-type mlp --encoder-hidden-size 6"),
    )
    .ok();
    let config: Value = serde_json::from_slice(&files(&d.join("made"))[1]).expect("JSON");
    assert_eq!((&config["prefix_projection"], &config["token_dim"]), (&true.into(), &16.into()));
    let again = "--max-steps 1 --lr 0 --encoder-reparameterization-type mlp --init-adapter {}/made";
    line(d, &format!("{train} {again} --out {{}}/again")).ok();
    assert_eq!(files(&d.join("again")), files(&d.join("made")));
}

#[test]
fn prompt_training_resumes_after_a_kill_to_the_same_bytes() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", DATA);
    let train = "train-prompt --model {}/model --train {}/train.jsonl --batch-size 2 --max-steps 40 --save-steps 3 \
                 --num-virtual-tokens 4,2";
    survives(d, train, &["run-000", "run-001"], 80);
    // Another length is another training.
    let other = train.replace("4,2", "4,3");
    let found = line(d, &format!("{other} --out {{}}/calm --resume-from-checkpoint latest")).refused();
    assert!(found.contains("prompts"), "{found}");
}

#[test]
fn prompt_mlp_training_resumes_after_a_kill_to_the_same_bytes() {
    for method in ["p-tuning", "prefix --encoder-reparameterization-type mlp"] {
        let dir = workplace();
        let d = dir.path();
        put(d, "train.jsonl", DATA);
        let train = format!(
            "train-prompt --model {{}}/model --train {{}}/train.jsonl --batch-size 2 --max-steps 40 --save-steps 3 \
             --num-virtual-tokens 3 --encoder-hidden-size 9 --method {method}"
        );
        survives(d, &train, &["."], 40);
    }
}
