//! `probe`: in-context learning and instruction tuning on the same demonstrations, by hidden states and scores.

use std::collections::HashSet;
use std::path::Path;

use indicatif::ProgressBar;

use super::args::{OF_PLAN, ProbeArgs};
use super::device::{Job, dispatch};
use super::plan::Plan as MemoryPlan;
use super::resolve::{self, ModelFiles};
use super::study::{self, Asked, Study};
use super::{Failure, edits, output, report, report_tables};
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::Naming;
use crate::model::{Layout, LogitLosses, LoraShape, Model, StateLosses};
use crate::probe::arm::Arm;
use crate::probe::factors::{Factor, Levels};
use crate::probe::report::{Report, arm_name};
use crate::probe::{
    Base, Condition, Measures, Outcome, Phase, ProbeSettings, Progress, SoftSettings, TuningKind, run_studies,
};
use crate::task::Task;
use crate::train::objective::Objective;
use crate::{Error, Result};

pub fn run(args: &ProbeArgs) -> Result<(), Failure> {
    let files = resolve::base_model(&args.base.model, &args.common)?;
    files.config.require_causal()?;
    let Prepared { args, study, mut planned } = prepare(args, &files)?;
    let args = &args;
    let mut models: Vec<String> = planned.iter().map(|planned| planned.model.clone()).collect();
    let mut seen = HashSet::new();
    models.retain(|model| seen.insert(model.clone()));
    // All are opened before the first runs: a name that is no model's should not be found hours later.
    let mut first = Some(files);
    let opened = models.into_iter().map(|model| {
        let files = match first.take_if(|_| model == args.base.model) {
            Some(files) => files,
            None => resolve::base_model(&model, &args.common)?,
        };
        Ok((model, files))
    });
    let mut parts = Vec::new();
    for (model, files) in opened.collect::<Result<Vec<_>>>()? {
        let own: Vec<&mut Planned> = planned.iter_mut().filter(|planned| planned.model == model).collect();
        parts.extend(run_on((&model, files), vec![Part { args, study: study.as_ref(), planned: own }], None)?);
    }
    if args.dry_run { Ok(()) } else { finish(args, parts) }
}

/// Runs probes that differ in nothing that concerns the model, its device and its passes: what they have in common is
/// computed once, and each writes what it would alone. Their passes may take `memory` bytes.
///
/// # Errors
/// As [`run`], of any of them: then none has written anything, but for those before one that cannot write.
pub fn run_together(all: &[&ProbeArgs], memory: Option<usize>) -> Result<(), Failure> {
    let model = &all[0].base.model;
    let files = resolve::base_model(model, &all[0].common)?;
    files.config.require_causal()?;
    let mut prepared = all.iter().map(|args| prepare(args, &files)).collect::<Result<Vec<_>, Failure>>()?;
    let outcomes = run_on((model, files), prepared.iter_mut().map(Prepared::part).collect(), memory)?;
    prepared.iter().zip(outcomes).try_for_each(|(prepared, outcome)| finish(&prepared.args, vec![outcome]))
}

/// A probe whose flags are read: with the defaults of its task, and its conditions on their way to plans.
struct Prepared {
    args: ProbeArgs,
    /// None of a repeated one.
    study: Option<Study>,
    planned: Vec<Planned>,
}

impl Prepared {
    /// All that it has to do on its model.
    fn part(&mut self) -> Part<'_> {
        let Self { args, study, planned } = self;
        Part { args, study: study.as_ref(), planned: planned.iter_mut().collect() }
    }
}

/// Reads the flags of a probe; `files` are those of its model.
fn prepare(args: &ProbeArgs, files: &ModelFiles) -> Result<Prepared, Failure> {
    let task = task(args, files)?;
    let args = resolved(args, &task);
    let study = match args.plan {
        Some(_) => None,
        None => {
            let mut settings = settings(&args, task, &files.config)?;
            settings.patch |= args.edit.is_none() && study::is_default_run(&args, &settings);
            settings.validate(files.config.family)?;
            Some(Study::new(&args, &settings)?)
        }
    };
    let planned = match (&args.plan, &study) {
        (Some(path), _) => repeated(path, &args)?,
        (None, study) => study.iter().flat_map(|study| &study.asked).map(Planned::asked).collect(),
    };
    Ok(Prepared { args, study, planned })
}

