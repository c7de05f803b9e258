//! Prompt tuning against files made by peft (`tests/golden/peft_prompt.py`).

use std::path::PathBuf;

use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::adapter::{Adapter, PromptAdapter};
use llamaprobe::model::{Adaptation, Encoder, Model};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Trainer, TrainerOptions};

use crate::support::{
    self,
    peft::{Case, golden, logits, same_tensors},
    training::difference,
};

/// What is trained, from a prompt as read.
fn tuned<B: Backend>(backend: &mut B, model: &Model<B>, start: &Adapter) -> Trainable<B> {
    let adaptation = Adaptation::of_adapter(backend, &model.config, start).expect("a start");
    match &prompt(start).encoder {
        Some(state) => {
            Trainable::Reparameterized(Encoder::new(backend, adaptation, std::slice::from_ref(state)).expect("an MLP"))
        }
        None => Trainable::Adapters(adaptation),
    }
}

fn apart(found: &PromptAdapter, expected: &PromptAdapter) -> f64 {
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let rows = difference(&wide(&found.rows), &wide(&expected.rows));
    match (&found.encoder, &expected.encoder) {
        (Some(found), Some(expected)) => rows.max(difference(&wide(&found.params), &wide(&expected.params))),
        (None, None) => rows,
        _ => panic!("only one has an MLP"),
    }
}

fn prompt(adapter: &Adapter) -> &PromptAdapter {
    let Adapter::Prompt(prompt) = adapter else { panic!("a prompt") };
    prompt
}

fn compare<B: Backend>(backend: &mut B, name: &str, rows: Option<usize>) {
    let dir = golden("peft_prompt").join(name);
    let case = Case::read(&dir);
    let model_dir = case.model_dir().expect("a golden model");
    let config = ModelConfig::load(&model_dir).expect("the configuration loads");
    let mut model = Model::load(backend, &model_dir).expect("the model loads");
    let adapter = |part: &str| Adapter::read(dir.join(part), &config).expect("a prompt");
    let (start, expected) = (adapter("init"), adapter("final"));
    let mut options = TrainerOptions::default();
    options.row_budget = rows.unwrap_or(options.row_budget);
    let tuned = tuned(backend, &model, &start);
    let mut trainer = Trainer::new(backend, &model, tuned, vec![case.run()], options).expect("a trainer");
    case.train(name, backend, &mut model, &mut trainer);
    let found = trainer.adapter(backend, 0, &expected.config()).expect("the prompt");
    let far = apart(prompt(&found), prompt(&expected));
    println!("{name} on {}: {far:.1e} of the largest element", backend.name());
    assert!(far <= 1e-4, "{name}: {far:e}");

    // A prompt as peft wrote it, and ours through its own files, give peft's logits.
    let ids = &case.data[0].input_ids;
    let theirs = Adaptation::of_adapter(backend, &model.config, &expected).expect("a prompt");
    let far = difference(&logits(backend, &model, &theirs, ids), &case.logits);
    assert!(far <= 2e-5, "{name}: logits of peft's prompt {far:e}");
    let written = support::temp();
    found.write(written.path()).expect("written");
    let read = Adapter::read(written.path(), &config).expect("read back");
    assert!(read == found, "{name}: a prompt is what was written");
    let ours = Adaptation::of_adapter(backend, &model.config, &read).expect("a prompt");
    let our_logits = logits(backend, &model, &ours, ids);
    let far = difference(&our_logits, &case.logits);
    assert!(far <= 1e-4, "{name}: logits of our prompt {far:e}");
    // For tests/golden/check_adapter.py.
    if let (Some(dir), None) = (std::env::var_os("LLAMAPROBE_KEEP"), rows) {
        let dir = PathBuf::from(dir).join(name);
        found.write(&dir).expect("kept");
        std::fs::write(dir.join("logits.json"), serde_json::to_string(&our_logits).expect("JSON")).expect("kept");
    }
    same_tensors(written.path(), &dir.join("final"));
}

#[test]
fn rows_of_embeddings() {
    for name in ["embeddings", "one_row"] {
        compare(&mut Cpu::<f64>::new(), name, None);
        compare(&mut Cpu::<f32>::new(), name, Some(12));
        compare(&mut Cpu::<f32>::new(), name, None);
    }
}

#[test]
fn rows_that_an_mlp_makes() {
    compare(&mut Cpu::<f64>::new(), "mlp", None);
    compare(&mut Cpu::<f32>::new(), "mlp", Some(12));
    compare(&mut Cpu::<f32>::new(), "mlp", None);
}

#[test]
fn keys_and_values_of_every_layer() {
    for name in ["prefix", "projection"] {
        compare(&mut Cpu::<f64>::new(), name, None);
        compare(&mut Cpu::<f32>::new(), name, Some(12));
        compare(&mut Cpu::<f32>::new(), name, None);
    }
}
