//! The temporary files and directories that this process has now, for a signal that ends it: no destructor runs then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, mem};

use crate::{Error, Result};

/// What is unfinished, and the folders that were made for it alone, the innermost first.
static ALL: Mutex<BTreeMap<PathBuf, Vec<PathBuf>>> = Mutex::new(BTreeMap::new());

/// What is unfinished, while nothing else is begun, ended or removed.
pub(super) struct All(MutexGuard<'static, BTreeMap<PathBuf, Vec<PathBuf>>>);

/// Waits for whoever has it.
pub(super) fn lock() -> All {
    All(ALL.lock().unwrap_or_else(PoisonError::into_inner))
}

impl All {
    /// Counts a path among them until what comes back is dropped.
    pub(super) fn begin(&mut self, path: &Path, folders: Vec<PathBuf>) -> Unfinished {
        self.0.insert(path.to_path_buf(), folders);
        Unfinished(path.to_path_buf())
    }
}

/// One of them.
pub(super) struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        lock().0.remove(&self.0);
    }
}

/// Folders that were made, the innermost first; dropped, those that are empty are removed.
pub(super) struct NewFolders(pub(super) Vec<PathBuf>);

impl NewFolders {
    /// Makes a folder and those around it.
    pub(super) fn create(dir: &Path) -> Result<Self> {
        let missing = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let folders = Self(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        Ok(folders)
    }
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        // A folder with something in it cannot be removed, and then neither can those around it.
        let _ = self.0.iter().try_for_each(fs::remove_dir);
    }
}

/// Removes all that is unfinished, and then ends the process by `end`, before which no other thread begins or finishes anything.
pub fn remove_and(end: impl FnOnce()) {
    let mut held = lock();
    let all = mem::take(&mut *held.0);
    // What cannot be removed stays, as after any other end.
    for path in all.keys() {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
    for folders in all.values() {
        let _ = folders.iter().try_for_each(fs::remove_dir);
    }
    end();
}
