//! The architecture's invariants, read off the sources themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use skips::Reason;

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/promises.rs"]
mod promises;
#[path = "support/skips.rs"]
#[allow(dead_code, reason = "this program skips nothing itself")]
mod skips;

const LONGEST: usize = 600;

/// Layers in the order in which they may import: each only from those before it. Equal rank means siblings.
const LAYERS: [(&str, u8); 20] = [
    ("error", 0),
    ("arch", 1),
    ("hash", 1),
    ("pack", 1),
    ("random", 1),
    ("quantization", 2),
    ("formats", 3),
    ("measures", 3),
    ("backend", 4),
    ("hooks", 5),
    ("model", 6),
    ("capture", 7),
    ("train", 7),
    ("task", 7),
    ("probe", 8),
    ("compare", 9),
    ("page", 10),
    ("sweep", 10),
    ("cli", 11),
    ("python", 12),
];

struct Source {
    /// Path from the repository's root, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The numbered lines that are code: without comments, and without what follows `#[cfg(test)]` or `#![cfg(test)]`.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .take_while(|(_, line)| !line.contains("[cfg(test)]"))
            .map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
    }

    /// The layer of a library file: the first component below `src`.
    fn layer(&self) -> Option<(&str, u8)> {
        let rest = self.path.strip_prefix("src/")?;
        let name = rest.split('/').next()?.trim_end_matches(".rs");
        LAYERS.iter().find(|(layer, _)| *layer == name).copied()
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, extensions: &[&str], out: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<PathBuf> = entries.map(|e| e.expect("a directory entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, extensions, out);
        } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
            let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
            out.push(Source { path: name, text: fs::read_to_string(&path).expect("a readable source") });
        }
    }
}

/// All sources under the named directories.
fn sources(dirs: &[&str]) -> Vec<Source> {
    let mut out = Vec::new();
    for dir in dirs {
        files(&root().join(dir), &["rs", "cu", "cuh", "cpp", "h"], &mut out);
    }
    assert!(!out.is_empty(), "no sources under {dirs:?}");
    out
}

fn report(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// The lines of `src` that hold any of `words`, where `allowed` does not exempt the file.
fn lines_with(words: &[&str], allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources(&["src"]).iter().filter(|s| !allowed(&s.path)) {
        for (i, line) in source.code() {
            if let Some(word) = words.iter().find(|w| has_word(line, w)) {
                found.push(format!("{}:{i}: {word}", source.path));
            }
        }
    }
    found
}

/// Whether `line` holds `word` not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let first = word.chars().next().is_some_and(|c| c.is_alphanumeric());
        let last = word.chars().last().is_some_and(|c| c.is_alphanumeric());
        let goes_on = first && name(line[..at].chars().last()) || last && name(line[at + word.len()..].chars().next());
        !goes_on
    })
}

/// The layers that a line of code names: `crate::x`, and `crate::{x, y::z}`.
fn imports(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            None => vec![rest],
            Some(group) => top_level(group),
        };
        for name in names {
            let end = name.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(name.len());
            found.push(name[..end].to_owned());
        }
    }
    found
}

