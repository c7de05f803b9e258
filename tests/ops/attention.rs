//! Attention over forests, its pattern, and what each head adds.

#[path = "attention/outputs.rs"]
mod outputs;
#[path = "attention/result.rs"]
mod result;

use std::ops::Range;

use llamaprobe::backend::ops::AttentionDims;
use llamaprobe::backend::{Backend, ops};
use llamaprobe::pack::{CachedSegment, Pack, Parent};

use super::cases::{Case, Set};
use super::device::{self, Given, Outputs, Refusal, SENTINEL};
use super::naive::{Precision, log_sum_exp};
use super::operation::{Array, Operation, Role, RowResults, acc, compute};
use super::packs::{self, heads};
use super::simt::machine::Build;
use super::simt::recorder::{FILL, Recorder, list, rows};
use super::simt::tables::{self, Forest, NO_ROW};
use super::simt::tape::Arg::{self, At, Boxes, Float, Int, Null};
pub use outputs::AttentionOutputs;
pub use result::AttentionResult;

/// q, k, v, cached k, cached v -> z, lse
#[derive(Clone, Debug)]
pub struct Attention {
    pub pack: Pack,
    pub cached: Vec<CachedSegment>,
    pub dims: AttentionDims,
}

/// The rows that `row` attends to before the window is applied, by position: `(in the cache, row)`.
pub fn path(pack: &Pack, cached: &[CachedSegment], row: usize) -> Vec<(bool, usize)> {
    let g = pack.segments().iter().position(|s| s.rows.contains(&row)).unwrap();
    let own = &pack.segments()[g].rows;
    let end = if pack.is_bidirectional() { own.end } else { row + 1 };
    let mut spans: Vec<(bool, Range<usize>)> = vec![(false, own.start..end)];
    let mut next = pack.segments()[g].parent;
    loop {
        next = match next {
            Parent::None => break,
            Parent::Pack(p) => {
                spans.push((false, pack.segments()[p].rows.clone()));
                pack.segments()[p].parent
            }
            Parent::Cached(k) => {
                spans.push((true, cached[k].rows.clone()));
                cached[k].parent.map_or(Parent::None, Parent::Cached)
            }
        };
    }
    spans.into_iter().rev().flat_map(|(in_cache, rows)| rows.map(move |row| (in_cache, row))).collect()
}

/// ALiBi's slopes as its authors list them: a geometric sequence for a power of two, else that of the next lower one
/// with every second of the next higher one's behind it.
fn slopes(heads: usize) -> Vec<f64> {
    if heads.is_power_of_two() {
        let start = 2f64.powf(-8.0 / heads as f64);
        return (1..=heads as i32).map(|i| start.powi(i)).collect();
    }
    let lower = 1 << heads.ilog2();
    let mut all = slopes(lower);
    all.extend(slopes(2 * lower).into_iter().step_by(2).take(heads - lower));
    all
}

/// What a row and head score a key.
struct Score {
    /// Position of the key.
    at: usize,
    value: f64,
    /// The slope of the cap there.
    through: f64,
}

impl Attention {
    /// The scores of one row and head over its path.
    fn scores(&self, p: Precision, inputs: &[Vec<f64>], row: usize, head: usize) -> Vec<Score> {
        let (dims, d) = (self.dims, self.dims.head_dim);
        let q = &inputs[0][(row * dims.heads + head) * d..];
        let path = path(&self.pack, &self.cached, row);
        let position = self.pack.positions()[row] as usize;
        let slope = if dims.alibi { p.a(slopes(dims.heads)[head]) } else { 0.0 };
        let seen = |at: usize| match dims.window {
            None => true,
            Some(window) if self.pack.is_bidirectional() => at.abs_diff(position) <= window,
            Some(window) => at + window > position,
        };
        let seen: Vec<_> = path.into_iter().enumerate().filter(|(at, _)| seen(*at)).collect();
        let last = seen.last().expect("a row sees itself").0;
        seen.into_iter()
            .map(|(at, (in_cache, key))| {
                let k = &inputs[if in_cache { 3 } else { 1 }][self.key(key, head)..];
                let score = p.c(p.a(dims.scale) * p.c(p.dot(d, |i| q[i], |i| k[i])));
                let (score, through) = match dims.softcap {
                    None => (score, 1.0),
                    Some(cap) => {
                        let t = p.a(p.a(score / p.a(cap)).tanh());
                        (p.c(p.a(cap) * t), p.a(1.0 - p.a(t * t)))
                    }
                };
                Score { at, value: p.a(score - p.a(slope * (last - at) as f64)), through }
            })
            .collect()
    }

