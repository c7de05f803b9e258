//! Where measures have no value.

use llamaprobe::measures::outputs::{agreement, calibration_error, entropy, kl_divergence};
use llamaprobe::measures::{Measure, Settings, StateMeasures, baselines, compare};

use super::{named, noise, plus, with};

/// The names of the measures that have no value; every value is a finite number.
fn missing(found: &StateMeasures) -> Vec<&'static str> {
    for (name, value) in named(found) {
        assert!(value.is_none_or(f64::is_finite), "{name}: {value:?}");
    }
    named(found).into_iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect()
}

#[test]
fn measures_without_enough_rows_have_no_value() {
    let settings = with(None, 2);
    let of = |n: usize| {
        let (a, b) = (noise(1, n, 6), noise(2, n, 6));
        let found = compare(&a, &b, Some(&noise(3, n, 6)), 6, &settings);
        missing(&baselines(&a, &b, None, 6, 0, &settings).shuffled);
        missing(&baselines(&a, &b, None, 6, 0, &settings).gaussian);
        missing(&found)
    };
    assert_eq!(of(0).len(), 10);
    assert_eq!(of(1), ["cka", "cka_debiased", "svcca", "knn_overlap", "id_a", "id_b", "subspace_overlap"]);
    assert_eq!(of(2), ["cka_debiased", "id_a", "id_b", "subspace_overlap"]);
    assert_eq!(of(3), ["cka_debiased"]);
    assert!(of(4).is_empty());
}

#[test]
fn measures_of_equal_rows_have_no_value() {
    // A mean of equal rows is not always that row in floating point.
    let row = noise(1, 1, 6);
    let (equal, b) = (row.repeat(7), noise(2, 7, 6));
    let spread = ["cka", "cka_debiased", "svcca", "knn_overlap", "id_a", "subspace_overlap"];
    let found = missing(&compare(&equal, &b, None, 6, &with(None, 2)));
    assert_eq!(found, [&["update"][..], &spread].concat());
    let tall = missing(&compare(&noise(1, 1, 3).repeat(7), &noise(2, 7, 3), None, 3, &with(None, 2)));
    assert_eq!(tall, [&["update"][..], &spread].concat());
    let base = baselines(&equal, &b, None, 6, 0, &with(None, 2));
    missing(&base.shuffled);
    missing(&base.gaussian);
}

#[test]
fn debiased_cka_of_one_row_that_differs_has_no_value() {
    let mut a = noise(1, 1, 6).repeat(9);
    a[6..12].copy_from_slice(&noise(2, 1, 6));
    let found = compare(&a, &noise(3, 9, 6), None, 6, &with(None, 1));
    assert_eq!((found.cka_debiased, found.cka.is_some()), (None, true));
    assert_eq!(found.id_a, None, "two different rows");
}

#[test]
fn measures_of_arms_that_do_not_move_have_no_value() {
    let (anchor, b) = (noise(1, 8, 6), noise(2, 8, 6));
    let found = compare(&anchor, &b, Some(&anchor), 6, &with(None, 2));
    assert_eq!(missing(&found), ["update", "norm_ratio"]);
    let found = compare(&b, &anchor, Some(&anchor), 6, &with(None, 2));
    assert_eq!((missing(&found), found.norm_ratio), (vec!["update"], Some(0.0)));
    // One query that a does not move has no ratio; its cosine is 0.
    let mut still = plus(&anchor, 1.0, &noise(4, 8, 6));
    still[..6].copy_from_slice(&anchor[..6]);
    assert_eq!(missing(&compare(&still, &b, Some(&anchor), 6, &with(None, 2))), ["norm_ratio"]);
    let zeros = vec![0.0; 48];
    let found = missing(&compare(&zeros, &b, None, 6, &with(None, 2)));
    assert!(found.starts_with(&["cosine", "update", "norm_ratio"]), "{found:?}");
}

#[test]
fn measures_hold_at_the_ends_of_f32() {
    let (a, b) = (noise(1, 30, 8), noise(2, 30, 8));
    let reference = named(&compare(&a, &b, None, 8, &with(None, 2)));
    for scale in [2f32.powi(120), 2f32.powi(-100)] {
        let scaled: Vec<f32> = a.iter().map(|x| x * scale).collect();
        let found = named(&compare(&scaled, &b, None, 8, &with(None, 2)));
        for ((name, found), (_, expected)) in
            found.iter().zip(&reference).filter(|((name, _), _)| *name != "norm_ratio")
        {
            assert_eq!(found, expected, "{name} at {scale}");
        }
    }
}

#[test]
fn measures_that_are_not_asked_for_are_not_computed() {
    let (a, b) = (noise(1, 12, 6), noise(2, 12, 6));
    let all = compare(&a, &b, Some(&noise(3, 12, 6)), 6, &with(None, 2));
    for measure in Measure::ALL {
        let settings = Settings { measures: vec![measure], subspace: 2, ..Settings::default() };
        let found = compare(&a, &b, Some(&noise(3, 12, 6)), 6, &settings);
        for other in Measure::ALL {
            let expected = if other == measure { all.values(other) } else { StateMeasures::default().values(other) };
            assert_eq!(found.values(other), expected, "{measure:?} alone, {other:?}");
        }
    }
}

#[test]
fn settings_out_of_their_domain_are_refused() {
    for (settings, name) in [
        (Settings { measures: Vec::new(), ..Settings::default() }, "measures"),
        (Settings { knn: Some(0), ..Settings::default() }, "knn"),
        (Settings { subspace: 0, ..Settings::default() }, "subspace"),
    ] {
        let error = settings.validate().expect_err(name).to_string();
        assert!(error.starts_with(name), "{error}");
    }
    assert_eq!(Measure::parse(&["svcca", "cka"]).expect("names"), [Measure::Cka, Measure::Svcca]);
    assert_eq!(Measure::parse(&["all"]).expect("names"), Measure::ALL);
    let error = Measure::parse(&["cka_unbiased"]).expect_err("no such name").to_string();
    assert!(error.contains("cka_unbiased") && error.contains("knn_overlap"), "{error}");
    assert!(Measure::parse::<&str>(&[]).is_err());
}

#[test]
fn neighbourhoods_are_a_quarter_of_few_rows() {
    let k = |n: usize| Settings::default().neighbours(n);
    assert_eq!([1, 2, 4, 50, 119, 120, 1000].map(k), [None, Some(1), Some(1), Some(12), Some(29), Some(30), Some(30)]);
    assert_eq!(with(Some(50), 1).neighbours(50), None);
    assert_eq!(with(Some(50), 1).neighbours(51), Some(50));
}

#[test]
fn output_measures_without_queries_have_no_value() {
    assert_eq!((agreement(&[], &[]), kl_divergence(&[], &[]), entropy(&[])), (None, None, None));
    assert_eq!(calibration_error(&[], &[], &[]), None);
    // What has no probability adds nothing where the other arm has some, and is infinite the other way round.
    let (some, none) = (vec![vec![0.0, 0.0]], vec![vec![0.0, f64::NEG_INFINITY]]);
    assert_eq!(kl_divergence(&some, &none), None);
    let found = kl_divergence(&none, &some).expect("finite");
    super::near(found, 2f64.ln(), 1e-15, "half of the other");
}
