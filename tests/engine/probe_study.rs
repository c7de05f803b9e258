//! A study's conditions: what is drawn and shown, and that crossing them changes no bit of any.

use std::collections::BTreeSet;

use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::probe::arm::Arm;
use llamaprobe::probe::factors::{LabelNoise, Levels, Similarity, Vary, cross};
use llamaprobe::probe::plan::{Plan, SeedPlan};
use llamaprobe::probe::report::{PatchVector, Report, SeedReport};
use llamaprobe::probe::{
    Base, Condition, DemonstrationPool, Measures, Outcome, PlanInputs, ProbeSettings, SoftSettings, TuningKind,
    run_conditions, similarity_to_queries,
};
use llamaprobe::task::Example;

use super::probe::{Bench, arm, built_in, loras, losses, pair, timeless};

impl Bench {
    /// Every measure, patching and both soft prompts, on one seed and few queries.
    pub(super) fn thorough() -> Self {
        let mut bench = Self::new();
        bench.settings = ProbeSettings {
            queries: Some(5),
            seeds: vec![3],
            epochs: 2.0,
            measures: Measures::all(),
            patch: true,
            soft: SoftSettings {
                arms: vec![Arm::Pt, Arm::Ipt],
                num_virtual_tokens: 2,
                epochs: 2.0,
                learning_rate: 1e-2,
            },
            ..bench.settings
        };
        bench
    }

    /// A plan of some settings, whose source may be the task `objects`.
    pub(super) fn draw(&self, settings: &ProbeSettings) -> Plan {
        let objects = built_in("objects");
        let word = |i: usize| objects.labels().expect("labels")[i % 2].clone();
        let others: Vec<Example> = (0..12).map(|i| Example::new(format!("a thing {i}"), word(i))).collect();
        let demonstrations = match settings.source {
            Some(_) => DemonstrationPool { task: &objects, template: objects.template(), examples: &others },
            None => DemonstrationPool { task: &settings.task, template: &settings.template, examples: &self.pool },
        };
        let (tokenizer, task) = (&self.tokenizer, &settings.task);
        let inputs = PlanInputs { tokenizer, task, demonstrations, queries: &self.queries, similarities: None };
        Plan::draw(&inputs, settings).expect("a plan")
    }

    pub(super) fn conditions(&self, factors: &[&str]) -> Vec<Condition> {
        let factors: Vec<Vary> = factors.iter().map(|text| Vary::parse(text).expect(text)).collect();
        let condition = |levels: Levels| {
            let mut settings = self.settings.at(&levels).expect("levels");
            settings.source = settings.source.filter(|source| source != settings.task.name());
            let plan = self.draw(&settings);
            Condition { levels, settings, plan }
        };
        cross(&factors).expect("factors").into_iter().map(condition).collect()
    }

    pub(super) fn study(&mut self, conditions: &[Condition]) -> Outcome {
        let checkpoint = Checkpoint::open(self.dir.path()).expect("the weights open");
        let base = Base { name: "tiny", checkpoint: Some(&checkpoint), edits: &[] };
        run_conditions(&mut self.backend, &mut self.model, base, conditions, &mut |_| ()).expect("runs")
    }

    /// The token ids of a whole text.
    fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, true).expect("encodes").ids
    }
}

/// What does not depend on the other conditions: all but the vector of another task.
fn own(seeds: &[SeedReport]) -> String {
    let mut seeds = seeds.to_vec();
    let layers = seeds.iter_mut().flat_map(|seed| &mut seed.patching);
    layers.for_each(|layer| layer.vectors.retain(|vector| vector.vector != "other_task"));
    serde_json::to_string(&seeds).expect("JSON")
}

