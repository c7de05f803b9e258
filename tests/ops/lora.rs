//! Adapters of stacked runs.

#[path = "lora/delta.rs"]
mod delta;
#[path = "lora/gated.rs"]
mod gated;

use llamaprobe::backend::Backend;
use llamaprobe::backend::ops::{self, Dropout, LoraSite, RunRange};
use llamaprobe::pack::{Label, Pack, PackBuilder, Parent, Token};

use super::cases::{Case, Set};
use super::device::{self, Given, Outputs, Refusal};
use super::naive::Precision;
use super::operation::{Array, Factors, Operation, Role, RowResults, acc, compute};
use super::packs::{self, RUNS};
use super::simt::recorder::{FILL, Recorder, START};
use super::simt::tables;
use super::simt::tape::Arg::{self, At, Bits, Float, Int, Long, Null};
pub use delta::LoraDelta;
pub use gated::{LoraGated, Sizes};

/// Rows of a tile of the kernels.
const TILE_ROWS: usize = 16;

/// Dropout, with the survivors `[N, input]` that the device under test was found to let live.
#[derive(Clone, Debug)]
pub struct Drop {
    pub p: f64,
    pub seeds: Vec<u64>,
    pub site: u64,
    pub keys: Vec<u32>,
    pub survivors: Vec<bool>,
}

impl Drop {
    pub fn of_device(drop: &Option<Self>) -> Option<Dropout<'_>> {
        drop.as_ref().map(|d| Dropout { p: d.p, seeds: &d.seeds, site: d.site, keys: &d.keys })
    }
}

/// y, x, params -> y, xa
#[derive(Clone, Debug)]
pub struct Lora {
    pub pack: Pack,
    pub site: LoraSite,
    pub runs: usize,
    pub drop: Option<Drop>,
}

