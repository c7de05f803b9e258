//! Corpus BLEU, to the digit that of sacreBLEU with its defaults.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::words;

/// Words of the longest n-grams that are counted, as in sacreBLEU.
const ORDER: usize = 4;

/// `[output tokens, tokens of the closest reference, matches of order 1 to 4, n-grams of order 1 to 4]`.
pub fn statistics<'a>(output: &str, references: impl Iterator<Item = &'a str>) -> Vec<f64> {
    let tokens = tokenise(output);
    let mut closest: Option<usize> = None;
    let mut known: HashMap<Vec<String>, usize> = HashMap::new();
    for reference in references {
        let reference = tokenise(reference);
        let distance = |len: usize| (len.abs_diff(tokens.len()), len);
        closest =
            Some(closest.map_or(reference.len(), |c| {
                if distance(reference.len()) < distance(c) { reference.len() } else { c }
            }));
        for (gram, count) in grams(&reference) {
            let most = known.entry(gram.to_vec()).or_default();
            *most = count.max(*most);
        }
    }
    let mut out = vec![0.0; 2 + 2 * ORDER];
    out[0] = tokens.len() as f64;
    out[1] = closest.unwrap_or(0) as f64;
    for (gram, count) in grams(&tokens) {
        let n = gram.len() - 1;
        out[2 + n] += count.min(known.get(gram).copied().unwrap_or(0)) as f64;
        out[2 + ORDER + n] += count as f64;
    }
    out
}

/// From sums of statistics.
pub fn score(sums: &[f64]) -> f64 {
    let [output, reference, counts @ ..] = sums else { return 0.0 };
    let (matches, totals) = counts.split_at(ORDER);
    if matches.iter().all(|&m| m == 0.0) {
        return 0.0;
    }
    let brevity = if output < reference { (1.0 - reference / output).exp() } else { 1.0 };
    let mut smooth = 1.0;
    let mut logs = 0.0;
    for (&hits, &total) in matches.iter().zip(totals) {
        let precision = if total == 0.0 {
            0.0
        } else if hits == 0.0 {
            smooth *= 2.0;
            100.0 / (smooth * total)
        } else {
            100.0 * hits / total
        };
        // The logarithm of nothing is so low that its exponential is 0.
        logs += if precision > 0.0 { f64::ln(precision) } else { f64::NEG_INFINITY };
    }
    brevity * (logs / ORDER as f64).exp()
}

/// The n-grams of order 1 to 4 with their counts.
fn grams(tokens: &[String]) -> HashMap<&[String], usize> {
    let mut out = HashMap::new();
    for n in 1..=ORDER {
        tokens.windows(n).for_each(|gram| *out.entry(gram).or_default() += 1);
    }
    out
}

/// The tokens of mteval-v13a.
fn tokenise(text: &str) -> Vec<String> {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        let rule = |pattern| Regex::new(pattern).expect("bleu: built-in patterns are valid");
        [
            // Punctuation of ASCII but for comma, dash, full stop and apostrophe.
            (rule(r"([\{-~\[-` -\&\(-\+:-@/])"), " $1 "),
            // A full stop or comma that no digit precedes, or that no digit follows.
            (rule(r"([^0-9])([\.,])"), "$1 $2 "),
            (rule(r"([\.,])([^0-9])"), " $1 $2"),
            // A dash after a digit.
            (rule(r"([0-9])(-)"), "$1 $2 "),
        ]
    });
    let text = text.trim_end_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (escaped, plain) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(escaped, plain);
    }
    text = format!(" {text} ");
    for (rule, to) in RULES.iter() {
        text = rule.replace_all(&text, *to).into_owned();
    }
    words(&text).map(str::to_string).collect()
}
