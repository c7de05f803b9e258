//! Losses of more label rows than have their logits at one time: they are those of the same rows asked for a few at a time.

use std::ops::Range;

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::formats::adapter::{Adapter, LoraAdapter};
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{
    Activations, Adaptation, DropoutPlan, GradientRequest, Gradients, Input, Labels, LogitLosses, Model, PassTeacher,
    Save, Teacher, TunedRows,
};
use llamaprobe::pack::{Label, Sequence, forest};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::scores::{BestBy, Evaluation};
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};

use crate::model::{noise, random};
use crate::support::training::{adapter_of_tables, difference};
use crate::table_gradients::{of_table, of_tokens};

/// Of this vocabulary 13 rows have their logits at a time under an adapted head and towards a teacher, and 27 of a plain head on the
/// CPU.
const VOCAB: usize = 300_001;
/// Label rows, in ragged parts: 13, 13 and 5, or 27 and 4.
const ROWS: usize = 31;
/// Largest difference of the gradients allowed, as a share of the largest: the sums of the groups are rounded in another order.
const LIMIT: f64 = 1e-14;

/// Where the losses of rows come from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Losses {
    /// Labels.
    Labels,
    /// The distributions of other rows of the pass.
    Rows,
    /// Those of a table.
    Table,
}

/// A model of one layer, and an adapter of random values.
fn adapted<B: Backend>(
    backend: &mut B,
    tied: bool,
    adapter: fn(&ModelConfig) -> LoraAdapter,
) -> (Model<B>, Adaptation<B>) {
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": {VOCAB}, "tie_word_embeddings": {tied}}}"#
    );
    let (mut model, _) = random(backend, &config);
    let adapter = Adapter::Lora(adapter(&model.config));
    let mut adaptation = Adaptation::applied(backend, &mut model, &adapter).expect("an adapter");
    let values = noise(adaptation.layout.stride, 5, 0.4);
    adaptation.upload_run(backend, 0, &values).expect("values");
    (model, adaptation)
}

/// Losses and gradient of a pass, the losses of so many rows at a time.
fn pass<B: Backend>(
    backend: &mut B,
    (model, adaptation): &(Model<B>, Adaptation<B>),
    of: Losses,
    at_a_time: usize,
) -> (Vec<B::Element>, Vec<B::Element>) {
    let (config, layout) = (&model.config, Some(&adaptation.layout));
    let ids = |first: u32, count: u32| (first..first + count).map(|i| i * 7919 % VOCAB as u32).collect::<Vec<_>>();
    let sequences = [(ids(9, 6), None), (ids(1, 12), Some(0)), (ids(5, 13), Some(0))];
    let sequences = sequences.each_ref().map(|(ids, run)| Sequence::ids(ids, *run, Label::Text));
    let pack = forest(&sequences, usize::MAX).pack;
    assert_eq!(pack.len(), ROWS);
    let rows: Vec<u32> = (0..ROWS as u32).collect();
    let targets: Vec<u32> = rows.iter().map(|row| row * 9973 % VOCAB as u32).collect();
    let weights: Vec<f64> = rows.iter().map(|row| 0.3 + 0.1 * f64::from(row % 5)).collect();
    let others: Vec<u32> = rows.iter().map(|row| (row + 9) % if of == Losses::Table { 2 } else { 31 }).collect();
    let table: Vec<f32> = noise(if of == Losses::Table { 2 * VOCAB } else { 0 }, 3, 2.0);

    let device = backend.pack(&pack).expect("a pack");
    let dropout = Some(DropoutPlan { p: 0.25, seeds: &[7], keys: &rows });
    let input = || Input { dropout, ..Input::new(&pack, &device).adapted(adaptation) };
    let mut acts = Activations::new(backend, config, layout, ROWS, Save::All).expect("activations");
    let grads = Gradients::new(backend, config, ROWS, ROWS).expect("gradients");
    let mut grads = grads.with_layout(backend, config, layout).expect("gradients");
    grads.distillation = (of != Losses::Labels).then(|| LogitLosses::new(backend, config, 2.5, ROWS).expect("scratch"));
    model.forward(backend, &mut acts, &input(), None, &mut NoTaps).expect("a forward");
    let mut d_params = backend.acc(adaptation.layout.stride).expect("gradients");
    let mut all = Vec::new();
    for first in (0..ROWS).step_by(at_a_time) {
        let group: Range<usize> = first..ROWS.min(first + at_a_time);
        let (rows, count) = (&rows[group.clone()], group.len());
        let others = &others[group.clone()];
        let labelled = if of == Losses::Labels { group.clone() } else { 0..0 };
        let to = (&rows[..labelled.len()], &targets[labelled.clone()]);
        let labels = Labels::of_pass(backend, config, &input(), to, &weights[labelled]).expect("labels");
        let teacher = match of {
            Losses::Table => Teacher::Table { rows: others, states: &[], logits: &table },
            _ => Teacher::Rows(others),
        };
        let tuned = TunedRows { rows, state_weights: &vec![0.0; count], logit_weights: &weights[group] };
        let teacher = PassTeacher::new(backend, config, None, teacher, tuned).expect("a teacher");
        let teacher = (of != Losses::Labels).then_some((&teacher, None));
        let input = Input { teacher, ..input() };
        let request = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
        model.backward(backend, &mut acts, &mut grads, &input, &labels, request);
        let losses = grads.distillation.as_ref().map_or(&grads.losses, |distillation| &distillation.losses);
        let mut found = vec![B::Element::default(); count];
        backend.download(&mut found, losses, 0).expect("losses");
        all.extend(found);
    }
    let mut gradient = vec![B::Element::default(); adaptation.layout.stride];
    backend.download(&mut gradient, &d_params, 0).expect("gradients");
    (all, gradient)
}

