//! The real program, run as a person or a script runs it.

#[path = "../support/mod.rs"]
mod support;

mod analyze;
mod capture;
mod cases;
mod chat;
mod checkpoints;
mod compare;
mod config;
mod edits;
mod errors;
mod evaluation;
mod families;
mod generate;
mod gguf;
mod grid;
mod inspect;
mod merge;
mod objective;
mod places;
mod pretrain;
mod probe;
mod profile;
mod prompt;
mod quantize;
mod real;
mod report;
mod shards;
mod shell;
mod slurm;
mod starts;
mod study;
mod sweep;
mod task;
mod train;
mod trained;
mod variants;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::tiny_model::TinyModel;

/// What a run of the program left.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// Demands success.
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Demands a failure with exit code 1 and one line; returns the line.
    fn refused(self) -> String {
        assert_eq!(self.code, Some(1), "stdout: {}\nstderr: {}", self.out, self.err);
        // Where there is no GPU, the line that says so may come first.
        let notice =
            self.err.lines().next().filter(|line| line.starts_with("device: cpu (")).map_or(0, |l| l.len() + 1);
        let line = self.err[notice..].strip_suffix('\n').unwrap_or(&self.err[notice..]);
        assert!(line.starts_with("llamaprobe: ") && !line.contains('\n'), "not one line: {:?}", self.err);
        assert_eq!(self.out, "", "a result beside the error");
        line.to_owned()
    }

    /// Demands success and JSON on stdout.
    fn json(self) -> Value {
        let ran = self.ok();
        serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("stdout is not JSON: {e}: {}", ran.out))
    }
}

/// The program with arguments, its environment free of what the machine happens to have.
fn program<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llamaprobe"));
    command.args(args).stdin(Stdio::null());
    for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMAPROBE_ISA"] {
        command.env_remove(name);
    }
    command
}

fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    let out = program(args).output().expect("start the program");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8 output");
    Ran { code: out.status.code(), out: text(out.stdout), err: text(out.stderr) }
}

/// A command line of words, where `{}` stands for the folder.
fn words(dir: &Path, line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("{}", &dir.display().to_string())).collect()
}

fn line(dir: &Path, text: &str) -> Ran {
    run(words(dir, text))
}

/// A folder with a tiny model in `model`, and texts of several lengths in `texts.jsonl`.
fn workplace() -> tempfile::TempDir {
    let dir = support::temp();
    TinyModel::default().write(&dir.path().join("model"));
    put(dir.path(), "texts.jsonl", TEXTS);
    dir
}

const TEXTS: &str = "{\"text\": \"the thin pet\"}\n{\"input_ids\": [5, 6, 7, 8]}\n{\"text\": \"a\"}\n\
                     {\"text\": \"There is nothing in the pot.\"}\n";

fn put(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).expect("write a test's file");
    path
}

/// The f32 or i64 tensor `name` of a safetensors file, as f64, with its shape.
fn tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<f64>) {
    let bytes = fs::read(path).expect("a file of tensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e} in {:?}", file.names()));
    let values = match view.dtype() {
        safetensors::Dtype::F32 => {
            view.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes")))).collect()
        }
        safetensors::Dtype::I64 => {
            view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f64).collect()
        }
        safetensors::Dtype::BF16 => {
            view.data().chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
        }
        other => panic!("{name}: {other:?}"),
    };
    (view.shape().to_vec(), values)
}

/// Unfinished files that a run left behind, in a folder and below.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("list a folder") {
        let path = entry.expect("an entry").path();
        if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".tmp")) {
            found.push(path.clone());
        }
        if path.is_dir() {
            found.extend(leftovers(&path));
        }
    }
    found
}
