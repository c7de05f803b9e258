//! What the runs of a training have come to: a line, a table or JSON, and for a grid its files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Failure, output};
use crate::formats::atomic;
use crate::train::scores::Score;

/// Name of the file that compares the runs of a grid.
pub const RESULTS_FILE: &str = "results.json";
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

impl RunResult {
    /// What runs are compared by: the evaluation's loss, or else that of the last step.
    fn criterion(&self) -> Option<f64> {
        self.score.map(|score| score.loss).or(self.loss)
    }

    /// All of it, with where its adapter is in place of its directory's path.
    fn json(&self, (key, place): (&str, Value)) -> Value {
        let mut value = self.name.clone();
        value.insert(key.to_owned(), place);
        value.insert("steps".into(), json!(self.steps));
        value.insert("loss".into(), json!(self.loss));
        if let Some(score) = self.score {
            value.insert("eval_loss".into(), json!(score.loss));
            value.insert("eval_accuracy".into(), json!(score.accuracy));
            value.insert("eval_step".into(), json!(score.step));
            value.insert("stopped_early".into(), json!(self.stopped));
        }
        value.insert("tokens".into(), json!(self.tokens));
        Value::Object(value)
    }
}

/// The run of the lowest loss, the first of equal ones.
fn best(results: &[RunResult]) -> Option<usize> {
    let losses = results.iter().enumerate().filter_map(|(run, result)| Some((run, result.criterion()?)));
    losses.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(run, _)| run)
}

/// The results of a grid, and which run is the best by what.
fn grid(results: &[RunResult], folder: impl Fn(usize) -> String) -> Value {
    let criterion = if results.iter().any(|result| result.score.is_some()) { "eval_loss" } else { "loss" };
    // A name within the directory, which may be moved as a whole.
    let runs = results.iter().enumerate().map(|(run, result)| result.json(("run", json!(folder(run)))));
    json!({ "criterion": criterion, "best": best(results).map(&folder), "runs": runs.collect::<Vec<_>>() })
}

/// Writes `results.json` of a grid.
pub fn write(dir: &Path, results: &[RunResult], folder: impl Fn(usize) -> String) -> Result<(), Failure> {
    Ok(atomic::write_json(dir.join(RESULTS_FILE), &grid(results, folder))?)
}

/// Prints the results of all runs; of a grid, which is the best.
pub fn print(results: &[RunResult], as_json: bool, is_grid: bool) -> Result<(), Failure> {
    let of_run = |result: &RunResult| result.json(("adapter", json!(result.dir)));
    if as_json {
        return output::json(&match results {
            [result] => of_run(result),
            results if is_grid => {
                let dir = best(results).map(|run| &results[run].dir);
                json!({ "runs": results.iter().map(of_run).collect::<Vec<_>>(), "best": dir })
            }
            results => json!({ "runs": results.iter().map(of_run).collect::<Vec<_>>() }),
        });
    }
    if let [RunResult { dir, steps, loss, score, .. }] = results {
        let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        let score = score.map_or(String::new(), |score| {
            format!(", held-out loss {:.4}, accuracy {:.4} after step {}", score.loss, score.accuracy, score.step)
        });
        return output::line(format_args!("{}: {steps} steps{loss}{score}", dir.display()));
    }
    let names: Vec<&str> = results[0].name.keys().map(String::as_str).collect();
    let evaluated = results.iter().any(|result| result.score.is_some());
    let mut header = [&["run"], names.as_slice(), &["steps", "loss"]].concat();
    header.extend(if evaluated { &["eval_loss", "eval_accuracy"][..] } else { &[] });
    let row = |RunResult { dir, name, steps, loss, score, .. }: &RunResult| {
        let shown = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        let mut row = vec![dir.display().to_string()];
        row.extend(name.values().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        row.extend([steps.to_string(), shown(*loss)]);
        if evaluated {
            row.extend([shown(score.map(|score| score.loss)), shown(score.map(|score| score.accuracy))]);
        }
        row
    };
    output::table(&header, results.iter().map(row))?;
    match best(results).filter(|_| is_grid) {
        Some(run) => output::line(format_args!("best: {}", results[run].dir.display())),
        None => Ok(()),
    }
}
