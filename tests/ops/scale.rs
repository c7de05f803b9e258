//! Learned scales of stacked runs.

use llamaprobe::backend::ops::{self, LoraSite, NormSite, RunRange, ScaleSite};
use llamaprobe::backend::{Backend, TensorMut};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};

use super::cases::{Case, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Factors, Operation, Role, RowResults, acc, compute};
use super::packs::{self, RUNS};
use super::simt::recorder::Recorder;
use super::simt::tables;
use super::simt::tape::Arg::{self, At, Float, Int, Long, Null};

/// Rows of a tile of the kernels.
const TILE_ROWS: usize = 16;

/// weight, params -> norms
#[derive(Clone, Copy, Debug)]
pub struct WeightNorm {
    pub site: LoraSite,
    pub to: NormSite,
    pub runs: usize,
}

impl Operation for WeightNorm {
    fn inputs(&self) -> Vec<Array> {
        let weight = compute("weight", self.site.output * self.site.input);
        vec![weight, acc("params", self.runs * self.site.stride).scaled(0.5)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("norms", self.runs * self.to.stride)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (LoraSite { rank, input, output, a, b, stride, scale, runs, .. }, to) = (self.site, self.to);
        let mut norms = vec![0.0; self.runs * to.stride];
        for run in (0..self.runs).filter(|&run| runs.contains(run)) {
            let params = &inputs[1][run * stride..];
            for o in 0..output {
                let adapted = |i: usize| {
                    let delta = p.dot(rank, |r| params[b + o * rank + r], |r| params[a + r * input + i]);
                    p.a(inputs[0][o * input + i] + p.a(scale * delta))
                };
                norms[run * to.stride + to.at + o] = p.a(p.dot(input, adapted, adapted).sqrt());
            }
        }
        vec![norms]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (weight, params) = (&device::weight(b, &inputs[0]), &device::acc(b, &inputs[1]));
        out.acc[0] = device::acc(b, &vec![0.0; self.runs * self.to.stride]);
        let norms = &mut out.acc[0];
        b.weight_norm(ops::WeightNorm { norms, weight, params, site: self.site, to: self.to, runs: self.runs });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let LoraSite { rank, input, output, a, b, stride, scale, runs, .. } = self.site;
        let (first, end) = (runs.first.min(self.runs), runs.end.min(self.runs));
        let (weight, params) = (At(r.tape.compute(&case.inputs[0])), At(r.tape.acc(&case.inputs[1])));
        let norms = r.tape.acc(&vec![0.0; self.runs * self.to.stride]);
        r.in_place(0, norms, Role::Acc);
        let sizes = [Int(first), Int(rank), Int(input), Int(output), Long(stride), Long(a), Long(b), Float(scale)];
        let to = [Long(self.to.stride), Long(self.to.at)];
        let args = [&[At(norms), weight, params], &sizes[..], &to[..]].concat();
        r.run("weight_norm", [output.div_ceil(8), end - first, 1], &args);
        true
    }
}

/// y, params, norms, bias -> y, unscaled
#[derive(Clone, Debug)]
pub struct Scale {
    pub pack: Pack,
    pub site: ScaleSite,
    pub runs: usize,
    /// Whether there is a bias, which is not scaled.
    pub biased: bool,
    /// What the gradient of y is held in.
    pub role: Role,
}

/// The run of a row, if it has the site.
fn run_of(pack: &Pack, site: ScaleSite, row: usize) -> Option<usize> {
    pack.run_of(row).filter(|&run| site.runs.contains(run))
}

/// What a run's factor is divided by.
fn norm(site: ScaleSite, norms: &[f64], run: usize, c: usize) -> f64 {
    site.norms.map_or(1.0, |of| norms[run * of.stride + of.at + c])
}

/// The arrays of the factors.
fn factor_arrays(site: ScaleSite, runs: usize) -> [Array; 2] {
    let norms = site.norms.map_or(1, |of| of.stride);
    [acc("params", runs.max(1) * site.stride), acc("norms", runs.max(1) * norms).positive()]
}

/// The tiles of the runs that have the site, and the entries of those runs, which number them among all.
fn adapted(pack: &Pack, site: ScaleSite) -> [Vec<i32>; 2] {
    let (tiles, runs) = tables::adapted(pack, TILE_ROWS);
    [tiles, runs].map(|entries| {
        let ours = |entry: &&[i32]| site.runs.contains(entry[0] as usize);
        entries.chunks_exact(3).filter(ours).flatten().copied().collect()
    })
}

/// A kernel's arguments for the site.
fn of_site(site: ScaleSite) -> [Arg; 5] {
    let (stride, at) = site.norms.map_or((0, 0), |norms| (norms.stride, norms.at));
    [Int(site.width), Long(site.stride), Long(site.at), Long(stride), Long(at)]
}

impl Scale {
    fn bias(&self, inputs: &[Vec<f64>], c: usize) -> f64 {
        if self.biased { inputs[3][c] } else { 0.0 }
    }
}

impl Operation for Scale {
    fn factors(&self) -> Factors {
        Factors::Adapters
    }