    /// How far behind and ahead of their own position rows see, as the kernels count it.
    fn reach(&self) -> [usize; 2] {
        let ahead = if self.pack.is_bidirectional() { self.dims.window } else { None };
        let behind = self.dims.window.map_or(0, |window| window + usize::from(self.pack.is_bidirectional()));
        [behind, ahead.unwrap_or(1 << 30)]
    }

    /// The cap, as the kernels are given it.
    fn cap(&self) -> Arg {
        Float(self.dims.softcap.unwrap_or(0.0))
    }

    /// Where the key (or value) of a row that a head reads begins.
    fn key(&self, row: usize, head: usize) -> usize {
        row * self.dims.kv_width() + head / self.dims.group() * self.dims.head_dim
    }

    /// The gradients of the inputs, from `z` and `lse` of a forward with the same output rows, after `then` has had those of
    /// queries and keys.
    pub fn gradients<B: Backend>(
        &self,
        b: &mut B,
        given: &Given<'_>,
        (z, lse): &(B::Compute, B::Acc),
        (d_z, outputs): (&[f64], Option<&[usize]>),
        then: impl FnOnce(&mut B, &B::Pack, [&mut B::Compute; 2]),
    ) -> Vec<Option<Vec<f64>>> {
        let (pack, dims) = (&b.pack(&self.pack).unwrap(), self.dims);
        let [q, k, v] = &[0, 1, 2].map(|i| device::compute(b, &given.inputs[i]));
        let [mut d_q, mut d_k, mut d_v] = [0, 1, 2].map(|i| device::compute(b, &given.start[i]));
        let (mut delta, mut d_z) = (device::acc(b, &vec![SENTINEL; self.pack.len() * dims.heads]), device::acc(b, d_z));
        b.attention_bwd(ops::AttentionBwd {
            d_q: &mut d_q,
            d_k: &mut d_k,
            d_v: &mut d_v,
            delta: &mut delta,
            d_z: &mut d_z,
            z,
            lse,
            q,
            k,
            v,
            pack,
            outputs,
            dims,
        });
        then(b, pack, [&mut d_q, &mut d_k]);
        let read = [(d_q, 0), (d_k, 1), (d_v, 2)].map(|(d, i)| Some(device::read_compute(b, &d, given.len(i))));
        [&read[..], &[None, None]].concat()
    }
}

impl Operation for Attention {
    fn inputs(&self) -> Vec<Array> {
        let (n, kv_width) = (self.pack.len(), self.dims.kv_width());
        let cached = self.cached.iter().map(|s| s.rows.end).max().unwrap_or(0) * kv_width;
        let q = compute("q", n * self.dims.q_width()).scaled(1.5);
        let mut arrays = [q, compute("k", n * kv_width), compute("v", n * kv_width)];
        if self.cached.is_empty() {
            arrays = arrays.map(|array| array.gradient(Role::Compute));
        }
        [&arrays[..], &[compute("cached k", cached), compute("cached v", cached)]].concat()
    }

