//! Checkpoints: a training that stops anywhere and is resumed ends as one that never stopped, byte for byte.

use std::fs;
use std::path::{Path, PathBuf};

use llamaprobe::Result;
use llamaprobe::arch::Dtype;
use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Transfer;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::trace::Trace;
use llamaprobe::formats::adapter::{AdapterConfig, LoraAdapter, LoraConfig, Modules};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::model::FullTuning;
use llamaprobe::train::checkpoint;
use llamaprobe::train::fit::{Output, fit};
use llamaprobe::train::log::{LOG_FILE, LogLine};
use llamaprobe::train::report_to::ReportTo;
use llamaprobe::train::schedule::{Schedule, Warmup};
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};
use serde_json::{Value, json};

use crate::support::{
    self,
    tiny_model::TinyModel,
    training::{data, difference, model, params, settings, trainer},
};
use crate::train::{deep, trainer_of_last};

fn config() -> AdapterConfig {
    let targets = ["down_proj", "q_proj", "v_proj"].map(String::from).to_vec();
    AdapterConfig::Lora(LoraConfig::new(3, 6.0, Modules::List(targets)))
}

fn runs() -> Vec<Run> {
    let short = RunSettings { length: Length::Steps(5), ..settings(9) };
    vec![Run { data: data(1, 10), settings: settings(4) }, Run { data: data(2, 9), settings: short }]
}

/// Steps with dropout and noise, so that their draws must continue too.
const OPTIONS: TrainerOptions = TrainerOptions {
    dropout: 0.1,
    row_budget: 60,
    neftune_noise_alpha: Some(5.0),
    gradient_checkpointing: false,
    keep_states: true,
    fill: None,
};

struct Training<'a> {
    dir: &'a Path,
    runs: Vec<Run>,
    options: TrainerOptions,
    identity: Value,
    save_steps: u64,
    save_total_limit: Option<usize>,
}

impl<'a> Training<'a> {
    fn new(dir: &'a Path) -> Self {
        let identity = json!({"model": "tiny"});
        Self { dir, runs: runs(), options: OPTIONS, identity, save_steps: 1, save_total_limit: None }
    }

    /// Trains to the end and returns the parameters.
    fn fit(&self, resume: Option<&Path>) -> Result<Vec<f64>> {
        let backend = &mut Cpu::new(Dtype::F32);
        let mut model = model(backend);
        let mut trainer = trainer(backend, &model, self.runs.clone(), self.options);
        let configs = vec![config(); self.runs.len()];
        let output = Output {
            dir: self.dir,
            logging_steps: 2,
            report_to: ReportTo::default(),
            save_steps: Some(self.save_steps),
            save_total_limit: self.save_total_limit,
            look_steps: None,
            stop_after: None,
            configs: &configs,
            identity: &self.identity,
        };
        let mut steps = Vec::new();
        fit(
            backend,
            &mut model,
            &mut trainer,
            &output,
            resume,
            || Ok(()),
            |_, _, report| {
                steps.push(report.step);
                Ok(())
            },
        )?;
        let total = trainer.total_steps();
        assert_eq!(steps.last().copied().unwrap_or(total), total);
        Ok(params(backend, &trainer))
    }

    fn refused(&self, resume: Option<&Path>) -> String {
        self.fit(resume).expect_err("a refusal").to_string()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// All files below, with their content.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for name in names(dir) {
        let path = dir.join(name);
        if path.is_dir() {
            found.extend(tree(&path))
        } else {
            found.push((path.clone(), fs::read(&path).expect("a file")))
        }
    }
    found
}

/// The log without its times.
fn log(dir: &Path) -> Vec<LogLine> {
    let text = fs::read_to_string(dir.join(LOG_FILE)).expect("a log");
    let untimed = |line: &str| {
        let line: LogLine = serde_json::from_str(line).expect("a line");
        assert!(line.throughput > 0.0 && line.tokens_per_sec > 0.0, "{line:?}");
        LogLine {
            elapsed_time: String::new(),
            remaining_time: String::new(),
            throughput: 0.0,
            tokens_per_sec: 0.0,
            ..line
        }
    };
    text.lines().map(untimed).collect()
}

