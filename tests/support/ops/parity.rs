//! Compares a device with the naive loops and with the oracle, a device of f64.

use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;

use super::attention::Attention;
use super::cases::{Case, Set};
use super::device::{self, Given};
use super::naive::{self, Precision};
use super::operation::{Factors, Operation, Role};
use super::rms_norm::{FORMS, RmsNorm, RmsNormCompute};
use super::{Op, cases, packs};

/// A device's results may differ from the oracle by the plain path's error times this.
const FACTOR: f64 = 2.0;
/// Largest error of the oracle, relative to the tensor's largest element.
pub const ORACLE: f64 = 1e-12;

/// What products split into sums of bfloat16 are held to: the rms of a random one's error.
const SPLIT: f64 = 0.5 / (1 << 18) as f64;

/// A tensor's largest error against its limit.
#[derive(Debug)]
pub struct Deviation {
    pub error: f64,
    /// The largest error allowed.
    pub limit: f64,
}

impl Deviation {
    /// Whether it is within.
    pub fn accepted(&self) -> bool {
        self.error <= self.limit
    }
}

/// The largest difference; infinite where only one is, or where a number is not.
pub fn largest_error(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(g, e)| if g == e { 0.0 } else { (g - e).abs() });
    errors.fold(0.0, |max: f64, error| if error.is_nan() { f64::INFINITY } else { max.max(error) })
}

fn magnitude(x: &[f64]) -> f64 {
    x.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()))
}

/// What even a lucky plain path is taken to be wrong by, where the largest element is `scale`: one rounding to the
/// tensor's own dtype, or a few of the sums that lead to it, whose terms are held to `term`.
fn least(role: Role, p: Precision, scale: f64, term: f64) -> f64 {
    scale * unit(p.of_role(role)).max(4.0 * term)
}

/// The error of `got` against what the plain path's error allows; `least` is as if the plain path's error.
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

/// The names and roles of a case's results: all outputs, then all gradients.
pub fn result_roles(op: &Op) -> Vec<(String, Role)> {
    let outputs = op.outputs().into_iter().map(|output| (output.name.to_string(), output.role));
    let gradient = |input: super::operation::Array| Some((format!("d_{}", input.name), input.gradient?.role));
    outputs.chain(op.inputs().into_iter().filter_map(gradient)).collect()
}

/// All outputs, then all gradients.
pub fn results<B: Backend>(b: &mut B, case: &Case) -> Vec<Vec<f64>> {
    let mut all = device::forward(b, &case.op, &case.inputs, 0.0);
    let given = Given { inputs: &case.inputs, d_outputs: &case.d_outputs, start: &case.zeros(), accumulate: false };
    all.extend(device::backward(b, &case.op, &given).into_iter().flatten());
    all
}

/// The same of the naive loops.
pub fn naive_results(p: Precision, case: &Case) -> Vec<Vec<f64>> {
    let mut all = case.op.naive_forward(p, &case.inputs);
    let gradients = naive::backward(p, &case.op, &case.inputs, &case.d_outputs).into_iter();
    let has = case.op.inputs().into_iter().map(|input| input.gradient.is_some());
    all.extend(gradients.zip(has).filter(|(_, has)| *has).map(|(gradient, _)| gradient));
    all
}

/// The case with its numbers rounded as a device of this precision holds them, so that the oracle works on the same.
pub fn rounded(mut case: Case, p: Precision) -> Case {
    for (values, array) in case.inputs.iter_mut().zip(case.op.inputs()) {
        values.iter_mut().for_each(|x| *x = p.of_role(array.role)(*x));
    }
    for (values, array) in case.d_outputs.iter_mut().zip(case.op.outputs()) {
        let role = array.gradient.map_or(Role::Acc, |gradient| gradient.role);
        values.iter_mut().for_each(|x| *x = p.of_role(role)(*x));
    }
    case
}

/// The small and the large cases of a file.
pub fn cases_of<B: Backend>(b: &mut B, file: &str) -> Vec<Case> {
    let mut all = cases(b, file, Set::Small);
    all.extend(cases(b, file, Set::Large));
    all
}

/// Half the distance between 1 and the next larger number.
fn unit(round: fn(f64) -> f64) -> f64 {
    (1..60).map(|bits| 0.5f64.powi(bits)).find(|&x| round(1.0 + x) == 1.0).unwrap()
}

/// What must come out of a case: the oracle's results, and how far the plain path is from them.
pub struct Expected {
    pub case: Case,
    pub exact: Vec<Vec<f64>>,
    plain: Vec<Vec<f64>>,
    roles: Vec<(String, Role)>,
    scales: Vec<f64>,
    precision: Precision,
}

impl Expected {
    /// Of a case whose inputs are [`rounded`].
    pub fn new<O: Backend>(oracle: &mut O, case: Case, precision: Precision) -> Self {
        let exact = results(oracle, &case);
        let plain = naive_results(precision, &case);
        let (roles, scales) = (result_roles(&case.op), scales(&case.op, &exact));
        Self { case, exact, plain, roles, scales, precision }
    }

    /// The name of a result.
    pub fn name(&self, result: usize) -> String {
        format!("{} {}", self.case.name, self.roles[result].0)
    }

    /// The error of a result, whose elements may be `start` larger than they are, where the terms of sums are held to
    /// `term`.
    pub fn deviation(&self, result: usize, got: &[f64], start: f64, term: f64) -> Deviation {
        let least = least(self.roles[result].1, self.precision, self.scales[result] + start, term);
        against_plain(got, &self.exact[result], &self.plain[result], least)
    }

