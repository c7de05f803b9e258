//! Running a comparison: the trainings and the cells that are not there yet.

use std::path::Path;

use serde_json::json;

use super::cells::{Cell, Generation, Store};
use super::inputs::Comparison;
use super::key::{CellKey, TrainingKey};
use super::report::Report;
use super::samples;
use super::task_data::{PromptContext, TaskData};
use super::training;
use crate::backend::Backend;
use crate::formats::atomic::Claim;
use crate::formats::stops::Stops;
use crate::formats::{atomic, json};
use crate::hooks::Edit;
use crate::model::{self, Adaptation, Model, Prompt, Sampling};
use crate::probe::arm::Arm;
use crate::task::metrics::interval;
use crate::{Error, Result};

impl Comparison<'_> {
    /// Computes every cell that is not in `out` yet. `note` hears, in words, of everything that is computed.
    ///
    /// # Errors
    /// Settings out of their domain, too few examples, an output directory of another comparison, a loss that is not
    /// finite, a failure of the device, or files that cannot be written.
    pub fn run<B: Backend>(
        &self,
        backend: &mut B,
        model: &mut Model<B>,
        out: &Path,
        note: &mut dyn FnMut(&str),
    ) -> Result<Report> {
        let settings = self.settings;
        settings.validate(self.base.config.family)?;
        let sources = self.sources.iter();
        let task_data =
            sources.map(|source| TaskData::new(backend, model, self, source)).collect::<Result<Vec<_>>>()?;
        let described: Vec<_> = task_data.iter().map(TaskData::describe).collect();
        self.base.config.check_edits(self.edits)?;
        let mut plan = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.base.name,
            "backend": backend.name(),
            "settings": settings,
            "data": described,
        });
        if !self.base.files.is_null() {
            plan["files"] = self.base.files.clone();
        }
        if !self.edits.is_empty() {
            plan["edits"] = Edit::fingerprint(self.edits).into();
        }
        let _claim = begin(out, &mut plan)?;
        for data in &task_data {
            data.warn()?;
            if let Some((learned, [test, train])) = data.learned().filter(|(_, [test, train])| test + train > 0) {
                let task = data.task;
                note(&format!(
                    "{task}: {test} test and {train} train examples left out, longer than the {learned} positions that the model learned"
                ));
            }
        }
        let store = Store::open(out)?;
        let mut runner = Runner { backend, model, comparison: self, task_data: &task_data, store: &store, note };
        for target in 0..task_data.len() {
            for &arm in settings.arms.iter().filter(|arm| !arm.trains()) {
                runner.untrained(arm, target)?;
            }
        }
        for source in 0..task_data.len() {
            for &arm in settings.arms.iter().filter(|arm| arm.trains()) {
                runner.trained(arm, source)?;
            }
        }
        if self.log_samples {
            for key in Report::keys(&task_data, settings) {
                let cell = store.cell(&key)?.expect("compare: every cell has been computed");
                let target = task_data.iter().find(|data| data.task.name() == key.target);
                samples::write(out, &cell, target.expect("a cell is of a task"), settings)?;
            }
        }
        Report::of(plan, &task_data, settings, &store)
    }
}

/// Writes the plan of a comparison, or checks that the one that is there is the same; nobody else compares there then.
fn begin(out: &Path, plan: &mut serde_json::Value) -> Result<Claim> {
    let (path, claim) = (out.join("plan.json"), Claim::new(out)?);
    if !path.exists() {
        if let Some(other) = atomic::foreign_entry(out, &["llamaprobe.yaml"])? {
            let expected = "a new or empty directory, or that of the same comparison";
            return Err(Error::argument("out", expected, format!("{} with {other}", out.display())));
        }
        atomic::write_json(&path, plan)?;
        return Ok(claim);
    }
    let theirs = json::read(&path)?;
    json::forgive_missing_files(&path, plan, &theirs);
    // Numbers pass through text on both sides, so that equal ones are equal.
    let ours = json::parse(&path, &plan.to_string())?;
    match json::difference("plan", &ours, &theirs) {
        None => Ok(claim),
        Some((field, expected, found)) => {
            Err(Error::field(&path, field, format!("{expected} as asked for now"), found))
        }
    }
}

/// What is at hand while cells are computed.
struct Runner<'a, B: Backend> {
    backend: &'a mut B,
    model: &'a mut Model<B>,
    comparison: &'a Comparison<'a>,
    task_data: &'a [TaskData<'a>],
    store: &'a Store,
    note: &'a mut dyn FnMut(&str),
}

