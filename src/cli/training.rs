//! What the trainings have in common: their data, their settings, their checkpoints and their results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{CheckpointArgs, EvalArgs, LogFormat, MixArg, TrainingArgs};
use super::objective::{self, TaughtRows};
use super::plan::Plan;
use super::resolve::{self, MAX_RUNS, ModelFiles};
use super::training_results::{self, Criterion, RESULTS_FILE, RUN_FILE, RunResult};
use super::{Failure, generation_eval, output};
use crate::backend::Backend;
use crate::formats::adapter::{self, AdapterConfig};
use crate::formats::atomic;
use crate::formats::embedded;
use crate::formats::jsonl::{self, Example, Row};
use crate::formats::lines::at;
use crate::formats::tokenizer::Tokenizer;
use crate::model::Model;
use crate::task::{Task, synthetic};
use crate::train::data::{SequenceTeacher, TrainSequence};
use crate::train::examples::{self, DataOptions, Prepared};
use crate::train::fit::{self, Output};
use crate::train::generation_eval::GenerationEval;
use crate::train::log;
use crate::train::mixture::{MixStrategy, Mixture};
use crate::train::objective::Objective;
use crate::train::report_to::{ReportTo, run_folder};
use crate::train::scores::{BestBy, Evaluation};
use crate::train::settings::{Length, RunSettings};
use crate::train::teachers;
use crate::train::trainable::Trainable;
use crate::train::trainer::{Run, StepReport, Trainer, TrainerOptions};
use crate::{Error, Result};

/// Steps between evaluations where nothing says how many.
const EVAL_STEPS: u64 = 500;

/// The sequences of a training.
pub struct Data {
    /// Those of each file of `--train`.
    train: Vec<Vec<TrainSequence>>,
    mixture: Mixture,
    /// Their teachers, of each file by the seed of a run; none for an objective without.
    teachers: Vec<BTreeMap<u64, Vec<SequenceTeacher>>>,
    /// Those of `--eval`, and how runs are evaluated on them.
    pub eval: Option<Evaluation>,
    /// What is minimized; none for cross-entropy alone.
    pub objective: Option<Objective>,
}

impl Data {
    /// What a run of this seed is trained on.
    pub fn of_run(&self, seed: u64) -> Vec<TrainSequence> {
        let lengths: Vec<usize> = self.train.iter().map(Vec::len).collect();
        let sequence = |(file, example): (usize, usize)| {
            let teachers = self.teachers.get(file).and_then(|of_file| of_file.get(&seed));
            let teacher = teachers.map(|teachers| teachers[example].clone());
            TrainSequence { teacher, ..self.train[file][example].clone() }
        };
        self.mixture.order(&lengths, seed).into_iter().map(sequence).collect()
    }
}

/// How the files of `--train` are mixed.
fn mixture(args: &TrainingArgs) -> Result<Mixture> {
    let probabilities = (!args.interleave_probs.is_empty()).then(|| args.interleave_probs.clone());
    let strategy = match args.mix_strategy {
        None if probabilities.is_some() => MixStrategy::InterleaveUnder,
        None | Some(MixArg::Concat) => MixStrategy::Concat,
        Some(MixArg::InterleaveUnder) => MixStrategy::InterleaveUnder,
        Some(MixArg::InterleaveOver) => MixStrategy::InterleaveOver,
    };
    let mixture = Mixture { strategy, probabilities };
    mixture.validate(args.train.len())?;
    Ok(mixture)
}

