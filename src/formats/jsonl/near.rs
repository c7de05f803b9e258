//! Keys that are almost those of a row's form. Data sets carry any columns, which are left alone; a key that would be
//! read if it were spelt right is not.

use serde_json::{Map, Value};

use crate::formats::json::show;
use crate::{Error, Result};

/// What the value of a key looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text as it is.
    Text,
    /// A list, or a list in a string.
    List,
    /// An object.
    Object,
    /// A boolean, or 0 or 1.
    Mark,
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text, Value::String(_)) | (Self::List, Value::Array(_)) | (Self::Object, Value::Object(_)) => true,
            (Self::List, Value::String(text)) => text.trim_start().starts_with('['),
            (Self::Mark, value) => value.is_boolean() || value.is_number(),
            _ => false,
        }
    }
}

/// Refuses a key of `map` that is almost one of `known` which the map lacks, and whose value is of that one's kind;
/// `field` names a key in the error.
///
/// # Errors
/// There is such a key.
pub fn check(
    location: &std::path::Path,
    map: &Map<String, Value>,
    known: &[(&str, Kind)],
    field: impl Fn(&str) -> String,
) -> Result<()> {
    for (key, value) in map.iter().filter(|(key, _)| known.iter().all(|(name, _)| name != key)) {
        let meant = known.iter().find(|(name, kind)| !map.contains_key(*name) && kind.fits(value) && near(key, name));
        if let Some((name, _)) = meant {
            return Err(Error::field(location, field(key), format!("{name}, if that is meant"), show(value)));
        }
    }
    Ok(())
}

/// Whether a key is a name but for its case, its separators, or a slip or two in a long one.
fn near(key: &str, name: &str) -> bool {
    let plain = |text: &str| text.replace(['_', '-', ' '], "").to_lowercase();
    let slips = if name.len() < 7 { 1 } else { 2 };
    plain(key) == plain(name) || strsim::osa_distance(key, name) <= slips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_keys_are_slips_not_other_words() {
        for (key, name) in [("lables", "labels"), ("attentionMask", "attention_mask"), ("Input", "input")] {
            assert!(near(key, name), "{key}");
        }
        for (key, name) in [("source", "system"), ("output", "input"), ("history", "input"), ("label_names", "labels")]
        {
            assert!(!near(key, name), "{key}");
        }
    }
}
