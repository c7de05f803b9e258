//! Running a plan: one arm after the other, then every pair of them.

use std::time::Instant;

use super::arm::Arm;
use super::packing::Group;
use super::plan::{Plan, SeedPlan};
use super::progress::{Count, Phase, Progress};
use super::report::{
    ArmReport, Layer, LayerReport, PairReport, Phases, Positions, Report, SeedReport, Summary, TuningReport,
    UpdateReport,
};
use super::settings::ProbeSettings;
use super::states::{ArmStates, read};
use super::statistics::MeanSd;
use super::tuning::{AdapterRun, AdapterSettings};
use crate::Result;
use crate::backend::Backend;
use crate::formats::adapter::Adapter;
use crate::measures::similarity::{cosines, gaussian_updates, updates};
use crate::model::{Adaptation, Model};
use crate::pack::Label;
use crate::task::metrics::score;
use crate::task::prompts::{Answer, Prompt, TrainingExample};
use crate::train::data::TrainSequence;
use crate::train::fit::{self, Tuning};
use crate::train::trainer::{Run, StepReport, TrainerOptions};

/// The result of a probe.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// To be written by [`Report::save`].
    pub report: Report,
    /// The adapters of every arm that trains some, one per seed.
    pub adapters: Vec<(Arm, Vec<Adapter>)>,
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
    model.config.require_head()?;
    model.config.require_causal()?;
    plan.validate("plan", model.config.vocab_size)?;
    let soft = if settings.soft.arms.is_empty() { 0 } else { settings.soft.num_virtual_tokens };
    model.config.check_unscaled(soft + plan.longest())?;
    let mut runner = Runner {
        backend,
        model,
        name,
        plan,
        settings,
        progress,
        lap: Instant::now(),
        seconds: Phases::default(),
        tokens: Phases::default(),
    };
    let arms = settings.arms().into_iter().map(|arm| runner.arm(arm)).collect::<Result<Vec<_>>>()?;
    Ok(runner.outcome(arms))
}

/// What an arm did.
struct ArmRun {
    arm: Arm,
    /// Of the queries: those of every seed, or one for all seeds.
    states: Vec<ArmStates>,
    /// By seed; empty where nothing is trained.
    tunings: Vec<TuningReport<f64>>,
    /// By seed; empty where nothing is trained.
    adapters: Vec<Adapter>,
}

impl ArmRun {
    /// The states of a seed.
    fn seed(&self, s: usize) -> &ArmStates {
        self.states.get(s).unwrap_or(&self.states[0])
    }
}

/// What is at hand while arms are computed.
struct Runner<'a, B: Backend> {
    backend: &'a mut B,
    model: &'a mut Model<B>,
    name: &'a str,
    plan: &'a Plan,
    settings: &'a ProbeSettings,
    progress: &'a mut dyn FnMut(Progress),
    /// When the phase before this one ended.
    lap: Instant,
    seconds: Phases<f64>,
    tokens: Phases<usize>,
}

impl<'a, B: Backend> Runner<'a, B> {
    /// Trains what an arm trains, and reads its queries.
    fn arm(&mut self, arm: Arm) -> Result<ArmRun> {
        let tuning = if arm.trains() { Some(self.tune(arm)?) } else { None };
        let reads = self.groups(arm);
        let total = reads.iter().flatten().map(|group| group.prompts.len()).sum();
        let mut count = Count { phase: Phase::Read(arm), done: 0, total, progress: self.progress };
        let adaptation = tuning.as_ref().map(|tuning| &tuning.adaptation);
        let (mut states, mut tokens) = (Vec::new(), 0);
        for groups in &reads {
            let (read, rows) = read(self.backend, self.model, adaptation, groups, self.settings.rows, &mut count)?;
            states.extend(read);
            tokens += rows;
        }
        *self.tokens.read(arm) += tokens;
        let Some(Tuning { adaptation, losses, .. }) = tuning else {
            *self.seconds.read(arm) += lap(&mut self.lap);
            return Ok(ArmRun { arm, states, tunings: Vec::new(), adapters: Vec::new() });
        };
        // Every seed's queries are followed by what it was trained on.
        let mut states = states.into_iter();
        let (mut of_queries, mut tunings) = (Vec::new(), Vec::new());
        for (seed, loss) in self.plan.seeds.iter().zip(losses) {
            of_queries.extend(states.next());
            let learnt = states.next().expect("probe: states of the training examples");
            tunings.push(TuningReport { loss, final_loss: mean_loss(&learnt, seed.training_examples(arm)) });
        }
        let adapters = self.adapters(arm, &adaptation)?;
        *self.seconds.read(arm) += lap(&mut self.lap);
        Ok(ArmRun { arm, states: of_queries, tunings, adapters })
    }