    /// The rounding of a sum.
    pub fn sum_unit(&self) -> f64 {
        unit(self.precision.acc)
    }

    /// Moves an element of what is expected, and of the plain path, by 5 percent of the largest.
    pub fn spoil(&mut self, result: usize, element: usize) {
        let off = 0.05 * magnitude(&self.exact[result]);
        self.exact[result][element] += off;
        self.plain[result][element] += off;
    }
}

/// Compares the cases of a file on `b` with the oracle, prints each error as a fraction of its limit, and tries each
/// limit on a perturbed result.
pub fn parity<B: Backend>(b: &mut B, file: &str, p: Precision) {
    parity_of_products(b, &[file], p, |_| unit(p.acc));
}

/// The same of all files, on a device with tensor cores, which multiplies an adapter's factors as sums of two numbers of
/// the compute dtype.
pub fn parity_on_tensor_cores<B: Backend>(b: &mut B, p: Precision) {
    let adapters = unit(p.compute).powi(2).max(unit(p.acc));
    parity_of_products(b, super::FILES, p, |op| match op.factors() {
        Factors::Adapters => adapters,
        Factors::Weights | Factors::Whole => unit(p.acc),
    });
}

/// The same of all files, on a device that multiplies with weights as sums of two numbers of bfloat16.
pub fn parity_of_split_products<B: Backend>(b: &mut B, p: Precision) {
    parity_of_products(b, super::FILES, p, |op| match op.factors() {
        Factors::Weights => SPLIT,
        Factors::Adapters | Factors::Whole => unit(p.acc),
    });
}

/// Parity with what each operation's products are held to.
fn parity_of_products<B: Backend>(b: &mut B, files: &[&str], p: Precision, term: impl Fn(&Op) -> f64) {
    let cases = files.iter().flat_map(|file| cases_of(b, file)).collect();
    parity_of_cases(b, cases, p, term);
}

/// The same of an attention that has rows and heads enough for what devices have for large passes alone.
pub fn parity_of_large_attention<B: Backend>(b: &mut B, head_dim: usize, p: Precision) {
    let op = Attention { pack: packs::flat(&[256]), cached: vec![], dims: packs::heads(68, 4, head_dim, None) };
    parity_of_cases(b, vec![Case::new("an attention of 68 heads", op)], p, |_| unit(p.acc));
}

fn parity_of_cases<B: Backend>(b: &mut B, cases: Vec<Case>, p: Precision, term: impl Fn(&Op) -> f64) {
    let mut oracle = Cpu::oracle();
    let (acc_unit, compute_unit) = (unit(p.acc), unit(p.compute));
    // What must not pass: 16-bit sums stay short of it, and the plain path's sums of hundreds of 32-bit numbers too.
    let off = |term: f64| match compute_unit == acc_unit {
        true => (256.0 * compute_unit).max(32.0 * term),
        false => 32.0 * compute_unit,
    };
    let mut failed = Vec::new();
    for case in cases {
        let expected = Expected::new(&mut oracle, rounded(case, p), p);
        let term = term(&expected.case.op);
        for (result, got) in results(b, &expected.case).iter().enumerate() {
            let (deviation, name) = (expected.deviation(result, got, 0.0, term), expected.name(result));
            let fraction = if deviation.error == 0.0 { 0.0 } else { deviation.error / deviation.limit };
            println!("{}: {name}: {fraction:.3} of {:.2e}", b.name(), deviation.limit);
            if !deviation.accepted() {
                failed.push(format!("{name}: {deviation:?} at {:.2e}", expected.scales[result]));
            }
            if let Some(worse) = perturbed(&expected.exact[result], off(term) * expected.scales[result]) {
                let deviation = expected.deviation(result, &worse, 0.0, term);
                assert!(!deviation.accepted(), "{name}: a result off by {:.1e} passes", off(term));
            }
        }
    }
    assert!(failed.is_empty(), "{}: beyond {FACTOR} times the plain path's error:\n{}", b.name(), failed.join("\n"));
}

/// What a family rounds when, to the bit, in bfloat16.
pub fn rounds_as_families_do<B: Backend>(b: &mut B) {
    let (p, first) =
        (Precision::BF16, |b: &mut B, case: &Case| device::forward(b, &case.op, &case.inputs, 0.0).remove(0));
    for form in FORMS {
        let norm = RmsNorm { rows: 2, width: 96, eps: 1e-6, form };
        for op in [Op::from(norm), Op::from(RmsNormCompute { norm })] {
            let case = rounded(Case::new("rounding", op), p);
            let got = first(b, &case);
            for other in FORMS {
                let expected = RmsNorm { form: other, ..norm }.naive_forward(p, &case.inputs).remove(0);
                assert_eq!(got == expected, form == other, "{}: {:?} against {other:?}", b.name(), case.op);
            }
        }
    }
    // The square root of 12 is rounded before it multiplies, and so is the product.
    let scaled = cases(b, "embed", Set::Forest).into_iter().find(|case| case.name == "embed scaled").unwrap();
    let case = rounded(scaled, p);
    let got = first(b, &case);
    assert_eq!(got, case.op.naive_forward(p, &case.inputs)[0]);
    let unrounded = Precision { compute: |x| x, ..p };
    let other: Vec<f64> = case.op.naive_forward(unrounded, &case.inputs)[0].iter().map(|&x| p.c(x)).collect();
    assert_ne!(got, other);
}
