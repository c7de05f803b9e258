//! Rows of messages and of token ids: what of them is read, and how.

use std::path::Path;

use llamaprobe::formats::chat::Message;
use llamaprobe::formats::jsonl::{Conversation, Example};
use serde_json::{Value, json};

fn conversation(row: Value) -> Conversation {
    match Example::parse(Path::new("x.jsonl:1"), &row.to_string()) {
        Ok(Example::Messages(conversation)) => *conversation,
        other => panic!("{row}: {other:?}"),
    }
}

/// The fields of the messages, in order, as the template is handed them.
fn fields(conversation: &Conversation) -> String {
    serde_json::to_string(&conversation.messages).expect("JSON")
}

#[test]
fn messages_keep_every_field_and_their_order() {
    let calls = json!([{"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"b": 1, "a": [2.0]}}}]);
    let row = json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "s"}], "name": "n"},
        {"content": null, "role": "assistant", "tool_calls": calls, "refusal": null},
        {"role": "tool", "tool_call_id": "c1", "content": {"x": 1}},
        {"role": "ipython", "content": ""},
    ]});
    let read = conversation(row);
    assert_eq!(
        fields(&read),
        format!(
            r#"[{{"role":"developer","content":[{{"type":"text","text":"s"}}],"name":"n"}},{{"role":"assistant","tool_calls":{calls}}},{{"role":"tool","tool_call_id":"c1","content":{{"x":1}}}},{{"role":"ipython","content":""}}]"#
        )
    );
    assert_eq!(read.messages[1].role(), "assistant");
    assert_eq!(read.messages[1].get("content"), None);
}

