//! Inputs from public bug reports of other programs, with what transformers and PEFT make of them: `cases.json` of the
//! folder of shared cases says for each the command line and the right outcome.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Ran, run, support, tensor};

/// Every case of a kind has its right outcome.
fn check(kind: &str) {
    let Some(dir) = support::shared().map(|shared| shared.join("cases")) else { return };
    let text = fs::read_to_string(dir.join("cases.json")).expect("cases.json");
    let cases: Vec<Value> = serde_json::from_str(&text).expect("a list of cases");
    let of_the_kind: Vec<_> = cases.iter().filter(|case| case["kind"] == kind).collect();
    assert!(!of_the_kind.is_empty(), "no case of kind {kind}");
    let wrong: Vec<String> = of_the_kind
        .iter()
        .filter_map(|case| {
            let out = support::temp();
            let ran = perform(&dir, case, &out.path().join("out"));
            let found = outcome(&dir, case, &ran, &out.path().join("out"));
            found.err().map(|found| format!("{}: {found}", case["id"].as_str().expect("an id")))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), of_the_kind.len(), wrong.join("\n"));
}

fn perform(cases: &Path, case: &Value, out: &Path) -> Ran {
    let text = |key: &str| case[key].as_str().unwrap_or_else(|| panic!("{key} of {case}"));
    let command = text("command");
    // The cases' names are of the time when this one was the norm's output.
    let names = if command.contains("hook_normalized") { " --names llamaprobe1" } else { "" };
    let command = format!("{command}{names}");
    let words = command.split_whitespace().skip(1).map(|word| {
        let word = word.replace("{dir}", &cases.join(text("dir")).display().to_string());
        word.replace("{out}", &out.display().to_string())
    });
    run(words)
}

fn outcome(cases: &Path, case: &Value, ran: &Ran, out: &Path) -> Result<(), String> {
    let right = &case["right"];
    if ran.code == Some(1) {
        return refused(case, ran, out);
    }
    if ran.code != Some(0) {
        return Err(format!("exit {:?}: {}", ran.code, ran.err));
    }
    match right["outcome"].as_str().expect("an outcome") {
        "values" => values(right, &out.join("activations.safetensors")),
        "token ids" => ids(right, ran),
        "loss" => loss(right, out),
        "output" => said_of_peft(right, ran),
        "same as" => same_as_lines(cases, case, ran, out),
        "exit 0" => Ok(()),
        other => Err(format!("exit 0, expected {other}")),
    }
}

/// An error is right where the case says so, and if it names what the case says.
fn refused(case: &Value, ran: &Ran, out: &Path) -> Result<(), String> {
    let names: &[&str] = match case["id"].as_str().expect("an id") {
        "06-both" => &["--adapter", "adapter_config.json"],
        "21-nothing-left" => &["learnt"],
        "42-f16" => &["blocks.0.hook_resid_post", "65504", "6975"],
        _ => return Err(format!("refused: {}", ran.err.trim_end())),
    };
    if let Some(name) = names.iter().find(|name| !ran.err.contains(**name)) {
        return Err(format!("the error does not say {name}: {}", ran.err));
    }
    if !ran.err.starts_with("llamaprobe: ") || ran.err.trim_end().contains('\n') {
        return Err(format!("not one line: {}", ran.err));
    }
    if out.exists() { Err("something was written".to_owned()) } else { Ok(()) }
}

/// The last row of every tensor begins and ends as it should.
fn values(right: &Value, file: &Path) -> Result<(), String> {
    for (name, expected) in right["tensors"].as_object().expect("tensors") {
        let (shape, values) = tensor(file, name);
        let wide: Vec<usize> = serde_json::from_value(expected["shape"].clone()).expect("a shape");
        if shape != wide {
            return Err(format!("{name}: shape {shape:?}, expected {wide:?}"));
        }
        let row = &values[values.len() - shape[1]..];
        let within = 2e-5 * expected["largest_magnitude"].as_f64().expect("a number");
        for (key, found) in [("last_row_first_4", &row[..4]), ("last_row_last_4", &row[row.len() - 4..])] {
            let wanted: Vec<f64> = serde_json::from_value(expected[key].clone()).expect("four numbers");
            // The recorded numbers have six digits.
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= within + 5e-6 * b.abs();
            if !found.iter().zip(&wanted).all(near) {
                return Err(format!("{name}: {key} {found:?}, expected {wanted:?}"));
            }
        }
    }
    Ok(())
}