impl Lora {
    /// The launches of LoRAs of one input, of which number `at` is this one; nothing comes back to the others.
    fn launch_group(&self, case: &Case, r: &mut Recorder<'_>, sites: &[LoraSite], at: usize) {
        let &Self { ref pack, site, .. } = self;
        let LoraSite { rank, input, stride, scale, .. } = site;
        let [tiles, runs] = adapted(pack, site);
        let (count, run_count) = (tiles.len() / 3, runs.len() / 3);
        let [tiles, runs] = [tiles, runs].map(|list| At(r.tape.ints(&list)));
        let all_tiles = At(r.tape.ints(&tables::adapted(pack, TILE_ROWS).0));
        let (tables, draw) = self.drop_tables(r);
        let numbers = each(sites, |i, _| Bits(draw + i.abs_diff(at) as u64));
        let dropout = [&tables[..2], &numbers, &tables[2..]].concat();
        let (a, b) = (each(sites, |_, site| Long(site.a)), each(sites, |_, site| Long(site.b)));
        let output = each(sites, |_, site| Int(site.output));
        let zeros = |r: &mut Recorder<'_>, site: LoraSite| r.tape.compute(&vec![0.0; pack.len() * site.output]);
        let y = each(sites, |i, other| {
            let y = if i == at { r.tape.compute(&case.inputs[0]) } else { zeros(r, other) };
            if i == at {
                r.in_place(0, y, Role::Compute);
            }
            At(y)
        });
        let xa = each(sites, |i, _| {
            let xa = r.tape.acc(&vec![FILL; pack.len() * rank]);
            if i == at {
                r.in_place(1, xa, Role::Acc);
            }
            At(xa)
        });
        let (x, params) = (At(r.tape.compute(&case.inputs[1])), At(r.tape.acc(&case.inputs[2])));
        let (workspace, grid) = narrow(r, (pack.len(), rank), sites.len(), count, input);
        let run_of: Vec<i32> = (0..pack.len()).map(|row| pack.run_of(row).map_or(-1, |run| run as i32)).collect();
        let runs_of = [site.runs.first, site.runs.end.min(i32::MAX as usize)].map(Int);
        let rows = [&[Int(count), At(r.tape.ints(&run_of)), Int(pack.len())], &runs_of[..]].concat();
        let sizes = [Int(rank), Int(input), Long(stride)];
        let args = [&xa[..], &[x, params, tiles], &rows, &workspace, &dropout, &sizes, &a].concat();
        let all_ours = (0..pack.len()).all(|row| run_of_site(pack, site, row).is_some());
        let others = if all_ours { 0 } else { pack.len().div_ceil(16) };
        r.tape.launch("lora_fwd_shrink", [grid[0] + others, grid[1], grid[2]], 64, 0, &args);
        let of_b = [&[Int(rank)], &output[..], &[Long(stride)], &b, &[Float(scale)]].concat();
        let args = [&y[..], &xa, &[params, tiles, Null, Null, Int(0), Int(0)], &of_b].concat();
        let widest = sites.iter().map(|site| site.output).max().unwrap();
        r.tape.launch("lora_fwd_expand", [count, widest.div_ceil(256), sites.len()], 128, 0, &args);

        let d_y =
            each(sites, |i, other| At(if i == at { r.tape.compute(&case.d_outputs[0]) } else { zeros(r, other) }));
        let d_xa = At(r.tape.acc(&vec![FILL; sites.len() * pack.len() * rank]));
        let (d_x, d_params) = (At(r.sum(2, case.inputs[1].len(), 0)), At(r.sum(3, case.inputs[2].len(), 0)));
        let (workspace, grid) = narrow(r, (pack.len(), rank), sites.len(), count, widest);
        let args = [&[d_xa], &d_y[..], &[params, tiles], &workspace, &of_b].concat();
        r.tape.launch("lora_bwd_xa", grid, 64, 0, &args);
        let read = [&d_y[..], &xa, &[x, d_xa, Long(pack.len() * rank), params]].concat();
        let rows = [all_tiles, tiles, Int(count), runs, Int(run_count)];
        let sizes = [Int(sites.len()), Int(rank), Int(input)];
        let places = [&sizes[..], &output, &[Long(stride)], &a, &b, &[Float(scale)]].concat();
        let mut to = vec![([d_params, Int(1), d_x, Null, Int(0), Long(0), Int(1)], [Null, Null, Null, Int(0)])];
        if all_ours {
            // What was there before may also come in terms.
            let len = case.inputs[1].len();
            let (d_x, terms) = (At(r.sum(2, len, 0)), At(r.tape.compute(&vec![START / 2.0; 2 * len])));
            let d_params = At(r.tape.acc(&vec![FILL; case.inputs[2].len()]));
            let summed = [d_params, Int(0), d_x, terms, Int(2), Long(len), Int(0)];
            to.push((summed, [Null, Null, Null, Int(0)]));
            // And the sum may be wanted in the compute dtype alone.
            let rounded = At(r.tape.compute(&vec![FILL; len]));
            to.push((summed, [rounded, Null, Null, Int(0)]));
            let in_vectors = [rank, stride].into_iter().chain(sites.iter().flat_map(|site| [site.a, site.b]));
            if input.is_multiple_of(256) && in_vectors.into_iter().all(|n| n.is_multiple_of(4)) {
                // Of an attention's output, of heads of 128.
                let [delta, rounded] = [r.tape.acc(&vec![FILL; len / 128]), r.tape.compute(&vec![FILL; len])];
                to.push((summed, [At(rounded), x, At(delta), Int(128)]));
            }
        }
        let columns: usize = sites.iter().map(|site| site.output.div_ceil(64) + input.div_ceil(64)).sum();
        let blocks = columns * run_count * rank.div_ceil(16) + count * input.div_ceil(256);
        for (summed, [rounded, z, delta, head_dim]) in to {
            let args = [&summed[..], &[rounded, z, delta, head_dim], &read, &rows, &dropout, &places].concat();
            r.tape.launch("lora_bwd_inputs", [blocks, 1, 1], 128, 0, &args);
        }
    }