/// What a probe has to do on one model.
struct Part<'a> {
    args: &'a ProbeArgs,
    study: Option<&'a Study>,
    planned: Vec<&'a mut Planned>,
}

/// A condition on its way to a plan.
struct Planned {
    model: String,
    asked: Option<Asked>,
    condition: Option<Condition>,
}

impl Planned {
    fn asked(asked: &Asked) -> Self {
        Self { model: asked.model.clone(), asked: Some(asked.clone()), condition: None }
    }
}

/// The conditions of a report: they are repeated with their own settings; only device and dtype may differ.
fn repeated(path: &Path, args: &ProbeArgs) -> Result<Vec<Planned>> {
    let Report { settings, plan, conditions, .. } = Report::read(path)?;
    let conditions: Vec<Condition> = match conditions.is_empty() {
        true => vec![Condition { levels: Levels::new(), settings, plan }],
        false => {
            conditions.into_iter().map(|c| Condition { levels: c.levels, settings: c.settings, plan: c.plan }).collect()
        }
    };
    let planned = |condition: Condition| {
        let model = condition.levels.get(&Factor::Model).and_then(|level| level.as_str());
        let model = model.unwrap_or(&args.base.model).to_owned();
        Planned { model, asked: None, condition: Some(condition) }
    };
    Ok(conditions.into_iter().map(planned).collect())
}

/// Runs the conditions of one model; gives the outcome of every part, none in a dry run.
fn run_on(
    (name, files): (&str, ModelFiles),
    mut parts: Vec<Part>,
    memory: Option<usize>,
) -> Result<Vec<Outcome>, Failure> {
    files.config.require_causal()?;
    let digest = files.tokenizer_digest()?;
    // Only a plan by the model's states waits for the model.
    let mut tokenizer = None;
    for Part { args, study, planned } in &mut parts {
        for planned in planned {
            if let (Some(asked), Some(study), None) = (&planned.asked, *study, &planned.condition) {
                let tokenizer = match &mut tokenizer {
                    Some(tokenizer) => tokenizer,
                    none => none.insert(files.tokenizer()?),
                };
                let mut settings = asked.settings.clone();
                study::expand_modules(&mut settings, args, &asked.levels, &files);
                settings.validate(files.config.family)?;
                if !study.needs_states(asked) {
                    let mut condition = study.plan(asked, tokenizer, None)?;
                    condition.plan.tokenizer.clone_from(&digest);
                    planned.condition = Some(condition);
                }
            }
            if let Some(condition) = &mut planned.condition {
                study::expand_modules(&mut condition.settings, args, &condition.levels, &files);
                let path = args.plan.as_ref().map_or("plan".to_owned(), |path| path.display().to_string());
                condition.plan.validate(&path, files.config.vocab_size)?;
                condition.plan.check_lengths(condition.settings.length_normalization)?;
                check_tokenizer(&path, condition.plan.tokenizer.as_deref(), digest.as_deref())?;
            }
        }
    }
    let mut outcomes = Vec::new();
    let (dtype, common) = (files.dtype, &parts[0].args.common);
    dispatch(common, dtype, Probe { name, files, parts, tokenizer, memory, outcomes: &mut outcomes })?;
    Ok(outcomes)
}