/// The sequences of `--train` and of `--eval`, with the teachers of the runs' seeds; `check` may refuse their examples.
pub fn data<'a>(
    args: &'a TrainingArgs,
    files: &ModelFiles,
    seeds: impl Iterator<Item = u64>,
    check: impl Fn(&[Row]) -> Result<()>,
) -> Result<Data> {
    let mixture = mixture(args)?;
    let all: Vec<(&'a Path, Vec<Row>)> = match args.train.as_slice() {
        [] if files.is_embedded() => vec![(Path::new(embedded::NAME), built_in_examples())],
        [] => return Err(Error::argument("--train", "a file of examples", "none")),
        paths => {
            let of_file = |path: &'a PathBuf| Ok((path.as_path(), jsonl::examples(path)?));
            paths.iter().map(of_file).collect::<Result<_>>()?
        }
    };
    let mut objective = objective::objective(&args.objective, files)?;
    // What a teacher reads before an example, the example itself is to do without.
    let learnt = |rows: Vec<Row>| if objective::in_context(&args.objective) { teachers::alone(&rows) } else { rows };
    let held_out = args.evaluation.eval.as_deref();
    let eval = held_out.map(|path| {
        let rows = learnt(jsonl::examples(path)?);
        let asked = args.evaluation.predict_with_generate;
        let generation = asked.then(|| generation_eval::from_args(&args.evaluation, &rows, files)).transpose()?;
        evaluation(&args.evaluation, sequences(path, &rows, args, files, &check)?.0.sequences, generation)
    });
    let eval = eval.transpose()?;
    let mut seeds: Vec<u64> = seeds.collect();
    seeds.sort_unstable();
    seeds.dedup();
    if objective.is_some() && !objective::in_context(&args.objective) && all.len() > 1 {
        return Err(Error::argument("--train", "one file beside a teacher's file", all.len()));
    }
    let (mut train, mut teachers) = (Vec::new(), Vec::new());
    for (path, rows) in &all {
        let (prepared, tokenizer) = sequences(path, &learnt(rows.clone()), args, files, &check)?;
        if let Some(objective) = &mut objective {
            let (tokenizer, add_eos) = (tokenizer.as_ref(), args.add_eos);
            let taught = TaughtRows { path, rows, prepared: &prepared, tokenizer, add_eos };
            teachers.push(objective::teachers(&args.objective, objective, files, &taught, &seeds)?);
        }
        train.push(prepared.sequences);
    }
    Ok(Data { train, mixture, teachers, eval, objective })
}

/// The sequences of the examples of a file, and the tokenizer that they needed.
fn sequences(
    path: &Path,
    rows: &[Row],
    args: &TrainingArgs,
    files: &ModelFiles,
    check: impl Fn(&[Row]) -> Result<()>,
) -> Result<(Prepared, Option<Tokenizer>)> {
    let options = DataOptions { max_length: args.max_length, add_eos: args.add_eos };
    check(rows)?;
    // Ids need no tokenizer, and a model may have none.
    let texts = rows.iter().any(|row| !matches!(row.example, Example::Ids { .. }));
    let tokenizer = texts.then(|| files.tokenizer()).transpose()?;
    let prepared = examples::prepare(path, rows, tokenizer.as_ref(), files.config.vocab_size, options)?;
    if prepared.truncated > 0 {
        let (truncated, skipped) = (prepared.truncated, prepared.dropped);
        output::note(format_args!(
            "{}: {truncated} examples truncated to --max-length, {skipped} of them skipped for lack of a label",
            path.display()
        ));
    }
    Ok((prepared, tokenizer))
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

/// The values of `--learning-rate`; none for the default.
pub fn learning_rates(args: &TrainingArgs) -> Result<Vec<Option<f64>>> {
    distinct("--learning-rate", &args.optim.learning_rate)?;
    Ok(match args.optim.learning_rate.as_slice() {
        [] => vec![None],
        rates => rates.iter().copied().map(Some).collect(),
    })
}

/// Refuses a value that stands twice in a list: its runs would be the same.
pub fn distinct<T: PartialEq + std::fmt::Debug>(flag: &str, values: &[T]) -> Result<()> {
    let twice = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value));
    twice.map_or(Ok(()), |(_, value)| Err(Error::argument(flag, "each value once", format!("{value:?} again"))))
}

/// Refuses a grid of more runs than a training has, before any of them is made; `lengths` are those of its lists.
pub fn check_count(lengths: &[usize]) -> Result<()> {
    let count = lengths.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
    match count {
        Some(count) if count <= MAX_RUNS => Ok(()),
        _ => {
            let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
            let expected = format!("at most {MAX_RUNS} combinations");
            Err(Error::argument("the grid's lists", expected, lengths.join(" x ")))
        }
    }
}

/// Refuses several seeds of which nothing depends on the seed: `same` says that runs draw nothing but what
/// every training may.
pub fn check_seeds(args: &TrainingArgs, seeds: u64, same: bool) -> Result<()> {
    let demonstrated = objective::in_context(&args.objective);
    let mixed = args.neftune_noise_alpha.is_some() || !args.interleave_probs.is_empty();
    let draws = !args.no_shuffle || mixed || demonstrated;
    match seeds > 1 && same && !draws {
        true => {
            let expected = "1, since nothing of these runs depends on the seed: they start alike, and --no-shuffle";
            Err(Error::argument("--seeds", expected, seeds))
        }
        false => Ok(()),
    }
}

