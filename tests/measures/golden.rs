//! Against `golden/measures.safetensors`, which numpy, SciPy and scikit-learn made.

use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::measures::readouts::{FinalNorm, Words, attributions, logit_lens, margins};
use llamaprobe::measures::{attention, compare, logistic_regression, lora_overlap, outputs};

use super::{named, with};
use crate::support::golden;

/// Largest differences allowed, three times what is measured: of a regression's weights (2.8e-13), of logits and margins
/// (5.3e-15), of overlaps and of measures of answers (3.3e-16).
const REGRESSION: f64 = 8e-13;
const READOUTS: f64 = 1.6e-14;
const OUTPUTS: f64 = 1e-15;
const WIDTH: usize = 48;

struct Golden(Checkpoint);

impl Golden {
    fn open() -> Self {
        Self(Checkpoint::open(golden("measures.safetensors")).expect("the golden file"))
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        self.0.get(name).expect("a tensor").to_f32().expect("f32")
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        self.0.get(name).expect("a tensor").as_slice::<f64>().expect("f64").to_vec()
    }

    fn ints(&self, name: &str) -> Vec<usize> {
        let tensor = self.0.get(name).expect("a tensor");
        tensor.as_slice::<i64>().expect("i64").iter().map(|&x| usize::try_from(x).expect("no label below 0")).collect()
    }

    /// The expected values of a case by name.
    fn expected(&self, case: &str) -> Vec<(String, f64)> {
        let prefix = format!("expected.{case}.");
        let names: Vec<&str> = self.0.names().filter(|name| name.starts_with(&prefix)).collect();
        assert!(!names.is_empty(), "{case}");
        names.iter().map(|name| (name[prefix.len()..].to_owned(), self.f64(name)[0])).collect()
    }

    /// The value of a case with one.
    fn one(&self, case: &str, name: &str) -> f64 {
        self.f64(&format!("expected.{case}.{name}"))[0]
    }

    fn states(&self) -> [Vec<f32>; 3] {
        ["a", "b", "anchor"].map(|name| self.f32(name))
    }

    fn answers(&self, name: &str) -> Vec<Vec<f64>> {
        self.f64(name).chunks_exact(4).map(<[f64]>::to_vec).collect()
    }
}

fn rows_of(x: &[f32], columns: usize) -> Vec<f32> {
    x.chunks_exact(WIDTH).flat_map(|row| row[..columns].to_vec()).collect()
}

/// The same of a measure of states: of small differences of large sums (1.0e-11), of dimensions, which are some tens
/// (6.3e-13), and of all others (4.4e-15).
fn states(name: &str) -> f64 {
    match name.rsplit(' ').next() {
        Some("cka_debiased") => 3e-11,
        Some("id_a" | "id_b") => 1.8e-12,
        _ => 1.3e-14,
    }
}

/// What is measured, and with which settings, with a mistake.
#[derive(Clone, Copy)]
struct Mistake {
    rows: fn(&mut [f32]),
    neighbours: usize,
    directions: usize,
}

const NONE: Mistake = Mistake { rows: |_| (), neighbours: 0, directions: 0 };

fn in_bf16(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
}

/// The difference of every measure of every case, up to a mistake.
fn state_errors(mistake: &Mistake) -> Vec<(String, f64)> {
    let golden = Golden::open();
    let [mut a, b, anchor] = golden.states();
    (mistake.rows)(&mut a);
    let with =
        |k: Option<usize>, subspace: usize| with(k.map(|k| k + mistake.neighbours), subspace + mistake.directions);
    let tall = [&a, &b, &anchor].map(|x| rows_of(x, 5));
    let repeated = [&a, &b].map(|x| {
        let mut rows: Vec<&[f32]> = x.chunks_exact(WIDTH).collect();
        [5, 9, 11].into_iter().for_each(|row| rows[row] = rows[2]);
        rows.concat()
    });
    let cases = [
        ("wide", compare(&a, &b, Some(&anchor), WIDTH, &with(None, 10))),
        ("alone", compare(&a, &b, None, WIDTH, &with(Some(10), 10))),
        ("tall", compare(&tall[0], &tall[1], Some(&tall[2]), 5, &with(None, 3))),
        ("given", compare(&a, &b, None, WIDTH, &with(Some(3), 4))),
        ("repeated", compare(&repeated[0], &repeated[1], None, WIDTH, &with(None, 10))),
    ];
    let mut errors = Vec::new();
    for (case, found) in cases {
        let found = named(&found);
        for (name, expected) in golden.expected(case) {
            let (_, value) = found.iter().find(|(known, _)| *known == name).expect("a measure of this name");
            let far = value.map_or(f64::INFINITY, |value| (value - expected).abs());
            errors.push((format!("{case} {name}"), far));
        }
    }
    errors
}

