//! Every operation in the most straightforward way: loops over elements, whole softmaxes over explicit paths. With
//! rounding after each step it is also the plain path of a lower precision, which rounds where the reference
//! framework stores a tensor.

use std::ops::Range;

use llamaprobe::backend::{Activation, AdamwStep, AttentionDims, LinearDims, LoraSite};
use llamaprobe::pack::{CachedSegment, Pack, Parent, Token};

use super::op::{Drop, Op};

/// How results are rounded: each sum and product as wide numbers, stored tensors as the compute dtype.
#[derive(Clone, Copy)]
pub struct Precision {
    pub wide: fn(f64) -> f64,
    pub real: fn(f64) -> f64,
}

fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

impl Precision {
    pub const F64: Self = Self { wide: |x| x, real: |x| x };
    pub const F32: Self = Self { wide: single, real: single };
    pub const BF16: Self = Self { wide: single, real: |x| half::bf16::from_f64(x).to_f64() };
    pub const F16: Self = Self { wide: single, real: |x| half::f16::from_f64(x).to_f64() };

    fn w(self, x: f64) -> f64 {
        (self.wide)(x)
    }

    fn r(self, x: f64) -> f64 {
        (self.real)(self.w(x))
    }

    fn sum(self, terms: impl Iterator<Item = f64>) -> f64 {
        terms.fold(0.0, |sum, x| self.w(sum + self.w(x)))
    }

    /// The dot product of two strided vectors.
    fn dot(self, n: usize, a: impl Fn(usize) -> f64, b: impl Fn(usize) -> f64) -> f64 {
        self.sum((0..n).map(|i| a(i) * b(i)))
    }
}

/// The rows that `row` attends to before the window is applied, by position: `(in the cache, row)`.
pub fn path(pack: &Pack, kept: &[CachedSegment], row: usize) -> Vec<(bool, usize)> {
    let g = pack.segments().iter().position(|s| s.rows.contains(&row)).unwrap();
    let mut stretches: Vec<(bool, Range<usize>)> = vec![(false, pack.segments()[g].rows.start..row + 1)];
    let mut next = pack.segments()[g].parent;
    loop {
        next = match next {
            Parent::None => break,
            Parent::Pack(p) => {
                stretches.push((false, pack.segments()[p].rows.clone()));
                pack.segments()[p].parent
            }
            Parent::Cached(k) => {
                stretches.push((true, kept[k].rows.clone()));
                kept[k].parent.map_or(Parent::None, Parent::Cached)
            }
        };
    }
    stretches.into_iter().rev().flat_map(|(kept, rows)| rows.map(move |r| (kept, r))).collect()
}

