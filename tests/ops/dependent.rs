//! How kernels begin: where they may be launched before the kernel before them has ended (`begin_kernel` of `kernels/prelude.cuh`),
//! they wait for it before they use memory of the device and before any thread returns. Once by their text, once by every access that
//! they make on the CPU, once by what the compiler makes of them.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use rayon::prelude::*;

use crate::ops::attention::Attention;
use crate::ops::cases::Case;
use crate::ops::packs;
use crate::ops::parity::cases_of;
use crate::ops::simt::machine::{self, Build as Constants, Machine, Mode, SCHEDULES};
use crate::ptxas::{self, Build};
use crate::sass::Listing;
use crate::simt::{Subject, record, simple};

/// What every kernel begins with.
const BEGIN: &str = "    begin_kernel();\n";
/// The files that are built by themselves.
const ATTENTION: [&str; 2] = ["attention", "attention_hopper"];

/// Kernels of a text that begin otherwise.
fn otherwise(text: &str) -> Vec<&str> {
    let kernels = text.split("extern \"C\" __global__").skip(1);
    let signatures = machine::signatures(text).into_iter().map(|kernel| kernel.name);
    let wrong = kernels.zip(signatures).filter(|(kernel, _)| {
        let (_, body) = kernel.split_once("{\n").expect("a kernel has a body");
        !body.starts_with(BEGIN)
    });
    wrong.map(|(_, name)| name).collect()
}

#[test]
fn every_kernel_begins_by_waiting() {
    let text = machine::text(&[&machine::simple()[..], &ATTENTION].concat());
    assert!(otherwise(&text).is_empty(), "without begin_kernel: {:?}", otherwise(&text));
    assert_eq!(otherwise(&text.replacen(BEGIN, "", 2)).len(), 2);
}

/// What the emulator says of a subject whose text may be another's, where it sees every access.
fn said(subject: &Subject, text: &str, schedule: (&str, &str)) -> Option<String> {
    let machine = Machine::of_text(text, subject.dtype, Mode::Accesses, &subject.build.macros());
    machine.run(&record(subject).0, schedule).err()
}

#[test]
fn kernels_wait_before_they_use_memory() {
    if !machine::compiler() {
        return;
    }
    let mut simple = simple(Dtype::BF16);
    simple.cases.retain(|case| case.inputs.iter().all(|x| x.len() < 1000));
    let of = |file, build| {
        let op = Attention { pack: packs::flat(&[20]), cached: vec![], dims: packs::heads(2, 1, 64, None) };
        Subject { dtype: Dtype::BF16, files: vec![file], build, cases: vec![Case::new("attention", op)] }
    };
    let build = Constants::new(Dtype::BF16, 64);
    let subjects = [simple, of(ATTENTION[0], build), of(ATTENTION[1], build.hopper())];
    subjects.par_iter().for_each(|subject| {
        let said = said(subject, &machine::text(&subject.files), SCHEDULES[3]);
        assert!(said.is_none(), "{:?}: {said:?}", subject.files);
    });
}

#[test]
fn kernels_that_wait_too_late_are_found() {
    if !machine::compiler() {
        return;
    }
    // Products with quantised weights are decoded by kernels of the second file.
    let files = vec!["linear", "quantized"];
    let text = machine::text(&files);
    let mut cases = cases_of(&mut Cpu::oracle(), "linear");
    cases.retain(|case| case.inputs.iter().all(|x| x.len() < 1000));
    let subject = Subject { dtype: Dtype::BF16, files, build: Constants::new(Dtype::BF16, 16), cases };
    let first = "    int lane = threadIdx.x % 32, part";
    let planted = |from: &str, to: &str| {
        let planted = text.replacen(BEGIN, "", 1).replacen(from, to, 1);
        assert_ne!(planted, text);
        said(&subject, &planted, SCHEDULES[0]).unwrap_or_default()
    };
    assert!(said(&subject, &text, SCHEDULES[0]).is_none());
    // Never, after memory was read, and not in threads that return before.
    let finds = |from: &str, to: &str, what: &str| {
        let said = planted(from, to);
        assert!(said.contains(what), "{to}: {said}");
    };
    finds("", "", "is used before begin_kernel");
    let sum = "    sums[part][lane] = sum;\n";
    finds(sum, &format!("{BEGIN}{sum}"), "is used before begin_kernel");
    let early = format!("    if (threadIdx.x == 3) return;\n{BEGIN}{first}");
    finds(first, &early, "returns before begin_kernel");
    let one = format!("    if (threadIdx.x == 0) begin_kernel();\n    __syncthreads();\n{first}");
    finds(first, &one, "before begin_kernel");
}

/// What is wrong with a kernel that is to wait, as it is compiled.
fn wrong(listing: &Listing) -> Vec<String> {
    let mut wrong = Vec::new();
    let wait = listing.0.iter().position(|i| i.is("ACQBULK"));
    let before = &listing.0[..wait.unwrap_or(listing.0.len())];
    // Of constant memory are its parameters alone.
    let harmless = |name: &str| name.starts_with("LDC") || name.starts_with("ULDC");
    let uses = |name: &str| ["LD", "ST", "ATOM", "RED", "UBLKCP", "UTMA"].iter().any(|kind| name.starts_with(kind));
    let leaves = |name: &str| ["EXIT", "BRA", "BRX", "RET", "CALL"].iter().any(|kind| name.starts_with(kind));
    let early = |name: &str| uses(name) && !harmless(name) || leaves(name);
    wrong.extend(before.iter().filter(|i| early(&i.name)).map(|i| format!("{} before the wait", i.name)));
    wrong.extend(wait.is_none().then(|| "no wait".to_string()));
    let lets = listing.count("PREEXIT") == 0;
    wrong.extend(lets.then(|| "does not let the next be launched".to_string()));
    let incoherent = listing.0.iter().filter(|i| i.name.contains("CONSTANT"));
    wrong.extend(incoherent.map(|i| format!("{} sees no other kernel's writes", i.name)));
    wrong
}

#[test]
fn compiled_kernels_wait_before_all_else_where_they_are_asked_to() {
    let Some(nvcc) = ptxas::nvcc() else { return };
    let build = |text: &str, options: &[String]| {
        let options = [options, &["-DPDL=1".to_string()]].concat();
        Build::for_devices(&nvcc, text, Dtype::BF16, &options, &["90a"])
    };
    let of = |file, constants: Constants| (vec![file], constants.macros());
    let constants = Constants::new(Dtype::BF16, 64);
    let builds = [(machine::simple(), vec![]), of(ATTENTION[0], constants), of(ATTENTION[1], constants.hopper())];
    for (files, options) in builds {
        let text = machine::text(&files);
        let build = build(&text, &options);
        assert_eq!(build.listings.len(), machine::kernels(&text).len());
        for ((_, kernel), listing) in &build.listings {
            assert!(wrong(listing).is_empty(), "{kernel}: {:?}", wrong(listing));
        }
        assert!(build.resources.values().all(|of_kernel| of_kernel.spills == 0), "{files:?}: spills");
    }
    // What is promised to be nobody else's is read where it should not be.
    let text = machine::text(&["linear"]);
    let promised = build(&text.replacen("#define __restrict__\n", "", 1), &[]);
    assert!(promised.listings.values().any(|list| wrong(list).iter().any(|what| what.contains("CONSTANT"))));
    let late =
        build(&text.replacen(BEGIN, "", 1).replacen("    sums[part]", "    begin_kernel();\n    sums[part]", 1), &[]);
    assert!(late.listings.values().any(|list| wrong(list).iter().any(|what| what.contains("before the wait"))));
}
