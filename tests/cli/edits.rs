//! `--edit` and `control-vector`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{line, put, tensor, workplace};

/// Vectors of the tiny model's width in `v.safetensors`.
fn vectors(dir: &Path) {
    let values: Vec<u8> = (0..48).flat_map(|i| (0.1f32 * (i % 7) as f32 - 0.2).to_le_bytes()).collect();
    let view = |shape: Vec<usize>, bytes: usize| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &values[..bytes]).expect("a tensor")
    };
    let tensors = [("one", view(vec![24], 96)), ("two", view(vec![2, 24], 192))];
    safetensors::serialize_to_file(tensors, None, &dir.join("v.safetensors")).expect("writes");
}

const CAPTURE: &str = "capture --model {}/model --input {}/texts.jsonl --sites resid_pre,resid_post,logits --out";

#[test]
fn capture_shows_what_an_edit_left() {
    let dir = workplace();
    let d = dir.path();
    vectors(d);
    let edit = "- {site: resid_post, layers: 0, positions: last, op: add, value: v.safetensors#one, scale: 2}\n\
                - {site: resid_post, layers: 0, positions: [0], op: zero}\n";
    put(d, "edit.yaml", edit);
    line(d, &format!("{CAPTURE} {{}}/plain")).ok();
    line(d, &format!("{CAPTURE} {{}}/edited --edit {{}}/edit.yaml")).ok();
    line(d, &format!("{CAPTURE} {{}}/small --edit {{}}/edit.yaml --batch-tokens 1")).ok();
    let file = |name: &str| d.join(name).join("activations.safetensors");
    assert_eq!(fs::read(file("edited")).expect("reads"), fs::read(file("small")).expect("reads"), "batches");
    let (_, doc) = tensor(&file("plain"), "doc_id");
    let (_, pos) = tensor(&file("plain"), "pos");
    let (_, one) = tensor(&d.join("v.safetensors"), "one");
    let of = |name: &str, site: &str| tensor(&file(name), site).1;
    assert_eq!(of("plain", "blocks.0.hook_resid_pre"), of("edited", "blocks.0.hook_resid_pre"));
    let (plain, edited) = (of("plain", "blocks.0.hook_resid_post"), of("edited", "blocks.0.hook_resid_post"));
    assert_eq!(edited, of("edited", "blocks.1.hook_resid_pre"), "one tensor under two names");
    for (row, (x, found)) in plain.chunks(24).zip(edited.chunks(24)).enumerate() {
        let last = row + 1 == doc.len() || doc[row + 1] != doc[row];
        for ((x, v), found) in x.iter().zip(&one).zip(found) {
            let expected = if pos[row] == 0.0 { 0.0 } else { x + if last { 2.0 * v } else { 0.0 } };
            assert!((found - expected).abs() < 1e-6, "row {row}: {found} for {expected}");
        }
    }
    assert!(of("plain", "logits") != of("edited", "logits"));
    let config = fs::read_to_string(d.join("edited/llamaprobe.yaml")).expect("the configuration");
    assert!(config.contains("edit.yaml"), "{config}");
}

fn ids(ran: &Value) -> Vec<Value> {
    ran["results"].as_array().expect("results").iter().map(|result| result["ids"].clone()).collect()
}

#[test]
fn generation_under_a_control_vector_does_not_depend_on_other_prompts() {
    let dir = workplace();
    let d = dir.path();
    put(d, "more.jsonl", "{\"text\": \"the\"}\n{\"text\": \"the pin\"}\n{\"text\": \"in\"}\n");
    line(d, "capture --model {}/model --input {}/texts.jsonl --tokens last --out {}/a").ok();
    line(d, "capture --model {}/model --input {}/more.jsonl --tokens last --out {}/b").ok();
    let states = "--positive {}/a/activations.safetensors --negative {}/b/activations.safetensors";
    let made = line(d, &format!("control-vector {states} --out {{}}/v.gguf --model-hint llama --json")).json();
    // In shards, and by other names, they are the same states.
    for (dir, options) in [("s", "--shard-tokens 6"), ("t", "--names tl4")] {
        line(
            d,
            &format!("capture --model {{}}/model --input {{}}/texts.jsonl --tokens last --out {{}}/{dir} {options}"),
        )
        .ok();
        let file = if dir == "s" { "activations.safetensors.index.json" } else { "activations.safetensors" };
        let states = states.replace("a/activations.safetensors", &format!("{dir}/{file}"));
        line(d, &format!("control-vector {states} --out {{}}/{dir}.gguf --model-hint llama")).ok();
        assert_eq!(
            fs::read(d.join(format!("{dir}.gguf"))).expect("a file"),
            fs::read(d.join("v.gguf")).expect("a file")
        );
    }
    // Two blocks, of which the form has a place for the second.
    assert_eq!(made["layers"].as_array().expect("layers").len(), 1);
    assert_eq!(made["layers"][0]["tensor"], "direction.1");
    let mean = |name: &str| {
        let (shape, x) = tensor(&d.join(name).join("activations.safetensors"), "blocks.1.hook_resid_post");
        (0..24).map(|c| (0..shape[0]).map(|r| x[r * 24 + c]).sum::<f64>() / shape[0] as f64).collect::<Vec<_>>()
    };
    let norm = mean("a").iter().zip(mean("b")).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let found = made["layers"][0]["norm"].as_f64().expect("a norm");
    assert!((found - norm).abs() < 1e-5 * norm, "{found} for {norm}");

    put(d, "steer.yaml", "[{op: add, value: v.gguf, scale: 8}]");
    let generate =
        |flags: &str| ids(&line(d, &format!("generate --model {{}}/model --max-new-tokens 8 --json {flags}")).json());
    let all = generate("--prompt the --prompt there --prompt the --edit {}/steer.yaml");
    assert_eq!(all[0], all[2]);
    assert_eq!(all[1], generate("--prompt there --edit {}/steer.yaml")[0], "a neighbour changes a continuation");
    assert_ne!(all[0], generate("--prompt the")[0], "the vector changes no token");
}

