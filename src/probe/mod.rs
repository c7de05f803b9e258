//! The same demonstrations as prompt and as training data, compared in the hidden states (Duan et al., arXiv
//! 2311.10367).
//!
//! | arm | weights | input |
//! |---|---|---|
//! | anchor | pretrained | the query alone |
//! | ICL | pretrained | the demonstrations, then the query |
//! | IT | LoRA, tuned on the same demonstrations (prompt to answer, loss on the answer) | the query alone |
//!
//! [`soft`] adds arms whose input begins with a soft prompt.
//!
//! Read at the last token of every query, after every block and after the final norm. The anchor is read once; the
//! queries of a seed continue one segment of demonstrations; all seeds' tunings are runs of the same passes, and so
//! are their readings.

use std::time::Instant;

use serde::{Deserialize, Serialize};

pub mod plan;
pub mod report;
pub mod similarity;
pub mod soft;
pub mod statistics;

mod arms;
mod packing;
mod tuning;

use crate::arch::Family;
use crate::arch::Projection;
use crate::backend::Backend;
use crate::formats::adapter::{LoraAdapter, LoraConfig, Modules, PromptAdapter};
use crate::model::Model;
use crate::pack::Label;
use crate::task::metrics::score;
use crate::task::prompts::{Answer, Lesson, Prompt};
use crate::task::{Task, Template};
use crate::{Error, Result};
use arms::{Reading, read};
use packing::Group;
use plan::Plan;
use report::{Arms, LayerReport, Phases, Positions, Report, SeedReport, Summary, layer_name};
use similarity::compare;
use soft::{Others, SoftArm, SoftSettings};
use tuning::tune;

/// What is compared, and how it is tuned. Defaults are our own choices, not those of a paper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSettings {
    /// The task.
    pub task: Task,
    /// Its template (default: the task's).
    pub template: Template,
    /// Demonstrations per seed (default 10).
    pub demonstrations: usize,
    /// Queries, the first of the data set; none means all (default 100).
    pub queries: Option<usize>,
    /// Seeds (default 0 to 2; to 7 for `events`).
    pub seeds: Vec<u64>,
    /// LoRA rank (default 8).
    pub r: usize,
    /// LoRA alpha (default 16).
    pub lora_alpha: f64,
    /// Adapted modules, by the family's names (default `q_proj`, `v_proj`).
    pub target_modules: Vec<String>,
    /// Learning rate, the same at every step (default 1e-3; 5e-3 for `events`).
    pub learning_rate: f64,
    /// Passes over the demonstrations (default 10; 40 for `events`); with 0 the IT arm is an adapter that changes nothing.
    pub epochs: f64,
    /// Demonstrations of a step, shuffled by the seed; none means all of them in every step (the default).
    pub batch_size: Option<usize>,
    /// Decoupled weight decay (default 0).
    pub weight_decay: f64,
    /// The gradient's norm is cut to this; none leaves it (the default).
    pub max_grad_norm: Option<f64>,
    /// Token rows of a pass at most, unless a single prompt needs more (default 4096). States and scores do not depend on it; a
    /// tuning does in rounding, since it divides the sums of its gradients.
    pub rows: usize,
    /// The arms of soft prompts.
    #[serde(default)]
    pub soft: SoftSettings,
}

impl ProbeSettings {
    /// The defaults for a task. That of the embedded model is cheap enough for more seeds, and a model so small learns
    /// little at rates for large ones.
    pub fn new(task: Task) -> Self {
        let (seeds, learning_rate, epochs) = match task {
            Task::Events => (8, 5e-3, 40.0),
            _ => (3, 1e-3, 10.0),
        };
        Self {
            task,
            template: task.template(),
            demonstrations: 10,
            queries: Some(100),
            seeds: (0..seeds).collect(),
            r: 8,
            lora_alpha: 16.0,
            target_modules: vec!["q_proj".to_string(), "v_proj".to_string()],
            learning_rate,
            epochs,
            batch_size: None,
            weight_decay: 0.0,
            max_grad_norm: None,
            rows: 4096,
            soft: SoftSettings::default(),
        }
    }

