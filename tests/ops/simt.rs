//! The text of every kernel, compiled by g++ and run on the CPU: against the oracle under several schedules, then under
//! the sanitizers. Each check is shown to fail on a planted bug.
//!
//! A kernel may be wrong by twice what the plain loops of its precision are wrong by, both against the oracle on the same
//! rounded inputs.

use llamaprobe::arch::{Dtype, RmsWeight};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::ops::AttentionDims;
use rayon::prelude::*;

use crate::ops::attention::Attention;
use crate::ops::cases::{Case, Set};
use crate::ops::naive::Precision;
use crate::ops::operation::Operation;
use crate::ops::parity::{Expected, cases_of, rounded};
use crate::ops::rms_norm::RmsNorm;
use crate::ops::simt::machine::{self, Build, Machine, Mode, SCHEDULES};
use crate::ops::simt::recorder::{Output, Recorder};
use crate::ops::simt::tape::Tape;
use crate::ops::{self, packs};

/// What a build and a set of cases are for.
pub struct Subject {
    pub dtype: Dtype,
    pub files: Vec<&'static str>,
    pub build: Build,
    pub cases: Vec<Case>,
}

/// What is wrong with the results of a run, if anything.
fn compare(tape: &Tape, outputs: &[(usize, Output)], wanted: &[Expected], run: &[Vec<u8>]) -> Vec<String> {
    let mut wrong: Vec<String> = tape.leaves_tickets(run).then(|| "tickets are left".to_string()).into_iter().collect();
    for (case, output) in outputs {
        let wanted = &wanted[*case];
        let Output { result, buffer, role, skip, start, head } = output;
        let got = tape.read(run, *buffer, *role);
        let name = wanted.name(*result);
        if got[..*skip].iter().any(|x| x != start) {
            wrong.push(format!("{name}: written before the gradient"));
        }
        let mut got: Vec<f64> = got[*skip..].iter().map(|x| x - start).collect();
        if let Some((head, dims)) = head {
            let (c, v) = (dims.input, dims.output);
            let sum = |i: usize| (0..v).map(|j| got[i / c * v + j] * head[j * c + i % c]).sum();
            got = (0..dims.rows * c).map(sum).collect();
        }
        let deviation = wanted.deviation(*result, &got, *start, wanted.sum_unit());
        if !deviation.accepted() {
            wrong.push(format!("{name}: error {:.2e}, limit {:.2e}", deviation.error, deviation.limit));
        }
    }
    wrong
}

/// The launches of all cases of a subject, where their results will be, by case, and the cases that have launches.
pub fn record(subject: &Subject) -> (Tape, Vec<(usize, Output)>, Vec<Case>) {
    let mut tape = Tape::new(subject.dtype);
    let (mut outputs, mut launched) = (Vec::new(), Vec::new());
    for case in &subject.cases {
        let case = rounded(case.clone(), Precision::of(subject.dtype));
        let mut recorder = Recorder { tape: &mut tape, build: subject.build, outputs: Vec::new() };
        if case.op.launch(&case, &mut recorder) {
            outputs.extend(recorder.outputs.into_iter().map(|output| (launched.len(), output)));
            launched.push(case);
        }
    }
    (tape, outputs, launched)
}

/// What must come out of cases.
fn expected(cases: Vec<Case>, dtype: Dtype) -> Vec<Expected> {
    let (mut oracle, precision) = (Cpu::oracle(), Precision::of(dtype));
    cases.into_iter().map(|case| Expected::new(&mut oracle, case, precision)).collect()
}

fn build(subject: &Subject, mode: Mode, plant: Option<&str>) -> Machine {
    let mut macros = subject.build.macros();
    macros.extend(plant.map(|plant| format!("-D{plant}")));
    Machine::new(&subject.files, subject.dtype, mode, &macros)
}

