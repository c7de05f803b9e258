//! `capture`.

use std::fs;
use std::path::Path;

use llamaprobe::backend::cpu::Isa;
use llamaprobe::formats::activations::ActivationFile;
use llamaprobe::formats::safetensors::Checkpoint;

use super::generate::CHAT;
use super::{line, put, tensor, workplace};
use crate::support::skips::{Reason, skip};
use crate::support::tiny_model::TinyModel;

#[test]
fn capture_has_a_row_per_token_at_every_site() {
    let dir = workplace();
    let d = dir.path();
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/out --sites embed,resid_post,pattern,ln_final.hook_out,logits").ok();
    let file = d.join("out/activations.safetensors");
    let (shape, doc) = tensor(&file, "doc_id");
    let (_, pos) = tensor(&file, "pos");
    let (_, token) = tensor(&file, "token_id");
    let lengths: Vec<usize> = (0..4).map(|i| doc.iter().filter(|&&x| x == i as f64).count()).collect();
    let rows: usize = lengths.iter().sum();
    assert_eq!(shape, [rows]);
    assert_eq!(lengths[1], 4, "input_ids are taken as they are");
    let second = lengths[0];
    assert_eq!(&token[second..second + 4], &[5.0, 6.0, 7.0, 8.0]);
    assert_eq!(&pos[second..second + 4], &[0.0, 1.0, 2.0, 3.0]);
    assert_eq!(token[0], 1.0, "a text begins with <s>");
    let longest = *lengths.iter().max().expect("documents");
    for (name, width) in [
        ("hook_embed", 24),
        ("blocks.0.hook_resid_post", 24),
        ("blocks.1.hook_resid_post", 24),
        ("ln_final.hook_out", 24),
        ("logits", TinyModel::default().vocab),
        ("blocks.1.attn.hook_pattern", 4 * longest),
    ] {
        let (shape, values) = tensor(&file, name);
        assert_eq!(shape, [rows, width], "{name}");
        assert!(values.iter().all(|x| x.is_finite()), "{name}");
    }
    let (_, pattern) = tensor(&file, "blocks.1.attn.hook_pattern");
    for (row, position) in pattern.chunks(4 * longest).zip(&pos) {
        for head in row.chunks(longest) {
            let (seen, unseen) = head.split_at(*position as usize + 1);
            assert!((seen.iter().sum::<f64>() - 1.0).abs() < 1e-5, "a pattern's row adds up to 1");
            assert!(unseen.iter().all(|&x| x == 0.0), "nothing after the row itself");
        }
    }
    assert!(d.join("out/llamaprobe.yaml").exists());
}

#[test]
fn capture_is_independent_of_batches_and_of_tokens() {
    let dir = workplace();
    let d = dir.path();
    let sites = "--sites resid_post,logits";
    line(d, &format!("capture --model {{}}/model --input {{}}/texts.jsonl --out {{}}/all {sites}")).ok();
    line(d, &format!("capture --model {{}}/model --input {{}}/texts.jsonl --out {{}}/one {sites} --batch-tokens 1"))
        .ok();
    line(d, &format!("capture --model {{}}/model --input {{}}/texts.jsonl --out {{}}/last {sites} --tokens last")).ok();
    let read = |name: &str| fs::read(d.join(name).join("activations.safetensors")).expect("activations");
    assert_eq!(read("all"), read("one"), "a document's numbers depend on its neighbours");
    let (all, last) = (d.join("all/activations.safetensors"), d.join("last/activations.safetensors"));
    let (_, doc) = tensor(&all, "doc_id");
    for name in ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "logits"] {
        let ((shape, every), (_, kept)) = (tensor(&all, name), tensor(&last, name));
        let width = shape[1];
        let ends = (0..doc.len()).filter(|&i| i + 1 == doc.len() || doc[i + 1] != doc[i]);
        let expected: Vec<f64> = ends.flat_map(|row| every[row * width..(row + 1) * width].to_vec()).collect();
        assert_eq!(kept, expected, "{name}");
    }
}

