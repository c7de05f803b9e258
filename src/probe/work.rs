//! What conditions ask of the model, each thing once: trainings, and readings of prompts through their results.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use super::arm::Arm;
use super::arm_run::ArmRun;
use super::arm_states::ArmStates;
use super::below::Below;
use super::condition::{Base, Condition};
use super::packing::Group;
use super::progress::{Count, Phase, Progress, lap};
use super::readouts::readouts;
use super::recovery::recover;
use super::report::measures::ArmMeasures;
use super::report::{PatchLayer, Phases};
use super::settings::{ProbeSettings, TuningKind};
use super::states::{Reading, hooks};
use super::tuning::{AdapterRun, AdapterSettings};
use crate::backend::Backend;
use crate::formats::adapter::Adapter;
use crate::hooks::{Edit, Site};
use crate::model::{Adaptation, FullTuning, Model};
use crate::task::prompts::TrainingExample;
use crate::train::data::{IGNORE_INDEX, SequenceTeacher, TrainSequence};
use crate::train::fit::{self, Watch};
use crate::train::objective::Objective;
use crate::train::settings::{Length, RunSettings};
use crate::train::trainable::Trainable;
use crate::train::trainer::{Run, StepReport, Trainer, TrainerOptions};
use crate::{Error, Result};

/// A training but for its length.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TrainingKey {
    layout: AdapterKey,
    /// With the bits of its numbers, which cannot be compared otherwise.
    hyperparameters: String,
    seed: u64,
    examples: Vec<TrainingExample>,
    /// The same behind demonstrations, which a teacher reads; empty without one.
    teachers: Vec<TrainingExample>,
    settings: Hyperparameters,
}

/// The settings of a training, which [`TrainingKey::hyperparameters`] stands for.
#[derive(Clone, Debug)]
struct Hyperparameters(RunSettings);

impl PartialEq for Hyperparameters {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Hyperparameters {}

impl std::hash::Hash for Hyperparameters {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

/// What trainings must share to be runs of the same passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct AdapterKey {
    kind: TuningKind,
    /// The arm, if it has a teacher.
    towards: Option<Arm>,
    /// Rows of a soft prompt; a LoRA without.
    rows: Option<usize>,
    r: usize,
    lora_alpha: u64,
    target_modules: Vec<String>,
    layers_to_transform: Option<Vec<usize>>,
}

/// The weights that prompts are read through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Weights {
    /// The model's own.
    Base,
    /// After so many steps of a training.
    Tuned(Box<TrainingKey>, u64),
}

/// Prompts behind weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReadKey {
    pub trained: Weights,
    /// Without a run.
    pub group: Group,
}

impl TrainingKey {
    /// The training of an arm.
    pub fn new(
        arm: Arm,
        settings: &ProbeSettings,
        seed: u64,
        (examples, teachers): (&[TrainingExample], &[TrainingExample]),
    ) -> Self {
        let training = settings.training(arm, seed, examples.len().max(1));
        // Of one length, whatever it is: at a constant rate a shorter training is the beginning of a longer one.
        let training = RunSettings { length: Length::Steps(1), ..training };
        let soft = arm.has_soft_prompt();
        let layout = AdapterKey {
            kind: if soft || arm.has_teacher() { TuningKind::Lora } else { settings.tuning },
            towards: arm.has_teacher().then_some(arm),
            rows: soft.then_some(settings.soft.num_virtual_tokens),
            r: settings.r,
            lora_alpha: settings.lora_alpha.to_bits(),
            target_modules: settings.target_modules.clone(),
            layers_to_transform: settings.layers_to_transform.clone(),
        };
        let hyperparameters = format!("{training:?}");
        let (examples, teachers) = (examples.to_vec(), teachers.to_vec());
        Self { layout, hyperparameters, seed, examples, teachers, settings: Hyperparameters(training) }
    }

    fn run(&self, steps: u64) -> Result<Run> {
        let sequence = |(i, example): (usize, &TrainingExample)| {
            let teacher = self.teachers.get(i).map(|teacher| taught(example, teacher)).transpose()?;
            Ok(TrainSequence { ids: example.input_ids.clone(), labels: example.labels.clone(), teacher })
        };
        let settings = RunSettings { length: Length::Steps(steps), ..self.settings.0.clone() };
        Ok(Run { data: self.examples.iter().enumerate().map(sequence).collect::<Result<_>>()?, settings })
    }

    fn adapter_run(&self) -> AdapterRun {
        AdapterRun { seed: self.seed, rows: self.layout.rows }
    }
}

