//! The forward against files made by transformers (`tests/golden/model.py`, `tests/golden/families.py`).

use std::path::PathBuf;

use llamaprobe::arch::Dtype;
use llamaprobe::arch::{Activation, Mlp, ModelConfig, Norm, Positions, RmsWeight, RopeKind, RopePairs};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::formats::adapter::LoraAdapter;
use llamaprobe::formats::safetensors::{Checkpoint, Dtype as FileDtype, Tensor, write};
use llamaprobe::hooks::{Record, Selection, Site};
use llamaprobe::model::{Activations, Adaptation, Input, Model, Save, Unembedding};
use llamaprobe::pack::{Label, Pack, Sequence};

use crate::support;

/// Largest difference allowed, as a share of the expected tensor's largest magnitude: three times what is measured (1.2e-6).
const LIMIT: f64 = 3e-6;

/// A mistake, made in what was read.
type Change<T> = fn(&mut T);

fn golden(name: &str) -> PathBuf {
    support::golden(&format!("model-{name}"))
}

fn floats(expected: &Checkpoint, name: &str) -> Vec<f32> {
    expected.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32().expect("floats")
}

fn ids(expected: &Checkpoint, s: usize) -> Vec<u32> {
    let view = expected.get(&format!("ids.{s}")).expect("ids");
    view.as_slice::<i64>().expect("i64").iter().map(|&id| id as u32).collect()
}

/// The largest difference as a share of the expected tensor's largest magnitude.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
    found.iter().zip(expected).fold(0.0f64, |m, (&a, &b)| m.max((f64::from(a) - f64::from(b)).abs())) / largest
}

/// Runs sequences in one pack, through an adapter if there is one; the record holds all rows, sequence by sequence.
fn run<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    sequences: &[Vec<u32>],
    adaptation: Option<&Adaptation<B>>,
) -> Record {
    let active = adaptation.map(|_| 0);
    let sequences: Vec<Sequence> = sequences.iter().map(|ids| Sequence::ids(ids, active, Label::Text)).collect();
    let planted = model.config.pack(&sequences, 1);
    let pack: &Pack = &planted.pack;
    let rows = sequences.iter().enumerate().flat_map(|(s, q)| (0..q.tokens.len()).map(move |i| (s, i)));
    let rows: Vec<usize> = rows.map(|(s, i)| planted.row(s, i)).collect();
    let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
    let sites = [Site::ResidPre, Site::ResidPost, Site::FINAL_NORM, Site::Logits];
    let mut record = Record::new(Selection::new(&sites, &layers), rows);
    let device = backend.pack(pack).expect("pack");
    let layout = adaptation.map(|adaptation| &adaptation.layout);
    let mut acts = Activations::new(backend, &model.config, layout, pack.len(), Save::Layer).expect("buffers");
    let input = Input { adaptation, ..Input::new(pack, &device) };
    model.forward(backend, &mut acts, &input, None, &mut record).expect("forward");
    backend.sync().expect("sync");
    record
}

/// Runs a golden model, all sequences in one pack or each alone, with a changed configuration; the largest difference
/// of any tensor and which it is.
fn worst<B: Backend>(backend: &mut B, name: &str, together: bool, change: fn(&mut ModelConfig)) -> (f64, String) {
    let path = golden(name);
    let mut config = ModelConfig::load(&path).expect("the configuration loads");
    change(&mut config);
    let model = Model::new(backend, &config, &Checkpoint::open(&path).expect("the weights open")).expect("a model");
    let expected = Checkpoint::open(path.join("expected.safetensors")).expect("the expected values load");
    let all: Vec<Vec<u32>> = (0..3).map(|s| ids(&expected, s)).collect();
    let groups: Vec<Vec<usize>> = if together { vec![vec![0, 1, 2]] } else { vec![vec![0], vec![1], vec![2]] };
    let first = if expected.get("embed.0").is_some() { "embed" } else { "resid_pre" };
    let mut hooks = vec![(Site::ResidPre, 0, first.to_owned()), (Site::FINAL_NORM, 0, "final_norm".to_owned())];
    hooks.push((Site::Logits, 0, "logits".to_owned()));
    hooks.extend((0..config.num_hidden_layers).map(|layer| (Site::ResidPost, layer, format!("resid_post.{layer}"))));
    let mut worst = (0.0, String::new());
    for group in groups {
        let sequences: Vec<Vec<u32>> = group.iter().map(|&s| all[s].clone()).collect();
        let record = run(backend, &model, &sequences, None);
        for (site, layer, tensor) in &hooks {
            let found = record.get(*site, *layer).expect("recorded");
            let width = record.width(*site, *layer).expect("recorded");
            let mut from = 0;
            for (&s, sequence) in group.iter().zip(&sequences) {
                let rows = &found[from * width..(from + sequence.len()) * width];
                from += sequence.len();
                let tensor = format!("{tensor}.{s}");
                let far = difference(rows, &floats(&expected, &tensor));
                if far > worst.0 {
                    worst = (far, tensor);
                }
            }
        }
    }
    worst
}