/// Under dynamic scaling the length of a document that is too long for the model turns all its rows.
#[test]
fn dynamic_rope_scales_long_documents_by_their_own_length() {
    let dir = workplace();
    let d = dir.path();
    fs::create_dir(d.join("dynamic")).expect("makes");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/model-dynamic");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), d.join("dynamic").join(file)).expect("copies");
    }
    let ids = |n: usize| (0..n).map(|i| (i * 7 % 30).to_string()).collect::<Vec<_>>().join(", ");
    let document = |n: usize| format!("{{\"input_ids\": [{}]}}\n", ids(n));
    let lengths = [5, 16, 17, 40, 40, 3, 23];
    put(d, "all.jsonl", &lengths.map(document).concat());
    line(d, "capture --model {}/dynamic --input {}/all.jsonl --out {}/all --sites resid_post,logits").ok();
    let mut start = 0;
    for length in lengths {
        put(d, "one.jsonl", &document(length));
        line(d, "capture --model {}/dynamic --input {}/one.jsonl --out {}/one --sites resid_post,logits").ok();
        for name in ["blocks.0.hook_resid_post", "logits"] {
            let (shape, all) = tensor(&d.join("all/activations.safetensors"), name);
            let (_, one) = tensor(&d.join("one/activations.safetensors"), name);
            assert_eq!(all[start * shape[1]..(start + length) * shape[1]], one, "{name} of {length} tokens");
        }
        start += length;
    }
    // Training leaves rows out, and shares others.
    let train = "train-lora --model {}/dynamic --train {}/all.jsonl --out {}/adapter --max-steps 1";
    let error = line(d, train).refused();
    assert!(error.contains("at most 16") && error.contains("dynamic") && error.contains("40"), "{error}");
    line(d, &format!("{train} --max-length 16")).ok();
}

#[test]
fn capture_follows_layers_shards_and_dtype() {
    let dir = workplace();
    let d = dir.path();
    let json = line(
        d,
        "capture --model {}/model --input {}/texts.jsonl --out {}/out --sites resid_post,attn_out --layers 1 \
         --store-dtype bf16 --shard-tokens 16 --json",
    )
    .json();
    let names: Vec<&str> =
        json["tensors"].as_array().expect("tensors").iter().filter_map(|t| t["name"].as_str()).collect();
    assert_eq!(names, ["blocks.1.hook_attn_out", "blocks.1.hook_resid_post"]);
    assert_eq!(json["documents"], 4);
    let index = fs::read_to_string(json["file"].as_str().expect("a file")).expect("the index");
    let index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
    assert!(index["weight_map"].as_object().expect("a map").len() > 2, "several shards: {index}");
}

/// What is written by other names is the same; names of version 0.1 keep its meanings, in the file of edits too.
#[test]
fn names_say_what_is_written_and_read() {
    let dir = workplace();
    let d = dir.path();
    let sites = "resid_post,z,ln1.hook_scale,ln_final.hook_normalized,logits";
    let capture = |out: &str, sites: &str, flags: &str| {
        line(
            d,
            &format!("capture --model {{}}/model --input {{}}/texts.jsonl --out {{}}/{out} --sites {sites} {flags}"),
        )
    };
    capture("tl", &format!("{sites},ln_final.hook_out,ln1.hook_out"), "").ok();
    capture("tl4", sites, "--names tl4").ok();
    capture("old", sites, "--names llamaprobe1").ok();
    let of = |out: &str, name: &str| tensor(&d.join(out).join("activations.safetensors"), name).1;
    for (name, canonical) in [
        ("blocks.1.hook_resid_post", "blocks.1.hook_out"),
        ("blocks.0.attn.hook_z", "blocks.0.attn.o.hook_in"),
        ("logits", "unembed.hook_out"),
        ("blocks.0.ln1.hook_scale", "blocks.0.ln1.hook_scale"),
        ("ln_final.hook_normalized", "ln_final.hook_normalized"),
    ] {
        assert_eq!(of("tl", name), of("tl4", canonical), "{name}");
    }
    assert_eq!(of("old", "ln_final.hook_normalized"), of("tl", "ln_final.hook_out"));
    assert!(of("old", "ln_final.hook_normalized") != of("tl", "ln_final.hook_normalized"));
    for (old, new) in of("old", "blocks.1.ln1.hook_scale").iter().zip(of("tl", "blocks.1.ln1.hook_scale")) {
        assert!((old * new - 1.0).abs() < 1e-6, "{old} is not 1 / {new}");
    }
    put(d, "edit.yaml", "- {site: ln1.hook_normalized, positions: all, op: scale, scale: 2}\n");
    capture("edited", "ln1.hook_normalized", "--names llamaprobe1 --edit {}/edit.yaml").ok();
    let doubled: Vec<f64> = of("tl", "blocks.0.ln1.hook_out").iter().map(|x| 2.0 * x).collect();
    assert_eq!(of("edited", "blocks.0.ln1.hook_normalized"), doubled);
    let error = capture("refused", "resid_post", "--edit {}/edit.yaml").refused();
    assert!(error.contains("ln1.hook_out") && error.contains("found blocks.0.ln1.hook_normalized"), "{error}");
    assert!(!d.join("refused").exists());
}

