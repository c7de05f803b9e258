//! Training examples of a file as token sequences with labels.
//!
//! Text is tokenised as a whole, and which tokens are learnt is decided by their characters: see
//! [`crate::formats::tokenizer::Encoding::pieces`]. A BOS comes first where the tokenizer's configuration says so; chat
//! templates write their own special tokens.

use std::path::Path;

use super::data::{IGNORE_INDEX, TrainSequence};
use crate::formats::chat::Message;
use crate::formats::jsonl::{Example, Turn};
use crate::formats::lines::at;
use crate::formats::tokenizer::Tokenizer;
use crate::{Error, Result};

/// How examples become sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataOptions {
    /// Sequences are truncated to this many tokens; none leaves them.
    pub max_length: Option<usize>,
    /// Whether an EOS that is learnt is appended to plain texts and completions that do not end in one. Off by
    /// default: what is learnt is what the file says, as experiments on labels need it.
    pub add_eos: bool,
}

/// Examples made into sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The sequences, each with a label; in file order.
    pub sequences: Vec<TrainSequence>,
    /// How many were truncated to the greatest length.
    pub truncated: usize,
    /// How many of those lost all their labels by it, and are dropped.
    pub dropped: usize,
}

/// Makes the examples of the file `path` into sequences for a model of `vocab` tokens. Example `i` is line `i + 1`.
/// Examples that are token ids already need no tokenizer.
///
/// | form | learnt |
/// |---|---|
/// | text | everything |
/// | prompt/completion | the completion; of messages, the assistant's turns of the completion |
/// | messages | the assistant's turns, each with what the template closes it with |
/// | instruction/output | through the chat template, if there is one, as messages; else the output, after a newline |
/// | demonstrations/query/completion | the completion |
/// | input_ids | the labels; without them everything |
///
/// # Errors
/// Text that cannot be tokenised or rendered; an id beyond the vocabulary; an example with nothing to be learnt;
/// examples that all lost their labels to the greatest length. Errors name `path:line`.
pub fn prepare(
    path: &Path,
    examples: &[Example],
    tokenizer: Option<&Tokenizer>,
    vocab: usize,
    options: DataOptions,
) -> Result<Prepared> {
    if options.max_length == Some(0) {
        return Err(Error::argument("max_length", "at least 1", 0));
    }
    let mut prepared = Prepared::default();
    for (i, example) in examples.iter().enumerate() {
        let location = at(path, i + 1);
        let mut sequence = match (example, tokenizer) {
            (Example::Ids { input_ids, labels }, _) => tokenised(input_ids, labels.as_deref()),
            (example, Some(tokenizer)) => sequence(&location, example, tokenizer, options.add_eos)?,
            (example, None) => {
                return Err(Error::field(location, "form", "input_ids, as there is no tokenizer", example.form()));
            }
        };
        check(&location, example.form(), &sequence, vocab)?;
        let truncated = options.max_length.is_some_and(|length| sequence.truncate(length));
        prepared.truncated += usize::from(truncated);
        if truncated && sequence.targets(0).next().is_none() {
            prepared.dropped += 1;
        } else {
            prepared.sequences.push(sequence);
        }
    }
    if prepared.sequences.is_empty() {
        let expected = format!("a label within {} tokens in some example", options.max_length.unwrap_or(0));
        return Err(Error::field(path, "labels", expected, "none"));
    }
    Ok(prepared)
}

fn check(location: &Path, form: &str, sequence: &TrainSequence, vocab: usize) -> Result<()> {
    let labels = sequence.labels.iter().filter(|&&label| label != IGNORE_INDEX).map(|&label| label as u32);
    if let Some(id) = sequence.ids.iter().copied().chain(labels).find(|&id| id as usize >= vocab) {
        return Err(Error::field(location, form, format!("token ids below the model's {vocab}"), id.to_string()));
    }
    if sequence.targets(0).next().is_none() {
        return Err(Error::field(location, form, "at least one token to be learnt, after the first", "none"));
    }
    Ok(())
}