    /// Seeds, keys, threshold and factor of its dropout, and the projection's number.
    fn drop_tables(&self, r: &mut Recorder<'_>) -> ([Arg; 4], u64) {
        let Some(drop) = &self.drop else { return ([Null, Null, Int(0), Float(1.0)], 0) };
        let keys: Vec<i32> = drop.keys.iter().map(|&key| key as i32).collect();
        let threshold = (drop.p * 2f64.powi(32)) as usize;
        let (seeds, keys) = (r.tape.longs(&drop.seeds), r.tape.ints(&keys));
        ([At(seeds), At(keys), Int(threshold), Float(1.0 / (1.0 - drop.p))], drop.site)
    }

    /// Gradients of parameters that are set have the bits of those that are added to zeros, where rows pass; nothing else is
    /// written.
    fn sets_gradients<B: Backend>(
        &self,
        b: &mut B,
        given: &Given<'_>,
        [xa, params]: [&B::Acc; 2],
        [x, d_y]: [&B::Compute; 2],
    ) {
        let (len, site, dropout) = (given.len(2), self.site, Drop::of_device(&self.drop));
        let pack = &b.pack(&self.pack).unwrap();
        let [added, set] = [(true, 0.0), (false, FILL)].map(|(accumulate, before)| {
            let mut d_params = device::acc(b, &vec![before; len]);
            let (d_params_out, d_x) = (&mut d_params, None);
            let op = ops::LoraBwd { d_params: d_params_out, accumulate, d_x, d_y, xa, x, params, pack, site, dropout };
            b.lora_bwd(op);
            device::read_acc(b, &d_params, len)
        });
        // The null device has nothing but zeros.
        if [&added, &set].into_iter().flatten().all(|x| *x == 0.0) {
            return;
        }
        let LoraSite { a, b: of_b, rank, input, output, .. } = site;
        let passes = |run: usize| self.pack.runs().iter().any(|(of, _)| *of == run && site.runs.contains(run));
        for (at, (added, set)) in added.iter().zip(set).enumerate() {
            let (run, at) = (at / site.stride, at % site.stride);
            let of_site = (a..a + rank * input).contains(&at) || (of_b..of_b + output * rank).contains(&at);
            let fits = if of_site && passes(run) { set == *added } else { set.is_nan() };
            assert!(fits, "lora_bwd: element {at} of run {run} is {set} where it is set, {added} where it is added to");
        }
    }

    /// The row of `x` after dropout, which is its own backward.
    fn dropped(&self, p: Precision, x: &[f64], row: usize) -> Vec<f64> {
        let width = self.site.input;
        let x = &x[row * width..][..width];
        let Some(drop) = &self.drop else { return x.to_vec() };
        let survivors = drop.survivors[row * width..].iter();
        x.iter()
            .zip(survivors)
            .map(|(x, lives)| if *lives { p.a(x * p.a(1.0 / (1.0 - drop.p))) } else { 0.0 })
            .collect()
    }
}

/// The run of a row, if it has the site.
fn run_of_site(pack: &Pack, site: LoraSite, row: usize) -> Option<usize> {
    pack.run_of(row).filter(|&run| site.runs.contains(run))
}

/// The tiles of the runs that have the site, and the entries of those runs, which number them among all.
fn adapted(pack: &Pack, site: LoraSite) -> [Vec<i32>; 2] {
    let (tiles, runs) = tables::adapted(pack, TILE_ROWS);
    [tiles, runs].map(|entries| {
        let ours = |entry: &&[i32]| site.runs.contains(entry[0] as usize);
        entries.chunks_exact(3).filter(ours).flatten().copied().collect()
    })
}

