//! Where states are read.

use serde::{Deserialize, Serialize};

/// Where a state is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layer {
    /// After block `i`: `blocks.{i}.hook_resid_post`.
    Block(usize),
    /// After the final norm.
    Final(Final),
}

/// The state that is spelt `"final"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Final {
    /// After the final norm.
    Final,
}

impl Layer {
    /// The name of the `i`th of `count` states of a query: every block's, then the final norm's.
    pub(super) fn of(i: usize, count: usize) -> Self {
        if i + 1 == count { Self::Final(Final::Final) } else { Self::Block(i) }
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block(i) => write!(f, "{i}"),
            Self::Final(_) => f.write_str("final"),
        }
    }
}
