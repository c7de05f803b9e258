//! Builds kernels for the CPU and runs launches of them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};

use crate::skips::{Reason, skip};

/// The compute dtype of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// The type's name in `prelude.cuh`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::Bf16 => "bf16",
            Self::F16 => "half",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// The constants of one build of `attention.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    pub head_dim: usize,
    pub warps: usize,
    pub fwd_step: usize,
    pub bwd_step: usize,
}

impl Attention {
    /// What fits 99 KB of shared memory.
    pub fn new(dtype: Dtype, head_dim: usize) -> Self {
        let (warps, fwd_step, bwd_step) = match head_dim * dtype.bytes() {
            0..=256 => (4, 64, 32),
            257..=512 => (4, 32, 16),
            _ => (1, 16, 16),
        };
        Self { head_dim, warps, fwd_step, bwd_step }
    }

    pub fn macros(&self) -> Vec<String> {
        let Self { head_dim, warps, fwd_step, bwd_step } = self;
        let values = [("HEAD_DIM", head_dim), ("WARPS", warps), ("FWD_STEP", fwd_step), ("BWD_STEP", bwd_step)];
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

/// The files of `kernels/` that are built together for one dtype.
pub const SIMPLE: [&str; 11] = [
    "rows",
    "embed",
    "position",
    "layer_norm",
    "rms_norm",
    "rope",
    "activation",
    "linear",
    "lora",
    "cross_entropy",
    "adamw",
];

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

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.program);
    }
}

impl Machine {
    /// Compiles kernel files for a dtype, with further macros.
    pub fn new(files: &[&str], dtype: Dtype, mode: Mode, macros: &[String]) -> Self {
        let text = text(files);
        let list: Vec<String> = kernels(&text).iter().map(|name| format!("SIMT_KERNEL({name})")).collect();
        let source = format!(
            "#include \"simt.h\"\n#line 1 \"kernels\"\n{text}\n#include \"kernels.h\"\nSIMT_KERNELS({})\n#include \
             \"runner.h\"\n",
            list.join(", ")
        );
        let program = scratch();
        let path = program.with_extension("cpp");
        std::fs::write(&path, source).unwrap();
        let out = Command::new("g++")
            .args(["-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare"])
            .args(mode.flags())
            .arg(format!("-DREAL={}", dtype.name()))
            .args(macros)
            .arg("-I")
            .arg(root().join("tests/simt"))
            .arg(&path)
            .arg("-o")
            .arg(&program)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.is_empty(), "g++ {files:?} {dtype:?} {mode:?} {macros:?}:\n{said}");
        std::fs::remove_file(path).unwrap();
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
        let mut rest = &result.unwrap()[..];
        let buffers = tape.buffers.iter().map(|buffer| {
            let (buffer, after) = rest.split_at(buffer.len());
            rest = after;
            buffer.to_vec()
        });
        Ok(buffers.collect())
    }
}

/// All schedules, as `(order, async)`.
pub const SCHEDULES: [(&str, &str); 6] =
    [("fwd", "late"), ("rev", "late"), ("rand:1", "late"), ("fwd", "early"), ("rev", "early"), ("rand:2", "early")];

/// A buffer of a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer(usize);

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Null,
    At(Buffer),
    /// At a byte of a buffer.
    Inside(Buffer, usize),
    Int(usize),
    Long(usize),
    Float(f64),
    Bits(u64),
}

/// Buffers, and launches on them.
#[derive(Clone, Debug)]
pub struct Tape {
    pub dtype: Dtype,
    buffers: Vec<Vec<u8>>,
    launches: Vec<Vec<u8>>,
}

impl Tape {
    pub fn new(dtype: Dtype) -> Self {
        Self { dtype, buffers: Vec::new(), launches: Vec::new() }
    }

    fn push(&mut self, bytes: Vec<u8>) -> Buffer {
        self.buffers.push(bytes);
        Buffer(self.buffers.len() - 1)
    }

    pub fn acc(&mut self, values: &[f64]) -> Buffer {
        self.push(values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect())
    }

    pub fn compute(&mut self, values: &[f64]) -> Buffer {
        let dtype = self.dtype;
        self.push(values.iter().flat_map(|&x| real_bytes(dtype, x)).collect())
    }

    pub fn ints(&mut self, values: &[i32]) -> Buffer {
        self.push(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub fn longs(&mut self, values: &[u64]) -> Buffer {
        self.push(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Adds a launch; one of no blocks is none.
    pub fn launch(&mut self, name: &str, grid: [usize; 3], block: usize, shared: usize, args: &[Arg]) {
        if grid.contains(&0) {
            return;
        }
        let mut numbers = vec![name.len() as u64];
        let mut bytes: Vec<u8> = Vec::new();
        bytes.extend(numbers.drain(..).flat_map(u64::to_le_bytes));
        bytes.extend(name.bytes());
        numbers.extend(grid.map(|n| n as u64));
        numbers.extend([block as u64, 1, 1, shared as u64, args.len() as u64]);
        for arg in args {
            numbers.extend(match *arg {
                Arg::Null => [0, 0],
                Arg::At(buffer) => [1, (buffer.0 as u64) << 32],
                Arg::Inside(buffer, at) => [1, (buffer.0 as u64) << 32 | at as u64],
                Arg::Int(n) => [4, n as u64],
                Arg::Float(x) => [4, u64::from((x as f32).to_bits())],
                Arg::Long(n) => [8, n as u64],
                Arg::Bits(n) => [8, n],
            });
        }
        bytes.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
        self.launches.push(bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = (self.buffers.len() as u64).to_le_bytes().to_vec();
        for buffer in &self.buffers {
            bytes.extend((buffer.len() as u64).to_le_bytes());
            bytes.extend(buffer);
        }
        bytes.extend((self.launches.len() as u64).to_le_bytes());
        self.launches.iter().for_each(|launch| bytes.extend(launch));
        bytes
    }

    /// What a run left in a buffer of f32.
    pub fn read_wide(buffers: &[Vec<u8>], at: Buffer) -> Vec<f64> {
        buffers[at.0].chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
    }

    /// What a run left in a buffer of the compute dtype.
    pub fn read_real(&self, buffers: &[Vec<u8>], at: Buffer) -> Vec<f64> {
        let two = |b: &[u8]| u16::from_le_bytes(b.try_into().unwrap());
        match self.dtype {
            Dtype::F32 => Self::read_wide(buffers, at),
            Dtype::Bf16 => buffers[at.0].chunks(2).map(|b| bf16::from_bits(two(b)).to_f64()).collect(),
            Dtype::F16 => buffers[at.0].chunks(2).map(|b| f16::from_bits(two(b)).to_f64()).collect(),
        }
    }
}

fn real_bytes(dtype: Dtype, x: f64) -> Vec<u8> {
    match dtype {
        Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f64(x).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
    }
}
