//! Builds kernels for the CPU and runs launches of them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use llamaprobe::arch::Dtype;

use super::tape::Tape;
use crate::skips::{Reason, skip};

/// A compute dtype's name in `prelude.cuh`.
pub fn type_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float",
        Dtype::BF16 => "bf16",
        Dtype::F16 => "half",
        Dtype::F64 => panic!("no kernel has elements of f64"),
    }
}

/// The constants of one build of `attention.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    pub head_dim: usize,
    pub warps: usize,
    pub fwd_step: usize,
    /// The same where a multiprocessor has little shared memory.
    pub fwd_small: usize,
    pub bwd_step: usize,
    /// Whether scores are capped.
    pub capped: bool,
    /// Whether it is one of `attention_hopper.cu`.
    pub hopper: bool,
}

impl Build {
    /// What fits 99 KB of shared memory.
    pub fn new(dtype: Dtype, head_dim: usize) -> Self {
        let (warps, fwd_step, fwd_small, bwd_step) = match head_dim * dtype.size() {
            0..=192 => (4, 64, 64, 32),
            193..=256 => (4, 64, 32, 32),
            257..=512 => (4, 32, 32, 16),
            _ => (1, 16, 16, 16),
        };
        Self { head_dim, warps, fwd_step, fwd_small, bwd_step, capped: false, hopper: false }
    }

    /// The build for a multiprocessor of little shared memory.
    pub fn small(self) -> Self {
        Self { fwd_step: self.fwd_small, ..self }
    }

    /// The same of capped scores.
    pub fn capped(self) -> Self {
        Self { capped: true, ..self }
    }

    /// The same of `attention_hopper.cu`.
    pub fn hopper(self) -> Self {
        Self { hopper: true, ..self }
    }

    /// Whether there is a forward with blocks of 128 rows.
    pub fn has_long_blocks(&self, dtype: Dtype) -> bool {
        dtype != Dtype::F32 && !self.capped && [16, 32, 64, 128].contains(&self.head_dim)
    }

    /// Bytes of dynamic shared memory that a launch of a kernel of `attention.cu` has.
    pub fn shared(&self, kernel: &str, dtype: Dtype) -> usize {
        if kernel == "attention_fwd_hopper" {
            return 1024 + 8 * 128 * self.head_dim + 128 * (2 * self.head_dim + 16) + 16 * 8;
        }
        let rows = match kernel {
            "attention_fwd" => 16 * self.warps + 4 * self.fwd_step,
            "attention_fwd_128" => 32 * self.warps + 4 * self.fwd_step,
            "attention_bwd_dq" | "attention_bwd_dkv" => 32 * self.warps + 4 * self.bwd_step,
            _ => 0,
        };
        rows * (self.head_dim * dtype.size() + 16)
    }

    pub fn macros(&self) -> Vec<String> {
        let &Self { head_dim, warps, fwd_step, fwd_small, bwd_step, capped, hopper: _ } = self;
        let steps = [("FWD_LARGE", fwd_step), ("FWD_SMALL", fwd_small), ("BWD_STEP", bwd_step)];
        let values = [&[("HEAD_DIM", head_dim), ("WARPS", warps)], &steps[..], &[("SOFTCAP", capped.into())]].concat();
        values.iter().map(|(name, value)| format!("-D{name}={value}")).collect()
    }
}

/// How the shim is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    /// AddressSanitizer and UndefinedBehaviorSanitizer.
    Address,
    /// ThreadSanitizer.
    Thread,
    /// Every access to memory is counted (`accesses.cpp`).
    Accesses,
}

impl Mode {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-O1"],
            Self::Address => &["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
            Self::Thread => &["-O1", "-g1", "-fno-strict-aliasing", "-fsanitize=thread"],
            // The calls that ThreadSanitizer asks for, without its runtime. Vectors stay whole.
            Self::Accesses => &[
                "-O1",
                "-fno-strict-aliasing",
                "-fno-tree-sra",
                "-fno-threadsafe-statics",
                "-fsanitize=thread",
                "-DSIMT_ACCESSES",
                "-c",
            ],
        }
    }
}

/// The files of `kernels/` that are built together for one dtype: all but attention's, which has builds for head widths.
pub fn simple() -> Vec<&'static str> {
    crate::ops::FILES.iter().copied().filter(|file| *file != "attention").chain(["quantized"]).collect()
}

