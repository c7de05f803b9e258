//! The trainer on a small model: what a run computes, alone and with others.

use llamaprobe::Error;
use llamaprobe::arch::Dtype;
use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Backend;
use llamaprobe::backend::Planning;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::formats::adapter::{Adapter, AdapterConfig, LoraAdapter, LoraConfig, Modules};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::model::{Adaptation, FullTuning, Layout, Model, Source, lora_start};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::schedule::{Schedule, Warmup};
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, RunReport, StepReport, Trainer, TrainerOptions};

use crate::support::{
    self,
    tiny_model::TinyModel,
    training::{data, difference, model, params, settings, trainer},
};

/// Trains to the end.
fn train<B: Backend>(backend: &mut B, model: &mut Model<B>, trainer: &mut Trainer<B>) -> Vec<StepReport> {
    let mut reports = Vec::new();
    while !trainer.done() {
        reports.push(trainer.step(backend, model).expect("a step"));
    }
    reports
}

/// Trains runs together from their seeds; reports of every run, and parameters.
fn outcome<B: Backend>(backend: &mut B, runs: &[Run], options: TrainerOptions) -> (Vec<Vec<RunReport>>, Vec<f64>) {
    let mut model = model(backend);
    let mut trainer = trainer(backend, &model, runs.to_vec(), options);
    let mut by_run = vec![Vec::new(); runs.len()];
    for report in train(backend, &mut model, &mut trainer) {
        report.runs.into_iter().for_each(|run| by_run[run.run].push(run));
    }
    let params = params(backend, &trainer);
    (by_run, params)
}

fn different_runs() -> Vec<Run> {
    let slow = RunSettings { learning_rate: 1e-3, max_grad_norm: None, schedule: Schedule::Cosine, ..settings(2) };
    let short = RunSettings { length: Length::Steps(4), batch_size: 5, accumulation: 1, shuffle: false, ..settings(3) };
    vec![
        Run { data: data(1, 10), settings: settings(1) },
        Run { data: data(2, 7), settings: slow },
        Run { data: data(1, 10), settings: short },
    ]
}

#[test]
fn trainer_runs_in_one_pass_are_those_runs_alone_bit_for_bit() {
    let backend = &mut Cpu::new(Dtype::F32);
    let runs = different_runs();
    for options in [
        TrainerOptions::default(),
        TrainerOptions { row_budget: 20, ..Default::default() },
        TrainerOptions { dropout: 0.3, row_budget: 40, ..Default::default() },
        TrainerOptions { neftune_noise_alpha: Some(5.0), row_budget: 40, ..Default::default() },
    ] {
        let (together, params) = outcome(backend, &runs, options);
        let stride = params.len() / runs.len();
        for (r, run) in runs.iter().enumerate() {
            let (alone, expected) = outcome(backend, std::slice::from_ref(run), options);
            let renumbered: Vec<RunReport> = alone[0].iter().map(|report| RunReport { run: r, ..*report }).collect();
            assert_eq!(together[r], renumbered, "run {r}, {options:?}");
            assert!(params[r * stride..(r + 1) * stride] == expected, "run {r}, {options:?}");
        }
    }
}

#[test]
fn passes_that_are_filled_up_train_the_same_bit_for_bit() {
    let backend = &mut Cpu::new(Dtype::F32);
    let runs = different_runs();
    for options in [
        TrainerOptions::default(),
        TrainerOptions { dropout: 0.3, row_budget: 100, neftune_noise_alpha: Some(5.0), ..Default::default() },
        TrainerOptions { gradient_checkpointing: true, keep_states: false, ..Default::default() },
    ] {
        let mut filled = |fill| outcome(backend, &runs, TrainerOptions { fill: Some(fill), ..options });
        assert!(filled(true) == filled(false), "{options:?}");
    }
}

