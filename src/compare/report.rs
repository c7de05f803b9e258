//! The result of a comparison: `report.json`, a function of the cells alone.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cells::{Cell, Store};
use super::key::{CellKey, TrainingKey};
use super::settings::CompareSettings;
use super::task_data::TaskData;
use crate::Result;
use crate::formats::atomic;
use crate::probe::arm::Arm;
use crate::probe::statistics::MeanSd;
use crate::task::Example;
use crate::task::metrics::{Interval, interval};

/// The score of one seed's cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedScore {
    /// `null` where nothing is random.
    pub seed: Option<u64>,
    /// The score of all queries.
    pub score: f64,
    /// Its 95% bootstrap interval over the queries.
    pub interval: Option<Interval>,
    /// Mean loss of the first and of the last step; `null` where nothing is trained.
    pub loss: Option<[f64; 2]>,
}

/// The scores of queries whose retrieved demonstration is about as like them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bin {
    /// Least similarity in it.
    pub low: f64,
    /// Greatest similarity in it.
    pub high: f64,
    /// Number of queries in it.
    pub queries: usize,
    /// Mean and SD over the seeds.
    pub score: MeanSd,
}

/// An arm with one prompt length on one target, over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// How the model is asked, and what is trained.
    pub arm: Arm,
    /// Name of the task trained on.
    pub source: Option<String>,
    /// Name of the task judged on.
    pub target: String,
    /// Rows of the soft prompt.
    pub length: Option<usize>,
    /// Mean and SD over the seeds.
    pub score: MeanSd,
    /// 95% bootstrap interval over the queries, of the mean over the seeds.
    pub interval: Option<Interval>,
    /// The score of every seed, in the order of the settings.
    pub seeds: Vec<SeedScore>,
    /// By the similarity of the query's most like demonstration, shown or not; the same queries in every arm.
    pub bins: Vec<Bin>,
    /// Mean similarity of the demonstrations shown; `null` where there are none.
    pub similarity: Option<f64>,
    /// Demonstrations dropped for length, in all cells.
    pub shortened: usize,
    /// What the model wrote to [`Judge::examples`], under the first seed; empty in a report of an earlier version.
    #[serde(default)]
    pub outputs: Vec<String>,
}

/// Queries of each target that are shown as examples.
const EXAMPLES: usize = 6;

/// A query and what it should be answered with, the first of several answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExampleQuery {
    /// The example's input.
    pub input: String,
    /// Its gold output.
    pub gold: String,
}

/// How the outputs on a target are judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// Name of the task judged on.
    pub task: String,
    /// The metric's name in tables.
    pub metric: String,
    /// What must be said beside a score, see [`Metric::signature`](crate::task::Metric::signature).
    pub signature: String,
    /// The first queries; empty in a report of an earlier version.
    #[serde(default)]
    pub examples: Vec<ExampleQuery>,
}

/// The content of `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What was compared, as in `plan.json`.
    pub plan: Value,
    /// How each target is judged.
    pub metrics: Vec<Judge>,
    /// The rows, by target, then as the arms were given.
    pub rows: Vec<Row>,
}

impl Report {
    /// From the cells, all of which are there.
    pub(super) fn of(plan: Value, task_data: &[TaskData], settings: &CompareSettings, store: &Store) -> Result<Self> {
        let mut rows = Vec::new();
        for target in task_data {
            let bins = bins(&target.similarities()?, settings.bins);
            for (arm, source, length) in conditions(task_data, settings) {
                rows.push(row(arm, source, target, length, &bins, settings, store)?);
            }
        }
        let example = |query: &Example| ExampleQuery { input: query.input.clone(), gold: query.output.clone() };
        let judge = |m: &TaskData| Judge {
            task: m.task.name().to_string(),
            metric: m.task.metric().name().to_string(),
            signature: m.signature(),
            examples: m.queries.examples.iter().take(EXAMPLES).map(example).collect(),
        };
        Ok(Self { plan, metrics: task_data.iter().map(judge).collect(), rows })
    }

