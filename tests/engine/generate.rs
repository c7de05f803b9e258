//! Generation: against transformers, with beams, stop strings and lengths, through adapters and soft prompts.

use std::collections::HashMap;

use llamaprobe::arch::{Dtype, ModelConfig, Positions, Projection, RopeKind};
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::{Buffers, Len};
use llamaprobe::formats::safetensors::Checkpoint;
use llamaprobe::formats::stops::Stops;
use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::hooks::NoTaps;
use llamaprobe::model::quantize::{QuantizeTo, quantized};
use llamaprobe::model::{
    Activations, Adaptation, GenerationConfig, Input, Layout, LoraShape, Model, Prompt, Sampling, Save, Source,
};
use llamaprobe::pack::{Label, Sequence, forest};
use serde_json::Value;

use crate::support;

fn tiny(backend: &mut Cpu) -> Model<Cpu> {
    let dir = support::temp();
    support::tiny_model::TinyModel::default().write(dir.path());
    Model::load(backend, dir.path()).expect("loads")
}

fn prompts(runs: &[Option<usize>]) -> Vec<Prompt> {
    let ids = |i: usize| (0..3 + i % 4).map(|j| (5 + 11 * j + 3 * (i / 2)) as u32).collect();
    runs.iter().enumerate().map(|(i, &run)| Prompt { ids: ids(i), run }).collect()
}

fn run(
    backend: &mut Cpu,
    model: &Model<Cpu>,
    prompts: &[Prompt],
    adaptation: Option<&Adaptation<Cpu>>,
    generation: &GenerationConfig,
) -> Vec<Vec<u32>> {
    model.generate(backend, prompts, adaptation, generation, &mut |_, _| ()).expect("generates")
}

/// The logits of some rows of a pass over a sequence.
fn logits(backend: &mut Cpu, model: &Model<Cpu>, ids: &[u32], rows: &[usize]) -> Vec<f32> {
    let pack = forest(&[Sequence::ids(ids, None, Label::Text)], 1).pack;
    let device = backend.pack(&pack).expect("pack");
    let mut acts = Activations::new(backend, &model.config, None, pack.len(), Save::Layer).expect("memory");
    model.forward(backend, &mut acts, &Input::new(&pack, &device), None, &mut NoTaps).expect("forward");
    model.logits(backend, &acts, rows).expect("logits")
}

fn beam(beams: usize, length_penalty: f64, tokens: usize) -> GenerationConfig<'static> {
    GenerationConfig { sampling: Sampling::Beam { beams, length_penalty }, ..GenerationConfig::greedy(tokens) }
}

/// A model whose matrices can be quantised, keys and values of 32 rows.
fn quantizable() -> (ModelConfig, Checkpoint) {
    let dir = support::temp();
    support::tiny_model::TinyModel { width: 64, head_dim: 16, ffn: 192, ..Default::default() }.write(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).expect("weights");
    (ModelConfig::load(dir.path()).expect("a configuration"), checkpoint)
}

#[test]
fn generation_with_weights_loaded_for_it_is_that_with_weights_as_they_are_stored() {
    let (config, checkpoint) = quantizable();
    let backend = &mut Cpu::new(Dtype::BF16);
    for to in [QuantizeTo::Nf4, QuantizeTo::Int8] {
        let source = Source::new(&config, &checkpoint).expect("the model's weights");
        let mut checkpoint = quantized(&source, to).expect("quantised");
        let stored = Model::new(backend, &config, &checkpoint).expect("loads");
        // Rows of one prompt and of many, and prompts of more rows than are few.
        let [few, many] = [1, 9].map(|count| prompts(&vec![None; count]));
        let generation = GenerationConfig::greedy(12);
        let expected = [&few, &many].map(|prompts| run(backend, &stored, prompts, None, &generation));
        // Then a pass of hundreds of rows, and one of a single row again.
        let long: Vec<u32> = (0..300).map(|i| 7 * i % 251).collect();
        let passes = [(&long[..], [0, 1, 150, 299]), (&long[..1], [0; 4])];
        let expected_logits = passes.map(|(ids, rows)| logits(backend, &stored, ids, &rows));
        assert_eq!(checkpoint.quantized().count(), 14);
        let backend = &mut Cpu::new(Dtype::BF16);
        let loaded = Model::for_generation(backend, &config, &mut checkpoint).expect("loads");
        assert_eq!(checkpoint.quantized().count(), 0, "what is in memory is there once");
        let found = [&few, &many].map(|prompts| run(backend, &loaded, prompts, None, &generation));
        assert!(found == expected, "{}", to.name());
        let found = passes.map(|(ids, rows)| logits(backend, &loaded, ids, &rows));
        assert!(found == expected_logits, "{}: a pass of many rows, or the next of few", to.name());
        assert!(many.len() > 4 && expected[1].iter().any(|tokens| *tokens != expected[0][0]));
    }
}