/// The comma-separated parts of a brace group, up to its closing brace.
fn top_level(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(group[start..i].trim());
                return parts;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(group[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(group[start..].trim());
    parts
}

#[test]
fn imports_run_one_way() {
    let mut found = Vec::new();
    for source in sources(&["src"]) {
        let Some((layer, rank)) = source.layer() else { continue };
        // One statement may span lines, so the code is read as one text; a name's line does not matter.
        let code: String = source.code().map(|(_, line)| line).collect::<Vec<_>>().join(" ");
        for name in imports(&code) {
            let other = LAYERS.iter().find(|(l, _)| *l == name);
            if let Some((other, other_rank)) = other
                && *other != layer
                && *other_rank >= rank
            {
                found.push(format!("{}: {layer} imports {other}", source.path));
            }
        }
    }
    report("layers import only from the layers before them", found);
}

#[test]
fn no_two_files_import_each_other() {
    let text = |s: &Source| s.code().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
    let files: Vec<_> = sources(&["src"]).iter().map(|s| (s.path.clone(), text(s))).collect();
    report("no file lies on a circle of imports", circles::on_circles(&files).into_iter().collect());
}

#[test]
fn every_library_file_has_a_layer() {
    let known = |s: &Source| s.layer().is_some() || s.path == "src/lib.rs" || s.path == "src/main.rs";
    let found = sources(&["src"]).iter().filter(|s| !known(s)).map(|s| s.path.clone()).collect();
    report("a file outside the layers", found);
}

#[test]
fn files_are_short() {
    let long = |s: &Source| s.text.lines().count() > LONGEST;
    let all = sources(&["src", "tests", "benches", "kernels"]);
    let found = all.iter().filter(|s| long(s)).map(|s| format!("{} has {}", s.path, s.text.lines().count())).collect();
    report("a file has at most 600 lines", found);
}

/// `unsafe` may stand in these files.
fn may_be_unsafe(path: &str) -> bool {
    path.starts_with("src/backend/") || ["src/formats/safetensors.rs", "src/python/dlpack.rs"].contains(&path)
}

#[test]
fn unsafe_stays_in_its_places_and_gives_reasons() {
    let names_it = |line: &str| line.contains("unsafe_code") || line.contains("unsafe_op");
    let mut found = Vec::new();
    for source in sources(&["src"]) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (i, line) in source.code().filter(|(_, line)| has_word(line, "unsafe") && !names_it(line)) {
            if !may_be_unsafe(&source.path) {
                found.push(format!("{}:{i}: unsafe", source.path));
            }
            // The promise stands in the documentation; an implementation has its trait's, a function type the functions'.
            if line.contains("unsafe fn") || line.contains("unsafe extern") || line.contains("unsafe trait") {
                let promised = lines[..i - 1]
                    .iter()
                    .rev()
                    .map(|l| l.trim_start())
                    .take_while(|l| l.starts_with("//") || l.starts_with("#[") || l.starts_with("$(#["))
                    .any(|l| l.contains("# Safety"));
                let implementation = promises::implements(&lines[..i - 1], line);
                if !promised && !implementation && promises::has_name(line) {
                    found.push(format!("{}:{i}: no # Safety section", source.path));
                }
                continue;
            }
            let reasoned = lines[..i].iter().rev().take(8).any(|l| l.contains("// SAFETY:"));
            if !reasoned {
                found.push(format!("{}:{i}: no SAFETY comment", source.path));
            }
        }
    }
    report("unsafe only in backend, formats/safetensors.rs and python/dlpack.rs, with a reason", found);
}

#[test]
fn unsafe_is_forbidden_elsewhere() {
    // The attribute at a module's declaration covers all that is below it.
    let mut found = Vec::new();
    for (file, free) in [
        ("src/lib.rs", &["backend", "formats", "python"][..]),
        ("src/python/mod.rs", &["dlpack"]),
        ("src/formats/mod.rs", &["safetensors"]),
        ("src/formats/safetensors.rs", &[]),
    ] {
        let text = fs::read_to_string(root().join(file)).expect("a source");
        let mut before = "";
        let mut modules = 0;
        for line in text.lines() {
            let declared =
                line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ").and_then(|l| l.strip_suffix(';'));
            if let Some(name) = declared {
                modules += 1;
                if before != "#[forbid(unsafe_code)]" && !free.contains(&name) {
                    found.push(format!("{file}: mod {name}"));
                }
            }
            before = line;
        }
        assert!(modules > 1, "{file}: the modules are declared where this test looks");
    }
    let main = fs::read_to_string(root().join("src/main.rs")).expect("src/main.rs");
    assert!(main.contains("#![forbid(unsafe_code)]"), "src/main.rs");
    report("#[forbid(unsafe_code)] is missing before", found);
}

#[test]
fn only_the_command_line_reads_the_environment() {
    let cli = |path: &str| path.starts_with("src/cli/") || path == "src/main.rs";
    let words = ["std::env", "env::var", "env::args", "clap", "println!", "eprintln!", "print!"];
    report("arguments, environment and terminal belong to cli", lines_with(&words, cli));
    let starts = |path: &str| cli(path) || path.starts_with("src/sweep/executor/");
    report("programs are started by cli and sweep/executor", lines_with(&["std::process"], starts));
    report("tables and progress belong to cli", lines_with(&["comfy_table", "indicatif"], cli));
    // What the run-time compiler of kernels and other programs are told looks like flags.
    let flags = |path: &str| starts(path) || path == "src/backend/cuda/compile.rs";
    let letter = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase());
    let named = |line: &str| line.split("\"--").skip(1).any(letter);
    let library = sources(&["src"]).into_iter().filter(|s| !flags(&s.path));
    let found = library.filter(|s| s.code().any(|(_, line)| named(line))).map(|s| s.path).collect();
    report("flags are words of cli", found);
}

