//! Overlap of an output with a reference: F1 of SQuAD (Rajpurkar et al. 2016) and ROUGE-L (Lin 2004). Of several references
//! the one with the best score counts.

use std::collections::HashMap;

use super::words;

/// F1 of words, as the evaluation of SQuAD 2.0 computes it: in lower case, without ASCII punctuation and the articles a, an
/// and the. Without words in one of the two it is 1 if neither has any, else 0.
pub fn f1(output: &str, reference: &str) -> f64 {
    let (output, reference) = (normalised(output), normalised(reference));
    let (found, gold): (Vec<&str>, Vec<&str>) = (words(&output).collect(), words(&reference).collect());
    if found.is_empty() || gold.is_empty() {
        return f64::from(u8::from(found.is_empty() && gold.is_empty()));
    }
    let mut counts: HashMap<&str, usize> = HashMap::new();
    gold.iter().for_each(|word| *counts.entry(word).or_default() += 1);
    let mut same = 0;
    for word in &found {
        if let Some(left) = counts.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            same += 1;
        }
    }
    harmonic_mean(same, found.len(), gold.len())
}

/// ROUGE-L as rouge-score 0.1.2 computes it without a stemmer: F-measure of the longest common subsequence of words, which
/// are runs of the letters a to z and digits in lower case. Without words in one of the two it is 0.
pub fn rouge_l(output: &str, reference: &str) -> f64 {
    let (output, reference) = (output.to_lowercase(), reference.to_lowercase());
    let runs = |text: &str| -> Vec<String> {
        let runs = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
        runs.filter(|run| !run.is_empty()).map(str::to_owned).collect()
    };
    let (found, gold) = (runs(&output), runs(&reference));
    // One row of the table of common subsequences: up to word j of the reference.
    let mut row = vec![0usize; gold.len() + 1];
    for word in &found {
        let mut diagonal = 0;
        for (j, other) in gold.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    harmonic_mean(row[gold.len()], found.len(), gold.len())
}

/// The harmonic mean of precision and recall; 0 if nothing is shared.
fn harmonic_mean(same: usize, found: usize, gold: usize) -> f64 {
    if same == 0 {
        return 0.0;
    }
    let (precision, recall) = (same as f64 / found as f64, same as f64 / gold as f64);
    2.0 * precision * recall / (precision + recall)
}

/// In lower case, without ASCII punctuation, every article a space.
fn normalised(text: &str) -> String {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        out.push_str(if ["a", "an", "the"].contains(&&rest[..end]) { " " } else { &rest[..end] });
        let next = rest[end..].find(is_word).map_or(rest.len(), |at| end + at);
        out.push_str(&rest[end..next]);
        rest = &rest[next..];
    }
    out
}