/// Where groups of rows are read, a weight of 32 rows takes in one of 64 more bytes than it is stored in.
#[test]
fn few_rows_are_expected_of_the_weights_of_a_model_for_generation_alone() {
    let (config, checkpoint) = quantizable();
    let mut checkpoint =
        quantized(&Source::new(&config, &checkpoint).expect("weights"), QuantizeTo::Int8).expect("codes");
    let keys = checkpoint.quantized().find(|view| view.shape[0] == 32).expect("keys").clone();
    let backend = &mut Cpu::new(Dtype::BF16);
    let bytes = |backend: &mut Cpu| backend.quantized_weight(&keys).expect("memory").quantized_bytes();
    let stored = bytes(backend);
    assert_eq!(stored, Some(keys.stored_bytes()));
    backend.expect_few_rows(true);
    let in_groups = bytes(backend);
    assert!(in_groups >= stored, "{in_groups:?} in groups");
    backend.expect_few_rows(false);
    assert_eq!(bytes(backend), stored);
    // One that cannot be loaded to its end, and one that can.
    let mut without_norm = checkpoint.clone().quantized_as([], |name| name == "model.norm.weight");
    assert!(Model::for_generation(backend, &config, &mut without_norm).is_err());
    assert_eq!(bytes(backend), stored, "after an error");
    Model::for_generation(backend, &config, &mut checkpoint).expect("loads");
    assert_eq!(bytes(backend), stored, "after a model");
}

#[test]
fn generation_greedy_and_with_beams_is_that_of_transformers() {
    let file = std::fs::read(support::golden("generate.json")).expect("the golden file");
    let golden: Vec<Value> = serde_json::from_slice(&file).expect("JSON");
    let shared = support::shared();
    let backend = &mut Cpu::new(Dtype::F32);
    let mut models = HashMap::new();
    let mut lengths = Vec::new();
    for case in &golden {
        let name = case["model"].as_str().expect("a name");
        let path = match (name.starts_with("model-"), &shared) {
            (true, _) => support::golden(name),
            (false, Some(shared)) => shared.join("models").join(name),
            (false, None) => continue,
        };
        let model = models.entry(name.to_string()).or_insert_with(|| Model::load(backend, &path).expect("loads"));
        let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).expect("ids");
        let number = |key: &str| case[key].as_u64().expect("a number") as usize;
        let sampling = match number("beams") {
            1 => Sampling::Greedy,
            beams => Sampling::Beam { beams, length_penalty: case["length_penalty"].as_f64().expect("a number") },
        };
        let asked = |key: &str| case[key].as_u64().unwrap_or(0) as usize;
        let generation = GenerationConfig {
            stop: ids(&case["stop"]),
            sampling,
            repetition_penalty: case["repetition_penalty"].as_f64().unwrap_or(1.0),
            min_new_tokens: asked("min_new_tokens"),
            min_length: asked("min_length"),
            ..GenerationConfig::greedy(number("tokens"))
        };
        let cases = case["cases"].as_array().expect("cases");
        // All prompts of a case at once: transformers had them one by one.
        let prompts: Vec<Prompt> = cases.iter().map(|c| Prompt { ids: ids(&c[0]), run: None }).collect();
        let found = run(backend, model, &prompts, None, &generation);
        for (found, case) in found.iter().zip(cases) {
            assert_eq!(*found, ids(&case[1]), "{name}, {sampling:?}, prompt {:?}", case[0]);
            lengths.push(found.len());
        }
    }
    lengths.sort_unstable();
    lengths.dedup();
    assert!(lengths.len() > 5, "results of many lengths: {lengths:?}");
}

