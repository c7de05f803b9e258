//! What is read: a target for every reader of files.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use llamaprobe::Result;
use llamaprobe::arch::ModelConfig;
use llamaprobe::formats::adapter::Adapter;
use llamaprobe::formats::chat::{ChatTemplate, Message};
use llamaprobe::formats::control_vector::ControlVector;
use llamaprobe::formats::edits;
use llamaprobe::formats::gguf::model::GgufModel;
use llamaprobe::formats::gguf::{self, Gguf};
use llamaprobe::formats::hub::{CacheEnv, resolve};
use llamaprobe::formats::jsonl::{Example, examples, values};
use llamaprobe::formats::safetensors::{Checkpoint, Dtype, Loading};
use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::formats::torch;
use llamaprobe::hooks::{Edit, Naming};
use llamaprobe::model::param_id::{ParamId, Source};
use llamaprobe::task::retrieval::read_vectors;
use llamaprobe::task::{Candidates, Side, Task, Template};

use super::run::{Target, run};
use super::{files, seeds};

fn built_in(name: &str) -> Task {
    name.parse().expect("a built-in task")
}

fn talk() -> [Message; 4] {
    [("system", "be kind"), ("user", " hi é\n"), ("assistant", "yo</think>ho"), ("user", "bye")]
        .map(|(role, content)| Message::new(role, content))
}

#[test]
fn fuzz_safetensors() {
    fn read(dir: &Path) -> Result<()> {
        let mapped = Checkpoint::open(dir)?;
        let copied = Checkpoint::open_as(dir, Loading::Copied)?;
        for (view, copy) in mapped.iter().zip(copied.iter()) {
            let elements: usize = view.shape.iter().product();
            assert_eq!(view.data.len(), elements * view.element_size(), "{}", view.name);
            assert!((&view.name, &view.data[..]) == (&copy.name, &copy.data[..]), "{}: a copy differs", view.name);
            let widened = view.to_f32();
            assert!(widened.is_err() || view.float().is_some());
            assert!(view.dtype != Dtype::I64 || view.as_slice::<i64>().map_or(true, |x| x.len() == elements));
        }
        let _ = read_vectors(&mapped.path().with_file_name("model.safetensors"), "f64", 2);
        mapped.check_finite()
    }
    run(Target { name: "safetensors", seeds: seeds::checkpoints(), read });
}

#[test]
fn fuzz_config() {
    let read = |dir: &Path| ModelConfig::load(dir).map(drop);
    run(Target { name: "config", seeds: seeds::configs(), read });
}

fn read_tokenizer(dir: &Path) -> Result<()> {
    let tokenizer = Tokenizer::load(dir)?;
    // A vocabulary without a piece of the text, or without an id, is its own error.
    if let Ok((encoding, owner)) = tokenizer.encode_pieces(&["ab hi <s>", " abé 12"], true) {
        assert!(encoding.ids.len() == encoding.offsets.len() && encoding.ids.len() == owner.len());
        let _ = tokenizer.decode(&encoding.ids, true);
    }
    let mut stream = tokenizer.stream();
    for id in [0, 1, 3, u32::MAX] {
        let _ = tokenizer.decode(&[id], false).and_then(|_| stream.push(id));
    }
    let _ = stream.finish();
    if tokenizer.has_chat_template() {
        let _ = tokenizer.render_chat(&talk(), true);
    }
    Ok(())
}

#[test]
fn fuzz_tokenizer() {
    run(Target { name: "tokenizer", seeds: seeds::tokenizers(), read: read_tokenizer });
}

#[test]
fn fuzz_generation_config() {
    fn read(dir: &Path) -> Result<()> {
        let tiny = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}}"#;
        std::fs::write(dir.join("tokenizer.json"), tiny).expect("writes");
        Tokenizer::load(dir).map(drop)
    }
    run(Target { name: "generation_config", seeds: seeds::generation_configs(), read });
}

