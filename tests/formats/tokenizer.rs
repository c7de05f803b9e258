use std::path::PathBuf;

use llamaprobe::formats::chat::{ChatTemplate, Message};
use llamaprobe::formats::gguf::{self, Gguf};
use llamaprobe::formats::safetensors::Loading;
use llamaprobe::formats::tokenizer::{Encoding, Tokenizer};
use serde_json::Value;

use crate::support::{golden, shared, temp};

/// Tokenizers with what transformers makes of some texts with them.
struct Goldens {
    /// The folder of the tokenizers.
    root: PathBuf,
    /// `texts`, `tokenizers` and `directories`.
    expected: Value,
}

impl Goldens {
    /// The small ones of this repository (`tests/golden/small_tokenizers.py`).
    fn small() -> Self {
        let root = golden("tokenizers");
        let text = std::fs::read_to_string(root.join("ids.json")).expect("the golden file");
        Self { root, expected: serde_json::from_str(&text).expect("JSON") }
    }

    /// The small ones and, where they are, those of real models (`tests/golden/tokenizer_ids.py`).
    fn all() -> Vec<Self> {
        let mut all = vec![Self::small()];
        if let Some(root) = shared() {
            let text = std::fs::read_to_string(golden("tokenizer_ids.json")).expect("the golden file");
            all.push(Self { root, expected: serde_json::from_str(&text).expect("JSON") });
        }
        all
    }

    /// Every tokenizer with its name.
    fn tokenizers(&self) -> impl Iterator<Item = (&str, Tokenizer)> {
        let names = self.expected["tokenizers"].as_object().expect("tokenizers").keys();
        names.map(|name| (name.as_str(), Tokenizer::load(self.root.join(name)).expect(name)))
    }

    /// Every tokenizer with which no character of a text is lost.
    fn lossless(&self) -> impl Iterator<Item = (&str, Tokenizer)> {
        self.tokenizers().filter(|(name, _)| !["characters", "models/babyllama105"].contains(name))
    }

    fn texts(&self) -> Vec<&str> {
        strings(&self.expected["texts"])
    }
}

fn strings(v: &Value) -> Vec<&str> {
    v.as_array().expect("a list").iter().map(|s| s.as_str().expect("a string")).collect()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().expect("a list").iter().map(|n| n.as_u64().expect("an id") as u32).collect()
}

/// The ids of transformers but for the second of two BOS, which is left out here.
fn one_bos(tok: &Tokenizer, ids: &Value) -> Vec<u32> {
    let mut ids = self::ids(ids);
    if tok.bos().is_some_and(|bos| ids.starts_with(&[bos, bos])) {
        ids.remove(0);
    }
    ids
}

