//! What nothing needs: rows that are no output rows, layers above the last one captured and below the lowest one adapted.
//! Leaving it out changes no bit of the rest.

use llamaprobe::arch::{Dtype, ModelConfig, Projection};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::ops::Zero;
use llamaprobe::backend::trace::Trace;
use llamaprobe::backend::{AccElement, Backend, Buffers};
use llamaprobe::formats::adapter::{LoraAdapter, LoraConfig, LoraModule, Modules};
use llamaprobe::hooks::{NoTaps, Record, Selection, Site};
use llamaprobe::model::{
    Activations, Adaptation, Cache, DropoutPlan, GradientRequest, Gradients, Input, KvCache, Labels, Layout, Model,
    OutputRows, Save,
};
use llamaprobe::pack::{Pack, PackBuilder, Parent, Token, forest};

use super::{LLAMA, adapters, branching, lora, models, random};

/// Every site that the model has, with the adapters' own.
fn sites(config: &ModelConfig) -> Vec<Site> {
    let own = |site: &Site| match site {
        Site::LoraA(target) | Site::LoraDelta(target) => {
            [config.family.modules()[0], Projection::Up].contains(target) && *target != Projection::Qkv
        }
        Site::Pattern | Site::AttnScores => false,
        site => config.has(*site),
    };
    Site::all().into_iter().filter(own).collect()
}

struct Pass<'a, B: Backend> {
    model: &'a Model<B>,
    adaptation: &'a Adaptation<B>,
    pack: &'a Pack,
    selection: Selection,
}

impl<B: Backend> Pass<'_, B> {
    /// The states at `rows`, and the logits after them; `all` computes every row's output.
    fn run(&self, b: &mut B, cache: Option<Cache<'_, B>>, rows: &[usize], all: bool) -> (Record, Vec<f64>) {
        let Self { model, adaptation, pack, selection } = self;
        let layout = Some(&adaptation.layout);
        let mut acts = Activations::new(b, &model.config, layout, pack.len(), Save::Layer).expect("memory");
        let device = b.pack(pack).expect("memory");
        let output = if all { None } else { OutputRows::new(b, pack, rows.iter().copied()).expect("memory") };
        let input = Input::new(pack, &device).adapted(adaptation).with_output_rows(output.as_ref());
        let mut record = Record::new(selection.clone(), rows.to_vec());
        model.forward(b, &mut acts, &input, cache, &mut record).expect("a forward");
        let logits = match selection.stop_at_layer() {
            None => model.logits(b, &acts, rows).expect("logits"),
            Some(_) => Vec::new(),
        };
        (record, logits.into_iter().map(AccElement::to_f64).collect())
    }
}

fn same((found, found_logits): &(Record, Vec<f64>), (expected, expected_logits): &(Record, Vec<f64>)) {
    let mut hooks = 0;
    for (site, layer, _, found) in found.iter() {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(found), bits(expected.get(site, layer).expect("recorded")), "{}", site.name(layer));
        hooks += 1;
    }
    assert_eq!(hooks, expected.iter().count());
    assert_eq!(found_logits, expected_logits);
}

fn output_is_that_among_all<B: Backend>(b: &mut B, config: &str) {
    let (model, _) = random(b, config);
    let modules = [model.config.family.modules()[0], Projection::Up];
    let adaptation = adapters(b, lora(&model.config, &modules), 2);
    let pack = forest(&branching(|i| [None, Some(0), Some(1)][i / 2 % 3]), 2).pack;
    // In no order, of several runs, and one that is a parent's.
    let rows = [pack.len() - 1, 3, pack.len() / 2, pack.len() / 2 + 1];
    let everything = Selection::new(&sites(&model.config), &[0, 1, 2]);
    let below = Selection::new(&[Site::Z, Site::LoraA(Projection::Up), Site::ResidPost], &[0, 1]);
    let entering = Selection::new(&[Site::ResidPre], &[0, 1]);
    for selection in [everything, below, entering, Selection::new(&[Site::ResidPre], &[0])] {
        let pass = Pass { model: &model, adaptation: &adaptation, pack: &pack, selection };
        same(&pass.run(b, None, &rows, false), &pass.run(b, None, &rows, true));
    }

    // Rows that are only cached.
    let tokens = |from: u32, n: u32| (from..from + n).map(|i| Token::Id(i % 23)).collect::<Vec<_>>();
    let selection = Selection::new(&[Site::ResidPost, Site::FINAL_NORM], &[2]);
    let both: Vec<_> = [false, true]
        .into_iter()
        .map(|all| {
            let mut cache =
                KvCache::new(b, model.config.num_hidden_layers, 9, model.config.kv_width()).expect("memory");
            let mut builder = PackBuilder::default();
            builder.push(&tokens(0, 9), Parent::None, Some(1), Default::default());
            builder.push(&tokens(9, 3), Parent::Pack(0), Some(1), Default::default());
            let (first, selection) = (builder.build(), selection.clone());
            let pass = Pass { model: &model, adaptation: &adaptation, pack: &first, selection };
            let before = pass.run(b, Some(Cache { cache: &mut cache, append: &[0] }), &[11], all);
            let mut builder = PackBuilder::new(&cache.segments);
            builder.push(&tokens(5, 4), Parent::Cached(0), Some(1), Default::default());
            let second = builder.build();
            let pass = Pass { pack: &second, ..pass };
            [before, pass.run(b, Some(Cache { cache: &mut cache, append: &[] }), &[3], all)]
        })
        .collect();
    both[0].iter().zip(&both[1]).for_each(|(found, expected)| same(found, expected));
}

