//! What must not change a single bit: other rows in the pack, how a path is cut into segments, where its rows lie,
//! and the number of threads.

use llamaprobe::backend::cpu::{Cpu, CpuF32, Isa};
use llamaprobe::backend::{AttentionDims, Backend, LinearDims};
use llamaprobe::pack::{CachedSegment, Label, Pack, PackBuilder, Parent, Token};

use crate::ops::cases::{self, Case};
use crate::ops::op::Op;
use crate::ops::{device, normal};
use crate::skips::{Reason, skip};

fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The rows `rows` of a matrix with `of` rows.
fn pick(x: &[f64], of: usize, rows: &[usize]) -> Vec<f64> {
    let width = x.len() / of;
    rows.iter().flat_map(|&row| x[row * width..(row + 1) * width].to_vec()).collect()
}

/// Outputs, then gradients (empty where there are none).
fn results<B: Backend>(b: &mut B, case: &Case) -> Vec<Vec<f64>> {
    let zeros: Vec<Vec<f64>> = case.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    let mut all = device::forward(b, &case.op, &case.inputs, 0.0);
    let gradients = device::backward(b, &case.op, &case.inputs, &case.d_outputs, &zeros, false);
    all.extend(gradients.into_iter().map(Option::unwrap_or_default));
    all
}

/// The arrays of a case's results that have one row per row of the case.
fn by_row(op: &Op) -> Vec<bool> {
    let outputs = vec![true; op.outputs().len()];
    let gradients: &[bool] = match op {
        Op::Attention { .. } => &[true, true, true, false, false],
        Op::Lora { .. } => &[false, true, false],
        Op::Embed { .. } => &[false, false],
        Op::Linear { .. } => &[true, false, false],
        Op::LayerNorm { .. } | Op::RmsNorm { .. } | Op::CrossEntropy { .. } => &[true, false],
        Op::Position { .. } => &[false, false],
        Op::Rope { .. } | Op::Logits { .. } => &[true, false][..op.inputs().len()],
        other => panic!("{other:?}"),
    };
    [&outputs, gradients].concat()
}

/// The case of only these rows, in this order; `pack` says what they are for operations on packs.
fn only(case: &Case, of: usize, rows: &[usize], pack: Option<Pack>) -> Case {
    let mut case = case.clone();
    let row_inputs: &[usize] = match case.op {
        Op::Attention { .. } => &[0, 1, 2],
        Op::Lora { .. } => &[0, 1],
        Op::Embed { .. } => &[],
        _ => &[0],
    };
    for &i in row_inputs {
        case.inputs[i] = pick(&case.inputs[i], of, rows);
    }
    for d in &mut case.d_outputs {
        *d = pick(d, of, rows);
    }
    match &mut case.op {
        Op::Linear { dims, .. } | Op::Logits { dims } => dims.rows = rows.len(),
        Op::CrossEntropy { dims, targets } => {
            dims.rows = rows.len();
            *targets = rows.iter().map(|&row| targets[row]).collect();
        }
        Op::LayerNorm { rows: n, .. } | Op::RmsNorm { rows: n, .. } => *n = rows.len(),
        Op::Attention { pack: p, .. } | Op::Rope { pack: p, .. } => *p = pack.unwrap(),
        Op::Embed { pack: p, .. } | Op::Position { pack: p, .. } => *p = pack.unwrap(),
        Op::Lora { pack: p, drop, .. } => {
            *p = pack.unwrap();
            if let Some(drop) = drop {
                drop.keys = rows.iter().map(|&row| drop.keys[row]).collect();
            }
        }
        other => panic!("{other:?}"),
    }
    case
}

/// Asserts that rows computed alone have the bits that they have among the others. Gradients are compared only if
/// nobody else contributes to them.
fn check_rows(all: &[Vec<f64>], alone: &[Vec<f64>], case: &Case, of: usize, rows: &[usize], gradients: bool) {
    let count = if gradients { all.len() } else { case.op.outputs().len() };
    for ((i, by_row), (all, alone)) in by_row(&case.op).into_iter().enumerate().zip(all.iter().zip(alone)).take(count) {
        if by_row && !all.is_empty() {
            assert!(bits(&pick(all, of, rows)) == bits(alone), "{}: result {i} of rows {rows:?}", case.name);
        }
    }
}

