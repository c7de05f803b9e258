//! The result of a comparison: `report.json`, and tables for the terminal. Both are functions of the cells alone.

use std::path::Path;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cells::{Cell, Key, Store};
use super::material::Material;
use super::training::Training;
use super::{Arm, CompareSettings};
use crate::Result;
use crate::formats::atomic;
use crate::probe::statistics::MeanSd;
use crate::task::Task;
use crate::task::metrics::{Interval, interval};

/// One seed's cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedScore {
    /// The seed; `null` where nothing is random.
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
    /// Queries in it.
    pub queries: usize,
    /// Over the seeds.
    pub score: MeanSd,
}

/// An arm with one prompt length on one target, over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The arm.
    pub arm: Arm,
    /// The task trained on.
    pub source: Option<Task>,
    /// The task judged on.
    pub target: Task,
    /// Rows of the soft prompt.
    pub length: Option<usize>,
    /// Mean and SD over the seeds.
    pub score: MeanSd,
    /// 95% bootstrap interval over the queries, of the mean over the seeds.
    pub interval: Option<Interval>,
    /// Seed by seed.
    pub seeds: Vec<SeedScore>,
    /// By the similarity of the query's most like demonstration, shown or not; the same queries in every arm.
    pub bins: Vec<Bin>,
    /// Mean similarity of the demonstrations shown; `null` where there are none.
    pub similarity: Option<f64>,
    /// Demonstrations left out for length, in all cells.
    pub shortened: usize,
}

/// A target's metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// The task.
    pub task: Task,
    /// The metric's name.
    pub metric: String,
    /// Its signature.
    pub signature: String,
}

/// All of `report.json`.
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
    pub(super) fn of(plan: Value, materials: &[Material], settings: &CompareSettings, store: &Store) -> Result<Self> {
        let mut rows = Vec::new();
        for target in materials {
            let bins = bins(&target.similarities()?, settings.bins);
            for &arm in &settings.arms {
                let sources: Vec<Option<Task>> = match arm.trains() {
                    true => materials.iter().map(|m| Some(m.task)).collect(),
                    false => vec![None],
                };
                for source in sources {
                    for length in settings.lengths(arm) {
                        rows.push(row(arm, source, target, length, &bins, settings, store)?);
                    }
                }
            }
        }
        let judge =
            |m: &Material| Judge { task: m.task, metric: m.task.metric().name().to_string(), signature: m.signature() };
        Ok(Self { plan, metrics: materials.iter().map(judge).collect(), rows })
    }

    /// Writes `report.json` into a directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        atomic::write_json(directory.join("report.json"), self)
    }

    /// A table for each target, and the source by target matrices where there are several tasks.
    pub fn table(&self) -> String {
        let mut out: Vec<String> = self.metrics.iter().map(|judge| self.target(judge)).collect();
        if self.metrics.len() > 1 {
            out.extend(self.matrices());
        }
        out.join("\n")
    }

    fn target(&self, judge: &Judge) -> String {
        let rows: Vec<&Row> = self.rows.iter().filter(|r| r.target == judge.task).collect();
        let mut header = vec!["arm".to_string(), "prompt".to_string(), "seeds".to_string(), judge.metric.clone()];
        header.push("95% of queries".to_string());
        header
            .extend(rows.first().map_or(&[][..], |r| &r.bins).iter().map(|b| format!("{:.2} to {:.2}", b.low, b.high)));
        let mut table = new(&header);
        for row in rows {
            let source = row.source.filter(|s| *s != row.target).map_or(String::new(), |s| format!(" of {s}"));
            let interval = row.interval.map_or("-".to_string(), |i| format!("{:.2} to {:.2}", i.low, i.high));
            let length = row.length.map_or("-".to_string(), |n| n.to_string());
            let name = row.arm.name().to_string() + &source;
            let first = [name, length, row.seeds.len().to_string(), show(row.score), interval];
            table.add_row(first.into_iter().chain(row.bins.iter().map(|b| show(b.score))));
        }
        let queries =
            self.rows.iter().find(|r| r.target == judge.task).map_or(0, |r| r.bins.iter().map(|b| b.queries).sum());
        let signature = Some(&judge.signature).filter(|s| **s != judge.metric);
        let signature = signature.map_or(String::new(), |signature| format!(" ({signature})"));
        format!(
            "{}: {}{signature}, {queries} queries, mean ± SD over seeds; to the right by the likeness of the nearest demonstration\n{table}",
            judge.task, judge.metric
        )
    }

    fn matrices(&self) -> Vec<String> {
        let mut kinds: Vec<(Arm, Option<usize>)> = Vec::new();
        for row in self.rows.iter().filter(|r| r.source.is_some()) {
            if !kinds.contains(&(row.arm, row.length)) {
                kinds.push((row.arm, row.length));
            }
        }
        let matrix = |(arm, length): (Arm, Option<usize>)| {
            let targets = self.metrics.iter().map(|j| format!("on {} ({})", j.task, j.metric));
            let mut table = new(&std::iter::once(String::new()).chain(targets).collect::<Vec<_>>());
            for source in &self.metrics {
                let cell = |target: &Judge| {
                    let of = |r: &&Row| {
                        (r.arm, r.length, r.source, r.target) == (arm, length, Some(source.task), target.task)
                    };
                    self.rows.iter().find(of).map_or("-".to_string(), |r| show(r.score))
                };
                table.add_row(std::iter::once(format!("from {}", source.task)).chain(self.metrics.iter().map(cell)));
            }
            let length = length.map_or(String::new(), |n| format!(", {n} rows"));
            format!("{}{length}: trained on, judged on\n{table}", arm.name())
        };
        kinds.into_iter().map(matrix).collect()
    }
}

