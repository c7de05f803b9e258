//! What the model says, judged: by log-probabilities ([`score`]), or by the texts it writes ([`Metric`]).
//!
//! Every metric of texts is a function of sums over the examples: of [`Metric::judge`]'s statistics of each. So the
//! score of a part of the examples, or of a resample ([`interval`]), needs no text again.

mod blec;
mod bleu;
mod bootstrap;
mod chrf;
mod exact;
mod overlap;

use serde::{Deserialize, Serialize};

use super::example::Example;
use super::lengths::by_length;
use crate::measures::outputs::answer;

pub use bootstrap::{Interval, interval};
pub(super) use exact::{is_parse, sql_names};

/// The version of sacreBLEU whose numbers [`Metric::Bleu`] and [`Metric::ChrF`] are.
const SACREBLEU: &str = "2.6.0";

/// The version of rouge-score whose numbers [`Metric::RougeL`] are.
const ROUGE_SCORE: &str = "0.1.2";

/// A metric of texts, from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Share of the queries whose gold label or choice has the highest log-probability; of outputs that are written, share
    /// of those that are the gold one, as [`Metric::Exact`].
    Accuracy,
    /// Share of the outputs that are a gold one, but for white space at the ends.
    #[serde(rename = "exact_match")]
    Exact,
    /// Corpus BLEU (Papineni et al. 2002) as sacreBLEU computes it (Post 2018): 13a tokens, exponential smoothing, the
    /// closest reference's length.
    Bleu,
    /// chrF2 (Popović 2015) as sacreBLEU computes it.
    ChrF,
    /// Mean F1 of words as SQuAD's evaluation computes it (Rajpurkar et al. 2016): see `overlap`.
    F1,
    /// Mean F-measure of ROUGE-L (Lin 2004) as rouge-score computes it without a stemmer.
    #[serde(rename = "rouge_l")]
    RougeL,
    /// Share of the outputs in which BLEC's rules (Shu et al. 2021) find no error.
    Blec,
    /// Share of the queries that are a gold one but for what SQL does not tell apart: see `exact`.
    Sql,
    /// Share of the parses whose tree is a gold one.
    Parse,
}

impl Metric {
    /// As tables and signatures spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Exact => "exact match",
            Self::Bleu => "BLEU",
            Self::ChrF => "chrF2",
            Self::F1 => "F1",
            Self::RougeL => "ROUGE-L",
            Self::Blec => "BLEC",
            Self::Sql => "SQL match",
            Self::Parse => "parse match",
        }
    }

    /// The statistics of one output, whose sums over examples [`Metric::score`] reads.
    ///
    /// # Panics
    /// For [`Metric::Blec`], if the example has no logical form.
    pub fn judge(self, output: &str, example: &Example) -> Vec<f64> {
        let share = |hit: bool| vec![f64::from(u8::from(hit)), 1.0];
        let best = |measure: fn(&str, &str) -> f64| {
            vec![example.gold().map(|gold| measure(output, gold)).fold(0.0, f64::max), 1.0]
        };
        match self {
            Self::Accuracy | Self::Exact => share(example.gold().any(|gold| gold.trim() == output.trim())),
            Self::Bleu => bleu::statistics(output, example.gold()),
            Self::ChrF => chrf::statistics(output, example.gold()),
            Self::F1 => best(overlap::f1),
            Self::RougeL => best(overlap::rouge_l),
            Self::Blec => {
                let logic = example.logical_form.as_deref().expect("BLEC: an example with its logic");
                share(blec::errors(logic, output, &example.output).is_empty())
            }
            Self::Sql => share(example.gold().any(|gold| exact::sql(gold) == exact::sql(output))),
            Self::Parse => share(example.gold().any(|gold| exact::same_parse(gold, output))),
        }
    }

    /// The score of examples whose statistics have these sums; 0 for none.
    pub fn score(self, sums: &[f64]) -> f64 {
        match self {
            Self::Bleu => bleu::score(sums),
            Self::ChrF => chrf::score(sums),
            _ => 100.0 * sums.first().unwrap_or(&0.0) / sums.get(1).unwrap_or(&0.0).max(1.0),
        }
    }

    /// The score of all of `statistics`.
    pub fn corpus(self, statistics: &[Vec<f64>]) -> f64 {
        self.score(&sums(statistics.iter()))
    }

    /// What must be said beside a score for it to be comparable, over examples with these numbers of references:
    /// sacreBLEU's signature, or one like it, with the version that agrees with this program's numbers.
    pub fn signature(self, references: impl IntoIterator<Item = usize>) -> String {
        let mut counts: Vec<usize> = references.into_iter().collect();
        counts.sort_unstable();
        counts.dedup();
        let nrefs = match counts[..] {
            [one] => one.to_string(),
            _ => "var".to_string(),
        };
        match self {
            Self::Bleu => format!("nrefs:{nrefs}|case:mixed|eff:no|tok:13a|smooth:exp|version:{SACREBLEU}"),
            Self::ChrF => format!("nrefs:{nrefs}|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{SACREBLEU}"),
            Self::RougeL => format!("nrefs:{nrefs}|stemmer:no|version:{ROUGE_SCORE}"),
            Self::F1 => format!("nrefs:{nrefs}|evaluation:SQuAD 2.0"),
            other => other.name().to_string(),
        }
    }
}

/// Sums of the examples' statistics, element by element.
fn sums<'a>(statistics: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut out = Vec::new();
    for one in statistics {
        out.resize(one.len(), 0.0);
        out.iter_mut().zip(one).for_each(|(sum, x)| *sum += x);
    }
    out
}

/// Python's `str.split()`: white space there includes four control characters that Unicode's property has not.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).filter(|word| !word.is_empty())
}

/// How well one arm answers, over its queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Share of the queries whose gold label or choice is the model's answer; `None` for free text.
    pub accuracy: Option<f64>,
    /// Mean log-probability (natural) of the gold answer.
    pub log_prob: f64,
}

/// Scores queries from the log-probabilities of their candidate answers.
///
/// `log_probs[i][c]` is the log-probability of candidate `c` of query `i`: the sum over all tokens of its string. The model's
/// answer is the candidate with the greatest of them, each divided by its length in `lengths`
/// ([`LengthNormalization::lengths`](super::LengthNormalization::lengths)), of equals the first. `gold[i]` is the gold one. With
/// `labelled = false` the only candidate is the gold one, and there is no accuracy.
///
/// # Panics
/// If there are no queries, or not one of `lengths` and `gold` for each.
pub fn score(log_probs: &[Vec<f64>], lengths: &[Vec<f64>], gold: &[usize], labelled: bool) -> Scores {
    let queries = [log_probs.len(), lengths.len(), gold.len()];
    assert!(queries[0] > 0 && queries == [queries[0]; 3], "score: log-probabilities, lengths, gold: {queries:?}");
    let n = log_probs.len() as f64;
    let log_prob = log_probs.iter().zip(gold).map(|(l, &g)| l[g]).sum::<f64>() / n;
    let hits = by_length(log_probs, lengths).iter().zip(gold).filter(|(l, g)| answer(l) == **g).count();
    Scores { accuracy: labelled.then(|| hits as f64 / n), log_prob }
}