    fn inputs(&self) -> Vec<Array> {
        let [params, norms] = factor_arrays(self.site, self.runs);
        let y = compute("y", self.pack.len() * self.site.width).gradient(self.role);
        vec![y, params.gradient_added(), norms, compute("bias", self.site.width)]
    }

    fn outputs(&self) -> Vec<Array> {
        let y = compute("y", self.pack.len() * self.site.width).gradient(self.role);
        vec![y, compute("unscaled", self.pack.len() * self.site.width)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (site, mut y) = (self.site, inputs[0].clone());
        let mut unscaled = vec![0.0; y.len()];
        for row in 0..self.pack.len() {
            let Some(run) = run_of(&self.pack, site, row) else { continue };
            for c in 0..site.width {
                let (at, bias) = (row * site.width + c, self.bias(inputs, c));
                let factor = p.a(inputs[1][run * site.stride + site.at + c] / norm(site, &inputs[2], run, c));
                let x = p.a(y[at] - bias);
                unscaled[at] = p.c(x);
                y[at] = p.c(p.a(factor * x) + bias);
            }
        }
        vec![y, unscaled]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (site, unscaled) = (self.site, self.naive_forward(p, inputs).remove(1));
        d[0] = d_out.to_vec();
        for row in 0..self.pack.len() {
            let Some(run) = run_of(&self.pack, site, row) else { continue };
            for c in 0..site.width {
                let (at, to) = (row * site.width + c, run * site.stride + site.at + c);
                let norm = norm(site, &inputs[2], run, c);
                p.add(&mut d[1][to], p.a(d_out[at] * unscaled[at]) / norm);
                d[0][at] = p.of_role(self.role)(p.a(p.a(inputs[1][to] / norm) * d_out[at]));
            }
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let [y, unscaled] = [inputs[0].clone(), vec![0.0; inputs[0].len()]].map(|x| device::compute(b, &x));
        (out.compute[0], out.compute[1]) = (y, unscaled);
        let [params, norms] = [1, 2].map(|i| device::acc(b, &inputs[i]));
        let bias = self.biased.then(|| device::weight(b, &inputs[3]));
        let (y, unscaled) = out.compute.split_at_mut(1);
        let (y, unscaled, params, bias) = (&mut y[0], Some(&mut unscaled[0]), &params, bias.as_ref());
        let (norms, pack) = (self.site.norms.map(|_| &norms), &b.pack(&self.pack).unwrap());
        b.scale_fwd(ops::ScaleFwd { y, unscaled, params, norms, bias, pack, site: self.site });
        // The rows are the same where nobody asks for what they were.
        let mut again = device::compute(b, &inputs[0]);
        b.scale_fwd(ops::ScaleFwd { y: &mut again, unscaled: None, params, norms, bias, pack, site: self.site });
        let [once, again] = [&out.compute[0], &again].map(|y| device::read_compute(b, y, inputs[0].len()));
        assert_eq!(once, again, "scale_fwd: y with and without unscaled");
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let unscaled = device::forward(b, self, given.inputs, 0.0).remove(1);
        let unscaled = &device::compute(b, &unscaled);
        let [params, norms] = [1, 2].map(|i| device::acc(b, &given.inputs[i]));
        let (params, norms, pack) = (&params, self.site.norms.map(|_| &norms), &b.pack(&self.pack).unwrap());
        let mut d_params = device::acc(b, &given.start[1]);
        let mut run = |b: &mut B, d_y: TensorMut<'_, B>| {
            b.scale_bwd(ops::ScaleBwd { d_params: &mut d_params, d_y, unscaled, params, norms, pack, site: self.site });
        };
        let d_y = match self.role {
            Role::Acc => {
                let mut d_y = device::acc(b, &given.d_outputs[0]);
                run(b, TensorMut::Acc(&mut d_y));
                device::read_acc(b, &d_y, given.len(0))
            }
            Role::Compute => {
                let mut d_y = device::compute(b, &given.d_outputs[0]);
                run(b, TensorMut::Compute(&mut d_y));
                device::read_compute(b, &d_y, given.len(0))
            }
        };
        vec![Some(d_y), Some(device::read_acc(b, &d_params, given.len(1))), None, None]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (pack, site) = (&self.pack, self.site);
        let [tiles, runs] = adapted(pack, site);
        let (count, run_count) = (tiles.len() / 3, runs.len() / 3);
        let [tiles, runs] = [tiles, runs].map(|list| At(r.tape.ints(&list)));
        let all_tiles = At(r.tape.ints(&tables::adapted(pack, TILE_ROWS).0));
        let params = At(r.tape.acc(&case.inputs[1]));
        let norms = if site.norms.is_some() { At(r.tape.acc(&case.inputs[2])) } else { Null };
        let bias = if self.biased { At(r.tape.compute(&case.inputs[3])) } else { Null };
        let y = r.tape.compute(&case.inputs[0]);
        let unscaled = r.tape.compute(&vec![0.0; case.inputs[0].len()]);
        r.in_place(0, y, Role::Compute);
        r.in_place(1, unscaled, Role::Compute);
        let args = [&[At(y), At(unscaled), params, norms, bias, tiles], &of_site(site)[..]].concat();
        r.run("scale_fwd", [count, site.width.div_ceil(2048), 1], &args);
        let (kernel, d_y) = match self.role {
            Role::Acc => ("scale_bwd_wide", r.tape.acc(&case.d_outputs[0])),
            Role::Compute => ("scale_bwd_real", r.tape.compute(&case.d_outputs[0])),
        };
        r.in_place(2, d_y, self.role);
        let d_params = At(r.sum(3, case.inputs[1].len(), 0));
        let buffers = [d_params, At(d_y), At(unscaled), params, norms, all_tiles, runs];
        let grid = [site.width.div_ceil(128), run_count, 1];
        r.run(kernel, grid, &[&buffers[..], &of_site(site)].concat());
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[true, false, false, false] })
    }

