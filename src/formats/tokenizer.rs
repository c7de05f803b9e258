//! Text to token ids and back, as `AutoTokenizer` of transformers 5 does it.
//!
//! Truncation and padding stored in a file are switched off, as they are there for a call that asks for neither. One
//! deliberate difference: a text that begins with the BOS token's own text does not get a second one
//! ([`Tokenizer::encode`]).
//!
//! Where a prompt is put together from pieces (instruction, demonstration, query, answer), the *whole* text is
//! tokenised and each token is assigned to a piece by its character offsets: tokenising pieces apart gives other ids
//! at the seams. See [`Encoding::pieces`] for the rule.

mod added;
mod class;
mod cleaned;
mod infill;
pub mod keys;
mod load;
mod settings;
mod train;

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;
use tokenizers::{Decoder, Tokenizer as Inner};

pub use train::{BOS, EOS, train};

use infill::Infill;

use super::chat::{ChatTemplate, Message, Rendered, TemplateInputs};
use crate::{Error, Result};

/// Token ids of a text, with the characters that each comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids `[N]`, special tokens among them.
    pub ids: Vec<u32>,
    /// For each token, start and end in characters (not bytes) of the whole text. Added special tokens are empty.
    pub offsets: Vec<(usize, usize)>,
}

impl Encoding {
    /// The piece of each token, `[ids.len()]`, when the text is cut at `seams`: ascending positions in characters,
    /// each the first character of the next piece.
    ///
    /// A token belongs to the piece that its last character is in. So a token that straddles a seam belongs to the
    /// later piece: an answer owns every token with a character of it, and no part of an answer is ever given away
    /// in its prompt. A token without characters (an added BOS or EOS) belongs to the piece of the token before it,
    /// the first to piece 0. Pieces never decrease along the tokens.
    pub fn pieces(&self, seams: &[usize]) -> Vec<usize> {
        debug_assert!(seams.is_sorted(), "seams out of order: {seams:?}");
        let mut last = 0;
        let piece = |&(_, end): &(usize, usize)| {
            if end > 0 {
                last = last.max(seams.partition_point(|&s| s < end));
            }
            last
        };
        self.offsets.iter().map(piece).collect()
    }
}

