//! A gate and an up-projection with LoRAs, their activation, and the LoRA that reads it.

use llamaprobe::arch::Activation;
use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{self, LoraSite, RunRange};
use llamaprobe::pack::Pack;

use super::super::activation::Gated;
use super::super::cases::Case;
use super::super::device::{self, Given, Outputs};
use super::super::naive::Precision;
use super::super::operation::{Array, Factors, Operation, Role, acc, compute};
use super::super::packs::RUNS;
use super::super::simt::recorder::{FILL, Recorder};
use super::super::simt::tables;
use super::super::simt::tape::Arg::{At, Bits, Float, Int, Long, Null};
use super::{Drop, Lora, TILE_ROWS, adapted, each, narrow};

/// gate, up, x, params -> y, act, xa: what the LoRA of the activation adds to 0, the activation, and what that LoRA begins with
#[derive(Clone, Debug)]
pub struct LoraGated {
    /// Of the gate, the up-projection and the activation.
    pub loras: Box<[Lora; 3]>,
}

/// Sizes of one.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Ranks of the former two, and of the last.
    pub ranks: [usize; 2],
    /// Elements of a row of x, of the activation and of the last output.
    pub widths: [usize; 3],
    /// Elements between matrices.
    pub gap: usize,
}

impl LoraGated {
    /// Matrices one behind the other.
    pub fn new(pack: &Pack, Sizes { ranks, widths: [input, width, output], gap }: Sizes) -> Self {
        let mut end = 0;
        let mut take = |len: usize| {
            let at = end + gap;
            end = at + len;
            at
        };
        let shapes = [(ranks[0], input, width), (ranks[0], input, width), (ranks[1], width, output)];
        let places = shapes.map(|(rank, input, output)| (take(rank * input), take(output * rank)));
        let stride = end.next_multiple_of(4) + gap;
        let lora = |i: usize| {
            let ((rank, input, output), (a, b)) = (shapes[i], places[i]);
            let site = LoraSite { a, b, stride, rank, input, output, scale: 1.75, runs: RunRange::ALL };
            Lora { pack: pack.clone(), site, runs: RUNS, drop: None }
        };
        Self { loras: Box::new([0, 1, 2].map(lora)) }
    }

    /// The same with dropout of each input.
    pub fn dropped<B: Backend>(mut self, b: &mut B) -> Self {
        for (lora, number) in self.loras.iter_mut().zip(5..) {
            lora.drop = Some(super::dropout_of(b, &lora.pack, 0.2, lora.site.input, number));
        }
        self
    }

    /// This and the same with dropout, of which nobody asks what it drops, if the ranks of what reads the activation may be made with it.
    fn made_in_parts<B: Backend>(&self, b: &B) -> Vec<Self> {
        let mut dropped = self.clone();
        for (lora, site) in dropped.loras.iter_mut().zip(5..) {
            let (seeds, keys) = ((0..lora.runs as u64).collect(), (0..lora.pack.len() as u32).collect());
            lora.drop = Some(Drop { p: 0.2, seeds, site, keys, survivors: vec![] });
        }
        let width = self.loras[2].site.input;
        let fits = width.is_multiple_of(256) && width > 4096 && !b.name().starts_with("cpu");
        if fits { vec![self.clone(), dropped] } else { vec![] }
    }

    fn rows(&self) -> usize {
        self.loras[0].pack.len()
    }

    /// Elements of the activation.
    fn gated(&self) -> Gated {
        Gated { f: Activation::Silu, len: self.rows() * self.loras[0].site.output }
    }