/// A teacher in context, whose answer must have the example's tokens.
fn taught(example: &TrainingExample, teacher: &TrainingExample) -> Result<SequenceTeacher> {
    let labels = |example: &TrainingExample| -> Vec<i64> {
        example.labels.iter().copied().filter(|&label| label != IGNORE_INDEX).collect()
    };
    let (own, found) = (labels(example), labels(teacher));
    if own != found {
        let expected = format!("answers of the same tokens behind demonstrations, {own:?}");
        return Err(Error::argument("template", expected, format!("{found:?}")));
    }
    let rows = teacher.labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_INDEX);
    let rows = rows.map(|(i, _)| (i - 1) as u32).collect();
    Ok(SequenceTeacher::Context { ids: teacher.input_ids.clone(), rows })
}

impl AdapterKey {
    /// What is minimized; none for the cross-entropy of the answers.
    fn objective(&self, depth: usize) -> Option<Objective> {
        self.towards?.objective(depth)
    }

    fn settings<'a>(&'a self, base: &'a str) -> AdapterSettings<'a> {
        let (lora_alpha, target_modules) = (f64::from_bits(self.lora_alpha), &self.target_modules[..]);
        let layers_to_transform = self.layers_to_transform.as_deref();
        AdapterSettings { base, r: self.r, lora_alpha, target_modules, layers_to_transform }
    }
}

/// What came of a training.
#[derive(Default)]
struct Trained {
    /// The loss before each step.
    losses: Vec<f64>,
    /// By the number of steps after which it was asked for; none of full tuning.
    adapters: BTreeMap<u64, Adapter>,
}

/// Computes what is asked for, and holds it.
pub(super) struct Worker<'a, B: Backend> {
    pub backend: &'a mut B,
    model: &'a mut Model<B>,
    base: Base<'a>,
    rows: usize,
    progress: &'a mut dyn FnMut(Progress),
    hooks: Vec<(Site, usize)>,
    states: HashMap<ReadKey, ArmStates>,
    /// What readings of queries through adapters begin with.
    below: Option<Below>,
    trained: HashMap<TrainingKey, Trained>,
    /// When the phase before this one ended.
    pub lap: Instant,
    pub seconds: Phases<f64>,
    pub tokens: Phases<usize>,
}

/// A training, and what is read of it after how many steps.
struct Asked {
    key: TrainingKey,
    reads: BTreeMap<u64, Vec<Group>>,
}

impl Asked {
    /// The last step that is asked for.
    fn last_step(&self) -> u64 {
        self.reads.keys().next_back().copied().unwrap_or(0)
    }
}

impl<'a, B: Backend> Worker<'a, B> {
    pub fn new(
        backend: &'a mut B,
        model: &'a mut Model<B>,
        base: Base<'a>,
        (rows, sites): (usize, &[Site]),
        lowest: Option<usize>,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let hooks = hooks(model.config.num_hidden_layers, sites);
        let below = Below::new::<B>(lowest.filter(|_| base.edits.is_empty()));
        Self {
            backend,
            model,
            base,
            rows,
            progress,
            hooks,
            states: HashMap::new(),
            below,
            trained: HashMap::new(),
            lap: Instant::now(),
            seconds: Phases::default(),
            tokens: Phases::default(),
        }
    }

    /// What was read.
    pub fn states(&self, key: &ReadKey) -> &ArmStates {
        self.states.get(key).expect("probe: what an arm asks for is read")
    }

    /// The losses of the first steps of a training.
    pub fn losses(&self, key: &TrainingKey, steps: u64) -> Vec<f64> {
        self.trained.get(key).map_or_else(Vec::new, |trained| trained.losses[..steps as usize].to_vec())
    }

    /// The adapter after so many steps; none of full tuning.
    pub fn adapter(&mut self, key: &TrainingKey, steps: u64) -> Result<Option<Adapter>> {
        if key.layout.kind == TuningKind::Full {
            return Ok(None);
        }
        if let Some(adapter) = self.trained.get(key).and_then(|trained| trained.adapters.get(&steps)) {
            return Ok(Some(adapter.clone()));
        }
        // A LoRA that nobody trained changes nothing, so that nothing was read through it.
        let settings = key.layout.settings(self.base.name);
        let adaptation = settings.start(self.backend, self.model, &[key.adapter_run()])?;
        let config = settings.config(key.adapter_run(), &self.model.config);
        adaptation.read_out(self.backend, 0, &config).map(Some)
    }

