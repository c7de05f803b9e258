//! Cells as commands of this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::inputs::Inputs;
use super::planning::{cell_line, resolved};
use crate::cli::args::{CaptureArgs, Cli, Command, CompareArgs, ProbeArgs, TrainLoraArgs};
use crate::cli::host::{self, Host};
use crate::cli::{Failure, capture, compare, notes, probe, run_command, train_lora};
use crate::formats::atomic;
use crate::formats::memory::available_memory;
use crate::sweep::plan::{Cell, PLAN_FILE, Plan};
use crate::sweep::values::RESULT;
use crate::sweep::work::{Done, Ran, Runner};
use crate::{Error, Result};

/// How much longer than the slowest so far the next cell may take.
const MARGIN: f64 = 1.25;

/// Runs cells here.
pub struct InProcess<'a> {
    plan: &'a Plan,
    /// What the files of a cell have now.
    inputs: Inputs,
    threads: Option<usize>,
    /// Bytes that cells which share passes may take.
    memory: Option<usize>,
    /// When the work is to have ended, if it is to.
    end: Option<Instant>,
    /// The most seconds that a cell has taken.
    slowest: Option<f64>,
}

impl<'a> InProcess<'a> {
    /// Of cells of a plan, on so many threads where their flags do not say, one of so many processes of this machine.
    pub fn new(plan: &'a Plan, inputs: Inputs, (threads, processes): (Option<usize>, usize)) -> Self {
        Self { plan, inputs, threads, memory: memory(processes), end: None, slowest: None }
    }

    /// With so much time from now on.
    pub fn within(self, time: Option<Duration>) -> Self {
        Self { end: time.and_then(|time| Instant::now().checked_add(time)), ..self }
    }

    /// Refuses flags whose files are not what they were when their cell was named by them.
    fn check(&mut self, flags: &BTreeMap<String, Value>) -> Result<()> {
        self.inputs.check(flags, &self.plan.inputs)
    }

    fn line(&self, cell: &Cell, out: &Path) -> Result<Cli> {
        cell_line(Path::new(PLAN_FILE), &self.plan.grid.command, &cell.flags, out, self.threads)
    }

    fn error(&self, failure: Failure) -> Error {
        match failure.in_words_of(&self.plan.grid.command) {
            Failure::Error(error) => error,
            Failure::Usage(error) => Error::argument("flags", "those of the command", error),
            Failure::Closed => Error::Interrupted,
        }
    }

    /// What came of a command with these flags that has printed `results`: its files are checked again, since another content may
    /// have been read than the cell's name stands for.
    fn end(
        &mut self,
        flags: &BTreeMap<String, Value>,
        out: &Path,
        done: Result<(), Failure>,
        results: &str,
    ) -> Result<()> {
        done.map_err(|failure| self.error(failure))?;
        // A report is a file already.
        if ["train-lora", "capture"].contains(&self.plan.grid.command.as_str()) && !results.is_empty() {
            atomic::write(out.join(RESULT), results.as_bytes())?;
        }
        self.check(flags)
    }

    /// Runs one cell's command; gives what it said.
    fn alone(&mut self, cell: &Cell, out: &Path) -> Ran {
        let mut command = self.line(cell, out)?.command;
        let flags = resolved(&command)?;
        self.check(&flags)?;
        if let Command::TrainLora(args) = &mut command {
            // What a process that was killed has left: a part of a log that nobody needs, or a checkpoint.
            atomic::sweep(out)?;
            args.training.checkpoints.resume_from_checkpoint = Some("latest".to_owned());
        }
        let (done, results, said) = heard(|| run_command(command));
        self.end(&flags, out, done, &results).map(|()| said)
    }

    /// Runs commands in the same passes; what is said is of all of them.
    fn together(&mut self, commands: &[Command], outs: &[PathBuf], done: Done<'_>) -> Result<()> {
        let probes: Vec<&ProbeArgs> = commands.iter().filter_map(Command::as_probe).collect();
        let trainings: Vec<&TrainLoraArgs> = commands.iter().filter_map(Command::as_train_lora).collect();
        let since = Instant::now();
        let (ran, _, said) = heard(|| match (&probes[..], &trainings[..]) {
            (probes @ [_, ..], []) => probe::run_together(probes, self.memory),
            ([], trainings @ [_, ..]) => train_lora::run_together(trainings, self.memory),
            _ => unreachable!("sweep: only probes and trainings share passes"),
        });
        ran.map_err(|failure| self.error(failure))?;
        let seconds = since.elapsed().as_secs_f64() / commands.len() as f64;
        for (i, (command, out)) in commands.iter().zip(outs).enumerate() {
            let ran = self.end(&resolved(command)?, out, Ok(()), "").map(|()| said.clone());
            done(i, seconds, ran)?;
        }
        Ok(())
    }

