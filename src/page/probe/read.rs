//! A probe's `report.json` as a [`View`].

use serde_json::{Map, Value};

use super::view::{
    ArmAnswer, ArmScores, Condition, Example, Layer, Measure, Outcome, Output, Pair, PatchLayer, PatchVector, Pca, View,
};
use crate::probe::statistics::MeanSd;

/// The arms that are always there, as the report names them.
const ARMS: [&str; 3] = ["anchor", "icl", "it"];

/// The content of a report.
pub fn view(report: &Value) -> View {
    let conditions = list(&report["conditions"]);
    let labels: Vec<String> = list(&report["plan"]["labels"]).iter().map(text).collect();
    View {
        version: text(&report["version"]),
        model: text(&report["model"]),
        device: text(&report["device"]),
        dtype: text(&report["dtype"]),
        settings: report["settings"].as_object().cloned().unwrap_or_default(),
        queries: list(&report["plan"]["queries"]).len(),
        labels: labels.clone(),
        result: outcome(&report["summary"], list(&report["seeds"])),
        conditions: conditions.iter().map(condition).collect(),
        patching: list(&report["patching"]["layers"]).iter().map(patch_layer).collect(),
        pca: report["pca"].as_object().map(pca),
        examples: list(&report["examples"]).iter().map(|value| example(value, &labels)).collect(),
        command: report["command"].as_str().map(str::to_owned),
    }
}

fn condition(value: &Value) -> Condition {
    let levels = value["levels"].as_object().into_iter().flatten();
    Condition {
        levels: levels.map(|(name, level)| (name.clone(), text(level))).collect(),
        result: outcome(&value["summary"], list(&value["seeds"])),
    }
}

fn outcome(summary: &Value, seeds: &[Value]) -> Outcome {
    let scores = |arm: &str| ArmScores {
        arm: arm.to_owned(),
        accuracy: mean_sd(&summary["accuracy"][arm]),
        log_prob: mean_sd(&summary["log_prob"][arm]),
        loss: if arm == "it" { list(&summary["loss"]).iter().map(mean_sd).collect() } else { Vec::new() },
    };
    let soft = list(&summary["soft"]);
    let soft_scores = soft.iter().map(|soft| ArmScores {
        arm: text(&soft["arm"]),
        accuracy: mean_sd(&soft["accuracy"]),
        log_prob: mean_sd(&soft["log_prob"]),
        loss: list(&soft["loss"]).iter().map(mean_sd).collect(),
    });
    let known = ARMS.into_iter().filter(|arm| summary["accuracy"].get(arm).is_some());
    let layers = list(&summary["layers"]).iter().enumerate();
    Outcome {
        seeds: seeds.len(),
        arms: known.map(scores).chain(soft_scores).collect(),
        layers: layers.map(|(i, own)| layer(i, own, soft, seeds)).collect(),
        outputs: outputs(&summary["outputs"]),
    }
}

fn layer(i: usize, own: &Value, soft: &[Value], seeds: &[Value]) -> Layer {
    let mut pairs = fixed_pairs(own);
    pairs.extend(soft.iter().flat_map(|soft| soft_pairs(&text(&soft["arm"]), &soft["layers"][i])));
    list(&own["pairs"]).iter().for_each(|more| add(more, &mut pairs));
    let over = |baseline: &str| {
        let one = |seed: &Value| {
            let layer = &seed["layers"][i];
            Some(layer["update"]["mean"].as_f64()? - layer[baseline]["mean"].as_f64()?)
        };
        MeanSd::of(seeds.iter().filter_map(one))
    };
    let readouts = own["readouts"].as_object().into_iter().flatten();
    let readouts = readouts.flat_map(|(arm, own)| measures(own).into_iter().map(|measure| (arm.clone(), measure)));
    Layer {
        name: text(&own["layer"]),
        pairs,
        over_shuffled: over("update_shuffled"),
        over_gaussian: over("update_gaussian"),
        readouts: readouts.collect(),
    }
}

fn pair(a: &str, b: &str, measures: Vec<Measure>) -> Pair {
    Pair { arms: [a.to_owned(), b.to_owned()], measures }
}

fn measure(name: &str, value: &Value, baselines: &[(&str, &Value)]) -> Measure {
    let baselines = baselines.iter().map(|(name, value)| ((*name).to_owned(), mean_sd(value)));
    Measure { name: name.to_owned(), value: mean_sd(value), baselines: baselines.collect() }
}

/// The pairs of anchor, ICL and IT, each a field of its own.
fn fixed_pairs(own: &Value) -> Vec<Pair> {
    let baselines = [("shuffled", &own["update_shuffled"]), ("gaussian", &own["update_gaussian"])];
    let update = measure("update", &own["update"], &baselines);
    let cosine = |field: &str| measure("cosine", &own[field], &[]);
    vec![
        pair("anchor", "icl", vec![cosine("anchor_icl")]),
        pair("anchor", "it", vec![cosine("anchor_it")]),
        pair("icl", "it", vec![cosine("icl_it"), update]),
    ]
}

/// The pairs of an arm with a soft prompt.
fn soft_pairs(arm: &str, layer: &Value) -> Vec<Pair> {
    let mut pairs = vec![pair("anchor", arm, vec![measure("cosine", &layer["anchor"], &[])])];
    pairs.extend(list(&layer["pairs"]).iter().map(|with| {
        let update = measure("update", &with["update"], &[("shuffled", &with["update_shuffled"])]);
        pair(&text(&with["with"]), arm, vec![measure("cosine", &with["cosine"], &[]), update])
    }));
    pairs
}

