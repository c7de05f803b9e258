//! What a device records of a step: its operations in order, and the work that their shapes say.

use llamaprobe::arch::{Dtype, Projection};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::profile::{Profile, Recorder};
use llamaprobe::backend::trace::Trace;
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, GradientRequest, Gradients, Input, Labels, Save};
use llamaprobe::pack::{Label, Sequence, forest};

use super::{LLAMA, adapters, lora, random};

/// Rows of the step; all have a label.
const N: u64 = 7;

/// Forward and backward of one sequence, with LoRA of rank 3 on all queries and values.
fn step<B: Backend>(b: &mut B, ready: impl FnOnce(&mut B)) {
    let (model, _) = random(b, LLAMA);
    let adaptation = adapters(b, lora(&model.config, &[Projection::Q, Projection::V]), 1);
    let ids: Vec<u32> = (1..=N as u32).collect();
    let pack = forest(&[Sequence::ids(&ids, Some(0), Label::Text)], 1).pack;
    let rows: Vec<u32> = (0..N as u32).collect();
    let labels = Labels::new(b, None, &rows, &ids, &vec![1.0; rows.len()]).expect("memory");
    let layout = Some(&adaptation.layout);
    let mut acts = Activations::new(b, &model.config, layout, pack.len(), Save::All).expect("memory");
    let mut grads = Gradients::new(b, &model.config, pack.len(), rows.len()).expect("memory");
    let mut d_params = b.acc(adaptation.layout.stride).expect("memory");
    let device = b.pack(&pack).expect("memory");
    let input = Input::new(&pack, &device).adapted(&adaptation);
    ready(b);
    model.forward(b, &mut acts, &input, None, &mut NoTaps).expect("a forward");
    let request = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
    model.backward(b, &mut acts, &mut grads, &input, &labels, request);
}

fn profile() -> Profile {
    let recorder = Recorder::default();
    step(&mut Cpu::<f32>::new(Dtype::F32), |cpu| cpu.record(&recorder));
    recorder.take()
}

#[test]
fn profile_has_the_operations_of_a_step_in_order() {
    let (mut trace, profile) = (Trace::new(), profile());
    step(&mut trace, Trace::clear);
    let ops: Vec<&str> = profile.spans.iter().map(|span| span.op).collect();
    assert_eq!(ops, trace.ops());
    for pair in profile.spans.windows(2) {
        assert!(pair[0].start + pair[0].nanos <= pair[1].start, "{pair:?} overlap");
    }
    let calls: u64 = profile.totals.values().map(|total| total.calls).sum();
    assert_eq!(calls, ops.len() as u64);
    let spent: u64 = profile.totals.values().map(|total| total.nanos).sum();
    assert!(profile.end - profile.first >= spent);
}

#[test]
fn profile_counts_the_work_of_a_step() {
    let profile = profile();
    // The model's widths: C, F, H D, K D, V, and layers and ranks.
    let (c, f, q, kv, v, layers, rank) = (12, 20, 24, 8, 23, 3, 3);
    let flops = |op: &str| profile.totals[op].flops;
    let heads = q + 2 * kv;
    assert_eq!(flops("linear_fwd"), layers * 2 * N * (c * heads + q * c + 3 * c * f));
    // Nothing is below the lowest layer's queries, keys and values.
    assert_eq!(flops("linear_bwd_input"), 2 * N * (layers * (q * c + 3 * c * f) + (layers - 1) * c * heads));
    assert_eq!(flops("lora_fwd"), layers * 2 * N * rank * (2 * c + q + kv));
    let lora_bwd = layers * (2 * (q + kv) + 2 * c) + (layers - 1) * 2 * c;
    assert_eq!(flops("lora_bwd"), 2 * N * rank * lora_bwd);
    // Every query sees the keys up to its own; scores and sums forward, five such products backward.
    let seen = N * (N + 1) / 2;
    assert_eq!(flops("attention_fwd"), layers * 2 * 2 * q * seen);
    assert_eq!(flops("attention_bwd"), layers * 5 * 2 * q * seen);
    assert_eq!(flops("cross_entropy_bwd"), 2 * 2 * N * c * v);
    let named = ["linear_fwd", "linear_bwd_input", "lora_fwd", "lora_bwd", "attention_fwd", "attention_bwd"];
    let all: u64 = profile.totals.values().map(|total| total.flops).sum();
    assert_eq!(all, named.into_iter().chain(["cross_entropy_bwd"]).map(flops).sum::<u64>());
    let bytes = |op: &str| profile.totals[op].bytes;
    assert_eq!(bytes("residual_fwd"), 2 * layers * 4 * 3 * N * c);
    assert_eq!(bytes("rms_norm_fwd"), (2 * layers + 1) * 4 * (N * (2 * c + 1) + c));
    let weights = c * heads + heads + q * c + c + 3 * c * f + 2 * f + c;
    assert_eq!(bytes("linear_fwd"), layers * 4 * (weights + N * (3 * c + heads + q + c + 2 * (c + f) + f + c)));
}
