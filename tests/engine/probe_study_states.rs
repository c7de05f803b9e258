//! Where a study's states are read and put in, and full tuning: against a reader of one sequence at a time.

use llamaprobe::arch::ModelConfig;
use llamaprobe::backend::Buffers;
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::hooks::{NoTaps, Record, Selection, Site};
use llamaprobe::measures::similarity::cosines;
use llamaprobe::model::{Activations, FullTuning, Input, Model, Save};
use llamaprobe::pack::{Label, Sequence, forest};
use llamaprobe::probe::arm::Arm;
use llamaprobe::probe::plan::SeedPlan;
use llamaprobe::probe::report::{PatchLayer, PatchVector, SeedReport, Summary};
use llamaprobe::probe::statistics::MeanSd;
use llamaprobe::probe::{Base, Measures, Position, TuningKind, run_conditions};
use llamaprobe::task::prompts::Prompt;
use llamaprobe::task::{Example, Task};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::fit::{self, Watch};
use llamaprobe::train::settings::Length;
use llamaprobe::train::trainable::Trainable;
use llamaprobe::train::trainer::{Run, Trainer, TrainerOptions};

use super::probe::{Bench, Device, arm, losses, pair};

/// States of every layer at all tokens of one sequence read alone.
fn states(backend: &mut Device, model: &Model<Device>, ids: &[u32]) -> Vec<Vec<f32>> {
    let packed = forest(&[Sequence::ids(ids, None, Label::Text)], 1);
    let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
    let mut acts = Activations::new(backend, &model.config, None, ids.len(), Save::Layer).expect("memory");
    let device = backend.pack(&packed.pack).expect("pack");
    let selection = Selection::new(&[Site::ResidPost, Site::FINAL_NORM], &layers);
    let mut record = Record::new(selection, (0..ids.len()).collect());
    model.forward(backend, &mut acts, &Input::new(&packed.pack, &device), None, &mut record).expect("forward");
    let of = |site, layer| record.get(site, layer).expect("recorded").to_vec();
    layers.iter().map(|&l| of(Site::ResidPost, l)).chain([of(Site::FINAL_NORM, 0)]).collect()
}

/// The log-probability of each answer of a prompt, each read alone.
fn log_probs(backend: &mut Device, model: &Model<Device>, prompt: &Prompt) -> Vec<f64> {
    let mut of = |answer: usize| {
        let ids = prompt.answers[answer].after(&prompt.token_ids);
        let packed = forest(&[Sequence::ids(&ids, None, Label::Text)], 1);
        let mut acts = Activations::new(backend, &model.config, None, ids.len(), Save::Layer).expect("memory");
        let device = backend.pack(&packed.pack).expect("pack");
        model.forward(backend, &mut acts, &Input::new(&packed.pack, &device), None, &mut NoTaps).expect("forward");
        let logits = model.logits(backend, &acts, &(0..ids.len()).collect::<Vec<_>>()).expect("logits");
        let rows: Vec<&[f32]> = logits.chunks_exact(model.config.vocab_size).collect();
        let log_prob = |i: usize| {
            let total: f64 = rows[i - 1].iter().map(|&x| f64::from(x).exp()).sum();
            f64::from(rows[i - 1][ids[i] as usize]) - total.ln()
        };
        (ids.len() - prompt.answers[answer].scored..ids.len()).map(log_prob).sum()
    };
    (0..prompt.answers.len()).map(&mut of).collect()
}

/// What is read of each prompt in turn: its ids, and how many of its last tokens.
type Read = Vec<(Vec<u32>, usize)>;

/// The rows of a position `[layers][rows * width]`, or the mean over each prompt's.
fn rows(bench: &mut Bench, read: &Read, mean: bool) -> Vec<Vec<f32>> {
    let width = bench.model.config.hidden_size;
    let mut out = vec![Vec::new(); bench.model.config.num_hidden_layers + 1];
    for (ids, count) in read {
        for (out, all) in out.iter_mut().zip(states(&mut bench.backend, &bench.model, ids)) {
            let last = &all[all.len() - count * width..];
            match mean {
                false => out.extend_from_slice(last),
                true => out.extend((0..width).map(|c| {
                    let sum: f64 = last.iter().skip(c).step_by(width).map(|&x| f64::from(x)).sum();
                    (sum / *count as f64) as f32
                })),
            }
        }
    }
    out
}