#[test]
fn wrong_edits_are_refused_by_file_and_field() {
    let dir = workplace();
    let d = dir.path();
    vectors(d);
    let generate = "generate --model {}/model --prompt the --edit {}/edit.yaml";
    for (text, command, expected) in [
        ("[{site: z, positions: query, op: zero}]", generate, "edit.yaml: [0].positions: expected last, all or a list"),
        ("[{site: z, positions: demonstrations, op: zero}]", CAPTURE, "found demonstrations"),
        (
            "[{site: z, positions: [9], op: zero}]",
            CAPTURE,
            "edit.yaml: [0].positions: expected positions of a sequence of",
        ),
        ("[{site: z, positions: [-9], op: zero}]", generate, "found -9"),
        ("[{site: z, positions: [1, -1], op: zero}]", generate, "found -1 again"),
        (
            "[{site: z, positions: last, op: add, value: v.safetensors#one}]",
            CAPTURE,
            "[0].value: expected rows of 32 elements",
        ),
        ("[{site: pattern, positions: last, op: zero}]", CAPTURE, "[0].site: expected one of hook_embed"),
        ("[{site: z, positions: last, op: none}]", CAPTURE, "[0].op: expected one of add"),
        ("nothing", CAPTURE, "edit.yaml: top level: expected a list"),
    ] {
        put(d, "edit.yaml", text);
        let command =
            if command == CAPTURE { format!("{CAPTURE} {{}}/out --edit {{}}/edit.yaml") } else { command.into() };
        let said = line(d, &command).refused();
        assert!(said.contains(expected), "{text}: {said}");
        assert!(!d.join("out/activations.safetensors").exists());
    }
    let said =
        line(d, "control-vector --positive {}/v.safetensors --negative {}/v.safetensors --out {}/v.gguf").refused();
    assert!(said.contains("v.safetensors: one: expected floats of shape [rows, width]"), "{said}");
    assert!(!d.join("v.gguf").exists());
}

/// What `probe --edit` calls a query is its own text, and what it edits the prompt, never the answers that are scored.
#[test]
fn probe_edits_the_tokens_of_prompts_and_of_queries() {
    let dir = workplace();
    let d = dir.path();
    // A tokenizer that puts a space before a text: a query alone begins with another token than behind demonstrations.
    let file = d.join("model/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    tokenizer["pre_tokenizer"]["add_prefix_space"] = true.into();
    fs::write(&file, tokenizer.to_string()).expect("writes");
    let row = |i: usize| format!("- {{input: pa{}z, output: {}}}\n", (b'b' + i as u8) as char, ["xy", "vw"][i % 2]);
    let template = "{query: \"{input}:\", answer: \"{output}\\n\"}";
    let rows: String = (0..8).map(row).collect();
    put(d, "t.yaml", &format!("name: t\nlabels: [xy, vw]\ntemplate: {template}\nrows:\n{rows}"));
    let scores = |positions: &str, demos: usize| {
        put(
            d,
            "edit.yaml",
            &format!("[{{site: resid_post, layers: 0, positions: {positions}, op: scale, scale: -2}}]"),
        );
        let text = format!(
            "probe --model {{}}/model --task {{}}/t.yaml --demos {demos} --queries 3 --seeds 1 --epochs 0 --edit {{}}/edit.yaml \
             --device cpu --out {{}}/run --json"
        );
        let report = line(d, &text).json();
        let seed = report["seeds"][0].clone();
        (seed["log_prob"]["icl"].as_f64().expect("a mean"), seed["log_prob"].clone(), seed["layers"].clone())
    };
    // p a ? z and the colon.
    assert_eq!(scores("query", 2).0, scores("[-5, -4, -3, -2, -1]", 2).0);
    assert_ne!(scores("query", 2).0, scores("[-4, -3, -2, -1]", 2).0);
    let (_, log_prob, layers) = scores("last", 2);
    let (_, of_last, of_states) = scores("[-1]", 2);
    assert_eq!((log_prob, layers), (of_last, of_states));
    // BOS, the space with the p, and four more.
    let (_, log_prob, layers) = scores("all", 0);
    let (_, of_list, of_states) = scores("[0, 1, 2, 3, 4, 5]", 0);
    assert_eq!((log_prob, layers), (of_list, of_states));
}