/// A file says what is needed to read it, and nothing of the machine; the configuration beside it repeats it.
#[test]
fn files_say_what_they_hold() {
    let dir = workplace();
    let d = dir.path();
    let sites = "--sites q,k,pattern,ln1.hook_scale,resid_post --tokens all --threads 2";
    line(d, &format!("capture --model {{}}/model --input {{}}/texts.jsonl --out {{}}/out {sites}")).ok();
    let file = d.join("out/activations.safetensors");
    let open = Checkpoint::open(&file).expect("opens");
    let said =
        |key: &str| open.metadata().get(key).unwrap_or_else(|| panic!("no {key} in {:?}", open.metadata())).as_str();
    for (key, expected) in [
        ("model", "model"),
        ("family", "llama"),
        ("names", "tl"),
        ("tokens", "all"),
        ("dtype", "f32"),
        ("device", "cpu"),
        ("n_heads", "4"),
        ("n_kv_heads", "2"),
        ("d_head", "8"),
        ("d_model", "24"),
        ("first_doc", "0"),
    ] {
        assert_eq!(said(key), expected, "{key}");
    }
    assert!(
        said("conventions").contains("hook_scale is sqrt(") && said("tokenizer").starts_with("tokenizer.json sha256:")
    );
    let (_, doc) = tensor(&file, "doc_id");
    let starts: Vec<usize> = serde_json::from_str(said("doc_start")).expect("a list");
    let expected = (0..doc.len()).filter(|&row| row == 0 || doc[row] != doc[row - 1]);
    assert_eq!(starts, expected.collect::<Vec<usize>>());
    let layout: serde_json::Value = serde_json::from_str(said("layout")).expect("JSON");
    let axes = serde_json::json!({"attn.hook_q": "head d_head", "attn.hook_k": "kv_head d_head", "attn.hook_pattern": "head position",
        "ln1.hook_scale": "1", "hook_resid_post": "d_model"});
    assert_eq!(layout, axes);
    let machine = d.display().to_string();
    assert!(open.metadata().values().all(|value| !value.contains(&machine)), "{:?}", open.metadata());
    let config = fs::read_to_string(d.join("out/llamaprobe.yaml")).expect("the configuration");
    for key in ["device: cpu", "dtype: f32", "threads: 2"] {
        assert!(config.contains(key), "{config}");
    }
    let before = fs::read(&file).expect("reads");
    line(d, "capture --config {}/out/llamaprobe.yaml").ok();
    assert_eq!(fs::read(&file).expect("reads"), before, "the configuration repeats it");
}

