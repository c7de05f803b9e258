//! What each head adds to the residual stream, of some rows.

use llamaprobe::backend::{Backend, ops};

use super::super::cases::Case;
use super::super::device::{self, Outputs};
use super::super::naive::Precision;
use super::super::operation::{Array, Factors, Operation, Role, acc, compute};
use super::super::simt::recorder::Recorder;
use super::super::simt::tape::Arg::{At, Int};

/// z, weight -> out
#[derive(Clone, Debug)]
pub struct AttentionResult {
    pub from: usize,
    pub rows: Vec<usize>,
    pub heads: usize,
    pub head_dim: usize,
    pub width: usize,
}

impl Operation for AttentionResult {
    fn factors(&self) -> Factors {
        Factors::Weights
    }

    fn inputs(&self) -> Vec<Array> {
        let q_width = self.heads * self.head_dim;
        vec![compute("z", self.from * q_width), compute("weight", self.width * q_width).scaled(0.5)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.rows.len() * self.heads * self.width)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let &Self { ref rows, heads, head_dim, width, .. } = self;
        let (z, weight, q_width) = (&inputs[0], &inputs[1], heads * head_dim);
        let element = |i: usize| {
            let (row, h, c) = (rows[i / width / heads], i / width % heads, i % width);
            let (from, column) = (row * q_width + h * head_dim, c * q_width + h * head_dim);
            p.dot(head_dim, |d| z[from + d], |d| weight[column + d])
        };
        vec![(0..rows.len() * heads * width).map(element).collect()]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (z, weight) = (&device::compute(b, &inputs[0]), &device::weight(b, &inputs[1]));
        let &Self { ref rows, heads, head_dim, width, .. } = self;
        b.attention_result(ops::AttentionResult { out: &mut out.acc[0], z, weight, rows, heads, head_dim, width });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let ids: Vec<i32> = self.rows.iter().map(|&row| row as i32).collect();
        let (z, weight) = (r.tape.compute(&case.inputs[0]), r.tape.compute(&case.inputs[1]));
        let ids = r.tape.ints(&ids);
        let out = r.output(0, self.rows.len() * self.heads * self.width, Role::Acc);
        let dims = [Int(self.heads), Int(self.head_dim), Int(self.width)];
        let args = [&[At(out), At(z), At(weight), At(ids)], &dims[..]].concat();
        r.run("attention_result", [self.rows.len(), self.heads, 1], &args);
        true
    }
}