/// A tokenizer with the special tokens, stops and chat template of its model directory.
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
    bos: Option<u32>,
    eos: Option<u32>,
    stops: Vec<u32>,
    /// Texts of the special tokens, as template variables.
    specials: Vec<(String, String)>,
    /// What added tokens are to the decoder where that is not their text, by id.
    shown: HashMap<u32, String>,
    /// Whether decoded text is cleaned of spaces before punctuation.
    clean: bool,
    infill: Option<Infill>,
    chat: Option<ChatTemplate>,
    /// The template of conversations with tools, where they have their own.
    tool_chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// The file the vocabulary came from.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence, as the tokenizer has it; training appends this one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens at which generation stops: of `generation_config.json`, else of `config.json`, and [`Self::eos`].
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// The id of a special token by its key: `unk_token`, `pad_token`.
    pub fn special(&self, key: &str) -> Option<u32> {
        self.specials.iter().find(|(name, _)| name == key).and_then(|(_, text)| self.id(text))
    }

    /// The text of its chat template.
    pub fn chat_source(&self) -> Option<&str> {
        self.chat.as_ref().map(ChatTemplate::source)
    }

    /// The `tokenizer.json` of what it does: the class's pipeline, and every added token.
    ///
    /// # Errors
    /// A part that has no such form.
    pub(in crate::formats) fn pipeline(&self) -> Result<Value> {
        serde_json::to_value(&*self.inner).map_err(Error::file(&self.path))
    }

    /// The id of a token's text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's text of an id (`▁the`, `Ġthe`); for readable output see [`Self::decode`].
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokenises a text. `add_special` adds what the tokenizer's post-processor says (a BOS, for LLaMA), unless the
    /// text itself begins with the BOS token: then there is one, not two.
    ///
    /// # Errors
    /// The tokenizer's model cannot represent the text (it has no unknown token); a text of CodeLlama has two gaps.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoding> {
        if let Some(infill) = &self.infill
            && let Some((before, behind)) = text.split_once(&infill.mark)
        {
            // With nothing behind the mark there is no gap.
            return match behind {
                "" => self.encode(before, add_special),
                _ => infill.encode(&self.inner, before, behind, add_special).map_err(Error::file(&self.path)),
            };
        }
        let encoding = self.inner.encode_char_offsets(text, add_special).map_err(Error::file(&self.path))?;
        let mut out = Encoding { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() };
        if let (true, Some(bos)) = (add_special, self.bos)
            && out.ids.starts_with(&[bos, bos])
            && out.offsets[0] == (0, 0)
        {
            log::warn!("a text that begins with the BOS token itself has one, where transformers gives it two");
            out.ids.remove(0);
            out.offsets.remove(0);
        }
        Ok(out)
    }

    /// Tokenises pieces as one text; the second result is the piece of each token ([`Encoding::pieces`]).
    ///
    /// A vocabulary without some characters leaves them out, and then the offsets of all that follows are too small.
    /// Where offsets do not reach the end of the text, a piece's tokens are instead those that it adds to the longest
    /// common beginning with the text before it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_pieces(&self, pieces: &[&str], add_special: bool) -> Result<(Encoding, Vec<usize>)> {
        let whole = pieces.concat();
        let encoding = self.encode(&whole, add_special)?;
        let mut seams = Vec::with_capacity(pieces.len());
        let mut at = 0;
        for piece in &pieces[..pieces.len().saturating_sub(1)] {
            at += piece.len();
            seams.push(at);
        }
        let covered = encoding.offsets.iter().map(|&(_, end)| end).max().unwrap_or(0);
        if covered == whole.chars().count() {
            let seams: Vec<usize> = seams.iter().map(|&at| whole[..at].chars().count()).collect();
            let owner = encoding.pieces(&seams);
            return Ok((encoding, owner));
        }
        let mut owner = vec![0; encoding.ids.len()];
        for &at in &seams {
            let before = self.encode(&whole[..at], add_special)?.ids;
            let common = encoding.ids.iter().zip(&before).take_while(|(a, b)| a == b).count();
            owner[common..].iter_mut().for_each(|piece| *piece += 1);
        }
        Ok((encoding, owner))
    }

    /// The text of ids; `skip_special` leaves BOS, EOS and their like out.
    ///
    /// # Errors
    /// The tokenizer's decoder fails. Unknown ids are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = self.decode_raw(ids, skip_special)?;
        Ok(if self.clean { cleaned::clean(&text) } else { text })
    }

    fn decode_raw(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let added = self.inner.get_added_vocabulary();
        let token = |&id: &u32| self.shown.get(&id).cloned().or_else(|| self.inner.id_to_token(id));
        let tokens = ids.iter().filter_map(token).filter(|token| !skip_special || !added.is_special_token(token));
        match self.inner.get_decoder() {
            Some(decoder) => decoder.decode(tokens.collect()).map_err(Error::file(&self.path)),
            None => Ok(tokens.collect::<Vec<_>>().join(" ")),
        }
    }

    /// Starts decoding ids one at a time, for generation.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), context: 0, emitted: 0, held: String::new() }
    }

    /// Whether there is a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// A conversation as text. Encode it with `add_special = false`: the template writes its own special tokens.
    ///
    /// # Errors
    /// There is no template, or it refuses the conversation.
    pub fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template(None)?.render(messages, add_generation_prompt, &self.special_texts())
    }

    /// As [`Self::render_chat`], with the byte ranges that the template marks as the assistant's; `inputs` are what the
    /// template sees beside the messages.
    ///
    /// # Errors
    /// As [`Self::render_chat`] and [`ChatTemplate::render_marked`].
    pub fn render_chat_marked(
        &self,
        messages: &[Message],
        inputs: &TemplateInputs,
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        let template = self.template(inputs.tools.as_ref())?;
        template.render_marked(messages, inputs, add_generation_prompt, &self.special_texts())
    }

    /// The template of conversations, with or without tools.
    fn template(&self, tools: Option<&Value>) -> Result<&ChatTemplate> {
        let expected = "a chat_template, in tokenizer_config.json or chat_template.jinja";
        let of_tools = self.tool_chat.as_ref().filter(|_| tools.is_some());
        let template = of_tools.or(self.chat.as_ref());
        template.ok_or_else(|| Error::field(&self.path, "chat_template", expected, "none"))
    }

    fn special_texts(&self) -> Vec<(&str, &str)> {
        self.specials.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }
}

/// Text that grows with the tokens, see [`Tokenizer::stream`].
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Ids from here are decoded together, so that the decoder knows what is before the new ones.
    context: usize,
    /// Ids before this one are out.
    emitted: usize,
    /// Text that what comes may still clean.
    held: String,
}

impl TextStream<'_> {
    /// Adds a token and returns the text that it completes; empty while a character is still in parts.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.rest()?;
        // An unfinished UTF-8 sequence decodes to the replacement character at the end.
        if text.is_empty() || text.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        self.context = self.emitted;
        self.emitted = self.ids.len();
        if !self.tokenizer.clean {
            return Ok(text);
        }
        self.held += &text;
        Ok(cleaned::take_settled(&mut self.held))
    }

    /// What is left: an unfinished character, as the replacement character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let rest = self.rest()?;
        Ok(if self.tokenizer.clean { cleaned::clean(&(self.held + &rest)) } else { rest })
    }

    fn rest(&self) -> Result<String> {
        let before = self.tokenizer.decode_raw(&self.ids[self.context..self.emitted], true)?;
        let now = self.tokenizer.decode_raw(&self.ids[self.context..], true)?;
        Ok(now.get(before.len()..).unwrap_or_default().to_string())
    }
}
