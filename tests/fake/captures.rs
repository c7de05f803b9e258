//! How states come to the host: by copies alone.

use std::fs;

use half::bf16;
use llamaprobe::arch::Dtype;
use llamaprobe::backend::cuda::{Cuda, Settings};
use llamaprobe::backend::{Buffers, Capture, HostSlice, Tensor, Transfer};
use safetensors::SafeTensors;
use serde_json::Value;

use super::ops::device;
use super::{CAPTURE, TRAIN, child, cuda, on_fake, program, succeed, workplace};

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

#[test]
fn states_cross_to_the_host_in_their_own_dtype() {
    let dir = workplace(safetensors::Dtype::BF16);
    let report = dir.path().join("report.json");
    for (sites, element) in [("z,mlp_post", 2), ("resid_post", 4)] {
        let line = format!("capture --model {{}}/model --input {{}}/texts.jsonl --sites {sites} --device cuda:0");
        succeed(program(dir.path(), &format!("{line} --out {{}}/{sites}")).env("FAKE_REPORT", &report));
        let file = fs::read(dir.path().join(sites).join("activations.safetensors")).expect("states");
        let file = SafeTensors::deserialize(&file).expect("tensors");
        let states = file.iter().filter(|(_, tensor)| tensor.dtype() != safetensors::Dtype::I64);
        let elements: usize = states.map(|(_, tensor)| tensor.shape().iter().product::<usize>()).sum();
        let found: Value = serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
        assert!(elements > 0);
        assert_eq!(found["to_host"].as_u64(), Some((element * elements) as u64), "{sites}: {found}");
    }
}

#[test]
#[ignore = "started on the fake driver"]
fn own_dtype() {
    // Room for one capture: the next one has memory of its own.
    let settings = Settings { capture_bytes: 1, ..cuda::settings() };
    let mut b = Cuda::open(0, Dtype::BF16, &settings).expect("the fake driver's device");
    let values: Vec<f64> = (0..12).map(|i| f64::from(i) + 0.5).collect();
    let x = device::compute(&mut b, &values);
    let captures = [0, 1].map(|_| b.capture(Tensor::Compute(&x), &[2, 0], 4));
    b.sync().expect("no error");
    let wanted = [&values[8..], &values[..4]].concat();
    let rows: Vec<bf16> = wanted.iter().map(|&x| bf16::from_f64(x)).collect();
    for captured in captures {
        assert_eq!(captured.elements(), HostSlice::Bf16(&rows));
        assert!(captured.rows().iter().map(|&x| f64::from(x)).eq(wanted.iter().copied()));
    }
}

#[test]
fn captures_are_read_in_their_own_dtype() {
    child("captures::own_dtype");
}

/// Eight captures of 8 MB, of which the device has room for three beside what it needs anyway.
#[test]
#[ignore = "started on the fake driver"]
fn little_memory() {
    let mut b = cuda::device(Dtype::F32).expect("the fake driver's device");
    let (rows, width) = (512, 1 << 12);
    let mut x = b.acc(width).expect("memory");
    let captures: Vec<_> = (0..8)
        .map(|i| {
            b.upload(&mut x, 0, &vec![i as f32; width]).expect("an upload");
            b.capture(Tensor::Acc(&x), &vec![0; rows], width)
        })
        .collect();
    b.sync().expect("room for one capture after the other");
    for (i, captured) in captures.iter().enumerate() {
        assert!(captured.rows().iter().all(|&x| x == i as f32), "capture {i}");
    }
}

#[test]
fn memory_of_captures_that_have_been_copied_serves_the_next() {
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    let command = on_fake(command.args(["--exact", "captures::little_memory", "--ignored", "--nocapture"]));
    succeed(command.env("FAKE_MEMORY", (64 << 20).to_string()));
}
