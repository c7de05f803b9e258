//! What the trainings have in common: their data, their settings, their checkpoints and their results.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{CheckpointArgs, TrainingArgs};
use super::plan::Plan;
use super::resolve::{self, ModelFiles};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::adapter::AdapterConfig;
use crate::formats::embedded;
use crate::formats::jsonl::{self, Example, Row};
use crate::formats::lines::at;
use crate::model::Model;
use crate::task::{Task, synthetic};
use crate::train::data::TrainSequence;
use crate::train::examples::{self, DataOptions};
use crate::train::fit::{self, Output};
use crate::train::settings::{Length, RunSettings};
use crate::train::trainable::Trainable;
use crate::train::trainer::{Run, RunReport, StepReport, Trainer, TrainerOptions};
use crate::{Error, Result};

/// The training sequences of `--train`; `check` may refuse its examples.
pub fn data(
    args: &TrainingArgs,
    files: &ModelFiles,
    check: impl Fn(&[Row]) -> Result<()>,
) -> Result<Vec<TrainSequence>> {
    let options = DataOptions { max_length: args.max_length, add_eos: args.add_eos };
    let (path, rows) = match &args.train {
        Some(path) => (path.as_path(), jsonl::examples(path)?),
        None if files.is_embedded() => (Path::new(embedded::NAME), built_in_examples()),
        None => return Err(Error::argument("--train", "a file of examples", "none")),
    };
    check(&rows)?;
    // Ids need no tokenizer, and a model may have none.
    let texts = rows.iter().any(|row| !matches!(row.example, Example::Ids { .. }));
    let tokenizer = texts.then(|| files.tokenizer()).transpose()?;
    let prepared = examples::prepare(path, &rows, tokenizer.as_ref(), files.config.vocab_size, options)?;
    if prepared.truncated > 0 {
        let (truncated, skipped) = (prepared.truncated, prepared.dropped);
        output::note(format_args!(
            "{truncated} examples truncated to --max-length, {skipped} of them skipped for lack of a label"
        ));
    }
    Ok(prepared.sequences)
}

/// The training data where no file is named: ten demonstrations of the embedded model's own task.
fn built_in_examples() -> Vec<Row> {
    let events: Task = "events".parse().expect("training: events is built in");
    let template = events.template();
    let (pool, _) = synthetic::events();
    let row = |(i, e): (usize, &crate::task::Example)| {
        let example = Example::Completion { prompt: template.query(e), completion: template.answer(&e.output) };
        Row::new(at(Path::new(embedded::NAME), i + 1), example)
    };
    pool.iter().take(10).enumerate().map(row).collect()
}

/// The settings of a run. The built-in examples are few, for a small model: fewer steps at a higher learning rate.
pub fn settings(args: &TrainingArgs, seed: u64) -> Result<RunSettings> {
    let settings = resolve::settings(&args.optim, seed, !args.no_shuffle)?;
    if args.train.is_some() {
        return Ok(settings);
    }
    let length = match (args.optim.max_steps, args.optim.epochs) {
        (None, None) => Length::Steps(40),
        _ => settings.length,
    };
    let learning_rate = args.optim.learning_rate.unwrap_or(5e-3);
    Ok(RunSettings { length, learning_rate, batch_size: args.optim.batch_size.max(10), ..settings })
}

/// Where a training writes, and how often it logs and saves checkpoints.
pub fn fit_output<'a>(
    dir: &'a Path,
    args: &CheckpointArgs,
    configs: &'a [AdapterConfig],
    identity: &'a Value,
) -> Output<'a> {
    Output {
        dir,
        logging_steps: args.logging_steps,
        save_steps: (args.save_steps > 0).then_some(args.save_steps),
        save_total_limit: (args.save_total_limit > 0).then_some(args.save_total_limit),
        look_steps: None,
        stop_after: None,
        configs,
        identity,
    }
}

/// Trains to the end, resuming if so asked, under a progress bar with the mean loss of the runs; `on_step` is called after
/// every step.
pub fn fit<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    trainer: &mut Trainer<B>,
    output: &Output<'_>,
    resume: Option<&Path>,
    mut on_step: impl FnMut(&mut B, &Model<B>, &StepReport) -> Result<()>,
) -> Result<()> {
    let bar = output::progress(trainer.total_steps(), "steps");
    let done = fit::fit(backend, model, trainer, output, resume, |backend, model, step| {
        bar.set_position(step.step);
        let mean = step.runs.iter().map(|run| run.loss).sum::<f64>() / step.runs.len().max(1) as f64;
        bar.set_message(format!("loss {mean:.4}"));
        on_step(backend, model, step)
    });
    bar.finish_and_clear();
    done
}

