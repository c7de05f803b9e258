//! `sweep`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::sweep::shard::Shard;

/// Who runs the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// Processes of this machine.
    Local,
    /// Job arrays of Slurm, which are submitted, followed, and submitted again where they died.
    Slurm,
}

/// Most days of a time limit.
const MOST_DAYS: u64 = 3660;

/// A time limit as sbatch has it: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes,
/// days-hours:minutes:seconds; at most [`MOST_DAYS`].
fn time_limit(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time limit of sbatch, such as 90, 1:30:00 or 2-12:00:00".to_owned();
    // So small that no sum of them overflows.
    let number = |part: &str| part.parse::<u32>().map(u64::from).map_err(|_| wrong());
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, text),
    };
    let parts = rest.split(':').map(number).collect::<Result<Vec<_>, _>>()?;
    let seconds = match (days, &parts[..]) {
        (None, [minutes]) => 60 * minutes,
        (None, [minutes, seconds]) => 60 * minutes + seconds,
        (None, [hours, minutes, seconds]) => 3600 * hours + 60 * minutes + seconds,
        (Some(days), [hours]) => 86_400 * days + 3600 * hours,
        (Some(days), [hours, minutes]) => 86_400 * days + 3600 * hours + 60 * minutes,
        (Some(days), [hours, minutes, seconds]) => 86_400 * days + 3600 * hours + 60 * minutes + seconds,
        _ => return Err(wrong()),
    };
    match seconds {
        0 => Err(wrong()),
        seconds if seconds > 86_400 * MOST_DAYS => Err(format!("expected a time limit of at most {MOST_DAYS} days")),
        seconds => Ok(Duration::from_secs(seconds)),
    }
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
  llamaprobe sweep grid.yaml --out sweep --executor slurm --jobs 100 --time 2:00:00 \\
      --threads 8 --mem 16G
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
    /// Number of processes at once; with slurm most tasks in the queue, running or waiting.
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Number of CPU threads of each process, where the grid says nothing of threads; with slurm the CPUs of a task
    /// [default: an equal part of all; with slurm that of the partition].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Time limit of a task, as sbatch has it: minutes, H:M:S, D-H:M:S. Tasks get as many cells as end in it by what cells
    /// took so far, begin none that would not, and what is left is submitted again [default: that of the partition].
    #[arg(long, value_name = "TIME", value_parser = time_limit, help_heading = "Slurm")]
    #[serde(skip)]
    pub time: Option<Duration>,
    /// Memory of a task, as sbatch has it, such as 16G; cells share passes as far as it goes.
    #[arg(long, value_name = "MEMORY", help_heading = "Slurm")]
    pub mem: Option<String>,
    /// Partition (queue) that jobs go to [default: that of the cluster].
    #[arg(long, help_heading = "Slurm")]
    pub partition: Option<String>,
    /// Further option of sbatch, such as --sbatch=--gres=gpu:1; may be repeated.
    #[arg(long, value_name = "OPTION", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Slurm")]
    pub sbatch: Vec<String>,
    /// Most tasks that are submitted in a minute [default: 60].
    #[arg(long, value_name = "TASKS", help_heading = "Slurm")]
    pub jobs_per_minute: Option<usize>,
    /// Seconds between two looks at the queue [default: 10].
    #[arg(long, value_name = "SECONDS", help_heading = "Slurm")]
    pub poll: Option<f64>,
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
    /// Digest of the plan whose cells to work on; none is the newest.
    #[arg(long, value_name = "DIGEST")]
    pub plan: Option<String>,
    /// Part of the sweep.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Number of processes that work beside each other, this one included.
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
    /// Number of CPU threads, where the grid says nothing of threads.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Number of an array of Slurm, of which this is the task of --task.
    #[arg(long, requires = "task")]
    pub array: Option<u64>,
    /// Index of the task, from 1.
    #[arg(long, requires = "array")]
    pub task: Option<usize>,
    /// Begin no cell that would not end within so many seconds.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// End when stdin does.
    #[arg(long)]
    pub tethered: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_are_those_of_sbatch() {
        for (text, seconds) in [
            ("90", 5400),
            ("1:30", 90),
            ("1:30:00", 5400),
            ("2-12", 216_000),
            ("1-0:30", 88_200),
            ("1-02:03:04", 93_784),
        ] {
            assert_eq!(time_limit(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        let endless = ["18446744073709551615", "4294967295", "4294967295:0:0", "4294967295-0", "3661-0"];
        for wrong in ["", "0", "x", "1:2:3:4", "1-", "-5", "1.5"].into_iter().chain(endless) {
            assert!(time_limit(wrong).is_err(), "{wrong}");
        }
    }
}