/// What the adapter adds to output `o` of a row.
fn delta(p: Precision, site: LoraSite, params: &[f64], xa: &[f64], o: usize) -> f64 {
    p.a(site.scale * p.dot(site.rank, |r| xa[r], |r| params[site.b + o * site.rank + r]))
}

/// An argument of each LoRA of a launch; those that are not there are as the last.
fn each(sites: &[LoraSite], mut arg: impl FnMut(usize, LoraSite) -> Arg) -> [Arg; 3] {
    let args: Vec<Arg> = sites.iter().enumerate().map(|(i, &site)| arg(i, site)).collect();
    std::array::from_fn(|i| args[i.min(args.len() - 1)])
}

/// Where the blocks that share a depth meet, of `[rows, R]` of each LoRA, and the launch of their product over so many tiles.
fn narrow(
    r: &mut Recorder<'_>,
    (rows, rank): (usize, usize),
    loras: usize,
    tiles: usize,
    depth: usize,
) -> ([Arg; 3], [usize; 3]) {
    // Blocks of 128 elements, and of 256 where there would be more than 32 of them.
    let splits = depth.div_ceil(if depth > 32 * 128 { 256 } else { 128 }).max(1);
    let parts = At(r.tape.acc(&vec![FILL; splits * loras * rows * rank]));
    let tickets = At(r.tape.tickets(tiles * loras * rank.div_ceil(32)));
    ([parts, tickets, Long(rows * rank)], [tiles, loras * rank.div_ceil(32), splits])
}

impl Operation for Lora {
    fn factors(&self) -> Factors {
        Factors::Adapters
    }

    fn inputs(&self) -> Vec<Array> {
        vec![
            compute("y", self.pack.len() * self.site.output),
            compute("x", self.pack.len() * self.site.input).gradient_added(),
            acc("params", self.runs * self.site.stride).scaled(0.5).gradient_added(),
        ]
    }