/// Refuses `--report-to none` beside logs.
pub fn check_logs(args: &CheckpointArgs) -> Result<()> {
    let none = args.report_to.contains(&LogFormat::None);
    match none && args.report_to.iter().any(|log| *log != LogFormat::None) {
        true => Err(Error::argument("--report-to", "none alone, or logs without none", "both")),
        false => Ok(()),
    }
}

/// The settings of a run. The built-in examples are few, for a small model: fewer steps at a higher learning rate.
pub fn settings(args: &TrainingArgs, learning_rate: Option<f64>, seed: u64) -> Result<RunSettings> {
    let settings = resolve::settings(&args.optim, learning_rate, seed, !args.no_shuffle)?;
    if !args.train.is_empty() {
        return Ok(settings);
    }
    let length = match (args.optim.max_steps, args.optim.epochs) {
        (None, None) => Length::Steps(40),
        _ => settings.length,
    };
    let learning_rate = learning_rate.unwrap_or(5e-3);
    Ok(RunSettings { length, learning_rate, batch_size: args.optim.batch_size.max(10), ..settings })
}

/// What the flags say of all runs.
pub fn options(args: &TrainingArgs) -> TrainerOptions {
    TrainerOptions {
        gradient_checkpointing: args.gradient_checkpointing,
        neftune_noise_alpha: args.neftune_noise_alpha,
        ..TrainerOptions::default()
    }
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
        report_to: ReportTo {
            tensorboard: args.report_to.contains(&LogFormat::Tensorboard),
            csv: args.report_to.contains(&LogFormat::Csv),
        },
        save_steps: (args.save_steps > 0).then_some(args.save_steps),
        save_total_limit: (args.save_total_limit > 0).then_some(args.save_total_limit),
        look_steps: None,
        stop_after: None,
        configs,
        identity,
    }
}

/// Trains to the end, resuming if so asked, under a progress bar with the mean loss of the runs; `on_start` is called before anything
/// is written, `on_step` after every step.
pub fn fit<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    trainer: &mut Trainer<B>,
    output: &Output<'_>,
    resume: Option<&Path>,
    on_start: impl FnOnce() -> Result<()>,
    mut on_step: impl FnMut(&mut B, &Model<B>, &StepReport) -> Result<()>,
) -> Result<()> {
    let bar = output::progress(trainer.total_steps(), "steps");
    let runs = trainer.trainable().shape().0;
    let mut first = true;
    let done = fit::fit(backend, model, trainer, output, resume, on_start, |backend, model, step| {
        if std::mem::take(&mut first) {
            // Steps before a resumption took none of this time.
            bar.set_position(step.step - 1);
            bar.reset_eta();
        }
        bar.set_position(step.step);
        let mean = step.runs.iter().map(|run| run.loss).sum::<f64>() / step.runs.len().max(1) as f64;
        let of = if runs > 1 { format!("{} of {runs} runs, mean ", step.runs.len()) } else { String::new() };
        bar.set_message(format!("{of}loss {mean:.4}"));
        on_step(backend, model, step)
    });
    bar.finish_and_clear();
    done
}

/// A run's adapter, and what it is called.
pub struct Named {
    /// The adapter's configuration.
    pub config: AdapterConfig,
    /// What distinguishes it from the other runs, for the result; empty for a single run.
    pub name: Map<String, Value>,
    /// The adapter's settings, for a grid's `run.json`.
    pub settings: Value,
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
    /// The runs' adapters and settings, in the order of their numbers.
    pub runs: Vec<Named>,
    /// Whether they are a grid, with settings beside each adapter and a file that compares them.
    pub is_grid: bool,
    /// What a continuation must share beside settings and data.
    pub identity: Value,
    /// What is minimized; none for cross-entropy alone.
    pub objective: Option<Objective>,
    /// What runs that are trainings of their own have apart.
    pub apart: Apart<'a, A>,
}