    /// Checks every field's domain.
    ///
    /// # Errors
    /// [`Error::Argument`] with the name of the field's option.
    pub fn validate(&self, family: Family) -> Result<()> {
        let check = |ok: bool, name: &str, expected: &str, found: String| {
            if ok { Ok(()) } else { Err(Error::argument(name, expected, found)) }
        };
        check(self.demonstrations > 0, "--demos", "at least 1", self.demonstrations.to_string())?;
        check(!self.seeds.is_empty(), "--seeds", "at least 1", "none".to_string())?;
        check(self.r > 0, "--r", "at least 1", self.r.to_string())?;
        let alpha = self.lora_alpha;
        check(alpha.is_finite() && alpha > 0.0, "--lora-alpha", "a number above 0", alpha.to_string())?;
        check(self.epochs.is_finite() && self.epochs >= 0.0, "--epochs", "a number from 0", self.epochs.to_string())?;
        check(self.rows > 0, "--rows", "at least 1", self.rows.to_string())?;
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        let twice = seeds.windows(2).find(|pair| pair[0] == pair[1]);
        check(twice.is_none(), "--seeds", "each seed once", format!("{} twice", twice.map_or(0, |pair| pair[0])))?;
        self.targets(family)?;
        self.soft.validate()?;
        // Without an epoch there is nothing to train, which is no error here as it is to the trainer.
        let epochs = if self.epochs == 0.0 { 1.0 } else { self.epochs };
        tuning::run_settings(&Self { epochs, ..self.clone() }, 0, self.demonstrations).validate()?;
        let SoftSettings { learning_rate, epochs, .. } = self.soft;
        tuning::run_settings(&Self { learning_rate, epochs, ..self.clone() }, 0, self.demonstrations).validate()
    }

    /// The adapted modules of a model of some family.
    ///
    /// # Errors
    /// None, or a name that is not of a module.
    pub fn targets(&self, family: Family) -> Result<Vec<Projection>> {
        family.targets(&self.target_modules)
    }
}

/// How far a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Prompts read, or steps taken, in this phase.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// A phase of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading the queries alone.
    Anchor,
    /// Reading the queries after the demonstrations.
    Icl,
    /// Tuning.
    Tune,
    /// Reading the queries through the adapters.
    It,
    /// Tuning soft prompts.
    TuneSoft(SoftArm),
    /// Reading the queries after them.
    Soft(SoftArm),
}

/// The result of a probe.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The report, to be written by [`Report::save`].
    pub report: Report,
    /// The adapter of each seed.
    pub adapters: Vec<LoraAdapter>,
    /// The soft prompt of each seed, of every arm that has them.
    pub prompts: Vec<Vec<PromptAdapter>>,
}

