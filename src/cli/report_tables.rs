//! The tables of reports for the terminal.

use comfy_table::{Table, presets};

use crate::compare::report::{Judge, Report as CompareReport, Row};
use crate::probe::arm::{Arm, FURTHER_ARMS};
use crate::probe::factors::Factor;
use crate::probe::report::{PairReport, Report as ProbeReport, arm_name};
use crate::probe::statistics::MeanSd;

/// A probe's summary: the cosines by layer, a table for each further arm, then the scores of the arms.
pub fn probe(report: &ProbeReport) -> String {
    let show = |value| mean_sd(value, 4);
    let summary = &report.summary;
    let mut layers = new(&["layer", "ICL-IT", "anchor-ICL", "anchor-IT", "update", "Gaussian", "shuffled"]);
    for layer in &summary.layers {
        let pair = |x, y| layer.pair(x, y);
        let icl_it = pair(Arm::Icl, Arm::Lora);
        let updates = icl_it.and_then(|pair| pair.updates);
        let cosine = |pair: Option<&PairReport>| pair.map(|pair| pair.cosine);
        let values = [
            cosine(icl_it),
            cosine(pair(Arm::ZeroShot, Arm::Icl)),
            cosine(pair(Arm::ZeroShot, Arm::Lora)),
            updates.map(|u| u.update),
            Some(layer.update_gaussian),
            updates.map(|u| u.update_shuffled),
        ];
        let values = values.map(|value| value.map_or_else(String::new, show));
        layers.add_row(std::iter::once(layer.layer.to_string()).chain(values));
    }
    let mut tables = vec![layers.to_string()];
    let arms = summary.arms.iter().map(|report| report.arm);
    tables.extend(arms.filter(|arm| FURTHER_ARMS.contains(arm)).map(|arm| further(report, arm)));
    let names = summary.arms.iter().map(|report| title(report.arm));
    let mut scores = new(&std::iter::once(String::new()).chain(names).collect::<Vec<_>>());
    let row = |name: &str, values: Vec<MeanSd>| std::iter::once(name.to_string()).chain(values.into_iter().map(show));
    let accuracy = report.settings.length_normalization.accuracy();
    scores.add_row(row(accuracy, summary.arms.iter().map(|arm| arm.accuracy).collect()));
    scores.add_row(row("log-probability of gold", summary.arms.iter().map(|arm| arm.log_prob).collect()));
    tables.push(scores.to_string());
    tables.extend(patching(report));
    tables.extend(conditions(report));
    tables.join("\n")
}

/// The share of ICL's gain in accuracy that each vector recovers, by the layer that it was put into; none where
/// nothing was patched.
fn patching(report: &ProbeReport) -> Option<String> {
    let layers = &report.summary.patching;
    let vectors = layers.first()?.vectors.iter().map(|vector| vector.vector.clone());
    let mut table = new(&std::iter::once("patched".to_owned()).chain(vectors).collect::<Vec<_>>());
    for layer in layers {
        let shares = layer.vectors.iter().map(|vector| mean_sd(vector.recovery_accuracy, 2));
        table.add_row(std::iter::once(layer.layer.to_string()).chain(shares));
    }
    Some(format!("share of ICL's gain in accuracy that a state put into the query's own run recovers\n{table}"))
}

/// The conditions of a study, by what they end in; none where there is one alone.
fn conditions(report: &ProbeReport) -> Option<String> {
    let first = report.conditions.first().filter(|_| report.conditions.len() > 1)?;
    let factors: Vec<Factor> = first.levels.keys().copied().collect();
    let columns = ["anchor", "ICL", "IT", "ICL-IT", "update", "shuffled"].map(str::to_owned);
    let mut table = new(&factors.iter().map(ToString::to_string).chain(columns).collect::<Vec<_>>());
    for condition in &report.conditions {
        let level = |factor: &Factor| match condition.levels.get(factor) {
            Some(serde_json::Value::String(text)) => text.clone(),
            other => other.map_or(String::new(), ToString::to_string),
        };
        let score = |arm: Arm| condition.summary.arm(arm).map(|arm| arm.accuracy).filter(|score| score.mean.is_some());
        let log_prob = |arm: Arm| condition.summary.arm(arm).map(|arm| arm.log_prob);
        let scores = [Arm::ZeroShot, Arm::Icl, Arm::Lora].map(|arm| score(arm).or_else(|| log_prob(arm)));
        let pair = condition.summary.layers.last().and_then(|layer| layer.pair(Arm::Icl, Arm::Lora));
        let updates = pair.and_then(|pair| pair.updates);
        let states = [pair.map(|pair| pair.cosine), updates.map(|u| u.update), updates.map(|u| u.update_shuffled)];
        let values = scores.into_iter().chain(states).map(|value| value.map_or_else(String::new, |v| mean_sd(v, 3)));
        table.add_row(factors.iter().map(level).chain(values));
    }
    Some(format!("conditions: accuracies (log-probabilities of free text), and cosines after the final norm\n{table}"))
}

