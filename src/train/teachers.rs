//! Teachers of training sequences: each behind demonstrations from the same file, or rows of captured states and logits.
//!
//! | teacher | what it reads |
//! |---|---|
//! | in context | the example behind demonstrations, as one text or conversation: its own where the row has some (`demonstrations`), or else others of the file |
//! | captured | row k of the file is document k of the capture (`doc_id`), which ends as the example does |
//!
//! Demonstrations that are drawn are the first of a permutation of the file's examples by the run's seed that are other
//! examples than the one that they stand before, so that nearly all examples of a run have the same ones, which are computed
//! once a pass. Either way a teacher must have the example's label tokens, token for token.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::data::{IGNORE_INDEX, SequenceTeacher, TrainSequence};
use super::examples::{DataOptions, Prepared, prepare};
use super::objective::TeacherTable;
use crate::arch::ModelConfig;
use crate::formats::activations::ActivationFile;
use crate::formats::chat::Message;
use crate::formats::jsonl::{Conversation, Example, Row};
use crate::formats::tokenizer::Tokenizer;
use crate::hooks::{Names, Naming, Selection, Site};
use crate::random::Rng;
use crate::{Error, Result};

/// The stream of a seed's random numbers that demonstrations are drawn from.
const DEMONSTRATIONS: u64 = 5 << 32;

/// How teachers in context read examples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextOptions {
    /// Demonstrations before each example that has none of its own.
    pub demos: usize,
    /// What stands behind each of them, where examples are texts.
    pub separator: String,
    /// As for the examples themselves.
    pub add_eos: bool,
}

/// The rows as they are learnt towards a teacher in context: without demonstrations of their own.
pub fn alone(rows: &[Row]) -> Vec<Row> {
    let one = |row: &Row| match &row.example {
        Example::Demonstrated { query, completion, .. } => {
            row.with(Example::Completion { prompt: query.clone(), completion: completion.clone() })
        }
        _ => row.clone(),
    };
    rows.iter().map(one).collect()
}

/// The teachers of the sequences that were `prepared` of rows [`alone`], for a run with this seed; `rows` are those as the
/// file has them.
///
/// # Errors
/// Too few examples; examples that are token ids, or texts without a completion; a label token that is another one behind
/// demonstrations, naming its row.
pub fn in_context(
    path: &Path,
    rows: &[Row],
    prepared: &Prepared,
    tokenizer: Option<&Tokenizer>,
    vocab: usize,
    options: &ContextOptions,
    seed: u64,
) -> Result<Vec<SequenceTeacher>> {
    let mut order: Vec<usize> = prepared.rows.clone();
    Rng::with_stream(seed, DEMONSTRATIONS).shuffle(&mut order);
    let taught = |&row: &usize| -> Result<Row> {
        let Row { location, example, .. } = &rows[row];
        let whole = match example {
            Example::Demonstrated { demonstrations, query, completion } => {
                let prompt = demonstrations.concat() + query;
                Example::Completion { prompt, completion: completion.clone() }
            }
            example => {
                let others = order.iter().map(|&other| &rows[other].example).filter(|other| *other != example);
                let shown: Vec<&Example> = others.take(options.demos).collect();
                if shown.is_empty() && options.demos < 2 {
                    let expected = "another example of the file, to stand before this one for the teacher";
                    return Err(Error::field(location, "demonstrations", expected, "none"));
                }
                if shown.len() < options.demos || shown.is_empty() {
                    let others = format!("the number of other examples beside {}", location.display());
                    return Err(Error::argument(
                        "demos",
                        format!("from 1 to {}, {others}", shown.len()),
                        options.demos,
                    ));
                }
                behind(location, &shown, example, tokenizer, &options.separator)?
            }
        };
        Ok(rows[row].with(whole))
    };
    let whole = prepared.rows.iter().map(taught).collect::<Result<Vec<Row>>>()?;
    let data = DataOptions { max_length: None, add_eos: options.add_eos };
    let read = prepare(path, &whole, tokenizer, vocab, data)?.sequences;
    let pairs = prepared.sequences.iter().zip(&read).zip(&whole);
    pairs.map(|((student, teacher), row)| context(&row.location, student, teacher)).collect()
}

