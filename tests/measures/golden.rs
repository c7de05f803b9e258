//! Against `golden/measures.safetensors`, which numpy, SciPy and scikit-learn made.

use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::measures::readouts::{FinalNorm, Words, attributions, logit_lens, margins};
use llamaprobe::measures::{attention, compare, logistic_regression, lora_overlap, outputs};

use super::{named, near, with};
use crate::support::golden;

const LIMIT: f64 = 1e-6;
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

#[test]
fn state_measures_are_those_of_numpy_and_scikit_learn() {
    let golden = Golden::open();
    let [a, b, anchor] = golden.states();
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
    for (case, found) in cases {
        let found = named(&found);
        for (name, expected) in golden.expected(case) {
            let (_, value) = found.iter().find(|(known, _)| *known == name).expect("a measure of this name");
            near(value.unwrap_or(f64::NAN), expected, LIMIT, &format!("{case} {name}"));
        }
    }
}

#[test]
fn lora_overlap_is_that_of_singular_vectors() {
    let golden = Golden::open();
    let found = lora_overlap(&golden.f32("lora.first"), &golden.f32("lora.second"), WIDTH).expect("two updates");
    near(found, golden.one("lora", "overlap"), LIMIT, "overlap");
}

#[test]
fn sim_aou_is_that_of_numpy() {
    let golden = Golden::open();
    let [a, b, anchor] = golden.states();
    let found = attention::sim_aou(&anchor, &a, &b, WIDTH);
    near(found.iter().sum::<f64>() / found.len() as f64, golden.one("attention", "sim_aou"), LIMIT, "SimAOU");
}

#[test]
fn output_measures_are_those_of_numpy_and_scipy() {
    let golden = Golden::open();
    let (a, b) = (golden.answers("answers.a"), golden.answers("answers.b"));
    for (name, found) in [
        ("agreement", outputs::agreement(&a, &b)),
        ("kl", outputs::kl_divergence(&a, &b)),
        ("entropy", outputs::entropy(&a)),
        ("calibration", outputs::calibration_error(&a, &golden.ints("gold"))),
    ] {
        near(found.expect("a value"), golden.one("outputs", name), 1e-12, name);
    }
}

#[test]
fn logistic_regression_is_scikit_learns() {
    let golden = Golden::open();
    let a = golden.f32("a");
    for (name, classes) in [("binary", 2), ("multinomial", 4)] {
        let labels = golden.ints(&format!("{name}.labels"));
        let found = logistic_regression(&a, WIDTH, &labels, classes, 1.0).expect("every class has rows");
        let weights = golden.f64(&format!("{name}.weights"));
        assert_eq!(found.weights.len(), if classes == 2 { 1 } else { classes });
        for (found, expected) in found.weights.iter().flatten().zip(&weights) {
            near(*found, *expected, LIMIT, name);
        }
        for (found, expected) in found.intercepts.iter().zip(golden.f64(&format!("{name}.intercepts"))) {
            near(*found, expected, LIMIT, &format!("{name} intercept"));
        }
    }
}

#[test]
fn readouts_are_those_of_numpy_and_add_up() {
    let golden = Golden::open();
    let (weight, inverse_scale) = (golden.f32("readout.weight"), golden.f64("readout.inverse"));
    let (words, gold) = (golden.f32("words"), golden.ints("gold"));
    let words = Words::Shared(&words);
    let terms = [golden.f32("readout.term0"), golden.f32("readout.term1")];
    // A LayerNorm of the sum of both terms, which f32 does not hold exactly.
    let norm = |query: usize, state: &[f64]| {
        let mean = state.iter().sum::<f64>() / WIDTH as f64;
        let scaled = |(x, w): (&f64, &f32)| (x - mean) * inverse_scale[query] * f64::from(*w);
        state.iter().zip(&weight).map(scaled).collect::<Vec<f64>>()
    };
    let of_terms = terms.each_ref().map(|term| logit_lens(term, WIDTH, norm, words));
    let expected = golden.f64("readout.logits");
    let logits: Vec<Vec<f64>> =
        of_terms[0].iter().zip(&of_terms[1]).map(|(x, y)| x.iter().zip(y).map(|(x, y)| x + y).collect()).collect();
    for (found, expected) in logits.iter().flatten().zip(&expected) {
        near(*found, *expected, LIMIT, "logit");
    }
    let final_norm = FinalNorm { weight: &weight, inverse_scale: &inverse_scale, centred: true };
    let each = terms.each_ref().map(|term| attributions(term, WIDTH, final_norm, words, &gold));
    let whole = golden.f64("readout.margins");
    for (query, margin) in margins(&logits, &gold).into_iter().enumerate() {
        near(margin.expect("four labels"), whole[query], LIMIT, "margin");
        for (term, name) in each.iter().zip(["readout.attributions0", "readout.attributions1"]) {
            near(term[query].expect("four labels"), golden.f64(name)[query], LIMIT, name);
        }
        let sum: f64 = each.iter().filter_map(|term| term[query]).sum();
        near(sum, whole[query], LIMIT, "the sum of the attributions");
    }
}
