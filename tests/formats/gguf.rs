//! Models in GGUF files: what is refused, and how tensors lie.

use llamaprobe::formats::gguf::model::GgufModel;
use llamaprobe::formats::gguf::{Gguf, TensorType, Value, tokenizer, write_typed};
use llamaprobe::formats::quantized::WeightView;
use llamaprobe::formats::safetensors::Loading;
use llamaprobe::model::param_id::Source;
use llamaprobe::quantization::BlockFormat;

use crate::support::{golden, temp};

/// A tensor: name, dimensions (the fastest first) and type; its bytes are zeros.
type Tensor = (&'static str, Vec<usize>, TensorType);

#[derive(Clone)]
struct File {
    metadata: Vec<(&'static str, Value)>,
    tensors: Vec<Tensor>,
}

const F32: TensorType = TensorType::F32;

/// A model of one layer: width 8, 2 heads, 1 of keys, feed-forward width 6, 5 tokens.
fn model() -> File {
    let number = Value::Unsigned;
    let text = |text: &str| Value::String(text.to_owned());
    let texts = |list: &[&str]| Value::List(list.iter().map(|t| text(t)).collect());
    let floats = |list: &[f64]| Value::List(list.iter().map(|x| Value::Float(*x)).collect());
    let kinds = [2, 3, 3, 1, 1].map(Value::Signed);
    File {
        metadata: vec![
            ("general.architecture", text("llama")),
            ("llama.context_length", number(16)),
            ("llama.embedding_length", number(8)),
            ("llama.block_count", number(1)),
            ("llama.feed_forward_length", number(6)),
            ("llama.attention.head_count", number(2)),
            ("llama.attention.head_count_kv", Value::List(vec![number(1)])),
            ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
            ("tokenizer.ggml.model", text("llama")),
            ("tokenizer.ggml.tokens", texts(&["<unk>", "<s>", "</s>", "▁a", "b"])),
            ("tokenizer.ggml.scores", floats(&[0.0, 0.0, 0.0, -1.0, -2.0])),
            ("tokenizer.ggml.token_type", Value::List(kinds.to_vec())),
            ("tokenizer.ggml.bos_token_id", number(1)),
            ("tokenizer.ggml.eos_token_id", number(2)),
        ],
        tensors: vec![
            ("token_embd.weight", vec![8, 5], F32),
            ("output_norm.weight", vec![8], F32),
            ("blk.0.attn_norm.weight", vec![8], F32),
            ("blk.0.ffn_norm.weight", vec![8], F32),
            ("blk.0.attn_q.weight", vec![8, 8], F32),
            ("blk.0.attn_k.weight", vec![8, 4], F32),
            ("blk.0.attn_v.weight", vec![8, 4], F32),
            ("blk.0.attn_output.weight", vec![8, 8], F32),
            ("blk.0.ffn_gate.weight", vec![8, 6], F32),
            ("blk.0.ffn_up.weight", vec![8, 6], F32),
            ("blk.0.ffn_down.weight", vec![6, 8], F32),
        ],
    }
}

fn bytes(kind: TensorType, elements: usize) -> Vec<u8> {
    let size = match kind {
        TensorType::F32 => 4 * elements,
        TensorType::Blocks(format) => elements / format.block_values() * format.block_bytes(),
        _ => elements,
    };
    vec![0; size]
}

impl File {
    fn with(mut self, key: &'static str, value: Option<Value>) -> Self {
        self.metadata.retain(|(other, _)| *other != key);
        self.metadata.extend(value.map(|value| (key, value)));
        self
    }

    fn tensor(mut self, name: &'static str, tensor: Option<(&[usize], TensorType)>) -> Self {
        self.tensors.retain(|(other, ..)| *other != name);
        self.tensors.extend(tensor.map(|(dims, kind)| (name, dims.to_vec(), kind)));
        self
    }

    /// The first error of the model, and that of its tokenizer.
    fn errors(&self) -> [Option<String>; 2] {
        let dir = temp();
        let path = dir.path().join("m.gguf");
        let all: Vec<_> = self.tensors.iter().map(|(_, dims, kind)| bytes(*kind, dims.iter().product())).collect();
        let tensors: Vec<_> = self.tensors.iter().zip(&all).map(|((n, d, k), b)| (*n, &d[..], *k, &b[..])).collect();
        write_typed(&path, &self.metadata, &tensors).expect("writes");
        let opened = GgufModel::open(&path, Loading::Mapped);
        let checked = opened.and_then(|model| Source::new(&model.config, &model.checkpoint)?.check());
        let vocabulary = Gguf::open(&path, Loading::Copied).and_then(|file| tokenizer::tokenizer(&file).map(drop));
        [checked.err(), vocabulary.err()].map(|error| {
            let text = error?.to_string();
            assert!(text.contains("m.gguf") && !text.contains('\n'), "{text}");
            Some(text)
        })
    }
}

#[test]
fn gguf_models_that_are_not_computed_are_refused_by_field() {
    assert_eq!(model().errors(), [None, None]);
    let text = |text: &str| Some(Value::String(text.to_owned()));
    let number = |n: u64| Some(Value::Unsigned(n));
    let q8 = TensorType::Blocks(BlockFormat::Q8_0);
    for (file, words) in [
        (model().with("general.architecture", text("mamba")), "general.architecture is not supported: mamba"),
        (model().with("general.architecture", number(1)), "general.architecture: expected a text"),
        (model().with("llama.block_count", None), "llama.block_count: expected a positive number"),
        (model().with("llama.block_count", number(0)), "llama.block_count: expected a positive number"),
        (
            model().with("llama.feed_forward_length", Some(Value::List(vec![Value::Unsigned(6), Value::Unsigned(7)]))),
            "llama.feed_forward_length: expected a positive number, the same for all layers, found a list of 2",
        ),
        (model().with("llama.attention.head_count", number(3)), "llama.attention.head_count: expected a divisor of 8"),
        (model().with("llama.attention.value_length", number(2)), "value_length: expected that of the keys, 4"),
        (model().with("llama.rope.dimension_count", number(2)), "dimension_count: expected the width of a head, 4"),
        (model().with("llama.rope.scaling.type", text("magic")), "scaling.type: expected none, linear or yarn"),
        (model().with("llama.rope.scaling.type", text("yarn")), "scaling.factor: expected a number"),
        (model().with("llama.rope.freq_base", Some(Value::Float(0.5))), "llama.rope.freq_base (rope_theta): expected"),
        (
            model().with("llama.attention.layer_norm_rms_epsilon", Some(Value::Float(2.0))),
            "llama.attention.layer_norm_rms_epsilon (rms_norm_eps): expected",
        ),
        (model().with("llama.expert_count", number(8)), "llama.expert_count: expected no experts"),
        (model().tensor("token_embd.weight", None), "token_embd.weight: expected a tensor of this name, found none"),
        (model().tensor("blk.0.ffn_up.weight", None), "model.layers.0.mlp.up_proj.weight: expected it, found none"),
        (model().tensor("blk.0.ffn_up.weight", Some((&[8, 7], F32))), "up_proj.weight"),
        (model().tensor("blk.0.attn_q.weight", Some((&[8, 6], F32))), "attn_q.weight: expected 8 rows, found 6"),
        (model().tensor("blk.0.attn_rel.weight", Some((&[8], F32))), "blk.0.attn_rel.weight: expected a tensor of the"),
        (model().tensor("blk.00.ffn_norm.weight", Some((&[8], F32))), "blk.00.ffn_norm.weight: expected a tensor of"),
        (
            model().tensor("blk.0.ffn_up.weight", Some((&[8, 6], TensorType::new(7)))),
            "blk.0.ffn_up.weight: type of a tensor is not supported: Q5_1",
        ),
        (
            model().tensor("blk.0.ffn_up.weight", Some((&[8, 6], q8))),
            "expected rows of a multiple of 32 elements, of Q8_0",
        ),
        (
            model().tensor("blk.0.ffn_norm.weight", Some((&[32], q8))),
            "ffn_norm.weight: expected a matrix, of type Q8_0",
        ),
        (model().tensor("rope_freqs.weight", Some((&[2], F32))), "rope_freqs.weight: expected 2 positive numbers"),
        (model().tensor("rope_freqs.weight", Some((&[3], F32))), "found 3 numbers"),
    ] {
        let [error, _] = file.errors();
        let error = error.unwrap_or_else(|| panic!("{words}: not refused"));
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn gguf_vocabularies_that_are_not_read_are_refused_by_key() {
    let text = |text: &str| Some(Value::String(text.to_owned()));
    let list = |value: Value| Some(Value::List(vec![value]));
    let bytes = || model().with("tokenizer.ggml.model", text("gpt2"));
    for (file, words) in [
        (model().with("tokenizer.ggml.model", None), "tokenizer.ggml.model: expected a text"),
        (model().with("tokenizer.ggml.model", text("bert")), "tokenizer.ggml.model: expected llama or gpt2"),
        (model().with("tokenizer.ggml.tokens", None), "tokenizer.ggml.tokens: expected a list of texts, found nothing"),
        (model().with("tokenizer.ggml.tokens", list(Value::Bool(true))), "tokenizer.ggml.tokens: expected a list of"),
        (model().with("tokenizer.ggml.scores", None), "tokenizer.ggml.scores: expected 5 numbers"),
        (model().with("tokenizer.ggml.scores", list(Value::Float(1.0))), "tokenizer.ggml.scores: expected 5 numbers"),
        (model().with("tokenizer.ggml.token_type", list(Value::Signed(1))), "token_type: expected 5 numbers, found 1"),
        (model().with("tokenizer.ggml.bos_token_id", Some(Value::Unsigned(5))), "bos_token_id: expected an id below 5"),
        (bytes(), "tokenizer.ggml.pre: expected gpt-2, llama-bpe"),
        (bytes().with("tokenizer.ggml.pre", text("gpt-2")), "tokenizer.ggml.merges: expected a list of merges"),
        (
            bytes()
                .with("tokenizer.ggml.pre", text("gpt-2"))
                .with("tokenizer.ggml.merges", list(Value::String("ab".into()))),
            "tokenizer.ggml.merges: expected a list of pairs",
        ),
    ] {
        let [of_model, error] = file.errors();
        assert_eq!(of_model, None, "{words}");
        let error = error.unwrap_or_else(|| panic!("{words}: not refused"));
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn gguf_tensors_lie_in_the_mapping() {
    let model = GgufModel::open(golden("gguf/llama-blocks.gguf"), Loading::Mapped).expect("a model");
    let formats: Vec<&str> = model.checkpoint.quantized().map(|view| view.format.name()).collect();
    // In the order of the names: the table, then down, gate, up, k, o, q, v.
    assert_eq!(formats, ["Q6_K", "Q4_0", "Q4_0", "Q8_0", "Q5_K", "Q8_0", "Q6_K", "Q4_K"]);
    let again = model.file.tensor("blk.0.attn_v.weight").expect("a tensor");
    let view = model.checkpoint.quantized().last().expect("v");
    let WeightView::Quantized(again) = again else { panic!("quantised") };
    assert_eq!(
        (view.name.as_str(), view.codes.as_ptr()),
        ("model.layers.0.self_attn.v_proj.weight", again.codes.as_ptr())
    );
    let bytes: usize = model.file.entries.values().map(|entry| entry.range.len()).sum();
    assert_eq!(model.checkpoint.total_bytes(), bytes);
}
