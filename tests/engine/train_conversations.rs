//! Which characters of a conversation are learnt. The whole texts are those of `apply_chat_template` of transformers
//! 5.24; of them an assistant's turn is what is behind the text that ends in the generation prompt.

use llamaprobe::formats::chat::{Message, TemplateInputs};
use llamaprobe::formats::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::support::{self, tiny_model::TinyModel};
use crate::train_examples::{PLAIN, one, read, texts, tokenizer};

fn turns(texts: &[(&str, &str)]) -> Value {
    texts.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

/// Demands the text of a row, and what of it is learnt.
fn check(template: &str, row: Value, whole: &str, learnt: &str) {
    let t = tokenizer(Some(template));
    let sequence = one(&t, row.clone(), PLAIN);
    assert_eq!(texts(&t, &sequence), (whole.to_owned(), learnt.to_owned()), "{row}");
}

/// As templates of R1's distillations: the generation prompt opens thoughts, which finished turns do not have.
const THINKING: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<U>' + m.content }}\
    {% else %}{{ '<A>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<A><think>\\n' }}{% endif %}";

#[test]
fn answers_behind_opened_thoughts_are_learnt() {
    let row = json!({"messages": turns(&[("user", "2+2?"), ("assistant", "<think>pairs</think>four")])});
    check(THINKING, row, "<s><U>2+2?<A>four</s>", "four</s>");
    let two = turns(&[("user", "2+2?"), ("assistant", "four"), ("user", "3+3?"), ("assistant", "six")]);
    let whole = "<s><U>2+2?<A>four</s><U>3+3?<A>six</s>";
    check(THINKING, json!({"messages": two}), whole, "four</s>six</s>");
    check(THINKING, json!({"messages": two, "loss_mask": [0, 1, 0, 0]}), whole, "four</s>");
    check(THINKING, json!({"messages": two, "loss_mask": [0, 0, 0, 1]}), whole, "six</s>");
}

/// As Qwen3's template: only what follows the last question has its thoughts.
const FORGETTING: &str = "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}\
    {% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}[{{ m.role }}]\
    {% if m.reasoning_content and loop.index0 > last.user %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}\
    {% endfor %}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

#[test]
fn turns_whose_thoughts_are_forgotten_later_are_found() {
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"b": [3, "x"], "a": null}}}]);
    let row = json!({"messages": [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": call},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "five", "thinking": "t"},
        {"role": "user", "content": "v"},
        {"role": "assistant", "content": "six", "reasoning": "x"},
    ]});
    let called = r#"<call>f {"b": [3, "x"], "a": null}</s>"#;
    let whole = format!(
        "[user]u</s>[assistant]{called}[tool]5</s>[assistant]five</s>[user]v</s>[assistant]<think>x</think>six</s>"
    );
    check(FORGETTING, row, &whole, &format!("{called}five</s><think>x</think>six</s>"));
}

/// As Mistral's template: the system's text is in the last question.
const MOVING: &str = "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}\
    {% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}\
    {% set users = turns | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}{% for m in turns %}\
    {% if m.role == 'user' %}[INST] {% if system and m == users[-1] %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]\
    {% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";

#[test]
fn turns_before_which_a_text_moves_are_found() {
    let row = json!({"system": "s", "messages": turns(&[
        ("user", "u"), ("assistant", "yes"), ("user", "v"), ("assistant", "no"), ("user", "w"), ("assistant", "yes"),
    ])});
    let whole = "<s>[INST] u[/INST] yes</s>[INST] v[/INST] no</s>[INST] s\n\nw[/INST] yes</s>";
    check(MOVING, row, whole, " yes</s> no</s> yes</s>");
}

#[test]
fn turns_end_where_the_template_closes_them() {
    let last = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\
        {% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let row = json!({"messages": turns(&[("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")])});
    check(last, row, "[user]u[assistant]a[user]v[assistant]b</s>", "ab</s>");
}

/// A template that asks for the first message renders nothing of none.
/// Where the template marks what is learnt, that is the mask of assistant tokens of transformers: here without the end.
const MARKED: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}\
    {% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}\
    {% if add_generation_prompt %}[assistant]{% endif %}";

