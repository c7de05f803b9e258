//! Which forward the attention takes, and that its results do not depend on it.

use llamaprobe::arch::Dtype;
use llamaprobe::pack::{Label, PackBuilder, Parent, Token};

use super::ops::attention::Attention;
use super::ops::{device, normal, packs};
use super::{child, cuda, on_fake};

const ROWS: usize = 1024;
const HEADS: usize = 16;
const WIDTH: usize = 16;

/// z and lse of so many heads of one sequence, the first of them the head `first` of all.
fn attention(first: usize, heads: usize) -> Vec<Vec<f64>> {
    let mut b = cuda::device(Dtype::BF16).expect("the fake driver's device");
    let mut builder = PackBuilder::default();
    builder.push(&vec![Token::Id(0); ROWS], Parent::None, None, Label::Text);
    let op = Attention { pack: builder.build(), cached: vec![], dims: packs::heads(heads, heads, WIDTH, None) };
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
