//! `merge`: the logits of a merged model are those of peft with the adapter, and its tensors W + scale B A.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use llamaprobe::formats::safetensors::{Checkpoint, Tensor, write};
use serde_json::Value;

use super::{line, program, put, tensor, workplace};
use crate::support::golden;

const FAMILIES: [&str; 18] = [
    "gpt2",
    "opt",
    "opt-behind",
    "bloom",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3-images",
    "olmo2",
    "neox",
    "neox-sequential",
    "gptj",
    "phi",
    "phi3",
    "phi3-long",
    "smollm3",
    "stablelm",
    "starcoder2",
];

/// Merges the adapter of a golden model.
fn merge(name: &str, out: &Path, more: &[&str]) -> super::Ran {
    let model = golden(&format!("model-{name}"));
    let words =
        ["merge", "--model", &model.display().to_string(), "--adapter", &model.join("adapter").display().to_string()]
            .map(str::to_owned);
    let mut args = words.to_vec();
    args.extend(["--out".to_owned(), out.display().to_string()]);
    args.extend(more.iter().map(|word| (*word).to_owned()));
    super::run(args)
}

/// peft adds `scale B A x` to `W x` (`tests/golden/families.py`); here `W + scale B A` is in the file.
#[test]
fn merge_of_every_family_has_the_logits_of_peft() {
    for name in FAMILIES {
        let dir = crate::support::temp();
        let d = dir.path();
        merge(name, &d.join("merged"), &[]).ok();
        let expected = golden(&format!("model-{name}")).join("expected.safetensors");
        let (_, ids) = tensor(&expected, "ids.2");
        put(d, "ids.jsonl", &format!("{{\"input_ids\": {:?}}}\n", ids.iter().map(|id| *id as u32).collect::<Vec<_>>()));
        line(d, "capture --model {}/merged --input {}/ids.jsonl --sites logits --tokens all --out {}/out --device cpu")
            .ok();
        let (_, found) = tensor(&d.join("out/activations.safetensors"), "logits");
        let (_, wanted) = tensor(&expected, "adapted.2");
        let (_, before) = tensor(&expected, "logits.2");
        let apart = |a: &[f64], b: &[f64]| {
            assert_eq!(a.len(), b.len(), "{name}");
            let largest = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            a.iter().zip(b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs())) / largest
        };
        let (far, moved) = (apart(&found, &wanted), apart(&before, &wanted));
        println!("{name}: {far:.1e}, moved {moved:.1e}");
        assert!(
            far <= 5e-6 && moved > 1e-3,
            "{name}: {far:.1e} of the largest logit; the adapter moves it by {moved:.1e}"
        );
    }
}

