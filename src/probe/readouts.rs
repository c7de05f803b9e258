//! What the states of a layer say of the labels: the logit lens, direct logit attribution, and linear probes.

use rayon::prelude::*;

use super::arm::Arm;
use super::arm_run::ArmRun;
use super::plan::Plan;
use super::report::measures::{ArmMeasures, Values};
use super::settings::{ProbeSettings, TuningKind};
use super::statistics::MeanSd;
use crate::Result;
use crate::arch::{ModelConfig, Norm};
use crate::formats::safetensors::Checkpoint;
use crate::hooks::Site;
use crate::measures::outputs::answer;
use crate::measures::readouts::{FinalNorm, Words, attributions, logit_lens, margins, margins_shuffled};
use crate::measures::{Folds, ProbeFeatures, ProbeFit, shuffled_labels};
use crate::model::{Unembedding, inverse_scale};
use crate::task::prompts::Answer;

/// By seed and layer (the blocks', then `final`): what every arm's states say. `checkpoint` has the model's head.
pub(super) fn readouts(
    config: &ModelConfig,
    checkpoint: Option<&Checkpoint>,
    settings: &ProbeSettings,
    plan: &Plan,
    arms: &[ArmRun],
) -> Result<Vec<Vec<Vec<ArmMeasures>>>> {
    let [lens, attribution, probe] =
        ["logit_lens", "attribution", "linear_probe"].map(|name| settings.measures.has(name));
    let words = match checkpoint.filter(|_| lens || attribution) {
        Some(checkpoint) => LabelWords::new(config, checkpoint, plan)?,
        None => None,
    };
    let (depth, width) = (config.num_hidden_layers, config.hidden_size);
    let gold = plan.gold();
    let mut seeds = Vec::new();
    for (s, seed) in plan.seeds.iter().enumerate() {
        let controls = if probe && plan.labels.is_some() { Controls::new(&gold, width, seed.seed) } else { None };
        let mut layers: Vec<Vec<ArmMeasures>> = vec![Vec::new(); depth + 1];
        for arm in arms {
            // A head that was trained itself is not the model's.
            let own_head = arm.arm != Arm::Lora || settings.tuning == TuningKind::Lora;
            let states = &arm.seed(s).states[..=depth];
            let words = words.as_ref().filter(|_| own_head);
            let attributed = words.filter(|_| attribution);
            let attributed = attributed.map(|words| words.attributions(&arm.seed(s).states, depth, &gold));
            let values = |(l, states): (usize, &Vec<f32>)| {
                let mut values = Values::new();
                let mut add = |name: &str, value: Option<f64>| {
                    values.extend(value.map(|value| (name.to_owned(), MeanSd::of([value]))));
                };
                if let Some(words) = words.filter(|_| lens && l < depth) {
                    let logits = &words.logits(states);
                    let hits = logits.iter().zip(&gold).filter(|(row, gold)| answer(row) == **gold).count();
                    let margins = margins(logits, &gold).into_iter().flatten();
                    add("lens_accuracy", Some(hits as f64 / gold.len() as f64));
                    add("lens_margin", MeanSd::of(margins).mean);
                    add("lens_margin_shuffled", margins_shuffled(logits, &gold));
                }
                if let Some([attention, mlp]) = attributed.as_ref().and_then(|attributed| attributed.get(l)) {
                    add("attention_attribution", *attention);
                    add("mlp_attribution", *mlp);
                }
                if let Some(controls) = &controls {
                    let features = ProbeFeatures::new(states, width);
                    add("probe_accuracy", Some(controls.accuracy(&features, &gold)));
                    add("probe_shuffled_labels", Some(controls.of_shuffled(&features)));
                    add("probe_random_features", Some(controls.random_features));
                }
                values
            };
            let found: Vec<Values> = states.par_iter().enumerate().map(values).collect();
            for (layer, values) in layers.iter_mut().zip(found).filter(|(_, values)| !values.is_empty()) {
                layer.push(ArmMeasures { arm: arm.arm, values });
            }
        }
        seeds.push(layers);
    }
    Ok(seeds)
}

/// The sites of the terms that [`LabelWords::attributions`] reads, after the hooks of every probe.
pub(super) const TERMS: [Site; 2] = [Site::AttnOut, Site::MlpOut];

/// The label words of every query, as the model's end reads them.
struct LabelWords<'a> {
    config: &'a ModelConfig,
    norm_weight: Vec<f32>,
    norm_bias: Option<Vec<f32>>,
    /// Of each query the head's rows of its answers' first tokens `[answers, C]`.
    words: Vec<Vec<f32>>,
    /// And the elements of its bias `[answers]`, where it has one.
    biases: Option<Vec<Vec<f32>>>,
}