/// A further arm beside all arms before it, by layer.
fn further(report: &ProbeReport, arm: Arm) -> String {
    let name = title(arm);
    let layers = &report.summary.layers;
    let before = |pair: &&PairReport| pair.arms[1] == arm;
    let mut header = vec!["layer".to_string()];
    for pair in layers.iter().take(1).flat_map(|layer| &layer.pairs).filter(before) {
        header.push(format!("{}-{name}", title(pair.arms[0])));
        if pair.updates.is_some() {
            header.extend(["update".into(), "shuffled".into()]);
        }
    }
    let mut table = new(&header);
    for layer in layers {
        let values = layer.pairs.iter().filter(before).flat_map(|pair| {
            let updates = pair.updates.map(|u| [u.update, u.update_shuffled]);
            std::iter::once(pair.cosine).chain(updates.into_iter().flatten())
        });
        table.add_row(std::iter::once(layer.layer.to_string()).chain(values.map(|value| mean_sd(value, 4))));
    }
    table.to_string()
}

/// An arm in a probe's table.
fn title(arm: Arm) -> String {
    if arm == Arm::ZeroShot { arm_name(arm).to_owned() } else { arm_name(arm).to_uppercase() }
}

/// A comparison: a table for each target, and the source by target matrices where there are several tasks.
pub fn compare(report: &CompareReport) -> String {
    let mut out: Vec<String> = report.metrics.iter().map(|judge| target(report, judge)).collect();
    if report.metrics.len() > 1 {
        out.extend(matrices(report));
    }
    out.join("\n")
}

/// The rows of a target.
fn target(report: &CompareReport, judge: &Judge) -> String {
    let rows: Vec<&Row> = report.rows.iter().filter(|r| r.target == judge.task).collect();
    let mut header = vec!["arm".to_string(), "virtual tokens".to_string(), "seeds".to_string(), judge.metric.clone()];
    header.push("95% of queries".to_string());
    header.extend(rows.first().map_or(&[][..], |r| &r.bins).iter().map(|b| format!("{:.2} to {:.2}", b.low, b.high)));
    let mut table = new(&header);
    for row in rows {
        let source = row.source.as_ref().filter(|s| **s != row.target).map_or(String::new(), |s| format!(" of {s}"));
        let interval = row.interval.map_or("-".to_string(), |i| format!("{:.2} to {:.2}", i.low, i.high));
        let length = row.length.map_or("-".to_string(), |n| n.to_string());
        let name = row.arm.name().to_string() + &source;
        let first = [name, length, row.seeds.len().to_string(), mean_sd(row.score, 2), interval];
        table.add_row(first.into_iter().chain(row.bins.iter().map(|b| mean_sd(b.score, 2))));
    }
    let queries =
        report.rows.iter().find(|r| r.target == judge.task).map_or(0, |r| r.bins.iter().map(|b| b.queries).sum());
    let signature = Some(&judge.signature).filter(|s| **s != judge.metric);
    let signature = signature.map_or(String::new(), |signature| format!(" ({signature})"));
    format!(
        "{}: {}{signature}, {queries} queries, mean ± SD over seeds; to the right by the likeness of the nearest demonstration\n{table}",
        judge.task, judge.metric
    )
}

/// For each arm and prompt length that trains something, scores by source and target.
fn matrices(report: &CompareReport) -> Vec<String> {
    let mut kinds: Vec<(Arm, Option<usize>)> = Vec::new();
    for row in report.rows.iter().filter(|r| r.source.is_some()) {
        if !kinds.contains(&(row.arm, row.length)) {
            kinds.push((row.arm, row.length));
        }
    }
    let matrix = |(arm, length): (Arm, Option<usize>)| {
        let targets = report.metrics.iter().map(|j| format!("on {} ({})", j.task, j.metric));
        let mut table = new(&std::iter::once(String::new()).chain(targets).collect::<Vec<_>>());
        for source in &report.metrics {
            let cell = |target: &Judge| {
                let of = |r: &&Row| {
                    let between = (r.source.as_deref(), r.target.as_str());
                    (r.arm, r.length) == (arm, length) && between == (Some(source.task.as_str()), &target.task)
                };
                report.rows.iter().find(of).map_or("-".to_string(), |r| mean_sd(r.score, 2))
            };
            table.add_row(std::iter::once(format!("from {}", source.task)).chain(report.metrics.iter().map(cell)));
        }
        let length = length.map_or(String::new(), |n| format!(", {n} virtual tokens"));
        format!("{}{length}: trained on, judged on\n{table}", arm.name())
    };
    kinds.into_iter().map(matrix).collect()
}

/// An empty table.
fn new<S: AsRef<str>>(header: &[S]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header.iter().map(AsRef::as_ref));
    table
}

fn mean_sd(value: MeanSd, digits: usize) -> String {
    match (value.mean, value.sd) {
        (Some(mean), Some(sd)) => format!("{mean:.digits$} ± {sd:.digits$}"),
        (Some(mean), None) => format!("{mean:.digits$}"),
        (None, _) => "-".to_string(),
    }
}
