//! Strings at which a generated text is over.

use super::tokenizer::Tokenizer;
use crate::Result;

/// The strings, and what tokens are as text.
pub struct Stops<'a> {
    tokenizer: &'a Tokenizer,
    strings: Vec<String>,
}

impl<'a> Stops<'a> {
    /// Of any number of strings; empty ones are none.
    pub fn new<S: Into<String>>(tokenizer: &'a Tokenizer, strings: impl IntoIterator<Item = S>) -> Self {
        let strings = strings.into_iter().map(Into::into).filter(|s: &String| !s.is_empty()).collect();
        Self { tokenizer, strings }
    }

    /// Whether the text of some tokens has one of the strings. (What cannot be decoded has none; [`Stops::text`]
    /// reports it.)
    pub fn reached(&self, ids: &[u32]) -> bool {
        !self.strings.is_empty() && self.tokenizer.decode(ids, true).is_ok_and(|text| self.first(&text).is_some())
    }

    /// The text of some tokens up to the first of the strings.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn text(&self, ids: &[u32]) -> Result<String> {
        let mut text = self.tokenizer.decode(ids, true)?;
        text.truncate(self.first(&text).unwrap_or(text.len()));
        Ok(text)
    }

    fn first(&self, text: &str) -> Option<usize> {
        self.strings.iter().filter_map(|stop| text.find(stop.as_str())).min()
    }
}
