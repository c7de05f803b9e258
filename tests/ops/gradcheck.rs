//! Every backward against differences of its forward, in 64-bit floats, and `=` against `+=` as documented.

use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;

use crate::ops::cases::{self, Case};
use crate::ops::op::Op;
use crate::ops::{device, normal};

/// Largest relative error of a gradient's element, beside a thousandth of that of the tensor's largest element.
const TOLERANCE: f64 = 1e-6;
/// Step of the differences; their error is of order `STEP^4`.
const STEP: f64 = 1e-3;

/// `sum(d_outputs * outputs)`, whose gradient the backward computes.
fn total<B: Backend<Element = f64>>(b: &mut B, case: &Case, inputs: &[Vec<f64>]) -> f64 {
    let outputs = device::forward(b, &case.op, inputs, 0.0);
    let weighed = case.op.output_gradients().into_iter().zip(outputs.iter().zip(&case.d_outputs));
    let weighed = weighed.filter(|(through, _)| through.is_some());
    weighed.map(|(_, (out, d_out))| out.iter().zip(d_out).map(|(x, d)| x * d).sum::<f64>()).sum()
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
    device::backward(b, &case.op, &case.inputs, &case.d_outputs, start, accumulate)
}

fn check<B: Backend<Element = f64>>(b: &mut B, case: &Case) {
    let zeros: Vec<Vec<f64>> = case.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    let filled: Vec<Vec<f64>> = case.inputs.iter().zip(900..).map(|(x, seed)| normal(seed, x.len())).collect();
    let clean = gradients(b, case, &zeros, false);
    let prefilled = gradients(b, case, &filled, false);
    let accumulated = gradients(b, case, &filled, true);
    for (i, adds) in case.op.gradients().into_iter().enumerate() {
        let name = format!("{}: gradient of {}", case.name, case.op.inputs()[i].0);
        let Some(adds) = adds else {
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
        if adds {
            assert!(close(second, &sums), "{name} must be added to what is there");
        } else {
            assert_eq!(second, gradient, "{name} must replace what is there");
        }
        // The one operation that can do either.
        if matches!((&case.op, i), (Op::Linear { .. }, 0)) {
            assert!(close(accumulated[i].as_ref().unwrap(), &sums), "{name} must be added if asked to");
        }
    }
}

fn check_all<B: Backend<Element = f64>>(b: &mut B) {
    let cases = cases::small(b);
    let checked: Vec<&Case> = cases.iter().filter(|case| case.op.has_backward()).collect();
    assert!(checked.len() > 20);
    checked.into_iter().for_each(|case| check(b, case));
}

#[test]
fn gradients_are_those_of_the_forward() {
    check_all(&mut Cpu::<f64>::new());
}

#[test]
fn outputs_replace_what_is_there() {
    let mut b = Cpu::<f64>::new();
    for case in cases::small(&mut b) {
        let clean = device::forward(&mut b, &case.op, &case.inputs, 0.0);
        assert_eq!(device::forward(&mut b, &case.op, &case.inputs, 77.0), clean, "{}", case.name);
    }
}

#[test]
fn a_gradient_off_by_little_is_found() {
    let mut b = Cpu::<f64>::new();
    for case in cases::small(&mut b).iter().filter(|case| case.op.has_backward()) {
        let zeros: Vec<Vec<f64>> = case.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
        for gradient in gradients(&mut b, case, &zeros, false).into_iter().flatten() {
            let largest = (0..gradient.len()).max_by(|&i, &j| gradient[i].abs().total_cmp(&gradient[j].abs()));
            let Some(largest) = largest.filter(|&i| gradient[i].abs() > 1e-3) else { continue };
            assert_eq!(wrong(&gradient, &gradient), None);
            let mut off = gradient.clone();
            off[largest] *= 1.0 + 3.0 * TOLERANCE;
            assert!(wrong(&off, &gradient).is_some(), "{}", case.name);
        }
    }
}
