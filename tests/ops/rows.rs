//! Rows moved, converted and added.

use std::ops::Range;

use llamaprobe::backend::{Backend, ops};

use super::cases::{Case, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, acc, compute};
use super::simt::recorder::{FILL, Recorder, elements, list, rows};
use super::simt::tables;
use super::simt::tape::Arg::{At, Float, Int, Long};

/// x -> x
#[derive(Clone, Debug)]
pub struct Zero {
    pub len: usize,
}

impl Operation for Zero {
    fn inputs(&self) -> Vec<Array> {
        vec![acc("x", self.len)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("x", self.len)]
    }

    fn naive_forward(&self, _: Precision, _: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![vec![0.0; self.len]]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        out.acc[0] = device::acc(b, &inputs[0]);
        b.zero(ops::Zero { x: &mut out.acc[0] });
    }
}

/// x -> out
#[derive(Clone, Debug)]
pub struct Cast {
    pub len: usize,
}

impl Operation for Cast {
    fn inputs(&self) -> Vec<Array> {
        vec![acc("x", self.len)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("out", self.len)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![inputs[0].iter().map(|&x| p.c(x)).collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let x = device::acc(b, &inputs[0]);
        b.cast(ops::Cast { out: &mut out.compute[0], x: &x, len: self.len });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (x, out) = (r.tape.acc(&case.inputs[0]), r.output(0, self.len, Role::Compute));
        r.run("cast", elements(self.len), &[At(out), At(x), Long(self.len)]);
        true
    }
}

/// x -> out
#[derive(Clone, Debug)]
pub struct Widen {
    pub len: usize,
}

impl Operation for Widen {
    fn inputs(&self) -> Vec<Array> {
        vec![compute("x", self.len)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.len)]
    }

    fn naive_forward(&self, _: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![inputs[0].clone()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let x = device::compute(b, &inputs[0]);
        b.widen(ops::Widen { out: &mut out.acc[0], x: &x, len: self.len });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (x, out) = (r.tape.compute(&case.inputs[0]), r.output(0, self.len, Role::Acc));
        r.run("cast_wide", elements(self.len), &[At(out), At(x), Long(self.len)]);
        true
    }
}

/// a, b -> out
#[derive(Clone, Debug)]
pub struct Residual {
    pub len: usize,
}

impl Operation for Residual {
    fn inputs(&self) -> Vec<Array> {
        vec![acc("a", self.len), compute("b", self.len)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.len)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![inputs[0].iter().zip(&inputs[1]).map(|(a, b)| p.a(a + b)).collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, y) = (device::acc(b, &inputs[0]), device::compute(b, &inputs[1]));
        b.residual_fwd(ops::ResidualFwd { out: &mut out.acc[0], a: &x, b: &y, len: self.len });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let len = self.len;
        let (a, b) = (r.tape.acc(&case.inputs[0]), r.tape.compute(&case.inputs[1]));
        let out = r.output(0, len, Role::Acc);
        r.run("residual_fwd", elements(len), &[At(out), At(a), At(b), Long(len)]);
        // As one row that is normed.
        let sum = r.output(0, len, Role::Acc);
        let (out, rstd) = (r.tape.compute(&vec![FILL; len]), r.tape.acc(&[FILL]));
        let rest = [At(a), At(b), At(b), Int(1), Int(len), Float(1e-5), Int(0)];
        r.run("residual_rms_norm_fwd", rows(1), &[&[At(sum), At(out), At(rstd)], &rest[..]].concat());
        true
    }
}

/// The rows `rows` of `x`.
fn gathered(x: &[f64], rows: &[u32], width: usize) -> Vec<f64> {
    rows.iter().flat_map(|&row| x[row as usize * width..][..width].to_vec()).collect()
}

/// x -> out
#[derive(Clone, Debug)]
pub struct GatherCompute {
    pub from: usize,
    pub rows: Vec<u32>,
    pub width: usize,
}

impl Operation for GatherCompute {
    fn inputs(&self) -> Vec<Array> {
        vec![compute("x", self.from * self.width)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("out", self.rows.len() * self.width)]
    }

    fn naive_forward(&self, _: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![gathered(&inputs[0], &self.rows, self.width)]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, rows) = (device::compute(b, &inputs[0]), b.index(&self.rows).unwrap());
        b.gather_compute(ops::GatherCompute { out: &mut out.compute[0], x: &x, rows: &rows, width: self.width });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (count, width) = (self.rows.len(), self.width);
        let (x, ids) = (r.tape.compute(&case.inputs[0]), r.tape.ints(&list(&self.rows)));
        let out = r.output(0, count * width, Role::Compute);
        r.run("gather_compute", rows(count), &[At(out), At(x), At(ids), Int(count), Int(width)]);
        true
    }
}

/// x -> out; backward: `scatter_add`
#[derive(Clone, Debug)]
pub struct GatherAcc {
    pub from: usize,
    pub rows: Vec<u32>,
    pub width: usize,
}

impl Operation for GatherAcc {
    fn inputs(&self) -> Vec<Array> {
        vec![acc("x", self.from * self.width).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.rows.len() * self.width).gradient(Role::Acc)]
    }