/// The folder of the package.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of the headers and some kernel files.
pub fn text(files: &[&str]) -> String {
    let read = |name: String| {
        let path = root().join("kernels").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    // A file may have headers of its own: of its whole name, and of a beginning of it.
    let own = |name: &str| {
        let ends = name.match_indices('_').map(|(at, _)| at).chain([name.len()]);
        let headers = ends.map(|end| format!("{}.cuh", &name[..end]));
        headers.filter(|header| root().join("kernels").join(header).exists()).collect::<Vec<_>>()
    };
    let files = files.iter().flat_map(|name| own(name).into_iter().chain([format!("{name}.cu")]));
    ["prelude.cuh", "tensor.cuh"].map(String::from).into_iter().chain(files).map(read).collect::<Vec<_>>().join("\n")
}

/// A kernel as its text declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature<'a> {
    pub name: &'a str,
    /// Threads of a block, a product of numbers and macros.
    pub threads: &'a str,
    /// Names of the parameters.
    pub params: Vec<&'a str>,
}

/// The kernels that a text defines.
pub fn signatures(text: &str) -> Vec<Signature<'_>> {
    let mut kernels = Vec::new();
    for after in text.split("extern \"C\" __global__").skip(1) {
        let before = &after[..after.find('{').expect("a kernel has a body")];
        let before = before.trim_start().strip_prefix("void").expect("a kernel returns nothing").trim_start();
        let bounds = before.strip_prefix("__launch_bounds__").expect("a kernel says its block");
        let mut depth = 0;
        let end = bounds.char_indices().find(|(_, c)| {
            depth += (*c == '(') as i32 - (*c == ')') as i32;
            depth == 0
        });
        let end = end.expect("brackets match").0;
        let threads = bounds[1..end].split(',').next().unwrap_or_default().trim();
        let rest = bounds[end + 1..].trim_start();
        let (name, params) = rest.split_once('(').expect("a kernel has arguments");
        let words = |param: &'_ str| -> usize {
            param.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |at| at + 1)
        };
        let params = params.trim_end().trim_end_matches(')').split(',').map(str::trim);
        kernels.push(Signature { name: name.trim_end(), threads, params: params.map(|p| &p[words(p)..]).collect() });
    }
    kernels
}

/// The names of the kernels that a text defines.
pub fn kernels(text: &str) -> Vec<&str> {
    signatures(text).into_iter().map(|kernel| kernel.name).collect()
}

/// Whether there is a compiler for the kernels on the CPU; the test is recorded as skipped if not.
pub fn compiler() -> bool {
    let found = Command::new("g++").arg("--version").output().is_ok_and(|out| out.status.success());
    let found = found && cfg!(all(target_arch = "x86_64", target_os = "linux"));
    if !found {
        skip(Reason::Compiler);
    }
    found
}

fn scratch() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("simt-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(number.to_string())
}

/// A program that runs launches of some kernels.
pub struct Machine {
    program: PathBuf,
}

/// The files of the simulator that kernels are compiled with anywhere.
pub const SIMULATOR: [&str; 7] =
    ["simt.h", "hopper.h", "tensor_map.h", "tensor_copy.h", "dependent.h", "kernels.h", "sanitize.h"];

/// What a program is made of besides its own text: the headers and the compiler.
fn environment() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let headers = [&SIMULATOR[..], &["runner.h", "accesses.h", "accesses.cpp"]].concat();
        let read = |name: &str| std::fs::read_to_string(root().join("tests/simt").join(name)).unwrap();
        let headers = headers.into_iter().map(read).collect::<String>();
        let version = Command::new("g++").arg("--version").output().unwrap().stdout;
        headers + &String::from_utf8_lossy(&version)
    })
}

impl Machine {
    /// Compiles kernel files for a dtype, with further macros; or takes the program of an earlier run that was made of
    /// the same. (Programs of what has been changed since go with the target directory.)
    pub fn new(files: &[&str], dtype: Dtype, mode: Mode, macros: &[String]) -> Self {
        Self::of_text(&text(files), dtype, mode, macros)
    }

