//! Templates, data sets, demonstrations, prompts as tokens, metrics.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use llamaprobe::formats::tokenizer::Tokenizer;
use llamaprobe::task::demonstrations::sample;
use llamaprobe::task::metrics::score;
use llamaprobe::task::prompts::{Prompts, TrainingExample, common_prefix};
use llamaprobe::task::{Example, Task, Template};

use crate::support;

fn built_in(name: &str) -> Task {
    name.parse().expect("a built-in task")
}

fn example(input: &str, output: &str) -> Example {
    Example::new(input, output)
}

fn examples(count: usize) -> Vec<Example> {
    (0..count).map(|i| example(&format!("text {i}"), "positive")).collect()
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("writes");
    path
}

#[test]
fn sentiment_template_is_the_contract() {
    let template = built_in("sst2").template().clone();
    let film = example("a fine film", "positive");
    assert_eq!(template.query(&film), "Review: a fine film\nSentiment:");
    assert_eq!(template.demonstration(&film), "Review: a fine film\nSentiment: positive\n\n");
    assert_eq!(template.answer(&film.output), " positive");
}

#[test]
fn a_template_value_overrides_what_it_names() {
    let default = built_in("sst2").template().clone();
    let json = Template::parse(r#"{"query": "{input} =>", "answer": " {output};\n"}"#, &default).expect("JSON");
    assert_eq!(json.demonstration(&example("x", "y")), "x => y;\n");
    assert_eq!(json.answer("y"), " y;", "only trailing white space is a separator");
    let yaml = Template::parse("answer: \" {{{output}}} \"", &default).expect("YAML");
    assert_eq!(yaml.demonstration(&example("{output}", "{input}")), "Review: {output}\nSentiment: {{input}} ");
    let back: Template = serde_json::from_str(&serde_json::to_string(&json).expect("writes")).expect("reads");
    assert_eq!(back, json);
}

#[test]
fn a_bad_template_is_an_error_that_says_why() {
    let default = built_in("sst2").template().clone();
    for (value, says) in [
        ("query: no place", "with 0"),
        ("answer: \"{output} {output}\"", "with 2"),
        ("query: \"{input} {output}\"", "{output}"),
        ("query: \"{input\"", "single {"),
        ("query: \"{input} }\"", "single }"),
        ("answer: \"{input}\"", "{input}"),
        ("anwser: \"{output}\"", "anwser"),
        ("just text", "template"),
        ("{", "template"),
    ] {
        let error = Template::parse(value, &default).expect_err(value).to_string();
        assert!(error.contains(says), "{value}: {error}");
    }
    assert!(serde_json::from_str::<Template>(r#"{"query": "{input}", "answer": "none"}"#).is_err());
}

#[test]
fn demonstrations_are_a_seeded_draw_without_replacement() {
    let pool = examples(50);
    let queries = pool[10..20].to_vec();
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let drawn = sample(&pool, &queries, 7, seed).expect("enough");
        assert_eq!(drawn, sample(&pool, &queries, 7, seed).expect("enough"), "the same seed, the same draw");
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 7, "no example twice");
        assert!(drawn.iter().all(|i| !(10..20).contains(i)), "seed {seed} shows a query: {drawn:?}");
        seen.extend(drawn);
    }
    assert_eq!(seen.len(), 40, "every other example is drawn some time");
    assert_eq!(sample(&pool, &queries, 40, 1).expect("all that are left").len(), 40);
    let error = sample(&pool, &queries, 41, 1).expect_err("too many").to_string();
    assert_eq!(error, "demonstrations: expected at most 40, found 41, of 50 examples of which 10 are queries");
    // A query that stands in the pool as another row is no demonstration either.
    let other_rows = [examples(3), examples(3)].concat();
    assert!(sample(&other_rows, &queries[..0], 6, 0).is_ok());
    assert!(sample(&other_rows, &other_rows[..1], 5, 0).is_err());
}

#[test]
fn draws_are_uniform() {
    // 2000 draws of 1 in 10: each 200 times, SD 13.4. Six of these are never passed by chance.
    let pool = examples(10);
    let mut counts = [0i32; 10];
    (0..2000).for_each(|seed| counts[sample(&pool, &[], 1, seed).expect("enough")[0]] += 1);
    assert!(counts.iter().all(|c| (c - 200).abs() < 81), "{counts:?}");
}

#[test]
fn scores_compare_whole_answers() {
    let log_probs = vec![vec![-1.0, -2.0], vec![-5.0, -4.0], vec![-3.0, -3.0], vec![-0.5, -0.1]];
    let sums = vec![vec![1.0; 2]; 4];
    let scores = score(&log_probs, &sums, &[0, 1, 0, 0], true);
    assert_eq!(scores.accuracy, Some(0.75), "of equal answers the first is the model's");
    assert_eq!(scores.log_prob, (-1.0 - 4.0 - 3.0 - 0.5) / 4.0);
    assert_eq!(score(&log_probs, &sums, &[1, 0, 1, 1], true).accuracy, Some(0.25));
    // By lengths others are the best, and the gold answer's log-probability is the sum all the same.
    let by_length =
        score(&log_probs, &[vec![1.0, 4.0], vec![2.0, 1.0], vec![2.0, 1.0], vec![1.0, 1.0]], &[1, 0, 0, 1], true);
    assert_eq!((by_length.accuracy, by_length.log_prob), (Some(1.0), (-2.0 - 5.0 - 3.0 - 0.1) / 4.0));
    assert_eq!(score(&[vec![-7.0]], &[vec![1.0]], &[0], false).accuracy, None);
}

#[test]
fn sentiment_files_are_read_strictly() {
    let dir = support::temp();
    let load = |text: &str| built_in("sst2").load(&[write(dir.path(), "x.tsv", text)]).map(|data| data.examples);
    let read = load("label\tid\tsentence\n1\ta\t fine \n0\tb\tbad\n").expect("columns by name");
    assert_eq!(read, vec![example("fine", "positive"), example("bad", "negative")]);
    for (text, says) in [
        ("sentence\n", "header: expected label"),
        ("", "header"),
        ("sentence\tlabel\nfine\n", "x.tsv:2: fields: expected 2"),
        ("sentence\tlabel\nfine\t1\nfine\t2\n", "x.tsv:3: label: expected 0 or 1, found \"2\""),
        ("sentence\tlabel\n \t1\n", "x.tsv:2: sentence: expected a text, found nothing"),
    ] {
        let error = load(text).expect_err(text).to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(built_in("sst2").load(&[]).is_err());
    assert!(built_in("sst2").load(&[dir.path().join("missing")]).is_err());
}

#[test]
fn aligned_files_must_be_aligned() {
    let dir = support::temp();
    let english = write(dir.path(), "a.en", "One.\nTwo.\n");
    let czech = write(dir.path(), "a.cs", "Jedna.\nDva.\n");
    let short = write(dir.path(), "b.cs", "Jedna.\n");
    let empty = write(dir.path(), "c.cs", "Jedna.\n\n");
    let read = built_in("en-cs").load(&[english.clone(), czech]).expect("aligned").examples;
    assert_eq!(read, vec![example("One.", "Jedna."), example("Two.", "Dva.")]);
    let error = built_in("en-cs").load(&[english.clone(), short]).expect_err("a line less").to_string();
    assert!(error.contains("lines: expected 2") && error.contains("found 1"), "{error}");
    let error = built_in("en-cs").load(&[english.clone(), empty]).expect_err("an empty line").to_string();
    assert!(error.contains("c.cs:2"), "{error}");
    assert!(built_in("en-cs").load(&[english]).is_err());
}

#[test]
fn real_data_is_read_whole() {
    let Some(shared) = support::shared() else { return };
    let sst2 = |name: &str| built_in("sst2").load(&[shared.join("data/sst2").join(name)]).expect("reads").examples;
    assert_eq!((sst2("train.tsv").len(), sst2("dev.tsv").len()), (6735, 436));
    let encs = built_in("en-cs")
        .load(&["en", "cs"].map(|l| shared.join("data/encs/pud.".to_string() + l)))
        .expect("reads")
        .examples;
    assert_eq!(encs.len(), 1000);
    assert!(encs[0].output.starts_with("„V tomto procesu"));
}

/// For every tokenizer at hand: what the prompts give is the tokenisation of the whole text, and the answer's tokens
/// are those that cover it.
#[test]
fn prompts_are_whole_tokenisations() {
    let (labels, czech) = (["negative", "positive"], ["příliš žluťoučký kůň", "úpěl"]);
    let golden = support::golden("tokenizers");
    let mut tokenizers: Vec<_> =
        ["llama", "llama2", "gpt2", "opt", "qwen2", "bloom", "llama3"].map(|name| golden.join(name)).into();
    if let Some(shared) = support::shared() {
        let full_size =
            ["models/stories260K", "models/babyllama105", "tokenizers/llama2", "tokenizers/gpt2", "tokenizers/opt"];
        tokenizers.extend(full_size.map(|name| shared.join(name)));
    }
    tokenizers.push(golden.join("characters"));
    for path in tokenizers {
        let name = path.display();
        let tokenizer = Tokenizer::load(&path).expect("loads");
        // A vocabulary of characters has no letters but English ones.
        let english = tokenizer.vocab_size() < 200;
        let (task, outputs) = if english { (built_in("sst2"), labels) } else { (built_in("en-cs"), czech) };
        let template = task.template();
        let prompts = Prompts::new(&tokenizer, template);
        let whole = |text: &str| tokenizer.encode(text, true).expect("encodes").ids;
        let demonstration = template.demonstration(&example("naïve ,  but 'tis fine \t!", "positive"));
        for before in ["", &demonstration] {
            let text = before.to_string() + &template.query(&example("well-conceived", "positive"));
            let prompt = prompts.prompt(&text, &outputs).expect("tokens");
            assert_eq!(prompt.token_ids, whole(&text), "{name}");
            for (answer, output) in prompt.answers.iter().zip(outputs) {
                let ids = whole(&format!("{text} {output}"));
                assert_eq!(answer.after(&prompt.token_ids), ids, "{name}");
                let learnt = tokenizer.decode(&ids[ids.len() - answer.scored..], true).expect("decodes");
                assert_eq!(learnt.trim_start(), output, "{name}");
                let kept = tokenizer.decode(&ids[..ids.len() - answer.scored], true).expect("decodes");
                assert_eq!(kept, tokenizer.decode(&prompt.token_ids, true).expect("decodes"), "{name}");
                let example = prompts.training_example(&text, output).expect("tokens");
                assert_eq!(example.input_ids, ids, "{name}");
                assert_eq!(example.scored(), Some(answer.scored), "{name}");
            }
        }
    }
}

/// A tokenizer of single characters that has one longer token, across the seam of query and answer.
fn seam_tokenizer(dir: &Path) -> Tokenizer {
    let mut vocab: Vec<String> = (32u8..127).map(|c| (c as char).to_string()).collect();
    vocab.extend(["\n".to_string(), ": ".to_string()]);
    let vocab: serde_json::Map<_, _> = vocab.into_iter().enumerate().map(|(i, t)| (t, i.into())).collect();
    let model = serde_json::json!({"type": "BPE", "vocab": vocab, "merges": [[":", " "]], "unk_token": null,
        "dropout": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false});
    let file = serde_json::json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Fuse"}, "model": model});
    Tokenizer::load(write(dir, "tokenizer.json", &file.to_string())).expect("loads")
}

#[test]
fn a_token_across_the_seam_belongs_to_the_answer() {
    let dir = support::temp();
    let tokenizer = seam_tokenizer(dir.path());
    let template = built_in("sst2").template().clone();
    let prompts = Prompts::new(&tokenizer, &template);
    let text = template.query(&example("ok", "positive"));
    let prompt = prompts.prompt(&text, &["positive"]).expect("tokens");
    let whole = tokenizer.encode("Review: ok\nSentiment: positive", true).expect("encodes").ids;
    let answer = &prompt.answers[0];
    assert_eq!(answer.replaces, 1, "the colon is gone");
    assert_eq!(answer.scored, 9, "colon-and-space, then eight letters");
    assert_eq!(answer.after(&prompt.token_ids), whole);
    assert_eq!(prompts.training_example(&text, "positive").expect("tokens").scored(), Some(9));
    // Nothing but the answer: no token is left to predict it from.
    let bare = Template::new("{input}", "{output}").expect("valid");
    let error = Prompts::new(&tokenizer, &bare).prompt("", &["x"]).expect_err("no prompt").to_string();
    assert!(error.contains("template"), "{error}");
    let error = Prompts::new(&tokenizer, &bare).prompt("x", &[""]).expect_err("no answer").to_string();
    assert!(error.contains("a token of the answer"), "{error}");
}

#[test]
fn training_examples_have_their_labels_at_the_end() {
    let example =
        |input_ids: &[u32], labels: &[i64]| TrainingExample { input_ids: input_ids.to_vec(), labels: labels.to_vec() };
    assert_eq!(example(&[5, 6, 7], &[-100, 6, 7]).scored(), Some(2));
    for labels in [&[-100, -100, -100][..], &[5, 6, 7], &[-100, 6, -100], &[-100, 6], &[-100, 6, 8], &[]] {
        assert_eq!(example(&[5, 6, 7], labels).scored(), None, "{labels:?}");
    }
    assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 4, 5]), 2);
    assert_eq!(common_prefix(&[], &[1]), 0);
}

