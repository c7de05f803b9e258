//! Prompts and answers as tokens.
//!
//! A text is always tokenised as a whole, demonstrations, query and answer at once, and never in pieces: what a piece
//! becomes depends on what stands around it. The answer's tokens are found by offsets: those that cover any
//! character of the answer. A token across the seam therefore belongs to the answer, and is learned and scored with
//! it; and since an answer may change how the end of its prompt is tokenised, an [`Answer`] says how many of the
//! prompt's last tokens it replaces (none, with almost every tokenizer and template).
//!
//! Of a template of [turns](Template::is_chat) the text is what the tokenizer's chat template makes of a conversation, up to where
//! the assistant begins to answer the query; special tokens are those that it writes.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::templates::{Template, Turn};
use crate::formats::chat::Message;
use crate::formats::tokenizer::{Encoding, Tokenizer};
use crate::{Error, Result};

/// An answer that can follow a prompt, as the tokenisation of both as one text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The prompt's last tokens that are no longer there when the answer follows.
    pub replaces: usize,
    /// The tokens that follow the rest of the prompt.
    pub token_ids: Vec<u32>,
    /// How many of the last tokens cover characters of the answer; at least 1.
    pub scored: usize,
}

impl Answer {
    /// The tokens of prompt and answer.
    pub fn after(&self, prompt: &[u32]) -> Vec<u32> {
        let prefix = prompt.len().saturating_sub(self.replaces);
        [&prompt[..prefix], &self.token_ids].concat()
    }
}

/// A prompt and the answers that are compared after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// The tokens after which its answers stand.
    pub token_ids: Vec<u32>,
    /// Every answer that is compared; may be none.
    pub answers: Vec<Answer>,
}

/// A prompt with its answer as tokens to learn from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingExample {
    /// Of prompt and answer.
    pub input_ids: Vec<u32>,
    /// The token itself where it is part of the answer, else -100.
    pub labels: Vec<i64>,
}

impl TrainingExample {
    /// The number of labels: they must stand on the last tokens, at least one of them and not the first, and be those
    /// tokens; otherwise none.
    pub fn scored(&self) -> Option<usize> {
        let from = self.labels.iter().take_while(|&&label| label == -100).count();
        let own = |(label, id): (&i64, &u32)| *label == i64::from(*id);
        let rest = self.labels.iter().zip(&self.input_ids).skip(from);
        let valid = self.labels.len() == self.input_ids.len() && (1..self.labels.len()).contains(&from);
        (valid && rest.clone().all(own)).then(|| rest.count())
    }
}

/// Makes tokens of texts.
pub struct Prompts<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    /// Of a conversation, once it is known.
    around: OnceLock<Around>,
}

/// What a chat template writes around what the assistant says.
struct Around {
    /// White space behind where the assistant begins to speak.
    space: String,
    /// What ends the turn, up to the token at which generation stops; none if there is no such token.
    end: Option<String>,
}

impl Around {
    fn new(tokenizer: &Tokenizer) -> Result<Self> {
        // A character that no template writes.
        const SAID: char = '\u{e000}';
        let (user, said) = (Message::new("user", "a"), Message::new("assistant", &SAID.to_string()));
        let before = tokenizer.render_chat(std::slice::from_ref(&user), true)?;
        let whole = tokenizer.render_chat(&[user, said], false)?;
        let answer = whole.strip_prefix(&before).and_then(|rest| rest.split_once(SAID));
        let space = answer.map_or("", |(space, _)| space);
        let space = if space.trim().is_empty() { space.to_owned() } else { String::new() };
        let closing = whole.rsplit_once(SAID).map_or("", |(_, closing)| closing);
        let Encoding { ids, offsets } = tokenizer.encode(closing, false)?;
        let stop = ids.iter().position(|id| tokenizer.stops().contains(id));
        let end = stop.map(|at| closing.chars().take(offsets[at].1).collect());
        Ok(Self { space, end })
    }
}

impl<'a> Prompts<'a> {
    /// With the tokenizer of a model and the template of a task.
    pub fn new(tokenizer: &'a Tokenizer, template: &'a Template) -> Self {
        Self { tokenizer, template, around: OnceLock::new() }
    }

    /// The text of demonstrations and a query: up to where the query begins, and from there on. Of a conversation the first part
    /// ends within the query's turn, where what the user says begins.
    ///
    /// # Errors
    /// The tokenizer has no chat template, or one that refuses the conversation or leaves the query out.
    pub fn texts(&self, shown: &[Turn], query: &str) -> Result<[String; 2]> {
        if !self.template.is_chat() {
            let before = shown.iter().map(|Turn { query, answer }| query.clone() + answer).collect();
            return Ok([before, query.to_owned()]);
        }
        let query = query.trim();
        let mut whole = self.conversation(shown, query)?;
        // Up to where another query would make another text.
        let other = if query.starts_with('a') { "b" } else { "a" };
        let begin = common_start(&whole, &self.conversation(shown, other)?);
        if !whole[begin..].starts_with(query) {
            let expected = "a chat template that writes what the user says last as it is";
            return Err(Error::argument("chat_template", expected, format!("{whole:?}")));
        }
        let rest = whole.split_off(begin);
        Ok([whole, rest])
    }

