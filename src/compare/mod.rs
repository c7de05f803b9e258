//! Demonstrations, soft prompts and both together, judged by what the model writes (Sun et al., arXiv 2302.11521).
//!
//! | arm | input | trained |
//! |---|---|---|
//! | zero-shot | the query | nothing |
//! | icl-random, icl-retrieved | demonstrations, then the query | nothing |
//! | lora | the query | LoRA |
//! | pt | soft prompt, then the query | the soft prompt |
//! | ipt | soft prompt, retrieved demonstrations, then the query | the soft prompt |
//!
//! Every combination of arm, prompt length, seed, source task (trained on) and target task (judged on) is a *cell*: a
//! file of the output directory. A cell that is there is not computed again, so that an interrupted comparison goes on
//! where it was; and since a cell's numbers do not depend on what is computed beside it, its report is the same.

mod cells;
mod material;
pub mod report;
mod training;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::arch::Family;
use crate::backend::Backend;
use crate::formats::stops::Stops;
use crate::formats::tokenizer::Tokenizer;
use crate::formats::{atomic, json};
use crate::model::{Adaptation, GenerationConfig, Model, Prompt, Sampling};
use crate::task::metrics::interval;
use crate::task::{Dataset, Task, Template};
use crate::train::settings::RunSettings;
use crate::{Error, Result};
use cells::{Cell, Key, Store, Written};
use material::{Context, Material};
use report::Report;
pub use training::Base;
use training::Training;

/// An arm of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// The query alone.
    ZeroShot,
    /// Demonstrations drawn at random for each query.
    IclRandom,
    /// Demonstrations like the query.
    IclRetrieved,
    /// The query alone, through a LoRA.
    Lora,
    /// The query behind a soft prompt.
    Pt,
    /// Demonstrations like the query, behind a soft prompt.
    Ipt,
}

impl Arm {
    /// Every arm.
    pub const ALL: [Self; 6] = [Self::ZeroShot, Self::IclRandom, Self::IclRetrieved, Self::Lora, Self::Pt, Self::Ipt];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::ZeroShot => "zero-shot",
            Self::IclRandom => "icl-random",
            Self::IclRetrieved => "icl-retrieved",
            Self::Lora => "lora",
            Self::Pt => "pt",
            Self::Ipt => "ipt",
        }
    }

    /// Whether something is trained.
    pub fn trains(self) -> bool {
        matches!(self, Self::Lora | Self::Pt | Self::Ipt)
    }

    /// Whether it has a soft prompt.
    pub fn prompts(self) -> bool {
        matches!(self, Self::Pt | Self::Ipt)
    }
}

impl std::str::FromStr for Arm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|arm| arm.name() == name);
        found.ok_or_else(|| Error::unsupported("arm", name, Self::ALL.map(Self::name).join(", ")))
    }
}

/// By what demonstrations are retrieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retrieval {
    /// The inputs' words.
    Bm25,
    /// The model's own states of the inputs, see [`mean_states`](crate::task::embedding::mean_states).
    States,
    /// A sentence-encoder's vectors, read from a file.
    Vectors,
}

impl std::str::FromStr for Retrieval {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "bm25" => Ok(Self::Bm25),
            "states" => Ok(Self::States),
            "vectors" => Ok(Self::Vectors),
            other => Err(Error::unsupported("retrieval", other, "bm25, states, vectors")),
        }
    }
}

/// What is compared, and how. Defaults are our own choices, not those of a paper.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompareSettings {
    /// The arms.
    pub arms: Vec<Arm>,
    /// Demonstrations before a query (default 1).
    pub demonstrations: usize,
    /// How they are retrieved (default BM25).
    pub retrieval: Retrieval,
    /// Lengths of the soft prompts in rows.
    pub lengths: Vec<usize>,
    /// Seeds of random demonstrations, of what is trained, and of its data order.
    pub seeds: Vec<u64>,
    /// Seed of the order in which examples become queries and pool.
    pub split_seed: u64,
    /// Queries at most.
    pub queries: usize,
    /// Examples at most from which demonstrations are taken; none means all that are no queries.
    pub pool: Option<usize>,
    /// Examples of the pool, the first of it, that are trained on.
    pub train_examples: usize,
    /// Positions of a sequence at most: soft prompt (the longest), demonstrations, query and answer. What is longer
    /// loses demonstrations, those least like the query first, and what then is still longer is left out; nothing is
    /// cut. None means any number.
    pub max_length: Option<usize>,
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Beams of the search; 1 is greedy.
    pub num_beams: usize,
    /// Strings at which an output ends, beside the template's own and the end-of-sequence token.
    pub stop: Vec<String>,
    /// Training of soft prompts. Its seed is the cell's.
    pub prompt_training: RunSettings,
    /// Training of the LoRA.
    pub lora_training: RunSettings,
    /// Rank of the LoRA.
    pub r: usize,
    /// Its alpha.
    pub lora_alpha: f64,
    /// Adapted projections.
    pub target_modules: Vec<String>,
    /// Groups of queries by the similarity of their retrieved demonstrations.
    pub bins: usize,
    /// Resamples of the confidence intervals.
    pub resamples: usize,
    /// Rows of a pass, and rows kept while generating, at most; changes no output, and trainings in rounding only.
    pub rows: usize,
}