/// The logits after a sequence, of a pass over the whole of it.
fn logits_after(backend: &mut Cpu, model: &Model<Cpu>, ids: &[u32]) -> Vec<f32> {
    logits(backend, model, ids, &[ids.len() - 1])
}

/// Layers with a window and those without may change to their long list at lengths of their own.
#[test]
fn generation_across_the_lengths_of_two_longropes_is_that_of_whole_passes() {
    let backend = &mut Cpu::new(Dtype::F32);
    let path = support::golden("model-gemma3");
    let mut config = ModelConfig::load(&path).expect("a configuration");
    let Positions::Rope(ropes) = &mut config.positions else { panic!("rotations") };
    for (rope, original) in ropes.iter_mut().zip([12, 8]) {
        let (short, long) = (vec![1.0; rope.dim / 2], vec![3.0; rope.dim / 2]);
        rope.kind = RopeKind::LongRope { short, long, original, attention_factor: 1.2 };
    }
    let model = Model::new(backend, &config, &Checkpoint::open(&path).expect("weights")).expect("a model");
    let prompts: Vec<Prompt> =
        (0..6).map(|i| Prompt { ids: (0..3 + 2 * i).map(|j| (5 + 7 * j + i) % 29).collect(), run: None }).collect();
    let found = run(backend, &model, &prompts, None, &GenerationConfig::greedy(14));
    for (prompt, found) in prompts.iter().zip(found) {
        let mut ids = prompt.ids.clone();
        for (n, token) in found.into_iter().enumerate() {
            let logits = logits_after(backend, &model, &ids);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("some") as u32;
            assert_eq!(token, best, "token {n} of a prompt of {}", prompt.ids.len());
            ids.push(token);
        }
    }
}

/// The best of all continuations of three tokens of a model is what beams as many as its vocabulary squared find.
#[test]
fn beams_find_the_best_of_all_if_they_are_enough() {
    let backend = &mut Cpu::new(Dtype::F32);
    let dir = support::temp();
    let small = support::tiny_model::TinyModel { vocab: 9, ..Default::default() };
    std::fs::create_dir_all(dir.path()).expect("a folder");
    small.write(dir.path());
    let model = Model::load(backend, dir.path()).expect("loads");
    let prompt = Prompt { ids: vec![1, 4, 2, 7], run: None };
    let score = |backend: &mut Cpu, tokens: &[u32]| -> f64 {
        let mut ids = prompt.ids.clone();
        let mut sum = 0.0;
        for &token in tokens {
            let logits = logits_after(backend, &model, &ids);
            let norm = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            sum += f64::from(logits[token as usize]) - norm;
            ids.push(token);
        }
        sum
    };
    let all = (0..729u32).map(|n| [n / 81, n / 9 % 9, n % 9]);
    let best = all.map(|tokens| (score(backend, &tokens), tokens)).max_by(|a, b| a.0.total_cmp(&b.0)).expect("some");
    let found = run(backend, &model, std::slice::from_ref(&prompt), None, &beam(81, 1.0, 3));
    assert_eq!(found[0], best.1);
    let greedy = run(backend, &model, std::slice::from_ref(&prompt), None, &GenerationConfig::greedy(3));
    assert_eq!(
        run(backend, &model, std::slice::from_ref(&prompt), None, &beam(1, 1.0, 3)),
        greedy,
        "one beam is greedy"
    );
}

#[test]
fn generation_of_a_prompt_does_not_depend_on_the_others() {
    let backend = &mut Cpu::new(Dtype::F32);
    let model = tiny(backend);
    let prompts = prompts(&[None; 7]);
    let random = Sampling::Random { temperature: 0.9, top_k: None, top_p: Some(0.9), seed: 4 };
    for sampling in [Sampling::Greedy, Sampling::Beam { beams: 3, length_penalty: 1.0 }, random] {
        let generation =
            |rows| GenerationConfig { sampling, rows, stop: vec![2, 40, 90], ..GenerationConfig::greedy(9) };
        let all = run(backend, &model, &prompts, None, &generation(1 << 14));
        assert_eq!(run(backend, &model, &prompts, None, &generation(60)), all, "{sampling:?} in smaller packs");
        assert_eq!(run(backend, &model, &prompts, None, &generation(1)), all, "{sampling:?} one by one");
    }
}

