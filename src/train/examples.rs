//! Training examples of a file as token sequences with labels.
//!
//! Text is tokenised as a whole, and which tokens are learnt is decided by their characters: see
//! [`crate::formats::tokenizer::Encoding::pieces`]. A BOS comes first where the tokenizer's configuration says so; chat
//! templates write their own special tokens.

use std::path::Path;

use super::conversation;
use super::data::{IGNORE_INDEX, TrainSequence};
use crate::formats::chat::Message;
use crate::formats::jsonl::{Conversation, Example, Row};
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
    /// The row of each, from 0.
    pub rows: Vec<usize>,
    /// How many were truncated to the greatest length.
    pub truncated: usize,
    /// How many of those lost all their labels by it, and are dropped.
    pub dropped: usize,
    /// How many had nothing to be learnt, and are skipped.
    pub unlearnt: usize,
}

/// Makes the examples of the file `path` into sequences for a model of `vocab` tokens. Examples that are token ids
/// already need no tokenizer. Of rows with nothing to be learnt there is one warning.
///
/// | form | learnt |
/// |---|---|
/// | text | everything |
/// | prompt/completion | the completion; of messages, the assistant's turns of the completion |
/// | messages | the assistant's turns that no mark excludes, each with what the template closes it with |
/// | instruction/output | through the chat template, if there is one, as messages; else the output, after a newline |
/// | demonstrations/query/completion | the completion |
/// | input_ids | the labels; without them everything |
///
/// # Errors
/// Text that cannot be tokenised or rendered; an id beyond the vocabulary; marks that are neither 0 nor 1; examples
/// that all have nothing to be learnt, or lost it to the greatest length. Errors of one row name it.
pub fn prepare(
    path: &Path,
    rows: &[Row],
    tokenizer: Option<&Tokenizer>,
    vocab: usize,
    options: DataOptions,
) -> Result<Prepared> {
    if options.max_length == Some(0) {
        return Err(Error::argument("max_length", "at least 1", 0));
    }
    let mut prepared = Prepared::default();
    for (number, row) in rows.iter().enumerate() {
        let location = &row.location;
        let mut sequence = match (&row.example, tokenizer) {
            (Example::Ids { input_ids, labels }, _) => tokenised(input_ids, labels.as_deref()),
            (example, Some(tokenizer)) => sequence(location, example, tokenizer, options.add_eos)?,
            (example, None) => {
                return Err(Error::field(location, "form", "input_ids, as there is no tokenizer", example.form()));
            }
        };
        check(location, row.example.form(), &sequence, vocab)?;
        if !row.learnt()? || sequence.targets(0).next().is_none() {
            prepared.unlearnt += 1;
            continue;
        }
        let truncated = options.max_length.is_some_and(|length| sequence.truncate(length));
        prepared.truncated += usize::from(truncated);
        if truncated && sequence.targets(0).next().is_none() {
            prepared.dropped += 1;
        } else {
            prepared.sequences.push(sequence);
            prepared.rows.push(number);
        }
    }
    if prepared.sequences.is_empty() {
        let expected = match options.max_length.filter(|_| prepared.dropped > 0) {
            Some(length) => format!("a label within {length} tokens in some example"),
            None => "at least one token to be learnt, after the first, in some example".to_owned(),
        };
        return Err(Error::field(path, "labels", expected, "none"));
    }
    if prepared.unlearnt > 0 {
        let (unlearnt, all) = (prepared.unlearnt, rows.len());
        log::warn!("{}: {unlearnt} of {all} examples skipped, as nothing of them is to be learnt", path.display());
    }
    Ok(prepared)
}

fn check(location: &Path, form: &str, sequence: &TrainSequence, vocab: usize) -> Result<()> {
    let expected = || format!("token ids below the model's {vocab}");
    if let Some(id) = sequence.ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::field(location, form, expected(), id.to_string()));
    }
    match sequence.labels.iter().find(|&&label| label != IGNORE_INDEX && label as usize >= vocab) {
        Some(label) => Err(Error::field(location, "labels", expected(), label.to_string())),
        None => Ok(()),
    }
}

fn sequence(location: &Path, example: &Example, tokenizer: &Tokenizer, add_eos: bool) -> Result<TrainSequence> {
    match example {
        Example::Text(text) => {
            let sequence = TrainSequence::all(tokenizer.encode(text, true)?.ids);
            if add_eos { with_eos(tokenizer, sequence) } else { Ok(sequence) }
        }
        Example::Completion { prompt, completion } => completed(tokenizer, prompt, completion, add_eos),
        Example::Messages(conversation) => conversation::sequence(location, tokenizer, conversation),
        Example::Instruction { before, prompt, output } if tokenizer.has_chat_template() || !before.is_empty() => {
            let asked = [Message::new("user", prompt), Message::new("assistant", output)];
            let mut conversation = Conversation::from([before.as_slice(), &asked].concat());
            conversation.given = before.len() + 1;
            conversation::sequence(location, tokenizer, &conversation)
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
    TrainSequence { ids: ids.to_vec(), labels, teacher: None }
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