#[test]
fn resume_from_any_step_ends_byte_for_byte_as_if_never_stopped() {
    let undisturbed = support::temp();
    let expected = Training::new(undisturbed.path()).fit(None).expect("a training");
    let expected_log = log(undisturbed.path());
    let steps: Vec<(Option<usize>, u64)> = expected_log.iter().map(|line| (line.run, line.current_steps)).collect();
    let every_other = [(0, 2), (1, 2), (0, 4), (1, 4), (1, 5), (0, 6), (0, 8), (0, 9)];
    assert_eq!(steps, every_other.map(|(run, step)| (Some(run), step)));
    for step in 1..=9 {
        // What a kill leaves: the checkpoint, later lines of the log, a torn one, something unfinished.
        let dir = support::temp();
        let from = format!("checkpoint-{step}");
        let path = dir.path().join(&from);
        for (file, bytes) in tree(&undisturbed.path().join(&from)) {
            let target = path.join(file.strip_prefix(undisturbed.path().join(&from)).expect("below"));
            fs::create_dir_all(target.parent().expect("a parent")).expect("a directory");
            fs::write(target, bytes).expect("a file");
        }
        let text = fs::read_to_string(undisturbed.path().join(LOG_FILE)).expect("a log");
        fs::write(dir.path().join(LOG_FILE), format!("{text}{{\"current_st")).expect("a log");
        fs::create_dir_all(dir.path().join(".tmp-llamaprobe-dead/new")).expect("a directory");
        fs::write(dir.path().join(".tmp-llamaprobe-file"), "half").expect("a file");
        assert_eq!(checkpoint::latest(dir.path()).expect("a listing"), Some(path.clone()));

        let training = Training { save_steps: 9, ..Training::new(dir.path()) };
        assert!(training.fit(Some(&path)).expect("a continuation") == expected, "from step {step}");
        assert_eq!(log(dir.path()), expected_log, "from step {step}");
        let last = |dir: &Path| fs::read(dir.join("checkpoint-9/optimizer.safetensors")).expect("a file");
        assert!(last(dir.path()) == last(undisturbed.path()), "from step {step}");
        let left = names(dir.path());
        assert!(left.iter().all(|name| !name.starts_with(".tmp-")), "{left:?}");
    }
}

#[test]
fn checkpoint_holds_adapters_that_can_be_loaded() {
    let dir = support::temp();
    let training = Training::new(dir.path());
    let expected = training.fit(None).expect("a training");
    let model_dir = support::temp();
    TinyModel::default().write(model_dir.path());
    let model = ModelConfig::load(model_dir.path()).expect("the configuration loads");
    let mut found = Vec::new();
    for run in 0..2 {
        let adapter =
            LoraAdapter::read(dir.path().join(format!("checkpoint-9/run-{run:03}")), &model).expect("an adapter");
        assert_eq!(AdapterConfig::Lora(adapter.config), config());
        adapter.modules.iter().for_each(|m| found.extend(m.a.iter().chain(&m.b).map(|&x| f64::from(x))));
    }
    assert!(found == expected);

    let alone = support::temp();
    let training = Training { runs: runs()[..1].to_vec(), ..Training::new(alone.path()) };
    training.fit(None).expect("a training");
    let files = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "trainer_state.json",
    ];
    assert_eq!(names(&alone.path().join("checkpoint-9")), files);
    assert!(log(alone.path()).iter().all(|line| line.run.is_none()));
}