    fn outputs(&self) -> Vec<Array> {
        let y = compute("y", self.pack.len() * self.site.output).gradient(Role::Compute);
        vec![y, acc("xa", self.pack.len() * self.site.rank)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (pack, site) = (&self.pack, self.site);
        let (mut y, mut xa) = (inputs[0].clone(), vec![0.0; pack.len() * site.rank]);
        for row in 0..pack.len() {
            let Some(run) = run_of_site(pack, site, row) else { continue };
            let params = &inputs[2][run * site.stride..];
            let x = self.dropped(p, &inputs[1], row);
            for r in 0..site.rank {
                xa[row * site.rank + r] = p.dot(site.input, |i| x[i], |i| params[site.a + r * site.input + i]);
            }
            for o in 0..site.output {
                let added = delta(p, site, params, &xa[row * site.rank..], o);
                let y = &mut y[row * site.output + o];
                *y = p.c(*y + added);
            }
        }
        vec![y, xa]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_out: &[f64], d: &mut [Vec<f64>]) {
        let (pack, site, xa) = (&self.pack, self.site, self.naive_forward(p, inputs).remove(1));
        for row in 0..pack.len() {
            let Some(run) = run_of_site(pack, site, row) else { continue };
            let params = &inputs[2][run * site.stride..];
            let x = self.dropped(p, &inputs[1], row);
            let d_y = &d_out[row * site.output..][..site.output];
            for r in 0..site.rank {
                let d_xa = p.dot(site.output, |o| d_y[o], |o| params[site.b + o * site.rank + r]);
                let d_xa = p.a(d_xa * site.scale);
                for (i, x) in x.iter().enumerate() {
                    let at = site.a + r * site.input + i;
                    p.add(&mut d[2][run * site.stride + at], d_xa * x);
                    p.add(&mut d[1][row * site.input + i], d_xa * params[at]);
                }
                for (o, d_y) in d_y.iter().enumerate() {
                    let at = run * site.stride + site.b + o * site.rank + r;
                    p.add(&mut d[2][at], p.a(site.scale * d_y) * xa[row * site.rank + r]);
                }
            }
            let through = self.dropped(p, &d[1], row);
            d[1][row * site.input..][..site.input].copy_from_slice(&through);
        }
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        out.compute[0] = device::compute(b, &inputs[0]);
        let (x, params) = (&device::compute(b, &inputs[1]), &device::acc(b, &inputs[2]));
        let (y, xa, pack) = (Some(&mut out.compute[0]), &mut out.acc[0], &b.pack(&self.pack).unwrap());
        let (site, dropout) = (self.site, Drop::of_device(&self.drop));
        b.lora_fwd(ops::LoraFwd { y, xa, x, params, pack, site, dropout });
        // Alone, what A makes is the same.
        let mut alone = device::acc(b, &vec![out.fill; self.pack.len() * site.rank]);
        b.lora_fwd(ops::LoraFwd { y: None, xa: &mut alone, x, params, pack, site, dropout });
        let len = self.pack.len() * site.rank;
        let [both, alone] = [&out.acc[0], &alone].map(|xa| device::read_acc(b, xa, len));
        assert_eq!(alone, both, "lora_fwd: xa with and without y");
        // And so is all of it between others of the same input.
        let Some(others) = self.others() else { return };
        self.joint_forwards(b, inputs, others);
        let sites = [others[0], site, others[1]];
        let mut buffers = sites.map(|site| {
            let y = if site == self.site { inputs[0].clone() } else { vec![0.0; self.pack.len() * site.output] };
            (device::compute(b, &y), device::acc(b, &vec![out.fill; self.pack.len() * site.rank]))
        });
        for (site, (y, xa)) in sites.into_iter().zip(&mut buffers) {
            b.lora_fwd(ops::LoraFwd { y: Some(y), xa, x, params, pack, site, dropout });
        }
        let (y, xa) = &buffers[1];
        assert_eq!(device::read_acc(b, xa, len), both, "lora_fwd: xa between others");
        let len = self.pack.len() * site.output;
        let [alone, between] = [&out.compute[0], y].map(|y| device::read_compute(b, y, len));
        assert_eq!(between, alone, "lora_fwd: y between others");
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let (site, dropout) = (self.site, Drop::of_device(&self.drop));
        let xa = device::forward(b, self, given.inputs, 0.0).remove(1);
        let (xa, x) = (&device::acc(b, &xa), &device::compute(b, &given.inputs[1]));
        let (params, d_y) = (&device::acc(b, &given.inputs[2]), &device::compute(b, &given.d_outputs[0]));
        let (mut d_x, mut d_params) = (device::acc(b, &given.start[1]), device::acc(b, &given.start[2]));
        let pack = &b.pack(&self.pack).unwrap();
        let accumulate = true;
        let backward = |b: &mut B, d_params: &mut B::Acc, d_x: Option<&mut B::Acc>| {
            b.lora_bwd(ops::LoraBwd { d_params, accumulate, d_x, d_y, xa, x, params, pack, site, dropout });
        };
        backward(b, &mut d_params, Some(&mut d_x));
        // Without d_x the parameters' gradients are the same.
        let mut again = device::acc(b, &given.start[2]);
        backward(b, &mut again, None);
        let d_params = device::read_acc(b, &d_params, given.len(2));
        let again = device::read_acc(b, &again, given.len(2));
        assert_eq!(again, d_params, "lora_bwd: d_params with and without d_x");
        self.sets_gradients(b, given, [xa, params], [x, d_y]);
        let d_x = device::read_acc(b, &d_x, given.len(1));
        // Others of the same input, whose outputs have no gradient, change nothing.
        if let Some([before, after]) = self.others() {
            let (mut d_x_again, mut d_params_again) =
                (device::acc(b, &given.start[1]), device::acc(b, &given.start[2]));
            let none = device::compute(b, &vec![0.0; self.pack.len() * site.output]);
            for (site, d_y) in [(before, &none), (site, d_y), (after, &none)] {
                let (d_params, d_x) = (&mut d_params_again, Some(&mut d_x_again));
                b.lora_bwd(ops::LoraBwd { d_params, accumulate, d_x, d_y, xa, x, params, pack, site, dropout });
            }
            assert_eq!(device::read_acc(b, &d_x_again, given.len(1)), d_x, "lora_bwd: d_x between others");
            let between = device::read_acc(b, &d_params_again, given.len(2));
            assert_eq!(between, d_params, "lora_bwd: d_params between others");
            self.joint_backward(b, given, [xa, params], [x, d_y]);
        }
        vec![None, Some(d_x), Some(d_params)]
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        self.launch_group(case, r, &[self.site], 0);
        if let Some([one, two]) = self.others() {
            self.launch_group(case, r, &[one, self.site, two], 1);
        }
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0, 1], gradients: &[false, true, false] })
    }

    fn select(&self, rows: &[usize], pack: Option<Pack>) -> Option<Self> {
        let mut selected = Self { pack: pack?, ..self.clone() };
        if let Some(drop) = &mut selected.drop {
            drop.keys = rows.iter().map(|&row| drop.keys[row]).collect();
        }
        Some(selected)
    }
}

