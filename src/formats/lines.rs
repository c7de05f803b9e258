//! A file of lines that grows by one line at a time, such as a log.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::atomic;
use crate::{Error, Result};

/// A file of lines, open for appending.
pub struct LineFile {
    file: File,
    path: PathBuf,
}

impl LineFile {
    /// Opens `path`, which need not exist. Of the lines that are there, those before the first for which `keep` is
    /// false stay; a line without its end, left by a killed writer, never does.
    ///
    /// # Errors
    /// The file cannot be read, replaced or opened.
    pub fn open(path: impl AsRef<Path>, mut keep: impl FnMut(&str) -> bool) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let text = if path.exists() { atomic::read_to_string(&path)? } else { String::new() };
        let kept = text
            .split_inclusive('\n')
            .take_while(|line| line.strip_suffix('\n').is_some_and(&mut keep))
            .map(str::len)
            .sum::<usize>();
        if kept < text.len() || !path.exists() {
            atomic::write(&path, &text.as_bytes()[..kept])?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        Ok(Self { file, path })
    }

    /// Appends a line in one write, so that a reader beside this program sees whole lines.
    ///
    /// # Errors
    /// The write fails.
    pub fn append(&mut self, line: &str) -> Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(Error::io("append to", &self.path))
    }
}
