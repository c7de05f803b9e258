//! The whole CUDA backend on a machine without a GPU: under an unmodified cudarc lies a driver that runs the kernels'
//! own text on the CPU (`tests/simt/fake_driver`), its work as late as is legal.
//!
//! The program runs a capture, a training and a probe of a tiny model on both devices; the operations go through the
//! same cases as on every device; failures of the device are provoked; and planted bugs must be seen.
#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]

#[path = "fake/algorithms.rs"]
mod algorithms;
#[path = "fake/attention.rs"]
mod attention;
#[path = "fake/captures.rs"]
mod captures;
#[path = "support/counts.rs"]
mod counts;
#[path = "support/cuda.rs"]
mod cuda;
#[path = "fake/dependent.rs"]
mod dependent;
#[path = "fake/edits.rs"]
mod edits;
#[path = "fake/families.rs"]
mod families;
#[path = "support/ops/mod.rs"]
mod ops;
#[path = "fake/profile.rs"]
mod profile;
#[path = "fake/quantized.rs"]
mod quantized;
#[path = "fake/replays.rs"]
mod replays;
#[path = "fake/soundness.rs"]
mod soundness;
#[path = "fake/step.rs"]
mod step;
#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use llamaprobe::arch::{Dtype, ModelConfig};
use llamaprobe::backend::Backend;
use llamaprobe::backend::cpu::Cpu;
use llamaprobe::backend::cuda::{Cuda, Settings};
use llamaprobe::hooks::{Naming, Record, Selection};
use llamaprobe::model::{Activations, FullTuning, Input, Model, Save};
use llamaprobe::pack::{Label, Sequence, forest};
use llamaprobe::train::data::TrainSequence;
use llamaprobe::train::settings::{Length, RunSettings};
use llamaprobe::train::trainer::{Run, StepReport, TrainerOptions};
use ops::naive::Precision;
use ops::parity::{parity_on_tensor_cores, rounds_as_families_do};
use ops::simt::machine::SIMULATOR;
use serde_json::Value;
use support::skips;
use support::tiny_model::TinyModel;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the fake libraries, built once.
fn fake() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake-cuda");
        let built = Command::new(root().join("tests/simt/fake_driver/build.sh")).arg(&dir).output();
        let built = built.expect("start sh");
        assert!(built.status.success(), "g++: {}", String::from_utf8_lossy(&built.stderr));
        dir
    })
}

/// Where compiled kernels are cached, a folder for each simulator.
fn cache() -> PathBuf {
    let simulator = SIMULATOR.map(|name| root().join("tests/simt").join(name));
    let stamp = simulator.map(|path| fs::read(path).expect("the simulator")).concat();
    let stamp = stamp.iter().fold(0u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-cache-{stamp:016x}"))
}

/// `command` with the fake driver.
fn on_fake(command: &mut Command) -> &mut Command {
    let cache = cache();
    command
        .env("LD_LIBRARY_PATH", fake())
        .env("FAKE_NVRTC_INCLUDE", root().join("tests/simt"))
        .env("XDG_CACHE_HOME", &cache)
        .env("LLAMAPROBE_CUDA_CACHE", cache.join("llamaprobe/kernels"))
        .env("LLAMAPROBE_REQUIRE_CUDA", "1")
        .env_remove("FAKE_NVRTC_FLAGS")
        .env_remove("LLAMAPROBE_GEMM")
        .stdin(Stdio::null())
}

/// The program on the fake driver; `{}` stands for the folder.
fn program(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llamaprobe"));
    command.args(line.split_whitespace().map(|word| word.replace("{}", &dir.display().to_string())));
    on_fake(&mut command);
    command
}

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("start the program");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}\nstdout: {}\nstderr: {}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// The one line with which the program refuses.
fn refuse(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("start the program");
    let line = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!(status.code(), Some(1), "{command:?}: {line}");
    assert!(stdout.is_empty() && line.lines().count() == 1 && line.starts_with("llamaprobe: "), "{line}");
    line
}

/// Runs an ignored test of this program on the fake driver.
fn child(name: &str) {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    println!("{}", succeed(on_fake(command.args(["--exact", name, "--ignored", "--nocapture"]))));
}

