//! `task` and `export-embedded`: what the built-in task asks, what a model makes of it, and the embedded model as files.

use super::args::{ExportArgs, TaskArgs, TaskName};
use super::device::{Job, dispatch};
use super::resolve::{self, Found};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::embedded;
use crate::formats::tokenizer::Tokenizer;
use crate::model::Model;
use crate::probe::arm::Arm;
use crate::probe::plan::Plan;
use crate::probe::statistics::MeanSd;
use crate::probe::{self, ProbeSettings};
use crate::task::synthetic::evaluate::{Set, accuracies};
use crate::task::synthetic::{self, Curriculum, Episode, PROBED_LABELS};
use crate::task::{Example, Task};
use crate::{Error, Result};

/// Lines of an episode that is shown.
const LINES: usize = 9;
/// Numbers of demonstrations of the evaluation.
const SHOWN: [usize; 7] = [0, 1, 2, 4, 8, 10, 16];
/// Most rows of a pass of the evaluation.
const ROWS: usize = 4096;

pub fn run(args: &TaskArgs) -> Result<(), Failure> {
    let TaskName::Synthetic = args.task;
    if args.evaluate {
        let found = resolve::model(&args.model, &args.common)?;
        let (tokenizer, dtype) = (found.tokenizer()?, found.dtype);
        return dispatch(&args.common, dtype, Evaluate { args, found, tokenizer });
    }
    for episode in episodes(args)? {
        output::line(format_args!("{}\n", episode.text()))?;
    }
    Ok(())
}

fn episodes(args: &TaskArgs) -> Result<Vec<Episode>> {
    if args.set == "train" {
        return Ok(synthetic::training(&Curriculum::default(), args.seed, 1, 2, args.show));
    }
    let names = || Set::ALL.map(Set::name).join(", ");
    let set = Set::ALL.into_iter().find(|set| set.name() == args.set);
    let set = set.ok_or_else(|| Error::unsupported("--set", &args.set, format!("train, {}", names())))?;
    Ok(set.episodes(args.seed, args.show, LINES))
}

/// Demonstrations of the probed task, changed.
struct Factor {
    name: &'static str,
    demonstrations: usize,
    pool: Vec<Example>,
}

/// What is varied about the demonstrations; the queries stay.
fn factors(pool: &[Example]) -> Vec<Factor> {
    let [first, second] = PROBED_LABELS;
    let swapped =
        |e: &Example| Example { output: if e.output == first { second } else { first }.to_owned(), ..e.clone() };
    // Every other demonstration of each class is wrong, so that labels say nothing.
    let mixed = |(i, e): (usize, &Example)| if i % 4 < 2 { e.clone() } else { swapped(e) };
    let factor = |name, demonstrations, pool| Factor { name, demonstrations, pool };
    vec![
        factor("10 demonstrations", 10, pool.to_vec()),
        factor("4 demonstrations", 4, pool.to_vec()),
        factor("2 demonstrations", 2, pool.to_vec()),
        factor("half of the labels wrong", 10, pool.iter().enumerate().map(mixed).collect()),
        factor("all labels wrong", 10, pool.iter().map(swapped).collect()),
        factor("of another task", 10, synthetic::examples(1, ["animal", "tool"], PROBED_LABELS, pool.len())),
    ]
}

struct Evaluate<'a> {
    args: &'a TaskArgs,
    found: Found,
    tokenizer: Tokenizer,
}

impl Job for Evaluate<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, found, tokenizer } = self;
        let mut model = Model::new(&mut backend, &found.config, &found.checkpoint)?;
        output::line(row(std::iter::once("demonstrations".to_owned()).chain(SHOWN.map(|k| k.to_string()))))?;
        output::line(format_args!("|---|{}", "---:|".repeat(SHOWN.len())))?;
        let lines = SHOWN.iter().max().copied().unwrap_or(0) + 1;
        for set in Set::ALL {
            let episodes = set.episodes(args.seed, args.episodes, lines);
            let found = accuracies(&mut backend, &model, &tokenizer, &episodes, ROWS)?;
            let values = SHOWN.map(|k| format!("{:.3}", found[k]));
            output::line(row(std::iter::once(set.name().to_owned()).chain(values)))?;
        }
        self::compare(&mut backend, &mut model, &tokenizer, &args.model)
    }
}

/// The experiment with each of the changed demonstrations.
fn compare<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    tokenizer: &Tokenizer,
    name: &str,
) -> Result<(), Failure> {
    let header = ["", "anchor", "ICL", "IT", "ICL-IT", "anchor-ICL", "anchor-IT", "update", "Gaussian", "shuffled"];
    output::line(format_args!("\n{}", row(header.map(str::to_owned))))?;
    output::line(format_args!("|---|{}", "---:|".repeat(header.len() - 1)))?;
    let (pool, queries) = synthetic::events();
    for factor in factors(&pool) {
        let settings = ProbeSettings { demonstrations: factor.demonstrations, ..ProbeSettings::new(Task::Events) };
        let plan = Plan::new(tokenizer, Task::Events, &factor.pool, &queries, &settings)?;
        let report = probe::run(backend, model, name, &plan, &settings, &mut |_| ())?.report;
        let accuracy = |arm| report.summary.arm(arm).expect("every probe has it").accuracy;
        let last = report.summary.layers.last().expect("a model has layers");
        let pair = |x, y| last.pair(x, y).expect("every pair is compared");
        let icl_it = pair(Arm::Icl, Arm::Lora);
        let updates = icl_it.updates.expect("two arms beside the anchor");
        let show = |v: MeanSd| v.mean.map_or("-".to_owned(), |mean| format!("{mean:.3}"));
        let values = [
            accuracy(Arm::ZeroShot),
            accuracy(Arm::Icl),
            accuracy(Arm::Lora),
            icl_it.cosine,
            pair(Arm::ZeroShot, Arm::Icl).cosine,
            pair(Arm::ZeroShot, Arm::Lora).cosine,
            updates.update,
            last.update_gaussian,
            updates.update_shuffled,
        ];
        output::line(row(std::iter::once(factor.name.to_owned()).chain(values.map(show))))?;
    }
    Ok(())
}

/// A line of a table in Markdown.
fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!("| {} |", cells.into_iter().collect::<Vec<_>>().join(" | "))
}

pub fn export(args: &ExportArgs) -> Result<(), Failure> {
    embedded::export(&args.out)?;
    output::line(args.out.display())
}
