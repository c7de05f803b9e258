//! Every operation of every device against the naive loops, and against the oracle `Cpu<f64>`.
//!
//! A device of lower precision may be wrong by twice what the plain loops of its precision are wrong by, both against
//! the oracle on the same rounded inputs. A new device takes one line: its own `#[test]`.

use llamaprobe::backend::cpu::{Cpu, CpuF32, Isa};
use llamaprobe::backend::trace::Trace;

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::ops::cases::{self, Case};
use crate::ops::naive::{self, Precision};
use crate::ops::op::Op;
#[cfg(feature = "cuda")]
use crate::ops::parity::parity_on_tensor_cores;
use crate::ops::parity::{
    ORACLE, against_naive, all_cases, naive_results, parity, parity_of_split_products, perturbed, results, scales,
};
use crate::ops::{device, normal};
use crate::skips::{Reason, skip};

#[test]
fn cpu_f32() {
    Isa::available().iter().for_each(|&isa| parity(&mut Cpu::<f32>::with_isa(isa), Precision::F32));
}

#[test]
fn cpu_bf16() {
    Isa::available().iter().for_each(|&isa| parity(&mut Cpu::<f32, half::bf16>::with_isa(isa), Precision::BF16));
}

#[test]
fn cpu_f16() {
    Isa::available().iter().for_each(|&isa| parity(&mut Cpu::<f32, half::f16>::with_isa(isa), Precision::F16));
}

#[test]
fn cpu_f32x3() {
    let pairs: Vec<Isa> = Isa::available().iter().copied().filter(|isa| isa.has_pairs()).collect();
    if pairs.is_empty() {
        skip(Reason::Pairs);
    }
    pairs.into_iter().for_each(|isa| parity_of_split_products(&mut CpuF32::split(isa), Precision::F32));
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_f32() {
    cuda::device::<f32>().iter_mut().for_each(|b| parity_on_tensor_cores(b, Precision::F32));
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_bf16() {
    cuda::device::<half::bf16>().iter_mut().for_each(|b| parity_on_tensor_cores(b, Precision::BF16));
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_f16() {
    cuda::device::<half::f16>().iter_mut().for_each(|b| parity_on_tensor_cores(b, Precision::F16));
}

#[test]
fn the_oracle_is_the_naive_loops() {
    let mut b = Cpu::<f64>::new();
    let mut failed = Vec::new();
    for case in all_cases(&mut b) {
        let naive = naive_results(Precision::F64, &case);
        let expected = naive.iter().zip(scales(&case.op, &naive));
        for ((name, _, got), (naive, scale)) in results(&mut b, &case).into_iter().zip(expected) {
            let deviation = against_naive(&got, naive, scale);
            if !deviation.accepted() {
                failed.push(format!("{} {name}: {deviation:?}", case.name));
            }
            if let Some(worse) = perturbed(naive, 10.0 * ORACLE * scale) {
                assert!(!against_naive(&worse, naive, scale).accepted(), "{} {name}", case.name);
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_naive_backward_is_that_of_the_naive_forward() {
    const STEP: f64 = 1e-3;
    for case in cases::small(&mut Trace::new()) {
        let total = |inputs: &[Vec<f64>]| -> f64 {
            let outputs = naive::forward(Precision::F64, &case.op, inputs);
            let through = case.op.output_gradients().into_iter().zip(outputs.iter().zip(&case.d_outputs));
            through.filter(|t| t.0.is_some()).flat_map(|t| t.1.0.iter().zip(t.1.1)).map(|(x, d)| x * d).sum()
        };
        // One direction in all inputs that have gradients at once.
        let direction: Vec<Vec<f64>> = case.inputs.iter().zip(700..).map(|(x, seed)| normal(seed, x.len())).collect();
        let moves: Vec<bool> = case.op.gradients().iter().map(Option::is_some).collect();
        let at = |by: f64| -> f64 {
            let mut inputs = case.inputs.clone();
            for ((x, d), _) in inputs.iter_mut().zip(&direction).zip(&moves).filter(|(_, moves)| **moves) {
                x.iter_mut().zip(d).for_each(|(x, d)| *x += by * d);
            }
            total(&inputs)
        };
        let difference = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP);
        let gradients = naive::backward(Precision::F64, &case.op, &case.inputs, &case.d_outputs);
        let along = gradients.iter().zip(&direction).zip(&moves).filter(|(_, moves)| **moves);
        let slope: f64 = along.flat_map(|((g, d), _)| g.iter().zip(d)).map(|(g, d)| g * d).sum();
        assert!((slope - difference).abs() <= 1e-7 * (1.0 + slope.abs()), "{}: {slope}, {difference}", case.name);
    }
}

#[test]
fn the_null_device_accepts_every_case() {
    let mut trace = Trace::new();
    let cases = all_cases(&mut trace);
    trace.clear();
    for case in &cases {
        let zeros: Vec<Vec<f64>> = case.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
        device::forward(&mut trace, &case.op, &case.inputs, 0.0);
        device::backward(&mut trace, &case.op, &case.inputs, &case.d_outputs, &zeros, false);
    }
    for op in OPS {
        assert!(trace.ops().contains(&op), "no case of {op}");
    }
}

#[test]
fn dropout_is_the_same_decision_on_every_device() {
    let mut oracle = Cpu::<f64>::new();
    let decisions = |cases: Vec<Case>| -> Vec<Vec<bool>> {
        let drops = cases.into_iter().filter_map(|case| match case.op {
            Op::Lora { drop: Some(drop), .. } => Some(drop.kept),
            _ => None,
        });
        drops.collect()
    };
    let expected = decisions(all_cases(&mut oracle));
    assert_eq!(decisions(all_cases(&mut Cpu::<f32>::new())), expected);
    assert_eq!(decisions(all_cases(&mut Cpu::<f32, half::bf16>::new())), expected);
}

/// The operations of the contract.
const OPS: [&str; 42] = [
    "cast",
    "widen",
    "residual_fwd",
    "gather_compute",
    "gather_acc",
    "scatter_add",
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
    "rope_fwd",
    "rope_bwd",
    "attention_fwd",
    "attention_bwd",
    "attention_pattern",
    "attention_result",
    "keep",
    "linear_fwd",
    "linear_bwd_input",
    "linear_bwd_weight",
    "linear_bwd_bias",
    "lora_fwd",
    "lora_bwd",
    "lora_delta",
    "swiglu_fwd",
    "swiglu_bwd",
    "activation_fwd",
    "activation_bwd",
    "logits_fwd",
    "cross_entropy_fwd",
    "cross_entropy_bwd",
    "grad_norm",
    "check_finite",
    "adamw",
    "refresh_weight",
];
