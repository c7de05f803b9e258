//! The page of a probe: were the states moved, in the same direction, as a cause of the answers, and on what it depends.

mod factors;
mod names;
mod read;
mod sections;
mod verdict;
mod view;

use serde_json::Value;

use super::model::Page;
use super::words::{count, list};
use view::View;

/// The page of the content of a probe's `report.json`; `command` repeats it, unless the report has its own.
pub fn page(report: &Value, command: &str) -> Page {
    let view = read::view(report);
    let first = sections::measures(&view).into_iter().chain(factors::sections(&view));
    let others = [
        sections::accuracies(&view),
        sections::patching(&view),
        sections::readouts(&view),
        sections::pca(&view),
        sections::training(&view),
        sections::examples(&view),
        sections::settings(&view, verdict::rules(&view)),
    ];
    let sections = first.chain(others.into_iter().flatten()).collect();
    Page {
        title: title(&view),
        asked: vec![asked(&view)],
        verdict: verdict::headline(&view),
        answers: verdict::answers(&view, factors::answer(&view)),
        over: "the seeds".to_owned(),
        summary: sections::summary(&view),
        sections,
        command: view.command.clone().unwrap_or_else(|| command.to_owned()),
    }
}

/// A setting as text.
fn setting(view: &View, key: &str) -> String {
    match view.settings.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            list(&items.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())
        }
        // A task of a file, which stands there whole.
        Some(Value::Object(task)) if task.contains_key("name") => task["name"].as_str().unwrap_or_default().to_owned(),
        Some(Value::Number(number)) => number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string()),
        Some(other) => other.to_string(),
        None => "–".to_owned(),
    }
}

fn title(view: &View) -> String {
    format!("In-context learning (ICL) and instruction tuning (IT) in {} on {}", view.model, setting(view, "task"))
}

/// What a further arm is.
fn further(arm: &str) -> &'static str {
    match arm {
        "it-act" => "IT towards the outputs of attention behind demonstrations",
        "it-kl" => "IT towards the answers' distributions behind demonstrations",
        "ipt" => "a soft prompt before the demonstrations",
        _ => "a soft prompt",
    }
}

fn asked(view: &View) -> String {
    let get = |key: &str| setting(view, key);
    let tuning = match view.settings.get("tuning").and_then(Value::as_str) {
        Some("full") => "all weights".to_owned(),
        _ => format!("LoRA of rank {} on {}", get("r"), get("target_modules")),
    };
    let soft = view.result.arms.iter().filter(|arm| !["anchor", "icl", "it"].contains(&arm.arm.as_str()));
    let soft: Vec<String> = soft.map(|arm| format!("{} ({})", names::arm(&arm.arm), further(&arm.arm))).collect();
    let soft = if soft.is_empty() { String::new() } else { format!(" Beside them: {}.", list(&soft)) };
    format!(
        "Do the hidden states of the model {model} change in the same way when it reads {demos} demonstrations of {task} before \
         a query (ICL) as when it is tuned on them and reads the query alone (IT: {tuning}, {epochs} epochs at {rate})? Read at \
         {position} of {queries}, against the untuned model on the query alone (the anchor), over {seeds} of \
         demonstrations.{soft}",
        model = view.model,
        demos = get("demonstrations"),
        task = get("task"),
        epochs = get("epochs"),
        rate = get("learning_rate"),
        position = match view.settings.get("position").and_then(Value::as_str) {
            None | Some("last") => "the last token",
            Some("label") => "the tokens of the label word",
            Some("mean") => "the mean over the tokens",
            Some("demos") => "the demonstrations’ tokens",
            Some(_) => "every token",
        },
        queries = count(view.queries, "query", "queries"),
        seeds = count(view.result.seeds, "draw", "draws"),
    )
}
