//! Running plans: one arm after the other, over all conditions at once, then every pair of arms.
//!
//! What conditions have in common is computed once: prompts that are the same behind the same weights, and trainings that
//! are the same but for their length, of which the longer one passes where the shorter one ends. Trainings that differ in
//! their data, rate or length are runs of the same passes.

use std::ops::Range;
use std::time::Instant;

use rayon::prelude::*;

use super::arm::{Arm, FURTHER_ARMS};
use super::arm_run::ArmRun;
use super::compared::{arm_report, examples, layers, lora_overlaps, outputs, pca};
use super::condition::{Base, Condition};
use super::factors::Levels;
use super::packing::Group;
use super::plan::{Plan, SeedPlan};
use super::points::{OwnTokens, Points, without_answer};
use super::position::Position;
use super::progress::{Progress, lap};
use super::readouts::TERMS;
use super::recovery;
use super::report::measures::ArmMeasures;
use super::report::{ConditionReport, PatchLayer, Phases, Positions, Report, SeedReport, Summary, TuningReport};
use super::settings::ProbeSettings;
use super::work::{ReadKey, TrainingKey, Weights, Worker};
use crate::arch::ModelConfig;
use crate::backend::Backend;
use crate::formats::adapter::Adapter;
use crate::hooks::{Edit, Site};
use crate::model::Model;
use crate::task::prompts::{Answer, Prompt, TrainingExample};
use crate::{Error, Result};

/// The result of a probe.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// To be written by [`Report::save`].
    pub report: Report,
    /// By condition: the adapters of every arm that trains some, one per seed.
    pub adapters: Vec<Vec<(Arm, Vec<Adapter>)>>,
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
    let condition = Condition { levels: Levels::new(), settings: settings.clone(), plan: plan.clone() };
    run_conditions(backend, model, Base { name, checkpoint: None, edits: &[] }, &[condition], progress)
}

/// Runs the conditions of a study on one model, at least one.
///
/// # Errors
/// See [`run`].
pub fn run_conditions<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    base: Base<'_>,
    conditions: &[Condition],
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome> {
    let whole = 0..conditions.len();
    let mut outcomes = run_studies(backend, model, base, (conditions, std::slice::from_ref(&whole)), progress)?;
    Ok(outcomes.pop().expect("probe: one study"))
}

/// Runs the conditions of several studies on one model: computed together, compared and reported each study as if it were
/// alone, but for seconds and tokens, which are those of all. Each study is a range of the conditions, in their order; all
/// have the rows of a pass that the first has.
///
/// # Errors
/// See [`run`].
pub fn run_studies<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    base: Base<'_>,
    (conditions, studies): (&[Condition], &[Range<usize>]),
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Outcome>> {
    model.config.require_head()?;
    model.config.require_causal()?;
    model.config.check_edits(base.edits)?;
    for Condition { settings, plan, .. } in conditions {
        if settings.patch && !base.edits.is_empty() {
            return Err(Error::argument("patch", "no patching, where states are edited", "both"));
        }
        settings.validate(model.config.family)?;
        plan.validate("plan", model.config.vocab_size)?;
        plan.check_lengths(settings.length_normalization)?;
        let without = |seed: &SeedPlan| seed.icl_demonstration_token_ids.is_empty() && !seed.train.is_empty();
        if settings.position == Position::Demos && plan.seeds.iter().any(without) {
            return Err(Error::argument("position", "any but demos, for which this plan has no prompts", "demos"));
        }
        let soft = if settings.soft.arms.is_empty() { 0 } else { settings.soft.num_virtual_tokens };
        model.config.check_unscaled(soft + plan.longest())?;
    }
    let asked = |of: &dyn Fn(&ProbeSettings) -> bool| conditions.iter().any(|condition| of(&condition.settings));
    let terms = match asked(&|settings| settings.measures_last("attribution")) {
        true => &TERMS[..],
        false => &TERMS[..usize::from(asked(&|settings| settings.measures.has("sim_aou")))],
    };
    let scores = asked(&|settings| settings.measures_last("sim_am")).then_some(Site::AttnScores);
    let sites: Vec<Site> = terms.iter().copied().chain(scores).collect();
    let adapted = conditions.iter().filter_map(|condition| condition.settings.layers_to_transform.as_ref());
    let lowest = adapted.flatten().copied().min();
    let mut worker = Worker::new(backend, model, base, (conditions[0].settings.rows, &sites), lowest, progress);
    let mut arms: Vec<Vec<ArmRun>> = conditions.iter().map(|_| Vec::new()).collect();
    for arm in [Arm::ZeroShot, Arm::Icl, Arm::Lora].into_iter().chain(FURTHER_ARMS) {
        let asked = conditions.iter().enumerate().filter(|(_, c)| c.settings.arms().contains(&arm));
        let planned: Vec<(usize, ArmPlan)> =
            asked.map(|(c, condition)| (c, ArmPlan::new(arm, condition, !base.edits.is_empty()))).collect();
        if !planned.is_empty() {
            worker.arm(arm, planned.iter().flat_map(|(_, plan)| plan.reads()))?;
        }
        for (c, plan) in planned {
            arms[c].push(plan.collect(&mut worker)?);
        }
    }
    let patching = patch(&mut worker, (conditions, studies), &arms)?;
    let readouts = conditions.iter().zip(&arms).map(|(condition, arms)| worker.readouts(condition, arms));
    let mut found = Found { readouts: readouts.collect::<Result<_>>()?, patching, arms };
    let (seconds, tokens, since) = (worker.seconds, worker.tokens, worker.lap);
    let of_backend = worker.backend.name();
    let of_study = |study: &Range<usize>| {
        let (own, found) = (&conditions[study.clone()], found.next(study.len()));
        outcome(base, &model.config, &of_backend, own, found, (seconds, tokens, since))
    };
    Ok(studies.iter().map(of_study).collect())
}

