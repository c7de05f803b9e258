//! The text of every kernel, compiled by g++ and run on the CPU: against the oracle under several schedules, then under
//! the sanitizers. Each check is shown to fail on a planted bug.
//!
//! A kernel may be wrong by twice what the plain loops of its precision are wrong by, both against `Cpu<f64>` on the
//! same rounded inputs.

mod launches;
pub mod machine;
mod tables;

use launches::{Output, Recorder};
use llamaprobe::backend::cpu::Cpu;
use machine::{Attention, Dtype, Machine, Mode, SCHEDULES, SIMPLE, Tape};

use crate::ops::cases::{self, Case};
use crate::ops::device;
use crate::ops::naive::{self, Precision};
use crate::ops::op::{Kind, Op};

const FACTOR: f64 = 2.0;

/// What a build and a set of cases are for.
struct Subject {
    dtype: Dtype,
    files: &'static [&'static str],
    attention: Attention,
    cases: Vec<Case>,
}

/// A case with what must come out of it.
struct Expected {
    name: String,
    exact: Vec<Vec<f64>>,
    plain: Vec<Vec<f64>>,
    kinds: Vec<Kind>,
    /// How many of the results are outputs; the others are gradients.
    outputs: usize,
}

fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::F32 => Precision::F32,
        Dtype::Bf16 => Precision::BF16,
        Dtype::F16 => Precision::F16,
    }
}

fn rounded(mut case: Case, p: Precision) -> Case {
    let round = |kind: Kind, values: &mut Vec<f64>| {
        values.iter_mut().for_each(|x| *x = if kind == Kind::Wide { (p.wide)(*x) } else { (p.real)(*x) });
    };
    let kinds: Vec<Kind> = case.op.inputs().iter().map(|array| array.2).collect();
    case.inputs.iter_mut().zip(kinds).for_each(|(values, kind)| round(kind, values));
    let kinds = case.op.output_gradients();
    case.d_outputs.iter_mut().zip(kinds).for_each(|(values, kind)| round(kind.unwrap_or(Kind::Wide), values));
    case
}

fn expected(case: &Case, dtype: Dtype) -> Expected {
    let mut oracle = Cpu::<f64>::new();
    let mut exact = device::forward(&mut oracle, &case.op, &case.inputs, 0.0);
    let zeros: Vec<Vec<f64>> = case.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    let gradients = device::backward(&mut oracle, &case.op, &case.inputs, &case.d_outputs, &zeros, false);
    let mut plain = naive::forward(precision(dtype), &case.op, &case.inputs);
    let plain_gradients = naive::backward(precision(dtype), &case.op, &case.inputs, &case.d_outputs);
    let mut kinds: Vec<Kind> = case.op.outputs().iter().map(|o| o.2).collect();
    for (i, (gradient, plain_gradient)) in gradients.into_iter().zip(plain_gradients).enumerate() {
        if let Some(gradient) = gradient {
            exact.push(gradient);
            plain.push(plain_gradient);
            kinds.push(case.op.gradient_kind(i));
        }
    }
    Expected { name: case.name.clone(), exact, plain, kinds, outputs: case.op.outputs().len() }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |max, x| if x.is_nan() { f64::INFINITY } else { max.max(x) })
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    largest(a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() }))
}

/// Half the distance between 1 and the next larger number.
fn unit(round: fn(f64) -> f64) -> f64 {
    (1..60).map(|bits| 0.5f64.powi(bits)).find(|&x| round(1.0 + x) == 1.0).unwrap()
}

/// What is wrong with the results of a run, if anything.
fn compare(
    subject: &Subject,
    tape: &Tape,
    outputs: &[(usize, Output)],
    wanted: &[Expected],
    run: &[Vec<u8>],
) -> Vec<String> {
    let p = precision(subject.dtype);
    let mut wrong = Vec::new();
    for (case, output) in outputs {
        let wanted = &wanted[*case];
        let Output { result, buffer, wide, skip, start, head } = output;
        let got = if *wide { Tape::read_wide(run, *buffer) } else { tape.read_real(run, *buffer) };
        if got[..*skip].iter().any(|x| x != start) {
            wrong.push(format!("{} {result}: written before the gradient", wanted.name));
        }
        let mut got: Vec<f64> = got[*skip..].iter().map(|x| x - start).collect();
        if let Some((head, dims)) = head {
            let (c, v) = (dims.input, dims.output);
            let sum = |i: usize| (0..v).map(|j| got[i / c * v + j] * head[j * c + i % c]).sum();
            got = (0..dims.rows * c).map(sum).collect();
        }
        let (exact, plain) = (&wanted.exact[*result], &wanted.plain[*result]);
        let finite = |values: &[f64]| largest(values.iter().filter(|x| x.is_finite()).map(|x| x.abs()));
        let own = if wanted.kinds[*result] == Kind::Wide { p.wide } else { p.real };
        // Some gradients are nothing but what is left when large terms cancel: their scale is that of all.
        let outputs = wanted.outputs;
        let alike = if *result < outputs { std::slice::from_ref(exact) } else { &wanted.exact[outputs..] };
        let scale = largest(alike.iter().map(|x| finite(x))) + start;
        let least = scale * unit(own).max(4.0 * unit(p.wide));
        let limit = FACTOR * difference(plain, exact).max(least);
        let error = difference(&got, exact);
        if error > limit {
            wrong.push(format!("{} result {result}: error {error:.2e}, limit {limit:.2e}", wanted.name));
        }
    }
    wrong
}