#[test]
fn only_formats_opens_files() {
    let words = ["std::fs", "fs::", "File::", "OpenOptions", "memmap2", "tempfile"];
    report("files are opened in formats only", lines_with(&words, |path| path.starts_with("src/formats/")));
}

#[test]
fn only_the_cuda_backend_knows_the_driver() {
    let words = ["cudarc", "libloading"];
    report("the driver belongs to backend/cuda", lines_with(&words, |path| path.starts_with("src/backend/cuda/")));
}

/// The operations of the contract by the file of `backend/ops` that describes them.
fn operations() -> Vec<(String, Vec<String>)> {
    let file = |source: Source| {
        let (_, list) = source.text.split_once("\noperations! {")?;
        let name = source.path.strip_prefix("src/backend/ops/")?.strip_suffix(".rs")?.to_owned();
        let methods =
            list.lines().filter_map(|line| Some(line.trim().strip_suffix(");")?.split_once('(')?.0.to_owned()));
        Some((name, methods.collect()))
    };
    sources(&["src/backend/ops"]).into_iter().filter_map(file).collect()
}

/// The files of one name that an operation is, but for the first.
const PLACES: [(&str, &str); 5] = [
    ("src/backend/cpu", "rs"),
    ("src/backend/cuda", "rs"),
    ("kernels", "cu"),
    ("benches/ops", "rs"),
    ("tests/ops", "rs"),
];

/// Whether a device's source begins an operation with what checks its arguments and records it; none if it does not have
/// it. On the CPU it is recorded as long as the guard lives.
fn checks_first(source: &str, method: &str) -> Option<bool> {
    let (_, rest) = source.split_once(&format!("fn {method}(&mut self, op: "))?;
    Some(rest.split_once('{')?.1.trim_start().trim_start_matches("let _span = ").starts_with("self.begin(&op);"))
}

#[test]
fn operations_stand_in_all_places() {
    let files = operations();
    assert!(files.len() > 10 && files.iter().all(|(_, methods)| !methods.is_empty()), "{files:?}");
    let mut found = Vec::new();
    for (file, methods) in &files {
        for (dir, extension) in PLACES {
            let path = format!("{dir}/{file}.{extension}");
            let Ok(text) = fs::read_to_string(root().join(&path)) else {
                found.push(format!("{path} is missing: src/backend/ops/{file}.rs describes its operations"));
                continue;
            };
            if dir.starts_with("src") {
                let wrong = |method: &&String| checks_first(&text, method) != Some(true);
                let wrong = methods.iter().filter(wrong);
                found.extend(wrong.map(|method| format!("{path}: {method} does not begin with self.begin(&op)")));
            }
            if dir.starts_with("tests") {
                let called = |method: &&String| text.contains(&format!(".{method}("));
                let uncalled = methods.iter().filter(|method| !called(method));
                found.extend(uncalled.map(|method| format!("{path}: {method} has no case")));
            }
        }
    }
    let operations: Vec<&String> = files.iter().flat_map(|(_, methods)| methods).collect();
    for forward in operations.iter().filter_map(|op| op.strip_suffix("_fwd")) {
        // The logits of a chunk exist inside the cross-entropy, whose backward is theirs.
        let backward = match forward {
            "logits" => "cross_entropy_bwd",
            "residual" => continue, // its gradient is the gradient of its output, for both summands
            _ => &format!("{forward}_bwd"),
        };
        if !operations.iter().any(|op| op.starts_with(backward)) {
            found.push(format!("{forward}_fwd has no {backward}"));
        }
    }
    let benches: String = sources(&["benches/ops"]).into_iter().map(|s| s.text).collect();
    // What only moves rows has no speed of its own to watch, and logits are the product of `linear_fwd` at another shape.
    let timed = operations.iter().filter(|op| **op != "logits_fwd");
    for op in timed.filter(|op| op.ends_with("_fwd") || ["adamw", "grad_norm"].contains(&op.as_str())) {
        if !benches.contains(&format!(".{op}(")) {
            found.push(format!("{op}: no bench"));
        }
    }
    for test in ["bits", "gradcheck", "parity", "refusals", "simt", "trace"] {
        let path = format!("tests/ops/{test}.rs");
        let text = fs::read_to_string(root().join(&path)).unwrap_or_default();
        if !["with_operations!", "ops::all(", "cases_of("].iter().any(|call| text.contains(call)) {
            found.push(format!("{path} does not go through the cases of all operations"));
        }
    }
    report(
        "an operation is six files of one name, has a forward, a backward, a case for every check, and a bench",
        found,
    );
}