#[test]
fn state_measures_are_those_of_numpy_and_scikit_learn() {
    for (what, far) in state_errors(&NONE) {
        let limit = states(&what);
        println!("{what}: {far:.1e}, limit {limit:.1e}");
        assert!(far <= limit, "{what}: {far:.1e}");
    }
}

#[test]
fn state_limits_see_small_mistakes() {
    let seen = |mistake: &Mistake, what: &str, by: fn(&str) -> bool| {
        let errors = state_errors(mistake);
        let mut seen = 0;
        for (name, far) in errors.iter().filter(|(name, _)| by(name)) {
            assert!(*far > states(name), "{what} goes unseen by {name}: {far:.1e}");
            seen += 1;
        }
        assert!(seen > 0, "{what}: nothing is measured");
    };
    // Neighbours are counted, and rows of another state are the other's own.
    let moves = |name: &str| !name.contains("knn") && !name.ends_with("id_b");
    seen(&Mistake { rows: in_bf16, ..NONE }, "rows in bf16", moves);
    seen(&Mistake { neighbours: 1, ..NONE }, "a neighbour more", |name| name == "given knn_overlap");
    seen(&Mistake { directions: 1, ..NONE }, "a direction more", |name| name == "given subspace_overlap");
}

/// The differences of overlaps and of measures of answers, with `change` made in what the first of each pair is.
fn output_errors(change: fn(&mut [f32]), of_answers: fn(&mut Vec<Vec<f64>>)) -> Vec<(&'static str, f64)> {
    let golden = Golden::open();
    let mut first = golden.f32("lora.first");
    change(&mut first);
    let overlap = lora_overlap(&first, &golden.f32("lora.second"), WIDTH);
    let [mut a, b, anchor] = golden.states();
    change(&mut a);
    let each = attention::sim_aou(&anchor, &a, &b, WIDTH);
    let sim_aou = each.iter().sum::<f64>() / each.len() as f64;
    let (mut a, b) = (golden.answers("answers.a"), golden.answers("answers.b"));
    of_answers(&mut a);
    let likeliest: Vec<usize> = a.iter().map(|row| outputs::answer(row)).collect();
    let found = [
        ("lora", "overlap", overlap),
        ("attention", "sim_aou", Some(sim_aou)),
        ("outputs", "agreement", outputs::agreement(&a, &b)),
        ("outputs", "kl", outputs::kl_divergence(&a, &b)),
        ("outputs", "entropy", outputs::entropy(&a)),
        ("outputs", "calibration", outputs::calibration_error(&a, &likeliest, &golden.ints("gold"))),
    ];
    found.map(|(case, name, found)| (name, (found.expect("a value") - golden.one(case, name)).abs())).to_vec()
}

#[test]
fn overlaps_and_output_measures_are_those_of_numpy_and_scipy() {
    for (what, far) in output_errors(|_| (), |_| ()) {
        println!("{what}: {far:.1e}, limit {OUTPUTS:.0e}");
        assert!(far <= OUTPUTS, "{what}: {far:.1e}");
    }
}

#[test]
fn output_limits_see_small_mistakes() {
    let rounded = output_errors(in_bf16, |answers| {
        answers.iter_mut().flatten().for_each(|x| *x = f64::from(*x as f32));
    });
    let turned = output_errors(|_| (), |answers| answers.iter_mut().for_each(|row| row.rotate_left(1)));
    for ((what, in_f32), (_, turned)) in rounded.into_iter().zip(turned) {
        // Agreement counts answers, and overlaps are not of answers.
        assert!(what == "agreement" || in_f32 > OUTPUTS, "{what}: rounding goes unseen: {in_f32:.1e}");
        assert!(what != "agreement" || turned > OUTPUTS, "{what}: the next answer goes unseen: {turned:.1e}");
    }
}

