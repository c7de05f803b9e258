//! The whole model: forests against flat sequences, independence of rows, gradients in `f64`, and what a pass does to
//! the device.

mod checkpointing;
mod decoder;
mod edits;
mod families;
mod output_rows;
mod profile;
mod start;
mod taps;

use llamaprobe::arch::{Dtype, Family, ModelConfig, Projection};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::backend::{AccElement, Backend, Buffers, Planning, Transfer};
use llamaprobe::hooks::edit::{Edit, EditPlan};
use llamaprobe::hooks::{NoTaps, Record, Selection, Site};
use llamaprobe::model::param_id::ParamId;
use llamaprobe::model::{
    Activations, Adaptation, Cache, DropoutPlan, EditSet, FullTuning, GenerationConfig, GradientRequest, Gradients,
    Input, KvCache, Labels, Layout, LoraShape, Model, PassEdits, Prompt, Sampling, Save, WeightLayout,
};
use llamaprobe::pack::{Forest, Label, Pack, PackBuilder, Parent, Sequence, Token, forest};
use llamaprobe::task::embedding::mean_states;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support;
use families::{LLAMA, bidirectional};

pub use families::models;

fn parsed(config: &str) -> ModelConfig {
    ModelConfig::parse("config.json", config).expect("a configuration")
}

pub fn noise<E: AccElement>(n: usize, seed: u64, scale: f64) -> Vec<E> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| E::from_f64(scale * (2.0 * rng.random::<f64>() - 1.0))).collect()
}

/// A random model whose weights are the flat parameters of full tuning.
pub fn random<B: Backend>(backend: &mut B, config: &str) -> (Model<B>, FullTuning<B>) {
    let config = parsed(config);
    let layout = WeightLayout::new(&config);
    let mut params = backend.acc(layout.total).expect("memory");
    backend.upload(&mut params, 0, &noise(layout.total, 1, 0.6)).expect("upload");
    FullTuning::new(backend, config, params).expect("memory")
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..23)).collect()
}

const ALL: [Site; 6] = [Site::ResidPre, Site::Pattern, Site::Z, Site::MlpPost, Site::ResidPost, Site::FINAL_NORM];

/// The states of every row.
fn states<B: Backend>(backend: &mut B, model: &Model<B>, pack: &Pack, adaptation: Option<&Adaptation<B>>) -> Record {
    let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
    let mut record = Record::new(Selection::new(&ALL, &layers), (0..pack.len()).collect());
    let layout = adaptation.map(|a| &a.layout);
    let mut acts = Activations::new(backend, &model.config, layout, pack.len(), Save::Layer).expect("memory");
    let device = backend.pack(pack).expect("pack");
    let input = Input { adaptation, ..Input::new(pack, &device) };
    model.forward(backend, &mut acts, &input, None, &mut record).expect("forward");
    record
}

fn flat(sequences: &[Sequence]) -> Forest {
    let mut builder = PackBuilder::default();
    let mut start = 0;
    let mut push = |s: &Sequence| {
        builder.push(&s.tokens, Parent::None, s.run, Label::Text);
        start += s.tokens.len();
        std::iter::once(start - s.tokens.len()..start).collect()
    };
    let paths = sequences.iter().map(&mut push).collect();
    Forest { pack: builder.build(), paths }
}

fn branching(run: impl Fn(usize) -> Option<usize>) -> Vec<Sequence> {
    let (root, left) = (ids(9, 1), ids(5, 2));
    let mut sequences = Vec::new();
    for (i, tail) in [(3u64, 4), (4, 1), (5, 7)] {
        sequences.push([&root[..], &ids(tail, i)].concat());
        sequences.push([&root[..], &left[..], &ids(tail, i + 10)].concat());
    }
    sequences.push(ids(6, 99));
    let sequence = |(i, s): (usize, &Vec<u32>)| Sequence::ids(s, run(i), Label::Text);
    sequences.iter().enumerate().map(sequence).collect()
}

