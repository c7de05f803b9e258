//! Tokens that are added to a vocabulary: how files write them, and how the vocabulary takes them.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tokenizers::normalizer::NormalizedString;
use tokenizers::{AddedToken, Normalizer, Tokenizer as Inner};

/// A token as a file writes it: its text alone, or with properties.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    pub content: String,
    /// Its properties; none where the text stands alone. `normalized` may be left open.
    flags: Option<Flags>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Flags {
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: Option<bool>,
    special: bool,
}

impl Written {
    /// A token's text alone.
    pub(super) fn bare(content: impl Into<String>) -> Self {
        Self { content: content.into(), flags: None }
    }

    /// A token of `added_tokens.json`.
    pub(super) fn listed(content: &str, special: bool) -> Self {
        let flags = Flags { normalized: Some(!special), special, ..Flags::default() };
        Self { content: content.into(), flags: Some(flags) }
    }

    /// A text, or an object with `content` and properties. None if it is neither.
    pub(super) fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::bare(text)),
            Value::Object(token) => Self::object(token),
            _ => None,
        }
    }

    fn object(token: &Map<String, Value>) -> Option<Self> {
        let content = token.get("content")?.as_str()?.to_owned();
        let flag = |key: &str| token.get(key).map_or(Some(None), |value| value.as_bool().map(Some));
        let flags = Flags {
            single_word: flag("single_word")?.unwrap_or(false),
            lstrip: flag("lstrip")?.unwrap_or(false),
            rstrip: flag("rstrip")?.unwrap_or(false),
            normalized: flag("normalized")?,
            special: flag("special")?.unwrap_or(false),
        };
        Some(Self { content, flags: Some(flags) })
    }

    /// The same, a special token.
    pub(super) fn special(mut self) -> Self {
        if let Some(flags) = &mut self.flags {
            flags.special = true;
        }
        self
    }

    /// Whether two are one token to Python: a text and an object never are.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.flags.is_some() == other.flags.is_some() && self.token() == other.token()
    }

    /// The token for the vocabulary; a text alone is a special one. What is special is not normalized, if nothing is
    /// said of it.
    pub(super) fn token(&self) -> AddedToken {
        let flags = self.flags.unwrap_or(Flags { special: true, ..Flags::default() });
        AddedToken {
            content: self.content.clone(),
            single_word: flags.single_word,
            lstrip: flags.lstrip,
            rstrip: flags.rstrip,
            normalized: flags.normalized.unwrap_or(!flags.special),
            special: flags.special,
        }
    }
}

/// Adds tokens as transformers does, list after list; gives the texts by which normalized tokens are decoded, by id.
///
/// What is said last of a token counts, but a token once special stays so. The vocabulary itself keeps what it was told
/// first, so it is told the last word from the beginning. Ids are found list by list: the token's own, else the next
/// one behind the vocabulary and what was added before.
pub(super) fn add(inner: &mut Inner, lists: &[Vec<AddedToken>]) -> tokenizers::Result<HashMap<u32, String>> {
    let mut last: HashMap<&str, AddedToken> = HashMap::new();
    for token in lists.iter().flatten() {
        let special = token.special || last.get(token.content.as_str()).is_some_and(|before| before.special);
        last.insert(&token.content, AddedToken { special, ..token.clone() });
    }
    for list in lists {
        let list: Vec<AddedToken> = list.iter().map(|token| last[token.content.as_str()].clone()).collect();
        inner.add_tokens(&list);
    }
    let mut shown = HashMap::new();
    if let Some(normalizer) = inner.get_normalizer() {
        for token in lists.iter().flatten().filter(|token| token.normalized) {
            let mut text = NormalizedString::from(token.content.as_str());
            normalizer.normalize(&mut text)?;
            if let Some(id) = inner.token_to_id(&token.content).filter(|_| text.get() != token.content) {
                shown.insert(id, text.get().to_owned());
            }
        }
    }
    Ok(shown)
}
