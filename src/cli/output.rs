//! What the user sees: results on stdout as tables or JSON, progress and notes on stderr.

use std::io::Write;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{Failure, host};

/// Writes a line of result.
pub fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    match host::current() {
        Some(host) => host.line(&text.to_string()),
        None => writeln!(std::io::stdout().lock(), "{text}")?,
    }
    Ok(())
}

/// Writes a JSON result.
pub fn json(value: &Value) -> Result<(), Failure> {
    line(format_args!("{value:#}"))
}

/// Writes a table whose first column is text and whose others are numbers.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Failure> {
    drawn(header, rows).iter().try_for_each(line)
}

/// Writes such a table to stderr.
pub fn note_table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let lines = drawn(header, rows);
    if let Some(host) = host::current() {
        return host.note(lines.join("\n"));
    }
    for line in lines {
        // If stderr is closed, nobody can be told.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// The lines of a table.
fn drawn(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.lines().map(|row| row.trim_end().to_owned()).collect()
}

/// Writes the head of a table in Markdown, whose first column is text and whose others are numbers, a row at a time.
pub fn markdown_header(header: impl ExactSizeIterator<Item = String>) -> Result<(), Failure> {
    let numbers = header.len() - 1;
    markdown_row(header)?;
    line(format_args!("|---|{}", "---:|".repeat(numbers)))
}

/// Writes a row of a table in Markdown.
pub fn markdown_row(cells: impl Iterator<Item = String>) -> Result<(), Failure> {
    line(format_args!("| {} |", cells.collect::<Vec<_>>().join(" | ")))
}

/// Writes a line to stderr that is neither a result nor a usage error.
pub fn note(text: impl std::fmt::Display) {
    match host::current() {
        Some(host) => host.note(text.to_string()),
        // If stderr is closed, nobody can be told.
        None => drop(writeln!(std::io::stderr(), "llamaprobe: {text}")),
    }
}

/// A number of bytes with a unit.
pub fn bytes(n: usize) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A progress bar on stderr with rate and time left; nothing where stderr is not a terminal.
pub fn progress(total: u64, unit: &str) -> ProgressBar {
    if let Some(host) = host::current() {
        let bar = ProgressBar::hidden();
        bar.set_length(total);
        host.follow(&bar, unit);
        return bar;
    }
    let bar = ProgressBar::new(total);
    let template = format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