impl<'a> LabelWords<'a> {
    /// None of a model whose last residual stream the final norm and the head do not read as a sum, and none where answers of a query
    /// begin with the same token, between which the state that predicts it cannot tell.
    fn new(config: &'a ModelConfig, checkpoint: &Checkpoint, plan: &Plan) -> Result<Option<Self>> {
        let tokens: Vec<Vec<u32>> = plan.queries.iter().map(|q| q.answers.iter().map(first_token).collect()).collect();
        let alike = tokens.iter().filter(|own| (1..own.len()).any(|i| own[..i].contains(&own[i]))).count();
        if alike > 0 {
            let of = tokens.len();
            log::warn!(
                "logit_lens, attribution: answers to {alike} of {of} queries begin with the same token: not measured"
            );
            return Ok(None);
        }
        let mut distinct: Vec<u32> = tokens.iter().flatten().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let Some(end) = Unembedding::read(config, checkpoint, &distinct)? else { return Ok(None) };
        let at = |token: &u32| distinct.binary_search(token).expect("readouts: its row was read");
        let row = |token: &u32| end.rows[at(token)].iter().copied();
        let words = tokens.iter().map(|tokens| tokens.iter().flat_map(row).collect()).collect();
        let of_tokens =
            |bias: &[f32]| tokens.iter().map(|tokens| tokens.iter().map(|token| bias[at(token)]).collect()).collect();
        let biases = end.bias.as_deref().map(of_tokens);
        Ok(Some(Self { config, norm_weight: end.norm_weight, norm_bias: end.norm_bias, words, biases }))
    }

    /// The logit lens: of each query the logits of its label words, if the states `[queries, C]` were the last.
    fn logits(&self, states: &[f32]) -> Vec<Vec<f64>> {
        let centred = self.config.norm == Norm::Layer;
        let norm = |query: usize, x: &[f64]| {
            let width = self.config.hidden_size;
            let scale = inverse_scale(self.config, &states[query * width..(query + 1) * width]);
            let mean = if centred { x.iter().sum::<f64>() / x.len() as f64 } else { 0.0 };
            let weighted = x.iter().zip(&self.norm_weight).map(|(x, &weight)| (x - mean) * scale * f64::from(weight));
            match &self.norm_bias {
                Some(bias) => weighted.zip(bias).map(|(x, &bias)| x + f64::from(bias)).collect(),
                None => weighted.collect(),
            }
        };
        let mut logits = logit_lens(states, self.config.hidden_size, norm, Words::Each(&self.words));
        for (logits, biases) in logits.iter_mut().zip(self.biases.iter().flatten()) {
            logits.iter_mut().zip(biases).for_each(|(x, &bias)| *x += f64::from(bias));
        }
        if let Some(cap) = self.config.logit_softcap {
            logits.iter_mut().flatten().for_each(|x| *x = cap * (*x / cap).tanh());
        }
        logits
    }

    /// By layer what the outputs of attention and MLP add to the gold answer's logit, on the mean over the queries, from all
    /// states of an arm; of a model with a soft cap to the logit before it.
    fn attributions(&self, states: &[Vec<f32>], depth: usize, gold: &[usize]) -> Vec<[Option<f64>; 2]> {
        let width = self.config.hidden_size;
        let last = states[depth - 1].chunks_exact(width);
        let inverse_scale: Vec<f64> = last.map(|x| inverse_scale(self.config, x)).collect();
        let norm = FinalNorm {
            weight: &self.norm_weight,
            inverse_scale: &inverse_scale,
            centred: self.config.norm == Norm::Layer,
        };
        let mean = |term: &[f32]| {
            let found = attributions(term, width, norm, Words::Each(&self.words), gold);
            MeanSd::of(found.into_iter().flatten()).mean
        };
        let term = |site: usize, l: usize| states.get(depth + 1 + site * depth + l).and_then(|term| mean(term));
        (0..depth).map(|l| [term(0, l), term(1, l)]).collect()
    }
}

fn first_token(answer: &Answer) -> u32 {
    answer.token_ids[answer.token_ids.len() - answer.scored]
}

/// What the linear probes of a seed have in common, whatever the layer and arm.
struct Controls {
    folds: Folds,
    shuffled: Vec<usize>,
    shuffled_folds: Folds,
    random_features: f64,
}

impl Controls {
    /// Of the gold labels of queries that have a row each; none where there are too few for folds.
    fn new(gold: &[usize], width: usize, seed: u64) -> Option<Self> {
        let queries: Vec<usize> = (0..gold.len()).collect();
        let fit = ProbeFit { seed, ..ProbeFit::default() };
        let folds = Folds::new(gold, &queries, fit)?;
        let shuffled = shuffled_labels(gold, &queries, seed);
        let shuffled_folds = Folds::new(&shuffled, &queries, fit)?;
        let random = ProbeFeatures::gaussian(gold.len(), width, seed);
        let random_features = random.cross_validated(gold, &folds, fit.c);
        Some(Self { folds, shuffled, shuffled_folds, random_features })
    }

    fn accuracy(&self, features: &ProbeFeatures, gold: &[usize]) -> f64 {
        features.cross_validated(gold, &self.folds, ProbeFit::default().c)
    }

    fn of_shuffled(&self, features: &ProbeFeatures) -> f64 {
        features.cross_validated(&self.shuffled, &self.shuffled_folds, ProbeFit::default().c)
    }
}
