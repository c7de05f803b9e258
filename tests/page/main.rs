//! The pages of reports: what their words say of planted numbers, and what their files are made of.

mod files;
mod planted;
mod words;

use std::path::Path;

use llamaprobe::page::model::{Answer, Page};
use serde_json::Value;

/// The page of a report.
fn page(report: &Value) -> Page {
    llamaprobe::page::page(report, Path::new("report.json"), "llamaprobe probe --plan report.json").expect("a page")
}

/// The answer to the question with some words.
fn answer<'a>(page: &'a Page, question: &str) -> &'a Answer {
    let found = page.answers.iter().find(|answer| answer.question.contains(question));
    found.unwrap_or_else(|| panic!("no question with {question:?}"))
}
