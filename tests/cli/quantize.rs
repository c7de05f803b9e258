//! `quantize`: the bytes that transformers and bitsandbytes write (`golden/bnb_models.py`), and a cache of them.

use std::fs;
use std::path::Path;

use llamaprobe::formats::safetensors::Checkpoint;
use serde_json::Value;

use super::{leftovers, line, put, workplace};
use crate::support::golden;

/// Every tensor of two files is the same.
fn assert_same(found: &Path, expected: &Path) {
    let [found, expected] = [found, expected].map(|path| Checkpoint::open(path).expect("a checkpoint"));
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for (found, expected) in found.iter().zip(expected.iter()) {
        assert_eq!((found.dtype, &found.shape), (expected.dtype, &expected.shape), "{}", expected.name);
        assert!(found.data[..] == expected.data[..], "{}", expected.name);
    }
}

#[test]
fn quantize_writes_what_transformers_and_bitsandbytes_write() {
    for (name, to) in [("llama-nf4", "nf4"), ("gpt2-nf4", "nf4"), ("llama-int8", "int8")] {
        let dir = workplace();
        let d = dir.path();
        let model = golden(&format!("bnb/{name}"));
        let base = model.join("base");
        let said = line(d, &format!("quantize --model {} --to {to} --out {{}}/out --json", base.display())).json();
        assert_eq!(said["matrices"], if name == "gpt2-nf4" { 4 } else { 7 }, "{name}");
        assert_same(&d.join("out/model.safetensors"), &model.join("model.safetensors"));
        let read = |path: &Path| -> Value {
            serde_json::from_slice(&fs::read(path.join("config.json")).expect("a file")).expect("JSON")
        };
        let (found, expected) = (read(&d.join("out")), read(&model));
        for key in ["quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"]
        {
            assert_eq!(found["quantization_config"][key], expected["quantization_config"][key], "{name}: {key}");
        }
        assert_eq!(found["quantization_config"]["llm_int8_skip_modules"], serde_json::json!(["lm_head"]), "{name}");
        // It computes what the original does that is quantised while it is loaded.
        put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9]}\n");
        let capture = "capture --input {}/ids.jsonl --sites logits --tokens all --device cpu --dtype f32";
        line(d, &format!("{capture} --model {{}}/out --out {{}}/written")).ok();
        line(d, &format!("{capture} --model {} --load-in {to} --out {{}}/loaded", base.display())).ok();
        assert_same(&d.join("written/activations.safetensors"), &d.join("loaded/activations.safetensors"));
    }
}

#[test]
fn quantize_of_gpt_neox_names_the_head_as_every_transformers_does() {
    let dir = workplace();
    let d = dir.path();
    line(d, &format!("quantize --model {} --to nf4 --out {{}}/out", golden("model-neox").display())).ok();
    let config: Value = serde_json::from_slice(&fs::read(d.join("out/config.json")).expect("a file")).expect("JSON");
    // The checkpoint's name, and that of transformers 5.24, which renames the tensor while it loads it.
    let skipped = &config["quantization_config"]["llm_int8_skip_modules"];
    assert_eq!(*skipped, serde_json::json!(["embed_out", "lm_head"]));
}

