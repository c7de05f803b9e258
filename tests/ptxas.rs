//! Every kernel, compiled for real devices without having one: no spills, no local memory, and the tensor-core and
//! asynchronous-copy instructions that it was written for. Needs nvcc 13 (`LLAMAPROBE_NVCC`, a path, or 1 for the one on
//! the PATH) with cuobjdump and nvdisasm beside it; `pip install nvidia-cuda-nvcc==13.0.88` and its companions have them.

#[path = "simt/machine.rs"]
mod machine;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use machine::{Attention, Dtype, SIMPLE};

const DEVICES: [&str; 3] = ["80", "90a", "120"];

/// The compiler; says so if there is none.
fn nvcc() -> Option<PathBuf> {
    let Some(given) = std::env::var_os("LLAMAPROBE_NVCC").filter(|given| !given.is_empty()) else {
        println!("skipped: LLAMAPROBE_NVCC is not set");
        return None;
    };
    let path = if given == "1" { PathBuf::from("nvcc") } else { PathBuf::from(given) };
    let found = Command::new(&path).arg("--version").output().is_ok_and(|out| out.status.success());
    assert!(found, "LLAMAPROBE_NVCC: {} does not run", path.display());
    Some(path)
}

/// What the compiler and the disassembler say of one build, for every device.
struct Build {
    /// Lines of warnings.
    warnings: Vec<String>,
    /// Instructions by device and kernel.
    instructions: BTreeMap<(String, String), Vec<String>>,
}

impl Build {
    fn new(nvcc: &Path, text: &str, dtype: Dtype, options: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (source, binary) = (dir.path().join("kernels.cu"), dir.path().join("kernels.fatbin"));
        std::fs::write(&source, text).unwrap();
        let devices = DEVICES.map(|device| format!("-gencode=arch=compute_{device},code=sm_{device}"));
        let out = Command::new(nvcc)
            .args(["-fatbin", "-std=c++17", "-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage"])
            .args(devices)
            .arg(format!("-DREAL={}", dtype.name()))
            .args(options)
            .arg(&source)
            .arg("-o")
            .arg(&binary)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "nvcc {dtype:?} {options:?}:\n{said}");
        let warnings = said.lines().filter(|line| line.contains("warning")).map(str::to_string).collect();
        let tool = nvcc.with_file_name("cuobjdump");
        let bin = nvcc.parent().unwrap_or(Path::new("")).to_path_buf();
        let path = std::env::join_paths(
            std::iter::once(bin).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        );
        let out = Command::new(&tool).arg("-sass").arg(&binary).env("PATH", path.unwrap()).output();
        let out = out.unwrap_or_else(|error| panic!("{}: {error}", tool.display()));
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let (mut device, mut kernel) = (String::new(), String::new());
        let mut instructions: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("arch = sm_") {
                device = name.to_string();
            } else if let Some(name) = line.strip_prefix("Function : ") {
                kernel = name.to_string();
            } else if let Some((_, rest)) =
                line.split_once("*/").filter(|_| line.starts_with("/*") && !line.starts_with("/* "))
            {
                let word = rest.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or_default();
                let key = (device.clone(), kernel.clone());
                instructions.entry(key).or_default().push(word.trim_end_matches(';').to_string());
            }
        }
        Self { warnings, instructions }
    }

    /// How many of a kernel's instructions begin with `name`, by device.
    fn count(&self, kernel: &str, name: &str) -> Vec<usize> {
        let of_kernel = self.instructions.iter().filter(|((_, k), _)| k == kernel);
        of_kernel.map(|(_, list)| list.iter().filter(|i| i.starts_with(name)).count()).collect()
    }

    /// What no kernel may have.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = self.warnings.clone();
        for ((device, kernel), list) in &self.instructions {
            let local = list.iter().filter(|i| i.starts_with("LDL") || i.starts_with("STL")).count();
            if local > 0 {
                wrong.push(format!("sm_{device} {kernel}: {local} instructions on local memory"));
            }
        }
        wrong
    }
}