    fn outputs(&self) -> Vec<Array> {
        let z = compute("z", self.pack.len() * self.dims.q_width()).gradient(Role::Acc);
        vec![z, acc("lse", self.pack.len() * self.dims.heads)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (mut z, mut lses) = (Vec::new(), Vec::new());
        for row in 0..self.pack.len() {
            let path = path(&self.pack, &self.cached, row);
            for h in 0..self.dims.heads {
                let scores = self.scores(p, inputs, row, h);
                let lse = log_sum_exp(p, &scores.iter().map(|s| s.value).collect::<Vec<_>>());
                lses.push(lse);
                for i in 0..self.dims.head_dim {
                    let value = |at: usize| {
                        let (in_cache, key) = path[at];
                        inputs[if in_cache { 4 } else { 2 }][self.key(key, h) + i]
                    };
                    z.push(p.c(p.sum(scores.iter().map(|s| p.c(p.a(s.value - lse).exp()) * value(s.at)))));
                }
            }
        }
        vec![z, lses]
    }

    fn naive_backward(&self, p: Precision, inputs: &[Vec<f64>], d_z: &[f64], d: &mut [Vec<f64>]) {
        let width = self.dims.head_dim;
        for row in 0..self.pack.len() {
            let path = path(&self.pack, &[], row);
            for h in 0..self.dims.heads {
                let scores = self.scores(p, inputs, row, h);
                let lse = log_sum_exp(p, &scores.iter().map(|s| s.value).collect::<Vec<_>>());
                let at = (row * self.dims.heads + h) * width;
                let d_z: Vec<f64> = d_z[at..at + width].iter().map(|&x| p.c(x)).collect();
                let key = |position: usize| self.key(path[position].1, h);
                let weights: Vec<f64> = scores.iter().map(|s| p.a(p.a(s.value - lse).exp())).collect();
                let d_weights: Vec<f64> =
                    scores.iter().map(|s| p.c(p.dot(width, |i| d_z[i], |i| inputs[2][key(s.at) + i]))).collect();
                let mean = p.dot(weights.len(), |j| weights[j], |j| d_weights[j]);
                for (j, score) in scores.iter().enumerate() {
                    let d_score = p.a(p.a(weights[j] * p.a(d_weights[j] - mean)) * score.through);
                    let d_score = p.c(d_score * p.a(self.dims.scale));
                    for i in 0..width {
                        let key = key(score.at) + i;
                        p.add(&mut d[0][at + i], d_score * inputs[1][key]);
                        p.add(&mut d[1][key], d_score * inputs[0][at + i]);
                        p.add(&mut d[2][key], p.c(weights[j]) * d_z[i]);
                    }
                }
            }
        }
        d[..3].iter_mut().flatten().for_each(|x| *x = p.c(*x));
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let [q, k, v, cached_k, cached_v] = &[0, 1, 2, 3, 4].map(|i| device::compute(b, &inputs[i]));
        let cached = (!self.cached.is_empty()).then_some([cached_k, cached_v]);
        let (z, lse, pack) = (&mut out.compute[0], &mut out.acc[0], &b.pack(&self.pack).unwrap());
        b.attention_fwd(ops::AttentionFwd { z, lse, q, k, v, cached, pack, outputs: None, dims: self.dims });
    }

    fn backward<B: Backend>(&self, b: &mut B, given: &Given<'_>) -> Vec<Option<Vec<f64>>> {
        let saved = device::forward(b, self, given.inputs, 0.0);
        let saved = (device::compute(b, &saved[0]), device::acc(b, &saved[1]));
        self.joint_backward(b, given, &saved);
        self.gradients(b, given, &saved, (&given.d_outputs[0], None), |_, _, _| {})
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let &Self { ref pack, ref cached, dims } = self;
        let AttentionDims { heads, kv_heads, head_dim, scale, .. } = dims;
        let (Build { warps, capped, .. }, dtype) = (r.build, r.tape.dtype);
        if capped != dims.softcap.is_some() {
            return false;
        }
        let forest = Forest::new(pack, cached);
        let (n, blocks, parts) = (pack.len(), forest.list_starts.len() - 1, 4 / warps);
        let [q, k, v, cached_k, cached_v] = [0, 1, 2, 3, 4].map(|i| r.tape.compute(&case.inputs[i]));
        let [cached_k, cached_v] = if cached.is_empty() { [k, v] } else { [cached_k, cached_v] };
        let boxes = |at: usize, x| Boxes(x, [case.inputs[at].len() / dims.kv_width(), dims.kv_width()]);
        let of_cache = if cached.is_empty() { [1, 2] } else { [3, 4] };
        let boxes = [boxes(1, k), boxes(2, v), boxes(of_cache[0], cached_k), boxes(of_cache[1], cached_v)];
        let [q, k, v, cached_k, cached_v] = [q, k, v, cached_k, cached_v].map(At);
        let [most, count] = forest.key_parts(dims.group());
        let pairs = [forest.pair_starts, forest.pair_lists].map(|list| At(r.tape.ints(&list)));
        let mut ints = |lists: [Vec<i32>; 4]| lists.map(|list| At(r.tape.ints(&list)));
        let queries = ints([forest.block_rows, forest.list_starts, forest.tile_lists, forest.tiles]);
        let keys = ints([forest.key_blocks.concat(), forest.order, forest.begins, forest.ends]);
        let positions = [list(pack.positions()), forest.lasts].map(|list| At(r.tape.ints(&list)));
        let [behind, ahead] = self.reach().map(Int);
        let alibi = Int(dims.alibi_base());
        let sizes = [Int(heads), Int(kv_heads), Int(head_dim), Float(scale), behind, ahead, alibi, self.cap()];
        // So few multiprocessors that some heads of the grid have a block more than others among the first ones.
        let sizes_of = |grid| [&sizes[..], &[3 / grid, 3 % grid].map(Int)].concat();
        let z = At(r.output(0, n * heads * head_dim, Role::Compute));
        let lse = At(r.output(1, n * heads, Role::Acc));
        let args = [&[z, lse, q, k, v, cached_k, cached_v], &queries[..], &positions, &sizes_of(heads)].concat();
        if r.build.hopper {
            let (blocks, queries) = (blocks.div_ceil(2), [queries[0], pairs[0], pairs[1], queries[3]]);
            let sizes = [Int(blocks), Int(heads), Int(kv_heads), Float(scale), behind, ahead, Int(dims.alibi_base())];
            let args = [&args[..3], &boxes, &queries, &positions, &sizes].concat();
            // A few blocks of the grid, so that each takes several pairs of a block and a head.
            let (grid, shared) = ([3.min(blocks * heads), 1, 1], r.build.shared("attention_fwd_hopper", dtype));
            r.tape.launch("attention_fwd_hopper", grid, 384, shared, &args);
            return true;
        }
        let shared = r.build.shared("attention_fwd", dtype);
        r.tape.launch("attention_fwd", [heads, blocks * parts, 1], 32 * warps, shared, &args);
        if r.build.has_long_blocks(dtype) {
            let again = [At(r.output(0, n * heads * head_dim, Role::Compute)), At(r.output(1, n * heads, Role::Acc))];
            let (blocks, [rows, _, _, tiles]) = (blocks.div_ceil(2), queries);
            let queries = [rows, pairs[0], pairs[1], tiles];
            let args =
                [&again[..], &[q, k, v, cached_k, cached_v], &queries[..], &positions, &sizes_of(heads)].concat();
            let shared = r.build.shared("attention_fwd_128", dtype);
            r.tape.launch("attention_fwd_128", [heads, blocks * parts, 1], 32 * warps, shared, &args);
        }
        if !cached.is_empty() {
            return true;
        }
        let delta = At(r.tape.acc(&vec![FILL; n * heads]));
        let d_z_rounded = At(r.tape.compute(&vec![FILL; n * heads * head_dim]));
        let args = [delta, d_z_rounded, At(r.tape.acc(&case.d_outputs[0])), z, Int(n), Int(heads), Int(head_dim)];
        r.run("attention_bwd_delta", rows((n * heads).div_ceil(8)), &args);
        let shared = r.build.shared("attention_bwd_dq", dtype);
        let [d_q, d_k, d_v] = [0, 1, 2].map(|i| At(r.output(2 + i, case.inputs[i].len(), Role::Compute)));
        let saved: [Arg; 6] = [delta, d_z_rounded, lse, q, k, v];
        // Where heads may be rotated back: by no angle.
        let identity = [vec![1.0; head_dim / 2], vec![0.0; head_dim / 2]].concat().repeat(pack.longest());
        let angles = [if [64, 128].contains(&head_dim) { At(r.tape.acc(&identity)) } else { Null }];
        let args = [&[d_q], &saved[..], &queries, &positions, &sizes_of(heads), &angles].concat();
        r.tape.launch("attention_bwd_dq", [heads, blocks * parts, 1], 32 * warps, shared, &args);
        let sums = At(r.tape.acc(&vec![FILL; count * kv_heads * 2 * tables::TILE * r.build.head_dim]));
        let tickets = At(r.tape.tickets(4 * count * parts * kv_heads));
        let workspace = [Int(n), sums, tickets, Int(most)];
        let args = [&[d_k, d_v], &saved[..], &keys, &positions, &workspace, &sizes_of(kv_heads), &angles].concat();
        r.tape.launch("attention_bwd_dkv", [kv_heads, count * parts, 1], 32 * warps, shared, &args);
        true
    }

    fn row_results(&self) -> Option<RowResults> {
        Some(RowResults { inputs: &[0, 1, 2], gradients: &[true, true, true, false, false] })
    }

    fn select(&self, _: &[usize], pack: Option<Pack>) -> Option<Self> {
        pack.map(|pack| Self { pack, ..self.clone() })
    }
}

/// q, k, v, cached k, cached v -> the pattern, with `lse` from a forward
#[derive(Clone, Debug)]
pub struct AttentionPattern {
    pub attention: Attention,
    pub rows: Vec<usize>,
    pub longest: usize,
    pub normalized: bool,
}

impl Operation for AttentionPattern {
    fn inputs(&self) -> Vec<Array> {
        self.attention.inputs().into_iter().map(|array| Array { gradient: None, ..array }).collect()
    }