/// The largest difference of a regression's weights and intercepts, with another strength of the penalty.
fn regression_error(golden: &Golden, name: &str, classes: usize, c: f64) -> f64 {
    let labels = golden.ints(&format!("{name}.labels"));
    let found = logistic_regression(&golden.f32("a"), WIDTH, &labels, classes, c).expect("every class has rows");
    let (weights, intercepts) = (golden.f64(&format!("{name}.weights")), golden.f64(&format!("{name}.intercepts")));
    assert_eq!(found.weights.len(), if classes == 2 { 1 } else { classes });
    let found = found.weights.iter().flatten().chain(&found.intercepts);
    let expected: Vec<f64> = weights.into_iter().chain(intercepts).collect();
    let found: Vec<f64> = found.copied().collect();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(&expected).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

#[test]
fn logistic_regression_is_scikit_learns() {
    let golden = Golden::open();
    for (name, classes) in [("binary", 2), ("multinomial", 4)] {
        let far = regression_error(&golden, name, classes, 1.0);
        println!("{name}: {far:.1e}, limit {REGRESSION:.0e}");
        assert!(far <= REGRESSION, "{name}: {far:.1e}");
        let other = regression_error(&golden, name, classes, 1.0 + 1e-9);
        assert!(other > REGRESSION, "{name}: another penalty goes unseen: {other:.1e}");
    }
}

/// The differences of logits, margins, attributions and their sums, up to a mistake in the final norm's weight and form.
fn readout_errors(change: fn(&mut [f32]), centred: bool) -> [f64; 4] {
    let golden = Golden::open();
    let (mut weight, inverse_scale) = (golden.f32("readout.weight"), golden.f64("readout.inverse"));
    change(&mut weight);
    let (words, gold) = (golden.f32("words"), golden.ints("gold"));
    let words = Words::Shared(&words);
    let terms = [golden.f32("readout.term0"), golden.f32("readout.term1")];
    // A LayerNorm of the sum of both terms, which f32 does not hold exactly.
    let norm = |query: usize, state: &[f64]| {
        let mean = if centred { state.iter().sum::<f64>() / WIDTH as f64 } else { 0.0 };
        let scaled = |(x, w): (&f64, &f32)| (x - mean) * inverse_scale[query] * f64::from(*w);
        state.iter().zip(&weight).map(scaled).collect::<Vec<f64>>()
    };
    let of_terms = terms.each_ref().map(|term| logit_lens(term, WIDTH, norm, words));
    let logits: Vec<Vec<f64>> =
        of_terms[0].iter().zip(&of_terms[1]).map(|(x, y)| x.iter().zip(y).map(|(x, y)| x + y).collect()).collect();
    let apart = |worst: &mut f64, found: f64, expected: f64| *worst = worst.max((found - expected).abs());
    let mut errors = [0.0; 4];
    for (found, expected) in logits.iter().flatten().zip(&golden.f64("readout.logits")) {
        apart(&mut errors[0], *found, *expected);
    }
    let final_norm = FinalNorm { weight: &weight, inverse_scale: &inverse_scale, centred };
    let each = terms.each_ref().map(|term| attributions(term, WIDTH, final_norm, words, &gold));
    let whole = golden.f64("readout.margins");
    for (query, margin) in margins(&logits, &gold).into_iter().enumerate() {
        apart(&mut errors[1], margin.expect("four labels"), whole[query]);
        for (term, name) in each.iter().zip(["readout.attributions0", "readout.attributions1"]) {
            apart(&mut errors[2], term[query].expect("four labels"), golden.f64(name)[query]);
        }
        apart(&mut errors[3], each.iter().filter_map(|term| term[query]).sum(), whole[query]);
    }
    errors
}

#[test]
fn readouts_are_those_of_numpy_and_add_up() {
    let errors = readout_errors(|_| (), true);
    println!("logits, margins, attributions, sums: {errors:?}, limit {READOUTS:.0e}");
    assert!(errors.iter().all(|far| *far <= READOUTS), "{errors:?}");
}

#[test]
fn readout_limits_see_small_mistakes() {
    for (mistake, errors) in
        [("weights in bf16", readout_errors(in_bf16, true)), ("no mean taken off", readout_errors(|_| (), false))]
    {
        assert!(errors.iter().all(|far| *far > READOUTS), "{mistake} goes unseen: {errors:?}");
    }
}
