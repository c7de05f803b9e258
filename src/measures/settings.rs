//! Which measures of states are asked for, and what they depend on.

use serde::{Deserialize, Serialize};

use crate::error::nearest;
use crate::{Error, Result};

/// Rows of a neighbourhood, where it is not given and a quarter of the rows is not fewer.
const NEIGHBOURS: usize = 30;

/// A measure of the states of two arms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Cosine of the states.
    Cosine,
    /// Cosine of the updates from the anchor.
    Update,
    /// Ratio of the norms of the updates.
    NormRatio,
    /// Linear CKA of biased HSICs.
    Cka,
    /// Linear CKA of unbiased HSICs, 0 in expectation for independent states.
    CkaDebiased,
    /// Mean canonical correlation of the leading singular directions (SVCCA).
    Svcca,
    /// Overlap of the sets of nearest neighbours.
    KnnOverlap,
    /// Intrinsic dimension of each arm's states.
    Id,
    /// Overlap of the leading principal directions.
    SubspaceOverlap,
}

impl Measure {
    /// All, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Cosine,
        Self::Update,
        Self::NormRatio,
        Self::Cka,
        Self::CkaDebiased,
        Self::Svcca,
        Self::KnnOverlap,
        Self::Id,
        Self::SubspaceOverlap,
    ];

    /// Its name in lists and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Update => "update",
            Self::NormRatio => "norm_ratio",
            Self::Cka => "cka",
            Self::CkaDebiased => "cka_debiased",
            Self::Svcca => "svcca",
            Self::KnnOverlap => "knn_overlap",
            Self::Id => "id",
            Self::SubspaceOverlap => "subspace_overlap",
        }
    }

    /// Those of a list of names, of which `all` stands for every one; in the order of reports.
    ///
    /// # Errors
    /// `measures`: an unknown name, or none.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for name in names.iter().map(|name| name.as_ref().trim()) {
            match Self::ALL.into_iter().find(|measure| measure.name() == name) {
                Some(measure) => found.push(measure),
                None if name == "all" => found.extend(Self::ALL),
                None => {
                    let known = Self::ALL.map(Self::name);
                    let hint = nearest(name, known).map_or(String::new(), |near| format!(" (the nearest is {near})"));
                    let expected = format!("all or some of {}", known.join(", "));
                    return Err(Error::argument("measures", expected, format!("{name}{hint}")));
                }
            }
        }
        if found.is_empty() {
            return Err(Error::argument("measures", "at least one", "none"));
        }
        Ok(Self::ALL.into_iter().filter(|measure| found.contains(measure)).collect())
    }
}

/// What is measured of states, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Which are computed; a report has no others.
    pub measures: Vec<Measure>,
    /// Rows of a neighbourhood; none for 30, or a quarter of the rows where that is fewer (but at least one).
    pub knn: Option<usize>,
    /// Leading principal directions of a subspace.
    pub subspace: usize,
    /// Seed of the shuffles and of the Gaussian rows of the baselines.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { measures: Measure::ALL.to_vec(), knn: None, subspace: 10, seed: 0 }
    }
}

impl Settings {
    /// Whether a measure is asked for.
    pub fn has(&self, measure: Measure) -> bool {
        self.measures.contains(&measure)
    }

    /// Rows of a neighbourhood among `n` rows; none where `n - 1` others are fewer.
    pub fn neighbours(&self, n: usize) -> Option<usize> {
        let k = self.knn.unwrap_or((n / 4).clamp(1, NEIGHBOURS));
        (k > 0 && k < n).then_some(k)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// `measures` is empty, `knn` or `subspace` is 0.
    pub fn validate(&self) -> Result<()> {
        if self.measures.is_empty() {
            return Err(Error::argument("measures", "at least one", "none"));
        }
        for (name, value) in [("knn", self.knn.unwrap_or(1)), ("subspace", self.subspace)] {
            if value == 0 {
                return Err(Error::argument(name, "at least 1", value));
            }
        }
        Ok(())
    }
}
