//! What a chat template is called with: the turns of a conversation, and what a row of data has beside them.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The names under which a message may have its reasoning; templates read the first, those of gpt-oss the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One turn of a conversation: an object of any fields with a role. The template decides which of them it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A turn of text; roles are "system", "user", "assistant" and what else the template knows.
    pub fn new(role: &str, content: &str) -> Self {
        let fields = [("role", role), ("content", content)];
        Self(fields.into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect())
    }

    /// A turn of these fields as `apply_chat_template` of transformers 5.24 hands it on: a field that is null is as
    /// one that is absent, and reasoning of any name is `reasoning_content` and `thinking`. None without a role.
    pub fn of(fields: Map<String, Value>) -> Option<Self> {
        fields.get("role")?.as_str().filter(|role| !role.is_empty())?;
        let fields: Map<_, _> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let Some(reasoning) = REASONING.iter().find_map(|key| fields.get(*key)).cloned() else {
            return Some(Self(fields));
        };
        let mut all = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
        all.extend(fields);
        all.insert("reasoning_content".to_owned(), reasoning);
        Some(Self(all))
    }

    /// Who speaks: `user`, `assistant`, `system`, `tool` or whatever the template knows; empty without a role.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// A field that is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }
}

/// What a template sees beside the messages, under the names of `apply_chat_template`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateInputs {
    /// A list of tools, JSON schemas.
    pub tools: Option<Value>,
    /// A list of documents.
    pub documents: Option<Value>,
    /// Further variables, such as `enable_thinking`; before special tokens of the same name.
    pub kwargs: Map<String, Value>,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// All that the template printed.
    pub text: String,
    /// Byte ranges of the text that the template marks as the assistant's (`{% generation %}`), in order; none where it
    /// has no such tags, empty where none of them was met.
    pub generated: Option<Vec<Range<usize>>>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As `_normalize_chat_messages` and `_alias_reasoning_fields` of transformers 5.24 do.
    #[test]
    fn templates_see_messages_as_in_transformers() {
        for (given, seen) in [
            (json!({"role": "user", "content": null}), r#"{"role":"user"}"#),
            (
                json!({"role": "assistant", "content": "a", "reasoning": "r"}),
                r#"{"thinking":"r","role":"assistant","content":"a","reasoning":"r","reasoning_content":"r"}"#,
            ),
            (
                json!({"role": "a", "reasoning_content": "r", "thinking": "t", "content": "a"}),
                r#"{"thinking":"t","role":"a","reasoning_content":"r","content":"a"}"#,
            ),
        ] {
            let Value::Object(fields) = given else { panic!("an object") };
            let message = Message::of(fields).expect("a role");
            assert_eq!(serde_json::to_string(&message).expect("JSON"), seen);
        }
    }
}
