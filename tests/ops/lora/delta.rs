//! What adapters add, apart from what they add it to.

use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{self, LoraSite};
use llamaprobe::pack::Pack;

use super::super::cases::Case;
use super::super::device::{self, Given, Outputs};
use super::super::naive::Precision;
use super::super::operation::{Array, Factors, Operation, Role, acc};
use super::super::simt::recorder::Recorder;
use super::super::simt::tables;
use super::super::simt::tape::Arg::{self, At, Bits, Float, Int, Long, Null};
use super::{TILE_ROWS, adapted, delta, narrow, run_of_site};

/// B's arguments of a kernel.
fn of_b(site: LoraSite) -> [Arg; 5] {
    [Int(site.rank), Int(site.output), Long(site.stride), Long(site.b), Float(site.scale)]
}

/// xa, params -> out
#[derive(Clone, Debug)]
pub struct LoraDelta {
    pub pack: Pack,
    pub site: LoraSite,
    pub runs: usize,
}

impl Operation for LoraDelta {
    fn factors(&self) -> Factors {
        Factors::Adapters
    }

    fn inputs(&self) -> Vec<Array> {
        let xa = acc("xa", self.pack.len() * self.site.rank).gradient(Role::Acc);
        vec![xa, acc("params", self.runs * self.site.stride).scaled(0.5).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.pack.len() * self.site.output).gradient(Role::Compute)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (pack, site) = (&self.pack, self.site);
        let mut out = vec![0.0; pack.len() * site.output];
        for row in 0..pack.len() {
            let Some(run) = run_of_site(pack, site, row) else { continue };
            for o in 0..site.output {
                let params = &inputs[1][run * site.stride..];
                out[row * site.output + o] = delta(p, site, params, &inputs[0][row * site.rank..], o);
            }
        }
        vec![out]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (pack, site) = (&self.pack, self.site);
        let LoraSite { rank, output, stride, b, scale, .. } = site;
        let of_run = |run| (0..pack.len()).filter(move |&row| run_of_site(pack, site, row) == Some(run));
        for row in 0..pack.len() {
            let Some(run) = run_of_site(pack, site, row) else { continue };
            let (d_out, params) = (&d_out[row * output..][..output], &inputs[1][run * stride..]);
            for r in 0..rank {
                d[0][row * rank + r] = p.a(scale * p.dot(output, |o| d_out[o], |o| params[b + o * rank + r]));
            }
        }
        for run in 0..self.runs {
            let rows: Vec<usize> = of_run(run).collect();
            for (i, d) in d[1][run * stride + b..][..output * rank].iter_mut().enumerate() {
                let (o, r) = (i / rank, i % rank);
                let sum = p.dot(rows.len(), |i| d_out[rows[i] * output + o], |i| inputs[0][rows[i] * rank + r]);
                p.add(d, p.a(scale * sum));
            }
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let (xa, params) = (&device::acc(b, &inputs[0]), &device::acc(b, &inputs[1]));
        let pack = &b.pack(&self.pack).unwrap();
        b.lora_delta(ops::LoraDelta { out: &mut out.acc[0], xa, params, pack, site: self.site });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let [xa, params] = [0, 1].map(|i| device::acc(b, &given.inputs[i]));
        let d_y = &device::compute(b, &given.d_outputs[0]);
        let (mut d_xa, mut d_params) = (device::acc(b, &given.start[0]), device::acc(b, &given.start[1]));
        let pack = &b.pack(&self.pack).unwrap();
        b.lora_delta_bwd(ops::LoraDeltaBwd {
            d_params: &mut d_params,
            d_xa: &mut d_xa,
            d_y,
            xa: &xa,
            params: &params,
            pack,
            site: self.site,
        });
        let [d_xa, d_params] = [(0, &d_xa), (1, &d_params)].map(|(i, x)| Some(device::read_acc(b, x, given.len(i))));
        vec![d_xa, d_params]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let LoraSite { rank, output, a, b, stride, scale, .. } = self.site;
        let three = |arg: Arg| [arg; 3];
        let [tiles, runs] = adapted(&self.pack, self.site);
        let (count, run_count) = (tiles.len() / 3, runs.len() / 3);
        let [tiles, runs] = [tiles, runs].map(|list| At(r.tape.ints(&list)));
        let all_tiles = At(r.tape.ints(&tables::adapted(&self.pack, TILE_ROWS).0));
        let [xa, params] = [0, 1].map(|i| At(r.tape.acc(&case.inputs[i])));
        let [out, d_xa] = [output, rank].map(|width| r.tape.acc(&vec![0.0; self.pack.len() * width]));
        r.in_place(0, out, Role::Acc);
        r.in_place(1, d_xa, Role::Acc);
        let args = [&[At(out), xa, params, tiles], &of_b(self.site)[..]].concat();
        r.tape.launch("lora_delta", [count, output.div_ceil(256), 1], 128, 0, &args);
        let (d_xa, d_y) = (At(d_xa), At(r.tape.compute(&case.d_outputs[0])));
        let d_params = At(r.sum(2, case.inputs[1].len(), 0));
        let (workspace, grid) = narrow(r, (self.pack.len(), rank), 1, count, output);
        let of_b = [&[Int(rank)], &three(Int(output))[..], &[Long(stride)], &three(Long(b)), &[Float(scale)]].concat();
        let args = [&[d_xa], &three(d_y)[..], &[params, tiles], &workspace, &of_b].concat();
        r.tape.launch("lora_bwd_xa", grid, 64, 0, &args);
        let pitch = Long(self.pack.len() * rank);
        let none = [Null, Null, Null, Int(0)];
        let read = [&none[..], &three(d_y), &three(xa), &[d_y, d_xa, pitch, params]].concat();
        let rows = [all_tiles, tiles, Int(count), runs, Int(run_count)];
        let dropout = [&[Null, Null], &three(Bits(0))[..], &[Int(0), Float(1.0)]].concat();
        let places = [&three(Int(output))[..], &[Long(stride)], &three(Long(a)), &three(Long(b))].concat();
        let sizes = [&[Int(1), Int(rank), Int(0)], &places[..], &[Float(scale)]].concat();
        let args =
            [&[d_params, Int(1), Null, Null, Int(0), Long(0), Int(1)], &read[..], &rows, &dropout, &sizes].concat();
        let blocks = output.div_ceil(64) * run_count * rank.div_ceil(16);
        r.tape.launch("lora_bwd_inputs", [blocks, 1, 1], 128, 0, &args);
        true
    }
}
