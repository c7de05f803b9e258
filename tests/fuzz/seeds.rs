//! Valid files of every kind, small, from the golden files, from the embedded model and from here.

use std::path::{Path, PathBuf};

use llamaprobe::arch::ModelConfig;
use llamaprobe::formats::adapter::{
    Adapter, EncoderShape, EncoderState, PromptAdapter, PromptConfig, PromptKind, Reparameterization,
};
use llamaprobe::formats::embedded;
use llamaprobe::formats::safetensors::{Dtype, Tensor, write};

use super::files::{File, file};
use crate::support::temp;

fn golden(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One file with every kind of dtype, and one of two shards with an index.
pub fn checkpoints() -> Vec<Vec<File>> {
    let dir = temp();
    let floats: Vec<u8> = (0..12).flat_map(|i| (i as f32 / 7.0).to_le_bytes()).collect();
    let bytes: Vec<u8> = (0..48).collect();
    let all = [
        Tensor { name: "model.embed_tokens.weight", dtype: Dtype::F32, shape: &[3, 4], data: &floats },
        Tensor { name: "f64", dtype: Dtype::F64, shape: &[2, 3], data: &[0; 48] },
        Tensor { name: "bf16", dtype: Dtype::BF16, shape: &[1, 24], data: &bytes },
        Tensor { name: "f16", dtype: Dtype::F16, shape: &[24], data: &bytes },
        Tensor { name: "i64", dtype: Dtype::I64, shape: &[6], data: &bytes },
        Tensor { name: "flags", dtype: Dtype::BOOL, shape: &[48], data: &bytes },
        Tensor { name: "f8", dtype: Dtype::F8_E4M3, shape: &[48], data: &bytes },
        Tensor { name: "empty", dtype: Dtype::F32, shape: &[0, 9], data: &[] },
        Tensor { name: "scalar", dtype: Dtype::F32, shape: &[], data: &floats[..4] },
    ];
    let made = |name: &str, tensors: &[Tensor]| {
        let path = dir.path().join(name);
        write(&path, tensors, &[("format", "pt")]).expect("writes");
        std::fs::read(path).expect("reads")
    };
    let index = r#"{"metadata": {"total_size": 144}, "weight_map":
        {"model.embed_tokens.weight": "1.safetensors", "f64": "1.safetensors", "bf16": "2.safetensors"}}"#;
    vec![
        vec![file("model.safetensors", made("model.safetensors", &all))],
        vec![
            file("model.safetensors.index.json", index),
            file("1.safetensors", made("1.safetensors", &all[..2])),
            file("2.safetensors", made("2.safetensors", &all[2..3])),
        ],
    ]
}

/// A control vector.
pub fn control_vectors() -> Vec<Vec<File>> {
    vec![vec![file("v.gguf", crate::control_vector::written())]]
}

/// Models of several architectures and types, and a tokenizer of each kind.
pub fn gguf_models() -> Vec<Vec<File>> {
    let names = ["llama-f16", "gemma2", "gpt2", "phi3", "llama-blocks", "tokenizers/llama", "tokenizers/qwen2"];
    names.into_iter().map(|name| vec![file("m.gguf", golden(&format!("gguf/{name}.gguf")))]).collect()
}

/// A file of edits with a control vector beside it.
pub fn edits() -> Vec<Vec<File>> {
    let text = "- {site: resid_post, layers: 0-1, positions: [0, -1], op: scale, scale: 0.5}\n\
        - {site: blocks.3.attn.hook_z, positions: last, op: zero}\n- {op: add, value: v.gguf, scale: 2}\n";
    vec![vec![file("edits.yaml", text), file("v.gguf", crate::control_vector::written())]]
}

/// The `config.json` of every family and of the variants of `configs.json`.
pub fn configs() -> Vec<Vec<File>> {
    let models = [
        "gpt2",
        "bloom",
        "opt",
        "opt-behind",
        "qwen2",
        "mistral-window",
        "gqa-llama3",
        "yarn",
        "dynamic",
        "qwen3-window",
        "gemma2",
        "gemma3",
        "gemma3-images",
        "olmo2",
        "olmo3",
        "neox",
        "phi3-long",
        "gptj",
    ];
    let mut all: Vec<_> = models.iter().map(|name| golden(&format!("model-{name}/config.json"))).collect();
    let listed: serde_json::Value = serde_json::from_slice(&golden("configs.json")).expect("golden file");
    all.extend(listed["cases"].as_array().expect("cases").iter().map(|case| case["config"].to_string().into_bytes()));
    all.into_iter().map(|config| vec![file("config.json", config)]).collect()
}