/// Runs a subject under all schedules; what is wrong, by schedule, and where bits are not those of the first.
fn schedules(subject: &Subject, plant: Option<&str>) -> Vec<Vec<String>> {
    let machine = build(subject, Mode::Plain, plant);
    let (tape, outputs, cases) = record(subject);
    let wanted = expected(cases, subject.dtype);
    let runs: Vec<_> = SCHEDULES.par_iter().map(|&schedule| machine.run(&tape, schedule)).collect();
    let wrong = |run: &Result<Vec<Vec<u8>>, String>| match run {
        Err(said) => vec![said.clone()],
        Ok(buffers) => {
            let mut wrong = compare(&tape, &outputs, &wanted, buffers);
            wrong.extend((*run != runs[0]).then(|| "other bits than those of the first schedule".to_string()));
            wrong
        }
    };
    runs.par_iter().map(wrong).collect()
}

fn proves(subject: &Subject) {
    for (wrong, schedule) in schedules(subject, None).iter().zip(SCHEDULES) {
        assert!(wrong.is_empty(), "{:?} {:?} {schedule:?}:\n{}", subject.dtype, subject.build, wrong.join("\n"));
    }
}

/// The kernels of all files but attention's, and their cases.
pub fn simple(dtype: Dtype) -> Subject {
    let (mut b, files) = (Cpu::oracle(), machine::simple());
    let cases = files.iter().filter(|file| ops::FILES.contains(file)).flat_map(|file| cases_of(&mut b, file)).collect();
    Subject { dtype, files, build: Build::new(dtype, 16), cases }
}

/// The build for a head width, and cases of that width and of the narrower ones that are padded to it.
fn attention(dtype: Dtype, head_dim: usize) -> Subject {
    of_build(dtype, Build::new(dtype, head_dim))
}

/// The same of capped scores.
fn capped_attention(dtype: Dtype, head_dim: usize) -> Subject {
    of_build(dtype, Build::new(dtype, head_dim).capped())
}

fn of_build(dtype: Dtype, build: Build) -> Subject {
    let Build { head_dim, capped, .. } = build;
    let small = || ops::cases(&mut Cpu::oracle(), "attention", Set::Small);
    let mut cases = if head_dim == 16 { small() } else { Vec::new() };
    let widths = if head_dim == 64 { vec![64, 56, 42] } else { vec![head_dim] };
    for width in widths {
        for (heads, kv_heads, window) in [(2, 1, None), (1, 1, Some(50))] {
            let softcap = capped.then_some(3.0);
            let dims = AttentionDims { softcap, ..packs::heads(heads, kv_heads, width, window) };
            let op = Attention { pack: packs::large(), cached: vec![], dims };
            cases.push(Case::new(format!("attention {width} {heads} {window:?}"), op));
        }
    }
    Subject { dtype, files: vec!["attention"], build, cases }
}

#[test]
fn simple_kernels_compute_what_they_say() {
    if machine::compiler() {
        [Dtype::F32, Dtype::BF16, Dtype::F16].into_par_iter().for_each(|dtype| proves(&simple(dtype)));
    }
}

#[test]
fn attention_computes_what_it_says() {
    if machine::compiler() {
        [16, 48, 64, 80, 96, 128, 256].into_par_iter().for_each(|width| proves(&attention(Dtype::BF16, width)));
    }
}

/// The forward for compute capability 9.0, whose file has builds of two widths.
fn hopper(dtype: Dtype, head_dim: usize) -> Subject {
    let of = |heads, kv_heads, window| packs::heads(heads, kv_heads, head_dim, window);
    let (continued, cached) = packs::continued();
    let case =
        |name: &str, pack, cached: &[_], dims| Case::new(name, Attention { pack, cached: cached.to_vec(), dims });
    let cases = vec![
        case("a forest", packs::large(), &[], of(3, 1, None)),
        case("one sequence", packs::flat(&[330]), &[], of(1, 1, None)),
        case("a window", packs::flat(&[260]), &[], of(1, 1, Some(90))),
        case("distances", packs::flat(&[150]), &[], AttentionDims { alibi: true, ..of(3, 3, None) }),
        case("both directions", packs::bidirectional(&packs::flat(&[200, 9]), &[]), &[], of(2, 2, Some(50))),
        case("a cache", continued, &cached, of(2, 1, None)),
    ];
    Subject { dtype, files: vec!["attention_hopper"], build: Build::new(dtype, head_dim).hopper(), cases }
}

