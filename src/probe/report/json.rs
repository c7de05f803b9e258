//! The form of a report's arms and pairs in `report.json`: anchor, ICL and IT as fields of their own, further arms
//! as a list beside them (`soft`), each with the arms before it.

use serde::{Deserialize, Serialize};

use super::super::arm::{Arm, arm_named};
use super::super::statistics::MeanSd;
use super::measures::{ArmMeasures, OutputMeasures, PairMeasures, Values};
use super::{ArmReport, Layer, LayerReport, PairReport, PatchLayer, SeedReport, TuningReport, UpdateReport, arm_name};
use crate::{Error, Result};

/// One value for each arm that is always there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arms<T> {
    anchor: T,
    icl: T,
    it: T,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArmsLayer {
    layer: Layer,
    icl_it: MeanSd,
    anchor_icl: MeanSd,
    anchor_it: MeanSd,
    update: MeanSd,
    update_gaussian: MeanSd,
    update_shuffled: MeanSd,
    /// The measures of ICL and IT, by the names that `analyze` has them by; `update` is above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cosine: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    norm_ratio: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cka: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cka_debiased: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    svcca: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    knn_overlap: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id_a: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id_b: Option<MeanSd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subspace_overlap: Option<MeanSd>,
    /// Every pair with its baselines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    measures: Vec<PairMeasures>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    readouts: Vec<ArmMeasures>,
    #[serde(default, skip_serializing_if = "Values::is_empty")]
    attention: Values,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    with: String,
    cosine: MeanSd,
    update: MeanSd,
    update_shuffled: MeanSd,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SoftLayer {
    layer: Layer,
    anchor: MeanSd,
    pairs: Vec<Pair>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SoftSeed {
    arm: Arm,
    accuracy: Option<f64>,
    log_prob: f64,
    loss: Vec<f64>,
    final_loss: Option<f64>,
    adapter: Option<String>,
    layers: Vec<SoftLayer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SoftSummary {
    arm: Arm,
    accuracy: MeanSd,
    log_prob: MeanSd,
    loss: Vec<MeanSd>,
    final_loss: Option<MeanSd>,
    layers: Vec<SoftLayer>,
}

/// [`SeedReport`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seed {
    seed: u64,
    accuracy: Arms<Option<f64>>,
    log_prob: Arms<f64>,
    loss: Vec<f64>,
    final_loss: Option<f64>,
    adapter: Option<String>,
    layers: Vec<ArmsLayer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    soft: Vec<SoftSeed>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    patching: Vec<PatchLayer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outputs: Option<OutputMeasures>,
}

/// [`super::Summary`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Summary {
    accuracy: Arms<MeanSd>,
    log_prob: Arms<MeanSd>,
    loss: Vec<MeanSd>,
    final_loss: Option<MeanSd>,
    layers: Vec<ArmsLayer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    soft: Vec<SoftSummary>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    patching: Vec<PatchLayer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outputs: Option<OutputMeasures>,
}

/// The arms that are always there, in the order of [`Arms`], and the further ones.
type Split<A, S> = ([ArmReport<A, S>; 3], Vec<ArmReport<A, S>>);

fn split<A, S>(arms: Vec<ArmReport<A, S>>) -> Split<A, S> {
    let mut arms = arms.into_iter();
    let mut next = |arm: Arm| {
        let report = arms.next().filter(|report| report.arm == arm);
        report.unwrap_or_else(|| panic!("report: no {} where it should be", arm.name()))
    };
    ([next(Arm::ZeroShot), next(Arm::Icl), next(Arm::Lora)], arms.collect())
}

fn tuning<S>(tuning: Option<TuningReport<S>>) -> (Vec<S>, Option<S>) {
    let TuningReport { loss, final_loss } = tuning.expect("report: LoRA and the further arms are trained");
    (loss, final_loss)
}

impl<T> Arms<T> {
    fn of([anchor, icl, it]: [T; 3]) -> Self {
        Self { anchor, icl, it }
    }
}

/// The reports of the three arms of which the last is trained.
fn arms<A, S>(accuracy: Arms<A>, log_prob: Arms<S>, tuning: TuningReport<S>) -> Vec<ArmReport<A, S>> {
    let report = |arm, accuracy, log_prob, tuning| ArmReport { arm, accuracy, log_prob, tuning };
    vec![
        report(Arm::ZeroShot, accuracy.anchor, log_prob.anchor, None),
        report(Arm::Icl, accuracy.icl, log_prob.icl, None),
        report(Arm::Lora, accuracy.it, log_prob.it, Some(tuning)),
    ]
}

fn arms_layers(layers: &[LayerReport]) -> Vec<ArmsLayer> {
    let one = |layer: &LayerReport| {
        let pair = |x, y| layer.pair(x, y).expect("report: every pair is compared");
        let icl_it = pair(Arm::Icl, Arm::Lora);
        let updates = icl_it.updates.expect("report: two arms beside the anchor");
        let measured = layer.measures.iter().find(|pair| pair.arms == [Arm::Icl, Arm::Lora]);
        let named = |name: &str| measured.and_then(|pair| pair.values.get(name)).copied();
        ArmsLayer {
            layer: layer.layer,
            icl_it: icl_it.cosine,
            anchor_icl: pair(Arm::ZeroShot, Arm::Icl).cosine,
            anchor_it: pair(Arm::ZeroShot, Arm::Lora).cosine,
            update: updates.update,
            update_gaussian: layer.update_gaussian,
            update_shuffled: updates.update_shuffled,
            cosine: named("cosine"),
            norm_ratio: named("norm_ratio"),
            cka: named("cka"),
            cka_debiased: named("cka_debiased"),
            svcca: named("svcca"),
            knn_overlap: named("knn_overlap"),
            id_a: named("id_a"),
            id_b: named("id_b"),
            subspace_overlap: named("subspace_overlap"),
            measures: layer.measures.clone(),
            readouts: layer.readouts.clone(),
            attention: layer.attention.clone(),
        }
    };
    layers.iter().map(one).collect()
}

/// The layers of a further arm: its pairs with the arms before it.
fn soft_layers(layers: &[LayerReport], arm: Arm) -> Vec<SoftLayer> {
    let one = |layer: &LayerReport| {
        let pairs = layer.pairs.iter().filter(|pair| pair.arms[1] == arm);
        let beside = pairs.filter_map(|pair| {
            let UpdateReport { update, update_shuffled } = pair.updates?;
            Some(Pair { with: arm_name(pair.arms[0]).to_owned(), cosine: pair.cosine, update, update_shuffled })
        });
        let anchor = layer.pair(Arm::ZeroShot, arm).expect("report: every pair is compared").cosine;
        SoftLayer { layer: layer.layer, anchor, pairs: beside.collect() }
    };
    layers.iter().map(one).collect()
}

/// All pairs of all layers again; `soft` are the further arms.
fn layers(three: Vec<ArmsLayer>, soft: Vec<(Arm, Vec<SoftLayer>)>) -> Result<Vec<LayerReport>> {
    let mut layers: Vec<LayerReport> = three.into_iter().map(three_arms).collect();
    for (arm, own) in soft {
        if own.len() != layers.len() {
            return Err(Error::argument("soft layers", layers.len().to_string(), own.len()));
        }
        for (layer, own) in layers.iter_mut().zip(own) {
            layer.pairs.push(PairReport { arms: [Arm::ZeroShot, arm], cosine: own.anchor, updates: None });
            for Pair { with, cosine, update, update_shuffled } in own.pairs {
                let other = arm_named(&with).filter(|&other| other != Arm::ZeroShot);
                let other = other.ok_or_else(|| Error::argument("with", "an arm of this report", with))?;
                let updates = Some(UpdateReport { update, update_shuffled });
                layer.pairs.push(PairReport { arms: [other, arm], cosine, updates });
            }
        }
    }
    Ok(layers)
}

fn three_arms(json: ArmsLayer) -> LayerReport {
    let ArmsLayer { layer, icl_it, anchor_icl, anchor_it, update, update_gaussian, update_shuffled, .. } = json;
    let (measures, readouts, attention) = (json.measures, json.readouts, json.attention);
    let updates = Some(UpdateReport { update, update_shuffled });
    let pairs = vec![
        PairReport { arms: [Arm::ZeroShot, Arm::Icl], cosine: anchor_icl, updates: None },
        PairReport { arms: [Arm::ZeroShot, Arm::Lora], cosine: anchor_it, updates: None },
        PairReport { arms: [Arm::Icl, Arm::Lora], cosine: icl_it, updates },
    ];
    LayerReport { layer, pairs, update_gaussian, measures, readouts, attention }
}

impl From<SeedReport> for Seed {
    fn from(SeedReport { seed, arms, mut adapters, layers, patching, outputs }: SeedReport) -> Self {
        let (three, soft) = split(arms);
        let accuracy = Arms::of(three.each_ref().map(|arm| arm.accuracy));
        let log_prob = Arms::of(three.each_ref().map(|arm| arm.log_prob));
        let [_, _, it] = three;
        let (loss, final_loss) = tuning(it.tuning);
        let soft = soft.into_iter().map(|report| {
            let ArmReport { arm, accuracy, log_prob, tuning: training } = report;
            let (loss, final_loss) = tuning(training);
            let (adapter, layers) = (adapters.remove(&arm), soft_layers(&layers, arm));
            SoftSeed { arm, accuracy, log_prob, loss, final_loss, adapter, layers }
        });
        let soft = soft.collect();
        let adapter = adapters.remove(&Arm::Lora);
        Self {
            seed,
            accuracy,
            log_prob,
            loss,
            final_loss,
            adapter,
            layers: arms_layers(&layers),
            soft,
            patching,
            outputs,
        }
    }
}

impl TryFrom<Seed> for SeedReport {
    type Error = Error;

    fn try_from(json: Seed) -> Result<Self> {
        let Seed { seed, accuracy, log_prob, loss, final_loss, adapter, layers: three, soft, patching, outputs } = json;
        let mut arms = arms(accuracy, log_prob, TuningReport { loss, final_loss });
        let mut adapters: Vec<(Arm, Option<String>)> = vec![(Arm::Lora, adapter)];
        let mut soft_layers = Vec::new();
        for SoftSeed { arm, accuracy, log_prob, loss, final_loss, adapter, layers } in soft {
            arms.push(ArmReport { arm, accuracy, log_prob, tuning: Some(TuningReport { loss, final_loss }) });
            adapters.push((arm, adapter));
            soft_layers.push((arm, layers));
        }
        let adapters = adapters.into_iter().filter_map(|(arm, name)| Some((arm, name?))).collect();
        Ok(Self { seed, arms, adapters, layers: layers(three, soft_layers)?, patching, outputs })
    }
}

impl From<super::Summary> for Summary {
    fn from(super::Summary { arms, layers, patching, outputs }: super::Summary) -> Self {
        let (three, soft) = split(arms);
        let accuracy = Arms::of(three.each_ref().map(|arm| arm.accuracy));
        let log_prob = Arms::of(three.each_ref().map(|arm| arm.log_prob));
        let [_, _, it] = three;
        let (loss, final_loss) = tuning(it.tuning);
        let soft = soft.into_iter().map(|report| {
            let ArmReport { arm, accuracy, log_prob, tuning: training } = report;
            let (loss, final_loss) = tuning(training);
            SoftSummary { arm, accuracy, log_prob, loss, final_loss, layers: soft_layers(&layers, arm) }
        });
        let soft = soft.collect();
        Self { accuracy, log_prob, loss, final_loss, layers: arms_layers(&layers), soft, patching, outputs }
    }
}

impl TryFrom<Summary> for super::Summary {
    type Error = Error;

    fn try_from(json: Summary) -> Result<Self> {
        let Summary { accuracy, log_prob, loss, final_loss, layers: three, soft, patching, outputs } = json;
        let mut arms = arms(accuracy, log_prob, TuningReport { loss, final_loss });
        let mut soft_layers = Vec::new();
        for SoftSummary { arm, accuracy, log_prob, loss, final_loss, layers } in soft {
            arms.push(ArmReport { arm, accuracy, log_prob, tuning: Some(TuningReport { loss, final_loss }) });
            soft_layers.push((arm, layers));
        }
        Ok(Self { arms, layers: layers(three, soft_layers)?, patching, outputs })
    }
}