    /// The same of a text with its headers in front.
    pub fn of_text(text: &str, dtype: Dtype, mode: Mode, macros: &[String]) -> Self {
        let list: Vec<String> = kernels(text).iter().map(|name| format!("SIMT_KERNEL({name})")).collect();
        let source = format!(
            "#include \"simt.h\"\n#line 1 \"kernels\"\n{text}\n#include \"kernels.h\"\nSIMT_KERNELS({})\n#include \
             \"runner.h\"\n",
            list.join(", ")
        );
        let mut flags: Vec<String> =
            ["-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare", "-Wno-psabi"].map(String::from).into();
        flags.extend(mode.flags().iter().map(|flag| flag.to_string()));
        flags.push(format!("-DREAL={}", type_name(dtype)));
        flags.extend_from_slice(macros);

        let mut hasher = DefaultHasher::new();
        (&source, &flags, environment()).hash(&mut hasher);
        let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("simt-programs");
        std::fs::create_dir_all(&cache).unwrap();
        let program = cache.join(format!("{:016x}", hasher.finish()));
        // What several tests want at once is compiled once.
        static LOCKS: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
        let lock = LOCKS.lock().unwrap().entry(program.clone()).or_default().clone();
        let _lock = lock.lock().unwrap();
        if !program.exists() {
            let part = scratch();
            let path = part.with_extension("cpp");
            std::fs::write(&path, source).unwrap();
            compile(&flags, &path, &part);
            if mode == Mode::Accesses {
                let object = part.with_extension("o");
                std::fs::rename(&part, &object).unwrap();
                let counter = root().join("tests/simt/accesses.cpp").display().to_string();
                let flags = ["-std=c++17", "-Wall", "-O1", &counter].map(String::from);
                compile(&flags, &object, &part);
                std::fs::remove_file(object).unwrap();
            }
            std::fs::remove_file(path).unwrap();
            // It appears under its name when it is complete.
            std::fs::rename(part, &program).unwrap();
        }
        Self { program }
    }

    /// Runs a tape under a schedule, `(order, async)`, and returns its buffers, or what the program said when it died.
    pub fn run(&self, tape: &Tape, schedule: (&str, &str)) -> Result<Vec<Vec<u8>>, String> {
        self.run_and_report(tape, schedule, false).map(|(buffers, _)| buffers)
    }

    /// What the kernels of a tape accessed, of a program of [`Mode::Accesses`].
    pub fn accesses(&self, tape: &Tape) -> Vec<Accesses> {
        let (_, report) = self.run_and_report(tape, SCHEDULES[0], true).unwrap_or_else(|said| panic!("{said}"));
        report.lines().map(Accesses::parse).collect()
    }

    fn run_and_report(
        &self,
        tape: &Tape,
        (order, asynchronous): (&str, &str),
        counted: bool,
    ) -> Result<(Vec<Vec<u8>>, String), String> {
        let (from, to) = (scratch(), scratch());
        std::fs::write(&from, tape.bytes()).unwrap();
        let out = Command::new(&self.program)
            .args([&from, &to])
            .env("SIMT_ORDER", order)
            .env("SIMT_ASYNC", asynchronous)
            .envs(counted.then_some(("SIMT_COUNT", "1")))
            .env("ASAN_OPTIONS", "detect_stack_use_after_return=0:detect_leaks=0")
            .env("TSAN_OPTIONS", "halt_on_error=1:exitcode=66")
            .output()
            .unwrap();
        let result = std::fs::read(&to);
        for path in [&from, &to] {
            let _ = std::fs::remove_file(path);
        }
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        Ok((tape.split(&result.unwrap()), String::from_utf8_lossy(&out.stdout).into_owned()))
    }
}

/// Compiles a file, of which the compiler may say nothing.
fn compile(flags: &[String], from: &Path, to: &Path) {
    let mut command = Command::new("g++");
    let out =
        command.args(flags).arg("-I").arg(root().join("tests/simt")).arg(from).arg("-o").arg(to).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "g++ {flags:?}:\n{said}");
}

/// What an instruction of a kernel did with the memory behind one of its parameters, or with shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accesses {
    pub kernel: String,
    /// Number of the parameter; none for shared memory.
    pub param: Option<usize>,
    pub stores: bool,
    /// Warps' requests.
    pub requests: u64,
    /// Sectors of 32 bytes that they touched, of shared memory wavefronts.
    pub units: u64,
    /// The fewest that as many bytes need.
    pub ideal: u64,
}

impl Accesses {
    fn parse(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse().unwrap_or_else(|_| panic!("{line}"));
        let param = words[1].parse().ok();
        let (kernel, stores) = (words[0].to_string(), words[2] == "store");
        Self { kernel, param, stores, requests: number(3), units: number(4), ideal: number(5) }
    }
}

/// All schedules, as `(order, async)`.
pub const SCHEDULES: [(&str, &str); 6] =
    [("fwd", "late"), ("rev", "late"), ("rand:1", "late"), ("fwd", "early"), ("rev", "early"), ("rand:2", "early")];
