//! What a page needs of a probe's `report.json`, in the form in which the page uses it.
//!
//! The file is read by its keys, so that a page can be made from every version of the report: what is not there is not
//! shown. Whether the file is a report at all is for its own reader to say ([`crate::probe::report::Report::read`]).

use serde_json::{Map, Value};

use crate::probe::statistics::MeanSd;
use crate::task::LengthNormalization;

/// What the page of a probe needs of its report.
pub struct View {
    /// Version of llamaprobe that computed it.
    pub version: String,
    /// The model, as it was named.
    pub model: String,
    /// Device of the computation, and its dtype.
    pub device: String,
    /// Compute dtype of the device.
    pub dtype: String,
    /// What was asked for.
    pub settings: Map<String, Value>,
    /// By what log-probabilities are divided before answers are compared.
    pub length_normalization: LengthNormalization,
    /// Number of queries that every seed asks.
    pub queries: usize,
    /// The labels of the task; empty for free text.
    pub labels: Vec<String>,
    /// The accuracy of a guess among each query's answers; none for free text.
    pub guess: Option<f64>,
    /// The results; those of the first condition where there are several.
    pub result: Outcome,
    /// Every condition, where factors were varied.
    pub conditions: Vec<Condition>,
    /// The principal components of the arms' states.
    pub pca: Option<Pca>,
    /// Some queries with their answers.
    pub examples: Vec<Example>,
    /// The command that made it, where the report says so.
    pub command: Option<String>,
}

/// The results of all seeds.
pub struct Outcome {
    /// Number of seeds that means and SDs are over.
    pub seeds: usize,
    /// The arms, the anchor first.
    pub arms: Vec<ArmScores>,
    /// The hooks that states were read at, in the order of the model.
    pub layers: Vec<Layer>,
    /// Measures of the outputs by name; of one arm or of a pair.
    pub outputs: Vec<Output>,
    /// The curve of patching, by block; empty where there was none.
    pub patching: Vec<PatchLayer>,
}

/// What an arm scored.
pub struct ArmScores {
    /// `anchor`, `icl`, `it`, …
    pub arm: String,
    /// Share of the queries answered right.
    pub accuracy: MeanSd,
    /// Mean log-probability of the gold answer.
    pub log_prob: MeanSd,
    /// Loss of the training by step.
    pub loss: Vec<MeanSd>,
}

/// What was measured of the states that leave one block, or the final norm.
pub struct Layer {
    /// Number of the block, or `final`.
    pub name: String,
    /// The measures of every pair of arms.
    pub pairs: Vec<Pair>,
    /// How far the update cosine of ICL and IT is above that with shuffled queries, seed by seed.
    pub over_shuffled: MeanSd,
    /// The same above Gaussian noise.
    pub over_gaussian: MeanSd,
    /// The intrinsic dimension of each arm's states.
    pub dimensions: Vec<(String, Measure)>,
    /// What can be read off an arm's states, by arm.
    pub readouts: Vec<(String, Measure)>,
}

/// Two arms at one layer.
pub struct Pair {
    /// Their names, in the report's order.
    pub arms: [String; 2],
    /// The measures of the two.
    pub measures: Vec<Measure>,
}

/// A measure with its baselines.
pub struct Measure {
    /// Its name in the report.
    pub name: String,
    /// Mean and SD over the seeds.
    pub value: MeanSd,
    /// The same of what chance would give, by name.
    pub baselines: Vec<(String, MeanSd)>,
}

/// A measure of the outputs.
pub struct Output {
    /// Its name in the report.
    pub name: String,
    /// The arm or the two arms; none where it is of more.
    pub of: Vec<String>,
    /// Mean and SD over the seeds.
    pub value: MeanSd,
    /// The same with the queries of one arm in another order.
    pub shuffled: MeanSd,
}

/// The levels of the factors, with their results.
pub struct Condition {
    /// Names and levels, as text.
    pub levels: Vec<(String, String)>,
    /// What came out at these levels.
    pub result: Outcome,
    /// What LoRA updates have in common.
    pub overlaps: Vec<Overlap>,
}

/// What LoRA updates of seeds, or of two conditions, have in common.
pub struct Overlap {
    /// The number of the other condition; none for the seeds of this one.
    pub with: Option<usize>,
    /// The overlap of the updates in each block.
    pub layers: Vec<MeanSd>,
    /// What random updates have in common.
    pub expected: Option<f64>,
}

/// What writing a state into the query's own pass does at a layer.
pub struct PatchLayer {
    /// Number of the block.
    pub name: String,
    /// Each vector that was written, by name.
    pub vectors: Vec<PatchVector>,
}

/// A vector that was written.
pub struct PatchVector {
    /// `icl`, `task_vector`, `it`, `it_vector`, `random`, `other_task`.
    pub name: String,
    /// Share of the queries answered right when it is written.
    pub accuracy: MeanSd,
    /// (patched − anchor) / (ICL − anchor), of the accuracy and of the log-probability.
    pub recovery: [MeanSd; 2],
}

/// Principal components of the states at a layer.
pub struct Pca {
    /// Number of the block, or `final`.
    pub layer: String,
    /// Shares of the variance of the two components, where they are given.
    pub variance: Vec<f64>,
    /// The points of each arm.
    pub arms: Vec<(String, Vec<[f64; 2]>)>,
}

/// A query with the arms' answers.
pub struct Example {
    /// Its number, as the report has it.
    pub query: String,
    /// The text of each of its tokens.
    pub tokens: Vec<String>,
    /// The answer that counts as right.
    pub gold: String,
    /// What each arm answers.
    pub answers: Vec<ArmAnswer>,
}

/// An arm's answer to a query.
pub struct ArmAnswer {
    /// The arm's name in the report.
    pub arm: String,
    /// The answer that it chooses.
    pub predicted: String,
    /// The log-probability of every answer.
    pub log_probs: Vec<(String, f64)>,
}

impl Outcome {
    /// The scores of an arm.
    pub fn arm(&self, arm: &str) -> Option<&ArmScores> {
        self.arms.iter().find(|scores| scores.arm == arm)
    }
}

impl Layer {
    /// A measure of two arms.
    pub fn measure(&self, arms: [&str; 2], name: &str) -> Option<&Measure> {
        let pair = self.pairs.iter().find(|pair| pair.is_of(arms))?;
        pair.measures.iter().find(|measure| measure.name == name)
    }

    /// The value of a measure of two arms; none where it could not be computed.
    pub fn value(&self, arms: [&str; 2], name: &str) -> Option<MeanSd> {
        self.measure(arms, name).map(|measure| measure.value).filter(|value| value.mean.is_some())
    }
}

impl Pair {
    /// Whether it is of these arms, in either order.
    pub fn is_of(&self, [a, b]: [&str; 2]) -> bool {
        self.arms == [a, b] || self.arms == [b, a]
    }
}

impl Measure {
    /// The value of the baseline of a name.
    pub fn baseline(&self, name: &str) -> Option<MeanSd> {
        self.baselines.iter().find(|(baseline, _)| baseline == name).map(|(_, value)| *value)
    }
}

impl PatchLayer {
    /// What writing the vector of a name does.
    pub fn vector(&self, name: &str) -> Option<&PatchVector> {
        self.vectors.iter().find(|vector| vector.name == name)
    }
}
