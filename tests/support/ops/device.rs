//! Runs a case's operation on any device, arrays in and arrays out.

use llamaprobe::backend::{AccElement, Backend, Dropout};
use llamaprobe::pack::{Label, PackBuilder, Parent, Token};

use super::op::{Drop, Kind, Op};

/// Elements beside a gradient that lies inside a larger buffer; they must stay what they are.
const BEFORE: usize = 5;
const AFTER: usize = 3;
const SENTINEL: f64 = -1234.0;

fn elements<B: Backend>(values: &[f64]) -> Vec<B::Element> {
    values.iter().map(|&x| B::Element::from_f64(x)).collect()
}

/// A wide buffer of these values.
pub fn wide<B: Backend>(b: &mut B, values: &[f64]) -> B::Acc {
    let mut buffer = b.acc(values.len()).unwrap();
    b.upload(&mut buffer, 0, &elements::<B>(values)).unwrap();
    buffer
}

/// A compute-dtype buffer of these values, rounded.
pub fn real<B: Backend>(b: &mut B, values: &[f64]) -> B::Compute {
    let values_wide = wide(b, values);
    let mut buffer = b.compute(values.len()).unwrap();
    b.cast(&mut buffer, &values_wide, values.len());
    buffer
}

/// A weight of these values, rounded.
pub fn weight<B: Backend>(b: &mut B, values: &[f64]) -> B::Weight {
    let values_wide = wide(b, values);
    b.trainable_weight(&values_wide, 0, values.len()).unwrap()
}

/// The first `len` elements of a wide buffer.
pub fn read_wide<B: Backend>(b: &mut B, buffer: &B::Acc, len: usize) -> Vec<f64> {
    let mut values = vec![B::Element::default(); len];
    b.download(&mut values, buffer, 0).unwrap();
    b.sync().unwrap();
    values.into_iter().map(AccElement::to_f64).collect()
}

/// The first `len` elements of a compute-dtype buffer (a sum with 0 is exact).
pub fn read_real<B: Backend>(b: &mut B, buffer: &B::Compute, len: usize) -> Vec<f64> {
    let zeros = b.acc(len).unwrap();
    let mut sum = b.acc(len).unwrap();
    b.residual_fwd(&mut sum, &zeros, buffer, len);
    read_wide(b, &sum, len)
}

fn dropout(drop: &Option<Drop>) -> Option<Dropout<'_>> {
    drop.as_ref().map(|d| Dropout { p: d.p, seeds: &d.seeds, site: d.site, keys: &d.keys })
}

