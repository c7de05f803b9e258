//! Reports as pages: one HTML file that needs no network, and the series of its plots as CSV.
//!
//! A page is a function of a `report.json`, or of a training's log and results, and of the command that repeats it: the same report
//! gives the same bytes. What a study says stands in `probe`, `compare`, `training` and `sweep`, which make a [`model::Page`] of it; how it looks, in `html`, `svg` and the
//! template and style sheet beside them.

pub mod compare;
mod csv;
mod html;
pub mod model;
pub mod probe;
mod settings;
mod svg;
pub mod sweep;
pub mod training;
mod words;

use std::path::Path;

use serde_json::Value;

pub use csv::{series, table};
pub use html::render;
use model::Page;

use crate::formats::atomic;
use crate::{Error, Result};

/// The studies whose reports can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Study {
    /// [`crate::probe`].
    Probe,
    /// [`crate::compare`].
    Compare,
    /// [`crate::train`], of its log.
    Training,
    /// [`crate::sweep`], of all its cells.
    Sweep,
}

impl Study {
    /// The study that a report is of; `path` is only for the error.
    ///
    /// # Errors
    /// It is of none.
    pub fn of(report: &Value, path: &Path) -> Result<Self> {
        let has = |keys: &[&str]| keys.iter().all(|key| report.get(key).is_some());
        if has(&["summary", "seeds", "settings"]) {
            return Ok(Self::Probe);
        }
        if has(&["rows", "metrics", "plan"]) {
            return Ok(Self::Compare);
        }
        if has(&["sweep", "rows", "missing"]) {
            return Ok(Self::Sweep);
        }
        if training::is_log(report) {
            return Ok(Self::Training);
        }
        let keys = report.as_object().map(|map| map.keys().take(8).cloned().collect::<Vec<_>>().join(", "));
        let found = keys.map_or_else(|| "no object".to_owned(), |keys| format!("the keys {keys}"));
        Err(Error::field(path, "the file", "the report.json of a probe, of a comparison or of a sweep", found))
    }
}

/// The page of a report, the content of the file at `path`; `command` repeats the study, unless the report has its own.
///
/// # Errors
/// It is not the report of a study.
pub fn page(report: &Value, path: &Path, command: &str) -> Result<Page> {
    match Study::of(report, path)? {
        Study::Probe => Ok(probe::page(report, command)),
        Study::Compare => compare::page(report, path, command),
        Study::Training => training::page(report, path, command),
        Study::Sweep => sweep::page(report, path, command),
    }
}

/// Writes a page as HTML, and its series as CSV where a file for them is named.
///
/// # Errors
/// The page cannot be drawn, or a file cannot be written.
pub fn write(page: &Page, html: &Path, csv: Option<&Path>) -> Result<()> {
    atomic::write(html, render(page)?.as_bytes())?;
    csv.map_or(Ok(()), |csv| atomic::write(csv, series(page).as_bytes()))
}