fn lora(config: &ModelConfig, targets: &[Projection]) -> Layout {
    Layout::lora(
        config,
        &LoraShape { rank: 3, alpha: 6.0, rslora: false, dora: false, layers: None, targets: targets.to_vec() },
    )
}

fn adapters<B: Backend>(backend: &mut B, layout: Layout, runs: usize) -> Adaptation<B> {
    let mut adaptation = Adaptation::new(backend, layout, runs).expect("memory");
    for run in 0..runs {
        let values = noise(adaptation.layout.stride, 50 + run as u64, 0.4);
        adaptation.upload_run(backend, run, &values).expect("upload");
    }
    adaptation
}

#[test]
fn forest_has_the_states_of_its_flat_sequences_bit_for_bit() {
    models().iter().for_each(|config| forest_is_flat(config));
}

fn forest_is_flat(config: &str) {
    let backend = &mut Cpu::new(Dtype::F32);
    let (model, _) = random(backend, config);
    let adaptation = adapters(backend, lora(&model.config, model.config.family.modules()), 2);
    let sequences = branching(|i| [None, Some(0), Some(1)][i / 2 % 3]);
    let (tree, flat) = (forest(&sequences, 2), flat(&sequences));
    assert!(tree.pack.len() < flat.pack.len(), "nothing is shared");
    let a = states(backend, &model, &tree.pack, Some(&adaptation));
    let b = states(backend, &model, &flat.pack, Some(&adaptation));
    for (site, layer, width, found) in a.iter().filter(|(site, ..)| *site != Site::Pattern) {
        let expected = b.get(site, layer).expect("recorded");
        for (s, sequence) in sequences.iter().enumerate() {
            for i in 0..sequence.tokens.len() {
                let (r, q) = (tree.row(s, i) * width, flat.row(s, i) * width);
                assert_eq!(found[r..r + width], expected[q..q + width], "{} sequence {s} token {i}", site.name(layer));
            }
        }
    }
}

#[test]
fn sequence_does_not_depend_on_its_neighbours() {
    models().iter().for_each(|config| alone_is_beside(config));
}

fn alone_is_beside(config: &str) {
    let backend = &mut Cpu::new(Dtype::F32);
    let (model, _) = random(backend, config);
    let adaptation = adapters(backend, lora(&model.config, &[model.config.family.modules()[0], Projection::Down]), 3);
    let sequences: Vec<Sequence> = [(1, None), (17, Some(2)), (33, None), (5, Some(0))]
        .iter()
        .enumerate()
        .map(|(i, &(n, run))| Sequence::ids(&ids(n, 40 + i as u64), run, Label::Text))
        .collect();
    let together = flat(&sequences);
    let all = states(backend, &model, &together.pack, Some(&adaptation));
    for (s, sequence) in sequences.iter().enumerate() {
        let alone = flat(std::slice::from_ref(sequence));
        let one = states(backend, &model, &alone.pack, Some(&adaptation));
        for (site, layer, width, found) in one.iter().filter(|(site, ..)| *site != Site::Pattern) {
            let from = together.row(s, 0) * width;
            let beside = &all.get(site, layer).expect("recorded")[from..from + found.len()];
            assert_eq!(found, beside, "{} of sequence {s}", site.name(layer));
        }
    }
}

#[test]
fn cached_segments_continue_as_if_they_were_in_the_pack() {
    models().iter().for_each(|config| cached_is_packed(config));
}

