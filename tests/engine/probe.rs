//! The probe: its plan, its packs, its arms against a reader of one sequence at a time, and its report.

use std::path::Path;

use llamaprobe::arch::{Dtype, Family, ModelConfig};
use llamaprobe::backend::Buffers;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::adapter::{Adapter, LoraAdapter, PromptKind};
use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::hooks::{Record, Selection, Site};
use llamaprobe::measures::similarity::{cosines, gaussian_rows, gaussian_updates, updates};
use llamaprobe::model::{Activations, Adaptation, Input, Layout, Model, Save};
use llamaprobe::pack::{Label, Sequence, forest};
use llamaprobe::probe::arm::Arm;
use llamaprobe::probe::plan::Plan;
use llamaprobe::probe::report::{ArmReport, Layer, LayerReport, PairReport, Report, SeedReport};
use llamaprobe::probe::statistics::MeanSd;
use llamaprobe::probe::{Measures, Outcome, Phase, Position, ProbeSettings, SoftSettings, run};
use llamaprobe::task::prompts::Prompt;
use llamaprobe::task::{Example, Task};

use crate::support::{self, tiny_model::TinyModel};

pub(super) fn built_in(name: &str) -> Task {
    name.parse().expect("a built-in task")
}

pub(super) type Device = Cpu<f32>;

/// A model with its tokenizer, and the numbers of a run over it.
pub(super) struct Bench {
    pub dir: tempfile::TempDir,
    pub backend: Device,
    pub model: Model<Device>,
    pub tokenizer: Tokenizer,
    pub pool: Vec<Example>,
    pub queries: Vec<Example>,
    pub settings: ProbeSettings,
}

impl Bench {
    pub fn new() -> Self {
        let dir = support::temp();
        TinyModel { tied: true, ..TinyModel::default() }.write(dir.path());
        let mut backend = Device::new(Dtype::F32);
        let model = Model::load(&mut backend, dir.path()).expect("loads");
        let tokenizer = Tokenizer::load(dir.path()).expect("loads");
        let text = |i: usize| ["the thin prince", "the inner path, then", "a père", "winter", "in the theatre"][i % 5];
        let word = |i: usize| if i.is_multiple_of(2) { "negative" } else { "positive" };
        let example = |i: usize| Example::new(format!("{} {i}", text(i)), word(i));
        let settings = ProbeSettings {
            demonstrations: 4,
            queries: Some(6),
            seeds: vec![3, 8],
            r: 2,
            epochs: 3.0,
            learning_rate: 1e-2,
            ..ProbeSettings::new(built_in("sst2"))
        };
        let (pool, queries) = ((0..30).map(example).collect(), (100..110).map(example).collect());
        Self { dir, backend, model, tokenizer, pool, queries, settings }
    }

    fn plan(&self) -> Plan {
        Plan::new(&self.tokenizer, &self.settings.task, &self.pool, &self.queries, &self.settings).expect("a plan")
    }

    fn run(&mut self, plan: &Plan) -> Outcome {
        run(&mut self.backend, &mut self.model, "tiny", plan, &self.settings, &mut |_| ()).expect("runs")
    }
}

pub(super) fn arm(seed: &SeedReport, arm: Arm) -> &ArmReport<Option<f64>, f64> {
    seed.arm(arm).expect("an arm of the probe")
}

/// The losses of an arm's training, before each step and after the last.
pub(super) fn losses(seed: &SeedReport, of: Arm) -> (&[f64], f64) {
    let tuning = arm(seed, of).tuning.as_ref().expect("an arm that trains");
    (&tuning.loss, tuning.final_loss.expect("of at least one example"))
}

pub(super) fn pair(layer: &LayerReport, x: Arm, y: Arm) -> &PairReport {
    layer.pair(x, y).expect("every pair")
}

/// The updates of ICL and LoRA, on the same query and on others.
fn update(layer: &LayerReport) -> [MeanSd; 2] {
    let updates = pair(layer, Arm::Icl, Arm::Lora).updates.expect("two arms beside the anchor");
    [updates.update, updates.update_shuffled]
}

/// The report's text without what the clock says.
pub(super) fn timeless(report: &Report) -> String {
    let mut report = report.clone();
    report.seconds = Default::default();
    serde_json::to_string(&report).expect("JSON")
}

