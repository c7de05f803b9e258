//! `report`: the page of a report again, and of `probe` and `compare` when they have ended.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::args::ReportArgs;
use super::{Failure, output};
use crate::formats::json;
use crate::page::{self, Study};
use crate::{Error, Result, compare, probe};

/// The report of a study in its directory.
const REPORT: &str = "report.json";
/// Its page.
const PAGE: &str = "report.html";
/// The series of the page.
const SERIES: &str = "series.csv";

pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let path = if args.run.is_dir() { args.run.join(REPORT) } else { args.run.clone() };
    let report = json::read(&path)?;
    check(&report, &path)?;
    let html = args.out.clone().unwrap_or_else(|| path.with_file_name(PAGE));
    let files = write(&report, &path, &html, args.csv)?;
    files.iter().try_for_each(|file| output::line(file.display()))
}

/// Writes the page of a report that lies in a directory; gives the files.
pub fn write_beside(report: &Value, directory: &Path, csv: bool) -> Result<Vec<PathBuf>> {
    write(report, &directory.join(REPORT), &directory.join(PAGE), csv)
}

fn write(report: &Value, path: &Path, html: &Path, csv: bool) -> Result<Vec<PathBuf>> {
    let page = page::page(report, path, &repeats(report, Study::of(report, path)?))?;
    let series = csv.then(|| html.with_file_name(SERIES));
    page::write(&page, html, series.as_deref())?;
    Ok(std::iter::once(html.to_path_buf()).chain(series).collect())
}

/// The command that repeats a study in its directory. It names no path of an output, so that a report gives the same page
/// wherever it lies.
fn repeats(report: &Value, study: Study) -> String {
    match study {
        Study::Probe => {
            let model = quoted(report["model"].as_str().unwrap_or_default());
            format!("llamaprobe probe --model {model} --plan report.json --out again")
        }
        Study::Compare => "llamaprobe compare --config llamaprobe.yaml --out again".to_owned(),
    }
}

/// A word of a shell's line.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    let is_plain = !word.is_empty() && word.chars().all(plain);
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Reads a report as its study does: what is unknown or missing is an error, and not a page without it.
fn check(report: &Value, path: &Path) -> Result<()> {
    let read = match Study::of(report, path)? {
        Study::Probe => probe::report::Report::deserialize(report).map(drop),
        Study::Compare => compare::report::Report::deserialize(report).map(drop),
    };
    read.map_err(Error::file(path))
}