#[test]
fn trainer_run_at_its_end_stays_as_it_is() {
    let backend = &mut Cpu::new(Dtype::F32);
    let mut model = model(backend);
    let mut trainer = trainer(backend, &model, different_runs(), TrainerOptions::default());
    assert_eq!(trainer.total_steps(), 9);
    let mut at_end = Vec::new();
    while !trainer.done() {
        let report = trainer.step(backend, &mut model).expect("a step");
        let took: Vec<usize> = report.runs.iter().map(|run| run.run).collect();
        let expected: &[usize] = match report.step {
            1..=4 => &[0, 1, 2],
            5..=6 => &[0, 1],
            _ => &[0],
        };
        assert_eq!(took, expected, "step {}", report.step);
        let stride = trainer.trainable().shape().1;
        let third = params(backend, &trainer)[2 * stride..].to_vec();
        if report.step == 4 {
            at_end = third;
        } else if report.step > 4 {
            assert!(third == at_end);
        }
    }
}

#[test]
fn accumulation_of_two_passes_of_four_is_one_of_eight() {
    let backend = &mut Cpu::oracle();
    let one = |batch_size, accumulation| {
        vec![Run { data: data(5, 19), settings: RunSettings { batch_size, accumulation, ..settings(5) } }]
    };
    let (reports, expected) = outcome(backend, &one(8, 1), TrainerOptions::default());
    for (batch_size, accumulation) in [(4, 2), (1, 8), (3, 3)] {
        let (found, params) = outcome(backend, &one(batch_size, accumulation), TrainerOptions::default());
        let same = batch_size * accumulation == 8;
        assert_eq!(difference(&params, &expected) < 1e-9, same, "{batch_size} x {accumulation}");
        if same {
            let losses = |reports: &[RunReport]| reports.iter().map(|r| r.loss).collect::<Vec<_>>();
            assert!(difference(&losses(&found[0]), &losses(&reports[0])) < 1e-9);
        }
    }
}

#[test]
fn row_budget_changes_nothing_but_memory() {
    let backend = &mut Cpu::oracle();
    let runs = different_runs();
    let (_, expected) = outcome(backend, &runs, TrainerOptions::default());
    for row_budget in [1, 13, 50] {
        let (_, params) = outcome(backend, &runs, TrainerOptions { row_budget, ..Default::default() });
        assert!(difference(&params, &expected) < 1e-9, "budget {row_budget}");
    }
}

#[test]
fn dropout_is_drawn_anew_each_step_and_does_not_depend_on_the_passes() {
    let backend = &mut Cpu::oracle();
    // The first steps of a warm-up have rate zero: the same parameters and batch, other draws.
    let still = RunSettings {
        warmup: Warmup::Steps(9),
        learning_rate: 0.0,
        batch_size: 10,
        accumulation: 1,
        shuffle: false,
        ..settings(1)
    };
    // B must not be zero for A's input to matter.
    let losses = |backend: &mut Cpu<f64>, seed: u64, options| {
        let mut model = model(backend);
        let run = Run { data: data(1, 10), settings: RunSettings { seed, ..still.clone() } };
        let mut adaptation = support::training::adaptation(backend, &model, &[7]);
        let values: Vec<f64> = (0..adaptation.layout.stride).map(|i| (i as f64).sin() * 0.3).collect();
        adaptation.upload_run(backend, 0, &values).expect("parameters");
        let mut trainer =
            Trainer::new(backend, &model, Trainable::Adapters(adaptation), vec![run], options).expect("a trainer");
        train(backend, &mut model, &mut trainer).iter().map(|step| step.runs[0].loss).collect::<Vec<f64>>()
    };
    let dropout = TrainerOptions { dropout: 0.2, neftune_noise_alpha: Some(5.0), ..Default::default() };
    let found = losses(backend, 1, dropout);
    assert_eq!(found.len(), 3);
    assert!(found[0] != found[1] && found[1] != found[2], "{found:?}");
    let plain = losses(backend, 1, TrainerOptions::default());
    assert!(plain[0] == plain[1] && plain[0] != found[0], "{plain:?}");
    assert_ne!(losses(backend, 2, dropout), found, "the seed matters");
    let split = losses(backend, 1, TrainerOptions { row_budget: 20, ..dropout });
    assert!(difference(&split, &found) < 1e-12, "{split:?} for {found:?}");
}