    fn select(&self, _: &[usize], pack: Option<Pack>) -> Option<Self> {
        Some(Self { pack: pack?, ..self.clone() })
    }
}

/// out, unscaled, params, norms -> out
#[derive(Clone, Debug)]
pub struct ScaleDelta {
    pub pack: Pack,
    pub site: ScaleSite,
    pub runs: usize,
}

impl Operation for ScaleDelta {
    fn factors(&self) -> Factors {
        Factors::Adapters
    }

    fn inputs(&self) -> Vec<Array> {
        let len = self.pack.len() * self.site.width;
        let [params, norms] = factor_arrays(self.site, self.runs);
        vec![acc("out", len), compute("unscaled", len), params, norms]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.pack.len() * self.site.width)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (site, mut out) = (self.site, inputs[0].clone());
        for row in 0..self.pack.len() {
            let Some(run) = run_of(&self.pack, site, row) else { continue };
            for c in 0..site.width {
                let factor = p.a(inputs[2][run * site.stride + site.at + c] / norm(site, &inputs[3], run, c));
                let at = row * site.width + c;
                p.add(&mut out[at], p.a(factor - 1.0) * inputs[1][at]);
            }
        }
        vec![out]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        out.acc[0] = device::acc(b, &inputs[0]);
        let unscaled = &device::compute(b, &inputs[1]);
        let [params, norms] = [2, 3].map(|i| device::acc(b, &inputs[i]));
        let (params, norms, pack) = (&params, self.site.norms.map(|_| &norms), &b.pack(&self.pack).unwrap());
        b.scale_delta(ops::ScaleDelta { out: &mut out.acc[0], unscaled, params, norms, pack, site: self.site });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let [tiles, _] = adapted(&self.pack, self.site);
        let count = tiles.len() / 3;
        let (out, unscaled) = (r.tape.acc(&case.inputs[0]), At(r.tape.compute(&case.inputs[1])));
        let params = At(r.tape.acc(&case.inputs[2]));
        let norms = if self.site.norms.is_some() { At(r.tape.acc(&case.inputs[3])) } else { Null };
        r.in_place(0, out, Role::Acc);
        let args = [At(out), unscaled, params, norms, At(r.tape.ints(&tiles))];
        let args = [&args[..], &of_site(self.site)].concat();
        r.run("scale_delta", [count, self.site.width.div_ceil(2048), 1], &args);
        true
    }
}

/// A scale among other parameters, of all runs, over norms.
fn site(width: usize) -> ScaleSite {
    let norms = Some(NormSite { at: 2, stride: width + 5 });
    ScaleSite { at: 3, stride: width + 7, width, norms, runs: RunRange::ALL }
}

