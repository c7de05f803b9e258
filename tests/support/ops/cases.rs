//! One list of cases for every operation of the contract: odd sizes, grouped heads, forests with parting parents,
//! several runs beside base rows, virtual tokens, windows, dropout.

use llamaprobe::backend::{Activation, AdamwStep, AttentionDims, Backend, LinearDims, LoraSite, PromptSite};
use llamaprobe::pack::{CachedSegment, Label, Pack, PackBuilder, Parent, Token};

use super::device;
use super::normal;
use super::op::{Drop, Op};

/// A named operation with the numbers that go in.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<Vec<f64>>,
    /// The gradients of the outputs, for the backward.
    pub d_outputs: Vec<Vec<f64>>,
}

impl Case {
    /// A case of normal numbers; second moments are made positive.
    pub fn new(name: impl Into<String>, op: Op) -> Self {
        let name = name.into();
        let seed = name.bytes().fold(17, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let adamw = matches!(op, Op::Adamw { .. });
        let inputs = op.inputs().into_iter().zip(0..).map(|((array, len, _, scale), i)| {
            let sign = |x: f64| if adamw && array == "v" { x.abs() } else { x };
            normal(seed + i, len).into_iter().map(|x| sign(scale * x)).collect()
        });
        let inputs = inputs.collect();
        let d_outputs = op.outputs().into_iter().zip(100..).map(|(o, i)| normal(seed + i, o.1)).collect();
        Self { name, op, inputs, d_outputs }
    }
}

/// Every activation.
pub const ACTIVATIONS: [Activation; 4] = [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh];
/// Ids below this stand in the packs.
pub const VOCAB: usize = 11;
/// Runs of the packs, one of which no row belongs to.
pub const RUNS: usize = 4;
/// Virtual tokens of a run.
pub const PROMPT: usize = 3;

fn tokens(n: usize, seed: usize) -> Vec<Token> {
    (0..n).map(|i| Token::Id(((i * 7 + seed * 5) % VOCAB) as u32)).collect()
}

/// A pack of independent segments of the base model.
pub fn flat(lengths: &[usize]) -> Pack {
    let mut b = PackBuilder::default();
    for (i, &n) in lengths.iter().enumerate() {
        b.push(&tokens(n, i), Parent::None, None, Label::Text);
    }
    b.build()
}

/// Trees of runs 0, 1 and 3 with parting parents, gaps in paths, virtual rows, base rows in between, and a run that
/// comes back.
pub fn trees() -> Pack {
    let mut b = PackBuilder::default();
    let push = |b: &mut PackBuilder, n, parent, run| b.push(&tokens(n, n), parent, run, Label::Text);
    let root = push(&mut b, 4, Parent::None, Some(0));
    let left = push(&mut b, 3, Parent::Pack(root), Some(0));
    push(&mut b, 2, Parent::Pack(left), Some(0));
    push(&mut b, 1, Parent::Pack(left), Some(0));
    let right = push(&mut b, 2, Parent::Pack(root), Some(0));
    push(&mut b, 3, Parent::Pack(right), Some(0));
    let base = push(&mut b, 5, Parent::None, None);
    push(&mut b, 1, Parent::Pack(base), None);
    push(&mut b, 2, Parent::Pack(base), None);
    for run in [3, 1] {
        let prompt: Vec<Token> = (0..PROMPT as u32).map(Token::Virtual).collect();
        let prompt = b.push(&prompt, Parent::None, Some(run), Label::Virtual);
        push(&mut b, 2, Parent::Pack(prompt), Some(run));
        push(&mut b, 4, Parent::Pack(prompt), Some(run));
    }
    push(&mut b, 2, Parent::None, Some(0));
    push(&mut b, 1, Parent::None, None);
    b.build()
}

/// A pack that continues segments kept in a cache of 11 rows, and those segments.
pub fn continued() -> (Pack, Vec<CachedSegment>) {
    let kept = vec![
        CachedSegment { rows: 1..4, parent: None, run: None, end: 3 },
        CachedSegment { rows: 7..9, parent: Some(0), run: None, end: 5 },
        CachedSegment { rows: 9..11, parent: Some(1), run: None, end: 7 },
    ];
    let mut b = PackBuilder::new(&kept);
    let top = b.push(&tokens(3, 1), Parent::Cached(2), None, Label::Query);
    b.push(&tokens(2, 2), Parent::Pack(top), None, Label::Answer);
    b.push(&tokens(1, 3), Parent::Pack(top), None, Label::Answer);
    b.push(&tokens(4, 4), Parent::Cached(0), None, Label::Query);
    b.push(&tokens(2, 5), Parent::None, None, Label::Text);
    (b.build(), kept)
}

/// Heads with the usual scale.
pub fn heads(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionDims {
    AttentionDims { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f64).sqrt(), window, alibi: false }
}

/// Cosines and sines of `positions` positions.
pub fn cos_sin(positions: usize, head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let angle = |p: usize, i: usize| p as f64 / 100f64.powf(i as f64 / half as f64);
    (0..positions)
        .flat_map(|p| {
            let cosines = (0..half).map(move |i| angle(p, i).cos());
            cosines.chain((0..half).map(move |i| angle(p, i).sin())).collect::<Vec<_>>()
        })
        .collect()
}

/// A projection's place among others: gaps before, between and after its matrices.
pub fn site(rank: usize, input: usize, output: usize) -> LoraSite {
    let a = 4;
    let b = a + rank * input + 3;
    LoraSite { a, b, stride: b + output * rank + 2, rank, input, output, scale: 1.75 }
}

fn linear(rows: usize, input: usize, output: usize) -> LinearDims {
    LinearDims { rows, input, output }
}

/// Dropout over a pack, its survivors found by asking the device.
pub fn dropout<B: Backend>(b: &mut B, pack: &Pack, p: f64, input: usize) -> Drop {
    let keys = (0..pack.len() as u32).map(|row| row * 3 + 1).collect();
    let mut drop =
        Drop { p, seeds: (0..RUNS as u64).map(|run| 1000 + 77 * run).collect(), site: 5, keys, kept: vec![] };
    drop.kept = device::survivors(b, pack, &drop, input);
    drop
}

/// Every case small enough for finite differences. Dropout's decisions are those of `b`.
pub fn small<B: Backend>(b: &mut B) -> Vec<Case> {
    let ragged = flat(&[1, 6, 2]);
    let trees = trees();
    let (continued, kept) = continued();
    let mut cases = vec![
        Case::new("cast", Op::Cast { len: 37 }),
        Case::new("widen", Op::Widen { len: 37 }),
        Case::new("residual", Op::Residual { len: 37 }),
        Case::new("gather real", Op::GatherReal { from: 5, rows: vec![4, 0, 4, 2], width: 7 }),
        Case::new("gather", Op::GatherWide { from: 5, rows: vec![4, 0, 4, 2, 4, 0], width: 7 }),
        Case::new("gather of nothing", Op::GatherWide { from: 2, rows: vec![], width: 3 }),
    ];
    let none = PromptSite { offset: 0, stride: 0, rows: 0 };
    cases.push(Case::new("embed", Op::Embed { pack: ragged.clone(), vocab: VOCAB, width: 5, site: none, runs: 0 }));
    let prompts = PromptSite { offset: 4, stride: 6 + PROMPT * 5, rows: PROMPT };
    let embed = Op::Embed { pack: trees.clone(), vocab: VOCAB, width: 5, site: prompts, runs: RUNS };
    cases.push(Case::new("embed virtual", embed));
    for (first, width) in [(0, 3), (2, 7)] {
        let op = Op::Position { pack: trees.clone(), first, width };
        cases.push(Case::new(format!("position {first}x{width}"), op));
    }
    for (rows, width, eps) in [(1, 2, 1e-2), (5, 7, 1e-5), (3, 24, 1e-6)] {
        cases.push(Case::new(format!("layer_norm {rows}x{width}"), Op::LayerNorm { rows, width, eps }));
    }
    for (rows, width, eps) in [(1, 1, 1e-2), (5, 7, 1e-5), (3, 24, 1e-6)] {
        cases.push(Case::new(format!("rms_norm {rows}x{width}"), Op::RmsNorm { rows, width, eps }));
    }
    for (count, head_dim) in [(1, 2), (3, 6)] {
        let cos_sin = cos_sin(trees.longest() + 2, head_dim);
        let op = Op::Rope { pack: trees.clone(), heads: count, head_dim, cos_sin };
        cases.push(Case::new(format!("rope {count}x{head_dim}"), op));
    }
    let small_heads = [
        heads(1, 1, 2, None),
        heads(3, 1, 6, None),
        heads(4, 2, 4, Some(3)),
        heads(2, 2, 4, Some(1)),
        AttentionDims { scale: 0.31, ..heads(6, 3, 2, Some(100)) },
        AttentionDims { alibi: true, ..heads(3, 3, 4, None) },
        AttentionDims { alibi: true, scale: 0.2, ..heads(4, 2, 5, Some(4)) },
    ];
    for (i, dims) in small_heads.into_iter().enumerate() {
        for (name, pack) in [("ragged", &ragged), ("trees", &trees)] {
            let op = Op::Attention { pack: pack.clone(), kept: vec![], dims };
            cases.push(Case::new(format!("attention {name} {i}"), op));
        }
        let op = Op::Attention { pack: continued.clone(), kept: kept.clone(), dims };
        cases.push(Case::new(format!("attention continued {i}"), op));
        for normalised in [false, true] {
            let (rows, longest) = (vec![0, 4, 2, 11, 4], continued.longest() + i);
            let (pack, kept) = (continued.clone(), kept.clone());
            let op = Op::Pattern { pack, kept, dims, rows, longest, normalised };
            cases.push(Case::new(format!("attention_pattern {i} {normalised}"), op));
        }
    }
    for (heads, head_dim, width) in [(1, 2, 5), (3, 4, 7)] {
        let op = Op::AttentionResult { from: 5, rows: vec![4, 0, 3, 0], heads, head_dim, width };
        cases.push(Case::new(format!("attention_result {heads}x{head_dim}x{width}"), op));
    }
    cases.push(Case::new("keep", Op::Keep { capacity: 9, rows: 6, to: 3, from: 1..5, width: 4 }));
    for (i, (rows, input, output)) in [(1, 1, 1), (5, 7, 3), (9, 4, 17)].into_iter().enumerate() {
        for bias in [false, true] {
            let name = format!("linear {i}{}", if bias { " bias" } else { "" });
            cases.push(Case::new(name, Op::Linear { dims: linear(rows, input, output), bias }));
        }
    }
    for (rank, input, output) in [(1, 5, 3), (3, 6, 10)] {
        let (name, site) = (format!("lora {rank}x{input}x{output}"), site(rank, input, output));
        let drop = dropout(b, &trees, 0.3, input);
        let with = |drop| Op::Lora { pack: trees.clone(), site, runs: RUNS, drop };
        cases.push(Case::new(&name, with(None)));
        cases.push(Case::new(format!("{name} dropout"), with(Some(drop))));
        cases.push(Case::new(format!("{name} delta"), Op::LoraDelta { pack: trees.clone(), site, runs: RUNS }));
    }
    cases.push(Case::new("lora of base rows", Op::Lora { pack: ragged, site: site(2, 3, 4), runs: 0, drop: None }));
    cases.push(Case::new("swiglu", Op::SwiGlu { len: 43 }));
    for f in ACTIVATIONS {
        cases.push(Case::new(format!("activation {f:?}"), Op::Activation { f, len: 43 }));
    }
    cases.push(Case::new("logits", Op::Logits { dims: linear(5, 6, 13) }));
    for (rows, input, output) in [(1, 3, 2), (6, 5, 19)] {
        let targets = (0..rows as u32).map(|row| row * 5 % output as u32).collect();
        let op = Op::CrossEntropy { dims: linear(rows, input, output), targets };
        cases.push(Case::new(format!("cross_entropy {rows}x{input}x{output}"), op));
    }
    let nothing = Op::CrossEntropy { dims: linear(0, 3, 7), targets: vec![] };
    cases.push(Case::new("cross_entropy of nothing", nothing));
    cases.push(Case::new("grad_norm", Op::GradNorm { runs: 3, stride: 29 }));
    let step = |max_grad_norm, step| AdamwStep {
        active: true,
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        max_grad_norm,
        step,
    };
    let resting = AdamwStep { active: false, ..step(None, 1) };
    let steps = vec![step(None, 1), step(Some(0.05), 1), resting, step(Some(1e3), 7), step(Some(1.0), 5000)];
    for (last, before) in [(1.0, 0.0), (1.0, 1.0), (f64::INFINITY, 0.0), (f64::NEG_INFINITY, 0.0), (f64::NAN, 0.0)] {
        let op = Op::CheckFinite { len: 300, last, before };
        cases.push(Case::new(format!("check_finite {last} {before}"), op));
    }
    for stopped in [false, true] {
        let op = Op::Adamw { steps: steps.clone(), stride: 31, stopped };
        cases.push(Case::new(if stopped { "adamw stopped" } else { "adamw" }, op));
    }
    cases.push(Case::new("refresh_weight", Op::Refresh { offset: 3, width: 21 }));
    cases
}

/// Cases of the sizes that blocked loops have edges at.
pub fn large<B: Backend>(b: &mut B) -> Vec<Case> {
    let mut builder = PackBuilder::default();
    let root = builder.push(&tokens(70, 1), Parent::None, Some(0), Label::Demonstration);
    for n in [1, 33, 5] {
        let child = builder.push(&tokens(n, n), Parent::Pack(root), Some(0), Label::Query);
        builder.push(&tokens(9, n), Parent::Pack(child), Some(0), Label::Answer);
    }
    builder.push(&tokens(40, 3), Parent::None, Some(1), Label::Text);
    builder.push(&tokens(17, 4), Parent::None, None, Label::Text);
    let pack = builder.build();
    let mut cases = vec![
        Case::new("large rms_norm", Op::RmsNorm { rows: 9, width: 288, eps: 1e-5 }),
        Case::new("large layer_norm", Op::LayerNorm { rows: 9, width: 288, eps: 1e-5 }),
        Case::new("wide layer_norm", Op::LayerNorm { rows: 2, width: 2100, eps: 1e-5 }),
        Case::new("large rms_norm of long rows", Op::RmsNorm { rows: 2, width: 2100, eps: 1e-5 }),
        Case::new("large swiglu", Op::SwiGlu { len: 5000 }),
        Case::new("large logits", Op::Logits { dims: linear(9, 288, 517) }),
        Case::new("large grad_norm", Op::GradNorm { runs: 3, stride: 4099 }),
    ];
    for (rows, input, output) in [(70, 288, 100), (7, 600, 300), (130, 33, 65)] {
        let op = Op::Linear { dims: linear(rows, input, output), bias: true };
        cases.push(Case::new(format!("large linear {rows}x{input}x{output}"), op));
    }
    for f in ACTIVATIONS {
        cases.push(Case::new(format!("large activation {f:?}"), Op::Activation { f, len: 5000 }));
    }
    let alibi = AttentionDims { alibi: true, ..heads(6, 6, 32, None) };
    for dims in [heads(4, 2, 48, None), heads(3, 1, 16, Some(50)), heads(2, 1, 128, None), alibi] {
        let op = Op::Attention { pack: pack.clone(), kept: vec![], dims };
        cases.push(Case::new(format!("large attention {}", dims.head_dim), op));
    }
    let drop = dropout(b, &pack, 0.1, 96);
    let op = Op::Lora { pack, site: site(8, 96, 72), runs: RUNS, drop: Some(drop) };
    cases.push(Case::new("large lora", op));
    let targets = (0..21).map(|row| row * 97 % 1500).collect();
    cases.push(Case::new("large cross_entropy", Op::CrossEntropy { dims: linear(21, 64, 1500), targets }));
    cases
}
