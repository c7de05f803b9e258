//! Logs beside `trainer_log.jsonl`, for the programs that people look at: TensorBoard's event files, and one table.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Result;
use crate::formats::lines::LineFile;
use crate::formats::tfevents::EventFile;

/// Name of the table in the output directory.
pub const CSV_FILE: &str = "trainer_log.csv";
/// Name of the directory of event files in the output directory; of several runs each has a directory in it.
pub const EVENTS_DIR: &str = "runs";
/// Columns of the table, by the fields of the log. A line of a step and one of an evaluation leave the other's empty, a
/// training without a teacher the parts of its objective.
const COLUMNS: [&str; 14] = [
    "run",
    "current_steps",
    "total_steps",
    "loss",
    "eval_loss",
    "eval_accuracy",
    "lr",
    "epoch",
    "grad_norm",
    "total_tokens",
    "tokens_per_sec",
    "ce",
    "activations",
    "logits",
];

/// The folder of a run where there are several: of its adapter, in the output directory and in checkpoints, and of its events.
pub fn run_folder(run: usize) -> String {
    format!("run-{run:03}")
}

/// Which logs are written beside `trainer_log.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportTo {
    /// Event files: tags as those of transformers' Trainer (`train/loss`, `eval/loss`).
    pub tensorboard: bool,
    /// `trainer_log.csv`, the log as a table.
    pub csv: bool,
}

/// What a line of the log says.
pub(super) struct Point<'a> {
    pub run: usize,
    pub step: u64,
    /// By the names of the log's fields.
    pub values: &'a [(&'a str, f64)],
}

/// The open files.
pub(super) struct Reports {
    /// One a run.
    events: Vec<EventFile>,
    csv: Option<LineFile>,
    /// Of the table.
    columns: Vec<String>,
    several: bool,
}

impl Reports {
    /// Opens what is asked for in `dir`, for `runs` runs; what is there of steps after `step` is dropped.
    pub fn open(dir: &Path, runs: usize, step: u64, report_to: ReportTo, metrics: &[String]) -> Result<Self> {
        let several = runs > 1;
        let mut events = Vec::new();
        for run in 0..if report_to.tensorboard { runs } else { 0 } {
            let folder = dir.join(EVENTS_DIR);
            let folder = if several { folder.join(run_folder(run)) } else { folder };
            events.push(EventFile::open(&folder, step, now())?);
        }
        let columns = columns(metrics);
        let csv = report_to.csv.then(|| table(dir, step, &columns.join(","))).transpose()?;
        Ok(Self { events, csv, columns, several })
    }

    /// Writes a line of the log to all of them.
    pub fn append(&mut self, point: &Point<'_>) -> Result<()> {
        if let Some(file) = self.events.get_mut(point.run) {
            // What follows from the step is no curve.
            let shown = point.values.iter().filter(|(name, _)| !["total_steps", "epoch"].contains(name));
            let scalars: Vec<(String, f64)> = shown.map(|&(name, value)| (tag(name), value)).collect();
            file.append(point.step, now(), &scalars)?;
        }
        if let Some(file) = &mut self.csv {
            let cell = |column: &str| match column {
                "run" if self.several => point.run.to_string(),
                "current_steps" => point.step.to_string(),
                column => {
                    let value = point.values.iter().find(|(name, _)| *name == column);
                    value.map_or(String::new(), |(_, value)| value.to_string())
                }
            };
            let cells: Vec<String> = self.columns.iter().map(|column| cell(column)).collect();
            file.append(&cells.join(","))?;
        }
        Ok(())
    }
}

/// The columns of a table with these metrics of evaluations.
fn columns(metrics: &[String]) -> Vec<String> {
    let mut columns: Vec<String> = COLUMNS.map(str::to_owned).to_vec();
    let behind = COLUMNS.iter().position(|column| *column == "eval_accuracy").map_or(0, |at| at + 1);
    columns.splice(behind..behind, metrics.iter().map(|name| format!("eval_{name}")));
    columns
}

/// The table, with its header.
fn table(dir: &Path, step: u64, header: &str) -> Result<LineFile> {
    let mut has_header = false;
    let mut file = LineFile::open(dir.join(CSV_FILE), |line| {
        let of_step = || line.split(',').nth(1).and_then(|cell| cell.parse().ok()).is_some_and(|of: u64| of <= step);
        let retain = if has_header { of_step() } else { line == header };
        has_header |= retain;
        retain
    })?;
    if !has_header {
        file.append(header)?;
    }
    Ok(file)
}

/// The Trainer's name of a field of the log.
fn tag(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(name) => format!("eval/{name}"),
        None if name == "lr" => "train/learning_rate".to_owned(),
        None => format!("train/{name}"),
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
