//! The settings of a comparison.

use serde::{Deserialize, Serialize};

use crate::arch::Family;
use crate::model::GenerationConfig;
use crate::probe::arm::Arm;
use crate::train::settings::RunSettings;
use crate::{Error, Result};

/// The arms that a comparison may have.
pub const ARMS: [Arm; 6] = [Arm::ZeroShot, Arm::IclRandom, Arm::IclRetrieved, Arm::Lora, Arm::Pt, Arm::Ipt];

/// Groups of queries at most.
const MOST_BINS: usize = 10_000;
/// Resamples of a confidence interval at most.
const MOST_RESAMPLES: usize = 10_000_000;

/// By what demonstrations are retrieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retrieval {
    /// BM25 over the inputs' words.
    Bm25,
    /// The model's own states of the inputs, see [`mean_states`](crate::task::embedding::mean_states).
    States,
    /// A sentence-encoder's vectors, read from a file.
    Vectors,
}

impl std::str::FromStr for Retrieval {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "bm25" => Ok(Self::Bm25),
            "states" => Ok(Self::States),
            "vectors" => Ok(Self::Vectors),
            other => Err(Error::unsupported("retrieval", other, "bm25, states, vectors")),
        }
    }
}

/// What is compared, and how. Defaults are our own choices, not those of a paper.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompareSettings {
    /// Some of [`ARMS`], each once.
    pub arms: Vec<Arm>,
    /// Demonstrations before a query (default 1).
    pub demonstrations: usize,
    /// How they are retrieved (default BM25).
    pub retrieval: Retrieval,
    /// Lengths of the soft prompts in rows.
    pub lengths: Vec<usize>,
    /// Seeds of random demonstrations, of what is trained, and of its data order.
    pub seeds: Vec<u64>,
    /// Seed of the order in which examples become queries and pool.
    pub split_seed: u64,
    /// Queries of a task at most.
    pub queries: usize,
    /// Examples at most from which demonstrations are taken; none means all that are no queries.
    pub pool: Option<usize>,
    /// Examples of the pool, the first of it, that are trained on.
    pub train_examples: usize,
    /// Positions of a sequence at most: soft prompt (the longest), demonstrations, query and answer. What is longer
    /// loses demonstrations, those least like the query first, and what then is still longer is skipped; nothing is
    /// truncated. None means any number. Of a model that learned its positions there are never more than those.
    pub max_length: Option<usize>,
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Beams of the search; 1 is greedy.
    pub num_beams: usize,
    /// Strings at which an output ends, beside the template's own and the end-of-sequence token.
    pub stop: Vec<String>,
    /// Training of soft prompts. Its seed is the cell's.
    pub prompt_training: RunSettings,
    /// Training of the LoRA.
    pub lora_training: RunSettings,
    /// Rank of the LoRA.
    pub r: usize,
    /// Alpha of the LoRA.
    pub lora_alpha: f64,
    /// Adapted projections, by the family's names.
    pub target_modules: Vec<String>,
    /// Adapted layers; none means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Groups of queries by the similarity of their retrieved demonstrations.
    pub bins: usize,
    /// Resamples of the confidence intervals.
    pub resamples: usize,
    /// Rows of a pass, and rows of the KV cache while generating, at most; changes no output, and trainings in rounding only.
    pub rows: usize,
}

impl CompareSettings {
    /// Checks every field's domain, for a model of some family.
    ///
    /// # Errors
    /// [`Error::Argument`] with the field, as a path (`lora_training.learning_rate`) where it is of settings inside of these.
    pub fn validate(&self, family: Family) -> Result<()> {
        let check = |ok: bool, name: &str, expected: &str, found: String| {
            if ok { Ok(()) } else { Err(Error::argument(name, expected, found)) }
        };
        fn twice<T: Ord + Copy>(values: &[T]) -> bool {
            let mut sorted = values.to_vec();
            sorted.sort_unstable();
            sorted.windows(2).any(|pair| pair[0] == pair[1])
        }
        check(
            !self.arms.is_empty() && !twice(&self.arms),
            "arms",
            "some arms, each once",
            self.arms.len().to_string(),
        )?;
        let other = self.arms.iter().find(|arm| !ARMS.contains(arm));
        check(
            other.is_none(),
            "arms",
            "arms of a comparison",
            other.map_or_else(String::new, |arm| arm.name().into()),
        )?;
        check(!self.seeds.is_empty() && !twice(&self.seeds), "seeds", "at least 1", self.seeds.len().to_string())?;
        let demonstrated = self.arms.iter().any(|arm| arm.has_demonstrations());
        check(
            !demonstrated || self.demonstrations > 0,
            "demonstrations",
            "at least 1",
            self.demonstrations.to_string(),
        )?;
        let lengths = !self.lengths.is_empty() && !self.lengths.contains(&0) && !twice(&self.lengths);
        let soft = self.arms.iter().any(|arm| arm.has_soft_prompt());
        check(!soft || lengths, "lengths", "lengths from 1, each once", format!("{:?}", self.lengths))?;
        for (name, value) in
            [("queries", self.queries), ("train_examples", self.train_examples), ("rows", self.rows), ("r", self.r)]
        {
            check(value > 0, name, "at least 1", value.to_string())?;
        }
        for (name, value, least, most) in [
            ("max_new_tokens", self.max_new_tokens, 1, GenerationConfig::MOST_NEW_TOKENS),
            ("num_beams", self.num_beams, 1, GenerationConfig::MOST_BEAMS),
            ("bins", self.bins, 1, MOST_BINS),
            ("resamples", self.resamples, 0, MOST_RESAMPLES),
        ] {
            check((least..=most).contains(&value), name, &format!("from {least} to {most}"), value.to_string())?;
        }
        if self.arms.contains(&Arm::Lora) {
            family.targets(&self.target_modules)?;
        }
        self.prompt_training.validate_in("prompt_training")?;
        self.lora_training.validate_in("lora_training")
    }

    /// Rows of the longest soft prompt.
    pub(super) fn longest_prompt(&self) -> usize {
        let soft = self.arms.iter().any(|arm| arm.has_soft_prompt());
        self.lengths.iter().copied().filter(|_| soft).max().unwrap_or(0)
    }

    /// The lengths of an arm's soft prompts; one of none for arms without.
    pub(super) fn lengths(&self, arm: Arm) -> Vec<Option<usize>> {
        if arm.has_soft_prompt() { self.lengths.iter().copied().map(Some).collect() } else { vec![None] }
    }

    /// The seeds of an arm; one of none for arms in which nothing is random.
    pub(super) fn seeds(&self, arm: Arm) -> Vec<Option<u64>> {
        let random = arm.trains() || arm == Arm::IclRandom;
        if random { self.seeds.iter().copied().map(Some).collect() } else { vec![None] }
    }
}