    /// The groups of an arm's prompts, those of a list to be read together.
    fn groups(&self, arm: Arm) -> Vec<Vec<Group>> {
        let plan = self.plan;
        let (soft, trains) = (self.rows(arm).unwrap_or(0), arm.trains());
        let queries = |run: Option<usize>, seed: &SeedPlan| {
            let (label, prompts) = match arm.has_demonstrations() {
                true => (Label::Demonstration, seed.icl_prompts()),
                false => (Label::Query, plan.prompts()),
            };
            Group { run, soft, label, prompts }
        };
        if trains {
            let of_seed = |(run, seed): (usize, &SeedPlan)| {
                let learnt = seed.training_examples(arm).iter().map(as_prompt).collect();
                [queries(Some(run), seed), Group { run: Some(run), soft, label: Label::Query, prompts: learnt }]
            };
            return vec![plan.seeds.iter().enumerate().flat_map(of_seed).collect()];
        }
        // Without demonstrations all seeds have the same queries.
        let seeds = if arm.has_demonstrations() { &plan.seeds[..] } else { &plan.seeds[..1] };
        seeds.iter().map(|seed| vec![queries(None, seed)]).collect()
    }

    /// Trains an arm's adapter for each seed.
    fn tune(&mut self, arm: Arm) -> Result<Tuning<B>> {
        let runs = self.plan.seeds.iter().map(|seed| AdapterRun { seed: seed.seed, rows: self.rows(arm) });
        let adaptation = self.adapter_settings().start(self.backend, self.model, &runs.collect::<Vec<_>>())?;
        let sequence = |example: &TrainingExample| TrainSequence {
            ids: example.input_ids.clone(),
            labels: example.labels.clone(),
        };
        let run = |seed: &SeedPlan| {
            let data: Vec<TrainSequence> = seed.training_examples(arm).iter().map(sequence).collect();
            Run { settings: self.settings.training(arm, seed.seed, data.len()), data }
        };
        let runs: Vec<Run> = self.plan.seeds.iter().map(run).collect();
        let tuning = if self.settings.epochs(arm) == 0.0 {
            Tuning { adaptation, losses: vec![Vec::new(); runs.len()], tokens: 0 }
        } else {
            let options = TrainerOptions { row_budget: self.settings.rows, ..TrainerOptions::default() };
            let phase = Phase::Tune(arm);
            let progress = &mut *self.progress;
            let mut on_step = |step: &StepReport, total: u64| {
                progress(Progress { phase, done: step.step as usize, total: total as usize });
            };
            fit::tune(self.backend, self.model, adaptation, runs, options, &mut on_step)?
        };
        *self.tokens.tune(arm) += tuning.tokens;
        // The time of a soft prompt's training counts with that of its reading.
        if !arm.has_soft_prompt() {
            *self.seconds.tune(arm) += lap(&mut self.lap);
        }
        Ok(tuning)
    }

    /// Reads out an arm's adapter of every seed.
    fn adapters(&mut self, arm: Arm, adaptation: &Adaptation<B>) -> Result<Vec<Adapter>> {
        let settings = self.adapter_settings();
        let rows = self.rows(arm);
        let read = |(run, seed): (usize, &SeedPlan)| {
            let config = settings.config(AdapterRun { seed: seed.seed, rows }, &self.model.config);
            adaptation.read_out(self.backend, run, &config)
        };
        self.plan.seeds.iter().enumerate().map(read).collect()
    }

