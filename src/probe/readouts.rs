//! What the states of a layer say of the labels: the logit lens, direct logit attribution, and linear probes.

use rayon::prelude::*;

use super::arm::Arm;
use super::arm_run::ArmRun;
use super::packing::ScoredToken;
use super::plan::Plan;
use super::report::measures::{ArmMeasures, Values};
use super::settings::{ProbeSettings, TuningKind};
use super::states::Reading;
use super::statistics::MeanSd;
use crate::Result;
use crate::arch::{ModelConfig, Norm};
use crate::backend::Backend;
use crate::formats::safetensors::Checkpoint;
use crate::hooks::{NoTaps, Site};
use crate::measures::outputs::answer;
use crate::measures::readouts::{FinalNorm, Words, attributions, margins, margins_shuffled};
use crate::measures::{Folds, ProbeFeatures, ProbeFit, shuffled_labels};
use crate::model::{Activations, Input, Save, Start, StartRows, Unembedding, inverse_scale};
use crate::pack::{Label, PackBuilder, Parent, Token};
use crate::task::prompts::Answer;

/// By seed and layer (the blocks', then `final`): what every arm's states say. `checkpoint` has the model's head.
pub(super) fn readouts<B: Backend>(
    reading: Reading<'_, B>,
    backend: &mut B,
    checkpoint: Option<&Checkpoint>,
    settings: &ProbeSettings,
    plan: &Plan,
    arms: &[ArmRun],
) -> Result<Vec<Vec<Vec<ArmMeasures>>>> {
    let attribution = match checkpoint.filter(|_| settings.measures.has("attribution")) {
        Some(checkpoint) => Attribution::new(&reading.model.config, checkpoint, plan)?,
        None => None,
    };
    let depth = reading.model.config.num_hidden_layers;
    let width = reading.model.config.hidden_size;
    let (lens, probe) = (settings.measures.has("logit_lens"), settings.measures.has("linear_probe"));
    let gold = plan.gold();
    let mut seeds = Vec::new();
    for (s, seed) in plan.seeds.iter().enumerate() {
        let controls = if probe && plan.labels.is_some() { Controls::new(&gold, width, seed.seed) } else { None };
        let mut layers: Vec<Vec<ArmMeasures>> = vec![Vec::new(); depth + 1];
        for arm in arms {
            // A head that was trained itself is not the model's.
            let own_head = arm.arm != Arm::Lora || settings.tuning == TuningKind::Lora;
            let states = &arm.seed(s).states[..=depth];
            let logits = match lens && own_head {
                true => Some(logit_lens(&reading, backend, plan, &states[..depth])?),
                false => None,
            };
            let attributed = attribution.as_ref().filter(|_| own_head);
            let attributed = attributed.map(|attribution| attribution.of(&arm.seed(s).states, depth, &gold));
            let values = |(l, states): (usize, &Vec<f32>)| {
                let mut values = Values::new();
                let mut add = |name: &str, value: Option<f64>| {
                    values.extend(value.map(|value| (name.to_owned(), MeanSd::of([value]))));
                };
                if let Some(logits) = logits.as_ref().and_then(|logits| logits.get(l)) {
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

/// The sites of the terms that [`Attribution`] reads, after the hooks of every probe.
pub(super) const TERMS: [Site; 2] = [Site::AttnOut, Site::MlpOut];

/// What direct logit attribution needs of the model and the queries.
struct Attribution<'a> {
    config: &'a ModelConfig,
    norm_weight: Vec<f32>,
    /// Of each query the head's rows of its answers' first tokens `[answers, C]`.
    words: Vec<Vec<f32>>,
}

impl<'a> Attribution<'a> {
    fn new(config: &'a ModelConfig, checkpoint: &Checkpoint, plan: &Plan) -> Result<Option<Self>> {
        let tokens: Vec<Vec<u32>> = plan.queries.iter().map(|q| q.answers.iter().map(first_token).collect()).collect();
        let mut distinct: Vec<u32> = tokens.iter().flatten().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let Some(Unembedding { rows, norm_weight }) = Unembedding::read(config, checkpoint, &distinct)? else {
            return Ok(None);
        };
        let row =
            |token: &u32| rows[distinct.binary_search(token).expect("readouts: its row was read")].iter().copied();
        let words = tokens.iter().map(|tokens| tokens.iter().flat_map(row).collect()).collect();
        Ok(Some(Self { config, norm_weight, words }))
    }

    /// By layer what the outputs of attention and MLP add to the gold answer's logit, on the mean over the queries, from all
    /// states of an arm.
    fn of(&self, states: &[Vec<f32>], depth: usize, gold: &[usize]) -> Vec<[Option<f64>; 2]> {
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

/// The logit lens (nostalgebraist 2020): of every layer and query the log-probabilities of the answers' first tokens, if its
/// state were the last: through the final norm and the head alone.
fn logit_lens<B: Backend>(
    reading: &Reading<'_, B>,
    backend: &mut B,
    plan: &Plan,
    layers: &[Vec<f32>],
) -> Result<Vec<Vec<Vec<f64>>>> {
    let config = &reading.model.config;
    let (depth, width, queries) = (config.num_hidden_layers, config.hidden_size, plan.queries.len());
    let mut out: Vec<Vec<Vec<f64>>> =
        layers.iter().map(|_| plan.queries.iter().map(|q| vec![0.0; q.answers.len()]).collect()).collect();
    let mut acts = Activations::new(backend, config, None, reading.rows.min(layers.len() * queries), Save::Layer)?;
    let all: Vec<(usize, usize)> = (0..layers.len()).flat_map(|l| (0..queries).map(move |q| (l, q))).collect();
    for some in all.chunks(reading.rows) {
        let (mut builder, mut resid, mut targets) = (PackBuilder::default(), Vec::new(), Vec::new());
        for (row, &(l, q)) in some.iter().enumerate() {
            // Which token it is does not matter from here on.
            builder.push(&[Token::Id(0)], Parent::None, None, Label::Query);
            resid.extend_from_slice(&layers[l][q * width..(q + 1) * width]);
            targets.extend(plan.queries[q].answers.iter().enumerate().map(|(answer, found)| ScoredToken {
                group: l,
                prompt: q,
                answer,
                row,
                token: first_token(found),
            }));
        }
        let pack = builder.build();
        let device = backend.pack(&pack)?;
        let input = Input::new(&pack, &device).starting(Start { layer: depth, resid: StartRows::Host(&resid) });
        reading.model.forward(backend, &mut acts, &input, None, &mut NoTaps)?;
        reading.score(backend, &acts, None, &targets, |target, log_prob| {
            out[target.group][target.prompt][target.answer] = log_prob;
        })?;
    }
    Ok(out)
}
