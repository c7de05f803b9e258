//! What a probe does, down to the token, decided before anything is computed.

use serde::{Deserialize, Serialize};

use super::arm::Arm;
use crate::task::LengthNormalization;
use crate::task::prompts::{Answer, Prompt, TrainingExample, common_prefix};
use crate::train::data::IGNORE_INDEX;
use crate::{Error, Result};

/// Queries and, for each seed, the demonstrations in both their uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The labels that every query's answers stand for, in order; none where every query has answers of its own, and for free
    /// text, where the only answer is the gold one.
    pub labels: Option<Vec<String>>,
    /// At least one.
    pub queries: Vec<Query>,
    /// At least one.
    pub seeds: Vec<SeedPlan>,
    /// Digest of the files of the tokenizer whose ids these are; none in a plan of an earlier version, or where there are no files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
}

/// A query alone, as the arms without demonstrations read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Its index in the data set.
    pub index: usize,
    /// Of the prompt, without an answer.
    pub token_ids: Vec<u32>,
    /// The answers that are compared, of every label, of the query's own choices, or of the gold one alone.
    pub answers: Vec<Answer>,
    /// The texts of the answers, where they are its own choices; empty where they are labels or free text, and in a plan of an earlier
    /// version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Index of the gold answer.
    #[serde(rename = "right")]
    pub gold: usize,
}

/// The demonstrations of one seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedPlan {
    /// Seed of the choice of demonstrations, of the adapter's start and of the Gaussian baseline.
    pub seed: u64,
    /// Their indices in the pool, in the order shown; may be none.
    pub demonstrations: Vec<usize>,
    /// The longest common beginning of all queries' ICL prompts, at least a token short of the shortest.
    pub icl_prefix_token_ids: Vec<u32>,
    /// The rest of each query's ICL prompt.
    pub icl_suffix_token_ids: Vec<Vec<u32>>,
    /// How many of the last tokens of each query's ICL prompt cover characters of the query; empty in a plan of an earlier version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icl_query_tokens: Vec<usize>,
    /// Each query's possible answers after its ICL prompt.
    pub icl_answers: Vec<Vec<Answer>>,
    /// What LoRA and soft prompt learn: each demonstration alone, in the order drawn; empty without demonstrations.
    pub train: Vec<TrainingExample>,
    /// What a soft prompt before demonstrations learns, and what the teacher of a LoRA reads: the same, each after the other
    /// demonstrations in the order shown; empty where there is no such arm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipt_train: Vec<TrainingExample>,
    /// The prompts that end before the answer of each demonstration in context, in the order of `train`; empty unless
    /// states are read there ([`Position::Demos`](super::Position::Demos)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icl_demonstration_token_ids: Vec<Vec<u32>>,
}

impl Plan {
    /// Checks a plan that was read from a file against the vocabulary of the model: shapes agree, ids are in range,
    /// prompts are not empty, answers and training examples have something to score.
    ///
    /// # Errors
    /// [`Error::Field`] with `path` and the plan's field.
    pub fn validate(&self, path: &str, vocab: usize) -> Result<()> {
        Check { path, vocab }.plan(self)
    }

    /// The queries alone.
    pub fn prompts(&self) -> Vec<Prompt> {
        let prompt = |q: &Query| Prompt { token_ids: q.token_ids.clone(), answers: q.answers.clone() };
        self.queries.iter().map(prompt).collect()
    }

    /// Whether queries are answered by one of several answers, so that there is an accuracy.
    pub fn is_closed(&self) -> bool {
        self.labels.is_some() || self.queries.iter().any(|q| q.answers.len() > 1)
    }

    /// The texts of a query's answers, of every label or of its own choices; empty for free text.
    pub fn texts(&self, query: usize) -> &[String] {
        self.labels.as_deref().unwrap_or(&self.queries[query].choices)
    }

    /// Checks that answers have the lengths by which their log-probabilities are to be divided.
    ///
    /// # Errors
    /// There are no labels or choices, or a plan of an earlier version does not say what these are.
    pub fn check_lengths(&self, by: LengthNormalization) -> Result<()> {
        by.check(self.is_closed())?;
        if by.reads_texts() && (0..self.queries.len()).any(|q| self.texts(q).is_empty()) {
            let expected = "none or tokens, for a plan that does not have the texts of its choices";
            return Err(Error::argument("length_normalization", expected, format!("{by:?}").to_lowercase()));
        }
        Ok(())
    }

    /// The index of the gold answer of every query.
    pub fn gold(&self) -> Vec<usize> {
        self.queries.iter().map(|q| q.gold).collect()
    }

