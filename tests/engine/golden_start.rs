//! LoRAs that start or step otherwise, against peft (`tests/golden/peft_start.py`): PiSSA, LoRA+, and the random starts.

use std::path::{Path, PathBuf};

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::formats::adapter::{InitLoraWeights, LoraAdapter, LoraConfig, LoraModule, Modules, Slot};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::model::{Adaptation, Layout, Model, Source, lora_start};
use llamaprobe::train::data::IGNORE_INDEX;
use llamaprobe::train::schedule::Warmup;
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};

use crate::support::peft::{Case, Errors, beyond, logits, same_tensors, within};
use crate::support::training::difference;
use crate::support::{self, golden};

/// Largest errors allowed, at most three times what is measured over all instruction sets.
fn limits(case: &str) -> [(&'static str, f64); 7] {
    let (loss, grad_norm, first, last, theirs, ours) = match case {
        // The third and fourth singular values of two weights are almost the same: in f32, as peft decomposes them, their
        // vectors are 2.1e-5 from those in f64.
        "pissa" => (2e-6, 1e-5, 4e-5, 8e-5, 3e-6, 3e-5),
        "pissa_gpt2" => (5e-7, 2.5e-6, 3e-6, 9e-6, 1.5e-6, 4.5e-6),
        _ => (5e-7, 2e-6, 0.0, 4.5e-6, 1.9e-6, 2e-6),
    };
    [
        ("loss", loss),
        ("gradient norm", grad_norm),
        ("learning rate", 0.0),
        ("B A at first", first),
        ("B A at last", last),
        ("logits of peft's adapter", theirs),
        ("logits of our adapter", ours),
    ]
}

fn case(name: &str) -> (PathBuf, Case) {
    let dir = golden("peft_start").join(name);
    let case = Case::read(&dir);
    (dir, case)
}

fn base(case: &Case) -> (PathBuf, ModelConfig) {
    let dir = case.model_dir().expect("a model of our own");
    let config = ModelConfig::load(&dir).expect("a configuration");
    (dir, config)
}

/// `scale B A` of a module `[output, input]`.
fn update(module: &LoraModule) -> Vec<f64> {
    let (r, input) = (module.r, module.a.len() / module.r);
    let entry = |row: &[f32], i: usize| {
        (0..r).map(|k| f64::from(row[k]) * f64::from(module.a[k * input + i])).sum::<f64>() * module.scale
    };
    module.b.chunks_exact(r).flat_map(|row| (0..input).map(move |i| entry(row, i)).collect::<Vec<_>>()).collect()
}

/// The largest difference of all updates: the signs of singular vectors are chance.
fn apart(found: &LoraAdapter, expected: &LoraAdapter) -> f64 {
    let all = |adapter: &LoraAdapter| adapter.modules.iter().flat_map(update).collect::<Vec<f64>>();
    difference(&all(found), &all(expected))
}

/// An adapter of zeros.
fn zeros(config: LoraConfig, model: &ModelConfig) -> LoraAdapter {
    let slots = config.slots(model.family, model.num_hidden_layers).expect("slots");
    let zeros = |Slot { layer, target, r, scale }: Slot| {
        let (input, output) = model.widths(target);
        LoraModule { layer, target, r, scale, a: vec![0.0; r * input], b: vec![0.0; r * output], magnitude: None }
    };
    let modules = slots.blocks.into_iter().map(zeros).collect();
    LoraAdapter::new(config, model, modules)
}

/// An adapter as peft saved it, whose configuration may say that the base is another.
fn saved(dir: &Path, model: &ModelConfig) -> LoraAdapter {
    let plain = support::temp();
    let text = std::fs::read_to_string(dir.join("adapter_config.json")).expect("a configuration");
    let text = text.replace("\"pissa\"", "true");
    std::fs::write(plain.path().join("adapter_config.json"), text).expect("written");
    std::fs::copy(dir.join("adapter_model.safetensors"), plain.path().join("adapter_model.safetensors"))
        .expect("copied");
    LoraAdapter::read(plain.path(), model).expect("an adapter")
}

/// Trains from an adapter, over the base model without `start`.
fn train<B: Backend>(
    backend: &mut B,
    case: &Case,
    mut model: Model<B>,
    init: &LoraAdapter,
    start: Vec<LoraModule>,
    ratio: Option<f64>,
    mistake: &Mistake,
) -> (Errors, LoraAdapter) {
    let layout = Layout::of_adapter(&model.config, init).expect("a layout");
    let mut adaptation = Adaptation::new(backend, layout, 1).expect("memory").started_at(start);
    adaptation.set_run(backend, &model.config, 0, init).expect("a start");
    let mut run = case.run();
    (mistake.run)(&mut run);
    run.settings.loraplus_lr_ratio = ratio;
    let tuned = Trainable::Adapters(adaptation);
    let options = TrainerOptions::default();
    let mut trainer = Trainer::new(backend, &model, tuned, vec![run], options).expect("a trainer");
    let errors = case.train(backend, &mut model, &mut trainer);
    let Trainable::Adapters(trained) = trainer.finish() else { panic!("adapters were given") };
    let found = trained.adapter(backend, 0, &init.config).expect("the adapter");
    (errors, found)
}

/// What a case's final adapters, peft's (up to a mistake) and ours, do to the base model as it is. Ours is `kept` in a folder.
fn finish<B: Backend>(
    backend: &mut B,
    name: &str,
    (mut errors, found): (Errors, LoraAdapter),
    mistake: &Mistake,
    kept: Option<&Path>,
) -> Errors {
    let (dir, case) = case(name);
    let (path, config) = base(&case);
    let mut expected = LoraAdapter::read(dir.join("final"), &config).expect("an adapter");
    errors.push(("B A at last", apart(&found, &expected)));
    let written = support::temp();
    found.write(written.path()).expect("written");
    same_tensors(written.path(), &dir.join("final"));
    let ours = LoraAdapter::read(written.path(), &config).expect("read back");
    assert!(ours.modules == found.modules, "{name}: an adapter is what was written");
    let model = Model::load(backend, &path).expect("the model");
    (mistake.adapter)(&mut expected);
    for (what, adapter) in [("logits of peft's adapter", expected), ("logits of our adapter", ours)] {
        let adaptation = Adaptation::of_adapters(backend, &model, &[adapter]).expect("an adapter");
        let found = logits(backend, &model, &adaptation, &case.data[0].input_ids);
        errors.push((what, difference(&found, &case.logits)));
        if let (Some(kept), "logits of our adapter") = (kept, what) {
            ours_kept(&kept.join(name), written.path(), &found);
        }
    }
    errors
}

/// For tests/golden/check_adapter.py.
fn ours_kept(kept: &Path, written: &Path, logits: &[f64]) {
    std::fs::create_dir_all(kept).expect("a folder");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(written.join(file), kept.join(file)).expect("kept");
    }
    std::fs::write(kept.join("logits.json"), serde_json::to_string(logits).expect("JSON")).expect("kept");
}

