//! Gold answers that a model can never give, whatever it knows: the data say so before anything is computed.

use rayon::prelude::*;

use super::definition::Task;
use super::example::Example;
use super::lengths::LengthNormalization;
use super::prompts::Prompts;
use super::templates::Template;
use crate::Result;

/// What becomes of the longer answer of [`beginning`].
pub const NEVER_CHOSEN: &str = "by the sum of log-probabilities can never be chosen, and divided by a length can";

/// A label or choice that begins another one of the same query, word by word, and that other one, where nothing follows them in
/// an answer: its log-probability, a sum over tokens, is never below that of the longer one, which is therefore never chosen.
pub fn beginning<'a>(task: &'a Task, template: &Template, examples: &'a [Example]) -> Option<(&'a str, &'a str)> {
    const PROBE: &str = "an output";
    if !template.answer(PROBE).ends_with(PROBE) {
        return None;
    }
    let begins = |short: &str, long: &str| {
        let rest = long.strip_prefix(short).and_then(|rest| rest.chars().next());
        !short.is_empty() && rest.is_some_and(char::is_whitespace)
    };
    let pair = |all: &'a [String]| {
        let pairs = all.iter().flat_map(|short| all.iter().map(move |long| (short.as_str(), long.as_str())));
        pairs.into_iter().find(|(short, long)| begins(short, long))
    };
    let of_task = task.labels().and_then(pair);
    of_task.or_else(|| examples.iter().find_map(|example| example.choices.as_deref().and_then(pair)))
}

/// Says what [`beginning`] finds, where answers are compared by the sums.
pub fn warn_of_beginning(task: &Task, template: &Template, examples: &[Example], by: LengthNormalization) {
    let is_sum = by == LengthNormalization::None;
    if let Some((short, long)) = beginning(task, template, examples).filter(|_| is_sum) {
        log::warn!("{task}: {short:?} begins {long:?}, which {NEVER_CHOSEN}");
    }
}

/// Number of examples of which every gold output holds one of the strings at which what is written ends.
pub fn beyond_stop(examples: &[Example], stops: &[&str]) -> usize {
    let holds = |gold: &str| stops.iter().any(|stop| !stop.is_empty() && gold.trim().contains(stop));
    examples.iter().filter(|example| example.gold().all(holds)).count()
}

/// Tokens of the shortest gold output of each example, behind its query.
///
/// # Errors
/// A failure of the tokenizer.
pub fn gold_tokens(prompts: &Prompts, template: &Template, examples: &[Example]) -> Result<Vec<usize>> {
    let shortest = |example: &Example| -> Result<usize> {
        let gold: Vec<&str> = example.gold().collect();
        let prompt = prompts.prompt(&prompts.texts(&[], &template.query(example))?.concat(), &gold)?;
        Ok(prompt.answers.iter().map(|answer| answer.scored).min().unwrap_or(0))
    };
    examples.par_iter().map(shortest).collect()
}

/// Says how many gold outputs can never be written whole: those that hold one of `stops`, and those of more than `most` tokens.
///
/// # Errors
/// See [`gold_tokens`].
pub fn warn_of_cut(
    task: &Task,
    (prompts, template): (&Prompts, &Template),
    examples: &[Example],
    stops: &[&str],
    most: usize,
) -> Result<()> {
    let all = examples.len();
    let stopped = beyond_stop(examples, stops);
    if stopped > 0 {
        let stops = stops.iter().map(|stop| format!("{stop:?}")).collect::<Vec<_>>().join(" or ");
        log::warn!(
            "{task}: {stopped} of {all} gold answers hold {stops}, where what is written ends: none of them can be written whole"
        );
    }
    let long = gold_tokens(prompts, template, examples)?.into_iter().filter(|&tokens| tokens > most).count();
    if long > 0 {
        log::warn!(
            "{task}: {long} of {all} gold answers have more tokens than max_new_tokens, {most}: none of them can be written whole"
        );
    }
    Ok(())
}