#[test]
fn turns_that_the_template_marks_are_learnt_as_marked() {
    let two = turns(&[("user", "u"), ("assistant", "yes"), ("user", "v"), ("assistant", "no")]);
    let whole = "<s>[user]u</s>[assistant]yes</s>[user]v</s>[assistant]no</s>";
    check(MARKED, json!({"messages": two}), whole, "yesno");
    check(MARKED, json!({"messages": two, "loss_mask": [0, 0, 0, 1]}), whole, "no");
}

#[test]
fn first_turns_of_the_assistant_are_found() {
    let template = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{% for m in messages %}\
        [{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let row = json!({"conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "yo"}]});
    check(template, row, "[assistant]hi</s>[user]yo</s>", "hi</s>");
}

#[test]
fn templates_see_what_rows_have_beside_messages() {
    let template = "{{ tools | tojson }}{{ documents | tojson }}{{ mood }}{{ bos_token }}{% for m in messages %}\
        [{{ m.name or m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let messages = json!([{"role": "user", "content": "u", "name": "n"}, {"role": "assistant", "content": "a"}]);
    let row = json!({"messages": messages, "tools": "[{\"z\": 1, \"a\": 2}]", "documents": [{"text": "d"}],
        "chat_template_kwargs": {"mood": "good", "bos_token": "<unk>"}});
    check(template, row, r#"[{"z": 1, "a": 2}][{"text": "d"}]good<unk>[n]u[assistant]a"#, "a");
    check(template, json!({"messages": messages}), "nullnull<s>[n]u[assistant]a", "a");
}

#[test]
fn assistants_of_another_name_are_refused() {
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    for role in ["gpt", "model", "Assistant"] {
        let row = json!({"messages": turns(&[("user", "u"), (role, "yes")])});
        let error = read(&tokenizer(Some(plain)), &[row], PLAIN).expect_err(role).to_string();
        assert!(
            error.contains(&format!("messages[1].role: expected assistant, whose turns are learnt, found {role}")),
            "{error}"
        );
    }
}

#[test]
fn conversations_that_a_template_refuses_are_named_by_row() {
    let t = tokenizer(Some("{{ raise_exception('roles must alternate') }}"));
    let good = json!({"text": "a text"});
    let row = json!({"messages": turns(&[("user", "u"), ("assistant", "a")])});
    let error = read(&t, &[good, row], PLAIN).expect_err("refused").to_string();
    assert!(error.starts_with("data.jsonl:2: messages: ") && error.contains("roles must alternate"), "{error}");
}

/// As `get_chat_template` of transformers 5.24 chooses among named templates: by whether there are tools, be it none.
#[test]
fn tools_have_a_template_of_their_own_where_there_is_one() {
    let dir = support::temp();
    TinyModel::default().write(dir.path());
    let file = dir.path().join("tokenizer_config.json");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["chat_template"] =
        json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
    std::fs::write(&file, config.to_string()).expect("writes");
    let rendered = |tools: Option<Value>| {
        let t = Tokenizer::load(dir.path()).expect("the tokenizer loads");
        let inputs = TemplateInputs { tools, ..TemplateInputs::default() };
        t.render_chat_marked(&[Message::new("user", "u")], &inputs, false).expect("renders").text
    };
    assert_eq!(rendered(None), "plain");
    assert_eq!(rendered(Some(json!([]))), "tools");
    let folder = dir.path().join("additional_chat_templates");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(dir.path().join("chat_template.jinja"), "file").expect("writes");
    assert_eq!((rendered(None), rendered(Some(json!([])))), ("file".to_owned(), "file".to_owned()));
    std::fs::write(folder.join("tool_use.jinja"), "file of tools").expect("writes");
    assert_eq!(rendered(Some(json!([]))), "file of tools");
}
