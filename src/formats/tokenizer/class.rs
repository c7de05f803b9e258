//! The tokenizer classes of transformers: which one it takes for a model directory, which special tokens are its own,
//! and what it makes of the file's pipeline.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::formats::json::Fields;

/// A class of transformers whose pipeline is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The generic class: what `tokenizer.json` says.
    File,
    /// `LlamaTokenizer`.
    Llama,
    /// `CodeLlamaTokenizer`.
    CodeLlama,
    /// `GPT2Tokenizer`, and `CodeGenTokenizer`, which does the same.
    Gpt2,
    /// `Qwen2Tokenizer`.
    Qwen2,
    /// `GPTNeoXTokenizer`.
    GptNeoX,
    /// `GemmaTokenizer`.
    Gemma,
}

/// The keys of CodeLlama's own tokens, and their texts.
pub(super) const INFILL: [(&str, &str); 5] = [
    ("prefix_token", "▁<PRE>"),
    ("middle_token", "▁<MID>"),
    ("suffix_token", "▁<SUF>"),
    ("eot_token", "▁<EOT>"),
    ("fill_token", "<FILL_ME>"),
];

/// Classes of transformers that build a pipeline of their own, or are written in Python, and are not among [`Class`].
const OTHERS: [&str; 90] = [
    "Albert",
    "Bart",
    "Barthez",
    "Bartpho",
    "Bert",
    "BertGeneration",
    "BertJapanese",
    "Bertweet",
    "BigBird",
    "BioGpt",
    "Blenderbot",
    "BlenderbotSmall",
    "ByT5",
    "CLIP",
    "CTRL",
    "Camembert",
    "Canine",
    "Clvp",
    "Cohere",
    "Cpm",
    "CpmAnt",
    "DPRContextEncoder",
    "DPRQuestionEncoder",
    "DPRReader",
    "Deberta",
    "DebertaV2",
    "Dia",
    "DistilBert",
    "Esm",
    "Esmc",
    "FSMT",
    "FastSpeech2Conformer",
    "Flaubert",
    "Funnel",
    "GPTNeoXJapanese",
    "GPTSw3",
    "Herbert",
    "LED",
    "Lasr",
    "LayoutLMv2",
    "LayoutLMv3",
    "LayoutXLM",
    "Luke",
    "Lxmert",
    "M2M100",
    "MBart",
    "MBart50",
    "MLuke",
    "MPNet",
    "Marian",
    "MarkupLM",
    "Mgpstr",
    "MobileBert",
    "Mvp",
    "MyT5",
    "Nllb",
    "Nougat",
    "OpenAIGPT",
    "PLBart",
    "Pegasus",
    "Perceiver",
    "Phobert",
    "ProphetNet",
    "Qwen3_5",
    "Rag",
    "Reformer",
    "RemBert",
    "RoCBert",
    "RoFormer",
    "Roberta",
    "SeamlessM4T",
    "Siglip",
    "Siglip2",
    "Speech2Text",
    "SpeechT5",
    "Splinter",
    "SqueezeBert",
    "T5",
    "Tapas",
    "Tipsv2",
    "Udop",
    "VideoPrism",
    "Vits",
    "Wav2Vec2CTC",
    "Wav2Vec2PhonemeCTC",
    "Whisper",
    "XGLM",
    "XLM",
    "XLMRoberta",
    "XLNet",
];

