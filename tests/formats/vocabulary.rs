//! Tokenizers as the vocabularies of GGUF files, against those that `golden/gguf_models.py` writes with the `gguf` package.

use llamaprobe::formats::gguf::{Gguf, Value, vocabulary};
use llamaprobe::formats::tokenizer::Tokenizer;

use crate::support::golden;

fn list(value: &Value) -> &[Value] {
    let Value::List(list) = value else { panic!("a list") };
    list
}

#[test]
fn vocabularies_are_those_of_the_converter() {
    for name in ["llama", "gpt2", "qwen2", "llama3"] {
        let expected = Gguf::read(golden(&format!("gguf/tokenizers/{name}.gguf"))).expect("a file");
        let tokenizer = Tokenizer::load(golden(&format!("tokenizers/{name}"))).expect("a tokenizer");
        let tokens = list(&expected.metadata["tokenizer.ggml.tokens"]).len();
        let found = vocabulary::metadata(&tokenizer, tokens + 2).expect("a vocabulary");
        let value =
            |key: &str| &found.iter().find(|(name, _)| name == key).unwrap_or_else(|| panic!("{name}: {key}")).1;
        for (key, other) in expected.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.")) {
            match key.trim_start_matches("tokenizer.ggml.") {
                // Two rows of the table have no token.
                "tokens" | "token_type" => {
                    let (own, other) = (list(value(key)), list(other));
                    assert_eq!(&own[..tokens], other, "{name}: {key}");
                    assert_eq!(own.len(), tokens + 2, "{name}: {key}");
                }
                // Those of tokens that no merge makes say nothing.
                "scores" => {
                    let scores = list(value(key)).iter().zip(list(other));
                    let made = scores.filter(|(_, other)| other.as_f64().is_some_and(|score| score > -1e6));
                    assert!(made.clone().count() > 10 && made.into_iter().all(|(a, b)| a == b), "{name}: {key}");
                }
                // That of GPT-2 stands in a model's config.json alone.
                "bos_token_id" if tokenizer.bos().is_none() => assert_eq!(name, "gpt2"),
                _ => assert_eq!(value(key), other, "{name}: {key}"),
            }
        }
        assert_eq!(list(value("tokenizer.ggml.tokens"))[tokens], Value::String(format!("[PAD{tokens}]")), "{name}");
        let error = vocabulary::metadata(&tokenizer, tokens - 1).expect_err("too few rows").to_string();
        assert!(error.contains("expected ids below vocab_size") && error.contains("tokenizer"), "{error}");
    }
}

#[test]
fn vocabularies_that_gguf_does_not_name_are_refused() {
    let tokenizer = Tokenizer::load(golden("tokenizers/bloom")).expect("a tokenizer");
    let error = vocabulary::metadata(&tokenizer, 1 << 20).expect_err("refused").to_string();
    assert!(error.contains("pre_tokenizer: expected the words of gpt-2, llama-bpe or qwen2"), "{error}");
}