fn new(header: &[String]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
    table
}

fn show(value: MeanSd) -> String {
    match (value.mean, value.sd) {
        (Some(mean), Some(sd)) => format!("{mean:.2} ± {sd:.2}"),
        (Some(mean), None) => format!("{mean:.2}"),
        (None, _) => "-".to_string(),
    }
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
    source: Option<Task>,
    target: &Material,
    length: Option<usize>,
    groups: &[(f64, f64, Vec<usize>)],
    settings: &CompareSettings,
    store: &Store,
) -> Result<Row> {
    let metric = target.task.metric();
    let mut cells: Vec<Cell> = Vec::new();
    let mut seeds = Vec::new();
    for seed in settings.seeds(arm) {
        let key = Key { arm, source, target: target.task, length, seed };
        let cell = store.cell(&key)?.expect("compare: every cell has been computed");
        let loss = match source {
            Some(source) => {
                let losses = store.losses(&Training { arm, source, length, seed })?;
                losses.first().zip(losses.last()).map(|(first, last)| [*first, *last])
            }
            None => None,
        };
        seeds.push(SeedScore { seed, score: cell.score, interval: cell.interval, loss });
        cells.push(cell);
    }
    let bin = |(low, high, queries): &(f64, f64, Vec<usize>)| {
        let score = |cell: &Cell| {
            metric.corpus(&queries.iter().map(|&q| cell.answers[q].statistics.clone()).collect::<Vec<_>>())
        };
        Bin { low: *low, high: *high, queries: queries.len(), score: MeanSd::of(cells.iter().map(score)) }
    };
    let statistics = |cell: &Cell| cell.answers.iter().map(|answer| answer.statistics.clone()).collect();
    let runs: Vec<Vec<Vec<f64>>> = cells.iter().map(statistics).collect();
    let shown: Vec<f64> = cells.iter().flat_map(|c| &c.answers).flat_map(|a| a.similarity.iter().copied()).collect();
    Ok(Row {
        arm,
        source,
        target: target.task,
        length,
        score: MeanSd::of(cells.iter().map(|c| c.score)),
        interval: interval(metric, &runs, settings.resamples, settings.split_seed),
        seeds,
        bins: groups.iter().map(bin).collect(),
        similarity: MeanSd::of(shown).mean,
        shortened: cells.iter().flat_map(|c| &c.answers).map(|a| a.shortened).sum(),
    })
}