/// A mistake in the settings or data, in what is trained from, in LoRA+'s ratio, and in the adapter that peft has trained.
struct Mistake {
    run: fn(&mut Run),
    start: fn(&mut LoraAdapter),
    ratio: f64,
    adapter: fn(&mut LoraAdapter),
}

const NONE: Mistake = Mistake { run: |_| (), start: |_| (), ratio: 1.0, adapter: |_| () };

/// Trains a case that starts from singular vectors as peft did, up to a mistake.
fn pissa<B: Backend>(backend: &mut B, name: &str, mistake: &Mistake, kept: Option<&Path>) -> Errors {
    let (dir, case) = case(name);
    let (path, config) = base(&case);
    let expected = saved(&dir.join("init"), &config);
    let settings = LoraConfig { init_lora_weights: InitLoraWeights::Pissa, ..expected.config.clone() };
    let mut init = zeros(settings, &config);
    let checkpoint = Checkpoint::open(&path).expect("weights");
    let source = Source::new(&config, &checkpoint).expect("a source");
    lora_start::start(&mut init, &source, 1).expect("a start");
    (mistake.start)(&mut init);
    let first = apart(&init, &expected);
    let residual = lora_start::without(&init, &source).expect("a residual base");
    let model = Model::new(backend, &config, &residual).expect("a model");
    let (mut errors, found) = train(backend, &case, model, &init, init.modules.clone(), None, mistake);
    errors.push(("B A at first", first));
    assert_eq!((found.config.r, found.config.init_lora_weights), (2 * init.config.r, InitLoraWeights::True));
    finish(backend, name, (errors, found), mistake, kept)
}

