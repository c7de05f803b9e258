//! Builds kernels for the CPU and runs launches of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    pub bwd_step: usize,
    /// Whether scores are capped.
    pub capped: bool,
}

impl Build {
    /// What fits 99 KB of shared memory.
    pub fn new(dtype: Dtype, head_dim: usize) -> Self {
        let (warps, fwd_step, bwd_step) = match head_dim * dtype.size() {
            0..=256 => (4, 64, 32),
            257..=512 => (4, 32, 16),
            _ => (1, 16, 16),
        };
        Self { head_dim, warps, fwd_step, bwd_step, capped: false }
    }

    /// The same of capped scores.
    pub fn capped(self) -> Self {
        Self { capped: true, ..self }
    }

    pub fn macros(&self) -> Vec<String> {
        let &Self { head_dim, warps, fwd_step, bwd_step, capped } = self;
        let steps = [("FWD_STEP", fwd_step), ("BWD_STEP", bwd_step)];
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
}

impl Mode {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-O1"],
            Self::Address => &["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
            Self::Thread => &["-O1", "-g1", "-fno-strict-aliasing", "-fsanitize=thread"],
        }
    }
}

/// The files of `kernels/` that are built together for one dtype: all but attention's, which has builds for head widths.
pub fn simple() -> Vec<&'static str> {
    crate::ops::FILES.iter().copied().filter(|file| *file != "attention").collect()
}

/// The folder of the package.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of the prelude and some kernel files.
pub fn text(files: &[&str]) -> String {
    let read = |name: String| {
        let path = root().join("kernels").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let files = files.iter().map(|name| read(format!("{name}.cu")));
    std::iter::once(read("prelude.cuh".into())).chain(files).collect::<Vec<_>>().join("\n")
}

/// The kernels that a text defines.
pub fn kernels(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for after in text.split("extern \"C\" __global__").skip(1) {
        let before = &after[..after.find('{').expect("a kernel has a body")];
        let before = before.trim_start().strip_prefix("void").expect("a kernel returns nothing").trim_start();
        let bounds = before.strip_prefix("__launch_bounds__").expect("a kernel says its block");
        let mut depth = 0;
        let end = bounds.char_indices().find(|(_, c)| {
            depth += (*c == '(') as i32 - (*c == ')') as i32;
            depth == 0
        });
        let rest = bounds[end.expect("brackets match").0 + 1..].trim_start();
        names.push(rest[..rest.find('(').expect("a kernel has arguments")].trim_end());
    }
    names
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

/// What a program is made of besides its own text: the headers and the compiler.
fn environment() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let headers =
            ["simt.h", "kernels.h", "runner.h", "sanitize.h"].map(|name| root().join("tests/simt").join(name));
        let headers = headers.map(|path| std::fs::read_to_string(path).unwrap()).concat();
        let version = Command::new("g++").arg("--version").output().unwrap().stdout;
        headers + &String::from_utf8_lossy(&version)
    })
}

impl Machine {
    /// Compiles kernel files for a dtype, with further macros; or takes the program of an earlier run that was made of
    /// the same. (Programs of what has been changed since go with the target directory.)
    pub fn new(files: &[&str], dtype: Dtype, mode: Mode, macros: &[String]) -> Self {
        let text = text(files);
        let list: Vec<String> = kernels(&text).iter().map(|name| format!("SIMT_KERNEL({name})")).collect();
        let source = format!(
            "#include \"simt.h\"\n#line 1 \"kernels\"\n{text}\n#include \"kernels.h\"\nSIMT_KERNELS({})\n#include \
             \"runner.h\"\n",
            list.join(", ")
        );
        let mut flags: Vec<String> =
            ["-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare"].map(String::from).into();
        flags.extend(mode.flags().iter().map(|flag| flag.to_string()));
        flags.push(format!("-DREAL={}", type_name(dtype)));
        flags.extend_from_slice(macros);

        let mut hasher = DefaultHasher::new();
        (&source, &flags, environment()).hash(&mut hasher);
        let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("simt-programs");
        std::fs::create_dir_all(&cache).unwrap();
        let program = cache.join(format!("{:016x}", hasher.finish()));
        if !program.exists() {
            let part = scratch();
            let path = part.with_extension("cpp");
            std::fs::write(&path, source).unwrap();
            let out = Command::new("g++")
                .args(&flags)
                .arg("-I")
                .arg(root().join("tests/simt"))
                .arg(&path)
                .arg("-o")
                .arg(&part)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && said.is_empty(), "g++ {files:?} {flags:?}:\n{said}");
            std::fs::remove_file(path).unwrap();
            // It appears under its name when it is complete.
            std::fs::rename(part, &program).unwrap();
        }
        Self { program }
    }

    /// Runs a tape under a schedule, `(order, async)`, and returns its buffers, or what the program said when it died.
    pub fn run(&self, tape: &Tape, (order, asynchronous): (&str, &str)) -> Result<Vec<Vec<u8>>, String> {
        let (from, to) = (scratch(), scratch());
        std::fs::write(&from, tape.bytes()).unwrap();
        let out = Command::new(&self.program)
            .args([&from, &to])
            .env("SIMT_ORDER", order)
            .env("SIMT_ASYNC", asynchronous)
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
        Ok(tape.split(&result.unwrap()))
    }
}

/// All schedules, as `(order, async)`.
pub const SCHEDULES: [(&str, &str); 6] =
    [("fwd", "late"), ("rev", "late"), ("rand:1", "late"), ("fwd", "early"), ("rev", "early"), ("rand:2", "early")];