/// The prompts of a position in the anchor and in ICL, from the texts alone.
fn reads(bench: &Bench, seed: &SeedPlan, position: Position) -> [Read; 2] {
    let template = &bench.settings.template;
    let ids = |text: &str| bench.tokenizer.encode(text, true).expect("encodes").ids;
    let examples: Vec<&Example> = seed.demonstrations.iter().map(|&d| &bench.pool[d]).collect();
    let before = |n: usize| examples[..n].iter().map(|d| template.demonstration(d)).collect::<String>();
    if position == Position::Demos {
        let alone = examples.iter().map(|d| (ids(&template.query(d)), 1));
        let after = examples.iter().enumerate().map(|(i, d)| (ids(&format!("{}{}", before(i), template.query(d))), 1));
        return [alone.collect(), after.collect()];
    }
    let of = |before: &str| -> Read {
        let one = |query: &Example| {
            let alone = ids(&template.query(query));
            let (query_text, answer) = (template.query(query), format!(" {}", query.output));
            match position {
                Position::Last => (ids(&format!("{before}{query_text}")), 1),
                // The tokens behind the beginning of the sequence, which stands once before everything.
                Position::All | Position::Mean => (ids(&format!("{before}{query_text}")), alone.len() - 1),
                _ => {
                    let whole = ids(&format!("{query_text}{answer}"));
                    (ids(&format!("{before}{query_text}{answer}")), whole.len() - alone.len())
                }
            }
        };
        bench.queries[..6].iter().map(one).collect()
    };
    [of(""), of(&before(examples.len()))]
}

#[test]
fn positions_are_the_rows_of_a_reader_of_single_sequences() {
    let mut bench = Bench::new();
    bench.settings.epochs = 0.0;
    bench.settings.measures = Measures::all();
    let width = bench.model.config.hidden_size;
    for position in Position::ALL {
        bench.settings.position = position;
        let plan = bench.draw(&bench.settings.clone());
        for rows_of_pass in [4096, 40] {
            bench.settings.rows = rows_of_pass;
            let conditions = bench.conditions(&[]);
            let report = bench.study(&conditions).report;
            for (s, seed) in plan.seeds.iter().enumerate() {
                let [anchor, icl] = reads(&bench, seed, position);
                let count: usize = anchor.iter().map(|(_, n)| n).sum();
                let mean = position == Position::Mean;
                let [anchor, icl] = [anchor, icl].map(|read| rows(&mut bench, &read, mean));
                let expected = match position {
                    Position::Last | Position::Mean => 6,
                    Position::Demos => 4,
                    _ => count,
                };
                assert_eq!(anchor[0].len(), expected * width);
                assert!(position != Position::Label || count > 12, "labels of several tokens: {count}");
                for (l, layer) in report.seeds[s].layers.iter().enumerate() {
                    let found = pair(layer, Arm::ZeroShot, Arm::Icl).cosine;
                    let expected = MeanSd::of(cosines(&anchor[l], &icl[l], width));
                    for (found, expected) in [(found.mean, expected.mean), (found.sd, expected.sd)] {
                        let (found, expected) = (found.expect("rows"), expected.expect("rows"));
                        assert!((found - expected).abs() < 1e-6, "{position:?} {l}: {found} {expected}");
                    }
                    assert_eq!(pair(layer, Arm::ZeroShot, Arm::Lora).cosine.mean, Some(1.0), "an untrained LoRA");
                    let depth = bench.model.config.num_hidden_layers;
                    let scored = position == Position::Last && l < depth;
                    assert_eq!(layer.attention.contains_key("sim_am"), scored, "{position:?} {l}");
                }
            }
        }
        bench.settings.rows = 4096;
    }
}

