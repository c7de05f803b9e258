//! Every kernel, compiled for real devices without having one: no spills, no local memory, and the tensor-core and
//! asynchronous-copy instructions that it was written for; and what the build makes of `LLAMAPROBE_NVCC`. Needs nvcc 13
//! (the path in `LLAMAPROBE_TEST_NVCC`, which unlike the other does not rebuild everything) with cuobjdump and nvdisasm
//! beside it: `.ci/run` installs them.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use llamaprobe::arch::Dtype;

use crate::ops::simt::machine;
use crate::sass::{self, Listing};
use crate::skips::{Reason, skip};

const DEVICES: [&str; 3] = ["80", "90a", "120"];

/// The compiler; the test is recorded as skipped if there is none.
pub fn nvcc() -> Option<PathBuf> {
    let Some(path) = std::env::var_os("LLAMAPROBE_TEST_NVCC").filter(|given| !given.is_empty()) else {
        skip(Reason::Nvcc);
        return None;
    };
    let path = PathBuf::from(path);
    let found = Command::new(&path).arg("--version").output().is_ok_and(|out| out.status.success());
    assert!(found, "LLAMAPROBE_TEST_NVCC: {} does not run", path.display());
    Some(path)
}

/// What cuobjdump, which needs nvdisasm on the PATH, says of a binary.
fn dump(nvcc: &Path, option: &str, binary: &Path) -> String {
    let tool = nvcc.with_file_name("cuobjdump");
    let bin = nvcc.parent().unwrap_or(Path::new("")).to_path_buf();
    let others = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&others)));
    let out = Command::new(&tool).arg(option).arg(binary).env("PATH", path.unwrap()).output();
    let out = out.unwrap_or_else(|error| panic!("{}: {error}", tool.display()));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What the compiler gives a kernel of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub registers: usize,
    /// Bytes that are spilt, stores and loads.
    pub spills: usize,
    /// Bytes of static shared memory.
    pub shared: usize,
}

/// By device and kernel.
type ByKernel<T> = BTreeMap<(String, String), T>;

/// What the compiler and the disassembler say of one build, for every device.
pub struct Build {
    /// Lines of warnings.
    warnings: Vec<String>,
    pub resources: ByKernel<Resources>,
    pub listings: ByKernel<Listing>,
}

/// Resources out of what ptxas says with `-v`.
fn resources(said: &str) -> ByKernel<Resources> {
    let mut all: ByKernel<Resources> = BTreeMap::new();
    let mut key = Default::default();
    for line in said.lines() {
        if let Some((_, names)) = line.split_once("Compiling entry function '") {
            let mut quoted = names.split('\'');
            let (kernel, device) = (quoted.next().unwrap_or_default(), quoted.nth(1).unwrap_or_default());
            key = (device.trim_start_matches("sm_").to_string(), kernel.to_string());
        }
        let before = |what: &str| line.split(what).next().filter(|_| line.contains(what));
        let count = |what| before(what)?.rsplit(' ').next()?.parse::<usize>().ok();
        let of_kernel = all.entry(key.clone()).or_default();
        of_kernel.registers += count(" registers,").unwrap_or(0);
        of_kernel.spills += count(" bytes spill stores").unwrap_or(0) + count(" bytes spill loads").unwrap_or(0);
        of_kernel.shared += count(" bytes smem").unwrap_or(0);
    }
    all.retain(|(device, _), _| !device.is_empty());
    all
}

/// Compiles a text; what the compiler and the disassembler say, which is kept in a folder that appears when it is whole.
fn compile(nvcc: &Path, text: &str, flags: &[String], kept: &Path) -> (String, String) {
    let folder = kept.parent().unwrap();
    std::fs::create_dir_all(folder).unwrap();
    let dir = tempfile::tempdir_in(folder).unwrap();
    let [source, binary, new] = ["kernels.cu", "kernels.fatbin", "new"].map(|name| dir.path().join(name));
    std::fs::write(&source, text).unwrap();
    let out = Command::new(nvcc).args(flags).arg(&source).arg("-o").arg(&binary).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "nvcc {flags:?}:\n{said}");
    let listed = dump(nvcc, "-sass", &binary);
    std::fs::create_dir(&new).unwrap();
    for (name, text) in [("said", &said), ("listed", &listed)] {
        std::fs::write(new.join(name), text).unwrap();
    }
    // Another run may have been faster.
    let _ = std::fs::rename(&new, kept);
    (said, listed)
}

