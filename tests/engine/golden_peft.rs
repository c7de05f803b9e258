//! LoRA tuning against files made by peft (`tests/golden/peft_train.py`).

use std::path::PathBuf;

use llamaprobe::arch::Dtype;
use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::{Cpu, CpuSettings, Isa};
use llamaprobe::formats::adapter::{LoraAdapter, LoraModule};
use llamaprobe::model::{Adaptation, Model};
use llamaprobe::train::schedule::Warmup;
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};

use crate::support::peft::{Case, Errors, beyond, logits, same_tensors, within};
use crate::support::training::difference;
use crate::support::{self, golden};

/// The largest difference of all A, and of all B, as shares of their largest magnitudes.
fn apart(found: &LoraAdapter, expected: &LoraAdapter) -> (f64, f64) {
    let all = |adapter: &LoraAdapter, part: fn(&LoraModule) -> &Vec<f32>| {
        adapter.modules.iter().flat_map(|m| part(m).iter().map(|&x| f64::from(x))).collect::<Vec<f64>>()
    };
    let of = |part| difference(&all(found, part), &all(expected, part));
    (of(|m| &m.a), of(|m| &m.b))
}

/// Largest errors allowed, at most three times what is measured over all instruction sets.
fn limits(case: &str) -> [(&'static str, f64); 7] {
    let (grad_norm, a, b) = match case {
        // Its gradients are clipped, and pass through seven projections in every layer.
        "all_linear" => (3.5e-5, 6e-6, 6e-6),
        // B starts from zero and is still small after twenty steps.
        "stories260K" => (2e-6, 1.2e-5, 9e-5),
        _ => (3e-6, 4.5e-6, 5.5e-6),
    };
    [
        ("loss", 2e-6),
        ("gradient norm", grad_norm),
        ("learning rate", 0.0),
        ("A", a),
        ("B", b),
        ("logits of peft's adapter", 4e-6),
        ("logits of our adapter", 5e-6),
    ]
}

/// A mistake in the settings or data, and in the adapter that peft has trained.
struct Mistake {
    run: fn(&mut Run),
    adapter: fn(&mut LoraAdapter),
}

const NONE: Mistake = Mistake { run: |_| (), adapter: |_| () };

/// Trains a case as peft did, up to a mistake; `None` where its model is not there.
fn measure<B: Backend>(backend: &mut B, name: &str, rows: Option<usize>, mistake: &Mistake) -> Option<Errors> {
    let case = Case::read(&golden("peft").join(name));
    let dir = case.model_dir()?;
    let config = ModelConfig::load(&dir).expect("the configuration loads");
    let mut model = Model::load(backend, &dir).expect("the model loads");
    let adapter = |part: &str| LoraAdapter::read(golden("peft").join(name).join(part), &config).expect("an adapter");
    let (start, expected) = (adapter("init"), adapter("final"));
    let adaptation = Adaptation::of_adapters(backend, &model, &[start]).expect("a start");
    let mut options = TrainerOptions::default();
    options.row_budget = rows.unwrap_or(options.row_budget);
    let mut run = case.run();
    (mistake.run)(&mut run);
    let tuned = Trainable::Adapters(adaptation);
    let mut trainer = Trainer::new(backend, &model, tuned, vec![run], options).expect("a trainer");
    let mut errors = case.train(backend, &mut model, &mut trainer);
    let Trainable::Adapters(trained) = trainer.finish() else { panic!("adapters were given") };
    let found = trained.adapter(backend, 0, &expected.config).expect("the adapter");
    let (a, b) = apart(&found, &expected);
    errors.extend([("A", a), ("B", b)]);

    // An adapter as peft wrote it, and ours through its own files, give peft's logits.
    let ids = &case.data[0].input_ids;
    let mut peft = expected.clone();
    (mistake.adapter)(&mut peft);
    let peft = Adaptation::of_adapters(backend, &model, &[peft]).expect("an adapter");
    let far = difference(&logits(backend, &model, &peft, ids), &case.logits);
    errors.push(("logits of peft's adapter", far));
    let written = support::temp();
    found.write(written.path()).expect("written");
    let ours = LoraAdapter::read(written.path(), &config).expect("read back");
    assert!(ours.modules == found.modules, "{name}: an adapter is what was written");
    let ours = Adaptation::of_adapters(backend, &model, &[ours]).expect("an adapter");
    let our_logits = logits(backend, &model, &ours, ids);
    errors.push(("logits of our adapter", difference(&our_logits, &case.logits)));
    // For tests/golden/check_adapter.py.
    if let (Some(dir), None) = (std::env::var_os("LLAMAPROBE_KEEP"), rows) {
        let dir = PathBuf::from(dir).join(name);
        found.write(&dir).expect("kept");
        let text = serde_json::to_string(&our_logits).expect("JSON");
        std::fs::write(dir.join("logits.json"), text).expect("kept");
    }
    same_tensors(written.path(), &golden("peft").join(name).join("final"));
    Some(errors)
}

/// On every instruction set of f32, with batches cut into passes of few rows, and in f64.
fn check(name: &str) {
    let check = |what: &str, errors: Option<Errors>| errors.iter().for_each(|e| within(what, e, &limits(name)));
    for &isa in Isa::available() {
        let errors =
            measure(&mut Cpu::<f32>::open(&CpuSettings { isa, ..CpuSettings::new(Dtype::F32) }), name, None, &NONE);
        check(&format!("{name} on f32 {}", isa.name()), errors);
    }
    check(&format!("{name} in small passes"), measure(&mut Cpu::new(Dtype::F32), name, Some(16), &NONE));
    check(&format!("{name} on f64"), measure(&mut Cpu::oracle(), name, None, &NONE));
}

#[test]
fn lora_of_query_and_value_is_pefts() {
    check("query_value");
}

#[test]
fn lora_of_all_projections_with_everything_on_is_pefts() {
    check("all_linear");
}

#[test]
fn lora_of_ranks_and_alphas_by_pattern_is_pefts() {
    check("patterns");
}

#[test]
fn lora_of_a_trained_model_is_pefts() {
    check("stories260K");
}

#[test]
fn lora_limits_see_small_mistakes() {
    let mistakes: [(&str, &str, Mistake, &[&str]); 6] = [
        (
            "all_linear",
            "a warm-up that is a step longer",
            Mistake { run: |run| run.settings.warmup = Warmup::Steps(5), ..NONE },
            &["learning rate", "loss", "gradient norm", "A", "B", "logits of our adapter"],
        ),
        (
            "all_linear",
            "no weight decay",
            Mistake { run: |run| run.settings.weight_decay = 0.0, ..NONE },
            &["loss", "gradient norm", "A", "B", "logits of our adapter"],
        ),
        (
            "query_value",
            "an epsilon of 1e-7 in AdamW",
            Mistake { run: |run| run.settings.epsilon = 1e-7, ..NONE },
            &["A", "B"],
        ),
        (
            "stories260K",
            "an epsilon of 1e-7 in AdamW",
            Mistake { run: |run| run.settings.epsilon = 1e-7, ..NONE },
            &["gradient norm", "A", "B"],
        ),
        (
            "patterns",
            "a label left out",
            Mistake { run: |run| *run.data[2].labels.last_mut().expect("a label") = -100, ..NONE },
            &["loss", "gradient norm", "A", "B", "logits of our adapter"],
        ),
        (
            "query_value",
            "an A in bf16",
            Mistake {
                adapter: |adapter| {
                    adapter.modules[0].a.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
                },
                ..NONE
            },
            &["logits of peft's adapter"],
        ),
    ];
    for (case, what, mistake, seen_by) in mistakes {
        let Some(errors) = measure(&mut Cpu::new(Dtype::F32), case, None, &mistake) else { continue };
        beyond(&format!("{case}, {what}"), &errors, &limits(case), seen_by);
    }
}
