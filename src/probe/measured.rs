//! Which measures a probe takes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::nearest;
use crate::measures::{Measure, Settings};
use crate::{Error, Result};

/// The measures beside those of states: what each arm's states say of the labels, of attention, of answers, of adapters.
const OTHERS: [&str; 7] = ["logit_lens", "attribution", "linear_probe", "sim_aou", "sim_am", "outputs", "lora_overlap"];

/// Those that are of the query's last token, and are there where its states are compared.
const OF_THE_LAST: [&str; 4] = ["logit_lens", "attribution", "linear_probe", "sim_am"];

/// The measures of a probe by their names: those of [`Measure`], and `logit_lens`, `attribution`, `linear_probe`, `sim_aou`,
/// `sim_am`, `outputs` (agreement, KL divergence, entropy, calibration error, Rec2FTP) and `lora_overlap`. Cosines and scores are always there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Measures(BTreeSet<String>);

impl Measures {
    /// All of them.
    pub fn all() -> Self {
        Self(Self::names().map(str::to_owned).collect())
    }

    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Measure::ALL.map(Measure::name).into_iter().chain(OTHERS)
    }

    /// Those of a list of names, of which `all` stands for every one and `none` for none.
    ///
    /// # Errors
    /// `measures`: an unknown name.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self> {
        let mut found = BTreeSet::new();
        for name in names.iter().map(|name| name.as_ref().trim()) {
            match name {
                "all" => found.extend(Self::all().0),
                "none" => (),
                name if Self::names().any(|known| known == name) => drop(found.insert(name.to_owned())),
                name => {
                    let hint =
                        nearest(name, Self::names()).map_or(String::new(), |near| format!(" (the nearest is {near})"));
                    let expected = format!("all, none or some of {}", Self::names().collect::<Vec<_>>().join(", "));
                    return Err(Error::argument("measures", expected, format!("{name}{hint}")));
                }
            }
        }
        Ok(Self(found))
    }

    /// Whether a measure is asked for.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Those that another position than [`Position::Last`](super::Position::Last) has none of, where each was asked for by its name: `all`
    /// is what there is.
    pub(super) fn only_of_the_last(&self) -> Vec<&'static str> {
        if *self == Self::all() { Vec::new() } else { OF_THE_LAST.into_iter().filter(|name| self.has(name)).collect() }
    }

    /// The measures of states, with a seed for their baselines; none where none is asked for.
    pub(super) fn of_states(&self, seed: u64) -> Option<Settings> {
        let measures: Vec<Measure> = Measure::ALL.into_iter().filter(|measure| self.has(measure.name())).collect();
        (!measures.is_empty()).then(|| Settings { measures, seed, ..Settings::default() })
    }
}

impl TryFrom<Vec<String>> for Measures {
    type Error = Error;

    fn try_from(names: Vec<String>) -> Result<Self> {
        Self::parse(&names)
    }
}

impl From<Measures> for Vec<String> {
    fn from(measures: Measures) -> Self {
        Measures::names().filter(|name| measures.has(name)).map(str::to_owned).collect()
    }
}
