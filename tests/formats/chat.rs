//! Chat templates: Jinja2's language, its limits, and what `generation` marks.

use std::path::Path;

use serde_json::Value;

use llamaprobe::formats::chat::{ChatTemplate, Message, Rendered, TemplateInputs};

fn talk() -> Vec<Message> {
    vec![Message::new("user", "Hi there"), Message::new("assistant", "Yo")]
}

fn marked(source: &str) -> llamaprobe::Result<Rendered> {
    ChatTemplate::new("x", source)?.render_marked(&talk(), &TemplateInputs::default(), false, &[("bos_token", "<s>")])
}

fn refusal(source: &str) -> String {
    marked(source).expect_err(source).to_string()
}

/// Every template of `golden/chat_templates.py` gives the text that Jinja2 3.1.6 with transformers 5.24 gives, marks
/// the same, and is refused where it is there.
#[test]
fn templates_give_what_jinja2_gives() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/chat_templates.json");
    let text = std::fs::read_to_string(path).expect("chat_templates.json");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).expect("a list");
    let (head, rows) = rows.split_first().expect("a head");
    let variables = head["variables"].as_str().expect("a text");
    let mut wrong = Vec::new();
    for row in rows {
        let template = row[0].as_str().expect("a template");
        let found = marked(&format!("{variables}{template}"));
        let same = match (row[1].as_str(), &found) {
            (None, found) => found.is_err(),
            (Some(_), Err(_)) => false,
            (Some(text), Ok(found)) => {
                let chars = |at: usize| found.text[..at].chars().count();
                let ranges = found.generated.iter().flatten().map(|r| [chars(r.start), chars(r.end)]);
                text == found.text && row[2] == serde_json::json!(ranges.collect::<Vec<_>>())
            }
        };
        if !same {
            wrong.push(format!("{template}: {found:?}, expected {}", row[1]));
        }
    }
    assert!(rows.len() > 400);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Conversations through the constructs of Gemma's, Qwen's, Phi's and OLMo's templates (`golden/family_chats.py`): the
/// text of transformers 5.24, or refused where it is there.
#[test]
fn templates_of_the_families_give_what_transformers_gives() {
    let golden: Value = serde_json::from_str(include_str!("../golden/family_chats.json")).expect("golden file");
    let rows = golden["rows"].as_array().expect("rows");
    assert!(rows.len() > 250);
    for row in rows {
        let source = golden["templates"][row[0].as_str().expect("a name")].as_str().expect("a template");
        let at = |list: &str, index: &Value| golden[list][index.as_u64().expect("an index") as usize].clone();
        let turns = at("conversations", &row[1]);
        let message = |turn: &Value| Message::of(turn.as_object().expect("an object").clone()).expect("a role");
        let messages: Vec<Message> = turns.as_array().expect("a list").iter().map(message).collect();
        let Value::Object(mut kwargs) = at("inputs", &row[2]) else { panic!("an object") };
        let prompt = kwargs.remove("add_generation_prompt").is_some();
        let inputs = TemplateInputs { tools: kwargs.remove("tools"), kwargs, ..TemplateInputs::default() };
        let template = ChatTemplate::new("x", source).expect("parses");
        let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let found = template.render_marked(&messages, &inputs, prompt, &specials).map(|made| made.text);
        assert_eq!(found.as_deref().ok(), row[3].as_str(), "{}: {turns}: {}: {found:?}", row[0], at("inputs", &row[2]));
    }
}

#[test]
fn generation_marks_the_bytes_of_its_block() {
    let source = "{% for m in messages %}<{{ m.role }}é>{% if m.role == 'assistant' %}\n  {% generation %}\n\
        {{ m.content }}!{% endgeneration %}\n{% endif %}{% endfor %}";
    let made = marked(source).expect("renders");
    assert_eq!(made.text, "<useré><assistanté>Yo!");
    let range = made.text.find("Yo").expect("there")..made.text.len();
    assert_eq!(made.generated, Some(vec![range]));
    assert_eq!(marked("{{ messages[0].content }}").expect("renders").generated, None, "no tags");
    let unmet = marked("{% if no %}{% generation %}x{% endgeneration %}{% endif %}").expect("renders");
    assert_eq!(unmet.generated, Some(Vec::new()), "tags that were not met");
}