/// Refuses a plan whose token ids are of another tokenizer.
fn check_tokenizer(path: &str, of_plan: Option<&str>, own: Option<&str>) -> Result<()> {
    match (of_plan, own) {
        (Some(of_plan), Some(own)) if of_plan != own => {
            let found = format!("that of {own} (--tokenizer DIR takes another)");
            Err(Error::field(
                path,
                "plan.tokenizer",
                format!("the tokenizer of the model, as it was: {of_plan}"),
                found,
            ))
        }
        (None, Some(_)) => {
            output::note(format_args!("{path}: says not of which tokenizer its ids are, which must be the model's"));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Joins the reports of all models, writes them, and says what they say.
fn finish(args: &ProbeArgs, parts: Vec<Outcome>) -> Result<(), Failure> {
    let mut parts = parts.into_iter();
    let Outcome { mut report, mut adapters } = parts.next().expect("probe: at least one condition");
    for part in parts {
        report.join(part.report);
        adapters.extend(part.adapters);
    }
    let mut flags = serde_json::to_value(args).map_err(Error::file(&args.out))?;
    if let (Some(flags), Some(_)) = (flags.as_object_mut(), &args.plan) {
        flags.retain(|flag, _| !OF_PLAN.contains(&flag.as_str()));
    }
    resolve::write_config(&args.out, "probe", &flags)?;
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

/// The task that is asked for; `events` for the embedded model without data.
fn task(args: &ProbeArgs, files: &ModelFiles) -> Result<Task> {
    let own = files.is_embedded() && args.train.is_empty() && args.test.is_empty();
    Task::named(args.task.as_deref().unwrap_or(if own { "events" } else { "sst2" }))
}

/// The arguments with the defaults of their task.
fn resolved(args: &ProbeArgs, task: &Task) -> ProbeArgs {
    let defaults = ProbeSettings::new(task.clone());
    ProbeArgs {
        task: args.task.clone().or_else(|| Some(task.to_string())),
        demos: args.demos.or(Some(defaults.demonstrations)),
        queries: args.queries.or(defaults.queries),
        seeds: args.seeds.or(Some(defaults.seeds.len() as u64)),
        learning_rate: args.learning_rate.or(Some(defaults.learning_rate)),
        epochs: args.epochs.or(Some(defaults.epochs)),
        ..args.clone()
    }
}

/// The settings that resolved arguments ask for.
fn settings(args: &ProbeArgs, task: Task, model: &ModelConfig) -> Result<ProbeSettings> {
    let defaults = ProbeSettings::new(task);
    check_further_arms(args)?;
    let template = resolve::template(&defaults.task, args.template.as_deref(), args.apply_chat_template)?;
    Ok(ProbeSettings {
        template,
        demonstrations: args.demos.unwrap_or(defaults.demonstrations),
        queries: args.queries.or(defaults.queries),
        seeds: resolve::seeds(args.seed, args.seeds.unwrap_or(defaults.seeds.len() as u64))?,
        r: args.lora.r,
        lora_alpha: args.lora.lora_alpha,
        target_modules: resolve::module_names(&args.lora, model.family),
        layers_to_transform: resolve::layers(&args.lora.layers_to_transform, model.num_hidden_layers)?,
        learning_rate: args.learning_rate.unwrap_or(defaults.learning_rate),
        epochs: args.epochs.unwrap_or(defaults.epochs),
        batch_size: args.batch_size,
        weight_decay: args.regularization.weight_decay,
        max_grad_norm: resolve::clip_threshold(&args.regularization),
        similarity_by: args.similarity_by.into(),
        position: args.position,
        length_normalization: args.length_normalization.into(),
        tuning: args.tuning.into(),
        measures: Measures::parse(&args.measures)?,
        patch: args.patch,
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

/// Refuses flags of soft prompts without an arm of them; says where an arm has nothing to learn.
fn check_further_arms(args: &ProbeArgs) -> Result<()> {
    let has = |arms: [Arm; 2]| args.arms.iter().any(|arm| arms.contains(arm));
    let soft = SoftSettings::default();
    for (flag, given) in [
        ("--num-virtual-tokens", args.num_virtual_tokens != soft.num_virtual_tokens),
        ("--prompt-learning-rate", args.prompt_learning_rate != soft.learning_rate),
        ("--prompt-epochs", args.prompt_epochs != soft.epochs),
    ] {
        if given && !has([Arm::Pt, Arm::Ipt]) {
            return Err(Error::argument(flag, "beside --arms pt or ipt", "neither"));
        }
    }
    if has([Arm::ItAct, Arm::ItKl]) && args.demos.is_some_and(|demos| demos < 2) {
        output::note(
            "--arms it-act and it-kl: fewer than two demonstrations leave none to stand before another: untuned",
        );
    }
    Ok(())
}

struct Probe<'a> {
    name: &'a str,
    files: ModelFiles,
    parts: Vec<Part<'a>>,
    tokenizer: Option<Tokenizer>,
    /// Bytes that the passes may take; none is as many as there are.
    memory: Option<usize>,
    /// Of every part.
    outcomes: &'a mut Vec<Outcome>,
}

impl Job for Probe<'_> {
    fn run<B: Backend>(self, mut backend: B) -> Result<(), Failure> {
        let Self { name, files, parts, tokenizer, memory, outcomes } = self;
        let args = parts[0].args;
        let mut model = None;
        let (mut conditions, mut studies) = (Vec::new(), Vec::new());
        for Part { args, study, planned } in parts {
            let first = conditions.len();
            for planned in planned {
                let condition = match (planned.condition.take(), &planned.asked, study, &tokenizer) {
                    (None, Some(asked), Some(study), Some(tokenizer)) => {
                        let model = match &mut model {
                            Some(model) => model,
                            none => none.insert(Model::new(&mut backend, &files.config, &files.checkpoint)?),
                        };
                        let vectors = study.vectors(asked, &mut backend, model, tokenizer)?;
                        let mut condition = study.plan(asked, tokenizer, Some(vectors))?;
                        study::expand_modules(&mut condition.settings, args, &condition.levels, &files);
                        condition.plan.tokenizer = files.tokenizer_digest()?;
                        condition
                    }
                    (condition, ..) => condition.expect("probe: what needs no states is planned"),
                };
                conditions.push(condition);
            }
            studies.push(first..conditions.len());
        }
        if args.dry_run {
            return memory_plan(&backend, &files, &conditions)?.print(args.common.json);
        }
        if memory.is_some() && conditions[0].settings.tuning == TuningKind::Lora {
            memory_plan(&backend, &files, &conditions)?.check(memory)?;
        }
        let mut model = match model {
            Some(model) => model,
            None => Model::new(&mut backend, &files.config, &files.checkpoint)?,
        };
        let edits = edits::of_prompts(args.edit.as_deref(), &Naming::tl(&files.config))?;
        let base = Base { name, checkpoint: Some(&files.checkpoint), edits: &edits };
        let mut bars = Bars::default();
        let found = run_studies(&mut backend, &mut model, base, (&conditions, &studies), &mut |p| bars.show(p));
        bars.clear();
        *outcomes = found?;
        if let Some(tokenizer) = tokenizer.map_or_else(|| files.tokenizer_if_any(), |tokenizer| Ok(Some(tokenizer)))? {
            outcomes.iter_mut().for_each(|o| o.report.show_tokens(|id| tokenizer.token(id).unwrap_or_default()));
        }
        Ok(())
    }
}

/// The memory plan of the largest training, as if no two conditions shared any.
fn memory_plan<B: Backend>(backend: &B, files: &ModelFiles, conditions: &[Condition]) -> Result<MemoryPlan> {
    let settings = &conditions[0].settings;
    if settings.tuning == TuningKind::Full {
        return Err(Error::unsupported("--dry-run of --tuning", "full", "lora"));
    }
    let targets = settings.targets(files.config.family)?;
    let layers = settings.layers_to_transform.clone();
    let shape = LoraShape { rank: settings.r, alpha: settings.lora_alpha, rslora: false, dora: false, layers, targets };
    let layout = Layout::lora(&files.config, &shape);
    let mut rows = conditions.iter().map(|c| c.settings.rows.max(c.plan.longest())).max().unwrap_or(0);
    let runs = conditions.iter().map(|c| c.plan.seeds.len()).sum();
    let (mut labels, mut of_arms) = ((0, 0), Vec::new());
    for condition in conditions {
        // A pass has what teachers read beside what is learnt.
        let objectives = condition.settings.soft.arms.iter();
        let objectives: Vec<_> = objectives.filter_map(|arm| arm.objective(files.config.num_hidden_layers)).collect();
        if !objectives.is_empty() {
            let (taught, most, all) = condition.plan.longest_taught();
            (rows, labels) = (rows.max(taught), (labels.0.max(most), labels.1 + all));
            of_arms.extend(objectives);
        }
    }
    let plan = MemoryPlan::new(backend, files, true).tuning(backend, &files.config, &layout, runs, rows);
    // As of the largest pass there is; one arm is tuned after another.
    let (labels, sizes) = (labels.1.min(rows).max(labels.0), backend.element_sizes());
    let bytes = |of: &Objective| match of.activations > 0.0 {
        true => StateLosses::<B>::bytes(&files.config, &of.selection, labels, sizes),
        false => LogitLosses::<B>::bytes(&files.config, labels, sizes),
    };
    Ok(match of_arms.iter().map(bytes).max() {
        Some(bytes) => plan.with("objective", bytes),
        None => plan,
    })
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
                Phase::Patch => ("patching".to_owned(), "prompts"),
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