/// peft's own adapters of other kinds (`tests/golden/peft_variants.py`), merged: the logits that peft has with them beside.
#[test]
fn merge_of_every_variant_has_the_logits_of_peft() {
    for case in [
        "dora",
        "dora_gpt2",
        "ia3",
        "ia3_gpt2",
        "tables",
        "head",
        "tables_gpt2",
        "embed_gpt2",
        "saved",
        "saved_plus",
        "saved_gpt2",
        "saved_head_gpt2",
        "saved_tied",
        "tokens",
        "tokens_gpt2",
        "tokens_tied",
    ] {
        let dir = crate::support::temp();
        let (d, of_peft) = (dir.path(), golden("peft_variants").join(case));
        let text = fs::read_to_string(of_peft.join("case.json")).expect("a case");
        let found: Value = serde_json::from_str(&text).expect("JSON");
        let model = golden(match found["model"].as_str() {
            Some("tiny") => "peft/tiny",
            Some("qwen2") => "model-qwen2",
            _ => "model-gpt2",
        });
        let words = ["merge", "--model", &model.display().to_string(), "--adapter"].map(str::to_owned);
        let paths = [of_peft.join("final"), d.join("merged")].map(|path| path.display().to_string());
        let args = [&words[..], &[paths[0].clone(), "--out".to_owned(), paths[1].clone()]].concat();
        super::run(args).ok();
        put(d, "ids.jsonl", &format!("{{\"input_ids\": {}}}\n", found["data"][0]["input_ids"]));
        line(
            d,
            "capture --model {}/merged --input {}/ids.jsonl --sites logits --tokens last --out {}/out --device cpu",
        )
        .ok();
        let (_, logits) = tensor(&d.join("out/activations.safetensors"), "logits");
        let wanted: Vec<f64> = found["logits"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
        assert_eq!(logits.len(), wanted.len(), "{case}");
        let largest = wanted.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let far = logits.iter().zip(&wanted).fold(0.0f64, |m, (x, y)| m.max((x - y).abs())) / largest;
        println!("{case}: {far:.1e}");
        assert!(far <= 2e-6, "{case}: {far:.1e} of the largest logit");
    }
}

/// The tensors of a file: dtype, shape and bytes.
fn tensors(file: &Path) -> BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(file).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    file.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

#[test]
fn merge_of_another_dtype_rounds_once_and_says_so() {
    let dir = crate::support::temp();
    let d = dir.path();
    merge("gpt2", &d.join("f32"), &[]).ok();
    merge("gpt2", &d.join("bf16"), &["--dtype", "bf16"]).ok();
    merge("gpt2", &d.join("f16"), &["--dtype", "f16"]).ok();
    let [wide, brain, half] = ["f32", "bf16", "f16"].map(|name| tensors(&d.join(name).join("model.safetensors")));
    for (name, (dtype, shape, bytes)) in &wide {
        assert_eq!(*dtype, safetensors::Dtype::F32);
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
        let rounded: [Vec<u8>; 2] = [
            values.clone().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        ];
        assert_eq!(brain[name], (safetensors::Dtype::BF16, shape.clone(), rounded[0].clone()), "{name}");
        assert_eq!(half[name], (safetensors::Dtype::F16, shape.clone(), rounded[1].clone()), "{name}");
    }
    let config: Value = serde_json::from_slice(&fs::read(d.join("bf16/config.json")).expect("a file")).expect("JSON");
    assert_eq!((&config["dtype"], config.get("torch_dtype")), (&Value::from("bfloat16"), None));
    let (same, base) = (fs::read(d.join("f32/config.json")), fs::read(golden("model-gpt2/config.json")));
    assert_eq!(same.expect("a file"), base.expect("a file"));
}

/// Every tensor that no module of the adapter holds has the base model's bytes; the tokenizer's files are there.
#[test]
fn merge_leaves_the_rest_as_it_is() {
    let dir = workplace();
    let d = dir.path();
    put(d, "data.jsonl", super::trained::DATA);
    let train = "train-lora --model {}/model --train {}/data.jsonl --out {}/adapter --r 2 --max-steps 2 --learning-rate 0.1 --device cpu";
    line(d, train).ok();
    let found = line(d, "merge --model {}/model --adapter {}/adapter --out {}/merged --json").json();
    let (base, merged) = (tensors(&d.join("model/model.safetensors")), tensors(&d.join("merged/model.safetensors")));
    assert!(base.keys().eq(merged.keys()));
    let changed: Vec<&String> = base.keys().filter(|name| base[*name].2 != merged[*name].2).collect();
    assert!(changed.iter().all(|name| name.contains("q_proj") || name.contains("v_proj")), "{changed:?}");
    assert_eq!(found["modules"], changed.len());
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        if d.join("model").join(file).exists() {
            assert!(d.join("merged").join(file).exists(), "{file}");
        }
    }
    let answer =
        |model: &str| line(d, &format!("generate {model} --prompt thin --max-new-tokens 4 --json --device cpu")).json();
    assert_eq!(answer("--model {}/merged")["text"], answer("--model {}/model --adapter {}/adapter")["text"]);
}