fn check<B: Backend>(backend: &mut B, name: &str, together: bool) {
    let (far, tensor) = worst(backend, name, together, |_| ());
    println!("{name} on {}: worst {far:.1e} at {tensor}, limit {LIMIT:.0e}", backend.name());
    assert!(far <= LIMIT, "{name}: {tensor}: {far:.1e} of its largest magnitude, limit {LIMIT:.0e}");
}

/// Every instruction set of f32, and f64.
fn check_all(name: &str) {
    Isa::available().iter().for_each(|&isa| {
        check(&mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) }), name, true)
    });
    check(&mut Cpu::oracle(), name, true);
}

#[test]
fn forward_of_every_rotation_is_transformers() {
    ["gqa-llama3", "biases-linear", "yarn", "mistral-window", "qwen2"].into_iter().for_each(check_all);
    // The scaling of transformers' dynamic rotation depends on the longest sequence of the batch.
    check(&mut Cpu::new(Dtype::F32), "dynamic", false);
}

const FAMILIES: [&str; 24] = [
    "gpt2",
    "opt",
    "opt-behind",
    "bloom",
    "qwen3",
    "qwen3-window",
    "gemma2",
    "gemma2-uncapped",
    "gemma3",
    "gemma3-images",
    "gemma3-two-sided",
    "olmo2",
    "olmo3",
    "neox",
    "neox-sequential",
    "phi3",
    "phi3-long",
    "phi",
    "phi-tied",
    "gptj",
    "gptj-tied",
    "smollm3",
    "starcoder2",
    "stablelm",
];

/// Whether a golden model turns sequences of different lengths differently, so that they are not in one pass.
fn by_length(name: &str) -> bool {
    ["dynamic", "phi3-long"].contains(&name)
}

#[test]
fn forward_of_the_other_families_is_transformers() {
    for name in FAMILIES {
        if by_length(name) {
            check(&mut Cpu::new(Dtype::F32), name, false);
        } else {
            check_all(name);
        }
        check(&mut Cpu::oracle(), name, false);
    }
}

/// The golden models' weights tell apart norms before the rotation from norms behind it.
#[test]
fn norms_of_queries_stand_before_the_rotation() {
    for name in ["qwen3", "qwen3-window", "gemma3", "gemma3-images", "gemma3-two-sided", "olmo2", "olmo3"] {
        let expected = Checkpoint::open(golden(name).join("expected.safetensors")).expect("the expected values load");
        let far = difference(&floats(&expected, "norm_last.2"), &floats(&expected, "logits.2"));
        println!("{name}, norms behind the rotation: {far:.1e}, limit {LIMIT:.0e}");
        assert!(far > LIMIT, "{name}: norms behind the rotation go unseen: {far:.1e}, limit {LIMIT:.0e}");
    }
}

