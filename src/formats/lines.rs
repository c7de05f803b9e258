//! Text files by lines: read with numbers from 1, and grown by one line at a time, such as a log.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use super::atomic;
use crate::{Error, Result};

/// What some editors put before a file's text; it is skipped.
const BYTE_ORDER_MARK: &[u8] = "\u{FEFF}".as_bytes();

/// How files begin that are no text in UTF-8, and what they are.
const OTHERS: [(&[u8], &str); 7] = [
    (b"PAR1", "Parquet (datasets.Dataset.from_parquet(FILE).to_json(OUT) makes rows of it)"),
    (b"ARROW1", "Arrow (datasets.Dataset.from_file(FILE).to_json(OUT) makes rows of it)"),
    (b"\x1f\x8b", "gzip (unpack it)"),
    (b"\x28\xb5\x2f\xfd", "zstd (unpack it)"),
    (b"PK\x03\x04", "a ZIP archive (unpack it)"),
    (b"\xff\xfe", "UTF-16 (save it as UTF-8)"),
    (b"\xfe\xff", "UTF-16 (save it as UTF-8)"),
];

/// The lines of a UTF-8 file without their ends (`\n` or `\r\n`), read one at a time.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        if path.is_dir() {
            return Err(Error::field(&path, "type", "a text file", "a directory"));
        }
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let first = reader.fill_buf().map_err(Error::io("read", &path))?;
        if let Some((_, found)) = OTHERS.iter().find(|(magic, _)| first.starts_with(magic)) {
            return Err(Error::field(&path, "type", "a text file in UTF-8", *found));
        }
        Ok(Self { path, reader, number: 0 })
    }

    fn read(&mut self) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        if self.reader.read_until(b'\n', &mut bytes).map_err(Error::io("read", &self.path))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.number == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        String::from_utf8(bytes).map(Some).map_err(Error::file(at(&self.path, self.number)))
    }
}

impl Iterator for Lines {
    /// The line's number and text.
    type Item = Result<(usize, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.read().transpose()?;
        Some(line.map(|text| (self.number, text)))
    }
}

/// The lines of a file that are not blank, with their numbers.
///
/// # Errors
/// It cannot be opened.
pub fn full(path: &Path) -> Result<impl Iterator<Item = Result<(usize, String)>> + use<>> {
    Ok(Lines::open(path)?.filter(|line| !line.as_ref().is_ok_and(|(_, text)| text.trim().is_empty())))
}

/// The first line of a file that is not blank; none if there is none.
///
/// # Errors
/// The file cannot be read.
pub fn first(path: &Path) -> Result<Option<String>> {
    Ok(full(path)?.next().transpose()?.map(|(_, text)| text))
}

/// `path:line`, as errors name a location.
pub fn at(path: &Path, line: usize) -> PathBuf {
    PathBuf::from(format!("{}:{line}", path.display()))
}

/// A file of lines, open for appending.
pub struct LineFile {
    file: File,
    path: PathBuf,
}

impl LineFile {
    /// Opens `path`, which need not exist. Of the lines that are there, those before the first for which `retain` is
    /// false stay; a line without its end, left by a killed writer, never does.
    ///
    /// # Errors
    /// The file cannot be read, replaced or opened.
    pub fn open(path: impl AsRef<Path>, mut retain: impl FnMut(&str) -> bool) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let text = if path.exists() { atomic::read_to_string(&path)? } else { String::new() };
        let retained = text
            .split_inclusive('\n')
            .take_while(|line| line.strip_suffix('\n').is_some_and(&mut retain))
            .map(str::len)
            .sum::<usize>();
        if retained < text.len() || !path.exists() {
            atomic::write(&path, &text.as_bytes()[..retained])?;
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