/// Trains a case with two rates as peft did, up to a mistake.
fn loraplus<B: Backend>(backend: &mut B, name: &str, mistake: &Mistake, kept: Option<&Path>) -> Errors {
    let (dir, case) = case(name);
    let (path, config) = base(&case);
    let init = saved(&dir.join("init"), &config);
    let model = Model::load(backend, &path).expect("a model");
    let ratio = if name == "loraplus" { 16.0 } else { 4.0 };
    let trained = train(backend, &case, model, &init, Vec::new(), Some(mistake.ratio * ratio), mistake);
    finish(backend, name, trained, mistake, kept)
}

/// On f32 with every instruction set, and on f64.
fn check(name: &str, measure: fn(&mut Cpu<f32>, &str, &Mistake, Option<&Path>) -> Errors, oracle: Errors) {
    let kept = std::env::var_os("LLAMAPROBE_KEEP").map(PathBuf::from);
    for &isa in Isa::available() {
        let backend = &mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) });
        let errors = measure(backend, name, &NONE, kept.as_deref());
        within(&format!("{name} on f32 {}", isa.name()), &errors, &limits(name));
    }
    within(&format!("{name} on f64"), &oracle, &limits(name));
}

#[test]
fn pissa_starts_trains_and_is_saved_as_in_peft() {
    for name in ["pissa", "pissa_gpt2"] {
        check(name, pissa, pissa(&mut Cpu::oracle(), name, &NONE, None));
    }
}

#[test]
fn loraplus_steps_as_in_peft() {
    for name in ["loraplus", "loraplus_gpt2"] {
        check(name, loraplus, loraplus(&mut Cpu::oracle(), name, &NONE, None));
    }
}

#[test]
fn start_limits_see_small_mistakes() {
    fn in_bf16(adapter: &mut LoraAdapter) {
        adapter.modules[0].a.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
    }
    let steps = ["loss", "gradient norm", "B A at last", "logits of our adapter"];
    let warmup = Mistake { run: |run| run.settings.warmup = Warmup::Steps(4), ..NONE };
    let rounded = Mistake { adapter: in_bf16, ..NONE };
    let label = Mistake { run: |run| *run.data[2].labels.last_mut().expect("a label") = IGNORE_INDEX, ..NONE };
    let mistakes: [(&str, &Mistake, &[&str]); 3] = [
        ("a warm-up of four steps", &warmup, &["learning rate"]),
        ("an A of peft's in bf16", &rounded, &["logits of peft's adapter"]),
        ("a label left out", &label, &steps),
    ];
    let ratio = Mistake { ratio: 1.05, ..NONE };
    let start = Mistake { start: in_bf16, ..NONE };
    for name in ["pissa", "pissa_gpt2", "loraplus", "loraplus_gpt2"] {
        let by_vectors = name.starts_with("pissa");
        let own: (&str, &Mistake, &[&str]) =
            if by_vectors { ("a start in bf16", &start, &["B A at first"]) } else { ("another ratio", &ratio, &steps) };
        for (what, mistake, seen_by) in mistakes.into_iter().chain([own]) {
            let backend = &mut Cpu::new(Dtype::F32);
            let measure = if by_vectors { pissa } else { loraplus };
            let errors = measure(backend, name, mistake, None);
            beyond(&format!("{name}, {what}"), &errors, &limits(name), seen_by);
        }
    }
}

