//! What must not change a single bit: other rows in the pack, how a path is cut into segments, where its rows lie,
//! and the number of threads.

use llamaprobe::arch::{Dtype, RmsWeight};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Float, Isa};
use llamaprobe::pack::{CachedSegment, Label, Pack, PackBuilder, Parent, Token};

use crate::ops::attention::{Attention, forest_dims};
use crate::ops::cases::{Case, ROWS, Set};
use crate::ops::device::{self, Given};
use crate::ops::operation::Operation;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::{self, Op, normal, packs};
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
    let mut all = device::forward(b, &case.op, &case.inputs, 0.0);
    let given = Given { inputs: &case.inputs, d_outputs: &case.d_outputs, start: &case.zeros(), accumulate: false };
    all.extend(device::backward(b, &case.op, &given).into_iter().map(Option::unwrap_or_default));
    all
}

/// The arrays of a case's results that have one row per row of the case.
fn by_row(op: &Op) -> Vec<bool> {
    let gradients = op.row_results().unwrap_or_else(|| panic!("{op:?}")).gradients;
    [&vec![true; op.outputs().len()], gradients].concat()
}

/// The case of only these rows, in this order; `pack` says what they are for operations on packs.
fn only(case: &Case, of: usize, rows: &[usize], pack: Option<Pack>) -> Case {
    let mut case = case.clone();
    for &i in case.op.row_results().unwrap_or_else(|| panic!("{:?}", case.op)).inputs {
        case.inputs[i] = pick(&case.inputs[i], of, rows);
    }
    for d in &mut case.d_outputs {
        *d = pick(d, of, rows);
    }
    case.op = case.op.select(rows, pack).unwrap();
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
    let n = ROWS;
    let mut subsets: Vec<Vec<usize>> = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 96, 130]
        .into_iter()
        .map(|count| (n - count..n).collect())
        .collect();
    subsets.extend([vec![0], vec![77], vec![130, 2, 64, 2], (0..n).rev().collect()]);
    for case in &ops::all(b, Set::Rows) {
        let all = results(b, case);
        for rows in &subsets {
            check_rows(&all, &results(b, &only(case, n, rows, None)), case, n, rows, true);
        }
    }
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
    let pack = packs::large_forest();
    for case in ops::all(b, Set::Forest) {
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
    let pack = packs::large_forest();
    let roots: Vec<usize> = (0..pack.segments().len()).filter(|&g| pack.path(g).is_empty()).collect();
    for case in ops::all(b, Set::Forest) {
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
            if let (Op::Lora(lora), Some(run)) = (&case.op, pack.segments()[root].run) {
                let of_run = |d: &[f64]| bits(&d[run * lora.site.stride..(run + 1) * lora.site.stride]);
                assert!(of_run(all.last().unwrap()) == of_run(alone.last().unwrap()), "lora: d_params of run {run}");
            }
        }
    }
}

fn cached_rows_are_as_good_as_rows_of_the_pack<B: Backend>(b: &mut B) {
    let n = 150;
    let whole = sequence(&packs::large_forest(), &[13; 150], &[]);
    for (i, dims) in forest_dims().into_iter().enumerate() {
        let op = Attention { pack: whole.clone(), cached: vec![], dims };
        let case = Case::new(format!("kept {i}"), op);
        let all = device::forward(b, &case.op, &case.inputs, 0.0);
        let keys = dims.kv_width();
        // The cache is longer than its segments, which lie out of order in it.
        for cuts in [&[1][..], &[64], &[3, 50, 100], &[37, 38, 149]] {
            let capacity = 2 * n;
            let (mut cache_k, mut cache_v) = (normal(1, capacity * keys), normal(2, capacity * keys));
            let (mut cached, mut from) = (Vec::new(), 0);
            for (c, &to) in cuts.iter().enumerate() {
                let start = if c % 2 == 0 { n + from } else { from };
                let rows = start..start + to - from;
                for (cache, x) in [(&mut cache_k, &case.inputs[1]), (&mut cache_v, &case.inputs[2])] {
                    cache[rows.start * keys..rows.end * keys].copy_from_slice(&x[from * keys..to * keys]);
                }
                cached.push(CachedSegment { rows, parent: c.checked_sub(1), run: None, end: to });
                from = to;
            }
            let mut builder = PackBuilder::new(&cached);
            let tokens = vec![Token::Id(1); n - from];
            builder.push(&[Token::Id(2); 3], Parent::None, None, Label::Text);
            builder.push(&tokens, Parent::Cached(cached.len() - 1), None, Label::Query);
            let rows: Vec<usize> = (from..n).collect();
            let mut inputs = case.inputs.clone();
            for x in &mut inputs[..3] {
                *x = pick(x, n, &[&[0, 1, 2], &rows[..]].concat());
            }
            let used = cached.iter().map(|s| s.rows.end).max().unwrap() * keys;
            inputs[3] = cache_k[..used].to_vec();
            inputs[4] = cache_v[..used].to_vec();
            let op = Attention { pack: builder.build(), cached, dims };
            let after: Vec<usize> = (3..3 + rows.len()).collect();
            for (part, whole) in device::forward(b, &op, &inputs, 0.0).iter().zip(&all) {
                let part = pick(part, 3 + rows.len(), &after);
                assert!(bits(&part) == bits(&pick(whole, n, &rows)), "{}: {cuts:?}", case.name);
            }
        }
    }
}

fn threads_do_not_matter<A: Float>(open: Open<A>, settings: CpuSettings) {
    let mut b = open(&settings);
    let all = [ops::all(&mut b, Set::Small), ops::all(&mut b, Set::Large)].concat();
    let run = |threads: usize| {
        let mut b = open(&CpuSettings { threads, ..settings });
        let results = all.iter().map(|case| results(&mut b, case).iter().map(|x| bits(x)).collect::<Vec<_>>());
        results.collect::<Vec<_>>()
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
    let mut b = Cpu::new(Dtype::F32);
    let case = Case::new("rms_norm", RmsNorm { rows: 3, width: 5, eps: 1e-5, form: RmsWeight::Rounded });
    let all = results(&mut b, &case);
    let mut alone = results(&mut b, &only(&case, 3, &[1], None));
    check_rows(&all, &alone, &case, 3, &[1], true);
    alone[0][4] = f64::from((alone[0][4] as f32).next_up());
    check_rows(&all, &alone, &case, 3, &[1], true);
}

/// What opens a CPU that accumulates in `A`.
type Open<A> = fn(&CpuSettings) -> Cpu<A>;

/// Everything above on one device.
fn check<A: Float>(open: Open<A>, settings: CpuSettings) {
    let b = &mut open(&settings);
    rows_stand_alone(b);
    paths_may_be_cut_anywhere(b);
    trees_do_not_touch_each_other(b);
    cached_rows_are_as_good_as_rows_of_the_pack(b);
    threads_do_not_matter(open, settings);
}

#[test]
fn cpu_f64() {
    check(Cpu::<f64>::open, CpuSettings::new(Dtype::F64));
}

#[test]
fn cpu_f32() {
    check(Cpu::<f32>::open, CpuSettings::new(Dtype::F32));
}

#[test]
fn cpu_bf16() {
    check(Cpu::<f32>::open, CpuSettings::new(Dtype::BF16));
}

#[test]
fn cpu_f32x3() {
    match Isa::detect() {
        isa if isa.has_pairs() => check(Cpu::<f32>::open, CpuSettings { split: true, ..CpuSettings::new(Dtype::F32) }),
        _ => skip(Reason::Pairs),
    }
}
