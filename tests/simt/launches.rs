//! Every operation with kernels of its own as launches of them, by the contracts at the heads of `kernels/*.cu`.

use llamaprobe::backend::{Activation, AdamwStep, AttentionDims, LinearDims, LoraSite};
use llamaprobe::pack::{CachedSegment, Pack, Token};

use crate::ops::cases::Case;
use crate::ops::op::{Drop, Op};
use crate::simt::machine::{Arg, Attention, Buffer, Tape};
use crate::simt::tables::{self, Forest, NO_ROW};
use Arg::{At, Bits, Float, Inside, Int, Long, Null};

/// Rows of a LoRA tile.
const LORA_ROWS: usize = 16;
/// Blocks of the first stage of a gradient's norm.
const NORM_PARTS: usize = 3;
/// Elements before a gradient inside a larger buffer, so that it is not aligned.
const BEFORE: usize = 5;
/// What stands in a buffer that is written with `=`.
const FILL: f64 = f64::NAN;
/// What stands in a buffer that is written with `+=`.
const START: f64 = 0.5;

/// Where a result lies after a run.
pub struct Output {
    /// Which of the case's results: the outputs, then the gradients that the contract has.
    pub result: usize,
    pub buffer: Buffer,
    pub wide: bool,
    /// Elements before the result.
    pub skip: usize,
    /// What was there before, if it is added to.
    pub start: f64,
    /// What remains to be done on the host: the product with the head.
    pub head: Option<(Vec<f64>, LinearDims)>,
}

/// Writes launches and says where their results will be.
pub struct Recorder<'a> {
    pub tape: &'a mut Tape,
    pub attention: Attention,
    pub outputs: Vec<Output>,
}

fn rows(n: usize) -> [usize; 3] {
    [n, 1, 1]
}

fn elements(len: usize) -> [usize; 3] {
    rows(len.div_ceil(2048))
}

fn list(values: &[u32]) -> Vec<i32> {
    values.iter().map(|&x| x as i32).collect()
}