    fn naive_forward(&self, _: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![gathered(&inputs[0], &self.rows, self.width)]
    }

    fn naive_backward(&self, p: Precision, _: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        for (i, x) in d_out.iter().enumerate() {
            p.add(&mut d[0][self.rows[i / self.width] as usize * self.width + i % self.width], *x);
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, rows) = (device::acc(b, &inputs[0]), b.index(&self.rows).unwrap());
        b.gather_acc(ops::GatherAcc { out: &mut out.acc[0], x: &x, rows: &rows, width: self.width });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let (mut d_x, d_out) = (device::acc(b, &given.start[0]), device::acc(b, &given.d_outputs[0]));
        let rows = b.index(&self.rows).unwrap();
        b.scatter_add(ops::ScatterAdd { d_x: &mut d_x, d_out: &d_out, rows: &rows, width: self.width });
        vec![Some(device::read_acc(b, &d_x, given.len(0)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (count, width) = (self.rows.len(), self.width);
        let (x, ids) = (r.tape.acc(&case.inputs[0]), r.tape.ints(&list(&self.rows)));
        let out = r.output(0, count * width, Role::Acc);
        r.run("gather_acc", rows(count), &[At(out), At(x), At(ids), Int(count), Int(width)]);
        let (ids, starts, order) = tables::groups(list(&self.rows).into_iter().enumerate());
        let (d_x, d_out) = (r.sum(1, case.inputs[0].len(), 0), r.tape.acc(&case.d_outputs[0]));
        let count = ids.len();
        let [ids, starts, order] = [ids, starts, order].map(|table| At(r.tape.ints(&table)));
        r.run("scatter_add", rows(count), &[At(d_x), At(d_out), ids, starts, order, Int(count), Int(width)]);
        true
    }
}

/// d_x, d_out -> d_x, of the compute dtype
#[derive(Clone, Debug)]
pub struct ScatterCompute {
    pub n: usize,
    pub rows: Vec<u32>,
    pub width: usize,
}

impl Operation for ScatterCompute {
    fn inputs(&self) -> Vec<Array> {
        vec![compute("d_x", self.n * self.width), acc("d_out", self.rows.len() * self.width)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("d_x", self.n * self.width)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let mut sum = inputs[0].clone();
        for (i, x) in inputs[1].iter().enumerate() {
            p.add(&mut sum[self.rows[i / self.width] as usize * self.width + i % self.width], *x);
        }
        vec![sum.into_iter().map(|x| p.c(x)).collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (d_out, rows) = (device::acc(b, &inputs[1]), b.index(&self.rows).unwrap());
        out.compute[0] = device::compute(b, &inputs[0]);
        let (d_x, d_out, rows) = (&mut out.compute[0], &d_out, &rows);
        b.scatter_add_compute(ops::ScatterAddCompute { d_x, d_out, rows, width: self.width });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let (ids, starts, order) = tables::groups(list(&self.rows).into_iter().enumerate());
        let (d_x, d_out) = (r.tape.compute(&case.inputs[0]), r.tape.acc(&case.inputs[1]));
        r.in_place(0, d_x, Role::Compute);
        let count = ids.len();
        let [ids, starts, order] = [ids, starts, order].map(|table| At(r.tape.ints(&table)));
        let args = [At(d_x), At(d_out), ids, starts, order, Int(count), Int(self.width)];
        r.run("scatter_add_compute", rows(count), &args);
        true
    }
}

/// cache, x -> cache
#[derive(Clone, Debug)]
pub struct KvAppend {
    pub capacity: usize,
    pub rows: usize,
    pub to: usize,
    pub from: Range<usize>,
    pub width: usize,
}

impl Operation for KvAppend {
    fn inputs(&self) -> Vec<Array> {
        vec![compute("cache", self.capacity * self.width), compute("x", self.rows * self.width)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("cache", self.capacity * self.width)]
    }

    fn naive_forward(&self, _: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut cache, width) = (inputs[0].clone(), self.width);
        let from = &inputs[1][self.from.start * width..self.from.end * width];
        cache[self.to * width..][..from.len()].copy_from_slice(from);
        vec![cache]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let x = device::compute(b, &inputs[1]);
        out.compute[0] = device::compute(b, &inputs[0]);
        let (cache, to, from) = (&mut out.compute[0], self.to, self.from.clone());
        b.kv_append(ops::KvAppend { cache, to, x: &x, from, width: self.width });
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    if set != Set::Small {
        return vec![];
    }
    let (len, some) = (37, vec![4, 0, 4, 2, 4, 0]);
    vec![
        Case::new("zero", Zero { len }),
        Case::new("cast", Cast { len }),
        Case::new("widen", Widen { len }),
        Case::new("residual", Residual { len }),
        Case::new("gather real", GatherCompute { from: 5, rows: vec![4, 0, 4, 2], width: 7 }),
        Case::new("gather", GatherAcc { from: 5, rows: some, width: 7 }),
        Case::new("gather of nothing", GatherAcc { from: 2, rows: vec![], width: 3 }),
        Case::new("scatter compute", ScatterCompute { n: 5, rows: vec![4, 0, 4, 2, 4, 0], width: 7 }),
        Case::new("scatter compute 16", ScatterCompute { n: 3, rows: vec![1, 2, 1], width: 16 }),
        Case::new("scatter compute 2309", ScatterCompute { n: 3, rows: vec![2, 0, 2], width: 2309 }),
        Case::new("kv_append", KvAppend { capacity: 9, rows: 6, to: 3, from: 1..5, width: 4 }),
    ]
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "cast: out has 3 elements, needs 4",
            call: |b| {
                let ([x], [mut out], []) = device::buffers(b, [9], [3], []);
                b.cast(ops::Cast { out: &mut out, x: &x, len: 4 });
            },
        },
        Refusal {
            says: "widen: x has 3 elements, needs 4",
            call: |b| {
                let ([mut out], [x], []) = device::buffers(b, [4], [3], []);
                b.widen(ops::Widen { out: &mut out, x: &x, len: 4 });
            },
        },
        Refusal {
            says: "residual_fwd: b has 3 elements, needs 4",
            call: |b| {
                let ([mut out, x], [y], []) = device::buffers(b, [4, 4], [3], []);
                b.residual_fwd(ops::ResidualFwd { out: &mut out, a: &x, b: &y, len: 4 });
            },
        },
        Refusal {
            says: "gather_compute: the selection has 5 elements, needs 6",
            call: |b| {
                let ([], [mut out, x], []) = device::buffers(b, [], [5, 9], []);
                let rows = b.index(&[0, 2]).unwrap();
                b.gather_compute(ops::GatherCompute { out: &mut out, x: &x, rows: &rows, width: 3 });
            },
        },
        Refusal {
            says: "gather_acc: the whole has 8 elements, needs 9",
            call: |b| {
                let ([mut out, x], [], []) = device::buffers(b, [6, 8], [], []);
                let rows = b.index(&[0, 2]).unwrap();
                b.gather_acc(ops::GatherAcc { out: &mut out, x: &x, rows: &rows, width: 3 });
            },
        },
        Refusal {
            says: "scatter_add: the whole has 8 elements, needs 9",
            call: |b| {
                let ([mut d_x, d_out], [], []) = device::buffers(b, [8, 6], [], []);
                let rows = b.index(&[0, 2]).unwrap();
                b.scatter_add(ops::ScatterAdd { d_x: &mut d_x, d_out: &d_out, rows: &rows, width: 3 });
            },
        },
        Refusal {
            says: "scatter_add_compute: the whole has 8 elements, needs 9",
            call: |b| {
                let ([d_out], [mut d_x], []) = device::buffers(b, [6], [8], []);
                let rows = b.index(&[0, 2]).unwrap();
                let (d_x, d_out, rows) = (&mut d_x, &d_out, &rows);
                b.scatter_add_compute(ops::ScatterAddCompute { d_x, d_out, rows, width: 3 });
            },
        },
        Refusal {
            says: "kv_append: cache has 11 elements, needs 12",
            call: |b| {
                let ([], [mut cache, x], []) = device::buffers(b, [], [11, 9], []);
                b.kv_append(ops::KvAppend { cache: &mut cache, to: 2, x: &x, from: 1..3, width: 3 });
            },
        },
    ]
}
