//! Hostile files written by hand: each is one clear error that names the file and the field; none panics, none leaves
//! anything behind.

mod adapter;
mod config;
mod lines;
mod safetensors;
mod tokenizer;

use std::path::Path;

use llamaprobe::Result;

use crate::support::temp;

type Read = Box<dyn Fn(&Path) -> Result<()>>;

/// One hostile input: how to lay it out in a folder and read it, and the words its error must have.
pub struct Case {
    name: String,
    read: Read,
    words: Vec<String>,
}

/// A case.
pub fn case(name: impl Into<String>, words: &[&str], read: impl Fn(&Path) -> Result<()> + 'static) -> Case {
    let words = words.iter().map(|w| w.to_string()).collect();
    Case { name: name.into(), read: Box::new(read), words }
}

/// Writes a file of a folder.
pub fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), bytes).expect("writes");
}

/// The names in a folder.
fn listing(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir).expect("lists").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    names
}

fn run(cases: Vec<Case>) {
    let mut failures = Vec::new();
    for case in &cases {
        let dir = temp();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (case.read)(dir.path())));
        let left = listing(dir.path()).into_iter().find(|n| n.to_string_lossy().starts_with('.'));
        let problem = match outcome {
            _ if left.is_some() => format!("{left:?} left behind"),
            Err(_) => "a panic".to_string(),
            Ok(Ok(())) => "no error".to_string(),
            Ok(Err(error)) => {
                let text = error.to_string();
                let missing: Vec<_> = case.words.iter().filter(|w| !text.contains(w.as_str())).collect();
                if missing.is_empty() && !text.contains('\n') && text.len() < 1000 {
                    continue;
                }
                format!("lacks {missing:?}, or is no single line: {text}")
            }
        };
        failures.push(format!("{}: {problem}", case.name));
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn safetensors_and_indexes() {
    run(safetensors::cases());
}

#[test]
fn configurations() {
    run(config::cases());
}

#[test]
fn adapters() {
    run(adapter::cases());
}

#[test]
fn data_files() {
    run(lines::cases());
}

#[test]
fn tokenizers() {
    run(tokenizer::cases());
}

#[test]
fn there_are_more_than_a_hundred() {
    let all = [safetensors::cases(), config::cases(), adapter::cases(), lines::cases(), tokenizer::cases()];
    let count: usize = all.iter().map(Vec::len).sum();
    assert!(count >= 100, "{count} cases");
}