/// Runs a plan. `name` is the model's in the report and the adapters.
///
/// # Errors
/// Settings or a plan out of their domain, a loss that is not finite, or a failure of the device.
pub fn run<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    name: &str,
    plan: &Plan,
    settings: &ProbeSettings,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome> {
    settings.validate(model.config.family)?;
    plan.validate("plan", model.config.vocab_size)?;
    let soft = if settings.soft.arms.is_empty() { 0 } else { settings.soft.num_virtual_tokens };
    model.config.check_unscaled(soft + plan.longest())?;
    let (queries, seeds) = (plan.queries.len(), plan.seeds.len());
    let mut clock = Clock(Instant::now());
    let (mut seconds, mut tokens) = (Phases::<f64>::default(), Phases::<usize>::default());

    let alone = [Group { run: None, soft: 0, label: Label::Query, prompts: plan.prompts() }];
    let mut count = Count { phase: Phase::Anchor, done: 0, total: queries, progress };
    let (anchor, rows) = read(backend, model, None, &alone, settings.rows, &mut count)?;
    tokens.anchor = rows;
    seconds.anchor = clock.lap();

    let mut icl = Vec::with_capacity(seeds);
    let mut count = Count { phase: Phase::Icl, done: 0, total: queries * seeds, progress };
    for seed in &plan.seeds {
        let shown = [Group { run: None, soft: 0, label: Label::Demonstration, prompts: seed.icl_prompts() }];
        let (reading, rows) = read(backend, model, None, &shown, settings.rows, &mut count)?;
        icl.extend(reading);
        tokens.icl += rows;
    }
    seconds.icl = clock.lap();

    let lessons: Vec<&[Lesson]> = plan.seeds.iter().map(|seed| seed.train.as_slice()).collect();
    let start = tuning::lora(backend, model, plan, settings)?;
    let tuned = tune(backend, model, start, plan, &lessons, settings, Phase::Tune, progress)?;
    tokens.tune = tuned.tokens;
    seconds.tune = clock.lap();

    let groups = plan.seeds.iter().enumerate().flat_map(|(run, seed)| {
        let lessons = seed.train.iter().map(asked).collect();
        [plan.prompts(), lessons].map(|prompts| Group { run: Some(run), soft: 0, label: Label::Query, prompts })
    });
    let groups: Vec<Group> = groups.collect();
    let total = groups.iter().map(|g| g.prompts.len()).sum();
    let mut count = Count { phase: Phase::It, done: 0, total, progress };
    let (it, rows) = read(backend, model, Some(&tuned.adaptation), &groups, settings.rows, &mut count)?;
    tokens.it = rows;
    tokens.total = tokens.anchor + tokens.icl + tokens.tune + tokens.it;

    let right = plan.right();
    let scores = |reading: &Reading| score(&reading.log_probs, &right, plan.labels.is_some());
    let reports = plan.seeds.iter().enumerate().map(|(s, seed)| {
        let readings = Arms { anchor: &anchor[0], icl: &icl[s], it: &it[2 * s] };
        let scores = readings.map(scores);
        SeedReport {
            seed: seed.seed,
            accuracy: scores.map(|s| s.accuracy),
            log_prob: scores.map(|s| s.log_prob),
            loss: tuned.losses[s].clone(),
            final_loss: mean_loss(&it[2 * s + 1], &seed.train),
            adapter: None,
            layers: layers(readings, model.config.hidden_size, seed.seed),
            soft: Vec::new(),
        }
    });
    let mut reports: Vec<SeedReport> = reports.collect();
    let modules = Modules::List(settings.target_modules.clone());
    let mut config = LoraConfig::new(settings.r, settings.lora_alpha, modules);
    config.base_model_name_or_path = Some(name.to_string());
    let adapters = (0..seeds).map(|run| tuned.adaptation.adapter(backend, run, &config)).collect::<Result<_>>()?;
    seconds.it = clock.lap();

    let mut prompts = Vec::new();
    let mut read_soft: Vec<(SoftArm, Vec<Reading>)> = Vec::new();
    for &arm in &settings.soft.arms {
        let mut arms = vec![("icl", icl.iter().collect()), ("it", it.iter().step_by(2).collect())];
        arms.extend(read_soft.iter().map(|(arm, readings)| (arm.name(), readings.iter().collect())));
        let others = Others { anchor: &anchor[0], arms };
        let outcome = soft::run(backend, model, name, plan, settings, arm, &others, progress)?;
        reports.iter_mut().zip(outcome.reports).for_each(|(seed, report)| seed.soft.push(report));
        tokens.soft_tune += outcome.tokens.0;
        tokens.soft += outcome.tokens.1;
        prompts.push(outcome.prompts);
        read_soft.push((arm, outcome.readings));
    }
    tokens.total += tokens.soft_tune + tokens.soft;
    seconds.soft = clock.lap();
    seconds.total = seconds.anchor + seconds.icl + seconds.tune + seconds.it + seconds.soft;

    let of_backend = backend.name();
    let (device, dtype) = of_backend.rsplit_once(' ').unwrap_or((&of_backend, ""));
    let report = Report {
        version: env!("CARGO_PKG_VERSION").to_string(),
        model: name.to_string(),
        device: device.to_string(),
        dtype: dtype.to_string(),
        positions: Positions { longest: plan.longest(), supported: model.config.max_position_embeddings },
        settings: settings.clone(),
        summary: Summary::of(&reports),
        seeds: reports,
        seconds,
        tokens,
        plan: plan.clone(),
    };
    Ok(Outcome { report, adapters, prompts })
}

/// A tuning sequence as a prompt with its answer.
fn asked(lesson: &Lesson) -> Prompt {
    let scored = lesson.scored().expect("probe: the plan was checked");
    let (prompt, answer) = lesson.input_ids.split_at(lesson.input_ids.len() - scored);
    Prompt { token_ids: prompt.to_vec(), answers: vec![Answer { replaces: 0, token_ids: answer.to_vec(), scored }] }
}

/// Mean loss over the label tokens of all lessons.
fn mean_loss(reading: &Reading, lessons: &[Lesson]) -> f64 {
    let labels: usize = lessons.iter().filter_map(Lesson::scored).sum();
    -reading.log_probs.iter().flatten().sum::<f64>() / labels as f64
}

fn layers(readings: Arms<&Reading>, width: usize, seed: u64) -> Vec<LayerReport> {
    let count = readings.anchor.states.len();
    let layer = |i: usize| {
        let [anchor, icl, it] = [readings.anchor, readings.icl, readings.it].map(|r| r.states[i].as_slice());
        LayerReport::over_queries(layer_name(i, count), compare(anchor, icl, it, width, seed, i))
    };
    (0..count).map(layer).collect()
}

/// Measures one phase after the other.
struct Clock(Instant);

impl Clock {
    /// Seconds since the last lap.
    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now)).as_secs_f64()
    }
}

/// Counts the prompts of a phase.
struct Count<'a> {
    phase: Phase,
    done: usize,
    total: usize,
    progress: &'a mut dyn FnMut(Progress),
}

impl Count<'_> {
    fn add(&mut self, prompts: usize) {
        self.done += prompts;
        (self.progress)(Progress { phase: self.phase, done: self.done, total: self.total });
    }
}
