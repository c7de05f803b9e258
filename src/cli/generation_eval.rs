//! Held-out examples as prompts: what runs are to write while they are trained, and how it is judged.

use std::sync::Arc;

use serde_json::json;

use super::args::{EvalArgs, MAX_NEW_TOKENS};
use super::resolve::ModelFiles;
use super::texts;
use crate::formats::chat::Message;
use crate::formats::generation_config::{Decoding, GenerationDefaults};
use crate::formats::jsonl::{Conversation, Example, Row};
use crate::formats::stops::Stops;
use crate::formats::tokenizer::Tokenizer;
use crate::model::GenerationConfig;
use crate::task::{self, metrics::Metric};
use crate::train::generation_eval::GenerationEval;
use crate::{Error, Result};

/// What `--predict-with-generate` asks for, of the rows of `--eval`: each example's prompt is continued greedily, as `generate`
/// continues it, and judged by what it should say.
pub fn from_args(args: &EvalArgs, rows: &[Row], files: &ModelFiles) -> Result<GenerationEval> {
    let tokenizer = files.tokenizer()?;
    let (mut prompts, mut gold) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
    for row in rows {
        if row.learnt()? {
            let (ids, answer) = example(row, &tokenizer, files)?;
            prompts.push(ids);
            gold.push(answer);
        }
    }
    let metrics = if args.metrics.is_empty() { vec![Metric::Exact] } else { args.metrics.clone() };
    super::training::distinct("--metrics", &metrics.iter().copied().map(key).collect::<Vec<_>>())?;
    let asked = GenerationDefaults::load(&files.path, Decoding::Greedy)?;
    let limit = args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    if limit == 0 || limit > GenerationConfig::MOST_NEW_TOKENS {
        let expected = format!("from 1 to {} beside --predict-with-generate", GenerationConfig::MOST_NEW_TOKENS);
        return Err(Error::argument("--max-new-tokens", expected, limit));
    }
    if args.stop.iter().any(String::is_empty) {
        return Err(Error::argument("--stop", "a text", "an empty one"));
    }
    let stop = tokenizer.stops().to_vec();
    let identity = json!({ "max_new_tokens": limit, "stop": args.stop, "gold": gold });
    let strings: Vec<String> = args.stop.iter().map(|stop| texts::unescaped(stop)).collect();
    let tokenizer = Arc::new(tokenizer);
    let (judged, of_ends) = (metrics.clone(), (tokenizer.clone(), strings.clone()));
    let judge = move |continuations: &[Vec<u32>]| {
        let stops = Stops::new(&tokenizer, strings.iter().cloned());
        let texts: Vec<String> = continuations.iter().map(|ids| stops.text(ids)).collect::<Result<_>>()?;
        let value = |metric: &Metric| {
            let of_text = |(text, gold): (&String, &String)| metric.judge(text, &task::Example::new("", gold));
            metric.corpus(&texts.iter().zip(&gold).map(of_text).collect::<Vec<_>>())
        };
        Ok(judged.iter().map(value).collect())
    };
    let ends = move |ids: &[u32]| Stops::new(&of_ends.0, of_ends.1.iter().cloned()).reached(ids);
    Ok(GenerationEval {
        prompts,
        max_new_tokens: limit,
        stop,
        ends: if args.stop.is_empty() { None } else { Some(Arc::new(ends)) },
        repetition_penalty: asked.repetition_penalty,
        min_new_tokens: asked.min_new_tokens,
        min_length: asked.min_length,
        metrics: metrics.into_iter().map(key).collect(),
        judge: Arc::new(judge),
        identity,
    })
}

/// A metric as flags and logs spell it.
fn key(metric: Metric) -> String {
    json!(metric).as_str().expect("a metric is written as its name").to_owned()
}

/// The prompt of an example, and what is to be said after it.
fn example(row: &Row, tokenizer: &Tokenizer, files: &ModelFiles) -> Result<(Vec<u32>, String)> {
    let location = row.location.display().to_string();
    let text = |text: &str| texts::encode(tokenizer, text, &location, &files.config);
    match &row.example {
        Example::Completion { prompt, completion } => Ok((text(prompt)?, completion.clone())),
        Example::Demonstrated { demonstrations, query, completion } => {
            Ok((text(&format!("{}{query}", demonstrations.concat()))?, completion.clone()))
        }
        Example::Instruction { before, prompt, output } if tokenizer.has_chat_template() || !before.is_empty() => {
            let asked = [before.as_slice(), &[Message::new("user", prompt)]].concat();
            Ok((rendered(row, &Conversation::from(asked), None, tokenizer, files)?, output.clone()))
        }
        Example::Instruction { prompt, output, .. } => Ok((text(&format!("{prompt}\n"))?, output.clone())),
        Example::Messages(conversation) => {
            let last = conversation.messages.len().saturating_sub(1);
            let answer = conversation.messages.get(last).filter(|message| message.role() == "assistant" && last > 0);
            let answer = answer.and_then(|message| message.get("content")?.as_str()).ok_or_else(|| {
                Error::field(&row.location, "messages", "a last turn of the assistant, of text", "another")
            })?;
            Ok((rendered(row, conversation, Some(last), tokenizer, files)?, answer.to_owned()))
        }
        Example::Ids { input_ids, labels: Some(labels) } if labels.first().is_some_and(Option::is_none) => {
            let given = labels.iter().position(Option::is_some).unwrap_or(labels.len());
            let answer: Vec<u32> = labels[given..].iter().copied().flatten().collect();
            Ok((
                texts::check_ids(input_ids[..given].to_vec(), &location, &files.config)?,
                tokenizer.decode(&answer, true)?,
            ))
        }
        other => {
            let expected = "an example with a prompt and what is to be said, for --predict-with-generate";
            Err(Error::field(&row.location, "keys", expected, other.form()))
        }
    }
}

/// The first turns of a conversation (none means all) by the chat template, up to where the assistant begins to speak.
fn rendered(
    row: &Row,
    conversation: &Conversation,
    turns: Option<usize>,
    tokenizer: &Tokenizer,
    files: &ModelFiles,
) -> Result<Vec<u32>> {
    let turns = turns.unwrap_or(conversation.messages.len());
    let text = conversation.render(&row.location, tokenizer, turns, true)?.text;
    let location = row.location.display().to_string();
    texts::check_ids(tokenizer.encode(&text, false)?.ids, &location, &files.config)
}