#[test]
fn position_of_demonstrations_needs_their_prompts() {
    let mut bench = Bench::thorough();
    (bench.settings.position, bench.settings.patch) = (Position::Demos, false);
    let mut conditions = bench.conditions(&["demos=0,2"]);
    let report = bench.study(&conditions).report;
    let of = |c: usize| pair(&report.conditions[c].seeds[0].layers[0], Arm::ZeroShot, Arm::Icl).cosine.mean;
    assert!(of(0).is_none() && of(1).is_some(), "without demonstrations there is no row");
    conditions[1].plan.seeds[0].icl_demonstration_token_ids.pop();
    let error = conditions[1].plan.validate("report.json", 272).expect_err("one is missing").to_string();
    assert!(error.contains("icl_demonstration_token_ids"), "{error}");
    conditions[1].plan.seeds[0].icl_demonstration_token_ids.clear();
    let base = Base { name: "tiny", checkpoint: None, edits: &[] };
    let found = run_conditions(&mut bench.backend, &mut bench.model, base, &conditions, &mut |_| ());
    let error = found.expect_err("all are missing").to_string();
    assert!(error.starts_with("position"), "{error}");
}

fn vector<'a>(layer: &'a PatchLayer, name: &str) -> &'a PatchVector {
    layer.vectors.iter().find(|vector| vector.vector == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn patching_a_state_where_it_is_changes_no_bit() {
    let mut bench = Bench::new();
    bench.settings.patch = true;
    bench.settings.epochs = 0.0;
    // Of no demonstrations ICL's state is the anchor's own, and so is that of an untrained LoRA.
    for rows in [4096, 60, 1] {
        bench.settings.rows = rows;
        let conditions = bench.conditions(&["demos=0,4"]);
        let report = bench.study(&conditions).report;
        for (condition, own) in report.conditions.iter().zip([&["icl", "it", "task_vector", "it_vector"][..], &["it"]])
        {
            for seed in &condition.seeds {
                assert_eq!(seed.patching.len(), 2);
                let anchor = arm(seed, Arm::ZeroShot);
                for (layer, name) in seed.patching.iter().flat_map(|layer| own.iter().map(move |name| (layer, name))) {
                    let found = vector(layer, name);
                    assert_eq!(found.log_prob.mean, Some(anchor.log_prob), "{rows} rows, {} {name}", layer.layer);
                    assert_eq!(found.accuracy.mean, anchor.accuracy);
                }
            }
        }
        let shown = &report.conditions[1].seeds[0];
        for name in ["icl", "random"] {
            let found = vector(&shown.patching[0], name).log_prob.mean;
            assert_ne!(found, Some(arm(shown, Arm::ZeroShot).log_prob), "{name} changes something");
        }
    }
}

#[test]
fn patching_the_last_layer_gives_the_answers_of_the_arm() {
    let mut bench = Bench::new();
    let file = bench.dir.path().join("words.yaml");
    std::fs::write(&file, "name: words\nlabels: [p, the]\n").expect("writes");
    let task = Task::read(&file).expect("a task");
    for (i, example) in bench.pool.iter_mut().chain(&mut bench.queries).enumerate() {
        example.output = ["p", "the"][i % 2].to_owned();
    }
    (bench.settings.template, bench.settings.task, bench.settings.patch) = (task.template().clone(), task, true);
    let conditions = bench.conditions(&[]);
    for answer in conditions[0].plan.queries.iter().flat_map(|query| &query.answers) {
        assert_eq!((answer.replaces, answer.token_ids.len()), (0, 1), "labels of one token");
    }
    let report = bench.study(&conditions).report;
    for seed in &report.seeds {
        let last = seed.patching.last().expect("layers");
        for (name, of) in [("icl", Arm::Icl), ("it", Arm::Lora)] {
            let (found, expected) = (vector(last, name), arm(seed, of));
            assert_eq!(
                (found.accuracy.mean, found.log_prob.mean),
                (expected.accuracy, Some(expected.log_prob)),
                "{name}"
            );
        }
        assert_eq!(vector(last, "icl").recovery_log_prob.mean, Some(1.0));
    }
    recovery_over_seeds_is_of_the_mean_gain(&report.seeds[0]);
}

/// A seed in which ICL gains next to nothing weighs no more than another.
fn recovery_over_seeds_is_of_the_mean_gain(seed: &SeedReport) {
    let planted = |[anchor, icl, patched]: [f64; 3]| {
        let mut seed = seed.clone();
        for arm in &mut seed.arms {
            arm.accuracy = Some(if arm.arm == Arm::Icl { icl } else { anchor });
        }
        seed.patching[0].vectors[0].accuracy.mean = Some(patched);
        seed
    };
    let of = |seeds: &[SeedReport]| Summary::of(seeds).patching[0].vectors[0].recovery_accuracy;
    let found = of(&[planted([0.5, 0.51, 0.4]), planted([0.5, 0.99, 0.9])]);
    // -0.1 and 0.4 of a mean gain of 0.25; the shares of the seeds' own gains are -10 and 0.82.
    assert!((found.mean.expect("a mean") - 0.6).abs() < 1e-12, "{found:?}");
    assert!((found.sd.expect("an SD") - 2f64.sqrt()).abs() < 1e-12, "{found:?}");
    assert_eq!(of(&[planted([0.5, 0.5, 0.7])]).mean, None, "nothing is gained");
    assert_eq!(of(&[planted([0.5, 0.75, 0.625])]).mean, Some(0.5));
}

#[test]
fn full_tuning_is_the_trainers() {
    let mut bench = Bench::new();
    (bench.settings.tuning, bench.settings.learning_rate) = (TuningKind::Full, 3e-3);
    let conditions = bench.conditions(&["steps=3"]);
    let report = bench.study(&conditions).report;
    let (plan, settings) = (&conditions[0].plan, &conditions[0].settings);
    let config = ModelConfig::load(bench.dir.path()).expect("a configuration");
    let checkpoint = Checkpoint::open(bench.dir.path()).expect("the weights open");
    for (seed, found) in plan.seeds.iter().zip(&report.seeds) {
        let (mut model, full) = FullTuning::load(&mut bench.backend, config.clone(), &checkpoint).expect("copies");
        let data = seed.train.iter().map(|e| TrainSequence {
            ids: e.input_ids.clone(),
            labels: e.labels.clone(),
            teacher: None,
        });
        let mut training = settings.training(Arm::Lora, seed.seed, 4);
        training.length = Length::Steps(3);
        let runs = vec![Run { data: data.collect(), settings: training }];
        let options = TrainerOptions { row_budget: settings.rows, ..TrainerOptions::default() };
        let mut trainer =
            Trainer::new(&mut bench.backend, &model, Trainable::Weights(full), runs, options).expect("a trainer");
        let mut loss = Vec::new();
        let watch = Watch {
            pauses: &|_| false,
            on_step: &mut |_, _, _, report| {
                loss.extend(report.runs.iter().map(|run| run.loss));
                Ok(())
            },
        };
        fit::watch(&mut bench.backend, &mut model, &mut trainer, watch).expect("trains");
        assert_eq!(losses(found, Arm::Lora).0, loss);
        let prompts = plan.prompts().into_iter().zip(plan.gold());
        let mean =
            prompts.map(|(prompt, gold)| log_probs(&mut bench.backend, &model, &prompt)[gold]).sum::<f64>() / 6.0;
        let it = arm(found, Arm::Lora).log_prob;
        assert!((it - mean).abs() < 1e-4, "{it} {mean}");
        assert!(it > arm(found, Arm::ZeroShot).log_prob + 1.0, "it learns");
        let queries: Vec<Vec<u32>> = plan.queries.iter().map(|query| query.token_ids.clone()).collect();
        let width = config.hidden_size;
        let mut read = |model: &Model<Device>| -> Vec<f32> {
            queries
                .iter()
                .flat_map(|ids| {
                    let all = states(&mut bench.backend, model, ids).swap_remove(1);
                    all[all.len() - width..].to_vec()
                })
                .collect()
        };
        let (anchor, tuned) = (read(&bench.model), read(&model));
        let expected = MeanSd::of(cosines(&anchor, &tuned, width)).mean.expect("queries");
        let cosine = pair(&found.layers[1], Arm::ZeroShot, Arm::Lora).cosine.mean.expect("queries");
        assert!((cosine - expected).abs() < 1e-6, "{cosine} {expected}");
    }
}
