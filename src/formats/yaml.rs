//! YAML of configurations and templates.

use serde::de::DeserializeOwned;

/// Opening brackets that a text may have. The time of the parser grows with the square of how deep brackets nest.
const MOST_BRACKETS: usize = 4096;

/// Why a YAML text cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum YamlError {
    /// More than 4096 brackets, which no configuration needs; holds how many.
    #[error("expected at most {MOST_BRACKETS} opening brackets, found {0}")]
    Brackets(usize),
    /// The text is not YAML, or not of the form that is asked for.
    #[error(transparent)]
    Syntax(#[from] serde_norway::Error),
}

/// Parses a text, before which a byte order mark may stand.
///
/// # Errors
/// See [`YamlError`].
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    match text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() {
        found if found > MOST_BRACKETS => Err(YamlError::Brackets(found)),
        _ => Ok(serde_norway::from_str(text.strip_prefix('\u{FEFF}').unwrap_or(text))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_with_too_many_brackets_is_refused() {
        let nested = "[".repeat(100_000);
        let error = parse::<Vec<u8>>(&nested).expect_err("refused").to_string();
        assert!(error.contains("4096") && error.contains("100000"), "{error}");
        assert_eq!(parse::<Vec<u8>>("\u{FEFF}[1, 2]").expect("a list"), [1, 2]);
    }
}
