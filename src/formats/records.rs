//! Records: rows of data with named columns, as JSONL, a JSON list, CSV or TSV, by the file's extension.
//!
//! The first line of a CSV or TSV file names its columns. CSV is quoted as RFC 4180 has it. TSV is not quoted, as in GLUE,
//! unless the file itself shows that it is: every field that begins with a double quote is a whole quoted field (with
//! quotes doubled inside, and a tab or the line's end behind it), and either every name in the first line is quoted, or each
//! of those fields needs its quotes: it has a quote inside, or a tab or line end without which lines would have different
//! numbers of fields.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::atomic::read_to_string;
use super::json::show;
use super::jsonl;
use super::lines::{at, first};
use crate::{Error, Result};

/// A row's place in its file (`path:line`, or `path[index]` in a list) and its columns; texts in CSV and TSV.
pub type Record = (PathBuf, Map<String, Value>);

/// Reads the records of a file.
///
/// # Errors
/// An extension other than `.jsonl`, `.json`, `.csv` and `.tsv`; a file that cannot be read or has no rows; a row that is no
/// JSON object, or has another number of fields than the first line; two columns of one name; quotes that are not closed.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let records = match extension.as_str() {
        "json" | "jsonl" => jsonl::rows(path)?.map(object).collect::<Result<Vec<_>>>()?,
        "csv" => delimited(path, b',')?,
        "tsv" => delimited(path, b'\t')?,
        _ => return Err(Error::field(path, "extension", ".jsonl, .json, .csv or .tsv", format!("{extension:?}"))),
    };
    match records.is_empty() {
        true => Err(Error::field(path, "rows", "at least one", "none")),
        false => Ok(records),
    }
}

fn object(row: Result<(PathBuf, Value)>) -> Result<Record> {
    match row? {
        (location, Value::Object(map)) => Ok((location, map)),
        (location, other) => Err(Error::field(location, "row", "an object", show(&other))),
    }
}

fn delimited(path: &Path, delimiter: u8) -> Result<Vec<Record>> {
    // Of a file that is no text at all this says what it is.
    if first(path)?.is_none() {
        return Err(Error::field(path, "header", "names of columns", "an empty file"));
    }
    let text = read_to_string(path)?;
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
    let quotes = Quotes::of(text, delimiter);
    let quoting = match (delimiter, quotes.broken) {
        (b'\t', _) => quotes.show_that_tsv_is_quoted() && (quotes.header || quotes.splits == 0 || ragged(text)),
        (_, Some(line)) => {
            let expected = "a quoted field that ends before a comma or the line's end, with quotes doubled inside";
            return Err(Error::field(at(path, line), "quotes", expected, "another"));
        }
        (_, None) => true,
    };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).quoting(quoting).from_reader(text.as_bytes());
    let names = reader.headers().map_err(|e| wrong(path, e))?.clone();
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        return Err(Error::field(at(path, 1), "header", "different names", format!("{twice:?} twice")));
    }
    let record = |row: Result<csv::StringRecord, csv::Error>| {
        let row = row.map_err(|e| wrong(path, e))?;
        let line = row.position().map_or(0, |position| position.line() as usize);
        let columns = names.iter().zip(&row).map(|(name, value)| (name.to_owned(), value.into()));
        Ok((at(path, line), columns.collect()))
    };
    reader.records().map(record).collect()
}

fn wrong(path: &Path, error: csv::Error) -> Error {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, |pos| pos.line() as usize);
            Error::field(at(path, line), "fields", format!("{expected_len} as in the header"), len.to_string())
        }
        _ => Error::file(path)(error),
    }
}

/// How a delimited text uses double quotes.
#[derive(Default)]
struct Quotes {
    /// Number of fields that stand in quotes as a whole.
    quoted: usize,
    /// Those of them that would read the same without.
    needless: usize,
    /// Those of them with a delimiter or a line end inside.
    splits: usize,
    /// Whether every field of the first line is one.
    header: bool,
    /// The line of the first field that begins with a quote and is none.
    broken: Option<usize>,
}

impl Quotes {
    fn of(text: &str, delimiter: u8) -> Self {
        let bytes = text.as_bytes();
        let ends = |at: usize| bytes.get(at).is_none_or(|&c| c == delimiter || c == b'\n' || c == b'\r');
        let mut found = Self { header: true, ..Self::default() };
        let (mut at, mut line) = (0, 1);
        while at < bytes.len() {
            let start = line;
            if bytes[at] == b'"' {
                let Some(end) = quoted(&bytes[at..]) else {
                    return Self { broken: Some(start), ..found };
                };
                let inside = &bytes[at + 1..at + end - 1];
                let splits = inside.iter().any(|&c| c == delimiter || c == b'\n' || c == b'\r');
                line += bytes[at..at + end].iter().filter(|&&c| c == b'\n').count();
                at += end;
                if !ends(at) {
                    return Self { broken: Some(start), ..found };
                }
                found.quoted += 1;
                found.splits += usize::from(splits);
                found.needless += usize::from(!splits && !inside.contains(&b'"'));
            } else {
                at += bytes[at..].iter().take_while(|&&c| c != delimiter && c != b'\n').count();
                found.header &= start > 1;
            }
            line += usize::from(bytes.get(at) == Some(&b'\n') || bytes.get(at..at + 2) == Some(b"\r\n"));
            at += if bytes.get(at..at + 2) == Some(b"\r\n") { 2 } else { 1 };
        }
        found
    }

    fn show_that_tsv_is_quoted(&self) -> bool {
        self.broken.is_none() && self.quoted > 0 && (self.needless == 0 || self.header)
    }
}

/// The length of the quoted field at the beginning of `bytes`; none if it has no end.
fn quoted(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match (bytes.get(at)?, bytes.get(at + 1)) {
            (b'"', Some(b'"')) => at += 2,
            (b'"', _) => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Whether lines have different numbers of tabs.
fn ragged(text: &str) -> bool {
    let mut counts = text.lines().filter(|line| !line.is_empty()).map(|line| line.matches('\t').count());
    let first = counts.next();
    counts.any(|count| Some(count) != first)
}