    /// Trains and reads what an arm asks for and nobody has asked for before.
    pub fn arm<'k>(&mut self, arm: Arm, asked: impl Iterator<Item = &'k ReadKey>) -> Result<()> {
        let mut seen = HashSet::new();
        let new: Vec<&ReadKey> = asked.filter(|key| !self.states.contains_key(*key) && seen.insert(*key)).collect();
        let total = new.iter().map(|key| key.group.prompts.len()).sum();
        let mut untrained = Vec::new();
        let mut pending: BTreeMap<AdapterKey, Vec<Asked>> = BTreeMap::new();
        for key in new {
            match &key.trained {
                Weights::Base => untrained.push(key.group.clone()),
                Weights::Tuned(training, steps) => {
                    let same = pending.entry(training.layout.clone()).or_default();
                    let at = same.iter().position(|asked| asked.key == **training).unwrap_or(same.len());
                    if at == same.len() {
                        same.push(Asked { key: *training.clone(), reads: BTreeMap::new() });
                    }
                    same[at].reads.entry(*steps).or_default().push(key.group.clone());
                }
            }
        }
        let mut done = 0;
        if !untrained.is_empty() {
            self.read_base(arm, untrained, &mut done, total)?;
        }
        for (layout, trainings) in pending {
            match layout.kind {
                TuningKind::Lora => self.adapt(arm, &layout, &trainings, (&mut done, total))?,
                TuningKind::Full => self.tune_fully(arm, &trainings, (&mut done, total))?,
            }
        }
        Ok(())
    }

    /// Layers of the model.
    pub fn depth(&self) -> usize {
        self.model.config.num_hidden_layers
    }

    /// Patches a condition, see [`recover`].
    pub fn patch(
        &mut self,
        condition: &Condition,
        arms: &[ArmRun],
        other: Option<&[ArmRun]>,
        (done, total): (&mut usize, usize),
    ) -> Result<Vec<Vec<PatchLayer>>> {
        let mut count = Count { phase: Phase::Patch, done: *done, total, progress: self.progress };
        let reading =
            Reading { model: self.model, adaptation: None, hooks: &[], rows: self.rows, edits: &[], below: None };
        let found = recover(reading, self.backend, condition, arms, other, &mut count)?;
        *done = count.done;
        self.seconds.patch += lap(&mut self.lap);
        Ok(found)
    }

    /// What the states of a condition say of the labels, see [`readouts`].
    pub fn readouts(&mut self, condition: &Condition, arms: &[ArmRun]) -> Result<Vec<Vec<Vec<ArmMeasures>>>> {
        let Condition { settings, plan, .. } = condition;
        let asked = ["logit_lens", "attribution", "linear_probe"].iter().any(|name| settings.measures_last(name));
        if !asked || !plan.is_closed() {
            return Ok(Vec::new());
        }
        let found = readouts(&self.model.config, self.base.checkpoint, settings, plan, arms)?;
        self.seconds.measure += lap(&mut self.lap);
        Ok(found)
    }

    /// Reads through the model's own weights.
    fn read_base(&mut self, arm: Arm, groups: Vec<Group>, done: &mut usize, total: usize) -> Result<()> {
        let fits = |below: &&mut Below| arm == Arm::ZeroShot && below.fit(self.model, &groups, self.rows);
        let mut keep = self.below.as_mut().filter(fits);
        // Each in a list of its own: what is cached for it is not needed after it.
        let lists: Vec<Vec<Group>> = groups.into_iter().map(|group| vec![group]).collect();
        let mut count = Count { phase: Phase::Read(arm), done: *done, total, progress: self.progress };
        let reading = Reading {
            model: self.model,
            adaptation: None,
            hooks: &self.hooks,
            rows: self.rows,
            edits: self.base.edits,
            below: None,
        };
        let (states, rows) = reading.read_and_keep(self.backend, &lists, &mut count, keep.as_deref_mut())?;
        *done = count.done;
        if let Some(below) = keep {
            lists.iter().flatten().zip(&states).for_each(|(group, states)| below.keep_states(group, states));
        }
        let keys = lists.into_iter().flatten().map(|group| ReadKey { trained: Weights::Base, group });
        self.states.extend(keys.zip(states));
        *self.tokens.read(arm) += rows;
        *self.seconds.read(arm) += lap(&mut self.lap);
        Ok(())
    }

    /// Trains adapters of one layout, all in the same passes, and reads through them after as many steps as is asked.
    fn adapt(
        &mut self,
        arm: Arm,
        layout: &AdapterKey,
        trainings: &[Asked],
        (done, total): (&mut usize, usize),
    ) -> Result<()> {
        let settings = layout.settings(self.base.name);
        let Self { hooks, rows, progress, lap: since, seconds, tokens, below, .. } = self;
        let (backend, model) = (&mut *self.backend, &mut *self.model);
        let (edits, found) = (self.base.edits, Found::default());
        let below = below.as_ref();
        let mut reader = TunedReader { arm, settings, hooks, rows: *rows, edits, below, total, done, found };

        // What no step is asked of is read as it starts.
        let at_start: Vec<&Asked> = trainings.iter().filter(|asked| asked.reads.contains_key(&0)).collect();
        if !at_start.is_empty() {
            let adaptation = settings.start(backend, model, &adapter_runs(&at_start))?;
            reader.read(backend, model, &adaptation, &at_start, 0, *progress)?;
            *seconds.read(arm) += lap(since);
        }
        let trained: Vec<&Asked> = trainings.iter().filter(|asked| asked.last_step() > 0).collect();
        if !trained.is_empty() {
            let adaptation = settings.start(backend, model, &adapter_runs(&trained))?;
            let runs: Vec<Run> = trained.iter().map(|asked| asked.key.run(asked.last_step())).collect::<Result<_>>()?;
            let objective = layout.objective(model.config.num_hidden_layers);
            let options = TrainerOptions { row_budget: *rows, ..TrainerOptions::default() };
            let last = trained.iter().map(|asked| asked.last_step()).max().unwrap_or(0);
            let pauses = |step: u64| step < last && trained.iter().any(|asked| asked.reads.contains_key(&step));
            let mut on_step = |backend: &mut B, model: &Model<B>, trainer: &Trainer<B>, report: &StepReport| {
                progress(Progress { phase: Phase::Tune(arm), done: report.step as usize, total: last as usize });
                if pauses(report.step) {
                    *tuning_seconds(seconds, arm) += lap(since);
                    let adaptation = trainer.trainable().adaptation().expect("probe: adapters are trained");
                    reader.read(backend, model, adaptation, &trained, report.step, *progress)?;
                    *seconds.read(arm) += lap(since);
                }
                Ok(())
            };
            let watch = Watch { pauses: &pauses, on_step: &mut on_step };
            let tuning = fit::tune(backend, model, adaptation, (runs, objective), options, watch)?;
            *tuning_seconds(seconds, arm) += lap(since);
            *tokens.tune(arm) += tuning.tokens;
            reader.read(backend, model, &tuning.adaptation, &trained, last, *progress)?;
            *seconds.read(arm) += lap(since);
            let losses = trained.iter().zip(tuning.losses);
            reader.found.losses.extend(losses.map(|(asked, losses)| (asked.key.clone(), losses)));
        }
        let found = reader.found;
        self.hold(arm, found);
        Ok(())
    }

    /// Trains all weights, one training after the other, and reads through them after as many steps as is asked.
    fn tune_fully(&mut self, arm: Arm, trainings: &[Asked], (done, total): (&mut usize, usize)) -> Result<()> {
        let checkpoint = self
            .base
            .checkpoint
            .ok_or_else(|| Error::argument("tuning", "lora, where the model's checkpoint is not at hand", "full"))?;
        let Self { hooks, rows, progress, lap: since, seconds, tokens, .. } = self;
        let backend = &mut *self.backend;
        let mut found = Found::default();
        for asked in trainings {
            let (mut tuned, full) = FullTuning::load(backend, self.model.config.clone(), checkpoint)?;
            let last = asked.last_step();
            let mut read = |backend: &mut B, tuned: &Model<B>, step: u64, progress: &mut dyn FnMut(Progress)| {
                let Some(groups) = asked.reads.get(&step) else { return Ok(()) };
                let mut count = Count { phase: Phase::Read(arm), done: *done, total, progress };
                let (rows, edits) = (*rows, self.base.edits);
                let reading = Reading { model: tuned, adaptation: None, hooks, rows, edits, below: None };
                let (states, computed) = reading.read(backend, std::slice::from_ref(groups), &mut count)?;
                *done = count.done;
                found.keep(&asked.key, step, groups, states);
                found.tokens += computed;
                Ok::<(), Error>(())
            };
            read(backend, &tuned, 0, *progress)?;
            if last == 0 {
                continue;
            }
            let options = TrainerOptions { row_budget: *rows, ..TrainerOptions::default() };
            let runs = vec![asked.key.run(last)?];
            let mut trainer = Trainer::new(backend, &tuned, Trainable::Weights(full), runs, options)?;
            let mut losses = Vec::new();
            let mut on_step = |backend: &mut B, tuned: &Model<B>, _: &Trainer<B>, report: &StepReport| {
                progress(Progress { phase: Phase::Tune(arm), done: report.step as usize, total: last as usize });
                losses.extend(report.runs.iter().map(|run| run.loss));
                *tokens.tune(arm) += report.runs.iter().map(|run| run.tokens as usize).sum::<usize>();
                *seconds.tune(arm) += lap(since);
                read(backend, tuned, report.step, *progress)?;
                *seconds.read(arm) += lap(since);
                Ok(())
            };
            let watch = Watch { pauses: &|step| asked.reads.contains_key(&step), on_step: &mut on_step };
            fit::watch(backend, &mut tuned, &mut trainer, watch)?;
            found.losses.push((asked.key.clone(), losses));
        }
        self.hold(arm, found);
        Ok(())
    }

    /// Holds what was found.
    fn hold(&mut self, arm: Arm, found: Found) {
        *self.tokens.read(arm) += found.tokens;
        self.states.extend(found.states);
        for (key, losses) in found.losses {
            self.trained.entry(key).or_default().losses = losses;
        }
        for (key, step, adapter) in found.adapters {
            self.trained.entry(key).or_default().adapters.insert(step, adapter);
        }
    }
}

