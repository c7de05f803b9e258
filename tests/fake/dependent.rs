//! Kernels that are launched while the one before them still runs: the driver starts them before it has even begun, and lets no other
//! kernel start so (`tests/simt/fake_driver/driver.cpp`, `tests/simt/dependent.h`).

use std::fs;
use std::path::Path;
use std::process::Command;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::ops::{Cast, ResidualFwd, RowOps};
use llamaprobe::backend::{Buffers, Transfer};
use serde_json::Value;

use super::{CAPTURE, TRAIN, cache, cuda, on_fake, program, refuse, succeed, workplace};

/// Kernels each of which needs what the one before has made, in a list that comes again.
#[test]
#[ignore = "started on the fake driver"]
fn chain() {
    const LEN: usize = 400;
    let mut gpu = cuda::device(Dtype::F32).expect("the fake driver's device");
    let [mut sum, mut next] = [(); 2].map(|()| gpu.acc(LEN).expect("a buffer"));
    let mut term = gpu.compute(LEN).expect("a buffer");
    let ones = [1.0; LEN];
    for _ in 0..3 {
        gpu.upload(&mut sum, 0, &ones).expect("an upload");
        for _ in 0..6 {
            gpu.cast(Cast { out: &mut term, x: &sum, len: LEN });
            gpu.residual_fwd(ResidualFwd { out: &mut next, a: &sum, b: &term, len: LEN });
            std::mem::swap(&mut sum, &mut next);
        }
        let mut found = [0.0; LEN];
        gpu.download(&mut found, &sum, 0).expect("a download");
        assert_eq!(found, [64.0; LEN]);
    }
    assert!(gpu.replays().replayed > 0);
}

/// Commands on the fake driver, whose kernels are compiled in a hurry, with further flags, and cached in a folder of their own.
fn hurried<'a>(command: &'a mut Command, flags: &str, cache: &Path) -> &'a mut Command {
    command.env("FAKE_NVRTC_FLAGS", format!("-O0 {flags}")).env("XDG_CACHE_HOME", cache);
    command.env("LLAMAPROBE_CUDA_CACHE", cache.join("llamaprobe/kernels"))
}

/// A count of what the device ran.
fn count(report: &Path, what: &str) -> u64 {
    let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
    report[what].as_u64().expect("a count")
}

#[test]
fn kernels_that_start_early_wait_for_the_one_before() {
    let dir = super::support::temp();
    let d = dir.path();
    fs::write(d.join("plain.h"), "#undef PDL\n").expect("write a test's file");
    let run = |flags: &str, name: &str| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        on_fake(command.args(["--exact", "dependent::chain", "--ignored"]));
        hurried(&mut command, flags, &d.join(name)).env("LLAMAPROBE_PDL", "1").env("FAKE_REPORT", d.join("report"));
        let out = command.output().expect("start the program");
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr),
        )
    };
    let (succeeds, said) = run("", "early");
    assert!(succeeds, "{said}");
    // All of a list but the first, which follows a copy.
    assert_eq!(count(&d.join("report"), "early"), 3 * 11);
    let (succeeds, said) = run("-DPLANT_NO_KERNEL_WAIT", "planted");
    assert!(!succeeds && said.contains("left == right"), "kernels that do not wait change nothing: {said}");
    let (succeeds, said) = run(&format!("-include {}", d.join("plain.h").display()), "plain");
    assert!(!succeeds && said.contains("was not built to wait"), "{said}");
}

#[test]
fn training_with_kernels_that_start_early_is_the_same() {
    let dir = workplace(safetensors::Dtype::F32);
    let d = dir.path();
    let report = |asked: &str| d.join(format!("report-{asked}"));
    let adapters = ["0", "1"].map(|asked| {
        let mut command = program(d, &format!("{TRAIN} --no-shuffle --device cuda:0 --out {{}}/{asked}"));
        command.env("LLAMAPROBE_PDL", asked).env("FAKE_REPORT", report(asked));
        if asked == "1" {
            hurried(&mut command, "", &cache().with_extension("hurried"));
        }
        succeed(&mut command);
        fs::read(d.join(asked).join("adapter_model.safetensors")).expect("an adapter")
    });
    assert!(adapters[0] == adapters[1], "another adapter");
    let [plain, early] = ["0", "1"].map(|asked| count(&report(asked), "early"));
    let [kernels, same] = ["0", "1"].map(|asked| count(&report(asked), "kernels"));
    println!("{early} of {kernels} kernels start early");
    assert_eq!((plain, kernels), (0, same));
    assert!(2 * early > kernels, "{early} of {kernels} kernels start early");
}

#[test]
fn what_no_gpu_has_run_is_asked_for_by_yes_or_no() {
    let dir = workplace(safetensors::Dtype::F32);
    for variable in ["LLAMAPROBE_PDL", "LLAMAPROBE_HOPPER"] {
        let mut command = program(dir.path(), &format!("{CAPTURE} --out {{}}/out --device cuda:0"));
        let error = refuse(command.env(variable, "on"));
        assert!(error.contains(variable) && error.contains("on") && error.contains("0, 1"), "{error}");
    }
}