/// The outputs of `op`. Output buffers are longer than they need be and hold `fill` before.
pub fn forward<B: Backend>(b: &mut B, op: &Op, inputs: &[Vec<f64>], fill: f64) -> Vec<Vec<f64>> {
    let outputs = op.outputs();
    let lens: Vec<usize> = outputs.iter().map(|o| o.1).collect();
    let mut wides = Vec::new();
    let mut reals = Vec::new();
    for &(_, len, kind, _) in &outputs {
        match kind {
            Kind::Wide => wides.push(wide(b, &vec![fill; len + AFTER])),
            Kind::Real => reals.push(real(b, &vec![fill; len + AFTER])),
        }
    }
    match op {
        Op::Cast { len } => {
            let x = wide(b, &inputs[0]);
            b.cast(&mut reals[0], &x, *len);
        }
        Op::Widen { len } => {
            let x = real(b, &inputs[0]);
            b.widen(&mut wides[0], &x, *len);
        }
        Op::Residual { len } => {
            let (x, y) = (wide(b, &inputs[0]), real(b, &inputs[1]));
            b.residual_fwd(&mut wides[0], &x, &y, *len);
        }
        Op::GatherReal { rows, width, .. } => {
            let (x, rows) = (real(b, &inputs[0]), b.index(rows).unwrap());
            b.gather_compute(&mut reals[0], &x, &rows, *width);
        }
        Op::GatherWide { rows, width, .. } => {
            let (x, rows) = (wide(b, &inputs[0]), b.index(rows).unwrap());
            b.gather_acc(&mut wides[0], &x, &rows, *width);
        }
        Op::Embed { pack, width, site, runs, .. } => {
            let (table, prompt, pack) = (weight(b, &inputs[0]), wide(b, &inputs[1]), b.pack(pack).unwrap());
            b.embed_fwd(&mut wides[0], &pack, &table, (*runs > 0).then_some((&prompt, *site)), *width);
        }
        Op::Position { pack, first, width } => {
            wides[0] = wide(b, &inputs[0]);
            let (table, pack) = (weight(b, &inputs[1]), b.pack(pack).unwrap());
            b.position_fwd(&mut wides[0], &pack, &table, *first, *width);
        }
        Op::LayerNorm { rows, width, eps } => {
            let (gain, shift) = inputs[1].split_at(*width);
            let (x, gain, shift) = (wide(b, &inputs[0]), weight(b, gain), weight(b, shift));
            let [mean, rstd] = &mut wides[..] else { panic!("two statistics") };
            b.layer_norm_fwd(&mut reals[0], mean, rstd, &x, &gain, &shift, *rows, *width, *eps);
        }
        Op::RmsNorm { rows, width, eps } => {
            let (x, weight) = (wide(b, &inputs[0]), weight(b, &inputs[1]));
            b.rms_norm_fwd(&mut reals[0], &mut wides[0], &x, &weight, *rows, *width, *eps);
        }
        Op::Rope { pack, heads, head_dim, cos_sin } => {
            let (x, pack, cos_sin) = (real(b, &inputs[0]), b.pack(pack).unwrap(), wide(b, cos_sin));
            b.rope_fwd(&mut reals[0], &x, &pack, &cos_sin, *heads, *head_dim);
        }
        Op::Attention { pack, kept, dims } => {
            let [q, k, v, kept_k, kept_v] = [0, 1, 2, 3, 4].map(|i| real(b, &inputs[i]));
            let kept = (!kept.is_empty()).then_some((&kept_k, &kept_v));
            let pack = b.pack(pack).unwrap();
            b.attention_fwd(&mut reals[0], &mut wides[0], &q, &k, &v, kept, &pack, *dims);
        }
        Op::Pattern { pack, kept, dims, rows, longest, normalised } => {
            let attention = Op::Attention { pack: pack.clone(), kept: kept.clone(), dims: *dims };
            let lse = &forward(b, &attention, inputs, fill)[1];
            let lse = wide(b, lse);
            let [q, k, kept_k] = [0, 1, 3].map(|i| real(b, &inputs[i]));
            let kept = (!kept.is_empty()).then_some(&kept_k);
            let pack = b.pack(pack).unwrap();
            let out = &mut wides[0];
            b.attention_pattern(out, &q, &k, kept, &lse, rows, &pack, *dims, *longest, *normalised);
        }
        Op::AttentionResult { rows, heads, head_dim, width, .. } => {
            let (z, weight) = (real(b, &inputs[0]), weight(b, &inputs[1]));
            b.attention_result(&mut wides[0], &z, &weight, rows, *heads, *head_dim, *width);
        }
        Op::Keep { to, from, width, .. } => {
            let x = real(b, &inputs[1]);
            reals[0] = real(b, &inputs[0]);
            b.keep(&mut reals[0], *to, &x, from.clone(), *width);
        }
        Op::Linear { dims, bias } => {
            let (x, matrix) = (real(b, &inputs[0]), weight(b, &inputs[1]));
            let bias = bias.then(|| weight(b, &inputs[2]));
            b.linear_fwd(&mut reals[0], &x, &matrix, bias.as_ref(), *dims);
        }
        Op::Lora { pack, site, drop, .. } => {
            reals[0] = real(b, &inputs[0]);
            let (x, params, pack) = (real(b, &inputs[1]), wide(b, &inputs[2]), b.pack(pack).unwrap());
            b.lora_fwd(&mut reals[0], &mut wides[0], &x, &params, &pack, *site, dropout(drop));
        }
        Op::LoraDelta { pack, site, .. } => {
            let (xa, params, pack) = (wide(b, &inputs[0]), wide(b, &inputs[1]), b.pack(pack).unwrap());
            b.lora_delta(&mut wides[0], &xa, &params, &pack, *site);
        }
        Op::SwiGlu { len } => {
            let (gate, up) = (real(b, &inputs[0]), real(b, &inputs[1]));
            b.swiglu_fwd(&mut reals[0], &gate, &up, *len);
        }
        Op::Activation { f, len } => {
            let x = real(b, &inputs[0]);
            b.activation_fwd(&mut reals[0], &x, *f, *len);
        }
        Op::Logits { dims } => {
            let (x, head) = (real(b, &inputs[0]), weight(b, &inputs[1]));
            b.logits_fwd(&mut wides[0], &x, &head, *dims);
        }
        Op::CrossEntropy { dims, targets } => {
            let (x, head, targets) = (real(b, &inputs[0]), weight(b, &inputs[1]), b.index(targets).unwrap());
            b.cross_entropy_fwd(&mut wides[0], &x, &head, &targets, *dims);
        }
        Op::GradNorm { runs, stride } => {
            let d_params = wide(b, &inputs[0]);
            b.grad_norm(&mut wides[0], &d_params, *runs, *stride);
        }
        Op::CheckFinite { len, last, before } => {
            let values = [&inputs[0][..len - 1], &[*last]].concat();
            let values = wide(b, &values);
            wides[0] = wide(b, &[*before]);
            b.check_finite(&mut wides[0], &values, *len);
        }
        Op::Adamw { steps, stride, stopped } => {
            let [params, mut m, mut v, d_params] = [0, 1, 2, 3].map(|i| wide(b, &inputs[i]));
            let mut norm_sq = b.acc(steps.len()).unwrap();
            b.grad_norm(&mut norm_sq, &d_params, steps.len(), *stride);
            let mut params = params;
            let stop = wide(b, &[f64::from(u8::from(*stopped))]);
            b.adamw(&mut params, &mut m, &mut v, &d_params, &norm_sq, &stop, steps, *stride);
            wides = vec![params, m, v];
        }
        Op::Refresh { offset, width } => {
            let (mut table, params) = (weight(b, &vec![fill; *width]), wide(b, &inputs[0]));
            b.refresh_weight(&mut table, &params, *offset);
            let mut one = PackBuilder::default();
            one.push(&[Token::Id(0)], Parent::None, None, Label::Text);
            let pack = b.pack(&one.build()).unwrap();
            b.embed_fwd(&mut wides[0], &pack, &table, None, *width);
        }
    }
    let (mut wides, mut reals) = (wides.iter(), reals.iter());
    let read = outputs.iter().zip(lens).map(|(o, len)| match o.2 {
        Kind::Wide => read_wide(b, wides.next().unwrap(), len),
        Kind::Real => read_real(b, reals.next().unwrap(), len),
    });
    read.collect()
}

