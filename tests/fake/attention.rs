//! Which forward the attention takes, that its results do not depend on it, and what keys collect from many rows.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;

use super::ops::attention::Attention;
use super::ops::cases::Case;
use super::ops::device::{self, Given};
use super::ops::naive::Precision;
use super::ops::parity::{Expected, rounded};
use super::ops::{normal, packs};
use super::{child, cuda, on_fake};

const ROWS: usize = 1024;
const HEADS: usize = 32;
const WIDTH: usize = 16;

/// z and lse of so many heads of one sequence, the first of them the head `first` of all.
fn attention(first: usize, heads: usize) -> Vec<Vec<f64>> {
    let mut b = cuda::device(Dtype::BF16).expect("the fake driver's device");
    let op = Attention { pack: packs::flat(&[ROWS]), cached: vec![], dims: packs::heads(heads, heads, WIDTH, None) };
    let inputs = [1, 2, 3].map(|seed| {
        let all = normal(seed, ROWS * HEADS * WIDTH);
        let rows = all.chunks(HEADS * WIDTH).flat_map(|row| &row[first * WIDTH..(first + heads) * WIDTH]);
        rows.copied().collect::<Vec<f64>>()
    });
    device::forward(&mut b, &op, &[&inputs[..], &[vec![], vec![]]].concat(), 0.0)
}

#[test]
#[ignore = "started on the fake driver"]
fn long_blocks() {
    let all = attention(0, HEADS);
    // One head has too few rows for blocks of 128.
    for head in [0, HEADS - 1] {
        for (all, (one, width)) in all.iter().zip(attention(head, 1).iter().zip([WIDTH, 1])) {
            let rows = all.chunks(HEADS * width).map(|row| &row[head * width..(head + 1) * width]);
            assert!(rows.eq(one.chunks(width)), "head {head}");
        }
    }
}

#[test]
fn long_blocks_have_the_bits_of_short_ones() {
    child("attention::long_blocks");
    // Both kernels are taken: each is missed where it fails.
    for kernel in ["attention_fwd", "attention_fwd_128"] {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        on_fake(command.args(["--exact", "attention::long_blocks", "--ignored"]));
        let out = command.env("FAKE_FAIL_OP", format!("{kernel}:1")).output().expect("start the program");
        assert!(!out.status.success(), "{kernel} was not launched");
    }
}

/// A forest whose rows share much, and one whose rows share little, on a device that may use what only it has.
#[test]
#[ignore = "started on the fake driver"]
fn hopper() {
    let mut b = cuda::device(Dtype::BF16).expect("the fake driver's device");
    for (name, lengths) in [("long", &[500][..]), ("short", &[9; 30])] {
        let op = Attention { pack: packs::flat(lengths), cached: vec![], dims: packs::heads(2, 1, 64, None) };
        let case = rounded(Case::new(name, op.clone()), Precision::of(Dtype::BF16));
        let found = device::forward(&mut b, &op, &case.inputs, 0.0);
        let expected = Expected::new(&mut Cpu::oracle(), case, Precision::of(Dtype::BF16));
        for (i, found) in found.iter().enumerate() {
            let deviation = expected.deviation(i, found, 0.0, expected.sum_unit());
            assert!(deviation.accepted(), "{name}, result {i}: {deviation:?}");
        }
    }
}

#[test]
fn hopper_is_used_where_it_is_asked_for_and_worth_it() {
    for (asked, failing, succeeds) in [
        ("1", "none", true),
        ("1", "attention_fwd_hopper", false),
        ("0", "attention_fwd_hopper", true),
        // What is not worth it is computed otherwise, and all of it where it is not asked for.
        ("1", "attention_fwd", false),
    ] {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        on_fake(command.args(["--exact", "attention::hopper", "--ignored"]));
        command.env("LLAMAPROBE_HOPPER", asked).env("FAKE_FAIL_OP", format!("{failing}:1"));
        let out = command.output().expect("start the program");
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.success(), succeeds, "LLAMAPROBE_HOPPER={asked}, {failing} fails:\n{said}");
    }
}

/// The gradients of one sequence's keys and values, which more rows and heads see than one block of the device collects from.
fn key_gradients(b: &mut impl Backend) -> Vec<f64> {
    let op = Attention { pack: packs::flat(&[1100]), cached: vec![], dims: packs::heads(2, 1, WIDTH, None) };
    let case = Case::new("long", op);
    let given = Given { inputs: &case.inputs, d_outputs: &case.d_outputs, start: &case.zeros(), accumulate: false };
    device::backward(b, &case.op, &given)[1..3].iter().flatten().flatten().copied().collect()
}

#[test]
#[ignore = "started on the fake driver"]
fn keys_in_parts() {
    let mut b = cuda::device(Dtype::F32).expect("the fake driver's device");
    let (found, expected) = (key_gradients(&mut b), key_gradients(&mut Cpu::<f32>::new(Dtype::F32)));
    let scale = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let far = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-5 * scale;
    assert_eq!(found.iter().zip(&expected).filter(|&two| far(two)).count(), 0, "of {}", expected.len());
    assert_eq!(found, key_gradients(&mut b), "the same bits again");
}

#[test]
fn keys_that_many_rows_see_collect_from_all_of_them() {
    child("attention::keys_in_parts");
}