impl<B: Backend> Runner<'_, B> {
    /// The cells of an arm that trains nothing.
    fn untrained(&mut self, arm: Arm, target: usize) -> Result<()> {
        let task = self.task_data[target].task;
        for seed in self.comparison.settings.seeds(arm) {
            let key = CellKey { arm, source: None, target: task.to_string(), length: None, seed };
            if self.store.cell(&key)?.is_none() {
                (self.note)(&format!("{key}: writes"));
                let contexts = self.contexts(target, arm, seed)?;
                self.write(&[(key, None)], target, &contexts, None)?;
            }
        }
        Ok(())
    }

    /// The trainings of an arm on one task, and the cells of all that was trained on every task.
    fn trained(&mut self, arm: Arm, source: usize) -> Result<()> {
        let task = self.task_data[source].task;
        let mut all = Vec::new();
        for length in self.comparison.settings.lengths(arm) {
            all.extend(self.comparison.settings.seeds(arm).into_iter().map(|seed| TrainingKey {
                arm,
                source: task.to_string(),
                length,
                seed,
            }));
        }
        let missing: Vec<&TrainingKey> = all.iter().filter(|t| !self.store.trained(t)).collect();
        if !missing.is_empty() {
            (self.note)(&format!("{} on {task}: trains {}", arm.name(), missing.len()));
            let data = &self.task_data[source];
            training::train(
                self.backend,
                self.model,
                self.comparison.base,
                data,
                &missing,
                self.comparison.settings,
                self.store,
            )?;
        }
        for target in 0..self.task_data.len() {
            let key = |t: &TrainingKey| CellKey {
                arm,
                source: Some(task.to_string()),
                target: self.task_data[target].task.to_string(),
                length: t.length,
                seed: t.seed,
            };
            let mut missing = Vec::new();
            for training in &all {
                if self.store.cell(&key(training))?.is_none() {
                    missing.push(training);
                }
            }
            if missing.is_empty() {
                continue;
            }
            let adaptation = training::load(self.backend, self.model, self.comparison.base, &missing, self.store)?;
            let contexts = self.contexts(target, arm, None)?;
            let keys: Vec<(CellKey, Option<usize>)> =
                missing.iter().enumerate().map(|(run, t)| (key(t), Some(run))).collect();
            (self.note)(&format!("{} of {task} on {}: {} write", arm.name(), self.task_data[target].task, keys.len()));
            self.write(&keys, target, &contexts, Some(&adaptation))?;
        }
        Ok(())
    }

    /// The prompts of an arm; says how many lost demonstrations to the positions that the model learned.
    fn contexts(&mut self, target: usize, arm: Arm, seed: Option<u64>) -> Result<Vec<PromptContext>> {
        let data = &self.task_data[target];
        let contexts = data.contexts(arm, seed)?;
        let shortened = contexts.iter().filter(|context| context.dropped > 0).count();
        if let Some((learned, _)) = data.learned().filter(|_| shortened > 0) {
            let (arm, task, all) = (arm.name(), data.task, contexts.len());
            (self.note)(&format!(
                "{arm} on {task}: {shortened} of {all} prompts lose demonstrations, to fit the {learned} positions that the model learned"
            ));
        }
        Ok(contexts)
    }

    /// Lets the model answer every prompt in every cell, and saves the cells.
    fn write(
        &mut self,
        keys: &[(CellKey, Option<usize>)],
        target: usize,
        contexts: &[PromptContext],
        adaptation: Option<&Adaptation<B>>,
    ) -> Result<()> {
        let (settings, data) = (self.comparison.settings, &self.task_data[target]);
        let stops =
            Stops::new(self.comparison.tokenizer, settings.stop.iter().map(String::as_str).chain(data.template.stop()));
        let ends = |ids: &[u32]| stops.reached(ids);
        let generation = model::GenerationConfig {
            stop: self.comparison.tokenizer.stops().to_vec(),
            ends: Some(&ends),
            sampling: match settings.num_beams {
                1 => Sampling::Greedy,
                beams => Sampling::Beam { beams, length_penalty: 1.0 },
            },
            rows: settings.rows,
            edits: self.comparison.edits,
            ..model::GenerationConfig::greedy(settings.max_new_tokens)
        };
        let prompt = |run: Option<usize>| move |context: &PromptContext| Prompt { ids: context.token_ids.clone(), run };
        let prompts: Vec<Prompt> = keys.iter().flat_map(|(_, run)| contexts.iter().map(prompt(*run))).collect();
        let made = self.model.generate(self.backend, &prompts, adaptation, &generation, &mut |_, _| ())?;
        for ((key, _), made) in keys.iter().zip(made.chunks_exact(contexts.len())) {
            let metric = data.task.metric();
            let mut generations: Vec<Generation> = Vec::with_capacity(contexts.len());
            for ((context, tokens), query) in contexts.iter().zip(made).zip(&data.queries.examples) {
                let text = stops.text(tokens)?;
                let output = text.trim().to_string();
                generations.push(Generation {
                    query: context.query,
                    demonstrations: context.retrieved.iter().map(|s| data.pool.indices[s.index]).collect(),
                    similarity: context.retrieved.iter().map(|s| s.similarity).collect(),
                    shortened: context.dropped,
                    statistics: metric.judge(&output, query),
                    text: (text != output).then_some(text),
                    output,
                });
            }
            let statistics: Vec<Vec<f64>> = generations.iter().map(|a| a.statistics.clone()).collect();
            let score = metric.corpus(&statistics);
            let interval = interval(metric, &[statistics], settings.resamples, settings.split_seed);
            self.store.save(&Cell { key: key.clone(), score, interval, generations })?;
        }
        Ok(())
    }
}
