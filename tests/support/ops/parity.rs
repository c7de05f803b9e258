//! Compares a device with the naive loops and with the oracle `Cpu<f64>`.

use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;

use super::cases::{self, Case};
use super::device;
use super::naive::{self, Precision};
use super::op::{Kind, Op};

/// A device's results may differ from the oracle by the plain path's error times this.
const FACTOR: f64 = 2.0;
/// Largest error of the oracle, relative to the tensor's largest element.
pub const ORACLE: f64 = 1e-12;

/// What products split into sums of bfloat16 are held to: the rms of a random one's error.
const SPLIT: f64 = 0.5 / (1 << 18) as f64;

/// A tensor's largest error against its limit.
#[derive(Debug)]
pub struct Deviation {
    /// The error.
    pub error: f64,
    /// What is allowed.
    pub limit: f64,
}

impl Deviation {
    /// Whether it is within.
    pub fn accepted(&self) -> bool {
        self.error <= self.limit
    }
}

/// The largest difference; infinite where only one is, or where a number is not.
fn largest_error(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(g, e)| if g == e { 0.0 } else { (g - e).abs() });
    errors.fold(0.0, |max: f64, error| if error.is_nan() { f64::INFINITY } else { max.max(error) })
}

fn magnitude(x: &[f64]) -> f64 {
    x.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()))
}

/// What even a lucky plain path is taken to be wrong by, where the largest element is `scale`: one rounding to the
/// tensor's own kind, or a few of the sums that lead to it, whose terms are held to `term`.
fn least(kind: Kind, p: Precision, scale: f64, term: f64) -> f64 {
    let own = if kind == Kind::Wide { p.wide } else { p.real };
    scale * unit(own).max(4.0 * term)
}

/// The error of `got` against what the plain path's error allows.
fn against_plain(got: &[f64], oracle: &[f64], plain: &[f64], least: f64) -> Deviation {
    Deviation { error: largest_error(got, oracle), limit: FACTOR * largest_error(plain, oracle).max(least) }
}

pub fn against_naive(got: &[f64], naive: &[f64], scale: f64) -> Deviation {
    Deviation { error: largest_error(got, naive), limit: ORACLE * scale }
}

/// Per result of a case what its errors are relative to: an output's largest element, and the largest of all gradients
/// (some are nothing but what is left when large terms cancel).
pub fn scales(op: &Op, results: &[Vec<f64>]) -> Vec<f64> {
    let outputs = op.outputs().len();
    let gradients = results[outputs..].iter().map(|x| magnitude(x)).fold(0.0, f64::max);
    let scale = |(i, x): (usize, &Vec<f64>)| if i < outputs { magnitude(x) } else { gradients };
    results.iter().enumerate().map(scale).collect()
}

/// `values` with the first finite element moved by `off`; none if there is none or nothing to compare with.
pub fn perturbed(values: &[f64], off: f64) -> Option<Vec<f64>> {
    let at = values.iter().position(|x| x.is_finite() && off > 0.0)?;
    let mut values = values.to_vec();
    values[at] += off;
    Some(values)
}

/// All outputs, then all gradients, with their names and kinds.
pub fn results<B: Backend>(b: &mut B, case: &Case) -> Vec<(String, Kind, Vec<f64>)> {
    let outputs = case.op.outputs().into_iter().zip(device::forward(b, &case.op, &case.inputs, 0.0));
    let mut all: Vec<_> = outputs.map(|((name, _, kind, _), x)| (name.to_string(), kind, x)).collect();
    let zeros: Vec<Vec<f64>> = case.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    let gradients = device::backward(b, &case.op, &case.inputs, &case.d_outputs, &zeros, false);
    for (i, gradient) in gradients.into_iter().enumerate() {
        if let Some(gradient) = gradient {
            all.push((format!("d_{}", case.op.inputs()[i].0), case.op.gradient_kind(i), gradient));
        }
    }
    all
}

/// The same of the naive loops.
pub fn naive_results(p: Precision, case: &Case) -> Vec<Vec<f64>> {
    let mut all = naive::forward(p, &case.op, &case.inputs);
    let gradients = naive::backward(p, &case.op, &case.inputs, &case.d_outputs).into_iter();
    all.extend(gradients.zip(case.op.gradients()).filter(|(_, has)| has.is_some()).map(|(gradient, _)| gradient));
    all
}