/// The time of a soft prompt's training counts with that of its reading.
fn tuning_seconds(seconds: &mut Phases<f64>, arm: Arm) -> &mut f64 {
    if arm.has_soft_prompt() { seconds.read(arm) } else { seconds.tune(arm) }
}

fn adapter_runs(asked: &[&Asked]) -> Vec<AdapterRun> {
    asked.iter().map(|asked| asked.key.adapter_run()).collect()
}

/// What trainings have given so far.
#[derive(Default)]
struct Found {
    states: Vec<(ReadKey, ArmStates)>,
    losses: Vec<(TrainingKey, Vec<f64>)>,
    adapters: Vec<(TrainingKey, u64, Adapter)>,
    /// Rows computed in readings.
    tokens: usize,
}

impl Found {
    /// Adds what was read of groups after `step` steps of a training.
    fn keep(&mut self, key: &TrainingKey, step: u64, groups: &[Group], states: impl IntoIterator<Item = ArmStates>) {
        let keys = groups.iter().map(|group| ReadKey {
            trained: Weights::Tuned(Box::new(key.clone()), step),
            group: Group { run: None, ..group.clone() },
        });
        self.states.extend(keys.zip(states));
    }
}

/// Reads through adapters while they are trained.
struct TunedReader<'a> {
    arm: Arm,
    settings: AdapterSettings<'a>,
    hooks: &'a [(Site, usize)],
    rows: usize,
    edits: &'a [Edit],
    below: Option<&'a Below>,
    total: usize,
    done: &'a mut usize,
    found: Found,
}