    fn outputs(&self) -> Vec<Array> {
        vec![acc("out", self.rows.len() * self.attention.dims.heads * self.longest)]
    }

    fn naive_forward(&self, p: Precision, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let heads = self.attention.dims.heads;
        let lse = &self.attention.naive_forward(p, inputs)[1];
        let nothing = if self.normalized { 0.0 } else { f64::NEG_INFINITY };
        let mut out = vec![nothing; self.rows.len() * heads * self.longest];
        for (i, &row) in self.rows.iter().enumerate() {
            for h in 0..heads {
                for Score { at, value, .. } in self.attention.scores(p, inputs, row, h) {
                    let shown = if self.normalized { p.a(p.a(value - lse[row * heads + h]).exp()) } else { value };
                    out[(i * heads + h) * self.longest + at] = shown;
                }
            }
        }
        vec![out]
    }

    fn forward<B: Backend>(&self, b: &mut B, inputs: &[Vec<f64>], out: &mut Outputs<B>) {
        let lse = &device::forward(b, &self.attention, inputs, out.fill)[1];
        let lse = &device::acc(b, lse);
        let [q, k, cached_k] = &[0, 1, 3].map(|i| device::compute(b, &inputs[i]));
        let Attention { pack, cached, dims } = &self.attention;
        let pack = &b.pack(pack).unwrap();
        b.attention_pattern(ops::AttentionPattern {
            out: &mut out.acc[0],
            q,
            k,
            cached_k: (!cached.is_empty()).then_some(cached_k),
            lse,
            rows: &self.rows,
            pack,
            dims: *dims,
            longest: self.longest,
            normalized: self.normalized,
        });
    }

