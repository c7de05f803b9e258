//! LoRA tuning against files made by peft (`tests/golden/peft_train.py`).

use std::path::PathBuf;

use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::adapter::{LoraAdapter, LoraModule};
use llamaprobe::model::{Adaptation, Model};
use llamaprobe::train::trainer::{Trainer, TrainerOptions};
use llamaprobe::train::tuned::Tuned;

use crate::support::{
    self,
    peft::{Case, golden, logits, same_tensors},
    training::difference,
};

/// The largest difference of all A, and of all B, as shares of their largest magnitudes.
fn apart(found: &LoraAdapter, expected: &LoraAdapter) -> (f64, f64) {
    let all = |adapter: &LoraAdapter, part: fn(&LoraModule) -> &Vec<f32>| {
        adapter.modules.iter().flat_map(|m| part(m).iter().map(|&x| f64::from(x))).collect::<Vec<f64>>()
    };
    let of = |part| difference(&all(found, part), &all(expected, part));
    (of(|m| &m.a), of(|m| &m.b))
}

fn compare<B: Backend>(backend: &mut B, name: &str, rows: Option<usize>) {
    let case = Case::read(&golden("peft").join(name));
    let Some(dir) = case.model_dir() else { return };
    let config = ModelConfig::load(&dir).expect("the configuration loads");
    let mut model = Model::load(backend, &dir).expect("the model loads");
    let adapter = |part: &str| LoraAdapter::read(golden("peft").join(name).join(part), &config).expect("an adapter");
    let (start, expected) = (adapter("init"), adapter("final"));
    let adaptation = Adaptation::of_adapters(backend, &model.config, &[start]).expect("a start");
    let mut options = TrainerOptions::default();
    options.row_budget = rows.unwrap_or(options.row_budget);
    let tuned = Tuned::Adapters(adaptation);
    let mut trainer = Trainer::new(backend, &model, tuned, vec![case.run()], options).expect("a trainer");
    case.train(name, backend, &mut model, &mut trainer);
    let Tuned::Adapters(trained) = trainer.finish() else { panic!("adapters were given") };
    let found = trained.adapter(backend, 0, &expected.config).expect("the adapter");
    let (a, b) = apart(&found, &expected);
    println!("{name} on {}: A {a:.1e}, B {b:.1e} of their largest", backend.name());
    assert!(a <= 1e-4 && b <= 1e-4, "{name}: A {a:e}, B {b:e}");

    // An adapter as peft wrote it, and ours through its own files, give peft's logits.
    let ids = &case.data[0].input_ids;
    let theirs = Adaptation::of_adapters(backend, &model.config, std::slice::from_ref(&expected)).expect("an adapter");
    let apart = difference(&logits(backend, &model, &theirs, ids), &case.logits);
    assert!(apart <= 2e-5, "{name}: logits of peft's adapter {apart:e}");
    let written = support::temp();
    found.write(written.path()).expect("written");
    let ours = LoraAdapter::read(written.path(), &config).expect("read back");
    assert!(ours.modules == found.modules, "{name}: an adapter is what was written");
    let ours = Adaptation::of_adapters(backend, &model.config, &[ours]).expect("an adapter");
    let our_logits = logits(backend, &model, &ours, ids);
    let apart = difference(&our_logits, &case.logits);
    assert!(apart <= 1e-4, "{name}: logits of our adapter {apart:e}");
    // For tests/golden/check_adapter.py.
    if let (Some(dir), None) = (std::env::var_os("LLAMAPROBE_KEEP"), rows) {
        let dir = PathBuf::from(dir).join(name);
        found.write(&dir).expect("kept");
        let text = serde_json::to_string(&our_logits).expect("JSON");
        std::fs::write(dir.join("logits.json"), text).expect("kept");
    }
    same_tensors(written.path(), &golden("peft").join(name).join("final"));
}

#[test]
fn query_and_value() {
    compare(&mut Cpu::<f32>::new(), "query_value", None);
    compare(&mut Cpu::<f64>::new(), "query_value", None);
}

#[test]
fn all_projections_with_everything_on() {
    compare(&mut Cpu::<f32>::new(), "all_linear", None);
    compare(&mut Cpu::<f32>::new(), "all_linear", Some(16));
    compare(&mut Cpu::<f64>::new(), "all_linear", None);
}

#[test]
fn ranks_and_alphas_by_pattern() {
    compare(&mut Cpu::<f32>::new(), "patterns", None);
    compare(&mut Cpu::<f64>::new(), "patterns", None);
}

#[test]
fn lora_of_a_trained_model_is_pefts() {
    compare(&mut Cpu::<f32>::new(), "stories260K", None);
}