impl Build {
    /// A build for all devices, of which each is made once in a run of this program.
    pub fn new(nvcc: &Path, text: &str, dtype: Dtype, options: &[String]) -> Arc<Self> {
        type Builds = Mutex<HashMap<(String, Dtype, Vec<String>), Arc<OnceLock<Arc<Build>>>>>;
        static BUILDS: OnceLock<Builds> = OnceLock::new();
        let key = (text.to_string(), dtype, options.to_vec());
        let build = BUILDS.get_or_init(Builds::default).lock().unwrap().entry(key).or_default().clone();
        build.get_or_init(|| Arc::new(Self::for_devices(nvcc, text, dtype, options, &DEVICES))).clone()
    }

    /// What the tools say is kept: kernels that are as they were in an earlier run are not compiled again. (What has been changed
    /// since goes with the target directory.)
    pub fn for_devices(nvcc: &Path, text: &str, dtype: Dtype, options: &[String], devices: &[&str]) -> Self {
        let mut flags: Vec<String> =
            ["-fatbin", "-std=c++17", "-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage"]
                .map(String::from)
                .into();
        flags.extend(devices.iter().map(|device| format!("-gencode=arch=compute_{device},code=sm_{device}")));
        flags.push(format!("-DREAL={}", machine::type_name(dtype)));
        flags.extend_from_slice(options);
        let version = Command::new(nvcc).arg("--version").output().unwrap().stdout;
        let mut hasher = DefaultHasher::new();
        (text, &flags, version).hash(&mut hasher);
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvcc-builds").join(format!("{:016x}", hasher.finish()));
        let [said, listed] = ["said", "listed"].map(|what| std::fs::read_to_string(kept.join(what)));
        let (said, listed) = match (said, listed) {
            (Ok(said), Ok(listed)) => (said, listed),
            _ => compile(nvcc, text, &flags, &kept),
        };
        // Products of warpgroups that wait for each other, since the compiler could not keep them apart, are but an information.
        let wrong = |line: &&str| line.contains("warning") || line.contains("Potential Performance Loss");
        let warnings = said.lines().filter(wrong).map(str::to_string).collect();
        Self { warnings, resources: resources(&said), listings: listings(&listed) }
    }

    /// How many of a kernel's instructions begin with `name`, by device.
    fn count(&self, kernel: &str, name: &str) -> Vec<usize> {
        let of_kernel = self.listings.iter().filter(|((_, k), _)| k == kernel);
        of_kernel.map(|(_, list)| list.count(name)).collect()
    }

    /// What no kernel may have.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = self.warnings.clone();
        for ((device, kernel), list) in &self.listings {
            let local = list.count("LDL") + list.count("STL");
            if local > 0 {
                wrong.push(format!("sm_{device} {kernel}: {local} instructions on local memory"));
            }
        }
        wrong
    }
}

/// A disassembly by device and kernel.
fn listings(text: &str) -> ByKernel<Listing> {
    let (mut device, mut kernel) = (String::new(), String::new());
    let mut listings: ByKernel<Listing> = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix("arch = sm_") {
            device = name.to_string();
        } else if let Some(name) = line.trim().strip_prefix("Function : ") {
            kernel = name.to_string();
        } else if let Some(instruction) = sass::instruction(line) {
            listings.entry((device.clone(), kernel.clone())).or_default().0.push(instruction);
        }
    }
    listings
}

fn accept(build: &Build, kernels: &[&str], what: &str) {
    assert!(build.wrong().is_empty(), "{what}:\n{}", build.wrong().join("\n"));
    for kernel in kernels {
        let devices = build.listings.keys().filter(|(_, k)| k == kernel).count();
        assert_eq!(devices, DEVICES.len(), "{what}: {kernel} is there for {devices} devices");
    }
}