#[test]
fn plan_divides_icl_prompts_where_all_agree() {
    let bench = Bench::new();
    let plan = bench.plan();
    let template = &bench.settings.template;
    let whole = |text: &str| bench.tokenizer.encode(text, true).expect("encodes").ids;
    assert_eq!(plan.labels.as_deref(), Some(&["negative".to_string(), "positive".to_string()][..]));
    for (q, example) in plan.queries.iter().zip(&bench.queries) {
        assert_eq!(q.token_ids, whole(&template.query(example)));
        assert_eq!(example.output, ["negative", "positive"][q.gold]);
    }
    for seed in &plan.seeds {
        let before: String = seed.demonstrations.iter().map(|&d| template.demonstration(&bench.pool[d])).collect();
        let prompts = seed.icl_prompts();
        for (prompt, example) in prompts.iter().zip(&bench.queries) {
            let text = before.clone() + &template.query(example);
            assert_eq!(prompt.token_ids, whole(&text));
            for (answer, word) in prompt.answers.iter().zip(["negative", "positive"]) {
                assert_eq!(answer.after(&prompt.token_ids), whole(&format!("{text} {word}")));
            }
        }
        let firsts: Vec<u32> = seed.icl_suffix_token_ids.iter().map(|s| s[0]).collect();
        assert!(firsts.iter().any(|&t| t != firsts[0]), "the prefix could be longer: {firsts:?}");
        assert!(seed.icl_prefix_token_ids.len() >= whole(&before).len() - 1, "the demonstrations are in the prefix");
        assert_eq!(seed.train.len(), 4);
    }
    assert_ne!(plan.seeds[0].demonstrations, plan.seeds[1].demonstrations);
}

#[test]
fn plan_of_a_single_query_still_has_a_suffix() {
    let mut bench = Bench::new();
    bench.settings.queries = Some(1);
    let plan = bench.plan();
    assert!(plan.seeds.iter().all(|s| s.icl_suffix_token_ids[0].len() == 1));
    let report = bench.run(&plan).report;
    let last = report.seeds[0].layers.last().expect("layers");
    let cosine = pair(last, Arm::Icl, Arm::Lora).cosine;
    assert_eq!((cosine.sd, update(last)[1].mean), (None, None), "nothing to spread, nothing to shuffle");
    assert!(cosine.mean.is_some());
    for queries in [0, 11] {
        bench.settings.queries = Some(queries);
        let task = &bench.settings.task;
        assert!(Plan::new(&bench.tokenizer, task, &bench.pool, &bench.queries, &bench.settings).is_err());
    }
}

#[test]
fn probe_with_an_untuned_adapter_finds_no_change() {
    let mut bench = Bench::new();
    bench.settings.epochs = 0.0;
    let plan = bench.plan();
    for seed in bench.run(&plan).report.seeds {
        let (anchor, it) = (arm(&seed, Arm::ZeroShot), arm(&seed, Arm::Lora));
        assert_eq!(it.accuracy, anchor.accuracy);
        assert_eq!(it.log_prob.to_bits(), anchor.log_prob.to_bits());
        assert!(losses(&seed, Arm::Lora).0.is_empty());
        for layer in &seed.layers {
            assert_eq!(pair(layer, Arm::ZeroShot, Arm::Lora).cosine, MeanSd { mean: Some(1.0), sd: Some(0.0) });
            assert_eq!(pair(layer, Arm::Icl, Arm::Lora).cosine, pair(layer, Arm::ZeroShot, Arm::Icl).cosine);
            assert_eq!(update(layer).map(|u| u.mean), [Some(0.0), Some(0.0)]);
            assert_ne!(layer.update_gaussian.mean, Some(0.0), "ICL moved the state");
        }
    }
}

#[test]
fn probe_on_packs_of_any_size_gives_the_same_bits() {
    let mut bench = Bench::new();
    let plan = bench.plan();
    let whole = bench.run(&plan);
    for rows in [1, 60, 150, 333] {
        bench.settings.rows = rows;
        // The tuning's sums run over its own passes; everything that is only read must not change.
        bench.settings.epochs = 0.0;
        let split = bench.run(&plan).report;
        bench.settings.rows = 1 << 20;
        let one = bench.run(&plan).report;
        assert_eq!(split.seeds, one.seeds, "{rows} rows");
        assert_eq!(split.tokens, one.tokens, "{rows} rows: shared rows are cached, not computed again");
    }
    // What is shared is computed once: prefix, suffixes, and the answers' tokens but the last.
    let icl: usize = plan.seeds.iter().map(|s| rows_of(&s.icl_prompts())).sum();
    assert_eq!(whole.report.tokens.icl, icl);
}