/// Of runs that are trainings of their own, in the same passes; empty for others.
pub struct Apart<'a, A> {
    /// The flags and the directory of each.
    pub runs: Vec<(&'a A, PathBuf)>,
    /// Bytes that their passes may take; none is as many as there are.
    pub memory: Option<usize>,
}

impl<A> Default for Apart<'_, A> {
    fn default() -> Self {
        Self { runs: Vec::new(), memory: None }
    }
}

impl<A: Serialize> Training<'_, A> {
    /// Trains to the end, evaluating as `evaluation` says, writes the adapters and reports; or prints the memory plan.
    pub fn run<B: Backend>(
        self,
        backend: &mut B,
        model: &mut Model<B>,
        tuned: Trainable<B>,
        runs: Vec<Run>,
        evaluation: Option<Evaluation>,
    ) -> Result<(), Failure> {
        let Self { command, args, training, files, options, runs: named, is_grid, mut identity, objective, apart } =
            self;
        let options = options.towards(objective.is_some());
        // What was said otherwise comes before what it changed.
        identity["load_in"] = json!(training.common.load_in);
        if let Some(teacher) = objective::identity(&training.objective) {
            identity["objective"] = teacher;
        }
        let mut of_files = files.identity()?;
        if let Some(generation) = evaluation.as_ref().and_then(|evaluation| evaluation.generation.as_ref()) {
            of_files.insert("generation".to_owned(), generation.of_model());
        }
        identity["files"] = of_files.into();
        if training.dry_run {
            let plan =
                self::plan(backend, model, files, &tuned, (&runs, options), (objective.as_ref(), evaluation.as_ref()))?;
            return plan.print(training.common.json);
        }
        let Apart { runs: apart, memory } = apart;
        if !apart.is_empty() {
            let of = (objective.as_ref(), evaluation.as_ref());
            self::plan(backend, model, files, &tuned, (&runs, options), of)?.check(memory)?;
        }
        let out = apart
            .first()
            .map_or_else(|| training.out.clone(), |(_, dir)| dir.join(format!("{}together", atomic::PREFIX)));
        // Before a look at what is there, which another command may be at work on.
        let _claim = atomic::Claim::new(&out)?;
        let resume = resolve::resume(&training.checkpoints, &out)?;
        let dir = |run: usize| match apart.get(run) {
            Some((_, dir)) => dir.clone(),
            None if named.len() == 1 => out.clone(),
            None => out.join(run_folder(run)),
        };
        let dirs: Vec<PathBuf> = (0..named.len()).map(dir).collect();
        // Before anything is written, not after the last step.
        dirs.iter()
            .flat_map(|dir| adapter::FILES.map(|name| dir.join(name)))
            .try_for_each(atomic::check_replaceable)?;
        if is_grid {
            let of_runs = dirs.iter().map(|dir| dir.join(RUN_FILE));
            of_runs.chain([training.out.join(RESULTS_FILE)]).try_for_each(atomic::check_replaceable)?;
        }
        let settings: Vec<Value> = runs.iter().map(|run| json!(run.settings)).collect();
        let mut trainer = Trainer::new(backend, model, tuned, runs, options)?;
        let best_by = evaluation.as_ref().map(|evaluation| evaluation.best_by.clone());
        if let Some(objective) = objective {
            trainer = trainer.with_objective(backend, model, objective)?;
        }
        if let Some(evaluation) = evaluation {
            trainer = trainer.with_evaluation(backend, model, evaluation)?;
        }
        let configs: Vec<AdapterConfig> = named.iter().map(|run| run.config.clone()).collect();
        let mut output = fit_output(&out, &training.checkpoints, &configs, &identity);
        output.save_steps = output.save_steps.filter(|_| apart.is_empty());
        let mut stepped = false;
        let on_start = || {
            training_results::note_others(&out, configs.len(), is_grid);
            match apart.is_empty() {
                true => resolve::write_config(&out, command, args),
                false => apart.iter().try_for_each(|(args, dir)| resolve::write_config(dir, command, args)),
            }
        };
        let done = fit(backend, model, &mut trainer, &output, resume.as_deref(), on_start, |_, _, _| {
            stepped = true;
            Ok(())
        });
        done.map_err(|error| files.with_bad_weight(error))?;
        let mut results = Vec::with_capacity(named.len());
        let whole = named.into_iter().zip(dirs).enumerate();
        for (run, (Named { config, name, settings: of_adapter }, dir)) in whole {
            trainer.adapter(backend, run, &config)?.write(&dir)?;
            if is_grid {
                let mut all = of_adapter.as_object().cloned().unwrap_or_default();
                all.extend(settings[run].as_object().cloned().unwrap_or_default());
                atomic::write_json(dir.join(RUN_FILE), &all)?;
            }
            results.push(result(
                &trainer,
                run,
                dir,
                name,
                stepped || configs.len() > 1,
                training.evaluation.load_best_model_at_end,
            ));
        }
        if !apart.is_empty() {
            results.iter().try_for_each(RunResult::save)?;
            let dirs: Vec<&Path> = apart.iter().map(|(_, dir)| dir.as_path()).collect();
            log::part(&out, &dirs)?;
            return Ok(atomic::remove(&out)?);
        }
        let criterion = Criterion { best_by: best_by.as_ref() };
        if is_grid {
            training_results::write(&training.out, &results, &criterion, run_folder)?;
        }
        training_results::print(&results, &criterion, training.common.json, is_grid)
    }
}

