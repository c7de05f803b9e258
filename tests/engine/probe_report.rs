//! What a probe's report says: similarities, statistics, and the form of `report.json`.

use llamaprobe::measures::similarity::{cosine, cosines, gaussian, gaussian_rows, gaussian_updates, updates};
use llamaprobe::probe::arm::Arm;
use llamaprobe::probe::report::measures::Values;
use llamaprobe::probe::report::{ArmReport, Layer, LayerReport, PairReport, SeedReport, TuningReport, UpdateReport};
use llamaprobe::probe::statistics::MeanSd;

/// `gaussian(0, 0, 0, 5)` and `gaussian(2**63 + 5, 7, 123, 4)` of `tests/golden/check_probe.py`.
const GAUSSIAN: [&[f64]; 2] = [
    &[-1.291225130504602, -1.3999155270394388, 0.5376785883892461, 0.4898122561137322, 0.6245023037287527],
    &[0.27239026937642985, 0.5139167031096711, -0.2224617462653755, 0.210491539748677],
];

/// The arms are one list, but `report.json` has three of them as fields of their own.
#[test]
fn report_json_has_its_keys_in_their_order() {
    let value = |x: f64| MeanSd { mean: Some(x), sd: None };
    let updates = |x: f64| Some(UpdateReport { update: value(x), update_shuffled: value(x + 0.5) });
    let pair = |arms, x: f64, updates| PairReport { arms, cosine: value(x), updates };
    let pairs = vec![
        pair([Arm::ZeroShot, Arm::Icl], 1.0, None),
        pair([Arm::ZeroShot, Arm::Lora], 2.0, None),
        pair([Arm::Icl, Arm::Lora], 3.0, updates(4.0)),
        pair([Arm::ZeroShot, Arm::Pt], 5.0, None),
        pair([Arm::Icl, Arm::Pt], 6.0, updates(7.0)),
        pair([Arm::Lora, Arm::Pt], 8.0, updates(9.0)),
    ];
    let tuning = |x: f64| Some(TuningReport { loss: vec![x, x - 0.5], final_loss: Some(x - 1.0) });
    let scores = |arm, x: f64, tuning| ArmReport { arm, accuracy: Some(x), log_prob: -x, tuning };
    let layer = LayerReport {
        layer: Layer::Block(0),
        pairs,
        update_gaussian: value(10.0),
        measures: Vec::new(),
        readouts: Vec::new(),
        attention: Values::new(),
    };
    let report = SeedReport {
        seed: 4,
        arms: vec![
            scores(Arm::ZeroShot, 0.1, None),
            scores(Arm::Icl, 0.2, None),
            scores(Arm::Lora, 0.3, tuning(3.0)),
            scores(Arm::Pt, 0.4, tuning(4.0)),
        ],
        adapters: [(Arm::Pt, "adapters/pt-seed-4".to_owned())].into(),
        layers: vec![layer],
        patching: Vec::new(),
        outputs: None,
    };
    let m = |x: &str| format!(r#"{{"mean":{x},"sd":null}}"#);
    let pair = |with: &str, cosine: &str, update: &str, shuffled: &str| {
        let (cosine, update, shuffled) = (m(cosine), m(update), m(shuffled));
        format!(r#"{{"with":"{with}","cosine":{cosine},"update":{update},"update_shuffled":{shuffled}}}"#)
    };
    let expected = [
        r#"{"seed":4,"accuracy":{"anchor":0.1,"icl":0.2,"it":0.3},"log_prob":{"anchor":-0.1,"icl":-0.2,"it":-0.3},"#,
        r#""loss":[3.0,2.5],"final_loss":2.0,"adapter":null,"layers":[{"layer":0,"#,
        &format!(r#""icl_it":{},"anchor_icl":{},"anchor_it":{},"#, m("3.0"), m("1.0"), m("2.0")),
        &format!(r#""update":{},"update_gaussian":{},"update_shuffled":{}}}],"#, m("4.0"), m("10.0"), m("4.5")),
        r#""soft":[{"arm":"pt","accuracy":0.4,"log_prob":-0.4,"loss":[4.0,3.5],"final_loss":3.0,"#,
        &format!(r#""adapter":"adapters/pt-seed-4","layers":[{{"layer":0,"anchor":{},"pairs":["#, m("5.0")),
        &format!("{},{}]}}]}}]}}", pair("icl", "6.0", "7.0", "7.5"), pair("it", "8.0", "9.0", "9.5")),
    ];
    assert_eq!(serde_json::to_string(&report).expect("JSON"), expected.concat());
    assert_eq!(serde_json::from_str::<SeedReport>(&expected.concat()).expect("a report"), report);
}

#[test]
fn similarities_are_what_they_say() {
    assert_eq!(cosine(&[3.0, 4.0], &[4.0, 3.0]), 24.0 / 25.0);
    assert_eq!(cosine(&[1e-30, 0.1, 7.0], &[1e-30, 0.1, 7.0]), 1.0);
    assert_eq!(cosine(&[0.0, 0.0], &[1.0, 2.0]), 0.0);
    // Three queries of two elements.
    let anchor = [1.0, 0.0, 1.0, 1.0, 0.0, 2.0];
    let icl = [2.0, 1.0, 1.0, 3.0, 4.0, 2.0];
    let it = [1.0, 1.0, 0.0, 1.0, 1.0, 3.0];
    let found = updates(&anchor, &icl, &it, 2);
    let r = 0.5f64.sqrt();
    // Updates of ICL: (1, 1), (0, 2), (4, 0); of IT: (0, 1), (-1, 0), (1, 1).
    let close = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(close(&found.update, &[r, 0.0, r]), "{:?}", found.update);
    assert!(close(&found.update_shuffled, &[(1.0 - r) / 2.0, (1.0 + r) / 2.0, -0.5]), "{:?}", found.update_shuffled);
    assert!(close(&cosines(&anchor, &icl, 2), &[2.0 / 5f64.sqrt(), 4.0 / 20f64.sqrt(), 4.0 / 80f64.sqrt()]));
    let noise = cosine(&[0.0, 2.0], &gaussian(5, 1, 1, 2));
    assert_eq!(gaussian_updates(&anchor, &icl, 2, &gaussian_rows(5, 1, 3, 2))[1], noise);
}

#[test]
fn gaussian_baseline_is_as_documented() {
    let close = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14) && a.len() == b.len();
    assert!(close(gaussian(0, 0, 0, 5), GAUSSIAN[0]));
    assert!(close(gaussian((1 << 63) + 5, 7, 123, 4), GAUSSIAN[1]));
}

#[test]
fn statistics_are_of_a_sample() {
    assert_eq!(MeanSd::of([]), MeanSd { mean: None, sd: None });
    assert_eq!(MeanSd::of([2.5]), MeanSd { mean: Some(2.5), sd: None });
    assert_eq!(MeanSd::of([1.0, 2.0, 4.0, 5.0]), MeanSd { mean: Some(3.0), sd: Some((10.0f64 / 3.0).sqrt()) });
}