    /// Demonstrations and a query as turns of a conversation, up to where the assistant begins to answer.
    fn conversation(&self, shown: &[Turn], query: &str) -> Result<String> {
        let said = |role: &str, content: &str| Message::new(role, content.trim());
        let turns = shown.iter().flat_map(|turn| [said("user", &turn.query), said("assistant", &turn.answer)]);
        let messages: Vec<Message> = turns.chain([said("user", query)]).collect();
        self.tokenizer.render_chat(&messages, true)
    }

    /// The text of an answer behind its query.
    ///
    /// # Errors
    /// See [`Prompts::texts`].
    fn answer(&self, output: &str) -> Result<String> {
        let answer = self.template.answer(output);
        if !self.template.is_chat() {
            return Ok(answer);
        }
        Ok(format!("{}{}", self.around()?.space, answer.trim()))
    }

    /// What the chat template writes around what the assistant says.
    fn around(&self) -> Result<&Around> {
        if let Some(around) = self.around.get() {
            return Ok(around);
        }
        let around = Around::new(self.tokenizer)?;
        Ok(self.around.get_or_init(|| around))
    }

    /// The prompt `text` with its `outputs` as answers.
    ///
    /// # Errors
    /// The tokenizer fails, or gives the prompt or an answer no token.
    pub fn prompt<S: AsRef<str>>(&self, text: &str, outputs: &[S]) -> Result<Prompt> {
        self.prompt_behind("", text, outputs).map(|(prompt, _)| prompt)
    }

    /// The prompt of `query` behind the text `before`, and how many of its last tokens are the query's: those that cover any
    /// of its characters.
    ///
    /// # Errors
    /// See [`Prompts::prompt`].
    pub fn prompt_behind<S: AsRef<str>>(&self, before: &str, query: &str, outputs: &[S]) -> Result<(Prompt, usize)> {
        let Encoded { ids: token_ids, of_query, .. } = self.encode([before, query], None)?;
        let answer = |output: &S| {
            let answer = self.answer(output.as_ref())?;
            let Encoded { ids: whole, scored, .. } = self.encode([before, query], Some(&answer))?;
            let prefix = common_prefix(&token_ids, &whole).min(whole.len() - scored);
            Ok(Answer { replaces: token_ids.len() - prefix, token_ids: whole[prefix..].to_vec(), scored })
        };
        let answers = outputs.iter().map(answer).collect::<Result<_>>()?;
        Ok((Prompt { token_ids, answers }, of_query))
    }

    /// The prompt `text` and the answer `output` as a sequence to learn, with the labels on the answer.
    ///
    /// # Errors
    /// See [`Prompts::prompt`].
    pub fn training_example(&self, text: &str, output: &str) -> Result<TrainingExample> {
        self.labelled(text, &self.answer(output)?)
    }

    /// The same with the end of the answer, which is learned with it: of a conversation what the chat template writes behind it, up to
    /// the token at which generation stops, and otherwise the end-of-sequence token, where the tokenizer has one.
    ///
    /// # Errors
    /// See [`Prompts::prompt`].
    pub fn ended_example(&self, text: &str, output: &str) -> Result<TrainingExample> {
        let end = if self.template.is_chat() { self.around()?.end.as_deref() } else { None };
        if let Some(end) = end {
            return self.labelled(text, &(self.answer(output)? + end));
        }
        let TrainingExample { mut input_ids, mut labels } = self.training_example(text, output)?;
        if let Some(eos) = self.tokenizer.eos() {
            input_ids.push(eos);
            labels.push(i64::from(eos));
        }
        Ok(TrainingExample { input_ids, labels })
    }

    /// A prompt and what follows it as a sequence to learn, with the labels on the latter.
    fn labelled(&self, text: &str, answer: &str) -> Result<TrainingExample> {
        let Encoded { ids: input_ids, scored, .. } = self.encode(["", text], Some(answer))?;
        let from = input_ids.len() - scored;
        let label = |(i, &id): (usize, &u32)| if i < from { -100 } else { i64::from(id) };
        let labels = input_ids.iter().enumerate().map(label).collect();
        Ok(TrainingExample { input_ids, labels })
    }

    /// The tokens of what stands before a query, the query and `answer` as one string.
    ///
    /// Special tokens that the tokenizer puts at the beginning stay; those that it would put at the end are dropped,
    /// since the text goes on. Around a conversation it puts none.
    fn encode(&self, [before, query]: [&str; 2], answer: Option<&str>) -> Result<Encoded> {
        let pieces = [before, query, answer.unwrap_or_default()];
        let (Encoding { mut ids, offsets }, owners) =
            self.tokenizer.encode_pieces(&pieces, !self.template.is_chat())?;
        let last = offsets.iter().rposition(|&(_, end)| end > 0);
        ids.truncate(last.map_or(0, |last| last + 1));
        let of_piece = |piece: usize| owners[..ids.len()].iter().filter(|&&owner| owner == piece).count();
        let (of_query, scored) = (of_piece(1), of_piece(2));
        let missing = |what: &str| {
            Err(Error::argument("template", format!("a token of the {what}"), format!("{:?}", pieces.concat())))
        };
        match answer {
            Some(_) if scored == 0 => missing("answer"),
            _ if ids.len() == scored => missing("query, before the answer's first"),
            _ => Ok(Encoded { ids, of_query, scored }),
        }
    }
}

/// A text as tokens.
struct Encoded {
    ids: Vec<u32>,
    /// How many of them, the last before the answer's, cover characters of the query.
    of_query: usize,
    /// How many of the last cover characters of the answer.
    scored: usize,
}

/// The number of bytes with which both begin, of whole characters.
fn common_start(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// The number of tokens with which both begin.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}
