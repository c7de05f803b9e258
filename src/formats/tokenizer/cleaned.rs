//! Decoded text without the spaces that an English word tokenizer leaves before punctuation.

/// What becomes of what, one after another, as `clean_up_tokenization` of transformers does it.
const CLEANED: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// `text` without the spaces that `clean_up_tokenization` of transformers takes out.
pub(super) fn clean(text: &str) -> String {
    CLEANED.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Takes from the front of a growing text what no later text changes, cleaned.
///
/// A character that is in none of the patterns parts what is before it from what is behind.
pub(super) fn take_settled(text: &mut String) -> String {
    let settled = |c: char| !CLEANED.iter().any(|(from, _)| from.contains(c));
    let end = text.char_indices().rfind(|&(_, c)| settled(c)).map_or(0, |(at, c)| at + c.len_utf8());
    let rest = text.split_off(end);
    clean(&std::mem::replace(text, rest))
}