/// As `_alias_reasoning_fields` of transformers 5.24 fills them.
#[test]
fn thoughts_have_the_names_that_templates_read() {
    for (given, seen) in [
        (json!({"reasoning_content": "r"}), r#""thinking":"r","role":"assistant","reasoning_content":"r""#),
        (json!({"thinking": "t"}), r#""thinking":"t","role":"assistant","reasoning_content":"t""#),
        (json!({"reasoning": "x"}), r#""thinking":"x","role":"assistant","reasoning":"x","reasoning_content":"x""#),
        (
            json!({"reasoning_content": null, "reasoning": "x", "thinking": "t"}),
            r#""thinking":"t","role":"assistant","reasoning":"x","reasoning_content":"t""#,
        ),
        (json!({"thinking": null, "content": "a"}), r#""role":"assistant","content":"a""#),
    ] {
        let mut turn = json!({"role": "assistant"});
        turn.as_object_mut().expect("an object").extend(given.as_object().expect("an object").clone());
        assert_eq!(fields(&conversation(json!({"messages": [turn]}))), format!("[{{{seen}}}]"), "{given}");
    }
}

#[test]
fn turns_of_both_forms_are_read_under_both_keys() {
    let expected = vec![Message::new("user", "hi"), Message::new("assistant", "yo")];
    for turns in [
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]),
        json!([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]),
        json!([{"from": "user", "value": "hi", "weight": null}, {"from": "chatgpt", "value": "yo", "content": null}]),
    ] {
        for key in ["messages", "conversations"] {
            assert_eq!(conversation(json!({key: turns})).messages, expected, "{key}: {turns}");
        }
    }
    let row = json!({"conversations": [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}"},
        {"from": "observation", "value": "5", "name": "f"},
    ]});
    assert_eq!(
        fields(&conversation(row)),
        r#"[{"role":"user","content":"hi"},{"role":"assistant","content":"","tool_calls":[{"type":"function","function":{"name":"f","arguments":{"a":1}}}]},{"role":"tool","content":"5","name":"f"}]"#
    );
}

#[test]
fn prompts_of_messages_are_given() {
    let (user, assistant) = (json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": "yo"}));
    let read = conversation(json!({"prompt": [user, assistant, user], "completion": [assistant], "system": "s"}));
    assert_eq!((read.given, read.messages.len()), (4, 5));
    assert_eq!(read.messages[0], Message::new("system", "s"));
    assert_eq!(read.name(4), "completion[0]");
    assert_eq!(read.learnt(Path::new("x")).expect("marks"), [false, false, false, false, true]);
}

#[test]
fn rows_hand_the_template_what_it_may_read() {
    let turns = json!([{"role": "user", "content": "hi"}]);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for given in [tools.clone(), tools.to_string().into()] {
        let row = json!({"messages": turns, "tools": given, "documents": [{"text": "d"}],
            "chat_template_kwargs": {"enable_thinking": false}, "category": "c"});
        let inputs = conversation(row).inputs;
        assert_eq!(inputs.tools, Some(tools.clone()));
        assert_eq!(inputs.documents, Some(json!([{"text": "d"}])));
        assert_eq!(Value::Object(inputs.kwargs), json!({"enable_thinking": false}));
    }
    for none in [json!(null), json!(""), json!("null")] {
        assert_eq!(conversation(json!({"messages": turns, "tools": none})).inputs.tools, None);
    }
    assert_eq!(conversation(json!({"messages": turns, "tools": []})).inputs.tools, Some(json!([])));
}

#[test]
fn system_beside_the_turns_is_the_first_of_them() {
    let turns = |system: &str| json!([{"from": "system", "value": system}, {"from": "human", "value": "hi"}]);
    let alone = json!([{"from": "human", "value": "hi"}]);
    let expected = vec![Message::new("system", "s"), Message::new("user", "hi")];
    assert_eq!(conversation(json!({"conversations": alone, "system": "s"})).messages, expected);
    assert_eq!(conversation(json!({"conversations": turns("s"), "system": "s"})).messages, expected);
    assert_eq!(conversation(json!({"conversations": turns("s"), "system": ""})).messages, expected);
    assert_eq!(conversation(json!({"conversations": turns("s"), "system_prompt": "s"})).messages, expected);
}

#[test]
fn marks_say_which_turns_are_learnt() {
    let learnt = |turns: Value, mask: Value| {
        let read = conversation(json!({"messages": turns, "loss_mask": mask}));
        read.learnt(Path::new("x.jsonl:1")).map_err(|e| e.to_string())
    };
    let turn = |role: &str, mark: Value| {
        let mut turn = json!({"role": role, "content": "a"});
        turn.as_object_mut().expect("an object").extend(mark.as_object().expect("an object").clone());
        turn
    };
    for key in ["weight", "train", "training", "trainable", "loss_mask", "loss"] {
        for (no, yes) in [(json!(0), json!(1)), (json!(false), json!(true)), (json!(0.0), json!(1.0))] {
            let turns = json!([
                turn("user", json!({key: no})),
                turn("assistant", json!({key: no})),
                turn("assistant", json!({key: yes})),
                turn("assistant", json!({key: null})),
            ]);
            assert_eq!(learnt(turns, Value::Null), Ok(vec![false, false, true, true]), "{key}");
        }
    }
    let (user, assistant) = (turn("user", json!({})), turn("assistant", json!({})));
    let turns = json!([user, assistant, user, assistant]);
    assert_eq!(learnt(turns.clone(), json!([0, 1, 0, false])), Ok(vec![false, true, false, false]));
    assert!(learnt(turns.clone(), json!([1, 1, 0, 0])).expect_err("a user").starts_with("x.jsonl:1: loss_mask[0]: "));
    assert!(learnt(turns, json!([0, 0.5, 0, 0])).expect_err("a half").starts_with("x.jsonl:1: loss_mask[1]: "));
    // A factor of 1 changes nothing, wherever it stands.
    assert_eq!(learnt(json!([turn("user", json!({"weight": 1}))]), Value::Null), Ok(vec![false]));
}

#[test]
fn padding_and_masks_of_ids_are_applied() {
    let ids = |row: Value| match Example::parse(Path::new("x.jsonl:1"), &row.to_string()).expect("a row") {
        Example::Ids { input_ids, labels } => (input_ids, labels),
        other => panic!("{other:?}"),
    };
    let left = json!({"input_ids": [0, 0, 5, 9], "attention_mask": [0, 0, 1, 1], "position_ids": [0, 0, 0, 1],
        "token_type_ids": [0, 0, 0, 0]});
    assert_eq!(ids(left), (vec![5, 9], None));
    let both = json!({"input_ids": [0, 5, 9, 3, 0], "attention_mask": [0, 1, true, 1.0, false],
        "labels": [-100, -100, 9, 3, -100]});
    assert_eq!(ids(both), (vec![5, 9, 3], Some(vec![None, Some(9), Some(3)])));
    for key in ["loss_mask", "completion_mask", "assistant_masks", "assistant_mask"] {
        let row = json!({"input_ids": [5, 9, 3], key: [0, 1, 0]});
        assert_eq!(ids(row), (vec![5, 9, 3], Some(vec![None, Some(9), None])), "{key}");
        let row = json!({"input_ids": [5, 9, 3], "labels": [-100, 7, 8], key: [1, 1, 0]});
        assert_eq!(ids(row), (vec![5, 9, 3], Some(vec![None, Some(7), None])), "{key}");
    }
    let harmless = json!({"input_ids": [5], "label": 1, "special_tokens_mask": [0], "length": 1, "seq_lengths": [1]});
    assert_eq!(ids(harmless), (vec![5], None));
}