/// By condition and seed the layers that were patched, where that is asked for.
fn patch<B: Backend>(
    worker: &mut Worker<'_, B>,
    (conditions, studies): (&[Condition], &[Range<usize>]),
    arms: &[Vec<ArmRun>],
) -> Result<Vec<Vec<Vec<PatchLayer>>>> {
    let of_study = |study: &Range<usize>| {
        let (own, first) = (&conditions[study.clone()], study.start);
        own.iter().map(move |condition| of_another_task(condition, own).map(|other| first + other))
    };
    let others: Vec<Option<usize>> = studies.iter().flat_map(of_study).collect();
    let depth = worker.depth();
    let prompts = |(condition, other): (&Condition, &Option<usize>)| {
        let Condition { settings, plan, .. } = condition;
        let vectors = if settings.patch { recovery::vectors(plan, other.is_some()).len() } else { 0 };
        depth * vectors * plan.seeds.len() * plan.queries.len()
    };
    let total = conditions.iter().zip(&others).map(prompts).sum();
    let mut done = 0;
    let mut of = |(c, condition): (usize, &Condition)| {
        if !condition.settings.patch {
            return Ok(Vec::new());
        }
        let other = others[c].map(|other| &arms[other][..]);
        worker.patch(condition, &arms[c], other, (&mut done, total))
    };
    conditions.iter().enumerate().map(&mut of).collect()
}

/// The condition that differs in nothing but the task of its demonstrations.
fn of_another_task(condition: &Condition, all: &[Condition]) -> Option<usize> {
    let bare = |settings: &ProbeSettings| ProbeSettings { source: None, ..settings.clone() };
    let other = |other: &Condition| {
        other.settings.source != condition.settings.source && bare(&other.settings) == bare(&condition.settings)
    };
    all.iter().position(other)
}

/// What an arm does in a condition.
struct ArmPlan {
    arm: Arm,
    /// By seed, or one for all seeds.
    seeds: Vec<ArmSeed>,
}

struct ArmSeed {
    /// What is trained, for how many steps.
    training: Option<(TrainingKey, u64)>,
    /// The queries.
    queries: ReadKey,
    /// By what the log-probabilities of the queries' answers are divided.
    lengths: Vec<Vec<f64>>,
    /// The demonstrations, where it is their states that are compared.
    demonstrations: Option<ReadKey>,
    /// What was trained on, after the training.
    learnt: Option<ReadKey>,
    /// Tokens that the loss of a training example is taken over, all together.
    label_tokens: usize,
}

