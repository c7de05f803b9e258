//! Conversations as token sequences: what of a chat template's text is learnt.
//!
//! An assistant's turn is found by characters: it begins where the whole text leaves the text that ends where the
//! assistant begins to speak (the generation prompt), and ends with what the template closes it with. The text of a
//! conversation's beginning need not be the beginning of its whole text: a generation prompt may open a reasoning that
//! a finished turn does not have, and later turns may take it from earlier ones, or the system's text.

use std::ops::Range;
use std::path::Path;

use super::data::TrainSequence;
use crate::formats::chat::Message;
use crate::formats::jsonl::Conversation;
use crate::formats::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Other names of the assistant, under which nothing would be learnt.
const ASSISTANTS: [&str; 7] = ["gpt", "chatgpt", "bot", "model", "ai", "Assistant", "ASSISTANT"];

/// The tokens of a conversation; its learnt turns have labels. `location` names the row in errors.
///
/// Where the template marks itself what the assistant says, that is learnt, without the turns that are not.
///
/// # Errors
/// The template refuses the conversation, a turn is not found in its text, or its marks are bad.
pub fn sequence(location: &Path, tokenizer: &Tokenizer, conversation: &Conversation) -> Result<TrainSequence> {
    let learnt = conversation.learnt(location)?;
    let roles = || conversation.messages.iter().map(Message::role);
    if let Some(turn) =
        roles().position(|role| ASSISTANTS.contains(&role)).filter(|_| !roles().any(|r| r == "assistant"))
    {
        let (field, found) =
            (format!("{}.role", conversation.name(turn)), conversation.messages[turn].role().to_owned());
        return Err(Error::field(location, field, "assistant, whose turns are learnt", found));
    }
    let turns = Turns { location, tokenizer, conversation };
    let whole = conversation.render(location, tokenizer, conversation.messages.len(), false)?;
    match whole.generated {
        None => learnt_of(tokenizer, &whole.text, &turns.spans(&whole.text, &learnt)?),
        Some(generated) => {
            let excluded = |(i, message): (usize, &Message)| message.role() == "assistant" && !learnt[i];
            let excluded: Vec<bool> = conversation.messages.iter().enumerate().map(excluded).collect();
            let holes = turns.spans(&whole.text, &excluded)?;
            overlapping(tokenizer, &whole.text, &without(&generated, &holes))
        }
    }
}

/// The tokens of a text; those of `spans` have labels: ranges of bytes, ascending and apart. Which tokens are of a range
/// is what [`Tokenizer::encode_pieces`] says.
fn learnt_of(tokenizer: &Tokenizer, text: &str, spans: &[Range<usize>]) -> Result<TrainSequence> {
    let mut seams: Vec<usize> = spans.iter().flat_map(|span| [span.start, span.end]).collect();
    seams.push(text.len());
    let mut begin = 0;
    let pieces: Vec<&str> = seams.into_iter().map(|end| &text[std::mem::replace(&mut begin, end)..end]).collect();
    // Piece 0 is given, piece 1 is learnt, piece 2 is given, and so on.
    let (encoding, owner) = tokenizer.encode_pieces(&pieces, false)?;
    Ok(TrainSequence::marked(encoding.ids, |i| owner[i] % 2 == 1))
}

/// As [`learnt_of`], but every token with a character in a range has a label, as in the mask of assistant tokens of
/// transformers.
fn overlapping(tokenizer: &Tokenizer, text: &str, spans: &[Range<usize>]) -> Result<TrainSequence> {
    let encoding = tokenizer.encode(text, false)?;
    let characters = |at: usize| text[..at].chars().count();
    let spans: Vec<_> = spans.iter().map(|span| characters(span.start)..characters(span.end)).collect();
    let learnt = |i: usize| {
        let (start, end) = encoding.offsets[i];
        // The first range that is not before the token.
        spans.get(spans.partition_point(|span| span.end <= start)).is_some_and(|span| end > span.start)
    };
    Ok(TrainSequence::marked(encoding.ids.clone(), learnt))
}

/// What is left of ranges without others; both are ascending and apart.
fn without(spans: &[Range<usize>], holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut left = Vec::new();
    for span in spans {
        let mut start = span.start;
        for hole in holes.iter().filter(|hole| hole.start < span.end && hole.end > span.start) {
            left.push(start..hole.start.max(start));
            start = hole.end;
        }
        left.push(start..span.end.max(start));
    }
    left.retain(|span| !span.is_empty());
    left
}

/// A conversation whose turns are looked for in its text.
struct Turns<'a> {
    location: &'a Path,
    tokenizer: &'a Tokenizer,
    conversation: &'a Conversation,
}

/// A turn that was found.
struct Found {
    /// Its bytes in the whole text.
    span: Range<usize>,
    /// The text of the conversation that ends with it.
    finished: String,
}

