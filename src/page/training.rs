//! The page of a training: how losses and held-out values went, by run, and which run is the best.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::model::{Answer, Block, Figure, Kind, Look, Page, Point, Section, Series, Table, Tone};
use super::words::{count, number};
use crate::formats::lines::at;
use crate::probe::statistics::MeanSd;
use crate::train::log::{EvalLine, LogLine};
use crate::{Error, Result};

/// What the page needs of a training: the lines of its log, and of a grid its `results.json`.
#[derive(Deserialize)]
struct Report {
    log: Vec<Value>,
    results: Option<Results>,
}

/// A line of either kind.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected lines of steps (current_steps, loss, lr, ...) or evaluations (eval_loss, ...)")]
enum Line {
    Step(LogLine),
    Evaluation(EvalLine),
}

/// What a grid has come to.
#[derive(Deserialize)]
struct Results {
    criterion: String,
    best: Option<String>,
    runs: Vec<Map<String, Value>>,
}

/// What the log says of one run.
#[derive(Default)]
struct Run {
    total_steps: u64,
    /// By the names of the log's fields: steps and values.
    curves: BTreeMap<String, Vec<(u64, f64)>>,
}

/// Whether a value is a training's log, as [`page`] reads it.
pub fn is_log(report: &Value) -> bool {
    report.get("log").is_some_and(Value::is_array)
}

/// The page of a training, whose log and results are read from beside `path`; `command` repeats it.
///
/// # Errors
/// A line or a result that is none, or a log without lines.
pub fn page(report: &Value, path: &Path, command: &str) -> Result<Page> {
    let Report { log, results } = Report::deserialize(report).map_err(Error::file(path))?;
    let line = |(i, line): (usize, Value)| Line::deserialize(line).map_err(Error::file(at(path, i + 1)));
    let log = log.into_iter().enumerate().map(line).collect::<Result<Vec<_>>>()?;
    let runs = runs(log);
    if runs.is_empty() {
        return Err(Error::field(path, "the file", "at least one line", "none"));
    }
    let steps = runs.iter().map(|run| run.total_steps).max().unwrap_or(0);
    let asked = format!("{} of up to {}.", count(runs.len(), "run", "runs"), count(steps as usize, "step", "steps"));
    let sections = [
        ("held-out", "Held-out data", held_out(&runs)),
        ("rates", "Learning rates and gradients", rates(&runs)),
        ("runs", "Runs", results.as_ref().map(table).into_iter().collect()),
    ];
    let section = |(id, title, blocks): (&str, &str, Vec<Block>)| Section {
        id: id.to_owned(),
        title: title.to_owned(),
        text: Vec::new(),
        blocks,
    };
    Ok(Page {
        title: "Training".to_owned(),
        asked: vec![asked],
        verdict: verdict(&runs, results.as_ref()),
        answers: answers(&runs),
        over: "the seeds".to_owned(),
        summary: figures(&runs, "loss", "Training loss", "nats a label token"),
        sections: sections.into_iter().filter(|(.., blocks)| !blocks.is_empty()).map(section).collect(),
        command: command.to_owned(),
    })
}

/// The lines by run.
fn runs(log: Vec<Line>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for line in log {
        let (run, step, total_steps, values) = match line {
            Line::Step(line) => {
                let values = [("loss", line.loss), ("lr", line.lr), ("grad_norm", line.grad_norm)];
                let values: Vec<_> = values.map(|(name, value)| (name.to_owned(), value)).into();
                (line.run, line.current_steps, line.total_steps, values)
            }
            Line::Evaluation(line) => {
                let mut values =
                    vec![("eval_loss".to_owned(), line.eval_loss), ("eval_accuracy".to_owned(), line.eval_accuracy)];
                values.extend(line.metrics);
                (line.run, line.current_steps, line.total_steps, values)
            }
        };
        let run = run.unwrap_or(0);
        if runs.len() <= run {
            runs.resize_with(run + 1, Run::default);
        }
        runs[run].total_steps = total_steps;
        for (name, value) in values {
            runs[run].curves.entry(name).or_default().push((step, value));
        }
    }
    runs
}

/// The curves of a value, a figure for as many runs as there are looks.
fn figures(runs: &[Run], value: &str, title: &str, unit: &str) -> Vec<Block> {
    let looks = usize::from(Look::SHUFFLED.0);
    let parts = runs.len().div_ceil(looks);
    let figure = |(part, of_part): (usize, &[Run])| {
        let series = |(i, run): (usize, &Run)| {
            let points = run.curves.get(value).into_iter().flatten();
            let point = |&(step, y): &(u64, f64)| Point { x: step as f64, y: MeanSd { mean: Some(y), sd: None } };
            let name = format!("run {}", part * looks + i);
            Series { name, look: Look::nth(i), points: points.map(point).collect() }
        };
        let (first, last) = (part * looks, part * looks + of_part.len() - 1);
        let figure = Figure {
            id: format!("{}-{part}", value.replace('_', "-")),
            title: if parts > 1 { format!("{title}, runs {first} to {last}") } else { title.to_owned() },
            note: String::new(),
            x_label: "optimiser step".to_owned(),
            y_label: unit.to_owned(),
            ticks: Vec::new(),
            y_range: None,
            kind: Kind::Lines,
            series: of_part.iter().enumerate().map(series).collect(),
        };
        figure.filled().map(Block::Figure)
    };
    runs.chunks(looks).enumerate().filter_map(figure).collect()
}

