//! The test models themselves: a test that reads one must be able to trust it.

use std::fs;

use crate::support::tiny_model::{TinyModel, tokenizer_json};

#[test]
fn a_tiny_model_is_complete_and_reproducible() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let model = TinyModel { tied: true, bias: true, ..TinyModel::default() };
    model.write(dir.path());
    let bytes = fs::read(dir.path().join("model.safetensors")).expect("weights");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for (name, shape) in model.tensors() {
        assert_eq!(file.tensor(&name).expect("a tensor of the list").shape(), shape, "{name}");
    }
    assert_eq!(file.len(), model.tensors().len());
    model.write(dir.path());
    assert_eq!(fs::read(dir.path().join("model.safetensors")).expect("weights"), bytes, "the same seed, other bytes");
}

#[test]
fn its_tokenizer_round_trips_any_text() {
    let text = serde_json::to_vec(&tokenizer_json()).expect("JSON");
    let tokenizer = tokenizers::Tokenizer::from_bytes(text).expect("a tokenizer");
    assert_eq!(tokenizer.get_vocab_size(true), TinyModel::TOKENS);
    let encoded = tokenizer.encode("the thin père", true).expect("an encoding");
    let merged = encoded.get_tokens().iter().filter(|t| t.chars().count() > 1 && *t != "<s>").count();
    assert_eq!((encoded.get_ids()[0], merged), (1, 4), "{:?}", encoded.get_tokens());
    assert_eq!(tokenizer.decode(encoded.get_ids(), true).expect("a text"), "the thin père");
}