fn operations(dtype: Dtype) {
    cuda::device(dtype).iter_mut().for_each(|b| parity_on_tensor_cores(b, Precision::of(dtype)));
}

#[test]
#[ignore = "started on the fake driver"]
fn operations_f32() {
    operations(Dtype::F32);
}

#[test]
#[ignore = "started on the fake driver"]
fn operations_bf16() {
    operations(Dtype::BF16);
    cuda::device(Dtype::BF16).iter_mut().for_each(rounds_as_families_do);
}

#[test]
#[ignore = "started on the fake driver"]
fn operations_f16() {
    operations(Dtype::F16);
}

/// The residual stream after each layer, of `ids` as two sequences of a shared beginning.
fn residuals<B: Backend>(b: &mut B, model: &Model<B>, acts: &mut Activations<B>, ids: &[u32]) -> Vec<f32> {
    let sequences = [&ids[..9], &[&ids[..5], &ids[9..]].concat()[..]].map(|ids| Sequence::ids(ids, None, Label::Text));
    let pack = forest(&sequences, 1).pack;
    let device = b.pack(&pack).expect("a pack");
    let hooks = Selection::parse("resid_post", &[0, 1, 2], &Naming::tl(&model.config)).expect("sites");
    let mut record = Record::new(hooks, (0..pack.len()).collect());
    model.forward(b, acts, &Input::new(&pack, &device), None, &mut record).expect("a forward");
    record.iter().flat_map(|(_, _, _, rows)| rows.to_vec()).collect()
}

fn small_model<B: Backend>(b: &mut B) -> (Model<B>, Activations<B>) {
    let config = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": 50}"#;
    let config = ModelConfig::parse("config.json", config).expect("a config");
    let (model, _) = FullTuning::random(b, config, 0.2, 0).expect("a model");
    let acts = Activations::new(b, &model.config, None, 64, Save::Layer).expect("activations");
    (model, acts)
}

#[test]
#[ignore = "started on the fake driver"]
fn repeated_passes() {
    let mut cpu = Cpu::new(Dtype::F32);
    let (model, mut acts) = small_model(&mut cpu);
    let texts: Vec<Vec<u32>> = (0..5).map(|i| (0..14).map(|j| (7 * i + 3 * j) % 50).collect()).collect();
    let expected: Vec<Vec<f32>> = texts.iter().map(|ids| residuals(&mut cpu, &model, &mut acts, ids)).collect();
    // A large ring, and one that is full at once; and one operation at a time.
    for (capture_bytes, blocking) in [(1 << 20, false), (1, false), (1, true)] {
        let settings = Settings { capture_bytes, blocking, ..cuda::settings() };
        let mut gpu = Cuda::open(0, Dtype::F32, &settings).expect("a device");
        let (model, mut acts) = small_model(&mut gpu);
        for (ids, expected) in texts.iter().zip(&expected) {
            let found = residuals(&mut gpu, &model, &mut acts, ids);
            assert_eq!(found.len(), expected.len());
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-4, "off by {off}");
        }
        let replays = gpu.replays().replayed;
        assert!(blocking || replays >= 2, "{replays} replays in passes of one shape");
    }
}

/// What every step of a training reports, and the parameters it leaves. All steps have the same shapes.
fn training<B: Backend>(b: &mut B) -> (Vec<StepReport>, Vec<f64>) {
    let mut model = support::training::model(b);
    let sequence = |i: u32| TrainSequence::all((0..9).map(|j| 3 + (i * 31 + j * 7) % 250).collect());
    let run = |seed: u64| Run {
        data: (0..12).map(|i| sequence(100 * seed as u32 + i)).collect(),
        settings: RunSettings { length: Length::Steps(6), shuffle: false, ..support::training::settings(seed) },
    };
    let runs = vec![run(1), run(2)];
    let mut trainer = support::training::trainer(b, &model, runs, TrainerOptions::default());
    let mut reports = Vec::new();
    while !trainer.done() {
        reports.push(trainer.advance(b, &mut model, |step| step == 3).expect("a step"));
    }
    (reports, support::training::params(b, &trainer))
}

