//! `sweep`: many runs of a command as cells of a grid, by processes that may be killed at any moment.

mod inputs;
mod planning;
mod runner;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use self::inputs::Inputs;
use self::runner::InProcess;
use super::args::{Executor, MergeSweepArgs, StatusArgs, SweepAction, SweepArgs, WorkerArgs};
use super::{Failure, device, host, output, report};
use crate::formats::atomic;
use crate::page;
use crate::sweep::executor::local;
use crate::sweep::executor::slurm::{self, SlurmSettings, Submission};
use crate::sweep::grid::MOST_CELLS;
use crate::sweep::groups::groups;
use crate::sweep::merge::Merged;
use crate::sweep::plan::{Cell, Plan, words};
use crate::sweep::shard::Shard;
use crate::sweep::store::{State, Store};
use crate::sweep::work::work;
use crate::{Error, Result};

/// The grid, in the directory of a sweep, as the page's command reads it.
const GRID: &str = "grid.yaml";
/// The table of all cells.
const TABLE: &str = "table.csv";
/// Seconds between two looks at the queue, and tasks in a minute, where nobody says.
const POLL: f64 = 10.0;
const JOBS_PER_MINUTE: usize = 60;
/// Most seconds between two looks at the queue.
const LONGEST_POLL: f64 = 86_400.0;

pub fn run(args: &SweepArgs) -> Result<(), Failure> {
    match &args.action {
        None => sweep(args),
        Some(SweepAction::Merge(args)) => merge(args),
        Some(SweepAction::Status(args)) => status(args),
        Some(SweepAction::Worker(args)) => worker(args),
    }
}

/// The groups of a shard, on which so many processes work. Which cells it has is the same for any number of them, since those of
/// another shard may be others.
fn groups_of(plan: &Plan, shard: Shard, processes: usize) -> Vec<Vec<&Cell>> {
    let all = groups(&plan.cells, shard.count).into_iter().enumerate();
    groups(all.filter(|(i, _)| shard.has(*i)).flat_map(|(_, group)| group), processes)
}

fn sweep(args: &SweepArgs) -> Result<(), Failure> {
    let (Some(grid), Some(out)) = (&args.grid, &args.out) else { unreachable!("clap requires both") };
    check(args)?;
    let mut inputs = Inputs::of(out);
    let plan = planning::plan(grid, &mut inputs)?;
    let store = Store::open(out)?;
    inputs.save()?;
    if plan.save(out)? {
        // Of another plan nothing may be read beside this one.
        merged_files(&store).iter().try_for_each(atomic::remove)?;
    }
    let done = store.state().done;
    plan.cells.iter().filter(|cell| done.contains(&cell.key)).try_for_each(|cell| store.check(&cell.key))?;
    let yaml = serde_norway::to_string(&plan.grid).map_err(Error::file(out.join(GRID)))?;
    atomic::write(out.join(GRID), yaml.as_bytes())?;
    let shard = args.shard.unwrap_or(Shard::WHOLE);
    let groups = groups_of(&plan, shard, args.jobs);
    let cells: Vec<Cell> = groups.iter().flatten().map(|cell| (*cell).clone()).collect();
    store.retry(&cells)?;
    let bar = output::progress(cells.len() as u64, "cells");
    let settled = |state: &State| cells.iter().filter(|cell| state.is_settled(&cell.key)).count() as u64;
    let mut progress = |state: &State| {
        bar.set_position(settled(state));
        host::current().map_or(Ok(()), |host| host.interrupt.check())
    };
    let mut say = |what| bar.suspend(|| output::note(what));
    match (args.executor, args.jobs) {
        (Executor::Slurm, _) => {
            let settings = slurm_settings(args, &plan);
            slurm::run(&store, &cells, &settings, &program()?, &mut say, &mut progress)?;
        }
        (Executor::Local, 1) => {
            bar.set_position(settled(&store.state()));
            let mut runner = InProcess::new(&plan, inputs, (args.threads, 1));
            work(&store, &plan.grid.command, &groups, &mut runner, &mut || bar.inc(1))?;
        }
        (Executor::Local, jobs) => {
            let threads = args.threads.unwrap_or((rayon::current_num_threads() / jobs).max(1));
            let program = program()?;
            let digest = plan.digest();
            let start = || worker_command(&program, (out, &digest), shard, (jobs, threads));
            local::run(&store, &cells, jobs, start, &mut say, &mut progress)?;
        }
    }
    bar.finish_and_clear();
    finish(args, &plan, &store, &cells)
}

