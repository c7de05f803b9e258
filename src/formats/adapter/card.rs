//! The model card of an adapter, `README.md`, as PEFT 0.21 makes it (`create_or_update_model_card`): metadata in YAML between two
//! lines of dashes, then Markdown.
//!
//! A new card has PEFT's metadata, and in place of its empty form what is known of the adapter. Of a card that is there PEFT
//! sets `base_model`, `library_name`, `tags` and, where it has none, `pipeline_tag`, and adds its version below
//! `### Framework versions`; all else stays, and so it does here. Unlike there, lines end as they did, and metadata that are set
//! already keep their form.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;
use serde_norway::{Mapping, Value as Yaml};

use crate::formats::atomic::{self, read_if_there};
use crate::formats::{embedded, json, yaml};
use crate::{Error, Result};

/// Name of the card.
pub const CARD: &str = "README.md";
/// The release whose files these are.
const PEFT: &str = "- PEFT 0.21.2";
const HEADING: &str = "### Framework versions";

/// The metadata and what follows them, as the Hub finds them.
static BLOCK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\s*---\r?\n(?s:(.*?))\r?\n---[ \t]*(?:\r?\n|$)").expect("a valid expression"));

/// The card of a directory, if it has one.
///
/// # Errors
/// It is there and cannot be read.
pub fn read(dir: &Path) -> Result<Option<Vec<u8>>> {
    read_if_there(dir.join(CARD))
}

/// Writes the card of the adapter whose configuration is the file `config`, where there was the card `before`. One whose
/// metadata cannot be read stays as it is, with a note: no training is lost for it.
///
/// # Errors
/// The files cannot be read or written.
pub fn write(dir: &Path, config: &Path, before: Option<&[u8]>) -> Result<()> {
    let config = json::read(config)?;
    let path = dir.join(CARD);
    let Some(before) = before else { return atomic::write(path, new(&config)?.as_bytes()) };
    let text = std::str::from_utf8(before).map_err(|error| error.to_string());
    match text.and_then(|text| updated(text, &config)) {
        Ok(text) => atomic::write(path, text.as_bytes()),
        Err(reason) => {
            log::warn!("{CARD} beside an adapter stays as it is: {reason}");
            atomic::write(path, before)
        }
    }
}

/// The metadata that PEFT sets, of an adapter with this `adapter_config.json`, in their order.
fn metadata(config: &Value) -> Vec<(&'static str, Yaml)> {
    let base = config["base_model_name_or_path"].as_str();
    let mut tags = vec!["transformers".to_owned()];
    tags.extend((config["peft_type"] == "LORA").then(|| "lora".to_owned()));
    tags.extend(base.map(|base| format!("base_model:adapter:{base}")));
    tags.sort_unstable();
    let mut all: Vec<(&str, Yaml)> = base.map(|base| ("base_model", base.into())).into_iter().collect();
    all.push(("library_name", "peft".into()));
    all.extend((config["task_type"] == "CAUSAL_LM").then(|| ("pipeline_tag", "text-generation".into())));
    all.push(("tags", Yaml::Sequence(tags.into_iter().map(Yaml::from).collect())));
    all
}

/// Metadata in YAML, without a last line end.
fn dumped(mapping: &Mapping) -> Result<String, String> {
    let text = serde_norway::to_string(mapping).map_err(|error| error.to_string())?;
    Ok(text.trim_end().to_owned())
}

