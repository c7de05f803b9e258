//! Attention of which only some rows are read: their `z` and `lse`, and gradients that come from them alone.

use llamaprobe::backend::ops::{AttentionFwd, GatherAcc, GatherCompute};
use llamaprobe::backend::{Backend, ops};

use super::super::cases::Case;
use super::super::device::{self, Given, Outputs, Refusal, SENTINEL};
use super::super::naive::Precision;
use super::super::operation::{Array, Operation, Role, acc, compute};
use super::super::packs::{self, heads};
use super::super::simt::recorder::Recorder;
use super::Attention;

/// q, k, v, cached k, cached v -> z and lse of the output rows
#[derive(Clone, Debug)]
pub struct AttentionOutputs {
    pub attention: Attention,
    /// The output rows, ascending.
    pub rows: Vec<usize>,
}

impl AttentionOutputs {
    /// The output rows of a tensor of `width` elements a row.
    fn select(&self, all: &[f64], width: usize) -> Vec<f64> {
        self.rows.iter().flat_map(|&row| all[row * width..(row + 1) * width].iter().copied()).collect()
    }

    /// Rows in their places among all, of which the others are 0.
    fn spread(&self, selected: &[f64], width: usize) -> Vec<f64> {
        let mut all = vec![0.0; self.attention.pack.len() * width];
        for (values, &row) in selected.chunks_exact(width).zip(&self.rows) {
            all[row * width..(row + 1) * width].copy_from_slice(values);
        }
        all
    }

    /// `z` and `lse`, as a device leaves them.
    fn attend<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>]) -> (B::Compute, B::Acc) {
        let Attention { pack, cached, dims } = &self.attention;
        let [q, k, v, cached_k, cached_v] = &[0, 1, 2, 3, 4].map(|i| device::compute(b, &inputs[i]));
        let cached = (!cached.is_empty()).then_some([cached_k, cached_v]);
        let mut z = device::compute(b, &vec![SENTINEL; pack.len() * dims.q_width()]);
        let mut lse = device::acc(b, &vec![SENTINEL; pack.len() * dims.heads]);
        let (outputs, pack) = (Some(self.rows.as_slice()), &b.pack(pack).unwrap());
        b.attention_fwd(AttentionFwd { z: &mut z, lse: &mut lse, q, k, v, cached, pack, outputs, dims: *dims });
        (z, lse)
    }
}

impl Operation for AttentionOutputs {
    fn inputs(&self) -> Vec<Array> {
        self.attention.inputs()
    }

    fn outputs(&self) -> Vec<Array> {
        let (m, dims) = (self.rows.len(), self.attention.dims);
        vec![compute("z", m * dims.q_width()).gradient(Role::Acc), acc("lse", m * dims.heads)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let dims = self.attention.dims;
        let all = self.attention.naive_forward(p, inputs);
        vec![self.select(&all[0], dims.q_width()), self.select(&all[1], dims.heads)]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_z: &[f64], d: &mut [Vec<f64>]) {
        self.attention.naive_backward(p, inputs, &self.spread(d_z, self.attention.dims.q_width()), d);
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let dims = self.attention.dims;
        let (z, lse) = self.attend(b, inputs);
        let rows = &b.index(&self.rows.iter().map(|&row| row as u32).collect::<Vec<_>>()).unwrap();
        b.gather_compute(GatherCompute { out: &mut out.compute[0], x: &z, rows, width: dims.q_width() });
        b.gather_acc(GatherAcc { out: &mut out.acc[0], x: &lse, rows, width: dims.heads });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let saved = self.attend(b, given.inputs);
        let d_z = self.spread(&given.d_outputs[0], self.attention.dims.q_width());
        self.attention.gradients(b, given, &saved, (&d_z, Some(&self.rows)), |_, _, _| {})
    }

    fn launch(&self, _: &Case, _: &mut Recorder<'_>) -> bool {
        // The kernels compute all rows.
        false
    }
}

/// Some rows, the first and the last among them or not, of ragged packs, forests and continued ones.
pub fn cases() -> Vec<Case> {
    let (continued, cached) = packs::continued();
    let dims = heads(4, 2, 4, Some(3));
    let mut cases = Vec::new();
    for (name, pack, cached) in [
        ("ragged", packs::ragged(), Vec::new()),
        ("trees", packs::trees(), Vec::new()),
        ("bidirectional", packs::bidirectional(&packs::ragged(), &[]), Vec::new()),
        ("continued", continued, cached),
    ] {
        let n = pack.len();
        for (which, rows) in [("some", vec![1, n / 2, n - 1]), ("one", vec![0])] {
            let attention = Attention { pack: pack.clone(), cached: cached.clone(), dims };
            cases.push(Case::new(format!("attention outputs {name} {which}"), AttentionOutputs { attention, rows }));
        }
    }
    cases
}

/// Calls `attention_fwd` on two rows of which these come out.
fn call<B: Backend>(b: &mut B, rows: &[usize]) {
    let ([mut lse], [mut z, q, k, v], []) = device::buffers(b, [6], [12, 12, 12, 12], []);
    let (z, lse, q, k, v) = (&mut z, &mut lse, &q, &k, &v);
    let (pack, dims) = (&b.pack(&packs::flat(&[2])).unwrap(), heads(3, 1, 2, None));
    b.attention_fwd(ops::AttentionFwd { z, lse, q, k, v, cached: None, pack, outputs: Some(rows), dims });
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal { says: "attention_fwd: output rows are not in ascending order", call: |b| call(b, &[1, 0]) },
        Refusal { says: "attention_fwd: an output row is 2, must be below 2", call: |b| call(b, &[0, 2]) },
    ]
}