impl Recorder<'_> {
    fn output(&mut self, result: usize, len: usize, wide: bool) -> Buffer {
        let fill = vec![FILL; len];
        let buffer = if wide { self.tape.acc(&fill) } else { self.tape.compute(&fill) };
        self.outputs.push(Output { result, buffer, wide, skip: 0, start: 0.0, head: None });
        buffer
    }

    /// A wide gradient to add to, `skip` elements inside its buffer.
    fn sum(&mut self, result: usize, len: usize, skip: usize) -> Buffer {
        let buffer = self.tape.acc(&vec![START; skip + len]);
        self.outputs.push(Output { result, buffer, wide: true, skip, start: START, head: None });
        buffer
    }

    fn run(&mut self, name: &str, grid: [usize; 3], args: &[Arg]) {
        self.tape.launch(name, grid, 256, 0, args);
    }

    /// Records a case; false if the operation has no kernel of its own.
    pub fn record(&mut self, case: &Case) -> bool {
        let (inputs, d) = (&case.inputs, &case.d_outputs);
        match &case.op {
            Op::Cast { len } => {
                let (x, out) = (self.tape.acc(&inputs[0]), self.output(0, *len, false));
                self.run("cast", elements(*len), &[At(out), At(x), Long(*len)]);
            }
            Op::Widen { len } => {
                let (x, out) = (self.tape.compute(&inputs[0]), self.output(0, *len, true));
                self.run("cast_wide", elements(*len), &[At(out), At(x), Long(*len)]);
            }
            Op::Refresh { offset, width } => {
                let (params, out) = (self.tape.acc(&inputs[0]), self.output(0, *width, false));
                self.run("cast", elements(*width), &[At(out), Inside(params, 4 * offset), Long(*width)]);
            }
            Op::Residual { len } => {
                let (a, b) = (self.tape.acc(&inputs[0]), self.tape.compute(&inputs[1]));
                let out = self.output(0, *len, true);
                self.run("residual_fwd", elements(*len), &[At(out), At(a), At(b), Long(*len)]);
                // As one row that is normed.
                let sum = self.output(0, *len, true);
                let (out, rstd) = (self.tape.compute(&vec![FILL; *len]), self.tape.acc(&[FILL]));
                let rest = [At(a), At(b), At(b), Int(1), Int(*len), Float(1e-5)];
                self.run("residual_rms_norm_fwd", rows(1), &[&[At(sum), At(out), At(rstd)], &rest[..]].concat());
            }
            Op::GatherReal { rows: from, width, .. } => {
                let (x, ids) = (self.tape.compute(&inputs[0]), self.tape.ints(&list(from)));
                for (kernel, wide) in [("gather_compute", false), ("capture_real", true)] {
                    let out = self.output(0, from.len() * width, wide);
                    self.run(kernel, rows(from.len()), &[At(out), At(x), At(ids), Int(from.len()), Int(*width)]);
                }
            }
            Op::GatherWide { rows: from, width, .. } => {
                let (x, ids) = (self.tape.acc(&inputs[0]), self.tape.ints(&list(from)));
                for kernel in ["gather_acc", "capture_wide"] {
                    let out = self.output(0, from.len() * width, true);
                    self.run(kernel, rows(from.len()), &[At(out), At(x), At(ids), Int(from.len()), Int(*width)]);
                }
                let (ids, starts, order) = tables::groups(list(from).into_iter().enumerate());
                let (d_x, d_out) = (self.sum(1, inputs[0].len(), 0), self.tape.acc(&d[0]));
                let count = ids.len();
                let [ids, starts, order] = [ids, starts, order].map(|table| At(self.tape.ints(&table)));
                let args = [At(d_x), At(d_out), ids, starts, order, Int(count), Int(*width)];
                self.run("scatter_add", rows(count), &args);
            }
            Op::Embed { pack, width, site, .. } => self.embed(case, pack, *width, site.stride, site.offset),
            Op::Position { pack, first, width } => {
                let x = self.tape.acc(&inputs[0]);
                self.outputs.push(Output { result: 0, buffer: x, wide: true, skip: 0, start: 0.0, head: None });
                let (table, positions) =
                    (At(self.tape.compute(&inputs[1])), At(self.tape.ints(&list(pack.positions()))));
                let args = [At(x), table, positions, Int(pack.len()), Int(*width), Int(*first)];
                self.run("position_fwd", rows(pack.len()), &args);
                let (ids, starts, order) = tables::groups(list(pack.positions()).into_iter().enumerate());
                let (count, d_x) = (ids.len(), At(self.tape.acc(&d[0])));
                let d_table = Inside(self.sum(1, inputs[1].len(), BEFORE), 4 * BEFORE);
                let [ids, starts, order] = [ids, starts, order].map(|table| At(self.tape.ints(&table)));
                let args = [d_table, d_x, ids, starts, order, Int(count), Int(*width), Int(*first)];
                self.run("position_bwd_table", rows(count), &args);
            }
            Op::LayerNorm { rows: n, width, eps } => {
                let (x, dims) = (At(self.tape.acc(&inputs[0])), [Int(*n), Int(*width)]);
                let (weight, bias) = inputs[1].split_at(*width);
                let [weight, bias] = [weight, bias].map(|values| At(self.tape.compute(values)));
                let out = At(self.output(0, n * width, false));
                let [mean, rstd] = [1, 2].map(|result| At(self.output(result, *n, true)));
                let args = [out, mean, rstd, x, weight, bias, dims[0], dims[1], Float(*eps)];
                self.run("layer_norm_fwd", rows(*n), &args);
                let (d_x, d_out) = (At(self.sum(3, n * width, 0)), At(self.tape.acc(&d[0])));
                let args = [d_x, d_out, x, mean, rstd, weight, dims[0], dims[1]];
                self.run("layer_norm_bwd", rows(*n), &args);
                let d_affine = Inside(self.sum(4, 2 * width, BEFORE), 4 * BEFORE);
                let args = [d_affine, d_out, x, mean, rstd, dims[0], dims[1]];
                self.run("layer_norm_bwd_affine", rows(width.div_ceil(32)), &args);
            }
            Op::RmsNorm { rows: n, width, eps } => {
                let (x, weight) = (At(self.tape.acc(&inputs[0])), At(self.tape.compute(&inputs[1])));
                let (out, rstd) = (At(self.output(0, n * width, false)), At(self.output(1, *n, true)));
                let dims = [Int(*n), Int(*width)];
                let args = [out, rstd, x, weight, dims[0], dims[1], Float(*eps)];
                self.run("rms_norm_fwd", rows(*n), &args);
                // As the sum of itself and nothing.
                let (again, nothing) =
                    (At(self.output(0, n * width, false)), At(self.tape.compute(&vec![0.0; n * width])));
                let (sum, of) = (At(self.tape.acc(&vec![FILL; n * width])), At(self.output(1, *n, true)));
                let args = [sum, again, of, x, nothing, weight, dims[0], dims[1], Float(*eps)];
                self.run("residual_rms_norm_fwd", rows(*n), &args);
                let (d_x, d_out) = (At(self.sum(2, n * width, 0)), At(self.tape.acc(&d[0])));
                self.run("rms_norm_bwd", rows(*n), &[d_x, d_out, x, rstd, weight, dims[0], dims[1]]);
                let d_weight = Inside(self.sum(3, *width, BEFORE), 4 * BEFORE);
                let args = [d_weight, d_out, x, rstd, dims[0], dims[1]];
                self.run("rms_norm_bwd_weight", rows(width.div_ceil(32)), &args);
            }
            Op::Rope { pack, heads, head_dim, cos_sin } => {
                let positions = At(self.tape.ints(&list(pack.positions())));
                let (x, table) = (At(self.tape.compute(&inputs[0])), At(self.tape.acc(cos_sin)));
                let out = At(self.output(0, inputs[0].len(), false));
                let dims = [positions, table, Int(pack.len()), Int(*heads), Int(*head_dim)];
                self.run("rope_fwd", rows(pack.len()), &[&[out, x], &dims[..]].concat());
                let buffer = self.tape.compute(&d[0]);
                self.outputs.push(Output { result: 1, buffer, wide: false, skip: 0, start: 0.0, head: None });
                self.run("rope_bwd", rows(pack.len()), &[&[At(buffer)], &dims[..]].concat());
            }
            Op::Attention { pack, kept, dims } => self.attention(case, pack, kept, *dims),
            Op::Pattern { pack, kept, dims, rows, longest, normalised } => {
                self.pattern(case, pack, kept, *dims, rows, *longest, *normalised);
            }
            Op::AttentionResult { rows: from, heads, head_dim, width, .. } => {
                let ids: Vec<i32> = from.iter().map(|&row| row as i32).collect();
                let (z, weight, ids) =
                    (self.tape.compute(&inputs[0]), self.tape.compute(&inputs[1]), self.tape.ints(&ids));
                let out = self.output(0, from.len() * heads * width, true);
                let dims = [Int(*heads), Int(*head_dim), Int(*width)];
                let args = [&[At(out), At(z), At(weight), At(ids)], &dims[..]].concat();
                self.run("attention_result", [from.len(), *heads, 1], &args);
            }
            Op::Lora { pack, site, drop, .. } => self.lora(case, pack, *site, drop),
            Op::LoraDelta { pack, site, .. } => {
                let (tiles, _) = tables::adapted(pack, LORA_ROWS);
                let count = tiles.len() / 3;
                let [xa, params] = [0, 1].map(|i| At(self.tape.acc(&inputs[i])));
                let out = self.tape.acc(&vec![0.0; pack.len() * site.output]);
                self.outputs.push(Output { result: 0, buffer: out, wide: true, skip: 0, start: 0.0, head: None });
                let args = [At(out), xa, params, At(self.tape.ints(&tiles))];
                let args = [&args[..], &Self::of_b(*site)].concat();
                self.run("lora_delta", [count, site.output.div_ceil(512), 1], &args);
            }
            Op::SwiGlu { len } => {
                let [gate, up] = [0, 1].map(|i| At(self.tape.compute(&inputs[i])));
                let [act, d_gate, d_up] = [0, 1, 2].map(|i| At(self.output(i, *len, false)));
                self.run("swiglu_fwd", elements(*len), &[act, gate, up, Long(*len)]);
                let d_act = At(self.tape.acc(&d[0]));
                self.run("swiglu_bwd", elements(*len), &[d_gate, d_up, d_act, gate, up, Long(*len)]);
            }
            Op::Activation { f, len } => {
                let kind = match f {
                    Activation::Relu => 0,
                    Activation::Gelu => 1,
                    Activation::GeluTanh => 2,
                    Activation::Tanh => 3,
                };
                let (x, d_act) = (At(self.tape.compute(&inputs[0])), At(self.tape.acc(&d[0])));
                let [act, d_x] = [0, 1].map(|i| At(self.output(i, *len, false)));
                self.run("activation_fwd", elements(*len), &[act, x, Int(kind), Long(*len)]);
                self.run("activation_bwd", elements(*len), &[d_x, d_act, x, Int(kind), Long(*len)]);
            }
            Op::Linear { dims, bias: true } => {
                // Without the product: 0 + bias, which is not a result of the case, so only the gradient is compared.
                let d_bias = Inside(self.sum(3, dims.output, BEFORE), 4 * BEFORE);
                let d_out = At(self.tape.compute(&d[0]));
                let args = [d_bias, d_out, Int(dims.rows), Int(dims.output)];
                self.run("linear_bwd_bias", rows(dims.output.div_ceil(32)), &args);
            }
            Op::CrossEntropy { dims, targets } => self.cross_entropy(case, *dims, targets),
            Op::GradNorm { runs, stride } => {
                let d_params = self.tape.acc(&inputs[0]);
                self.outputs_of_norm(d_params, *runs, *stride, true);
            }
            Op::CheckFinite { len, last, before } => {
                let values = At(self.tape.acc(&[&inputs[0][..len - 1], &[*last]].concat()));
                let stop = self.tape.acc(&[*before]);
                self.outputs.push(Output { result: 0, buffer: stop, wide: true, skip: 0, start: 0.0, head: None });
                self.run("check_finite", rows(1), &[At(stop), values, Int(*len)]);
            }
            Op::Adamw { steps, stride, stopped } => self.adamw(case, steps, *stride, *stopped),
            Op::Keep { .. } | Op::Linear { .. } | Op::Logits { .. } => return false,
        }
        true
    }

    fn embed(&mut self, case: &Case, pack: &Pack, width: usize, stride: usize, offset: usize) {
        let tokens = pack.tokens().iter().map(|token| match token {
            Token::Id(id) => *id as i32,
            Token::Virtual(p) => -(*p as i32) - 1,
        });
        let tokens: Vec<i32> = tokens.collect();
        let run_of = |row: usize| pack.run_of(row).map_or(-1, |run| run as i32);
        let runs: Vec<i32> = (0..pack.len()).map(run_of).collect();
        let (table, prompt) = (At(self.tape.compute(&case.inputs[0])), At(self.tape.acc(&case.inputs[1])));
        let out = At(self.output(0, pack.len() * width, true));
        let place = [Int(width), Long(stride), Long(offset)];
        let of_rows = [At(self.tape.ints(&tokens)), At(self.tape.ints(&runs)), Int(pack.len())];
        self.run("embed_fwd", rows(pack.len()), &[&[out, table, prompt], &of_rows[..], &place].concat());

        let d_out = At(self.tape.acc(&case.d_outputs[0]));
        let ids = tokens.iter().copied().enumerate().filter(|(_, token)| *token >= 0);
        let (ids, starts, order) = tables::groups(ids);
        let count = ids.len();
        let d_table = Inside(self.sum(1, case.inputs[0].len(), BEFORE), 4 * BEFORE);
        let lists = [ids, starts, order].map(|list| At(self.tape.ints(&list)));
        let args = [&[d_table, d_out], &lists[..], &[Int(count), Int(width)]].concat();
        self.run("embed_bwd_table", rows(count), &args);

        let ids = tokens.iter().zip(&runs).map(|(&token, &run)| (-token - 1, run)).enumerate();
        let (ids, starts, order) = tables::groups(ids.filter(|(_, (p, _))| *p >= 0));
        let count = ids.len();
        let d_prompt = At(self.sum(2, case.inputs[1].len(), 0));
        let (ids, runs): (Vec<i32>, Vec<i32>) = ids.into_iter().unzip();
        let lists = [ids, runs, starts, order].map(|list| At(self.tape.ints(&list)));
        let args = [&[d_prompt, d_out], &lists[..], &[Int(count)], &place].concat();
        self.run("embed_bwd_prompt", rows(count), &args);
    }

    /// Arguments and shared memory of both sides: the tables of queries, those of keys, and the dims.
    fn attention(&mut self, case: &Case, pack: &Pack, kept: &[CachedSegment], dims: AttentionDims) {
        let AttentionDims { heads, kv_heads, head_dim, scale, window, .. } = dims;
        let Attention { head_dim: built, warps, fwd_step, bwd_step } = self.attention;
        let row = built * self.tape.dtype.bytes() + 16;
        let forest = Forest::new(pack, kept);
        let (n, blocks, parts) = (pack.len(), forest.slots.len() / 64, 4 / warps);
        let [q, k, v, kept_k, kept_v] = [0, 1, 2, 3, 4].map(|i| At(self.tape.compute(&case.inputs[i])));
        let [kept_k, kept_v] = if kept.is_empty() { [k, v] } else { [kept_k, kept_v] };
        let Forest { slots, visit_starts, visits, tiles, order, ends } = forest;
        let queries = [slots, visit_starts, visits, tiles].map(|list| At(self.tape.ints(&list)));
        let keys = [order, ends].map(|list| At(self.tape.ints(&list)));
        let positions = At(self.tape.ints(&list(pack.positions())));
        let (window, alibi) = (Int(window.unwrap_or(0)), Int(dims.alibi_base()));
        let sizes = [Int(heads), Int(kv_heads), Int(head_dim), Float(scale), window, alibi];

        let (z, lse) = (At(self.output(0, n * heads * head_dim, false)), At(self.output(1, n * heads, true)));
        let args = [&[z, lse, q, k, v, kept_k, kept_v], &queries[..], &[positions], &sizes].concat();
        let shared = (16 * warps + 4 * fwd_step) * row;
        self.tape.launch("attention_fwd", [blocks * parts, heads, 1], 32 * warps, shared, &args);
        if !kept.is_empty() {
            return;
        }
        let delta = At(self.tape.acc(&vec![FILL; n * heads]));
        let d_z_real = At(self.tape.compute(&vec![FILL; n * heads * head_dim]));
        let d_z = At(self.tape.acc(&case.d_outputs[0]));
        let args = [delta, d_z_real, d_z, z, Int(n), Int(heads), Int(head_dim)];
        self.run("attention_bwd_delta", rows((n * heads).div_ceil(8)), &args);
        let shared = (32 * warps + 4 * bwd_step) * row;
        let [d_q, d_k, d_v] = [0, 1, 2].map(|i| At(self.output(2 + i, case.inputs[i].len(), false)));
        let saved = [delta, d_z_real, lse, q, k, v];
        let args = [&[d_q], &saved[..], &queries, &[positions], &sizes].concat();
        self.tape.launch("attention_bwd_dq", [blocks * parts, heads, 1], 32 * warps, shared, &args);
        let args = [&[d_k, d_v], &saved[..], &keys, &[positions, Int(n)], &sizes].concat();
        self.tape.launch("attention_bwd_dkv", [n.div_ceil(16 * warps), kv_heads, 1], 32 * warps, shared, &args);
    }

    #[allow(clippy::too_many_arguments)]
    fn pattern(
        &mut self,
        case: &Case,
        pack: &Pack,
        kept: &[CachedSegment],
        dims: AttentionDims,
        of: &[usize],
        longest: usize,
        normalised: bool,
    ) {
        let AttentionDims { heads, kv_heads, head_dim, scale, window, .. } = dims;
        let attention = Op::Attention { pack: pack.clone(), kept: kept.to_vec(), dims };
        let lse = crate::ops::naive::forward(crate::ops::naive::Precision::F64, &attention, &case.inputs).remove(1);
        let mut keys = vec![NO_ROW; of.len() * longest];
        for (keys, &row) in keys.chunks_mut(longest).zip(of) {
            let path = tables::path(pack, kept, row);
            let from = window.map_or(0, |window| path.len().saturating_sub(window));
            keys[from..path.len()].copy_from_slice(&path[from..]);
        }
        let [q, k, kept_k] = [0, 1, 3].map(|i| At(self.tape.compute(&case.inputs[i])));
        let list: Vec<i32> = of.iter().map(|&row| row as i32).collect();
        let lists = [list, keys, pack.positions().iter().map(|&at| at as i32).collect()];
        let [list, keys, positions] = lists.map(|list| At(self.tape.ints(&list)));
        let tables = [At(self.tape.acc(&lse)), list, keys, positions];
        let shown = [Int(dims.alibi_base()), Int(longest), Int(normalised.into())];
        let sizes = [&[Int(heads), Int(kv_heads), Int(head_dim), Float(scale)], &shown[..]].concat();
        let out = At(self.output(0, of.len() * heads * longest, true));
        let args = [&[out, q, k, kept_k], &tables[..], &sizes].concat();
        self.tape.launch("attention_pattern", [of.len(), heads, 1], 128, 0, &args);
    }

    fn of_a(site: LoraSite) -> [Arg; 4] {
        [Int(site.rank), Int(site.input), Long(site.stride), Long(site.a)]
    }

    fn of_b(site: LoraSite) -> [Arg; 5] {
        [Int(site.rank), Int(site.output), Long(site.stride), Long(site.b), Float(site.scale)]
    }

    fn lora(&mut self, case: &Case, pack: &Pack, site: LoraSite, drop: &Option<Drop>) {
        let LoraSite { rank, input, output, a, b, stride, scale } = site;
        let (tiles, runs) = tables::adapted(pack, LORA_ROWS);
        let (count, run_count) = (tiles.len() / 3, runs.len() / 3);
        let [tiles, runs] = [tiles, runs].map(|list| At(self.tape.ints(&list)));
        let dropout = match drop {
            None => [Null, Null, Bits(0), Int(0), Float(1.0)],
            Some(drop) => {
                let keys: Vec<i32> = drop.keys.iter().map(|&key| key as i32).collect();
                let threshold = (drop.p * 2f64.powi(32)) as usize;
                let (seeds, keys) = (self.tape.longs(&drop.seeds), self.tape.ints(&keys));
                [At(seeds), At(keys), Bits(drop.site), Int(threshold), Float(1.0 / (1.0 - drop.p))]
            }
        };
        let y = self.tape.compute(&case.inputs[0]);
        let xa = self.tape.acc(&vec![0.0; pack.len() * rank]);
        for (result, buffer, wide) in [(0, y, false), (1, xa, true)] {
            self.outputs.push(Output { result, buffer, wide, skip: 0, start: 0.0, head: None });
        }
        let (y, xa) = (At(y), At(xa));
        let (x, params) = (At(self.tape.compute(&case.inputs[1])), At(self.tape.acc(&case.inputs[2])));
        let narrow = [count, rank.div_ceil(32), 1];
        let args = [&[xa, x, params, tiles], &dropout[..], &Self::of_a(site)].concat();
        self.run("lora_fwd_shrink", narrow, &args);
        let args = [&[y, xa, params, tiles], &Self::of_b(site)[..]].concat();
        self.run("lora_fwd_expand", [count, output.div_ceil(512), 1], &args);

        let d_y = At(self.tape.compute(&case.d_outputs[0]));
        let d_xa = At(self.tape.acc(&vec![FILL; pack.len() * rank]));
        let (d_x, d_params) = (At(self.sum(2, case.inputs[1].len(), 0)), At(self.sum(3, case.inputs[2].len(), 0)));
        self.run("lora_bwd_xa", narrow, &[&[d_xa, d_y, params, tiles], &Self::of_b(site)[..]].concat());
        let sizes = [Int(rank), Int(input), Int(output), Long(stride), Long(a), Long(b), Float(scale)];
        let args = [&[d_params, d_y, xa, x, d_xa, tiles, runs], &dropout[..], &sizes].concat();
        let grid = [output.div_ceil(64) + input.div_ceil(64), run_count, rank.div_ceil(16)];
        self.tape.launch("lora_bwd_params", grid, 128, 0, &args);
        let args = [&[d_x, d_xa, params, tiles], &dropout[..], &Self::of_a(site)].concat();
        self.run("lora_bwd_x", [count, input.div_ceil(512), 1], &args);
    }

    fn cross_entropy(&mut self, case: &Case, dims: LinearDims, targets: &[u32]) {
        let LinearDims { rows: n, input, output } = dims;
        let (x, head) = (&case.inputs[0], &case.inputs[1]);
        let dot = |i: usize| (0..input).map(|c| x[i / output * input + c] * head[i % output * input + c]).sum();
        let logits: Vec<f64> = (0..n * output).map(dot).collect();
        let (logits, targets) = (At(self.tape.acc(&logits)), At(self.tape.ints(&list(targets))));
        let weights = At(self.tape.acc(&case.d_outputs[0]));
        let [loss, again] = [0, 0].map(|result| At(self.output(result, n, true)));
        self.run("cross_entropy_fwd", rows(n), &[loss, logits, targets, Int(n), Int(output)]);
        let d_logits = self.output(1, n * output, false);
        self.outputs.last_mut().unwrap().head = Some((head.clone(), dims));
        let args = [again, At(d_logits), logits, targets, weights, Int(n), Int(output)];
        self.run("cross_entropy_bwd", rows(n), &args);
    }

    fn outputs_of_norm(&mut self, d_params: Buffer, runs: usize, stride: usize, compared: bool) -> Buffer {
        let norm = if compared { self.output(0, runs, true) } else { self.tape.acc(&vec![FILL; runs]) };
        let parts = At(self.tape.acc(&vec![FILL; runs * NORM_PARTS]));
        self.run("grad_norm_parts", [NORM_PARTS, runs, 1], &[parts, At(d_params), Long(stride)]);
        self.tape.launch("grad_norm", rows(runs), 32, 0, &[At(norm), parts, Int(NORM_PARTS)]);
        norm
    }

    fn adamw(&mut self, case: &Case, steps: &[AdamwStep], stride: usize, stopped: bool) {
        let [params, m, v, d_params] = [0, 1, 2, 3].map(|i| self.tape.acc(&case.inputs[i]));
        let norm = self.outputs_of_norm(d_params, steps.len(), stride, false);
        for (result, buffer) in [params, m, v].into_iter().enumerate() {
            self.outputs.push(Output { result, buffer, wide: true, skip: 0, start: 0.0, head: None });
        }
        let factors = steps.iter().flat_map(|s| {
            let correction = |beta: f64| 1.0 - beta.powf(s.step as f64);
            [
                if s.active { 1.0 } else { 0.0 },
                1.0 - s.learning_rate * s.weight_decay,
                s.beta1,
                1.0 - s.beta1,
                s.beta2,
                1.0 - s.beta2,
                correction(s.beta2).sqrt(),
                s.epsilon,
                -s.learning_rate / correction(s.beta1),
                s.max_grad_norm.unwrap_or(-1.0),
            ]
        });
        let factors = self.tape.acc(&factors.collect::<Vec<_>>());
        let stop = self.tape.acc(&[f64::from(u8::from(stopped))]);
        let args = [params, m, v, d_params, norm, stop, factors].map(At);
        self.run("adamw", [stride.div_ceil(1024), steps.len(), 1], &[&args[..], &[Long(stride)]].concat());
    }
}
