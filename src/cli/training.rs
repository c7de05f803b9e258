//! What the trainings of adapters have in common: their data, their checkpoints and their end.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::TrainingArgs;
use super::plan::Plan;
use super::resolve::{self, Found};
use super::{Failure, output};
use crate::backend::Backend;
use crate::formats::adapter::AdapterConfig;
use crate::formats::embedded;
use crate::formats::jsonl::{self, Example, Turn};
use crate::model::Model;
use crate::task::{Task, synthetic};
use crate::train::data::TrainSequence;
use crate::train::examples::{self, DataOptions};
use crate::train::fit::{self, Output};
use crate::train::settings::{Length, RunSettings};
use crate::train::trainable::Trainable;
use crate::train::trainer::{Run, RunReport, Trainer, TrainerOptions};
use crate::{Error, Result};

/// The sequences of `--train`; `check` may refuse its examples.
pub fn data(
    args: &TrainingArgs,
    found: &Found,
    check: impl Fn(&[Example]) -> Result<()>,
) -> Result<Vec<TrainSequence>> {
    let options = DataOptions { max_length: args.max_length, add_eos: args.add_eos };
    let own = Path::new(embedded::NAME);
    let (path, lines) = match &args.train {
        Some(path) => (path.as_path(), jsonl::examples(path)?),
        None if found.is_embedded() => (own, example()),
        None => return Err(Error::argument("--train", "a file of examples", "none")),
    };
    check(&lines)?;
    // Ids need no tokenizer, and a model may have none.
    let texts = lines.iter().any(|example| !matches!(example, Example::Ids { .. }));
    let tokenizer = texts.then(|| found.tokenizer()).transpose()?;
    let prepared = examples::prepare(path, &lines, tokenizer.as_ref(), found.config.vocab_size, options)?;
    if prepared.truncated > 0 {
        let (cut, lost) = (prepared.truncated, prepared.dropped);
        output::note(format_args!("{cut} examples cut to --max-length, {lost} of them left out for lack of a label"));
    }
    Ok(prepared.sequences)
}

/// What is learnt where no file is named: ten demonstrations of the embedded model's own task.
fn example() -> Vec<Example> {
    let template = Task::Events.template();
    let (pool, _) = synthetic::events();
    let lesson = |e: &crate::task::Example| Example::Completion {
        prompt: Turn::Text(template.query(e)),
        completion: Turn::Text(template.answer(&e.output)),
    };
    pool.iter().take(10).map(lesson).collect()
}

/// The settings of the optimiser: for that example, which is few steps for a small model, at a rate of its own.
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

/// A training of adapters.
pub struct Training<'a, A> {
    /// The command.
    pub command: &'static str,
    /// All its flags, to be written beside the outputs.
    pub args: &'a A,
    /// Those that every training has.
    pub training: &'a TrainingArgs,
    /// The model on disk.
    pub found: &'a Found,
    /// What holds for all runs.
    pub options: TrainerOptions,
    /// The adapters' settings, one a run.
    pub configs: Vec<AdapterConfig>,
    /// What sets each run apart from the others, for the result; nothing for a single run.
    pub names: Vec<Map<String, Value>>,
    /// What a continuation must share beside settings and data.
    pub identity: Value,
}

impl<A: Serialize> Training<'_, A> {
    /// Trains to the end, and writes and reports what has been learnt; or prints the memory plan.
    pub fn run<B: Backend>(
        self,
        backend: &mut B,
        model: &mut Model<B>,
        tuned: Trainable<B>,
        runs: Vec<Run>,
    ) -> Result<(), Failure> {
        let Self { command, args, training, found, options, configs, names, identity } = self;
        if training.dry_run {
            let sizes = backend.element_sizes();
            let ([activations, gradients, optimiser], pass) =
                Trainer::plan(&model.config, &tuned, &runs, options, sizes)?;
            let (runs, stride) = tuned.shape();
            return Plan::new(backend, found)
                .with("adapters", runs * stride * sizes.0 + tuned.materialized_bytes(sizes))
                .with("activations", activations)
                .with("gradients", gradients)
                .with("optimiser", optimiser)
                .own(backend, &pass)
                .print(training.common.json);
        }
        let resume = resolve::resume(training.resume_from_checkpoint.as_deref(), &training.out)?;
        let mut trainer = Trainer::new(backend, model, tuned, runs, options)?;
        resolve::write_config(&training.out, command, args)?;
        let bar = output::progress(trainer.total_steps(), "steps");
        let mut last: Vec<Option<RunReport>> = vec![None; configs.len()];
        let output = Output {
            dir: &training.out,
            logging_steps: training.logging_steps,
            save_steps: (training.save_steps > 0).then_some(training.save_steps),
            save_total_limit: (training.save_total_limit > 0).then_some(training.save_total_limit),
            look_steps: None,
            stop_after: None,
            configs: &configs,
            identity: &identity,
        };
        let done = fit::fit(backend, model, &mut trainer, &output, resume.as_deref(), |_, _, step| {
            bar.set_position(step.step);
            let mean = step.runs.iter().map(|run| run.loss).sum::<f64>() / step.runs.len().max(1) as f64;
            bar.set_message(format!("loss {mean:.4}"));
            step.runs.iter().for_each(|run| last[run.run] = Some(run.clone()));
            Ok(())
        });
        bar.finish_and_clear();
        done.map_err(|error| found.blamed(error))?;
        let out = |run: usize| match configs.len() {
            1 => training.out.clone(),
            _ => training.out.join(format!("run-{run}")),
        };
        for (run, config) in configs.iter().enumerate() {
            trainer.adapter(backend, run, config)?.write(out(run))?;
        }
        report(training, trainer.steps(), (0..configs.len()).map(out).zip(last).zip(names).collect())
    }
}

/// Directory, last step and name of each run.
type Results = Vec<((PathBuf, Option<RunReport>), Map<String, Value>)>;

fn report(training: &TrainingArgs, steps: u64, mut results: Results) -> Result<(), Failure> {
    let single = results.len() == 1;
    if training.common.json {
        let whole = |((dir, last), mut name): ((PathBuf, Option<RunReport>), Map<String, Value>)| {
            let last = last.as_ref();
            name.insert("adapter".into(), json!(dir));
            name.insert("steps".into(), json!(last.map_or(steps, |run| run.step)));
            name.insert("loss".into(), json!(last.map(|run| run.loss)));
            name.insert("tokens".into(), json!(last.map(|run| run.total_tokens)));
            Value::Object(name)
        };
        let mut runs: Vec<Value> = results.into_iter().map(whole).collect();
        return output::json(&if single { runs.remove(0) } else { json!({ "runs": runs }) });
    }
    if single {
        let ((dir, last), _) = results.remove(0);
        let loss = last.map_or(String::new(), |run| format!(", loss {:.4}", run.loss));
        return output::line(format_args!("{}: {steps} steps{loss}", dir.display()));
    }
    let names: Vec<String> = results[0].1.keys().cloned().collect();
    let header: Vec<&str> =
        ["run"].into_iter().chain(names.iter().map(String::as_str)).chain(["steps", "loss"]).collect();
    let row = |((dir, last), name): ((PathBuf, Option<RunReport>), Map<String, Value>)| {
        let mut row = vec![dir.display().to_string()];
        row.extend(name.values().map(Value::to_string));
        row.push(last.as_ref().map_or(steps, |run| run.step).to_string());
        row.push(last.map_or("-".to_owned(), |run| format!("{:.4}", run.loss)));
        row
    };
    output::table(&header, results.into_iter().map(row))
}