/// Rows of the trie of all prompts and answers, in which a prompt's own tree is a branch of its own after the prefix.
fn rows_of(prompts: &[Prompt]) -> usize {
    let sequences = |p: &Prompt| {
        let read = |ids: Vec<u32>| Sequence::ids(&ids, None, Label::Text);
        let answers = p.answers.iter().map(|a| a.after(&p.token_ids)).map(|ids| read(ids[..ids.len() - 1].to_vec()));
        std::iter::once(read(p.token_ids.clone())).chain(answers).collect::<Vec<_>>()
    };
    let all: Vec<Vec<Sequence>> = prompts.iter().map(sequences).collect();
    let first = &all[0][0].tokens;
    let shared = |s: &Sequence| first.iter().zip(&s.tokens).take_while(|(a, b)| a == b).count();
    let prefix = all.iter().flatten().map(shared).min().expect("prompts");
    prefix + all.iter().map(|s| forest(s, 1).pack.len() - prefix).sum::<usize>()
}

#[test]
fn plan_repeats_a_run_exactly() {
    let mut bench = Bench::new();
    let plan = bench.plan();
    let Outcome { mut report, adapters } = bench.run(&plan);
    let out = bench.dir.path().join("run");
    report.save(&out, &adapters).expect("writes");
    let read = Report::read(&out.join("report.json")).expect("reads");
    assert_eq!(read, report);
    read.plan.validate("report.json", bench.model.config.vocab_size).expect("valid");
    bench.settings = read.settings.clone();
    let mut again = bench.run(&read.plan);
    again.report.save(&bench.dir.path().join("again"), &again.adapters).expect("writes");
    assert_eq!(timeless(&again.report), timeless(&report));
    let config = ModelConfig::load(bench.dir.path()).expect("a configuration");
    for (seed, adapter) in report.seeds.iter().zip(loras(&adapters[0])) {
        let name = format!("adapters/seed-{}", seed.seed);
        assert_eq!(seed.adapters.get(&Arm::Lora), Some(&name));
        let saved = LoraAdapter::read(out.join(name), &config).expect("a PEFT directory");
        assert_eq!(saved.modules, adapter.modules);
        assert!(saved.modules.iter().any(|m| m.b.iter().any(|&b| b != 0.0)), "tuned");
    }
    let text = std::fs::read_to_string(out.join("report.json")).expect("reads");
    assert!(text.contains("\"layer\": \"final\""));
}

/// The LoRA of every seed.
pub(super) fn loras(adapters: &[(Arm, Vec<Adapter>)]) -> Vec<&LoraAdapter> {
    let of_arm = adapters.iter().find(|(arm, _)| *arm == Arm::Lora).expect("LoRAs");
    fn lora(adapter: &Adapter) -> &LoraAdapter {
        match adapter {
            Adapter::Lora(lora) => lora,
            _ => panic!("a LoRA"),
        }
    }
    of_arm.1.iter().map(lora).collect()
}

/// State of every layer at the last token, and log-probabilities of the next token after every one, for one sequence
/// read alone.
fn alone(bench: &mut Bench, adaptation: Option<&Adaptation<Device>>, run: Option<usize>, ids: &[u32]) -> Alone {
    let soft = adaptation.map_or(0, |a| a.prompts[run.unwrap_or(0)]);
    let f = forest(&[Sequence::prompted(soft, ids, run)], 1);
    let length = f.pack.len();
    let (backend, model) = (&mut bench.backend, &bench.model);
    let layers: Vec<usize> = (0..model.config.num_hidden_layers).collect();
    let layout = adaptation.map(|a| &a.layout);
    let mut acts = Activations::new(backend, &model.config, layout, length, Save::Layer).expect("memory");
    let device = backend.pack(&f.pack).expect("pack");
    let mut input = Input::new(&f.pack, &device);
    input.adaptation = adaptation;
    let mut record = Record::new(Selection::new(&[Site::ResidPost, Site::FINAL_NORM], &layers), vec![length - 1]);
    model.forward(backend, &mut acts, &input, None, &mut record).expect("forward");
    let mut states: Vec<Vec<f32>> =
        layers.iter().map(|&l| record.get(Site::ResidPost, l).expect("recorded").to_vec()).collect();
    states.push(record.get(Site::FINAL_NORM, 0).expect("recorded").to_vec());
    let rows: Vec<usize> = (0..length).collect();
    let logits = model.logits(backend, &acts, &rows).expect("logits");
    let log_probs = logits.chunks_exact(model.config.vocab_size).map(|row| {
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - total.ln()).collect()
    });
    Alone { states, log_probs: log_probs.collect() }
}

