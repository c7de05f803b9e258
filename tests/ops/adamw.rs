//! The optimiser.

use llamaprobe::backend::ops::AdamwStep;
use llamaprobe::backend::{Backend, ops};

use super::cases::{Case, Set};
use super::device::{self, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, acc};
use super::packs;
use super::simt::recorder::{FILL, Recorder, elements, rows};
use super::simt::tape::Arg::{At, Inside, Int, Long, Null};
use super::simt::tape::Buffer;

/// Blocks of the first stage of a gradient's norm.
const NORM_PARTS: usize = 3;

/// Launches the two stages of the norms into `norm_sq`.
fn launch_norm(r: &mut Recorder<'_>, norm_sq: Buffer, d_params: Buffer, runs: usize, stride: usize) {
    let parts = At(r.tape.acc(&vec![FILL; runs * NORM_PARTS]));
    r.run("grad_norm_parts", [NORM_PARTS, runs, 1], &[parts, At(d_params), Long(stride)]);
    r.tape.launch("grad_norm", rows(runs), 32, 0, &[At(norm_sq), parts, Int(NORM_PARTS)]);
}

/// d_params -> norm_sq
#[derive(Clone, Debug)]
pub struct GradNorm {
    pub runs: usize,
    pub stride: usize,
}

impl Operation for GradNorm {
    fn inputs(&self) -> Vec<Array> {
        vec![acc("d_params", self.runs * self.stride)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("norm_sq", self.runs)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![inputs[0].chunks(self.stride).map(|g| p.dot(self.stride, |i| g[i], |i| g[i])).collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let d_params = &device::acc(b, &inputs[0]);
        b.grad_norm(ops::GradNorm { norm_sq: &mut out.acc[0], d_params, runs: self.runs, stride: self.stride });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let d_params = r.tape.acc(&case.inputs[0]);
        let norm_sq = r.output(0, self.runs, Role::Acc);
        launch_norm(r, norm_sq, d_params, self.runs, self.stride);
        true
    }
}

/// values -> stop, which holds `before`; the last value is `last`
#[derive(Clone, Debug)]
pub struct CheckFinite {
    pub len: usize,
    pub last: f64,
    pub before: f64,
}

impl CheckFinite {
    fn values(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        [&inputs[0][..self.len - 1], &[self.last]].concat()
    }
}

impl Operation for CheckFinite {
    fn inputs(&self) -> Vec<Array> {
        vec![acc("values", self.len)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("stop", 1)]
    }

    fn naive_forward(&self, _: Precision, _: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![vec![if self.last.is_finite() { self.before } else { 1.0 }]]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let values = &device::acc(b, &self.values(inputs));
        out.acc[0] = device::acc(b, &[self.before]);
        b.check_finite(ops::CheckFinite { stop: &mut out.acc[0], values, len: self.len });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let values = At(r.tape.acc(&self.values(&case.inputs)));
        let stop = r.tape.acc(&[self.before]);
        r.in_place(0, stop, Role::Acc);
        r.run("check_finite", rows(1), &[At(stop), values, Int(self.len)]);
        true
    }
}

/// params, m, v, d_params -> params, m, v; the norms come from `grad_norm`
#[derive(Clone, Debug)]
pub struct Adamw {
    pub steps: Vec<AdamwStep>,
    pub stride: usize,
    pub stopped: bool,
    /// Whether some elements have a learning rate of their own.
    pub fast: bool,
}

impl Adamw {
    fn len(&self) -> usize {
        self.steps.len() * self.stride
    }

    /// Stretches of unequal length.
    fn marks(&self) -> Vec<f64> {
        (0..self.stride).map(|i| f64::from(u8::from(i % 13 > 5 || i == 2))).collect()
    }

    fn stop(&self) -> [f64; 1] {
        [f64::from(u8::from(self.stopped))]
    }
}

impl Operation for Adamw {
    fn inputs(&self) -> Vec<Array> {
        let array = |name| acc(name, self.len()).scaled(0.1);
        vec![acc("params", self.len()), array("m"), array("v").positive(), array("d_params")]
    }

    fn outputs(&self) -> Vec<Array> {
        ["params", "m", "v"].map(|name| acc(name, self.len())).to_vec()
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut out, stride) = (inputs[..3].to_vec(), self.stride);
        for (run, s) in self.steps.iter().enumerate().filter(|(_, s)| s.active && !self.stopped) {
            let g = &inputs[3][run * stride..][..stride];
            let norm = p.a(p.dot(stride, |i| g[i], |i| g[i]).sqrt());
            let clip = s.max_grad_norm.map_or(1.0, |max| p.a((max / (norm + 1e-6)).min(1.0)));
            let correct = |beta: f64| 1.0 - beta.powi(s.step as i32);
            for i in 0..stride {
                let (at, g) = (run * stride + i, p.a(g[i] * clip));
                let m = p.a(p.a(s.beta1 * out[1][at]) + p.a((1.0 - s.beta1) * g));
                let v = p.a(p.a(s.beta2 * out[2][at]) + p.a(p.a((1.0 - s.beta2) * g) * g));
                let root = p.a(p.a(p.a(v.sqrt()) / correct(s.beta2).sqrt()) + s.epsilon);
                let marked = self.fast && self.marks()[i] != 0.0;
                let rate = if marked { s.fast_learning_rate } else { s.learning_rate };
                let decayed = p.a(out[0][at] * (1.0 - rate * s.weight_decay));
                out[0][at] = p.a(decayed - p.a(p.a(rate / correct(s.beta1)) * p.a(m / root)));
                (out[1][at], out[2][at]) = (m, v);
            }
        }
        out
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (stride, steps) = (self.stride, &self.steps[..]);
        let [mut params, mut m, mut v, d_params] = [0, 1, 2, 3].map(|i| device::acc(b, &inputs[i]));
        let mut norm_sq = b.acc(steps.len()).unwrap();
        b.grad_norm(ops::GradNorm { norm_sq: &mut norm_sq, d_params: &d_params, runs: steps.len(), stride });
        let (stop, marks) = (device::acc(b, &self.stop()), device::acc(b, &self.marks()));
        b.adamw(ops::Adamw {
            params: &mut params,
            m: &mut m,
            v: &mut v,
            d_params: &d_params,
            norm_sq: &norm_sq,
            stop: &stop,
            steps,
            fast: self.fast.then_some(&marks),
            stride,
        });
        out.acc = vec![params, m, v];
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (runs, stride) = (self.steps.len(), self.stride);
        let [params, m, v, d_params] = [0, 1, 2, 3].map(|i| r.tape.acc(&case.inputs[i]));
        let norm_sq = r.tape.acc(&vec![FILL; runs]);
        launch_norm(r, norm_sq, d_params, runs, stride);
        for (result, buffer) in [params, m, v].into_iter().enumerate() {
            r.in_place(result, buffer, Role::Acc);
        }
        let factors = self.steps.iter().flat_map(|s| {
            let correction = |beta: f64| 1.0 - beta.powf(s.step as f64);
            [
                if s.active { 1.0 } else { 0.0 },
                1.0 - s.learning_rate * s.weight_decay,
                s.beta1,
                1.0 - s.beta1,
                s.beta2,
                1.0 - s.beta2,
                correction(s.beta2).sqrt(),
                s.epsilon,
                -s.learning_rate / correction(s.beta1),
                s.max_grad_norm.unwrap_or(-1.0),
                1.0 - s.fast_learning_rate * s.weight_decay,
                -s.fast_learning_rate / correction(s.beta1),
            ]
        });
        let factors = r.tape.acc(&factors.collect::<Vec<_>>());
        let stop = r.tape.acc(&self.stop());
        let args = [params, m, v, d_params, norm_sq, stop, factors].map(At);
        let fast = if self.fast { At(r.tape.acc(&self.marks())) } else { Null };
        r.run("adamw", [stride.div_ceil(1024), runs, 1], &[&args[..], &[fast, Long(stride)]].concat());
        true
    }
}

/// params -> a table of one row, refreshed from them and read by `embed_fwd`
#[derive(Clone, Debug)]
pub struct RefreshWeight {
    pub offset: usize,
    pub width: usize,
}

impl Operation for RefreshWeight {
    fn inputs(&self) -> Vec<Array> {
        vec![acc("params", self.offset + self.width)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.width)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![inputs[0][self.offset..][..self.width].iter().map(|&x| p.c(x)).collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let &Self { offset, width } = self;
        let (mut table, params) = (device::weight(b, &vec![out.fill; width]), device::acc(b, &inputs[0]));
        b.refresh_weight(ops::RefreshWeight { weight: &mut table, params: &params, offset });
        let pack = &b.pack(&packs::flat(&[1])).unwrap();
        b.embed_fwd(ops::EmbedFwd { out: &mut out.acc[0], pack, table: &table, prompt: None, width, scale: 1.0 });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (params, out) = (r.tape.acc(&case.inputs[0]), r.output(0, self.width, Role::Compute));
        r.run("cast", elements(self.width), &[At(out), Inside(params, 4 * self.offset), Long(self.width)]);
        true
    }
}

fn step(max_grad_norm: Option<f64>, step: u64) -> AdamwStep {
    AdamwStep {
        active: true,
        learning_rate: 1e-2,
        fast_learning_rate: 5e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        max_grad_norm,
        step,
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    match set {
        Set::Small => {
            let mut cases = vec![Case::new("grad_norm", GradNorm { runs: 3, stride: 29 })];
            for (last, before) in
                [(1.0, 0.0), (1.0, 1.0), (f64::INFINITY, 0.0), (f64::NEG_INFINITY, 0.0), (f64::NAN, 0.0)]
            {
                let op = CheckFinite { len: 300, last, before };
                cases.push(Case::new(format!("check_finite {last} {before}"), op));
            }
            let resting = AdamwStep { active: false, ..step(None, 1) };
            let steps = vec![step(None, 1), step(Some(0.05), 1), resting, step(Some(1e3), 7), step(Some(1.0), 5000)];
            for (name, stopped, fast) in
                [("adamw", false, false), ("adamw stopped", true, false), ("adamw of two rates", false, true)]
            {
                cases.push(Case::new(name, Adamw { steps: steps.clone(), stride: 31, stopped, fast }));
            }
            cases.push(Case::new("refresh_weight", RefreshWeight { offset: 3, width: 21 }));
            cases
        }
        Set::Large => vec![Case::new("large grad_norm", GradNorm { runs: 3, stride: 4099 })],
        Set::Rows | Set::Forest => vec![],
    }
}

/// Calls `adamw` of one run of three parameters with other lengths of `v` and `norm_sq`.
fn call_adamw<B: Backend>(b: &mut B, [v, norm_sq]: [usize; 2], step: AdamwStep) {
    let ([mut params, mut m, mut v, d_params, norm_sq, stop], [], []) =
        device::buffers(b, [3, 3, v, 3, norm_sq, 1], [], []);
    b.adamw(ops::Adamw {
        params: &mut params,
        m: &mut m,
        v: &mut v,
        d_params: &d_params,
        norm_sq: &norm_sq,
        stop: &stop,
        steps: &[step],
        fast: None,
        stride: 3,
    });
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "grad_norm: d_params has 5 elements, needs 6",
            call: |b| {
                let ([mut norm_sq, d_params], [], []) = device::buffers(b, [2, 5], [], []);
                b.grad_norm(ops::GradNorm { norm_sq: &mut norm_sq, d_params: &d_params, runs: 2, stride: 3 });
            },
        },
        Refusal {
            says: "check_finite: stop has 0 elements, needs 1",
            call: |b| {
                let ([mut stop, values], [], []) = device::buffers(b, [0, 4], [], []);
                b.check_finite(ops::CheckFinite { stop: &mut stop, values: &values, len: 4 });
            },
        },
        Refusal { says: "adamw: v has 2 elements, needs 3", call: |b| call_adamw(b, [2, 1], step(None, 1)) },
        Refusal { says: "adamw: norm_sq has 0 elements, needs 1", call: |b| call_adamw(b, [3, 0], step(None, 1)) },
        Refusal { says: "adamw: step is 0, must be at least 1", call: |b| call_adamw(b, [3, 1], step(None, 0)) },
        Refusal {
            says: "refresh_weight: params has 4 elements, needs 5",
            call: |b| {
                let ([params], [], [mut weight]) = device::buffers(b, [4], [], [3]);
                b.refresh_weight(ops::RefreshWeight { weight: &mut weight, params: &params, offset: 2 });
            },
        },
    ]
}