fn rows_stand_alone<B: Backend>(b: &mut B) {
    let linear = |rows, input, output| LinearDims { rows, input, output };
    let n = 131;
    let targets = (0..n as u32).map(|row| row * 11 % 203).collect();
    let cases = [
        Case::new("linear wide", Op::Linear { dims: linear(n, 288, 96), bias: true }),
        Case::new("linear odd", Op::Linear { dims: linear(n, 37, 41), bias: false }),
        Case::new("linear deep", Op::Linear { dims: linear(n, 1100, 19), bias: false }),
        Case::new("linear large", Op::Linear { dims: linear(n, 300, 700), bias: false }),
        Case::new("logits", Op::Logits { dims: linear(n, 64, 203) }),
        Case::new("cross_entropy", Op::CrossEntropy { dims: linear(n, 64, 203), targets }),
        Case::new("layer_norm", Op::LayerNorm { rows: n, width: 75, eps: 1e-5 }),
        Case::new("rms_norm", Op::RmsNorm { rows: n, width: 75, eps: 1e-5 }),
    ];
    let mut subsets: Vec<Vec<usize>> = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 96, 130]
        .into_iter()
        .map(|count| (n - count..n).collect())
        .collect();
    subsets.extend([vec![0], vec![77], vec![130, 2, 64, 2], (0..n).rev().collect()]);
    for case in &cases {
        let all = results(b, case);
        for rows in &subsets {
            check_rows(&all, &results(b, &only(case, n, rows, None)), case, n, rows, true);
        }
    }
}

/// A forest large enough to cross the blocks of any loop, beside other trees.
fn forest() -> Pack {
    let mut b = PackBuilder::default();
    let tokens = |n: usize| (0..n).map(|i| Token::Id((i * 7 % cases::VOCAB) as u32)).collect::<Vec<_>>();
    b.push(&tokens(13), Parent::None, Some(3), Label::Text);
    for (run, first) in [(Some(0), 67), (None, 5)] {
        let root = b.push(&tokens(first), Parent::None, run, Label::Text);
        let left = b.push(&tokens(35), Parent::Pack(root), run, Label::Text);
        b.push(&tokens(1), Parent::Pack(left), run, Label::Text);
        b.push(&tokens(70), Parent::Pack(left), run, Label::Text);
        b.push(&tokens(2), Parent::Pack(root), run, Label::Text);
    }
    let prompt: Vec<Token> = (0..cases::PROMPT as u32).map(Token::Virtual).collect();
    let prompt = b.push(&prompt, Parent::None, Some(1), Label::Virtual);
    b.push(&tokens(9), Parent::Pack(prompt), Some(1), Label::Text);
    b.push(&tokens(40), Parent::Pack(prompt), Some(1), Label::Text);
    b.build()
}

fn dims() -> [AttentionDims; 6] {
    [
        cases::heads(3, 1, 6, None),
        cases::heads(4, 2, 48, None),
        cases::heads(2, 2, 16, Some(20)),
        cases::heads(1, 1, 64, Some(64)),
        AttentionDims { alibi: true, ..cases::heads(3, 3, 16, None) },
        AttentionDims { alibi: true, ..cases::heads(4, 2, 6, Some(20)) },
    ]
}

/// Operations whose rows know their place in a pack.
fn pack_cases<B: Backend>(b: &mut B, pack: &Pack) -> Vec<Case> {
    let attention = dims()
        .into_iter()
        .enumerate()
        .map(|(i, dims)| Case::new(format!("attention {i}"), Op::Attention { pack: pack.clone(), kept: vec![], dims }));
    let mut cases: Vec<Case> = attention.collect();
    let cos_sin = cases::cos_sin(pack.longest(), 6);
    cases.push(Case::new("rope", Op::Rope { pack: pack.clone(), heads: 3, head_dim: 6, cos_sin }));
    let drop = cases::dropout(b, pack, 0.3, 70);
    let lora = Op::Lora { pack: pack.clone(), site: cases::site(5, 70, 33), runs: cases::RUNS, drop: Some(drop) };
    cases.push(Case::new("lora", lora));
    let site = llamaprobe::backend::PromptSite { offset: 1, stride: 40, rows: cases::PROMPT };
    let embed = Op::Embed { pack: pack.clone(), vocab: cases::VOCAB, width: 12, site, runs: cases::RUNS };
    cases.push(Case::new("embed", embed));
    cases.push(Case::new("position", Op::Position { pack: pack.clone(), first: 2, width: 12 }));
    cases
}