fn accept(build: &Build, kernels: &[&str], what: &str) {
    assert!(build.wrong().is_empty(), "{what}:\n{}", build.wrong().join("\n"));
    for kernel in kernels {
        let devices = build.instructions.keys().filter(|(_, k)| k == kernel).count();
        assert_eq!(devices, DEVICES.len(), "{what}: {kernel} is there for {devices} devices");
    }
}

/// Matrix products of a warp's step of each kernel, in instructions of 16 x 8 x 16.
fn products(a: Attention) -> [(&'static str, usize); 3] {
    let product = |n: usize, k: usize| n / 8 * (k / 16);
    let fwd = product(a.fwd_step, a.head_dim) + product(a.head_dim, a.fwd_step);
    let (scores, sums) = (product(a.bwd_step, a.head_dim), product(a.head_dim, a.bwd_step));
    // Both gradients of a wide head do not fit the registers together: the scores are made twice.
    let dkv = if a.head_dim > 128 { 3 * scores + 2 * sums } else { 2 * scores + 2 * sums };
    [("attention_fwd", fwd), ("attention_bwd_dq", 2 * scores + sums), ("attention_bwd_dkv", dkv)]
}

#[test]
fn simple_kernels_compile_without_spills() {
    let Some(nvcc) = nvcc() else { return };
    let text = machine::text(&SIMPLE);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let build = Build::new(&nvcc, &text, dtype, &[]);
        accept(&build, &machine::kernels(&text), &format!("{dtype:?}"));
        for kernel in ["lora_fwd_shrink", "lora_fwd_expand", "lora_bwd_xa", "lora_bwd_params", "lora_bwd_x"] {
            let products = build.count(kernel, "HMMA");
            assert!(products.iter().all(|&count| count > 0), "{kernel} {dtype:?}: products {products:?}");
        }
    }
}

#[test]
fn attention_compiles_to_tensor_core_instructions_without_spills() {
    let Some(nvcc) = nvcc() else { return };
    let text = machine::text(&["attention"]);
    let widths =
        [(Dtype::Bf16, &[16, 32, 64, 80, 96, 128, 256][..]), (Dtype::F16, &[64, 128]), (Dtype::F32, &[64, 256])];
    for (dtype, head_dim) in widths.iter().flat_map(|(dtype, widths)| widths.iter().map(|&width| (*dtype, width))) {
        let attention = Attention::new(dtype, head_dim);
        let build = Build::new(&nvcc, &text, dtype, &attention.macros());
        accept(&build, &machine::kernels(&text), &format!("{dtype:?} {head_dim}"));
        for (kernel, products) in products(attention) {
            let expected = if dtype == Dtype::F32 { 0 } else { products };
            assert_eq!(build.count(kernel, "HMMA"), [expected; 3], "{kernel} {dtype:?} {head_dim}: products");
            let copies = build.count(kernel, "LDGSTS");
            assert!(
                copies.iter().all(|&count| count > 0),
                "{kernel} {dtype:?} {head_dim}: asynchronous copies {copies:?}"
            );
            let loads = build.count(kernel, "LDSM");
            assert!(loads.iter().all(|&count| (count > 0) == (expected > 0)), "{kernel} {dtype:?}: LDSM {loads:?}");
        }
    }
}

#[test]
fn the_gate_sees_spills_and_missing_tensor_cores() {
    let Some(nvcc) = nvcc() else { return };
    let attention = Attention::new(Dtype::Bf16, 64);
    let text = machine::text(&["attention"]);
    // Eight blocks at a time leave a thread 64 registers.
    let crowded = text.replace("__launch_bounds__(32 * WARPS, 1)", "__launch_bounds__(32 * WARPS, 8)");
    assert_ne!(text, crowded);
    let build = Build::new(&nvcc, &crowded, Dtype::Bf16, &attention.macros());
    assert!(build.wrong().iter().any(|line| line.contains("spill")), "{:?}", build.wrong());
    assert!(build.wrong().iter().any(|line| line.contains("attention_fwd: ")), "{:?}", build.wrong());
    let build = Build::new(&nvcc, &text, Dtype::F32, &attention.macros());
    assert!(build.count("attention_fwd", "HMMA").iter().all(|&count| count == 0));
}
