//! RMS norm.

use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, ROWS, Set};
use super::device::{self, BEFORE, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, acc, compute};
use super::simt::recorder::{FILL, Recorder, rows};
use super::simt::tape::Arg::{At, Float, Inside, Int};

/// x, weight -> out, rstd
#[derive(Clone, Debug)]
pub struct RmsNorm {
    pub rows: usize,
    pub width: usize,
    pub eps: f64,
}

impl Operation for RmsNorm {
    fn inputs(&self) -> Vec<Array> {
        let x = acc("x", self.rows * self.width).gradient_added();
        vec![x, compute("weight", self.width).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("out", self.rows * self.width).gradient(Role::Acc), acc("rstd", self.rows)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut out, mut rstds) = (Vec::new(), Vec::new());
        for x in inputs[0].chunks(self.width) {
            let mean = p.a(p.dot(self.width, |i| x[i], |i| x[i]) / self.width as f64);
            let rstd = p.a(1.0 / p.a(p.a(mean + p.a(self.eps)).sqrt()));
            rstds.push(rstd);
            out.extend(x.iter().zip(&inputs[1]).map(|(x, weight)| p.c(p.c(x * rstd) * weight)));
        }
        vec![out, rstds]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (width, rstd) = (self.width, self.naive_forward(p, inputs).remove(1));
        for (row, x) in inputs[0].chunks(width).enumerate() {
            let g = |i: usize| p.a(d_out[row * width + i] * inputs[1][i]);
            let mean = p.a(p.dot(width, |i| p.a(x[i] * rstd[row]), g) / width as f64);
            for i in 0..width {
                let n = p.a(x[i] * rstd[row]);
                d[0][row * width + i] = p.a(p.a(g(i) - p.a(n * mean)) * rstd[row]);
                p.add(&mut d[1][i], p.a(d_out[row * width + i] * n));
            }
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let &Self { rows, width, eps } = self;
        let (x, weight) = (device::acc(b, &inputs[0]), device::weight(b, &inputs[1]));
        let (out, rstd) = (&mut out.compute[0], &mut out.acc[0]);
        b.rms_norm_fwd(ops::RmsNormFwd { out, rstd, x: &x, weight: &weight, rows, width, eps });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let &Self { rows, width, .. } = self;
        let rstd = device::forward(b, self, given.inputs, 0.0).remove(1);
        let [x, rstd, d_out] = [&given.inputs[0], &rstd, &given.d_outputs[0]].map(|x| device::acc(b, x));
        let weight = device::weight(b, &given.inputs[1]);
        let (mut d_x, mut d_weight) = (device::acc(b, &given.start[0]), device::inside(b, &given.start[1]));
        let (d_out, x, rstd) = (&d_out, &x, &rstd);
        b.rms_norm_bwd(ops::RmsNormBwd { d_x: &mut d_x, d_out, x, rstd, weight: &weight, rows, width });
        b.rms_norm_bwd_weight(ops::RmsNormBwdWeight {
            d_weight: &mut d_weight,
            offset: BEFORE,
            d_out,
            x,
            rstd,
            rows,
            width,
        });
        vec![Some(device::read_acc(b, &d_x, given.len(0))), Some(device::read_inside(b, &d_weight, given.len(1)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let &Self { rows: n, width, eps } = self;
        let (x, weight) = (At(r.tape.acc(&case.inputs[0])), At(r.tape.compute(&case.inputs[1])));
        let (out, rstd) = (At(r.output(0, n * width, Role::Compute)), At(r.output(1, n, Role::Acc)));
        let dims = [Int(n), Int(width)];
        r.run("rms_norm_fwd", rows(n), &[out, rstd, x, weight, dims[0], dims[1], Float(eps)]);
        // As the sum of itself and nothing.
        let (again, nothing) = (At(r.output(0, n * width, Role::Compute)), At(r.tape.compute(&vec![0.0; n * width])));
        let (sum, of) = (At(r.tape.acc(&vec![FILL; n * width])), At(r.output(1, n, Role::Acc)));
        let args = [sum, again, of, x, nothing, weight, dims[0], dims[1], Float(eps)];
        r.run("residual_rms_norm_fwd", rows(n), &args);
        let (d_x, d_out) = (At(r.sum(2, n * width, 0)), At(r.tape.acc(&case.d_outputs[0])));
        r.run("rms_norm_bwd", rows(n), &[d_x, d_out, x, rstd, weight, dims[0], dims[1]]);
        let d_weight = Inside(r.sum(3, width, BEFORE), 4 * BEFORE);
        r.run("rms_norm_bwd_weight", rows(width.div_ceil(32)), &[d_weight, d_out, x, rstd, dims[0], dims[1]]);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[true, false] })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        Some(Self { rows: rows.len(), ..*self })
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    let case = |name: &str, rows, width, eps| Case::new(name, RmsNorm { rows, width, eps });
    match set {
        Set::Small => {
            vec![case("rms_norm 1x1", 1, 1, 1e-2), case("rms_norm 5x7", 5, 7, 1e-5), case("rms_norm 3x24", 3, 24, 1e-6)]
        }
        Set::Large => vec![case("large rms_norm", 9, 288, 1e-5), case("large rms_norm of long rows", 2, 2100, 1e-5)],
        Set::Rows => vec![case("rms_norm", ROWS, 75, 1e-5)],
        Set::Forest => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "rms_norm_fwd: out has 5 elements, needs 6",
            call: |b| {
                let ([mut rstd, x], [mut out], [weight]) = device::buffers(b, [2, 6], [5], [3]);
                let (out, rstd, x, weight) = (&mut out, &mut rstd, &x, &weight);
                b.rms_norm_fwd(ops::RmsNormFwd { out, rstd, x, weight, rows: 2, width: 3, eps: 1e-5 });
            },
        },
        Refusal {
            says: "rms_norm_bwd: the weight's length is 4, must be 3",
            call: |b| {
                let ([mut d_x, d_out, x, rstd], [], [weight]) = device::buffers(b, [6, 6, 6, 2], [], [4]);
                let (d_x, d_out, x, rstd, weight) = (&mut d_x, &d_out, &x, &rstd, &weight);
                b.rms_norm_bwd(ops::RmsNormBwd { d_x, d_out, x, rstd, weight, rows: 2, width: 3 });
            },
        },
        Refusal {
            says: "rms_norm_bwd_weight: d_weight has 4 elements, needs 5",
            call: |b| {
                let ([mut d_weight, d_out, x, rstd], [], []) = device::buffers(b, [4, 6, 6, 2], [], []);
                let (d_weight, d_out, x, rstd) = (&mut d_weight, &d_out, &x, &rstd);
                let op = ops::RmsNormBwdWeight { d_weight, offset: 2, d_out, x, rstd, rows: 2, width: 3 };
                b.rms_norm_bwd_weight(op);
            },
        },
    ]
}
