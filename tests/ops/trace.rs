//! The null device finds wrong lengths, and counts what a pass must not do.

use llamaprobe::backend::trace::Trace;
use llamaprobe::backend::{AttentionDims, Backend, Dropout, LinearDims, LoraSite, Tensor};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};

fn pack(run: Option<usize>, tokens: &[Token]) -> Pack {
    let mut b = PackBuilder::default();
    b.push(tokens, Parent::None, run, Label::Text);
    b.build()
}

#[test]
fn it_counts_allocations_bytes_and_waits() {
    let mut b = Trace::new();
    let mut wide = b.acc(10).unwrap();
    let mut real = b.compute(4).unwrap();
    b.index(&[1, 2]).unwrap();
    b.pack(&pack(None, &[Token::Id(0)])).unwrap();
    assert_eq!((b.allocations(), b.bytes(), b.syncs()), (4, 64, 0));
    b.upload(&mut wide, 8, &[1.0, 2.0]).unwrap();
    let mut host = [1.0; 3];
    b.download(&mut host, &wide, 7).unwrap();
    b.cast(&mut real, &wide, 4);
    b.sync().unwrap();
    assert_eq!((host, b.syncs()), ([0.0; 3], 2));
    assert_eq!(b.ops(), ["upload", "download", "cast"]);
    b.clear();
    assert_eq!((b.ops().len(), b.allocations(), b.bytes(), b.syncs()), (0, 0, 0, 0));
}

#[test]
fn a_capture_is_logged_and_needs_its_rows() {
    let mut b = Trace::new();
    let x = b.acc(6).unwrap();
    let captured = b.capture(Tensor::Acc(&x), &[0, 2], 2);
    assert_eq!((captured.rows(), b.ops()), (&[0.0; 4][..], &["capture"][..]));
    assert_eq!(b.syncs(), 0);
}

#[test]
#[should_panic(expected = "capture: x has 6 elements, needs 8")]
fn a_capture_past_the_end_is_refused() {
    let mut b = Trace::new();
    let x = b.acc(6).unwrap();
    b.capture(Tensor::Acc(&x), &[3], 2);
}

#[test]
#[should_panic(expected = "cast: out has 3 elements, needs 4")]
fn a_short_output_is_refused() {
    let mut b = Trace::new();
    let (mut out, x) = (b.compute(3).unwrap(), b.acc(9).unwrap());
    b.cast(&mut out, &x, 4);
}

#[test]
#[should_panic(expected = "linear_fwd: the weight's length is 7, must be 6")]
fn a_weight_of_another_size_is_refused() {
    let mut b = Trace::new();
    let (mut out, x, weight) = (b.compute(9).unwrap(), b.compute(9).unwrap(), b.null_weight(7));
    b.linear_fwd(&mut out, &x, &weight, None, LinearDims { rows: 3, input: 2, output: 3 });
}

#[test]
#[should_panic(expected = "cross_entropy_fwd: a target is 5, must be below 5")]
fn a_target_beyond_the_vocabulary_is_refused() {
    let mut b = Trace::new();
    let (mut loss, x, head) = (b.acc(1).unwrap(), b.compute(2).unwrap(), b.null_weight(10));
    let targets = b.index(&[5]).unwrap();
    b.cross_entropy_fwd(&mut loss, &x, &head, &targets, LinearDims { rows: 1, input: 2, output: 5 });
}

#[test]
#[should_panic(expected = "embed_fwd: virtual token 1 and no prompt")]
fn a_virtual_token_needs_a_prompt() {
    let mut b = Trace::new();
    let (mut out, table) = (b.acc(4).unwrap(), b.null_weight(8));
    b.embed_fwd(&mut out, &pack(Some(0), &[Token::Virtual(1)]), &table, None, 4);
}

#[test]
#[should_panic(expected = "lora_fwd: dropout seeds has 1 elements, needs 2")]
fn every_run_needs_a_seed() {
    let mut b = Trace::new();
    let site = LoraSite { a: 0, b: 2, stride: 4, rank: 1, input: 2, output: 2, scale: 1.0 };
    let (mut y, mut xa, x, params) =
        (b.compute(2).unwrap(), b.acc(1).unwrap(), b.compute(2).unwrap(), b.acc(8).unwrap());
    let dropout = Dropout { p: 0.5, seeds: &[1], site: 0, keys: &[0] };
    b.lora_fwd(&mut y, &mut xa, &x, &params, &pack(Some(1), &[Token::Id(0)]), site, Some(dropout));
}

#[test]
#[should_panic(expected = "attention_fwd: 3 heads, must be a multiple of the 2 key-value heads")]
fn heads_must_divide() {
    let mut b = Trace::new();
    let dims = AttentionDims { heads: 3, kv_heads: 2, head_dim: 2, scale: 1.0, window: None, alibi: false };
    let (mut z, mut lse, q) = (b.compute(6).unwrap(), b.acc(3).unwrap(), b.compute(6).unwrap());
    b.attention_fwd(&mut z, &mut lse, &q, &q, &q, None, &pack(None, &[Token::Id(0)]), dims);
}