/// Records all cases of a subject on one tape.
fn record(subject: &Subject) -> (Tape, Vec<(usize, Output)>, Vec<Expected>) {
    let mut tape = Tape::new(subject.dtype);
    let (mut outputs, mut wanted) = (Vec::new(), Vec::new());
    for case in &subject.cases {
        let case = rounded(case.clone(), precision(subject.dtype));
        let mut recorder = Recorder { tape: &mut tape, attention: subject.attention, outputs: Vec::new() };
        if recorder.record(&case) {
            outputs.extend(recorder.outputs.into_iter().map(|output| (wanted.len(), output)));
            wanted.push(expected(&case, subject.dtype));
        }
    }
    (tape, outputs, wanted)
}

fn build(subject: &Subject, mode: Mode, plant: Option<&str>) -> Machine {
    let mut macros = subject.attention.macros();
    macros.extend(plant.map(|plant| format!("-D{plant}")));
    Machine::new(subject.files, subject.dtype, mode, &macros)
}

/// Runs a subject under all schedules; what is wrong, by schedule.
fn schedules(subject: &Subject, plant: Option<&str>) -> Vec<Vec<String>> {
    let machine = build(subject, Mode::Plain, plant);
    let (tape, outputs, wanted) = record(subject);
    let run = |&schedule| match machine.run(&tape, schedule) {
        Ok(run) => compare(subject, &tape, &outputs, &wanted, &run),
        Err(said) => vec![said],
    };
    SCHEDULES.iter().map(run).collect()
}

fn proves(subject: &Subject) {
    for (wrong, schedule) in schedules(subject, None).iter().zip(SCHEDULES) {
        assert!(wrong.is_empty(), "{:?} {:?} {schedule:?}:\n{}", subject.dtype, subject.attention, wrong.join("\n"));
    }
}

fn is_attention(case: &Case) -> bool {
    matches!(case.op, Op::Attention { .. } | Op::Pattern { .. } | Op::AttentionResult { .. })
}

fn simple(dtype: Dtype) -> Subject {
    let mut b = Cpu::<f64>::new();
    let mut cases = cases::small(&mut b);
    cases.extend(cases::large(&mut b));
    cases.retain(|case| !is_attention(case));
    Subject { dtype, files: &SIMPLE, attention: Attention::new(dtype, 16), cases }
}

/// The build for a head width, and cases of that width and of the narrower ones that are padded to it.
fn attention(dtype: Dtype, head_dim: usize) -> Subject {
    let mut b = Cpu::<f64>::new();
    let mut cases = if head_dim == 16 { cases::small(&mut b) } else { Vec::new() };
    cases.retain(is_attention);
    let large = cases::large(&mut b).into_iter().find(is_attention).unwrap();
    let Op::Attention { pack, .. } = large.op else { panic!("{} is no attention", large.name) };
    let widths = if head_dim == 64 { vec![64, 56, 42] } else { vec![head_dim] };
    for width in widths {
        for (heads, kv_heads, window) in [(2, 1, None), (1, 1, Some(50))] {
            let dims = cases::heads(heads, kv_heads, width, window);
            let op = Op::Attention { pack: pack.clone(), kept: vec![], dims };
            cases.push(Case::new(format!("attention {width} {heads} {window:?}"), op));
        }
    }
    Subject { dtype, files: &["attention"], attention: Attention::new(dtype, head_dim), cases }
}

#[test]
fn simple_kernels_compute_what_they_say() {
    if machine::compiler() {
        [Dtype::F32, Dtype::Bf16, Dtype::F16].into_iter().for_each(|dtype| proves(&simple(dtype)));
    }
}

#[test]
fn attention_computes_what_it_says() {
    if machine::compiler() {
        [16, 48, 64, 80, 96, 128, 256].into_iter().for_each(|width| proves(&attention(Dtype::Bf16, width)));
    }
}

#[test]
fn attention_of_the_other_dtypes_computes_what_it_says() {
    if machine::compiler() {
        [16, 64, 128, 256].into_iter().for_each(|width| proves(&attention(Dtype::F32, width)));
        [16, 64, 128].into_iter().for_each(|width| proves(&attention(Dtype::F16, width)));
    }
}

/// Small enough for the sanitizers, with edges everywhere.
fn tiny(dtype: Dtype) -> Vec<Subject> {
    let mut all = vec![simple(dtype), attention(dtype, 16)];
    all[0].cases.retain(|case| !case.name.starts_with("large") || case.name == "large lora");
    all[1].cases.retain(|case| case.name.contains(" 2") || case.name.contains("attention 16"));
    all
}

