//! The guide's table of keys is what the readers do.

use std::collections::BTreeSet;

use llamaprobe::arch::Family;
use llamaprobe::formats::keys::Keys;
use llamaprobe::formats::{adapter, config, generation_config, tokenizer};

const GUIDE: &str = include_str!("../../src/guide.md");

/// The keys that the guide's rows of a file have under a heading: used, without effect, refused.
fn listed(file: &str, what: &str) -> BTreeSet<String> {
    let rows = GUIDE.lines().filter(|line| line.starts_with(&format!("| {file} | {what} |")));
    let cells = rows.flat_map(|line| line.split('|').nth(3).expect("a third cell").split('`').skip(1).step_by(2));
    cells.map(str::to_owned).collect()
}

#[test]
fn guide_lists_every_key_and_what_becomes_of_it() {
    let families = Family::ALL.map(|family| ("config.json", config::keys::of(family)));
    let mut tables: Vec<(&str, Keys)> = families.into();
    for keys in [generation_config::KEYS, generation_config::OF_BEAMS, generation_config::OF_SAMPLING] {
        tables.push(("generation_config.json", keys));
    }
    tables.extend([
        ("tokenizer_config.json", tokenizer::keys::KEYS),
        ("tokenizer.json", tokenizer::keys::FILE),
        ("adapter_config.json", adapter::fields::LORA),
        ("adapter_config.json", adapter::fields::IA3),
        ("adapter_config.json of prompts", adapter::fields::PROMPT),
    ]);
    let files: BTreeSet<&str> = tables.iter().map(|(file, _)| *file).collect();
    for file in files {
        let of_file = || tables.iter().filter(|(name, _)| *name == file).map(|(_, keys)| keys);
        let used = of_file().flat_map(|keys| keys.used);
        let harmless = of_file().flat_map(|keys| keys.harmless).flat_map(|(_, keys)| *keys);
        let refused = of_file().flat_map(|keys| keys.refused).map(|(key, _)| key);
        let all: [(&str, BTreeSet<String>); 3] = [
            ("used", used.map(|key| (*key).to_owned()).collect()),
            ("without effect", harmless.map(|key| (*key).to_owned()).collect()),
            ("refused", refused.map(|key| (*key).to_owned()).collect()),
        ];
        for (what, expected) in all {
            let row: Vec<String> = expected.iter().map(|key| format!("`{key}`")).collect();
            assert_eq!(listed(file, what), expected, "expected: | {file} | {what} | {} |", row.join(", "));
        }
    }
}