    /// The outputs of the gate and the up-projection, then what comes of them.
    fn naive(&self, p: Precision, inputs: &[Vec<f64>]) -> [Vec<f64>; 5] {
        let [gate, up, down] = &*self.loras;
        let added = |lora: &Lora, y: &Vec<f64>, x: &Vec<f64>| {
            lora.naive_forward(p, &[y.clone(), x.clone(), inputs[3].clone()]).try_into().expect("y and xa")
        };
        let [gate, _]: [Vec<f64>; 2] = added(gate, &inputs[0], &inputs[2]);
        let [up, _]: [Vec<f64>; 2] = added(up, &inputs[1], &inputs[2]);
        let act = self.gated().naive_forward(p, &[gate.clone(), up.clone()]).remove(0);
        let [y, xa]: [Vec<f64>; 2] = added(down, &vec![0.0; self.rows() * down.site.output], &act);
        [gate, up, y, act, xa]
    }

    /// The outputs of the gate and the up-projection, and what their LoRAs begin with. What reads the activation is asked for at once, or
    /// `apart`.
    fn run<B: Backend>(
        &self,
        b: &mut B,
        inputs: &[Vec<f64>],
        [x, y, act]: [&mut B::Compute; 3],
        [params, xa]: [&mut B::Acc; 2],
        apart: bool,
    ) -> ([B::Compute; 2], [B::Acc; 2]) {
        let [mut gate, mut up] = [0, 1].map(|i| device::compute(b, &inputs[i]));
        let mut ranks = [0, 1].map(|i| device::acc(b, &vec![FILL; self.rows() * self.loras[i].site.rank]));
        let (pack, Gated { f, len }) = (&b.pack(&self.loras[0].pack).unwrap(), self.gated());
        for ((lora, y), xa) in self.loras.iter().zip([&mut gate, &mut up]).zip(&mut ranks) {
            let dropout = Drop::of_device(&lora.drop);
            b.lora_fwd(ops::LoraFwd { y: Some(y), xa, x, params, pack, site: lora.site, dropout });
        }
        b.gated_fwd(ops::GatedFwd { act, gate: &gate, up: &up, f, len });
        if apart {
            b.sync().unwrap();
        }
        let Lora { site, ref drop, .. } = self.loras[2];
        let dropout = Drop::of_device(drop);
        b.lora_fwd(ops::LoraFwd { y: Some(y), xa, x: act, params, pack, site, dropout });
        ([gate, up], ranks)
    }
}

impl LoraGated {
    fn forward_to<B: Backend>(
        &self,
        b: &mut B,
        inputs: &[Vec<f64>],
        [y, act]: [&mut B::Compute; 2],
        xa: &mut B::Acc,
        apart: bool,
    ) {
        let (x, params) = (&mut device::compute(b, &inputs[2]), &mut device::acc(b, &inputs[3]));
        self.run(b, inputs, [x, y, act], [params, xa], apart);
    }