/// A tokenizer of the golden files with a chat template.
fn chat_tokenizer(dir: &Path, name: &str, template: &str) -> Tokenizer {
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(support::golden("tokenizers").join(name).join(file), dir.join(file)).expect("copies");
    }
    Tokenizer::load(write(dir, "chat_template.jinja", template).parent().expect("a directory")).expect("loads")
}

/// Through templates of the forms of LLaMA-2's, LLaMA-3's and Qwen 3's, the text of a conversation is what one would write by hand.
#[test]
fn demonstrations_are_turns_of_a_conversation() {
    let inst = "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}\
                {% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}";
    let headers = "{{ '<s>' }}{% for m in messages %}{{ '[' + m.role + ']\\n\\n' + m.content | trim + '</s>' }}{% endfor %}\
                   {% if add_generation_prompt %}{{ '[assistant]\\n\\n' }}{% endif %}";
    // What an assistant says last has an empty thought before it, which earlier turns have not.
    let thoughts = "{% for m in messages %}{{ '<s>' + m.role + '\\n' }}{% if loop.last and m.role == 'assistant' %}\
                    {{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '</s>\\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}";
    let forms = [
        (
            inst,
            ["<s>[INST] a fine film? [/INST] yes </s><s>[INST] ", "dull? [/INST]"],
            ["<s>[INST] ", "dull? [/INST]"],
            " no",
        ),
        (
            headers,
            ["<s>[user]\n\na fine film?</s>[assistant]\n\nyes</s>[user]\n\n", "dull?</s>[assistant]\n\n"],
            ["<s>[user]\n\n", "dull?</s>[assistant]\n\n"],
            "no",
        ),
        (
            thoughts,
            ["<s>user\na fine film?</s>\n<s>assistant\nyes</s>\n<s>user\n", "dull?</s>\n<s>assistant\n"],
            ["<s>user\n", "dull?</s>\n<s>assistant\n"],
            "no",
        ),
    ];
    let plain = Template::new("{input}?", " {output}\n\n").expect("valid");
    let template = plain.clone().with_chat(true);
    assert_eq!((plain.stop(), template.stop()), (Some("\n"), None));
    for (chat, behind, alone, answer) in forms {
        let dir = support::temp();
        let tokenizer = chat_tokenizer(dir.path(), "llama2", chat);
        let prompts = Prompts::new(&tokenizer, &template);
        let ids = |text: &str| tokenizer.encode(text, false).expect("encodes").ids;
        let shown = [template.turn(&example(" a fine film", "yes"))];
        for (shown, expected) in [(&shown[..], behind), (&[], alone)] {
            let [before, query] = prompts.texts(shown, "dull? ").expect("renders");
            assert_eq!([before.as_str(), &query], expected, "{chat}");
            let (prompt, of_query) = prompts.prompt_behind(&before, &query, &["no", "yes"]).expect("tokens");
            let text = before.clone() + &query;
            assert_eq!(prompt.token_ids, ids(&text), "{chat}");
            assert_eq!(
                prompt.token_ids.iter().filter(|&&id| Some(id) == tokenizer.bos()).count(),
                text.matches("<s>").count()
            );
            assert_eq!(prompt.answers[0].after(&prompt.token_ids), ids(&(text.clone() + answer)), "{chat}");
            assert!(of_query < prompt.token_ids.len() && of_query >= ids(&query).len() - 1, "{chat}: {of_query}");
            let learnt = prompts.training_example(&text, "no").expect("tokens");
            assert_eq!(learnt.scored(), Some(prompt.answers[0].scored), "{chat}");
            assert_eq!(learnt.input_ids, ids(&(text + answer)), "{chat}");
        }
    }
}

