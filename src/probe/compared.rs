//! Arms beside each other: what their scores and states say, seed by seed.

use rayon::prelude::*;

use super::arm::Arm;
use super::arm_run::ArmRun;
use super::condition::Condition;
use super::plan::{Plan, Query};
use super::report::measures::{
    ArmMeasures, ExampleAnswer, ExampleReport, LoraOverlap, OutputMeasures, PairMeasures, PcaArm, PcaReport, Values,
    of_states,
};
use super::report::{ArmReport, Layer, LayerReport, PairReport, UpdateReport};
use super::settings::ProbeSettings;
use super::statistics::MeanSd;
use crate::arch::ModelConfig;
use crate::formats::adapter::{Adapter, LoraAdapter};
use crate::measures::attention::{rec2ftp, rec2ftp_shuffled, sim_am, sim_aou, sim_aou_gaussian};
use crate::measures::outputs::{
    agreement, agreement_shuffled, answer, calibration_error, entropy, kl_divergence, kl_divergence_shuffled,
};
use crate::measures::similarity::{cosines, gaussian_rows, gaussian_updates, updates};
use crate::measures::{Baselines, Pair, Projection, States, lora_overlap, lora_overlap_expected, projection};
use crate::task::metrics::score;

/// The scores of an arm.
pub(super) fn arm_report(run: &ArmRun, s: usize, gold: &[usize], closed: bool) -> ArmReport<Option<f64>, f64> {
    let scores = score(&run.seed(s).log_probs, run.lengths(s), gold, closed);
    let tuning = run.tunings.get(s).cloned();
    ArmReport { arm: run.arm, accuracy: scores.accuracy, log_prob: scores.log_prob, tuning }
}

/// Every arm beside all before it, at every layer; `readouts` are what was read out of each layer.
pub(super) fn layers(
    Condition { settings, .. }: &Condition,
    arms: &[ArmRun],
    s: usize,
    config: &ModelConfig,
    seed: u64,
    readouts: &[Vec<ArmMeasures>],
) -> Vec<LayerReport> {
    let (count, width) = (config.num_hidden_layers + 1, config.hidden_size);
    let asked = settings.measures.of_states(seed);
    let layer = |l: usize| {
        let all: Vec<(Arm, &[f32])> = arms.iter().map(|arm| (arm.arm, arm.seed(s).states[l].as_slice())).collect();
        let (_, anchor) = all[0];
        let states: Vec<States> = match &asked {
            Some(asked) => all.iter().map(|(_, states)| States::new(states, width, asked)).collect(),
            None => Vec::new(),
        };
        let noise = gaussian_rows(seed, l, anchor.len() / width, width);
        let gaussian = asked.as_ref().map(|asked| States::gaussian(&noise, width, asked));
        let (mut pairs, mut measures) = (Vec::new(), Vec::new());
        for (j, &(second, y)) in all.iter().enumerate() {
            for (i, &(first, x)) in all[..j].iter().enumerate() {
                let from = (i > 0).then_some(anchor);
                let pair = asked.as_ref().map(|asked| Pair::new(&states[i], &states[j], from, asked));
                let between = match &pair {
                    Some(pair) => pair.updates().cloned(),
                    None => from.map(|anchor| updates(anchor, x, y, width)),
                };
                pairs.push(PairReport {
                    arms: [first, second],
                    cosine: MeanSd::of(cosines(x, y, width)),
                    updates: between.map(|found| UpdateReport {
                        update: MeanSd::of(found.update),
                        update_shuffled: MeanSd::of(found.update_shuffled),
                    }),
                });
                if let (Some(pair), Some(gaussian)) = (&pair, &gaussian) {
                    let null = Baselines { shuffled: pair.shuffled(), gaussian: pair.gaussian(gaussian, &noise) };
                    measures.push(of_states([first, second], &pair.measures(), Some(&null)));
                }
            }
        }
        let icl = all.iter().find(|(arm, _)| *arm == Arm::Icl);
        let against_noise = icl.map(|(_, icl)| gaussian_updates(anchor, icl, width, &noise));
        LayerReport {
            layer: Layer::of(l, count),
            pairs,
            update_gaussian: MeanSd::of(against_noise.into_iter().flatten()),
            measures,
            readouts: readouts.get(l).cloned().unwrap_or_default(),
            attention: attention(settings, arms, s, config, l, &noise),
        }
    };
    (0..count).into_par_iter().map(layer).collect()
}