    fn outputs_of<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], apart: bool) -> [Vec<f64>; 3] {
        let LoraSite { rank, output, .. } = self.loras[2].site;
        let (rows, len) = (self.rows(), self.gated().len);
        let [mut y, mut act] = [rows * output, len].map(|len| device::compute(b, &vec![0.0; len]));
        let mut xa = device::acc(b, &vec![FILL; rows * rank]);
        self.forward_to(b, inputs, [&mut y, &mut act], &mut xa, apart);
        let [y, act] = [(&y, rows * output), (&act, len)].map(|(x, len)| device::read_compute(b, x, len));
        [y, act, device::read_acc(b, &xa, rows * rank)]
    }

    fn gradients<B: Backend>(&self, b: &mut B, given: &Given<'_>, apart: bool) -> [Vec<f64>; 4] {
        let [gate_lora, up_lora, down] = &*self.loras;
        let (len, rows) = (self.gated().len, self.rows());
        let (x, params) = (&mut device::compute(b, &given.inputs[2]), &mut device::acc(b, &given.inputs[3]));
        let [mut y, mut act] = [rows * down.site.output, len].map(|len| device::compute(b, &vec![0.0; len]));
        let mut xa = device::acc(b, &vec![FILL; rows * down.site.rank]);
        let [mut d_gate, mut d_up] = [0, 1].map(|i| device::compute(b, &given.start[i]));
        let [mut d_x, mut d_params] = [2, 3].map(|i| device::acc(b, &given.start[i]));
        let (d_y, mut d_act) = (device::compute(b, &given.d_outputs[0]), device::acc(b, &vec![0.0; len]));
        let ([gate, up], ranks) = self.run(b, given.inputs, [x, &mut y, &mut act], [params, &mut xa], apart);
        let (pack, Gated { f, len }) = (&b.pack(&down.pack).unwrap(), self.gated());
        let mut backward = |b: &mut B, lora: &Lora, [d_y, x]: [&B::Compute; 2], xa: &B::Acc, d_x: &mut B::Acc| {
            let (d_params, dropout, d_x) = (&mut d_params, Drop::of_device(&lora.drop), Some(d_x));
            let (accumulate, params, site) = (true, &*params, lora.site);
            b.lora_bwd(ops::LoraBwd { d_params, accumulate, d_x, d_y, xa, x, params, pack, site, dropout });
        };
        backward(b, down, [&d_y, &act], &xa, &mut d_act);
        let (d_gate_out, d_up_out, d_act) = (&mut d_gate, &mut d_up, &mut d_act);
        b.gated_bwd(ops::GatedBwd { d_gate: d_gate_out, d_up: d_up_out, d_act, gate: &gate, up: &up, f, len });
        if apart {
            b.sync().unwrap();
        }
        backward(b, gate_lora, [&d_gate, x], &ranks[0], &mut d_x);
        backward(b, up_lora, [&d_up, x], &ranks[1], &mut d_x);
        let [d_gate, d_up] = [&d_gate, &d_up].map(|d| device::read_compute(b, d, len));
        let [d_x, d_params] = [(2, &d_x), (3, &d_params)].map(|(i, d)| device::read_acc(b, d, given.len(i)));
        [d_gate, d_up, d_x, d_params]
    }
}

impl Operation for LoraGated {
    fn factors(&self) -> Factors {
        Factors::Adapters
    }

    fn inputs(&self) -> Vec<Array> {
        let Lora { site, runs, .. } = self.loras[0];
        let [gate, up] = ["gate", "up"].map(|name| compute(name, self.gated().len).gradient(Role::Compute));
        let x = compute("x", self.rows() * site.input).gradient_added();
        vec![gate, up, x, acc("params", runs * site.stride).scaled(0.25).gradient_added()]
    }