#[test]
fn the_readmes_commands_exist() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let commands = "capture train-lora train-prompt probe compare analyze generate inspect pretrain task \
                    export-embedded control-vector report merge completions man sweep";
    let commands: Vec<&str> = commands.split_whitespace().collect();
    let flags = sources(&["src/cli"]).into_iter().filter(|s| s.path.starts_with("src/cli/args"));
    let args: String = flags.map(|s| s.text).collect();
    let mut found = Vec::new();
    let mut seen = 0;
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some(mut command) = line
            .trim()
            .strip_prefix("llamaprobe ")
            .or_else(|| line.trim().split_once("-- ").map(|l| l.1))
            .map(str::to_owned)
        else {
            continue;
        };
        while let Some(more) = command.strip_suffix('\\').map(str::to_owned) {
            command = more + lines.next().unwrap_or_default();
        }
        let mut words = command.split_whitespace();
        let name = words.next().unwrap_or_default();
        if !commands.contains(&name) {
            continue;
        }
        seen += 1;
        for flag in words.filter_map(|w| w.strip_prefix("--")) {
            let field = format!("pub {}:", flag.replace('-', "_"));
            if !args.contains(&field) {
                found.push(format!("{name} --{flag}"));
            }
        }
    }
    assert!(seen > 3, "README.md shows no commands");
    report("README.md uses flags that do not exist", found);
}

#[test]
fn nothing_is_left_undone() {
    let words = [".unwrap()", "todo!", "unimplemented!", "dbg!"];
    report("not in the library", lines_with(&words, |_| false));
    let marks = ["TODO", "FIXME", "XXX"];
    let mut found = Vec::new();
    for source in sources(&["src", "tests", "benches"]).iter().filter(|s| s.path != "tests/tidy.rs") {
        for (i, line) in source.text.lines().enumerate() {
            if marks.iter().any(|m| has_word(line, m)) {
                found.push(format!("{}:{}", source.path, i + 1));
            }
        }
    }
    report("marks of unfinished work", found);
}

/// Every file under `tests/golden` but the scripts that make them.
fn golden_files(dir: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("a directory entry").path();
        let script = path.extension().is_some_and(|e| e == "py");
        match path.is_dir() {
            true if path.ends_with("__pycache__") => {}
            true => golden_files(&path, out),
            false if script || path.ends_with("manifest.json") || path.ends_with("requirements.txt") => {}
            false => {
                let name = path.strip_prefix(root().join("tests/golden")).expect("below the folder");
                out.push(name.to_string_lossy().replace('\\', "/"));
            }
        }
    }
}

/// `tests/golden/manifest.json` says how each golden file was made; nobody edits one by hand.
#[test]
fn golden_files_are_those_of_the_manifest() {
    let golden = root().join("tests/golden");
    let text = fs::read_to_string(golden.join("manifest.json")).expect("the manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    let pins: String = manifest["packages"]
        .as_object()
        .expect("packages")
        .iter()
        .map(|(name, version)| format!("{name}=={}\n", version.as_str().expect("a version")))
        .collect();
    let required = fs::read_to_string(golden.join("requirements.txt")).expect("requirements.txt");
    if pins != required {
        found.push("the packages are not those of requirements.txt".to_owned());
    }
    let mut digests = BTreeMap::new();
    for step in manifest["steps"].as_array().expect("steps") {
        let script = step["script"].as_str().expect("a script");
        if !golden.join(script).is_file() {
            found.push(format!("{script} does not exist"));
        }
        for (name, digest) in step["files"].as_object().expect("files") {
            digests.insert(name.clone(), digest.as_str().expect("a digest").to_owned());
        }
    }
    let mut files = Vec::new();
    golden_files(&golden, &mut files);
    assert!(files.len() > 60, "{files:?}");
    for name in files {
        let bytes = fs::read(golden.join(&name)).expect("a golden file");
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        match digests.remove(&name) {
            None => found.push(format!("{name} is not in the manifest")),
            Some(expected) if expected != digest => found.push(format!("{name} is not what its script made")),
            Some(_) => {}
        }
    }
    found.extend(digests.into_keys().map(|name| format!("{name} is missing")));
    report("golden files come from their scripts (`tests/golden/make.py write` after one has run)", found);
}

/// Whether a source has a test of this name.
fn has_test(source: &Source, name: &str) -> bool {
    source.text.match_indices(&format!("fn {name}()")).any(|(at, _)| {
        source.text[..at].lines().rev().find(|line| !line.trim().starts_with("//")).is_some_and(|l| l.contains("test"))
    })
}

#[test]
fn skips_go_through_the_register() {
    let sources = sources(&["tests"]);
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| !["tests/tidy.rs", "tests/support/skips.rs"].contains(&s.path.as_str())) {
        for (i, line) in source.text.lines().enumerate().filter(|(_, line)| line.contains("\"skipped")) {
            found.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
        }
    }
    for test in Reason::ALL.iter().flat_map(|reason| reason.tests()) {
        let path: Vec<&str> = test.split("::").collect();
        let [.., module, name] = path[..] else { panic!("{test} is not program::module::test") };
        let files = [format!("{module}.rs"), format!("{module}/mod.rs")];
        let at = |s: &&Source| files.iter().any(|file| s.path.ends_with(&format!("/{file}")));
        if !sources.iter().filter(at).any(|source| has_test(source, name)) {
            found.push(format!("tests/support/skips.rs: {test} does not exist"));
        }
    }
    report("a test is skipped by tests/support/skips.rs", found);
}