#[test]
#[ignore = "started on the fake driver"]
fn repeated_steps() {
    let (expected, params) = training(&mut Cpu::new(Dtype::F32));
    let mut gpu = Cuda::open(0, Dtype::F32, &cuda::settings()).expect("a device");
    let (reports, found) = training(&mut gpu);
    assert!(support::training::difference(&found, &params) < 1e-3);
    for (a, b) in reports.iter().flat_map(|step| &step.runs).zip(expected.iter().flat_map(|step| &step.runs)) {
        assert!((a.loss - b.loss).abs() < 1e-4 * b.loss && (a.grad_norm - b.grad_norm).abs() < 1e-3 * b.grad_norm);
        let plain = |run: &llamaprobe::train::trainer::RunReport| (run.step, run.learning_rate, run.total_tokens);
        assert_eq!(plain(a), plain(b));
    }
    let replays = gpu.replays().replayed;
    assert!(replays >= 6, "{replays} replays in 6 steps of one shape");
}

#[test]
fn steps_of_one_shape_are_one_graph() {
    child("repeated_steps");
}

#[test]
fn repeated_passes_are_one_graph_with_values_of_their_own() {
    child("repeated_passes");
}

#[test]
fn operations_agree_with_the_oracle_f32() {
    child("operations_f32");
}

#[test]
fn operations_agree_with_the_oracle_bf16() {
    child("operations_bf16");
}

#[test]
fn operations_agree_with_the_oracle_f16() {
    child("operations_f16");
}

/// A folder with a tiny model, texts, training examples and a task.
fn workplace(dtype: safetensors::Dtype) -> tempfile::TempDir {
    let dir = support::temp();
    let put = |name: &str, text: String| fs::write(dir.path().join(name), text).expect("write a test's file");
    TinyModel { dtype, ..TinyModel::default() }.write(&dir.path().join("model"));
    put("texts.jsonl", "{\"text\": \"the thin pet\"}\n{\"input_ids\": [5, 6, 7, 8]}\n{\"text\": \"a\"}\n".into());
    let example = |i: usize| format!("{{\"prompt\": \"the pen {i} is\", \"completion\": \" in pot {}\"}}\n", i % 3);
    put("train.jsonl", (0..6).map(example).collect());
    let rows = |from: usize, n: usize| {
        let row = |i: usize| format!("the pen number {i} is {}\t{}\n", ["thin", "fine"][i % 2], i % 2);
        std::iter::once("sentence\tlabel\n".to_owned()).chain((from..from + n).map(row)).collect::<String>()
    };
    put("train.tsv", rows(0, 8));
    put("dev.tsv", rows(100, 4));
    dir
}

/// Every floating-point tensor of a file, by name.
fn tensors(path: &Path) -> Vec<(String, Vec<f32>)> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut names: Vec<String> = file.names().iter().map(|&name| name.to_owned()).collect();
    names.sort();
    let floats = names.into_iter().filter_map(|name| {
        let view = file.tensor(&name).expect("a tensor");
        let values = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("4 bytes"));
        (view.dtype() == safetensors::Dtype::F32).then(|| (name, view.data().chunks_exact(4).map(values).collect()))
    });
    floats.collect()
}

/// The largest difference of two files' tensors, relative to each tensor's largest element.
fn difference(a: &Path, b: &Path) -> f32 {
    let (a, b) = (tensors(a), tensors(b));
    assert!(!a.is_empty() && a.len() == b.len(), "{} and {} tensors", a.len(), b.len());
    let mut worst = 0.0f32;
    for ((name, x), (other, y)) in a.iter().zip(&b) {
        assert_eq!((name, x.len()), (other, y.len()));
        let finite = |x: &&f32| x.is_finite();
        let scale = x.iter().filter(finite).fold(1e-6f32, |max, x| max.max(x.abs()));
        for (x, y) in x.iter().zip(y) {
            let off = if x == y { 0.0 } else { (x - y).abs() / scale };
            worst = if off.is_nan() { f32::INFINITY } else { worst.max(off) };
        }
    }
    worst
}

