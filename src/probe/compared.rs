//! Arms beside each other: what their scores and states say, seed by seed.

use super::arm::Arm;
use super::report::{ArmReport, Layer, LayerReport, PairReport, UpdateReport};
use super::run::ArmRun;
use super::statistics::MeanSd;
use crate::arch::ModelConfig;
use crate::measures::similarity::{cosines, gaussian_updates, updates};
use crate::task::metrics::score;

/// The scores of an arm.
pub(super) fn arm_report(run: &ArmRun, s: usize, gold: &[usize], labelled: bool) -> ArmReport<Option<f64>, f64> {
    let scores = score(&run.seed(s).log_probs, gold, labelled);
    let tuning = run.tunings.get(s).cloned();
    ArmReport { arm: run.arm, accuracy: scores.accuracy, log_prob: scores.log_prob, tuning }
}

/// Every arm beside all before it, at every layer.
pub(super) fn layers(arms: &[ArmRun], s: usize, config: &ModelConfig, seed: u64) -> Vec<LayerReport> {
    let (count, width) = (config.num_hidden_layers + 1, config.hidden_size);
    let layer = |l: usize| {
        let all: Vec<(Arm, &[f32])> = arms.iter().map(|arm| (arm.arm, arm.seed(s).states[l].as_slice())).collect();
        let (_, anchor) = all[0];
        let mut pairs = Vec::new();
        for (j, &(second, y)) in all.iter().enumerate() {
            for (i, &(first, x)) in all[..j].iter().enumerate() {
                let between = (i > 0).then(|| updates(anchor, x, y, width));
                pairs.push(PairReport {
                    arms: [first, second],
                    cosine: MeanSd::of(cosines(x, y, width)),
                    updates: between.map(|found| UpdateReport {
                        update: MeanSd::of(found.update),
                        update_shuffled: MeanSd::of(found.update_shuffled),
                    }),
                });
            }
        }
        let icl = all.iter().find(|(arm, _)| *arm == Arm::Icl);
        let noise = icl.map(|(_, icl)| gaussian_updates(anchor, icl, width, seed, l));
        LayerReport { layer: Layer::of(l, count), pairs, update_gaussian: MeanSd::of(noise.into_iter().flatten()) }
    };
    (0..count).map(layer).collect()
}
