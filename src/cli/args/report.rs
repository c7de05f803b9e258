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

Writes run/report.html, one file that needs no network, and with --csv beside it series.csv: every
series of its plots as figure, series, x, mean, sd. The same report.json gives the same bytes.")]
pub struct ReportArgs {
    /// Directory of a probe or of a comparison, or its report.json.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Write the series of all plots as CSV.
    #[arg(long)]
    pub csv: bool,
    /// File of the page [default: report.html beside report.json].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