    /// Largest numbers of rows and of label tokens of a training example beside what its teacher reads, of the arms that have
    /// one, and the label tokens of all examples of all seeds.
    pub fn longest_taught(&self) -> (usize, usize, usize) {
        let labels = |example: &TrainingExample| example.labels.iter().filter(|&&label| label != IGNORE_INDEX).count();
        let pairs = || self.seeds.iter().flat_map(|seed| seed.train.iter().zip(&seed.ipt_train));
        let rows = pairs().map(|(example, teacher)| example.input_ids.len() + teacher.input_ids.len()).max();
        let most = pairs().map(|(example, _)| labels(example)).max();
        (rows.unwrap_or(0), most.unwrap_or(0), pairs().map(|(example, _)| labels(example)).sum())
    }

    /// The number of tokens of the longest sequence that any arm reads.
    pub fn longest(&self) -> usize {
        let prompts = self.seeds.iter().flat_map(SeedPlan::icl_prompts).chain(self.prompts());
        let read = prompts.flat_map(|p| p.answers.iter().map(|a| a.after(&p.token_ids).len()).max());
        let examples = self.seeds.iter().flat_map(|s| s.train.iter().chain(&s.ipt_train));
        read.chain(examples.map(|e| e.input_ids.len())).max().unwrap_or(0)
    }
}

impl SeedPlan {
    /// Of the prompts of every query behind the demonstrations, each with the number of the query's own tokens; what is learnt is
    /// still to be added.
    pub(super) fn new(seed: u64, demonstrations: Vec<usize>, prompts: Vec<(Prompt, usize)>) -> Self {
        let (prompts, icl_query_tokens): (Vec<Prompt>, Vec<usize>) = prompts.into_iter().unzip();
        let first = &prompts[0].token_ids;
        let shared = |p: &Prompt| common_prefix(first, &p.token_ids).min(p.token_ids.len() - 1);
        let prefix = prompts.iter().map(shared).min().unwrap_or(0);
        Self {
            seed,
            demonstrations,
            icl_prefix_token_ids: first[..prefix].to_vec(),
            icl_suffix_token_ids: prompts.iter().map(|p| p.token_ids[prefix..].to_vec()).collect(),
            icl_query_tokens,
            icl_answers: prompts.into_iter().map(|p| p.answers).collect(),
            train: Vec::new(),
            ipt_train: Vec::new(),
            icl_demonstration_token_ids: Vec::new(),
        }
    }

    /// What an arm that trains something learns.
    pub fn training_examples(&self, arm: Arm) -> &[TrainingExample] {
        if arm == Arm::Ipt { &self.ipt_train } else { &self.train }
    }

    /// What the teacher of an arm reads, for each of its training examples; empty where it has none.
    pub fn teachers(&self, arm: Arm) -> &[TrainingExample] {
        if arm.has_teacher() { &self.ipt_train } else { &[] }
    }

    /// The queries after the demonstrations.
    pub fn icl_prompts(&self) -> Vec<Prompt> {
        let whole = |suffix: &Vec<u32>| [&self.icl_prefix_token_ids[..], suffix].concat();
        let pairs = self.icl_suffix_token_ids.iter().zip(&self.icl_answers);
        pairs.map(|(suffix, answers)| Prompt { token_ids: whole(suffix), answers: answers.clone() }).collect()
    }
}

struct Check<'a> {
    path: &'a str,
    vocab: usize,
}