impl Class {
    /// The class for a directory's `tokenizer_config.json` and `config.json`; `byte_level`: whether the text of
    /// `tokenizer.json` speaks of a byte-level alphabet, which LLaMA's class does not have.
    ///
    /// Of some families transformers knows that published files name a wrong class.
    ///
    /// # Errors
    /// A class whose pipeline is not known here.
    pub(super) fn of(config: &Fields, model: &Fields, byte_level: bool) -> Result<Self> {
        let family = model.str("model_type")?.unwrap_or_default();
        let registered = match family {
            "gpt2" | "opt" | "phi" | "gptj" | "starcoder2" => Some(Self::Gpt2),
            "qwen2" | "qwen3" => Some(Self::Qwen2),
            "gemma2" | "gemma3" | "gemma3_text" => Some(Self::Gemma),
            "gpt_neox" => Some(Self::GptNeoX),
            "mistral" | "olmo2" | "olmo3" | "phi3" | "stablelm" => Some(Self::File),
            _ => None,
        };
        let own = config.str("tokenizer_class")?;
        let named = |fields: &Fields, class: &str| Self::named(fields, class.strip_suffix("Fast").unwrap_or(class));
        let stated = match (own.filter(|class| !class.is_empty()), model.str("tokenizer_class")?) {
            (Some(class), _) => Some((config, class)),
            (None, Some(class)) => Some((model, class)),
            (None, None) => None,
        };
        let code = config.get("auto_map").is_some_and(|map| map.is_array() || map.get("AutoTokenizer").is_some());
        if let (false, Some((fields, class))) = (code, stated) {
            let llama = class.strip_suffix("Fast").unwrap_or(class) == "LlamaTokenizer";
            return match registered {
                Some(Self::File) => Ok(Self::File),
                Some(class) if family == "qwen2" => Ok(class),
                _ if llama && byte_level => Ok(Self::File),
                _ => named(fields, class),
            };
        }
        // Code in the directory is not run: transformers takes a class of its own in its place, where it has one.
        let foreign = |class: &str| Self::by_name(class.strip_suffix("Fast").unwrap_or(class)).is_none();
        match own {
            _ if code && registered.is_none() && own.is_none_or(foreign) => {
                Err(config.error("auto_map", "no code of the directory's own (none is run)"))
            }
            Some(class) => named(config, class),
            None => match stated {
                Some((fields, class)) => named(fields, class),
                None => Ok(registered.unwrap_or(Self::File)),
            },
        }
    }

    fn by_name(class: &str) -> Option<Self> {
        match class {
            "LlamaTokenizer" => Some(Self::Llama),
            "CodeLlamaTokenizer" => Some(Self::CodeLlama),
            "GPT2Tokenizer" | "CodeGenTokenizer" => Some(Self::Gpt2),
            "Qwen2Tokenizer" => Some(Self::Qwen2),
            "GPTNeoXTokenizer" => Some(Self::GptNeoX),
            "GemmaTokenizer" => Some(Self::Gemma),
            "PreTrainedTokenizer" | "TokenizersBackend" | "BloomTokenizer" => Some(Self::File),
            _ => None,
        }
    }

    /// A class that nobody knows is the generic one.
    fn named(fields: &Fields, class: &str) -> Result<Self> {
        let foreign = class.strip_suffix("Tokenizer").is_some_and(|name| OTHERS.contains(&name));
        match Self::by_name(class) {
            None if foreign => {
                let known = "LlamaTokenizer, CodeLlamaTokenizer, GPT2Tokenizer, Qwen2Tokenizer, GPTNeoXTokenizer, \
                    GemmaTokenizer, or PreTrainedTokenizerFast (which takes the file as it is)";
                Err(fields.error("tokenizer_class", known))
            }
            class => Ok(class.unwrap_or(Self::File)),
        }
    }

    /// What a special token is where no file names it: outside, whether the class has an argument for it.
    pub(super) fn default(self, key: &str) -> Option<Option<&'static str>> {
        let end = "<|endoftext|>";
        match (self, key) {
            (Self::Llama | Self::CodeLlama, "bos_token") => Some(Some("<s>")),
            (Self::Llama | Self::CodeLlama, "eos_token") => Some(Some("</s>")),
            (Self::Llama | Self::CodeLlama | Self::Gemma, "unk_token") => Some(Some("<unk>")),
            (Self::Qwen2, "bos_token") | (Self::Gpt2, "pad_token") => Some(None),
            (Self::Qwen2, "eos_token" | "unk_token" | "pad_token") => Some(Some(end)),
            (Self::Gpt2 | Self::GptNeoX, "bos_token" | "eos_token" | "unk_token") => Some(Some(end)),
            (Self::GptNeoX, "pad_token") => Some(Some("<|padding|>")),
            (Self::Gemma, "bos_token") => Some(Some("<bos>")),
            (Self::Gemma, "eos_token") => Some(Some("<eos>")),
            (Self::Gemma, "pad_token") => Some(Some("<pad>")),
            (Self::Gemma, "mask_token") => Some(Some("<mask>")),
            _ => None,
        }
    }

    /// Puts the class's pipeline in place of the file's: of the file there remain vocabulary, merges and what is added
    /// around a text. `keys` are the tokenizer's settings, `unk` its unknown token.
    ///
    /// # Errors
    /// A setting has the wrong type.
    pub(super) fn rebuild(self, file: &mut Value, keys: &Fields, unk: Option<&str>) -> Result<()> {
        let prefix = keys.bool("add_prefix_space")?;
        // LLaMA's own class knows a newer and an older way to treat the text behind a special token.
        let legacy = self == Self::Llama && keys.bool("legacy")?.unwrap_or(false);
        let [normalizer, words, decoder] = match self {
            Self::File => return Ok(()),
            Self::Llama | Self::CodeLlama => metaspace(prefix.unwrap_or(true), legacy, self == Self::CodeLlama),
            Self::Gemma => gemma(),
            Self::Gpt2 => byte_level(Value::Null, prefix.unwrap_or(false)),
            Self::GptNeoX => byte_level(json!({"type": "NFC"}), prefix.unwrap_or(false)),
            Self::Qwen2 => qwen2(prefix.unwrap_or(false)),
        };
        file["normalizer"] = normalizer;
        file["pre_tokenizer"] = words;
        file["decoder"] = decoder;
        let bytes = matches!(self, Self::Llama | Self::CodeLlama | Self::Gemma);
        let affix = if bytes { Value::Null } else { json!("") };
        let mut model = json!({
            "type": "BPE", "dropout": null, "continuing_subword_prefix": affix, "end_of_word_suffix": affix,
            "unk_token": unk.filter(|_| matches!(self, Self::CodeLlama | Self::Gemma)),
            "fuse_unk": bytes, "byte_fallback": bytes, "ignore_merges": false,
        });
        model["vocab"] = vocabulary(file["model"]["vocab"].take());
        model["merges"] = match file["model"]["merges"].take() {
            Value::Null => json!([]),
            merges => merges,
        };
        file["model"] = model;
        Ok(())
    }
}

