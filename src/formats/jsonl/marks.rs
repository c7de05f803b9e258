//! Marks that say what of a row is learnt: of turns and of whole rows.

use std::path::Path;

use serde_json::Value;

use crate::formats::json::show;
use crate::{Error, Result};

/// Marks that are factors of a loss, of which 1 is neutral wherever it stands.
const FACTORS: [&str; 3] = ["weight", "loss_weight", "loss_scale"];
/// Marks that say that something is learnt.
const CHOICES: [&str; 5] = ["train", "training", "trainable", "loss_mask", "loss"];
/// Marks whose meaning differs from program to program.
const UNCLEAR: [&str; 4] = ["mask", "masked", "train_detail", "training_detail"];

/// The names of all marks that a turn may have.
pub fn names() -> impl Iterator<Item = &'static str> {
    FACTORS.into_iter().chain(CHOICES).chain(UNCLEAR)
}

/// Whether the marks of a turn say that it is learnt; none if it has none. A mark is its name, its value and how errors
/// name it; `own` is whether turns of its role are learnt at all.
///
/// # Errors
/// A mark is neither 0 nor 1, two contradict each other, one says that a turn is learnt whose role is not, or it is a
/// mark without a common meaning.
pub fn of_turn(location: &Path, own: bool, marks: &[(&str, &Value, String)]) -> Result<Option<bool>> {
    let mut learnt: Option<(bool, &str)> = None;
    for (key, value, field) in marks {
        let wrong = |expected: String| Error::field(location, field, expected, show(value));
        if UNCLEAR.contains(key) {
            return Err(wrong("a mark with one meaning, such as train or weight".to_owned()));
        }
        let is = zero_or_one(value).ok_or_else(|| wrong("0 or 1".to_owned()))?;
        match learnt {
            _ if is && !own && CHOICES.contains(key) => {
                return Err(wrong("0, as only turns of the assistant are learnt".to_owned()));
            }
            _ if !own => {}
            Some((other, name)) if other != is => {
                return Err(wrong(format!("{}, as {name} has it", u8::from(other))));
            }
            _ => learnt = Some((is, field)),
        }
    }
    Ok(learnt.map(|(is, _)| is))
}

/// The marks of a whole row, of which numbers and booleans are any: data sets have columns of such names.
pub const OF_ROWS: [&str; 3] = ["weight", "train", "trainable"];

/// Whether a row is learnt, by the marks that [`OF_ROWS`] names.
///
/// # Errors
/// A mark is a number other than 0 and 1.
pub fn of_row(location: &Path, marks: &[(&'static str, Value)]) -> Result<bool> {
    let mut learnt = true;
    for (key, value) in marks {
        let expected = "0 or 1; rows of other weights are not learnt";
        learnt &= zero_or_one(value).ok_or_else(|| Error::field(location, *key, expected, show(value)))?;
    }
    Ok(learnt)
}

fn zero_or_one(value: &Value) -> Option<bool> {
    match (value.as_bool(), value.as_f64()) {
        (Some(is), _) => Some(is),
        (_, Some(0.0)) => Some(false),
        (_, Some(1.0)) => Some(true),
        _ => None,
    }
}
