//! `probe`: in-context learning and instruction tuning on the same demonstrations, by hidden states and scores.

use indicatif::ProgressBar;

use super::args::ProbeArgs;
use super::device::{Job, dispatch};
use super::plan::Plan as MemoryPlan;
use super::resolve::{self, ModelFiles};
use super::{Failure, output, report, report_tables};
use crate::arch::Family;
use crate::backend::Backend;
use crate::model::{Layout, LoraShape, Model};
use crate::probe::arm::Arm;
use crate::probe::plan::Plan;
use crate::probe::report::{Report, arm_name};
use crate::probe::{Outcome, Phase, ProbeSettings, Progress, SoftSettings};
use crate::task::{Task, Template, synthetic};
use crate::{Error, Result};

pub fn run(args: &ProbeArgs) -> Result<(), Failure> {
    let files = resolve::base_model(&args.base.model, &args.common)?;
    files.config.require_causal()?;
    let args = &resolved(args, &files);
    let (settings, plan) = match &args.plan {
        // A report's experiment is repeated with its own settings; only device and dtype may differ.
        Some(path) => {
            let report = Report::read(path)?;
            report.plan.validate(&path.display().to_string(), files.config.vocab_size)?;
            (report.settings, report.plan)
        }
        None => {
            let settings = settings(args, files.config.family)?;
            settings.validate(files.config.family)?;
            let plan = draw(args, &files, &settings)?;
            (settings, plan)
        }
    };
    let dtype = files.dtype;
    dispatch(&args.common, dtype, Probe { args, files, settings, plan })
}

/// The arguments with the defaults of their task, which is `events` for the embedded model without data.
fn resolved(args: &ProbeArgs, files: &ModelFiles) -> ProbeArgs {
    let own = files.is_embedded() && args.train.is_empty() && args.test.is_empty();
    let task = args.task.unwrap_or(if own { Task::Events } else { Task::Sst2 });
    let defaults = ProbeSettings::new(task);
    ProbeArgs {
        task: Some(task),
        seeds: args.seeds.or(Some(defaults.seeds.len() as u64)),
        learning_rate: args.learning_rate.or(Some(defaults.learning_rate)),
        epochs: args.epochs.or(Some(defaults.epochs)),
        ..args.clone()
    }
}

/// The settings that resolved arguments ask for.
fn settings(args: &ProbeArgs, family: Family) -> Result<ProbeSettings> {
    let defaults = ProbeSettings::new(args.task.unwrap_or(Task::Sst2));
    let template = match &args.template {
        Some(text) => Template::parse(text, &defaults.template)?,
        None => defaults.template.clone(),
    };
    Ok(ProbeSettings {
        template,
        demonstrations: args.demos,
        queries: Some(args.queries),
        seeds: resolve::seeds(args.seed, args.seeds.unwrap_or(defaults.seeds.len() as u64))?,
        r: args.lora.r,
        lora_alpha: args.lora.lora_alpha,
        target_modules: resolve::module_names(&args.lora, family),
        learning_rate: args.learning_rate.unwrap_or(defaults.learning_rate),
        epochs: args.epochs.unwrap_or(defaults.epochs),
        batch_size: args.batch_size,
        weight_decay: args.regularization.weight_decay,
        max_grad_norm: resolve::clip_threshold(&args.regularization),
        rows: args.batch_tokens,
        soft: SoftSettings {
            arms: args.arms.clone(),
            num_virtual_tokens: args.num_virtual_tokens,
            learning_rate: args.prompt_learning_rate,
            epochs: args.prompt_epochs,
        },
        ..defaults
    })
}

/// The demonstrations and queries, drawn from the task's data.
fn draw(args: &ProbeArgs, files: &ModelFiles, settings: &ProbeSettings) -> Result<Plan> {
    let task = settings.task;
    if task == Task::Events && args.train.is_empty() && args.test.is_empty() {
        let (pool, queries) = synthetic::events();
        return Plan::new(&files.tokenizer()?, task, &pool, &queries, settings);
    }
    for (flag, files) in [("--train", &args.train), ("--test", &args.test)] {
        if files.is_empty() {
            return Err(Error::argument(flag, "the task's data (or --plan REPORT, to repeat a run)", "none"));
        }
    }
    let tokenizer = files.tokenizer()?;
    let (pool, queries) = (task.load(&args.train)?.examples, task.load(&args.test)?.examples);
    Plan::new(&tokenizer, task, &pool, &queries, settings)
}

struct Probe<'a> {
    args: &'a ProbeArgs,
    files: ModelFiles,
    settings: ProbeSettings,
    plan: Plan,
}

impl Job for Probe<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { args, files, settings, plan } = self;
        if args.dry_run {
            let targets = settings.targets(files.config.family)?;
            let shape = LoraShape { rank: settings.r, alpha: settings.lora_alpha, rslora: false, targets };
            let layout = Layout::lora(&files.config, &shape);
            let rows = settings.rows.max(plan.longest());
            return MemoryPlan::new(&backend, &files)
                .tuning(&backend, &files.config, &layout, plan.seeds.len(), rows)
                .print(args.common.json);
        }
        let mut model = Model::new(&mut backend, &files.config, &files.checkpoint)?;
        let mut bars = Bars::default();
        let outcome =
            crate::probe::run(&mut backend, &mut model, &args.base.model, &plan, &settings, &mut |p| bars.show(p));
        bars.clear();
        let Outcome { mut report, adapters } = outcome?;
        resolve::write_config(&args.out, "probe", args)?;
        report.save(&args.out, if args.save_adapters { &adapters } else { &[] })?;
        let value = serde_json::to_value(&report).map_err(Error::file(&args.out))?;
        let files = report::write_beside(&value, &args.out, args.csv)?;
        if args.common.json {
            return output::json(&value);
        }
        output::line(report_tables::probe(&report))?;
        files.iter().try_for_each(|file| output::line(file.display()))?;
        output::line(args.out.join("report.json").display())
    }
}

/// A bar for the phase that is running.
#[derive(Default)]
struct Bars {
    current: Option<(Phase, ProgressBar)>,
}

impl Bars {
    /// Moves the bar to where the probe is, and begins another with another phase.
    fn show(&mut self, progress: Progress) {
        if self.current.as_ref().is_none_or(|(phase, _)| *phase != progress.phase) {
            self.clear();
            let (name, unit) = match progress.phase {
                Phase::Tune(Arm::Lora) => ("tuning".to_owned(), "steps"),
                Phase::Tune(arm) => (format!("tuning {}", arm_name(arm).to_uppercase()), "steps"),
                Phase::Read(Arm::ZeroShot) => (arm_name(Arm::ZeroShot).to_owned(), "prompts"),
                Phase::Read(arm) => (arm_name(arm).to_uppercase(), "prompts"),
            };
            self.current = Some((progress.phase, output::progress(progress.total as u64, unit).with_message(name)));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(progress.done as u64);
        }
    }

    /// Removes the bar.
    fn clear(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}