/// SimAOU and SimAM of a block; `noise` as for [`sim_aou_gaussian`].
fn attention(
    settings: &ProbeSettings,
    arms: &[ArmRun],
    s: usize,
    config: &ModelConfig,
    l: usize,
    noise: &[f64],
) -> Values {
    let (depth, width) = (config.num_hidden_layers, config.hidden_size);
    let of = |arm: Arm| arms.iter().find(|run| run.arm == arm).map(|run| run.seed(s));
    let mut values = Values::new();
    let (Some(zero), Some(icl), Some(tuned)) = (of(Arm::ZeroShot), of(Arm::Icl), of(Arm::Lora)) else { return values };
    if l >= depth {
        return values;
    }
    if settings.measures.has("sim_aou") {
        let [zero, icl, tuned] = [zero, icl, tuned].map(|arm| arm.states[depth + 1 + l].as_slice());
        values.insert("sim_aou".to_owned(), MeanSd::of(sim_aou(zero, icl, tuned, width)));
        let noise = sim_aou_gaussian(zero, icl, width, noise);
        values.insert("sim_aou_gaussian".to_owned(), MeanSd::of(noise));
    }
    if settings.measures_last("sim_am") {
        // An item is a query and a head; a sliding window may hide a query's first tokens from its last.
        let heads = config.num_attention_heads;
        let [zero, icl, tuned] = [zero, icl, tuned]
            .map(|arm| -> Vec<&[f32]> { arm.scores[l].iter().flat_map(|all| all.chunks(all.len() / heads)).collect() });
        if [&zero, &icl, &tuned].iter().all(|items| items.iter().all(|item| item.iter().all(|x| x.is_finite()))) {
            values.extend(sim_am(&icl, &tuned).map(|found| ("sim_am".to_owned(), MeanSd::of([found]))));
            values.extend(sim_am(&zero, &tuned).map(|found| ("sim_am_zero_shot".to_owned(), MeanSd::of([found]))));
        }
    }
    values
}

/// What the arms of a seed answer; none of free text.
pub(super) fn outputs(plan: &Plan, arms: &[ArmRun], s: usize) -> Option<OutputMeasures> {
    if !plan.is_closed() {
        return None;
    }
    let gold = plan.gold();
    let values = |all: &[(&str, Option<f64>)]| -> Values {
        all.iter().filter_map(|&(name, value)| Some((name.to_owned(), MeanSd::of([value?])))).collect()
    };
    let scores: Vec<Vec<Vec<f64>>> = arms.iter().map(|arm| arm.scores(s)).collect();
    let mut found = OutputMeasures::default();
    for (j, second) in arms.iter().enumerate() {
        let b = &second.seed(s).log_probs;
        let answers: Vec<usize> = scores[j].iter().map(|row| answer(row)).collect();
        let own = [("entropy", entropy(b)), ("calibration_error", calibration_error(b, &answers, &gold))];
        found.arms.push(ArmMeasures { arm: second.arm, values: values(&own) });
        for (i, first) in arms[..j].iter().enumerate() {
            let (a, [x, y]) = (&first.seed(s).log_probs, [i, j].map(|arm| &scores[arm]));
            let of = [("agreement", agreement(x, y)), ("kl_divergence", kl_divergence(a, b))];
            let null = [("agreement", agreement_shuffled(x, y)), ("kl_divergence", kl_divergence_shuffled(a, b))];
            let (values, shuffled) = (values(&of), values(&null));
            found.pairs.push(PairMeasures { arms: [first.arm, second.arm], values, shuffled, gaussian: Values::new() });
        }
    }
    let right = |arm: Arm| -> Option<Vec<bool>> {
        let run = arms.iter().position(|run| run.arm == arm)?;
        Some(scores[run].iter().zip(&gold).map(|(row, gold)| answer(row) == *gold).collect())
    };
    if let (Some(zero), Some(icl), Some(tuned)) = (right(Arm::ZeroShot), right(Arm::Icl), right(Arm::Lora)) {
        found.values =
            values(&[("rec2ftp", rec2ftp(&zero, &icl, &tuned)), ("rec2ftp_shuffled", rec2ftp_shuffled(&icl))]);
    }
    Some(found)
}

/// Queries that are shown as examples.
const EXAMPLES: usize = 6;

