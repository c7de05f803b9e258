//! What the model wrote, example by example, as lm-evaluation-harness logs it (`--log_samples`, version 0.4.13).
//!
//! A cell is a run of the harness, so that each has a folder, and in it `samples_TASK.jsonl`: a line for each query, with the
//! harness's keys in its order.
//!
//! | key | here |
//! |---|---|
//! | `doc_id` | number of the query in the test data |
//! | `doc` | the example: input, output, what else it has, the row's columns |
//! | `target` | the gold output, the first of several |
//! | `arguments` | `gen_args_0`: `arg_0` the prompt, `arg_1` how the model writes, in the harness's words |
//! | `resps`, `filtered_resps` | what it wrote, as it is and trimmed as it is judged |
//! | `filter`, `metrics` | `none`; the metric's name |
//! | `doc_hash`, `prompt_hash`, `target_hash` | SHA-256 of the document as JSON with an indent of two, of the prompt, of the target |
//! | the metric's name | its value for this example: from 0 to 1, of BLEU and chrF from 0 to 100 |

use std::path::Path;

use serde_json::{Map, Value, json};

use super::cells::{Cell, Generation};
use super::settings::CompareSettings;
use super::task_data::TaskData;
use crate::formats::atomic;
use crate::hash::sha256_hex;
use crate::task::{Example, Metric};
use crate::{Error, Result};

/// Folder of the samples in an output directory.
pub const FOLDER: &str = "samples";

/// Writes the samples of a cell on a target.
///
/// # Errors
/// The file cannot be written.
pub fn write(out: &Path, cell: &Cell, target: &TaskData, settings: &CompareSettings) -> Result<()> {
    let folder = out.join(FOLDER).join(cell.key.to_string());
    let path = folder.join(format!("samples_{}.jsonl", target.task.name()));
    let mut text = Vec::new();
    for (generation, query) in cell.generations.iter().zip(&target.queries.examples) {
        let sample = sample(generation, query, target, settings)?;
        serde_json::to_writer(&mut text, &sample).map_err(Error::file(&path))?;
        text.push(b'\n');
    }
    atomic::write(path, &text)
}

/// The line of a query.
fn sample(generation: &Generation, query: &Example, target: &TaskData, settings: &CompareSettings) -> Result<Value> {
    let metric = target.task.metric();
    let doc = doc(query);
    let prompt = target.text(generation, query)?;
    let stops: Vec<&str> = settings.stop.iter().map(String::as_str).chain(target.template.stop()).collect();
    let how = json!({
        "until": stops,
        "max_gen_toks": settings.max_new_tokens,
        "do_sample": false,
        "num_beams": settings.num_beams,
    });
    let written = generation.text.as_ref().unwrap_or(&generation.output);
    let hash = |text: &str| sha256_hex([text.as_bytes()]);
    let name = json!(metric);
    let mut sample = json!({
        "doc_id": generation.query,
        "doc": doc,
        "target": query.output,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": how}},
        "resps": [[written]],
        "filtered_resps": [generation.output],
        "filter": "none",
        "metrics": [name],
        "doc_hash": hash(&format!("{doc:#}")),
        "prompt_hash": hash(&prompt),
        "target_hash": hash(&query.output),
    });
    sample[name.as_str().unwrap_or_default()] = json!(value(metric, &generation.statistics));
    Ok(sample)
}

/// The value of a metric for one example.
fn value(metric: Metric, statistics: &[f64]) -> f64 {
    match metric {
        Metric::Bleu | Metric::ChrF => metric.score(statistics),
        _ => metric.score(statistics) / 100.0,
    }
}

/// An example as a document.
fn doc(example: &Example) -> Value {
    let mut doc = Map::new();
    doc.insert("input".to_owned(), json!(example.input));
    doc.insert("output".to_owned(), json!(example.output));
    if !example.references.is_empty() {
        doc.insert("references".to_owned(), json!(example.references));
    }
    if let Some(logical_form) = &example.logical_form {
        doc.insert("logical_form".to_owned(), json!(logical_form));
    }
    if let Some(choices) = &example.choices {
        doc.insert("choices".to_owned(), json!(choices));
    }
    for (key, value) in &example.columns {
        doc.entry(key.clone()).or_insert_with(|| json!(value));
    }
    Value::Object(doc)
}