/// A projection among others: gaps before and between its matrices, and room behind them.
fn site(rank: usize, input: usize, output: usize) -> LoraSite {
    let a = 4;
    let b = a + rank * input + 3;
    LoraSite { a, b, stride: 3 * (b + output * rank) + 2, rank, input, output, scale: 1.75, runs: RunRange::ALL }
}

/// Dropout over a pack, its survivors found by asking the device.
fn dropout<B: Backend>(b: &mut B, pack: &Pack, p: f64, input: usize) -> Drop {
    dropout_of(b, pack, p, input, 5)
}

/// That of a projection of its own number.
fn dropout_of<B: Backend>(b: &mut B, pack: &Pack, p: f64, input: usize, site: u64) -> Drop {
    let keys = (0..pack.len() as u32).map(|row| row * 3 + 1).collect();
    let seeds = (0..RUNS as u64).map(|run| 1000 + 77 * run).collect();
    let mut drop = Drop { p, seeds, site, keys, survivors: vec![] };
    drop.survivors = survivors(b, pack, &drop, input);
    drop
}

/// The elements that the device's dropout lets live, found by passing ones through identities as adapters.
fn survivors<B: Backend>(b: &mut B, pack: &Pack, drop: &Drop, width: usize) -> Vec<bool> {
    let (matrix, stride) = (width * width, 2 * width * width);
    let site =
        LoraSite { a: 0, b: matrix, stride, rank: width, input: width, output: width, scale: 1.0, runs: RunRange::ALL };
    let mut identity = vec![0.0; site.stride];
    (0..width).for_each(|i| identity[i * width + i] = 1.0);
    let op = Lora { pack: pack.clone(), site, runs: drop.seeds.len(), drop: Some(drop.clone()) };
    let inputs = [vec![0.0; pack.len() * width], vec![1.0; pack.len() * width], identity.repeat(drop.seeds.len())];
    device::forward(b, &op, &inputs, 0.0)[1].iter().map(|&x| x != 0.0).collect()
}