#[test]
fn shards_hold_whole_documents() {
    let dir = workplace();
    let d = dir.path();
    let capture = "capture --model {}/model --input {}/texts.jsonl --sites resid_post,logits";
    line(d, &format!("{capture} --out {{}}/one")).ok();
    line(d, &format!("{capture} --out {{}}/many --shard-tokens 6")).ok();
    let (_, doc) = tensor(&d.join("one/activations.safetensors"), "doc_id");
    let whole = ActivationFile::open(d.join("one/activations.safetensors")).expect("opens");
    let parts = ActivationFile::open(d.join("many/activations.safetensors")).expect("opens the shards");
    assert_eq!(parts.labels("doc_id").expect("labels"), whole.labels("doc_id").expect("labels"));
    for site in whole.sites() {
        assert_eq!(parts.rows(site).expect("rows"), whole.rows(site).expect("rows"), "{site}");
    }
    let (mut next, mut files) = (0, 0);
    while next < 4 {
        files += 1;
        let file =
            (1..9).map(|n| d.join(format!("many/activations-{files:05}-of-{n:05}.safetensors"))).find(|f| f.exists());
        let file = file.expect("a shard");
        let (_, held) = tensor(&file, "doc_id");
        let open = Checkpoint::open(&file).expect("opens");
        assert_eq!((open.metadata()["first_doc"].as_str(), held[0]), (next.to_string().as_str(), next as f64));
        let documents = held[held.len() - 1] as usize + 1 - next;
        assert!(held.len() <= 6 || documents == 1, "{} rows of {documents} documents", held.len());
        assert_eq!(held.len(), doc.iter().filter(|&&x| (next..next + documents).contains(&(x as usize))).count());
        next += documents;
    }
    assert!(files > 1);
    let error = line(d, &format!("{capture} --out {{}}/none --shard-tokens 0")).refused();
    assert!(error.contains("--shard-tokens: expected at least 1"), "{error}");
    assert!(!d.join("none").exists());
}