/// The values of evaluations.
fn held_out(runs: &[Run]) -> Vec<Block> {
    let mut names: Vec<&String> = runs.iter().flat_map(|run| run.curves.keys()).collect();
    names.retain(|name| name.starts_with("eval_"));
    names.sort_by_key(|name| (name.as_str() != "eval_loss", name.as_str() != "eval_accuracy", name.as_str()));
    names.dedup();
    let blocks = |name: &String| match name.as_str() {
        "eval_loss" => figures(runs, name, "Held-out loss", "nats a label token"),
        "eval_accuracy" => figures(runs, name, "Held-out accuracy", "share of label tokens"),
        other => {
            let metric = other.trim_start_matches("eval_").replace('_', " ");
            figures(runs, name, &format!("Held-out {metric} of what was written"), &format!("{metric}, 0 to 100"))
        }
    };
    names.into_iter().flat_map(blocks).collect()
}

fn rates(runs: &[Run]) -> Vec<Block> {
    let mut blocks = figures(runs, "lr", "Learning rate", "learning rate");
    blocks.extend(figures(runs, "grad_norm", "Norm of the gradient, before it is clipped", "norm"));
    blocks
}

/// The runs of a grid, the best marked.
fn table(results: &Results) -> Block {
    let mut header: Vec<String> = Vec::new();
    for key in results.runs.iter().flat_map(|run| run.keys()) {
        if !header.contains(key) {
            header.push(key.clone());
        }
    }
    let row = |run: &Map<String, Value>| {
        let cell = |key: &String| {
            let is_best = key == "run" && run.get(key).and_then(Value::as_str) == results.best.as_deref();
            let text = match run.get(key).unwrap_or(&Value::Null) {
                Value::Null => "–".to_owned(),
                Value::String(text) => text.clone(),
                Value::Number(n) if n.is_f64() => n.as_f64().map_or_else(|| n.to_string(), |n| format!("{n:.6}")),
                other => other.to_string(),
            };
            if is_best { format!("{text} (best)") } else { text }
        };
        header.iter().map(cell).collect()
    };
    let rows = results.runs.iter().map(row).collect();
    Block::Table(Table { caption: format!("Compared by {}", results.criterion), header, rows, text: false })
}

/// The first and the last value of a curve.
fn ends(run: &Run, value: &str) -> Option<[f64; 2]> {
    let curve = run.curves.get(value)?;
    Some([curve.first()?.1, curve.last()?.1])
}

/// The least value of a curve, with its step.
fn least(run: &Run, value: &str) -> Option<(u64, f64)> {
    run.curves.get(value)?.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
}

fn verdict(runs: &[Run], results: Option<&Results>) -> String {
    if let Some(Results { criterion, best: Some(best), runs }) = results {
        let of_best = runs.iter().find(|run| run.get("run").and_then(Value::as_str) == Some(best));
        let value = of_best.and_then(|run| run.get(criterion)?.as_f64());
        let value = value.map_or_else(String::new, |value| format!(", with {criterion} {value:.4}"));
        return format!("Of {} {best} is the best{value}.", count(runs.len(), "run", "runs"));
    }
    let (whole, several) = (&runs[0], runs.len() > 1);
    let of = if several { " of run 0" } else { "" };
    match (ends(whole, "loss"), least(whole, "eval_loss")) {
        (_, Some((step, loss))) => format!("The held-out loss{of} was lowest after step {step}: {}.", number(loss, 4)),
        (Some([first, last]), None) => {
            format!("The training loss{of} went from {} to {}.", number(first, 4), number(last, 4))
        }
        (None, None) => "Nothing was logged.".to_owned(),
    }
}

fn answers(runs: &[Run]) -> Vec<Answer> {
    let answer = |question: &str, yes: usize, of: usize, text: String| {
        let (word, tone) = match yes {
            0 => ("No".to_owned(), Tone::No),
            all if all == of => ("Yes".to_owned(), Tone::Yes),
            some => (format!("{some} of {of}"), Tone::Partly),
        };
        Answer { question: question.to_owned(), word, tone, text }
    };
    let logged: Vec<[f64; 2]> = runs.iter().filter_map(|run| ends(run, "loss")).collect();
    let mut answers = Vec::new();
    if !logged.is_empty() {
        let fell = logged.iter().filter(|[first, last]| last < first).count();
        let [first, last] = [0, 1].map(|i| logged.iter().map(|ends| ends[i]).sum::<f64>() / logged.len() as f64);
        let text =
            format!("First and last logged loss, mean of the runs: {} and {}.", number(first, 4), number(last, 4));
        answers.push(answer("Did the training loss fall?", fell, logged.len(), text));
    }
    let evaluated: Vec<[f64; 2]> = runs
        .iter()
        .filter(|run| run.curves.get("eval_loss").is_some_and(|curve| curve.len() > 1))
        .filter_map(|run| Some([least(run, "eval_loss")?.1, ends(run, "eval_loss")?[1]]))
        .collect();
    if !evaluated.is_empty() {
        let rose = evaluated.iter().filter(|[least, last]| last > least).count();
        let [least, last] = [0, 1].map(|i| evaluated.iter().map(|ends| ends[i]).sum::<f64>() / evaluated.len() as f64);
        let text =
            format!("Lowest and last held-out loss, mean of the runs: {} and {}.", number(least, 4), number(last, 4));
        answers.push(answer("Did the held-out loss rise again?", rose, evaluated.len(), text));
    }
    answers
}