struct Alone {
    states: Vec<Vec<f32>>,
    log_probs: Vec<Vec<f64>>,
}

/// The arms of soft prompts: their states, scores and pairs are those of single sequences behind the prompts that the
/// tuning left, on packs of any size.
#[test]
fn soft_prompts_stand_before_everything() {
    let mut bench = Bench::new();
    bench.settings.soft = SoftSettings { arms: vec![Arm::Pt, Arm::Ipt], num_virtual_tokens: 3, ..Default::default() };
    let plan = bench.plan();
    assert!(
        plan.seeds
            .iter()
            .all(|s| s.ipt_train.len() == 4 && s.ipt_train[0].input_ids.len() > s.train[0].input_ids.len())
    );
    let whole = bench.run(&plan);
    let width = bench.model.config.hidden_size;
    for (a, own) in [Arm::Pt, Arm::Ipt].into_iter().enumerate() {
        let mut adaptation =
            Adaptation::zeros(&mut bench.backend, &bench.model.config, PromptKind::PromptTuning, vec![3, 3])
                .expect("memory");
        let (of, prompts) = &whole.adapters[0][1 + a];
        assert_eq!(*of, own);
        for (run, adapter) in prompts.iter().enumerate() {
            let Adapter::Prompt(prompt) = adapter else { panic!("a soft prompt") };
            adaptation.set_prompt(&mut bench.backend, run, &prompt.rows).expect("fits");
        }
        for (s, seed) in plan.seeds.iter().enumerate() {
            let report = &whole.report.seeds[s];
            let (loss, final_loss) = losses(report, own);
            assert!(final_loss < loss[0], "it learns: {loss:?}, {final_loss}");
            let shown = seed.icl_prompts();
            let (mut anchor, mut icl, mut soft, mut log_prob) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
            for (q, query) in plan.queries.iter().enumerate() {
                let prompt = if own == Arm::Pt { &plan.prompts()[q] } else { &shown[q] };
                anchor.extend(alone(&mut bench, None, None, &query.token_ids).states[0].clone());
                icl.extend(alone(&mut bench, None, None, &shown[q].token_ids).states[0].clone());
                soft.extend(alone(&mut bench, Some(&adaptation), Some(s), &prompt.token_ids).states[0].clone());
                let answer = &prompt.answers[query.gold];
                let ids = answer.after(&prompt.token_ids);
                let read = alone(&mut bench, Some(&adaptation), Some(s), &ids);
                let from = ids.len() - answer.scored;
                log_prob += (from..ids.len()).map(|i| read.log_probs[3 + i - 1][ids[i] as usize]).sum::<f64>() / 6.0;
            }
            let found = arm(report, own).log_prob;
            assert!((found - log_prob).abs() < 1e-4, "{own:?}: {found} {log_prob}");
            let expected = updates(&anchor, &icl, &soft, width);
            let layer = &report.layers[0];
            let beside = layer.pairs.iter().filter(|pair| pair.arms[1] == own).map(|pair| pair.arms[0]);
            assert_eq!(beside.collect::<Vec<_>>(), [Arm::ZeroShot, Arm::Icl, Arm::Lora, Arm::Pt][..3 + a]);
            let with_icl = pair(layer, Arm::Icl, own);
            let found = with_icl.updates.expect("two arms beside the anchor");
            for (found, expected) in [
                (pair(layer, Arm::ZeroShot, own).cosine, cosines(&anchor, &soft, width)),
                (with_icl.cosine, cosines(&icl, &soft, width)),
                (found.update, expected.update),
                (found.update_shuffled, expected.update_shuffled),
            ] {
                let (found, expected) = (found.mean.expect("queries"), MeanSd::of(expected).mean.expect("queries"));
                assert!((found - expected).abs() < 2e-5, "{own:?}, seed {s}: {found}, {expected}");
            }
        }
    }
    // With nothing tuned, neither the size of the passes nor the other arms change a number.
    bench.settings.soft.learning_rate = 0.0;
    let one = bench.run(&plan).report;
    bench.settings.rows = 90;
    let split = bench.run(&plan).report;
    for (a, b) in one.seeds.iter().zip(&split.seeds) {
        for of in [Arm::Pt, Arm::Ipt] {
            assert_eq!((arm(a, of).accuracy, arm(a, of).log_prob), (arm(b, of).accuracy, arm(b, of).log_prob));
            assert_eq!(losses(a, of).1, losses(b, of).1);
        }
    }
    let mut report = whole.report;
    let out = bench.dir.path().join("soft");
    report.save(&out, &whole.adapters).expect("writes");
    assert_eq!(Report::read(&out.join("report.json")).expect("reads"), report);
    assert!(out.join("adapters/ipt-seed-8/adapter_config.json").exists());
}