    /// Runs commands one after another on a model that is loaded once. What comes behind one that fails is left to another call,
    /// and another device.
    fn in_turn(&mut self, commands: &[Command], outs: &[PathBuf], done: Done<'_>) -> Result<()> {
        let captures: Vec<&CaptureArgs> = commands.iter().filter_map(Command::as_capture).collect();
        let comparisons: Vec<&CompareArgs> = commands.iter().filter_map(Command::as_compare).collect();
        let (mut since, mut of_model) = (Instant::now(), Vec::new());
        let mut each = |i: usize, work: &mut dyn FnMut() -> Result<(), Failure>| {
            // What was said while the model was loaded each would have said.
            of_model.extend(host::current().map(|host| host.take_notes()).unwrap_or_default());
            let (ran, results, own) = heard(work);
            let ran = self.end(&resolved(&commands[i])?, &outs[i], ran, &results);
            let is_well = ran.is_ok();
            let own = own.into_iter().filter(|note| !of_model.contains(note));
            let said = of_model.iter().cloned().chain(own).collect();
            done(i, since.elapsed().as_secs_f64(), ran.map(|()| said))?;
            since = Instant::now();
            Ok(is_well)
        };
        let (ran, ..) = heard(|| match (&captures[..], &comparisons[..]) {
            (captures @ [_, ..], []) => capture::run_in_turn(captures, &mut each),
            ([], comparisons @ [_, ..]) => compare::run_in_turn(comparisons, &mut each),
            _ => unreachable!("sweep: only captures and comparisons share a model and no passes"),
        });
        ran.map_err(|failure| self.error(failure))
    }
}

/// Bytes that one of so many processes may take: what Slurm gives its task, or an equal part of what is free; none where the
/// system does not say.
fn memory(processes: usize) -> Option<usize> {
    let megabytes = std::env::var("SLURM_MEM_PER_NODE").ok().and_then(|text| text.parse::<usize>().ok());
    megabytes.map(|megabytes| megabytes << 20).or_else(|| Some(available_memory()? / processes.max(1)))
}

/// Runs what would print; gives what it would have printed and said. Whoever hears this thread may stop it.
fn heard<T>(work: impl FnOnce() -> T) -> (T, String, Vec<String>) {
    let interrupt = host::current().map(|host| host.interrupt.clone()).unwrap_or_default();
    let host = Arc::new(Host::stopped_by(interrupt));
    let done = host::heard_by(host.clone(), || {
        notes::begin();
        let done = work();
        notes::release();
        done
    });
    (done, host.take_results(), host.take_notes())
}