/// Refuses flags out of their domain, and flags of Slurm without it.
fn check(args: &SweepArgs) -> Result<()> {
    // More than there are cells are as many as there are.
    for (flag, value) in [("--jobs", Some(args.jobs)), ("--jobs-per-minute", args.jobs_per_minute)] {
        if let Some(value) = value.filter(|value| !(1..=MOST_CELLS).contains(value)) {
            return Err(Error::argument(flag, format!("from 1 to {MOST_CELLS}"), value));
        }
    }
    device::check_threads(args.threads)?;
    if let Some(poll) = args.poll.filter(|poll| !(0.0..=LONGEST_POLL).contains(poll)) {
        return Err(Error::argument("--poll", format!("seconds from 0 to {LONGEST_POLL}"), poll));
    }
    let slurms = [
        ("--time", args.time.is_some()),
        ("--mem", args.mem.is_some()),
        ("--partition", args.partition.is_some()),
        ("--sbatch", !args.sbatch.is_empty()),
        ("--jobs-per-minute", args.jobs_per_minute.is_some()),
        ("--poll", args.poll.is_some()),
    ];
    match (args.executor, slurms.iter().find(|(_, given)| *given)) {
        (Executor::Local, Some((flag, _))) => Err(Error::argument(*flag, "--executor slurm beside it", "local")),
        (Executor::Slurm, _) if args.shard.is_some() => {
            Err(Error::argument("--shard", "none beside --executor slurm, which parts the cells itself", "one"))
        }
        _ => Ok(()),
    }
}

fn slurm_settings(args: &SweepArgs, plan: &Plan) -> SlurmSettings {
    let option = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("--{name}={value}"));
    let own = [option("mem", &args.mem), option("partition", &args.partition)].into_iter().flatten();
    SlurmSettings {
        plan: plan.digest(),
        jobs: args.jobs,
        jobs_per_minute: args.jobs_per_minute.unwrap_or(JOBS_PER_MINUTE),
        time: args.time,
        threads: args.threads,
        options: own.chain(args.sbatch.iter().cloned()).collect(),
        poll: Duration::from_secs_f64(args.poll.unwrap_or(POLL)),
    }
}

/// This program, as it is started again.
fn program() -> Result<Vec<OsString>> {
    if let Some(python) = host::interpreter() {
        return Ok(vec![python.into(), "-m".into(), "llamaprobe".into()]);
    }
    let exe = std::env::current_exe().map_err(Error::io("find", "the program itself"))?;
    Ok(vec![exe.into_os_string()])
}

fn worker_command(
    program: &[OsString],
    (dir, plan): (&Path, &str),
    shard: Shard,
    (processes, threads): (usize, usize),
) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).args(["sweep", "worker", "--tethered"]).arg(format!("--plan={plan}"));
    command.arg(format!("--shard={shard}")).arg(format!("--processes={processes}")).arg(format!("--threads={threads}"));
    command.arg("--").arg(dir);
    command
}

fn worker(args: &WorkerArgs) -> Result<(), Failure> {
    if args.tethered {
        end_with_stdin();
    }
    let plan = match &args.plan {
        Some(digest) => Plan::of_digest(&args.dir, digest)?,
        None => Plan::read(&args.dir)?,
    };
    let store = Store::open(&args.dir)?;
    let groups = match (args.array, args.task) {
        (Some(array), Some(task)) => {
            let chunks = Submission::read(&store, array)?.chunks;
            let own = task.checked_sub(1).and_then(|i| chunks.get(i));
            let own = own.ok_or_else(|| Error::argument("--task", format!("from 1 to {}", chunks.len()), task))?;
            let own: HashSet<&str> = own.iter().map(String::as_str).collect();
            groups(plan.cells.iter().filter(|cell| own.contains(cell.key.as_str())), 1)
        }
        _ => groups_of(&plan, args.shard.unwrap_or(Shard::WHOLE), args.processes),
    };
    let runner = InProcess::new(&plan, Inputs::of(&args.dir), (args.threads, args.processes));
    let mut runner = runner.within(args.seconds.map(Duration::from_secs));
    work(&store, &plan.grid.command, &groups, &mut runner, &mut || ())?;
    Ok(())
}

/// Ends this process at once when whoever started it is no more; nothing is lost, as when it is killed.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(1);
    });
}