const CAPTURE: &str = "capture --model {}/model --input {}/texts.jsonl --sites \
                       embed,q,rot_k,z,attn_scores,pattern,result,resid_mid,mlp_post,resid_post,ln1.hook_scale,ln2.hook_normalized,ln_final.hook_out,logits";
const TRAIN: &str = "train-lora --model {}/model --train {}/train.jsonl --r 4 --lora-alpha 8 --learning-rate 1e-2 \
                     --batch-size 3 --max-steps 4 --lr-scheduler-type constant --seed 0 --json";
const PROBE: &str = "probe --model {}/model --task sst2 --train {}/train.tsv --test {}/dev.tsv --demos 2 --queries 3 \
                     --seeds 2 --epochs 1 --r 2 --json";

/// Runs a command on both devices, each into a folder of its name.
fn both(dir: &Path, line: &str, folder: &str) -> [String; 2] {
    ["cpu", "cuda:0"].map(|device| {
        let out = format!("{line} --device {device} --out {{}}/{folder}-{}", &device[..3]);
        succeed(&mut program(dir, &out))
    })
}

#[test]
fn capture_is_that_of_the_cpu() {
    for (dtype, tolerance) in [(safetensors::Dtype::F32, 2e-5), (safetensors::Dtype::BF16, 4e-2)] {
        let dir = workplace(dtype);
        both(dir.path(), CAPTURE, "out");
        let files = ["out-cpu", "out-cud"].map(|name| dir.path().join(name).join("activations.safetensors"));
        let off = difference(&files[0], &files[1]);
        println!("capture, {dtype:?}: off by {off:.1e}");
        assert!(off <= tolerance, "{dtype:?}: {off:.1e} > {tolerance:.0e}");
    }
}

#[test]
fn training_is_that_of_the_cpu() {
    let dir = workplace(safetensors::Dtype::F32);
    let fast = " --init-lora-weights pissa --loraplus-lr-ratio 8 --learning-rate 1e-3";
    for (extra, folder) in [
        ("", "plain"),
        (" --lora-dropout 0.3 --gradient-checkpointing --neftune-noise-alpha 5", "dropped"),
        (" --use-dora", "dora"),
        (" --target-modules q_proj,embed_tokens,lm_head --lora-dropout 0.3", "tables"),
        (" --modules-to-save embed_tokens,lm_head,norm --loraplus-lr-ratio 2", "whole-modules"),
        (" --trainable-token-indices 5,104,101", "tokens"),
        (fast, "fast"),
    ] {
        both(dir.path(), &format!("{TRAIN}{extra}"), folder);
        let file = |device: &str, name: &str| dir.path().join(format!("{folder}-{device}")).join(name);
        let [a, b] = ["cpu", "cud"].map(|device| file(device, "adapter_model.safetensors"));
        let off = difference(&a, &b);
        println!("adapter {folder}: off by {off:.1e}");
        assert!(off <= 2e-3, "{folder}: {off:.1e}");
        let [a, b] = ["cpu", "cud"].map(|device| losses(&file(device, "trainer_log.jsonl")));
        assert_eq!(a.len(), 4);
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * a.abs(), "losses {a} and {b}"));
    }
}

/// A grid whose runs differ in rank, scale and modules, evaluated.
const GRID: &str = "train-lora --model {}/model --train {}/train.jsonl --batch-size 4 --max-steps 3 --lr 1e-2 --r 2,3 \
                    --target-modules q_proj;v_proj,down_proj --eval {}/train.jsonl --eval-steps 2";