impl ArmPlan {
    fn new(arm: Arm, Condition { settings, plan, .. }: &Condition, edited: bool) -> Self {
        let mut own = OwnTokens::new(plan);
        // Where nobody asks which they are, prompts of conditions that find other ones are the same prompts.
        (own.scored, own.edited) = (settings.measures_last("sim_am"), edited);
        // Without demonstrations or training all seeds have the same queries.
        let same = !arm.has_demonstrations() && !arm.trains() && settings.position != Position::Demos;
        let seeds = if same { &plan.seeds[..1] } else { &plan.seeds[..] };
        Self { arm, seeds: seeds.iter().map(|seed| ArmSeed::new(arm, settings, plan, seed, &own)).collect() }
    }

    fn reads(&self) -> impl Iterator<Item = &ReadKey> {
        self.seeds.iter().flat_map(|s| std::iter::once(&s.queries).chain(&s.demonstrations).chain(&s.learnt))
    }

    /// What was read and trained for it.
    fn collect<B: Backend>(&self, worker: &mut Worker<'_, B>) -> Result<ArmRun> {
        let mut run = ArmRun::new(self.arm);
        for seed in &self.seeds {
            let mut states = worker.states(&seed.queries).clone();
            if let Some(demonstrations) = &seed.demonstrations {
                states.states.clone_from(&worker.states(demonstrations).states);
            }
            run.states.push(states);
            run.lengths.push(seed.lengths.clone());
            if let Some((key, steps)) = &seed.training {
                let learnt = seed.learnt.as_ref().map(|learnt| worker.states(learnt));
                let log_probs = learnt.map(|learnt| learnt.log_probs.iter().flatten().sum::<f64>());
                let final_loss = log_probs.map(|sum| -sum / seed.label_tokens as f64);
                run.tunings.push(TuningReport { loss: worker.losses(key, *steps), final_loss });
                run.adapters.extend(worker.adapter(key, *steps)?);
            }
        }
        Ok(run)
    }
}

impl ArmSeed {
    fn new(arm: Arm, settings: &ProbeSettings, plan: &Plan, seed: &SeedPlan, own: &OwnTokens) -> Self {
        let position = settings.position;
        let examples = seed.training_examples(arm);
        let training = arm.trains().then(|| {
            let key = TrainingKey::new(arm, settings, seed.seed, (examples, seed.teachers(arm)));
            (key, settings.steps(arm, examples.len()))
        });
        let trained = match &training {
            Some((key, steps)) if *steps > 0 || arm.has_soft_prompt() => Weights::Tuned(Box::new(key.clone()), *steps),
            // Untrained, a LoRA adds nothing.
            _ => Weights::Base,
        };
        let soft = if arm.has_soft_prompt() { settings.soft.num_virtual_tokens } else { 0 };
        let read = |demonstrations: bool, prompts: Vec<Prompt>, points: Vec<Points>| ReadKey {
            trained: trained.clone(),
            group: Group { run: None, soft, demonstrations, prompts, points },
        };
        let in_context = arm.has_demonstrations() && !seed.demonstrations.is_empty();
        let prompts = if in_context { seed.icl_prompts() } else { plan.prompts() };
        let at = |(i, prompt): (usize, &Prompt)| own.points(position, i, prompt, (plan, in_context.then_some(seed)));
        let points = prompts.iter().enumerate().map(at).collect();
        let by = settings.length_normalization;
        let lengths = |(q, prompt): (usize, &Prompt)| by.lengths(plan.texts(q), &prompt.answers);
        let lengths = prompts.iter().enumerate().map(lengths).collect();
        let of_demonstrations = || {
            let bare = |ids: &Vec<u32>| Prompt { token_ids: ids.clone(), answers: Vec::new() };
            let prompts: Vec<Prompt> = match in_context {
                true => seed.icl_demonstration_token_ids.iter().map(bare).collect(),
                false => seed.train.iter().map(without_answer).collect(),
            };
            let points = prompts.iter().map(Points::last).collect();
            read(in_context, prompts, points)
        };
        let learnt = || {
            let prompts: Vec<Prompt> = examples.iter().map(as_prompt).collect();
            let points = prompts.iter().map(|_| Points::none()).collect();
            read(false, prompts, points)
        };
        Self {
            training,
            queries: read(in_context, prompts, points),
            lengths,
            demonstrations: (position == Position::Demos && !seed.train.is_empty()).then(of_demonstrations),
            // Towards a teacher the loss after the last step is another one than that of the answers.
            learnt: (arm.trains() && !arm.has_teacher() && !examples.is_empty()).then(learnt),
            label_tokens: examples.iter().filter_map(TrainingExample::scored).sum(),
        }
    }
}

