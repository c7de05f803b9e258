//! Every operation of every device against the naive loops, and against the oracle, a device of f64.
//!
//! A device of lower precision may be wrong by twice what the plain loops of its precision are wrong by, both against
//! the oracle on the same rounded inputs. A new device takes one line: its own `#[test]`.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::backend::trace::Trace;

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::ops::cases::{Case, Set};
use crate::ops::naive::{self, Precision};
use crate::ops::operation::Operation;
use crate::ops::parity::{
    ORACLE, against_naive, cases_of, naive_results, parity, parity_of_split_products, perturbed, result_roles, results,
    rounds_as_families_do, scales,
};
#[cfg(feature = "cuda")]
use crate::ops::parity::{parity_of_large_attention, parity_on_tensor_cores};
use crate::ops::{self, Op, normal};
use crate::skips::{Reason, skip};

/// On every instruction set of this CPU.
fn on_cpu(dtype: Dtype, file: &str) {
    for &isa in Isa::available() {
        let mut b = Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(dtype) });
        parity(&mut b, file, Precision::of(dtype));
    }
}

fn cpu_f32(file: &str) {
    on_cpu(Dtype::F32, file);
}

fn cpu_bf16(file: &str) {
    on_cpu(Dtype::BF16, file);
}

fn cpu_f16(file: &str) {
    on_cpu(Dtype::F16, file);
}

with_operations! { tests_per_file {
    cpu_f32 => cpu_f32;
    cpu_bf16 => cpu_bf16;
    cpu_f16 => cpu_f16;
    oracle_is_the_naive_loops => oracle;
    naive_backward_is_that_of_the_naive_forward => naive_backward;
} }

#[test]
fn cpu_f32x3() {
    let pairs: Vec<Isa> = Isa::available().iter().copied().filter(|isa| isa.has_pairs()).collect();
    if pairs.is_empty() {
        skip(Reason::Pairs);
    }
    for isa in pairs {
        let settings = CpuSettings { isa, split: true, ..CpuSettings::new(Dtype::F32) };
        parity_of_split_products(&mut Cpu::<f32>::open(&settings), Precision::F32);
    }
}

#[cfg(feature = "cuda")]
fn on_cuda(dtype: Dtype) {
    cuda::device(dtype).iter_mut().for_each(|b| parity_on_tensor_cores(b, Precision::of(dtype)));
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_f32() {
    on_cuda(Dtype::F32);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_bf16() {
    on_cuda(Dtype::BF16);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_f16() {
    on_cuda(Dtype::F16);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_attention_of_large_passes() {
    for (dtype, head_dim) in [(Dtype::BF16, 128), (Dtype::F16, 64)] {
        cuda::device(dtype).iter_mut().for_each(|b| parity_of_large_attention(b, head_dim, Precision::of(dtype)));
    }
}

fn oracle(file: &str) {
    let mut b = Cpu::oracle();
    let mut failed = Vec::new();
    for case in cases_of(&mut b, file) {
        let naive = naive_results(Precision::F64, &case);
        let expected = naive.iter().zip(scales(&case.op, &naive)).zip(result_roles(&case.op));
        for (got, ((naive, scale), (name, _))) in results(&mut b, &case).iter().zip(expected) {
            let deviation = against_naive(got, naive, scale);
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

fn naive_backward(file: &str) {
    const STEP: f64 = 1e-3;
    for case in ops::cases(&mut Trace::new(), file, Set::Small) {
        let total = |inputs: &[Vec<f64>]| -> f64 {
            let outputs = case.op.naive_forward(Precision::F64, inputs);
            let through = case.op.outputs().into_iter().zip(outputs.iter().zip(&case.d_outputs));
            let through = through.filter(|(output, _)| output.gradient.is_some());
            through.flat_map(|(_, (out, d_out))| out.iter().zip(d_out)).map(|(x, d)| x * d).sum()
        };
        // One direction in all inputs that have gradients at once.
        let direction: Vec<Vec<f64>> = case.inputs.iter().zip(700..).map(|(x, seed)| normal(seed, x.len())).collect();
        let moves: Vec<bool> = case.op.inputs().iter().map(|input| input.gradient.is_some()).collect();
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
fn cpu_rounds_as_families_do() {
    rounds_as_families_do(&mut Cpu::new(Dtype::BF16));
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_rounds_as_families_do() {
    cuda::device(Dtype::BF16).iter_mut().for_each(rounds_as_families_do);
}

#[test]
fn lora_dropout_is_the_same_decision_on_every_device() {
    let decisions = |cases: Vec<Case>| -> Vec<Vec<bool>> {
        let drops = cases.into_iter().filter_map(|case| match case.op {
            Op::Lora(lora) => Some(lora.drop?.survivors),
            _ => None,
        });
        drops.collect()
    };
    let expected = decisions(cases_of(&mut Cpu::oracle(), "lora"));
    assert_eq!(expected.len(), 6);
    for dtype in [Dtype::F32, Dtype::BF16] {
        assert_eq!(decisions(cases_of(&mut Cpu::new(dtype), "lora")), expected, "{dtype}");
    }
}