/// Small mistakes that one could make in reading or computing each model.
#[test]
fn forward_limits_see_small_mistakes() {
    fn rope(config: &mut ModelConfig, change: fn(&mut RopeKind)) {
        let Positions::Rope(ropes) = &mut config.positions else { panic!("a rotation") };
        ropes.iter_mut().for_each(|rope| change(&mut rope.kind));
    }
    fn default_eps(config: &mut ModelConfig) {
        config.norm_eps = if config.norm_eps == 1e-6 { 1e-5 } else { 1e-6 };
    }
    fn rounded_scale(config: &mut ModelConfig) {
        config.score_scales.iter_mut().for_each(|x| *x = half::bf16::from_f64(*x).to_f64());
    }
    fn longer_windows(config: &mut ModelConfig) {
        config.windows.iter_mut().flatten().for_each(|window| *window += 1);
    }
    fn swapped_rotations(config: &mut ModelConfig) {
        let Positions::Rope(ropes) = &mut config.positions else { panic!("rotations") };
        ropes.reverse();
    }
    fn plain_weight(config: &mut ModelConfig) {
        config.norm = Norm::Rms(RmsWeight::Exact);
    }
    fn scale_of_heads(config: &mut ModelConfig) {
        config.score_scales.fill((config.head_dim as f64).powf(-0.5));
    }
    fn unscaled(config: &mut ModelConfig) {
        config.embed_scale = 1.0;
    }
    fn scale_in_bf16(config: &mut ModelConfig) {
        config.embed_scale = half::bf16::from_f64(config.embed_scale).to_f64();
    }
    fn whole_rotation(config: &mut ModelConfig) {
        let Positions::Rope(ropes) = &mut config.positions else { panic!("rotations") };
        ropes.iter_mut().for_each(|rope| rope.dim = config.head_dim);
    }
    fn halves(config: &mut ModelConfig) {
        let Positions::Rope(ropes) = &mut config.positions else { panic!("rotations") };
        ropes.iter_mut().for_each(|rope| rope.pairs = RopePairs::Halves);
    }
    fn exact_gelu(config: &mut ModelConfig) {
        config.mlp = Mlp::Gated(Activation::Gelu);
    }
    let mistakes: [(&str, &str, Change<ModelConfig>); 61] = [
        ("qwen3", "the other default epsilon", default_eps),
        ("qwen3", "a scale of scores in bf16", rounded_scale),
        ("qwen3-window", "a window off by one", longer_windows),
        ("qwen3-window", "a window in every layer", |config| config.windows.fill(Some(7))),
        ("gemma2", "weights without 1 added", plain_weight),
        ("gemma2", "no scale of embeddings", unscaled),
        ("gemma2", "a scale of embeddings in bf16", scale_in_bf16),
        ("gemma2", "the scale of the head's width", scale_of_heads),
        ("gemma2", "no cap of scores", |config| config.score_softcap = None),
        ("gemma2", "no cap of logits", |config| config.logit_softcap = None),
        ("gemma2", "a window off by one", longer_windows),
        ("gemma2", "windows in the other layers", |config| config.windows.reverse()),
        ("gemma2", "the exact GELU", exact_gelu),
        ("gemma2-uncapped", "the default cap of scores", |config| config.score_softcap = Some(50.0)),
        ("gemma2-uncapped", "the default cap of logits", |config| config.logit_softcap = Some(30.0)),
        ("gemma3", "weights without 1 added", plain_weight),
        ("gemma3", "the other layer's rotation", swapped_rotations),
        ("gemma3", "no cap of logits", |config| config.logit_softcap = None),
        ("gemma3", "a window off by one", longer_windows),
        ("gemma3-images", "the text model's cap of logits", |config| config.logit_softcap = Some(2.0)),
        ("gemma3-images", "the other layer's rotation", swapped_rotations),
        ("gemma3-two-sided", "a window off by one", longer_windows),
        ("olmo2", "the other default epsilon", default_eps),
        ("olmo3", "the other layer's rotation", swapped_rotations),
        ("olmo3", "a window off by one", longer_windows),
        ("neox", "sublayers one after the other", |config| config.parallel = false),
        ("neox", "the whole head rotated", whole_rotation),
        ("neox", "the GELU of tanh", |config| config.mlp = Mlp::Plain(Activation::GeluTanh)),
        ("neox-sequential", "sublayers side by side", |config| config.parallel = true),
        ("phi3", "a window off by one", longer_windows),
        ("phi", "the other default epsilon", default_eps),
        ("phi", "the whole head rotated", whole_rotation),
        ("phi", "the exact GELU", |config| config.mlp = Mlp::Plain(Activation::Gelu)),
        ("phi-tied", "the other default epsilon", default_eps),
        ("starcoder2", "a window off by one", longer_windows),
        ("starcoder2", "the other default epsilon", default_eps),
        ("stablelm", "the whole head rotated", whole_rotation),
        ("stablelm", "the exact GELU", exact_gelu),
        ("smollm3", "every layer rotated", |config| config.no_rope_layers.clear()),
        ("smollm3", "the other layer not rotated", |config| config.no_rope_layers = vec![0]),
        ("gptj", "the other default epsilon", default_eps),
        ("gptj", "halves rotated", halves),
        ("gptj", "the whole head rotated", whole_rotation),
        ("gptj-tied", "the exact GELU", |config| config.mlp = Mlp::Plain(Activation::Gelu)),
        ("phi3-long", "the short factors", |config| {
            rope(config, |kind| {
                let RopeKind::LongRope { short, long, .. } = kind else { panic!("longrope") };
                *long = short.clone();
            })
        }),
        ("gqa-llama3", "the other default epsilon", default_eps),
        ("gqa-llama3", "another pretraining length", |config| {
            rope(config, |kind| {
                let RopeKind::Llama3 { original, .. } = kind else { panic!("llama3") };
                *original += 1;
            })
        }),
        ("biases-linear", "no scaling", |config| rope(config, |kind| *kind = RopeKind::Default)),
        ("biases-linear", "the other default epsilon", default_eps),
        ("yarn", "no factor of cos and sin", |config| {
            rope(config, |kind| {
                let RopeKind::Yarn { attention_factor, .. } = kind else { panic!("yarn") };
                *attention_factor = 1.0;
            })
        }),
        ("yarn", "a ramp that is not rounded", |config| {
            rope(config, |kind| {
                let RopeKind::Yarn { truncate, .. } = kind else { panic!("yarn") };
                *truncate = false;
            })
        }),
        ("dynamic", "a length off by one", |config| {
            rope(config, |kind| {
                let RopeKind::Dynamic { original, .. } = kind else { panic!("dynamic") };
                *original += 1;
            })
        }),
        ("mistral-window", "a window off by one", |config| config.windows = vec![Some(6); 2]),
        ("qwen2", "the other default epsilon", default_eps),
        ("qwen2", "a scale of scores in bf16", rounded_scale),
        ("gpt2", "the exact GELU", |config| config.mlp = Mlp::Plain(Activation::Gelu)),
        ("gpt2", "the other default epsilon", default_eps),
        ("opt", "the other default epsilon", default_eps),
        ("opt-behind", "the other default epsilon", default_eps),
        ("bloom", "the other default epsilon", default_eps),
        ("bloom", "the exact GELU", |config| config.mlp = Mlp::Plain(Activation::Gelu)),
    ];
    for (name, mistake, change) in mistakes {
        let (far, tensor) = worst(&mut Cpu::new(Dtype::F32), name, !by_length(name), change);
        println!("{name}, {mistake}: {far:.1e} at {tensor}, limit {LIMIT:.0e}");
        assert!(far > LIMIT, "{name}: {mistake} goes unseen: {far:.1e}, limit {LIMIT:.0e}");
    }
}

