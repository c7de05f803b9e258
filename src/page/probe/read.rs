//! A probe's `report.json` as a [`View`].

use serde::Deserialize;
use serde_json::{Map, Value};

use super::view::{
    ArmAnswer, ArmScores, Condition, Example, Layer, Measure, Outcome, Output, Overlap, Pair, PatchLayer, PatchVector,
    Pca, View,
};
use crate::probe::statistics::MeanSd;

/// The arms that are always there, as the report names them.
const ARMS: [&str; 3] = ["anchor", "icl", "it"];

/// The content of a report.
pub fn view(report: &Value) -> View {
    let labels: Vec<String> = list(&report["plan"]["labels"]).iter().map(text).collect();
    let queries = list(&report["plan"]["queries"]);
    let conditions = list(&report["conditions"]);
    View {
        version: text(&report["version"]),
        model: text(&report["model"]),
        device: text(&report["device"]),
        dtype: text(&report["dtype"]),
        settings: report["settings"].as_object().cloned().unwrap_or_default(),
        length_normalization: Deserialize::deserialize(&report["settings"]["length_normalization"]).unwrap_or_default(),
        queries: queries.len(),
        guess: guess(labels.len(), queries),
        result: outcome(&report["summary"], list(&report["seeds"])),
        conditions: conditions.iter().map(condition).collect(),
        pca: report["pca"].as_object().map(pca),
        examples: list(&report["examples"]).iter().map(|value| example(value, &labels, queries)).collect(),
        command: report["command"].as_str().map(str::to_owned),
        labels,
    }
}

/// The accuracy of a guess among so many labels, or among the queries' own choices.
fn guess(labels: usize, queries: &[Value]) -> Option<f64> {
    let answers = |query: &Value| if labels > 0 { labels } else { list(&query["choices"]).len() };
    let shares = queries.iter().map(|query| 1.0 / answers(query) as f64);
    MeanSd::of(shares).mean.filter(|share| *share < 1.0)
}

fn condition(value: &Value) -> Condition {
    let levels = value["levels"].as_object().into_iter().flatten();
    Condition {
        levels: levels.map(|(name, level)| (name.clone(), text(level))).collect(),
        result: outcome(&value["summary"], list(&value["seeds"])),
        overlaps: list(&value["lora_overlap"]).iter().map(overlap).collect(),
    }
}

fn overlap(value: &Value) -> Overlap {
    Overlap {
        with: value["with"].as_u64().map(|number| number as usize),
        layers: list(&value["layers"]).iter().map(mean_sd).collect(),
        expected: value["expected"].as_f64(),
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
        patching: list(&summary["patching"]).iter().map(patch_layer).collect(),
    }
}

fn layer(i: usize, own: &Value, soft: &[Value], seeds: &[Value]) -> Layer {
    let mut pairs = fixed_pairs(own);
    pairs.extend(soft.iter().flat_map(|soft| soft_pairs(&text(&soft["arm"]), &soft["layers"][i])));
    let mut dimensions: Vec<(String, Measure)> = Vec::new();
    for more in list(&own["measures"]) {
        let of_arms = add(more, &mut pairs);
        let new = of_arms.into_iter().filter(|(arm, _)| !dimensions.iter().any(|(known, _)| known == arm));
        let new: Vec<_> = new.collect();
        dimensions.extend(new);
    }
    pairs[ICL_IT].measures.extend(with_controls(&own["attention"]));
    let over = |baseline: &str| {
        let one = |seed: &Value| {
            let layer = &seed["layers"][i];
            Some(layer["update"]["mean"].as_f64()? - layer[baseline]["mean"].as_f64()?)
        };
        MeanSd::of(seeds.iter().filter_map(one))
    };
    let of_arm = |own: &Value| {
        let arm = text(&own["arm"]);
        with_controls(&own["values"]).into_iter().map(move |measure| (arm.clone(), measure))
    };
    Layer {
        name: text(&own["layer"]),
        pairs,
        over_shuffled: over("update_shuffled"),
        over_gaussian: over("update_gaussian"),
        dimensions,
        readouts: list(&own["readouts"]).iter().flat_map(of_arm).collect(),
    }
}

fn pair(a: &str, b: &str, measures: Vec<Measure>) -> Pair {
    Pair { arms: [a.to_owned(), b.to_owned()], measures }
}

fn measure(name: &str, value: &Value, baselines: &[(&str, &Value)]) -> Measure {
    let baselines = baselines.iter().map(|(name, value)| ((*name).to_owned(), mean_sd(value)));
    Measure { name: name.to_owned(), value: mean_sd(value), baselines: baselines.collect() }
}

/// The place of ICL and IT among [`fixed_pairs`].
const ICL_IT: usize = 2;

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

