//! Distances to a teacher.

use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, ROWS, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::{self, Precision};
use super::operation::{Array, Operation, Role, RowResults, acc};
use super::simt::recorder::{Recorder, rows};
use super::simt::tape::Arg::{At, Float, Int};

/// before, x, target -> loss
#[derive(Clone, Debug)]
pub struct StateLoss {
    pub rows: usize,
    pub width: usize,
}

impl StateLoss {
    /// Adds the loss to `loss`; the gradient.
    fn run<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], loss: &mut B::Acc, row_weights: &[f64]) -> Vec<f64> {
        let len = self.rows * self.width;
        let (x, target, row_weights) =
            (&device::acc(b, &inputs[1]), &device::acc(b, &inputs[2]), &device::acc(b, row_weights));
        let mut d_x = device::acc(b, &vec![device::SENTINEL; len]);
        let &Self { rows, width } = self;
        b.state_loss(ops::StateLoss { loss, d_x: &mut d_x, x, target, row_weights, rows, width });
        device::read_acc(b, &d_x, len)
    }
}

impl Operation for StateLoss {
    fn inputs(&self) -> Vec<Array> {
        let len = self.rows * self.width;
        vec![acc("before", self.rows), acc("x", len).gradient(Role::Acc), acc("target", len)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("loss", self.rows).gradient(Role::Acc)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut loss = inputs[0].clone();
        for (row, loss) in loss.iter_mut().enumerate() {
            let d = |i: usize| p.a(inputs[1][row * self.width + i] - inputs[2][row * self.width + i]);
            p.add(loss, p.dot(self.width, d, d) / self.width as f64);
        }
        vec![loss]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        for (i, d) in d[1].iter_mut().enumerate() {
            let factor = p.a(d_out[i / self.width] * p.a(2.0 / self.width as f64));
            *d = p.a(factor * p.a(inputs[1][i] - inputs[2][i]));
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        out.acc[0] = device::acc(b, &inputs[0]);
        self.run(b, inputs, &mut out.acc[0], &vec![1.0; self.rows]);
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let mut loss = device::acc(b, &given.inputs[0]);
        vec![None, Some(self.run(b, given.inputs, &mut loss, &given.d_outputs[0])), None]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let [loss, x, target] = [0, 1, 2].map(|i| r.tape.acc(&case.inputs[i]));
        r.in_place(0, loss, Role::Acc);
        let (d_x, weights) = (r.output(1, self.rows * self.width, Role::Acc), r.tape.acc(&case.d_outputs[0]));
        let buffers = [loss, d_x, x, target, weights].map(At);
        r.run("state_loss", rows(self.rows), &[&buffers[..], &[Int(self.rows), Int(self.width)]].concat());
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0, 1, 2], gradients: &[false, true, false] })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        Some(Self { rows: rows.len(), ..*self })
    }
}

/// before, raw logits, teacher -> loss, the first of it as before
#[derive(Clone, Debug)]
pub struct KlLoss {
    pub from: usize,
    pub rows: usize,
    pub vocab: usize,
    pub temperature: f64,
    pub softcap: Option<f64>,
}

impl KlLoss {
    /// The logits under the cap.
    fn capped(&self, p: Precision, raw: &[f64]) -> Vec<f64> {
        let cap = |&x: &f64| self.softcap.map_or(x, |cap| p.a(cap * p.a(p.a(x / cap).tanh())));
        raw.iter().map(cap).collect()
    }

    /// Log-probabilities of a row at the temperature.
    fn log_softmax(&self, p: Precision, logits: &[f64]) -> Vec<f64> {
        let scaled: Vec<f64> = logits.iter().map(|x| p.a(x / self.temperature)).collect();
        let lse = naive::log_sum_exp(p, &scaled);
        scaled.iter().map(|x| p.a(x - lse)).collect()
    }

    /// Sets the loss behind the first; the gradient.
    fn run<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], loss: &mut B::Acc, row_weights: &[f64]) -> Vec<f64> {
        let len = self.rows * self.vocab;
        let logits = &device::acc(b, &self.capped(Precision::F64, &inputs[1]));
        let (teacher, row_weights) = (&device::acc(b, &inputs[2]), &device::acc(b, row_weights));
        let mut d_logits = device::compute(b, &vec![device::SENTINEL; len]);
        let &Self { from, rows, vocab, temperature, softcap } = self;
        let d = &mut d_logits;
        let op =
            ops::KlLoss { loss, d_logits: d, logits, teacher, row_weights, from, rows, vocab, temperature, softcap };
        b.kl_loss(op);
        device::read_compute(b, &d_logits, len)
    }
}