/// The outputs of an operation, in the order of [`Op::outputs`].
pub fn forward(p: Precision, op: &Op, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    match op {
        Op::Cast { .. } => vec![inputs[0].iter().map(|&x| p.r(x)).collect()],
        Op::Widen { .. } => vec![inputs[0].clone()],
        Op::Residual { .. } => vec![inputs[0].iter().zip(&inputs[1]).map(|(a, b)| p.w(a + b)).collect()],
        Op::GatherReal { rows, width, .. } | Op::GatherWide { rows, width, .. } => {
            vec![rows.iter().flat_map(|&r| inputs[0][r as usize * width..][..*width].to_vec()).collect()]
        }
        Op::Embed { pack, width, site, .. } => {
            let rows = pack.tokens().iter().enumerate().flat_map(|(row, token)| match token {
                Token::Id(t) => inputs[0][*t as usize * width..][..*width].to_vec(),
                Token::Virtual(v) => {
                    let at = pack.run_of(row).unwrap() * site.stride + site.offset + *v as usize * width;
                    inputs[1][at..at + width].to_vec()
                }
            });
            vec![rows.collect()]
        }
        Op::Position { pack, first, width } => {
            let places = pack.positions().iter().flat_map(|&at| &inputs[1][(first + at as usize) * width..][..*width]);
            vec![inputs[0].iter().zip(places).map(|(x, place)| p.w(x + place)).collect()]
        }
        Op::LayerNorm { width, eps, .. } => {
            let (mut out, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
            for x in inputs[0].chunks(*width) {
                let mean = p.w(p.sum(x.iter().copied()) / *width as f64);
                let apart = |i: usize| p.w(x[i] - mean);
                let spread = p.w(p.dot(*width, apart, apart) / *width as f64);
                let rstd = p.w(1.0 / p.w(p.w(spread + p.w(*eps)).sqrt()));
                means.push(mean);
                rstds.push(rstd);
                let affine = |i: usize| p.r(p.w(p.w(apart(i) * rstd) * inputs[1][i]) + inputs[1][width + i]);
                out.extend((0..*width).map(affine));
            }
            vec![out, means, rstds]
        }
        Op::RmsNorm { width, eps, .. } => {
            let (mut out, mut rstds) = (Vec::new(), Vec::new());
            for x in inputs[0].chunks(*width) {
                let mean = p.w(p.dot(*width, |i| x[i], |i| x[i]) / *width as f64);
                let rstd = p.w(1.0 / p.w(p.w(mean + p.w(*eps)).sqrt()));
                rstds.push(rstd);
                out.extend(x.iter().zip(&inputs[1]).map(|(x, weight)| p.r(p.r(x * rstd) * weight)));
            }
            vec![out, rstds]
        }
        Op::Rope { pack, heads, head_dim, cos_sin } => {
            vec![turn(p, &inputs[0], pack, *heads, *head_dim, cos_sin, 1.0)]
        }
        Op::Attention { pack, kept, dims } => attention(p, inputs, pack, kept, *dims),
        Op::Pattern { pack, kept, dims, rows, longest, normalised } => {
            let lse = &attention(p, inputs, pack, kept, *dims)[1];
            let mut out = vec![if *normalised { 0.0 } else { f64::NEG_INFINITY }; rows.len() * dims.heads * longest];
            for (i, &row) in rows.iter().enumerate() {
                for h in 0..dims.heads {
                    for (position, score) in scores(p, inputs, pack, kept, *dims, row, h) {
                        let shown = if *normalised { p.w(p.w(score - lse[row * dims.heads + h]).exp()) } else { score };
                        out[(i * dims.heads + h) * longest + position] = shown;
                    }
                }
            }
            vec![out]
        }
        Op::AttentionResult { rows, heads, head_dim, width, .. } => {
            let (z, weight, all) = (&inputs[0], &inputs[1], heads * head_dim);
            let element = |i: usize| {
                let (row, h, c) = (rows[i / width / heads], i / width % heads, i % width);
                let (from, column) = (row * all + h * head_dim, c * all + h * head_dim);
                p.dot(*head_dim, |d| z[from + d], |d| weight[column + d])
            };
            vec![(0..rows.len() * all / head_dim * width).map(element).collect()]
        }
        Op::Keep { to, from, width, .. } => {
            let mut cache = inputs[0].clone();
            cache[to * width..][..from.len() * width].copy_from_slice(&inputs[1][from.start * width..from.end * width]);
            vec![cache]
        }
        Op::Linear { dims, bias } => {
            let out = product(p, *dims, &inputs[0], &inputs[1]);
            let with_bias = |(i, x): (usize, f64)| p.r(if *bias { x + inputs[2][i % dims.output] } else { x });
            vec![out.into_iter().enumerate().map(with_bias).collect()]
        }
        Op::Lora { pack, site, drop, .. } => {
            let (mut y, mut xa) = (inputs[0].clone(), vec![0.0; pack.len() * site.rank]);
            for row in 0..pack.len() {
                let Some(run) = pack.run_of(row) else { continue };
                let params = &inputs[2][run * site.stride..];
                let x = dropped(p, drop, &inputs[1], site.input, row);
                for r in 0..site.rank {
                    xa[row * site.rank + r] = p.dot(site.input, |i| x[i], |i| params[site.a + r * site.input + i]);
                }
                for o in 0..site.output {
                    let added = delta(p, *site, params, &xa[row * site.rank..], o);
                    let y = &mut y[row * site.output + o];
                    *y = p.r(*y + added);
                }
            }
            vec![y, xa]
        }
        Op::LoraDelta { pack, site, .. } => {
            let mut out = vec![0.0; pack.len() * site.output];
            for row in 0..pack.len() {
                let Some(run) = pack.run_of(row) else { continue };
                for o in 0..site.output {
                    let params = &inputs[1][run * site.stride..];
                    out[row * site.output + o] = delta(p, *site, params, &inputs[0][row * site.rank..], o);
                }
            }
            vec![out]
        }
        Op::SwiGlu { .. } => {
            let pairs = inputs[0].iter().zip(&inputs[1]);
            vec![pairs.map(|(&gate, up)| p.r(p.r(gate * sigmoid(p, gate)) * up)).collect()]
        }
        Op::Activation { f, .. } => vec![inputs[0].iter().map(|&x| p.r(activation(p, *f, x).0)).collect()],
        Op::Logits { dims } => vec![product(p, *dims, &inputs[0], &inputs[1])],
        Op::CrossEntropy { dims, targets } => {
            let logits: Vec<f64> = product(p, *dims, &inputs[0], &inputs[1]).into_iter().map(|x| p.r(x)).collect();
            let rows = logits.chunks(dims.output).zip(targets);
            vec![rows.map(|(row, &target)| p.w(log_sum_exp(p, row) - row[target as usize])).collect()]
        }
        Op::GradNorm { stride, .. } => {
            vec![inputs[0].chunks(*stride).map(|g| p.dot(*stride, |i| g[i], |i| g[i])).collect()]
        }
        Op::CheckFinite { last, before, .. } => vec![vec![if last.is_finite() { *before } else { 1.0 }]],
        Op::Adamw { stopped: true, .. } => inputs[..3].to_vec(),
        Op::Adamw { steps, stride, .. } => adamw(p, inputs, steps, *stride),
        Op::Refresh { offset, width } => vec![inputs[0][*offset..][..*width].iter().map(|&x| p.r(x)).collect()],
    }
}

/// The gradients of the inputs from those of the outputs; nothing for inputs without.
pub fn backward(p: Precision, op: &Op, inputs: &[Vec<f64>], d_outputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let d_out = d_outputs.first().map_or(&[][..], |d| d);
    let mut d: Vec<Vec<f64>> = inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    if !op.has_backward() {
        return d;
    }
    let add = |to: &mut f64, x: f64| *to = p.w(*to + p.w(x));
    match op {
        Op::GatherWide { rows, width, .. } => {
            for (i, x) in d_out.iter().enumerate() {
                add(&mut d[0][rows[i / width] as usize * width + i % width], *x);
            }
        }
        Op::Embed { pack, width, site, .. } => {
            for (i, x) in d_out.iter().enumerate() {
                let (row, c) = (i / width, i % width);
                match pack.tokens()[row] {
                    Token::Id(t) => add(&mut d[0][t as usize * width + c], *x),
                    Token::Virtual(v) => {
                        let run = pack.run_of(row).unwrap();
                        add(&mut d[1][run * site.stride + site.offset + v as usize * width + c], *x);
                    }
                }
            }
        }
        Op::Position { pack, first, width } => {
            for (i, x) in d_out.iter().enumerate() {
                let at = first + pack.positions()[i / width] as usize;
                add(&mut d[1][at * width + i % width], *x);
            }
        }
        Op::LayerNorm { width, .. } => {
            let saved = forward(p, op, inputs);
            for (row, x) in inputs[0].chunks(*width).enumerate() {
                let (mean, rstd) = (saved[1][row], saved[2][row]);
                let unit = |i: usize| p.w(p.w(x[i] - mean) * rstd);
                let g = |i: usize| p.w(d_out[row * width + i] * inputs[1][i]);
                let level = p.w(p.sum((0..*width).map(g)) / *width as f64);
                let along = p.w(p.dot(*width, unit, g) / *width as f64);
                for i in 0..*width {
                    d[0][row * width + i] = p.w(p.w(p.w(g(i) - level) - p.w(unit(i) * along)) * rstd);
                    add(&mut d[1][i], p.w(d_out[row * width + i] * unit(i)));
                    add(&mut d[1][width + i], d_out[row * width + i]);
                }
            }
        }
        Op::RmsNorm { width, .. } => {
            let rstd = forward(p, op, inputs).remove(1);
            for (row, x) in inputs[0].chunks(*width).enumerate() {
                let g = |i: usize| p.w(d_out[row * width + i] * inputs[1][i]);
                let mean = p.w(p.dot(*width, |i| p.w(x[i] * rstd[row]), g) / *width as f64);
                for i in 0..*width {
                    let unit = p.w(x[i] * rstd[row]);
                    d[0][row * width + i] = p.w(p.w(g(i) - p.w(unit * mean)) * rstd[row]);
                    add(&mut d[1][i], p.w(d_out[row * width + i] * unit));
                }
            }
        }
        Op::Rope { pack, heads, head_dim, cos_sin } => {
            d[0] = turn(p, d_out, pack, *heads, *head_dim, cos_sin, -1.0);
        }
        Op::Attention { pack, dims, .. } => attention_backward(p, &mut d, inputs, d_out, pack, *dims),
        Op::Linear { dims, bias } => {
            product_backward(p, &mut d, *dims, inputs, d_out);
            for (i, x) in d_out.iter().enumerate().filter(|_| *bias) {
                add(&mut d[2][i % dims.output], *x);
            }
        }
        Op::Lora { pack, site, drop, .. } => {
            let xa = forward(p, op, inputs).remove(1);
            for row in 0..pack.len() {
                let Some(run) = pack.run_of(row) else { continue };
                let params = &inputs[2][run * site.stride..];
                let x = dropped(p, drop, &inputs[1], site.input, row);
                let d_y = &d_out[row * site.output..][..site.output];
                for r in 0..site.rank {
                    let d_xa = p.dot(site.output, |o| d_y[o], |o| params[site.b + o * site.rank + r]);
                    let d_xa = p.w(d_xa * site.scale);
                    for (i, x) in x.iter().enumerate() {
                        let at = site.a + r * site.input + i;
                        add(&mut d[2][run * site.stride + at], d_xa * x);
                        add(&mut d[1][row * site.input + i], d_xa * params[at]);
                    }
                    for (o, d_y) in d_y.iter().enumerate() {
                        let at = run * site.stride + site.b + o * site.rank + r;
                        add(&mut d[2][at], p.w(site.scale * d_y) * xa[row * site.rank + r]);
                    }
                }
                let through = dropped(p, drop, &d[1], site.input, row);
                d[1][row * site.input..][..site.input].copy_from_slice(&through);
            }
        }
        Op::SwiGlu { .. } => {
            for (i, &d_act) in d_out.iter().enumerate() {
                let (gate, up) = (inputs[0][i], inputs[1][i]);
                let s = sigmoid(p, gate);
                let slope = p.w(s * p.w(1.0 + p.w(gate * p.w(1.0 - s))));
                d[0][i] = p.r(p.w(d_act * up) * slope);
                d[1][i] = p.r(d_act * p.w(gate * s));
            }
        }
        Op::Activation { f, .. } => {
            for (i, &d_act) in d_out.iter().enumerate() {
                d[0][i] = p.r(d_act * activation(p, *f, inputs[0][i]).1);
            }
        }
        Op::CrossEntropy { dims, targets } => {
            let mut d_logits: Vec<f64> =
                product(p, *dims, &inputs[0], &inputs[1]).into_iter().map(|x| p.r(x)).collect();
            for (row, logits) in d_logits.chunks_mut(dims.output).enumerate() {
                let lse = log_sum_exp(p, logits);
                for (v, x) in logits.iter_mut().enumerate() {
                    let one = if v == targets[row] as usize { 1.0 } else { 0.0 };
                    *x = p.r(p.w(p.w(p.w(*x - lse).exp()) - one) * d_out[row]);
                }
            }
            product_backward(p, &mut d, *dims, inputs, &d_logits);
        }
        _ => {}
    }
    d
}

fn product(p: Precision, dims: LinearDims, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let LinearDims { rows, input, output } = dims;
    let place = |i: usize| (i / output * input, i % output * input);
    (0..rows * output).map(place).map(|(a, b)| p.dot(input, |i| x[a + i], |i| weight[b + i])).collect()
}

fn product_backward(p: Precision, d: &mut [Vec<f64>], dims: LinearDims, inputs: &[Vec<f64>], d_out: &[f64]) {
    let LinearDims { rows, input, output } = dims;
    for i in 0..input {
        for n in 0..rows {
            d[0][n * input + i] = p.dot(output, |o| d_out[n * output + o], |o| inputs[1][o * input + i]);
        }
        for o in 0..output {
            d[1][o * input + i] = p.dot(rows, |n| d_out[n * output + o], |n| inputs[0][n * input + i]);
        }
    }
}

fn sigmoid(p: Precision, x: f64) -> f64 {
    p.w(1.0 / p.w(1.0 + p.w((-x).exp())))
}

/// An activation's value and slope.
fn activation(p: Precision, f: Activation, x: f64) -> (f64, f64) {
    match f {
        Activation::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        Activation::Gelu => {
            let share = p.w(0.5 * p.w(1.0 + p.w(erf(p.w(x / 2f64.sqrt())))));
            let density = p.w(p.w((-0.5 * p.w(x * x)).exp()) / std::f64::consts::TAU.sqrt());
            (p.w(x * share), p.w(share + p.w(x * density)))
        }
        Activation::Tanh => {
            let y = p.w(1.0 - p.w(2.0 / p.w(1.0 + p.w(p.w(2.0 * x).exp()))));
            (y, p.w(1.0 - p.w(y * y)))
        }
        Activation::GeluTanh => {
            let factor = (2.0 / std::f64::consts::PI).sqrt();
            let inner = p.w(factor * p.w(x + p.w(0.044715 * p.w(x * p.w(x * x)))));
            let tanh = p.w(inner.tanh());
            let slope = p.w(factor * p.w(1.0 + p.w(3.0 * 0.044715 * p.w(x * x))));
            let half = p.w(0.5 * p.w(1.0 + tanh));
            (p.w(x * half), p.w(half + p.w(0.5 * p.w(x * p.w(p.w(1.0 - p.w(tanh * tanh)) * slope)))))
        }
    }
}

/// The error function: its series near 0, the continued fraction of its complement far from it.
fn erf(x: f64) -> f64 {
    if x.abs() < 2.0 {
        let mut term = 2.0 / std::f64::consts::PI.sqrt() * x;
        let mut sum = term;
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum;
    }
    let z = x.abs();
    let fraction = (1..200).rev().fold(z, |rest, n| z + 0.5 * f64::from(n) / rest);
    (1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())).copysign(x)
}

