//! The factors of a study: what of a probe is varied, over which levels.
//!
//! Levels of several factors cross. What conditions have in common is computed once: see [`super::run_conditions`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::demonstrations::{LabelNoise, Similarity};
use super::settings::ProbeSettings;
use crate::{Error, Result};

/// What a study may vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Factor {
    /// Number of demonstrations. A seed's larger set continues its smaller one; with none, ICL is the query alone and
    /// nothing is tuned.
    Demos,
    /// What the demonstrations' labels are ([`LabelNoise`]).
    Labels,
    /// The task whose examples are shown and tuned on; its own template goes with them.
    Source,
    /// How like the queries the demonstrations are ([`Similarity`]).
    Similarity,
    /// How an example becomes text: `default`, or a template as YAML.
    Template,
    /// The order of the demonstrations: 0 as drawn, others are permutations of it. Tuning sees them as drawn.
    Order,
    /// Optimiser steps of the tuning: its trajectory, of one training.
    Steps,
    /// LoRA rank.
    R,
    /// Learning rate of the tuning.
    LearningRate,
    /// Adapted modules.
    TargetModules,
    /// The base model that everything runs in.
    Model,
}

impl Factor {
    /// In the order of messages that list them.
    pub const ALL: [Self; 11] = [
        Self::Demos,
        Self::Labels,
        Self::Source,
        Self::Similarity,
        Self::Template,
        Self::Order,
        Self::Steps,
        Self::R,
        Self::LearningRate,
        Self::TargetModules,
        Self::Model,
    ];

    /// As the command line and reports spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Demos => "demos",
            Self::Labels => "labels",
            Self::Source => "source",
            Self::Similarity => "similarity",
            Self::Template => "template",
            Self::Order => "order",
            Self::Steps => "steps",
            Self::R => "r",
            Self::LearningRate => "learning-rate",
            Self::TargetModules => "target-modules",
            Self::Model => "model",
        }
    }

    /// The factor of a name; underscores count as dashes.
    ///
    /// # Errors
    /// No factor has this name.
    pub fn parse(name: &str) -> Result<Self> {
        let dashed = name.trim().replace('_', "-");
        let found = Self::ALL.into_iter().find(|factor| factor.name() == dashed);
        found.ok_or_else(|| Error::unsupported("factor", name, Self::ALL.map(Self::name).join(", ")))
    }

    /// Whether a level is itself a list, so that levels are separated by semicolons.
    const fn is_of_lists(self) -> bool {
        matches!(self, Self::TargetModules | Self::Template)
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A factor and its levels, as `NAME=LEVELS`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vary {
    /// What varies.
    pub factor: Factor,
    /// Over what: numbers where the factor is one, else texts. Each once.
    pub levels: Vec<Value>,
}

/// The levels of a condition, by the factors' names.
pub type Levels = BTreeMap<Factor, Value>;

impl Vary {
    /// Reads `NAME=LEVELS`: levels with commas between, or with semicolons where a level is a list or a text with commas
    /// (`target-modules=q_proj,v_proj;all-linear`). `order=N` stands for the levels 0 to N - 1.
    ///
    /// # Errors
    /// An unknown factor, no level, a level twice, or one out of the factor's domain.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |found: &str| Error::argument("vary", "NAME=LEVELS, such as demos=0,1,2,4", format!("`{found}`"));
        let (name, levels) = text.split_once('=').ok_or_else(|| bad(text))?;
        let factor = Factor::parse(name)?;
        let separator = if factor.is_of_lists() || levels.contains(';') { ';' } else { ',' };
        let texts: Vec<&str> = levels.split(separator).map(str::trim).filter(|level| !level.is_empty()).collect();
        if texts.is_empty() {
            return Err(bad(text));
        }
        let levels = match (factor, &texts[..]) {
            (Factor::Order, &[count]) => {
                let count = whole(factor, count)?.as_u64().unwrap_or(0);
                if count == 0 || count > MAX_ORDERS {
                    return Err(level_error(factor, &format!("a number of orders from 1 to {MAX_ORDERS}"), count));
                }
                (0..count).map(Value::from).collect()
            }
            _ => texts.into_iter().map(|level| parse_level(factor, level)).collect::<Result<Vec<Value>>>()?,
        };
        for (i, level) in levels.iter().enumerate() {
            if levels[..i].contains(level) {
                return Err(level_error(factor, "each level once", format!("{level} twice")));
            }
        }
        Ok(Self { factor, levels })
    }
}

/// Orders of the demonstrations at most: a bound on what a typing error can ask for.
const MAX_ORDERS: u64 = 1000;

fn level_error(factor: Factor, expected: &str, found: impl ToString) -> Error {
    Error::argument("vary", format!("{expected} as levels of {factor}"), found.to_string())
}

fn whole(factor: Factor, text: &str) -> Result<Value> {
    text.parse::<u64>().map(Value::from).map_err(|_| level_error(factor, "whole numbers from 0", format!("`{text}`")))
}