impl Runner for InProcess<'_> {
    fn resumes(&self, cells: &[&Cell]) -> bool {
        // A comparison has files of what is done, a training its checkpoints.
        let command = self.plan.grid.command.as_str();
        command == "compare" || command == "train-lora" && cells.len() == 1
    }

    fn run(&mut self, cells: &[&Cell], outs: &[PathBuf], done: Done<'_>) -> Result<()> {
        let mut slowest = self.slowest.unwrap_or(0.0);
        let mut done = |i: usize, seconds: f64, ran: Ran| {
            slowest = seconds.max(slowest);
            done(i, seconds, ran)
        };
        let ran = if let ([cell], [out]) = (cells, outs) {
            let since = Instant::now();
            let ran = self.alone(cell, out);
            done(0, since.elapsed().as_secs_f64(), ran)
        } else {
            let commands = cells.iter().zip(outs).map(|(cell, out)| Ok(self.line(cell, out)?.command));
            let commands: Vec<Command> = commands.collect::<Result<_>>()?;
            commands.iter().try_for_each(|command| self.check(&resolved(command)?))?;
            match self.plan.grid.command.as_str() {
                "compare" | "capture" => self.in_turn(&commands, outs, &mut done),
                _ => self.together(&commands, outs, &mut done),
            }
        };
        self.slowest = Some(slowest).filter(|seconds| *seconds > 0.0);
        ran
    }

    fn has_time(&self, cells: usize) -> bool {
        // The first is tried whatever it takes: nobody knows, and otherwise it never would be.
        let (Some(end), Some(slowest)) = (self.end, self.slowest) else { return true };
        end.saturating_duration_since(Instant::now()).as_secs_f64() > MARGIN * slowest * cells as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::planning;
    use super::*;
    use crate::model::LOADED;
    use crate::sweep::groups::groups;
    use crate::sweep::store::Store;
    use crate::sweep::work::work;

    /// Every file of the cells of a grid in a folder, run in groups of one process or each apart, and how many models were loaded.
    fn ran(dir: &Path, grid: &str, is_apart: bool) -> (BTreeMap<PathBuf, Vec<u8>>, usize) {
        let path = dir.join("grid.yaml");
        atomic::write(&path, grid.replace("{}", &dir.display().to_string()).as_bytes()).expect("written");
        let mut inputs = Inputs::of(dir);
        let plan = planning::plan(&path, &mut inputs).expect("a plan");
        let store = Store::open(dir.join(if is_apart { "apart" } else { "grouped" })).expect("a store");
        let groups = groups(&plan.cells, if is_apart { plan.cells.len() } else { 1 });
        assert_eq!(groups.len(), if is_apart { plan.cells.len() } else { 2 });
        let before = LOADED.get();
        let mut runner = InProcess::new(&plan, inputs, (None, 1));
        assert!(work(&store, &plan.grid.command, &groups, &mut runner, &mut || ()).expect("work"));
        let loaded = LOADED.get() - before;
        let failed = store.state().failed.into_iter().next();
        assert!(failed.is_none(), "{:?}", failed.map(|key| store.failure(&key)));
        let mut files = BTreeMap::new();
        let mut dirs: Vec<PathBuf> = plan.cells.iter().map(|cell| store.cell(&cell.key)).collect();
        while let Some(dir) = dirs.pop() {
            for path in atomic::entries(dir) {
                match path.is_dir() {
                    true => dirs.push(path),
                    false => {
                        drop(files.insert(path.clone(), atomic::read_if_there(&path).expect("read").expect("a file")))
                    }
                }
            }
        }
        let name = |path: PathBuf| path.strip_prefix(store.dir()).expect("inside").to_owned();
        // Paths and times are no results.
        let is_result =
            |path: &PathBuf| !["cell.json", "llamaprobe.yaml", RESULT].iter().any(|name| path.ends_with(name));
        let files = files.into_iter().map(|(path, bytes)| (name(path), bytes)).filter(|(path, _)| is_result(path));
        (files.collect(), loaded)
    }

    #[test]
    fn captures_and_comparisons_of_a_group_load_their_model_once_and_are_as_apart() {
        let captures = "command: capture\nflags: {model: embedded, input: \"{}/texts.jsonl\", device: cpu}\n\
                        grid: {tokens: [last, all], layers: [0, 1]}\n";
        let comparisons = "command: compare\n\
                           flags: {model: embedded, task: events, queries: 2, pool: 8, train_examples: 4, max_steps: 1, seeds: 1, \
                           max_new_tokens: 2, arms: [zero-shot, icl-random, pt], num_virtual_tokens: 2, device: cpu}\n\
                           grid: {demos: [1, 2], r: [2, 4]}\n";
        for grid in [captures, comparisons] {
            let dir = tempfile::tempdir().expect("a folder");
            atomic::write(dir.path().join("texts.jsonl"), b"{\"input_ids\": [5, 6, 7]}\n").expect("written");
            let [(grouped, loads), (apart, loads_apart)] =
                [false, true].map(|is_apart| ran(dir.path(), grid, is_apart));
            assert_eq!((loads, loads_apart), (2, 4), "{grid}");
            assert!(grouped.len() >= 4 && grouped.keys().eq(apart.keys()), "{:?}", grouped.keys());
            for (path, bytes) in &grouped {
                assert!(apart[path] == *bytes, "{}: other bytes than apart", path.display());
            }
        }
    }
}
