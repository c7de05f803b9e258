//! The head: logits and the loss.

use llamaprobe::backend::ops::LinearDims;
use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, ROWS, Set};
use super::device::{self, BEFORE, Given, Outputs, Refusal, SENTINEL};
use super::linear::dims;
use super::naive::{self, Precision};
use super::operation::{Array, Factors, Operation, Role, RowResults, acc, compute};
use super::simt::recorder::{Recorder, elements, list, rows};
use super::simt::tape::Arg::{At, Float, Int, Long};
use super::simt::tape::Buffer;

/// x, head, and its bias if there is one -> logits
#[derive(Clone, Debug)]
pub struct Logits {
    pub dims: LinearDims,
    pub biased: bool,
    pub softcap: Option<f64>,
}

/// The product, and the bias added to it.
fn product(p: Precision, dims: LinearDims, inputs: &[Vec<f64>]) -> Vec<f64> {
    let mut logits = naive::product(p, dims, &inputs[0], &inputs[1]);
    let Some(bias) = inputs.get(2) else { return logits };
    for row in logits.chunks_mut(dims.output) {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x = p.a(*x + b));
    }
    logits
}

/// A logit under a soft cap, and its slope.
fn capped(p: Precision, x: f64, softcap: Option<f64>) -> (f64, f64) {
    let Some(cap) = softcap else { return (x, 1.0) };
    let t = p.a(p.a(x / p.a(cap)).tanh());
    (p.a(p.a(cap) * t), p.a(1.0 - p.a(t * t)))
}

/// Records the kernels of the bias and of the cap on logits, if there are such.
fn bias_and_cap(
    r: &mut Recorder<'_>,
    logits: Buffer,
    (bias, softcap): (Option<&Vec<f64>>, Option<f64>),
    LinearDims { rows: n, output, .. }: LinearDims,
) {
    if let Some(bias) = bias {
        let bias = r.tape.compute(bias);
        r.run("logits_bias", rows(n), &[At(logits), At(bias), Int(n), Int(output)]);
    }
    if let Some(cap) = softcap {
        let len = n * output;
        r.run("logits_softcap", elements(len), &[At(logits), Float(cap), Long(len)]);
    }
}

impl Operation for Logits {
    fn factors(&self) -> Factors {
        Factors::Weights
    }

    fn inputs(&self) -> Vec<Array> {
        let LinearDims { rows, input, output } = self.dims;
        let mut inputs = vec![compute("x", rows * input), compute("head", output * input).scaled(0.5)];
        inputs.extend(self.biased.then(|| compute("bias", output)));
        inputs
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("logits", self.dims.rows * self.dims.output)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let logits = product(p, self.dims, inputs).into_iter();
        vec![logits.map(|x| capped(p, x, self.softcap).0).collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, head) = (device::compute(b, &inputs[0]), device::weight(b, &inputs[1]));
        let bias = inputs.get(2).map(|bias| device::weight(b, bias));
        let (logits, x, head, bias) = (&mut out.acc[0], &x, &head, bias.as_ref());
        b.logits_fwd(ops::LogitsFwd { logits, x, head, bias, dims: self.dims, softcap: self.softcap });
    }

    /// Without a bias and a cap its logits are a dense product alone.
    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        if self.softcap.is_none() && !self.biased {
            return false;
        }
        let logits = naive::product(Precision::F64, self.dims, &case.inputs[0], &case.inputs[1]);
        let buffer = r.tape.acc(&logits);
        r.in_place(0, buffer, Role::Acc);
        bias_and_cap(r, buffer, (case.inputs.get(2), self.softcap), self.dims);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[true, false] })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        Some(Self { dims: LinearDims { rows: rows.len(), ..self.dims }, ..*self })
    }
}

/// x, head, and its bias if there is one -> loss
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    pub dims: LinearDims,
    pub biased: bool,
    pub targets: Vec<u32>,
    pub softcap: Option<f64>,
}

impl CrossEntropy {
    /// The logits, rounded, and the slopes of their cap.
    fn logits(&self, p: Precision, inputs: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let logits = product(p, self.dims, inputs).into_iter();
        let capped = logits.map(|x| capped(p, p.c(x), self.softcap));
        capped.map(|(x, slope)| (p.c(x), slope)).unzip()
    }
}

impl Operation for CrossEntropy {
    fn factors(&self) -> Factors {
        Factors::Weights
    }