fn cached_is_packed(config: &str) {
    let backend = &mut Cpu::new(Dtype::F32);
    let (model, _) = random(backend, config);
    let (prefix, suffix) = (ids(70, 5), ids(9, 6));
    let tokens = |ids: &[u32]| ids.iter().map(|&t| Token::Id(t)).collect::<Vec<_>>();
    let whole = flat(&[Sequence::ids(&[&prefix[..], &suffix[..]].concat(), None, Label::Text)]);
    let expected = states(backend, &model, &whole.pack, None);

    let mut cache =
        KvCache::new(backend, model.config.num_hidden_layers, 100, model.config.kv_width()).expect("memory");
    let mut builder = PackBuilder::default();
    builder.push(&tokens(&prefix), Parent::None, None, Label::Text);
    let first = builder.build();
    let mut acts = Activations::new(backend, &model.config, None, 70, Save::Layer).expect("memory");
    let device = backend.pack(&first).expect("pack");
    let caching = Cache { cache: &mut cache, append: &[0] };
    model.forward(backend, &mut acts, &Input::new(&first, &device), Some(caching), &mut NoTaps).expect("forward");
    let mut builder = PackBuilder::new(&cache.segments);
    builder.push(&tokens(&suffix), Parent::Cached(0), None, Label::Text);
    let second = builder.build();
    let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
    let mut record =
        Record::new(Selection::new(&[Site::ResidPost, Site::Pattern, Site::FINAL_NORM], &layers), (0..9).collect());
    let device = backend.pack(&second).expect("pack");
    let caching = Cache { cache: &mut cache, append: &[] };
    model.forward(backend, &mut acts, &Input::new(&second, &device), Some(caching), &mut record).expect("forward");
    for (site, layer, width, found) in record.iter() {
        let all = expected.get(site, layer).expect("recorded");
        assert_eq!(found, &all[70 * width..], "{}", site.name(layer));
    }
}

#[test]
fn attention_patterns_are_causal_and_sum_to_one() {
    let backend = &mut Cpu::new(Dtype::F32);
    let (model, _) = random(backend, LLAMA);
    let pack = flat(&[Sequence::ids(&ids(11, 8), None, Label::Text)]).pack;
    let record = states(backend, &model, &pack, None);
    let pattern = record.get(Site::Pattern, 1).expect("recorded");
    for row in 0..11 {
        for head in 0..6 {
            let p = &pattern[(row * 6 + head) * 11..][..11];
            assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert!(p[row + 1..].iter().all(|&x| x == 0.0) && p[..=row].iter().all(|&x| x > 0.0));
        }
    }
}

#[test]
fn generation_greedily_follows_the_full_pass() {
    models().iter().for_each(|config| generation_follows(config));
}

fn generation_follows(config: &str) {
    let backend = &mut Cpu::new(Dtype::F32);
    let (model, _) = random(backend, config);
    let prompts: Vec<Prompt> = [ids(4, 1), ids(9, 2), ids(4, 1)[..2].to_vec(), ids(4, 1)]
        .into_iter()
        .map(|ids| Prompt { ids, run: None })
        .collect();
    let generation = GenerationConfig::greedy(7);
    let mut heard = vec![Vec::new(); prompts.len()];
    let mut listen = |i: usize, token: u32| heard[i].push(token);
    let found = model.generate(backend, &prompts, None, &generation, &mut listen).expect("generation");
    assert_eq!(found, heard);
    for (prompt, found) in prompts.iter().zip(&found) {
        let mut ids = prompt.ids.clone();
        for &token in found {
            let pack = flat(&[Sequence::ids(&ids, None, Label::Text)]).pack;
            let device = backend.pack(&pack).expect("pack");
            let mut acts = Activations::new(backend, &model.config, None, pack.len(), Save::Layer).expect("memory");
            model.forward(backend, &mut acts, &Input::new(&pack, &device), None, &mut NoTaps).expect("forward");
            let logits = model.logits(backend, &acts, &[pack.len() - 1]).expect("logits");
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
            assert_eq!(Some(token as usize), best);
            ids.push(token);
        }
    }
    let random = |n: usize| {
        let sampling = Sampling::Random { temperature: 0.8, top_k: Some(5), top_p: Some(0.9), seed: 3 };
        let generation = GenerationConfig { sampling, ..GenerationConfig::greedy(7) };
        model.generate(&mut Cpu::new(Dtype::F32), &prompts[..n], None, &generation, &mut |_, _| ()).expect("generation")
    };
    assert_eq!(random(2), random(4)[..2], "a prompt's stream depends on the others");
}

