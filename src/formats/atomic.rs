//! Files and directories that appear under their name only when complete.
//!
//! A temporary name in the same directory is written, flushed and synced, then renamed over the final name, so that a
//! reader (or the next start after a crash) sees the old content or the new one, never a part of it. On any error,
//! and on a panic, the temporary is removed, and so are folders that were made for it alone; [`unfinished`] is for ends by
//! a signal.

use std::fs::{self, File, Metadata};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::{Builder, PathPersistError, TempDir, TempPath};

pub use self::claim::{Claim, PREFIX};
use self::claim::{abandoned, is_held};
use self::unfinished::{NewFolders, Unfinished};
use crate::{Error, Result};

mod claim;
pub mod unfinished;

/// The text of a UTF-8 file.
///
/// # Errors
/// The file cannot be read, or is not UTF-8 (with the byte position).
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    String::from_utf8(bytes).map_err(Error::file(path))
}

/// The content of a file; none if there is no such file.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read_if_there(path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
    Ok(open_if_there(path)?.map(|(_, bytes)| bytes))
}

/// A file that was read, whatever has its name by now.
pub struct Old(File);

/// A file and its content, for [`replace`]; none if there is no such file.
///
/// # Errors
/// The file is there and cannot be read.
pub fn open_if_there(path: impl AsRef<Path>) -> Result<Option<(Old, Vec<u8>)>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes).map(|_| file)) {
        Ok(file) => Ok(Some((Old(file), bytes))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// The paths in a directory, sorted; none if it cannot be read.
pub fn entries(dir: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// Refuses a name that no file can take: that of a directory, a device, a pipe or a socket.
///
/// # Errors
/// What stands there.
pub fn check_replaceable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let refuse = |found: &str| Err(Error::argument(path.display().to_string(), "a file to write", found));
    match path.metadata() {
        Ok(found) if found.is_dir() => refuse("a directory"),
        // The finished file takes the name of what stands there: no device may lose it.
        Ok(found) if !found.is_file() => refuse("a device, a pipe or a socket"),
        _ => Ok(()),
    }
}

/// A file being written, not yet visible under its name.
pub struct AtomicFile {
    // Dropped in this order: the folders that were made for the file go after it.
    file: BufWriter<File>,
    temporary: TempPath,
    _unfinished: Unfinished,
    _folders: NewFolders,
    path: PathBuf,
}

impl AtomicFile {
    /// Starts a file that will be `path`; creates the directory if it is missing.
    ///
    /// # Errors
    /// The directory cannot be created or written to, or `path` is a directory, a device, a pipe or a socket.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        check_replaceable(&path)?;
        let dir = parent(&path);
        let mut all = unfinished::lock();
        let folders = NewFolders::create(&dir)?;
        let mut builder = Builder::new();
        builder.prefix(PREFIX);
        #[cfg(unix)]
        {
            // The default of temporary files is private to the user; an output follows the umask as any other file.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let (file, temporary) = loop {
            let file = builder.tempfile_in(&dir).map_err(Error::io("create a file in", &dir))?;
            // Errors of the whole would name the temporary path.
            let (file, temporary) = file.into_parts();
            if is_held(&file, &temporary) {
                break (file, temporary);
            }
        };
        let unfinished = all.begin(&temporary, folders.0.clone());
        let file = BufWriter::with_capacity(1 << 18, file);
        Ok(Self { file, temporary, _unfinished: unfinished, _folders: folders, path })
    }

    /// The name under which the file appears when it is complete.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends at the current position.
    ///
    /// # Errors
    /// The write fails (a full disk).
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Writes at `offset` bytes from the start, and leaves the position after it.
    ///
    /// # Errors
    /// The write fails.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        // What was written before goes out with it, so that a full disk shows here.
        self.file.seek(SeekFrom::Start(offset)).map_err(Error::io("write", &self.path))?;
        self.write(bytes)
    }

    /// Sets the length in advance; the bytes not written are zeros.
    ///
    /// # Errors
    /// The file system refuses the length.
    pub fn set_len(&mut self, len: u64) -> Result<()> {
        self.file.get_ref().set_len(len).map_err(Error::io("extend", &self.path))
    }

    /// Flushes, syncs and renames to the final name.
    ///
    /// # Errors
    /// Any of the three fails; the temporary is then removed and an older file of that name stays as it was.
    pub fn finish(self) -> Result<()> {
        self.publish(|temporary, path| temporary.persist(path))
    }

    /// The same, unless there is something of that name. Returns whether there was nothing.
    ///
    /// # Errors
    /// As [`AtomicFile::finish`].
    pub fn finish_new(self) -> Result<bool> {
        let mut new = true;
        self.publish(|temporary, path| {
            temporary.persist_noclobber(path).or_else(|e| match e.error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    new = false;
                    Ok(())
                }
                _ => Err(e),
            })
        })?;
        Ok(new)
    }

    fn publish(self, persist: impl FnOnce(TempPath, &Path) -> Result<(), PathPersistError>) -> Result<()> {
        let Self { file, temporary, path, _unfinished, _folders } = self;
        let file = file.into_inner().map_err(|e| Error::io("write", &path)(e.into_error()))?;
        file.sync_all().map_err(Error::io("sync", &path))?;
        persist(temporary, &path).map_err(|e| Error::io("rename to", &path)(e.error))?;
        // With its lock, which it needs while it has its temporary name.
        drop(file);
        sync_dir(&parent(&path))
    }
}