    fn inputs(&self) -> Vec<Array> {
        let LinearDims { rows, input, output } = self.dims;
        let head = compute("head", output * input).scaled(0.5).gradient_added();
        let mut inputs = vec![compute("x", rows * input).gradient(Role::Acc), head];
        inputs.extend(self.biased.then(|| compute("bias", output).gradient_added()));
        inputs
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("loss", self.dims.rows).gradient(Role::Acc)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (logits, _) = self.logits(p, inputs);
        let rows = logits.chunks(self.dims.output).zip(&self.targets);
        vec![rows.map(|(row, &target)| p.a(naive::log_sum_exp(p, row) - row[target as usize])).collect()]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (mut d_logits, slopes) = self.logits(p, inputs);
        for (row, logits) in d_logits.chunks_mut(self.dims.output).enumerate() {
            let lse = naive::log_sum_exp(p, logits);
            for (v, x) in logits.iter_mut().enumerate() {
                let one = if v == self.targets[row] as usize { 1.0 } else { 0.0 };
                let d = p.a(p.a(p.a(p.a(*x - lse).exp()) - one) * d_out[row]);
                *x = p.c(d * slopes[row * self.dims.output + v]);
            }
        }
        naive::product_backward(p, d, self.dims, inputs, &d_logits);
        for row in d_logits.chunks(self.dims.output).filter(|_| self.biased) {
            d[2].iter_mut().zip(row).for_each(|(d, x)| *d = p.a(*d + x));
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, head) = (&device::compute(b, &inputs[0]), &device::weight(b, &inputs[1]));
        let bias = inputs.get(2).map(|bias| device::weight(b, bias));
        let (loss, targets, bias) = (&mut out.acc[0], &b.index(&self.targets).unwrap(), bias.as_ref());
        let &Self { dims, softcap, .. } = self;
        b.cross_entropy_fwd(ops::CrossEntropyFwd { loss, x, head, bias, targets, dims, softcap });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let &Self { dims, softcap, .. } = self;
        let (x, head) = (&device::compute(b, &given.inputs[0]), &device::weight(b, &given.inputs[1]));
        let (targets, row_weights) = (&b.index(&self.targets).unwrap(), &device::acc(b, &given.d_outputs[0]));
        let (mut loss, mut d_x) = (device::acc(b, &vec![SENTINEL; dims.rows]), device::acc(b, &given.start[0]));
        let bias = given.inputs.get(2).map(|bias| device::weight(b, bias));
        let bias = bias.as_ref();
        // The head's, then its bias's.
        let mut d_head = device::inside(b, &given.start[1..].concat());
        let head_len = dims.output * dims.input;
        let of_bias = bias.map(|_| BEFORE + head_len);
        b.cross_entropy_bwd(ops::CrossEntropyBwd {
            loss: &mut loss,
            d_x: &mut d_x,
            d_head: Some(ops::HeadGradient { d: &mut d_head, weight: BEFORE, bias: of_bias }),
            x,
            head,
            bias,
            targets,
            row_weights,
            dims,
            softcap,
        });
        let loss = device::read_acc(b, &loss, dims.rows);
        let of_forward = &device::forward(b, self, given.inputs, 0.0)[0];
        assert_eq!(loss, *of_forward, "cross_entropy_bwd: another loss than the forward's");
        let d_x = device::read_acc(b, &d_x, given.len(0));
        let (mut loss, mut again) = (device::acc(b, &vec![SENTINEL; dims.rows]), device::acc(b, &given.start[0]));
        b.cross_entropy_bwd(ops::CrossEntropyBwd {
            loss: &mut loss,
            d_x: &mut again,
            d_head: None,
            x,
            head,
            bias,
            targets,
            row_weights,
            dims,
            softcap,
        });
        let again = device::read_acc(b, &again, given.len(0));
        assert_eq!(again, d_x, "cross_entropy_bwd: d_x with and without d_head");
        let mut d_head = device::read_inside(b, &d_head, head_len + bias.map_or(0, |_| dims.output));
        let d_bias = d_head.split_off(head_len);
        let mut gradients = vec![Some(d_x), Some(d_head)];
        gradients.extend(self.biased.then_some(Some(d_bias)));
        gradients
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let LinearDims { rows: n, input, output } = self.dims;
        let (x, head) = (&case.inputs[0], &case.inputs[1]);
        let dot = |i: usize| (0..input).map(|c| x[i / output * input + c] * head[i % output * input + c]).sum();
        let logits: Vec<f64> = (0..n * output).map(dot).collect();
        let (logits, targets) = (r.tape.acc(&logits), At(r.tape.ints(&list(&self.targets))));
        bias_and_cap(r, logits, (case.inputs.get(2), self.softcap), self.dims);
        let (logits, inverse_cap) = (At(logits), Float(self.softcap.map_or(0.0, |cap| 1.0 / cap)));
        let weights = At(r.tape.acc(&case.d_outputs[0]));
        let [loss, again] = [0, 0].map(|result| At(r.output(result, n, Role::Acc)));
        r.run("cross_entropy_fwd", rows(n), &[loss, logits, targets, Int(n), Int(output)]);
        let d_logits = r.output(1, n * output, Role::Compute);
        r.outputs.last_mut().unwrap().head = Some((head.clone(), self.dims));
        let args = [again, At(d_logits), logits, targets, weights, Int(n), Int(output), inverse_cap];
        r.run("cross_entropy_bwd", rows(n), &args);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        let gradients: &[bool] = if self.biased { &[true, false, false] } else { &[true, false] };
        Some(RowResults { inputs: &[0], gradients })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        let targets = rows.iter().map(|&row| self.targets[row]).collect();
        Some(Self { dims: LinearDims { rows: rows.len(), ..self.dims }, targets, ..*self })
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    let entropy = |name: &str, dims: LinearDims, step: u32| {
        let targets = (0..dims.rows as u32).map(|row| row * step % dims.output as u32).collect();
        let (biased, softcap) = (name.contains("biased"), name.ends_with("capped").then_some(1.5));
        Case::new(name, CrossEntropy { dims, biased, targets, softcap })
    };
    let logits = |name: &str, dims| {
        // The error is of the sum before the cap: of large sums the cap is no smaller than they are.
        let cap = if name.starts_with("large") { 6.0 } else { 1.5 };
        let softcap = name.ends_with("capped").then_some(cap);
        Case::new(name, Logits { dims, biased: name.contains("biased"), softcap })
    };
    match set {
        Set::Small => vec![
            logits("logits", dims(5, 6, 13)),
            logits("logits capped", dims(5, 6, 13)),
            logits("logits biased", dims(5, 6, 13)),
            logits("logits biased and capped", dims(5, 6, 13)),
            entropy("cross_entropy 6x5x19 biased", dims(6, 5, 19), 5),
            entropy("cross_entropy 6x5x19 biased and capped", dims(6, 5, 19), 5),
            entropy("cross_entropy of nothing biased", dims(0, 3, 7), 5),
            entropy("cross_entropy 1x3x2", dims(1, 3, 2), 5),
            entropy("cross_entropy 6x5x19", dims(6, 5, 19), 5),
            entropy("cross_entropy of nothing", dims(0, 3, 7), 5),
            entropy("cross_entropy 6x5x19 capped", dims(6, 5, 19), 5),
            entropy("cross_entropy of nothing capped", dims(0, 3, 7), 5),
        ],
        Set::Large => vec![
            logits("large logits", dims(9, 288, 517)),
            logits("large logits capped", dims(9, 28, 517)),
            entropy("large cross_entropy", dims(21, 64, 1500), 97),
            entropy("large cross_entropy capped", dims(21, 64, 1500), 97),
            logits("large logits biased", dims(9, 28, 516)),
            entropy("large cross_entropy biased", dims(21, 64, 1500), 97),
        ],
        Set::Rows => vec![
            logits("logits", dims(ROWS, 64, 203)),
            logits("logits capped", dims(ROWS, 64, 203)),
            entropy("cross_entropy", dims(ROWS, 64, 203), 11),
            entropy("cross_entropy capped", dims(ROWS, 64, 203), 11),
            logits("logits biased", dims(ROWS, 64, 203)),
            entropy("cross_entropy biased", dims(ROWS, 64, 203), 11),
        ],
        Set::Forest => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "logits_fwd: x has 5 elements, needs 6",
            call: |b| {
                let ([mut logits], [x], [head]) = device::buffers(b, [15], [5], [10]);
                let (logits, x, head) = (&mut logits, &x, &head);
                b.logits_fwd(ops::LogitsFwd { logits, x, head, bias: None, dims: dims(3, 2, 5), softcap: None });
            },
        },
        Refusal {
            says: "logits_fwd: a soft cap is -1, must be above 0",
            call: |b| {
                let ([mut logits], [x], [head]) = device::buffers(b, [15], [6], [10]);
                let (logits, x, head) = (&mut logits, &x, &head);
                let (dims, softcap) = (dims(3, 2, 5), Some(-1.0));
                b.logits_fwd(ops::LogitsFwd { logits, x, head, bias: None, dims, softcap });
            },
        },
        Refusal {
            says: "logits_fwd: the bias's length is 4, must be 5",
            call: |b| {
                let ([mut logits], [x], [head, bias]) = device::buffers(b, [15], [6], [10, 4]);
                let (logits, x, head, bias) = (&mut logits, &x, &head, Some(&bias));
                b.logits_fwd(ops::LogitsFwd { logits, x, head, bias, dims: dims(3, 2, 5), softcap: None });
            },
        },
        Refusal {
            says: "cross_entropy_fwd: a target is 5, must be below 5",
            call: |b| {
                let ([mut loss], [x], [head]) = device::buffers(b, [1], [2], [10]);
                let (loss, x, head, targets) = (&mut loss, &x, &head, &b.index(&[5]).unwrap());
                let (dims, softcap) = (dims(1, 2, 5), None);
                b.cross_entropy_fwd(ops::CrossEntropyFwd { loss, x, head, bias: None, targets, dims, softcap });
            },
        },
        Refusal {
            says: "cross_entropy_bwd: row_weights has 1 elements, needs 2",
            call: |b| {
                let ([mut loss, mut d_x, row_weights], [x], [head]) = device::buffers(b, [2, 4, 1], [4], [10]);
                let targets = b.index(&[0, 4]).unwrap();
                b.cross_entropy_bwd(ops::CrossEntropyBwd {
                    loss: &mut loss,
                    d_x: &mut d_x,
                    d_head: None,
                    x: &x,
                    head: &head,
                    bias: None,
                    targets: &targets,
                    row_weights: &row_weights,
                    dims: dims(2, 2, 5),
                    softcap: None,
                });
            },
        },
    ]
}