/// Merges where all cells of the sweep are done, and says how those of this call ended.
fn finish(args: &SweepArgs, plan: &Plan, store: &Store, cells: &[Cell]) -> Result<(), Failure> {
    let state = store.state();
    let of = |state: &State, cells: &[Cell]| cells.iter().filter(|cell| state.done.contains(&cell.key)).count();
    let failed: Vec<&Cell> = cells.iter().filter(|cell| state.failed.contains(&cell.key)).collect();
    if let Some(first) = failed.first() {
        let error = store.failure(&first.key)?.error;
        let found =
            format!("{} of {} failed, the first ({}): {error}", failed.len(), cells.len(), words(&first.levels));
        return Err(Error::argument("cells", "a result of each", found).into());
    }
    let all = of(&state, &plan.cells);
    let is_newest = Plan::read(store.dir())? == *plan;
    if !is_newest {
        output::note(format_args!(
            "{}: another grid was begun there, whose tables these are not",
            store.dir().display()
        ));
    }
    let files = if is_newest && all == plan.cells.len() { write_merged(plan, store)? } else { Vec::new() };
    if args.json {
        return output::json(&json!({
            "cells": plan.cells.len(),
            "done": all,
            "out": store.dir(),
            "report": files.iter().find(|file| file.ends_with(report::REPORT)),
        }));
    }
    files.iter().try_for_each(|file| output::line(file.display()))?;
    output::line(format_args!("{}: {all} of {} cells are done", store.dir().display(), plan.cells.len()))
}

/// The paths of the merged files: the table, the report and its page.
fn merged_files(store: &Store) -> [PathBuf; 3] {
    [TABLE, report::REPORT, report::PAGE].map(|name| store.dir().join(name))
}

/// Writes the merged files; gives their paths.
fn write_merged(plan: &Plan, store: &Store) -> Result<Vec<PathBuf>> {
    let merged = Merged::of(plan, store)?;
    let table = merged.table();
    let [csv, json, html] = merged_files(store);
    atomic::write(&csv, page::table(std::iter::once(&table.header).chain(&table.rows)).as_bytes())?;
    atomic::write_json(&json, &merged)?;
    let value = serde_json::to_value(&merged).map_err(Error::file(&json))?;
    page::write(&report::page(&value, &json)?, &html, None)?;
    Ok(vec![csv, json, html])
}

fn merge(args: &MergeSweepArgs) -> Result<(), Failure> {
    let plan = Plan::read(&args.dir)?;
    let store = Store::open(&args.dir)?;
    let state = store.state();
    let missing = plan.cells.iter().filter(|cell| !state.done.contains(&cell.key)).count();
    if missing > 0 && !args.partial {
        let found = format!("{missing} of {} without one (--partial merges the others)", plan.cells.len());
        return Err(Error::argument("cells", "a result of each", found).into());
    }
    if missing == plan.cells.len() {
        return Err(Error::argument("cells", "a result of one at least", "none").into());
    }
    if missing > 0 {
        output::note(format_args!("{missing} of {} cells have no result and are not in the table", plan.cells.len()));
    }
    write_merged(&plan, &store)?.iter().try_for_each(|file| output::line(file.display()))
}

fn status(args: &StatusArgs) -> Result<(), Failure> {
    let plan = Plan::read(&args.dir)?;
    let store = Store::open(&args.dir)?;
    let state = store.state();
    let (mut done, mut failed, mut running) = (0, Vec::new(), 0);
    for cell in &plan.cells {
        match (state.done.contains(&cell.key), state.failed.contains(&cell.key)) {
            (true, _) => match store.check(&cell.key) {
                Ok(()) => done += 1,
                Err(error) => failed.push((cell, error.to_string())),
            },
            (_, true) => failed.push((cell, store.failure(&cell.key)?.error)),
            _ => running += usize::from(store.is_running(&cell.key)?),
        }
    }
    let waiting = plan.cells.len() - done - failed.len() - running;
    if args.json {
        let error = |(cell, error): &(&Cell, String)| json!({ "cell": cell.key, "error": error });
        let (errors, cells) = (failed.iter().map(error).collect::<Vec<_>>(), plan.cells.len());
        return output::json(
            &json!({ "cells": cells, "done": done, "running": running, "waiting": waiting, "failed": errors }),
        );
    }
    let rows = [("done", done), ("running", running), ("waiting", waiting), ("failed", failed.len())];
    output::table(&[&plan.grid.command, "cells"], rows.map(|(what, n)| vec![what.to_owned(), n.to_string()]))?;
    for (cell, error) in failed {
        output::line(format_args!("{} ({}): {error}", cell.key, words(&cell.levels)))?;
    }
    Ok(())
}
