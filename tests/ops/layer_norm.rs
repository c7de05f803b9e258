//! Layer norm.

use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, ROWS, Set};
use super::device::{self, BEFORE, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, acc, compute};
use super::simt::recorder::{Recorder, rows};
use super::simt::tape::Arg::{At, Float, Inside, Int};

/// x, weight and bias -> out, mean, rstd
#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub rows: usize,
    pub width: usize,
    pub eps: f64,
}

impl Operation for LayerNorm {
    fn inputs(&self) -> Vec<Array> {
        let x = acc("x", self.rows * self.width).gradient_added();
        vec![x, compute("affine", 2 * self.width).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        let out = compute("out", self.rows * self.width).gradient(Role::Acc);
        vec![out, acc("mean", self.rows), acc("rstd", self.rows)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let width = self.width;
        let (mut out, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
        for x in inputs[0].chunks(width) {
            let mean = p.a(p.sum(x.iter().copied()) / width as f64);
            let centred = |i: usize| p.a(x[i] - mean);
            let var = p.a(p.dot(width, centred, centred) / width as f64);
            let rstd = p.a(1.0 / p.a(p.a(var + p.a(self.eps)).sqrt()));
            means.push(mean);
            rstds.push(rstd);
            let affine = |i: usize| p.c(p.a(p.a(centred(i) * rstd) * inputs[1][i]) + inputs[1][width + i]);
            out.extend((0..width).map(affine));
        }
        vec![out, means, rstds]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (width, saved) = (self.width, self.naive_forward(p, inputs));
        for (row, x) in inputs[0].chunks(width).enumerate() {
            let (mean, rstd) = (saved[1][row], saved[2][row]);
            let n = |i: usize| p.a(p.a(x[i] - mean) * rstd);
            let g = |i: usize| p.a(d_out[row * width + i] * inputs[1][i]);
            let mean_g = p.a(p.sum((0..width).map(g)) / width as f64);
            let proj = p.a(p.dot(width, n, g) / width as f64);
            for i in 0..width {
                d[0][row * width + i] = p.a(p.a(p.a(g(i) - mean_g) - p.a(n(i) * proj)) * rstd);
                p.add(&mut d[1][i], p.a(d_out[row * width + i] * n(i)));
                p.add(&mut d[1][width + i], d_out[row * width + i]);
            }
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let &Self { rows, width, eps } = self;
        let (weight, bias) = inputs[1].split_at(width);
        let (x, weight, bias) = (device::acc(b, &inputs[0]), device::weight(b, weight), device::weight(b, bias));
        let [mean, rstd] = &mut out.acc[..] else { panic!("two statistics") };
        let (out, weight, bias) = (&mut out.compute[0], &weight, &bias);
        b.layer_norm_fwd(ops::LayerNormFwd { out, mean, rstd, x: &x, weight, bias, rows, width, eps });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let &Self { rows, width, .. } = self;
        let saved = device::forward(b, self, given.inputs, 0.0);
        let of = [&given.inputs[0], &saved[1], &saved[2], &given.d_outputs[0]];
        let [x, mean, rstd, d_out] = &of.map(|x| device::acc(b, x));
        let weight = &device::weight(b, &given.inputs[1][..width]);
        let (mut d_x, mut d_affine) = (device::acc(b, &given.start[0]), device::inside(b, &given.start[1]));
        b.layer_norm_bwd(ops::LayerNormBwd { d_x: &mut d_x, d_out, x, mean, rstd, weight, rows, width });
        b.layer_norm_bwd_affine(ops::LayerNormBwdAffine {
            d_affine: &mut d_affine,
            offset: BEFORE,
            d_out,
            x,
            mean,
            rstd,
            rows,
            width,
        });
        vec![Some(device::read_acc(b, &d_x, given.len(0))), Some(device::read_inside(b, &d_affine, given.len(1)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let &Self { rows: n, width, eps } = self;
        let (x, dims) = (At(r.tape.acc(&case.inputs[0])), [Int(n), Int(width)]);
        let (weight, bias) = case.inputs[1].split_at(width);
        let [weight, bias] = [weight, bias].map(|values| At(r.tape.compute(values)));
        let out = At(r.output(0, n * width, Role::Compute));
        let [mean, rstd] = [1, 2].map(|result| At(r.output(result, n, Role::Acc)));
        let args = [out, mean, rstd, x, weight, bias, dims[0], dims[1], Float(eps)];
        r.run_norm("layer_norm_fwd", n, width, &args);
        let (d_x, d_out) = (At(r.sum(3, n * width, 0)), At(r.tape.acc(&case.d_outputs[0])));
        r.run_norm("layer_norm_bwd", n, width, &[d_x, d_out, x, mean, rstd, weight, dims[0], dims[1]]);
        let d_affine = Inside(r.sum(4, 2 * width, BEFORE), 4 * BEFORE);
        let args = [d_affine, d_out, x, mean, rstd, dims[0], dims[1]];
        r.run("layer_norm_bwd_affine", rows(width.div_ceil(32)), &args);
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
    let case = |name: &str, rows, width, eps| Case::new(name, LayerNorm { rows, width, eps });
    match set {
        Set::Small => vec![
            case("layer_norm 1x2", 1, 2, 1e-2),
            case("layer_norm 5x7", 5, 7, 1e-5),
            case("layer_norm 3x24", 3, 24, 1e-6),
        ],
        Set::Large => vec![case("large layer_norm", 9, 288, 1e-5), case("wide layer_norm", 2, 2100, 1e-5)],
        Set::Rows => vec![case("layer_norm", ROWS, 75, 1e-5)],
        Set::Forest => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "layer_norm_fwd: the bias's length is 2, must be 3",
            call: |b| {
                let ([mut mean, mut rstd, x], [mut out], [weight, bias]) = device::buffers(b, [2, 2, 6], [6], [3, 2]);
                let (out, mean, rstd, x, weight, bias) = (&mut out, &mut mean, &mut rstd, &x, &weight, &bias);
                let op = ops::LayerNormFwd { out, mean, rstd, x, weight, bias, rows: 2, width: 3, eps: 1e-5 };
                b.layer_norm_fwd(op);
            },
        },
        Refusal {
            says: "layer_norm_bwd: mean has 1 elements, needs 2",
            call: |b| {
                let ([mut d_x, d_out, x, mean, rstd], [], [weight]) = device::buffers(b, [6, 6, 6, 1, 2], [], [3]);
                let (d_x, d_out, x, mean, rstd, weight) = (&mut d_x, &d_out, &x, &mean, &rstd, &weight);
                b.layer_norm_bwd(ops::LayerNormBwd { d_x, d_out, x, mean, rstd, weight, rows: 2, width: 3 });
            },
        },
        Refusal {
            says: "layer_norm_bwd_affine: d_affine has 6 elements, needs 7",
            call: |b| {
                let ([mut d_affine, d_out, x, mean, rstd], [], []) = device::buffers(b, [6, 6, 6, 2, 2], [], []);
                let (d_affine, d_out, x, mean, rstd) = (&mut d_affine, &d_out, &x, &mean, &rstd);
                let op = ops::LayerNormBwdAffine { d_affine, offset: 1, d_out, x, mean, rstd, rows: 2, width: 3 };
                b.layer_norm_bwd_affine(op);
            },
        },
    ]
}