/// The logits of a golden model's sequences through its adapter of PEFT, changed: their difference from PEFT's.
fn adapted(backend: &mut Cpu<f32>, name: &str, change: fn(&mut LoraAdapter)) -> f64 {
    let path = golden(name);
    let expected = Checkpoint::open(path.join("expected.safetensors")).expect("the expected values load");
    let model = Model::load(backend, &path).expect("the checkpoint loads");
    let mut adapter = adapter(name);
    change(&mut adapter);
    let adaptation = Adaptation::of_adapters(backend, &model, &[adapter]).expect("memory");
    let all: Vec<Vec<u32>> = (0..3).map(|s| ids(&expected, s)).collect();
    let passes: Vec<&[Vec<u32>]> = if by_length(name) { all.chunks(1).collect() } else { vec![&all] };
    let mut found = Vec::new();
    for sequences in passes {
        let record = run(backend, &model, sequences, Some(&adaptation));
        found.extend_from_slice(record.get(Site::Logits, 0).expect("recorded"));
    }
    let wanted: Vec<f32> = (0..3).flat_map(|s| floats(&expected, &format!("adapted.{s}"))).collect();
    difference(&found, &wanted)
}

fn adapter(name: &str) -> LoraAdapter {
    let config = ModelConfig::load(golden(name)).expect("the configuration loads");
    LoraAdapter::read(golden(name).join("adapter"), &config).expect("the adapter loads")
}

/// Adapters on every family's own modules: fused, transposed, named after nothing else.
#[test]
fn adapters_of_the_other_families_are_pefts() {
    for name in FAMILIES {
        for &isa in Isa::available() {
            let far =
                adapted(&mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) }), name, |_| ());
            println!("{name} adapted, {}: {far:.1e} of the largest logit, limit {LIMIT:.0e}", isa.name());
            assert!(far <= LIMIT, "{name}: {far:.1e} of the largest logit, limit {LIMIT:.0e}");
        }
        let backend = &mut Cpu::new(Dtype::F32);
        let model = Model::load(backend, &golden(name)).expect("the checkpoint loads");
        let adapter = adapter(name);
        let adaptation = Adaptation::of_adapters(backend, &model, std::slice::from_ref(&adapter)).expect("memory");
        let dir = support::temp();
        let read = adaptation.adapter(backend, 0, &adapter.config).expect("read out");
        read.write(dir.path().join("adapter")).expect("written");
        let bytes = |dir: PathBuf| std::fs::read(dir.join("adapter_model.safetensors")).expect("the file");
        assert!(
            bytes(dir.path().join("adapter")) == bytes(golden(name).join("adapter")),
            "{name}: other bytes than PEFT's"
        );
    }
}

