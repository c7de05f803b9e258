//! Names of arms, pairs and measures on a page, and how they look.

use super::view::{Layer, Pair};
use crate::page::model::Look;
use crate::page::words::capitalized;

/// How an arm of the report is called on a page.
pub fn arm(name: &str) -> String {
    match name {
        "anchor" => name.to_owned(),
        other => other.to_uppercase(),
    }
}

/// How a pair of arms is called, the one that comes first in the report first.
pub fn pair(pair: &Pair) -> String {
    format!("{}–{}", arm(&pair.arms[0]), arm(&pair.arms[1]))
}

/// How an arm looks; `i` is its place among the arms.
pub fn arm_look(name: &str, i: usize) -> Look {
    match name {
        "anchor" => Look::ANCHOR,
        "icl" => Look::ICL,
        "it" => Look::IT,
        _ => Look::nth(i + 1),
    }
}

/// How a pair looks: as the arm beside the anchor, and ICL with IT as neither; `i` is its place among the others.
pub fn pair_look(pair: &Pair, i: usize) -> Look {
    if pair.is_of(["anchor", "icl"]) {
        Look::ICL
    } else if pair.is_of(["anchor", "it"]) {
        Look::IT
    } else if pair.is_of(["icl", "it"]) {
        Look::BOTH
    } else {
        Look::nth(4 + i)
    }
}

/// A baseline, and how it looks.
pub fn baseline(name: &str) -> (String, Look) {
    match name {
        "shuffled" => ("shuffled queries".to_owned(), Look::SHUFFLED),
        "gaussian" => ("Gaussian noise".to_owned(), Look::NOISE),
        other => (other.replace('_', " "), Look(6)),
    }
}

/// The title of a measure, the label of its axis, and how to read it.
pub fn measure(name: &str) -> (String, String, String) {
    let known = MEASURES.iter().find(|(known, ..)| *known == name);
    match known {
        Some((_, title, label, note)) => ((*title).to_owned(), (*label).to_owned(), (*note).to_owned()),
        None => (sentence(name), name.replace('_', " "), String::new()),
    }
}

/// Name in the report, title, label of the axis, and how to read it.
const MEASURES: [(&str, &str, &str, &str); 16] = [
    ("cosine", "Cosine of the states", "cosine", COSINE),
    ("update", "Cosine of the updates", "cosine of updates", UPDATE),
    ("norm_ratio", "Ratio of the updates’ norms", "ratio of norms", NORM_RATIO),
    ("cka", "Linear CKA", "CKA", CKA),
    ("cka_debiased", "Linear CKA, debiased", "debiased CKA", "By the U-statistic of Song et al. 2012: 0 is chance."),
    ("svcca", "SVCCA", "mean correlation", "Raghu et al. 2017, of the directions with 99% of the variance."),
    ("knn_overlap", "Overlap of nearest neighbours", "overlap", KNN),
    ("id", "Intrinsic dimension", "dimension", "TwoNN (Facco et al. 2017)."),
    ("subspace_overlap", "Overlap of the principal subspaces", "overlap", "1: the leading directions span one space."),
    ("sim_aou", "SimAOU", "cosine", "Updates of the normalised attention outputs (Dai et al. 2023)."),
    (
        "lens_accuracy",
        "Logit lens",
        "accuracy",
        "The final norm and the label words’ unembedding, applied to each layer.",
    ),
    ("lens_margin", "Logit lens: margin", "logits", "Logit of the gold label above the mean of the others."),
    ("attention_attribution", "Attribution to attention", "logits", ATTRIBUTION),
    ("mlp_attribution", "Attribution to the MLP", "logits", ATTRIBUTION),
    ("probe_accuracy", "Linear probe", "accuracy", PROBE),
    ("sim_am", "SimAM", "cosine", "Attention scores over the query’s own tokens (Dai et al. 2023)."),
];

/// A measure of the outputs.
pub fn output(name: &str) -> String {
    match name {
        "agreement" => "Same answer (share of the queries)".to_owned(),
        "kl" | "kl_divergence" => "KL divergence of the label distributions (nats)".to_owned(),
        "entropy" => "Entropy of the label distribution (nats)".to_owned(),
        "ece" | "calibration_error" => "Expected calibration error".to_owned(),
        "rec2ftp" => "Rec2FTP (% of what IT put right that ICL puts right too)".to_owned(),
        other => sentence(other),
    }
}

/// Words for a name of the report.
pub fn sentence(name: &str) -> String {
    capitalized(&name.replace('_', " "))
}

/// Names of the layers for an axis.
pub fn layers(layers: &[Layer]) -> Vec<String> {
    layers.iter().map(|layer| layer.name.clone()).collect()
}

const COSINE: &str = "ICL–IT means something only where both lines with the anchor are low: states that nobody moved are \
                      alike as well.";
const UPDATE: &str = "Of (state − anchor) under ICL and under IT, on the same query. Shuffled: against the updates on \
                      the other queries. Gaussian: against noise.";
const NORM_RATIO: &str = "How far the second arm moves the state, in units of the first arm’s move.";
const CKA: &str = "Kornblith et al. 2019; biased upwards where there are fewer queries than dimensions.";
const KNN: &str = "Share of the queries’ nearest neighbours that two arms have in common (Doimo et al. 2024).";
const ATTRIBUTION: &str = "What a block’s output adds to the gold label’s logit above the mean of the others.";
const PROBE: &str = "Logistic regression on a layer’s states, cross-validated by query.";
