//! Gradients of what is trained of the embedding table, against differences in f64: its LoRA, and rows of tokens, through every
//! make's scale, norm and projection of embeddings, and through tied heads.

use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Buffers, Transfer};
use llamaprobe::formats::adapter::{Adapter, LoraAdapter, LoraConfig, Modules, Table, TableLora, TrainedTokens};
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::{Activations, Adaptation, DropoutPlan, GradientRequest, Gradients, Input, Labels, Model, Save};
use llamaprobe::pack::{Label, Sequence, forest};

use crate::model::{assert_slope, directional, models, noise, random};

fn values(n: usize, seed: u64) -> Vec<f32> {
    noise(n, seed, 0.4)
}

/// A LoRA of the embedding table.
pub fn of_table(model: &ModelConfig) -> LoraAdapter {
    let path = model.family.table_path(Table::Embed).to_owned();
    let config = LoraConfig::new(2, 4.0, Modules::List(vec![path]));
    let slots = config.slots(model.family, model.num_hidden_layers).expect("the table");
    let mut table = TableLora::zeros(slots.tables[0], model);
    table.a = values(table.a.len(), 1);
    table.b = values(table.b.len(), 2);
    LoraAdapter { tables: vec![table], ..LoraAdapter::new(config, model, Vec::new()) }
}

/// Rows of three tokens.
pub fn of_tokens(model: &ModelConfig) -> LoraAdapter {
    let ids = vec![6, 1, 5];
    let mut config = LoraConfig::new(1, 1.0, Modules::List(Vec::new()));
    config.trainable_token_indices = ids.clone().into();
    let rows = values(ids.len() * model.embed_size, 3);
    LoraAdapter { tokens: Some(Box::new(TrainedTokens { ids, rows })), ..LoraAdapter::new(config, model, Vec::new()) }
}

/// The loss of a pass and its gradient; one of the sequences is the base model's.
fn pass(
    backend: &mut Cpu<f64>,
    model: &Model<Cpu<f64>>,
    adaptation: &Adaptation<Cpu<f64>>,
    dropout: f64,
) -> (f64, Vec<f64>) {
    let sequences = [(&[5, 6, 7, 5, 9][..], Some(0)), (&[6, 6, 8, 1], Some(0)), (&[5, 7, 6], None)];
    let sequences = sequences.map(|(ids, run)| Sequence::ids(ids, run, Label::Text));
    let pack = forest(&sequences, 1).pack;
    let device = backend.pack(&pack).expect("a pack");
    let rows: Vec<u32> = (0..pack.len() as u32).collect();
    let dropout = (dropout > 0.0).then_some(DropoutPlan { p: dropout, seeds: &[7], keys: &rows });
    let input = Input { dropout, ..Input::new(&pack, &device).adapted(adaptation) };
    let targets: Vec<u32> = rows.iter().map(|row| (row * 5 + 1) % 23).collect();
    let weights: Vec<f64> = rows.iter().map(|row| 0.3 + 0.1 * f64::from(row % 5)).collect();
    let labels = Labels::of_pass(backend, &model.config, &input, (&rows, &targets), &weights).expect("labels");
    let layout = Some(&adaptation.layout);
    let mut acts = Activations::new(backend, &model.config, layout, pack.len(), Save::All).expect("activations");
    let grads = Gradients::new(backend, &model.config, pack.len(), rows.len()).expect("gradients");
    let mut grads = grads.with_layout(backend, &model.config, layout).expect("gradients");
    model.forward(backend, &mut acts, &input, None, &mut NoTaps).expect("a forward");
    let mut d_params = backend.acc(adaptation.layout.stride).expect("gradients");
    let request = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
    model.backward(backend, &mut acts, &mut grads, &input, &labels, request);
    let mut losses = vec![0.0; rows.len()];
    backend.download(&mut losses, &grads.losses, 0).expect("losses");
    (losses.iter().zip(&weights).map(|(loss, weight)| loss * weight).sum(), d_params)
}

fn check(what: &str, config: &str, adapter: fn(&ModelConfig) -> LoraAdapter) {
    let backend = &mut Cpu::oracle();
    let (mut model, _) = random(backend, config);
    let adapter = Adapter::Lora(adapter(&model.config));
    let mut adaptation = Adaptation::applied(backend, &mut model, &adapter).expect("an adapter");
    let (loss, gradient) = pass(backend, &model, &adaptation, 0.0);
    // Dropout is of what a LoRA reads.
    assert!(what != "rows" || pass(backend, &model, &adaptation, 0.5).0 == loss, "dropout of trained rows");
    let base = adaptation.params.clone();
    // What lies near a kink of OPT's activation must not cross it.
    let step = if config.contains("\"opt\"") { 1e-4 } else { 1e-3 };
    let (direction, slope) = directional(base.len(), 17, step, |moved| {
        let moved: Vec<f64> = base.iter().zip(moved).map(|(x, d)| x + d).collect();
        adaptation.upload_run(backend, 0, &moved).expect("upload");
        pass(backend, &model, &adaptation, 0.0).0
    });
    assert_slope(&format!("{what} of {:?}", model.config.family), &gradient, &direction, slope);
}

#[test]
fn gradients_of_an_embedding_tables_lora_are_slopes_of_the_loss() {
    models().iter().for_each(|config| check("a LoRA of the table", config, of_table));
}

#[test]
fn gradients_of_trained_rows_are_slopes_of_the_loss() {
    let capped = |config: &&String| config.contains("final_logit_softcapping");
    models().iter().filter(|config| !capped(config)).for_each(|config| check("rows", config, of_tokens));
    let tied = models().into_iter().find(|config| config.contains("final_logit_softcapping")).expect("Gemma 2");
    let backend = &mut Cpu::oracle();
    let (mut model, _) = random(backend, &tied);
    let adapter = Adapter::Lora(of_tokens(&model.config));
    let error =
        Adaptation::applied(backend, &mut model, &adapter).map(drop).expect_err("a capped tied head").to_string();
    assert!(error.contains("trainable_token_indices: expected none, of a model that caps the logits"), "{error}");
}