#[test]
fn attention_for_hopper_computes_what_it_says() {
    if machine::compiler() {
        [(Dtype::BF16, 64), (Dtype::F16, 128)].into_par_iter().for_each(|(dtype, width)| proves(&hopper(dtype, width)));
    }
}

#[test]
fn attention_for_little_shared_memory_computes_what_it_says() {
    if machine::compiler() {
        proves(&of_build(Dtype::BF16, Build::new(Dtype::BF16, 128).small()));
    }
}

#[test]
fn attention_of_the_other_dtypes_computes_what_it_says() {
    if machine::compiler() {
        let of = |dtype, widths: &[usize]| widths.iter().map(|&width| (dtype, width)).collect::<Vec<_>>();
        let all = [of(Dtype::F32, &[16, 64, 128, 256]), of(Dtype::F16, &[16, 64, 128, 256])].concat();
        all.into_par_iter().for_each(|(dtype, width)| proves(&attention(dtype, width)));
    }
}

#[test]
fn attention_with_capped_scores_computes_what_it_says() {
    if machine::compiler() {
        let of = |dtype, widths: &[usize]| widths.iter().map(|&width| (dtype, width)).collect::<Vec<_>>();
        let all = [of(Dtype::BF16, &[16, 64, 256]), of(Dtype::F32, &[16, 128, 256]), of(Dtype::F16, &[64])].concat();
        all.into_par_iter().for_each(|(dtype, width)| proves(&capped_attention(dtype, width)));
    }
}

/// Small enough for the sanitizers, with edges everywhere.
fn tiny(dtype: Dtype) -> Vec<Subject> {
    let mut all = vec![simple(dtype), capped_attention(dtype, 16), attention(dtype, 16)];
    all[0].cases.retain(|case| !case.name.starts_with("large") || case.name == "large lora");
    all[1].cases.retain(|case| case.name.contains(" 7") || case.name.contains("attention 16"));
    all[2].cases.retain(|case| case.name.contains(" 2") || case.name.contains("attention 16"));
    all
}

fn tiny_hopper() -> Subject {
    let mut subject = hopper(Dtype::BF16, 64);
    subject.cases.retain(|case| ["a cache", "both directions"].contains(&case.name.as_str()));
    subject
}

/// What a sanitizer says of a subject, if anything.
fn complaints(subject: &Subject, mode: Mode, plant: Option<&str>, schedules: &[(&str, &str)]) -> Vec<String> {
    let machine = build(subject, mode, plant);
    let (tape, _, _) = record(subject);
    schedules.par_iter().filter_map(|&schedule| machine.run(&tape, schedule).err()).collect()
}

#[test]
fn kernels_stay_inside_their_memory() {
    if machine::compiler() {
        let subjects = [Dtype::F32, Dtype::BF16].into_iter().flat_map(tiny).chain([tiny_hopper()]).collect::<Vec<_>>();
        subjects.par_iter().for_each(|subject| {
            let said = complaints(subject, Mode::Address, None, &[("rev", "late")]);
            assert!(said.is_empty(), "{:?} {:?}:\n{}", subject.dtype, subject.files, said.join("\n"));
        });
    }
}

#[test]
fn threads_of_a_block_do_not_race() {
    if !machine::compiler() {
        return;
    }
    let mut subjects = tiny(Dtype::BF16);
    subjects.extend(tiny(Dtype::F32).pop());
    subjects.par_iter_mut().for_each(|subject| {
        // Short steps, so that a few rows make many.
        subject.build = Build { head_dim: 16, warps: 2, fwd_step: 16, fwd_small: 16, bwd_step: 16, ..subject.build };
        subject.cases.retain(|case| case.inputs.iter().all(|x| x.len() < 1000));
    });
    subjects.push(tiny_hopper());
    subjects.par_iter().for_each(|subject| {
        let said = complaints(subject, Mode::Thread, None, &[("fwd", "late"), ("rand:3", "early")]);
        assert!(said.is_empty(), "{:?} {:?}:\n{}", subject.dtype, subject.files, said.join("\n"));
    });
}