/// How the runs are evaluated.
fn evaluation(args: &EvalArgs, data: Vec<TrainSequence>, generation: Option<GenerationEval>) -> Result<Evaluation> {
    let asked = args.metric_for_best_model.as_deref().unwrap_or("loss");
    let name = asked.strip_prefix("eval_").unwrap_or(asked);
    let mut known = vec!["loss", "accuracy"];
    known.extend(generation.iter().flat_map(|generation| generation.metrics.iter().map(String::as_str)));
    if !known.contains(&name) {
        let others = if generation.is_none() { "; others with --predict-with-generate" } else { "" };
        let expected = format!("{}{others}", known.join(", "));
        return Err(Error::argument("--metric-for-best-model", expected, asked));
    }
    let best_by =
        BestBy { name: name.to_owned(), greater_is_better: args.greater_is_better.unwrap_or(!name.ends_with("loss")) };
    Ok(Evaluation {
        data,
        every: args.eval_steps.unwrap_or(EVAL_STEPS),
        generation,
        best_by,
        patience: args.early_stopping_patience,
        load_best: args.load_best_model_at_end,
    })
}

/// What a run has come to; without steps since a checkpoint of a single run nobody knows its last loss.
fn result<B: Backend>(
    trainer: &Trainer<B>,
    run: usize,
    dir: PathBuf,
    name: Map<String, Value>,
    known: bool,
    load_best: bool,
) -> RunResult {
    let (steps, loss, tokens) = trainer.progress(run);
    let scores = trainer.scores().get(run);
    RunResult {
        dir,
        name,
        steps,
        loss: known.then_some(loss),
        tokens: known.then_some(tokens),
        score: scores.and_then(|scores| if load_best { scores.best.clone() } else { scores.last.clone() }),
        stopped: scores.is_some_and(|scores| scores.stopped.is_some()),
    }
}

/// The memory plan of a training.
fn plan<B: Backend>(
    backend: &B,
    model: &Model<B>,
    files: &ModelFiles,
    tuned: &Trainable<B>,
    (data, options): (&[Run], TrainerOptions),
    (objective, evaluation): (Option<&Objective>, Option<&Evaluation>),
) -> Result<Plan> {
    let sizes = backend.element_sizes();
    let ([activations, gradients, optimiser], mut pass) = Trainer::plan(&model.config, tuned, data, options, sizes)?;
    let (runs, stride) = tuned.shape();
    let mut plan = Plan::new(backend, files, true)
        .with("adapters", runs * stride * sizes.0 + tuned.materialized_bytes(sizes))
        .with("activations", activations)
        .with("gradients", gradients)
        .with("optimiser", optimiser);
    if let Some(objective) = objective {
        let (bytes, readbacks) = Trainer::objective_bytes(objective, &model.config, tuned, data, options, sizes)?;
        plan = plan.with("objective", bytes);
        pass.readbacks.extend(readbacks);
    }
    if let Some(evaluation) = evaluation {
        let (bytes, rows) = Trainer::evaluation_bytes(evaluation, &model.config, tuned, options, sizes)?;
        plan = plan.with("evaluation", bytes);
        pass.rows = pass.rows.max(rows);
    }
    Ok(plan.own(backend, &pass))
}