/// One forward and backward: the total loss, and the gradients of adapters, weights and embeddings.
struct Task<'a> {
    sequences: &'a [Sequence],
    dropout: f64,
    edits: &'a [Edit],
    save: Save,
}

struct Outcome {
    total: f64,
    d_params: Vec<f64>,
    d_weights: Vec<f64>,
    d_embed: Vec<f64>,
    forest: Forest,
}

impl Task<'_> {
    /// The sequences, marked where they are edited.
    fn marked(&self) -> Vec<Sequence> {
        let mut marked = self.sequences.to_vec();
        EditPlan::new(self.edits, &mut marked).expect("positions");
        marked
    }

    fn run<B: Backend>(
        &self,
        backend: &mut B,
        model: &Model<B>,
        tuning: &FullTuning<B>,
        adaptation: &Adaptation<B>,
        forest: Forest,
    ) -> Outcome {
        let pack = &forest.pack;
        let (mut rows, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (s, sequence) in self.sequences.iter().enumerate() {
            for i in 0..sequence.tokens.len() - 1 {
                let Token::Id(target) = sequence.tokens[i + 1] else { continue };
                rows.push(forest.row(s, i) as u32);
                targets.push(target);
                weights.push(0.3 + 0.1 * ((s + i) % 5) as f64);
            }
        }
        let labels = Labels::new(backend, None, &rows, &targets, &weights).expect("memory");
        let mut grads = Gradients::new(backend, &model.config, pack.len(), rows.len()).expect("memory");
        let mut acts =
            Activations::new(backend, &model.config, Some(&adaptation.layout), pack.len(), self.save).expect("memory");
        let device = backend.pack(pack).expect("pack");
        let (seeds, keys) = (vec![7, 8, 9], (0..pack.len() as u32).collect::<Vec<_>>());
        let dropout = (self.dropout > 0.0).then_some(DropoutPlan { p: self.dropout, seeds: &seeds, keys: &keys });
        let plan = EditPlan::new(self.edits, &mut self.sequences.to_vec()).expect("positions");
        let edited = plan.rows(0..self.sequences.len(), |s, i| forest.row(s, i));
        let set = EditSet::new(backend, &model.config, self.edits).expect("edits");
        let edits = PassEdits::new(backend, &set, &edited, None).expect("memory");
        let edits = (!self.edits.is_empty()).then_some(&edits);
        let input = Input { dropout, ..Input::new(pack, &device).adapted(adaptation).edited(edits) };
        model.forward(backend, &mut acts, &input, None, &mut NoTaps).expect("forward");
        let mut d_params = backend.acc(adaptation.runs * adaptation.layout.stride).expect("memory");
        let mut d_weights = backend.acc(tuning.layout.total).expect("memory");
        let request = GradientRequest {
            d_params: Some(&mut d_params),
            d_weights: Some((&mut d_weights, &tuning.layout)),
            d_embed: true,
            ..GradientRequest::none()
        };
        model.backward(backend, &mut acts, &mut grads, &input, &labels, request);
        let mut host = |buffer: &B::Acc, n: usize| -> Vec<f64> {
            let mut host = vec![B::Element::default(); n];
            backend.download(&mut host, buffer, 0).expect("download");
            host.into_iter().map(AccElement::to_f64).collect()
        };
        let losses = host(&grads.losses, rows.len());
        Outcome {
            total: losses.iter().zip(&weights).map(|(l, w)| l * w).sum(),
            d_params: host(&d_params, adaptation.runs * adaptation.layout.stride),
            d_weights: host(&d_weights, tuning.layout.total),
            d_embed: host(grads.d_embed(), pack.len() * model.config.embed_size),
            forest,
        }
    }
}

/// Central differences of fourth order along a random direction.
pub fn directional(n: usize, seed: u64, step: f64, mut total: impl FnMut(&[f64]) -> f64) -> (Vec<f64>, f64) {
    let direction: Vec<f64> = noise(n, seed, 1.0);
    let h = step / (n as f64).sqrt();
    let mut at = |t: f64| total(&direction.iter().map(|d| t * h * d).collect::<Vec<_>>());
    let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
    (direction, slope)
}

