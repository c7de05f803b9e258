//! What a file's content is, in 32 bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::atomic;
use crate::hash::Hasher;
use crate::{Error, Result};

/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// A file as it was when it was read: while its length and its time of change are the same, so is its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    bytes: u64,
    /// Nanoseconds since 1970.
    changed: u128,
    sha256: String,
}

/// SHA-256 of files, each read once: kept in a file, since weights take minutes. The default keeps nothing.
#[derive(Debug, Default)]
pub struct Digests {
    path: Option<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    grown: bool,
}

impl Digests {
    /// Those that a file has; none where it is not there or cannot be read, since all can be had again.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = atomic::read_if_there(&path).ok().flatten();
        let known = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path: Some(path), known, grown: false }
    }

    /// The SHA-256 of a file's content, in hexadecimal digits.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(&mut self, file: &Path) -> Result<String> {
        let path = file.canonicalize().map_err(Error::io("read", file))?;
        let metadata = path.metadata().map_err(Error::io("read", file))?;
        let changed = metadata.modified().map_err(Error::io("read", file))?;
        let changed = changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let bytes = metadata.len();
        if let Some(known) = self.known.get(&path).filter(|known| (known.bytes, known.changed) == (bytes, changed)) {
            return Ok(known.sha256.clone());
        }
        let sha256 = of(&path)?;
        self.known.insert(path, Known { bytes, changed, sha256: sha256.clone() });
        self.grown = true;
        Ok(sha256)
    }

    /// Keeps what was found for the next time.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self) -> Result<()> {
        match &self.path {
            Some(path) if std::mem::take(&mut self.grown) => atomic::write_json(path, &self.known),
            _ => Ok(()),
        }
    }
}

fn of(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let (mut hasher, mut block) = (Hasher::default(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block).map_err(Error::io("read", path))? {
            0 => return Ok(hasher.hex()),
            read => hasher.update(&block[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_follows_the_content_and_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let (data, kept) = (dir.path().join("data"), dir.path().join("inputs.json"));
        std::fs::write(&data, b"abc").expect("written");
        let mut digests = Digests::open(&kept);
        let abc = digests.of_file(&data).expect("read");
        assert_eq!(abc, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        digests.save().expect("saved");
        let mut again = Digests::open(&kept);
        assert_eq!(again.of_file(&data).expect("known"), abc);
        assert!(!again.grown, "it was read again");
        std::fs::write(&data, b"abcd").expect("written");
        assert_ne!(again.of_file(&data).expect("read"), abc);
    }
}
