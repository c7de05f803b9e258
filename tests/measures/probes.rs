//! Linear probes: cross-validation against fits by hand, and the controls.

use llamaprobe::measures::{Folds, ProbeFeatures, ProbeFit, linear_probe, logistic_regression, shuffled_labels};

use super::{near, noise};

const N: usize = 60;
const WIDTH: usize = 90;

/// Rows whose label is on some of their columns, `strength` strong.
fn planted(strength: f32, classes: usize) -> (Vec<f32>, Vec<usize>) {
    let labels: Vec<usize> = (0..N).map(|i| (i * 7) % classes).collect();
    let mut rows = noise(11, N, WIDTH);
    rows.chunks_exact_mut(WIDTH).zip(&labels).for_each(|(row, &label)| row[label] += strength);
    (rows, labels)
}

fn each() -> Vec<usize> {
    (0..N).collect()
}

#[test]
fn cross_validation_is_that_of_fits_by_hand() {
    for classes in [2, 3] {
        let (rows, labels) = planted(1.5, classes);
        for width in [WIDTH, 9] {
            // The narrow rows have more rows than columns.
            let rows: Vec<f32> = rows.chunks_exact(WIDTH).flat_map(|row| row[..width].to_vec()).collect();
            let folds = Folds::new(&labels, &each(), ProbeFit::default()).expect("enough queries");
            let row = |i: usize| &rows[i * width..(i + 1) * width];
            let mut right = 0;
            for fold in 0..5 {
                let (test, train): (Vec<usize>, Vec<usize>) = (0..N).partition(|&i| folds.of_rows()[i] == fold);
                assert_eq!(test.len(), N / 5);
                let x: Vec<f32> = train.iter().flat_map(|&i| row(i).to_vec()).collect();
                let y: Vec<usize> = train.iter().map(|&i| labels[i]).collect();
                let fit = logistic_regression(&x, width, &y, classes, 1.0).expect("every class");
                let score = |c: usize, i: usize| {
                    row(i).iter().zip(&fit.weights[c]).map(|(x, w)| f64::from(*x) * w).sum::<f64>() + fit.intercepts[c]
                };
                let class = |i: usize| match classes {
                    2 => usize::from(score(0, i) > 0.0),
                    _ => (0..classes).max_by(|&c, &d| score(c, i).total_cmp(&score(d, i))).expect("classes"),
                };
                right += test.iter().filter(|&&i| class(i) == labels[i]).count();
            }
            let found = ProbeFeatures::new(&rows, width).cross_validated(&labels, &folds, 1.0);
            assert_eq!(found, right as f64 / N as f64, "{classes} classes, width {width}");
        }
    }
}

#[test]
fn a_planted_label_is_found_and_controls_are_at_chance() {
    for classes in [2, 4] {
        let (rows, labels) = planted(6.0, classes);
        let found = linear_probe(&rows, WIDTH, &labels, &each(), ProbeFit::default()).expect("a probe");
        let chance = 1.0 / classes as f64;
        assert!(found.accuracy > 0.9, "{found:?}");
        near(found.shuffled_labels, chance, 0.25, "shuffled labels");
        near(found.random_features, chance, 0.25, "random features");
        let (rows, labels) = planted(0.0, classes);
        let found = linear_probe(&rows, WIDTH, &labels, &each(), ProbeFit::default()).expect("a probe");
        near(found.accuracy, chance, 0.25, "nothing planted");
    }
}

/// Three rows of each query, almost copies: a fold that splits a query has seen the answer.
#[test]
fn rows_of_a_query_stay_in_one_fold() {
    let queries: Vec<usize> = (0..N).map(|i| i / 3).collect();
    let labels: Vec<usize> = queries.iter().map(|q| (q * 5 % 7) % 2).collect();
    let rows: Vec<f32> = queries.iter().flat_map(|&q| noise(q as u64 + 50, 1, WIDTH)).collect();
    let fit = ProbeFit::default();
    let folds = Folds::new(&labels, &queries, fit).expect("enough queries");
    for rows in folds.of_rows().chunks_exact(3) {
        assert!(rows.iter().all(|fold| fold == &rows[0]));
    }
    let features = ProbeFeatures::new(&rows, WIDTH);
    let split = Folds::new(&labels, &each(), fit).expect("enough queries");
    assert!(features.cross_validated(&labels, &split, 1.0) > 0.95, "an answer that was seen");
    assert!(features.cross_validated(&labels, &folds, 1.0) < 0.85, "an answer that was not");
    let shuffled = shuffled_labels(&labels, &queries, 3);
    assert!(shuffled.chunks_exact(3).all(|labels| labels[0] == labels[1] && labels[1] == labels[2]));
    assert_eq!(shuffled.iter().sum::<usize>(), labels.iter().sum::<usize>());
    assert_ne!(shuffled, labels);
}

#[test]
fn folds_have_their_share_of_every_label() {
    let labels: Vec<usize> = (0..N).map(|i| usize::from(i >= 45)).collect();
    let folds = Folds::new(&labels, &each(), ProbeFit::default()).expect("enough queries");
    for fold in 0..5 {
        let of = |label: usize| (0..N).filter(|&i| folds.of_rows()[i] == fold && labels[i] == label).count();
        assert_eq!([of(0), of(1)], [9, 3]);
    }
    let other = Folds::new(&labels, &each(), ProbeFit { seed: 1, ..ProbeFit::default() }).expect("enough queries");
    assert_ne!(folds, other);
}

#[test]
fn probes_without_enough_rows_have_no_value() {
    let (rows, labels) = planted(1.0, 2);
    let of = |n: usize, labels: &[usize]| {
        let queries: Vec<usize> = (0..n).collect();
        linear_probe(&rows[..n * WIDTH], WIDTH, &labels[..n], &queries, ProbeFit::default())
    };
    assert!(of(4, &labels).is_none(), "fewer queries than folds");
    assert!(of(N, &[1; N]).is_none(), "one label");
    assert!(of(5, &labels).is_some());
    assert_eq!(logistic_regression(&rows, WIDTH, &[0; N], 2, 1.0), None, "a class without rows");
    // Equal rows tell nothing: the commoner label is all that a probe has.
    let equal = noise(1, 1, WIDTH).repeat(N);
    let mostly: Vec<usize> = (0..N).map(|i| usize::from(i % 4 == 0)).collect();
    let found = linear_probe(&equal, WIDTH, &mostly, &each(), ProbeFit::default()).expect("a probe");
    assert_eq!(found.accuracy, 0.75);
}