fn ids(right: &Value, ran: &Ran) -> Result<(), String> {
    let json: Value = serde_json::from_str(&ran.out).expect("JSON on stdout");
    let texts = right["texts"].as_array().expect("texts");
    let wrong: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| (&json["results"][i]["prompt_ids"], text))
        .filter(|(found, text)| **found != text["ids"])
        .map(|(found, text)| format!("{} is {found}, expected {}", text["text"], text["ids"]))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn loss(right: &Value, out: &Path) -> Result<(), String> {
    let log = fs::read_to_string(out.join("trainer_log.jsonl")).expect("a log");
    let first: Value = serde_json::from_str(log.lines().next().expect("a line")).expect("JSON");
    let (loss, tokens) = (first["loss"].as_f64().expect("a loss"), &first["total_tokens"]);
    // A second loss that is as good is the first number of a sentence.
    let number = |text: &str| text.split_whitespace().find_map(|word| word.trim_matches(':').parse::<f64>().ok());
    let good = [right["loss"].as_f64(), right["also_right"].as_str().and_then(number)];
    let near = good.iter().flatten().any(|good| (loss - good).abs() <= 1e-5 * good);
    let counted = match &right["total_tokens"] {
        Value::Array(any) => any.contains(tokens),
        one => one == tokens,
    };
    if near && counted { Ok(()) } else { Err(format!("loss {loss} of {tokens} tokens, expected {right}")) }
}

/// No tensor that PEFT applies is called ignored.
fn said_of_peft(right: &Value, ran: &Ran) -> Result<(), String> {
    assert!(!right["applied_by_peft"].as_array().expect("names").is_empty());
    let of_peft: Vec<&str> = ran.out.lines().filter(|line| line.contains("PEFT")).collect();
    if of_peft.is_empty() {
        return Err(format!("nothing about PEFT: {}", ran.out));
    }
    let denied = |line: &&&str| line.contains("ignores") || line.contains("do not fit");
    match of_peft.iter().find(denied) {
        Some(line) => Err((*line).to_string()),
        None => Ok(()),
    }
}

/// The queries and references of the case beside it, in JSONL: by their digest in the plan, and by what every query was
/// answered and scored, cell by cell.
fn same_as_lines(cases: &Path, case: &Value, ran: &Ran, out: &Path) -> Result<(), String> {
    let mut twin = case.clone();
    let command = case["command"].as_str().expect("a command line").replace(".txt", ".jsonl");
    twin["command"] = command.into();
    let other_out = support::temp();
    let other = perform(cases, &twin, &other_out.path().join("out"));
    if other.code != Some(0) {
        return Err(format!("the rows as JSONL: {}", other.err));
    }
    let seen = |ran: &Ran, out: &Path| -> Vec<Value> {
        let report: Value = serde_json::from_str(&ran.out).expect("JSON on stdout");
        let data = report["plan"]["data"].as_array().expect("the data of the plan");
        assert!(!data.is_empty() && data.iter().all(|set| set["hash"].is_string()), "{data:?}");
        let mut cells: Vec<_> =
            fs::read_dir(out.join("cells")).expect("cells").map(|f| f.expect("a file").path()).collect();
        cells.sort();
        assert!(!cells.is_empty(), "no cells in {}", out.display());
        let cell = |path: &std::path::PathBuf| {
            let cell: Value = serde_json::from_str(&fs::read_to_string(path).expect("a cell")).expect("JSON");
            assert!(cell["answers"].as_array().is_some_and(|answers| !answers.is_empty()), "{cell}");
            cell
        };
        [report["plan"]["data"].clone(), report["rows"].clone()].into_iter().chain(cells.iter().map(cell)).collect()
    };
    let (ours, theirs) = (seen(ran, out), seen(&other, &other_out.path().join("out")));
    if ours == theirs { Ok(()) } else { Err(format!("{ours:?}, expected {theirs:?}")) }
}

#[test]
fn keys_and_files_that_change_the_result_are_used() {
    check("A");
}

#[test]
fn added_tokens_are_those_of_transformers() {
    check("B");
}

#[test]
fn values_beyond_the_stored_dtype_are_refused() {
    check("C");
}

#[test]
fn inspect_says_of_peft_what_peft_does() {
    check("D");
}

#[test]
fn valid_inputs_are_accepted() {
    check("E");
}

#[test]
fn other_published_forms_are_read_or_named() {
    check("F");
}

#[test]
fn templates_print_and_decide_as_jinja2() {
    check("G");
}