#[test]
fn grid_is_that_of_the_cpu() {
    let dir = workplace(safetensors::Dtype::F32);
    both(dir.path(), GRID, "grid");
    for run in ["run-000", "run-001", "run-002", "run-003"] {
        let [a, b] = ["cpu", "cud"].map(|device| dir.path().join(format!("grid-{device}")).join(run));
        let off = difference(&a.join("adapter_model.safetensors"), &b.join("adapter_model.safetensors"));
        println!("{run}: off by {off:.1e}");
        assert!(off <= 2e-3, "{run}: {off:.1e}");
    }
    let log = |device: &str| -> Vec<Value> {
        let text = fs::read_to_string(dir.path().join(format!("grid-{device}/trainer_log.jsonl"))).expect("the log");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let (cpu, cuda) = (log("cpu"), log("cud"));
    assert_eq!((cpu.len(), cuda.len()), (4 * (3 + 2), 4 * (3 + 2)));
    for (a, b) in cpu.iter().zip(&cuda) {
        for key in ["loss", "eval_loss"] {
            let [a, b] = [a, b].map(|line| line.get(key).and_then(Value::as_f64));
            assert_eq!(a.is_some(), b.is_some(), "{key}");
            let (a, b) = (a.unwrap_or(0.0), b.unwrap_or(0.0));
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{key}: {a} and {b}");
        }
    }
}

fn losses(path: &Path) -> Vec<f64> {
    let text = fs::read_to_string(path).expect("the log");
    let loss = |line: &str| serde_json::from_str::<Value>(line).ok()?["loss"].as_f64();
    text.lines().map(|line| loss(line).expect("a loss")).collect()
}

#[test]
fn probe_is_that_of_the_cpu() {
    let dir = workplace(safetensors::Dtype::F32);
    let [a, b] = both(dir.path(), PROBE, "run").map(|text| serde_json::from_str::<Value>(&text).expect("JSON"));
    let [a, b] = [&a, &b].map(|report| report["seeds"].as_array().expect("seeds").clone());
    assert_eq!((a.len(), b.len()), (2, 2));
    for (a, b) in a.iter().zip(&b) {
        let layers = |seed: &Value| seed["layers"].as_array().expect("layers").clone();
        for (a, b) in layers(a).iter().zip(layers(b)) {
            for pair in ["icl_it", "anchor_icl", "anchor_it"] {
                let [a, b] = [a, &b].map(|layer| layer[pair]["mean"].as_f64().expect("a mean"));
                assert!((a - b).abs() < 1e-4, "{pair}: {a} and {b}");
            }
        }
    }
}

#[test]
fn generation_is_that_of_the_cpu() {
    let dir = workplace(safetensors::Dtype::F32);
    let line = "generate --model {}/model --prompt the --max-new-tokens 12 --temperature 0";
    let [a, b] =
        ["cpu", "cuda:0"].map(|device| succeed(&mut program(dir.path(), &format!("{line} --device {device}"))));
    assert_eq!(a, b);
}

#[test]
fn device_that_is_missing_is_one_clear_error() {
    let dir = workplace(safetensors::Dtype::F32);
    let d = dir.path();
    let capture = |device: &str| program(d, &format!("{CAPTURE} --out {{}}/never --device {device}"));
    assert!(refuse(&mut capture("cuda:1")).contains("sees 1 device"));
    assert!(refuse(capture("cuda:0").env("FAKE_DEVICES", "0")).contains("sees no device"));
    assert!(refuse(capture("cuda:0").env_remove("LD_LIBRARY_PATH")).contains("libcuda.so.1 was not found"));
    assert!(!d.join("never").exists());
    let mut auto = program(d, &format!("{CAPTURE} --out {{}}/auto --device auto"));
    let ran = auto.env_remove("LD_LIBRARY_PATH").output().expect("start the program");
    let notice = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success() && notice.starts_with("device: cpu (") && notice.lines().count() == 1, "{notice}");
    // Without NVRTC nothing can be compiled: the error says what to install.
    let bare = d.join("bare");
    fs::create_dir(&bare).expect("a folder");
    for name in ["libcuda.so.1", "libcublasLt.so.13"] {
        fs::copy(fake().join(name), bare.join(name)).expect("a library");
    }
    let mut without = capture("cuda:0");
    let error = refuse(without.env("LD_LIBRARY_PATH", &bare).env("XDG_CACHE_HOME", &bare).env("PATH", "/nowhere"));
    assert!(error.contains("pip install nvidia-cuda-nvrtc"), "{error}");
}

/// What becomes of a file's bytes.
type Damage = fn(&[u8]) -> Vec<u8>;

