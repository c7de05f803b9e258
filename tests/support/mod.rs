//! What several test programs share.
#![allow(dead_code)] // Each program uses a part.

use std::path::PathBuf;

pub mod peft;
pub mod skips;
pub mod tiny_model;
pub mod training;

/// The folder of models, tokenizers and data beside the checkout, or the one that `LLAMAPROBE_SHARED` names; `None`,
/// and the test is recorded as skipped, where there is none.
pub fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("LLAMAPROBE_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    if dir.is_dir() {
        return Some(dir);
    }
    skips::skip(skips::Reason::NoShared);
    None
}

/// A file or folder of `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A folder that is removed when dropped.
pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}