/// What a sanitizer says of a subject, if anything.
fn complaints(subject: &Subject, mode: Mode, plant: Option<&str>, schedules: &[(&str, &str)]) -> Vec<String> {
    let machine = build(subject, mode, plant);
    let (tape, _, _) = record(subject);
    schedules.iter().filter_map(|&schedule| machine.run(&tape, schedule).err()).collect()
}

#[test]
fn kernels_stay_inside_their_memory() {
    if machine::compiler() {
        for subject in [Dtype::F32, Dtype::Bf16].into_iter().flat_map(tiny) {
            let said = complaints(&subject, Mode::Address, None, &[("rev", "late")]);
            assert!(said.is_empty(), "{:?} {:?}:\n{}", subject.dtype, subject.files, said.join("\n"));
        }
    }
}

#[test]
fn threads_of_a_block_do_not_race() {
    if !machine::compiler() {
        return;
    }
    let mut subjects = tiny(Dtype::Bf16);
    subjects.extend(tiny(Dtype::F32).pop());
    for subject in &mut subjects {
        // Short steps, so that a few rows make many.
        subject.attention = Attention { head_dim: 16, warps: 2, fwd_step: 16, bwd_step: 16 };
        subject.cases.retain(|case| case.inputs.iter().all(|x| x.len() < 1000));
        let said = complaints(subject, Mode::Thread, None, &[("fwd", "late"), ("rand:3", "early")]);
        assert!(said.is_empty(), "{:?} {:?}:\n{}", subject.dtype, subject.files, said.join("\n"));
    }
}

/// Each check sees the bug that it is there for, planted by a macro.
#[test]
fn planted_bugs_are_found() {
    if !machine::compiler() {
        return;
    }
    let norm = Case::new("norm", Op::RmsNorm { rows: 3, width: 24, eps: 1e-5 });
    let simple = |dtype| Subject {
        dtype,
        files: &["rms_norm"],
        attention: Attention::new(dtype, 16),
        cases: vec![norm.clone()],
    };
    let attention = || {
        let mut subject = attention(Dtype::Bf16, 16);
        subject.cases.retain(|case| case.name.starts_with("attention 16 2"));
        assert_eq!(subject.cases.len(), 1);
        subject
    };
    // A barrier too few in a reduction: seen by some schedules, and by ThreadSanitizer with both lines.
    let seen = |wrong: Vec<Vec<String>>| wrong.iter().filter(|wrong| !wrong.is_empty()).count();
    assert!(seen(schedules(&simple(Dtype::F32), Some("PLANT_NO_BARRIER"))) > 0, "results without a barrier");
    let said = complaints(&simple(Dtype::F32), Mode::Thread, Some("PLANT_NO_BARRIER"), &[("fwd", "late")]);
    assert!(said.iter().any(|said| said.contains("data race")), "{said:?}");
    // A store one element too far: seen by AddressSanitizer alone where it stays in the row's neighbour.
    let said = complaints(&simple(Dtype::F32), Mode::Address, Some("PLANT_BOUND"), &[("fwd", "late")]);
    assert!(said.iter().any(|said| said.contains("heap-buffer-overflow")), "{said:?}");
    // A buffer read before its copy has landed: seen where copies land late, and nowhere else.
    let wrong = schedules(&attention(), Some("PLANT_NO_WAIT"));
    for (wrong, (order, asynchronous)) in wrong.iter().zip(SCHEDULES) {
        assert!(!wrong.is_empty() || asynchronous == "early", "not waited for: unseen under {order} {asynchronous}");
    }
    // A buffer filled again while others still read it: seen where copies land early.
    let wrong = schedules(&attention(), Some("PLANT_NO_BARRIER"));
    let early = wrong.iter().zip(SCHEDULES).filter(|(wrong, schedule)| !wrong.is_empty() && schedule.1 == "early");
    assert!(early.count() > 0, "filled again too early: {wrong:?}");
    let said = complaints(&attention(), Mode::Thread, Some("PLANT_NO_BARRIER"), &[("fwd", "early")]);
    assert!(said.iter().any(|said| said.contains("data race")), "{said:?}");
    // An element off by little: seen by the comparison itself.
    let subject = simple(Dtype::Bf16);
    let machine = build(&subject, Mode::Plain, None);
    let (tape, outputs, mut wanted) = record(&subject);
    let run = machine.run(&tape, SCHEDULES[0]).unwrap();
    assert!(compare(&subject, &tape, &outputs, &wanted, &run).is_empty());
    let off = 0.05 * wanted[0].exact[0].iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    wanted[0].exact[0][5] += off;
    wanted[0].plain[0][5] += off;
    // Once for the kernel, and once for the one that adds the residual first.
    let said = compare(&subject, &tape, &outputs, &wanted, &run);
    assert!(!said.is_empty() && said.iter().all(|said| said.contains("norm")), "{said:?}");
}
