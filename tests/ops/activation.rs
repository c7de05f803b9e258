//! Functions of one number, with and without a gate.

use llamaprobe::arch;
use llamaprobe::backend::{Backend, ops};

use super::cases::{Case, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, compute};
use super::simt::recorder::{Recorder, elements};
use super::simt::tape::Arg::{At, Bits, Float, Int, Long, Null};

/// Every activation.
const ACTIVATIONS: [arch::Activation; 5] = [
    arch::Activation::Relu,
    arch::Activation::Gelu,
    arch::Activation::GeluTanh,
    arch::Activation::Tanh,
    arch::Activation::Silu,
];

/// The function's number in the kernels.
fn kind(f: arch::Activation) -> usize {
    match f {
        arch::Activation::Relu => 0,
        arch::Activation::Gelu => 1,
        arch::Activation::GeluTanh => 2,
        arch::Activation::Tanh => 3,
        arch::Activation::Silu => 4,
    }
}

/// gate, up -> act
#[derive(Clone, Debug)]
pub struct Gated {
    pub f: arch::Activation,
    pub len: usize,
}

impl Operation for Gated {
    fn inputs(&self) -> Vec<Array> {
        let gate = compute("gate", self.len).scaled(2.0).gradient(Role::Compute);
        vec![gate, compute("up", self.len).gradient(Role::Compute)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("act", self.len).gradient(Role::Acc)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let pairs = inputs[0].iter().zip(&inputs[1]);
        vec![pairs.map(|(&gate, up)| p.c(p.c(activation(p, self.f, gate).0) * up)).collect()]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        for (i, &d_act) in d_out.iter().enumerate() {
            let (gate, up) = (inputs[0][i], inputs[1][i]);
            let (value, slope) = activation(p, self.f, gate);
            d[0][i] = p.c(p.a(d_act * up) * slope);
            d[1][i] = p.c(d_act * value);
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (gate, up) = (device::compute(b, &inputs[0]), device::compute(b, &inputs[1]));
        let (act, &Self { f, len }) = (&mut out.compute[0], self);
        b.gated_fwd(ops::GatedFwd { act, gate: &gate, up: &up, f, len });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let &Self { f, len } = self;
        let [gate, up] = [0, 1].map(|i| device::compute(b, &given.inputs[i]));
        let [mut d_gate, mut d_up] = [0, 1].map(|i| device::compute(b, &given.start[i]));
        let mut d_act = device::acc(b, &given.d_outputs[0]);
        let (d_gate_out, d_up_out, d_act, gate, up) = (&mut d_gate, &mut d_up, &mut d_act, &gate, &up);
        b.gated_bwd(ops::GatedBwd { d_gate: d_gate_out, d_up: d_up_out, d_act, gate, up, f, len });
        vec![Some(device::read_compute(b, &d_gate, len)), Some(device::read_compute(b, &d_up, len))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let len = self.len;
        let [gate, up] = [0, 1].map(|i| At(r.tape.compute(&case.inputs[i])));
        let [act, d_gate, d_up] = [0, 1, 2].map(|i| At(r.output(i, len, Role::Compute)));
        let d_act = At(r.tape.acc(&case.d_outputs[0]));
        let f = Int(kind(self.f));
        r.run("gated_fwd", elements(len), &[act, gate, up, f, Long(len)]);
        r.run("gated_bwd", elements(len), &[d_gate, d_up, d_act, gate, up, f, Long(len)]);
        if self.f == arch::Activation::Silu {
            let [act, d_gate, d_up] = [0, 1, 2].map(|i| At(r.output(i, len, Role::Compute)));
            r.run("swiglu_fwd", elements(len), &[act, gate, up, Long(len)]);
            r.run("swiglu_bwd", elements(len), &[d_gate, d_up, d_act, gate, up, Long(len)]);
            // The same behind LoRAs that add nothing to the one row.
            let [act, d_gate, d_up] = [0, 1, 2].map(|i| At(r.output(i, len, Role::Compute)));
            let [xa, params] = [16, 16 * len].map(|n| At(r.tape.acc(&vec![0.0; n])));
            let (tiles, at) = (At(r.tape.ints(&[0, 0, 1])), Long(0));
            let sums = [gate, up, act, xa, xa, params, tiles, Int(16), Int(len), at, at, at, Float(1.0)];
            let none = [Null, Int(0), at, Null, Null, at, Null, Null, Bits(0), Int(0), Float(1.0)];
            let args = [&sums[..], &none].concat();
            let grid = [len.div_ceil(256), 1, 1];
            r.tape.launch("lora_fwd_expand_gated", [1, grid[0], 1], 128, 0, &args);
            // Of no runs' parameters.
            let to = [Null, Int(1), d_act, Null, Int(0), at, Int(1), d_gate, d_up, gate, up];
            let read = [Null, Null, Null, xa, params, Null, tiles, Int(1), Null, Int(0)];
            let dropout = [Null, Null, Bits(0), Int(0), Float(1.0)];
            let sizes = [Int(16), Int(len), Int(0), at, at, at, Float(1.0)];
            let none = [Null, Int(0), at, at, Float(1.0), Null, Null, at];
            let args = [&to[..], &read, &dropout, &sizes, &none].concat();
            r.tape.launch("lora_bwd_gated", grid, 128, 0, &args);
        }
        true
    }
}

/// x -> act
#[derive(Clone, Debug)]
pub struct Activation {
    pub f: arch::Activation,
    pub len: usize,
}

impl Operation for Activation {
    fn inputs(&self) -> Vec<Array> {
        vec![compute("x", self.len).scaled(2.0).gradient(Role::Compute)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("act", self.len).gradient(Role::Acc)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![inputs[0].iter().map(|&x| p.c(activation(p, self.f, x).0)).collect()]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        for (i, &d_act) in d_out.iter().enumerate() {
            d[0][i] = p.c(d_act * activation(p, self.f, inputs[0][i]).1);
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let x = device::compute(b, &inputs[0]);
        b.activation_fwd(ops::ActivationFwd { act: &mut out.compute[0], x: &x, f: self.f, len: self.len });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let &Self { f, len } = self;
        let (x, d_act) = (device::compute(b, &given.inputs[0]), device::acc(b, &given.d_outputs[0]));
        let mut d_x = device::compute(b, &given.start[0]);
        b.activation_bwd(ops::ActivationBwd { d_x: &mut d_x, d_act: &d_act, x: &x, f, len });
        vec![Some(device::read_compute(b, &d_x, len))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (len, f) = (self.len, Int(kind(self.f)));
        let (x, d_act) = (At(r.tape.compute(&case.inputs[0])), At(r.tape.acc(&case.d_outputs[0])));
        let [act, d_x] = [0, 1].map(|i| At(r.output(i, len, Role::Compute)));
        r.run("activation_fwd", elements(len), &[act, x, f, Long(len)]);
        r.run("activation_bwd", elements(len), &[d_x, d_act, x, f, Long(len)]);
        true
    }
}

fn sigmoid(p: Precision, x: f64) -> f64 {
    p.a(1.0 / p.a(1.0 + p.a((-x).exp())))
}

/// An activation's value and slope.
fn activation(p: Precision, f: arch::Activation, x: f64) -> (f64, f64) {
    match f {
        arch::Activation::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        arch::Activation::Gelu => {
            let share = p.a(0.5 * p.a(1.0 + p.a(erf(p.a(x / 2f64.sqrt())))));
            let density = p.a(p.a((-0.5 * p.a(x * x)).exp()) / std::f64::consts::TAU.sqrt());
            (p.a(x * share), p.a(share + p.a(x * density)))
        }
        arch::Activation::Tanh => {
            let y = p.a(x.tanh());
            (y, p.a(1.0 - p.a(y * y)))
        }
        arch::Activation::Silu => {
            let s = sigmoid(p, x);
            (p.a(x * s), p.a(s * p.a(1.0 + p.a(x * p.a(1.0 - s)))))
        }
        arch::Activation::GeluTanh => {
            let factor = (2.0 / std::f64::consts::PI).sqrt();
            let inner = p.a(factor * p.a(x + p.a(0.044715 * p.a(x * p.a(x * x)))));
            let tanh = p.a(inner.tanh());
            let slope = p.a(factor * p.a(1.0 + p.a(3.0 * 0.044715 * p.a(x * x))));
            let half = p.a(0.5 * p.a(1.0 + tanh));
            (p.a(x * half), p.a(half + p.a(0.5 * p.a(x * p.a(p.a(1.0 - p.a(tanh * tanh)) * slope)))))
        }
    }
}

/// The error function: its series near 0, the continued fraction of its complement far from it.
fn erf(x: f64) -> f64 {
    if x.abs() < 2.0 {
        let mut term = 2.0 / std::f64::consts::PI.sqrt() * x;
        let mut sum = term;
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum;
    }
    let z = x.abs();
    let fraction = (1..200).rev().fold(z, |rest, n| z + 0.5 * f64::from(n) / rest);
    (1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())).copysign(x)
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    let (size, len) = match set {
        Set::Small => ("", 43),
        Set::Large => ("large ", 5000),
        Set::Rows | Set::Forest => return vec![],
    };
    let gated = ACTIVATIONS.map(|f| Case::new(format!("{size}gated {f:?}"), Gated { f, len }));
    let plain = ACTIVATIONS.map(|f| Case::new(format!("{size}activation {f:?}"), Activation { f, len }));
    gated.into_iter().chain(plain).collect()
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "gated_fwd: up has 3 elements, needs 4",
            call: |b| {
                let ([], [mut act, gate, up], []) = device::buffers(b, [], [4, 4, 3], []);
                let (act, gate, up) = (&mut act, &gate, &up);
                b.gated_fwd(ops::GatedFwd { act, gate, up, f: arch::Activation::Silu, len: 4 });
            },
        },
        Refusal {
            says: "gated_bwd: d_act has 3 elements, needs 4",
            call: |b| {
                let ([mut d_act], [mut d_gate, mut d_up, gate, up], []) = device::buffers(b, [3], [4; 4], []);
                let (d_gate, d_up, d_act, gate, up) = (&mut d_gate, &mut d_up, &mut d_act, &gate, &up);
                let f = arch::Activation::Silu;
                b.gated_bwd(ops::GatedBwd { d_gate, d_up, d_act, gate, up, f, len: 4 });
            },
        },
        Refusal {
            says: "activation_fwd: act has 3 elements, needs 4",
            call: |b| {
                let ([], [mut act, x], []) = device::buffers(b, [], [3, 4], []);
                b.activation_fwd(ops::ActivationFwd { act: &mut act, x: &x, f: arch::Activation::Relu, len: 4 });
            },
        },
        Refusal {
            says: "activation_bwd: x has 3 elements, needs 4",
            call: |b| {
                let ([d_act], [mut d_x, x], []) = device::buffers(b, [4], [4, 3], []);
                let (d_x, d_act, x) = (&mut d_x, &d_act, &x);
                b.activation_bwd(ops::ActivationBwd { d_x, d_act, x, f: arch::Activation::Relu, len: 4 });
            },
        },
    ]
}
