//! Identity, null and a planted difference of every measure.

use llamaprobe::measures::{
    Pair, Settings, StateMeasures, States, attention, baselines, compare, lora_overlap, lora_overlap_expected, outputs,
    readouts, similarity,
};

use super::{named, near, noise, plus, with};

const N: usize = 60;
const WIDTH: usize = 96;

#[test]
fn measures_of_an_arm_and_itself_are_one() {
    let (a, anchor) = (noise(1, N, WIDTH), noise(2, N, WIDTH));
    for width in [WIDTH, 12] {
        let found = compare(&a, &a, Some(&anchor), width, &with(None, 10));
        assert_eq!(found.id_a, found.id_b);
        for (name, value) in named(&found).into_iter().filter(|(name, _)| !name.starts_with("id_")) {
            let value = value.unwrap_or_else(|| panic!("{name} has no value"));
            match name {
                // Their directions are orthonormal up to rounding.
                "svcca" | "subspace_overlap" => near(value, 1.0, 1e-12, name),
                // Every row's ratio is 1.
                _ => assert_eq!(value, 1.0, "{name} of width {width}"),
            }
        }
    }
}

/// Rotations, scales and offsets of the whole space: what each measure is blind to, and what it is not.
#[test]
fn measures_are_invariant_to_what_they_should_be() {
    let (a, b) = (noise(1, N, WIDTH), plus(&noise(1, N, WIDTH), 0.7, &noise(3, N, WIDTH)));
    let reference = compare(&a, &b, None, WIDTH, &with(None, 10));
    // A cyclic shift of the columns is a rotation; powers of two scale without rounding.
    let turned: Vec<f32> = b
        .chunks_exact(WIDTH)
        .flat_map(|row| row.iter().cycle().skip(5).take(WIDTH).map(|x| x * 4.0).collect::<Vec<_>>())
        .collect();
    let found = compare(&a, &turned, None, WIDTH, &with(None, 10));
    for (name, limit) in
        [("cka", 1e-12), ("cka_debiased", 1e-12), ("svcca", 1e-9), ("knn_overlap", 0.0), ("id_b", 1e-9)]
    {
        let of =
            |all: &StateMeasures| named(all).into_iter().find(|(n, _)| *n == name).and_then(|(_, v)| v).expect(name);
        near(of(&found), of(&reference), limit, name);
    }
    near(found.norm_ratio.expect("norms"), 4.0 * reference.norm_ratio.expect("norms"), 1e-12, "norm_ratio");
    assert!(found.cosine < Some(0.3) && reference.cosine > Some(0.7), "{found:?}");
    assert!(found.subspace_overlap.expect("directions") < reference.subspace_overlap.expect("directions") - 0.2);
}

#[test]
fn measures_of_unrelated_arms_are_at_their_baselines() {
    let (a, b) = (noise(1, N, WIDTH), noise(2, N, WIDTH));
    let anchor = vec![0.0; a.len()];
    let settings = Settings::default();
    let found = compare(&a, &b, Some(&anchor), WIDTH, &settings);
    let base = baselines(&a, &b, Some(&anchor), WIDTH, 0, &settings);
    let limits = [
        ("cosine", 0.05),
        ("update", 0.05),
        ("norm_ratio", 0.03),
        ("cka", 0.02),
        ("cka_debiased", 0.05),
        ("svcca", 0.02),
        ("knn_overlap", 0.06),
    ];
    let of = |all: &StateMeasures, name: &str| named(all).into_iter().find(|(n, _)| *n == name).and_then(|(_, v)| v);
    for (name, limit) in limits {
        near(of(&found, name).expect(name), of(&base.shuffled, name).expect(name), limit, name);
        if name != "norm_ratio" {
            near(of(&base.gaussian, name).expect(name), of(&base.shuffled, name).expect(name), limit, name);
        }
    }
    // Random subspaces of 10 directions have k / C of each other's squares.
    near(found.subspace_overlap.expect("directions"), 10.0 / WIDTH as f64, 0.03, "subspace_overlap");
    near(base.gaussian.subspace_overlap.expect("directions"), 10.0 / WIDTH as f64, 0.03, "subspace_overlap");
    assert_eq!((base.shuffled.subspace_overlap, base.shuffled.id_b, base.gaussian.norm_ratio), (None, None, None));
    near(base.gaussian.id_b.expect("a dimension"), found.id_b.expect("a dimension"), 10.0, "id_b");
}