#[test]
fn crossed_conditions_are_the_same_probes_one_at_a_time() {
    let mut bench = Bench::thorough();
    for factors in [
        &["demos=0,3", "labels=gold,flipped"][..],
        &["r=1,3", "target-modules=q_proj,v_proj;down_proj"],
        &["steps=0,3", "learning-rate=0.001,0.02"],
        &["order=2", "similarity=near,far"],
        &["source=sst2,objects"],
    ] {
        let conditions = bench.conditions(factors);
        let crossed = bench.study(&conditions);
        assert_eq!(crossed.report.conditions.len(), conditions.len());
        assert_eq!(crossed.report.seeds, crossed.report.conditions[0].seeds, "the first is the report's own");
        for (c, condition) in conditions.iter().enumerate() {
            let found = &crossed.report.conditions[c];
            assert_eq!((&found.levels, &found.settings), (&condition.levels, &condition.settings));
            let alone = bench.study(std::slice::from_ref(condition));
            assert_eq!(own(&found.seeds), own(&alone.report.seeds), "{:?}", condition.levels);
            assert_eq!(loras(&crossed.adapters[c])[0].modules, loras(&alone.adapters[0])[0].modules);
        }
        // Every measure once is enough: they are of one condition at a time.
        bench.settings.measures = Measures::parse(&["cka", "outputs"]).expect("measures");
    }
}

#[test]
fn steps_are_the_trajectory_of_one_tuning() {
    let mut bench = Bench::new();
    let conditions = bench.conditions(&["steps=0,1,4"]);
    let report = bench.study(&conditions).report;
    for s in 0..2 {
        let [none, one, four] = [0, 1, 2].map(|c| &report.conditions[c].seeds[s]);
        assert_eq!(losses(none, Arm::Lora).0, [0.0f64; 0]);
        assert_eq!(arm(none, Arm::Lora).log_prob, arm(none, Arm::ZeroShot).log_prob);
        let (loss, after) = losses(four, Arm::Lora);
        assert_eq!(losses(one, Arm::Lora).0, &loss[..1]);
        assert!((losses(none, Arm::Lora).1 - loss[0]).abs() < 1e-5, "the loss before the first step");
        assert!((losses(one, Arm::Lora).1 - loss[1]).abs() < 1e-5, "the loss after one step");
        assert!(after < loss[3]);
    }
    // One training, one anchor, and each seed's demonstrations are read once for all three conditions.
    let alone = bench.study(&conditions[2..]).report;
    assert_eq!(report.tokens.tune, alone.tokens.tune);
    assert_eq!((report.tokens.anchor, report.tokens.icl), (alone.tokens.anchor, alone.tokens.icl));
}

/// The demonstrations of a seed as texts of its prompt.
fn shown<'a>(bench: &'a Bench, seed: &'a SeedPlan) -> impl Iterator<Item = &'a Example> {
    seed.demonstrations.iter().map(|&d| &bench.pool[d])
}

#[test]
fn demonstrations_of_a_smaller_number_begin_those_of_a_larger() {
    let bench = Bench::new();
    for noise in [LabelNoise::Gold, LabelNoise::Random, LabelNoise::Half] {
        let plan =
            |demonstrations| bench.draw(&ProbeSettings { demonstrations, labels: noise, ..bench.settings.clone() });
        let (all, plans) = (plan(8), [0, 1, 2, 4].map(|n| (n, plan(n))));
        for (n, plan) in plans {
            for (few, many) in plan.seeds.iter().zip(&all.seeds) {
                assert_eq!(few.demonstrations, many.demonstrations[..n]);
                assert_eq!(few.train, many.train[..n], "{noise:?}: with the same labels");
            }
        }
    }
    let none = bench.draw(&ProbeSettings { demonstrations: 0, ..bench.settings.clone() });
    for (seed, query) in none.seeds.iter().flat_map(|seed| seed.icl_prompts().into_iter().zip(&none.queries)) {
        assert_eq!(seed.token_ids, query.token_ids, "with none, ICL is the query alone");
    }
}

