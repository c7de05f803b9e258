//! Every backward against differences of its forward, in 64-bit floats, and `=` against `+=` as documented.

use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;

use crate::ops::cases::{Case, Set};
use crate::ops::device::{self, Given};
use crate::ops::operation::Operation;
use crate::ops::{self, Op, normal};

/// Largest relative error of a gradient's element, beside a thousandth of that of the tensor's largest element.
const TOLERANCE: f64 = 1e-6;
/// Step of the differences; their error is of order `STEP^4`.
const STEP: f64 = 1e-3;

/// `sum(d_outputs * outputs)`, whose gradient the backward computes.
fn total<B: Backend<Element = f64>>(b: &mut B, case: &Case, inputs: &[Vec<f64>]) -> f64 {
    let outputs = device::forward(b, &case.op, inputs, 0.0);
    let through = case.op.outputs().into_iter().zip(outputs.iter().zip(&case.d_outputs));
    let through = through.filter(|(output, _)| output.gradient.is_some());
    through.map(|(_, (out, d_out))| out.iter().zip(d_out).map(|(x, d)| x * d).sum::<f64>()).sum()
}

/// The derivative of [`total`] by element `at` of input `i`, from four points.
fn difference<B: Backend<Element = f64>>(b: &mut B, case: &Case, i: usize, at: usize) -> f64 {
    let mut inputs = case.inputs.clone();
    let mut moved = |by: f64| {
        inputs[i][at] = case.inputs[i][at] + by;
        total(b, case, &inputs)
    };
    (8.0 * (moved(STEP) - moved(-STEP)) - (moved(2.0 * STEP) - moved(-2.0 * STEP))) / (12.0 * STEP)
}

/// The first element of `gradient` that is farther from `expected` than allowed.
fn wrong(gradient: &[f64], expected: &[f64]) -> Option<String> {
    let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let limit = |x: f64| TOLERANCE * (x.abs() + 1e-3 * largest) + 1e-12;
    let found = gradient.iter().zip(expected).position(|(g, x)| (g - x).abs() > limit(*x) || g.is_nan());
    found.map(|i| format!("element {i}: {}, differences say {}", gradient[i], expected[i]))
}

/// The gradients with buffers that hold `start` before.
fn gradients<B: Backend<Element = f64>>(
    b: &mut B,
    case: &Case,
    start: &[Vec<f64>],
    accumulate: bool,
) -> Vec<Option<Vec<f64>>> {
    let given = Given { inputs: &case.inputs, d_outputs: &case.d_outputs, start, accumulate };
    device::backward(b, &case.op, &given)
}

fn check<B: Backend<Element = f64>>(b: &mut B, case: &Case) {
    let filled: Vec<Vec<f64>> = case.inputs.iter().zip(900..).map(|(x, seed)| normal(seed, x.len())).collect();
    let clean = gradients(b, case, &case.zeros(), false);
    let prefilled = gradients(b, case, &filled, false);
    let accumulated = gradients(b, case, &filled, true);
    for (i, input) in case.op.inputs().into_iter().enumerate() {
        let name = format!("{}: gradient of {}", case.name, input.name);
        let Some(contract) = input.gradient else {
            assert!(clean[i].is_none(), "{name} is not in the contract");
            continue;
        };
        let gradient = clean[i].as_ref().unwrap();
        let expected: Vec<f64> = (0..gradient.len()).map(|at| difference(b, case, i, at)).collect();
        if let Some(wrong) = wrong(gradient, &expected) {
            panic!("{name}, {wrong}");
        }
        let sums: Vec<f64> = filled[i].iter().zip(gradient).map(|(start, g)| start + g).collect();
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-13 * (1.0 + b.abs()));
        let second = prefilled[i].as_ref().unwrap();
        if contract.added {
            assert!(close(second, &sums), "{name} must be added to what is there");
        } else {
            assert_eq!(second, gradient, "{name} must replace what is there");
        }
        // The one operation that can do either.
        if matches!((&case.op, i), (Op::Linear(_) | Op::LinearQuantized(_), 0)) {
            assert!(close(accumulated[i].as_ref().unwrap(), &sums), "{name} must be added if asked to");
        }
    }
}

fn with_backward<B: Backend>(b: &mut B, file: &str) -> Vec<Case> {
    let cases = ops::cases(b, file, Set::Small).into_iter();
    cases.filter(|case| case.op.has_backward()).collect()
}

fn gradients_of_file(file: &str) {
    let mut b = Cpu::oracle();
    // Nothing is learnt by the optimiser's own steps.
    let cases = with_backward(&mut b, file);
    assert!(!cases.is_empty() || file == "adamw", "{file}: no backward");
    cases.iter().for_each(|case| check(&mut b, case));
}

fn outputs_of_file(file: &str) {
    let mut b = Cpu::oracle();
    for case in ops::cases(&mut b, file, Set::Small) {
        let clean = device::forward(&mut b, &case.op, &case.inputs, 0.0);
        assert_eq!(device::forward(&mut b, &case.op, &case.inputs, 77.0), clean, "{}", case.name);
    }
}

fn errors_of_file(file: &str) {
    let mut b = Cpu::oracle();
    for case in with_backward(&mut b, file) {
        for gradient in gradients(&mut b, &case, &case.zeros(), false).into_iter().flatten() {
            let largest = (0..gradient.len()).max_by(|&i, &j| gradient[i].abs().total_cmp(&gradient[j].abs()));
            let Some(largest) = largest.filter(|&i| gradient[i].abs() > 1e-3) else { continue };
            assert_eq!(wrong(&gradient, &gradient), None);
            let mut off = gradient.clone();
            off[largest] *= 1.0 + 3.0 * TOLERANCE;
            assert!(wrong(&off, &gradient).is_some(), "{}", case.name);
        }
    }
}

with_operations! { tests_per_file {
    gradients_are_those_of_the_forward => gradients_of_file;
    outputs_replace_what_is_there => outputs_of_file;
    a_gradient_off_by_little_is_found => errors_of_file;
} }