/// Writes a whole file atomically.
///
/// # Errors
/// See [`AtomicFile`].
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

/// Writes a whole file atomically, unless there is something of that name. Returns whether there was nothing.
///
/// # Errors
/// See [`AtomicFile`].
pub fn write_new(path: impl AsRef<Path>, bytes: &[u8]) -> Result<bool> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.finish_new()
}

/// Writes a whole file atomically in the place of `old`, unless something else has that name by now: of several that replace one file
/// at the same time, one does. Returns whether this one did. Where a file system has no locks, each may.
///
/// # Errors
/// See [`AtomicFile`].
pub fn replace(path: impl AsRef<Path>, Old(old): &Old, bytes: &[u8]) -> Result<bool> {
    let path = path.as_ref();
    let locked = old.lock().is_ok();
    let stands = old.metadata().and_then(|old| Ok(are_one(&old, &path.metadata()?))).unwrap_or(false);
    let replaced = if stands { write(path, bytes).map(|()| true) } else { write_new(path, bytes) };
    if locked {
        old.unlock().map_err(Error::io("unlock", path))?;
    }
    replaced
}

/// Whether they are of one file, where the system numbers files; elsewhere it is told by length and time.
fn are_one(a: &Metadata, b: &Metadata) -> bool {
    #[cfg(unix)]
    let of = |file: &Metadata| {
        use std::os::unix::fs::MetadataExt;
        (file.dev(), file.ino())
    };
    #[cfg(not(unix))]
    let of = |file: &Metadata| (file.len(), file.modified().ok());
    of(a) == of(b)
}

/// Writes a value as JSON with an indent of two and a final newline, atomically.
///
/// # Errors
/// See [`AtomicFile`]; a value that JSON cannot hold.
pub fn write_json(path: impl AsRef<Path>, value: &impl Serialize) -> Result<()> {
    let path = path.as_ref();
    let mut text = serde_json::to_vec_pretty(value).map_err(Error::file(path))?;
    text.push(b'\n');
    write(path, &text)
}

/// Makes the directory `path` as a whole: `fill` writes into a sibling with a temporary name, which then takes the
/// place of `path`.
///
/// An existing `path` is replaced only when all of its entries are named in `owned` (an empty directory always is);
/// anything else in it is not ours to delete. Of a link the directory that it leads to is replaced.
///
/// # Errors
/// `fill` fails, `path` holds other files or is a link to nothing, or the file system refuses; `path` is then as before.
pub fn replace_dir(path: impl AsRef<Path>, owned: &[&str], fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    if let Some(other) = foreign_entry(path, owned)? {
        let expected = format!("a new or empty directory, or one that holds only {}", owned.join(", "));
        return Err(Error::argument(path.display().to_string(), expected, other));
    }
    let (named, target) = (path, path.canonicalize());
    if target.is_err() && path.is_symlink() {
        return Err(Error::argument(path.display().to_string(), "a directory, or nothing yet", "a link to nothing"));
    }
    let path = target.as_deref().unwrap_or(named);
    let dir = parent(path);
    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    let stage = temp_dir(&dir)?;
    let new = stage.dir.path().join("new");
    fs::create_dir(&new).map_err(Error::io("create", &new))?;
    fill(&new).map_err(|error| moved(error, &new, named))?;
    sync_dir(&new)?;
    // No signal removes the temporary directory while it has the old one.
    let all = unfinished::lock();
    if path.exists() {
        // Two renames: a crash between them leaves the old directory complete inside the temporary one.
        fs::rename(path, stage.dir.path().join("old")).map_err(Error::io("rename", named))?;
    }
    fs::rename(&new, path).map_err(Error::io("rename to", named))?;
    drop(all);
    sync_dir(&dir)
}

