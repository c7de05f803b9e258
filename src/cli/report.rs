//! `report`: the page of a report again, of `probe` and `compare` when they have ended, and of a training from its log.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::args::ReportArgs;
use super::resolve::CONFIG_FILE;
use super::training_results::RESULTS_FILE;
use super::{Failure, output};
use crate::formats::lines::at;
use crate::formats::{atomic, json};
use crate::page::model::Page;
use crate::page::{self, Study};
use crate::train::log::LOG_FILE;
use crate::{Error, Result, compare, probe, sweep};

/// The report of a study in its directory.
pub const REPORT: &str = "report.json";
/// Its page.
pub const PAGE: &str = "report.html";
/// The series of the page.
const SERIES: &str = "series.csv";

pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let (path, report) = read(&args.run)?;
    check(&report, &path)?;
    let html = args.out.clone().unwrap_or_else(|| path.with_file_name(PAGE));
    let files = write(&report, &path, &html, args.csv)?;
    files.iter().try_for_each(|file| output::line(file.display()))
}

/// What there is to show of a run's directory or file, and where it was found: a report, or a training's log and results.
fn read(run: &Path) -> Result<(PathBuf, Value)> {
    let path = if run.is_dir() { run.join(REPORT) } else { run.to_path_buf() };
    let log = run.join(LOG_FILE);
    if path.exists() || !log.exists() {
        let report = json::read(&path)?;
        return Ok((path, report));
    }
    let text = atomic::read_if_there(&log)?.unwrap_or_default();
    let text = String::from_utf8(text).map_err(Error::file(&log))?;
    let lines = text.lines().enumerate().map(|(i, line)| json::parse(at(&log, i + 1), line));
    let lines: Vec<Value> = lines.collect::<Result<_>>()?;
    let results = run.join(RESULTS_FILE);
    let results = results.exists().then(|| json::read(&results)).transpose()?;
    let config = atomic::read_if_there(run.join(CONFIG_FILE))?.unwrap_or_default();
    let head = String::from_utf8_lossy(&config);
    let command =
        ["train-prompt", "train-lora"].into_iter().find(|name| head.lines().next().is_some_and(|l| l.ends_with(name)));
    Ok((log, json!({ "log": lines, "results": results, "command": command.unwrap_or("train-lora") })))
}

/// Writes the page of a report that lies in a directory; gives the files.
pub fn write_beside(report: &Value, directory: &Path, csv: bool) -> Result<Vec<PathBuf>> {
    write(report, &directory.join(REPORT), &directory.join(PAGE), csv)
}

fn write(report: &Value, path: &Path, html: &Path, csv: bool) -> Result<Vec<PathBuf>> {
    let page = page(report, path)?;
    let series = csv.then(|| html.with_file_name(SERIES));
    page::write(&page, html, series.as_deref())?;
    Ok(std::iter::once(html.to_path_buf()).chain(series).collect())
}

/// The page of a report that is the file `path`.
pub fn page(report: &Value, path: &Path) -> Result<Page> {
    page::page(report, path, &repeats(report, Study::of(report, path)?))
}

/// The page of a run's directory or file.
#[cfg(feature = "python")]
pub fn page_of(run: &Path) -> Result<Page> {
    let (path, report) = read(run)?;
    check(&report, &path)?;
    page(&report, &path)
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
        Study::Sweep => "llamaprobe sweep grid.yaml --out again".to_owned(),
        Study::Training => {
            let command = report["command"].as_str().unwrap_or_default();
            format!("llamaprobe {command} --config llamaprobe.yaml --out again")
        }
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
        Study::Sweep => sweep::merge::Merged::deserialize(report).map(drop),
        // Read as a whole where its page is made.
        Study::Training => Ok(()),
    };
    read.map_err(Error::file(path))
}
