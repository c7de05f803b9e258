//! The files that the flags of a cell name, by their content.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::resolve;
use crate::formats::digest::Digests;
use crate::formats::{atomic, embedded, hub, yaml};
use crate::{Error, Result};

/// Digests of the files that flags name, in the directory of a sweep.
const KEPT: &str = "inputs.json";
/// Bytes of a YAML file in which further files are looked for.
const LARGEST_YAML: u64 = 1 << 20;
/// Extensions of what belongs to a model, a tokenizer or an adapter.
const OF_MODELS: [&str; 7] = ["json", "safetensors", "bin", "model", "txt", "jinja", "gguf"];

/// The files that the cells of a sweep name.
pub struct Inputs {
    digests: Digests,
    /// Those of models, tokenizers and adapters by flag, name and revision, which are opened once.
    found: HashMap<[String; 3], Files>,
    /// Every file that was digested, by the name under which a flag finds it.
    content: BTreeMap<String, String>,
}

impl Inputs {
    /// Of the directory of a sweep, which has the digests of earlier calls.
    pub fn of(dir: &Path) -> Self {
        Self { digests: Digests::open(dir.join(KEPT)), found: HashMap::new(), content: BTreeMap::new() }
    }

    /// Keeps the digests for the next time.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self) -> Result<()> {
        self.digests.save()
    }

    /// Every file that was digested so far, by its name, with its SHA-256.
    pub fn content(&self) -> &BTreeMap<String, String> {
        &self.content
    }

    /// Digests of what flags name, by flag. Files and directories that are named inside a value (`--vary template=FILE`), and by a
    /// YAML file that is named (a task's data), count as well.
    ///
    /// # Errors
    /// A model or an adapter that is not there, or a file that cannot be read.
    pub fn of_flags(&mut self, flags: &BTreeMap<String, Value>) -> Result<BTreeMap<String, Vec<String>>> {
        let mut all = BTreeMap::new();
        for (flag, Files { files, commits, .. }) in self.files(flags)? {
            let mut digests = commits;
            for file in files {
                let digest = self.digests.of_file(&file)?;
                self.content.insert(file.display().to_string(), digest.clone());
                digests.push(digest);
            }
            if !digests.is_empty() {
                all.insert(flag, digests);
            }
        }
        Ok(all)
    }

    /// Refuses flags of which a file is not what it was when it was planned.
    ///
    /// # Errors
    /// The file, or that it cannot be read any more.
    pub fn check(&mut self, flags: &BTreeMap<String, Value>, planned: &BTreeMap<String, String>) -> Result<()> {
        for (_, Files { files, .. }) in self.files(flags)? {
            for file in files {
                let name = file.display().to_string();
                if planned.get(&name) != Some(&self.digests.of_file(&file)?) {
                    let expected = "the content that it had when the sweep was planned (begin the sweep again)";
                    return Err(Error::argument(name, expected, "another"));
                }
            }
        }
        Ok(())
    }

    /// What flags name, by flag.
    fn files(&mut self, flags: &BTreeMap<String, Value>) -> Result<Vec<(String, Files)>> {
        let revision = flags.get("revision").and_then(Value::as_str);
        let mut all = Vec::new();
        for (flag, value) in flags {
            let mut files = Files::default();
            for text in texts(value) {
                if !["model", "tokenizer", "adapter", "init_adapter"].contains(&flag.as_str()) {
                    files.named(text)?;
                    continue;
                }
                let name = [flag.as_str(), text, revision.unwrap_or_default()].map(str::to_owned);
                let known = match self.found.get(&name) {
                    Some(known) => known,
                    None => self.found.entry(name).or_insert(Files::found(flag, text, revision)?),
                };
                files.files.extend_from_slice(&known.files);
                files.commits.extend_from_slice(&known.commits);
            }
            all.push((flag.clone(), files));
        }
        Ok(all)
    }
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
#[derive(Clone, Default)]
struct Files {
    files: Vec<PathBuf>,
    /// Repositories of the cache with their commits, which are their content.
    commits: Vec<String>,
    seen: BTreeSet<PathBuf>,
}

impl Files {
    /// Of a model, a tokenizer or an adapter.
    fn found(flag: &str, text: &str, revision: Option<&str>) -> Result<Self> {
        let mut all = Self::default();
        match flag {
            // The embedded model is part of the program, whose version is part of the name.
            "model" if text == embedded::NAME => {}
            "model" => {
                let files = resolve::model_of(text, revision)?;
                [Some(files.path), files.adapter].iter().flatten().try_for_each(|dir| all.directory(dir))?;
            }
            "tokenizer" => all.directory(Path::new(text))?,
            _ => all.directory(&resolve::trained_adapter(flag, Path::new(text))?)?,
        }
        Ok(all)
    }

    /// What belongs to a model, a tokenizer or an adapter in a directory, or its file of GGUF.
    fn directory(&mut self, dir: &Path) -> Result<()> {
        if dir.is_file() {
            self.files.push(dir.to_path_buf());
            return Ok(());
        }
        if let (name, Some(commit)) = hub::identity(dir) {
            self.commits.push(format!("{name}@{commit}"));
            return Ok(());
        }
        let of_model = |path: &PathBuf| path.extension().is_some_and(|e| OF_MODELS.iter().any(|x| e == *x));
        let files: Vec<PathBuf> =
            atomic::entries(dir).into_iter().filter(|path| path.is_file() && of_model(path)).collect();
        if files.is_empty() {
            let expected = "files of a model, a tokenizer or an adapter";
            return Err(Error::argument(dir.display().to_string(), expected, "none"));
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
}