/// The case with its numbers rounded as a device of this precision holds them, so that the oracle works on the same.
fn rounded(mut case: Case, p: Precision) -> Case {
    let round = |kind| if kind == Kind::Wide { p.wide } else { p.real };
    for (values, array) in case.inputs.iter_mut().zip(case.op.inputs()) {
        values.iter_mut().for_each(|x| *x = round(array.2)(*x));
    }
    for (values, kind) in case.d_outputs.iter_mut().zip(case.op.output_gradients()) {
        values.iter_mut().for_each(|x| *x = round(kind.unwrap_or(Kind::Wide))(*x));
    }
    case
}

pub fn all_cases<B: Backend>(b: &mut B) -> Vec<Case> {
    let mut cases = cases::small(b);
    cases.extend(cases::large(b));
    cases
}

/// Half the distance between 1 and the next larger number.
fn unit(round: fn(f64) -> f64) -> f64 {
    (1..60).map(|bits| 0.5f64.powi(bits)).find(|&x| round(1.0 + x) == 1.0).unwrap()
}

/// Compares every case on `b` with the oracle, prints each error as a fraction of its limit, and tries each limit on
/// a perturbed result.
pub fn parity<B: Backend>(b: &mut B, p: Precision) {
    parity_of_products(b, p, |_| unit(p.wide));
}

/// The same on a device with tensor cores, which multiplies an adapter's factors as sums of two numbers of the compute
/// dtype.
pub fn parity_on_tensor_cores<B: Backend>(b: &mut B, p: Precision) {
    let factor = unit(p.real).powi(2).max(unit(p.wide));
    parity_of_products(b, p, |op| match op {
        Op::Lora { .. } | Op::LoraDelta { .. } => factor,
        _ => unit(p.wide),
    });
}

/// The same on a device that multiplies with weights as sums of two numbers of bfloat16.
pub fn parity_of_split_products<B: Backend>(b: &mut B, p: Precision) {
    parity_of_products(b, p, |op| match op {
        Op::Linear { .. } | Op::Logits { .. } | Op::CrossEntropy { .. } | Op::AttentionResult { .. } => SPLIT,
        _ => unit(p.wide),
    });
}

/// Parity with what each operation's products are held to.
fn parity_of_products<B: Backend>(b: &mut B, p: Precision, term: impl Fn(&Op) -> f64) {
    let mut oracle = Cpu::<f64>::new();
    let (wide_unit, real_unit) = (unit(p.wide), unit(p.real));
    // What must not pass: 16-bit sums stay short of it, and the plain path's sums of hundreds of 32-bit numbers too.
    let off = |term: f64| match real_unit == wide_unit {
        true => (256.0 * real_unit).max(32.0 * term),
        false => 32.0 * real_unit,
    };
    let mut failed = Vec::new();
    for case in all_cases(b) {
        let case = rounded(case, p);
        let plain = naive_results(p, &case);
        let exact = results(&mut oracle, &case);
        let exact: Vec<Vec<f64>> = exact.into_iter().map(|(_, _, x)| x).collect();
        let expected = plain.iter().zip(&exact).zip(scales(&case.op, &exact));
        for ((name, kind, got), ((plain, exact), scale)) in results(b, &case).into_iter().zip(expected) {
            let term = term(&case.op);
            let least = least(kind, p, scale, term);
            let deviation = against_plain(&got, exact, plain, least);
            let fraction = if deviation.error == 0.0 { 0.0 } else { deviation.error / deviation.limit };
            println!("{}: {} {name}: {fraction:.3} of {:.2e}", b.name(), case.name, deviation.limit);
            if !deviation.accepted() {
                failed.push(format!("{} {name}: {deviation:?} at {scale:.2e}", case.name));
            }
            if let Some(worse) = perturbed(exact, off(term) * scale) {
                let deviation = against_plain(&worse, exact, plain, least);
                assert!(!deviation.accepted(), "{} {name}: a result off by {:.1e} passes", case.name, off(term));
            }
        }
    }
    assert!(failed.is_empty(), "{}: beyond {FACTOR} times the plain path's error:\n{}", b.name(), failed.join("\n"));
}
