//! Models by name in the Hugging Face cache, without a network.

use std::fs;
use std::path::{Path, PathBuf};

use super::atomic::read_to_string;
use crate::{Error, Result};

/// The variables that say where the cache is. Only the command line reads the environment; this is its copy.
#[derive(Clone, Debug, Default)]
pub struct CacheEnv {
    /// `HF_HUB_CACHE`.
    pub hf_hub_cache: Option<PathBuf>,
    /// `HUGGINGFACE_HUB_CACHE`, the older name.
    pub huggingface_hub_cache: Option<PathBuf>,
    /// `HF_HOME`; the cache is `hub` in it.
    pub hf_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`; the cache is `huggingface/hub` in it.
    pub xdg_cache_home: Option<PathBuf>,
    /// `HOME`; the cache is `.cache/huggingface/hub` in it.
    pub home: Option<PathBuf>,
}

impl CacheEnv {
    /// The cache, by the first variable that is set and not empty, in the order of the fields.
    pub fn hub(&self) -> Option<PathBuf> {
        let under = |dir: &Option<PathBuf>, rest: &str| {
            let dir = dir.as_ref().filter(|d| !d.as_os_str().is_empty())?;
            let dir = match (dir.strip_prefix("~"), &self.home) {
                (Ok(tail), Some(home)) => home.join(tail),
                _ => dir.clone(),
            };
            Some(if rest.is_empty() { dir } else { dir.join(rest) })
        };
        under(&self.hf_hub_cache, "")
            .or_else(|| under(&self.huggingface_hub_cache, ""))
            .or_else(|| under(&self.hf_home, "hub"))
            .or_else(|| under(&self.xdg_cache_home, "huggingface/hub"))
            .or_else(|| under(&self.home, ".cache/huggingface/hub"))
    }
}

/// The directory of a model: `model` itself where it is one, else the snapshot of the repository `org/name` in the
/// cache. `revision` is a branch, a tag or a commit of 40 hexadecimal digits; `main` by default. An adapter is found as
/// well, since its configuration names its base model.
///
/// # Errors
/// There is no such directory, and the cache has no such repository, revision or snapshot; the error lists the places.
pub fn resolve(model: &str, revision: Option<&str>, env: &CacheEnv) -> Result<PathBuf> {
    find("model", model, revision, &["config.json", "adapter_config.json"], env)
}

/// The directory of an adapter, as [`resolve`]; `field` names it in errors.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_adapter(field: &str, adapter: &str, env: &CacheEnv) -> Result<PathBuf> {
    find(field, adapter, None, &["adapter_config.json"], env)
}

/// A directory, or a snapshot of the cache with one of the files.
fn find(field: &str, name: &str, revision: Option<&str>, files: &[&str], env: &CacheEnv) -> Result<PathBuf> {
    let local = Path::new(name);
    if local.is_dir() {
        return match revision {
            Some(r) => Err(Error::argument("revision", format!("none for the directory {name}"), r)),
            None => Ok(local.to_path_buf()),
        };
    }
    if local.exists() {
        return Err(Error::argument(
            field,
            format!(
                "a directory with {}{}, or org/name",
                files[0],
                if field == "model" { ", a file .gguf" } else { "" }
            ),
            name,
        ));
    }
    let missing = |expected: String, looked: &[&Path]| {
        let places: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
        Error::argument(field, expected, format!("{name:?} (looked at {})", places.join(", ")))
    };
    if !is_repository(name) {
        return Err(missing("a directory, or the name org/name of a cached model".to_string(), &[local]));
    }
    let Some(hub) = env.hub() else {
        let expected = "a directory (no cache: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME are not set)".to_string();
        return Err(missing(expected, &[local]));
    };
    let repository = hub.join(format!("models--{}", name.replace('/', "--")));
    if !repository.is_dir() {
        return Err(missing("a directory, or a model in the cache".to_string(), &[local, &repository]));
    }
    let revision = revision.unwrap_or("main");
    let commit = if is_commit(revision) { revision.to_string() } else { commit(&repository, revision)? };
    let snapshot = repository.join("snapshots").join(&commit);
    if !snapshot.is_dir() {
        let expected = format!("a snapshot of revision {revision}; cached: {}", entries(&repository.join("snapshots")));
        return Err(missing(expected, &[local, &snapshot]));
    }
    if !files.iter().any(|file| snapshot.join(file).exists()) {
        let known = repository.join(".no_exist").join(&commit).join(files[0]).exists();
        let found = if known { "none (the repository has no such file)" } else { "none (not downloaded)" };
        return Err(Error::field(&snapshot, files[0], format!("the configuration of the {field}"), found));
    }
    Ok(snapshot)
}

/// Whether a name can be an adapter's in the cache: `org/name`.
pub fn is_adapter_name(name: &str) -> bool {
    name.contains('/') && is_repository(name)
}

/// Reads `refs/{revision}`.
fn commit(repository: &Path, revision: &str) -> Result<String> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    if !revision.split('/').all(plain) {
        return Err(Error::argument("revision", "a branch, a tag or a commit", revision));
    }
    let path = repository.join("refs").join(revision);
    if !path.is_file() {
        let expected = format!("a cached revision ({})", entries(&repository.join("refs")));
        return Err(Error::argument("revision", expected, format!("{revision:?} (looked at {})", path.display())));
    }
    let text = read_to_string(&path)?;
    let commit = text.trim();
    if !is_commit(commit) {
        return Err(Error::field(&path, "commit", "40 hexadecimal digits", format!("{:.60}", format!("{commit:?}"))));
    }
    Ok(commit.to_string())
}

/// The name by which a directory that was found is known elsewhere, without the places of this machine: of a snapshot the
/// repository and its commit, of another directory its own name.
pub fn identity(found: &Path) -> (String, Option<String>) {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let snapshots = found.parent().filter(|dir| dir.ends_with("snapshots"));
    let repository = snapshots.and_then(Path::parent).and_then(name);
    match (repository.as_deref().and_then(|name| name.strip_prefix("models--")), name(found)) {
        (Some(repository), Some(commit)) if is_commit(&commit) => (repository.replacen("--", "/", 1), Some(commit)),
        (_, Some(name)) => (name, None),
        // `..`, or the root.
        (_, None) => (found.canonicalize().ok().as_deref().and_then(name).unwrap_or_default(), None),
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `name` or `org/name`, of the characters the hub allows.
fn is_repository(name: &str) -> bool {
    let part = |p: &str| {
        let edge = |c: char| c == '-' || c == '.';
        let legal = p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        !p.is_empty() && legal && !p.starts_with(edge) && !p.ends_with(edge) && !p.contains("--") && !p.contains("..")
    };
    name.split('/').count() <= 2 && name.split('/').all(part)
}

/// The names in a directory, for a message.
fn entries(dir: &Path) -> String {
    let mut names: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort_unstable();
    if names.is_empty() { "none".to_string() } else { names.join(", ") }
}