/// A card where there was none.
fn new(config: &Value) -> Result<String> {
    let metadata = metadata(config).into_iter().map(|(key, value)| (key.into(), value)).collect();
    let metadata = dumped(&metadata).map_err(|reason| Error::argument(CARD, "metadata for YAML", reason))?;
    let kind = config["peft_type"].as_str().unwrap_or_default();
    let base = config["base_model_name_or_path"].as_str().unwrap_or("BASE");
    let shown = ["r", "lora_alpha", "use_dora", "target_modules", "feedforward_modules", "num_virtual_tokens"];
    let settings: String = shown
        .iter()
        .filter_map(|key| config.get(key).filter(|value| !value.is_null()).map(|value| format!("- `{key}`: {value}\n")))
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    let how = match base {
        embedded::NAME => {
            "The base model is part of llamaprobe: `llamaprobe export-embedded --out embedded` writes it.\n\n"
        }
        _ => "",
    };
    Ok(format!(
        "---\n{metadata}\n---\n\n# {kind} adapter of {base}\n\nTrained by llamaprobe, with\n\n{settings}\n{how}\
         ```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
         base = AutoModelForCausalLM.from_pretrained({base:?})\n\
         model = PeftModel.from_pretrained(base, \"path/of/this/directory\")\n```\n\n\
         {HEADING}\n\n{PEFT}\n- llamaprobe {version}"
    ))
}

/// A card that is there, for an adapter with this configuration.
fn updated(card: &str, config: &Value) -> Result<String, String> {
    let card = card.strip_prefix('\u{feff}').unwrap_or(card);
    let [ends, with_return] = ["\n", "\r\n"].map(|end| card.matches(end).count());
    if card.matches('\r').count() > with_return {
        return Err("a carriage return ends a line".to_owned());
    }
    let end = if with_return > 0 && with_return == ends { "\r\n" } else { "\n" };
    let (old, body) = match BLOCK.captures(card) {
        Some(found) => {
            (found.get(1).map_or("", |block| block.as_str()), &card[found.get(0).map_or(0, |all| all.end())..])
        }
        None => ("", card),
    };
    let metadata = with_metadata(old, config)?;
    let mut body: Vec<&str> = body.lines().collect();
    if !body.contains(&PEFT) {
        match body.iter().position(|line| *line == HEADING) {
            Some(heading) => body.insert((heading + 2).min(body.len()), PEFT),
            None => body.extend([HEADING, "", PEFT]),
        }
    }
    let dashes = ["---"];
    let lines = dashes.into_iter().chain(metadata.lines()).chain(dashes).chain(body);
    Ok(lines.collect::<Vec<_>>().join(end))
}

/// Metadata with what PEFT sets of them; what it does not set keeps its lines.
fn with_metadata(old: &str, config: &Value) -> Result<String, String> {
    let mut mapping = match yaml::parse(old).map_err(|error| error.to_string())? {
        Yaml::Mapping(mapping) => mapping,
        Yaml::Null => Mapping::new(),
        _ => return Err("its metadata are no mapping".to_owned()),
    };
    let mut lines: Vec<String> = old.lines().map(str::to_owned).collect();
    if mapping.is_empty() {
        lines.clear();
    }
    for (key, value) in metadata(config) {
        let found = mapping.get(key);
        let is_set = found.is_some_and(|found| !found.is_null() && found.as_str() != Some(""));
        if found == Some(&value) || key == "pipeline_tag" && is_set {
            continue;
        }
        let entry = dumped(&Mapping::from_iter([(key.into(), value.clone())]))?;
        let range = of_key(&lines, key);
        lines.splice(range, entry.lines().map(str::to_owned));
        mapping.insert(key.into(), value);
    }
    let edited = lines.join("\n");
    // Keys that are quoted, or a mapping in braces: there no line is a key's.
    let same = matches!(yaml::parse(&edited), Ok(Yaml::Mapping(found)) if found == mapping);
    if same { Ok(edited) } else { dumped(&mapping) }
}

/// The lines of a key with its value; where it is not there, the end.
fn of_key(lines: &[String], key: &str) -> std::ops::Range<usize> {
    let is_key = |line: &String| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'));
    let Some(first) = lines.iter().position(is_key) else { return lines.len()..lines.len() };
    let mut end = first + 1;
    for (i, line) in lines.iter().enumerate().skip(end) {
        if line.starts_with([' ', '-']) {
            end = i + 1;
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            break;
        }
    }
    first..end
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(kind: &str, base: &str) -> Value {
        json!({ "peft_type": kind, "base_model_name_or_path": base, "task_type": "CAUSAL_LM", "r": 2 })
    }

    /// What PEFT makes of adapters without a card, and of cards that are there: `tests/golden/cards.py`.
    #[test]
    fn cards_are_those_of_peft() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../../tests/golden/cards.json")).expect("cases");
        assert!(cases.len() > 30);
        for case in &cases {
            let text = |key: &str| case[key].as_str().unwrap_or_else(|| panic!("{key} of {case}"));
            let config = config(text("kind"), text("base"));
            let Some(before) = case["before"].as_str() else {
                let new = new(&config).expect("a card");
                assert!(new.starts_with(text("after")), "{new}\nnot of {}", text("after"));
                // PEFT leaves what is in order.
                assert_eq!(updated(&new, &config).as_ref(), Ok(&new));
                continue;
            };
            assert_eq!(updated(before, &config).as_deref(), Ok(text("after")), "{before:?}");
        }
    }

    #[test]
    fn cards_keep_what_is_the_users() {
        let config = config("IA3", "org/name");
        let mine = "---\r\n# of mine\r\nlicense: mit # why\r\ntags:\r\n  - a\r\n\r\n# last\r\nlanguage: [en]\r\n---\r\nText\r\n";
        let expected = "---\r\n# of mine\r\nlicense: mit # why\r\ntags:\r\n- base_model:adapter:org/name\r\n- transformers\r\n\
                        \r\n# last\r\nlanguage: [en]\r\nbase_model: org/name\r\nlibrary_name: peft\r\npipeline_tag: \
                        text-generation\r\n---\r\nText\r\n### Framework versions\r\n\r\n- PEFT 0.21.2";
        assert_eq!(updated(mine, &config).as_deref(), Ok(expected));
        let braces = updated("---\n{license: mit, \"tags\": [a]}\n---\nText", &config).expect("updated");
        assert!(
            braces.starts_with("---\nlicense: mit\ntags:\n- base_model:adapter:org/name\n- transformers\n"),
            "{braces}"
        );
        for (bad, reason) in [("---\n- a\n---\n", "no mapping"), ("---\na: [\n---\n", "line"), ("a\rb", "carriage")] {
            let found = updated(bad, &config).expect_err("refused");
            assert!(found.contains(reason), "{found}");
        }
    }
}
