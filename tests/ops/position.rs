//! Learned position embedding.

use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::Pack;

use super::cases::{Case, Set};
use super::device::{self, BEFORE, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Operation, Role, RowResults, acc, compute};
use super::packs;
use super::simt::recorder::{Recorder, list, rows};
use super::simt::tables;
use super::simt::tape::Arg::{At, Inside, Int};

/// x, table -> x
#[derive(Clone, Debug)]
pub struct Position {
    pub pack: Pack,
    pub first: usize,
    pub width: usize,
}

impl Operation for Position {
    fn inputs(&self) -> Vec<Array> {
        let positions = self.first + self.pack.longest();
        // The gradient of x passes as it is.
        vec![acc("x", self.pack.len() * self.width), compute("table", positions * self.width).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("x", self.pack.len() * self.width).gradient(Role::Acc)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let row = |at: &u32| &inputs[1][(self.first + *at as usize) * self.width..][..self.width];
        let table = self.pack.positions().iter().flat_map(row);
        vec![inputs[0].iter().zip(table).map(|(x, t)| p.a(x + t)).collect()]
    }

    fn naive_backward(&self, p: Precision, _: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        for (i, x) in d_out.iter().enumerate() {
            let at = self.first + self.pack.positions()[i / self.width] as usize;
            p.add(&mut d[1][at * self.width + i % self.width], *x);
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let &Self { ref pack, first, width } = self;
        out.acc[0] = device::acc(b, &inputs[0]);
        let (table, pack) = (device::weight(b, &inputs[1]), b.pack(pack).unwrap());
        b.position_fwd(ops::PositionFwd { x: &mut out.acc[0], pack: &pack, table: &table, first, width });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let &Self { ref pack, first, width } = self;
        let (d_x, pack) = (&device::acc(b, &given.d_outputs[0]), &b.pack(pack).unwrap());
        let mut d_table = device::inside(b, &given.start[1]);
        let (d_table_out, offset) = (&mut d_table, BEFORE);
        b.position_bwd_table(ops::PositionBwdTable { d_table: d_table_out, offset, d_x, pack, first, width });
        vec![None, Some(device::read_inside(b, &d_table, given.len(1)))]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let &Self { ref pack, first, width } = self;
        let x = r.tape.acc(&case.inputs[0]);
        r.in_place(0, x, Role::Acc);
        let (table, positions) = (At(r.tape.compute(&case.inputs[1])), At(r.tape.ints(&list(pack.positions()))));
        let args = [At(x), table, positions, Int(pack.len()), Int(width), Int(first)];
        r.run("position_fwd", rows(pack.len()), &args);
        let (ids, starts, order) = tables::groups(list(pack.positions()).into_iter().enumerate());
        let (count, d_x) = (ids.len(), At(r.tape.acc(&case.d_outputs[0])));
        let d_table = Inside(r.sum(1, case.inputs[1].len(), BEFORE), 4 * BEFORE);
        let [ids, starts, order] = [ids, starts, order].map(|table| At(r.tape.ints(&table)));
        let args = [d_table, d_x, ids, starts, order, Int(count), Int(width), Int(first)];
        r.run("position_bwd_table", rows(count), &args);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0], gradients: &[false, false] })
    }

    fn select(&self, _: &[usize], pack: Option<Pack>) -> Option<Self> {
        pack.map(|pack| Self { pack, ..self.clone() })
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    match set {
        Set::Small => {
            let case = |(first, width)| {
                Case::new(format!("position {first}x{width}"), Position { pack: packs::trees(), first, width })
            };
            [(0, 3), (2, 7)].map(case).into()
        }
        Set::Forest => vec![Case::new("position", Position { pack: packs::large_forest(), first: 2, width: 12 })],
        Set::Large | Set::Rows => vec![],
    }
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal {
            says: "position_fwd: table has 8 elements, needs 9",
            call: |b| {
                let ([mut x], [], [table]) = device::buffers(b, [6], [], [8]);
                let pack = b.pack(&packs::flat(&[2])).unwrap();
                let (x, pack, table) = (&mut x, &pack, &table);
                b.position_fwd(ops::PositionFwd { x, pack, table, first: 1, width: 3 });
            },
        },
        Refusal {
            says: "position_bwd_table: d_table has 10 elements, needs 11",
            call: |b| {
                let ([mut d_table, d_x], [], []) = device::buffers(b, [10, 6], [], []);
                let pack = b.pack(&packs::flat(&[2])).unwrap();
                let (d_table, d_x, pack) = (&mut d_table, &d_x, &pack);
                b.position_bwd_table(ops::PositionBwdTable { d_table, offset: 2, d_x, pack, first: 1, width: 3 });
            },
        },
    ]
}
