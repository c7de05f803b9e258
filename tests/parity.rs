//! Every operation of every device against the naive loops, and against the oracle `Cpu<f64>`.
//!
//! A device of lower precision may be wrong by twice what the plain loops of its precision are wrong by, both against
//! the oracle on the same rounded inputs. A new device takes one line: its own `#[test]`.

#[path = "support/ops/mod.rs"]
mod ops;

use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, Isa};
use llamaprobe::backend::trace::Trace;
use ops::cases::{self, Case};
use ops::naive::{self, Precision};
use ops::op::{Kind, Op};
use ops::{device, normal};

/// A device's results may differ from the oracle by the plain path's error times this.
const FACTOR: f64 = 2.0;
/// Largest error of the oracle, relative to the tensor's largest element.
const ORACLE: f64 = 1e-12;

/// A tensor's largest error against its limit.
#[derive(Debug)]
struct Deviation {
    error: f64,
    limit: f64,
}

impl Deviation {
    fn accepted(&self) -> bool {
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
/// tensor's own kind, or a few of the wide sums that lead to it.
fn least(kind: Kind, p: Precision, scale: f64) -> f64 {
    let own = if kind == Kind::Wide { p.wide } else { p.real };
    scale * unit(own).max(4.0 * unit(p.wide))
}

/// The error of `got` against what the plain path's error allows.
fn against_plain(got: &[f64], oracle: &[f64], plain: &[f64], least: f64) -> Deviation {
    Deviation { error: largest_error(got, oracle), limit: FACTOR * largest_error(plain, oracle).max(least) }
}

fn against_naive(got: &[f64], naive: &[f64], scale: f64) -> Deviation {
    Deviation { error: largest_error(got, naive), limit: ORACLE * scale }
}

/// Per result of a case what its errors are relative to: an output's largest element, and the largest of all gradients
/// (some are nothing but what is left when large terms cancel).
fn scales(op: &Op, results: &[Vec<f64>]) -> Vec<f64> {
    let outputs = op.outputs().len();
    let gradients = results[outputs..].iter().map(|x| magnitude(x)).fold(0.0, f64::max);
    let scale = |(i, x): (usize, &Vec<f64>)| if i < outputs { magnitude(x) } else { gradients };
    results.iter().enumerate().map(scale).collect()
}

/// `values` with the first finite element moved by `off`; none if there is none or nothing to compare with.
fn perturbed(values: &[f64], off: f64) -> Option<Vec<f64>> {
    let at = values.iter().position(|x| x.is_finite() && off > 0.0)?;
    let mut values = values.to_vec();
    values[at] += off;
    Some(values)
}

/// All outputs, then all gradients, with their names and kinds.
fn results<B: Backend>(b: &mut B, case: &Case) -> Vec<(String, Kind, Vec<f64>)> {
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
fn naive_results(p: Precision, case: &Case) -> Vec<Vec<f64>> {
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

fn all_cases<B: Backend>(b: &mut B) -> Vec<Case> {
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
fn parity<B: Backend>(b: &mut B, p: Precision) {
    let mut oracle = Cpu::<f64>::new();
    let (wide_unit, real_unit) = (unit(p.wide), unit(p.real));
    // What must not pass: 16-bit sums stay short of it, and the plain path's sums of hundreds of 32-bit numbers too.
    let off = real_unit * if real_unit == wide_unit { 256.0 } else { 32.0 };
    let mut failed = Vec::new();
    for case in all_cases(b) {
        let case = rounded(case, p);
        let plain = naive_results(p, &case);
        let exact = results(&mut oracle, &case);
        let exact: Vec<Vec<f64>> = exact.into_iter().map(|(_, _, x)| x).collect();
        let expected = plain.iter().zip(&exact).zip(scales(&case.op, &exact));
        for ((name, kind, got), ((plain, exact), scale)) in results(b, &case).into_iter().zip(expected) {
            let least = least(kind, p, scale);
            let deviation = against_plain(&got, exact, plain, least);
            let fraction = if deviation.error == 0.0 { 0.0 } else { deviation.error / deviation.limit };
            println!("{}: {} {name}: {fraction:.3} of {:.2e}", b.name(), case.name, deviation.limit);
            if !deviation.accepted() {
                failed.push(format!("{} {name}: {deviation:?} at {scale:.2e}", case.name));
            }
            if let Some(worse) = perturbed(exact, off * scale) {
                let deviation = against_plain(&worse, exact, plain, least);
                assert!(!deviation.accepted(), "{} {name}: a result off by {off:.1e} passes", case.name);
            }
        }
    }
    assert!(failed.is_empty(), "{}: beyond {FACTOR} times the plain path's error:\n{}", b.name(), failed.join("\n"));
}

#[test]
fn cpu_f32() {
    Isa::available().iter().for_each(|&isa| parity(&mut Cpu::<f32>::with_isa(isa), Precision::F32));
}

#[test]
fn cpu_bf16() {
    Isa::available().iter().for_each(|&isa| parity(&mut Cpu::<f32, half::bf16>::with_isa(isa), Precision::BF16));
}

#[test]
fn cpu_f16() {
    Isa::available().iter().for_each(|&isa| parity(&mut Cpu::<f32, half::f16>::with_isa(isa), Precision::F16));
}

#[test]
fn the_oracle_is_the_naive_loops() {
    let mut b = Cpu::<f64>::new();
    let mut failed = Vec::new();
    for case in all_cases(&mut b) {
        let naive = naive_results(Precision::F64, &case);
        let expected = naive.iter().zip(scales(&case.op, &naive));
        for ((name, _, got), (naive, scale)) in results(&mut b, &case).into_iter().zip(expected) {
            let deviation = against_naive(&got, naive, scale);
            if !deviation.accepted() {
                failed.push(format!("{} {name}: {deviation:?}", case.name));
            }
            if let Some(worse) = perturbed(naive, 10.0 * ORACLE * scale) {
                assert!(!against_naive(&worse, naive, scale).accepted(), "{} {name}", case.name);
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_naive_backward_is_that_of_the_naive_forward() {
    const STEP: f64 = 1e-3;
    for case in cases::small(&mut Trace::new()) {
        let total = |inputs: &[Vec<f64>]| -> f64 {
            let outputs = naive::forward(Precision::F64, &case.op, inputs);
            let through = case.op.output_gradients().into_iter().zip(outputs.iter().zip(&case.d_outputs));
            through.filter(|t| t.0.is_some()).flat_map(|t| t.1.0.iter().zip(t.1.1)).map(|(x, d)| x * d).sum()
        };
        // One direction in all inputs that have gradients at once.
        let direction: Vec<Vec<f64>> = case.inputs.iter().zip(700..).map(|(x, seed)| normal(seed, x.len())).collect();
        let moves: Vec<bool> = case.op.gradients().iter().map(Option::is_some).collect();
        let at = |by: f64| -> f64 {
            let mut inputs = case.inputs.clone();
            for ((x, d), _) in inputs.iter_mut().zip(&direction).zip(&moves).filter(|(_, moves)| **moves) {
                x.iter_mut().zip(d).for_each(|(x, d)| *x += by * d);
            }
            total(&inputs)
        };
        let difference = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP);
        let gradients = naive::backward(Precision::F64, &case.op, &case.inputs, &case.d_outputs);
        let along = gradients.iter().zip(&direction).zip(&moves).filter(|(_, moves)| **moves);
        let slope: f64 = along.flat_map(|((g, d), _)| g.iter().zip(d)).map(|(g, d)| g * d).sum();
        assert!((slope - difference).abs() <= 1e-7 * (1.0 + slope.abs()), "{}: {slope}, {difference}", case.name);
    }
}

#[test]
fn the_null_device_accepts_every_case() {
    let mut trace = Trace::new();
    let cases = all_cases(&mut trace);
    trace.clear();
    for case in &cases {
        let zeros: Vec<Vec<f64>> = case.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
        device::forward(&mut trace, &case.op, &case.inputs, 0.0);
        device::backward(&mut trace, &case.op, &case.inputs, &case.d_outputs, &zeros, false);
    }
    for op in OPS {
        assert!(trace.ops().contains(&op), "no case of {op}");
    }
}

#[test]
fn dropout_is_the_same_decision_on_every_device() {
    let mut oracle = Cpu::<f64>::new();
    let decisions = |cases: Vec<Case>| -> Vec<Vec<bool>> {
        let drops = cases.into_iter().filter_map(|case| match case.op {
            Op::Lora { drop: Some(drop), .. } => Some(drop.kept),
            _ => None,
        });
        drops.collect()
    };
    let expected = decisions(all_cases(&mut oracle));
    assert_eq!(decisions(all_cases(&mut Cpu::<f32>::new())), expected);
    assert_eq!(decisions(all_cases(&mut Cpu::<f32, half::bf16>::new())), expected);
}

/// The operations of the contract.
const OPS: [&str; 33] = [
    "cast",
    "residual_fwd",
    "gather_real",
    "gather_wide",
    "scatter_add",
    "embed_fwd",
    "embed_bwd_prompt",
    "embed_bwd_table",
    "rms_norm_fwd",
    "rms_norm_bwd",
    "rms_norm_bwd_weight",
    "rope_fwd",
    "rope_bwd",
    "attention_fwd",
    "attention_bwd",
    "attention_pattern",
    "attention_result",
    "keep",
    "linear_fwd",
    "linear_bwd_input",
    "linear_bwd_weight",
    "linear_bwd_bias",
    "lora_fwd",
    "lora_bwd",
    "lora_delta",
    "swiglu_fwd",
    "swiglu_bwd",
    "logits_fwd",
    "cross_entropy_fwd",
    "cross_entropy_bwd",
    "grad_norm",
    "adamw",
    "refresh_weight",
];