    fn launch(&self, case: &Case, r: &mut Recorder<'_>) -> bool {
        let &Self { attention: Attention { ref pack, ref cached, dims }, rows: ref of, longest, normalized } = self;
        let AttentionDims { heads, kv_heads, head_dim, scale, .. } = dims;
        if r.build.capped != dims.softcap.is_some() {
            return false;
        }
        let lse = self.attention.naive_forward(Precision::F64, &case.inputs).remove(1);
        let mut keys = vec![NO_ROW; of.len() * longest];
        for (keys, &row) in keys.chunks_mut(longest).zip(of) {
            let path = tables::path(pack, cached, row);
            let position = pack.positions()[row] as usize;
            let [behind, ahead] = self.attention.reach();
            let from = if behind == 0 { 0 } else { (position + 1).saturating_sub(behind) };
            let to = path.len().min(position + ahead + 1);
            keys[from..to].copy_from_slice(&path[from..to]);
        }
        let [q, k, cached_k] = [0, 1, 3].map(|i| At(r.tape.compute(&case.inputs[i])));
        let lasts = Forest::new(pack, cached).lasts;
        let lists = [of.iter().map(|&row| row as i32).collect(), keys, list(pack.positions()), lasts];
        let [list, keys, positions, lasts] = lists.map(|list| At(r.tape.ints(&list)));
        let tables = [At(r.tape.acc(&lse)), list, keys, positions, lasts];
        let ahead = Int(self.attention.reach()[1]);
        let shown = [ahead, Int(dims.alibi_base()), self.attention.cap(), Int(longest), Int(normalized.into())];
        let sizes = [&[Int(heads), Int(kv_heads), Int(head_dim), Float(scale)], &shown[..]].concat();
        let out = At(r.output(0, of.len() * heads * longest, Role::Acc));
        let args = [&[out, q, k, cached_k], &tables[..], &sizes].concat();
        r.tape.launch("attention_pattern", [of.len(), heads, 1], 128, 0, &args);
        true
    }
}

pub fn cases<B: Backend>(_: &mut B, set: Set) -> Vec<Case> {
    match set {
        Set::Small => small(),
        Set::Large => {
            let alibi = AttentionDims { alibi: true, ..heads(6, 6, 32, None) };
            let capped = AttentionDims { softcap: Some(1.5), ..heads(2, 1, 80, Some(40)) };
            let wide = heads(1, 1, 256, None);
            let all = [heads(4, 2, 48, None), heads(3, 1, 16, Some(50)), heads(2, 1, 128, None), alibi, capped, wide];
            let case = |dims: AttentionDims| {
                let op = Attention { pack: packs::large(), cached: vec![], dims };
                Case::new(format!("large attention {}", dims.head_dim), op)
            };
            let mut cases: Vec<Case> = all.map(case).into();
            for dims in [all[0], all[1]] {
                let pack = packs::bidirectional(&packs::large(), &[]);
                let name = format!("large bidirectional attention {}", dims.head_dim);
                cases.push(Case::new(name, Attention { pack, cached: vec![], dims }));
            }
            cases
        }
        Set::Forest => {
            let case = |(i, dims)| {
                let op = Attention { pack: packs::large_forest(), cached: vec![], dims };
                Case::new(format!("attention {i}"), op)
            };
            forest_dims().into_iter().enumerate().map(case).collect()
        }
        Set::Rows => vec![],
    }
}

/// Heads for which rows are compared bit by bit.
pub fn forest_dims() -> [AttentionDims; 7] {
    [
        heads(3, 1, 6, None),
        heads(4, 2, 48, None),
        heads(2, 2, 16, Some(20)),
        heads(1, 1, 64, Some(64)),
        AttentionDims { alibi: true, ..heads(3, 3, 16, None) },
        AttentionDims { alibi: true, ..heads(4, 2, 6, Some(20)) },
        AttentionDims { softcap: Some(2.0), ..heads(2, 1, 20, Some(30)) },
    ]
}

fn small() -> Vec<Case> {
    let (continued, cached) = packs::continued();
    let small_heads = [
        heads(1, 1, 2, None),
        heads(3, 1, 6, None),
        heads(4, 2, 4, Some(3)),
        heads(2, 2, 4, Some(1)),
        AttentionDims { scale: 0.31, ..heads(6, 3, 2, Some(100)) },
        AttentionDims { alibi: true, ..heads(3, 3, 4, None) },
        AttentionDims { alibi: true, scale: 0.2, ..heads(4, 2, 5, Some(4)) },
        AttentionDims { softcap: Some(1.2), ..heads(4, 2, 4, Some(3)) },
        AttentionDims { softcap: Some(0.7), alibi: true, scale: 0.4, ..heads(3, 3, 5, None) },
    ];
    let mut cases = Vec::new();
    for (i, dims) in small_heads.into_iter().enumerate() {
        for both in ["", "bidirectional "] {
            let seeing = |pack: Pack, cached: &[CachedSegment]| match both {
                "" => pack,
                _ => packs::bidirectional(&pack, cached),
            };
            for (name, pack) in [("ragged", packs::ragged()), ("trees", packs::trees())] {
                let op = Attention { pack: seeing(pack, &[]), cached: vec![], dims };
                cases.push(Case::new(format!("{both}attention {name} {i}"), op));
            }
            let pack = seeing(continued.clone(), &cached);
            let attention = Attention { pack, cached: cached.clone(), dims };
            cases.push(Case::new(format!("{both}attention continued {i}"), attention.clone()));
            // Of rows that see three keys, the exponential of one score is off by more than the limit, which counts sums.
            let patterns = if both.is_empty() || dims.window != Some(1) { [false, true].as_slice() } else { &[false] };
            for &normalized in patterns {
                let (rows, longest) = (vec![0, 4, 2, 11, 4], continued.longest() + i);
                let op = AttentionPattern { attention: attention.clone(), rows, longest, normalized };
                cases.push(Case::new(format!("{both}attention_pattern {i} {normalized}"), op));
            }
        }
    }
    for (heads, head_dim, width) in [(1, 2, 5), (3, 4, 7)] {
        let op = AttentionResult { from: 5, rows: vec![4, 0, 3, 0], heads, head_dim, width };
        cases.push(Case::new(format!("attention_result {heads}x{head_dim}x{width}"), op));
    }
    cases.extend(outputs::cases());
    cases
}

/// Calls `attention_fwd` on two rows with a `z` of so many elements.
fn call_fwd<B: Backend>(b: &mut B, z: usize, dims: AttentionDims) {
    let ([mut lse], [mut z, q, k, v], []) = device::buffers(b, [6], [z, 12, 12, 12], []);
    let (z, lse, q, k, v) = (&mut z, &mut lse, &q, &k, &v);
    let pack = &b.pack(&packs::flat(&[2])).unwrap();
    b.attention_fwd(ops::AttentionFwd { z, lse, q, k, v, cached: None, pack, outputs: None, dims });
}

pub fn refusals<B: Backend>() -> Vec<Refusal<B>> {
    let mut all: Vec<Refusal<B>> = vec![
        Refusal { says: "attention_fwd: z has 11 elements, needs 12", call: |b| call_fwd(b, 11, heads(3, 1, 2, None)) },
        Refusal {
            says: "attention_fwd: 3 heads, must be a multiple of the 2 key-value heads",
            call: |b| call_fwd(b, 12, heads(3, 2, 2, None)),
        },
        Refusal {
            says: "attention_fwd: window is 0, must be at least 1",
            call: |b| call_fwd(b, 12, heads(3, 1, 2, Some(0))),
        },
        Refusal {
            says: "attention_fwd: a soft cap is 0, must be above 0",
            call: |b| call_fwd(b, 12, AttentionDims { softcap: Some(0.0), ..heads(3, 1, 2, None) }),
        },
        Refusal {
            says: "attention_bwd: d_k has 3 elements, needs 4",
            call: |b| {
                let ([mut delta, mut d_z, lse], [mut d_q, mut d_k, mut d_v, z, q, k, v], []) =
                    device::buffers(b, [6, 12, 6], [12, 3, 4, 12, 12, 4, 4], []);
                let pack = b.pack(&packs::flat(&[2])).unwrap();
                b.attention_bwd(ops::AttentionBwd {
                    d_q: &mut d_q,
                    d_k: &mut d_k,
                    d_v: &mut d_v,
                    delta: &mut delta,
                    d_z: &mut d_z,
                    z: &z,
                    lse: &lse,
                    q: &q,
                    k: &k,
                    v: &v,
                    pack: &pack,
                    outputs: None,
                    dims: heads(3, 1, 2, None),
                });
            },
        },
        Refusal {
            says: "attention_pattern: a row is 2, must be below 2",
            call: |b| {
                let ([mut out, lse], [q, k], []) = device::buffers(b, [6, 6], [12, 4], []);
                let pack = b.pack(&packs::flat(&[2])).unwrap();
                b.attention_pattern(ops::AttentionPattern {
                    out: &mut out,
                    q: &q,
                    k: &k,
                    cached_k: None,
                    lse: &lse,
                    rows: &[2],
                    pack: &pack,
                    dims: heads(3, 1, 2, None),
                    longest: 2,
                    normalized: true,
                });
            },
        },
        Refusal {
            says: "attention_result: the weight's length is 11, must be 12",
            call: |b| {
                let ([mut out], [z], [weight]) = device::buffers(b, [4], [12], [11]);
                let (out, z, weight, rows) = (&mut out, &z, &weight, &[1]);
                let op = ops::AttentionResult { out, z, weight, rows, heads: 2, head_dim: 3, width: 2 };
                b.attention_result(op);
            },
        },
    ];
    all.extend(outputs::refusals());
    all
}
