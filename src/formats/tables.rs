//! Tables of task data: tab-separated files with a header, and text files whose lines belong together.

use std::path::Path;

use super::lines::{Lines, at};
use crate::{Error, Result};

/// Reads columns of a tab-separated file by their names in its first line. Nothing is quoted or escaped, as in GLUE.
///
/// # Errors
/// The file cannot be read, lacks a column, has no rows, or a row has another number of fields than the header.
pub fn tsv<const N: usize>(path: impl AsRef<Path>, columns: [&str; N]) -> Result<Vec<[String; N]>> {
    let path = path.as_ref();
    let mut lines = Lines::open(path)?;
    let header = match lines.next() {
        Some(line) => line?.1,
        None => return Err(Error::field(path, "header", columns.join(" and "), "an empty file")),
    };
    let names: Vec<&str> = header.split('\t').collect();
    let mut indices = [0; N];
    for (index, column) in indices.iter_mut().zip(columns) {
        let found = names.iter().position(|n| *n == column);
        *index = found.ok_or_else(|| Error::field(at(path, 1), "header", column, format!("{header:?}")))?;
    }
    let mut rows = Vec::new();
    for line in lines {
        let (number, text) = line?;
        let fields: Vec<&str> = text.split('\t').collect();
        if fields.len() != names.len() {
            let expected = format!("{} as in the header", names.len());
            return Err(Error::field(at(path, number), "fields", expected, fields.len().to_string()));
        }
        rows.push(indices.map(|i| fields[i].to_string()));
    }
    if rows.is_empty() {
        return Err(Error::field(path, "rows", "at least one", "none"));
    }
    Ok(rows)
}

/// Reads two files whose lines belong together, such as a text and its translation.
///
/// # Errors
/// A file cannot be read, is empty, has a blank line, or the two have different numbers of lines.
pub fn aligned(a: impl AsRef<Path>, b: impl AsRef<Path>) -> Result<Vec<(String, String)>> {
    let read = |path: &Path| {
        let line = |line: Result<(usize, String)>| match line? {
            (number, text) if text.trim().is_empty() => {
                Err(Error::field(at(path, number), "line", "a text", "a blank line"))
            }
            (_, text) => Ok(text),
        };
        let lines: Vec<String> = Lines::open(path)?.map(line).collect::<Result<_>>()?;
        if lines.is_empty() { Err(Error::field(path, "lines", "at least one", "an empty file")) } else { Ok(lines) }
    };
    let (a, b) = (a.as_ref(), b.as_ref());
    let (left, right) = (read(a)?, read(b)?);
    if left.len() != right.len() {
        let expected = format!("{}, as in {}", left.len(), a.display());
        return Err(Error::field(b, "lines", expected, right.len().to_string()));
    }
    Ok(left.into_iter().zip(right).collect())
}