/// Whether Python takes a value for true.
pub(super) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A vocabulary as texts with ids. Unigram models list theirs with scores; the place is the id.
fn vocabulary(vocab: Value) -> Value {
    let Value::Array(list) = vocab else { return vocab };
    let text = |item: &Value| item.as_str().or_else(|| item.get(0)?.as_str()).unwrap_or_default().to_owned();
    Value::Object(list.iter().enumerate().map(|(id, item)| (text(item), json!(id))).collect::<Map<_, _>>())
}

/// How transformers' Qwen2 tokenizer cuts a text into words.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn bytes(prefix: bool, regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex})
}

fn split(pattern: Value, behavior: &str) -> Value {
    json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": false})
}

/// Text as bytes, words as GPT-2 cuts them.
fn byte_level(normalizer: Value, prefix: bool) -> [Value; 3] {
    [normalizer, bytes(prefix, true), bytes(true, true)]
}

/// Characters are composed, digits taken one by one.
fn qwen2(prefix: bool) -> [Value; 3] {
    let words = split(json!({"Regex": QWEN2_WORDS}), "Isolated");
    let both = json!({"type": "Sequence", "pretokenizers": [words, bytes(prefix, false)]});
    [json!({"type": "NFC"}), both, bytes(true, true)]
}

fn decoders(strip: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

/// Spaces become ▁, one is put before the text (before every part between special tokens with `legacy`), unknown
/// characters become bytes.
fn metaspace(prefix: bool, legacy: bool, always_strip: bool) -> [Value; 3] {
    let scheme = match (prefix, legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let words = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    [Value::Null, words, decoders(prefix || always_strip)]
}

/// Spaces become ▁, and none is put before a text.
fn gemma() -> [Value; 3] {
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    [spaces, split(json!({"String": " "}), "MergedWithPrevious"), decoders(false)]
}

/// The words that transformers' `fix_mistral_regex` cuts.
const MISTRAL_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way to cut words with the pattern of Mistral's newer tokenizers at its head.
pub(super) fn with_mistral_words(words: Value) -> Value {
    let first = split(json!({"Regex": MISTRAL_WORDS}), "Isolated");
    let rest = match words["type"].as_str() {
        Some("Sequence") => words["pretokenizers"].as_array().map_or(Vec::new(), |parts| parts[1..].to_vec()),
        Some("Metaspace") => vec![bytes(false, false)],
        _ => vec![words],
    };
    let parts = [vec![first], rest].concat();
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// Whether transformers corrects the words of a directory whose settings ask for it: beside a `config.json` of a Mistral
/// or of no family, from before its version 5.
pub(super) fn corrects_mistral(model: &Fields) -> Result<bool> {
    let before = model.str("transformers_version")?.is_none_or(|version| {
        let release = version.trim_end_matches(|c: char| c.is_ascii_digit());
        version.split('.').next().and_then(|major| major.parse::<u64>().ok()).is_some_and(|major| major < 5)
            || version.starts_with("5.0.0") && release.ends_with(|c: char| c.is_ascii_alphabetic())
    });
    let family = model.str("model_type")?;
    Ok(before && family.is_none_or(|f| ["mistral", "mistral3", "voxtral", "ministral", "pixtral"].contains(&f)))
}
