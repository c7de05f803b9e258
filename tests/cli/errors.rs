//! What goes wrong outside the program is one line and exit code 1; a line that cannot be understood is 2.

use std::fs;
use std::path::Path;

use super::{Ran, leftovers, line, put, run, workplace};

#[test]
fn usage_errors_have_exit_code_2() {
    for args in [
        &[][..],
        &["fly"],
        &["capture"],
        &["capture", "--model", "m"],
        &["capture", "--model", "m", "--input", "i", "--out", "o", "--colour", "red"],
        &["capture", "--model", "m", "--input", "i", "--out", "o", "--tokens", "some"],
        &["capture", "--model", "m", "--input", "i", "--out", "o", "--dtype", "f8"],
        &["capture", "--model", "m", "--input", "i", "--out", "o", "--device", "tpu"],
        &["train-lora", "--model", "m", "--train", "t", "--out", "o", "--r", "-1"],
        &["train-lora", "--model", "m", "--train", "t", "--out", "o", "--epochs", "1", "--max-steps", "2"],
        &["train-lora", "--model", "m", "--train", "t", "--out", "o", "--lr-scheduler-type", "zigzag"],
        &["train-lora", "--model", "m", "--train", "t", "--out", "o", "--logging-steps", "0"],
        &["train-prompt", "--model", "m", "--train", "t", "--out", "o", "--method", "hypnosis"],
        &[
            "train-prompt",
            "--model",
            "m",
            "--train",
            "t",
            "--out",
            "o",
            "--init-adapter",
            "a",
            "--prompt-tuning-init",
            "TEXT",
        ],
        &["train-lora", "--rank-pattern", r#"{"q_proj":4,"q_proj":8}"#],
        &["train-lora", "--rank-pattern", "[4]"],
        &["inspect", "--model", "m", "--rows", "0"],
        &["inspect", "--model", "m", "--rows", "99999999999999"],
        &["inspect", "--model", "m", "--device-model", "h300"],
        &["probe", "--out"],
        &["generate", "--model", "m", "--prompt", "a", "--input", "f"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {}", ran.err);
        assert!(ran.out.is_empty() && !ran.err.is_empty(), "{args:?}");
    }
}

#[test]
fn help_has_examples_and_exit_code_0() {
    assert!(run(["--help"]).ok().out.contains("Examples:"));
    assert!(run(["--version"]).ok().out.contains(env!("CARGO_PKG_VERSION")));
    let help = run(["compare", "--help"]).ok().out;
    assert!(help.contains("compare [OPTIONS] --model <DIR|org/name> --task <TASK|FILE.yaml> --out <DIR>"), "{help}");
    let computing = [
        "capture",
        "train-lora",
        "train-prompt",
        "probe",
        "compare",
        "generate",
        "inspect",
        "pretrain",
        "task",
        "control-vector",
    ];
    for command in computing.iter().chain(&["export-embedded"]) {
        let help = run([command, "--help"]).ok().out;
        assert!(help.contains("Example"), "{command}: {help}");
        if computing.contains(command) {
            assert!(help.contains("--config") && help.contains("--json"), "{command}: {help}");
        }
    }
}

/// Runs a capture that must be refused with `expected` in the line, and must leave no output.
fn refused(dir: &Path, args: &str, expected: &str) {
    let base = "capture --model {}/model --input {}/texts.jsonl --out {}/out";
    let ran: Ran = line(dir, &format!("{base} {args}"));
    let text = ran.refused();
    assert!(text.contains(expected), "{args}: {text}");
    assert!(
        !dir.join("out/activations.safetensors").exists() && super::leftovers(dir).is_empty(),
        "{args}: output left"
    );
}

#[test]
fn argument_errors_name_the_flag() {
    let dir = workplace();
    let d = dir.path();
    for (args, expected) in [
        ("--model {}/nowhere", "nowhere"),
        ("--model nobody/nothing", "nobody/nothing"),
        ("--input {}/nowhere.jsonl", "nowhere.jsonl"),
        ("--input {}", "directory"),
        ("--sites resid_pots", "resid_post"),
        ("--sites blocks.9.hook_resid_post", "below 2"),
        ("--layers 2", "below 2"),
        ("--layers 1-0", "--layers"),
        ("--layers few", "--layers"),
        ("--device cuda:0", "cuda:0"),
        ("--device cuda:0 --dtype f32x3", "cuda:0"),
        ("--threads 0", "--threads"),
        ("--threads 100000", "--threads"),
        ("--batch-tokens 0", "--batch-tokens"),
        ("--adapter {}/nowhere", "adapter_config.json"),
        ("--out {}/texts.jsonl", "texts.jsonl"),
    ] {
        refused(d, args, expected);
    }
    for (args, expected) in [
        ("probe --queries 0", "llamaprobe: --queries: expected from 1 to "),
        ("train-lora --adam-beta1 1", "llamaprobe: --adam-beta1: expected a number from 0 to below 1, found 1"),
        (
            "train-prompt --method p-tuning --encoder-hidden-size 1048576",
            "llamaprobe: --encoder-hidden-size: expected from 1 to 32768, found 1048576",
        ),
        ("train-lora --max-length 0", "llamaprobe: --max-length: expected at least 1, found 0"),
        ("train-lora --lora-dropout 1", "llamaprobe: --lora-dropout: expected a number from 0 to below 1, found 1"),
        (
            "generate --model embedded --prompt a --json --num-beams 0",
            "llamaprobe: --num-beams: expected at least 1, found 0",
        ),
        (
            "generate --model embedded --prompt a --revision x",
            "llamaprobe: --revision: expected none for the embedded model, found x",
        ),
        (
            "pretrain --out {}/never --revision x",
            "llamaprobe: --revision: expected none, since model and tokenizer are made",
        ),
        (
            "pretrain --out {}/never --load-in nf4",
            "llamaprobe: --load-in: expected none, since model and tokenizer are made",
        ),
        ("pretrain --out {}/never --tokenizer {}/model", "llamaprobe: --tokenizer: expected none, since model and tok"),
        ("probe --target-modules zz", "llamaprobe: --target-modules: expected names of projections, as "),
    ] {
        let text = line(d, &format!("{args} --device cpu")).refused();
        assert!(text.starts_with(expected), "{args}: {text}");
    }
    for command in ["analyze {}/model {}/model", "control-vector --positive {}/model --negative {} --out {}/never"] {
        let text = line(d, command).refused();
        assert!(text.contains("model/activations.safetensors.index.json, found a directory"), "{text}");
    }
    let ran = line(d, "probe --task sst2 --out {}/never").refused();
    assert!(ran.contains("--train") && !d.join("never").exists(), "{ran}");
}

#[test]
fn input_errors_name_line_and_field() {
    let dir = workplace();
    let d = dir.path();
    for (text, expected) in [
        ("", "bad.jsonl"),
        ("\n", "bad.jsonl: lines"),
        ("{\"text\": \"a\"}\n\n{\"text\": 5}\n", "bad.jsonl:3"),
        ("{\"text\": \"a\"}\nnot json\n", "bad.jsonl:2"),
        ("{\"text\": 5}\n", "text"),
        ("{\"txt\": \"a\"}\n", "bad.jsonl:1"),
        ("[1, 2]\n", "bad.jsonl[0]"),
        ("{\"input_ids\": []}\n", "bad.jsonl:1"),
        ("{\"input_ids\": [1, 272]}\n", "272"),
        ("{\"input_ids\": [1, -4]}\n", "bad.jsonl:1"),
        ("{\"input_ids\": [1, 99999999999999]}\n", "bad.jsonl:1"),
        ("{\"input_ids\": [1.5]}\n", "bad.jsonl:1"),
        ("{\"prompt\": \"a\", \"completion\": \"b\"}\n", "bad.jsonl:1"),
        ("{\"text\": \"a\", \"text\": \"b\"}\n", "bad.jsonl:1"),
        ("{\"text\": \"a\"", "bad.jsonl:1"),
    ] {
        put(d, "bad.jsonl", text);
        refused(d, "--input {}/bad.jsonl", expected);
    }
    fs::write(d.join("bad.jsonl"), b"{\"text\": \"\xff\xfe\"}\n").expect("write");
    refused(d, "--input {}/bad.jsonl", "bad.jsonl");
}

#[test]
fn model_errors_name_the_file() {
    let dir = workplace();
    let d = dir.path();
    let weights = d.join("model/model.safetensors");
    let intact = fs::read(&weights).expect("weights");
    let header = 8 + u64::from_le_bytes(intact[..8].try_into().expect("8 bytes")) as usize;
    let mut huge = intact.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = intact.clone();
    garbled[20] = b'\0';
    for (bytes, what) in [
        (&[][..], "empty"),
        (&intact[..7], "shorter than a length"),
        (&intact[..header / 2], "truncated in the header"),
        (&intact[..header], "without data"),
        (&intact[..intact.len() - 1], "a byte short"),
        (&huge, "a header without an end"),
        (&garbled, "a broken header"),
    ] {
        fs::write(&weights, bytes).expect("write");
        let text = line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/out").refused();
        assert!(text.contains("model.safetensors"), "{what}: {text}");
        assert!(!d.join("out").exists(), "{what}");
    }
    // Numbers that are none show in the first pass.
    let nans = [&intact[..header], &vec![0xFF; intact.len() - header][..]].concat();
    fs::write(&weights, &nans).expect("write");
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    for command in ["capture --input {}/texts.jsonl", "train-lora --max-steps 1 --train {}/ids.jsonl"] {
        let text = line(d, &format!("{command} --model {{}}/model --out {{}}/nan")).refused();
        assert!(text.contains("model.safetensors") && text.contains("NaN"), "{command}: {text}");
        assert!(!d.join("nan/activations.safetensors").exists() && leftovers(d).is_empty(), "{command}");
    }
    fs::write(&weights, &intact).expect("write");

    let config = d.join("model/config.json");
    let text = fs::read_to_string(&config).expect("config");
    for (from, to, expected) in [
        ("\"llama\"", "\"gpt5\"", "model_type"),
        ("\"silu\"", "\"swoosh\"", "swoosh"),
        ("\"hidden_size\": 24", "\"hidden_size\": 25", "model.safetensors"),
        ("\"hidden_size\": 24", "\"hidden_size\": \"wide\"", "hidden_size"),
        ("\"hidden_size\": 24", "\"hidden_size\": 0", "hidden_size"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "layers.2"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_key_value_heads"),
        ("\"vocab_size\": 272", "\"vocab_size\": 300", "embed_tokens"),
        ("\"rope_theta\": 10000.0", "\"rope_scaling\": {\"rope_type\": \"spiral\", \"factor\": 2}", "spiral"),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(&config, text.replace(from, to)).expect("write");
        refused(d, "", expected);
    }
    for broken in ["", "{", "[]", "null"] {
        fs::write(&config, broken).expect("write");
        refused(d, "", "config.json");
    }
    fs::remove_file(&config).expect("remove");
    refused(d, "", "config.json");
}

#[test]
fn tokenizer_and_adapter_errors_name_the_file() {
    let dir = workplace();
    let d = dir.path();
    put(d, "train.jsonl", "{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    line(d, "train-lora --model {}/model --train {}/train.jsonl --out {}/adapter --max-steps 1").ok();
    let config = d.join("adapter/adapter_config.json");
    let text = fs::read_to_string(&config).expect("config");
    for (from, to, expected) in [
        ("\"LORA\"", "\"LOHA\"", "peft_type"),
        ("\"r\": 8", "\"r\": 4", "adapter_model.safetensors"),
        ("\"r\": 8", "\"r\": 0", "r"),
        // An entry that names nothing is passed over, as in PEFT; the tensors of the module it should name are not.
        ("\"q_proj\"", "\"x_proj\"", "q_proj.lora_A.weight"),
        ("\"q_proj\"", "\"o_proj\"", "adapter_model.safetensors"),
        ("\"bias\": \"none\"", "\"bias\": \"some\"", "bias"),
        ("\"bias\": \"none\"", "\"use_dora\": true", "lora_magnitude_vector"),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&config, text.replace(from, to)).expect("write");
        refused(d, "--adapter {}/adapter", expected);
    }
    fs::write(&config, &text).expect("write");
    fs::write(d.join("adapter/adapter_model.safetensors"), b"").expect("write");
    refused(d, "--adapter {}/adapter", "adapter_model.safetensors");
    for broken in ["", "{}", "{\"model\": 3}"] {
        fs::write(d.join("model/tokenizer.json"), broken).expect("write");
        refused(d, "", "tokenizer");
    }
    fs::remove_file(d.join("model/tokenizer.json")).expect("remove");
    refused(d, "", "tokenizer.json");
    put(d, "texts.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
    line(d, "capture --model {}/model --input {}/texts.jsonl --out {}/out").ok();
}

/// The signal of a file that grows beyond `ulimit -f` does not end the program, and no error names a temporary file.
#[cfg(unix)]
#[test]
fn files_that_cannot_be_written_are_named_by_their_place() {
    let dir = workplace();
    let d = dir.path();
    let exported = std::process::Command::new("sh")
        .args(["-c", "ulimit -f 8; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_llamaprobe"), "export-embedded"])
        .arg(d.join("never"))
        .output()
        .expect("sh");
    let text = String::from_utf8_lossy(&exported.stderr);
    assert_eq!(exported.status.code(), Some(1), "{text}");
    assert!(text.contains("/never/") && text.contains("cannot write") && !text.contains(".tmp-"), "{text}");
    assert!(!d.join("never").exists() && leftovers(d).is_empty());
}