/// Ids as in the test of `generate`; without the generation prompt unless it is asked for, as `apply_chat_template`.
#[test]
fn conversations_are_captured_through_the_chat_template() {
    let dir = workplace();
    let d = dir.path();
    put(d, "model/chat_template.jinja", CHAT);
    put(d, "chat.jsonl", r#"{"messages": [{"role": "user", "content": "the pen", "weight": 0.5}]}"#);
    put(d, "config.yaml", "add_generation_prompt: true\n");
    for (flags, rows) in [("", 10), ("--add-generation-prompt", 21), ("--config {}/config.yaml", 21)] {
        let text = format!("capture --model {{}}/model --input {{}}/chat.jsonl --sites embed --out {{}}/out {flags}");
        line(d, &text).ok();
        let (_, ids) = tensor(&d.join("out/activations.safetensors"), "token_id");
        assert_eq!((ids.len(), ids[0], ids[9]), (rows, 1.0, 113.0), "{flags}");
    }
}

#[test]
fn padding_has_no_rows() {
    let dir = workplace();
    let d = dir.path();
    put(d, "ids.jsonl", "\u{FEFF}{\"input_ids\": [0, 5, 6, 7, 0], \"attention_mask\": [0, 1, 1, 1, 0]}\n\n");
    put(d, "alone.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    let states = |name: &str| {
        line(d, &format!("capture --model {{}}/model --input {{}}/{name}.jsonl --out {{}}/{name}")).ok();
        tensor(&d.join(name).join("activations.safetensors"), "blocks.1.hook_resid_post")
    };
    assert_eq!(states("ids"), states("alone"));
}

#[test]
fn lora_sites_need_an_adapter() {
    let dir = workplace();
    let d = dir.path();
    let command = "capture --model {}/model --input {}/texts.jsonl --out {}/out --sites q_proj.hook_lora_a";
    assert!(line(d, command).refused().contains("--adapter"));
    assert!(!d.join("out").exists());
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/adapter --r 3 --max-steps 1").ok();
    line(d, &format!("{command} --adapter {{}}/adapter")).ok();
    let (shape, _) = tensor(&d.join("out/activations.safetensors"), "blocks.1.q_proj.hook_lora_a");
    assert_eq!(shape[1], 3);
}

#[test]
fn isa_gives_the_same_states_and_unknown_ones_are_refused() {
    let dir = workplace();
    let capture = |isa: &str, out: &str| {
        let text = format!(
            "capture --model {{}}/model --input {{}}/texts.jsonl --sites resid_post --layers all --tokens all --device cpu \
             --out {{}}/{out}"
        );
        let ran = super::program(super::words(dir.path(), &text)).env("LLAMAPROBE_ISA", isa).output().expect("run");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8 output");
        super::Ran { code: ran.status.code(), out: text(ran.stdout), err: text(ran.stderr) }
    };
    let states =
        |out: &str| tensor(&dir.path().join(out).join("activations.safetensors"), "blocks.1.hook_resid_post").1;
    capture("", "best").ok();
    capture("plain", "plain").ok();
    let (best, plain) = (states("best"), states("plain"));
    let largest = best.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for (i, (a, b)) in best.iter().zip(&plain).enumerate() {
        assert!((a - b).abs() <= 1e-5 * largest, "state {i}: {a} and {b}");
    }
    // Products of bfloat16 in three: right to five digits, and nothing but f32 where there are none.
    let split = |isa: &str, out: &str| capture(isa, &format!("{out} --dtype f32x3"));
    let line = split("plain", "none").refused();
    assert!(line.contains("--dtype f32x3") && line.contains("avx512bf16") && line.contains("plain"), "{line}");
    match Isa::available().iter().find(|isa| isa.has_pairs()) {
        None => skip(Reason::Pairs),
        Some(isa) => {
            split(isa.name(), "split").ok();
            let split = states("split");
            assert!(split != plain);
            for (i, (a, b)) in split.iter().zip(&plain).enumerate() {
                assert!((a - b).abs() <= 1e-4 * largest, "state {i}: {a} and {b}");
            }
        }
    }
    let line = capture("mmx", "none").refused();
    assert!(line.contains("LLAMAPROBE_ISA") && line.contains("mmx") && line.contains("plain"), "{line}");
    assert!(!dir.path().join("none").exists());
}

/// The same rows as arrays of NumPy, whose headers are checked where they are made.
#[test]
fn arrays_of_numpy_hold_the_same_rows() {
    let dir = workplace();
    let d = dir.path();
    let capture = |flags: &str| {
        line(d, &format!("capture --model {{}}/model --input {{}}/texts.jsonl --sites resid_post,pattern {flags}"))
    };
    for dtype in ["f32", "f16"] {
        let flags = format!("--store-dtype {dtype}");
        capture(&format!("--out {{}}/{dtype} {flags}")).ok();
        let shown = capture(&format!("--out {{}}/npy-{dtype} {flags} --format npy --json")).json();
        let out = d.join(format!("npy-{dtype}"));
        assert_eq!(shown["file"], out.join("activations.json").display().to_string());
        let list: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join("activations.json")).expect("reads")).expect("JSON");
        let open = Checkpoint::open(d.join(dtype).join("activations.safetensors")).expect("opens");
        for (key, value) in open.metadata() {
            assert_eq!(list["metadata"][key], **value, "{key}");
        }
        assert_eq!(list["tensors"].as_object().expect("a list").len(), open.len());
        for tensor in open.iter() {
            let said = &list["tensors"][&tensor.name];
            assert_eq!(
                (&said["shape"], &said["dtype"]),
                (&tensor.shape.clone().into(), &tensor.dtype.to_string().into())
            );
            let bytes = fs::read(out.join(said["file"].as_str().expect("a file"))).expect("an array");
            let (header, data) = bytes.split_at(128);
            let tuple = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            assert!(
                header.starts_with(b"\x93NUMPY\x01\x00")
                    && String::from_utf8_lossy(header).contains(&format!("({tuple}"))
            );
            assert_eq!(data, &*tensor.data, "{}", tensor.name);
        }
    }
    // Of the arrays of an earlier capture those that are no more go.
    line(d, "capture --model {}/model --input {}/texts.jsonl --sites embed --out {}/npy-f32 --format npy").ok();
    let arrays = fs::read_dir(d.join("npy-f32")).expect("lists").count();
    assert_eq!(arrays, 6, "hook_embed, three columns, the list, the configuration");
    let other_form = "expected a place without an earlier capture of another form";
    for (flags, expected) in [
        ("--format npy --out {}/no --store-dtype bf16", "--store-dtype: expected f32 or f16 (NumPy has no bfloat16)"),
        ("--format npy --out {}/no --shard-tokens 9", "--shard-tokens: expected none for arrays of NumPy"),
        ("--format npy --out {}/f32", other_form),
        ("--out {}/npy-f32", other_form),
        ("--out {}/npy-f32 --shard-tokens 9", other_form),
    ] {
        let error = capture(flags).refused();
        assert!(error.contains(expected), "{flags}: {error}");
    }
    assert!(!d.join("no").exists());
}
