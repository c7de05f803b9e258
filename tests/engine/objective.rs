//! Objectives towards a teacher: gradients through the whole model in f64, and what passes, runs and resumptions must not
//! change.

use std::sync::Arc;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Buffers, Transfer};
use llamaprobe::formats::adapter::{AdapterConfig, LoraConfig, Modules, PromptKind};
use llamaprobe::hooks::{Record, Selection, Site};
use llamaprobe::model::{
    Activations, Adaptation, GradientRequest, Gradients, Input, Labels, LogitLosses, Model, OutputRows, PassTeacher,
    Save, StateLosses, Teacher, TunedRows,
};
use llamaprobe::pack::{Label, PackBuilder, Sequence, forest};
use llamaprobe::train::data::{SequenceTeacher, TrainSequence};
use llamaprobe::train::log::LogState;
use llamaprobe::train::objective::{Objective, TeacherTable};
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainer::{Run, RunReport, TrainerOptions};
use serde_json::json;

use crate::support::temp;
use crate::support::training::{adaptation, data, difference, model, params, settings, trainer};

type Oracle = Cpu<f64>;

fn noise(len: usize, scale: f64, phase: f64) -> Vec<f64> {
    (0..len).map(|i| scale * ((1.7 * i as f64 + phase).sin() + (0.3 * (i * i) as f64 + phase).cos())).collect()
}

/// Sites on both sides of every operation that an adapter's gradient passes.
const SITES: [Site; 12] = [
    Site::ResidPre,
    Site::LN1_OUT,
    Site::Q,
    Site::RotK,
    Site::V,
    Site::Z,
    Site::AttnOut,
    Site::ResidMid,
    Site::MlpPre,
    Site::MlpPost,
    Site::MlpOut,
    Site::ResidPost,
];

/// What the parts count, by ce, states and distributions.
type Weights = [f64; 3];

/// Loss and gradient of two runs' sequences towards the base model behind other tokens.
fn pass(
    backend: &mut Oracle,
    model: &Model<Oracle>,
    adaptation: &Adaptation<Oracle>,
    prompts: [usize; 2],
    (selection, [of_ce, of_states, of_logits]): (&Selection, Weights),
) -> (f64, Vec<f64>) {
    let student = |run: usize, ids: &[u32]| Sequence::prompted(prompts[run], ids, Some(run));
    let students = forest(&[student(0, &[1, 30, 31, 32]), student(0, &[1, 30, 40]), student(1, &[1, 50, 51])], 1);
    let teacher = |ids: &[u32]| Sequence::ids(ids, None, Label::Demonstration);
    let teachers = [&[1, 60, 61, 30, 31, 32][..], &[1, 60, 61, 30, 40], &[1, 60, 62, 50, 51]].map(teacher);
    let teachers = forest(&teachers, 1);
    let mut both = PackBuilder::default();
    both.append(&students.pack);
    both.append(&teachers.pack);
    let pack = both.build();
    // The last two tokens of each; a shared row has two teachers.
    let at = |s: usize, i: usize| students.row(s, prompts[s / 2] + i) as u32;
    let taught = |s: usize, i: usize| (students.pack.len() + teachers.row(s, i)) as u32;
    let rows = [at(0, 1), at(0, 2), at(1, 1), at(2, 1), at(2, 0)];
    let teacher_rows = [taught(0, 3), taught(0, 4), taught(1, 3), taught(2, 3), taught(2, 2)];
    let targets = [31, 32, 40, 51, 50];
    let shares = [0.5, 0.25, 0.25, 0.6, 0.4];
    let scaled = |by: f64| shares.map(|share| by * share);

    let all = rows.iter().chain(&teacher_rows).map(|&row| row as usize);
    let output = OutputRows::new(backend, &pack, all).expect("output rows");
    let device = backend.pack(&pack).expect("a pack");
    let layout = Some(&adaptation.layout);
    let mut acts = Activations::new(backend, &model.config, layout, pack.len(), Save::All).expect("buffers");
    let mut grads = Gradients::new(backend, &model.config, pack.len(), rows.len()).expect("scratch");
    grads.distillation = Some(LogitLosses::new(backend, &model.config, 2.5, rows.len()).expect("scratch"));
    let mut states = StateLosses::new(backend, &model.config, selection.clone(), rows.len()).expect("scratch");
    let (state_weights, logit_weights) = (&scaled(of_states)[..], &scaled(of_logits)[..]);
    let tuned = TunedRows { rows: &rows, state_weights, logit_weights };
    let of_pack = Teacher::Rows(&teacher_rows);
    let teacher = PassTeacher::new(backend, &model.config, output.as_ref(), of_pack, tuned).expect("a teacher");
    let input = Input::new(&pack, &device).adapted(adaptation).with_output_rows(output.as_ref());
    let mut taps = states.taps(backend, &teacher);
    model.forward(backend, &mut acts, &input, None, &mut taps).expect("a forward");

    let own = OutputRows::new(backend, &students.pack, rows.iter().map(|&row| row as usize)).expect("output rows");
    let device = backend.pack(&students.pack).expect("a pack");
    acts.restrict(students.pack.len(), own.as_ref());
    let labels = Labels::new(backend, own.as_ref(), &rows, &targets, &scaled(of_ce)).expect("labels");
    let mut input = Input::new(&students.pack, &device).adapted(adaptation).with_output_rows(own.as_ref());
    input.teacher = Some((&teacher, Some(&states)));
    let mut d_params = backend.acc(adaptation.runs * adaptation.layout.stride).expect("gradients");
    let request = GradientRequest { d_params: Some(&mut d_params), ..GradientRequest::none() };
    model.backward(backend, &mut acts, &mut grads, &input, &labels, request);
    let mut total = 0.0;
    let distilled = &grads.distillation.as_ref().expect("there").losses;
    for (weight, losses) in [(of_ce, &grads.losses), (of_states, &states.losses), (of_logits, distilled)] {
        let mut found = [0.0; 5];
        backend.download(&mut found, losses, 0).expect("losses");
        total += found.iter().zip(shares).map(|(loss, share)| weight * share * loss).sum::<f64>();
    }
    (total, d_params)
}