pub fn assert_slope(what: &str, gradient: &[f64], direction: &[f64], slope: f64) {
    let along: f64 = gradient.iter().zip(direction).map(|(g, d)| g * d).sum();
    // A direction may by chance be nearly level: what counts then is what a direction of such numbers is likely to give.
    let moved = gradient.iter().zip(direction).filter(|(_, d)| **d != 0.0);
    let usual = (moved.map(|(g, _)| g * g).sum::<f64>() / 3.0).sqrt();
    let scale = slope.abs().max(along.abs()).max(usual);
    let error = (along - slope).abs() / scale;
    println!("{what}: {along:.9} against {slope:.9}, relative difference {error:.1e}");
    assert!(error < 1e-6, "{what}: {along} against {slope}: {error:.1e}");
    assert!((along + 1e-5 * scale - slope).abs() / scale > 1e-6, "{what}: the check cannot fail");
}

/// The sequences of the gradient checks: of the base model and of two runs with soft prompts of two rows.
fn prompted() -> Vec<Sequence> {
    let mut sequences = branching(|i| [None, Some(0), Some(2)][i / 2 % 3]);
    for sequence in sequences.iter_mut().filter(|s| s.run.is_some()) {
        sequence.tokens.splice(0..0, [Token::Virtual(0), Token::Virtual(1)]);
    }
    sequences
}

/// Adapters on every module, be they with magnitudes, and soft prompts, against differences of steps of this size. The norms
/// that magnitudes are divided by are constants, and stay what they were at the start.
fn gradients_of_adapters(config: &str, (dropout, dora): (f64, bool), step: f64) {
    let backend = &mut Cpu::oracle();
    let (model, tuning) = random(backend, config);
    let targets = model.config.family.modules().to_vec();
    let shape = LoraShape { rank: 3, alpha: 6.0, rslora: false, dora, layers: None, targets };
    let layout = Layout::lora(&model.config, &shape).with_prompt(2);
    let sequences = prompted();
    let task = Task { sequences: &sequences, dropout, edits: &[], save: Save::All };
    let mut adaptation = adapters(backend, layout, 3);
    adaptation.update_norms(backend, &model);
    let at = task.run(backend, &model, &tuning, &adaptation, model.config.pack(&sequences, 2));
    let base: Vec<f64> = adaptation.params.clone();
    let (stride, prompt) = (adaptation.layout.stride, adaptation.layout.prompt.expect("a prompt").offset);
    // All parameters together, then those of the prompts alone.
    for (seed, of) in [(11, 0), (12, 0), (13, prompt)] {
        let chosen = |i: usize| i % stride >= of;
        let (mut direction, slope) = directional(base.len(), seed, step, |moved| {
            let moved = base.iter().zip(moved).enumerate().map(|(i, (x, d))| if chosen(i) { x + d } else { *x });
            let moved: Vec<f64> = moved.collect();
            backend.upload(&mut adaptation.params, 0, &moved).expect("upload");
            task.run(backend, &model, &tuning, &adaptation, model.config.pack(&sequences, 2)).total
        });
        direction.iter_mut().enumerate().for_each(|(i, d)| *d *= if chosen(i) { 1.0 } else { 0.0 });
        assert_slope(if of == 0 { "adapters and prompt" } else { "prompt" }, &at.d_params, &direction, slope);
    }
}