const BPE: &str = r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    "padding": null, "added_tokens": [
        {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": true, "normalized": true, "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"},
        {"type": "Replace", "pattern": {"Regex": " +"}, "content": "_"}, {"type": "NFC"}, {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "h": 5, "i": 6, "ab": 7, "_": 8, "hi": 9, "_hi": 10, "<0x41>": 11},
        "merges": [["a", "b"], ["h", "i"], ["_", "hi"]]}}"#;

const BYTE_LEVEL: &str = r#"{"version": "1.0", "truncation": null, "padding": {"strategy": {"Fixed": 4}, "direction": "Left",
        "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, "merges": ["a b"]}}"#;

const UNIGRAM: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": {"type": "Strip", "strip_left": true, "strip_right": true},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}, "post_processor": null,
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["<s>", -1.0], ["a", -2.5], ["▁a", -1.5], ["b", -3.0]], "byte_fallback": false}}"#;

const WORD_LEVEL: &str = r###"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": {"type": "BertProcessing", "sep": ["[S]", 1], "cls": ["[C]", 0]},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "model": {"type": "WordPiece", "unk_token": "[U]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"[C]": 0, "[S]": 1, "[U]": 2, "a": 3, "##b": 4}}}"###;

const TOKENIZER_CONFIG: &str = r#"{"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
    "unk_token": "<unk>", "additional_special_tokens": ["ab", {"content": "hi"}], "add_bos_token": true, "add_eos_token": false,
    "add_prefix_space": true, "legacy": false, "model_max_length": 4096,
    "chat_template": [{"name": "default", "template": "{% for m in messages %}{{ m.content }}{% endfor %}"}]}"#;

const GENERATION: &str = r#"{"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 0, "do_sample": true, "temperature": 0.6, "top_p": 0.9}"#;