/// Rank and widths of a weight whose norms are asked for, among other parameters.
fn weight_norm((rank, input, output): (usize, usize, usize), runs: RunRange) -> WeightNorm {
    let (a, b) = (4, 7 + rank * input);
    let site = LoraSite { a, b, stride: b + output * rank + 2, rank, input, output, scale: 1.75, runs };
    WeightNorm { site, to: NormSite { at: 1, stride: output + 2 }, runs: 3 }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    let of = |pack: &Pack, site, biased, role| Scale { pack: pack.clone(), site, runs: RUNS, biased, role };
    match set {
        Set::Small => {
            let (pack, one) = (packs::trees(), RunRange { first: 1, end: 2 });
            let delta = |site| ScaleDelta { pack: pack.clone(), site, runs: RUNS };
            let without = ScaleSite { norms: None, ..site(6) };
            vec![
                Case::new("weight norm", weight_norm((3, 6, 10), RunRange::ALL)),
                Case::new("weight norm of rank 1, of one run", weight_norm((1, 5, 3), one)),
                Case::new("scale", of(&pack, site(7), true, Role::Compute)),
                Case::new("scale without bias", of(&pack, site(10), false, Role::Compute)),
                Case::new("scale of one run", of(&pack, ScaleSite { runs: one, ..site(5) }, true, Role::Compute)),
                Case::new("scale without norms", of(&pack, without, false, Role::Acc)),
                Case::new("scale delta", delta(site(9))),
                Case::new("scale delta of one run", delta(ScaleSite { runs: one, ..without })),
            ]
        }
        Set::Large => vec![
            Case::new("large weight norm", weight_norm((8, 300, 72), RunRange::ALL)),
            Case::new("large scale", of(&packs::large(), site(2309), true, Role::Compute)),
        ],
        Set::Forest => vec![Case::new("scale", of(&packs::large_forest(), site(70), true, Role::Compute))],
        Set::Rows => vec![],
    }
}

/// One row of run 1.
fn one_row() -> Pack {
    let mut b = PackBuilder::default();
    b.push(&[Token::Id(0)], Parent::None, Some(1), Label::Text);
    b.build()
}

/// Of two runs.
const SMALL_SITE: ScaleSite =
    ScaleSite { at: 1, stride: 3, width: 2, norms: Some(NormSite { at: 0, stride: 2 }), runs: RunRange::ALL };

/// Calls `scale_fwd` on one row of two runs with so many parameters and norms.
fn call_fwd<B: Backend>(b: &mut B, params: usize, norms: Option<usize>, bias: usize) {
    let ([params, of_norms], [mut y, mut unscaled], [bias]) =
        device::buffers(b, [params, norms.unwrap_or(1)], [2, 2], [bias]);
    let (y, unscaled, params, pack) = (&mut y, Some(&mut unscaled), &params, &b.pack(&one_row()).unwrap());
    let (norms, bias) = (norms.map(|_| &of_norms), Some(&bias));
    b.scale_fwd(ops::ScaleFwd { y, unscaled, params, norms, bias, pack, site: SMALL_SITE });
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal { says: "scale_fwd: params has 5 elements, needs 6", call: |b| call_fwd(b, 5, Some(4), 2) },
        Refusal { says: "scale_fwd: norms has 3 elements, needs 4", call: |b| call_fwd(b, 6, Some(3), 2) },
        Refusal { says: "scale_fwd: norms are given if the site has them", call: |b| call_fwd(b, 6, None, 2) },
        Refusal { says: "scale_fwd: the bias's length is 3, must be 2", call: |b| call_fwd(b, 6, Some(4), 3) },
        Refusal {
            says: "scale_bwd: d_y has 1 elements, needs 2",
            call: |b| {
                let ([mut d_params, params, norms, mut d_y], [unscaled], []) =
                    device::buffers(b, [6, 6, 4, 1], [2], []);
                let pack = b.pack(&one_row()).unwrap();
                b.scale_bwd(ops::ScaleBwd {
                    d_params: &mut d_params,
                    d_y: TensorMut::Acc(&mut d_y),
                    unscaled: &unscaled,
                    params: &params,
                    norms: Some(&norms),
                    pack: &pack,
                    site: SMALL_SITE,
                });
            },
        },
        Refusal {
            says: "scale_delta: unscaled has 1 elements, needs 2",
            call: |b| {
                let ([mut out, params, norms], [unscaled], []) = device::buffers(b, [2, 6, 4], [1], []);
                let (out, unscaled, params, pack) = (&mut out, &unscaled, &params, &b.pack(&one_row()).unwrap());
                let norms = Some(&norms);
                b.scale_delta(ops::ScaleDelta { out, unscaled, params, norms, pack, site: SMALL_SITE });
            },
        },
        Refusal {
            says: "weight_norm: the weight's length is 3, must be 4",
            call: |b| {
                let ([mut norms, params], [], [weight]) = device::buffers(b, [2, 4], [], [3]);
                let (a, b_at, to) = (0, 2, NormSite { at: 0, stride: 2 });
                let (input, output, runs) = (2, 2, RunRange::ALL);
                let site = LoraSite { a, b: b_at, stride: 4, rank: 1, input, output, scale: 1.0, runs };
                let (norms, weight, params) = (&mut norms, &weight, &params);
                b.weight_norm(ops::WeightNorm { norms, weight, params, site, to, runs: 1 });
            },
        },
    ]
}