fn gradients_of_the_whole_model(config: &str, dropout: f64) {
    let backend = &mut Cpu::oracle();
    let (mut model, mut tuning) = random(backend, config);
    let layout = lora(&model.config, model.config.family.modules()).with_prompt(2);
    let adaptation = adapters(backend, layout, 3);
    let sequences = prompted();
    let task = Task { sequences: &sequences, dropout, edits: &[], save: Save::All };
    let at = task.run(backend, &model, &tuning, &adaptation, model.config.pack(&sequences, 2));

    // Each kind of weight alone, so that a large gradient hides no small one.
    let base: Vec<f64> = tuning.params.clone();
    let params = tuning.layout.params().to_vec();
    for (i, &(id, offset)) in params.iter().enumerate() {
        let n = id.len(&model.config);
        let (direction, slope) = directional(n, 100 + i as u64, 1e-3, |step| {
            let mut moved = base.clone();
            moved[offset..offset + n].iter_mut().zip(step).for_each(|(x, d)| *x += d);
            backend.upload(&mut tuning.params, 0, &moved).expect("upload");
            tuning.refresh(backend, &mut model);
            task.run(backend, &model, &tuning, &adaptation, model.config.pack(&sequences, 2)).total
        });
        let gradient = &at.d_weights[offset..offset + n];
        if matches!(id, ParamId::Bias(_, Projection::K)) && model.config.ropes().is_empty() {
            // Adds the same to every score of a row, which changes nothing.
            assert!(slope.abs() < 1e-9 && gradient.iter().all(|g| g.abs() < 1e-9), "{id:?}: {slope}");
            continue;
        }
        assert_slope(&format!("{id:?}"), gradient, &direction, slope);
    }
    backend.upload(&mut tuning.params, 0, &base).expect("upload");
    tuning.refresh(backend, &mut model);

    // The embeddings' gradient, summed by token, is what the table gets (for an untied head, that is all it gets).
    if !model.config.tie_word_embeddings {
        let width = model.config.embed_size;
        let mut table = vec![0.0; 23 * width];
        for (row, token) in at.forest.pack.tokens().iter().enumerate() {
            if let Token::Id(id) = token {
                let scale = model.config.embed_scale;
                (0..width).for_each(|j| table[*id as usize * width + j] += scale * at.d_embed[row * width + j]);
            }
        }
        let worst = table.iter().zip(&at.d_weights).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 1e-12, "embedding rows against the table: {worst:.1e}");
    }
}

#[test]
fn gradients_of_all_weights_are_slopes_of_the_loss() {
    for (i, config) in models().iter().chain(&bidirectional()).enumerate() {
        // A step must not cross the corner of a ReLU.
        let smooth =
            config.replace("{\"model_type\": \"opt\",", "{\"model_type\": \"opt\", \"activation_function\": \"gelu\",");
        gradients_of_the_whole_model(&smooth, if i == 1 { 0.25 } else { 0.0 });
    }
}

#[test]
fn gradients_of_adapters_and_prompts_are_slopes_of_the_loss() {
    for (i, config) in models().iter().chain(&bidirectional()).enumerate() {
        let step = if config.contains("\"opt\"") { 1e-4 } else { 1e-3 };
        gradients_of_adapters(config, if i % 2 == 1 { (0.25, false) } else { (0.0, true) }, step);
    }
}

#[test]
fn gradients_of_a_forest_are_those_of_its_flat_sequences() {
    models().iter().for_each(|config| forest_gradients_are_flat(config));
}

fn forest_gradients_are_flat(config: &str) {
    let backend = &mut Cpu::new(Dtype::F32);
    let (model, tuning) = random(backend, config);
    let adaptation = adapters(backend, lora(&model.config, model.config.family.modules()), 3);
    let sequences = branching(|i| [None, Some(0), Some(2)][i / 2 % 3]);
    let task = Task { sequences: &sequences, dropout: 0.0, edits: &[], save: Save::All };
    let a = task.run(backend, &model, &tuning, &adaptation, forest(&sequences, 2));
    let b = task.run(backend, &model, &tuning, &adaptation, flat(&sequences));
    assert!(a.forest.pack.len() < b.forest.pack.len());
    for (what, a, b) in [("adapters", &a.d_params, &b.d_params), ("weights", &a.d_weights, &b.d_weights)] {
        let largest = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs())) / largest;
        println!("{what}: forest against flat {worst:.1e} of the largest gradient");
        assert!(worst < 1e-5, "{what}: {worst:.1e}");
    }
}

