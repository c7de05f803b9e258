//! The tokens of a plan's prompts at which states are read.

use std::ops::Range;

use super::plan::{Plan, SeedPlan};
use super::position::Position;
use crate::task::prompts::{Prompt, TrainingExample};

/// The states that are read of one prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Points {
    /// Of the prompt's tokens, or of the tokens of prompt and answer.
    pub tokens: Range<usize>,
    /// The answer after which tokens count.
    pub answer: Option<usize>,
    /// Whether their mean is read, one row, and not each of them.
    pub mean: bool,
    /// How many of the prompt's last tokens are the query's own in all prompts: those whose attention scores are read, where
    /// scores are.
    pub own: usize,
    /// How many of the prompt's last tokens edits call the query, where there are edits.
    pub query: usize,
}

impl Points {
    /// Nothing is read.
    pub const fn none() -> Self {
        Self { tokens: 0..0, answer: None, mean: false, own: 0, query: 0 }
    }

    /// The last token of a prompt.
    pub fn last(prompt: &Prompt) -> Self {
        Self { tokens: prompt.token_ids.len() - 1..prompt.token_ids.len(), ..Self::none() }
    }

    /// Rows of states.
    pub fn rows(&self) -> usize {
        if self.mean { usize::from(!self.tokens.is_empty()) } else { self.tokens.len() }
    }
}

/// For every query the number of last tokens that count as its own, and of last tokens of its gold answer: those that it
/// has in all prompts of a plan.
pub(super) struct OwnTokens {
    query: Vec<usize>,
    answer: Vec<usize>,
    /// Whether [`Points::own`] is to be known.
    pub scored: bool,
    /// Whether [`Points::query`] is.
    pub edited: bool,
}

impl OwnTokens {
    /// Of a plan.
    pub fn new(plan: &Plan) -> Self {
        let alone = plan.prompts();
        let mut own = Self {
            query: alone.iter().map(|prompt| prompt.token_ids.len()).collect(),
            answer: alone.iter().zip(plan.gold()).map(|(prompt, gold)| prompt.answers[gold].scored).collect(),
            scored: true,
            edited: true,
        };
        for prompts in plan.seeds.iter().map(SeedPlan::icl_prompts) {
            for (i, (prompt, alone)) in prompts.iter().zip(&alone).enumerate() {
                let same = prompt.token_ids.iter().rev().zip(alone.token_ids.iter().rev()).take_while(|(a, b)| a == b);
                own.query[i] = own.query[i].min(same.count()).max(1);
                own.answer[i] = own.answer[i].min(prompt.answers[plan.queries[i].gold].scored);
            }
        }
        own
    }

    /// What is read of query `i` at a position, where the prompt ends with it, `seed`'s where it stands behind demonstrations. Of
    /// [`Position::Demos`] nothing.
    pub fn points(
        &self,
        position: Position,
        i: usize,
        prompt: &Prompt,
        (plan, seed): (&Plan, Option<&SeedPlan>),
    ) -> Points {
        let gold = plan.queries[i].gold;
        let len = prompt.token_ids.len();
        let points = match position {
            Position::Last => Points::last(prompt),
            Position::All => Points { tokens: len - self.query[i]..len, ..Points::none() },
            Position::Mean => Points { tokens: len - self.query[i]..len, mean: true, ..Points::none() },
            Position::Label => {
                let answer = &prompt.answers[gold];
                let end = len - answer.replaces + answer.token_ids.len();
                Points { tokens: end - self.answer[i]..end, answer: Some(gold), ..Points::none() }
            }
            Position::Demos => Points::none(),
        };
        let own = if self.scored { self.query[i] } else { 0 };
        // Behind demonstrations a query's first token may be another one than at the beginning of a text.
        let query = seed.map_or(len, |seed| seed.icl_query_tokens.get(i).copied().unwrap_or(self.query[i]));
        Points { own, query: if self.edited { query } else { 0 }, ..points }
    }
}

/// A demonstration alone, without its answer.
pub(super) fn without_answer(example: &TrainingExample) -> Prompt {
    let scored = example.scored().expect("probe: the plan was checked");
    Prompt { token_ids: example.input_ids[..example.input_ids.len() - scored].to_vec(), answers: Vec::new() }
}