/// Every id and every decoded text; the one difference is the guard against two BOS.
#[test]
fn tokenizers_of_gguf_files_give_the_ids_of_the_originals() {
    let small = Goldens::small();
    for name in ["llama", "gemma", "gpt2", "qwen2", "llama3"] {
        let file = Gguf::open(golden(&format!("gguf/tokenizers/{name}.gguf")), Loading::Mapped).expect(name);
        let found = gguf::tokenizer::tokenizer(&file).expect(name);
        let original = Tokenizer::load(small.root.join(name)).expect(name);
        assert_eq!(found.vocab_size(), original.vocab_size(), "{name}");
        for text in small.texts() {
            for special in [false, true] {
                let [a, b] = [&found, &original].map(|tok| tok.encode(text, special).expect(name));
                assert_eq!(a.ids, b.ids, "{name}: {text:?}");
                assert_eq!(a.offsets, b.offsets, "{name}: {text:?}");
                let [a, b] = [&found, &original].map(|tok| tok.decode(&a.ids, special).expect(name));
                assert_eq!(a, b, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn ids_are_those_of_transformers() {
    for goldens in Goldens::all() {
        for (name, tok) in goldens.tokenizers() {
            let expected = &goldens.expected["tokenizers"][name];
            for (i, text) in goldens.texts().iter().enumerate() {
                let plain = tok.encode(text, false).expect("encodes");
                assert_eq!(plain.ids, ids(&expected["plain"][i]), "{name}: plain ids of {text:?}");
                let full = tok.encode(text, true).expect("encodes");
                assert_eq!(full.ids, one_bos(&tok, &expected["ids"][i]), "{name}: ids of {text:?}");
                assert_eq!(full.ids.len(), full.offsets.len());
                let decoded = tok.decode(&ids(&expected["ids"][i]), false).expect("decodes");
                assert_eq!(decoded, expected["decoded"][i].as_str().expect("text"), "{name}: text of {text:?}");
            }
        }
    }
}

/// What `tokenizer_class` and the model's family make of the same files is transformers' choice.
#[test]
fn pipeline_follows_class_and_family_as_in_transformers() {
    for goldens in Goldens::all() {
        for case in goldens.expected["directories"].as_array().expect("directories") {
            let dir = temp();
            let files = std::fs::read_dir(goldens.root.join(case["files"].as_str().expect("files"))).expect("lists");
            for file in files.map(|file| file.expect("a file")) {
                std::fs::copy(file.path(), dir.path().join(file.file_name())).expect("copies");
            }
            let put = |name: &str, value: Value| {
                let path = dir.path().join(name);
                // What is copied from a read-only folder is read-only.
                let _ = std::fs::remove_file(&path);
                std::fs::write(path, value.to_string()).expect("writes");
            };
            put("tokenizer_config.json", case["tokenizer_config"].clone());
            put("config.json", serde_json::json!({"model_type": case["model_type"]}));
            let tok = Tokenizer::load(dir.path()).expect("loads");
            let special = serde_json::json!([tok.bos(), tok.eos()]);
            assert_eq!(special, case["special"], "{} of {}", case["files"], case["model_type"]);
            for (text, want) in goldens.texts().iter().zip(case["ids"].as_array().expect("ids")) {
                let found = tok.encode(text, true).expect("encodes").ids;
                assert_eq!(found, one_bos(&tok, want), "{} of {}: {text:?}", case["files"], case["model_type"]);
            }
        }
    }
}

/// As a `GenerationConfig` of transformers 5.24: of the file where there is one, else of the model's configuration, and of
/// its text part where the outer one is silent.
#[test]
fn ends_of_texts_and_images_are_those_of_generation() {
    let dir = temp();
    for file in std::fs::read_dir(golden("tokenizers/gemma")).expect("lists").map(|file| file.expect("a file")) {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).expect("copies");
    }
    let stops = |model: Value, generation: Option<Value>| {
        let put = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).expect("writes");
        put("config.json", &model);
        if let Some(value) = generation {
            put("generation_config.json", &value);
        }
        let stops = Tokenizer::load(dir.path()).expect("loads").stops().to_vec();
        let _ = std::fs::remove_file(dir.path().join("generation_config.json"));
        stops
    };
    let inner = serde_json::json!({"model_type": "gemma3", "text_config": {"eos_token_id": [6, 5]}});
    let outer = serde_json::json!({"model_type": "gemma3", "eos_token_id": [1, 6], "text_config": {"eos_token_id": 5}});
    assert_eq!(stops(inner.clone(), None), [6, 5, 1]);
    assert_eq!(stops(outer.clone(), None), [1, 6]);
    assert_eq!(stops(outer.clone(), Some(serde_json::json!({"eos_token_id": [1, 6, 9]}))), [1, 6, 9]);
    assert_eq!(stops(inner, Some(serde_json::json!({}))), [1], "a file that is silent counts too");
    assert_eq!(stops(outer, Some(serde_json::json!({"eos_token_id": 6}))), [6, 1]);
}

/// Offsets count characters of the whole text, and the tokens of a text without special tokens cover it.
#[test]
fn offsets_are_characters_of_the_whole_text() {
    for goldens in Goldens::all() {
        for (name, tok) in goldens.lossless() {
            // Qwen2 and GPT-NeoX compose characters, which leaves a combining mark to no token.
            let composed = |text: &&str| ["qwen2", "neox"].contains(&name) && text.contains('\u{301}');
            for text in goldens.texts().into_iter().filter(|text| !composed(text)) {
                let encoding = tok.encode(text, false).expect("encodes");
                let chars = text.chars().count();
                let mut at = 0;
                for &(start, end) in &encoding.offsets {
                    assert!(start <= at && at <= end && end <= chars, "{name} {text:?}: {:?}", encoding.offsets);
                    at = end;
                }
                assert_eq!(at, chars, "{name} {text:?}: {:?}", encoding.offsets);
            }
        }
    }
}

#[test]
fn a_straddling_token_belongs_to_the_later_piece() {
    let encoding = Encoding { ids: vec![9; 6], offsets: vec![(0, 0), (0, 2), (2, 5), (5, 5), (5, 7), (0, 0)] };
    assert_eq!(encoding.pieces(&[]), [0, 0, 0, 0, 0, 0]);
    assert_eq!(encoding.pieces(&[2]), [0, 0, 1, 1, 1, 1]);
    assert_eq!(encoding.pieces(&[3]), [0, 0, 1, 1, 1, 1]);
    assert_eq!(encoding.pieces(&[4, 5]), [0, 0, 1, 1, 2, 2]);
    assert_eq!(encoding.pieces(&[5, 5]), [0, 0, 0, 0, 2, 2], "an empty piece has no tokens");
    assert_eq!(encoding.pieces(&[7]), [0; 6]);
}

/// The ids of pieces are the ids of the whole text, wherever the cuts are; the answer's tokens decode to the answer.
#[test]
fn pieces_are_never_tokenised_apart() {
    let text = "Review: naïve 漢字 but fun .\nSentiment: positive\n\n";
    for goldens in Goldens::all() {
        for (name, tok) in goldens.lossless() {
            let whole = tok.encode(text, true).expect("encodes");
            for (cut, _) in text.char_indices() {
                let (a, b) = text.split_at(cut);
                let (encoding, owner) = tok.encode_pieces(&[a, b], true).expect("encodes");
                assert_eq!(encoding, whole, "{name} cut at {cut}");
                let seam = a.chars().count();
                for (&(_, end), &piece) in encoding.offsets.iter().zip(&owner) {
                    assert!(end == 0 || piece == usize::from(end > seam), "{name} cut at {cut}: {owner:?}");
                }
            }
            let prompt = "Review: good film .\nSentiment:";
            let (encoding, owner) = tok.encode_pieces(&[prompt, " positive"], true).expect("encodes");
            let first = owner.iter().position(|&p| p == 1).expect("answer tokens");
            let answer = tok.decode(&encoding.ids[first..], false).expect("decodes");
            assert_eq!(answer.trim(), "positive", "{name}");
        }
    }
}

/// A vocabulary without some characters drops them, and the offsets after them do not count them.
#[test]
fn pieces_survive_dropped_characters() {
    let full_size = shared().map(|shared| shared.join("models/babyllama105"));
    for path in [Some(golden("tokenizers/characters")), full_size].into_iter().flatten() {
        let tok = Tokenizer::load(path).expect("loads");
        let pieces = ["Review: \u{6f22}\u{5b57} good\u{6f22} .\u{6f22} Sentiment:", " positive", " and so on"];
        let ids = tok.encode(&pieces.concat(), false).expect("encodes").ids;
        assert!(ids.len() < pieces.concat().chars().count(), "this vocabulary has every character");
        let (encoding, owner) = tok.encode_pieces(&pieces, true).expect("encodes");
        let mine: Vec<u32> = encoding.ids.iter().zip(&owner).filter(|(_, o)| **o == 1).map(|(id, _)| *id).collect();
        assert_eq!(tok.decode(&mine, false).expect("decodes").trim(), "positive");
    }
}

#[test]
fn streamed_text_is_the_decoded_text() {
    let text = "Lily's naïve 漢字 😀 fox,  twice\n";
    for goldens in Goldens::all() {
        for (name, tok) in goldens.tokenizers() {
            let ids = tok.encode(text, true).expect("encodes").ids;
            let mut stream = tok.stream();
            let mut streamed = String::new();
            for &id in &ids {
                let piece = stream.push(id).expect("decodes");
                assert!(!piece.contains('\u{FFFD}'), "{name}: half a character in {piece:?}");
                streamed += &piece;
            }
            streamed += &stream.finish().expect("decodes");
            assert_eq!(streamed, tok.decode(&ids, true).expect("decodes"), "{name}");
        }
    }
}

#[test]
fn special_tokens_come_from_the_configuration() {
    let llama = ["llama", "llama2", "characters"].map(|name| golden("tokenizers").join(name));
    let full_size =
        shared().map(|s| ["models/stories260K", "models/babyllama105", "tokenizers/llama2"].map(|n| s.join(n)));
    for path in llama.into_iter().chain(full_size.into_iter().flatten()) {
        let tok = Tokenizer::load(&path).expect("loads");
        assert_eq!((tok.bos(), tok.eos()), (Some(1), Some(2)), "{}", path.display());
        assert_eq!(tok.stops(), [2], "{}", path.display());
    }
    let small = |name: &str| Tokenizer::load(golden("tokenizers").join(name)).expect(name);
    let gpt2 = small("gpt2");
    assert_eq!((gpt2.bos(), gpt2.eos(), gpt2.vocab_size()), (None, None, 601));
    let (qwen2, end) = (small("qwen2"), 600);
    assert_eq!((qwen2.bos(), qwen2.eos(), qwen2.id("<|endoftext|>")), (None, Some(end), Some(end)));
    let llama3 = small("llama3");
    assert_eq!((llama3.bos(), llama3.eos(), llama3.vocab_size()), (Some(601), Some(602), 603));
}

/// The flags for BOS and EOS count beside a vocabulary alone, as for transformers; stops from generation_config.
#[test]
fn bos_and_eos_flags_of_the_configuration_are_followed() {
    let dir = temp();
    let path = |name: &str| dir.path().join(name);
    for file in ["vocab.json", "merges.txt"] {
        std::fs::copy(golden("tokenizers/opt").join(file), path(file)).expect("copies");
    }
    let config = r#"{"bos_token": "<|endoftext|>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
        "add_eos_token": true, "model_max_length": 4}"#;
    std::fs::write(path("tokenizer_config.json"), config).expect("writes");
    std::fs::write(path("generation_config.json"), r#"{"eos_token_id": [7, 2]}"#).expect("writes");
    let tok = Tokenizer::load(dir.path()).expect("loads");
    let goldens = Goldens::small();
    let hello = goldens.texts().iter().position(|text| *text == "Hello world").expect("the text");
    let plain = ids(&goldens.expected["tokenizers"]["opt"]["plain"][hello]);
    assert_eq!(tok.encode("Hello world", true).expect("encodes").ids, [&[4], &plain[..], &[2]].concat());
    assert_eq!(tok.encode("Hello world", false).expect("encodes").ids, plain);
    assert_eq!(tok.stops(), [7, 2]);
    // `model_max_length` cuts nothing off.
    assert!(tok.encode("Hello world ".repeat(50).as_str(), false).expect("encodes").ids.len() > 100);
}

fn chat(template: &str) -> (tempfile::TempDir, Tokenizer) {
    let dir = temp();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden("tokenizers/llama").join(name), dir.path().join(name)).expect("copies");
    }
    std::fs::write(dir.path().join("chat_template.jinja"), template).expect("writes");
    let tok = Tokenizer::load(dir.path()).expect("loads");
    (dir, tok)
}

#[test]
fn chat_templates_render_as_in_jinja() {
    let message = |role: &str, content: &str| Message::new(role, content);
    let talk = [message("system", "be <kind>"), message("user", " hi "), message("assistant", "yo")];
    let template = "{{- bos_token }}\n{%- if not tools is defined %}{%- set tools = none %}{%- endif %}\n\
        {%- for m in messages %}\n    {%- if m.role == 'system' %}\n        {%- continue %}\n    {%- endif %}\n\
        {{- '<|' + m['role'] + '|>' + m.content.strip().upper() + eos_token }}\n{%- endfor %}\n\
        {%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\n{{- messages[0] | tojson }}";
    let (_dir, tok) = chat(template);
    let text = tok.render_chat(&talk, false).expect("renders");
    assert_eq!(text, r#"<s><|user|>HI</s><|assistant|>YO</s>{"role": "system", "content": "be <kind>"}"#);
    let open = tok.render_chat(&talk[..2], true).expect("renders");
    assert_eq!(open, r#"<s><|user|>HI</s><|assistant|>{"role": "system", "content": "be <kind>"}"#);
    let once = tok.encode(&text, true).expect("encodes");
    assert_eq!(once.ids.iter().filter(|&&id| id == 1).count(), 1, "one BOS, from the template: {:?}", once.ids);
    let (_dir, tok) = chat("{{ raise_exception('roles must alternate') }}");
    let error = tok.render_chat(&talk, false).expect_err("refuses").to_string();
    assert!(error.contains("chat_template.jinja") && error.contains("roles must alternate"), "{error}");
}

/// A template that would not end, or would take an hour, is one error that says so.
#[test]
fn chat_templates_run_out_of_fuel() {
    let template = ChatTemplate::new(
        "chat_template.jinja",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% set k = i + j %}{% endfor %}{% endfor %}",
    );
    let error = template.expect("compiles").render(&[], false, &[]).expect_err("never ends").to_string();
    assert!(error.contains("chat_template.jinja") && error.contains("5000000 instructions"), "{error}");
    for (source, limit) in [
        ("{% for i in range(2000) %}{{ 'a' * 100000 }}{% endfor %}", "67108864 bytes"),
        ("{{ 'a\nb' | indent(18446744073709551615) }}", "at most 100000"),
        ("{{ 'a\nb' | indent(width=4000000000) }}", "at most 100000"),
        ("{{ [1, 2] | batch(9223372036854775807) }}", "at most 100000"),
        ("{{ [1, 2] | slice(100001) }}", "at most 100000"),
        ("{{ '%99999999999999d' | format(1) }}", "at most 100000"),
        ("{{ '{:>9999999999}'.format(1) }}", "at most 100000"),
    ] {
        let error = ChatTemplate::new("x", source).expect("compiles").render(&[], false, &[]).expect_err(source);
        assert!(error.to_string().contains(limit), "{source}: {error}");
    }
    let widths =
        "{{ 'a\nb' | indent(2) }}{{ [1, 2] | batch(1) | list | length }}{{ '%3d' | format(1) }}{{ '{:>3}'.format(1) }}";
    assert_eq!(
        ChatTemplate::new("x", widths).expect("compiles").render(&[], false, &[]).expect("renders"),
        "a\n  b2  1  1"
    );
    let talk = vec![Message::new("user", "a few words"); 20_000];
    let template = ChatTemplate::new("x", "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}");
    let text = template.expect("compiles").render(&talk, false, &[]).expect("a long talk renders");
    assert_eq!(text.len(), 20_000 * "[user] a few words\n".len());
}

/// What would overflow the stack of a compiler that calls itself is compiled, or refused.
#[test]
fn chat_templates_nest_as_deep_as_they_are_long() {
    let signs = format!("{{{{ {}1 }}}}", "-".repeat(200_000));
    let sums = format!("{{{{ {}1 }}}}", "1+".repeat(100_000));
    let nots = format!("{{{{ {}1 }}}}", "not ".repeat(50_000));
    let chain = format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000));
    for source in [signs, sums, nots, chain, "(".repeat(200_000), "{{ 1 }}".repeat(1 << 17)] {
        let rendered = ChatTemplate::new("x", &source).and_then(|template| template.render(&[], false, &[]));
        assert!(rendered.is_ok() || rendered.is_err_and(|error| !error.to_string().contains('\n')));
    }
}