#[test]
fn output_rows_have_the_bits_that_they_have_among_all() {
    for config in models() {
        output_is_that_among_all(&mut Cpu::new(Dtype::F32), &config);
        output_is_that_among_all(&mut Cpu::new(Dtype::BF16), &config);
    }
}

/// Loss, gradients of the embedded rows, and those of adapters and weights, with labels on two rows of three runs.
fn gradients<B: Backend>(b: &mut B, config: &str, dropout: f64, all: bool) -> [Vec<f64>; 4] {
    let (model, tuning) = random(b, config);
    let adaptation = adapters(b, lora(&model.config, model.config.family.modules()).with_prompt(2), 3);
    let mut sequences = branching(|i| [None, Some(0), Some(2)][i / 2 % 3]);
    for sequence in sequences.iter_mut().filter(|s| s.run.is_some()) {
        sequence.tokens.splice(0..0, [Token::Virtual(0), Token::Virtual(1)]);
    }
    let forest = forest(&sequences, 2);
    let (pack, layout) = (&forest.pack, Some(&adaptation.layout));
    let ends = (0..sequences.len()).flat_map(|s| [forest.last_row(s), forest.last_row(s) - 1]);
    let mut rows: Vec<u32> = ends.map(|row| row as u32).collect();
    // Twice the same, in no order.
    rows.push(rows[1]);
    let targets: Vec<u32> = rows.iter().map(|row| row % 23).collect();
    let weights: Vec<f64> = (0..rows.len()).map(|i| 0.3 + 0.1 * (i % 5) as f64).collect();
    let output = OutputRows::new(b, pack, rows.iter().map(|&row| row as usize)).expect("memory");
    let output = output.as_ref().filter(|_| !all);
    assert!(all || output.is_some(), "every row has a label");
    let labels = Labels::new(b, output, &rows, &targets, &weights).expect("memory");
    let mut grads = Gradients::new(b, &model.config, pack.len(), rows.len()).expect("memory");
    let mut acts = Activations::new(b, &model.config, layout, pack.len(), Save::All).expect("memory");
    let device = b.pack(pack).expect("memory");
    let (seeds, keys) = (vec![7, 8, 9], (0..pack.len() as u32).collect::<Vec<_>>());
    let dropout = (dropout > 0.0).then_some(DropoutPlan { p: dropout, seeds: &seeds, keys: &keys });
    let input = Input { dropout, ..Input::new(pack, &device).adapted(&adaptation).with_output_rows(output) };
    let mut d_params = b.acc(adaptation.runs * adaptation.layout.stride).expect("memory");
    let mut d_weights = b.acc(tuning.layout.total).expect("memory");
    // The second time round everything lies where the first left it.
    for _ in 0..2 {
        b.zero(Zero { x: &mut d_params });
        b.zero(Zero { x: &mut d_weights });
        model.forward(b, &mut acts, &input, None, &mut NoTaps).expect("a forward");
        let d_weights = Some((&mut d_weights, &tuning.layout));
        let request =
            GradientRequest { d_params: Some(&mut d_params), d_weights, d_embed: true, ..GradientRequest::none() };
        model.backward(b, &mut acts, &mut grads, &input, &labels, request);
    }
    let mut host = |buffer: &B::Acc, n: usize| -> Vec<f64> {
        let mut host = vec![B::Element::default(); n];
        b.download(&mut host, buffer, 0).expect("download");
        host.into_iter().map(AccElement::to_f64).collect()
    };
    [
        host(&grads.losses, rows.len()),
        host(grads.d_embed(), pack.len() * model.config.embed_size),
        host(&d_params, adaptation.runs * adaptation.layout.stride),
        host(&d_weights, tuning.layout.total),
    ]
}