#[test]
fn merge_refuses_what_it_cannot_do() {
    let dir = workplace();
    let d = dir.path();
    put(d, "data.jsonl", super::trained::DATA);
    line(d, "train-prompt --model {}/model --train {}/data.jsonl --out {}/prompt --num-virtual-tokens 2 --max-steps 1 --device cpu").ok();
    let refused = |text: &str| line(d, &format!("merge --model {{}}/model {text}")).refused();
    let soft = refused("--adapter {}/prompt --out {}/out");
    assert!(soft.contains("--adapter") && soft.contains("PROMPT_TUNING"), "{soft}");
    assert!(refused("--out {}/out").contains("--adapter"));
    let full = refused("--adapter {}/prompt --out {}/model");
    assert!(full.contains("PROMPT_TUNING"), "{full}");
    let (model, out) = (golden("model-gpt2"), d.join("model"));
    let before = fs::read(out.join("model.safetensors")).expect("a file");
    let refused = merge("gpt2", &out, &[]).refused();
    assert!(refused.contains("--out") && refused.contains("empty"), "{refused}");
    assert_eq!(fs::read(out.join("model.safetensors")).expect("a file"), before);
    // Within f32, and beyond f16; no number, in a tensor that is only copied.
    for (value, dtype, expected) in [(1e6f32, "f16", "expected a finite value"), (f32::NAN, "auto", "found NaN")] {
        fs::create_dir_all(d.join("large")).expect("a folder");
        fs::copy(model.join("config.json"), d.join("large/config.json")).expect("copied");
        let mut bytes = fs::read(model.join("model.safetensors")).expect("a file");
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
        fs::write(d.join("large/model.safetensors"), bytes).expect("written");
        let words = [
            "merge",
            "--model",
            &d.join("large").display().to_string(),
            "--adapter",
            &model.join("adapter").display().to_string(),
            "--out",
            &d.join("narrow").display().to_string(),
            "--dtype",
            dtype,
        ]
        .map(str::to_owned);
        let ran = program(words).output().expect("start the program");
        let error = String::from_utf8(ran.stderr).expect("UTF-8");
        assert!(ran.status.code() == Some(1) && error.contains(expected), "{dtype}: {error}");
        assert!(!d.join("narrow").exists() && !d.join("out").exists());
    }
}

/// Whole modules that are not the model's are refused, not written.
#[test]
fn merge_refuses_whole_modules_of_other_shapes() {
    let dir = crate::support::temp();
    let d = dir.path();
    for (case, base, tensor, expected) in [
        ("saved", "peft/tiny", "base_model.model.lm_head.weight", "expected [64, 32], found [32, 64]"),
        ("saved_gpt2", "model-gpt2", "base_model.model.transformer.ln_f.bias", "expected the module whole"),
    ] {
        let (from, to) = (golden("peft_variants").join(case).join("final"), d.join(case));
        fs::create_dir_all(&to).expect("a folder");
        fs::copy(from.join("adapter_config.json"), to.join("adapter_config.json")).expect("copied");
        let file = "adapter_model.safetensors";
        let views: Vec<_> = Checkpoint::open(from.join(file)).expect("an adapter").iter().collect();
        let changed = views.iter().filter(|view| view.name != tensor || view.shape.len() == 2).map(|view| {
            let mut shape = view.shape.clone();
            if view.name == tensor {
                shape.reverse();
            }
            (view, shape)
        });
        let changed: Vec<_> = changed.collect();
        let tensors =
            changed.iter().map(|(view, shape)| Tensor { name: &view.name, dtype: view.dtype, shape, data: &view.data });
        write(to.join(file), &tensors.collect::<Vec<_>>(), &[]).expect("written");
        let model = golden(base);
        let (model, adapter) = (model.display(), to.display());
        let error = line(d, &format!("merge --model {model} --adapter {adapter} --out {{}}/out")).refused();
        assert!(error.contains(expected) && error.contains(case), "{case}: {error}");
        let shown = line(d, &format!("inspect --model {model} --adapter {adapter} --device cpu --json")).json();
        assert_eq!(shown["adapter"]["readable"], false, "{case}: {shown}");
        assert!(!d.join("out").exists());
    }
}
