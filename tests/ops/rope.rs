//! Rotary position embedding.

use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, compute};
use super::packs;
use super::simt::recorder::{Recorder, list, rows};
use super::simt::tape::Arg::{self, At, Int, Null};

/// x -> out
#[derive(Clone, Debug)]
pub struct Rope {
    pub pack: Pack,
    pub heads: usize,
    pub head_dim: usize,
    /// Leading elements of a head that are rotated.
    pub rotary_dim: usize,
    pub cos_sin: Vec<f64>,
}

impl Rope {
    fn len(&self) -> usize {
        self.pack.len() * self.heads * self.head_dim
    }

    /// Rotates the pairs of each head by the angle of the row's position, or back with `sign = -1`.
    fn rotate(&self, p: Precision, x: &[f64], sign: f64) -> Vec<f64> {
        let half = self.rotary_dim / 2;
        let mut out = x.to_vec();
        for (at, head) in out.chunks_mut(self.head_dim).enumerate() {
            let angles = &self.cos_sin[self.pack.positions()[at / self.heads] as usize * self.rotary_dim..];
            for i in 0..half {
                let (cos, sin) = (p.a(angles[i]), p.a(sign * angles[half + i]));
                let (a, b) = (head[i], head[i + half]);
                head[i] = p.c(p.a(a * cos) - p.a(b * sin));
                head[i + half] = p.c(p.a(b * cos) + p.a(a * sin));
            }
        }
        out
    }
}

impl Operation for Rope {
    fn inputs(&self) -> Vec<Array> {
        vec![compute("x", self.len()).gradient(Role::Compute)]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![compute("out", self.len()).gradient(Role::Compute)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        vec![self.rotate(p, &inputs[0], 1.0)]
    }

    fn naive_backward(&self, p: Precision, _: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        d[0] = self.rotate(p, d_out, -1.0);
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (x, pack, cos_sin) =
            (device::compute(b, &inputs[0]), b.pack(&self.pack).unwrap(), device::acc(b, &self.cos_sin));
        let (out, x, pack, cos_sin) = (&mut out.compute[0], &x, &pack, &cos_sin);
        let &Self { heads, head_dim, rotary_dim, .. } = self;
        b.rope_fwd(ops::RopeFwd { out, x, pack, cos_sin, heads, head_dim, rotary_dim });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let (mut d_x, pack, cos_sin) =
            (device::compute(b, &given.d_outputs[0]), b.pack(&self.pack).unwrap(), device::acc(b, &self.cos_sin));
        let (d_x_out, pack, cos_sin) = (&mut d_x, &pack, &cos_sin);
        let &Self { heads, head_dim, rotary_dim, .. } = self;
        b.rope_bwd(ops::RopeBwd { d_x: d_x_out, pack, cos_sin, heads, head_dim, rotary_dim });
        vec![Some(device::read_compute(b, &d_x, given.len(0)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let n = self.pack.len();
        let positions = At(r.tape.ints(&list(self.pack.positions())));
        let (x, table) = (At(r.tape.compute(&case.inputs[0])), At(r.tape.acc(&self.cos_sin)));
        let out = At(r.output(0, self.len(), Role::Compute));
        let dims = |heads, too| {
            [&[positions, table, Int(n)], &[heads, too, self.head_dim, self.rotary_dim].map(Int)[..]].concat()
        };
        r.run("rope_fwd", rows(n), &[&[out, x, Null, Null], &dims(self.heads, 0)[..]].concat());
        let buffer = r.tape.compute(&case.d_outputs[0]);
        r.in_place(1, buffer, Role::Compute);
        r.run("rope_bwd", rows(n), &[&[At(buffer), Null], &dims(self.heads, 0)[..]].concat());
        // The same beside a tensor of one head, as the first of two and as the second.
        for second in [false, true] {
            let swapped = |x: Arg, other: Arg| if second { [other, x] } else { [x, other] };
            let dims = if second { dims(1, self.heads) } else { dims(self.heads, 1) };
            let out = At(r.output(0, self.len(), Role::Compute));
            let buffer = r.tape.compute(&case.d_outputs[0]);
            r.in_place(1, buffer, Role::Compute);
            let [beside, out_beside] = [(); 2].map(|()| At(r.tape.compute(&vec![0.5; n * self.head_dim])));
            let [[out, out_too], [x, x_too]] = [swapped(out, out_beside), swapped(x, beside)];
            r.run("rope_fwd", [n, 2, 1], &[&[out, x, out_too, x_too], &dims[..]].concat());
            r.run("rope_bwd", [n, 2, 1], &[&swapped(At(buffer), beside), &dims[..]].concat());
        }
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[true] })
    }

    fn select(&self, _: &[usize], pack: Option<Pack>) -> Option<Self> {
        pack.map(|pack| Self { pack, ..self.clone() })
    }
}

/// Cosines and sines of `positions` positions.
fn cos_sin(positions: usize, rotary_dim: usize) -> Vec<f64> {
    let half = rotary_dim / 2;
    let angle = |p: usize, i: usize| p as f64 / 100f64.powf(i as f64 / half as f64);
    (0..positions)
        .flat_map(|p| {
            let cosines = (0..half).map(move |i| angle(p, i).cos());
            cosines.chain((0..half).map(move |i| angle(p, i).sin())).collect::<Vec<_>>()
        })
        .collect()
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    match set {
        Set::Small => {
            let case = |(heads, head_dim, rotary_dim)| {
                let pack = packs::trees();
                let cos_sin = cos_sin(pack.longest() + 2, rotary_dim);
                let op = Rope { pack, heads, head_dim, rotary_dim, cos_sin };
                Case::new(format!("rope {heads}x{head_dim} of {rotary_dim}"), op)
            };
            [(1, 2, 2), (3, 6, 6), (2, 7, 4), (2, 32, 16), (2, 5, 0)].map(case).into()
        }
        Set::Forest => {
            let pack = packs::large_forest();
            let case = |(head_dim, rotary_dim)| {
                let cos_sin = cos_sin(pack.longest(), rotary_dim);
                let op = Rope { pack: pack.clone(), heads: 3, head_dim, rotary_dim, cos_sin };
                Case::new(format!("rope {head_dim} of {rotary_dim}"), op)
            };
            [(6, 6), (10, 4)].map(case).into()
        }
        Set::Large | Set::Rows => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "rope_fwd: the rotated width modulo 2 is 1, must be 0",
            call: |b| {
                let ([cos_sin], [mut out, x], []) = device::buffers(b, [6], [6, 6], []);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                let (out, x, cos_sin) = (&mut out, &x, &cos_sin);
                b.rope_fwd(ops::RopeFwd { out, x, pack, cos_sin, heads: 1, head_dim: 3, rotary_dim: 3 });
            },
        },
        Refusal {
            says: "rope_fwd: a head has 4 elements, needs 6",
            call: |b| {
                let ([cos_sin], [mut out, x], []) = device::buffers(b, [12], [8, 8], []);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                let (out, x, cos_sin) = (&mut out, &x, &cos_sin);
                b.rope_fwd(ops::RopeFwd { out, x, pack, cos_sin, heads: 1, head_dim: 4, rotary_dim: 6 });
            },
        },
        Refusal {
            says: "rope_bwd: cos_sin has 7 elements, needs 8",
            call: |b| {
                let ([cos_sin], [mut d_x], []) = device::buffers(b, [7], [8], []);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                let (d_x, cos_sin) = (&mut d_x, &cos_sin);
                b.rope_bwd(ops::RopeBwd { d_x, pack, cos_sin, heads: 1, head_dim: 4, rotary_dim: 4 });
            },
        },
    ]
}