/// The expectation of what is known in closed form, over every order of five rows.
#[test]
fn shuffled_baselines_are_means_over_all_orders() {
    let (n, width) = (5, 7);
    let (a, b, anchor) = (noise(1, n, width), noise(2, n, width), noise(3, n, width));
    let settings = with(Some(2), 2);
    let mut orders = vec![vec![]];
    for _ in 0..n {
        let longer = |order: &Vec<usize>| {
            let rest: Vec<usize> = (0..n).filter(|i| !order.contains(i)).collect();
            rest.into_iter().map(|i| [order.clone(), vec![i]].concat()).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    assert_eq!(orders.len(), 120);
    let rows = |x: &[f32], order: &[usize]| -> Vec<f32> {
        order.iter().flat_map(|&i| x[i * width..(i + 1) * width].to_vec()).collect()
    };
    let all: Vec<StateMeasures> =
        orders.iter().map(|order| compare(&a, &rows(&b, order), None, width, &settings)).collect();
    let base = baselines(&a, &b, Some(&anchor), width, 0, &settings).shuffled;
    let mean =
        |get: fn(&StateMeasures) -> Option<f64>| all.iter().map(|m| get(m).expect("a value")).sum::<f64>() / 120.0;
    near(base.cka.expect("cka"), mean(|m| m.cka), 1e-12, "cka");
    near(base.cka_debiased.expect("cka_debiased"), mean(|m| m.cka_debiased), 1e-12, "cka_debiased");
    near(base.knn_overlap.expect("knn"), mean(|m| m.knn_overlap), 1e-12, "knn_overlap");
    // Of each query's update beside those of the others: the mean over orders that leave no row in its place.
    let deranged: Vec<&Vec<usize>> =
        orders.iter().filter(|order| order.iter().enumerate().all(|(i, &j)| i != j)).collect();
    let moved = |get: fn(&StateMeasures) -> Option<f64>| {
        let of = |order: &&Vec<usize>| {
            // The update of another query, from this query's anchor.
            let updates = plus(&rows(&b, order), -1.0, &rows(&anchor, order));
            get(&compare(&a, &plus(&anchor, 1.0, &updates), Some(&anchor), width, &settings)).expect("a value")
        };
        deranged.iter().map(of).sum::<f64>() / deranged.len() as f64
    };
    near(base.update.expect("update"), moved(|m| m.update), 1e-6, "update");
    near(base.norm_ratio.expect("norm_ratio"), moved(|m| m.norm_ratio), 1e-6, "norm_ratio");
}

#[test]
fn planted_differences_are_seen() {
    let (a, independent, anchor) = (noise(1, N, WIDTH), noise(2, N, WIDTH), noise(3, N, WIDTH));
    let b = plus(&a, 0.5, &independent);
    let found = compare(&a, &b, Some(&anchor), WIDTH, &Settings::default());
    let base = baselines(&a, &b, Some(&anchor), WIDTH, 0, &Settings::default());
    for ((name, value), (_, null)) in named(&found).into_iter().zip(named(&base.shuffled)) {
        if let (Some(value), Some(null)) = (value, null)
            && name != "norm_ratio"
        {
            // SVCCA of few rows is high whatever the states.
            assert!(value > null + 0.02 && value < 0.999, "{name}: {value}, shuffled {null}");
        }
    }
    assert!(found.subspace_overlap > base.gaussian.subspace_overlap.map(|null| null + 0.2), "{found:?}");
    let twice = plus(&anchor, 2.0, &plus(&a, -1.0, &anchor));
    near(
        compare(&a, &twice, Some(&anchor), WIDTH, &Settings::default()).norm_ratio.expect("norms"),
        2.0,
        1e-5,
        "norms",
    );
}

/// Points in a plane, a line and a space of many dimensions.
#[test]
fn two_nn_sees_the_dimension() {
    let basis = noise(9, 8, WIDTH);
    let dimension = |d: usize| {
        let points = noise(4, 1000, d);
        let embed = |point: &[f32]| {
            let column = |j: usize| (0..d).map(|k| point[k] * basis[k * WIDTH + j]).sum::<f32>();
            (0..WIDTH).map(column).collect::<Vec<f32>>()
        };
        let rows: Vec<f32> = points.chunks_exact(d).flat_map(embed).collect();
        let settings = Settings { measures: vec![llamaprobe::measures::Measure::Id], ..Settings::default() };
        compare(&rows, &rows, None, WIDTH, &settings).id_a.expect("a dimension")
    };
    let found = [1, 2, 5].map(dimension);
    near(found[0], 1.0, 0.1, "a line");
    near(found[1], 2.0, 0.2, "a plane");
    near(found[2], 5.0, 0.6, "five dimensions");
}

#[test]
fn baselines_are_repeatable_and_follow_the_seed() {
    let (a, b) = (noise(1, N, 12), noise(2, N, 12));
    let of = |seed: u64| baselines(&a, &b, None, 12, 3, &Settings { seed, ..Settings::default() });
    assert_eq!(of(0), of(0));
    assert_ne!(of(0).shuffled.svcca, of(1).shuffled.svcca);
    assert_ne!(of(0).gaussian.cka, of(1).gaussian.cka);
    let settings = Settings::default();
    let (x, y) = (States::new(&a, 12, &settings), States::new(&b, 12, &settings));
    let pair = Pair::new(&x, &y, None, &settings);
    assert_eq!(pair.measures(), compare(&a, &b, None, 12, &settings), "shared work changes nothing");
    let noise = similarity::gaussian_rows(settings.seed, 3, N, 12);
    assert_eq!(pair.gaussian(&States::gaussian(&noise, 12, &settings), &noise), of(0).gaussian);
}

#[test]
fn lora_overlap_of_random_updates_is_its_expectation() {
    let (out, r) = (400, 8);
    let (x, y) = (noise(1, out, r), noise(2, out, 2 * r));
    near(lora_overlap(&x, &y, out).expect("updates"), lora_overlap_expected(r, 2 * r, out), 0.02, "unrelated");
    near(lora_overlap(&x, &x, out).expect("updates"), 1.0, 1e-12, "identity");
    // The first r columns of a wider factor: the smaller range lies in the greater.
    let wider: Vec<f32> =
        x.chunks_exact(r).zip(y.chunks_exact(2 * r)).flat_map(|(x, y)| [x, &y[..r]].concat()).collect();
    near(lora_overlap(&x, &wider, out).expect("updates"), 1.0, 1e-9, "nested");
    assert_eq!(lora_overlap(&x, &vec![0.0; out * r], out), None, "an update of nothing");
}

#[test]
fn attention_measures_at_identity_and_null() {
    let (zero, icl, tuned) = (noise(1, N, WIDTH), noise(2, N, WIDTH), noise(3, N, WIDTH));
    let mean = |all: Vec<f64>| all.iter().sum::<f64>() / all.len() as f64;
    assert_eq!(mean(attention::sim_aou(&zero, &icl, &icl, WIDTH)), 1.0);
    // Both updates have taken off the same zero-shot direction, which is half of each.
    near(mean(attention::sim_aou(&zero, &icl, &tuned, WIDTH)), 0.5, 0.05, "a shared zero-shot state");
    near(
        mean(attention::sim_aou_gaussian(&zero, &icl, WIDTH, &similarity::gaussian_rows(5, 0, N, WIDTH))),
        0.0,
        0.05,
        "SimAOU of noise",
    );
    assert!(attention::sim_aou(&zero, &zero, &tuned, WIDTH).iter().all(|&x| x == 0.0), "nothing moved");
    let scores: Vec<Vec<f32>> = (1..20).map(|n| noise(n, 1, n as usize)).collect();
    let others: Vec<Vec<f32>> = (1..20).map(|n| noise(n + 100, 1, n as usize)).collect();
    near(attention::sim_am(&scores, &scores).expect("items"), 1.0, 1e-15, "identity");
    assert!(attention::sim_am(&scores, &others).expect("items").abs() < 0.5);
    assert_eq!(attention::sim_am::<Vec<f32>>(&[], &[]), None);
    let [t, f] = [true, false];
    let found = attention::rec2ftp(&[f, f, f, t, f], &[t, f, t, t, t], &[t, t, t, t, f]);
    near(found.expect("learned queries"), 200.0 / 3.0, 1e-12, "two of three");
    assert_eq!(attention::rec2ftp(&[t, f], &[t, t], &[t, f]), None, "nothing was learned");
    assert_eq!(attention::rec2ftp_shuffled(&[t, f, t, t]), Some(75.0));
}

#[test]
fn output_measures_at_identity_and_null() {
    let rows: Vec<Vec<f64>> = (0..200).map(|i| similarity::gaussian(1, 0, i, 3)).collect();
    let others: Vec<Vec<f64>> = (0..200).map(|i| similarity::gaussian(2, 0, i, 3)).collect();
    assert_eq!(outputs::agreement(&rows, &rows), Some(1.0));
    assert_eq!(outputs::kl_divergence(&rows, &rows), Some(0.0));
    let found = outputs::agreement(&rows, &others).expect("queries");
    near(found, outputs::agreement_shuffled(&rows, &others).expect("queries"), 0.1, "agreement");
    let found = outputs::kl_divergence(&rows, &others).expect("queries");
    near(found, outputs::kl_divergence_shuffled(&rows, &others).expect("queries"), 0.15, "KL");
    let flat = vec![vec![-2.5; 4]; 8];
    near(outputs::entropy(&flat).expect("queries"), 4f64.ln(), 1e-12, "a guess");
    // Sure and right: no error; sure and wrong: all of it; a guess of four labels of which one is right: none.
    let sure = vec![vec![0.0, -60.0]; 4];
    near(outputs::calibration_error(&sure, &[0; 4], &[0; 4]).expect("queries"), 0.0, 1e-12, "sure and right");
    near(outputs::calibration_error(&sure, &[0; 4], &[1; 4]).expect("queries"), 1.0, 1e-12, "sure and wrong");
    // An answer that is not the likeliest, since lengths count, is as sure as it is likely.
    near(outputs::calibration_error(&sure, &[1; 4], &[1; 4]).expect("queries"), 1.0, 1e-12, "unlikely and right");
    let guess = outputs::calibration_error(&flat, &[0; 8], &[0, 1, 2, 3, 0, 1, 2, 3]);
    near(guess.expect("queries"), 0.0, 1e-12, "a guess");
    let logits: Vec<Vec<f64>> = (0..4).map(|i| (0..4).map(|j| if i == j { 3.0 } else { 1.0 }).collect()).collect();
    assert_eq!(readouts::margins(&logits, &[0, 1, 2, 3]), vec![Some(2.0); 4]);
    near(readouts::margins_shuffled(&logits, &[0, 1, 2, 3]).expect("queries"), -2.0 / 3.0, 1e-12, "other labels");
}