#[test]
fn checkpoints_are_limited_in_number_and_the_latest_is_the_last() {
    let dir = support::temp();
    let long = RunSettings { length: Length::Steps(12), ..settings(1) };
    let runs = vec![Run { data: data(1, 10), settings: long }];
    let training = Training { runs, save_steps: 3, save_total_limit: Some(2), ..Training::new(dir.path()) };
    let backend = &mut Cpu::new(Dtype::F32);
    let mut model = model(backend);
    let mut trainer = trainer(backend, &model, training.runs.clone(), training.options);
    let output = Output {
        dir: dir.path(),
        logging_steps: 100,
        report_to: ReportTo::default(),
        save_steps: Some(3),
        save_total_limit: Some(2),
        look_steps: None,
        stop_after: None,
        configs: &[config()],
        identity: &training.identity,
    };
    fit(backend, &mut model, &mut trainer, &output, None, || Ok(()), |_, _, _| Ok(())).expect("a training");
    assert_eq!(names(dir.path()), ["checkpoint-12", "checkpoint-9", LOG_FILE]);
    let latest = checkpoint::latest(dir.path()).expect("a listing").expect("a checkpoint");
    assert!(latest.ends_with("checkpoint-12"), "by number, not by name");
    assert_eq!(checkpoint::latest(&dir.path().join("none")).expect("nothing to list"), None);
    assert_eq!(log(dir.path()).len(), 1, "the last step is logged in any case");
}

#[test]
fn resume_of_another_training_is_refused_by_the_field_that_differs() {
    let dir = support::temp();
    Training::new(dir.path()).fit(None).expect("a training");
    let path = dir.path().join("checkpoint-4");
    let error = Training::new(dir.path()).refused(None);
    assert!(error.starts_with("output_dir: ") && error.contains("checkpoint-9"), "{error}");

    let changed = |change: fn(&mut Training<'_>)| {
        let mut training = Training::new(dir.path());
        change(&mut training);
        training.refused(Some(&path))
    };
    let cases = [
        (changed(|t| t.runs[1].settings.learning_rate = 0.5), "settings.runs[1].settings.learning_rate"),
        (changed(|t| t.runs[0].settings.seed = 5), "settings.runs[0].settings.seed"),
        (changed(|t| t.runs[0].settings.length = Length::Steps(10)), "settings.runs[0].settings.total_steps"),
        (changed(|t| t.runs[0].settings.batch_size = 3), "settings.runs[0].settings.sequences_per_step"),
        (changed(|t| t.runs[0].settings.warmup = Warmup::Ratio(0.9)), "settings.runs[0].settings.warmup_steps"),
        (changed(|t| t.runs[0].data[3].ids[1] += 1), "settings.runs[0].data"),
        (changed(|t| t.runs[0].data[3].labels[1] = 7), "settings.runs[0].data"),
        (changed(|t| drop(t.runs[1].data.pop())), "settings.runs[1]."),
        (changed(|t| drop(t.runs.pop())), "settings.runs"),
        (changed(|t| t.options.dropout = 0.2), "settings.dropout"),
        (changed(|t| t.options.neftune_noise_alpha = None), "settings.neftune_noise_alpha"),
        (changed(|t| t.options.row_budget = 61), "settings.row_budget"),
        (changed(|t| t.identity = json!({"model": "other"})), "settings.identity.model"),
    ];
    for (error, field) in cases {
        let start = format!("{}: {field}", path.join("trainer_state.json").display());
        assert!(error.starts_with(&start), "{error}\nshould start with {start}");
    }
}

