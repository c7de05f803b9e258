//! The tables of reports for the terminal.

use comfy_table::{Table, presets};

use crate::compare::report::{Judge, Report as CompareReport, Row};
use crate::probe::arm::Arm;
use crate::probe::report::{PairReport, Report as ProbeReport, arm_name};
use crate::probe::statistics::MeanSd;

/// A probe's summary: the cosines by layer, a table for each arm with a soft prompt, then the scores of the arms.
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
    tables.extend(arms.filter(|arm| arm.has_soft_prompt()).map(|arm| soft(report, arm)));
    let names = summary.arms.iter().map(|report| title(report.arm));
    let mut scores = new(&std::iter::once(String::new()).chain(names).collect::<Vec<_>>());
    let row = |name: &str, values: Vec<MeanSd>| std::iter::once(name.to_string()).chain(values.into_iter().map(show));
    scores.add_row(row("accuracy", summary.arms.iter().map(|arm| arm.accuracy).collect()));
    scores.add_row(row("log-probability", summary.arms.iter().map(|arm| arm.log_prob).collect()));
    tables.push(scores.to_string());
    tables.join("\n")
}

/// An arm with a soft prompt beside all arms before it, by layer.
fn soft(report: &ProbeReport, arm: Arm) -> String {
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
    let mut header = vec!["arm".to_string(), "prompt".to_string(), "seeds".to_string(), judge.metric.clone()];
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
        let length = length.map_or(String::new(), |n| format!(", {n} rows"));
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
