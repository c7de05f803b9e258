//! Adapters that are more than A and B, against files made by peft (`tests/golden/peft_variants.py`).

use std::path::{Path, PathBuf};

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::adapter::{Adapter, Table};
use llamaprobe::model::{Adaptation, Model};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};

use crate::support::peft::{Case, Errors, beyond, distance, logits, same_tensors, within};
use crate::support::training::difference;
use crate::support::{self, golden};

/// Largest errors allowed: at most three times what is measured, and of the tensors twice peft's own distance.
fn limits(gradient_norm: f64) -> [(&'static str, f64); 6] {
    [
        ("loss", 6e-7),
        ("gradient norm", gradient_norm),
        ("learning rate", 0.0),
        ("tensors, of peft's own distance from f64", 2.0),
        ("logits of peft's adapter", 2.8e-6),
        ("logits of our adapter", 3e-6),
    ]
}

/// Limit of the gradient norm, relative.
const NORM: f64 = 2.7e-6;
/// Of a table, over whose rows peft sums in f32: f64 here is 3.0e-6 away.
const OF_TABLES: f64 = 6.5e-6;

/// A mistake in the settings, and in the adapter that it starts with.
struct Mistake {
    run: fn(&mut Run),
    start: fn(&mut Adapter),
}

const NONE: Mistake = Mistake { run: |_| (), start: |_| () };

fn dir(name: &str) -> PathBuf {
    golden("peft_variants").join(name)
}

/// For tests/golden/check_adapter.py.
fn keep(name: &str, written: &Path, logits: &[f64]) {
    let Some(kept) = std::env::var_os("LLAMAPROBE_KEEP") else { return };
    let kept = PathBuf::from(kept).join(name);
    std::fs::create_dir_all(&kept).expect("a folder");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(written.join(file), kept.join(file)).expect("kept");
    }
    std::fs::write(kept.join("logits.json"), serde_json::to_string(logits).expect("JSON")).expect("kept");
}

/// Trains a case as peft did, up to a mistake.
fn measure<B: Backend>(backend: &mut B, name: &str, mistake: &Mistake) -> Errors {
    let case = Case::read(&dir(name));
    let path = case.model_dir().expect("a model of our own");
    let config = ModelConfig::load(&path).expect("a configuration");
    let mut model = Model::load(backend, &path).expect("a model");
    let mut start = Adapter::read(dir(name).join("init"), &config).expect("an adapter");
    (mistake.start)(&mut start);
    let adaptation = Adaptation::applied(backend, &mut model, &start).expect("a start");
    let mut run = case.run();
    (mistake.run)(&mut run);
    let (tuned, options) = (Trainable::Adapters(adaptation), TrainerOptions::default());
    let mut trainer = Trainer::new(backend, &model, tuned, vec![run], options).expect("a trainer");
    let mut errors = case.train(backend, &mut model, &mut trainer);
    let found = trainer.adapter(backend, 0, &start.config()).expect("the adapter");
    let written = support::temp();
    found.write(written.path()).expect("written");
    same_tensors(written.path(), &dir(name).join("final"));
    let off = distance(written.path(), &dir(name).join("exact.safetensors"));
    errors.push(("tensors, of peft's own distance from f64", off / case.gap));
    let ids = &case.data[0].input_ids;
    for (what, adapter_dir) in
        [("logits of peft's adapter", dir(name).join("final")), ("logits of our adapter", written.path().to_owned())]
    {
        let adapter = Adapter::read(&adapter_dir, &config).expect("an adapter");
        let mut model = Model::load(backend, &path).expect("a model");
        let adaptation = Adaptation::applied(backend, &mut model, &adapter).expect("an adapter");
        let found = logits(backend, &model, &adaptation, ids);
        errors.push((what, difference(&found, &case.logits)));
        if what == "logits of our adapter" {
            keep(name, written.path(), &found);
        }
    }
    errors
}

fn check(name: &str, gradient_norm: f64) {
    let limits = limits(gradient_norm);
    within(&format!("{name} on f32"), &measure(&mut Cpu::new(Dtype::F32), name, &NONE), &limits);
    within(&format!("{name} on f64"), &measure(&mut Cpu::oracle(), name, &NONE), &limits);
}

