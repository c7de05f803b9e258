//! Every operation in the most straightforward way: loops over elements, whole softmaxes over explicit paths. With
//! rounding after each step it is also the plain path of a lower precision, which rounds where transformers stores a
//! tensor.

use llamaprobe::arch::Dtype;
use llamaprobe::backend::ops::LinearDims;

use super::operation::{Operation, Role};

/// How results are rounded: each sum and product to the accumulation dtype, stored tensors to the compute dtype.
#[derive(Clone, Copy)]
pub struct Precision {
    pub acc: fn(f64) -> f64,
    pub compute: fn(f64) -> f64,
}

fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

impl Precision {
    pub const F64: Self = Self { acc: |x| x, compute: |x| x };
    pub const F32: Self = Self { acc: single, compute: single };
    pub const BF16: Self = Self { acc: single, compute: |x| half::bf16::from_f64(x).to_f64() };
    pub const F16: Self = Self { acc: single, compute: |x| half::f16::from_f64(x).to_f64() };

    /// That of a device of this compute dtype.
    pub fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::BF16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }

    /// Rounded to the accumulation dtype.
    pub fn a(self, x: f64) -> f64 {
        (self.acc)(x)
    }

    /// Rounded to the accumulation dtype, then to the compute dtype.
    pub fn c(self, x: f64) -> f64 {
        (self.compute)(self.a(x))
    }

    /// How what is held in a role is rounded.
    pub fn of_role(self, role: Role) -> fn(f64) -> f64 {
        match role {
            Role::Acc => self.acc,
            Role::Compute => self.compute,
        }
    }

    pub fn sum(self, terms: impl Iterator<Item = f64>) -> f64 {
        terms.fold(0.0, |sum, x| self.a(sum + self.a(x)))
    }

    /// The dot product of two strided vectors.
    pub fn dot(self, n: usize, a: impl Fn(usize) -> f64, b: impl Fn(usize) -> f64) -> f64 {
        self.sum((0..n).map(|i| a(i) * b(i)))
    }

    /// `to += x`.
    pub fn add(self, to: &mut f64, x: f64) {
        *to = self.a(*to + self.a(x));
    }
}

/// The gradients of the inputs from those of the outputs; zeros for inputs without.
pub fn backward(p: Precision, op: &impl Operation, inputs: &[Vec<f64>], d_outputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut d: Vec<Vec<f64>> = inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    if op.has_backward() {
        op.naive_backward(p, inputs, &d_outputs[0], &mut d);
    }
    d
}

/// `x weight^T`.
pub fn product(p: Precision, dims: LinearDims, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let LinearDims { rows, input, output } = dims;
    let start = |i: usize| (i / output * input, i % output * input);
    (0..rows * output).map(start).map(|(a, b)| p.dot(input, |i| x[a + i], |i| weight[b + i])).collect()
}

/// The gradients of both factors.
pub fn product_backward(p: Precision, d: &mut [Vec<f64>], dims: LinearDims, inputs: &[Vec<f64>], d_out: &[f64]) {
    let LinearDims { rows, input, output } = dims;
    for i in 0..input {
        for n in 0..rows {
            d[0][n * input + i] = p.dot(output, |o| d_out[n * output + o], |o| inputs[1][o * input + i]);
        }
        for o in 0..output {
            d[1][o * input + i] = p.dot(rows, |n| d_out[n * output + o], |n| inputs[0][n * input + i]);
        }
    }
}

pub fn log_sum_exp(p: Precision, x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    p.a(max + p.a(p.sum(x.iter().map(|x| p.a(p.a(x - max).exp()))).ln()))
}
