//! What several test programs share.
#![allow(dead_code)] // Each program uses a part.

use std::path::PathBuf;

pub mod peft;
pub mod tiny_model;
pub mod training;

/// The folder of models, tokenizers and data beside the checkout, or the one that `LLAMAPROBE_SHARED` names; `None`
/// (and a line that says so) where there is none.
pub fn shared() -> Option<PathBuf> {
    let dir = std::env::var_os("LLAMAPROBE_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    if dir.is_dir() {
        return Some(dir);
    }
    println!("skipped: no ../shared");
    None
}

/// A folder that is removed when dropped.
pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}