/// A teacher's sequence, whose label tokens must be the student's, or begin with them.
fn context(location: &Path, student: &TrainSequence, teacher: &TrainSequence) -> Result<SequenceTeacher> {
    let labels = |sequence: &TrainSequence| -> Vec<i64> {
        sequence.labels.iter().copied().filter(|&label| label != IGNORE_INDEX).collect()
    };
    let (own, found) = (labels(student), labels(teacher));
    let rows = teacher.labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_INDEX);
    let rows: Vec<u32> = rows.filter_map(|(i, _)| i.checked_sub(1)).map(|row| row as u32).collect();
    if found.len() < own.len() || found[..own.len()] != own || rows.len() < own.len() {
        let show = |labels: &[i64]| format!("tokens {labels:?}");
        let expected = format!("{} behind demonstrations too", show(&own));
        return Err(Error::field(location, "completion", expected, show(&found)));
    }
    Ok(SequenceTeacher::Context { ids: teacher.ids.clone(), rows })
}

/// An example behind demonstrations: texts one after another, conversations as earlier turns of one.
fn behind(
    location: &Path,
    shown: &[&Example],
    example: &Example,
    tokenizer: Option<&Tokenizer>,
    separator: &str,
) -> Result<Example> {
    let templated = tokenizer.is_some_and(Tokenizer::has_chat_template);
    if let Some((prompt, completion)) = text(example, templated) {
        let all = shown.iter().map(|other| {
            let (prompt, completion) = text(other, templated).ok_or_else(|| mixed(location, other))?;
            Ok(prompt + &completion + separator)
        });
        let before: String = all.collect::<Result<_>>()?;
        return Ok(Example::Completion { prompt: before + &prompt, completion });
    }
    let own = conversation(example).ok_or_else(|| {
        let expected = "examples with a completion, or conversations, for a teacher in context";
        Error::field(location, "form", expected, example.form())
    })?;
    let mut turns = Vec::new();
    for other in shown {
        let messages = conversation(other).ok_or_else(|| mixed(location, other))?.messages;
        turns.extend(messages.into_iter().filter(|message| message.role() != "system"));
    }
    Ok(Example::Messages(Box::new(own.behind(turns))))
}

fn mixed(location: &Path, other: &Example) -> Error {
    Error::field(location, "form", "the form of its demonstrations, which are other rows", other.form())
}

/// Prompt and completion of an example that is text.
fn text(example: &Example, templated: bool) -> Option<(String, String)> {
    match example {
        Example::Completion { prompt, completion } => Some((prompt.clone(), completion.clone())),
        Example::Demonstrated { query, completion, .. } => Some((query.clone(), completion.clone())),
        Example::Instruction { before, prompt, output } if !templated && before.is_empty() => {
            Some((format!("{prompt}\n"), output.clone()))
        }
        _ => None,
    }
}

/// The conversation that an example is.
fn conversation(example: &Example) -> Option<Conversation> {
    match example {
        Example::Messages(conversation) => Some((**conversation).clone()),
        Example::Instruction { before, prompt, output } => {
            let asked = [Message::new("user", prompt), Message::new("assistant", output)];
            let mut conversation = Conversation::from([before.as_slice(), &asked].concat());
            conversation.given = before.len() + 1;
            Some(conversation)
        }
        _ => None,
    }
}