/// A training example as a prompt with its answer.
fn as_prompt(example: &TrainingExample) -> Prompt {
    let scored = example.scored().expect("probe: the plan was checked");
    let (prompt, answer) = example.input_ids.split_at(example.input_ids.len() - scored);
    Prompt { token_ids: prompt.to_vec(), answers: vec![Answer { replaces: 0, token_ids: answer.to_vec(), scored }] }
}

/// What was found, by condition.
struct Found {
    arms: Vec<Vec<ArmRun>>,
    /// By seed and layer.
    patching: Vec<Vec<Vec<PatchLayer>>>,
    /// By seed, layer and arm.
    readouts: Vec<Vec<Vec<Vec<ArmMeasures>>>>,
}

impl Found {
    /// That of the next so many conditions.
    fn next(&mut self, count: usize) -> Self {
        let arms = self.arms.drain(..count).collect();
        let (patching, readouts) = (self.patching.drain(..count).collect(), self.readouts.drain(..count).collect());
        Self { arms, patching, readouts }
    }
}

/// The report of all conditions; the time since the last phase goes on until they are compared.
fn outcome(
    base: Base<'_>,
    config: &ModelConfig,
    backend: &str,
    conditions: &[Condition],
    found: Found,
    (mut seconds, mut tokens, mut since): (Phases<f64>, Phases<usize>, Instant),
) -> Outcome {
    let Found { arms, patching, readouts } = found;
    let of_condition = |c: usize| {
        let (Condition { levels, settings, plan }, arms_of) = (&conditions[c], &arms[c]);
        let gold = plan.gold();
        let seed = |(s, seed): (usize, &SeedPlan)| SeedReport {
            seed: seed.seed,
            arms: arms_of.iter().map(|arm| arm_report(arm, s, &gold, plan.is_closed())).collect(),
            adapters: Default::default(),
            layers: {
                let readouts = readouts[c].get(s).map_or(&[][..], |layers| layers);
                layers(&conditions[c], arms_of, s, config, seed.seed, readouts)
            },
            patching: patching[c].get(s).cloned().unwrap_or_default(),
            outputs: if settings.measures.has("outputs") { outputs(plan, arms_of, s) } else { None },
        };
        let seeds: Vec<SeedReport> = plan.seeds.iter().enumerate().map(seed).collect();
        ConditionReport {
            levels: levels.clone(),
            settings: settings.clone(),
            summary: Summary::of(&seeds),
            seeds,
            plan: plan.clone(),
            lora_overlap: lora_overlaps(conditions, &arms, c),
        }
    };
    let reports: Vec<ConditionReport> = (0..conditions.len()).into_par_iter().map(of_condition).collect();
    seconds.measure += lap(&mut since);
    let Phases { anchor, icl, tune, it, soft, patch, measure, .. } = seconds;
    seconds.total = anchor + icl + tune + it + soft + patch + measure;
    tokens.total = tokens.anchor + tokens.icl + tokens.tune + tokens.it + tokens.soft_tune + tokens.soft;
    let (device, dtype) = backend.rsplit_once(' ').unwrap_or((backend, ""));
    let first = reports[0].clone();
    let longest = conditions.iter().map(|condition| condition.plan.longest()).max().unwrap_or(0);
    let report = Report {
        version: env!("CARGO_PKG_VERSION").to_string(),
        model: base.name.to_string(),
        device: device.to_string(),
        dtype: dtype.to_string(),
        edits: (!base.edits.is_empty()).then(|| Edit::fingerprint(base.edits)),
        positions: Positions { longest, supported: config.max_position_embeddings },
        settings: first.settings,
        pca: pca(&arms[0], 0, first.seeds[0].seed, &first.summary.layers, config),
        examples: examples(&conditions[0].plan, &arms[0], 0),
        summary: first.summary,
        seeds: first.seeds,
        seconds,
        tokens,
        plan: first.plan,
        conditions: reports,
    };
    let of_arms = |arms: Vec<ArmRun>| {
        let with = arms.into_iter().filter(|arm| !arm.adapters.is_empty());
        with.map(|arm| (arm.arm, arm.adapters)).collect()
    };
    Outcome { report, adapters: arms.into_iter().map(of_arms).collect() }
}