/// Everything of one seed's report that does not need the tuning, computed one sequence at a time.
#[test]
fn arms_are_those_of_a_reader_of_single_sequences() {
    let mut bench = Bench::new();
    let plan = bench.plan();
    let Outcome { report, adapters } = bench.run(&plan);
    let adapters = loras(&adapters[0]);
    let layout = Layout::of_adapter(&bench.model.config, adapters[0]).expect("a layout");
    let mut adaptation = Adaptation::new(&mut bench.backend, layout, 2).expect("memory");
    for (run, adapter) in adapters.iter().enumerate() {
        adaptation.set_run(&mut bench.backend, &bench.model.config, run, adapter).expect("fits");
    }
    for (s, (seed, found)) in plan.seeds.iter().zip(&report.seeds).enumerate() {
        let mut read = |adapted: bool, prompts: &[Prompt]| {
            let (adaptation, run) = if adapted { (Some(&adaptation), Some(s)) } else { (None, None) };
            let mut states = vec![Vec::new(); bench.model.config.num_hidden_layers + 1];
            let (mut hits, mut log_prob) = (0.0, 0.0);
            for (prompt, query) in prompts.iter().zip(&plan.queries) {
                let read = alone(&mut bench, adaptation, run, &prompt.token_ids);
                states.iter_mut().zip(&read.states).for_each(|(all, state)| all.extend_from_slice(state));
                let mut score = |answer: usize| {
                    let ids = prompt.answers[answer].after(&prompt.token_ids);
                    let read = alone(&mut bench, adaptation, run, &ids);
                    let from = ids.len() - prompt.answers[answer].scored;
                    (from..ids.len()).map(|i| read.log_probs[i - 1][ids[i] as usize]).sum::<f64>()
                };
                let (gold, other) = (score(query.gold), score(1 - query.gold));
                log_prob += gold / prompts.len() as f64;
                hits += f64::from(u8::from(gold > other)) / prompts.len() as f64;
            }
            (states, hits, log_prob)
        };
        let (anchor, icl, it) =
            (read(false, &plan.prompts()), read(false, &seed.icl_prompts()), read(true, &plan.prompts()));
        for (of, (_, accuracy, log_prob)) in [(Arm::ZeroShot, &anchor), (Arm::Icl, &icl), (Arm::Lora, &it)] {
            let found = arm(found, of);
            assert!((found.accuracy.expect("labels") - accuracy).abs() < 1e-9, "{of:?}");
            assert!((found.log_prob - log_prob).abs() < 1e-4, "{of:?}: {} {log_prob}", found.log_prob);
        }
        let width = bench.model.config.hidden_size;
        for (l, layer) in found.layers.iter().enumerate() {
            let (anchor, icl, it) = (&anchor.0[l], &icl.0[l], &it.0[l]);
            let expected = updates(anchor, icl, it, width);
            let noise = gaussian_rows(seed.seed, l, anchor.len() / width, width);
            let [same, shuffled] = update(layer);
            for (name, found, expected) in [
                ("icl_it", pair(layer, Arm::Icl, Arm::Lora).cosine, cosines(icl, it, width)),
                ("anchor_icl", pair(layer, Arm::ZeroShot, Arm::Icl).cosine, cosines(anchor, icl, width)),
                ("anchor_it", pair(layer, Arm::ZeroShot, Arm::Lora).cosine, cosines(anchor, it, width)),
                ("update", same, expected.update),
                ("update_gaussian", layer.update_gaussian, gaussian_updates(anchor, icl, width, &noise)),
                ("update_shuffled", shuffled, expected.update_shuffled),
            ] {
                let expected = MeanSd::of(expected);
                for (found, expected) in [(found.mean, expected.mean), (found.sd, expected.sd)] {
                    let (found, expected) = (found.expect("six queries"), expected.expect("six queries"));
                    assert!((found - expected).abs() < 2e-5, "seed {s}, layer {l}, {name}: {found}, {expected}");
                }
            }
        }
        let (loss, final_loss) = losses(found, Arm::Lora);
        assert!(final_loss < loss[0], "it learns: {loss:?}, {final_loss}");
        assert_eq!(loss.len(), 3);
    }
}