/// A level as numbers are numbers; what a factor's words are is checked here, what needs a task or a model later.
fn parse_level(factor: Factor, text: &str) -> Result<Value> {
    match factor {
        Factor::Demos | Factor::Order | Factor::Steps | Factor::R => whole(factor, text),
        Factor::LearningRate => {
            let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
            rate.map(Value::from).ok_or_else(|| level_error(factor, "numbers from 0", format!("`{text}`")))
        }
        Factor::Labels => LabelNoise::parse(text).map(|_| text.into()),
        Factor::Similarity => Similarity::parse(text).map(|_| text.into()),
        Factor::Source | Factor::Template | Factor::TargetModules | Factor::Model => Ok(text.into()),
    }
}

/// Every combination of levels, those of the first factor outermost; a single condition without levels where nothing
/// varies.
///
/// # Errors
/// A factor that is given twice.
pub fn cross(factors: &[Vary]) -> Result<Vec<Levels>> {
    let mut conditions = vec![Levels::new()];
    for (i, vary) in factors.iter().enumerate() {
        if factors[..i].iter().any(|other| other.factor == vary.factor) {
            return Err(Error::argument("vary", "each factor once", format!("{} twice", vary.factor)));
        }
        let with = |condition: &Levels| {
            let condition = condition.clone();
            vary.levels.iter().map(move |level| {
                let mut condition = condition.clone();
                condition.insert(vary.factor, level.clone());
                condition
            })
        };
        conditions = conditions.iter().flat_map(with).collect();
    }
    Ok(conditions)
}

impl ProbeSettings {
    /// The settings of a condition: these, with its levels. `source`, `template` and `model` are for whoever has the data,
    /// the tokenizer and the weights.
    ///
    /// # Errors
    /// A level that is no value of its factor.
    pub fn at(&self, levels: &Levels) -> Result<Self> {
        let mut settings = self.clone();
        for (&factor, level) in levels {
            let number = || level.as_u64().ok_or_else(|| level_error(factor, "a whole number", level));
            let text = || level.as_str().ok_or_else(|| level_error(factor, "a text", level));
            match factor {
                Factor::Demos => settings.demonstrations = number()? as usize,
                Factor::Labels => settings.labels = LabelNoise::parse(text()?)?,
                Factor::Similarity => settings.similarity = Similarity::parse(text()?)?,
                Factor::Order => settings.order = number()?,
                Factor::Steps => settings.max_steps = Some(number()?),
                Factor::R => settings.r = number()? as usize,
                Factor::LearningRate => {
                    settings.learning_rate = level.as_f64().ok_or_else(|| level_error(factor, "a number", level))?;
                }
                Factor::TargetModules => {
                    settings.target_modules = text()?.split(',').map(|name| name.trim().to_owned()).collect();
                }
                Factor::Source => settings.source = Some(text()?.to_owned()),
                Factor::Template | Factor::Model => (),
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_numbers_where_factors_are() {
        let levels = |text: &str| Vary::parse(text).expect(text).levels;
        assert_eq!(levels("demos=0,1, 16"), [0, 1, 16].map(Value::from));
        assert_eq!(levels("labels=gold,flipped"), ["gold", "flipped"].map(Value::from));
        assert_eq!(levels("order=3"), [0, 1, 2].map(Value::from));
        assert_eq!(levels("learning_rate=1e-3,0.01"), [0.001, 0.01].map(Value::from));
        assert_eq!(levels("target-modules=q_proj,v_proj;all-linear"), ["q_proj,v_proj", "all-linear"].map(Value::from));
        assert_eq!(levels("target-modules=q_proj,v_proj"), ["q_proj,v_proj"].map(Value::from));
    }

    #[test]
    fn levels_out_of_their_domain_are_errors_that_name_the_factor() {
        for (text, expected) in [
            ("demos", "NAME=LEVELS"),
            ("demos=", "NAME=LEVELS"),
            ("shots=1", "factor"),
            ("demos=1,1", "twice"),
            ("demos=-1", "demos"),
            ("steps=ten", "steps"),
            ("order=0", "order"),
            ("labels=wrong", "gold, half, flipped, random"),
            ("similarity=close", "near, random, far"),
            ("learning-rate=nan", "learning-rate"),
        ] {
            let error = Vary::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn factors_cross_with_the_first_outermost() {
        let factors = ["labels=gold,half", "demos=1,2"].map(|text| Vary::parse(text).expect(text));
        let conditions = cross(&factors).expect("two factors");
        let show = |levels: &Levels| levels.iter().map(|(f, v)| format!("{f}={v}")).collect::<Vec<_>>().join(" ");
        let expected = [
            "demos=1 labels=\"gold\"",
            "demos=2 labels=\"gold\"",
            "demos=1 labels=\"half\"",
            "demos=2 labels=\"half\"",
        ];
        assert_eq!(conditions.iter().map(show).collect::<Vec<_>>(), expected);
        assert_eq!(cross(&[]).expect("no factor"), [Levels::new()]);
        assert!(cross(&[factors[0].clone(), factors[0].clone()]).is_err());
    }
}
