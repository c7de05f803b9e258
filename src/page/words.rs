//! Numbers and texts as a page writes them.

use crate::probe::statistics::MeanSd;

/// A number with so many decimals, and a minus that is as wide as a plus.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let zero = text.bytes().all(|b| matches!(b, b'-' | b'0' | b'.'));
    match text.strip_prefix('-') {
        Some(rest) if zero => rest.to_owned(),
        Some(rest) => format!("\u{2212}{rest}"),
        None => text,
    }
}

/// Mean ± SD with so many decimals.
pub fn mean_sd(value: MeanSd, digits: usize) -> String {
    match (value.mean, value.sd) {
        (Some(mean), Some(sd)) => format!("{} ± {}", number(mean, digits), number(sd, digits)),
        (Some(mean), None) => number(mean, digits),
        (None, _) => "–".to_owned(),
    }
}

/// A count with the word for what is counted.
pub fn count(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// `a`, `a and b`, `a, b and c`.
pub fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// With a capital letter first.
pub fn capitalized(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A text whose line ends can be seen.
pub fn visible(text: &str) -> String {
    text.replace('\n', "⏎\n").trim_end_matches('\n').to_owned()
}

/// A text in which what is no character of a document is U+FFFD.
pub fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "\u{fffd}")
}

/// A text as HTML shows it, also within quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_digits() {
        assert_eq!(number(-0.25, 1), "\u{2212}0.2");
        assert_eq!(number(-0.0004, 3), "0.000");
        assert_eq!(mean_sd(MeanSd { mean: Some(0.5), sd: Some(0.0126) }, 3), "0.500 ± 0.013");
        assert_eq!(mean_sd(MeanSd { mean: Some(2.0), sd: None }, 1), "2.0");
        assert_eq!(list(&["a", "b", "c"].map(String::from)), "a, b and c");
    }

    #[test]
    fn escaped_text_is_no_markup() {
        assert_eq!(escape("<b a='1' c=\"&\">\u{0}\n"), "&lt;b a=&#39;1&#39; c=&quot;&amp;&quot;&gt;\u{fffd}\n");
    }
}