#[test]
fn quantised_weights_are_kept_for_the_next_time() {
    let dir = workplace();
    let d = dir.path();
    let base = golden("bnb/gpt2-nf4/base");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9]}\n");
    let capture = format!(
        "capture --input {{}}/ids.jsonl --sites logits --tokens all --device cpu --model {} --load-in nf4",
        base.display()
    );
    let files = || {
        let files = fs::read_dir(d.join("cache")).expect("a folder").map(|e| e.expect("a file").path());
        files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect::<Vec<_>>()
    };
    line(d, &format!("{capture} --out {{}}/plain")).ok();
    line(d, &format!("{capture} --load-in-cache {{}}/cache --out {{}}/first")).ok();
    let first = files();
    assert_eq!(first.len(), 1, "{first:?}");
    assert_same(&d.join("first/activations.safetensors"), &d.join("plain/activations.safetensors"));
    // What is kept is what is used: the scales are doubled, and another model has a file of its own.
    let mut bytes = fs::read(&first[0]).expect("a file");
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    for scale in bytes[start..start + 4 * 27].chunks_exact_mut(4) {
        let twice = 2.0 * f32::from_le_bytes(scale.try_into().expect("4 bytes"));
        scale.copy_from_slice(&twice.to_le_bytes());
    }
    fs::write(&first[0], bytes).expect("written");
    line(d, &format!("{capture} --load-in-cache {{}}/cache --out {{}}/second")).ok();
    let [plain, second] =
        ["plain", "second"].map(|run| fs::read(d.join(run).join("activations.safetensors")).expect("a file"));
    assert!(plain != second, "the kept file was not read");
    line(
        d,
        &format!("{} --load-in-cache {{}}/cache --out {{}}/third", capture.replace("--load-in nf4", "--load-in int8")),
    )
    .ok();
    assert_eq!(files().len(), 2);
    // One without the matrices would leave the model as it is.
    fs::write(&first[0], b"\x02\0\0\0\0\0\0\0{}").expect("written");
    let error = line(d, &format!("{capture} --load-in-cache {{}}/cache --out {{}}/fourth")).refused();
    assert!(error.contains("c_attn.weight") && error.contains("expected nf4 [72, 24], found none"), "{error}");
    // Another number anywhere in its files makes it another model.
    fs::create_dir(d.join("other")).expect("a folder");
    fs::copy(base.join("config.json"), d.join("other/config.json")).expect("copied");
    let mut bytes = fs::read(base.join("model.safetensors")).expect("a file");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&0.25f32.to_le_bytes());
    fs::write(d.join("other/model.safetensors"), bytes).expect("written");
    let other = capture.replace(&base.display().to_string(), "{}/other");
    line(d, &format!("{other} --load-in-cache {{}}/cache --out {{}}/fifth")).ok();
    assert_eq!(files().len(), 3);
}

#[test]
fn model_of_torchao_is_inspected_captured_and_tuned() {
    let dir = workplace();
    let d = dir.path();
    let model = golden("torchao/llama");
    let model = model.display();
    let shown = line(d, &format!("inspect --model {model} --device cpu --dtype f32 --json")).json();
    let groups = shown["weights"].as_array().expect("weights");
    let int8: Vec<_> = groups.iter().filter(|group| group["format"] == "int8").collect();
    assert_eq!(int8.len(), 7, "{groups:?}");
    // Codes, and a scale of four bytes a row: q, k, v, o, gate, up, down.
    let stored = 24 * (24 + 12 + 12 + 24 + 20 + 20 + 20) + 4 * (24 + 12 + 12 + 24 + 20 + 20 + 24);
    assert_eq!(shown["capture"]["weights__quantised"], stored);
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9]}\n");
    let logits = |words: &str, out: &str| {
        line(d, &format!("capture {words} --input {{}}/ids.jsonl --sites logits --device cpu --out {{}}/{out}")).ok();
        fs::read(d.join(out).join("activations.safetensors")).expect("a file")
    };
    put(d, "rows.jsonl", "{\"input_ids\": [5, 6, 7, 8, 9], \"labels\": [-100, -100, -100, 8, 9]}\n");
    let train = format!("train-lora --model {model} --train {{}}/rows.jsonl --r 2 --max-steps 3 --device cpu");
    line(d, &format!("{train} --learning-rate 0.05 --out {{}}/tuned")).ok();
    let (plain, tuned) = (logits(&format!("--model {model}"), "plain"), logits("--model {}/tuned", "tuned_states"));
    assert!(plain != tuned, "the adapter changes nothing");
    let generate = |words: &str| {
        line(d, &format!("generate {words} --input {{}}/ids.jsonl --max-new-tokens 3 --device cpu --json")).json()
    };
    assert_eq!(generate("--model {}/tuned"), generate(&format!("--model {model} --adapter {{}}/tuned")));
    let error = line(d, &format!("quantize --model {model} --to nf4 --out {{}}/out")).refused();
    assert!(error.contains("blocks of int8"), "{error}");
}

