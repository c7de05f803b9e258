//! Models in GGUF files: what is refused, and how tensors lie.

use std::collections::BTreeSet;

use llamaprobe::formats::adapter::LoraAdapter;
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

    /// The same in the words of another architecture.
    fn of(mut self, architecture: &'static str) -> Self {
        for (key, _) in &mut self.metadata {
            if let Some(name) = key.strip_prefix("llama.") {
                *key = format!("{architecture}.{name}").leak();
            }
        }
        self.with("general.architecture", Some(Value::String(architecture.to_owned())))
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
        (
            model().with("llama.attention.layer_norm_rms_epsilon", None),
            "layer_norm_rms_epsilon: expected a finite number, found nothing",
        ),
        (model().of("gemma3"), "gemma3.attention.sliding_window: expected a positive number, found nothing"),
        (model().with("llama.expert_count", number(8)), "llama.expert_count: expected no experts"),
        (model().tensor("token_embd.weight", None), "token_embd.weight: expected a tensor of this name, found none"),
        (model().tensor("blk.0.ffn_up.weight", None), "blk.0.ffn_up.weight: expected it, found none"),
        (model().tensor("blk.0.ffn_up.weight", Some((&[8, 7], F32))), "blk.0.ffn_up.weight: expected"),
        (model().tensor("blk.0.attn_q.weight", Some((&[8, 6], F32))), "attn_q.weight: expected 8 rows, found 6"),
        (model().tensor("blk.0.attn_rel.weight", Some((&[8], F32))), "blk.0.attn_rel.weight: expected a tensor of the"),
        (model().tensor("blk.00.ffn_norm.weight", Some((&[8], F32))), "blk.00.ffn_norm.weight: expected a tensor of"),
        (
            model().tensor("blk.0.ffn_up.weight", Some((&[8, 6], TensorType::new(20)))),
            "blk.0.ffn_up.weight: type of a tensor is not supported: IQ4_NL",
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
fn gguf_metadata_that_change_the_result_are_refused_unless_neutral() {
    let (number, yes) = (|x: f64| Value::Float(x), Value::Bool(true));
    let factors = |file: File| file.tensor("rope_factors_long.weight", Some((&[2], F32)));
    // A key, a value that is computed and one that is not.
    for (file, key, neutral, other) in [
        (model(), "llama.rope.scaling.attn_factor", number(1.0), number(2.0)),
        (model(), "llama.rope.scaling.yarn_attn_factor", number(1.0), number(2.0)),
        (model(), "llama.rope.scaling.yarn_ext_factor", number(0.0), number(1.0)),
        (model(), "llama.rope.scaling.yarn_log_multiplier", number(0.0), number(0.1)),
        (model(), "llama.attention.causal", yes.clone(), Value::Bool(false)),
        (model(), "llama.attention.scale", number(0.0), number(0.01)),
        (model(), "llama.attention.clamp_kqv", number(0.0), number(8.0)),
        (model(), "llama.attention.max_alibi_bias", number(0.0), number(8.0)),
        (model(), "llama.attention.sliding_window_pattern", Value::Unsigned(1), Value::Unsigned(2)),
        (model(), "llama.attention.sliding_window_pattern", Value::Unsigned(1), Value::List(vec![yes.clone()])),
        (model(), "llama.attn_logit_softcapping", number(0.0), number(30.0)),
        (model(), "llama.final_logit_softcapping", number(0.0), number(30.0)),
        (model(), "llama.logit_scale", number(1.0), number(0.5)),
        (model(), "llama.embedding_scale", number(0.0), number(12.0)),
        (model(), "llama.residual_scale", number(1.0), number(0.2)),
        (model(), "general.type", Value::String("model".into()), Value::String("mmproj".into())),
        (model(), "split.count", Value::Unsigned(1), Value::Unsigned(2)),
        (model().of("gemma3"), "gemma3.attn_logit_softcapping", number(0.0), number(30.0)),
        (model().of("gemma3"), "gemma3.attention.sliding_window", Value::Unsigned(4), Value::Unsigned(0)),
        (model().of("gemma2"), "gemma2.attention.sliding_window", Value::Unsigned(4), Value::Unsigned(0)),
        (model().of("gemma2"), "gemma2.rope.freq_base_swa", number(10000.0), number(1e6)),
        (model().of("gemma2"), "gemma2.attention.sliding_window_pattern", Value::Unsigned(2), Value::Unsigned(3)),
        (model().of("phi3"), "phi3.rope.scaling.factor", number(1.0), number(8.0)),
        (model().of("phi3"), "phi3.rope.scaling.attn_factor", number(1.0), number(1.2)),
        (model().of("phi3"), "phi3.rope.scaling.type", Value::String("none".into()), Value::String("yarn".into())),
        (model().of("phi3"), "phi3.rope.scaling.type", Value::String("none".into()), Value::String("longrope".into())),
        (
            factors(model().of("phi3")),
            "phi3.rope.scaling.type",
            Value::String("longrope".into()),
            Value::String("none".into()),
        ),
    ] {
        let error = |value: Value| file.clone().with(key, Some(value)).errors()[0].clone();
        let words = format!("{key}: expected");
        let found = error(other.clone()).unwrap_or_else(|| panic!("{key} {other:?}: not refused"));
        assert!(found.contains(&words), "{key} {other:?}: {found}");
        // What else is refused, such as tensors that the family does not have, is another matter.
        assert!(!error(neutral.clone()).unwrap_or_default().contains(&words), "{key} {neutral:?}: refused");
    }
}

#[test]
fn gguf_heads_that_the_tensors_do_not_bear_out_are_refused_before_their_rows_are_listed() {
    let heads = |heads: u64, width: u64| {
        let mut file = model().with("llama.attention.head_count", Some(Value::Unsigned(heads)));
        for key in ["llama.attention.key_length", "llama.attention.value_length"] {
            file = file.with(key, Some(Value::Unsigned(width)));
        }
        file.errors()[0].clone().expect("refused")
    };
    for (count, width) in [(1 << 24, 1 << 24), (1 << 20, 1 << 14), (1 << 62, 4), (u64::MAX, 2)] {
        let error = heads(count, width);
        assert!(error.contains("llama.attention.head_count: expected heads of at most 2147483647 rows"), "{error}");
    }
    let error = heads(1 << 16, 1 << 14);
    assert!(error.contains("blk.0.attn_") && error.contains("rows, found"), "{error}");
}

#[test]
fn gguf_numbers_of_any_size_are_read_or_refused() {
    let numbers = [0, 1 << 31, 1 << 62, u64::MAX];
    for architecture in ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "phi3"] {
        let base = model().of(architecture);
        let keys = ["attention.key_length", "rope.dimension_count", "attention.sliding_window", "rope.freq_base"];
        let keys = keys.map(|key| &*format!("{architecture}.{key}").leak());
        let there = base.metadata.iter().filter(|(key, _)| key.starts_with(architecture)).map(|(key, _)| *key);
        for key in there.chain(keys).collect::<Vec<_>>() {
            for number in numbers {
                // No panic and no allocation of that size.
                let _: [Option<String>; 2] = base.clone().with(key, Some(Value::Unsigned(number))).errors();
            }
        }
    }
}

#[test]
fn gguf_errors_call_every_tensor_what_its_file_calls_it() {
    for name in ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "phi3"] {
        let GgufModel { file, checkpoint, .. } =
            GgufModel::open(golden(&format!("gguf/{name}.gguf")), Loading::Mapped).expect("a model");
        let stored = checkpoint.names().map(|own| {
            let error = checkpoint.deny_unexpected(|other| other != own).expect_err("unexpected").to_string();
            let (_, behind) = error.split_once(": tensor ").expect("a tensor");
            behind.split_once(": ").expect("its name").0.to_owned()
        });
        let stored: BTreeSet<String> = stored.collect();
        let there = file.entries.keys().filter(|tensor| !tensor.starts_with("rope_f")).cloned();
        assert_eq!(stored, there.collect(), "{name}");
    }
}

