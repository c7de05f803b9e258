//! Locks that die with the process that holds them, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::{Error, Result};

/// An exclusive lock of a file (`flock` on Unix), which the system gives back when this is dropped or the process has
/// ended. The file itself stays, since another process may be about to lock it.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// The lock of a file, which is made where there is none; none where another process, or another part of this one,
    /// holds it.
    ///
    /// # Errors
    /// The file cannot be made, or its file system has no locks.
    pub fn try_acquire(path: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = path.as_ref();
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(Error::io("open", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_held_by_one_and_comes_back_when_it_is_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a.lock");
        let held = FileLock::try_acquire(&path).expect("a file").expect("nobody else");
        assert!(FileLock::try_acquire(&path).expect("a file").is_none());
        drop(held);
        assert!(FileLock::try_acquire(&path).expect("a file").is_some() && path.exists());
    }
}