impl Turns<'_> {
    /// The text of the first `count` messages; with `speaks` it ends where the assistant begins to speak.
    fn text(&self, count: usize, speaks: bool) -> Result<String> {
        Ok(self.conversation.render(self.location, self.tokenizer, count, speaks)?.text)
    }

    /// Where the learnt turns are in the whole text.
    fn spans(&self, whole: &str, learnt: &[bool]) -> Result<Vec<Range<usize>>> {
        let count = learnt.iter().rposition(|&learnt| learnt).map_or(0, |last| last + 1);
        let messages = &self.conversation.messages[..count];
        let mut spans = Vec::new();
        let mut last = Found { span: 0..0, finished: String::new() };
        for turn in (0..count).filter(|&i| messages[i].role() == "assistant") {
            match (self.find(turn, whole, &last), learnt[turn]) {
                (Ok(Some(found)), is_learnt) => {
                    if is_learnt {
                        spans.push(found.span.clone());
                    }
                    last = found;
                }
                // Nobody asks where it is.
                (_, false) => {}
                (Ok(None), true) => {
                    let expected =
                        "a chat template that renders a conversation's beginning as the beginning of its text";
                    return Err(Error::field(self.location, self.conversation.name(turn), expected, "another text"));
                }
                (Err(error), true) => return Err(error),
            }
        }
        Ok(spans)
    }

    fn find(&self, turn: usize, whole: &str, last: &Found) -> Result<Option<Found>> {
        let finished = self.text(turn + 1, false)?;
        let (prompt, before) = match (self.text(turn, true), turn) {
            // Many templates render no conversation of no message; their generation prompt is still to be found.
            (Err(error), 0) => return self.find_first(whole, finished).map_or(Err(error), |found| Ok(Some(found))),
            (prompt, _) => (prompt?, self.text(turn, false)?),
        };
        // What must be there of the prompt: all but what makes the assistant speak.
        let needed = common(&prompt, &before);
        let answer = &finished[common(&finished, &prompt)..];
        let start = match common(whole, &prompt) {
            shared if shared >= needed && shared >= last.span.end => Some(shared),
            _ => prompt.strip_prefix(last.finished.as_str()).and_then(|since| {
                let shared = common(&whole[last.span.end..], since);
                (shared + last.finished.len() >= needed).then_some(last.span.end + shared)
            }),
        };
        let Some(start) = start.or_else(|| alike(whole, last.span.end, &prompt[..needed], answer)) else {
            return Ok(None);
        };
        Ok(Some(Found { span: start..end(whole, start, answer, &finished), finished }))
    }

    /// The first message, where it is the assistant's and there is no text of what is before it: it begins behind the
    /// first generation prompt, which is what another conversation ends with.
    fn find_first(&self, whole: &str, finished: String) -> Option<Found> {
        let user = [Message::new("user", "?")];
        let inputs = &self.conversation.inputs;
        let text = |speaks| self.tokenizer.render_chat_marked(&user, inputs, speaks).ok().map(|r| r.text);
        let (prompt, before) = (text(true)?, text(false)?);
        let speaks = Some(&prompt[common(&prompt, &before)..]).filter(|speaks| !speaks.is_empty())?;
        let start = whole.find(speaks)? + speaks.len();
        let answer = &finished[finished.find(speaks)? + speaks.len()..];
        Some(Found { span: start..end(whole, start, answer, &finished), finished })
    }
}

/// Where a turn that begins at `start` ends; `finished` is the text of the conversation up to it, which ends in
/// `answer`.
fn end(whole: &str, start: usize, answer: &str, finished: &str) -> usize {
    if whole.starts_with(finished) {
        return finished.len().max(start);
    }
    // Of the answer something may be gone (reasoning, before it) or be the last turn's alone (a sign behind it).
    let rest = &whole[start..];
    let ends: Vec<usize> = rest.char_indices().map(|(at, c)| at + c.len_utf8()).collect();
    // A part of the answer is there if all longer beginnings of it are not.
    let there = ends.partition_point(|&end| end <= answer.len() && answer.contains(&rest[..end]));
    start + there.checked_sub(1).map_or(0, |last| ends[last])
}

/// Where `answer` is in a text from `from` on, behind what is most like the end of `prompt`; of equals the first.
fn alike(whole: &str, from: usize, prompt: &str, answer: &str) -> Option<usize> {
    let like = |at: usize| common_end(&whole[..at], prompt);
    let places = whole[from..].match_indices(answer).map(|(at, _)| from + at);
    let places = places.filter(|&at| !answer.is_empty() && like(at) > 0);
    places.reduce(|best, at| if like(at) > like(best) { at } else { best })
}

/// How many bytes two texts have in common at their beginnings, in whole characters.
fn common(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

/// As [`common`], at their ends.
fn common_end(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_lose_what_is_excluded() {
        let left = |holes: &[(usize, usize)]| {
            let holes: Vec<_> = holes.iter().map(|&(start, end)| start..end).collect();
            without(&[2..5, 8..12], &holes)
        };
        assert_eq!(left(&[]), [2..5, 8..12]);
        assert_eq!(left(&[(0, 3), (9, 10)]), [3..5, 8..9, 10..12]);
        assert_eq!(left(&[(0, 1), (5, 8), (12, 14)]), [2..5, 8..12]);
        assert_eq!(left(&[(3, 4), (8, 14)]), [2..3, 4..5]);
        assert!(left(&[(2, 5), (8, 12)]).is_empty());
    }

    #[test]
    fn turns_end_where_the_whole_text_leaves_them() {
        let found = |whole: &str, start: usize, answer: &str, finished: &str| {
            let end = end(whole, start, answer, finished);
            whole[start..end].to_owned()
        };
        assert_eq!(found("u:a.u:", 2, "a.", "u:a."), "a.");
        // Thoughts are gone, an end is the last turn's alone, both.
        assert_eq!(found("u:a.u:", 2, "<t>a.", "u:<t>a."), "a.");
        assert_eq!(found("u:äa u:", 2, "äa.", "u:äa."), "äa");
        assert_eq!(found("u:a u:", 2, "<a>a.", "u:<a>a."), "a");
        assert_eq!(found("u:b", 2, "a", "u:a"), "");
    }

    #[test]
    fn the_place_most_like_the_prompt_is_taken() {
        assert_eq!(alike("[x]yes[y]yes", 0, "s [y]", "yes"), Some(9));
        assert_eq!(alike("[x]yes[x]yes", 0, "s [x]", "yes"), Some(3));
        assert_eq!(alike("[x]yes", 4, "[x]", "yes"), None);
        assert_eq!(alike("[x]yes", 0, "(", "yes"), None);
    }
}
