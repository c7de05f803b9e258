//! Models of GGUF files.

use serde_json::json;

use super::{line, put, workplace};
use crate::support::golden;

#[test]
fn gguf_models_run_by_ids_and_by_texts_of_another_tokenizer() {
    let dir = workplace();
    let d = dir.path();
    let model = golden("gguf/llama-f16.gguf");
    let model = model.to_str().expect("a path");
    let shown = line(d, &format!("inspect --model {model} --json")).json();
    assert_eq!((&shown["model"]["family"], &shown["model"]["dtype"]), (&json!("llama"), &json!("F16")));
    put(d, "ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    line(d, &format!("capture --model {model} --input {{}}/ids.jsonl --out {{}}/states")).ok();
    // The file has no vocabulary, and the folder of the other model has one.
    let error = line(d, &format!("generate --model {model} --prompt a")).refused();
    assert!(
        error.contains("llama-f16.gguf: tokenizer.ggml.tokens: expected a list of texts, found nothing"),
        "{error}"
    );
    let words = "--prompt a --max-new-tokens 2";
    let error = line(d, &format!("generate --model {model} --tokenizer {{}}/nowhere {words}")).refused();
    assert!(error.contains("nowhere"), "{error}");
    let error = line(d, &format!("merge --model {model} --adapter {{}}/a --out {{}}/b")).refused();
    assert!(error.contains("--model: expected a model whose weights are numbers"), "{error}");
    let error = line(d, &format!("inspect --model {model} --revision main")).refused();
    assert!(error.contains("revision: expected none for the file"), "{error}");
}