impl Check<'_> {
    fn plan(&self, plan: &Plan) -> Result<()> {
        self.that(!plan.queries.is_empty(), "plan.queries", "at least one", "none")?;
        self.that(!plan.seeds.is_empty(), "plan.seeds", "at least one", "none")?;
        // Queries without labels may have choices of their own, but one at least.
        let count = |q: &Query| plan.labels.as_ref().map_or(q.answers.len().max(1), Vec::len);
        let counts: Vec<usize> = plan.queries.iter().map(count).collect();
        for (i, (q, &answers)) in plan.queries.iter().zip(&counts).enumerate() {
            let field = format!("plan.queries[{i}]");
            self.ids(&format!("{field}.token_ids"), &q.token_ids)?;
            self.answers(&field, &q.token_ids, &q.answers, answers)?;
            let (of_texts, expected) =
                (format!("{field}.choices"), format!("none, or one for each of {answers} answers"));
            self.that([0, answers].contains(&q.choices.len()), &of_texts, expected, q.choices.len())?;
            self.that(q.choices.iter().all(|text| !text.is_empty()), &of_texts, "texts", "an empty one")?;
            self.that(q.gold < answers, &format!("{field}.right"), format!("less than {answers}"), q.gold)?;
        }
        for (s, seed) in plan.seeds.iter().enumerate() {
            self.seed(&format!("plan.seeds[{s}]"), seed, &counts)?;
        }
        Ok(())
    }

    fn seed(&self, field: &str, seed: &SeedPlan, counts: &[usize]) -> Result<()> {
        let queries = counts.len();
        if !seed.icl_prefix_token_ids.is_empty() {
            self.ids(&format!("{field}.icl_prefix_token_ids"), &seed.icl_prefix_token_ids)?;
        }
        for (name, found) in
            [("icl_suffix_token_ids", seed.icl_suffix_token_ids.len()), ("icl_answers", seed.icl_answers.len())]
        {
            self.that(
                found == queries,
                &format!("{field}.{name}"),
                format!("one for each of {queries} queries"),
                found,
            )?;
        }
        let own = &seed.icl_query_tokens;
        let expected = format!("none, or one for each of {queries} queries");
        self.that([0, queries].contains(&own.len()), &format!("{field}.icl_query_tokens"), expected, own.len())?;
        for (i, (&own, suffix)) in own.iter().zip(&seed.icl_suffix_token_ids).enumerate() {
            let most = seed.icl_prefix_token_ids.len() + suffix.len();
            let expected = format!("from 1 to {most}");
            self.that((1..=most).contains(&own), &format!("{field}.icl_query_tokens[{i}]"), expected, own)?;
        }
        let suffixes = seed.icl_suffix_token_ids.iter().zip(&seed.icl_answers).zip(counts);
        for (i, ((suffix, list), &answers)) in suffixes.enumerate() {
            self.ids(&format!("{field}.icl_suffix_token_ids[{i}]"), suffix)?;
            let whole = [&seed.icl_prefix_token_ids[..], suffix].concat();
            self.answers(&format!("{field}.icl_answers[{i}]"), &whole, list, answers)?;
        }
        let (shown, learnt) = (seed.demonstrations.len(), seed.train.len());
        self.that(
            shown == learnt,
            &format!("{field}.train"),
            format!("one for each of {shown} demonstrations"),
            learnt,
        )?;
        let in_context = seed.icl_demonstration_token_ids.len();
        self.that(
            in_context == 0 || in_context == shown,
            &format!("{field}.icl_demonstration_token_ids"),
            format!("none, or one for each of {shown} demonstrations"),
            in_context,
        )?;
        for (i, ids) in seed.icl_demonstration_token_ids.iter().enumerate() {
            self.ids(&format!("{field}.icl_demonstration_token_ids[{i}]"), ids)?;
        }
        let alone = seed.train.iter().enumerate().map(|(i, example)| (format!("train[{i}]"), example));
        let after = seed.ipt_train.iter().enumerate().map(|(i, example)| (format!("ipt_train[{i}]"), example));
        for (name, example) in alone.chain(after) {
            let field = format!("{field}.{name}");
            self.ids(&format!("{field}.input_ids"), &example.input_ids)?;
            let expected = "-100 up to the answer, then its ids, at least one after the first token";
            self.that(example.scored().is_some(), &format!("{field}.labels"), expected, "other labels")?;
        }
        Ok(())
    }

    fn answers(&self, field: &str, prompt: &[u32], answers: &[Answer], count: usize) -> Result<()> {
        let expected = format!("one for each of {count} labels or choices");
        self.that(answers.len() == count, &format!("{field}.answers"), expected, answers.len())?;
        for (c, answer) in answers.iter().enumerate() {
            let field = format!("{field}.answers[{c}]");
            self.ids(&format!("{field}.token_ids"), &answer.token_ids)?;
            let most = prompt.len().saturating_sub(1);
            self.that(
                answer.replaces <= most,
                &format!("{field}.replaces"),
                format!("at most {most}"),
                answer.replaces,
            )?;
            let range = 1..=answer.token_ids.len();
            let expected = format!("from 1 to {}", range.end());
            self.that(range.contains(&answer.scored), &format!("{field}.scored"), expected, answer.scored)?;
        }
        Ok(())
    }

    fn ids(&self, field: &str, ids: &[u32]) -> Result<()> {
        self.that(!ids.is_empty(), field, "at least one id", "none")?;
        let outside = ids.iter().find(|&&id| id as usize >= self.vocab);
        outside.map_or(Ok(()), |id| self.that(false, field, format!("ids below {}", self.vocab), id))
    }

    fn that(&self, ok: bool, field: &str, expected: impl Into<String>, found: impl ToString) -> Result<()> {
        if ok { Ok(()) } else { Err(Error::field(self.path, field, expected, found.to_string())) }
    }
}