    /// The keys of all cells.
    pub(super) fn keys(task_data: &[TaskData], settings: &CompareSettings) -> Vec<CellKey> {
        let mut keys = Vec::new();
        for target in task_data {
            for (arm, source, length) in conditions(task_data, settings) {
                let (source, target) = (source.map(str::to_owned), target.task.name().to_owned());
                let key = |seed| CellKey { arm, source: source.clone(), target: target.clone(), length, seed };
                keys.extend(settings.seeds(arm).into_iter().map(key));
            }
        }
        keys
    }

    /// Writes `report.json` into a directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        atomic::write_json(directory.join("report.json"), self)
    }
}

/// What is judged on each target: arms as they were given, each with what it is trained on, and with every length of its prompt.
fn conditions<'a>(task_data: &'a [TaskData], settings: &CompareSettings) -> Vec<(Arm, Option<&'a str>, Option<usize>)> {
    let mut conditions = Vec::new();
    for &arm in &settings.arms {
        let sources: Vec<Option<&str>> = match arm.trains() {
            true => task_data.iter().map(|m| Some(m.task.name())).collect(),
            false => vec![None],
        };
        for source in sources {
            conditions.extend(settings.lengths(arm).into_iter().map(|length| (arm, source, length)));
        }
    }
    conditions
}

/// Queries by similarity, in `count` groups as equal as they can be (fewer where there are fewer queries).
fn bins(similarities: &[f64], count: usize) -> Vec<(f64, f64, Vec<usize>)> {
    let mut order: Vec<usize> = (0..similarities.len()).collect();
    order.sort_by(|&a, &b| similarities[a].total_cmp(&similarities[b]).then(a.cmp(&b)));
    let n = order.len();
    let group = |i: usize| order[i * n / count..(i + 1) * n / count].to_vec();
    let edges = |of: Vec<usize>| Some((similarities[*of.first()?], similarities[*of.last()?], of));
    (0..count).filter_map(|i| edges(group(i))).collect()
}

fn row(
    arm: Arm,
    source: Option<&str>,
    target: &TaskData,
    length: Option<usize>,
    groups: &[(f64, f64, Vec<usize>)],
    settings: &CompareSettings,
    store: &Store,
) -> Result<Row> {
    let metric = target.task.metric();
    let (name, source_name) = (target.task.name().to_string(), source.map(str::to_string));
    let mut cells: Vec<Cell> = Vec::new();
    let mut seeds = Vec::new();
    for seed in settings.seeds(arm) {
        let key = CellKey { arm, source: source_name.clone(), target: name.clone(), length, seed };
        let cell = store.cell(&key)?.expect("compare: every cell has been computed");
        let loss = match source {
            Some(source) => {
                let losses = store.losses(&TrainingKey { arm, source: source.to_string(), length, seed })?;
                losses.first().zip(losses.last()).map(|(first, last)| [*first, *last])
            }
            None => None,
        };
        seeds.push(SeedScore { seed, score: cell.score, interval: cell.interval, loss });
        cells.push(cell);
    }
    let bin = |(low, high, queries): &(f64, f64, Vec<usize>)| {
        let score = |cell: &Cell| {
            metric.corpus(&queries.iter().map(|&q| cell.generations[q].statistics.clone()).collect::<Vec<_>>())
        };
        Bin { low: *low, high: *high, queries: queries.len(), score: MeanSd::of(cells.iter().map(score)) }
    };
    let statistics = |cell: &Cell| cell.generations.iter().map(|generation| generation.statistics.clone()).collect();
    let runs: Vec<Vec<Vec<f64>>> = cells.iter().map(statistics).collect();
    let similarities: Vec<f64> =
        cells.iter().flat_map(|c| &c.generations).flat_map(|g| g.similarity.iter().copied()).collect();
    Ok(Row {
        arm,
        source: source_name,
        target: name,
        length,
        score: MeanSd::of(cells.iter().map(|c| c.score)),
        interval: interval(metric, &runs, settings.resamples, settings.split_seed),
        seeds,
        bins: groups.iter().map(bin).collect(),
        similarity: MeanSd::of(similarities).mean,
        shortened: cells.iter().flat_map(|c| &c.generations).map(|g| g.shortened).sum(),
        outputs: cells.iter().take(1).flat_map(|c| &c.generations).take(EXAMPLES).map(|g| g.output.clone()).collect(),
    })
}