fn log_sum_exp(p: Precision, x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    p.w(max + p.w(p.sum(x.iter().map(|x| p.w(p.w(x - max).exp()))).ln()))
}

/// What the adapter adds to output `o` of a row.
fn delta(p: Precision, site: LoraSite, params: &[f64], xa: &[f64], o: usize) -> f64 {
    p.w(site.scale * p.dot(site.rank, |r| xa[r], |r| params[site.b + o * site.rank + r]))
}

/// The row of `x` after dropout, which is its own backward.
fn dropped(p: Precision, drop: &Option<Drop>, x: &[f64], width: usize, row: usize) -> Vec<f64> {
    let x = &x[row * width..][..width];
    let Some(drop) = drop else { return x.to_vec() };
    let kept = drop.kept[row * width..].iter();
    x.iter().zip(kept).map(|(x, kept)| if *kept { p.w(x * p.w(1.0 / (1.0 - drop.p))) } else { 0.0 }).collect()
}

/// Turns the pairs of each head by the angle of the row's position, or back with `sign = -1`.
fn turn(p: Precision, x: &[f64], pack: &Pack, heads: usize, head_dim: usize, cos_sin: &[f64], sign: f64) -> Vec<f64> {
    let half = head_dim / 2;
    let mut out = x.to_vec();
    for (at, head) in out.chunks_mut(head_dim).enumerate() {
        let angles = &cos_sin[pack.positions()[at / heads] as usize * head_dim..];
        for i in 0..half {
            let (cos, sin) = (p.w(angles[i]), p.w(sign * angles[half + i]));
            let (a, b) = (head[i], head[i + half]);
            head[i] = p.r(p.w(a * cos) - p.w(b * sin));
            head[i + half] = p.r(p.w(b * cos) + p.w(a * sin));
        }
    }
    out
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

/// The scores of one row and head over its path: `(position, score)`.
fn scores(
    p: Precision,
    inputs: &[Vec<f64>],
    pack: &Pack,
    kept: &[CachedSegment],
    dims: AttentionDims,
    row: usize,
    head: usize,
) -> Vec<(usize, f64)> {
    let (d, keys) = (dims.head_dim, dims.kv_heads * dims.head_dim);
    let q = &inputs[0][(row * dims.heads + head) * d..];
    let path = path(pack, kept, row);
    let last = path.len() - 1;
    assert_eq!(last, pack.positions()[row] as usize);
    let seen = path.into_iter().enumerate().filter(|(at, _)| dims.window.is_none_or(|window| at + window > last));
    seen.map(|(at, (cached, key))| {
        let k = &inputs[if cached { 3 } else { 1 }][key * keys + head / (dims.heads / dims.kv_heads) * d..];
        let score = p.r(p.w(dims.scale) * p.r(p.dot(d, |i| q[i], |i| k[i])));
        let lean = if dims.alibi { p.w(slopes(dims.heads)[head]) } else { 0.0 };
        (at, p.w(score - p.w(lean * (last - at) as f64)))
    })
    .collect()
}

fn attention(
    p: Precision,
    inputs: &[Vec<f64>],
    pack: &Pack,
    kept: &[CachedSegment],
    dims: AttentionDims,
) -> Vec<Vec<f64>> {
    let (d, keys) = (dims.head_dim, dims.kv_heads * dims.head_dim);
    let (mut z, mut lses) = (Vec::new(), Vec::new());
    for row in 0..pack.len() {
        let path = path(pack, kept, row);
        for h in 0..dims.heads {
            let scores = scores(p, inputs, pack, kept, dims, row, h);
            let lse = log_sum_exp(p, &scores.iter().map(|s| s.1).collect::<Vec<_>>());
            lses.push(lse);
            for i in 0..d {
                let value = |at: usize| {
                    let (cached, key) = path[at];
                    inputs[if cached { 4 } else { 2 }][key * keys + h / (dims.heads / dims.kv_heads) * d + i]
                };
                z.push(p.r(p.sum(scores.iter().map(|&(at, s)| p.r(p.w(s - lse).exp()) * value(at)))));
            }
        }
    }
    vec![z, lses]
}

fn attention_backward(
    p: Precision,
    d: &mut [Vec<f64>],
    inputs: &[Vec<f64>],
    d_z: &[f64],
    pack: &Pack,
    dims: AttentionDims,
) {
    let (width, keys) = (dims.head_dim, dims.kv_heads * dims.head_dim);
    for row in 0..pack.len() {
        let path = path(pack, &[], row);
        for h in 0..dims.heads {
            let scores = scores(p, inputs, pack, &[], dims, row, h);
            let lse = log_sum_exp(p, &scores.iter().map(|s| s.1).collect::<Vec<_>>());
            let at = (row * dims.heads + h) * width;
            let d_z: Vec<f64> = d_z[at..at + width].iter().map(|&x| p.r(x)).collect();
            let place = |position: usize| path[position].1 * keys + h / (dims.heads / dims.kv_heads) * width;
            let weights: Vec<f64> = scores.iter().map(|&(_, s)| p.w(p.w(s - lse).exp())).collect();
            let d_weights: Vec<f64> =
                scores.iter().map(|&(t, _)| p.r(p.dot(width, |i| d_z[i], |i| inputs[2][place(t) + i]))).collect();
            let mean = p.dot(weights.len(), |j| weights[j], |j| d_weights[j]);
            for (j, &(position, _)) in scores.iter().enumerate() {
                let d_score = p.r(p.w(weights[j] * p.w(d_weights[j] - mean)) * p.w(dims.scale));
                for i in 0..width {
                    let key = place(position) + i;
                    let mut add = |which: usize, to: usize, x: f64| d[which][to] = p.w(d[which][to] + p.w(x));
                    add(0, at + i, d_score * inputs[1][key]);
                    add(1, key, d_score * inputs[0][at + i]);
                    add(2, key, p.r(weights[j]) * d_z[i]);
                }
            }
        }
    }
    d[..3].iter_mut().flatten().for_each(|x| *x = p.r(*x));
}

fn adamw(p: Precision, inputs: &[Vec<f64>], steps: &[AdamwStep], stride: usize) -> Vec<Vec<f64>> {
    let mut out = inputs[..3].to_vec();
    for (run, s) in steps.iter().enumerate().filter(|(_, s)| s.active) {
        let g = &inputs[3][run * stride..][..stride];
        let norm = p.w(p.dot(stride, |i| g[i], |i| g[i]).sqrt());
        let cut = s.max_grad_norm.map_or(1.0, |max| p.w((max / (norm + 1e-6)).min(1.0)));
        let correct = |beta: f64| 1.0 - beta.powi(s.step as i32);
        for i in 0..stride {
            let (at, g) = (run * stride + i, p.w(g[i] * cut));
            let m = p.w(p.w(s.beta1 * out[1][at]) + p.w((1.0 - s.beta1) * g));
            let v = p.w(p.w(s.beta2 * out[2][at]) + p.w(p.w((1.0 - s.beta2) * g) * g));
            let root = p.w(p.w(p.w(v.sqrt()) / correct(s.beta2).sqrt()) + s.epsilon);
            let decayed = p.w(out[0][at] * (1.0 - s.learning_rate * s.weight_decay));
            out[0][at] = p.w(decayed - p.w(p.w(s.learning_rate / correct(s.beta1)) * p.w(m / root)));
            (out[1][at], out[2][at]) = (m, v);
        }
    }
    out
}