/// The first queries of a seed, their tokens without text yet.
pub(super) fn examples(plan: &Plan, arms: &[ArmRun], s: usize) -> Vec<ExampleReport> {
    let name = |query: usize, answer: usize| match plan.texts(query).get(answer) {
        Some(text) => text.clone(),
        None => format!("answer {answer}"),
    };
    let scores: Vec<Vec<Vec<f64>>> = arms.iter().map(|arm| arm.scores(s)).collect();
    let example = |(q, query): (usize, &Query)| ExampleReport {
        query: q,
        tokens: Vec::new(),
        gold: name(q, query.gold),
        answers: arms
            .iter()
            .zip(&scores)
            .map(|(arm, scores)| ExampleAnswer {
                arm: arm.arm,
                predicted: name(q, answer(&scores[q])),
                log_probs: arm.seed(s).log_probs[q].clone(),
            })
            .collect(),
    };
    plan.queries.iter().take(EXAMPLES).enumerate().map(example).collect()
}

/// The arms' states of a seed in the plane of their first two principal components, at the block after which the updates of
/// ICL and IT are most alike; none where no arm moves a state.
pub(super) fn pca(
    arms: &[ArmRun],
    s: usize,
    seed: u64,
    layers: &[LayerReport],
    config: &ModelConfig,
) -> Option<PcaReport> {
    let update = |layer: &LayerReport| layer.pair(Arm::Icl, Arm::Lora)?.updates?.update.mean;
    let blocks = layers[..config.num_hidden_layers].iter().enumerate();
    let (l, _) = blocks.filter_map(|(l, layer)| Some((l, update(layer)?))).max_by(|a, b| a.1.total_cmp(&b.1))?;
    let rows: Vec<f32> = arms.iter().flat_map(|arm| arm.seed(s).states[l].iter().copied()).collect();
    let Projection { variance, points } = projection(&rows, config.hidden_size)?;
    let each = points.len() / arms.len();
    let arms = arms.iter().zip(points.chunks(each.max(1)));
    let arms = arms.map(|(arm, points)| PcaArm { arm: arm.arm, points: points.to_vec() }).collect();
    Some(PcaReport { seed, layer: layers[l].layer, variance, arms })
}

/// What the LoRA updates of condition `c` have in common: those of its seeds, and with those of the same seeds of earlier
/// conditions that adapt the same modules.
pub(super) fn lora_overlaps(conditions: &[Condition], arms: &[Vec<ArmRun>], c: usize) -> Vec<LoraOverlap> {
    let adapters = |c: usize| -> Vec<&LoraAdapter> {
        let run = arms[c].iter().find(|run| run.arm == Arm::Lora);
        let all = run.into_iter().flat_map(|run| &run.adapters);
        all.filter_map(|adapter| match adapter {
            Adapter::Lora(lora) => Some(lora),
            Adapter::Prompt(_) | Adapter::Ia3(_) => None,
        })
        .collect()
    };
    if !conditions[c].settings.measures.has("lora_overlap") {
        return Vec::new();
    }
    let own = adapters(c);
    let seeds: Vec<(&LoraAdapter, &LoraAdapter)> =
        own.iter().enumerate().flat_map(|(j, b)| own[..j].iter().map(move |a| (*a, *b))).collect();
    let mut found: Vec<LoraOverlap> = overlap(None, &seeds).into_iter().collect();
    let adapted = |c: usize| (&conditions[c].settings.target_modules, &conditions[c].settings.layers_to_transform);
    for earlier in (0..c).filter(|&other| adapted(other) == adapted(c)) {
        let same: Vec<(&LoraAdapter, &LoraAdapter)> = adapters(earlier).into_iter().zip(own.iter().copied()).collect();
        found.extend(overlap(Some(earlier), &same));
    }
    found
}

/// The overlap of pairs of adapters, by layer; none where nothing was trained.
fn overlap(with: Option<usize>, pairs: &[(&LoraAdapter, &LoraAdapter)]) -> Option<LoraOverlap> {
    let (first, second) = pairs.first()?;
    let depth = first.modules.iter().map(|module| module.layer + 1).max()?;
    let mean = |values: Vec<f64>| MeanSd::of(values).mean;
    let of_layer = |(a, b): &(&LoraAdapter, &LoraAdapter), layer: usize| {
        let modules = a.modules.iter().zip(&b.modules).filter(|(module, _)| module.layer == layer);
        mean(modules.filter_map(|(a, b)| lora_overlap(&a.b, &b.b, a.b.len() / a.r)).collect())
    };
    let layers: Vec<MeanSd> =
        (0..depth).map(|layer| MeanSd::of(pairs.iter().filter_map(|pair| of_layer(pair, layer)))).collect();
    let expected = first.modules.iter().zip(&second.modules);
    let expected = mean(expected.map(|(a, b)| lora_overlap_expected(a.r, b.r, a.b.len() / a.r)).collect())?;
    layers.iter().any(|layer| layer.mean.is_some()).then_some(LoraOverlap { with, layers, expected })
}