#[test]
fn fuzz_chat_template() {
    fn read(dir: &Path) -> Result<()> {
        let path = dir.join("chat_template.jinja");
        let Ok(source) = std::fs::read_to_string(&path) else { return Ok(()) };
        let template = ChatTemplate::new(&path, &source)?;
        let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
        // The first may be too few messages for it.
        let _ = template.render(&talk()[..1], true, &specials);
        template.render(&talk(), false, &specials).map(drop)
    }
    run(Target { name: "chat_template", seeds: seeds::templates(), read });
}

#[test]
fn fuzz_torch() {
    let read = |dir: &Path| torch::read(&dir.join("state.bin")).map(drop);
    run(Target { name: "torch", seeds: seeds::torch_files(), read });
}

#[test]
fn fuzz_adapter() {
    let read = |dir: &Path| Adapter::read(dir, &seeds::base()).map(drop);
    run(Target { name: "adapter", seeds: seeds::adapters(), read });
}

#[test]
fn fuzz_gguf() {
    let read = |dir: &Path| ControlVector::read(dir.join("v.gguf")).map(drop);
    run(Target { name: "gguf", seeds: seeds::control_vectors(), read });
}

#[test]
fn fuzz_gguf_models() {
    fn read(dir: &Path) -> Result<()> {
        let path = dir.join("m.gguf");
        let file = Gguf::open(&path, Loading::Copied)?;
        let vocabulary = gguf::tokenizer::tokenizer(&file).map(drop);
        for (name, entry) in &file.entries {
            if let Ok(view) = file.tensor(name) {
                assert_eq!(view.len(), entry.dims.iter().product::<usize>(), "{name}");
            }
        }
        let GgufModel { config, checkpoint, .. } = match GgufModel::open(&path, Loading::Mapped) {
            Err(_) if vocabulary.is_ok() => return Ok(()),
            opened => opened?,
        };
        let source = Source::new(&config, &checkpoint)?;
        source.check()?;
        for id in ParamId::all(&source.config) {
            assert_eq!(source.values(id)?.len(), id.len(&source.config), "{id:?}");
        }
        checkpoint.check_finite()
    }
    run(Target { name: "gguf_models", seeds: seeds::gguf_models(), read });
}

#[test]
fn fuzz_edits() {
    fn read(dir: &Path) -> Result<()> {
        let config = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4,
            "num_attention_heads": 2, "vocab_size": 11}"#;
        let config = ModelConfig::parse("config.json", config)?;
        Edit::of_file(edits::read(dir.join("edits.yaml"))?, &Naming::tl(&config)).map(drop)
    }
    run(Target { name: "edits", seeds: seeds::edits(), read });
}

#[test]
fn fuzz_jsonl() {
    fn read(dir: &Path) -> Result<()> {
        let path = dir.join("data.jsonl");
        let _ = values(&path);
        let mut refused = Ok(());
        for row in examples(&path)? {
            refused = refused.and(row.learnt().map(drop));
            if let Example::Messages(conversation) = &row.example {
                refused = refused.and(conversation.learnt(&row.location).map(drop));
            }
        }
        refused
    }
    run(Target { name: "jsonl", seeds: seeds::examples(), read });
}