/// Adds a pair's further measures, and to those that are there further baselines.
fn add(more: &Value, pairs: &mut Vec<Pair>) {
    let [a, b] = [0, 1].map(|i| text(&more["arms"][i]));
    let mut measures = measures(more.get("measures").unwrap_or(more));
    for (baseline, of) in more["baselines"].as_object().into_iter().flatten() {
        for measure in &mut measures {
            let value = of.get(&measure.name).filter(|value| is_mean_sd(value));
            measure.baselines.extend(value.map(|value| (baseline.clone(), mean_sd(value))));
        }
    }
    let at = pairs.iter().position(|pair| pair.is_of([&a, &b])).unwrap_or_else(|| {
        pairs.push(pair(&a, &b, Vec::new()));
        pairs.len() - 1
    });
    for mut measure in measures {
        match pairs[at].measures.iter_mut().find(|known| known.name == measure.name) {
            Some(known) => {
                measure.baselines.retain(|(name, _)| known.baseline(name).is_none());
                known.baselines.append(&mut measure.baselines);
            }
            None => pairs[at].measures.push(measure),
        }
    }
}

/// `{name: {mean, sd, BASELINE: {mean, sd}, …}, …}`.
fn measures(value: &Value) -> Vec<Measure> {
    let named = value.as_object().into_iter().flatten().filter(|(_, value)| is_mean_sd(value));
    let measure = |(name, value): (&String, &Value)| {
        let inside = value.as_object().into_iter().flatten();
        let below = value["baselines"].as_object().into_iter().flatten();
        let baselines =
            inside.chain(below).filter(|(name, value)| !["mean", "sd"].contains(&name.as_str()) && is_mean_sd(value));
        Measure {
            name: name.clone(),
            value: mean_sd(value),
            baselines: baselines.map(|(name, value)| (name.clone(), mean_sd(value))).collect(),
        }
    };
    named.map(measure).collect()
}

/// `{measure: {ARM or PAIR: {mean, sd}}}`.
fn outputs(value: &Value) -> Vec<Output> {
    let mut found = Vec::new();
    for (name, of) in value.as_object().into_iter().flatten() {
        if is_mean_sd(of) {
            found.push(Output { name: name.clone(), of: String::new(), value: mean_sd(of) });
            continue;
        }
        for (arms, value) in of.as_object().into_iter().flatten().filter(|(_, value)| is_mean_sd(value)) {
            found.push(Output { name: name.clone(), of: arms.clone(), value: mean_sd(value) });
        }
    }
    found
}

fn patch_layer(value: &Value) -> PatchLayer {
    let vector = |value: &Value| PatchVector {
        name: text(&value["name"]),
        accuracy: mean_sd(&value["accuracy"]),
        log_prob: mean_sd(&value["log_prob"]),
        recovery: mean_sd(&value["recovery"]),
    };
    PatchLayer { name: text(&value["layer"]), vectors: list(&value["vectors"]).iter().map(vector).collect() }
}

fn pca(value: &Map<String, Value>) -> Pca {
    let get = |key: &str| value.get(key).unwrap_or(&Value::Null);
    let point = |point: &Value| Some([point[0].as_f64()?, point[1].as_f64()?]);
    let arm = |arm: &Value| (text(&arm["arm"]), list(&arm["points"]).iter().filter_map(point).collect());
    Pca {
        layer: text(get("layer")),
        variance: list(get("variance")).iter().filter_map(Value::as_f64).collect(),
        arms: list(get("arms")).iter().map(arm).collect(),
    }
}

/// `labels` name the log-probabilities where they are a list.
fn example(value: &Value, labels: &[String]) -> Example {
    let answer = |arm: String, answer: &Value| {
        let scores = match &answer["log_probs"] {
            Value::Object(scores) => {
                scores.iter().filter_map(|(label, p)| Some((label.clone(), p.as_f64()?))).collect()
            }
            other => labels.iter().cloned().zip(list(other).iter().filter_map(Value::as_f64)).collect(),
        };
        ArmAnswer { arm, predicted: text(&answer["predicted"]), log_probs: scores }
    };
    let listed = list(&value["answers"]).iter().map(|own| answer(text(&own["arm"]), own));
    let named = value["arms"].as_object().into_iter().flatten().map(|(arm, own)| answer(arm.clone(), own));
    // Tokens stand apart.
    let tokens = list(&value["tokens"]).iter().map(text).collect::<Vec<_>>();
    Example {
        query: if tokens.is_empty() { text(&value["query"]) } else { tokens.join("|") },
        gold: text(&value["gold"]),
        answers: listed.chain(named).collect(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A text, or another value as JSON writes it; nothing for `null`.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_mean_sd(value: &Value) -> bool {
    value.is_number() || value.get("mean").is_some()
}

/// `{mean, sd}`, or a number alone.
fn mean_sd(value: &Value) -> MeanSd {
    match value.as_f64() {
        Some(mean) => MeanSd { mean: Some(mean), sd: None },
        None => MeanSd { mean: value["mean"].as_f64(), sd: value["sd"].as_f64() },
    }
}
