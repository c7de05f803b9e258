//! `--profile`.

use std::fs;

use serde_json::Value;

use super::{leftovers, line, put, workplace};

const GENERATE: &str = "generate --model {}/model --prompt the --max-new-tokens 3 --device cpu --threads 2";

/// The table on stderr: of every row its first cell, and the share of its row.
fn shares(err: &str) -> Vec<(String, f64)> {
    let lines = err.lines().skip_while(|line| !line.trim_start().starts_with("op ")).skip(1);
    let rows = lines.take_while(|line| !line.starts_with("llamaprobe: "));
    let share = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The first number before a percent sign is the share, the second that of the ceiling.
        let at = words.iter().position(|word| *word == "%").unwrap_or_else(|| panic!("no share in {line:?}"));
        (words[0].to_owned(), words[at - 1].parse().expect("a number"))
    };
    rows.map(share).collect()
}

#[test]
fn profile_is_a_trace_and_a_table_and_changes_no_result() {
    let dir = workplace();
    let d = dir.path();
    let plain = line(d, GENERATE).ok();
    let profiled = line(d, &format!("{GENERATE} --profile {{}}/traces/trace.json")).ok();
    assert_eq!(plain.out, profiled.out);

    // As the Trace Event Format has it.
    let trace: Value = serde_json::from_slice(&fs::read(d.join("traces/trace.json")).expect("a trace")).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    assert_eq!(trace["displayTimeUnit"], "ms");
    assert!(trace["otherData"]["ceiling_flops_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
    let (names, events): (Vec<_>, Vec<_>) = events.iter().partition(|event| event["ph"] == "M");
    let threads: Vec<&Value> =
        names.iter().filter(|n| n["name"] == "thread_name").map(|n| &n["args"]["name"]).collect();
    assert_eq!(threads[..2], ["operations", "thread 0"]);
    let number = |event: &Value, key: &str| event[key].as_f64().unwrap_or_else(|| panic!("{key} of {event}"));
    let (mut ends, mut ops) = (vec![0.0f64; threads.len()], Vec::new());
    for event in &events {
        assert_eq!((&event["ph"], &event["pid"]), (&"X".into(), &1.into()), "{event}");
        let thread = event["tid"].as_u64().expect("a thread") as usize;
        let (start, duration) = (number(event, "ts"), number(event, "dur"));
        // Times are printed in microseconds with three digits.
        assert!(start >= ends[thread] - 1e-3 && duration >= 0.0, "{event} before {}", ends[thread]);
        ends[thread] = start + duration;
        if thread == 0 {
            assert!(event["args"]["bytes"].as_u64().is_some() && event["args"]["flops"].as_u64().is_some(), "{event}");
            ops.push(event["name"].as_str().expect("a name").to_owned());
        }
    }
    assert_eq!(ops[..4], ["embed_fwd", "rms_norm_fwd", "linear_fwd", "linear_fwd"]);
    // A prompt of one or more tokens and then one at a time, each through two layers and to the logits.
    assert_eq!(ops.iter().filter(|op| *op == "logits_fwd").count(), 3);
    assert_eq!(ops.iter().filter(|op| *op == "attention_fwd").count(), 3 * 2);

    let mut table = shares(&profiled.err);
    assert_eq!(table.pop(), Some(("all".to_owned(), 100.0)), "{}", profiled.err);
    let sum: f64 = table.iter().map(|(_, share)| share).sum();
    assert!((sum - 100.0).abs() <= 0.05 * table.len() as f64 + 1e-9, "{sum} % in {table:?}");
    let named = |op: &String| op == "outside" || table.iter().any(|(name, _)| name == op);
    assert!(ops.iter().all(named) && table.len() > 5, "{table:?}");
    assert!(profiled.err.contains("ceiling, measured now: "), "{}", profiled.err);
}

#[test]
fn profile_may_lie_beside_what_a_training_writes() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", super::trained::DATA);
    line(d, "train-lora --model {}/model --train {}/train.jsonl --max-steps 1 --out {}/out --profile {}/out/p.json")
        .ok();
    let trace: Value = serde_json::from_slice(&fs::read(d.join("out/p.json")).expect("a trace")).expect("JSON");
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 100));
}

#[test]
fn profile_of_nothing_is_said_and_one_that_cannot_be_written_refused() {
    let dir = workplace();
    let d = dir.path();
    let dry = "capture --model {}/model --input {}/texts.jsonl --sites embed --out {}/states --dry-run --device cpu";
    let ran = line(d, &format!("{dry} --profile {{}}/trace.json")).ok();
    assert!(ran.err.contains("--profile: nothing was computed"), "{}", ran.err);
    assert!(!d.join("trace.json").exists() && leftovers(d).is_empty());

    let refused = line(d, &format!("{GENERATE} --profile {{}}/model")).refused();
    assert!(refused.contains("expected a file to write, found a directory"), "{refused}");

    // As a key of a file, too.
    put(d, "flags.yaml", &format!("profile: {}\n", d.join("keyed.json").display()));
    line(d, &format!("{GENERATE} --config {{}}/flags.yaml")).ok();
    assert!(d.join("keyed.json").exists());
}

#[test]
fn profile_counts_quantised_weights_as_they_are_stored() {
    let dir = workplace();
    let d = dir.path();
    let config: Value = serde_json::from_slice(&fs::read(d.join("model/config.json")).expect("it")).expect("JSON");
    let width = config["hidden_size"].as_u64().expect("a width");
    let heads = config["num_attention_heads"].as_u64().expect("heads");
    let queries = config["head_dim"].as_u64().map_or(width, |head_dim| heads * head_dim);
    let bytes = |more: &str| {
        line(d, &format!("{GENERATE} --dtype f32 {more} --profile {{}}/trace.json")).ok();
        let trace: Value = serde_json::from_slice(&fs::read(d.join("trace.json")).expect("a trace")).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let first = events.iter().find(|event| event["name"] == "linear_fwd").expect("a product");
        first["args"]["bytes"].as_u64().expect("bytes")
    };
    // Of the queries' projection: a byte an element and a scale of four a row, for four bytes an element.
    assert_eq!(bytes("") - bytes("--load-in int8"), 3 * queries * width - 4 * queries);
}