#[test]
fn gguf_file_is_written_with_its_tokenizer_and_runs() {
    let dir = workplace();
    let d = dir.path();
    let quantize = "quantize --model {}/model --to q8_0 --out {}/new/model.gguf";
    let said = line(d, &format!("{quantize} --json")).json();
    let inspect = line(d, "inspect --model {}/new/model.gguf --json").json();
    let groups = inspect["weights"].as_array().expect("weights").iter();
    let count = |format: &str| -> u64 {
        let those = groups.clone().filter(|group| group["format"] == format);
        those.map(|group| group["count"].as_u64().expect("count")).sum()
    };
    assert_eq!((&said["matrices"], said["matrices_f16"].as_u64().unwrap_or(0)), (&count("Q8_0").into(), count("F16")));
    assert!(count("F32") > 0, "{inspect}");
    let ids = |words: &str| {
        let words = format!("generate {words} --prompt thin --max-new-tokens 3 --device cpu --json");
        line(d, &words).json()["results"][0]["ids"].clone()
    };
    // The text has the same ids by the file's own tokenizer.
    let own = ids("--model {}/new/model.gguf");
    assert_eq!(own, ids("--model {}/new/model.gguf --tokenizer {}/model"));
    assert_eq!(own.as_array().map(Vec::len), Some(3));
    let error = line(d, quantize).refused();
    assert!(error.contains("--out: expected a new file") && error.contains("model.gguf, which is there"), "{error}");
    let error = line(d, "quantize --model {}/model --to q8_0 --out {}/other").refused();
    assert!(error.contains("--out: expected a name that ends in .gguf"), "{error}");
    let images = golden("model-gemma2");
    let error = line(d, &format!("quantize --model {} --to Q8_0 --out {{}}/o.gguf", images.display())).refused();
    assert!(error.contains("gemma2; supported: llama, mistral"), "{error}");
    // A number that is none leaves no file behind.
    let model = golden("gguf_written/llama");
    fs::create_dir(d.join("bad")).expect("a folder");
    fs::copy(model.join("config.json"), d.join("bad/config.json")).expect("copied");
    let mut bytes = fs::read(model.join("model.safetensors")).expect("a file");
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xC0, 0x7F]);
    fs::write(d.join("bad/model.safetensors"), bytes).expect("written");
    let error = line(d, "quantize --model {}/bad --to q8_0 --out {}/o.gguf").refused();
    assert!(error.contains("bad/model.safetensors") && error.contains("found NaN"), "{error}");
    assert!(leftovers(d).is_empty() && !d.join("o.gguf").exists());
}

#[test]
fn quantize_refuses_what_it_cannot_do() {
    let dir = workplace();
    let d = dir.path();
    let [blocks, gguf, base] = ["bnb/llama-nf4", "gguf/llama-f16.gguf", "bnb/llama-nf4/base"].map(golden);
    for (model, expected) in [(&blocks, "blocks of nf4"), (&gguf, "a GGUF file")] {
        let error = line(d, &format!("quantize --model {} --to nf4 --out {{}}/out", model.display())).refused();
        assert!(error.contains("--model") && error.contains(expected), "{error}");
    }
    let images = golden("model-gemma3-images");
    let error = line(d, &format!("quantize --model {} --to nf4 --out {{}}/out", images.display())).refused();
    assert!(error.contains("texts and images"), "{error}");
    // A number that is none, in a tensor that is only copied, is one of the model's file.
    fs::create_dir(d.join("bad")).expect("a folder");
    let model = golden("bnb/gpt2-nf4/base");
    fs::copy(model.join("config.json"), d.join("bad/config.json")).expect("copied");
    let mut bytes = fs::read(model.join("model.safetensors")).expect("a file");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(d.join("bad/model.safetensors"), bytes).expect("written");
    let error = line(d, "quantize --model {}/bad --to nf4 --out {}/out").refused();
    assert!(error.contains("bad/model.safetensors") && error.contains("found NaN"), "{error}");
    fs::create_dir(d.join("full")).expect("a folder");
    put(d, "full/notes.txt", "mine");
    let error = line(d, &format!("quantize --model {} --to nf4 --out {{}}/full", base.display())).refused();
    assert!(error.contains("notes.txt"), "{error}");
    assert!(!d.join("out").exists());
}