fn sequence(location: &Path, example: &Example, tokenizer: &Tokenizer, add_eos: bool) -> Result<TrainSequence> {
    match example {
        Example::Text(text) => {
            let sequence = TrainSequence::all(tokenizer.encode(text, true)?.ids);
            if add_eos { with_eos(tokenizer, sequence) } else { Ok(sequence) }
        }
        Example::Completion { prompt: Turn::Text(prompt), completion } => match completion {
            Turn::Text(text) => completed(tokenizer, prompt, text, add_eos),
            Turn::Messages(_) => Err(Error::field(location, "completion", "a string, as prompt is", "messages")),
        },
        Example::Completion { prompt: Turn::Messages(prompt), completion } => match completion {
            Turn::Messages(messages) => conversation(location, tokenizer, prompt, messages),
            Turn::Text(_) => Err(Error::field(location, "completion", "messages, as prompt is", "a string")),
        },
        Example::Messages(messages) => conversation(location, tokenizer, &[], messages),
        Example::Instruction { before, prompt, output } if tokenizer.has_chat_template() || !before.is_empty() => {
            let message = |role: &str, content: &String| Message { role: role.to_owned(), content: content.clone() };
            let given = [before.as_slice(), &[message("user", prompt)]].concat();
            conversation(location, tokenizer, &given, &[message("assistant", output)])
        }
        Example::Instruction { prompt, output, .. } => completed(tokenizer, &format!("{prompt}\n"), output, add_eos),
        Example::Demonstrated { demonstrations, query, completion } => {
            completed(tokenizer, &format!("{}{query}", demonstrations.concat()), completion, add_eos)
        }
        Example::Ids { input_ids, labels } => Ok(tokenised(input_ids, labels.as_deref())),
    }
}

fn tokenised(ids: &[u32], labels: Option<&[Option<u32>]>) -> TrainSequence {
    let Some(labels) = labels else { return TrainSequence::all(ids.to_vec()) };
    let labels = labels.iter().map(|label| label.map_or(IGNORE_INDEX, i64::from)).collect();
    TrainSequence { ids: ids.to_vec(), labels }
}

fn completed(tokenizer: &Tokenizer, prompt: &str, completion: &str, add_eos: bool) -> Result<TrainSequence> {
    let (encoding, owner) = tokenizer.encode_pieces(&[prompt, completion], true)?;
    let sequence = TrainSequence::marked(encoding.ids, |i| owner[i] == 1);
    if add_eos { with_eos(tokenizer, sequence) } else { Ok(sequence) }
}

fn with_eos(tokenizer: &Tokenizer, mut sequence: TrainSequence) -> Result<TrainSequence> {
    let Some(eos) = tokenizer.eos() else {
        return Err(Error::field(tokenizer.path(), "eos_token", "a token to append", "none"));
    };
    if sequence.ids.last() != Some(&eos) {
        sequence.ids.push(eos);
        sequence.labels.push(i64::from(eos));
    }
    Ok(sequence)
}

/// Of the conversation `given` and then `said`, the assistant's turns of `said` are learnt.
///
/// A turn's characters are found by rendering the conversation before it (up to where the assistant begins to speak)
/// and after it; both must be beginnings of the whole.
fn conversation(location: &Path, tokenizer: &Tokenizer, given: &[Message], said: &[Message]) -> Result<TrainSequence> {
    let messages = [given, said].concat();
    let whole = tokenizer.render_chat(&messages, false)?;
    let mut pieces = Vec::new();
    let mut end_of_last = 0;
    for turn in (given.len()..messages.len()).filter(|&i| messages[i].role == "assistant") {
        for (end, speaks) in [(turn, true), (turn + 1, false)] {
            let part = tokenizer.render_chat(&messages[..end], speaks)?;
            if !whole.starts_with(&part) || part.len() < end_of_last {
                let expected = "a chat template that renders a conversation's beginning as the beginning of its text";
                return Err(Error::field(location, format!("messages[{turn}]"), expected, "another text"));
            }
            pieces.push(&whole[end_of_last..part.len()]);
            end_of_last = part.len();
        }
    }
    pieces.push(&whole[end_of_last..]);
    // Piece 0 is given, piece 1 is learnt, piece 2 is given, and so on.
    let (encoding, owner) = tokenizer.encode_pieces(&pieces, false)?;
    Ok(TrainSequence::marked(encoding.ids, |i| owner[i] % 2 == 1))
}
