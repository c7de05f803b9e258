//! The input of a case: some files with names, as they lie in a folder.

use std::path::Path;

/// What a file holds, which decides how it is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One JSON value.
    Json,
    /// A JSON value on each line.
    JsonLines,
    /// A safetensors file.
    Safetensors,
    /// Jinja.
    Template,
    /// YAML.
    Yaml,
    /// Any other text.
    Text,
}

/// A file of a case.
#[derive(Clone, Debug)]
pub struct File {
    pub name: &'static str,
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// A file of a seed.
pub fn file(name: &'static str, bytes: impl Into<Vec<u8>>) -> File {
    let kind = match name.rsplit('.').next() {
        Some("json") => Kind::Json,
        Some("jsonl") => Kind::JsonLines,
        Some("safetensors") => Kind::Safetensors,
        Some("jinja") => Kind::Template,
        Some("yaml") => Kind::Yaml,
        _ => Kind::Text,
    };
    File { name, kind, bytes: bytes.into() }
}

/// Lays the files of a case into a folder that then holds nothing else.
pub fn lay_out(dir: &Path, files: &[File]) {
    let _ = std::fs::remove_dir_all(dir);
    for file in files {
        let path = dir.join(file.name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes a folder");
        std::fs::write(path, &file.bytes).expect("writes");
    }
}