#[test]
fn checkpoint_that_is_damaged_is_refused() {
    let dir = support::temp();
    Training::new(dir.path()).fit(None).expect("a training");
    let path = dir.path().join("checkpoint-4");
    let state = path.join("trainer_state.json");
    let text = fs::read_to_string(&state).expect("the state");
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(&state, text.replacen(from, to, 1)).expect("write");
        Training::new(dir.path()).refused(Some(&path))
    };
    let cases = [
        (refused("\"format\": 2", "\"format\": 1"), "format"),
        (refused("\"global_step\": 4", "\"global_step\": 400"), "global_step"),
        (refused("\"position\"", "\"positron\""), "positron"),
        (refused("\"position\": ", "\"position\": 99"), "runs[0].cursor.position"),
        (refused("{", "["), "trainer_state.json"),
    ];
    for (error, part) in cases {
        assert!(error.contains(part), "{error}");
    }
    fs::write(&state, &text).expect("write");
    let tensors = path.join("optimizer.safetensors");
    let bytes = fs::read(&tensors).expect("the tensors");
    fs::write(&tensors, &bytes[..bytes.len() - 1]).expect("write");
    let error = Training::new(dir.path()).refused(Some(&path));
    assert!(error.contains("optimizer.safetensors"), "{error}");
    fs::remove_file(&tensors).expect("remove");
    let error = Training::new(dir.path()).refused(Some(&path));
    assert!(error.contains("optimizer.safetensors"), "{error}");
    let error = Training::new(dir.path()).refused(Some(&dir.path().join("checkpoint-77")));
    assert!(error.contains("checkpoint-77"), "{error}");
}

#[test]
fn resume_of_full_tuning_is_bit_for_bit() {
    let dir = support::temp();
    let model_dir = support::temp();
    TinyModel::default().write(model_dir.path());
    let backend = &mut Cpu::new(Dtype::F32);
    let start = |backend: &mut Cpu<f32>| {
        let weights = Checkpoint::open(model_dir.path()).expect("the weights open");
        let config = ModelConfig::load(model_dir.path()).expect("the configuration loads");
        let (model, full) = FullTuning::load(backend, config, &weights).expect("copies");
        let run = Run { data: data(1, 8), settings: settings(1) };
        let options = TrainerOptions::default();
        let trainer = Trainer::new(backend, &model, Trainable::Weights(full), vec![run], options).expect("a trainer");
        (model, trainer)
    };
    let (mut model, mut trainer) = start(backend);
    for _ in 0..2 {
        trainer.step(backend, &mut model).expect("a step");
    }
    let identity = json!({});
    let path = trainer.save(backend, dir.path(), &[], &identity, Default::default()).expect("a checkpoint");
    let (mut other_model, mut other) = start(backend);
    other.restore(backend, &mut other_model, &path, &identity).expect("a continuation");
    while !trainer.done() {
        let expected = trainer.step(backend, &mut model).expect("a step");
        assert_eq!(other.step(backend, &mut other_model).expect("a step"), expected);
    }
    assert!(params(backend, &other) == params(backend, &trainer));
    backend.sync().expect("sync");
}

#[test]
fn resume_computes_kept_states_once_more_and_changes_no_bit() {
    let dir = support::temp();
    let (backend, identity) = (&mut Cpu::new(Dtype::F32), json!({}));
    let mut model = deep(backend);
    // Five steps an epoch, three epochs.
    let runs = [Run { data: data(1, 10), settings: RunSettings { accumulation: 1, ..settings(1) } }];
    let options = TrainerOptions { dropout: 0.1, ..TrainerOptions::default() };
    let AdapterConfig::Lora(lora) = config() else { unreachable!() };
    let configs = [AdapterConfig::Lora(LoraConfig { layers_to_transform: Some(vec![2, 3]), ..lora })];
    let mut calm = trainer_of_last(backend, &model, &runs, options);
    let (mut reports, mut checkpoints) = (Vec::new(), Vec::new());
    while !calm.done() {
        reports.push(calm.step(backend, &mut model).expect("a step"));
        let saved = calm.save(backend, dir.path(), &configs, &identity, Default::default());
        checkpoints.push(saved.expect("a checkpoint"));
    }
    let expected = params(backend, &calm);
    // Within the first epoch, at its end, and within the second, when every state had been kept.
    for step in [2, 5, 8] {
        let mut resumed = trainer_of_last(backend, &model, &runs, options);
        resumed.restore(backend, &mut model, &checkpoints[step - 1], &identity).expect("a continuation");
        for report in &reports[step..] {
            assert_eq!(resumed.step(backend, &mut model).expect("a step"), *report, "from step {step}");
        }
        assert!(resumed.done() && params(backend, &resumed) == expected, "from step {step}");
    }
    // From the second epoch on: all four layers once for each sequence, and then the last two alone.
    let trace = &mut Trace::new();
    let mut model = deep(trace);
    let [mut begun, mut resumed] = [0, 1].map(|_| trainer_of_last(trace, &model, &runs, options));
    (0..5).for_each(|_| drop(begun.step(trace, &mut model).expect("a step")));
    let dir = support::temp();
    let saved = begun.save(trace, dir.path(), &configs, &identity, Default::default());
    resumed.restore(trace, &mut model, &saved.expect("a checkpoint"), &identity).expect("a continuation");
    trace.clear();
    while !resumed.done() {
        resumed.step(trace, &mut model).expect("a step");
    }
    assert_eq!(trace.ops().iter().filter(|op| **op == "attention_fwd").count(), 5 * 4 + 5 * 2);
}