impl Operation for KlLoss {
    fn inputs(&self) -> Vec<Array> {
        let len = self.rows * self.vocab;
        vec![acc("before", self.from), acc("raw", len).gradient(Role::Compute), acc("teacher", len)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("loss", self.from + self.rows).gradient(Role::Acc)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let logits = self.capped(p, &inputs[1]);
        let rows = logits.chunks(self.vocab).zip(inputs[2].chunks(self.vocab)).map(|(x, t)| {
            let (x, t) = (self.log_softmax(p, x), self.log_softmax(p, t));
            let kl = p.dot(self.vocab, |i| p.a(t[i].exp()), |i| p.a(t[i] - x[i]));
            p.a(self.temperature * self.temperature * kl)
        });
        vec![inputs[0].iter().copied().chain(rows).collect()]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let logits = self.capped(p, &inputs[1]);
        for row in 0..self.rows {
            let at = row * self.vocab..(row + 1) * self.vocab;
            let (x, t) = (self.log_softmax(p, &logits[at.clone()]), self.log_softmax(p, &inputs[2][at.clone()]));
            for (i, d) in d[1][at.clone()].iter_mut().enumerate() {
                let slope = self.softcap.map_or(1.0, |cap| 1.0 - (logits[at.start + i] / cap).powi(2));
                let difference = p.a(p.a(x[i].exp()) - p.a(t[i].exp()));
                *d = p.c(p.a(d_out[self.from + row] * self.temperature) * p.a(difference * slope));
            }
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        out.acc[0] = device::acc(b, &[&inputs[0][..], &vec![out.fill; self.rows]].concat());
        self.run(b, inputs, &mut out.acc[0], &vec![1.0; self.from + self.rows]);
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let mut loss = device::acc(b, &vec![0.0; self.from + self.rows]);
        vec![None, Some(self.run(b, given.inputs, &mut loss, &given.d_outputs[0])), None]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        // The kernel is given the addresses behind the first.
        if self.from > 0 {
            return false;
        }
        let len = self.rows * self.vocab;
        let (logits, teacher) =
            (r.tape.acc(&self.capped(Precision::F64, &case.inputs[1])), r.tape.acc(&case.inputs[2]));
        let (loss, d_logits) = (r.output(0, self.rows, Role::Acc), r.output(1, len, Role::Compute));
        let weights = r.tape.acc(&case.d_outputs[0]);
        let buffers = [loss, d_logits, logits, teacher, weights].map(At);
        let inverse_cap = self.softcap.map_or(0.0, |cap| 1.0 / cap);
        let factors = [self.temperature, 1.0 / self.temperature, inverse_cap].map(Float);
        let sizes = [Int(self.rows), Int(self.vocab)];
        r.run("kl_loss", rows(self.rows), &[&buffers[..], &sizes, &factors].concat());
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[1, 2], gradients: &[false, true, false] })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        Some(Self { rows: rows.len(), ..self.clone() })
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    let states = |rows, width| Case::new(format!("state_loss {rows}x{width}"), StateLoss { rows, width });
    let kl = |from, rows, vocab, temperature: f64, softcap| {
        let capped = if softcap { " capped" } else { "" };
        let op = KlLoss { from, rows, vocab, temperature, softcap: softcap.then_some(1.5) };
        Case::new(format!("kl_loss {from}+{rows}x{vocab} T {temperature}{capped}"), op)
    };
    match set {
        Set::Small => vec![
            states(5, 7),
            states(0, 3),
            kl(0, 4, 19, 1.0, false),
            kl(2, 3, 13, 2.5, false),
            kl(0, 3, 11, 0.5, true),
            kl(1, 0, 5, 1.0, false),
        ],
        Set::Rows => vec![states(ROWS, 45), kl(0, ROWS, 203, 2.0, false)],
        Set::Large => vec![states(3, 2309), kl(0, 3, 2309, 1.0, false)],
        Set::Forest => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "state_loss: target has 5 elements, needs 6",
            call: |b| {
                let ([mut loss, mut d_x, x, target, row_weights], [], []) = device::buffers(b, [2, 6, 6, 5, 2], [], []);
                let (loss, d_x, x, target, row_weights) = (&mut loss, &mut d_x, &x, &target, &row_weights);
                b.state_loss(ops::StateLoss { loss, d_x, x, target, row_weights, rows: 2, width: 3 });
            },
        },
        Refusal {
            says: "kl_loss: loss has 2 elements, needs 3",
            call: |b| {
                let ([mut loss, logits, teacher, row_weights], [mut d_logits], []) =
                    device::buffers(b, [2, 6, 6, 3], [6], []);
                let (loss, d_logits, logits, teacher, row_weights) =
                    (&mut loss, &mut d_logits, &logits, &teacher, &row_weights);
                let (from, rows, vocab, temperature, softcap) = (1, 2, 3, 1.0, None);
                let op = ops::KlLoss {
                    loss,
                    d_logits,
                    logits,
                    teacher,
                    row_weights,
                    from,
                    rows,
                    vocab,
                    temperature,
                    softcap,
                };
                b.kl_loss(op);
            },
        },
        Refusal {
            says: "kl_loss: a temperature is 0, must be above 0",
            call: |b| {
                let ([mut loss, logits, teacher, row_weights], [mut d_logits], []) =
                    device::buffers(b, [2, 6, 6, 2], [6], []);
                let (loss, d_logits, logits, teacher, row_weights) =
                    (&mut loss, &mut d_logits, &logits, &teacher, &row_weights);
                let (from, rows, vocab, temperature, softcap) = (0, 2, 3, 0.0, None);
                let op = ops::KlLoss {
                    loss,
                    d_logits,
                    logits,
                    teacher,
                    row_weights,
                    from,
                    rows,
                    vocab,
                    temperature,
                    softcap,
                };
                b.kl_loss(op);
            },
        },
    ]
}