/// Ways in which a file of the cache may be damaged.
const DAMAGE: [(&str, Damage); 4] = [
    ("other bytes", |_| b"no binary".to_vec()),
    ("cut in half", |bytes| bytes[..bytes.len() / 2].to_vec()),
    ("without its header", |bytes| bytes[48..].to_vec()),
    ("one bit", |bytes| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().expect("a kernel") ^= 1;
        bytes
    }),
];

#[test]
fn kernel_cache_that_is_damaged_is_compiled_again() {
    let dir = workplace(safetensors::Dtype::F32);
    let d = dir.path();
    let run = |cache: &Path| {
        let mut command = program(d, "generate --model {}/model --prompt a --device cuda:0");
        let ran = command.env("XDG_CACHE_HOME", cache).output().expect("start the program");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        (text(&ran.stdout), text(&ran.stderr))
    };
    let (expected, said) = run(&cache());
    assert_eq!(said, "");
    for (damage, damaged) in DAMAGE {
        let copy = d.join(damage).join("llamaprobe/kernels");
        fs::create_dir_all(&copy).expect("a folder");
        let mut whole = Vec::new();
        for entry in fs::read_dir(cache().join("llamaprobe/kernels")).expect("the cache").flatten() {
            let (path, bytes) = (copy.join(entry.file_name()), fs::read(entry.path()).expect("a kernel"));
            let damages = entry.file_name().to_string_lossy().starts_with("rope-float");
            fs::write(&path, if damages { damaged(&bytes) } else { bytes.clone() }).expect("a kernel");
            whole.extend(damages.then_some((path, bytes)));
        }
        let (found, said) = run(&d.join(damage));
        assert_eq!(found, expected, "{damage}");
        assert!(said.lines().count() == 1 && said.contains("damaged"), "{damage}: {said}");
        // Earlier builds may have left files that nobody reads.
        let named = whole.iter().find(|(path, _)| said.contains(&path.display().to_string()));
        let (path, bytes) = named.unwrap_or_else(|| panic!("{damage}: {said}"));
        let made = fs::read(path).expect("a kernel");
        assert!(made.len() == bytes.len() && made != damaged(bytes), "{damage}: not made anew");
    }
}

/// A name, what the fake driver is told, and what the one line of the error must hold.
type Failure = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

const FAILURES: [Failure; 5] = [
    ("memory", &[("FAKE_MEMORY", "33600000")], &["out of memory", "bytes wanted"]),
    ("kernel", &[("FAKE_FAIL_OP", "swiglu_fwd:2")], &["illegal memory access", "gated_fwd"]),
    ("launch", &[("FAKE_FAIL_OP", "attention_fwd:2"), ("FAKE_FAIL_CODE", "719")], &["launch failure", "attention_fwd"]),
    ("context", &[("FAKE_FAIL_OP", "rope_fwd:2"), ("FAKE_FAIL_CODE", "709")], &["context is destroyed", "rope_fwd"]),
    (
        "named",
        &[("FAKE_FAIL_OP", "rms_norm_fwd:2"), ("CUDA_LAUNCH_BLOCKING", "1")],
        &["cuda:0: rms_norm_fwd: an illegal memory access"],
    ),
];

#[test]
fn device_failure_is_one_clear_error() {
    let dir = workplace(safetensors::Dtype::F32);
    let d = dir.path();
    for (line, result) in
        [(CAPTURE, "activations.safetensors"), (TRAIN, "adapter_model.safetensors"), (PROBE, "report.json")]
    {
        for (failure, variables, parts) in FAILURES {
            let mut command = program(d, &format!("{line} --device cuda:0 --out {{}}/{failure}"));
            let error = refuse(command.envs(variables.iter().copied()));
            assert!(parts.iter().all(|part| error.contains(part)), "{line}, {failure}: {error}");
            assert!(!d.join(failure).join(result).exists(), "{result} of a failed command");
        }
    }
}

