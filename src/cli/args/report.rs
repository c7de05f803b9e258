//! `report`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// `report`.
#[derive(Debug, Args, Serialize)]
#[command(after_help = "\
Examples:
  llamaprobe report run
  llamaprobe report run --csv
  llamaprobe report study/report.json --out page.html
  llamaprobe report adapter

Writes run/report.html, one file that needs no network, and with --csv beside it series.csv: every
series of its plots as figure, series, x, mean, sd. The same report.json gives the same bytes. Of a
training, the page has losses and held-out values by run, from trainer_log.jsonl.")]
pub struct ReportArgs {
    /// Directory of a probe, of a comparison or of a training, or a report.json.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Write the series of all plots as CSV.
    #[arg(long)]
    pub csv: bool,
    /// File of the page [default: report.html in the directory].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