#[test]
fn progress_counts_every_prompt_and_step() {
    let mut bench = Bench::new();
    bench.settings.rows = 100;
    let plan = bench.plan();
    let mut seen = Vec::new();
    run(&mut bench.backend, &mut bench.model, "tiny", &plan, &bench.settings, &mut |p| seen.push(p)).expect("runs");
    for (phase, total) in [
        (Phase::Read(Arm::ZeroShot), 6),
        (Phase::Read(Arm::Icl), 12),
        (Phase::Tune(Arm::Lora), 3),
        (Phase::Read(Arm::Lora), 20),
    ] {
        let of: Vec<usize> = seen.iter().filter(|p| p.phase == phase).map(|p| p.done).collect();
        assert!(of.is_sorted() && of.last() == Some(&total), "{phase:?}: {of:?}");
        assert!(seen.iter().filter(|p| p.phase == phase).all(|p| p.total == total));
    }
}

#[test]
fn plan_of_a_file_is_checked() {
    let bench = Bench::new();
    let plan = bench.plan();
    type Spoil = fn(&mut Plan);
    let spoilt: [(&str, Spoil); 13] = [
        ("plan.queries:", |p| p.queries.clear()),
        ("plan.seeds:", |p| p.seeds.clear()),
        ("plan.queries[1].token_ids", |p| p.queries[1].token_ids[0] = 272),
        ("plan.queries[0].token_ids", |p| p.queries[0].token_ids.clear()),
        ("plan.queries[2].answers", |p| drop(p.queries[2].answers.pop())),
        ("plan.queries[2].answers[1].scored", |p| p.queries[2].answers[1].scored = 0),
        ("plan.queries[2].answers[1].replaces", |p| p.queries[2].answers[1].replaces = 1000),
        ("plan.queries[3].right", |p| p.queries[3].gold = 2),
        ("plan.seeds[1].icl_suffix_token_ids", |p| drop(p.seeds[1].icl_suffix_token_ids.pop())),
        ("plan.seeds[0].icl_prefix_token_ids", |p| p.seeds[0].icl_prefix_token_ids.push(u32::MAX)),
        ("plan.seeds[0].train[1].labels", |p| p.seeds[0].train[1].labels[0] = 5),
        ("plan.seeds[1].train", |p| p.seeds[1].train.clear()),
        ("plan.seeds[0].ipt_train[0].labels", |p| {
            p.seeds[0].ipt_train = p.seeds[0].train.clone();
            p.seeds[0].ipt_train[0].labels.fill(-100);
        }),
    ];
    for (field, spoil) in spoilt {
        let mut bad = plan.clone();
        spoil(&mut bad);
        let error = bad.validate("report.json", 272).expect_err(field).to_string();
        assert!(error.starts_with("report.json: ") && error.contains(field), "{field}: {error}");
    }
    plan.validate("report.json", 272).expect("valid");
}