#[test]
fn memory_plan_is_what_the_driver_gives() {
    let dir = workplace(safetensors::Dtype::BF16);
    let (d, report) = (dir.path(), dir.path().join("report.json"));
    for (line, name) in [
        (format!("{CAPTURE} --json"), "capture"),
        (TRAIN.to_owned(), "train"),
        (format!("{GRID} --gradient-checkpointing --json"), "grid"),
        (format!("{TRAIN} --modules-to-save embed_tokens,lm_head,norm"), "whole-modules"),
        (format!("{TRAIN} --trainable-token-indices 5,104,101"), "tokens"),
    ] {
        let line = format!("{line} --device cuda:0 --out {{}}/{name}");
        let planned: Value =
            serde_json::from_str(&succeed(&mut program(d, &format!("{line} --dry-run")))).expect("a plan");
        succeed(program(d, &line).env("FAKE_REPORT", &report));
        let found: Value = serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON");
        let bytes = |of: &Value, what: &str| of[what].as_u64().unwrap_or_else(|| panic!("{what}: {of}"));
        println!("{name}: {planned}, {found}");
        let (total, taken) = (bytes(&planned["plan"], "total"), bytes(&found, "device"));
        // A block of the device is a multiple of 256 bytes.
        let rounding = 256 * bytes(&found, "blocks");
        assert!(total.abs_diff(taken) <= rounding, "{name}: {total} planned, {taken} taken");
        assert!(bytes(&found, "pinned") <= bytes(&planned["plan"], "pinned"), "{name}: {found}");
    }
}

#[test]
fn checkpoints_outlive_a_device_failure() {
    let dir = workplace(safetensors::Dtype::F32);
    let d = dir.path();
    // Longer and longer, so that later steps want memory that earlier ones did not.
    let example =
        |i: usize| format!("{{\"prompt\": \"the pen{}\", \"completion\": \" in pot\"}}\n", " is thin".repeat(i));
    fs::write(d.join("train.jsonl"), (0..18).map(example).collect::<String>()).expect("write a test's file");
    let line = format!("{} --no-shuffle --save-steps 2", TRAIN.replace("--max-steps 4", "--max-steps 6"));
    let train = |out: &str| program(d, &format!("{line} --device cuda:0 --out {{}}/{out}"));
    let adapter = |out: &str| fs::read(d.join(out).join("adapter_model.safetensors")).expect("an adapter");
    succeed(&mut train("whole"));
    // In the third or fourth step, with a checkpoint after the second.
    let failures = [
        ("kernel", vec![("FAKE_FAIL_OP", "check_finite:7")], "illegal memory access"),
        ("context", vec![("FAKE_FAIL_OP", "adamw:4"), ("FAKE_FAIL_CODE", "709")], "context is destroyed"),
        ("memory", vec![("FAKE_FULL_OP", "adamw:2")], "out of memory"),
    ];
    for (failure, variables, part) in failures {
        let error = refuse(train(failure).envs(variables));
        assert!(error.contains(part), "{failure}: {error}");
        let found = d.join(failure);
        assert!(found.join("checkpoint-2").is_dir() && !found.join("checkpoint-4").exists(), "{failure}");
        assert!(!found.join("adapter_model.safetensors").exists(), "{failure}: an adapter of a failed training");
        succeed(train(failure).args(["--resume-from-checkpoint", "latest"]));
        assert!(adapter(failure) == adapter("whole"), "{failure}: the continuation is another training");
    }
}

#[test]
fn planted_bug_is_seen() {
    // Shared memory that is read before the copies into it are waited for.
    let dir = workplace(safetensors::Dtype::F32);
    let d = dir.path();
    succeed(&mut program(d, &format!("{CAPTURE} --out {{}}/cpu --device cpu")));
    let mut wrong = program(d, &format!("{CAPTURE} --out {{}}/gpu --device cuda:0"));
    wrong.env("FAKE_NVRTC_FLAGS", "-DPLANT_NO_WAIT").env("XDG_CACHE_HOME", d.join("cache"));
    let seen = !wrong.output().expect("start the program").status.success()
        || difference(&d.join("cpu/activations.safetensors"), &d.join("gpu/activations.safetensors")) > 1e-3;
    assert!(seen, "the planted bug changed nothing");
}
