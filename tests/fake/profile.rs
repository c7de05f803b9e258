//! What a device's own events say of a training.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{TRAIN, program, succeed, workplace};

/// Floating-point operations by operation, of the trace that a command on a device has written.
fn profiled(path: &Path) -> BTreeMap<String, (u64, u64)> {
    let trace: Value = serde_json::from_slice(&fs::read(path).expect("a trace")).expect("JSON");
    let mut totals = BTreeMap::new();
    let mut end = 0.0;
    for event in trace["traceEvents"].as_array().expect("events") {
        if event["ph"] == "X" && event["tid"] == 0 {
            let [start, took] = ["ts", "dur"].map(|key| event[key].as_f64().expect("a time"));
            assert!(start >= end - 1e-3 && took >= 0.0, "{event} before {end}");
            end = start + took;
            let total: &mut (u64, u64) = totals.entry(event["name"].as_str().expect("a name").to_owned()).or_default();
            let [flops, bytes] = ["flops", "bytes"].map(|key| event["args"][key].as_u64().expect("a count"));
            *total = (total.0 + flops, total.1 + bytes);
        }
    }
    totals
}

/// By the device's own events, of which the driver has the times.
#[test]
fn profile_has_the_work_of_the_cpus_and_changes_nothing() {
    let dir = workplace(safetensors::Dtype::F32);
    // A batch of 48 rows (a last token is none), 16 of them of labels: sizes to which nothing is filled up on a GPU.
    let example = |(i, labels): (usize, usize)| {
        let ids: Vec<i64> = (0..17).map(|t| 20 + 17 * i as i64 + t).collect();
        let learnt: Vec<i64> = (0..17).map(|t| if t + labels < 17 { -100 } else { ids[t] }).collect();
        format!("{{\"input_ids\": {ids:?}, \"labels\": {learnt:?}}}\n")
    };
    let examples: String = [5, 5, 6].into_iter().enumerate().map(example).collect();
    fs::write(dir.path().join("train.jsonl"), examples).expect("write a test's file");
    let plain = format!("{TRAIN} --device cuda:0 --out {{}}/plain");
    succeed(&mut program(dir.path(), &plain));
    let [cpu, cuda] = ["cpu", "cuda:0"].map(|device| {
        let name = &device[..3];
        let line = format!("{TRAIN} --device {device} --out {{}}/{name} --profile {{}}/{name}.json");
        succeed(&mut program(dir.path(), &line));
        profiled(&dir.path().join(name).with_extension("json"))
    });
    let flops = |totals: &BTreeMap<String, (u64, u64)>| {
        let products = totals.iter().filter(|(_, (flops, _))| *flops > 0);
        products.map(|(op, (flops, _))| (op.clone(), *flops)).collect::<Vec<_>>()
    };
    assert_eq!(flops(&cpu), flops(&cuda));
    // A sum that the next norm makes in its own kernel is that norm's work.
    let bytes = |totals: &BTreeMap<String, (u64, u64)>, op: &str| totals.get(op).map_or(0, |(_, bytes)| *bytes);
    let summed = |totals| bytes(totals, "rms_norm_fwd") + bytes(totals, "residual_fwd");
    assert_eq!(summed(&cpu), summed(&cuda));
    assert!(bytes(&cuda, "residual_fwd") < bytes(&cpu, "residual_fwd"), "no sum was fused");
    assert_eq!(bytes(&cpu, "adamw"), bytes(&cuda, "adamw"));
    let file = |folder: &str| dir.path().join(folder).join("adapter_model.safetensors");
    assert_eq!(fs::read(file("plain")).expect("an adapter"), fs::read(file("cud")).expect("an adapter"));
}