#[test]
fn probe_settings_out_of_their_domain_are_errors() {
    type Spoil = fn(&mut ProbeSettings);
    let spoilt: [(&str, Spoil); 13] = [
        ("seeds:", |s| s.seeds.clear()),
        ("seeds:", |s| s.seeds = vec![1, 2, 1]),
        ("r:", |s| s.r = 0),
        ("lora_alpha:", |s| s.lora_alpha = f64::NAN),
        ("epochs:", |s| s.epochs = -1.0),
        ("target_modules:", |s| s.target_modules.clear()),
        ("c_attn", |s| s.target_modules = vec!["c_attn".to_string()]),
        ("learning_rate:", |s| s.learning_rate = -1.0),
        ("soft.num_virtual_tokens:", |s| s.soft.num_virtual_tokens = 0),
        ("soft.arms:", |s| s.soft.arms = vec![Arm::Pt, Arm::Pt]),
        ("soft.arms:", |s| s.soft.arms = vec![Arm::Lora]),
        ("soft.learning_rate:", |s| s.soft.learning_rate = -1.0),
        ("position: expected last, which logit_lens, sim_am is of, found mean", |s| {
            s.position = Position::Mean;
            s.measures = Measures::parse(&["sim_aou", "sim_am", "logit_lens"]).expect("measures");
        }),
    ];
    for (name, spoil) in spoilt {
        let mut settings = ProbeSettings::new(built_in("sst2"));
        spoil(&mut settings);
        let error = settings.validate(Family::Llama).expect_err(name).to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
    ProbeSettings::new(built_in("en-cs")).validate(Family::Llama).expect("defaults");
}

fn stories(shared: &Path, settings: &ProbeSettings, data: [&[&str]; 2]) -> Report {
    let dir = shared.join("models/stories260K");
    let mut backend = Device::new(Dtype::F32);
    let mut model = Model::load(&mut backend, &dir).expect("loads");
    let tokenizer = Tokenizer::load(&dir).expect("loads");
    let load = |files: &[&str]| {
        let files: Vec<_> = files.iter().map(|f| shared.join("data").join(f)).collect();
        settings.task.load(&files).expect("reads").examples
    };
    let plan = Plan::new(&tokenizer, &settings.task, &load(data[0]), &load(data[1]), settings).expect("a plan");
    run(&mut backend, &mut model, "stories260K", &plan, settings, &mut |_| ()).expect("runs").report
}

#[test]
fn probe_of_sentiment_on_a_trained_model() {
    let Some(shared) = support::shared() else { return };
    let settings = ProbeSettings {
        demonstrations: 3,
        queries: Some(8),
        seeds: vec![0, 1],
        ..ProbeSettings::new(built_in("sst2"))
    };
    let report = stories(&shared, &settings, [&["sst2/train.tsv"], &["sst2/dev.tsv"]]);
    for seed in &report.seeds {
        let (loss, final_loss) = losses(seed, Arm::Lora);
        assert_eq!(seed.layers.len(), 6);
        assert_eq!(seed.layers[4].layer, Layer::Block(4));
        assert!(final_loss < loss[0] && loss.len() == 10, "{loss:?}, {final_loss}");
        for layer in &seed.layers {
            let anchor_icl = pair(layer, Arm::ZeroShot, Arm::Icl).cosine.mean.expect("queries");
            let update = update(layer)[0].mean.expect("queries");
            assert!(anchor_icl > 0.0 && anchor_icl < 0.9999, "the demonstrations move the state: {anchor_icl}");
            assert!(update.abs() < 1.0 && update != 0.0);
        }
    }
    let log_prob = |arm| report.summary.arm(arm).expect("an arm of the probe").log_prob;
    let (anchor, icl) = (log_prob(Arm::ZeroShot), log_prob(Arm::Icl).mean.expect("seeds"));
    assert!(icl > anchor.mean.expect("seeds") + 1.0, "a model copies from its prompt");
    assert_eq!(anchor.sd, Some(0.0), "one anchor for all seeds");
}

#[test]
fn probe_of_translation_has_no_accuracy() {
    let Some(shared) = support::shared() else { return };
    let settings = ProbeSettings {
        demonstrations: 2,
        queries: Some(3),
        seeds: vec![0],
        epochs: 2.0,
        ..ProbeSettings::new(built_in("en-cs"))
    };
    let files: &[&str] = &["encs/pud.en", "encs/pud.cs"];
    let report = stories(&shared, &settings, [files, files]);
    assert_eq!(report.plan.labels, None);
    let seed = &report.seeds[0];
    assert!(arm(seed, Arm::Icl).accuracy.is_none());
    assert!(report.summary.arm(Arm::Lora).expect("an arm of the probe").accuracy.mean.is_none());
    assert!(arm(seed, Arm::Lora).log_prob > arm(seed, Arm::ZeroShot).log_prob, "it learns some Czech");
    assert!(report.plan.seeds[0].demonstrations.iter().all(|&d| d > 2), "queries of the same pool are not shown");
}