#[test]
fn resume_with_other_passes_of_as_many_sequences_is_the_same_training_but_for_rounding() {
    let (calm, torn) = (support::temp(), support::temp());
    let of = |dir, (batch_size, accumulation)| {
        let runs = runs().into_iter().map(|mut run| {
            (run.settings.batch_size, run.settings.accumulation) = (batch_size, accumulation);
            run
        });
        Training { runs: runs.collect(), ..Training::new(dir) }
    };
    let expected = of(calm.path(), (2, 2)).fit(None).expect("a training");
    of(torn.path(), (2, 2)).fit(None).expect("a training");
    let path = torn.path().join("checkpoint-4");
    for other in [(4, 1), (1, 4)] {
        let found = of(torn.path(), other).fit(Some(&path)).expect("a continuation");
        let off = difference(&found, &expected);
        println!("{other:?}: off by {off:.1e}");
        assert!(off < 4e-7 && found != expected, "{other:?}: {off}");
    }
    let found = of(torn.path(), (2, 2)).fit(Some(&path)).expect("a continuation");
    assert!(found == expected, "with the same passes bit for bit");
}

#[test]
fn resume_with_more_epochs_is_an_undisturbed_longer_training_where_rates_do_not_depend_on_the_length() {
    let of = |dir, length, schedule| {
        let settings =
            RunSettings { length, schedule, warmup: Warmup::Steps(3), batch_size: 2, accumulation: 2, ..settings(4) };
        Training { runs: vec![Run { data: data(1, 10), settings }], ..Training::new(dir) }
    };
    let (short, long) = (support::temp(), support::temp());
    let two = || of(short.path(), Length::Epochs(2.0), Schedule::Constant);
    two().fit(None).expect("a training");
    let expected = of(long.path(), Length::Epochs(4.0), Schedule::Constant).fit(None).expect("a training");
    let last = short.path().join("checkpoint-6");
    let refused = of(short.path(), Length::Epochs(4.0), Schedule::Linear).refused(Some(&last));
    assert!(refused.contains("settings.runs[0].settings.schedule"), "{refused}");
    let longer = of(short.path(), Length::Epochs(4.0), Schedule::Constant);
    assert!(longer.fit(Some(&last)).expect("a continuation") == expected);
    // Said in another way, the same number of steps is the same training under any schedule.
    let linear = support::temp();
    let of = |length| of(linear.path(), length, Schedule::Linear);
    let expected = of(Length::Epochs(2.0)).fit(None).expect("a training");
    let path = linear.path().join("checkpoint-3");
    assert!(of(Length::Steps(6)).fit(Some(&path)).expect("a continuation") == expected);
    let refused = of(Length::Steps(7)).refused(Some(&path));
    assert!(refused.contains("total_steps") && refused.contains("learning rates"), "{refused}");
}
