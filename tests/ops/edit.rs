//! Edits of rows.

use llamaprobe::backend::ops::EditMap;
use llamaprobe::backend::{Backend, TensorMut, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, ROWS, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, acc, compute};
use super::simt::recorder::{Recorder, list, rows};
use super::simt::tape::Arg::{At, Float, Int};

/// x, values -> x
#[derive(Clone, Debug)]
pub struct Edit {
    /// What x is held in.
    pub role: Role,
    /// Rows of x.
    pub n: usize,
    /// Rows of the values.
    pub values: usize,
    /// The edited row and its value.
    pub rows: Vec<(u32, u32)>,
    pub width: usize,
    pub map: EditMap,
    pub add: f64,
}

impl Edit {
    /// `keep * x + add * v + along * (x . v) v` at the edited rows.
    fn edited(&self, p: Precision, x: &[f64], values: &[f64], add: f64) -> Vec<f64> {
        let (mut out, width, EditMap { keep, along }) = (x.to_vec(), self.width, self.map);
        for &(row, value) in &self.rows {
            let (at, v) = (row as usize * width, &values[value as usize * width..][..width]);
            let dot = if along == 0.0 { 0.0 } else { p.dot(width, |i| x[at + i], |i| v[i]) };
            let factor = p.a(add + p.a(along * dot));
            for i in 0..width {
                let sum = p.a(p.a(keep * x[at + i]) + p.a(factor * v[i]));
                out[at + i] = p.of_role(self.role)(sum);
            }
        }
        out
    }

    fn lists(&self) -> [Vec<u32>; 2] {
        let (rows, values) = self.rows.iter().copied().unzip();
        [rows, values]
    }

    /// Runs one direction on `x`.
    fn run<B: Backend>(&self, b: &mut B, x: TensorMut<'_, B>, values: &B::Acc, forward: bool) {
        let [rows, value_rows] = self.lists().map(|list| b.index(&list).unwrap());
        let (rows, value_rows, width, map) = (&rows, &value_rows, self.width, self.map);
        match forward {
            true => b.edit_fwd(ops::EditFwd { x, values, rows, value_rows, width, map, add: self.add }),
            false => b.edit_bwd(ops::EditBwd { d_x: x, values, rows, value_rows, width, map }),
        }
    }
}

impl Operation for Edit {
    fn inputs(&self) -> Vec<Array> {
        let x = if self.role == Role::Acc { acc } else { compute };
        vec![x("x", self.n * self.width).gradient(self.role), acc("values", self.values * self.width)]
    }

    fn outputs(&self) -> Vec<Array> {
        let x = if self.role == Role::Acc { acc } else { compute };
        vec![x("x", self.n * self.width).gradient(self.role)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![self.edited(p, &inputs[0], &inputs[1], self.add)]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        d[0] = self.edited(p, d_out, &inputs[1], 0.0);
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let values = device::acc(b, &inputs[1]);
        match self.role {
            Role::Acc => {
                out.acc[0] = device::acc(b, &inputs[0]);
                self.run(b, TensorMut::Acc(&mut out.acc[0]), &values, true);
            }
            Role::Compute => {
                out.compute[0] = device::compute(b, &inputs[0]);
                self.run(b, TensorMut::Compute(&mut out.compute[0]), &values, true);
            }
        }
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let values = device::acc(b, &given.inputs[1]);
        let d_x = match self.role {
            Role::Acc => {
                let mut d_x = device::acc(b, &given.d_outputs[0]);
                self.run(b, TensorMut::Acc(&mut d_x), &values, false);
                device::read_acc(b, &d_x, given.len(0))
            }
            Role::Compute => {
                let mut d_x = device::compute(b, &given.d_outputs[0]);
                self.run(b, TensorMut::Compute(&mut d_x), &values, false);
                device::read_compute(b, &d_x, given.len(0))
            }
        };
        vec![Some(d_x), None]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let kernel = if self.role == Role::Acc { "edit_wide" } else { "edit_real" };
        let values = At(r.tape.acc(&case.inputs[1]));
        let [edited, of] = self.lists().map(|values| At(r.tape.ints(&list(&values))));
        let EditMap { keep, along } = self.map;
        for (result, x, add) in [(0, &case.inputs[0], self.add), (1, &case.d_outputs[0], 0.0)] {
            let x = if self.role == Role::Acc { r.tape.acc(x) } else { r.tape.compute(x) };
            r.in_place(result, x, self.role);
            let count = self.rows.len();
            let sizes = [Int(count), Int(self.width), Float(keep), Float(add), Float(along)];
            r.run(kernel, rows(count), &[&[At(x), values, edited, of], &sizes[..]].concat());
        }
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[true, false] })
    }

    fn select(&self, rows: &[usize], _: Option<Pack>) -> Option<Self> {
        let value = |row: usize| self.rows.iter().find(|(edited, _)| *edited as usize == row);
        let edited = rows.iter().enumerate().filter_map(|(i, &row)| Some((i as u32, value(row)?.1))).collect();
        Some(Self { n: rows.len(), rows: edited, ..self.clone() })
    }
}