/// The error of a path in `from` as that of its name in `to`, where it would have come to stand.
fn moved(error: Error, from: &Path, to: &Path) -> Error {
    let named = |path: PathBuf| {
        path.strip_prefix(from).map(|rest| to.components().chain(rest.components()).collect()).unwrap_or(path.clone())
    };
    match error {
        Error::Io { action, path, source } => Error::Io { action, path: named(path), source },
        Error::File { path, source } => Error::File { path: named(path), source },
        other => other,
    }
}

/// The first entry of a directory that `owned` does not name and no killed program has left unfinished; `None` for a missing directory.
///
/// # Errors
/// `path` exists and cannot be listed.
pub fn foreign_entry(path: &Path, owned: &[&str]) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !owned.contains(&name.as_str()) && abandoned(&entry.path()).is_none() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Gives a directory whose files are complete and synced its final name, on the same file system, where nothing stands.
///
/// # Errors
/// The file system refuses, or there is something of that name.
pub fn publish_dir(from: &Path, to: &Path) -> Result<()> {
    sync_dir(from)?;
    fs::rename(from, to).map_err(Error::io("rename to", to))?;
    sync_dir(&parent(to))
}

/// Makes a directory and those around it.
///
/// # Errors
/// The file system refuses.
pub fn create_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(Error::io("create", path))
}

/// Removes a file or a directory with all that is in it, if it is there.
///
/// # Errors
/// The file system refuses.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory so that it is gone at once under its name, however long its content takes.
///
/// # Errors
/// The file system refuses.
pub fn remove_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let Stage { dir, _lock, _unfinished } = temp_dir(&parent(path))?;
    fs::rename(path, dir.path().join("old")).map_err(Error::io("rename", path))?;
    dir.close().map_err(Error::io("remove", path))
}

/// Removes a file, if there is one.
///
/// # Errors
/// The file system refuses.
pub fn remove_file_if_there(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes what killed programs have left unfinished in `dir`; nothing of a program that runs, and nothing of others. Nothing happens
/// if there is no such directory.
///
/// # Errors
/// The file system refuses.
pub fn sweep(dir: impl AsRef<Path>) -> Result<()> {
    let left = |path: PathBuf| Some((abandoned(&path)?, path));
    entries(dir).into_iter().filter_map(left).try_for_each(|(_lock, path)| remove(path))
}

/// The directories in `dir` whose name is `prefix` and a number, by number; none if there is no such `dir`.
///
/// # Errors
/// `dir` exists and cannot be listed.
pub fn numbered_dirs(dir: impl AsRef<Path>, prefix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let dir = dir.as_ref();
    let mut found = Vec::new();
    if dir.exists() {
        for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let entry = entry.map_err(Error::io("list", dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix(prefix).and_then(|number| number.parse().ok());
            if let (Some(number), true) = (number, entry.path().is_dir()) {
                found.push((number, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A directory under a temporary name.
struct Stage {
    // Removed in this order: what is gone need not be known.
    dir: TempDir,
    _lock: Option<File>,
    _unfinished: Unfinished,
}

fn temp_dir(dir: &Path) -> Result<Stage> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    let mut all = unfinished::lock();
    loop {
        let made = builder.tempdir_in(dir).map_err(Error::io("create a directory in", dir))?;
        // Only Unix opens directories as files.
        let lock = File::open(made.path()).ok();
        if lock.as_ref().is_none_or(|lock| is_held(lock, made.path())) {
            return Ok(Stage { _unfinished: all.begin(made.path(), Vec::new()), _lock: lock, dir: made });
        }
    }
}

/// The directory of a path; `.` for a bare name.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes a rename inside `dir` durable.
fn sync_dir(dir: &Path) -> Result<()> {
    // Only Unix opens directories as files; elsewhere the rename is as durable as the system makes it.
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))?;
    }
    Ok(())
}