#[test]
fn dora_is_pefts() {
    check("dora", NORM);
    check("dora_gpt2", NORM);
}

#[test]
fn lora_of_tables_is_pefts() {
    check("tables", OF_TABLES);
    check("head", OF_TABLES);
    check("tables_gpt2", OF_TABLES);
    check("embed_gpt2", OF_TABLES);
}

#[test]
fn modules_that_are_trained_whole_are_pefts() {
    check("saved", NORM);
    check("saved_plus", NORM);
    check("saved_gpt2", NORM);
    check("saved_head_gpt2", NORM);
    check("saved_tied", NORM);
}

#[test]
fn rows_of_trained_tokens_are_pefts() {
    check("tokens", NORM);
    check("tokens_gpt2", NORM);
    check("tokens_tied", NORM);
    check("dora_tokens", NORM);
}

#[test]
fn ia3_is_pefts() {
    check("ia3", NORM);
    check("ia3_gpt2", NORM);
}

#[test]
fn variants_limits_see_small_mistakes() {
    let mistakes: [(&str, &str, Mistake, &[&str]); 7] = [
        (
            "dora",
            "no weight decay",
            Mistake { run: |run| run.settings.weight_decay = 0.0, ..NONE },
            &["loss", "tensors, of peft's own distance from f64", "logits of our adapter"],
        ),
        (
            "dora",
            "a magnitude in bf16",
            Mistake {
                start: |adapter| {
                    let Adapter::Lora(lora) = adapter else { panic!("a LoRA") };
                    let magnitude = lora.modules[0].magnitude.as_mut().expect("a magnitude");
                    magnitude[0] = half::bf16::from_f32(magnitude[0]).to_f32();
                },
                ..NONE
            },
            &["loss", "tensors, of peft's own distance from f64"],
        ),
        (
            "tables",
            "an embedding's A of two tokens exchanged",
            Mistake {
                start: |adapter| {
                    let Adapter::Lora(lora) = adapter else { panic!("a LoRA") };
                    let table = lora.tables.iter_mut().find(|table| table.at == Table::Embed).expect("a table");
                    let (r, tokens) = (table.r, table.a.len() / table.r);
                    (0..r).for_each(|i| table.a.swap(i * tokens + 3, i * tokens + 4));
                },
                ..NONE
            },
            &["loss", "tensors, of peft's own distance from f64"],
        ),
        (
            "tables_gpt2",
            "a head's B in bf16",
            Mistake {
                start: |adapter| {
                    let Adapter::Lora(lora) = adapter else { panic!("a LoRA") };
                    let table = lora.tables.iter_mut().find(|table| table.at == Table::Head).expect("a table");
                    table.b.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
                },
                ..NONE
            },
            &["loss", "tensors, of peft's own distance from f64"],
        ),
        (
            "saved_tied",
            "a tied table in bf16",
            Mistake {
                start: |adapter| {
                    let Adapter::Lora(lora) = adapter else { panic!("a LoRA") };
                    lora.saved[0].values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
                },
                ..NONE
            },
            &["loss", "tensors, of peft's own distance from f64"],
        ),
        (
            "tokens_gpt2",
            "rows of two tokens exchanged",
            Mistake {
                start: |adapter| {
                    let Adapter::Lora(lora) = adapter else { panic!("a LoRA") };
                    lora.tokens.as_mut().expect("tokens").ids.swap(0, 2);
                },
                ..NONE
            },
            &["loss", "tensors, of peft's own distance from f64"],
        ),
        (
            "ia3_gpt2",
            "an input that is multiplied by another's factor",
            Mistake {
                start: |adapter| {
                    let Adapter::Ia3(ia3) = adapter else { panic!("an IA3") };
                    ia3.modules.iter_mut().filter(|m| m.feedforward).for_each(|m| m.vector.swap(0, 1));
                },
                ..NONE
            },
            &["loss", "tensors, of peft's own distance from f64"],
        ),
    ];
    for (case, what, mistake, seen_by) in mistakes {
        let errors = measure(&mut Cpu::new(Dtype::F32), case, &mistake);
        beyond(&format!("{case}, {what}"), &errors, &limits(OF_TABLES), seen_by);
    }
}