    fn outputs(&self) -> Vec<Array> {
        let LoraSite { rank, output, .. } = self.loras[2].site;
        let y = compute("y", self.rows() * output).gradient(Role::Compute);
        vec![y, compute("act", self.gated().len), acc("xa", self.rows() * rank)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let [_, _, y, act, xa] = self.naive(p, inputs);
        vec![y, act, xa]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let [gate, up, y, act, _] = self.naive(p, inputs);
        let mut through = |lora: &Lora, y: &Vec<f64>, x: &Vec<f64>, d_y: &[f64]| {
            let mut of_lora = [vec![], vec![0.0; x.len()], vec![0.0; inputs[3].len()]];
            lora.naive_backward(p, &[y.clone(), x.clone(), inputs[3].clone()], d_y, &mut of_lora);
            let [_, d_x, d_params] = of_lora;
            d[3].iter_mut().zip(d_params).for_each(|(sum, d)| p.add(sum, d));
            d_x
        };
        let d_act = through(&self.loras[2], &y, &act, d_out);
        let mut d_gated = [vec![0.0; gate.len()], vec![0.0; up.len()]];
        self.gated().naive_backward(p, &[gate, up], &d_act, &mut d_gated);
        let of_x = [0, 1].map(|i| through(&self.loras[i], &inputs[i], &inputs[2], &d_gated[i]));
        of_x.iter().for_each(|d_x| d[2].iter_mut().zip(d_x).for_each(|(sum, d)| p.add(sum, *d)));
        let [d_gate, d_up] = d_gated;
        (d[0], d[1]) = (d_gate, d_up);
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        out.compute[0] = device::compute(b, &vec![0.0; self.rows() * self.loras[2].site.output]);
        let [y, act] = &mut out.compute[..] else { panic!("two outputs of the compute dtype") };
        self.forward_to(b, inputs, [y, act], &mut out.acc[0], false);
        for op in self.made_in_parts(b) {
            let [joined, apart] = [false, true].map(|apart| op.outputs_of(b, inputs, apart));
            assert_eq!(joined, apart, "lora_fwd: xa and y of an activation by its launch and by one of their own");
        }
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        for op in self.made_in_parts(b) {
            let [joined, apart] = [false, true].map(|apart| op.gradients(b, given, apart));
            assert_eq!(
                joined, apart,
                "lora_bwd: of a gate and an up-projection by the activation's launch and by one of their own"
            );
        }
        self.gradients(b, given, false).map(Some).to_vec()
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let sites = [0, 1, 2].map(|i| self.loras[i].site);
        let [gate, up, down] = sites;
        let (rows, pack, LoraSite { rank, input, output: width, stride, scale, .. }) =
            (self.rows(), &self.loras[0].pack, gate);
        let vectors = sites.iter().all(|site| [site.a, site.b, site.stride].iter().all(|n| n.is_multiple_of(4)));
        if !vectors || !width.is_multiple_of(256) || sites.iter().any(|site| site.rank > 32) {
            return false;
        }
        let (of_input, of_width) = (&sites[..2], &sites[2..]);
        let [tiles, runs] = adapted(pack, gate);
        let (count, run_count) = (tiles.len() / 3, runs.len() / 3);
        let [tiles, runs] = [tiles, runs].map(|list| At(r.tape.ints(&list)));
        let all_tiles = At(r.tape.ints(&tables::adapted(pack, TILE_ROWS).0));
        let run_of: Vec<i32> = (0..rows).map(|row| pack.run_of(row).expect("a run") as i32).collect();
        let run_of = At(r.tape.ints(&run_of));
        let (tables, _) = self.loras[2].drop_tables(r);
        let draw = |i: usize| Bits(self.loras[i].drop.as_ref().map_or(0, |drop| drop.site));
        let dropout = [&tables[..2], &[draw(0), draw(1), draw(1)], &tables[2..]].concat();
        let dropout_of_act = [&tables[..2], &[draw(2)], &tables[2..]].concat();
        let [y_gate, y_up] = [0, 1].map(|i| At(r.tape.compute(&case.inputs[i])));
        let (x, params) = (At(r.tape.compute(&case.inputs[2])), At(r.tape.acc(&case.inputs[3])));
        let y = r.tape.compute(&vec![0.0; rows * down.output]);
        r.in_place(0, y, Role::Compute);
        let act = At(r.output(1, rows * width, Role::Compute));
        let of_ranks = |r: &mut Recorder<'_>, rank| At(r.tape.acc(&vec![FILL; rows * rank]));
        let (xa, xa_act) = (each(of_input, |_, _| of_ranks(r, rank)), At(r.output(2, rows * down.rank, Role::Acc)));
        // What LoRAs make of x, of the activation, and of their sums' gradients: a part for every 256 columns.
        let parts = |r: &mut Recorder<'_>, loras, rank| {
            let parts = At(r.tape.acc(&vec![FILL; width / 256 * loras * rows * rank]));
            [parts, At(r.tape.tickets(count)), Long(rows * rank)]
        };

        let (workspace, grid) = narrow(r, (rows, rank), 2, count, input);
        let of_rows = [Int(count), run_of, Int(rows), Int(0), Int(RUNS)];
        let of_a = [&[Int(rank), Int(input), Long(stride)], &each(of_input, |_, site| Long(site.a))[..]].concat();
        let args = [&xa[..], &[x, params, tiles], &of_rows, &workspace, &dropout, &of_a].concat();
        r.tape.launch("lora_fwd_shrink", grid, 64, 0, &args);
        let sums = [y_gate, y_up, act, xa[0], xa[1], params, tiles];
        let of_b = [Int(rank), Int(width), Long(stride), Long(gate.b), Long(up.b), Float(scale)];
        let (next, workspace) = ([xa_act, Int(down.rank), Long(down.a)], parts(r, 1, down.rank));
        let args = [&sums[..], &of_b, &next, &workspace, &dropout_of_act].concat();
        r.tape.launch("lora_fwd_expand_gated", [count, width / 256, 1], 128, 0, &args);
        let of_down = [&[Int(down.rank)], &[Int(down.output); 3][..], &[Long(stride)], &[Long(down.b); 3]].concat();
        let of_down = [&of_down[..], &[Float(scale)]].concat();
        let added = [&[At(y); 3][..], &[xa_act; 3], &[params, tiles, Null, Null, Int(0), Int(0)], &of_down].concat();
        r.tape.launch("lora_fwd_expand", [count, down.output.div_ceil(256), 1], 128, 0, &added);

        let (d_y, d_xa) = (At(r.tape.compute(&case.d_outputs[0])), of_ranks(r, down.rank));
        let (workspace, grid) = narrow(r, (rows, down.rank), 1, count, down.output);
        let args = [&[d_xa, d_y, d_y, d_y, params, tiles], &workspace[..], &of_down].concat();
        r.tape.launch("lora_bwd_xa", grid, 64, 0, &args);
        let [d_gate, d_up] = [3, 4].map(|i| At(r.output(i, rows * width, Role::Compute)));
        let (d_x, d_params) = (At(r.sum(5, case.inputs[2].len(), 0)), At(r.sum(6, case.inputs[3].len(), 0)));
        let d_act = At(r.tape.acc(&vec![0.0; rows * width]));
        let (next, workspace) = (At(r.tape.acc(&vec![FILL; 2 * rows * rank])), parts(r, 2, rank));
        let to = [d_params, Int(1), d_act, Null, Int(0), Long(0), Int(1), d_gate, d_up, y_gate, y_up];
        let read = [d_y, xa_act, act, d_xa, params];
        let of_tiles = [all_tiles, tiles, Int(count), runs, Int(run_count)];
        let sizes = [Int(down.rank), Int(width), Int(down.output), Long(stride), Long(down.a), Long(down.b)];
        let of_next = [next, Int(rank), Long(gate.b), Long(up.b), Float(scale)];
        let sizes = [&sizes[..], &[Float(scale)], &of_next, &workspace].concat();
        let args = [&to[..], &read, &of_tiles, &dropout_of_act, &sizes].concat();
        let blocks = |sites: &[LoraSite]| {
            let LoraSite { rank, input, .. } = sites[0];
            let columns: usize = sites.iter().map(|site| site.output.div_ceil(64) + input.div_ceil(64)).sum();
            columns * run_count * rank.div_ceil(16) + count * input.div_ceil(256)
        };
        r.tape.launch("lora_bwd_gated", [blocks(of_width), 1, 1], 128, 0, &args);
        let to = [d_params, Int(1), d_x, Null, Int(0), Long(0), Int(1), Null, Null, Null, Int(0)];
        let read = [d_gate, d_up, d_up, xa[0], xa[1], xa[1], x, next, Long(rows * rank), params];
        let sizes = [&[Int(2), Int(rank), Int(input)], &[Int(width); 3][..], &[Long(stride)]].concat();
        let places = [each(of_input, |_, site| Long(site.a)), each(of_input, |_, site| Long(site.b))].concat();
        let args = [&to[..], &read, &of_tiles, &dropout, &sizes, &places, &[Float(scale)]].concat();
        r.tape.launch("lora_bwd_inputs", [blocks(of_input), 1, 1], 128, 0, &args);
        true
    }
}