/// Matrix products of a warp's step of each kernel, in instructions of 16 x 8 x 16.
fn products(a: machine::Build, dtype: Dtype) -> [(&'static str, [usize; 3]); 4] {
    let product = |n: usize, k: usize| n / 8 * (k / 16);
    let fwd = |step| product(step, a.head_dim) + product(a.head_dim, step);
    let (scores, sums) = (product(a.bwd_step, a.head_dim), product(a.head_dim, a.bwd_step));
    // Both gradients of a wide head do not fit the registers together: the scores are made twice.
    let dkv = if a.head_dim > 128 { 3 * scores + 2 * sums } else { 2 * scores + 2 * sums };
    // In the order of the names of the devices: 120, 80, 90a.
    let (small, large) = (fwd(a.fwd_small), fwd(a.fwd_step));
    let dq = 2 * scores + sums;
    // Of 32 rows a warp.
    let long = if a.has_long_blocks(dtype) { 2 } else { 0 };
    [
        ("attention_fwd", [small, small, large]),
        ("attention_fwd_128", [small, small, large].map(|n| long * n)),
        ("attention_bwd_dq", [dq; 3]),
        ("attention_bwd_dkv", [dkv; 3]),
    ]
}

#[test]
fn simple_kernels_compile_without_spills() {
    let Some(nvcc) = nvcc() else { return };
    let text = machine::text(&machine::simple());
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let build = Build::new(&nvcc, &text, dtype, &[]);
        accept(&build, &machine::kernels(&text), &format!("{dtype:?}"));
        let forward = ["lora_fwd_shrink", "lora_fwd_expand", "lora_fwd_expand_gated"];
        for kernel in forward.into_iter().chain(["lora_bwd_xa", "lora_bwd_inputs", "lora_bwd_gated"]) {
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
        [(Dtype::BF16, &[16, 32, 64, 80, 96, 128, 256][..]), (Dtype::F16, &[64, 128]), (Dtype::F32, &[64, 256])];
    let capped = [(Dtype::BF16, &[64, 128, 256][..]), (Dtype::F16, &[256]), (Dtype::F32, &[64, 256])];
    let builds = |of: &[(Dtype, &[usize])], capped: bool| {
        let all = of.iter().flat_map(|(dtype, widths)| widths.iter().map(|&width| (*dtype, width)));
        let all = all.map(|(dtype, width)| (dtype, machine::Build { capped, ..machine::Build::new(dtype, width) }));
        all.collect::<Vec<_>>()
    };
    for (dtype, attention) in [builds(&widths, false), builds(&capped, true)].concat() {
        let build = Build::new(&nvcc, &text, dtype, &attention.macros());
        let head_dim = attention.head_dim;
        accept(&build, &machine::kernels(&text), &format!("{dtype:?} {attention:?}"));
        for (kernel, products) in products(attention, dtype) {
            let expected = if dtype == Dtype::F32 { [0; 3] } else { products };
            assert_eq!(build.count(kernel, "HMMA"), expected, "{kernel} {dtype:?} {head_dim}: products");
            let copies = build.count(kernel, "LDGSTS");
            let empty = kernel == "attention_fwd_128" && !attention.has_long_blocks(dtype);
            assert!(
                copies.iter().all(|&count| (count > 0) != empty),
                "{kernel} {dtype:?} {head_dim}: asynchronous copies {copies:?}"
            );
            let loads = build.count(kernel, "LDSM");
            assert!(loads.iter().all(|&count| (count > 0) == (expected[0] > 0)), "{kernel} {dtype:?}: LDSM {loads:?}");
        }
    }
}

/// Products of a warpgroup's steps of 64 keys: the first, where there are only scores, one of both, and the last, of values alone.
fn group_products(head_dim: usize) -> usize {
    let (scores, sums) = (head_dim / 16, 64 / 16);
    2 * scores + 2 * sums
}

#[test]
fn attention_for_hopper_compiles_to_products_of_warpgroups_without_spills() {
    let Some(nvcc) = nvcc() else { return };
    let text = machine::text(&["attention_hopper"]);
    for (dtype, head_dim) in [(Dtype::BF16, 64), (Dtype::BF16, 128), (Dtype::F16, 128)] {
        let build = Build::new(&nvcc, &text, dtype, &machine::Build::new(dtype, head_dim).hopper().macros());
        accept(&build, &machine::kernels(&text), &format!("{dtype:?} {head_dim}"));
        // Other devices have none of it.
        let counts =
            [("HGMMA", group_products(head_dim)), ("USETMAXREG", 2), ("WARPGROUP", 8), ("UTMALDG", 2 * head_dim / 64)];
        for (name, count) in counts {
            assert_eq!(build.count("attention_fwd_hopper", name), [0, 0, count], "{name} {dtype:?} {head_dim}");
        }
        // All registers of a multiprocessor among 384 threads.
        let registers = build.resources[&("90a".to_string(), "attention_fwd_hopper".to_string())].registers;
        assert!(registers <= 168, "{registers} registers");
    }
    // Sums that are taken before they are waited for make the compiler wait after every product.
    let early = text.replacen("        wgmma_wait<0>();\n        fence_registers(sums);\n", "", 1);
    assert_ne!(text, early);
    let build = Build::new(&nvcc, &early, Dtype::BF16, &machine::Build::new(Dtype::BF16, 128).hopper().macros());
    assert!(build.wrong().iter().any(|line| line.contains("Potential Performance Loss")), "{:?}", build.wrong());
}

#[test]
fn the_gate_sees_spills_and_missing_tensor_cores() {
    let Some(nvcc) = nvcc() else { return };
    let attention = machine::Build::new(Dtype::BF16, 64);
    let text = machine::text(&["attention"]);
    // Eight blocks at a time leave a thread 64 registers.
    let crowded = text.replace("__launch_bounds__(32 * WARPS, 1)", "__launch_bounds__(32 * WARPS, 8)");
    assert_ne!(text, crowded);
    let build = Build::new(&nvcc, &crowded, Dtype::BF16, &attention.macros());
    assert!(build.wrong().iter().any(|line| line.contains("spill")), "{:?}", build.wrong());
    assert!(build.wrong().iter().any(|line| line.contains("attention_fwd: ")), "{:?}", build.wrong());
    let build = Build::new(&nvcc, &text, Dtype::F32, &attention.macros());
    assert!(build.count("attention_fwd", "HMMA").iter().all(|&count| count == 0));
}

/// The build script, to be run in a package of some of the kernels.
struct Script {
    dir: tempfile::TempDir,
}

impl Script {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Beside the cargo that runs this test.
        let rustc = std::env::var_os("CARGO")
            .map_or_else(|| "rustc".into(), |cargo| PathBuf::from(cargo).with_file_name("rustc"));
        let out = Command::new(rustc)
            .args(["--edition", "2024", "-Copt-level=0", "-o"])
            .arg(dir.path().join("build"))
            .arg(machine::root().join("build.rs"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        for name in ["kernels", "out"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["prelude.cuh", "tensor.cuh", "adamw.cu"] {
            std::fs::copy(machine::root().join("kernels").join(name), dir.path().join("kernels").join(name)).unwrap();
        }
        Self { dir }
    }

    /// Runs it with a value of `LLAMAPROBE_NVCC`; what it said on failing.
    fn run(&self, nvcc: Option<&Path>) -> Result<(), String> {
        let mut command = Command::new(self.dir.path().join("build"));
        command.env("CARGO_MANIFEST_DIR", self.dir.path()).env("OUT_DIR", self.dir.path().join("out"));
        command.env("CARGO_FEATURE_CUDA", "1").env_remove("LLAMAPROBE_NVCC").env("RUST_BACKTRACE", "0");
        let out = command.envs(nvcc.map(|path| ("LLAMAPROBE_NVCC", path))).output().unwrap();
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    }

    fn table(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out/kernels.rs")).unwrap()
    }
}

#[cfg(unix)]
#[test]
fn the_build_stops_where_it_is_told_of_a_compiler_that_is_none() {
    use std::os::unix::fs::PermissionsExt;
    let script = Script::new();
    script.run(None).unwrap();
    let table = script.table();
    assert!(table.contains("\"adamw\"") && !table.contains("fatbin"), "{table}");
    let said = script.run(Some(Path::new("nowhere/nvcc"))).unwrap_err();
    assert!(said.contains("LLAMAPROBE_NVCC=nowhere/nvcc: no working nvcc there"), "{said}");
    // One that answers, and cannot compile.
    let broken = script.dir.path().join("nvcc");
    std::fs::write(&broken, "#!/bin/sh\n[ \"$1\" = --version ] || { echo 'no licence' >&2; exit 1; }\n").unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = script.run(Some(&broken)).unwrap_err();
    assert!(said.contains("no licence") && said.contains("adamw.cu"), "{said}");
}

#[test]
fn the_build_embeds_binaries_for_the_devices_there_are_and_text_for_those_to_come() {
    let Some(nvcc) = nvcc() else { return };
    let script = Script::new();
    script.run(Some(&nvcc)).unwrap();
    let table = script.table();
    for real in ["float", "bf16", "half"] {
        let file = script.dir.path().join("out").join(format!("adamw.{real}.0.fatbin"));
        assert!(table.contains(&format!("(\"adamw\", \"{real}\", 0, false, include_bytes!({file:?}))")), "{table}");
        let (binaries, texts) = (dump(&nvcc, "-lelf", &file), dump(&nvcc, "-lptx", &file));
        for device in ["sm_80", "sm_90a"] {
            assert!(binaries.contains(&format!(".{device}.cubin")), "{real}: {binaries}");
        }
        assert!(texts.contains(".sm_80.ptx"), "{real}: {texts}");
    }
}
