//! How states come to the host: by copies alone.

use std::fs;

use serde_json::Value;

use super::{CAPTURE, TRAIN, program, succeed, workplace};

#[test]
fn no_kernel_is_given_memory_of_the_host() {
    let dir = workplace(safetensors::Dtype::BF16);
    let report = dir.path().join("report.json");
    for (line, out) in [(CAPTURE, "states"), (TRAIN, "adapter")] {
        let line = format!("{line} --device cuda:0 --out {{}}/{out}");
        succeed(program(dir.path(), &line).env("FAKE_REPORT", &report));
        let found: Value = serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
        assert_eq!(found["on_host"].as_u64(), Some(0), "{out}: {found}");
    }
}