/// Mean and deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (mean, (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// The distributions of peft's `reset_lora_parameters` and `orthogonal_init`.
#[test]
fn random_starts_have_the_distributions_of_peft() {
    let (path, config) = (golden("peft/tiny"), ModelConfig::load(golden("peft/tiny")).expect("a configuration"));
    let checkpoint = Checkpoint::open(&path).expect("weights");
    let source = Source::new(&config, &checkpoint).expect("a source");
    let start = |how: InitLoraWeights, r: usize| {
        let settings = LoraConfig { init_lora_weights: how, ..LoraConfig::new(r, 8.0, Modules::AllLinear) };
        let mut adapter = zeros(settings, &config);
        lora_start::start(&mut adapter, &source, 3).map(|()| adapter)
    };
    let all = |adapter: &LoraAdapter, part: fn(&LoraModule) -> &Vec<f32>, times: fn(&LoraModule) -> f32| {
        let scaled = |m| part(m).iter().map(move |x| x * times(m)).collect::<Vec<f32>>();
        adapter.modules.iter().flat_map(scaled).collect::<Vec<f32>>()
    };
    let [a, b]: [fn(&LoraModule) -> &Vec<f32>; 2] = [|m| &m.a, |m| &m.b];
    let near = |found: (f64, f64), deviation: f64| {
        found.0.abs() < 0.05 * deviation && (found.1 / deviation - 1.0).abs() < 0.05
    };
    // A uniform number within 1 has the deviation 1 / sqrt(3).
    let uniform = 3f64.sqrt().recip();
    let root = |m: &LoraModule| ((m.a.len() / m.r) as f32).sqrt();
    let plain = start(InitLoraWeights::True, 8).expect("a start");
    assert!(near(moments(&all(&plain, a, root)), uniform) && all(&plain, b, |_| 1.0).iter().all(|&x| x == 0.0));
    let both = start(InitLoraWeights::False, 8).expect("a start");
    assert!(near(moments(&all(&both, a, root)), uniform) && near(moments(&all(&both, b, |_| 8f32.sqrt())), uniform));
    let normal = start(InitLoraWeights::Gaussian, 8).expect("a start");
    assert!(near(moments(&all(&normal, a, |_| 8.0)), 1.0) && all(&normal, b, |_| 1.0).iter().all(|&x| x == 0.0));
    let beyond = all(&normal, a, |_| 8.0).iter().filter(|x| x.abs() > 2.0).count() as f64;
    let share = beyond / all(&normal, a, |_| 1.0).len() as f64;
    assert!((0.03..0.06).contains(&share), "4.6 percent of normal numbers are beyond two deviations, found {share}");
    let crossed = start(InitLoraWeights::Orthogonal, 8).expect("a start");
    // Each element is a sum of r / 2 normal numbers of deviation 0.1 with weights whose squares sum to 1/2 in the mean.
    let deviation = 0.1 * 0.5f64.sqrt();
    assert!(
        near(moments(&all(&crossed, a, |_| 1.0)), deviation) && near(moments(&all(&crossed, b, |_| 1.0)), deviation)
    );
    let largest = crossed.modules.iter().flat_map(update).fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(largest < 1e-7, "B A is {largest}");
    let odd = start(InitLoraWeights::Orthogonal, 3).expect_err("odd").to_string();
    assert!(odd.contains("even") && odd.contains('3'), "{odd}");
    let wide = start(InitLoraWeights::Pissa, 33).expect_err("too many").to_string();
    assert!(wide.contains("singular vectors") && wide.contains("33"), "{wide}");
}