/// Keep, along and add of: add, replace, scale, zero, project out (with a part of the value added).
const EDITS: [(f64, f64, f64); 5] =
    [(1.0, 0.0, 0.7), (0.0, 0.0, 1.0), (-1.5, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, -0.3, 0.2)];

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    let (n, width, rows) = match set {
        Set::Small => (5, 7, vec![(4, 1), (0, 0), (2, 1)]),
        Set::Rows => (ROWS, 45, (0..ROWS as u32).filter(|row| row % 3 != 1).map(|row| (row, row % 2)).collect()),
        Set::Large => (3, 2309, vec![(0, 1), (2, 0)]),
        Set::Forest => return vec![],
    };
    let mut cases = Vec::new();
    for (i, (keep, along, add)) in EDITS.into_iter().enumerate() {
        for role in [Role::Acc, Role::Compute] {
            let map = EditMap { keep, along };
            let op = Edit { role, n, values: 2, rows: rows.clone(), width, map, add };
            cases.push(Case::new(format!("edit {i} {role:?} {width}"), op));
        }
    }
    cases
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    const MAP: EditMap = EditMap { keep: 1.0, along: 0.0 };
    vec![
        Refusal {
            says: "edit_fwd: x has 8 elements, needs 9",
            call: |b| {
                let ([mut x, values], [], []) = device::buffers(b, [8, 3], [], []);
                let [rows, value_rows] = [&[0, 2], &[0, 0]].map(|list| b.index(list).unwrap());
                let (x, values, rows, value_rows) = (TensorMut::Acc(&mut x), &values, &rows, &value_rows);
                b.edit_fwd(ops::EditFwd { x, values, rows, value_rows, width: 3, map: MAP, add: 1.0 });
            },
        },
        Refusal {
            says: "edit_fwd: the number of value rows is 1, must be 2",
            call: |b| {
                let ([values], [mut x], []) = device::buffers(b, [3], [9], []);
                let [rows, value_rows] = [&[0, 2][..], &[0]].map(|list| b.index(list).unwrap());
                let (x, values, rows, value_rows) = (TensorMut::Compute(&mut x), &values, &rows, &value_rows);
                b.edit_fwd(ops::EditFwd { x, values, rows, value_rows, width: 3, map: MAP, add: 1.0 });
            },
        },
        Refusal {
            says: "edit_bwd: values has 5 elements, needs 6",
            call: |b| {
                let ([mut d_x, values], [], []) = device::buffers(b, [9, 5], [], []);
                let [rows, value_rows] = [&[0, 2], &[0, 1]].map(|list| b.index(list).unwrap());
                let (d_x, values, rows, value_rows) = (TensorMut::Acc(&mut d_x), &values, &rows, &value_rows);
                b.edit_bwd(ops::EditBwd { d_x, values, rows, value_rows, width: 3, map: MAP });
            },
        },
    ]
}