#[test]
fn labels_of_demonstrations_are_wrong_as_often_as_is_asked() {
    let bench = Bench::new();
    let labels = ["negative", "positive"];
    let template = &bench.settings.template;
    let mut drawn = Vec::new();
    for noise in [LabelNoise::Gold, LabelNoise::Half, LabelNoise::Flipped, LabelNoise::Random] {
        let seeds = (0..20).collect();
        let plan = bench.draw(&ProbeSettings { labels: noise, seeds, ..bench.settings.clone() });
        for seed in &plan.seeds {
            let mut before = String::new();
            for (i, (example, learnt)) in shown(&bench, seed).zip(&seed.train).enumerate() {
                let ids = |label: &str| bench.ids(&format!("{} {label}", template.query(example)));
                let found = labels.iter().position(|label| ids(label) == learnt.input_ids).expect("one of the labels");
                let gold = labels.iter().position(|label| *label == example.output).expect("one of the labels");
                match noise {
                    LabelNoise::Gold => assert_eq!(found, gold),
                    LabelNoise::Half => assert_eq!(found, if i % 2 == 0 { gold } else { 1 - gold }),
                    LabelNoise::Flipped => assert_eq!(found, 1 - gold),
                    LabelNoise::Random => drawn.push((found, gold)),
                }
                let as_shown = Example { output: labels[found].to_owned(), ..example.clone() };
                before += &template.demonstration(&as_shown);
            }
            let prompt = &seed.icl_prompts()[0].token_ids;
            let expected = bench.ids(&format!("{before}{}", template.query(&bench.queries[0])));
            assert_eq!(*prompt, expected, "{noise:?}: the prompt has the labels that are tuned on");
        }
    }
    // Of 80 fair draws: 4 standard deviations are 18.
    let count = |hit: fn(&(usize, usize)) -> bool| drawn.iter().filter(|pair| hit(pair)).count();
    for (what, found) in [("label 1", count(|pair| pair.0 == 1)), ("right", count(|pair| pair.0 == pair.1))] {
        assert!(found.abs_diff(40) < 18, "{what}: {found} of 80");
    }
}

#[test]
fn labels_of_several_are_flipped_to_any_other() {
    let mut bench = Bench::new();
    let news = built_in("agnews");
    let labels = news.labels().expect("labels").to_vec();
    let example = |i: usize| Example::new(format!("the paper {i}"), &labels[i % 4]);
    (bench.pool, bench.queries) = ((0..40).map(example).collect(), (60..64).map(example).collect());
    let settings = ProbeSettings { queries: Some(4), labels: LabelNoise::Flipped, ..ProbeSettings::new(news) };
    let plan = bench.draw(&ProbeSettings { seeds: (0..6).collect(), demonstrations: 10, ..settings.clone() });
    let mut found = BTreeSet::new();
    for seed in &plan.seeds {
        for (example, learnt) in shown(&bench, seed).zip(&seed.train) {
            let ids = |label: &String| bench.ids(&format!("{} {label}", settings.template.query(example)));
            let label = labels.iter().find(|label| ids(label) == learnt.input_ids).expect("one of the labels");
            assert_ne!(*label, example.output);
            found.insert((example.output.clone(), label));
        }
    }
    assert_eq!(found.len(), 12, "every wrong label of every label: {found:?}");
}

#[test]
fn order_of_demonstrations_changes_the_prompt_alone() {
    let mut bench = Bench::new();
    let conditions = bench.conditions(&["order=3"]);
    let report = bench.study(&conditions).report;
    let orders: Vec<&Vec<usize>> = conditions.iter().map(|c| &c.plan.seeds[0].demonstrations).collect();
    assert_eq!(BTreeSet::from_iter(&orders).len(), 3, "three orders: {orders:?}");
    for (condition, found) in conditions.iter().zip(&report.conditions) {
        for (s, (seed, first)) in condition.plan.seeds.iter().zip(&conditions[0].plan.seeds).enumerate() {
            let set = |seed: &SeedPlan| BTreeSet::from_iter(seed.demonstrations.clone());
            assert_eq!((&seed.train, set(seed)), (&first.train, set(first)));
            let [it, expected] = [&found.seeds[s], &report.conditions[0].seeds[s]].map(|seed| arm(seed, Arm::Lora));
            assert_eq!(it, expected, "tuning sees them as drawn");
            let before: String = shown(&bench, seed).map(|d| bench.settings.template.demonstration(d)).collect();
            let whole = bench.ids(&format!("{before}{}", bench.settings.template.query(&bench.queries[0])));
            assert_eq!(seed.icl_prompts()[0].token_ids, whole);
        }
    }
    let icl = |c: usize| arm(&report.conditions[c].seeds[0], Arm::Icl).log_prob;
    assert_ne!(icl(0), icl(1));
}