impl TunedReader<'_> {
    /// Reads what is asked for after `step` steps, and the adapters themselves. `asked` has the training of each run.
    fn read<B: Backend>(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        adaptation: &Adaptation<B>,
        asked: &[&Asked],
        step: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        let of_run = |(run, asked): (usize, &&Asked)| {
            let groups = asked.reads.get(&step).into_iter().flatten();
            groups.map(|group| Group { run: Some(run), ..group.clone() }).collect::<Vec<_>>()
        };
        let groups: Vec<Group> = asked.iter().enumerate().flat_map(of_run).collect();
        let mut count = Count { phase: Phase::Read(self.arm), done: *self.done, total: self.total, progress };
        let (hooks, rows, edits) = (self.hooks, self.rows, self.edits);
        let below = self.below.filter(|below| adaptation.layout.lowest() >= Some(below.layer));
        let reading = Reading { model, adaptation: Some(adaptation), hooks, rows, edits, below };
        // What the base model has read is read apart, for only passes of nothing else can begin above the first layer.
        let known = |group: &Group| below.is_some_and(|below| below.group(group).is_some());
        let (known, new): (Vec<usize>, Vec<usize>) = (0..groups.len()).partition(|&g| known(&groups[g]));
        let lists = [&known, &new].map(|list| list.iter().map(|&g| groups[g].clone()).collect::<Vec<_>>());
        let (states, computed) = reading.read(backend, &lists, &mut count)?;
        *self.done = count.done;
        self.found.tokens += computed;
        let mut states: Vec<_> = known.into_iter().chain(new).zip(states).collect();
        states.sort_by_key(|&(g, _)| g);
        let mut states = states.into_iter().map(|(_, states)| states);
        for (run, asked) in asked.iter().enumerate() {
            let Some(groups) = asked.reads.get(&step) else { continue };
            self.found.keep(&asked.key, step, groups, states.by_ref().take(groups.len()));
            let config = self.settings.config(asked.key.adapter_run(), &model.config);
            self.found.adapters.push((asked.key.clone(), step, adaptation.read_out(backend, run, &config)?));
        }
        Ok(())
    }
}