impl CompareSettings {
    /// Checks every field's domain, for a model of some family.
    ///
    /// # Errors
    /// [`Error::Argument`] with the name of the field's option.
    pub fn validate(&self, family: Family) -> Result<()> {
        let check = |ok: bool, name: &str, expected: &str, found: String| {
            if ok { Ok(()) } else { Err(Error::argument(name, expected, found)) }
        };
        fn twice<T: Ord + Copy>(values: &[T]) -> bool {
            let mut sorted = values.to_vec();
            sorted.sort_unstable();
            sorted.windows(2).any(|pair| pair[0] == pair[1])
        }
        check(
            !self.arms.is_empty() && !twice(&self.arms),
            "--arms",
            "some arms, each once",
            self.arms.len().to_string(),
        )?;
        check(!self.seeds.is_empty() && !twice(&self.seeds), "--seeds", "at least 1", self.seeds.len().to_string())?;
        let shown = self.arms.iter().any(|arm| matches!(arm, Arm::IclRandom | Arm::IclRetrieved | Arm::Ipt));
        check(!shown || self.demonstrations > 0, "--demos", "at least 1", self.demonstrations.to_string())?;
        let lengths = !self.lengths.is_empty() && !self.lengths.contains(&0) && !twice(&self.lengths);
        let soft = self.arms.iter().any(|arm| arm.prompts());
        check(!soft || lengths, "--num-virtual-tokens", "lengths from 1, each once", format!("{:?}", self.lengths))?;
        for (name, value) in [
            ("--queries", self.queries),
            ("--train-examples", self.train_examples),
            ("--max-new-tokens", self.max_new_tokens),
            ("--num-beams", self.num_beams),
            ("--bins", self.bins),
            ("--batch-tokens", self.rows),
            ("--r", self.r),
        ] {
            check(value > 0, name, "at least 1", value.to_string())?;
        }
        if self.arms.contains(&Arm::Lora) {
            family.targets(&self.target_modules)?;
        }
        self.prompt_training.validate()?;
        self.lora_training.validate()
    }

    /// The longest soft prompt.
    fn longest(&self) -> usize {
        let soft = self.arms.iter().any(|arm| arm.prompts());
        self.lengths.iter().copied().filter(|_| soft).max().unwrap_or(0)
    }

    /// The lengths of an arm's soft prompts; one of none for arms without.
    fn lengths(&self, arm: Arm) -> Vec<Option<usize>> {
        if arm.prompts() { self.lengths.iter().copied().map(Some).collect() } else { vec![None] }
    }

    /// The seeds of an arm; one of none for arms in which nothing is random.
    fn seeds(&self, arm: Arm) -> Vec<Option<u64>> {
        let random = arm.trains() || arm == Arm::IclRandom;
        if random { self.seeds.iter().copied().map(Some).collect() } else { vec![None] }
    }
}

/// A task with its examples.
pub struct Source {
    /// The task.
    pub task: Task,
    /// Its template.
    pub template: Template,
    /// Examples for the pool.
    pub train: Dataset,
    /// Examples for the queries; may be those of the pool.
    pub test: Dataset,
}

/// A comparison to be made.
pub struct Study<'a> {
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// The model.
    pub base: Base<'a>,
    /// The tasks. With several, everything trained on each is judged on each.
    pub sources: &'a [Source],
    /// A file of a sentence-encoder's vectors: for every task the tensors `{task}.train` and `{task}.test`, a row for
    /// each example of the data.
    pub vectors: Option<&'a Path>,
    /// What is compared, and how.
    pub settings: &'a CompareSettings,
}

impl Study<'_> {
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
        let materials =
            sources.map(|source| Material::new(backend, model, self, source)).collect::<Result<Vec<_>>>()?;
        let described: Vec<_> = materials.iter().map(Material::describe).collect();
        let plan = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.base.name,
            "backend": backend.name(),
            "settings": settings,
            "data": described,
        });
        begin(out, &plan)?;
        let store = Store::open(out)?;
        let mut work = Work { backend, model, study: self, materials: &materials, store: &store, note };
        for target in 0..materials.len() {
            for &arm in settings.arms.iter().filter(|arm| !arm.trains()) {
                work.untrained(arm, target)?;
            }
        }
        for source in 0..materials.len() {
            for &arm in settings.arms.iter().filter(|arm| arm.trains()) {
                work.trained(arm, source)?;
            }
        }
        Report::of(plan, &materials, settings, &store)
    }
}

/// Writes the plan of a comparison, or checks that the one that is there is the same.
fn begin(out: &Path, plan: &serde_json::Value) -> Result<()> {
    let path = out.join("plan.json");
    if !path.exists() {
        if let Some(other) = atomic::foreign_entry(out, &["llamaprobe.yaml"])? {
            let expected = "a new or empty directory, or that of the same comparison";
            return Err(Error::argument("--out", expected, format!("{} with {other}", out.display())));
        }
        return atomic::write_json(&path, plan);
    }
    // Numbers pass through text on both sides, so that equal ones are equal.
    let ours = json::parse(&path, &plan.to_string())?;
    match json::difference("plan", &ours, &json::read(&path)?) {
        None => Ok(()),
        Some((field, expected, found)) => {
            Err(Error::field(&path, field, format!("{expected} as asked for now"), found))
        }
    }
}