#[test]
fn passes_allocate_nothing_and_never_wait() {
    models().iter().for_each(|config| passes_only_compute(config));
}

fn passes_only_compute(config: &str) {
    let backend = &mut Trace::new();
    let (model, _) = random(backend, config);
    let adaptation =
        Adaptation::new(backend, lora(&model.config, model.config.family.default_modules()), 2).expect("memory");
    let pack = forest(&branching(|_| Some(1)), 2).pack;
    let device = backend.pack(&pack).expect("pack");
    let mut acts =
        Activations::new(backend, &model.config, Some(&adaptation.layout), pack.len(), Save::All).expect("memory");
    let mut grads = Gradients::new(backend, &model.config, pack.len(), 3).expect("memory");
    let labels = Labels::new(backend, None, &[0, 1, 1], &[1, 2, 3], &[1.0; 3]).expect("memory");
    let mut d_params = backend.acc(2 * adaptation.layout.stride).expect("memory");
    let input = Input::new(&pack, &device).adapted(&adaptation);
    backend.clear();
    let (allocations, syncs) = (backend.allocations(), backend.syncs());
    model.forward(backend, &mut acts, &input, None, &mut NoTaps).expect("forward");
    let forward = backend.ops().len();
    let request = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
    model.backward(backend, &mut acts, &mut grads, &input, &labels, request);
    assert_eq!((backend.allocations(), backend.syncs()), (allocations, syncs));
    let ops = backend.ops();
    assert_eq!(ops[0], "embed_fwd");
    assert!(!ops.contains(&"linear_bwd_weight"), "a frozen base has no weight gradients");
    let count = |op: &str| ops.iter().filter(|&&o| o == op).count();
    assert_eq!(count("attention_fwd"), 3);
    assert_eq!(count("attention_bwd"), 3);
    if model.config.family != Family::Llama {
        return;
    }
    assert_eq!(ops[forward - 1], "rms_norm_fwd");
    // The lowest layer's input has no reader: q, k and v of layer 0 need no input gradient.
    assert_eq!(count("linear_bwd_input"), 3 * 7 - 3);
}

#[test]
fn memory_plan_is_what_is_allocated() {
    models().iter().for_each(|config| plan_is_allocated(config));
}

fn plan_is_allocated(config: &str) {
    let backend = &mut Trace::new();
    let config = parsed(config);
    let layout = lora(&config, &[config.family.modules()[0], Projection::Up]);
    for save in [Save::All, Save::Inputs, Save::Layer] {
        let before = backend.bytes();
        let _acts = Activations::new(backend, &config, Some(&layout), 17, save).expect("memory");
        let plan = Activations::<Trace>::bytes(&config, Some(&layout), 17, save, backend.element_sizes());
        assert_eq!(backend.bytes() - before, plan);
    }
    let before = backend.bytes();
    let _grads = Gradients::new(backend, &config, 17, 5).expect("memory");
    assert_eq!(backend.bytes() - before, Gradients::<Trace>::bytes(&config, 17, 5, backend.element_sizes()));
}

#[test]
fn mean_states_do_not_depend_on_the_packs() {
    let backend = &mut Cpu::new(Dtype::F32);
    let dir = support::temp();
    support::tiny_model::TinyModel::default().write(dir.path());
    let model = Model::load(backend, dir.path()).expect("loads");
    let sequences: Vec<Vec<u32>> =
        (0..9).map(|i| (0..4 + 3 * (i % 4)).map(|j| 1 + (j * 7 + i / 3) % 200).collect()).collect();
    let all = mean_states(backend, &model, &sequences, 1000).expect("states");
    let width = model.config.hidden_size;
    assert_eq!(all.len(), 9 * width);
    for (i, sequence) in sequences.iter().enumerate() {
        let one = mean_states(backend, &model, std::slice::from_ref(sequence), 1).expect("states");
        assert_eq!(one, all[i * width..(i + 1) * width], "sequence {i}");
    }
    assert_eq!(mean_states(backend, &model, &sequences, 20).expect("states"), all);
}
