//! Rotary position embedding.

use llamaprobe::arch::RopePairs;
use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, compute};
use super::packs;
use super::simt::recorder::{Recorder, list, rows};
use super::simt::tape::Arg::{At, Float, Int, Long, Null};

/// x -> out
#[derive(Clone, Debug)]
pub struct Rope {
    pub pack: Pack,
    pub heads: usize,
    pub head_dim: usize,
    /// Leading elements of a head that are rotated.
    pub rotary_dim: usize,
    pub pairs: RopePairs,
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
                let [first, second] = match self.pairs {
                    RopePairs::Halves => [i, i + half],
                    RopePairs::Neighbours => [2 * i, 2 * i + 1],
                };
                let (a, b) = (head[first], head[second]);
                head[first] = p.c(p.a(a * cos) - p.a(b * sin));
                head[second] = p.c(p.a(b * cos) + p.a(a * sin));
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
        out.compute[0] = device::compute(b, &inputs[0]);
        let (pack, cos_sin) = (&b.pack(&self.pack).unwrap(), &device::acc(b, &self.cos_sin));
        let x = &mut out.compute[0];
        let &Self { heads, head_dim, rotary_dim, pairs, .. } = self;
        b.rope_fwd(ops::RopeFwd { x, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let (mut d_x, pack, cos_sin) =
            (device::compute(b, &given.d_outputs[0]), b.pack(&self.pack).unwrap(), device::acc(b, &self.cos_sin));
        let (d_x_out, pack, cos_sin) = (&mut d_x, &pack, &cos_sin);
        let &Self { heads, head_dim, rotary_dim, pairs, .. } = self;
        b.rope_bwd(ops::RopeBwd { d_x: d_x_out, pack, cos_sin, heads, head_dim, rotary_dim, pairs });
        vec![Some(device::read_compute(b, &d_x, given.len(0)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let n = self.pack.len();
        let (positions, table) = (At(r.tape.ints(&list(self.pack.positions()))), At(r.tape.acc(&self.cos_sin)));
        let dims = |heads, too| {
            [&[positions, table, Int(n)], &[heads, too, self.head_dim, self.rotary_dim].map(Int)[..]].concat()
        };
        let names = match self.pairs {
            RopePairs::Halves => ["rope_fwd", "rope_bwd"],
            RopePairs::Neighbours => ["rope_neighbours_fwd", "rope_neighbours_bwd"],
        };
        for (result, name, x) in [(0, names[0], &case.inputs[0]), (1, names[1], &case.d_outputs[0])] {
            let mut tensor = || {
                let x = r.tape.compute(x);
                r.in_place(result, x, Role::Compute);
                At(x)
            };
            let [alone, first, second] = [(); 3].map(|()| tensor());
            let [beside, before] = [(); 2].map(|()| At(r.tape.compute(&vec![0.5; n * self.head_dim])));
            r.run(name, rows(n), &[&[alone, Null], &dims(self.heads, 0)[..]].concat());
            // The same beside a tensor of one head, as the first of two and as the second.
            r.run(name, [n, 2, 1], &[&[first, beside], &dims(self.heads, 1)[..]].concat());
            r.run(name, [n, 2, 1], &[&[before, second], &dims(1, self.heads)[..]].concat());
        }
        let whole = self.rotary_dim == self.head_dim && self.head_dim.is_multiple_of(64);
        if whole && self.pairs == RopePairs::Halves {
            // The same behind a LoRA that adds nothing.
            let (width, zero) = (self.heads * self.head_dim, Long(0));
            let tile = |row: usize| [0, row as i32, (n - row).min(16) as i32];
            let tiles: Vec<i32> = (0..n).step_by(16).flat_map(tile).collect();
            let x = r.tape.compute(&case.inputs[0]);
            r.in_place(0, x, Role::Compute);
            let [xa, params] = [n, width].map(|rows| At(r.tape.acc(&vec![0.0; rows * 16])));
            let (count, tiles) = (tiles.len() / 3, At(r.tape.ints(&tiles)));
            let rotated = [params, tiles, positions, table, Int(1), Int(self.head_dim / 2), Int(16)];
            let rest = [Int(width), Int(width), Int(width), zero, zero, zero, zero, Float(1.0)];
            let args = [&[At(x); 3][..], &[xa; 3], &rotated, &rest].concat();
            r.tape.launch("lora_fwd_expand", [count, width.div_ceil(256), 1], 128, 0, &args);
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
pub fn cos_sin(positions: usize, rotary_dim: usize) -> Vec<f64> {
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
            let case = |(heads, head_dim, rotary_dim), pairs: RopePairs| {
                let pack = packs::trees();
                let cos_sin = cos_sin(pack.longest() + 2, rotary_dim);
                let op = Rope { pack, heads, head_dim, rotary_dim, pairs, cos_sin };
                Case::new(format!("rope {heads}x{head_dim} of {rotary_dim} {pairs:?}"), op)
            };
            let dims = [(1, 2, 2), (3, 6, 6), (2, 7, 4), (2, 32, 16), (2, 5, 0), (2, 64, 64)];
            let both = [RopePairs::Halves, RopePairs::Neighbours];
            both.into_iter().flat_map(|pairs| dims.map(|dims| case(dims, pairs))).collect()
        }
        Set::Forest => {
            let pack = packs::large_forest();
            let case = |(head_dim, rotary_dim, pairs): (usize, usize, RopePairs)| {
                let cos_sin = cos_sin(pack.longest(), rotary_dim);
                let op = Rope { pack: pack.clone(), heads: 3, head_dim, rotary_dim, pairs, cos_sin };
                Case::new(format!("rope {head_dim} of {rotary_dim} {pairs:?}"), op)
            };
            [(6, 6, RopePairs::Halves), (10, 4, RopePairs::Halves), (10, 4, RopePairs::Neighbours)].map(case).into()
        }
        Set::Large | Set::Rows => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "rope_fwd: the rotated width modulo 2 is 1, must be 0",
            call: |b| {
                let ([cos_sin], [mut x], []) = device::buffers(b, [6], [6], []);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                let (x, cos_sin) = (&mut x, &cos_sin);
                let pairs = RopePairs::Halves;
                b.rope_fwd(ops::RopeFwd { x, pack, cos_sin, heads: 1, head_dim: 3, rotary_dim: 3, pairs });
            },
        },
        Refusal {
            says: "rope_fwd: a head has 4 elements, needs 6",
            call: |b| {
                let ([cos_sin], [mut x], []) = device::buffers(b, [12], [8], []);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                let (x, cos_sin) = (&mut x, &cos_sin);
                let pairs = RopePairs::Neighbours;
                b.rope_fwd(ops::RopeFwd { x, pack, cos_sin, heads: 1, head_dim: 4, rotary_dim: 6, pairs });
            },
        },
        Refusal {
            says: "rope_bwd: cos_sin has 7 elements, needs 8",
            call: |b| {
                let ([cos_sin], [mut d_x], []) = device::buffers(b, [7], [8], []);
                let pack = &b.pack(&packs::flat(&[2])).unwrap();
                let (d_x, cos_sin) = (&mut d_x, &cos_sin);
                let pairs = RopePairs::Halves;
                b.rope_bwd(ops::RopeBwd { d_x, pack, cos_sin, heads: 1, head_dim: 4, rotary_dim: 4, pairs });
            },
        },
    ]
}