/// Rows of the path of segment `g`, its own included.
fn path_rows(pack: &Pack, g: usize) -> Vec<usize> {
    let above = pack.path(g).iter().flat_map(|span| span.rows.clone());
    above.chain(pack.segments()[g].rows.clone()).collect()
}

/// A pack of these rows of another as one sequence, cut at `cuts`.
fn sequence(pack: &Pack, rows: &[usize], cuts: &[usize]) -> Pack {
    let mut b = PackBuilder::default();
    let (mut parent, mut from) = (Parent::None, 0);
    for &to in cuts.iter().filter(|&&cut| cut < rows.len()).chain([&rows.len()]) {
        let tokens: Vec<Token> = rows[from..to].iter().map(|&row| pack.tokens()[row]).collect();
        parent = Parent::Pack(b.push(&tokens, parent, pack.run_of(rows[0]), Label::Text));
        from = to;
    }
    b.build()
}

fn paths_may_be_cut_anywhere<B: Backend>(b: &mut B) {
    let pack = forest();
    for case in pack_cases(b, &pack) {
        let all = results(b, &case);
        for g in 0..pack.segments().len() {
            let rows = path_rows(&pack, g);
            for cuts in [&[][..], &[1], &[2, 3, 40, 41, 64, 100], &[32, 63, 65, 128]] {
                let flat = only(&case, pack.len(), &rows, Some(sequence(&pack, &rows, cuts)));
                let alone = device::forward(b, &flat.op, &flat.inputs, 0.0);
                check_rows(&all, &alone, &case, pack.len(), &rows, false);
            }
        }
    }
}

fn trees_do_not_touch_each_other<B: Backend>(b: &mut B) {
    let pack = forest();
    let roots: Vec<usize> = (0..pack.segments().len()).filter(|&g| pack.path(g).is_empty()).collect();
    for case in pack_cases(b, &pack) {
        let all = results(b, &case);
        for (i, &root) in roots.iter().enumerate() {
            let next = roots.get(i + 1).copied().unwrap_or(pack.segments().len());
            let mut builder = PackBuilder::default();
            for s in &pack.segments()[root..next] {
                let parent = if let Parent::Pack(p) = s.parent { Parent::Pack(p - root) } else { s.parent };
                builder.push(&pack.tokens()[s.rows.clone()], parent, s.run, s.label);
            }
            let rows: Vec<usize> = (pack.segments()[root].rows.start..pack.segments()[next - 1].rows.end).collect();
            let alone = results(b, &only(&case, pack.len(), &rows, Some(builder.build())));
            check_rows(&all, &alone, &case, pack.len(), &rows, true);
            // A run's parameters collect from its own rows only.
            if let (Op::Lora { site, .. }, Some(run)) = (&case.op, pack.segments()[root].run) {
                let of_run = |d: &[f64]| bits(&d[run * site.stride..(run + 1) * site.stride]);
                assert!(of_run(all.last().unwrap()) == of_run(alone.last().unwrap()), "lora: d_params of run {run}");
            }
        }
    }
}