    fn adapter_settings(&self) -> AdapterSettings<'a> {
        let ProbeSettings { r, lora_alpha, target_modules, .. } = self.settings;
        AdapterSettings { base: self.name, r: *r, lora_alpha: *lora_alpha, target_modules }
    }

    /// Rows of an arm's soft prompt.
    fn rows(&self, arm: Arm) -> Option<usize> {
        arm.has_soft_prompt().then_some(self.settings.soft.num_virtual_tokens)
    }

    fn outcome(self, arms: Vec<ArmRun>) -> Outcome {
        let Self { backend, model, name, plan, settings, mut seconds, mut tokens, .. } = self;
        let gold = plan.gold();
        let seed = |(s, seed): (usize, &SeedPlan)| SeedReport {
            seed: seed.seed,
            arms: arms.iter().map(|arm| arm_report(arm, s, &gold, plan.labels.is_some())).collect(),
            adapters: Default::default(),
            layers: layers(&arms, s, model.config.hidden_size, seed.seed),
        };
        let seeds: Vec<SeedReport> = plan.seeds.iter().enumerate().map(seed).collect();
        seconds.total = seconds.anchor + seconds.icl + seconds.tune + seconds.it + seconds.soft;
        tokens.total = tokens.anchor + tokens.icl + tokens.tune + tokens.it + tokens.soft_tune + tokens.soft;
        let of_backend = backend.name();
        let (device, dtype) = of_backend.rsplit_once(' ').unwrap_or((&of_backend, ""));
        let report = Report {
            version: env!("CARGO_PKG_VERSION").to_string(),
            model: name.to_string(),
            device: device.to_string(),
            dtype: dtype.to_string(),
            positions: Positions { longest: plan.longest(), supported: model.config.max_position_embeddings },
            settings: settings.clone(),
            summary: Summary::of(&seeds),
            seeds,
            seconds,
            tokens,
            plan: plan.clone(),
        };
        let adapters = arms.into_iter().filter(|arm| !arm.adapters.is_empty()).map(|arm| (arm.arm, arm.adapters));
        Outcome { report, adapters: adapters.collect() }
    }
}

/// A training example as a prompt with its answer.
fn as_prompt(example: &TrainingExample) -> Prompt {
    let scored = example.scored().expect("probe: the plan was checked");
    let (prompt, answer) = example.input_ids.split_at(example.input_ids.len() - scored);
    Prompt { token_ids: prompt.to_vec(), answers: vec![Answer { replaces: 0, token_ids: answer.to_vec(), scored }] }
}

/// Mean loss over the label tokens of all examples.
fn mean_loss(states: &ArmStates, examples: &[TrainingExample]) -> f64 {
    let labels: usize = examples.iter().filter_map(TrainingExample::scored).sum();
    -states.log_probs.iter().flatten().sum::<f64>() / labels as f64
}

fn arm_report(run: &ArmRun, s: usize, gold: &[usize], labelled: bool) -> ArmReport<Option<f64>, f64> {
    let scores = score(&run.seed(s).log_probs, gold, labelled);
    let tuning = run.tunings.get(s).cloned();
    ArmReport { arm: run.arm, accuracy: scores.accuracy, log_prob: scores.log_prob, tuning }
}

/// Every arm beside all before it, at every layer.
fn layers(arms: &[ArmRun], s: usize, width: usize, seed: u64) -> Vec<LayerReport> {
    let count = arms[0].seed(s).states.len();
    let layer = |l: usize| {
        let all: Vec<(Arm, &[f32])> = arms.iter().map(|arm| (arm.arm, arm.seed(s).states[l].as_slice())).collect();
        let (_, anchor) = all[0];
        let mut pairs = Vec::new();
        for (j, &(second, y)) in all.iter().enumerate() {
            for (i, &(first, x)) in all[..j].iter().enumerate() {
                let between = (i > 0).then(|| updates(anchor, x, y, width));
                pairs.push(PairReport {
                    arms: [first, second],
                    cosine: MeanSd::of(cosines(x, y, width)),
                    updates: between.map(|found| UpdateReport {
                        update: MeanSd::of(found.update),
                        update_shuffled: MeanSd::of(found.update_shuffled),
                    }),
                });
            }
        }
        let icl = all.iter().find(|(arm, _)| *arm == Arm::Icl);
        let noise = icl.map(|(_, icl)| gaussian_updates(anchor, icl, width, seed, l));
        LayerReport { layer: Layer::of(l, count), pairs, update_gaussian: MeanSd::of(noise.into_iter().flatten()) }
    };
    (0..count).map(layer).collect()
}

/// Seconds since `since`, which becomes now.
fn lap(since: &mut Instant) -> f64 {
    let now = Instant::now();
    now.duration_since(std::mem::replace(since, now)).as_secs_f64()
}
