//! Tables of task data: tab-separated files with a header or without, and text files whose lines belong together. A byte
//! order mark is skipped, and so are blank lines of tables and at the end of files.

use std::path::Path;

use super::lines::{Lines, at, full};
use crate::{Error, Result};

/// A row of a table, and the number of its line.
pub type TableRow<const N: usize> = (usize, [String; N]);

/// Reads columns of a tab-separated file by their names in its first line. Nothing is quoted or escaped, as in GLUE.
///
/// # Errors
/// The file cannot be read, lacks a column, has no rows, or a row has another number of fields than the header.
pub fn tsv<const N: usize>(path: impl AsRef<Path>, columns: [&str; N]) -> Result<Vec<TableRow<N>>> {
    let path = path.as_ref();
    let mut lines = full(path)?;
    let (first, header) = match lines.next() {
        Some(line) => line?,
        None => return Err(Error::field(path, "header", columns.join(" and "), "an empty file")),
    };
    let names: Vec<&str> = header.split('\t').collect();
    let mut indices = [0; N];
    for (index, column) in indices.iter_mut().zip(columns) {
        let found = names.iter().position(|n| *n == column);
        *index = found.ok_or_else(|| Error::field(at(path, first), "header", column, format!("{header:?}")))?;
    }
    fields(path, lines, names.len(), "as in the header", indices)
}

/// Reads columns of a tab-separated file without a header by their numbers, from 0, among `width`.
///
/// # Errors
/// The file cannot be read, has no rows, or a row has another number of fields.
pub fn columns<const N: usize>(path: impl AsRef<Path>, width: usize, indices: [usize; N]) -> Result<Vec<TableRow<N>>> {
    let path = path.as_ref();
    fields(path, full(path)?, width, "columns", indices)
}

fn fields<const N: usize>(
    path: &Path,
    lines: impl Iterator<Item = Result<(usize, String)>>,
    width: usize,
    why: &str,
    indices: [usize; N],
) -> Result<Vec<TableRow<N>>> {
    let row = |line: Result<(usize, String)>| {
        let (number, text) = line?;
        let fields: Vec<&str> = text.split('\t').collect();
        match fields.len() == width {
            true => Ok((number, indices.map(|i| fields[i].to_string()))),
            false => {
                let expected = format!("{width} {why}");
                Err(Error::field(at(path, number), "fields", expected, fields.len().to_string()))
            }
        }
    };
    let rows: Vec<_> = lines.map(row).collect::<Result<_>>()?;
    if rows.is_empty() { Err(Error::field(path, "rows", "at least one", "none")) } else { Ok(rows) }
}

/// Reads two files whose lines belong together, such as a text and its translation.
///
/// # Errors
/// A file cannot be read, is empty, has a blank line between others, or the two have different numbers of lines.
pub fn aligned(a: impl AsRef<Path>, b: impl AsRef<Path>) -> Result<Vec<(String, String)>> {
    let read = |path: &Path| Lines::open(path)?.map(|line| Ok(line?.1)).collect::<Result<Vec<String>>>();
    let filled = |lines: &[String]| lines.iter().rposition(|text| !text.trim().is_empty()).map_or(0, |last| last + 1);
    let (a, b) = (a.as_ref(), b.as_ref());
    let (mut left, mut right) = (read(a)?, read(b)?);
    let count = filled(&left).max(filled(&right));
    for (path, lines) in [(a, &mut left), (b, &mut right)] {
        lines.truncate(count);
        if filled(lines) == 0 {
            return Err(Error::field(path, "lines", "at least one", "an empty file"));
        }
        // Which line of the other file would belong to the next is a guess.
        if let Some(i) = lines.iter().position(|text| text.trim().is_empty()) {
            return Err(Error::field(at(path, i + 1), "line", "a text", "a blank line"));
        }
    }
    if left.len() != right.len() {
        let expected = format!("{}, as in {}", left.len(), a.display());
        return Err(Error::field(b, "lines", expected, right.len().to_string()));
    }
    Ok(left.into_iter().zip(right).collect())
}