/// The last test of the last program: what the others of this run have skipped is what the register allows.
#[test]
fn recorded_skips_are_those_of_the_register() {
    let later = sources(&["tests"]).into_iter().filter_map(|s| {
        let name = s.path.strip_prefix("tests/")?.strip_suffix(".rs")?.to_owned();
        let program = name.strip_suffix("/main").unwrap_or(&name);
        (!program.contains('/') && program > "tidy").then(|| program.to_owned())
    });
    report("programs that would run after this one", later.collect());
    let path = skips::records();
    let text = fs::read_to_string(&path).unwrap_or_default();
    let skipped: BTreeSet<(&str, &str)> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    let mut found = Vec::new();
    let mut counts = BTreeMap::new();
    for (test, reason) in &skipped {
        match Reason::ALL.iter().find(|r| format!("{r:?}") == *reason) {
            Some(&known) if skips::may_skip(test, known) => *counts.entry(known).or_insert(0) += 1,
            _ => found.push(format!("{test}: {reason}")),
        }
    }
    let reasons: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} for {}", reason.text())).collect();
    // Past the capture of a test that succeeds.
    let line = format!(
        "skipped in this run: {}{}{}\n",
        skipped.len(),
        if reasons.is_empty() { "" } else { ": " },
        reasons.join(", ")
    );
    std::io::stderr().write_all(line.as_bytes()).expect("written");
    let _ = fs::remove_file(path);
    report("skipped, and not in tests/support/skips.rs", found);
}

#[test]
fn no_paths_of_one_machine() {
    let homes: Vec<String> = ["home", "root", "Users", "work", "tmp"].iter().map(|d| format!("/{d}/")).collect();
    let mut all = sources(&["src", "tests", "benches"]);
    files(&root(), &["md", "toml"], &mut all);
    all.retain(|s| !s.path.starts_with("target/"));
    let mut found = Vec::new();
    for source in all {
        for (i, line) in source.text.lines().enumerate() {
            // As a path's beginning, not as a part of a longer one.
            let starts = |h: &String| {
                line.match_indices(h.as_str()).any(|(at, _)| {
                    !line[..at].chars().last().is_some_and(|c| c.is_alphanumeric() || ".~_-/}".contains(c))
                })
            };
            if homes.iter().any(starts) {
                found.push(format!("{}:{}: {}", source.path, i + 1, line.trim()));
            }
        }
    }
    report("paths of one machine", found);
}

#[test]
fn the_checks_themselves_see_what_they_should() {
    assert_eq!(imports("use crate::{Error, model::{a, b}, train::x};"), ["Error", "model", "train"]);
    assert_eq!(imports("fn f(x: crate::cli::Args)"), ["cli"]);
    assert!(has_word("x.unwrap()", ".unwrap()") && !has_word("x.unwrap_or(1)", ".unwrap()"));
    assert!(has_word("fs::read(p)", "fs::") && !has_word("offs::read", "fs::"));
    assert!(has_word("unsafe {", "unsafe") && !has_word("unsafe_code", "unsafe"));
    let device = "fn cast(&mut self, op: Cast<'_, Self>) {\n    let _span = self.begin(&op);\n}\nfn zero(&mut self, op: Zero) { self.run(op) }";
    assert_eq!(["cast", "zero", "widen"].map(|op| checks_first(device, op)), [Some(true), Some(false), None]);
}