/// Folders of tokenizers: of each kind of model, and of a vocabulary alone.
pub fn tokenizers() -> Vec<Vec<File>> {
    let plain = |text: &str| vec![file("tokenizer.json", text), file("config.json", r#"{"model_type": "qwen2"}"#)];
    let (_, learner) = embedded::files().into_iter().find(|(name, _)| *name == "tokenizer.json").expect("there");
    vec![
        vec![
            file("tokenizer.json", BPE),
            file("tokenizer_config.json", TOKENIZER_CONFIG),
            file("special_tokens_map.json", r#"{"unk_token": {"content": "<unk>"}, "pad_token": "</s>"}"#),
            file("generation_config.json", GENERATION),
        ],
        vec![
            file("vocab.json", r#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}"#),
            file("merges.txt", "#version: 0.2\na b\n"),
            file(
                "tokenizer_config.json",
                r#"{"bos_token": "<|endoftext|>", "add_bos_token": true, "add_eos_token": true}"#,
            ),
            file("config.json", r#"{"model_type": "gpt2", "eos_token_id": 3, "bos_token_id": 3}"#),
        ],
        plain(BPE),
        plain(BYTE_LEVEL),
        plain(UNIGRAM),
        plain(WORD_LEVEL),
        vec![file("tokenizer.json", learner), file("chat_template.jinja", TEMPLATES[0])],
    ]
}

/// What a model generates with; the tokenizer's reader takes the ends of a text from it.
pub fn generation_configs() -> Vec<Vec<File>> {
    let more = r#"{"_from_model_config": true, "eos_token_id": 2, "transformers_version": "4.51.0"}"#;
    [GENERATION, more].map(|text| vec![file("generation_config.json", text)]).into()
}

/// Templates in the manners of LLaMA 2, LLaMA 3, ChatML and Mistral.
const TEMPLATES: [&str; 4] = [
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
     {% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
     {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
     {% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
     {% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
     {% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = strftime_now(\"%d %b %Y\") %}\n{%- endif %}\n\
     {%- if tools is not none %}{{- 'Tools: ' }}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}\n\
     {%- for message in messages %}\n    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n\
     {%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n",
    "{% macro turn(m, last=false) %}{{ '<|im_start|>' ~ m.role ~ '\\n' }}{{ m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content }}{{ '<|im_end|>' }}{% endmacro %}\
     {% set ns = namespace(found=false, n=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' and not ns.found %}{% set ns.found = true %}{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}\
     {% for m in messages %}{{ turn(m, last=loop.last) }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}{{ users | length }}{{ users | map(attribute='content') | join(', ') | upper | replace('A', 'b') }}\
     {%- for m in messages if m.role in ['user', 'assistant'] %}{{ '%s: %s' | format(m.role, m.content) }}{{ m.content[:3] ~ (m.content | length) * 2 // 3 }}{%- if not loop.last %}{{ ', ' }}{% else %}{% break %}{% endif %}{%- endfor %}",
];

/// Chat templates.
pub fn templates() -> Vec<Vec<File>> {
    TEMPLATES.iter().map(|text| vec![file("chat_template.jinja", *text)]).collect()
}

/// The model that the adapters are for.
pub fn base() -> ModelConfig {
    let text = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 32}"#;
    ModelConfig::parse("config.json", text).expect("valid")
}

fn written(adapter: &Adapter) -> Vec<File> {
    let dir = temp();
    let dir = dir.path().join("adapter");
    adapter.write(&dir).expect("writes");
    let names = ["adapter_config.json", "adapter_model.safetensors", "prompt_encoder.safetensors"];
    let there = |name: &'static str| Some(file(name, std::fs::read(Path::new(&dir).join(name)).ok()?));
    names.into_iter().filter_map(there).collect()
}

/// Adapters: PEFT's own LoRA, and each kind of soft prompt, also with what it was made from.
pub fn adapters() -> Vec<Vec<File>> {
    let part = |name: &'static str| file(name, golden(&format!("peft_adapter/{name}")));
    let mut all = vec![vec![part("adapter_config.json"), part("adapter_model.safetensors")]];
    for kind in [PromptKind::PromptTuning, PromptKind::PTuning, PromptKind::PrefixTuning] {
        let config = PromptConfig::new(kind, 2, &base());
        let rows = vec![0.25; 2 * config.width()];
        let made_by =
            if kind == PromptKind::PrefixTuning { Reparameterization::Projection } else { Reparameterization::Mlp };
        let shape = EncoderShape::new(made_by, &config, 3);
        let params = vec![0.5; shape.len(2)];
        let encoder = Some(EncoderState { shape, params });
        for encoder in [None, encoder] {
            all.push(written(&Adapter::Prompt(PromptAdapter { config: config.clone(), rows: rows.clone(), encoder })));
        }
    }
    all
}

/// A file of `torch.save`.
pub fn torch_files() -> Vec<Vec<File>> {
    vec![vec![file("state.bin", golden("torch/state.bin"))]]
}

/// Examples in every form.
pub fn examples() -> Vec<Vec<File>> {
    let lines = [
        r#"{"text": "all of it", "id": 7}"#,
        r#"{"prompt": "a\n", "completion": " b"}"#,
        r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "é"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}"#,
        r#"{"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["q", "a"]]}"#,
        r#"{"demonstrations": ["x -> y\n"], "query": "z ->", "completion": " w"}"#,
        r#"{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}"#,
        r#"{"input_ids": [0, 1, 2], "attention_mask": [0, 1, 1], "loss_mask": [0, 0, 1], "position_ids": [0, 0, 1], "weight": 1}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, {"role": "assistant", "content": null, "thinking": "t", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}], "weight": 0}, {"role": "tool", "content": {"b": 2}}], "tools": "[{}]", "documents": [{"text": "d"}], "chat_template_kwargs": {"k": true}, "loss_mask": [0, 0, 0]}"#,
        r#"{"conversations": [{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}, {"from": "observation", "value": "5"}]}"#,
    ];
    let mut all: Vec<_> = lines.iter().map(|line| vec![file("data.jsonl", *line)]).collect();
    all.push(vec![file("data.jsonl", lines.join("\n"))]);
    all.push(vec![file("data.jsonl", format!("\u{FEFF}[{}]", lines.join(",\n")))]);
    all
}

/// The files of every task, each under its own name.
pub fn tasks() -> Vec<Vec<File>> {
    let dart = r#"[{"tripleset": [["A", "B", "C"], ["A", "D", "E"]], "annotations": [{"source": "x", "text": "A is B of C."}, {"text": "Two."}]}]"#;
    let totto = r#"{"table": [[{"value": "Year", "is_header": true, "column_span": 1, "row_span": 1}, {"value": "Show", "is_header": true, "column_span": 2, "row_span": 1}],
        [{"value": "2001", "is_header": false, "column_span": 1, "row_span": 1}, {"value": "Rent", "is_header": false, "column_span": 1, "row_span": 1}]],
        "highlighted_cells": [[1, 0], [1, 1]], "table_page_title": "P", "table_section_title": "S",
        "sentence_annotations": [{"original_sentence": "x", "final_sentence": "Rent was in 2001."}]}"#
        .replace('\n', " ");
    let logic = r#"[{"topic": "t", "table_header": ["a", "b"], "logic_str": "eq { count { all_rows } ; 3 } = true", "sent": "there are three ."}]"#;
    let spider = r#"[{"db_id": "d", "question": "How many?", "query": "SELECT count(*) FROM t AS x JOIN u ON x.a = u.b WHERE a > 'q' GROUP BY b"}]"#;
    let tables = r#"[{"db_id": "d", "table_names_original": ["t", "u"], "column_names_original": [[-1, "*"], [0, "a"], [1, "b"]]}]"#;
    let mtop = r#"{"question": "call mum", "logical_form": "[IN:CREATE_CALL [SL:CONTACT mum ] ]"}"#;
    vec![
        vec![file("dart.json", dart)],
        vec![file("totto.jsonl", totto)],
        vec![file("logic2text.json", logic)],
        vec![file("logic.txt", "eq { a ; b } = true\n"), file("text.txt", "a is b .\n")],
        vec![file("spider.json", spider), file("tables.json", tables)],
        vec![
            file("train.en", "How many?\n"),
            file("train.sql", "select count(*) from t where a = 1\n"),
            file("tables.json", tables),
        ],
        vec![file("mtop.jsonl", mtop)],
        vec![file(
            "mtop.txt",
            "7\tIN:CREATE_CALL\t5:8:SL:CONTACT\tcall mum\tcalling\ten_XX\t[IN:CREATE_CALL [SL:CONTACT mum ] ]\t{}\n",
        )],
        vec![file("sst2.tsv", "sentence\tlabel\na fine film\t1\nno\t0\n")],
        vec![file("a.en", "one\ntwo\n"), file("a.cs", "jedna\ndvě\n")],
        task("labels: [bad, good]\ninput: text\noutput: label\n", "a.csv", "text,label\n\"a, \"\"b\"\"\",1\nc,bad\n"),
        task("metric: f1\noutput: o.p\n", "a.jsonl", "{\"input\": \"a\", \"o\": {\"p\": [\"b\", \"c\"]}}\n"),
        task(
            "choices: c\n",
            "a.json",
            r#"[{"input": "a", "output": 1, "c": ["1", "0"]}, {"input": "b", "output": "x", "c": ["x", "y"]}]"#,
        ),
        task(
            "choices: [A, B]\ntemplate: {query: \"{input} {A} {B} =\", answer: \" {output}\\n\"}\n",
            "a.tsv",
            "input\toutput\tA\tB\n\"a\tb\"\tB\tx\ty\n",
        ),
        vec![file(
            "task.yaml",
            "name: t\nmetric: rouge_l\nrows:\n  - {input: hot, output: cold}\n  - {input: 1, output: [a, b]}\n",
        )],
    ]
}

/// A task's file and its data.
fn task(keys: &str, name: &'static str, data: &str) -> Vec<File> {
    vec![file("task.yaml", format!("name: t\ntrain: {name}\ntest: [{name}]\n{keys}")), file(name, data)]
}

/// Configurations of the command line.
pub fn yaml() -> Vec<Vec<File>> {
    let capture = "model: nowhere\nsites: [resid_post, z]\nlayers: 0-3\ninput: a.jsonl\nout: out\ndtype: f32\nadd_special: true\n";
    let train = "model: nowhere\ndata: [a.jsonl, b.jsonl]\nlearning_rate: 1e-4\nrank: 8\nalpha: 16\ntarget_modules:\n  - q_proj\n  - v_proj\n\
        epochs: 3\nseed: 7\n";
    let template = "query: \"Text: {input}\\nLabel:\"\nanswer: ' {output}\n\n  '\n";
    let block = "query: |\n  {{x}} {input}\n  next\nanswer: &a >-\n   {output}\nmore: [*a, *a]\n";
    [capture, train, template, block].map(|text| vec![file("config.yaml", text)]).into()
}

/// A cache with one model.
pub fn hub() -> Vec<Vec<File>> {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    vec![vec![
        file("models--org--name/refs/main", format!("{commit}\n")),
        file("models--org--name/snapshots/0123456789abcdef0123456789abcdef01234567/config.json", "{}"),
    ]]
}
