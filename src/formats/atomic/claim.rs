//! Who is at work: by locks, which the system gives back however a process ends, what a living program has not finished is told
//! from what a killed one has left. Where a file system has no locks, nothing is taken for left.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use super::unfinished::{self, NewFolders, Unfinished};
use crate::{Error, Result};

/// Prefix of everything unfinished.
pub const PREFIX: &str = ".tmp-llamaprobe-";

/// Locks something temporary that was just made; false where a sweep was faster, and it is gone.
pub(super) fn is_held(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => path.exists(),
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => true,
    }
}

/// The lock of what a killed program has left unfinished; none of anything else.
pub(super) fn abandoned(path: &Path) -> Option<File> {
    let is_ours = path.file_name()?.to_string_lossy().starts_with(PREFIX) && !path.is_symlink();
    let file = match (path.is_dir(), path.is_file()) {
        (true, _) if is_ours => File::open(path),
        (_, true) if is_ours => OpenOptions::new().write(true).open(path),
        _ => return None,
    };
    file.ok().filter(|file| file.try_lock().is_ok())
}

/// A directory in which nobody else who claims it is at work, until this is dropped.
pub struct Claim {
    // Dropped in this order: a directory that was made for nothing goes last.
    _lock: Option<File>,
    _unfinished: Unfinished,
    _folders: NewFolders,
}

impl Claim {
    /// Claims a directory, which is made where it is missing, and removed with the claim if nothing has come into it.
    ///
    /// # Errors
    /// `out`: another command is at work in it. It cannot be made.
    pub fn new(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut all = unfinished::lock();
        let folders = NewFolders::create(dir)?;
        let unfinished = all.begin(&dir.join(format!("{PREFIX}claim")), folders.0.clone());
        drop(all);
        // Only Unix opens directories as files.
        let lock = File::open(dir).ok();
        if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
            let expected = "a directory in which no other llamaprobe is at work";
            return Err(Error::argument("out", expected, dir.display()));
        }
        Ok(Self { _lock: lock, _unfinished: unfinished, _folders: folders })
    }
}
