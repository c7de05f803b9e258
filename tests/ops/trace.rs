//! The null device accepts every case, and counts what a pass must not do.

use llamaprobe::backend::ops::{Cast, RowOps};
use llamaprobe::backend::trace::Trace;
use llamaprobe::backend::{Buffers, Capture, Tensor, Transfer};

use crate::ops::cases::Set;
use crate::ops::device::{self, Given};
use crate::ops::{self, packs};

#[test]
fn trace_counts_allocations_bytes_and_waits() {
    let mut b = Trace::new();
    let mut acc = b.acc(10).unwrap();
    let mut compute = b.compute(4).unwrap();
    b.index(&[1, 2]).unwrap();
    b.pack(&packs::flat(&[1])).unwrap();
    assert_eq!((b.allocations(), b.bytes(), b.syncs()), (4, 64, 0));
    b.upload(&mut acc, 8, &[1.0, 2.0]).unwrap();
    let mut host = [1.0; 3];
    b.download(&mut host, &acc, 7).unwrap();
    b.cast(Cast { out: &mut compute, x: &acc, len: 4 });
    b.sync().unwrap();
    assert_eq!((host, b.syncs()), ([0.0; 3], 2));
    assert_eq!(b.ops(), ["upload", "download", "cast"]);
    b.clear();
    assert_eq!((b.ops().len(), b.allocations(), b.bytes(), b.syncs()), (0, 0, 0, 0));
}

#[test]
fn trace_logs_a_capture() {
    let mut b = Trace::new();
    let x = b.acc(6).unwrap();
    let captured = b.capture(Tensor::Acc(&x), &[0, 2], 2);
    assert_eq!((captured.rows(), b.ops()), (&[0.0; 4][..], &["capture"][..]));
    assert_eq!(b.syncs(), 0);
}

#[test]
#[should_panic(expected = "capture: the buffer has 6 elements, needs 8")]
fn trace_refuses_a_capture_past_the_end() {
    let mut b = Trace::new();
    let x = b.acc(6).unwrap();
    b.capture(Tensor::Acc(&x), &[3], 2);
}

#[test]
fn trace_accepts_every_case_of_every_operation() {
    let mut trace = Trace::new();
    let cases = [ops::all(&mut trace, Set::Small), ops::all(&mut trace, Set::Large)].concat();
    trace.clear();
    for case in &cases {
        let start = case.zeros();
        device::forward(&mut trace, &case.op, &case.inputs, 0.0);
        let given = Given { inputs: &case.inputs, d_outputs: &case.d_outputs, start: &start, accumulate: false };
        device::backward(&mut trace, &case.op, &given);
    }
    for op in OPS {
        assert!(trace.ops().contains(&op), "no case of {op}");
    }
}

#[test]
fn case_counts_do_not_shrink() {
    let counts = [Set::Small, Set::Large, Set::Rows, Set::Forest].map(|set| ops::all(&mut Trace::new(), set).len());
    let least = [98, 30, 18, 10];
    assert!(counts.iter().zip(least).all(|(count, least)| *count >= least), "{counts:?}");
}

/// The operations of the contract.
pub const OPS: [&str; 56] = [
    "zero",
    "cast",
    "widen",
    "residual_fwd",
    "gather_compute",
    "gather_acc",
    "scatter_add",
    "scatter_add_compute",
    "kv_append",
    "edit_fwd",
    "edit_bwd",
    "embed_fwd",
    "embed_bwd_prompt",
    "embed_bwd_table",
    "position_fwd",
    "position_bwd_table",
    "layer_norm_fwd",
    "layer_norm_bwd",
    "layer_norm_bwd_affine",
    "rms_norm_fwd",
    "rms_norm_bwd",
    "rms_norm_bwd_weight",
    "rms_norm_compute_fwd",
    "rms_norm_compute_bwd",
    "rms_norm_compute_bwd_weight",
    "rope_fwd",
    "rope_bwd",
    "attention_fwd",
    "attention_bwd",
    "attention_pattern",
    "attention_result",
    "linear_fwd",
    "linear_bwd_input",
    "linear_bwd_weight",
    "linear_bwd_bias",
    "lora_fwd",
    "lora_bwd",
    "lora_delta",
    "lora_delta_bwd",
    "weight_norm",
    "scale_fwd",
    "scale_bwd",
    "scale_delta",
    "gated_fwd",
    "gated_bwd",
    "activation_fwd",
    "activation_bwd",
    "logits_fwd",
    "cross_entropy_fwd",
    "cross_entropy_bwd",
    "state_loss",
    "kl_loss",
    "grad_norm",
    "check_finite",
    "adamw",
    "refresh_weight",
];