#[test]
fn similarity_takes_a_quarter_of_the_pool() {
    let mut bench = Bench::new();
    // Of sixteen examples four share all words with the queries, eight one of them, four none.
    let text = |i: usize| match i % 4 {
        0 => format!("winter theatre {i}"),
        3 => format!("apples pears {i}"),
        _ => format!("winter pears {i}"),
    };
    bench.pool = (0..16).map(|i| Example::new(text(i), "positive")).collect();
    bench.queries = (0..4).map(|i| Example::new(format!("winter theatre q{i}"), "negative")).collect();
    // A query that is in the pool is neither drawn nor of the quarter.
    bench.pool[3] = Example::new("plums", "positive");
    bench.queries.push(bench.pool[3].clone());
    let drawn = |similarity| {
        let settings = ProbeSettings { similarity, demonstrations: 3, queries: Some(5), ..bench.settings.clone() };
        let settings = ProbeSettings { seeds: (0..12).collect(), ..settings };
        let plan = bench.draw(&settings);
        plan.seeds.iter().flat_map(|seed| seed.demonstrations.clone()).collect::<BTreeSet<usize>>()
    };
    assert_eq!(drawn(Similarity::Near), BTreeSet::from([0, 4, 8, 12]));
    let far = drawn(Similarity::Far);
    assert!(far.is_superset(&BTreeSet::from([7, 11, 15])) && far.len() == 4 && !far.contains(&3), "{far:?}");
    let all = drawn(Similarity::Random);
    assert!(all.len() > 10 && !all.contains(&3), "{all:?}");
    let (pool, queries) = (&bench.pool[..2], &bench.queries[..2]);
    let vectors = (vec![1.0, 0.0, 3.0, 4.0], vec![2.0, 0.0, 0.0, 5.0]);
    let found = similarity_to_queries(pool, queries, Some(vectors));
    assert!((found[0] - 0.5).abs() < 1e-6 && (found[1] - 0.7).abs() < 1e-6, "mean cosines: {found:?}");
}

#[test]
fn source_brings_its_own_template_and_labels() {
    let mut bench = Bench::new();
    let objects = built_in("objects");
    let template = objects.template().clone();
    let conditions = bench.conditions(&["source=sst2,objects", "labels=gold,flipped"]);
    let word = |i: usize| &objects.labels().expect("labels")[i % 2];
    for (condition, flip) in [(&conditions[2], 0), (&conditions[3], 1)] {
        for seed in &condition.plan.seeds {
            let example = |d: usize| Example::new(format!("a thing {d}"), word(d + flip));
            let before: String = seed.demonstrations.iter().map(|&d| template.demonstration(&example(d))).collect();
            let query = bench.settings.template.query(&bench.queries[1]);
            assert_eq!(seed.icl_prompts()[1].token_ids, bench.ids(&format!("{before}{query}")));
            let first = example(seed.demonstrations[0]);
            let whole = format!("{}{}", template.query(&first), template.answer(&first.output).trim_end());
            assert_eq!(seed.train[0].input_ids, bench.ids(&whole));
        }
    }
    assert_eq!(conditions[2].plan.queries, conditions[0].plan.queries, "the same queries, with their own labels");
    bench.settings.patch = true;
    let patched = bench.conditions(&["source=sst2,objects"]);
    let report = bench.study(&patched).report;
    let of = |c: usize, name: &str| -> PatchVector {
        let vectors = &report.conditions[c].seeds[0].patching[0].vectors;
        vectors.iter().find(|vector| vector.vector == name).expect("a vector").clone()
    };
    let bare = |c: usize, name: &str| (of(c, name).accuracy, of(c, name).log_prob);
    assert_eq!(bare(0, "other_task"), bare(1, "task_vector"), "the other condition's task vector");
    assert_eq!(bare(1, "other_task"), bare(0, "task_vector"));
}

