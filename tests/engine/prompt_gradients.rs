//! Gradients of soft prompts, of prefixes and of the MLPs that make them, through the whole model, in f64.

use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Buffers, Transfer};
use llamaprobe::formats::adapter::{EncoderShape, EncoderState, PromptKind, Reparameterization};
use llamaprobe::hooks::edit::{Edit, EditOp, EditPlan, Positions};
use llamaprobe::hooks::{NoTaps, Selection, Site};
use llamaprobe::model::{
    Activations, Adaptation, EditSet, Encoder, GradientRequest, Gradients, Input, Labels, Model, PassEdits, Save,
};
use llamaprobe::pack::{Sequence, forest};

use crate::support::training::model;

type Oracle = Cpu<f64>;

/// Rows of the prompts of two runs.
const ROWS: [usize; 2] = [3, 2];

fn noise(len: usize, scale: f64, phase: f64) -> Vec<f64> {
    (0..len).map(|i| scale * ((1.7 * i as f64 + phase).sin() + (0.3 * (i * i) as f64 + phase).cos())).collect()
}

/// Loss and gradient of what the model reads, under edits.
fn pass(
    backend: &mut Oracle,
    model: &Model<Oracle>,
    adaptation: &Adaptation<Oracle>,
    edits: &[Edit],
) -> (f64, Vec<f64>) {
    let sequence = |run: usize, ids: &[u32]| Sequence::prompted(ROWS[run], ids, Some(run));
    let mut sequences = [sequence(0, &[1, 30, 31, 32]), sequence(0, &[1, 30, 40]), sequence(1, &[1, 50, 51])];
    let plan = EditPlan::new(edits, &mut sequences).expect("positions");
    let forest = forest(&sequences, 1);
    let pack = &forest.pack;
    let ignores_first = adaptation.layout.prefix.is_some();
    let mut rows: Vec<u32> = (0..3).map(|s| forest.last_row(s) as u32).collect();
    if !ignores_first {
        // A prompt's last row predicts the first token.
        rows.push(forest.row(0, ROWS[0] - 1) as u32);
    }
    let targets: Vec<u32> = (0..rows.len() as u32).map(|i| 60 + i).collect();
    let weights: Vec<f64> = (0..rows.len()).map(|i| 0.5 + 0.25 * i as f64).collect();
    let labels = Labels::new(backend, None, &rows, &targets, &weights).expect("labels");
    let device = backend.pack(pack).expect("a pack");
    let layout = Some(&adaptation.layout);
    let mut acts = Activations::new(backend, &model.config, layout, pack.len(), Save::All).expect("buffers");
    let mut grads = Gradients::new(backend, &model.config, pack.len(), rows.len()).expect("scratch");
    let set = EditSet::new(backend, &model.config, edits).expect("edits");
    let edited = plan.rows(0..3, |s, i| forest.row(s, i));
    let edited = PassEdits::new(backend, &set, &edited, None).expect("edits");
    let input = Input::new(pack, &device).adapted(adaptation).edited((!edits.is_empty()).then_some(&edited));
    model.forward(backend, &mut acts, &input, None, &mut NoTaps).expect("a forward");
    let len = adaptation.runs * adaptation.layout.stride;
    let mut d_params = backend.acc(len).expect("gradients");
    let request = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
    model.backward(backend, &mut acts, &mut grads, &input, &labels, request);
    let mut losses = vec![0.0; rows.len()];
    backend.download(&mut losses, &grads.losses, 0).expect("losses");
    (losses.iter().zip(&weights).map(|(loss, weight)| loss * weight).sum(), d_params)
}

/// Compares slopes along a few directions with differences of the loss.
fn check(name: &str, start: &[f64], gradient: &[f64], mut loss: impl FnMut(&[f64]) -> f64) {
    for direction in 0..3 {
        let v = noise(start.len(), 1.0, f64::from(direction));
        let h = 1e-5;
        let mut at = |t: f64| loss(&start.iter().zip(&v).map(|(x, v)| x + t * v).collect::<Vec<_>>());
        // Of fourth order.
        let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        let found: f64 = gradient.iter().zip(&v).map(|(g, v)| g * v).sum();
        let apart = (found - slope).abs() / slope.abs().max(1e-3);
        assert!(apart < 1e-6, "{name}, direction {direction}: {found} for {slope}: {apart:e}");
    }
}