/// Compares slopes along a few directions with differences of the loss; the largest error.
fn error(start: &[f64], gradient: &[f64], mut loss: impl FnMut(&[f64]) -> f64) -> f64 {
    let of = |direction: u32| {
        let v = noise(start.len(), 1.0, f64::from(direction));
        let h = 1e-5;
        let mut at = |t: f64| loss(&start.iter().zip(&v).map(|(x, v)| x + t * v).collect::<Vec<_>>());
        // Of fourth order.
        let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        let found: f64 = gradient.iter().zip(&v).map(|(g, v)| g * v).sum();
        (found - slope).abs() / slope.abs().max(1e-3)
    };
    [0, 1].map(of).into_iter().fold(0.0, f64::max)
}

/// Adapters of two runs, away from where they start: LoRA, soft prompts, prefixes.
fn adapted(backend: &mut Oracle, model: &Model<Oracle>, kind: Option<PromptKind>) -> (Adaptation<Oracle>, [usize; 2]) {
    let rows = [3, 2];
    let Some(kind) = kind else {
        let mut lora = adaptation(backend, model, &[1, 2]);
        let stride = lora.layout.stride;
        for run in 0..2 {
            lora.upload_run(backend, run, &noise(stride, 0.2, run as f64)).expect("values");
        }
        return (lora, [0, 0]);
    };
    let mut prompt = Adaptation::zeros(backend, &model.config, kind, rows.to_vec()).expect("prompts");
    let stride = prompt.layout.stride;
    for run in 0..2 {
        let (width, param_rows) = prompt.param_rows(run);
        let mut values = vec![0.0; stride];
        for (to, row) in param_rows.iter().zip(noise(param_rows.len() * width, 0.3, run as f64).chunks(width)) {
            values[*to as usize * width - run * stride..][..width].copy_from_slice(row);
        }
        prompt.upload_run(backend, run, &values).expect("a start");
    }
    (prompt, rows)
}

#[test]
fn objective_gradients_are_slopes_of_the_loss() {
    let backend = &mut Oracle::oracle();
    let model = model(backend);
    let mut every = Selection::new(&SITES, &[0, 1]);
    every.hooks.push((Site::FINAL_NORM, 0));
    let outputs = Selection::new(&[Site::AttnOut], &[0, 1]);
    for kind in [None, Some(PromptKind::PromptTuning), Some(PromptKind::PrefixTuning)] {
        let (mut adapters, prompts) = adapted(backend, &model, kind);
        let (start, stride) = (adapters.params.clone(), adapters.layout.stride);
        for (name, selection, weights) in [
            ("activations", &outputs, [0.0, 1.0, 0.0]),
            ("activations everywhere", &every, [0.0, 1.0, 0.0]),
            ("logits", &outputs, [0.0, 0.0, 1.0]),
            ("mixed", &every, [0.3, 0.2, 0.7]),
        ] {
            for run in 0..2 {
                adapters.upload_run(backend, run, &start[run * stride..(run + 1) * stride]).expect("values");
            }
            let (_, gradient) = pass(backend, &model, &adapters, prompts, (selection, weights));
            let mut loss = |params: &[f64]| {
                for run in 0..2 {
                    adapters.upload_run(backend, run, &params[run * stride..(run + 1) * stride]).expect("values");
                }
                pass(backend, &model, &adapters, prompts, (selection, weights)).0
            };
            let found = error(&start, &gradient, &mut loss);
            println!("{kind:?} {name}: {found:.1e}");
            assert!(found < 1e-6, "{kind:?} {name}: {found:e}");
            // A gradient of another objective would be seen.
            let twice: Vec<f64> = gradient.iter().map(|g| 1.001 * g).collect();
            assert!(error(&start, &twice, loss) > 1e-6, "{kind:?} {name}");
        }
    }
}