/// What is at hand while cells are computed.
struct Work<'a, B: Backend> {
    backend: &'a mut B,
    model: &'a mut Model<B>,
    study: &'a Study<'a>,
    materials: &'a [Material<'a>],
    store: &'a Store,
    note: &'a mut dyn FnMut(&str),
}

impl<B: Backend> Work<'_, B> {
    /// The cells of an arm that trains nothing.
    fn untrained(&mut self, arm: Arm, target: usize) -> Result<()> {
        let task = self.materials[target].task;
        for seed in self.study.settings.seeds(arm) {
            let key = Key { arm, source: None, target: task, length: None, seed };
            if self.store.cell(&key)?.is_none() {
                (self.note)(&format!("{key}: writes"));
                let contexts = self.materials[target].contexts(arm, seed)?;
                self.write(&[(key, None)], target, &contexts, None)?;
            }
        }
        Ok(())
    }

    /// The trainings of an arm on one task, and the cells of all that was trained on every task.
    fn trained(&mut self, arm: Arm, source: usize) -> Result<()> {
        let task = self.materials[source].task;
        let mut all = Vec::new();
        for length in self.study.settings.lengths(arm) {
            all.extend(self.study.settings.seeds(arm).into_iter().map(|seed| Training {
                arm,
                source: task,
                length,
                seed,
            }));
        }
        let missing: Vec<&Training> = all.iter().filter(|t| !self.store.trained(t)).collect();
        if !missing.is_empty() {
            (self.note)(&format!("{} on {task}: trains {}", arm.name(), missing.len()));
            let material = &self.materials[source];
            training::train(
                self.backend,
                self.model,
                self.study.base,
                material,
                &missing,
                self.study.settings,
                self.store,
            )?;
        }
        for target in 0..self.materials.len() {
            let key = |t: &Training| Key {
                arm,
                source: Some(task),
                target: self.materials[target].task,
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
            let adaptation = training::load(self.backend, &self.model.config, self.study.base, &missing, self.store)?;
            let contexts = self.materials[target].contexts(arm, None)?;
            let keys: Vec<(Key, Option<usize>)> =
                missing.iter().enumerate().map(|(run, t)| (key(t), Some(run))).collect();
            (self.note)(&format!("{} of {task} on {}: {} write", arm.name(), self.materials[target].task, keys.len()));
            self.write(&keys, target, &contexts, Some(&adaptation))?;
        }
        Ok(())
    }

    /// Lets the model answer every context in every cell, and keeps the cells.
    fn write(
        &mut self,
        keys: &[(Key, Option<usize>)],
        target: usize,
        contexts: &[Context],
        adaptation: Option<&Adaptation<B>>,
    ) -> Result<()> {
        let (settings, material) = (self.study.settings, &self.materials[target]);
        let stops =
            Stops::new(self.study.tokenizer, settings.stop.iter().map(String::as_str).chain(material.template.stop()));
        let ends = |ids: &[u32]| stops.reached(ids);
        let generation = GenerationConfig {
            stop: self.study.tokenizer.stops().to_vec(),
            ends: Some(&ends),
            sampling: match settings.num_beams {
                1 => Sampling::Greedy,
                beams => Sampling::Beam { beams, length_penalty: 1.0 },
            },
            rows: settings.rows,
            ..GenerationConfig::greedy(settings.max_new_tokens)
        };
        let prompt = |run: Option<usize>| move |context: &Context| Prompt { ids: context.token_ids.clone(), run };
        let prompts: Vec<Prompt> = keys.iter().flat_map(|(_, run)| contexts.iter().map(prompt(*run))).collect();
        let made = self.model.generate(self.backend, &prompts, adaptation, &generation, &mut |_, _| ())?;
        for ((key, _), made) in keys.iter().zip(made.chunks_exact(contexts.len())) {
            let metric = material.task.metric();
            let mut answers = Vec::with_capacity(contexts.len());
            for ((context, tokens), query) in contexts.iter().zip(made).zip(&material.queries) {
                let output = stops.text(tokens)?.trim().to_string();
                answers.push(Written {
                    query: context.number,
                    demonstrations: context.shown.iter().map(|s| material.pool_numbers[s.index]).collect(),
                    similarity: context.shown.iter().map(|s| s.similarity).collect(),
                    shortened: context.dropped,
                    statistics: metric.judge(&output, query),
                    output,
                });
            }
            let statistics: Vec<Vec<f64>> = answers.iter().map(|a| a.statistics.clone()).collect();
            let score = metric.corpus(&statistics);
            let interval = interval(metric, &[statistics], settings.resamples, settings.split_seed);
            self.store.keep(&Cell { key: key.clone(), score, interval, answers })?;
        }
        Ok(())
    }
}
