//! The files that the flags of a cell name, by their content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::resolve;
use crate::formats::digest::Digests;
use crate::formats::{atomic, embedded, hub, yaml};
use crate::{Error, Result};

/// Bytes of a YAML file in which further files are looked for.
const LARGEST_YAML: u64 = 1 << 20;
/// Extensions of what belongs to a model or an adapter.
const OF_MODELS: [&str; 7] = ["json", "safetensors", "bin", "model", "txt", "jinja", "gguf"];

/// Digests of what flags name, by flag. Files and directories that are named inside a value (`--vary template=FILE`), and by a YAML
/// file that is named (a task's data), count as well.
///
/// # Errors
/// A model or an adapter that is not there, or a file that cannot be read.
pub fn digests(flags: &BTreeMap<String, Value>, known: &mut Digests) -> Result<BTreeMap<String, Vec<String>>> {
    let revision = flags.get("revision").and_then(Value::as_str);
    let mut found = BTreeMap::new();
    for (flag, value) in flags {
        let mut files = Files::default();
        for text in texts(value) {
            match flag.as_str() {
                "model" => files.model(text, revision)?,
                "adapter" | "init_adapter" => files.directory(&resolve::trained_adapter(flag, Path::new(text))?)?,
                _ => files.named(text)?,
            }
        }
        let digests = files.digests(known)?;
        if !digests.is_empty() {
            found.insert(flag.clone(), digests);
        }
    }
    Ok(found)
}

/// All texts of a value.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(map) => {
            map.iter().flat_map(|(key, value)| std::iter::once(key.as_str()).chain(texts(value))).collect()
        }
        _ => Vec::new(),
    }
}

/// What is found of one flag, in the order of the value.
#[derive(Default)]
struct Files {
    files: Vec<PathBuf>,
    /// Repositories of the cache with their commits, which are their content.
    commits: Vec<String>,
    seen: BTreeSet<PathBuf>,
}

impl Files {
    fn model(&mut self, name: &str, revision: Option<&str>) -> Result<()> {
        // The embedded model is part of the program, whose version is part of the name.
        if name == embedded::NAME {
            return Ok(());
        }
        let files = resolve::model_of(name, revision)?;
        [Some(files.path), files.adapter].iter().flatten().try_for_each(|dir| self.directory(dir))
    }

    /// What belongs to a model or an adapter in a directory.
    fn directory(&mut self, dir: &Path) -> Result<()> {
        if let (name, Some(commit)) = hub::identity(dir) {
            self.commits.push(format!("{name}@{commit}"));
            return Ok(());
        }
        let of_model = |path: &PathBuf| path.extension().is_some_and(|e| OF_MODELS.iter().any(|x| e == *x));
        let files: Vec<PathBuf> =
            atomic::entries(dir).into_iter().filter(|path| path.is_file() && of_model(path)).collect();
        if files.is_empty() {
            return Err(Error::argument(dir.display().to_string(), "a model or an adapter", "none of its files"));
        }
        self.files.extend(files);
        Ok(())
    }

    /// The files and directories that a text names, as a whole or in its parts.
    fn named(&mut self, text: &str) -> Result<()> {
        let whole = Path::new(text);
        if whole.is_file() || whole.is_dir() {
            return self.add(whole);
        }
        for part in text.split(|c: char| c.is_whitespace() || ",;={}[]:\"'".contains(c)).filter(|part| !part.is_empty())
        {
            let path = Path::new(part);
            // A word such as `run` may happen to be a folder's name: in a text only files count.
            if part != text && path.is_file() {
                self.add(path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            // A folder that is no model is somebody's name for something else.
            return if path.join("adapter_config.json").is_file() { self.directory(path) } else { Ok(()) };
        }
        if !self.seen.insert(path.to_path_buf()) {
            return Ok(());
        }
        self.files.push(path.to_path_buf());
        let is_yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if is_yaml && path.metadata().is_ok_and(|metadata| metadata.len() <= LARGEST_YAML) {
            let text = atomic::read_to_string(path)?;
            let beside = path.parent().unwrap_or(Path::new("."));
            let value: Value = yaml::parse(&text).map_err(Error::file(path))?;
            for text in texts(&value) {
                // `FILE#TENSOR` of an edit.
                let name = text.split('#').next().unwrap_or(text);
                let file = beside.join(name);
                if !name.is_empty() && file.is_file() {
                    self.add(&file)?;
                }
            }
        }
        Ok(())
    }

    fn digests(self, known: &mut Digests) -> Result<Vec<String>> {
        let files = self.files.iter().map(|file| known.of_file(file)).collect::<Result<Vec<_>>>()?;
        Ok(self.commits.into_iter().chain(files).collect())
    }
}