pub fn cases<B: Backend>(b: &mut B, set: Set) -> Vec<Case> {
    match set {
        Set::Small => {
            let pack = packs::trees();
            let mut cases = Vec::new();
            for (rank, input, output) in [(1, 5, 3), (3, 6, 10)] {
                let (name, site) = (format!("lora {rank}x{input}x{output}"), site(rank, input, output));
                let drop = dropout(b, &pack, 0.3, input);
                let with = |drop| Lora { pack: pack.clone(), site, runs: RUNS, drop };
                cases.push(Case::new(&name, with(None)));
                cases.push(Case::new(format!("{name} dropout"), with(Some(drop))));
                let delta = LoraDelta { pack: pack.clone(), site, runs: RUNS };
                cases.push(Case::new(format!("{name} delta"), delta));
            }
            let some = LoraSite { runs: RunRange { first: 1, end: 2 }, ..site(3, 6, 10) };
            let drop = Some(dropout(b, &pack, 0.3, 6));
            cases.push(Case::new("lora of one of the runs", Lora { pack: pack.clone(), site: some, runs: RUNS, drop }));
            let delta = LoraDelta { pack: pack.clone(), site: some, runs: RUNS };
            cases.push(Case::new("lora delta of one of the runs", delta));
            let pack = adapted_rows([19, 3, 2]);
            cases.push(Case::new("lora of all rows", Lora { pack, site: site(3, 6, 10), runs: RUNS, drop: None }));
            let base = Lora { pack: packs::ragged(), site: site(2, 3, 4), runs: 0, drop: None };
            cases.push(Case::new("lora of base rows", base));
            let sizes = Sizes { ranks: [2, 3], widths: [3, 24, 2], gap: 1 };
            for (name, pack) in [("all", adapted_rows([3, 1, 2])), ("some", packs::trees())] {
                let gated = LoraGated::new(&pack, sizes).dropped(b);
                cases.push(Case::new(format!("lora gated of {name} rows"), gated));
            }
            cases
        }
        Set::Large => {
            let pack = packs::large();
            let drop = Some(dropout(b, &pack, 0.1, 96));
            let mut cases = vec![Case::new("large lora", Lora { pack, site: site(8, 96, 72), runs: RUNS, drop })];
            // Deep since emulated tensor cores rounded after each product: at a depth of 96 sums of f32 were then wrong by up to 2.6 times
            // the plain path's error, of 30 inputs, and with one rounding for 16 products by up to 0.9.
            let all = Lora { pack: adapted_rows([70, 37, 20]), site: site(8, 300, 72), runs: RUNS, drop: None };
            // Depths that blocks share: where vectors may be read, and where not; a rank beyond that of a block.
            let whole = |rank, input, output| {
                let (b, stride) = (rank * input, 3 * rank * (input + output));
                LoraSite { a: 0, b, stride, rank, input, output, scale: 1.75, runs: RunRange::ALL }
            };
            let heads = Lora { site: whole(8, 300, 128), ..all.clone() };
            let z = Lora { pack: adapted_rows([20, 3, 2]), site: whole(4, 256, 128), ..all.clone() };
            cases.extend([Case::new("large lora of all rows", all), Case::new("lora of heads of all rows", heads)]);
            cases.push(Case::new("lora of an attention's output", z));
            let deep = [whole(16, 512, 384), whole(40, 260, 132), site(3, 387, 259), site(20, 256, 300)];
            for (site, dropped) in deep.into_iter().zip([true, false, true, false]) {
                let name = format!("deep lora {}x{}x{}", site.rank, site.input, site.output);
                let drop = dropped.then(|| dropout(b, &packs::trees(), 0.1, site.input));
                cases.push(Case::new(name, Lora { pack: packs::trees(), site, runs: RUNS, drop }));
            }
            // An activation whose LoRA begins where it is made: kernels alone, then the backend too, in up to more parts than are added
            // up at once; and where it does not.
            for (rows, ranks, widths) in [
                ([17, 2, 1], [16, 8], [24, 256, 20]),
                ([17, 2, 1], [20, 32], [8, 512, 12]),
                ([2, 1, 1], [4, 20], [8, 17 * 256, 8]),
                ([1, 1, 1], [8, 4], [4, 33 * 256, 4]),
            ] {
                let gated = LoraGated::new(&adapted_rows(rows), Sizes { ranks, widths, gap: 0 });
                let gated = if widths[1] == 256 { gated.dropped(b) } else { gated };
                let size = if widths[1] > 256 { "large " } else { "" };
                cases.push(Case::new(format!("{size}lora gated {ranks:?} {widths:?}"), gated));
            }
            cases
        }
        Set::Forest => {
            let pack = packs::large_forest();
            let drop = Some(dropout(b, &pack, 0.3, 70));
            vec![Case::new("lora", Lora { pack, site: site(5, 70, 33), runs: RUNS, drop })]
        }
        Set::Rows => vec![],
    }
}