/// Run by the test below in a process of its own.
#[test]
#[ignore = "needs the time zone that the other test sets"]
fn strftime_in_another_zone() {
    let template = ChatTemplate::new("x", "{{ strftime_now('%s %Y-%m-%d %H:%M') }}").expect("compiles");
    println!("rendered {}.", template.render(&[], false, &[]).expect("renders"));
}

/// As in transformers, the time is the local one.
#[test]
fn strftime_now_gives_local_time() {
    for (zone, hours) in [("ABC-14", 14), ("ABC+9", -9), ("UTC", 0)] {
        let mut test = std::process::Command::new(std::env::current_exe().expect("this program"));
        test.args(["--exact", "tokenizer::strftime_in_another_zone", "--ignored", "--nocapture"]).env("TZ", zone);
        let out = String::from_utf8(test.output().expect("runs").stdout).expect("text");
        let rendered = out.split("rendered ").nth(1).and_then(|rest| rest.split('.').next()).expect(&out);
        let (seconds, local) = rendered.split_once(' ').expect("two parts");
        let shifted = jiff::Timestamp::from_second(seconds.parse::<i64>().expect("seconds") + hours * 3600);
        let expected = shifted.expect("in range").strftime("%Y-%m-%d %H:%M").to_string();
        assert_eq!(local, expected, "in zone {zone}");
    }
}