#[test]
fn generation_ends_where_it_should() {
    let backend = &mut Cpu::new(Dtype::F32);
    let model = tiny(backend);
    let prompts = prompts(&[None; 5]);
    let all = run(backend, &model, &prompts, None, &GenerationConfig::greedy(12));
    assert!(all.iter().all(|tokens| tokens.len() == 12));
    let ends = |tokens: &[u32]| tokens.len() == 4 || tokens.last() == Some(&all[1][1]);
    let ended =
        run(backend, &model, &prompts, None, &GenerationConfig { ends: Some(&ends), ..GenerationConfig::greedy(12) });
    for (ended, all) in ended.iter().zip(&all) {
        let expected = (1..=12).find(|&n| ends(&all[..n])).expect("at the fourth at last");
        assert_eq!(*ended, all[..expected]);
    }
    let bounded = GenerationConfig { max_length: Some(6), ..GenerationConfig::greedy(12) };
    for (i, tokens) in run(backend, &model, &prompts, None, &bounded).iter().enumerate() {
        assert_eq!(*tokens, all[i][..6 - prompts[i].ids.len().min(6)], "prompt {i}");
    }
    let none = GenerationConfig { max_length: Some(3), ..GenerationConfig::greedy(12) };
    assert!(run(backend, &model, &prompts, None, &none).iter().all(Vec::is_empty));
    let heard = std::cell::RefCell::new(vec![Vec::new(); prompts.len()]);
    let found = model.generate(backend, &prompts, None, &beam(2, 1.0, 5), &mut |i, t| heard.borrow_mut()[i].push(t));
    assert_eq!(found.expect("generates"), heard.into_inner());
    assert!(model.generate(backend, &prompts, None, &beam(0, 1.0, 5), &mut |_, _| ()).is_err());
}

#[test]
fn stop_strings_cut_the_text() {
    let dir = support::temp();
    support::tiny_model::TinyModel::default().write(dir.path());
    let tokenizer = Tokenizer::load(dir.path()).expect("loads");
    let stops = Stops::new(&tokenizer, ["\n", "the end", ""]);
    let ids = |text: &str| tokenizer.encode(text, false).expect("encodes").ids;
    assert!(!stops.reached(&ids("one line, the en")));
    assert!(stops.reached(&ids("one line\n")) && stops.reached(&ids("it is the end")));
    assert_eq!(stops.text(&ids("it is the end\nmore")).expect("decodes"), "it is ");
    assert_eq!(stops.text(&ids("a b")).expect("decodes"), "a b");
    assert!(!Stops::new(&tokenizer, [""]).reached(&ids("a")));
}

/// Rows of several adapters and of the base model in one pack give what each gives alone.
#[test]
fn generation_goes_through_the_adapter_of_each_row() {
    let backend = &mut Cpu::new(Dtype::F32);
    let model = tiny(backend);
    let shape = LoraShape {
        rank: 2,
        alpha: 32.0,
        rslora: false,
        dora: false,
        layers: None,
        targets: vec![Projection::Q, Projection::V],
    };
    for layout in [Layout::lora(&model.config, &shape), soft(&model)] {
        let mut adaptation = Adaptation::new(backend, layout, 2).expect("memory");
        for r in 0..2 {
            let value = |i: usize| (((i * 37 + r * 11) % 23) as f32 / 23.0 - 0.5) * 2.0;
            let values: Vec<f32> = (0..adaptation.layout.stride).map(value).collect();
            adaptation.upload_run(backend, r, &values).expect("uploads");
        }
        let same = [None, Some(0), Some(1)].map(|run| Prompt { ids: vec![7, 8, 9], run });
        let together = run(backend, &model, &same, Some(&adaptation), &beam(2, 1.0, 8));
        assert!(together[0] != together[1] && together[1] != together[2], "the adapters do something: {together:?}");
        for (prompt, together) in same.iter().zip(&together) {
            let alone = run(backend, &model, std::slice::from_ref(prompt), Some(&adaptation), &beam(2, 1.0, 8));
            assert_eq!(alone[0], *together, "{:?}", prompt.run);
        }
        let base = run(backend, &model, &[Prompt { ids: vec![7, 8, 9], run: None }], None, &beam(2, 1.0, 8));
        assert_eq!(together[0], base[0]);
    }
}

fn soft(model: &Model<Cpu>) -> Layout {
    Layout::empty(&model.config).with_prompt(3)
}