#[test]
fn gguf_errors_of_elements_name_the_tensor_of_the_file() {
    let checkpoint = GgufModel::open(golden("gguf/llama.gguf"), Loading::Mapped).expect("a model").checkpoint;
    let mut view = checkpoint.get("model.layers.1.mlp.up_proj.weight").expect("the tensor");
    let mut data = view.data.to_vec();
    data[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    view.data = data.into();
    let error = checkpoint.with([view]).check_finite().expect_err("not finite").to_string();
    assert!(error.contains("llama.gguf: tensor blk.1.ffn_up.weight: expected finite"), "{error}");
}

#[test]
fn gguf_adapters_that_some_tokens_switch_on_are_refused() {
    let dir = temp();
    let config = GgufModel::open(golden("gguf/llama.gguf"), Loading::Mapped).expect("a model").config;
    let file = Gguf::read(golden("gguf/lora.gguf")).expect("the golden file");
    let read = |invoked: Option<Value>| {
        let path = dir.path().join("lora.gguf");
        let mut metadata: Vec<(&str, Value)> =
            file.metadata.iter().map(|(key, value)| (&**key, value.clone())).collect();
        metadata.extend(invoked.map(|tokens| ("adapter.alora.invocation_tokens", tokens)));
        let all: Vec<_> = file.entries.keys().map(|name| (name, file.floats(name).expect("F32"))).collect();
        let bytes: Vec<Vec<u8>> =
            all.iter().map(|(_, t)| t.values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let tensors: Vec<_> = all.iter().zip(&bytes).map(|((n, t), b)| (&***n, &t.dims[..], F32, &b[..])).collect();
        write_typed(&path, &metadata, &tensors).expect("writes");
        LoraAdapter::read(&path, &config).map(drop)
    };
    read(None).expect("an adapter");
    let error = read(Some(Value::List(vec![Value::Unsigned(5)]))).expect_err("refused").to_string();
    assert!(error.contains("lora.gguf: adapter.alora.invocation_tokens: expected nothing"), "{error}");
}

#[test]
fn gguf_vocabularies_that_are_not_read_are_refused_by_key() {
    let text = |text: &str| Some(Value::String(text.to_owned()));
    let list = |value: Value| Some(Value::List(vec![value]));
    let texts = |all: [&str; 5]| Some(Value::List(all.map(|text| Value::String(text.to_owned())).to_vec()));
    let yes = Some(Value::Bool(true));
    let bytes = || model().with("tokenizer.ggml.model", text("gpt2"));
    for (file, words) in [
        (model().with("tokenizer.ggml.model", None), "tokenizer.ggml.model: expected a text"),
        (model().with("tokenizer.ggml.model", text("bert")), "tokenizer.ggml.model: expected llama or gpt2"),
        (model().with("tokenizer.ggml.tokens", None), "tokenizer.ggml.tokens: expected a list of texts, found nothing"),
        (model().with("tokenizer.ggml.tokens", list(Value::Bool(true))), "tokenizer.ggml.tokens: expected a list of"),
        (model().with("tokenizer.ggml.scores", None), "tokenizer.ggml.scores: expected 5 numbers"),
        (
            model().with("tokenizer.ggml.scores", list(Value::Float(1.0))),
            "tokenizer.ggml.scores: expected 5 numbers, found 1",
        ),
        (
            model().with("tokenizer.ggml.tokens", texts(["<unk>", "<s>", "</s>", "b", "b"])),
            "tokenizer.ggml.tokens: expected texts, each once and none of them empty, found \"b\" again, of id 4",
        ),
        (
            model().with("tokenizer.ggml.tokens", texts(["<unk>", "<s>", "</s>", "", "b"])),
            "tokenizer.ggml.tokens: expected texts, each once and none of them empty, found an empty one, of id 3",
        ),
        (
            model().with("tokenizer.ggml.add_bos_token", yes.clone()).with("tokenizer.ggml.bos_token_id", None),
            "tokenizer.ggml.bos_token_id: expected an id, which add_bos_token adds, found none",
        ),
        (
            model()
                .with("tokenizer.ggml.add_eos_token", yes)
                .with("tokenizer.ggml.eos_token_id", Some(Value::Unsigned(u64::from(u32::MAX)))),
            "tokenizer.ggml.eos_token_id: expected an id, which add_eos_token adds, found none",
        ),
        (
            model().with("tokenizer.ggml.merges", list(Value::String("b zz".into()))),
            "tokenizer.ggml.merges: expected pairs of tokens of the vocabulary that are one of it together, found \"b\" and \"zz\"",
        ),
        (
            bytes()
                .with("tokenizer.ggml.pre", text("gpt-2"))
                .with("tokenizer.ggml.merges", list(Value::String("b b".into()))),
            "tokenizer.ggml.merges: expected pairs of tokens of the vocabulary",
        ),
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