/// The sequences, each behind one of two contexts.
fn taught(mut sequences: Vec<TrainSequence>) -> Vec<TrainSequence> {
    for (i, sequence) in sequences.iter_mut().enumerate() {
        let before: &[u32] = if i == 0 { &[1, 99, 98, 97, 96] } else { &[1, 90, 91, 92, 93, 94] };
        let ids = [before, &sequence.ids[1..]].concat();
        let shift = before.len() - 1;
        let rows = sequence.targets(0).map(|(row, _)| (row + shift) as u32).collect();
        sequence.teacher = Some(SequenceTeacher::Context { ids, rows });
    }
    sequences
}

pub fn objective() -> Objective {
    let selection = Selection::new(&[Site::AttnOut, Site::ResidPost], &[0, 1]);
    Objective { ce: 0.1, activations: 0.7, logits: 0.4, selection, temperature: 1.5, table: None }
}

/// What all steps report, and the parameters after them.
fn outcome(runs: Vec<Run>, options: TrainerOptions, objective: Objective) -> (Vec<Vec<RunReport>>, Vec<f64>) {
    let backend = &mut Oracle::oracle();
    let mut model = model(backend);
    let trainer = trainer(backend, &model, runs, options);
    let mut trainer = trainer.with_objective(backend, &model, objective).expect("an objective");
    let mut reports = Vec::new();
    while !trainer.done() {
        reports.push(trainer.step(backend, &mut model).expect("a step").runs);
    }
    (reports, params(backend, &trainer))
}

#[test]
fn objective_does_not_depend_on_passes_runs_or_what_is_saved() {
    let run = |seed: u64| Run { data: taught(data(seed, 9)), settings: settings(seed) };
    let (reports, expected) = outcome(vec![run(1), run(2)], TrainerOptions::default(), objective());
    for parts in reports.iter().flatten().map(|report| report.parts.expect("parts")) {
        assert!(parts.ce.is_some() && parts.activations.is_some() && parts.logits.is_some(), "{parts:?}");
    }
    let (alone, params) = outcome(vec![run(1)], TrainerOptions::default(), objective());
    assert_eq!(
        alone.iter().map(|runs| &runs[0]).collect::<Vec<_>>(),
        reports.iter().map(|r| &r[0]).collect::<Vec<_>>()
    );
    assert_eq!(params, expected[..params.len()], "a run alone has the same bits");
    let saved = TrainerOptions { gradient_checkpointing: true, ..TrainerOptions::default() };
    assert_eq!(outcome(vec![run(1), run(2)], saved, objective()), (reports, expected.clone()), "layers computed again");
    let small = TrainerOptions { row_budget: 30, ..TrainerOptions::default() };
    let (_, split) = outcome(vec![run(1), run(2)], small, objective());
    assert!(difference(&split, &expected) < 1e-9, "{:e}", difference(&split, &expected));
    let (_, dropped) = outcome(vec![run(1)], TrainerOptions { dropout: 0.3, ..TrainerOptions::default() }, objective());
    assert!(difference(&dropped, &params) > 1e-3, "students drop");
}

/// The hooks of the teacher's states at the rows of all sequences, and its logits there.
fn table(sequences: &mut [TrainSequence], selection: &Selection) -> TeacherTable {
    let backend = &mut Oracle::oracle();
    let model = model(backend);
    let mut hooks = selection.clone();
    hooks.hooks.push((Site::Logits, 0));
    let mut table = TeacherTable { states: vec![Vec::new(); selection.hooks.len()], logits: Vec::new() };
    let mut next = 0;
    for sequence in sequences {
        let Some(SequenceTeacher::Context { ids, rows }) = sequence.teacher.take() else { panic!("a context") };
        let packed = forest(&[Sequence::ids(&ids, None, Label::Query)], 1);
        let wanted: Vec<usize> = rows.iter().map(|&row| row as usize).collect();
        let mut record = Record::new(hooks.clone(), wanted);
        let mut acts = Activations::new(backend, &model.config, None, packed.pack.len(), Save::Layer).expect("buffers");
        let device = backend.pack(&packed.pack).expect("a pack");
        model.forward(backend, &mut acts, &Input::new(&packed.pack, &device), None, &mut record).expect("a forward");
        for (states, &(site, layer)) in table.states.iter_mut().zip(&selection.hooks) {
            states.extend(record.get(site, layer).expect("states"));
        }
        table.logits.extend(record.get(Site::Logits, 0).expect("logits"));
        sequence.teacher = Some(SequenceTeacher::Table((next..next + rows.len() as u32).collect()));
        next += rows.len() as u32;
    }
    table
}