/// Adds a pair's further measures, and to those that are there further baselines; gives the intrinsic dimensions, which are of
/// one arm each.
fn add(more: &Value, pairs: &mut Vec<Pair>) -> Vec<(String, Measure)> {
    let arms = [0, 1].map(|i| text(&more["arms"][i]));
    let [a, b] = arms.each_ref().map(String::as_str);
    let at = pairs.iter().position(|pair| pair.is_of([a, b])).unwrap_or_else(|| {
        pairs.push(pair(a, b, Vec::new()));
        pairs.len() - 1
    });
    let mut dimensions = Vec::new();
    for (name, value) in more["values"].as_object().into_iter().flatten() {
        let baselines = ["shuffled", "gaussian"].map(|baseline| (baseline, &more[baseline][name]));
        let mut found = measure(name, value, &baselines);
        found.baselines.retain(|(_, value)| value.mean.is_some());
        match (name.as_str(), pairs[at].measures.iter_mut().find(|known| known.name == *name)) {
            ("id_a", _) => dimensions.push((a.to_owned(), found)),
            ("id_b", _) => dimensions.push((b.to_owned(), found)),
            (_, Some(known)) => {
                found.baselines.retain(|(name, _)| known.baseline(name).is_none());
                known.baselines.append(&mut found.baselines);
            }
            (_, None) => pairs[at].measures.push(found),
        }
    }
    dimensions
}

/// Values that are controls of another: their name, that of the other, and what they are called there.
const CONTROLS: [(&str, &str, &str); 6] = [
    ("lens_margin_shuffled", "lens_margin", "shuffled"),
    ("probe_shuffled_labels", "probe_accuracy", "shuffled labels"),
    ("probe_random_features", "probe_accuracy", "random features"),
    ("sim_aou_gaussian", "sim_aou", "gaussian"),
    ("sim_am_zero_shot", "sim_am", "scores of the query alone"),
    ("rec2ftp_shuffled", "rec2ftp", "shuffled"),
];

/// `{name: {mean, sd}, …}`, in which controls stand beside what they are of.
fn with_controls(values: &Value) -> Vec<Measure> {
    let named = || values.as_object().into_iter().flatten();
    let controls = |of: &str| {
        let own = CONTROLS.iter().filter(|(_, measure, _)| *measure == of);
        own.filter_map(|(name, _, title)| Some((*title, values.get(name)?))).collect::<Vec<_>>()
    };
    let free = named().filter(|(name, _)| !CONTROLS.iter().any(|(control, ..)| control == name));
    free.map(|(name, value)| measure(name, value, &controls(name))).collect()
}

/// `{pairs: [{arms, values, shuffled}], arms: [{arm, values}], values}`.
fn outputs(value: &Value) -> Vec<Output> {
    let mut found = Vec::new();
    for pair in list(&value["pairs"]) {
        let of: Vec<String> = list(&pair["arms"]).iter().map(text).collect();
        for (name, value) in pair["values"].as_object().into_iter().flatten() {
            let shuffled = mean_sd(&pair["shuffled"][name]);
            found.push(Output { name: name.clone(), of: of.clone(), value: mean_sd(value), shuffled });
        }
    }
    let none = MeanSd { mean: None, sd: None };
    for arm in list(&value["arms"]) {
        for (name, value) in arm["values"].as_object().into_iter().flatten() {
            let of = vec![text(&arm["arm"])];
            found.push(Output { name: name.clone(), of, value: mean_sd(value), shuffled: none });
        }
    }
    found.extend(with_controls(&value["values"]).into_iter().map(|measure| {
        let shuffled = measure.baseline("shuffled").unwrap_or(none);
        Output { name: measure.name, of: Vec::new(), value: measure.value, shuffled }
    }));
    // The same measure of all arms together.
    let order: Vec<String> = found.iter().map(|output| output.name.clone()).collect();
    found.sort_by_key(|output| order.iter().position(|name| *name == output.name));
    found
}

fn patch_layer(value: &Value) -> PatchLayer {
    let vector = |value: &Value| PatchVector {
        name: text(&value["vector"]),
        accuracy: mean_sd(&value["accuracy"]),
        recovery: [mean_sd(&value["recovery_accuracy"]), mean_sd(&value["recovery_log_prob"])],
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

/// `labels` name the log-probabilities, or the query's own choices.
fn example(value: &Value, labels: &[String], queries: &[Value]) -> Example {
    let query = value["query"].as_u64().and_then(|query| queries.get(query as usize));
    let choices: Vec<String> = query.map_or(&[][..], |query| list(&query["choices"])).iter().map(text).collect();
    let texts = if labels.is_empty() { &choices } else { labels };
    let answer = |answer: &Value| {
        let scores = list(&answer["log_probs"]).iter().filter_map(Value::as_f64);
        ArmAnswer {
            arm: text(&answer["arm"]),
            predicted: text(&answer["predicted"]),
            log_probs: texts.iter().cloned().zip(scores).collect(),
        }
    };
    let tokens: Vec<String> = list(&value["tokens"]).iter().map(text).collect();
    Example {
        query: text(&value["query"]),
        tokens,
        gold: text(&value["gold"]),
        answers: list(&value["answers"]).iter().map(answer).collect(),
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

/// `{mean, sd}`, each of which may be missing.
fn mean_sd(value: &Value) -> MeanSd {
    MeanSd { mean: value["mean"].as_f64(), sd: value["sd"].as_f64() }
}
