//! What the runs of a training have come to: a line, a table or JSON, and for a grid its files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Failure, output};
use crate::Result;
use crate::formats::{adapter, atomic};
use crate::train::scores::{BestBy, Score};

/// Name of the file that compares the runs of a grid.
pub const RESULTS_FILE: &str = "results.json";
/// Name of the file of the result of a run that a sweep has.
pub const RESULT_FILE: &str = "result.json";
/// Name of the file of a run's settings, in its directory.
pub const RUN_FILE: &str = "run.json";

/// What a run has come to.
pub struct RunResult {
    /// Where its adapter is.
    pub dir: PathBuf,
    /// What distinguishes it from the other runs.
    pub name: Map<String, Value>,
    /// Steps that it has done.
    pub steps: u64,
    /// The loss of its last step; none if a checkpoint had them all and no loss.
    pub loss: Option<f64>,
    /// Its tokens, with the same exception.
    pub tokens: Option<u64>,
    /// The evaluation of the parameters that are written.
    pub score: Option<Score>,
    /// Whether it stopped before the end of its schedule.
    pub stopped: bool,
}

/// What runs are compared by: a value of their evaluations, or else the loss of the last step.
pub struct Criterion<'a> {
    /// Of the evaluations, if there are any.
    pub best_by: Option<&'a BestBy>,
}

impl Criterion<'_> {
    /// As the log names it.
    fn name(&self) -> String {
        self.best_by.map_or("loss".to_owned(), |by| format!("eval_{}", by.name))
    }

    /// A run's value.
    fn value(&self, result: &RunResult) -> Option<f64> {
        let evaluated = || self.best_by.zip(result.score.as_ref()).and_then(|(by, score)| score.value(&by.name));
        evaluated().or(result.loss)
    }

    /// The best run with its value, the first of equal ones.
    fn best(&self, results: &[RunResult]) -> Option<(usize, f64)> {
        let values = results.iter().enumerate().filter_map(|(run, result)| Some((run, self.value(result)?)));
        let better = |x: f64, y: f64| self.best_by.map_or(x < y, |by| by.is_better(x, y));
        values.reduce(|best, other| if better(other.1, best.1) { other } else { best })
    }
}

impl RunResult {
    /// Writes it into its directory, as it is printed of a training of its own.
    pub fn save(&self) -> Result<()> {
        atomic::write_json(self.dir.join(RESULT_FILE), &self.json(("adapter", json!(self.dir))))
    }

    /// All of it, with where its adapter is in place of its directory's path.
    fn json(&self, (key, place): (&str, Value)) -> Value {
        let mut value = self.name.clone();
        value.insert(key.to_owned(), place);
        value.insert("steps".into(), json!(self.steps));
        value.insert("loss".into(), json!(self.loss));
        if let Some(score) = &self.score {
            value.insert("eval_loss".into(), json!(score.loss));
            value.insert("eval_accuracy".into(), json!(score.accuracy));
            value.extend(score.metrics.iter().map(|(name, metric)| (format!("eval_{name}"), json!(metric))));
            value.insert("eval_step".into(), json!(score.step));
            value.insert("stopped_early".into(), json!(self.stopped));
        }
        value.insert("tokens".into(), json!(self.tokens));
        Value::Object(value)
    }
}

/// Says which files of an earlier training of another form stay in a directory, where those of one of so many runs come to lie.
pub fn note_others(dir: &Path, runs: usize, is_grid: bool) {
    let is_other = |name: &str| match name {
        RESULTS_FILE => !is_grid,
        RUN_FILE => !is_grid || runs > 1,
        // The last is a README.md, which may be anybody's.
        _ if adapter::FILES[..3].contains(&name) => runs > 1,
        _ => name
            .strip_prefix("run-")
            .and_then(|run| run.parse().ok())
            .is_some_and(|run: usize| runs == 1 || run >= runs),
    };
    let names = atomic::entries(dir).into_iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
    let others: Vec<String> = names.filter(|name| is_other(name)).collect();
    if !others.is_empty() {
        let (dir, others) = (dir.display(), others.join(", "));
        output::note(format_args!("{dir}: {others} of an earlier training stay beside what this one writes"));
    }
}

/// The results of a grid, and which run is the best by what.
fn grid(results: &[RunResult], criterion: &Criterion<'_>, folder: impl Fn(usize) -> String) -> Value {
    // A name within the directory, which may be moved as a whole.
    let runs = results.iter().enumerate().map(|(run, result)| result.json(("run", json!(folder(run)))));
    let best = criterion.best(results).map(|(run, _)| folder(run));
    json!({ "criterion": criterion.name(), "best": best, "runs": runs.collect::<Vec<_>>() })
}

/// Writes `results.json` of a grid.
pub fn write(
    dir: &Path,
    results: &[RunResult],
    criterion: &Criterion<'_>,
    folder: impl Fn(usize) -> String,
) -> Result<(), Failure> {
    Ok(atomic::write_json(dir.join(RESULTS_FILE), &grid(results, criterion, folder))?)
}

/// Prints the results of all runs; of a grid, which is the best.
pub fn print(results: &[RunResult], criterion: &Criterion<'_>, as_json: bool, is_grid: bool) -> Result<(), Failure> {
    let of_run = |result: &RunResult| result.json(("adapter", json!(result.dir)));
    if as_json {
        return output::json(&match results {
            [result] => of_run(result),
            results if is_grid => {
                let dir = criterion.best(results).map(|(run, _)| &results[run].dir);
                json!({ "runs": results.iter().map(of_run).collect::<Vec<_>>(), "best": dir })
            }
            results => json!({ "runs": results.iter().map(of_run).collect::<Vec<_>>() }),
        });
    }
    if let [RunResult { dir, steps, loss, score, .. }] = results {
        let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        let score = score.as_ref().map_or(String::new(), |score| {
            let metrics: String = score.metrics.iter().map(|(name, value)| format!(", {name} {value:.2}")).collect();
            let Score { step, loss, accuracy, .. } = score;
            format!(", held-out loss {loss:.4}, accuracy {accuracy:.4}{metrics} after step {step}")
        });
        return output::line(format_args!("{}: {steps} steps{loss}{score}", dir.display()));
    }
    let names: Vec<&str> = results[0].name.keys().map(String::as_str).collect();
    let first = results.iter().find_map(|result| result.score.as_ref());
    let mut values: Vec<&str> = if first.is_some() { vec!["loss", "accuracy"] } else { Vec::new() };
    values.extend(first.iter().flat_map(|score| score.metrics.keys().map(String::as_str)));
    let titles: Vec<String> = values.iter().map(|name| format!("eval_{name}")).collect();
    let mut header = [&["run"], names.as_slice(), &["steps", "loss"]].concat();
    header.extend(titles.iter().map(String::as_str));
    let row = |RunResult { dir, name, steps, loss, score, .. }: &RunResult| {
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let mut row = vec![dir.display().to_string()];
        row.extend(name.values().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        row.extend([steps.to_string(), shown(*loss)]);
        row.extend(values.iter().map(|name| shown(score.as_ref().and_then(|score| score.value(name)))));
        row
    };
    output::table(&header, results.iter().map(row))?;
    match criterion.best(results).filter(|_| is_grid) {
        Some((run, value)) => {
            let (dir, name) = (results[run].dir.display(), criterion.name());
            output::line(format_args!("best: {dir} ({name} {value:.4})"))
        }
        None => Ok(()),
    }
}