#[test]
fn objective_towards_captured_states_is_that_towards_the_context() {
    let settings = RunSettings { length: Length::Steps(6), ..settings(3) };
    let run = |data| vec![Run { data, settings: settings.clone() }];
    let context = taught(data(3, 9));
    let mut captured = context.clone();
    let table = table(&mut captured, &objective().selection);
    let (reports, expected) = outcome(run(context), TrainerOptions::default(), objective());
    let of_table = Objective { table: Some(Arc::new(table)), ..objective() };
    let (found, params) = outcome(run(captured), TrainerOptions::default(), of_table);
    let losses = |reports: &[Vec<RunReport>]| reports.iter().map(|runs| runs[0].loss).collect::<Vec<f64>>();
    // The table is of f32.
    let apart = [difference(&losses(&found), &losses(&reports)), difference(&params, &expected)];
    println!("losses {:.1e}, parameters {:.1e}", apart[0], apart[1]);
    assert!(apart[0] < 1e-6 && apart[1] < 1e-4, "{apart:?}");
}

#[test]
fn objective_resumes_with_the_same_bits_and_not_with_another() {
    let backend = &mut Cpu::<f32>::new(Dtype::F32);
    let mut model = model(backend);
    let settings = RunSettings { length: Length::Steps(5), ..settings(3) };
    let mut begun = |objective: Objective| {
        let runs = vec![Run { data: taught(data(3, 9)), settings: settings.clone() }];
        let options = TrainerOptions { dropout: 0.2, ..TrainerOptions::default() };
        let trainer = trainer(backend, &model, runs, options);
        trainer.with_objective(backend, &model, objective).expect("an objective")
    };
    let (mut whole, mut resumed) = (begun(objective()), begun(objective()));
    let mut other = begun(Objective { temperature: 1.0, ..objective() });
    let dir = temp();
    let config = LoraConfig::new(3, 6.0, Modules::List(["down_proj", "q_proj", "v_proj"].map(String::from).to_vec()));
    let (configs, identity) = ([AdapterConfig::Lora(config)], json!({}));
    for _ in 0..2 {
        whole.step(backend, &mut model).expect("a step");
    }
    let path = whole.save(backend, dir.path(), &configs, &identity, LogState::default()).expect("a checkpoint");
    resumed.restore(backend, &mut model, &path, &identity).expect("restored");
    let refused = other.restore(backend, &mut model, &path, &identity).expect_err("another objective").to_string();
    assert!(refused.contains("settings.objective.temperature"), "{refused}");
    for _ in 2..5 {
        let expected = whole.step(backend, &mut model).expect("a step");
        assert_eq!(resumed.step(backend, &mut model).expect("a step"), expected);
    }
    assert_eq!(params(backend, &resumed), params(backend, &whole));
}

#[test]
fn objective_refusals_name_what_is_wrong() {
    let backend = &mut Cpu::<f32>::new(Dtype::F32);
    let model = model(backend);
    let mut refused = |data: Vec<TrainSequence>, objective: Objective| {
        let runs = vec![Run { data, settings: settings(1) }];
        let trainer = trainer(backend, &model, runs, TrainerOptions::default());
        trainer.with_objective(backend, &model, objective).err().expect("a refusal").to_string()
    };
    let with = |change: fn(&mut Objective)| {
        let mut changed = objective();
        change(&mut changed);
        changed
    };
    let good = || taught(data(1, 4));
    assert!(refused(data(1, 4), objective()).contains("teacher of sequence 0 of run 0"));
    assert!(refused(good(), with(|o| o.temperature = 0.0)).contains("temperature: expected a number above 0"));
    assert!(refused(good(), with(|o| o.activations = -1.0)).contains("weight of activations"));
    assert!(refused(good(), with(|o| o.selection = Selection::default())).contains("sites"));
    let scores = with(|o| o.selection = Selection::new(&[Site::AttnScores], &[0]));
    assert!(refused(good(), scores).contains("blocks.0.attn.hook_attn_scores"));
    let table = with(|o| o.table = Some(Arc::new(TeacherTable::default())));
    assert!(refused(good(), table).contains("rows of the table"));
}