/// The teachers of sequences that were `prepared` of a file, with what they take from captured states at the hooks of a
/// selection and, with `logits`, from captured logits.
///
/// # Errors
/// A tensor or column that the file lacks, or of another width; a label token whose row or token is not there, naming the
/// document.
pub fn captured(
    file: &ActivationFile,
    config: &ModelConfig,
    (selection, logits): (&Selection, bool),
    prepared: &Prepared,
) -> Result<(Vec<SequenceTeacher>, TeacherTable)> {
    let column =
        |name: &str| file.labels(name)?.ok_or_else(|| Error::field(file.path(), name, "a column of a capture", "none"));
    let (documents, positions, tokens) = (column("doc_id")?, column("pos")?, column("token_id")?);
    let mut rows: HashMap<i64, BTreeMap<i64, usize>> = HashMap::new();
    for (row, (&document, &position)) in documents.iter().zip(&positions).enumerate() {
        rows.entry(document).or_default().insert(position, row);
    }
    let mut used = Vec::new();
    let mut teachers = Vec::with_capacity(prepared.sequences.len());
    for (sequence, &document) in prepared.sequences.iter().zip(&prepared.rows) {
        let of_document = rows.get(&(document as i64));
        let found = of_document.and_then(|rows| aligned(sequence, rows, &tokens)).ok_or_else(|| {
            let expected =
                format!("rows of document {document} before each label token of example {document}, with its tokens");
            let found = match of_document {
                None => "no such document".to_owned(),
                Some(rows) => {
                    let last: Vec<i64> = rows.values().rev().take(8).map(|&row| tokens[row]).collect();
                    format!("a document that ends in tokens {:?}", last.into_iter().rev().collect::<Vec<_>>())
                }
            };
            Error::field(file.path(), "token_id", expected, found)
        })?;
        let first = used.len() as u32;
        teachers.push(SequenceTeacher::Table((first..first + found.len() as u32).collect()));
        used.extend(found);
    }
    let take = |name: String, width: usize| -> Result<Vec<f32>> {
        let all = file.rows(&name)?;
        if all.width != width {
            let found = all.width.to_string();
            return Err(Error::field(file.path(), name, format!("rows of {width} elements"), found));
        }
        Ok(used.iter().flat_map(|&row| all.values[row * width..(row + 1) * width].to_vec()).collect())
    };
    let names = match file.metadata().get("names").map(String::as_str) {
        Some(name) if name == Names::Tl4.name() => Names::Tl4,
        Some(name) if name == Names::Llamaprobe1.name() => Names::Llamaprobe1,
        _ => Names::Tl,
    };
    let naming = Naming { names, config };
    let states =
        selection.hooks.iter().map(|&(site, layer)| take(naming.name(site, layer)?, config.stored_width(site)));
    let states = states.collect::<Result<_>>()?;
    let logits = if logits { take(naming.name(Site::Logits, 0)?, config.vocab_size)? } else { Vec::new() };
    Ok((teachers, TeacherTable { states, logits }))
}

/// The rows of a document that predict the label tokens of a sequence, if the document ends with the sequence's last token
/// or with the one before its last label; where both could be, as more tokens agree.
fn aligned(sequence: &TrainSequence, rows: &BTreeMap<i64, usize>, tokens: &[i64]) -> Option<Vec<usize>> {
    let labels: Vec<usize> =
        sequence.labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_INDEX).map(|(i, _)| i).collect();
    let (last, end) = (*labels.last()?, *rows.keys().next_back()?);
    let at = |i: usize, ends: usize| rows.get(&(end - ends as i64 + i as i64)).copied();
    let agrees = |i: usize, ends: usize| at(i, ends).is_some_and(|row| tokens[row] == i64::from(sequence.ids[i]));
    let candidates = [sequence.ids.len() - 1, last.checked_sub(1)?].map(|ends| {
        let predicts = labels.iter().map(|&i| i.checked_sub(1).filter(|&i| agrees(i, ends)).and_then(|i| at(i, ends)));
        let found: Option<Vec<usize>> = predicts.collect();
        let like = (0..=ends).rev().take_while(|&i| agrees(i, ends)).count();
        found.map(|found| (like, found))
    });
    let [whole, prompt] = candidates;
    match (whole, prompt) {
        (Some(whole), Some(prompt)) => Some(if prompt.0 > whole.0 { prompt.1 } else { whole.1 }),
        (found, None) | (None, found) => found.map(|(_, rows)| rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_end_as_their_examples_do() {
        let example = TrainSequence::marked(vec![1, 5, 7, 7], |i| i == 3);
        // Behind demonstrations [8, 9]; whole, and without the answer.
        let rows = |tokens: &[i64]| (0..tokens.len()).map(|i| (i as i64, i)).collect::<BTreeMap<i64, usize>>();
        let of = |tokens: &[i64]| aligned(&example, &rows(tokens), tokens);
        assert_eq!(of(&[1, 8, 9, 5, 7, 7]), Some(vec![4]));
        assert_eq!(of(&[1, 8, 9, 5, 7]), Some(vec![4]));
        assert_eq!(of(&[1, 8, 9, 5, 6]), None);
        // Only the last token of the prompt was captured.
        assert_eq!(aligned(&example, &[(4, 0)].into_iter().collect(), &[7]), Some(vec![0]));
    }
}
