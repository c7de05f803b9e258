//! The model that is part of the program: what it is, and that it can do what its card says.

use std::fs;

use llamaprobe::arch::Dtype;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::formats::{embedded, tokenizer};
use llamaprobe::model::Model;
use llamaprobe::probe::arm::Arm;
use llamaprobe::probe::factors::LabelNoise;
use llamaprobe::probe::plan::Plan;
use llamaprobe::probe::{ProbeSettings, run};
use llamaprobe::task::Task;
use llamaprobe::task::synthetic::evaluate::{Set, accuracies};
use llamaprobe::task::synthetic::{corpus, events};

use crate::support;

fn built_in(name: &str) -> Task {
    name.parse().expect("a built-in task")
}

fn model(backend: &mut Cpu<f32>) -> Model<Cpu<f32>> {
    let checkpoint = embedded::checkpoint().expect("the weights");
    Model::new(backend, &embedded::config().expect("the configuration"), &checkpoint).expect("the model")
}

#[test]
fn embedded_model_is_small_and_exports_as_a_model_of_its_own() {
    let dir = support::temp();
    let out = dir.path().join("learner");
    embedded::export(&out).expect("an export");
    embedded::export(&out).expect("a second one in its place");
    let sizes = embedded::files().map(|(name, bytes)| {
        assert_eq!(fs::read(out.join(name)).expect("a file"), bytes, "{name}");
        bytes.len()
    });
    assert!(sizes.iter().sum::<usize>() <= 4_000_000, "{sizes:?}");
    let backend = &mut Cpu::new(Dtype::F32);
    let loaded = Model::load(backend, &out).expect("a model");
    assert_eq!(loaded.config, model(backend).config);
    assert!(embedded::checkpoint().expect("the weights").check_finite().is_ok());
    let text = "The wolf came home -> cloud\nMy";
    let ids = |t: &tokenizer::Tokenizer| t.encode(text, true).expect("ids").ids;
    let own = embedded::tokenizer().expect("the tokenizer");
    assert_eq!(ids(&own), ids(&tokenizer::Tokenizer::load(&out).expect("the exported one")));
    fs::write(out.join("notes.txt"), "mine").expect("written");
    assert!(embedded::export(&out).expect_err("a file of somebody's").to_string().contains("notes.txt"));
}

#[test]
fn embedded_tokenizer_is_the_one_that_the_recipe_trains() {
    let trained = tokenizer::train(&corpus(0, 20_000), 2048).expect("a tokenizer");
    let (_, file) = embedded::files().into_iter().find(|(name, _)| *name == "tokenizer.json").expect("its file");
    assert_eq!(trained.as_bytes(), file);
}

#[test]
fn embedded_model_learns_in_context_and_cannot_answer_without() {
    let backend = &mut Cpu::new(Dtype::F32);
    let (model, tokenizer) = (model(backend), embedded::tokenizer().expect("the tokenizer"));
    let mut of =
        |set: Set| accuracies(backend, &model, &tokenizer, &set.episodes(17, 300, 17), 4096).expect("accuracies");
    let pairs = of(Set::Pairs);
    // Three standard deviations of chance at 300 episodes.
    assert!((pairs[0] - 0.5).abs() < 0.087, "{pairs:?}");
    assert!(pairs[10] >= 0.95 && pairs[16] >= 0.95, "{pairs:?}");
    assert!(pairs[0] < pairs[2] && pairs[2] < pairs[4] && pairs[4] < pairs[8], "{pairs:?}");
    let unseen = of(Set::Unseen);
    assert!((unseen[0] - 0.5).abs() < 0.087 && unseen[10] >= 0.85 && unseen[16] >= 0.9, "{unseen:?}");
    for set in [&pairs, &unseen] {
        assert!(set[1] > set[0] - 0.087, "one demonstration is no worse than none: {set:?}");
    }
    let events = of(Set::Events);
    assert!((events[0] - 0.5).abs() < 0.087 && events[10] >= 0.9, "{events:?}");
    let natural = of(Set::Natural);
    assert!(natural[0] >= 0.95, "{natural:?}");
}

#[test]
fn embedded_model_learns_from_tuning_what_it_learns_from_the_prompt() {
    let backend = &mut Cpu::new(Dtype::F32);
    let (mut model, tokenizer) = (model(backend), embedded::tokenizer().expect("the tokenizer"));
    let (pool, queries) = events();
    let mut accuracies = |labels: LabelNoise| {
        let task = built_in("events");
        let settings = ProbeSettings { queries: Some(60), seeds: vec![0, 1, 2], labels, ..ProbeSettings::new(task) };
        let plan = Plan::new(&tokenizer, &settings.task, &pool, &queries, &settings).expect("a plan");
        let report = run(backend, &mut model, "embedded", &plan, &settings, &mut |_| ()).expect("a report").report;
        let accuracy = |arm| report.summary.arm(arm).and_then(|report| report.accuracy.mean).expect("a mean");
        [Arm::Icl, Arm::Lora].map(accuracy)
    };
    let ([icl, it], [icl_flipped, it_flipped]) = (accuracies(LabelNoise::Gold), accuracies(LabelNoise::Flipped));
    // What the model prefers without demonstrations depends on the words; what it is shown must outweigh that, whichever
    // label is whose.
    assert!(icl >= 0.85 && icl_flipped <= 0.15, "{icl} and {icl_flipped}");
    assert!(it >= 0.7 && it_flipped <= 0.3, "{it} and {it_flipped}");
}
