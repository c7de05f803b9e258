//! Short buffers and wrong dimensions are refused with the operation's name and both numbers, the same on every device.

use std::panic::{AssertUnwindSafe, catch_unwind};

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::backend::{Backend, Buffers};

use crate::ops;
use crate::ops::device::Refusal;

/// Asserts that the call says what it must.
fn check<B: Backend>(b: &mut B, refusal: &Refusal<B>) {
    let said = catch_unwind(AssertUnwindSafe(|| (refusal.call)(b)));
    let Err(panic) = said else { panic!("{}: not refused: {}", b.name(), refusal.says) };
    let said = panic.downcast_ref::<String>().map_or("not a text", |said| said);
    assert_eq!(said, refusal.says, "{}", b.name());
}

fn refused(file: &str) {
    let on_trace = ops::refusals(file);
    assert!(!on_trace.is_empty(), "{file}: nothing is refused");
    on_trace.iter().for_each(|refusal| check(&mut Trace::new(), refusal));
    for dtype in [Dtype::F32, Dtype::BF16] {
        let mut cpu = Cpu::new(dtype);
        ops::refusals(file).iter().for_each(|refusal| check(&mut cpu, refusal));
    }
}

with_operations! { tests_per_file {
    wrong_lengths_are_refused_on_every_device => refused;
} }

#[test]
fn every_operation_refuses_something() {
    let all: Vec<&str> = ops::FILES.iter().flat_map(|file| ops::refusals::<Trace>(file)).map(|r| r.says).collect();
    for op in crate::trace::OPS.iter().filter(|op| **op != "zero") {
        assert!(all.iter().any(|says| says.starts_with(&format!("{op}:"))), "{op}");
    }
}

#[test]
#[should_panic(expected = "not refused")]
fn an_accepted_call_is_found() {
    let accepted = Refusal { says: "nothing", call: |b: &mut Trace| drop(b.acc(1)) };
    check(&mut Trace::new(), &accepted);
}
