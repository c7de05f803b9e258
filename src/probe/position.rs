//! The tokens whose states are compared.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The tokens whose states are compared. A query's tokens are those at the end of its prompt that are the same with and
/// without demonstrations, so that every arm has a state for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// The last token of every query: a row for each query.
    #[default]
    Last,
    /// All tokens of every query: a row for each token.
    All,
    /// The tokens of the gold answer's scored part, after the query: the state after each of them.
    Label,
    /// The mean over the tokens of a query: a row for each query.
    Mean,
    /// The last token before the answer of every demonstration: a row for each demonstration, in the other arms of the
    /// demonstration alone.
    Demos,
}

impl Position {
    /// In the order of messages that list them.
    pub const ALL: [Self; 5] = [Self::Last, Self::All, Self::Label, Self::Mean, Self::Demos];

    /// As the command line spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::All => "all",
            Self::Label => "label",
            Self::Mean => "mean",
            Self::Demos => "demos",
        }
    }

    /// The position of a name.
    ///
    /// # Errors
    /// No such name.
    pub fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|position| position.name() == name);
        found.ok_or_else(|| Error::unsupported("position", name, Self::ALL.map(Self::name).join(", ")))
    }
}