#[test]
fn report_with_everything_is_read_as_it_was() {
    let mut bench = Bench::thorough();
    bench.settings.seeds = vec![3, 8];
    let conditions = bench.conditions(&["demos=2,0", "source=sst2,objects"]);
    let Outcome { mut report, adapters } = bench.study(&conditions);
    report.show_tokens(|id| format!("<{id}>"));
    let out = bench.dir.path().join("run");
    report.save(&out, &adapters).expect("writes");
    assert_eq!(Report::read(&out.join("report.json")).expect("reads"), report);
    assert!(report.pca.is_some() && !report.examples.is_empty() && report.seeds[0].outputs.is_some());
    assert!(out.join("adapters/condition-3/ipt-seed-8/adapter_config.json").exists());
    let overlap = &report.conditions[0].lora_overlap;
    assert!(overlap.len() == 1 && overlap[0].with.is_none(), "the seeds beside each other: {overlap:?}");
    assert_eq!(report.conditions[1].lora_overlap.iter().map(|o| o.with).collect::<Vec<_>>(), [None, Some(0)]);

    // The study again from its report, and one of before there were conditions.
    let read = Report::read(&out.join("report.json")).expect("reads");
    let again: Vec<Condition> = read
        .conditions
        .into_iter()
        .map(|c| Condition { levels: c.levels, settings: c.settings, plan: c.plan })
        .collect();
    assert_eq!(again, conditions);
    let mut repeated = bench.study(&again);
    repeated.report.show_tokens(|id| format!("<{id}>"));
    repeated.report.save(&bench.dir.path().join("again"), &repeated.adapters).expect("writes");
    assert_eq!(timeless(&repeated.report), timeless(&report));
    let mut old = serde_json::to_value(&report).expect("JSON");
    for key in ["conditions", "pca", "examples"] {
        old.as_object_mut().expect("an object").remove(key);
    }
    let old: Report = serde_json::from_value(old).expect("a report without conditions");
    assert_eq!((&old.seeds, &old.plan, old.conditions.len()), (&report.seeds, &report.plan, 0));
}

#[test]
fn joined_reports_name_their_own_conditions() {
    let mut bench = Bench::new();
    bench.settings.measures = Measures::parse(&["lora_overlap"]).expect("a measure");
    let conditions = bench.conditions(&["steps=1,2"]);
    let mut report = bench.study(&conditions).report;
    report.join(report.clone());
    let with = |c: usize| report.conditions[c].lora_overlap.iter().filter_map(|o| o.with).collect::<Vec<_>>();
    assert_eq!([0, 1, 2, 3].map(with), [vec![], vec![0], vec![], vec![2]]);
}

#[test]
fn untrained_full_tuning_changes_nothing() {
    let mut bench = Bench::new();
    (bench.settings.tuning, bench.settings.patch) = (TuningKind::Full, true);
    let conditions = bench.conditions(&["steps=0,2"]);
    let Outcome { report, adapters } = bench.study(&conditions);
    let [none, two] = [0, 1].map(|c| &report.conditions[c].seeds[0]);
    assert_eq!(arm(none, Arm::Lora).log_prob, arm(none, Arm::ZeroShot).log_prob);
    assert_ne!(arm(two, Arm::Lora).log_prob, arm(two, Arm::ZeroShot).log_prob);
    assert!(pair(&two.layers[0], Arm::ZeroShot, Arm::Lora).cosine.mean.expect("queries") < 1.0);
    assert!(adapters.iter().all(Vec::is_empty), "there are no adapters to save");
    bench.settings.soft.arms = vec![Arm::Pt];
    let conditions = bench.conditions(&["steps=0,2"]);
    let found = bench.study(&conditions);
    assert_eq!(found.report.conditions[1].seeds[0].arms[..3], two.arms[..], "soft prompts are of the model itself");
    assert_eq!(found.adapters[1].len(), 1);
}