/// Compares the pass in parts with one of a few rows at a time; `parts` is how many there are, where operations show it.
fn check(tied: bool, adapter: fn(&ModelConfig) -> LoraAdapter, of: Losses, parts: usize) {
    let trace = &mut Trace::new();
    let model = adapted(trace, tied, adapter);
    trace.clear();
    pass(trace, &model, of, ROWS);
    assert_eq!(trace.ops().iter().filter(|op| **op == "kl_loss").count(), parts);
    let backend = &mut Cpu::oracle();
    let model = adapted(backend, tied, adapter);
    let (losses, gradient) = pass(backend, &model, of, ROWS);
    let (expected, slopes) = pass(backend, &model, of, 5);
    assert!(losses == expected && losses.iter().all(|&loss| loss > 0.0), "{losses:?}\n{expected:?}");
    let off = difference(&gradient, &slopes);
    println!("{of:?}, tied {tied}: off by {off:.1e} of the largest, limit {LIMIT:.0e}");
    assert!(off <= LIMIT && gradient.iter().any(|&x| x != 0.0), "{off:.1e}");
}

#[test]
fn losses_of_a_plain_head_in_parts_are_those_of_few_rows() {
    check(false, of_table, Losses::Labels, 0);
}

#[test]
fn losses_of_an_adapted_head_in_parts_are_those_of_few_rows() {
    check(false, adapter_of_tables, Losses::Labels, 3);
}

#[test]
fn losses_of_a_tied_heads_trained_rows_in_parts_are_those_of_few_rows() {
    check(true, of_tokens, Losses::Labels, 3);
}

#[test]
fn losses_towards_a_teacher_in_parts_are_those_of_few_rows() {
    check(false, of_table, Losses::Rows, 3);
    check(false, of_table, Losses::Table, 3);
}

#[test]
fn evaluation_in_parts_is_that_of_few_rows() {
    let backend = &mut Cpu::new(Dtype::F32);
    let (mut model, adaptation) = adapted(backend, false, of_table);
    let sequence = |s: u32| TrainSequence::all((0..11).map(|i| (s * 11 + i) * 7919 % VOCAB as u32).collect());
    let values: Vec<f32> = noise(adaptation.layout.stride, 6, 0.4);
    // Of 60 label rows 55 have their logits on the host at a time; passes of 30 rows have fewer.
    let scores = [4096, 30].map(|row_budget| {
        let adapter = of_table(&model.config);
        let mut adaptation = Adaptation::of_adapters(backend, &model, &[adapter]).expect("an adapter");
        adaptation.upload_run(backend, 0, &values).expect("values");
        let settings = RunSettings { length: Length::Steps(1), batch_size: 1, ..RunSettings::default() };
        let runs = vec![Run { data: vec![sequence(9)], settings }];
        let options = TrainerOptions { row_budget, ..TrainerOptions::default() };
        let trainer = Trainer::new(backend, &model, Trainable::Adapters(adaptation), runs, options).expect("a trainer");
        let evaluation = Evaluation {
            data: (0..6).map(sequence).collect(),
            every: 1,
            generation: None,
            best_by: BestBy::default(),
            patience: None,
            load_best: false,
        };
        let mut trainer = trainer.with_evaluation(backend, &model, evaluation).expect("an evaluation");
        let report = trainer.step(backend, &mut model).expect("a step");
        trainer.evaluate(backend, &model, &report).expect("an evaluation").remove(0).score
    });
    assert!(scores[0] == scores[1] && scores[0].loss > 1.0, "{scores:?}");
}
