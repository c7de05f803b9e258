//! What demonstrations are: their labels, and how like the queries they are.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What the labels of demonstrations are, in the prompt and in the tuning alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelNoise {
    /// Those of the data.
    #[default]
    Gold,
    /// Every second demonstration has a wrong one.
    Half,
    /// Every demonstration has a wrong one: of two labels the other, of several one of the others at random.
    Flipped,
    /// Each is drawn from all labels.
    Random,
}

impl LabelNoise {
    /// By its name.
    ///
    /// # Errors
    /// No such name.
    pub fn parse(name: &str) -> Result<Self> {
        by_name(
            "labels",
            name,
            &[("gold", Self::Gold), ("half", Self::Half), ("flipped", Self::Flipped), ("random", Self::Random)],
        )
    }
}

/// Which part of the pool demonstrations are drawn from, by the mean similarity of an example to the queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// The quarter that is most like the queries.
    Near,
    /// All of it.
    #[default]
    Random,
    /// The quarter that is least like them.
    Far,
}

impl Similarity {
    /// By its name.
    ///
    /// # Errors
    /// No such name.
    pub fn parse(name: &str) -> Result<Self> {
        by_name("similarity", name, &[("near", Self::Near), ("random", Self::Random), ("far", Self::Far)])
    }
}

fn by_name<T: Copy>(factor: &str, name: &str, all: &[(&str, T)]) -> Result<T> {
    let found = all.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let names = || all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| Error::argument("vary", format!("{} as levels of {factor}", names()), format!("`{name}`")))
}

/// By what the similarity of demonstrations to the queries is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SimilarityBy {
    /// Words, see [`Retriever::bm25`](crate::task::retrieval::Retriever::bm25).
    #[default]
    Bm25,
    /// The model's own states, see [`mean_states`](crate::task::embedding::mean_states).
    States,
}