#[test]
fn loss_that_is_not_finite_is_an_error_and_leaves_everything_as_it_was() {
    let backend = &mut Cpu::new(Dtype::F32);
    let mut model = model(backend);
    let plain = |seed, learning_rate| Run {
        data: data(seed, 6),
        settings: RunSettings {
            learning_rate,
            warmup: Warmup::Steps(0),
            schedule: Schedule::Constant,
            max_grad_norm: None,
            weight_decay: 0.0,
            ..settings(seed)
        },
    };
    let mut trainer = trainer(backend, &model, vec![plain(1, 1e-3), plain(2, 1e38)], TrainerOptions::default());
    trainer.step(backend, &mut model).expect("the first step starts from a sane adapter");
    // Of the run that is lost some parameters are not numbers: bits are compared.
    let bits = |backend: &mut Cpu<f32>, trainer: &Trainer<_>| {
        params(backend, trainer).into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    let before = bits(backend, &trainer);
    for _ in 0..2 {
        let error = trainer.step(backend, &mut model).expect_err("not finite");
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert!(error.to_string().starts_with("loss of run 1 at step 2"), "{error}");
        assert_eq!(trainer.steps(), 1);
        assert!(bits(backend, &trainer) == before);
    }
}

#[test]
fn step_begun_before_the_last_is_read_changes_nothing() {
    let backend = &mut Cpu::new(Dtype::F32);
    let options = TrainerOptions { dropout: 0.3, row_budget: 40, ..Default::default() };
    let mut model = model(backend);
    let mut expected = trainer(backend, &model, different_runs(), options);
    let reports = train(backend, &mut model, &mut expected);
    let mut ahead = trainer(backend, &model, different_runs(), options);
    ahead.begin(backend, &mut model).expect("the first step");
    for (i, report) in reports.iter().enumerate() {
        if i + 1 < reports.len() {
            ahead.begin(backend, &mut model).expect("the next step");
        }
        assert_eq!(ahead.end(backend).expect("a step"), *report);
    }
    assert!(params(backend, &ahead) == params(backend, &expected));
}

#[test]
fn loss_that_is_not_finite_undoes_the_steps_in_flight() {
    let backend = &mut Cpu::new(Dtype::F32);
    let mut model = model(backend);
    let settings = RunSettings { max_grad_norm: None, weight_decay: 0.0, ..settings(2) };
    let wild = RunSettings { learning_rate: 1e38, warmup: Warmup::Steps(0), ..settings };
    let runs = vec![Run { data: data(1, 10), settings: self::settings(1) }, Run { data: data(2, 10), settings: wild }];
    let mut trainer = trainer(backend, &model, runs, TrainerOptions::default());
    trainer.step(backend, &mut model).expect("the first step starts from a sane adapter");
    let bits = |backend: &mut Cpu<f32>, trainer: &Trainer<_>| {
        params(backend, trainer).into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    let before = bits(backend, &trainer);
    for _ in 0..2 {
        trainer.begin(backend, &mut model).expect("a step");
        trainer.begin(backend, &mut model).expect("a step");
        let error = trainer.end(backend).expect_err("not finite").to_string();
        assert!(error.starts_with("loss of run 1 at step 2"), "{error}");
        assert_eq!(trainer.steps(), 1);
        assert!(bits(backend, &trainer) == before);
    }
}

#[test]
fn step_never_waits_for_the_device() {
    let backend = &mut llamaprobe::backend::trace::Trace::new();
    let mut model = model(backend);
    let options = TrainerOptions { dropout: 0.3, row_budget: 40, ..Default::default() };
    let mut trainer = trainer(backend, &model, different_runs(), options);
    for step in 1..=trainer.total_steps() {
        backend.clear();
        trainer.begin(backend, &mut model).expect("a step");
        assert!(backend.ops().contains(&"adamw") && backend.syncs() == 0, "step {step}: {} waits", backend.syncs());
        trainer.end(backend).expect("a step");
        assert!(backend.syncs() > 0, "what is read must have been waited for");
    }
}

#[test]
fn trainer_refuses_bad_data_by_run_and_sequence() {
    let backend = &mut Cpu::new(Dtype::F32);
    let model = model(backend);
    let good = TrainSequence::all(vec![1, 2]);
    let bad = [
        (vec![], "data of run 1"),
        (vec![good.clone(), TrainSequence::all(vec![1, 272])], "sequence 1 of run 1"),
        (vec![TrainSequence { ids: vec![1, 2], labels: vec![-100, 300], teacher: None }], "sequence 0 of run 1"),
        (vec![TrainSequence { ids: vec![1, 2], labels: vec![1, -100], teacher: None }], "sequence 0 of run 1"),
    ];
    for (data, name) in bad {
        let run = |data| Run { data, settings: settings(1) };
        let adaptation = support::training::adaptation(backend, &model, &[1, 2]);
        let runs = vec![run(vec![good.clone()]), run(data)];
        let tuned = Trainable::Adapters(adaptation);
        let result = Trainer::new(backend, &model, tuned, runs, TrainerOptions::default());
        let error = result.err().expect("bad data").to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn full_tuning_trains_all_weights() {
    let backend = &mut Cpu::new(Dtype::F32);
    let dir = support::temp();
    TinyModel { tied: true, bias: true, ..TinyModel::default() }.write(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).expect("the weights open");
    let config = ModelConfig::load(dir.path()).expect("the configuration loads");
    let (mut model, full) = FullTuning::load(backend, config, &checkpoint).expect("copies");
    assert_eq!(full.layout.total, model.config.parameters());
    let settings = RunSettings { length: Length::Epochs(30.0), max_grad_norm: None, weight_decay: 0.0, ..settings(1) };
    let run = Run { data: data(1, 8), settings };
    let options = TrainerOptions::default();
    let mut trainer = Trainer::new(backend, &model, Trainable::Weights(full), vec![run], options).expect("a trainer");
    let reports = train(backend, &mut model, &mut trainer);
    let (first, last) = (reports[0].runs[0].loss, reports[reports.len() - 1].runs[0].loss);
    assert!(first > 4.0 && last < 0.1, "from {first} to {last}");
}

#[test]
fn soft_prompt_can_be_trained() {
    let backend = &mut Cpu::new(Dtype::F32);
    let mut model = model(backend);
    let mut adaptation = Adaptation::new(backend, Layout::empty(&model.config).with_prompt(4), 2).expect("prompts");
    for run in 0..2 {
        let start: Vec<f32> = (0..adaptation.layout.stride).map(|i| ((i + 7 * run) as f32).sin() * 0.2).collect();
        adaptation.upload_run(backend, run, &start).expect("a start");
    }
    let settings = RunSettings { length: Length::Epochs(60.0), max_grad_norm: None, weight_decay: 0.0, ..settings(1) };
    let runs = (0..2).map(|seed| Run { data: data(seed, 2), settings: settings.clone() }).collect();
    let tuned = Trainable::Adapters(adaptation);
    let mut trainer = Trainer::new(backend, &model, tuned, runs, TrainerOptions::default()).expect("a trainer");
    let reports = train(backend, &mut model, &mut trainer);
    for run in 0..2 {
        let (first, last) = (reports[0].runs[run].loss, reports[reports.len() - 1].runs[run].loss);
        assert!(last < 0.7 * first, "run {run}: from {first} to {last}");
    }
}

#[test]
fn trainer_plan_is_what_the_buffers_take() {
    let backend = &mut llamaprobe::backend::trace::Trace::new();
    let dir = support::temp();
    TinyModel::default().write(dir.path());
    let model = Model::load(backend, dir.path()).expect("the model loads");
    let runs = different_runs();
    let seeds: Vec<u64> = runs.iter().map(|run| run.settings.seed).collect();
    let tuned = Trainable::Adapters(support::training::adaptation(backend, &model, &seeds));
    let last =
        support::training::adaptation_of(backend, &model, &seeds, Some(vec![model.config.num_hidden_layers - 1]));
    let tables = support::training::adapter_of_tables(&model.config);
    let tables = Adaptation::of_adapters(backend, &model, std::slice::from_ref(&tables)).expect("an adapter");
    let options = TrainerOptions::default();
    let cases = [(tuned, &runs[..]), (Trainable::Adapters(last), &runs), (Trainable::Adapters(tables), &runs[..1])];
    for (tuned, runs) in cases {
        let (plan, _) = Trainer::plan(&model.config, &tuned, runs, options, backend.element_sizes()).expect("a plan");
        let before = backend.bytes();
        let _trainer = Trainer::new(backend, &model, tuned, runs.to_vec(), options).expect("a trainer");
        assert_eq!(plan.iter().sum::<usize>(), backend.bytes() - before);
    }
}

#[test]
fn plan_of_whole_modules_and_trained_tokens_is_what_they_take() {
    let whole = |names: &[&str], ensure_weight_tying| LoraConfig {
        modules_to_save: names.iter().map(|&name| name.to_owned()).collect(),
        ensure_weight_tying,
        ..LoraConfig::new(2, 4.0, Modules::List(Vec::new()))
    };
    let tokens = LoraConfig { trainable_token_indices: [104, 5, 101].into(), ..whole(&[], false) };
    let cases =
        [whole(&["lm_head", "norm"], false), whole(&["embed_tokens"], false), whole(&["embed_tokens"], true), tokens];
    for (tied, config) in [true, false].into_iter().flat_map(|tied| cases.clone().map(|config| (tied, config))) {
        let dir = support::temp();
        TinyModel { tied, ..TinyModel::default() }.write(dir.path());
        let checkpoint = Checkpoint::open(dir.path()).expect("the weights open");
        let source_config = ModelConfig::load(dir.path()).expect("the configuration loads");
        let source = Source::new(&source_config, &checkpoint).expect("weights");
        let mut adapter = LoraAdapter::new(config.clone(), &source.config, Vec::new());
        adapter.ties_head = config.ties_head(&source.config);
        lora_start::start(&mut adapter, &source, 1).expect("a start");

        let backend = &mut llamaprobe::backend::trace::Trace::new();
        let mut model = Model::load(backend, dir.path()).expect("the model loads");
        let before = backend.bytes();
        let adaptation = Adaptation::applied(backend, &mut model, &Adapter::Lora(adapter)).expect("an adapter");
        let (tuned, sizes, runs) = (Trainable::Adapters(adaptation), backend.element_sizes(), different_runs());
        let what = format!("tied {tied}, {:?}, {:?}", config.modules_to_save, config.trainable_token_indices);
        // Beside what is planned, two lists of the tokens of a tied head.
        let lists = if tied { 2 * 4 * config.trainable_token_indices.len() } else { 0 };
        let (count, stride) = tuned.shape();
        let planned = count * stride * sizes.0 + tuned.materialized_bytes(sizes);
        assert_eq!(planned + lists, backend.bytes() - before, "adapters: {what}");

        let options = TrainerOptions::default();
        let (plan, _) = Trainer::plan(&model.config, &tuned, &runs[..1], options, sizes).expect("a plan");
        let before = backend.bytes();
        let _trainer = Trainer::new(backend, &model, tuned, runs[..1].to_vec(), options).expect("a trainer");
        assert_eq!(plan.iter().sum::<usize>(), backend.bytes() - before, "{what}");
    }
}

#[test]
fn gradient_checkpointing_changes_nothing_but_memory() {
    let backend = &mut Cpu::new(Dtype::BF16);
    let runs = different_runs();
    for plain in [TrainerOptions::default(), TrainerOptions { dropout: 0.3, row_budget: 40, ..Default::default() }] {
        let again = TrainerOptions { gradient_checkpointing: true, ..plain };
        assert!(outcome(backend, &runs, plain) == outcome(backend, &runs, again), "{plain:?}");
    }
}

/// A model of four layers.
pub fn deep<B: Backend>(backend: &mut B) -> Model<B> {
    let dir = support::temp();
    TinyModel { layers: 4, ..TinyModel::default() }.write(dir.path());
    Model::load(backend, dir.path()).expect("the model loads")
}

/// A trainer of adapters in the last two layers alone.
pub fn trainer_of_last<B: Backend>(
    backend: &mut B,
    model: &Model<B>,
    runs: &[Run],
    options: TrainerOptions,
) -> Trainer<B> {
    let seeds: Vec<u64> = runs.iter().map(|run| run.settings.seed).collect();
    let depth = model.config.num_hidden_layers;
    let adaptation = support::training::adaptation_of(backend, model, &seeds, Some(vec![depth - 2, depth - 1]));
    Trainer::new(backend, model, Trainable::Adapters(adaptation), runs.to_vec(), options).expect("a trainer")
}

#[test]
fn states_below_the_adapters_are_kept_and_change_no_bit() {
    let runs = different_runs();
    for dtype in [Dtype::F32, Dtype::BF16] {
        let backend = &mut Cpu::new(dtype);
        let mut model = deep(backend);
        for options in [
            TrainerOptions::default(),
            TrainerOptions { dropout: 0.3, row_budget: 40, ..Default::default() },
            TrainerOptions { gradient_checkpointing: true, row_budget: 60, ..Default::default() },
        ] {
            let mut outcome = |keep_states: bool| {
                let mut trainer = trainer_of_last(backend, &model, &runs, TrainerOptions { keep_states, ..options });
                let reports = train(backend, &mut model, &mut trainer);
                (reports, params(backend, &trainer))
            };
            assert!(outcome(true) == outcome(false), "{dtype:?}, {options:?}");
        }
    }
}

#[test]
fn kept_states_spare_the_layers_below_after_the_first_epoch() {
    let mut counts = Vec::new();
    for keep_states in [true, false] {
        let backend = &mut Trace::new();
        let mut model = deep(backend);
        let options = TrainerOptions { keep_states, ..Default::default() };
        let runs = [Run { data: data(1, 10), settings: RunSettings { accumulation: 1, ..settings(1) } }];
        let mut trainer = trainer_of_last(backend, &model, &runs, options);
        backend.clear();
        train(backend, &mut model, &mut trainer);
        counts.push(backend.ops().iter().filter(|op| **op == "attention_fwd").count());
    }
    // Five steps an epoch, three epochs; of the second and the third the last two layers alone.
    assert_eq!(counts, [5 * 4 + 10 * 2, 15 * 4]);
}

#[test]
fn padding_tokens_row_of_an_adapted_table_has_no_gradient() {
    const PADDING: usize = 5;
    let backend = &mut Cpu::new(Dtype::F32);
    let trained = |backend: &mut Cpu, config: serde_json::Value| {
        let dir = support::temp();
        TinyModel { config, ..TinyModel::default() }.write(dir.path());
        let mut model = Model::load(backend, dir.path()).expect("the model loads");
        let mut adapter = support::training::adapter_of_tables(&model.config);
        for (i, x) in adapter.tables.iter_mut().flat_map(|table| table.a.iter_mut().chain(&mut table.b)).enumerate() {
            *x = (i % 7) as f32 * 0.01 - 0.03;
        }
        let start = adapter.tables[0].a.clone();
        let tuned = Trainable::Adapters(
            Adaptation::of_adapters(backend, &model, std::slice::from_ref(&adapter)).expect("an adapter"),
        );
        let ids: Vec<u32> = [7, PADDING as u32, 9, 4, PADDING as u32, 8].into();
        let settings = RunSettings { weight_decay: 0.0, length: Length::Steps(2), batch_size: 1, ..settings(1) };
        let runs = vec![Run { data: vec![TrainSequence::marked(ids, |i| i > 0)], settings }];
        let mut trainer = Trainer::new(backend, &model, tuned, runs, TrainerOptions::default()).expect("a trainer");
        train(backend, &mut model, &mut trainer);
        let config = AdapterConfig::Lora(adapter.config);
        let Adapter::Lora(found) = trainer.adapter(backend, 0, &config).expect("the adapter") else { panic!("a LoRA") };
        let vocab = model.config.vocab_size;
        [PADDING, 9].map(|token| (0..2).any(|r| found.tables[0].a[r * vocab + token] != start[r * vocab + token]))
    };
    assert_eq!(trained(backend, serde_json::json!({"pad_token_id": PADDING})), [false, true]);
    assert_eq!(trained(backend, serde_json::json!({})), [true, true]);
}