/// `start` inside a wide buffer with something on both sides.
fn inside<B: Backend>(b: &mut B, start: &[f64]) -> B::Acc {
    let padded = [&[SENTINEL; BEFORE], start, &[SENTINEL; AFTER]].concat();
    wide(b, &padded)
}

fn read_inside<B: Backend>(b: &mut B, buffer: &B::Acc, len: usize) -> Vec<f64> {
    let all = read_wide(b, buffer, BEFORE + len + AFTER);
    let beside = all[..BEFORE].iter().chain(&all[BEFORE + len..]);
    // A null device reads zeros.
    assert!(beside.clone().all(|&x| x == SENTINEL) || b.name() == "trace", "written beside a gradient: {beside:?}");
    all[BEFORE..BEFORE + len].to_vec()
}

/// The gradients of the inputs, none where the contract has none, from those of the outputs. Buffers hold `start`
/// before; `op` is run forward first where the backward needs what that saved.
///
/// `accumulate` is for `linear_bwd_input`, which can do either.
pub fn backward<B: Backend>(
    b: &mut B,
    op: &Op,
    inputs: &[Vec<f64>],
    d_outputs: &[Vec<f64>],
    start: &[Vec<f64>],
    accumulate: bool,
) -> Vec<Option<Vec<f64>>> {
    if !op.has_backward() {
        return vec![None; inputs.len()];
    }
    let len = |i: usize| inputs[i].len();
    match op {
        Op::GatherWide { rows, width, .. } => {
            let (mut d_x, d_out, rows) = (wide(b, &start[0]), wide(b, &d_outputs[0]), b.index(rows).unwrap());
            b.scatter_add(&mut d_x, &d_out, &rows, *width);
            vec![Some(read_wide(b, &d_x, len(0)))]
        }
        Op::Embed { pack, width, site, .. } => {
            let (d_out, pack) = (wide(b, &d_outputs[0]), b.pack(pack).unwrap());
            let (mut d_table, mut d_prompt) = (inside(b, &start[0]), wide(b, &start[1]));
            b.embed_bwd_table(&mut d_table, BEFORE, &d_out, &pack, *width);
            b.embed_bwd_prompt(&mut d_prompt, &d_out, &pack, *site, *width);
            vec![Some(read_inside(b, &d_table, len(0))), Some(read_wide(b, &d_prompt, len(1)))]
        }
        Op::Position { pack, first, width } => {
            let (d_x, pack, mut d_table) = (wide(b, &d_outputs[0]), b.pack(pack).unwrap(), inside(b, &start[1]));
            b.position_bwd_table(&mut d_table, BEFORE, &d_x, &pack, *first, *width);
            vec![None, Some(read_inside(b, &d_table, len(1)))]
        }
        Op::LayerNorm { rows, width, .. } => {
            let saved = forward(b, op, inputs, 0.0);
            let [x, mean, rstd, d_out] = [&inputs[0], &saved[1], &saved[2], &d_outputs[0]].map(|x| wide(b, x));
            let gain = weight(b, &inputs[1][..*width]);
            let (mut d_x, mut d_affine) = (wide(b, &start[0]), inside(b, &start[1]));
            b.layer_norm_bwd(&mut d_x, &d_out, &x, &mean, &rstd, &gain, *rows, *width);
            b.layer_norm_bwd_affine(&mut d_affine, BEFORE, &d_out, &x, &mean, &rstd, *rows, *width);
            vec![Some(read_wide(b, &d_x, len(0))), Some(read_inside(b, &d_affine, len(1)))]
        }
        Op::RmsNorm { rows, width, .. } => {
            let rstd = forward(b, op, inputs, 0.0).remove(1);
            let (x, weight, rstd) = (wide(b, &inputs[0]), weight(b, &inputs[1]), wide(b, &rstd));
            let (mut d_x, mut d_weight, d_out) = (wide(b, &start[0]), inside(b, &start[1]), wide(b, &d_outputs[0]));
            b.rms_norm_bwd(&mut d_x, &d_out, &x, &rstd, &weight, *rows, *width);
            b.rms_norm_bwd_weight(&mut d_weight, BEFORE, &d_out, &x, &rstd, *rows, *width);
            vec![Some(read_wide(b, &d_x, len(0))), Some(read_inside(b, &d_weight, len(1)))]
        }
        Op::Rope { pack, heads, head_dim, cos_sin } => {
            let (mut d_x, pack, cos_sin) = (real(b, &d_outputs[0]), b.pack(pack).unwrap(), wide(b, cos_sin));
            b.rope_bwd(&mut d_x, &pack, &cos_sin, *heads, *head_dim);
            vec![Some(read_real(b, &d_x, len(0)))]
        }
        Op::Attention { pack, dims, .. } => {
            let saved = forward(b, op, inputs, 0.0);
            let (z, lse) = (real(b, &saved[0]), wide(b, &saved[1]));
            let [q, k, v] = [0, 1, 2].map(|i| real(b, &inputs[i]));
            let [mut d_q, mut d_k, mut d_v] = [0, 1, 2].map(|i| real(b, &start[i]));
            let (mut delta, d_z) = (wide(b, &vec![SENTINEL; pack.len() * dims.heads]), wide(b, &d_outputs[0]));
            let pack = b.pack(pack).unwrap();
            b.attention_bwd(&mut d_q, &mut d_k, &mut d_v, &mut delta, &d_z, &z, &lse, &q, &k, &v, &pack, *dims);
            let read = [(d_q, 0), (d_k, 1), (d_v, 2)].map(|(d, i)| Some(read_real(b, &d, len(i))));
            [&read[..], &[None, None]].concat()
        }
        Op::Linear { dims, bias } => {
            let (x, weight, d_out) = (real(b, &inputs[0]), weight(b, &inputs[1]), real(b, &d_outputs[0]));
            let (mut d_x, mut d_weight) = (wide(b, &start[0]), inside(b, &start[1]));
            b.linear_bwd_input(&mut d_x, &d_out, &weight, *dims, accumulate);
            b.linear_bwd_weight(&mut d_weight, BEFORE, &d_out, &x, *dims);
            let d_bias = bias.then(|| {
                let mut d_bias = inside(b, &start[2]);
                b.linear_bwd_bias(&mut d_bias, BEFORE, &d_out, dims.rows, dims.output);
                read_inside(b, &d_bias, dims.output)
            });
            vec![Some(read_wide(b, &d_x, len(0))), Some(read_inside(b, &d_weight, len(1))), d_bias]
        }
        Op::Lora { pack, site, drop, .. } => {
            let xa = forward(b, op, inputs, 0.0).remove(1);
            let (xa, x, params) = (wide(b, &xa), real(b, &inputs[1]), wide(b, &inputs[2]));
            let (mut d_x, mut d_params, d_y) = (wide(b, &start[1]), wide(b, &start[2]), real(b, &d_outputs[0]));
            let pack = b.pack(pack).unwrap();
            let d_x_out = Some(&mut d_x);
            b.lora_bwd(&mut d_params, d_x_out, &d_y, &xa, &x, &params, &pack, *site, dropout(drop));
            // Without d_x the parameters' gradients are the same.
            let mut again = wide(b, &start[2]);
            b.lora_bwd(&mut again, None, &d_y, &xa, &x, &params, &pack, *site, dropout(drop));
            let d_params = read_wide(b, &d_params, len(2));
            assert_eq!(read_wide(b, &again, len(2)), d_params, "lora_bwd: d_params with and without d_x");
            vec![None, Some(read_wide(b, &d_x, len(1))), Some(d_params)]
        }
        Op::SwiGlu { len } => {
            let (gate, up, d_act) = (real(b, &inputs[0]), real(b, &inputs[1]), wide(b, &d_outputs[0]));
            let (mut d_gate, mut d_up) = (real(b, &start[0]), real(b, &start[1]));
            b.swiglu_bwd(&mut d_gate, &mut d_up, &d_act, &gate, &up, *len);
            vec![Some(read_real(b, &d_gate, *len)), Some(read_real(b, &d_up, *len))]
        }
        Op::Activation { f, len } => {
            let (x, d_act, mut d_x) = (real(b, &inputs[0]), wide(b, &d_outputs[0]), real(b, &start[0]));
            b.activation_bwd(&mut d_x, &d_act, &x, *f, *len);
            vec![Some(read_real(b, &d_x, *len))]
        }
        Op::CrossEntropy { dims, targets } => {
            let (x, head, targets) = (real(b, &inputs[0]), weight(b, &inputs[1]), b.index(targets).unwrap());
            let (mut loss, row_weights) = (wide(b, &vec![SENTINEL; dims.rows]), wide(b, &d_outputs[0]));
            let (mut d_x, mut d_head) = (wide(b, &start[0]), inside(b, &start[1]));
            let d_head_out = Some((&mut d_head, BEFORE));
            b.cross_entropy_bwd(&mut loss, &mut d_x, d_head_out, &x, &head, &targets, &row_weights, *dims);
            let loss = read_wide(b, &loss, dims.rows);
            assert_eq!(loss, forward(b, op, inputs, 0.0)[0], "cross_entropy_bwd: another loss than the forward's");
            let d_x = read_wide(b, &d_x, len(0));
            let (mut loss, mut again) = (wide(b, &[SENTINEL].repeat(dims.rows)), wide(b, &start[0]));
            b.cross_entropy_bwd(&mut loss, &mut again, None, &x, &head, &targets, &row_weights, *dims);
            assert_eq!(read_wide(b, &again, len(0)), d_x, "cross_entropy_bwd: d_x with and without d_head");
            vec![Some(d_x), Some(read_inside(b, &d_head, len(1)))]
        }
        _ => vec![None; inputs.len()],
    }
}

/// The elements that the device's dropout lets live, found by passing ones through identities as adapters.
pub fn survivors<B: Backend>(b: &mut B, pack: &llamaprobe::pack::Pack, drop: &Drop, width: usize) -> Vec<bool> {
    let site = llamaprobe::backend::LoraSite {
        a: 0,
        b: width * width,
        stride: 2 * width * width,
        rank: width,
        input: width,
        output: width,
        scale: 1.0,
    };
    let mut identity = vec![0.0; site.stride];
    (0..width).for_each(|i| identity[i * width + i] = 1.0);
    let op = Op::Lora { pack: pack.clone(), site, runs: drop.seeds.len(), drop: Some(drop.clone()) };
    let inputs = [vec![0.0; pack.len() * width], vec![1.0; pack.len() * width], identity.repeat(drop.seeds.len())];
    forward(b, &op, &inputs, 0.0)[1].iter().map(|&x| x != 0.0).collect()
}