#[test]
fn gradients_of_prompts_and_prefixes_are_slopes_of_the_loss() {
    prompts_and_prefixes(&[]);
}

#[test]
fn gradients_of_edited_prompts_and_prefixes_are_slopes_of_the_loss() {
    // Rows of the prompt, the token after it, and the last.
    let edit = |site, op| Edit::new(Selection::new(&[site], &[0, 1]), Positions::At(vec![1, 3, -1]), op);
    let config = model(&mut Oracle::oracle()).config;
    for site in [Site::Embed, Site::K, Site::RotK, Site::V, Site::Z, Site::ResidPost] {
        let width = config.stored_width(site);
        let direction = (0..width).map(|i| (0.7 * i as f32).cos()).collect();
        prompts_and_prefixes(&[edit(site, EditOp::ProjectOut(direction)), edit(site, EditOp::Scale(1.3))]);
    }
}

fn prompts_and_prefixes(edits: &[Edit]) {
    let backend = &mut Oracle::oracle();
    let model = model(backend);
    for kind in [PromptKind::PromptTuning, PromptKind::PrefixTuning] {
        let mut adaptation = Adaptation::zeros(backend, &model.config, kind, ROWS.to_vec()).expect("prompts");
        let stride = adaptation.layout.stride;
        for run in 0..2 {
            let (width, param_rows) = adaptation.param_rows(run);
            let mut values = vec![0.0; stride];
            for (to, row) in param_rows.iter().zip(noise(param_rows.len() * width, 0.3, run as f64).chunks(width)) {
                values[*to as usize * width - run * stride..][..width].copy_from_slice(row);
            }
            adaptation.upload_run(backend, run, &values).expect("a start");
        }
        let start = adaptation.params.clone();
        let (_, gradient) = pass(backend, &model, &adaptation, edits);
        if let (Some(prompt), Some(prefix)) = (adaptation.layout.prompt, adaptation.layout.prefix) {
            let rows = &gradient[prompt.offset..prefix.offset];
            assert!(rows.iter().all(|&g| g == 0.0), "nothing reads what a prefix's rows become");
        }
        check(kind.name(), &start, &gradient, |params| {
            for run in 0..2 {
                adaptation.upload_run(backend, run, &params[run * stride..(run + 1) * stride]).expect("values");
            }
            pass(backend, &model, &adaptation, edits).0
        });
    }
}

#[test]
fn gradients_of_encoders_are_slopes_of_the_loss() {
    let backend = &mut Oracle::oracle();
    let model = model(backend);
    let (c, kv, layers) = (model.config.hidden_size, model.config.kv_width(), model.config.num_hidden_layers);
    for (kind, form, input, output) in [
        (PromptKind::PTuning, Reparameterization::Mlp, c, c),
        (PromptKind::PromptTuning, Reparameterization::Residual, c, c),
        (PromptKind::PrefixTuning, Reparameterization::Projection, kv, 2 * layers * kv),
    ] {
        let shape = EncoderShape { kind: form, input, hidden: 7, output };
        let adaptation = Adaptation::zeros(backend, &model.config, kind, ROWS.to_vec()).expect("prompts");
        let state = |rows: usize| {
            let params = noise(shape.len(rows), 0.2, rows as f64).into_iter().map(|x| x as f32).collect();
            EncoderState { shape, params }
        };
        let mut encoder = Encoder::new(backend, adaptation, &ROWS.map(state)).expect("MLPs");
        let (_, d_prompts) = pass(backend, &model, &encoder.adaptation, &[]);
        let start = encoder.params.clone();
        for times in [1.0, 2.0] {
            // The second time on top of the first.
            let mut d_params = vec![0.0; start.len()];
            for _ in 0..times as usize {
                encoder.backward(backend, &mut d_params, &d_prompts);
            }
            d_params.iter_mut().for_each(|g| *g /= times);
            check(form.name(), &start, &d_params, |params| {
                encoder.params.copy_from_slice(params);
                encoder.refresh(backend);
                pass(backend, &model, &encoder.adaptation, &[]).0
            });
            encoder.params.copy_from_slice(&start);
            encoder.refresh(backend);
        }
    }
}