fn kept_rows_are_as_good_as_rows_of_the_pack<B: Backend>(b: &mut B) {
    let n = 150;
    let whole = sequence(&forest(), &[13; 150], &[]);
    for (i, dims) in dims().into_iter().enumerate() {
        let op = Op::Attention { pack: whole.clone(), kept: vec![], dims };
        let case = Case::new(format!("kept {i}"), op);
        let all = device::forward(b, &case.op, &case.inputs, 0.0);
        let keys = dims.kv_heads * dims.head_dim;
        // The cache is longer than its segments, which lie out of order in it.
        for cuts in [&[1][..], &[64], &[3, 50, 100], &[37, 38, 149]] {
            let capacity = 2 * n;
            let (mut cache_k, mut cache_v) = (normal(1, capacity * keys), normal(2, capacity * keys));
            let (mut kept, mut from) = (Vec::new(), 0);
            for (c, &to) in cuts.iter().enumerate() {
                let start = if c % 2 == 0 { n + from } else { from };
                let rows = start..start + to - from;
                for (cache, x) in [(&mut cache_k, &case.inputs[1]), (&mut cache_v, &case.inputs[2])] {
                    cache[rows.start * keys..rows.end * keys].copy_from_slice(&x[from * keys..to * keys]);
                }
                kept.push(CachedSegment { rows, parent: c.checked_sub(1), run: None, end: to });
                from = to;
            }
            let mut builder = PackBuilder::new(&kept);
            let tokens = vec![Token::Id(1); n - from];
            builder.push(&[Token::Id(2); 3], Parent::None, None, Label::Text);
            builder.push(&tokens, Parent::Cached(kept.len() - 1), None, Label::Query);
            let rows: Vec<usize> = (from..n).collect();
            let mut inputs = case.inputs.clone();
            for x in &mut inputs[..3] {
                *x = pick(x, n, &[&[0, 1, 2], &rows[..]].concat());
            }
            let used = kept.iter().map(|s| s.rows.end).max().unwrap() * keys;
            inputs[3] = cache_k[..used].to_vec();
            inputs[4] = cache_v[..used].to_vec();
            let op = Op::Attention { pack: builder.build(), kept, dims };
            let after: Vec<usize> = (3..3 + rows.len()).collect();
            for (part, whole) in device::forward(b, &op, &inputs, 0.0).iter().zip(&all) {
                let part = pick(part, 3 + rows.len(), &after);
                assert!(bits(&part) == bits(&pick(whole, n, &rows)), "{}: {cuts:?}", case.name);
            }
        }
    }
}

fn threads_do_not_matter<B: Backend>(make: fn() -> B) {
    let mut all = cases::small(&mut make());
    all.extend(cases::large(&mut make()));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            // A device takes the threads of the pool that it is made in.
            let mut b = make();
            let results = all.iter().map(|case| results(&mut b, case).iter().map(|x| bits(x)).collect::<Vec<_>>());
            results.collect::<Vec<_>>()
        })
    };
    let one = run(1);
    for threads in [2, 3] {
        for ((case, got), expected) in all.iter().zip(run(threads)).zip(&one) {
            assert!(got == *expected, "{} with {threads} threads", case.name);
        }
    }
}

#[test]
#[should_panic(expected = "result 0 of rows [1]")]
fn a_changed_bit_is_found() {
    let mut b = Cpu::<f32>::new();
    let case = Case::new("rms_norm", Op::RmsNorm { rows: 3, width: 5, eps: 1e-5 });
    let all = results(&mut b, &case);
    let mut alone = results(&mut b, &only(&case, 3, &[1], None));
    check_rows(&all, &alone, &case, 3, &[1], true);
    alone[0][4] = f64::from((alone[0][4] as f32).next_up());
    check_rows(&all, &alone, &case, 3, &[1], true);
}

/// Everything above on one device.
fn check<B: Backend>(make: fn() -> B) {
    let b = &mut make();
    rows_stand_alone(b);
    paths_may_be_cut_anywhere(b);
    trees_do_not_touch_each_other(b);
    kept_rows_are_as_good_as_rows_of_the_pack(b);
    threads_do_not_matter(make);
}

#[test]
fn cpu_f64() {
    check(Cpu::<f64>::new);
}

#[test]
fn cpu_f32() {
    check(Cpu::<f32>::new);
}

#[test]
fn cpu_bf16() {
    check(Cpu::<f32, half::bf16>::new);
}

#[test]
fn cpu_f32x3() {
    match Isa::detect() {
        isa if isa.has_pairs() => check(|| CpuF32::split(Isa::detect())),
        _ => skip(Reason::Pairs),
    }
}