#[test]
fn gradients_through_output_rows_are_those_through_all() {
    for (i, config) in models().iter().enumerate() {
        let dropout = if i % 2 == 0 { 0.25 } else { 0.0 };
        let [some, all] = [false, true].map(|all| gradients(&mut Cpu::new(Dtype::F32), config, dropout, all));
        assert!(some[0].iter().all(|loss| *loss > 0.0) && some[0] == all[0], "losses");
        assert!(some[1].iter().any(|d| *d != 0.0) && some[1] == all[1], "gradients of rows");
        // The sums over rows may be cut elsewhere.
        for (what, some, all) in [("adapters", &some[2], &all[2]), ("weights", &some[3], &all[3])] {
            let largest = all.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let worst = some.iter().zip(all).fold(0.0f64, |m, (x, y)| m.max((x - y).abs())) / largest;
            println!("{what}: output rows against all {worst:.1e} of the largest gradient");
            assert!(worst < 1e-6, "{what}: {worst:.1e}");
        }
    }
}

/// Multiply-adds of a row in a layer of [`LLAMA`]: queries, keys and values; the output projection; the MLP.
const LAYER: [u64; 3] = [12 * (24 + 8 + 8), 24 * 12, 3 * 12 * 20];
const HEAD: u64 = 12 * 23;

/// A pass on the null device.
struct Count {
    b: Trace,
    model: Model<Trace>,
    pack: Pack,
}

impl Count {
    fn new() -> Self {
        let mut b = Trace::new();
        let (model, _) = random(&mut b, LLAMA);
        Self { b, model, pack: forest(&branching(|_| Some(0)), 2).pack }
    }

    fn forward(&mut self, sites: &[Site], layers: &[usize], rows: &[usize]) -> u64 {
        let Self { b, model, pack } = self;
        let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory");
        let (device, output) =
            (b.pack(pack).expect("memory"), OutputRows::new(b, pack, rows.to_vec()).expect("memory"));
        let input = Input::new(pack, &device).with_output_rows(output.as_ref());
        b.clear();
        let mut record = Record::new(Selection::new(sites, layers), rows.to_vec());
        let adaptation = Adaptation::new(b, Layout::empty(&model.config), 1).expect("memory");
        model.forward(b, &mut acts, &input.adapted(&adaptation), None, &mut record).expect("a forward");
        b.multiplied()
    }

    /// Of forward and backward with adapters on these modules and labels on these rows.
    fn step(&mut self, modules: &[(usize, Projection)], rows: &[u32]) -> (u64, u64) {
        let Self { b, model, pack } = self;
        let module = |&(layer, target): &(usize, Projection)| {
            let (input, output) = model.config.widths(target);
            LoraModule { layer, target, r: 1, scale: 1.0, a: vec![0.0; input], b: vec![0.0; output], magnitude: None }
        };
        let config = LoraConfig::new(1, 1.0, Modules::List(Vec::new()));
        let adapter = LoraAdapter::new(config, &model.config, modules.iter().map(module).collect());
        let layout = Layout::of_adapter(&model.config, &adapter).expect("fits");
        let adaptation = Adaptation::new(b, layout, 1).expect("memory");
        let layout = Some(&adaptation.layout);
        let mut acts = Activations::new(b, &model.config, layout, pack.len(), Save::All).expect("memory");
        let output = OutputRows::new(b, pack, rows.iter().map(|&row| row as usize)).expect("memory");
        let labels = Labels::new(b, output.as_ref(), rows, rows, &vec![1.0; rows.len()]).expect("memory");
        let mut grads = Gradients::new(b, &model.config, pack.len(), rows.len()).expect("memory");
        let mut d_params = b.acc(adaptation.layout.stride).expect("memory");
        let device = b.pack(pack).expect("memory");
        let input = Input::new(pack, &device).adapted(&adaptation).with_output_rows(output.as_ref());
        b.clear();
        model.forward(b, &mut acts, &input, None, &mut NoTaps).expect("a forward");
        let forward = b.multiplied();
        let request = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
        model.backward(b, &mut acts, &mut grads, &input, &labels, request);
        (forward, b.multiplied() - forward)
    }
}