#[test]
fn adapter_limits_see_small_mistakes() {
    let mistakes: [(&str, Change<LoraAdapter>); 2] = [
        ("one module left out", |adapter| drop(adapter.modules.pop())),
        ("an A in bf16", |adapter| {
            adapter.modules[0].a.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }),
    ];
    for name in FAMILIES {
        for (mistake, change) in mistakes {
            let far = adapted(&mut Cpu::new(Dtype::F32), name, change);
            println!("{name} adapted, {mistake}: {far:.1e}, limit {LIMIT:.0e}");
            assert!(far > LIMIT, "{name}: {mistake} goes unseen: {far:.1e}, limit {LIMIT:.0e}");
        }
    }
}

/// The text part of a model of texts and images is found under the names of every release, with a head of its own or tied.
#[test]
fn text_part_has_the_same_logits_under_every_name() {
    let path = golden("gemma3-images");
    let file = Checkpoint::open(path.join("model.safetensors")).expect("opens");
    let sequences = [vec![3, 4, 5, 6, 7, 8, 9]];
    let logits = |config: &ModelConfig, rename: &dyn Fn(&str) -> Option<String>, head: Option<&str>| {
        let dir = support::temp();
        let table = "language_model.model.embed_tokens.weight";
        let mut tensors: Vec<_> = file
            .iter()
            .filter_map(|view| Some((rename(&view.name)?, view.shape.to_vec(), view.data.to_vec())))
            .collect();
        let head = head.map(|head| (head.to_owned(), file.get(table).expect("the table")));
        tensors.extend(head.map(|(head, view)| (head, view.shape.to_vec(), view.data.to_vec())));
        let views: Vec<Tensor> =
            tensors.iter().map(|(name, shape, data)| Tensor { name, dtype: FileDtype::F32, shape, data }).collect();
        write(dir.path().join("model.safetensors"), &views, &[]).expect("writes");
        let backend = &mut Cpu::<f32>::new(Dtype::F32);
        let checkpoint = Checkpoint::open(dir.path().join("model.safetensors")).expect("opens");
        let model = Model::new(backend, config, &checkpoint).expect("a model");
        run(backend, &model, &sequences, None).get(Site::Logits, 0).expect("logits").to_vec()
    };
    let tied = ModelConfig::load(&path).expect("the configuration loads");
    let untied = ModelConfig { tie_word_embeddings: false, ..tied.clone() };
    let saved = |name: &str| Some(name.to_owned());
    let live = |name: &str| Some(name.replace("language_model.model.", "model.language_model."));
    let text = |name: &str| name.strip_prefix("language_model.").map(str::to_owned);
    let body = |name: &str| Some(name.replace("language_model.model.", "language_model."));
    let expected = logits(&tied, &saved, None);
    for (what, rename) in [("live", &live as &dyn Fn(&str) -> Option<String>), ("text", &text), ("body", &body)] {
        assert_eq!(logits(&tied, rename, None), expected, "{what}");
    }
    assert_eq!(logits(&untied, &saved, Some("language_model.lm_head.weight")), expected);
    assert_eq!(logits(&untied, &live, Some("lm_head.weight")), expected);
}

/// The rows of a head, with the elements of its bias, make of the final norm's output the logits of transformers.
#[test]
fn unembedding_has_the_heads_bias() {
    for name in ["phi", "gptj-tied"] {
        let (path, tokens) = (golden(name), [3, 28]);
        let config = ModelConfig::load(&path).expect("the configuration loads");
        let expected = Checkpoint::open(path.join("expected.safetensors")).expect("the expected values load");
        let weights = Checkpoint::open(&path).expect("the weights open");
        let end = Unembedding::read(&config, &weights, &tokens).expect("reads").expect("an end");
        let bias = end.bias.expect("a bias");
        let [normed, logits] = ["final_norm.2", "logits.2"].map(|name| floats(&expected, name));
        let last = &normed[normed.len() - config.hidden_size..];
        let dots = end.rows.iter().map(|row| row.iter().zip(last).map(|(a, b)| a * b).sum::<f32>());
        let (dots, wanted) = (dots.collect::<Vec<_>>(), &logits[logits.len() - config.vocab_size..]);
        let wanted = tokens.map(|token| wanted[token as usize]);
        let found: Vec<f32> = dots.iter().zip(&bias).map(|(x, b)| x + b).collect();
        assert!(difference(&found, &wanted) <= LIMIT, "{name}: {found:?} {wanted:?}");
        assert!(difference(&dots, &wanted) > LIMIT, "{name}: a bias goes unseen");
    }
}