/// transformers takes the place of such a block from what the whole text had before: other tokens than the block's.
#[test]
fn generation_out_of_place_is_refused_where_it_is_asked_for() {
    for source in [
        "{% macro f() %}a{% generation %}b{% endgeneration %}{% endmacro %}{{ f() }}",
        "{% set x %}a{% generation %}b{% endgeneration %}{% endset %}{{ x }}",
        "{% filter lower %}a{% generation %}b{% endgeneration %}{% endfilter %}",
        "a{% generation %}{% generation %}b{% endgeneration %}{% endgeneration %}",
    ] {
        assert!(refusal(source).contains("generation blocks that write to the text directly"), "{source}");
        let text = ChatTemplate::new("x", source).and_then(|template| template.render(&talk(), false, &[]));
        assert!(text.is_ok_and(|text| text.ends_with('b')), "{source}");
    }
}

/// What differs from Jinja2 is an error that names it.
#[test]
fn what_is_left_out_is_named() {
    for (source, name) in [
        ("{% block a %}{% endblock %}", "the statement block"),
        ("{% include 'a' %}", "the statement include"),
        ("{% autoescape true %}{% endautoescape %}", "the statement autoescape"),
        ("{{ 'a' | pprint }}", "the filter pprint"),
        ("{{ [1] | random }}", "the filter random"),
        ("{{ 'a' | wordwrap }}", "the filter wordwrap"),
        ("{{ 'a'.encode() }}", "the method encode"),
        ("{{ lipsum() }}", "the function lipsum"),
        ("{{ [1] | map('upper') }}", "printing a generator"),
        ("{{ 'a'.upper }}", "its address"),
        ("{{ 2 ** 127 }}", "an integer of more than 127 bits"),
        ("{{ '\\N{BULLET}' }}", "\\N in a text"),
        ("{{ 'a' is sameas 'a' }}", "the test sameas"),
    ] {
        let error = refusal(source);
        assert!(error.contains(name) && error.contains("not supported"), "{source}: {error}");
    }
}

#[test]
fn errors_say_the_line_and_what_jinja2_says() {
    for (source, expected) in [
        ("a\n\n{{ messages[0].nope.x }}", "chat_template, line 3: "),
        ("{{ messages[0].nope.x }}", "'dict object' has no attribute 'nope'"),
        ("{{ nope.x }}", "'nope' is undefined"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is forbidden"),
        ("{{ 1 < 'a' }}", "'<' not supported between instances of 'int' and 'str'"),
        ("{{ 1 | nope }}", "No filter named 'nope'"),
        ("{% if x %}", "expected elif or else or endif"),
        ("{{ raise_exception('two\nlines') }}", "two\\nlines"),
    ] {
        assert!(refusal(source).contains(expected), "{source}: {}", refusal(source));
    }
}

/// Memory, depth and time are bounded, whatever a template does; all of these would take more than there is.
#[test]
fn hostile_templates_end() {
    let grow = "{% set ns = namespace(x=START) %}{% for i in range(90000) %}{% set ns.x = STEP %}{% endfor %}{{ END }}";
    let grown =
        |start: &str, step: &str, end: &str| grow.replace("START", start).replace("STEP", step).replace("END", end);
    for source in [
        grown("'a'", "ns.x + ns.x", "1"),
        grown("'a'", "ns.x * 1000", "1"),
        grown("['a']", "ns.x + ns.x", "1"),
        grown("[]", "[ns.x]", "1"),
        grown("[]", "[ns.x, ns.x]", "ns.x"),
        grown("{}", "{'k': ns.x}", "1"),
        grown("[1, 2]", "[ns.x] | select", "1"),
        grown("''", "ns.x.upper", "1"),
        grown("'a'", "ns.x.join([ns.x, ns.x])", "1"),
        grown("'ab'", "ns.x.replace('a', ns.x)", "1"),
        grown("1", "ns.x * 1000", "1"),
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".into(),
        "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".into(),
        "{{ '%99999999s' % 1 }}".into(),
        "{{ '%*d' % (99999999, 1) }}".into(),
        "{{ 'a'.zfill(99999999) }}".into(),
        "{{ 'a'.ljust(99999999) }}".into(),
        "{{ '\t'.expandtabs(99999999) }}".into(),
        "{{ '{:.99999999f}'.format(1.5) }}".into(),
        "{{ [1] | tojson(indent=99999999) }}".into(),
        "{{ range(99999999) }}".into(),
    ] {
        refusal(&source);
    }
    // References in a circle, and long chains of them.
    for source in [
        grown("1", "ns", "1"),
        grown("none", "namespace(x=ns.x)", "1"),
        "{% for i in range(9) %}{% set ns = namespace() %}{% set ns.l = [loop] %}{{ loop.changed(loop) }}{% endfor %}"
            .into(),
        "{% set ns = namespace() %}{% for i in range(20000) %}{% set p = ns.m %}{% macro m() %}{{ p }}{% endmacro %}\
         {% set ns.m = m %}{% endfor %}"
            .into(),
        grown("1", "namespace(a=ns)", "1"),
    ] {
        marked(&source).expect(&source);
    }
}
