//! Lengths of answers, by which their log-probabilities are divided before they are compared.

use serde::{Deserialize, Serialize};

use super::prompts::Answer;
use crate::{Error, Result};

/// By what the log-probability of an answer, the sum over its tokens, is divided before answers are compared. Lengths are of the
/// answer's text alone, without what a template puts around it, as in lm-evaluation-harness 0.4.13.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LengthNormalization {
    /// By nothing: `acc` of lm-evaluation-harness.
    #[default]
    None,
    /// By its characters (Unicode code points): `acc_norm` of lm-evaluation-harness.
    Characters,
    /// By its bytes in UTF-8: `acc_bytes` of lm-evaluation-harness.
    Bytes,
    /// By the tokens that are scored, so that it is their mean (Brown et al. 2020, section 2.4).
    Tokens,
}

impl LengthNormalization {
    /// The name of the accuracy that comes of it, with lm-evaluation-harness's where that has it.
    pub const fn accuracy(self) -> &'static str {
        match self {
            Self::None => "accuracy",
            Self::Characters => "accuracy per character (acc_norm)",
            Self::Bytes => "accuracy per byte (acc_bytes)",
            Self::Tokens => "accuracy per token",
        }
    }

    /// The length of each of a query's answers; 1 where none counts. `texts` are the answers' own, which may be absent where
    /// they are not [read](Self::reads_texts).
    ///
    /// # Panics
    /// If texts are read and are not one for each answer.
    pub fn lengths(self, texts: &[String], answers: &[Answer]) -> Vec<f64> {
        let of_texts = |length: fn(&String) -> usize| -> Vec<f64> {
            assert_eq!(texts.len(), answers.len(), "lengths: one text for each answer");
            texts.iter().map(|text| length(text) as f64).collect()
        };
        match self {
            Self::None => vec![1.0; answers.len()],
            Self::Characters => of_texts(|text| text.chars().count()),
            Self::Bytes => of_texts(String::len),
            Self::Tokens => answers.iter().map(|answer| answer.scored as f64).collect(),
        }
    }

    /// Refuses lengths of answers that are compared with no others.
    ///
    /// # Errors
    /// The task is free text, and this is not [`LengthNormalization::None`].
    pub fn check(self, is_closed: bool) -> Result<()> {
        if is_closed || self == Self::None {
            return Ok(());
        }
        let expected = "none, for free text, which is not compared with other answers";
        Err(Error::argument("length_normalization", expected, format!("{self:?}").to_lowercase()))
    }

    /// Whether a length is one of the answer's text.
    pub const fn reads_texts(self) -> bool {
        matches!(self, Self::Characters | Self::Bytes)
    }
}

/// Log-probabilities of queries' answers divided by [lengths](LengthNormalization::lengths).
pub fn by_length(log_probs: &[Vec<f64>], lengths: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let query = |(all, lengths): (&Vec<f64>, &Vec<f64>)| all.iter().zip(lengths).map(|(x, n)| x / n).collect();
    log_probs.iter().zip(lengths).map(query).collect()
}