/// Rows of which none is the base model's.
fn adapted_rows(rows: [usize; 3]) -> Pack {
    let mut b = PackBuilder::default();
    for (run, rows) in [0, 1, 0].into_iter().zip(rows) {
        b.push(&vec![Token::Id(0); rows], Parent::None, Some(run), Label::Text);
    }
    b.build()
}

/// One row of run 1.
fn one_row() -> Pack {
    let mut b = PackBuilder::default();
    b.push(&[Token::Id(0)], Parent::None, Some(1), Label::Text);
    b.build()
}

/// Of two runs, rank 1.
const SMALL_SITE: LoraSite =
    LoraSite { a: 0, b: 2, stride: 4, rank: 1, input: 2, output: 2, scale: 1.0, runs: RunRange::ALL };

/// Calls `lora_fwd` on one row of two runs with so many parameters.
fn call_fwd<B: Backend>(b: &mut B, params: usize, dropout: Option<Dropout<'_>>) {
    let ([mut xa, params], [mut y, x], []) = device::buffers(b, [1, params], [2, 2], []);
    let (y, xa, x, params, pack) = (Some(&mut y), &mut xa, &x, &params, &b.pack(&one_row()).unwrap());
    b.lora_fwd(ops::LoraFwd { y, xa, x, params, pack, site: SMALL_SITE, dropout });
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    vec![
        Refusal { says: "lora_fwd: params has 7 elements, needs 8", call: |b| call_fwd(b, 7, None) },
        Refusal {
            says: "lora_fwd: dropout seeds has 1 elements, needs 2",
            call: |b| call_fwd(b, 8, Some(Dropout { p: 0.5, seeds: &[1], site: 0, keys: &[0] })),
        },
        Refusal {
            says: "lora_bwd: d_x has 1 elements, needs 2",
            call: |b| {
                let ([mut d_params, mut d_x, xa, params], [d_y, x], []) = device::buffers(b, [8, 1, 1, 8], [2, 2], []);
                let pack = b.pack(&one_row()).unwrap();
                b.lora_bwd(ops::LoraBwd {
                    d_params: &mut d_params,
                    accumulate: false,
                    d_x: Some(&mut d_x),
                    d_y: &d_y,
                    xa: &xa,
                    x: &x,
                    params: &params,
                    pack: &pack,
                    site: SMALL_SITE,
                    dropout: None,
                });
            },
        },
        Refusal {
            says: "lora_delta: a run of the parameters (B) has 4 elements, needs 5",
            call: |b| {
                let ([mut out, xa, params], [], []) = device::buffers(b, [2, 1, 8], [], []);
                let (out, xa, params, pack) = (&mut out, &xa, &params, &b.pack(&one_row()).unwrap());
                b.lora_delta(ops::LoraDelta { out, xa, params, pack, site: LoraSite { b: 3, ..SMALL_SITE } });
            },
        },
        Refusal {
            says: "lora_delta_bwd: d_y has 1 elements, needs 2",
            call: |b| {
                let ([mut d_params, mut d_xa, xa, params], [d_y], []) = device::buffers(b, [8, 1, 1, 8], [1], []);
                let (d_params, d_xa, pack) = (&mut d_params, &mut d_xa, &b.pack(&one_row()).unwrap());
                let (d_y, xa, params) = (&d_y, &xa, &params);
                b.lora_delta_bwd(ops::LoraDeltaBwd { d_params, d_xa, d_y, xa, params, pack, site: SMALL_SITE });
            },
        },
    ]
}