#[test]
fn forward_computes_what_is_asked_for() {
    let mut count = Count::new();
    let n = count.pack.len() as u64;
    let [heads, out, mlp] = LAYER;
    let layer = heads + out + mlp;
    // No head without logits; of the last layer, all rows' keys and values, and the rest of one row.
    let last = n * heads + out + mlp;
    assert_eq!(count.forward(&[Site::FINAL_NORM], &[], &[7]), 2 * n * layer + last);
    assert!(count.b.ops().contains(&"gather_acc") && !count.b.ops().contains(&"logits_fwd"));
    assert_eq!(
        count.forward(&[Site::ResidPost, Site::Logits], &[0, 1], &[7, 9]),
        2 * n * layer + last + out + mlp + 2 * HEAD
    );
    // Nothing above the last layer captured.
    assert_eq!(count.forward(&[Site::ResidPost], &[0, 1], &[7]), n * layer + last);
    assert_eq!(count.forward(&[Site::ResidPre], &[0, 1], &[7]), last);
    assert_eq!(count.forward(&[Site::ResidPre], &[0], &[7]), 0);
    assert_eq!(count.forward(&[Site::Embed], &[], &[7]), 0);
    let all: Vec<usize> = (0..count.pack.len()).collect();
    assert_eq!(count.forward(&[Site::FINAL_NORM], &[], &all), 3 * n * layer);
    assert!(!count.b.ops().contains(&"gather_acc"), "nothing is left out, nothing gathered");
}

#[test]
fn backward_computes_what_is_asked_for() {
    let mut count = Count::new();
    let n = count.pack.len() as u64;
    let [heads, out, mlp] = LAYER;
    let (layer, down) = (heads + out + mlp, 12 * 20);
    let rows = [4, 7];
    // Loss and gradient of the head are two products.
    let last = n * heads + 2 * (out + mlp);
    let all = [Projection::Q, Projection::V].map(|target| [0, 1, 2].map(|layer| (layer, target))).concat();
    assert_eq!(count.step(&all, &rows), (2 * n * layer + last, 4 * HEAD + last + n * layer + n * (out + mlp)));
    // Nothing below the lowest adapted layer, and of that nothing below the lowest adapted module.
    let mut backward = |modules: &[(usize, Projection)]| count.step(modules, &rows).1 - 4 * HEAD;
    assert_eq!(backward(&[(1, Projection::V)]), last + n * (out + mlp));
    assert_eq!(backward(&[(2, Projection::Q)]), 2 * (out + mlp));
    assert_eq!(backward(&[(2, Projection::O)]), 2 * mlp);
    assert_eq!(backward(&[(2, Projection::Up)]), 2 * down);
    assert_eq!(backward(&[(2, Projection::Down)]), 0);
}

#[test]
#[should_panic(expected = "ln_final.hook_out: row 2 was not tapped")]
fn capture_of_a_row_that_is_no_output_row_is_refused() {
    let b = &mut Trace::new();
    let (model, _) = random(b, LLAMA);
    let pack = forest(&branching(|_| None), 2).pack;
    let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory");
    let (device, output) = (b.pack(&pack).expect("memory"), OutputRows::new(b, &pack, [1, 3]).expect("memory"));
    let input = Input::new(&pack, &device).with_output_rows(output.as_ref());
    let mut record = Record::new(Selection::new(&[Site::FINAL_NORM], &[]), vec![2]);
    let _ = model.forward(b, &mut acts, &input, None, &mut record);
}

#[test]
#[should_panic(expected = "output rows: row 2 is not an output row")]
fn label_of_a_row_that_is_no_output_row_is_refused() {
    let b = &mut Trace::new();
    let pack = forest(&branching(|_| None), 2).pack;
    let output = OutputRows::new(b, &pack, [1, 3]).expect("memory");
    let _ = Labels::new(b, output.as_ref(), &[2], &[0], &[1.0]);
}

#[test]
#[should_panic(expected = "labels: the forward had other output rows")]
fn labels_of_other_output_rows_are_refused() {
    let b = &mut Trace::new();
    let (model, _) = random(b, LLAMA);
    let pack = forest(&branching(|_| None), 2).pack;
    let mut acts = Activations::new(b, &model.config, None, pack.len(), Save::Layer).expect("memory");
    let (device, output) = (b.pack(&pack).expect("memory"), OutputRows::new(b, &pack, [1, 3]).expect("memory"));
    model.forward(b, &mut acts, &Input::new(&pack, &device), None, &mut NoTaps).expect("a forward");
    let labels = Labels::new(b, output.as_ref(), &[3], &[0], &[1.0]).expect("memory");
    let mut grads = Gradients::new(b, &model.config, 0, 1).expect("memory");
    model.loss(b, &acts, &labels, &mut grads);
}
