//! RMS norm.

use llamaprobe::arch::RmsWeight;
use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, ROWS, Set};
use super::device::{self, BEFORE, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, acc, compute};
use super::simt::recorder::{FILL, Recorder, rows};
use super::simt::tape::Arg::{At, Float, Inside, Int, Null};

/// Every form.
pub const FORMS: [RmsWeight; 3] = [RmsWeight::Rounded, RmsWeight::Exact, RmsWeight::OnePlus];

/// The form's number in the kernels.
fn number(form: RmsWeight) -> usize {
    match form {
        RmsWeight::Rounded => 0,
        RmsWeight::Exact => 1,
        RmsWeight::OnePlus => 2,
    }
}

/// What multiplies the normed row.
fn factor(p: Precision, form: RmsWeight, weight: f64) -> f64 {
    if form == RmsWeight::OnePlus { p.a(1.0 + weight) } else { weight }
}

/// x, weight -> out, rstd
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    pub rows: usize,
    pub width: usize,
    pub eps: f64,
    pub form: RmsWeight,
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
            out.extend(x.iter().zip(&inputs[1]).map(|(x, &weight)| {
                let n = if self.form == RmsWeight::Rounded { p.c(x * rstd) } else { p.a(x * rstd) };
                p.c(n * factor(p, self.form, weight))
            }));
        }
        vec![out, rstds]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (width, rstd) = (self.width, self.naive_forward(p, inputs).remove(1));
        for (row, x) in inputs[0].chunks(width).enumerate() {
            let g = |i: usize| p.a(d_out[row * width + i] * factor(p, self.form, inputs[1][i]));
            let mean = p.a(p.dot(width, |i| p.a(x[i] * rstd[row]), g) / width as f64);
            for i in 0..width {
                let n = p.a(x[i] * rstd[row]);
                d[0][row * width + i] = p.a(p.a(g(i) - p.a(n * mean)) * rstd[row]);
                p.add(&mut d[1][i], p.a(d_out[row * width + i] * n));
            }
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let &Self { rows, width, eps, form } = self;
        let (x, weight) = (device::acc(b, &inputs[0]), device::weight(b, &inputs[1]));
        let (out, rstd) = (&mut out.compute[0], &mut out.acc[0]);
        b.rms_norm_fwd(ops::RmsNormFwd { out, rstd, x: &x, weight: &weight, rows, width, eps, form });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let &Self { rows, width, form, .. } = self;
        let rstd = device::forward(b, self, given.inputs, 0.0).remove(1);
        let [x, rstd, mut d_out] = [&given.inputs[0], &rstd, &given.d_outputs[0]].map(|x| device::acc(b, x));
        let weight = device::weight(b, &given.inputs[1]);
        let (mut d_x, mut d_weight) = (device::acc(b, &given.start[0]), device::inside(b, &given.start[1]));
        let (d_out, x, rstd) = (&mut d_out, &x, &rstd);
        b.rms_norm_bwd(ops::RmsNormBwd {
            d_x: &mut d_x,
            d_out: &mut *d_out,
            x,
            rstd,
            weight: &weight,
            rows,
            width,
            form,
        });
        // Rounded at once, or later.
        let [at_once, later] = [(); 2].map(|()| {
            let mut rounded = device::compute(b, &vec![0.0; rows * width]);
            b.cast(ops::Cast { out: &mut rounded, x: &d_x, len: rows * width });
            device::read_compute(b, &rounded, rows * width)
        });
        assert_eq!(at_once, later, "rms_norm_bwd: rounded at once and later");
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
        let &Self { rows: n, width, eps, form } = self;
        let form = Int(number(form));
        let (x, weight) = (At(r.tape.acc(&case.inputs[0])), At(r.tape.compute(&case.inputs[1])));
        let (out, rstd) = (At(r.output(0, n * width, Role::Compute)), At(r.output(1, n, Role::Acc)));
        let dims = [Int(n), Int(width)];
        r.run_norm("rms_norm_fwd", n, width, &[out, rstd, x, weight, dims[0], dims[1], Float(eps), form]);
        // As the sum of itself and nothing.
        let (again, nothing) = (At(r.output(0, n * width, Role::Compute)), At(r.tape.compute(&vec![0.0; n * width])));
        let (sum, of) = (At(r.tape.acc(&vec![FILL; n * width])), At(r.output(1, n, Role::Acc)));
        let args = [sum, again, of, x, nothing, weight, dims[0], dims[1], Float(eps), form];
        r.run_norm("residual_rms_norm_fwd", n, width, &args);
        let (d_x, d_out) = (At(r.sum(2, n * width, 0)), At(r.tape.acc(&case.d_outputs[0])));
        r.run_norm("rms_norm_bwd", n, width, &[d_x, Null, d_out, x, rstd, weight, dims[0], dims[1], form]);
        // Added to nothing, and rounded too.
        let (d_x, d_x_real) = (r.tape.acc(&vec![0.0; n * width]), r.tape.compute(&vec![FILL; n * width]));
        r.in_place(2, d_x, Role::Acc);
        let args = [At(d_x), At(d_x_real), d_out, x, rstd, weight, dims[0], dims[1], form];
        r.run_norm("rms_norm_bwd", n, width, &args);
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

/// x, weight -> out, rstd, of rows in the compute dtype
#[derive(Clone, Copy, Debug)]
pub struct RmsNormCompute {
    pub norm: RmsNorm,
}

impl Operation for RmsNormCompute {
    fn inputs(&self) -> Vec<Array> {
        let x = compute("x", self.norm.rows * self.norm.width).gradient(Role::Compute);
        vec![x, compute("weight", self.norm.width).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        let out = compute("out", self.norm.rows * self.norm.width).gradient(Role::Compute);
        vec![out, acc("rstd", self.norm.rows)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        self.norm.naive_forward(p, inputs)
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        self.norm.naive_backward(p, inputs, d_out, d);
        d[0].iter_mut().for_each(|x| *x = p.c(*x));
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let RmsNorm { rows, width, eps, form } = self.norm;
        let (x, weight) = (device::compute(b, &inputs[0]), device::weight(b, &inputs[1]));
        let (out, rstd) = (&mut out.compute[0], &mut out.acc[0]);
        b.rms_norm_compute_fwd(ops::RmsNormComputeFwd { out, rstd, x: &x, weight: &weight, rows, width, eps, form });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let RmsNorm { rows, width, form, .. } = self.norm;
        let rstd = device::forward(b, self, given.inputs, 0.0).remove(1);
        let rstd = &device::acc(b, &rstd);
        let (x, weight) = (&device::compute(b, &given.inputs[0]), &device::weight(b, &given.inputs[1]));
        let (mut d_x, mut d_weight) = (device::compute(b, &given.d_outputs[0]), device::inside(b, &given.start[1]));
        b.rms_norm_compute_bwd_weight(ops::RmsNormComputeBwdWeight {
            d_weight: &mut d_weight,
            offset: BEFORE,
            d_out: &d_x,
            x,
            rstd,
            rows,
            width,
        });
        b.rms_norm_compute_bwd(ops::RmsNormComputeBwd { d_x: &mut d_x, x, rstd, weight, rows, width, form });
        vec![Some(device::read_compute(b, &d_x, given.len(0))), Some(device::read_inside(b, &d_weight, given.len(1)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let RmsNorm { rows: n, width, eps, form } = self.norm;
        let [x, weight] = [0, 1].map(|i| At(r.tape.compute(&case.inputs[i])));
        let (out, rstd) = (At(r.output(0, n * width, Role::Compute)), At(r.output(1, n, Role::Acc)));
        let (dims, form) = ([Int(n), Int(width)], Int(number(form)));
        let args = [out, rstd, x, weight, dims[0], dims[1], Float(eps), form];
        r.run_norm("rms_norm_compute_fwd", n, width, &args);
        let d_weight = Inside(r.sum(3, width, BEFORE), 4 * BEFORE);
        let d_x = r.tape.compute(&case.d_outputs[0]);
        let args = [d_weight, At(d_x), x, rstd, dims[0], dims[1]];
        r.run("rms_norm_compute_bwd_weight", rows(width.div_ceil(32)), &args);
        r.in_place(2, d_x, Role::Compute);
        let args = [At(d_x), x, rstd, weight, dims[0], dims[1], form];
        r.run_norm("rms_norm_compute_bwd", n, width, &args);
        // The same of rows that are not rounded, added to nothing.
        let (sum, wide, d_out) = (r.tape.acc(&vec![0.0; n * width]), r.tape.acc(&case.inputs[0]), &case.d_outputs[0]);
        r.in_place(2, sum, Role::Acc);
        let args = [At(sum), Null, At(r.tape.compute(d_out)), At(wide), rstd, weight, dims[0], dims[1], form];
        r.run_norm("rms_norm_bwd_rounded", n, width, &args);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        self.norm.row_results()
    }

    fn select(&self, rows: &[usize], pack: Option<Pack>) -> Option<Self> {
        self.norm.select(rows, pack).map(|norm| Self { norm })
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    // The longest rows need more than one turn of a block.
    let shapes: &[(usize, usize, f64)] = match set {
        Set::Small => &[(1, 1, 1e-2), (5, 7, 1e-5), (3, 24, 1e-6)],
        Set::Large => &[(9, 288, 1e-5), (2, 2100, 1e-5)],
        Set::Rows => &[(ROWS, 75, 1e-5)],
        Set::Forest => &[],
    };
    let size = if set == Set::Large { "large " } else { "" };
    let both = |&(rows, width, eps): &(usize, usize, f64)| {
        FORMS.into_iter().flat_map(move |form| {
            let norm = RmsNorm { rows, width, eps, form };
            let name = format!("{rows}x{width} {form:?}");
            let compute = Case::new(format!("{size}rms_norm_compute {name}"), RmsNormCompute { norm });
            [Case::new(format!("{size}rms_norm {name}"), norm), compute]
        })
    };
    shapes.iter().flat_map(both).collect()
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "rms_norm_fwd: out has 5 elements, needs 6",
            call: |b| {
                let ([mut rstd, x], [mut out], [weight]) = device::buffers(b, [2, 6], [5], [3]);
                let (out, rstd, x, weight) = (&mut out, &mut rstd, &x, &weight);
                let form = RmsWeight::Rounded;
                b.rms_norm_fwd(ops::RmsNormFwd { out, rstd, x, weight, rows: 2, width: 3, eps: 1e-5, form });
            },
        },
        Refusal {
            says: "rms_norm_bwd: the weight's length is 4, must be 3",
            call: |b| {
                let ([mut d_x, mut d_out, x, rstd], [], [weight]) = device::buffers(b, [6, 6, 6, 2], [], [4]);
                let (d_x, d_out, x, rstd, weight) = (&mut d_x, &mut d_out, &x, &rstd, &weight);
                let form = RmsWeight::Rounded;
                b.rms_norm_bwd(ops::RmsNormBwd { d_x, d_out, x, rstd, weight, rows: 2, width: 3, form });
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
        Refusal {
            says: "rms_norm_compute_fwd: x has 5 elements, needs 6",
            call: |b| {
                let ([mut rstd], [mut out, x], [weight]) = device::buffers(b, [2], [6, 5], [3]);
                let (out, rstd, x, weight, form) = (&mut out, &mut rstd, &x, &weight, RmsWeight::Exact);
                let op = ops::RmsNormComputeFwd { out, rstd, x, weight, rows: 2, width: 3, eps: 1e-5, form };
                b.rms_norm_compute_fwd(op);
            },
        },
        Refusal {
            says: "rms_norm_compute_bwd: rstd has 1 elements, needs 2",
            call: |b| {
                let ([rstd], [mut d_x, x], [weight]) = device::buffers(b, [1], [6, 6], [3]);
                let (d_x, x, rstd, weight, form) = (&mut d_x, &x, &rstd, &weight, RmsWeight::Exact);
                b.rms_norm_compute_bwd(ops::RmsNormComputeBwd { d_x, x, rstd, weight, rows: 2, width: 3, form });
            },
        },
        Refusal {
            says: "rms_norm_compute_bwd_weight: d_out has 5 elements, needs 6",
            call: |b| {
                let ([mut d_weight, rstd], [d_out, x], []) = device::buffers(b, [5, 2], [5, 6], []);
                let (d_weight, d_out, x, rstd) = (&mut d_weight, &d_out, &x, &rstd);
                let op = ops::RmsNormComputeBwdWeight { d_weight, offset: 2, d_out, x, rstd, rows: 2, width: 3 };
                b.rms_norm_compute_bwd_weight(op);
            },
        },
    ]
}
