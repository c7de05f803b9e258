//! `sweep`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::sweep::shard::Shard;

/// Who runs the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// Processes of this machine.
    Local,
}

/// `sweep`.
#[derive(Debug, Args, Serialize)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  llamaprobe sweep grid.yaml --out sweep
  llamaprobe sweep grid.yaml --out sweep --jobs 4
  llamaprobe sweep grid.yaml --out sweep --shard 2/8
  llamaprobe sweep status sweep
  llamaprobe sweep merge sweep

grid.yaml names a command (probe, compare, train-lora, capture), its flags, and lists of values of
flags, all combinations of which are cells; factors of probe --vary are flags too:
  command: probe
  flags: {model: embedded, task: events, queries: 40}
  grid: {demos: [2, 4, 8], labels: [gold, flipped], r: [4, 8], seed: [0, 1]}

A cell is named by a digest of its flags and of what is in its files: the same command again does
what is left, in any number of processes, on any number of machines that share DIR, whichever of
them were killed; another grid in DIR uses the cells that both have. `sweep merge` writes table.csv,
report.json and report.html of all cells, as a sweep does itself when all are done."
)]
pub struct SweepArgs {
    #[command(subcommand)]
    #[serde(skip)]
    pub action: Option<SweepAction>,
    /// File of the grid: {command: probe, flags: {flag: value}, grid: {flag: [values]}}.
    #[arg(value_name = "GRID.yaml", required = true)]
    pub grid: Option<PathBuf>,
    /// Output directory, or that of an interrupted sweep.
    #[arg(long, value_name = "DIR", alias = "output-dir", required = true)]
    pub out: Option<PathBuf>,
    /// Run part I of N alone, I from 1: for launchers such as GNU parallel or job arrays, a part a process.
    #[arg(long, value_name = "I/N")]
    #[serde(skip)]
    pub shard: Option<Shard>,
    /// Who runs the cells.
    #[arg(long, value_enum, default_value = "local")]
    pub executor: Executor,
    /// Number of processes at once.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Number of CPU threads of each process, where the grid says nothing of threads [default: an equal part of all].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print how it ended as JSON on stdout.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
    /// YAML file with these flags as keys; the command line takes precedence.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// What else is done with a sweep's directory.
#[derive(Debug, Subcommand)]
pub enum SweepAction {
    /// Write table.csv, report.json and report.html of all cells.
    Merge(MergeSweepArgs),
    /// Show how many cells are done, at work, waiting and failed.
    Status(StatusArgs),
    /// Work on cells that nobody is at, until all have their end.
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// `sweep merge`.
#[derive(Debug, Args)]
pub struct MergeSweepArgs {
    /// Directory of the sweep.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Merge what is there, where cells have no result.
    #[arg(long)]
    pub partial: bool,
}

/// `sweep status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Directory of the sweep.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Print as JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `sweep worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Directory of the sweep.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Part of the sweep.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Number of processes that work beside each other, this one included.
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
    /// Number of CPU threads, where the grid says nothing of threads.
    #[arg(long)]
    pub threads: Option<usize>,
    /// End when stdin does.
    #[arg(long)]
    pub tethered: bool,
}