/// What ends an answer is learned with it: what the template writes behind a turn, up to a token at which generation stops.
#[test]
fn the_end_of_an_answer_is_that_of_its_turn() {
    let template = Template::new("{input}?", " {output}\n\n").expect("valid").with_chat(true);
    let form = |end: &str| {
        format!("{{% for m in messages %}}{{{{ '[' + m.role + '] ' + m.content + '{end}' }}}}{{% endfor %}}")
    };
    // `<unk>` is no end of a sequence, but the model's configuration says that it stops there; a line end is no token that stops.
    for (end, learnt) in [(" </s>\\n", " </s>"), ("<unk> </s>", "<unk>"), ("\\n", "</s>")] {
        let dir = support::temp();
        write(dir.path(), "generation_config.json", r#"{"eos_token_id": [2, 0]}"#);
        let tokenizer = chat_tokenizer(dir.path(), "llama2", &form(end));
        let prompts = Prompts::new(&tokenizer, &template);
        let text = prompts.texts(&[], "dull?").expect("renders").concat();
        let ended = prompts.ended_example(&text, "no").expect("tokens");
        let whole = tokenizer.encode(&format!("{text}no{learnt}"), false).expect("encodes").ids;
        assert_eq!(ended.input_ids, whole, "{end:?}");
        let alone = prompts.training_example(&text, "no").expect("tokens");
        assert_eq!(
            ended.scored().zip(alone.scored()).map(|(all, alone)| all - alone),
            Some(whole.len() - alone.input_ids.len())
        );
        let plain = Template::new("{input}?", " {output}").expect("valid");
        let ended = Prompts::new(&tokenizer, &plain).ended_example("dull?", "no").expect("tokens");
        let eos = tokenizer.eos().expect("</s>");
        assert_eq!(ended.input_ids, [tokenizer.encode("dull? no", true).expect("encodes").ids, vec![eos]].concat());
        assert_eq!(ended.labels.last(), Some(&i64::from(eos)));
    }
}

#[test]
fn conversations_without_a_text_are_refused() {
    let (dir, other) = (support::temp(), support::temp());
    let template = Template::new("{input}", "{output}").expect("valid").with_chat(true);
    let texts = |tokenizer: &Tokenizer| {
        let error = Prompts::new(tokenizer, &template).texts(&[], "Dull").expect_err("no text");
        error.to_string()
    };
    let without = Tokenizer::load(support::golden("tokenizers").join("llama2")).expect("loads");
    assert!(texts(&without).contains("chat_template: expected a chat_template"), "{}", texts(&without));
    let lower = chat_tokenizer(dir.path(), "llama2", "{{ messages[-1].content | lower }}");
    assert!(texts(&lower).contains("writes what the user says last as it is"), "{}", texts(&lower));
    let silent = chat_tokenizer(other.path(), "llama2", "hello");
    assert!(texts(&silent).contains("writes what the user says last as it is"), "{}", texts(&silent));
}