#[test]
fn fuzz_task_files() {
    fn read(dir: &Path) -> Result<()> {
        let tasks: [(Task, &[&str]); 10] = [
            (built_in("dart"), &["dart.json"]),
            (built_in("totto"), &["totto.jsonl"]),
            (built_in("logic2text"), &["logic2text.json"]),
            (built_in("logic2text"), &["logic.txt", "text.txt"]),
            (built_in("spider"), &["spider.json", "tables.json"]),
            (built_in("spider"), &["train.en", "train.sql", "tables.json"]),
            (built_in("mtop"), &["mtop.jsonl"]),
            (built_in("mtop"), &["mtop.txt"]),
            (built_in("sst2"), &["sst2.tsv"]),
            (built_in("en-cs"), &["a.en", "a.cs"]),
        ];
        let there = |names: &[&str]| names.iter().all(|name| dir.join(name).exists());
        let mut refused = Ok(());
        if there(&["task.yaml"]) {
            // What was read is written for a report, and read again.
            let task = Task::read(&dir.join("task.yaml"))?;
            let again: Task = serde_json::from_value(serde_json::to_value(&task).expect("JSON")).expect("reads");
            assert_eq!(again, task);
            for side in [Side::Train, Side::Test] {
                match task.data(side, &[], task.template()) {
                    Ok(data) => data.examples.iter().for_each(|example| judge(&task, example)),
                    Err(error) => refused = Err(error),
                }
            }
        }
        for (task, names) in tasks.into_iter().filter(|(_, names)| there(names)) {
            let files: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
            task.load(&files)?.examples.iter().for_each(|example| judge(&task, example));
        }
        refused
    }
    fn judge(task: &Task, example: &llamaprobe::task::Example) {
        let shown = task.template().demonstration(example);
        assert!(shown.contains(&example.output));
        let candidates = Candidates::of(task, example).expect("the output is one of them");
        assert_eq!(candidates.outputs[candidates.gold], example.output);
        // The time that a metric takes grows with its texts.
        if example.output.len() < 5000 {
            let _ = task.metric().judge(&example.output, example);
        }
    }
    run(Target { name: "task_files", seeds: seeds::tasks(), read });
}

/// The configuration of a command. The model that the words name is nowhere, whatever the file says: so no command
/// runs.
#[test]
fn fuzz_yaml() {
    fn read(dir: &Path) -> Result<()> {
        let path = dir.join("config.yaml");
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(()) };
        let _ = Template::parse(&text, built_in("sst2").template());
        for command in ["capture", "train-lora", "probe"] {
            let words = ["llamaprobe", command, "--model", "no/such-model", "--config"].map(OsString::from);
            let _ = llamaprobe::cli::main(words.into_iter().chain([path.clone().into_os_string()]));
        }
        Ok(())
    }
    run(Target { name: "yaml", seeds: seeds::yaml(), read });
}

#[test]
fn fuzz_hub() {
    fn read(dir: &Path) -> Result<()> {
        let env = CacheEnv { hf_hub_cache: Some(dir.to_path_buf()), ..CacheEnv::default() };
        resolve("org/name", None, &env).map(drop)
    }
    run(Target { name: "hub", seeds: seeds::hub(), read });
}

/// What the targets report would be worth nothing if they saw nothing.
#[test]
fn fuzz_sees_panics_and_waste() {
    let outcome = |read: fn(&Path) -> Result<()>| {
        let seeds = vec![vec![files::file("x.txt", "a valid file\n")]];
        let thread = std::thread::spawn(move || run(Target { name: "planted", seeds, read }));
        thread.join().map_err(|panic| panic.downcast_ref::<String>().expect("a text").clone())
    };
    let panics = outcome(|dir| {
        let text = std::fs::read(dir.join("x.txt")).unwrap_or_default();
        assert!(text.starts_with(b"a valid"), "planted");
        Ok(())
    });
    let report = panics.expect_err("a panic is a failure");
    assert!(
        report.contains("LLAMAPROBE_FUZZ_CASE=") && report.contains("planted") && report.contains("x.txt"),
        "{report}"
    );
    let wastes = outcome(|dir| {
        let text = std::fs::read(dir.join("x.txt")).unwrap_or_default();
        drop(std::hint::black_box(vec![0u8; if text == b"a valid file\n" { 1 } else { 600 << 20 }]));
        Ok(())
    });
    assert!(wastes.expect_err("waste is a failure").contains("600 MB of memory"));
    let slow = outcome(|dir| {
        // The three tries of the first damaged case.
        static TRIES: AtomicU32 = AtomicU32::new(0);
        let text = std::fs::read(dir.join("x.txt")).unwrap_or_default();
        if text != b"a valid file\n" && TRIES.fetch_add(1, Ordering::Relaxed) < 3 {
            std::thread::sleep(std::time::Duration::from_millis(1010));
        }
        Ok(())
    });
    assert!(slow.is_err_and(|report| report.contains("seconds")));
}