/// The emulator of Hopper's instructions sees what must not be missing between a copy and the products that read it, and after them.
#[test]
fn planted_bugs_of_hopper_are_found() {
    if !machine::compiler() {
        return;
    }
    let mut subject = hopper(Dtype::F16, 64);
    // Whole blocks: every warp has rows whose results show what it was given.
    let op = Attention { pack: packs::flat(&[384]), cached: vec![], dims: packs::heads(1, 1, 64, None) };
    subject.cases = vec![Case::new("whole blocks", op)];
    let (tape, outputs, cases) = record(&subject);
    let wanted = expected(cases, subject.dtype);
    // By schedule, what is wrong with the results, or what the emulator says.
    let wrong = |plant: &str| {
        let machine = build(&subject, Mode::Plain, Some(plant));
        let run = |&schedule: &_| match machine.run(&tape, schedule) {
            Ok(run) => compare(&tape, &outputs, &wanted, &run).concat(),
            Err(said) => said,
        };
        SCHEDULES.par_iter().map(run).collect::<Vec<String>>()
    };
    let all = |plant: &str, what: &str| {
        let wrong = wrong(plant);
        assert!(wrong.iter().all(|said| !said.is_empty() && said.contains(what)), "{plant}: {wrong:?}");
    };
    // A tile that is not waited for: seen under every schedule, whether its copies have landed or not.
    all("PLANT_NO_WAIT", "");
    // One whose parts lie in another order.
    all("PLANT_SWIZZLE", "error");
    // The wrong phase of a barrier, and half of the bytes.
    all("PLANT_PHASE", "deadlock");
    all("PLANT_BYTES", "");
    // Barriers that are not made visible to copies, products that are not kept behind accesses of their registers, and sums that
    // are taken before they are there.
    all("PLANT_NO_FENCE", "without fence.proxy.async");
    all("PLANT_NO_PRODUCTS_FENCE", "no wgmma.fence");
    all("PLANT_NO_PRODUCTS_WAIT", "wgmma: ");
    // A tile that is filled again while products read it: seen where copies land early.
    for (said, (order, asynchronous)) in wrong("PLANT_EARLY_RELEASE").iter().zip(SCHEDULES) {
        assert!(!said.is_empty() || asynchronous == "late", "released too early: unseen under {order} {asynchronous}");
    }
    // Registers that nobody has given away.
    all("PLANT_REGISTERS", "deadlock");
}

/// Each check sees the bug that it is there for, planted by a macro.
#[test]
fn planted_bugs_are_found() {
    if !machine::compiler() {
        return;
    }
    let norm = Case::new("norm", RmsNorm { rows: 3, width: 24, eps: 1e-5, form: RmsWeight::Rounded });
    let simple =
        |dtype| Subject { dtype, files: vec!["rms_norm"], build: Build::new(dtype, 16), cases: vec![norm.clone()] };
    let attention = || {
        let mut subject = attention(Dtype::BF16, 16);
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
    // A warp's part of the ranks of what is made, and the ticket that the next launch finds: seen under every schedule.
    let made = || {
        let mut cases = cases_of(&mut Cpu::oracle(), "lora");
        cases.retain(|case| case.name == "large lora gated [20, 32] [8, 512, 12]");
        assert_eq!(cases.len(), 1);
        Subject { files: vec!["lora"], cases, ..simple(Dtype::BF16) }
    };
    for plant in ["PLANT_NO_PART", "PLANT_NO_RESET"] {
        assert_eq!(seen(schedules(&made(), Some(plant))), SCHEDULES.len(), "{plant}");
    }
    // An element off by little: seen by the comparison itself.
    let subject = simple(Dtype::BF16);
    let machine = build(&subject, Mode::Plain, None);
    let (tape, outputs, cases) = record(&subject);
    let mut wanted = expected(cases, subject.dtype);
    let run = machine.run(&tape, SCHEDULES[0]).unwrap();
    assert!(compare(&tape, &outputs, &wanted, &run).is_empty());
    wanted[0].spoil(0, 5);
    // Once for the kernel, and once for the one that adds the residual first.
    let said = compare(&tape, &outputs, &wanted, &run);
    assert!(!said.is_empty() && said.iter().all(|said| said.contains("norm")), "{said:?}");
}