/// A training of adapters.
pub struct Training<'a, A> {
    /// The subcommand.
    pub command: &'static str,
    /// All its flags, to be written beside the outputs.
    pub args: &'a A,
    /// The flags that every training has.
    pub training: &'a TrainingArgs,
    /// The base model.
    pub files: &'a ModelFiles,
    /// What holds for all runs.
    pub options: TrainerOptions,
    /// The adapters' configurations, one per run.
    pub configs: Vec<AdapterConfig>,
    /// What distinguishes each run, for the result; empty for a single run.
    pub names: Vec<Map<String, Value>>,
    /// What a continuation must share beside settings and data.
    pub identity: Value,
}

impl<A: Serialize> Training<'_, A> {
    /// Trains to the end, writes the adapters and reports; or prints the memory plan.
    pub fn run<B: Backend>(
        self,
        backend: &mut B,
        model: &mut Model<B>,
        tuned: Trainable<B>,
        runs: Vec<Run>,
    ) -> Result<(), Failure> {
        let Self { command, args, training, files, options, configs, names, identity } = self;
        if training.dry_run {
            return self::plan(backend, model, files, &tuned, &runs, options)?.print(training.common.json);
        }
        let resume = resolve::resume(&training.checkpoints, &training.out)?;
        let mut trainer = Trainer::new(backend, model, tuned, runs, options)?;
        resolve::write_config(&training.out, command, args)?;
        let output = fit_output(&training.out, &training.checkpoints, &configs, &identity);
        let mut last: Vec<Option<RunReport>> = vec![None; configs.len()];
        let done = fit(backend, model, &mut trainer, &output, resume.as_deref(), |_, _, step| {
            step.runs.iter().for_each(|run| last[run.run] = Some(run.clone()));
            Ok(())
        });
        done.map_err(|error| files.with_bad_weight(error))?;
        let out = |run: usize| match configs.len() {
            1 => training.out.clone(),
            _ => training.out.join(format!("run-{run}")),
        };
        for (run, config) in configs.iter().enumerate() {
            trainer.adapter(backend, run, config)?.write(out(run))?;
        }
        let results = last.into_iter().zip(names).enumerate();
        let results = results.map(|(run, (last, name))| RunResult { dir: out(run), last, name });
        report(results.collect(), trainer.steps(), training.common.json)
    }
}

/// The memory plan of a training.
fn plan<B: Backend>(
    backend: &B,
    model: &Model<B>,
    files: &ModelFiles,
    tuned: &Trainable<B>,
    runs: &[Run],
    options: TrainerOptions,
) -> Result<Plan> {
    let sizes = backend.element_sizes();
    let ([activations, gradients, optimiser], pass) = Trainer::plan(&model.config, tuned, runs, options, sizes)?;
    let (runs, stride) = tuned.shape();
    Ok(Plan::new(backend, files)
        .with("adapters", runs * stride * sizes.0 + tuned.materialized_bytes(sizes))
        .with("activations", activations)
        .with("gradients", gradients)
        .with("optimiser", optimiser)
        .own(backend, &pass))
}

/// What a run has come to.
struct RunResult {
    /// Where its adapter is.
    dir: PathBuf,
    /// Its last step; none if a checkpoint had them all.
    last: Option<RunReport>,
    /// What distinguishes it from the other runs.
    name: Map<String, Value>,
}

/// Prints the results of all runs, of which each has had `steps` steps if it has no last one.
fn report(mut results: Vec<RunResult>, steps: u64, as_json: bool) -> Result<(), Failure> {
    let single = results.len() == 1;
    if as_json {
        let value = |RunResult { dir, last, mut name }: RunResult| {
            let last = last.as_ref();
            name.insert("adapter".into(), json!(dir));
            name.insert("steps".into(), json!(last.map_or(steps, |run| run.step)));
            name.insert("loss".into(), json!(last.map(|run| run.loss)));
            name.insert("tokens".into(), json!(last.map(|run| run.total_tokens)));
            Value::Object(name)
        };
        let mut runs: Vec<Value> = results.into_iter().map(value).collect();
        return output::json(&if single { runs.remove(0) } else { json!({ "runs": runs }) });
    }
    if single {
        let RunResult { dir, last, .. } = results.remove(0);
        let loss = last.map_or(String::new(), |run| format!(", loss {:.4}", run.loss));
        return output::line(format_args!("{}: {steps} steps{loss}", dir.display()));
    }
    let names: Vec<String> = results[0].name.keys().cloned().collect();
    let header: Vec<&str> =
        ["run"].into_iter().chain(names.iter().map(String::as_str)).chain(["steps", "loss"]).collect();
    let row = |RunResult { dir, last, name }: RunResult| {
        let mut row = vec![dir.display().to_string()];
        row.extend(name.values().map(Value::to_string));
        row.push(last.as_ref().map_or(steps, |run| run.step).to_string());
        row.push(last.map_or("-".to_owned(), |run| format!("{:.4}", run.loss)));
        row
    };
    output::table(&header, results.into_iter().map(row))
}
