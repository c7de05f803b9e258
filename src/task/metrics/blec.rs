//! BLEC for Logic2Text (Shu et al. 2021, arXiv 2108.00577): which operators and numbers of a logical form have no
//! counterpart in a text. The keywords and rules are those of its authors' program, github.com/chatc/BLEC, with what is
//! odd in them, since scores are compared with theirs:
//!
//! - a text with the letters `not` anywhere is an error, since no operator is called that;
//! - the number 1 is always found, and 8 is spelt `nine` or `eighth`;
//! - of the keywords any one is enough, also for an operator that combines two meanings, and in any part of a word.

const MIN: &[&str] = &[
    "minimum",
    "fastest",
    "smallest",
    "shortest",
    "worst",
    "youngest",
    "least",
    "lowest",
    "earliest",
    "any",
    "highest rank",
    "latest",
    "longest",
    "oldest",
];
const MAX: &[&str] = &[
    "max",
    "slowest",
    "largest",
    "longest",
    "oldest",
    "top",
    "best",
    "most",
    "highest",
    "latest",
    "larger than any",
    "lowest rank",
    "predominantly",
    "earliest",
    "shortest",
    "newest",
];
const GREATER: &[&str] = &[
    "faster",
    "greater",
    "larger",
    "older",
    "more",
    "bigger",
    "higher",
    "after",
    "above",
    "over",
    "at least",
    "worse rank",
    "later",
    "longer",
];
const LESS: &[&str] = &[
    "slower",
    "younger",
    "smaller",
    "less",
    "fewer",
    "lower",
    "before",
    "shorter",
    "below",
    "under",
    "lighter",
    "better rank",
    "earlier",
    "prior",
];
const MOST: &[&str] = &["majority", "most", "major"];

const ORDINALS: [&str; 11] =
    ["zero", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"];
const NUMBERS: [&str; 11] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "nine", "nine", "ten"];

/// The tokens of `logic` that `text` has no counterpart for. A number that `truth`, the right text, has not either is
/// none of them.
pub fn errors(logic: &str, text: &str, truth: &str) -> Vec<String> {
    let tokens: Vec<&str> = logic.split(['{', '}', ';']).map(str::trim).filter(|token| !token.is_empty()).collect();
    let mut out = Vec::new();
    if text.contains("not") && !tokens.contains(&"not") {
        out.push("not".to_string());
    }
    let missing = |token: &&str| {
        if let Some(keywords) = keywords(token) {
            return !keywords.iter().any(|parts| parts.iter().any(|word| text.contains(word)));
        }
        let number = token.bytes().all(|b| b.is_ascii_digit());
        number && !has_number(token, text) && has_number(token, truth)
    };
    out.extend(tokens.iter().copied().filter(|token| missing(token)).map(str::to_string));
    out
}

/// The keywords of an operator, of which a text must have one; none for other tokens and for operators without.
fn keywords(operator: &str) -> Option<&'static [&'static [&'static str]]> {
    Some(match operator {
        "only" => &[&["only", "one"]],
        "avg" => &[&["average", "mean"]],
        "sum" => &[&["sum", "total"]],
        "max" | "argmax" | "nth_max" | "nth_argmax" => &[MAX],
        "min" | "argmin" | "nth_min" | "nth_argmin" => &[MIN],
        "greater" | "filter_greater" | "filter_greater_eq" | "all_greater" | "all_greater_eq" => &[GREATER],
        "less" | "filter_less" | "filter_less_eq" | "all_less" | "all_less_eq" => &[LESS],
        "most_eq" | "most_not_eq" | "most_str_eq" | "most_str_not_eq" => &[MOST],
        "most_greater" | "most_greater_eq" => &[MOST, GREATER],
        "most_less" | "most_less_eq" => &[MOST, LESS],
        _ => return None,
    })
}

/// Whether a text has a number: in digits, with commas between thousands, or up to ten as a word.
fn has_number(digits: &str, text: &str) -> bool {
    if text.contains(digits) || digits == "1" {
        return true;
    }
    let plain = digits.trim_start_matches('0');
    match plain.parse::<usize>() {
        _ if plain.is_empty() => text.contains(ORDINALS[0]) || text.contains(NUMBERS[0]),
        Ok(n) if n <= 10 => text.contains(ORDINALS[n]) || text.contains(NUMBERS[n]),
        _ => {
            let grouped: Vec<&str> =
                plain.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
            text.contains(&grouped.join(","))
        }
    }
}
