//! The methods of a text.

use std::sync::LazyLock;

use regex::Regex;

use super::args::{Given, flag_or, int, int_or, needed, some, str_of};
use super::budget::{Fail, Res, check_width, fail};
use super::ops::like;
use super::print::{is_printable, is_space};
use super::value::{Context, Value};

/// The attributes of a text that are methods.
pub const METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// `text.name(…)`; formats are elsewhere, since they look attributes up.
pub fn call(cx: &Context, value: &Value, name: &str, given: &Given) -> Res<Value> {
    let Some(text) = value.as_str() else { return fail("not a text") };
    cx.steps(text.len() / 64)?;
    let own = |out: &str| {
        cx.make(out.len())?;
        Ok(like(value, out))
    };
    let no_arguments = || given.bind(name, []).map(drop);
    if matches!(value, Value::Markup(_)) && !(given.positional.is_empty() && given.named.is_empty()) {
        // Markup escapes what it is given.
        return Err(Fail::unsupported(format!("{name} of a text that is marked as HTML, with arguments,")));
    }
    match name {
        "upper" => no_arguments().and_then(|()| own(&text.to_uppercase())),
        "lower" => no_arguments().and_then(|()| own(&text.to_lowercase())),
        "title" => no_arguments().and_then(|()| own(&title(text))),
        "capitalize" => no_arguments().and_then(|()| own(&capitalize(text))),
        "swapcase" => no_arguments().and_then(|()| own(&swapcase(text))),
        "casefold" if text.is_ascii() => no_arguments().and_then(|()| own(&text.to_lowercase())),
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = given.bind(name, ["/"])?;
            own(strip(text, some(chars), name)?)
        }
        "removeprefix" | "removesuffix" => {
            let [part] = given.bind(name, ["/"])?;
            let part = str_of(&needed(part, name)?, name)?;
            let cut = if name == "removeprefix" { text.strip_prefix(&*part) } else { text.strip_suffix(&*part) };
            own(cut.unwrap_or(text))
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["/", "/", "/"])?;
            let (old, new) = (str_of(&needed(old, name)?, name)?, str_of(&needed(new, name)?, name)?);
            own(&replace(cx, text, &old, &new, int_or(count, -1)?)?)
        }
        "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" => search(text, name, given),
        "split" | "rsplit" => {
            let [sep, max] = given.bind(name, ["sep", "maxsplit"])?;
            let max = usize::try_from(int_or(max, -1)?).unwrap_or(usize::MAX);
            let sep = some(sep).map(|sep| str_of(&sep, name)).transpose()?;
            if sep.as_deref() == Some("") {
                return fail("empty separator");
            }
            texts(cx, value, &split(text, sep.as_deref(), max, name == "rsplit"))
        }
        "splitlines" => {
            let [keep] = given.bind(name, ["keepends"])?;
            texts(cx, value, &lines(text, flag_or(keep, false)))
        }
        "partition" | "rpartition" => {
            let [sep] = given.bind(name, ["/"])?;
            let sep = str_of(&needed(sep, name)?, name)?;
            if sep.is_empty() {
                return fail("empty separator");
            }
            let right = name == "rpartition";
            let found = if right { text.rsplit_once(&*sep) } else { text.split_once(&*sep) };
            let parts = match found {
                Some((before, after)) => [before, &sep, after],
                None if right => ["", "", text],
                None => [text, "", ""],
            };
            Value::tuple(cx, parts.iter().map(|part| like(value, part)).collect())
        }
        "join" => {
            let [items] = given.bind(name, ["/"])?;
            own(&join(cx, text, &needed(items, name)?)?)
        }
        "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => own(&pad(cx, text, name, given)?),
        _ if name.starts_with("is") => {
            no_arguments()?;
            Ok(Value::Bool(is(text, name)?))
        }
        other => Err(Fail::unsupported(format!("the method {other} of a text"))),
    }
}

fn texts(cx: &Context, value: &Value, parts: &[&str]) -> Res<Value> {
    cx.make(parts.iter().map(|part| part.len()).sum())?;
    cx.steps(parts.len() / 4)?;
    Value::list(cx, parts.iter().map(|part| like(value, part)).collect())
}

fn join(cx: &Context, sep: &str, items: &Value) -> Res<String> {
    let items = items.used()?.items(cx)?;
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        let Value::Str(item) = item else {
            if matches!(item, Value::Markup(_)) {
                return Err(Fail::unsupported("join with a text that is marked as HTML"));
            }
            return fail(format!("sequence item {i}: expected str instance, {} found", item.type_name()));
        };
        let sep = if i > 0 { sep } else { "" };
        cx.make(sep.len() + item.len())?;
        out += sep;
        out += item;
    }
    Ok(out)
}

/// Upper case at the beginning of a word: a ligature's first letter alone.
fn title_case(c: char) -> String {
    let digraph = match c {
        '\u{1c4}'..='\u{1c6}' => Some('\u{1c5}'),
        '\u{1c7}'..='\u{1c9}' => Some('\u{1c8}'),
        '\u{1ca}'..='\u{1cc}' => Some('\u{1cb}'),
        '\u{1f1}'..='\u{1f3}' => Some('\u{1f2}'),
        // Georgian has its upper case only for whole words.
        '\u{10d0}'..='\u{10ff}' => Some(c),
        _ => None,
    };
    if let Some(c) = digraph {
        return c.into();
    }
    let upper: String = c.to_uppercase().collect();
    let mut rest = upper.chars();
    let first = rest.next().unwrap_or(c);
    first.to_string() + &rest.as_str().to_lowercase()
}

/// `str.capitalize`.
pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| title_case(first) + &lower_rest(text, first.len_utf8()))
}

/// The text from `at` in lower case, where a final sigma depends on what is before.
fn lower_rest(text: &str, at: usize) -> String {
    let whole = text.to_lowercase();
    let before = text[..at].chars().flat_map(char::to_lowercase).map(char::len_utf8).sum();
    whole.get(before..).map_or_else(|| text[at..].to_lowercase(), str::to_owned)
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || "\u{1c5}\u{1c8}\u{1cb}\u{1f2}".contains(c)
}

fn title(text: &str) -> String {
    let mut after_cased = false;
    let part = |(i, c): (usize, char)| {
        let out = if after_cased { lower_at(text, i, c) } else { title_case(c) };
        after_cased = is_cased(c);
        out
    };
    text.char_indices().map(part).collect()
}

/// A character of a text in lower case: a sigma at the end of a word has a form of its own.
fn lower_at(text: &str, i: usize, c: char) -> String {
    let before = text[..i].chars().next_back().is_some_and(is_cased);
    let after = text[i + c.len_utf8()..].chars().next().is_some_and(is_cased);
    if c == 'Σ' && before && !after { "ς".into() } else { c.to_lowercase().collect() }
}

fn swapcase(text: &str) -> String {
    let swap = |(i, c): (usize, char)| if c.is_uppercase() { lower_at(text, i, c) } else { c.to_uppercase().collect() };
    text.char_indices().map(swap).collect()
}

/// `str.strip` and its like; no characters are spaces.
pub fn strip<'a>(text: &'a str, chars: Option<Value>, name: &str) -> Res<&'a str> {
    let chars: Option<Vec<char>> = match chars {
        Some(chars) => Some(str_of(&chars, name)?.chars().collect()),
        None => None,
    };
    let taken = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(&c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(taken) };
    Ok(if name == "lstrip" { text } else { text.trim_end_matches(taken) })
}

/// `str.replace`; a negative count is all.
pub fn replace(cx: &Context, text: &str, old: &str, new: &str, count: i128) -> Res<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let there = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).take(count).count() };
    cx.make(text.len().saturating_add(there.min(count).saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, count))
}

fn search(text: &str, name: &str, given: &Given) -> Res<Value> {
    let [part, from, to] = given.bind(name, ["/", "/", "/"])?;
    let part = needed(part, name)?;
    let len = text.chars().count();
    let place = |value: Option<Value>, default: usize| -> Res<usize> {
        let Some(value) = some(value) else { return Ok(default) };
        let n = int(&value)?;
        let n = if n < 0 { n.saturating_add(len as i128).max(0) } else { n };
        Ok(usize::try_from(n).unwrap_or(usize::MAX))
    };
    let (from, to) = (place(from, 0)?, place(to, len)?.min(len));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(i, _)| i);
    let window = (from <= to && from <= len).then(|| &text[byte(from)..byte(to)]);
    if let "startswith" | "endswith" = name {
        let parts = match &part {
            Value::Tuple(seq) => seq.items.clone(),
            other => vec![other.clone()],
        };
        for part in parts {
            let part = str_of(&part, name)?;
            let found = |window: &str| {
                if name == "startswith" { window.starts_with(&*part) } else { window.ends_with(&*part) }
            };
            if window.is_some_and(found) {
                return Ok(Value::Bool(true));
            }
        }
        return Ok(Value::Bool(false));
    }
    let part = str_of(&part, name)?;
    if name == "count" {
        let count = window.map_or(0, |window| match &*part {
            "" => window.chars().count() + 1,
            part => window.matches(part).count(),
        });
        return Ok(Value::Int(count as i128));
    }
    let right = name.starts_with('r');
    let found = window.and_then(|window| {
        let at = if right { window.rfind(&*part) } else { window.find(&*part) };
        at.map(|at| from + window[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::Int(at as i128)),
        None if name.ends_with("index") => fail("substring not found"),
        None => Ok(Value::Int(-1)),
    }
}

fn split<'a>(text: &'a str, sep: Option<&str>, max: usize, right: bool) -> Vec<&'a str> {
    let parts = max.saturating_add(1);
    let mut out: Vec<&str> = match (sep, right) {
        (Some(sep), false) => return text.splitn(parts, sep).collect(),
        (Some(sep), true) => text.rsplitn(parts, sep).collect(),
        (None, false) => {
            let mut out = Vec::new();
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                if out.len() == max {
                    out.push(rest);
                    break;
                }
                let end = rest.find(is_space).unwrap_or(rest.len());
                out.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
            return out;
        }
        (None, true) => {
            let mut out = Vec::new();
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                if out.len() == max {
                    out.push(rest);
                    break;
                }
                let start = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(i, c)| i + c.len_utf8());
                out.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            out
        }
    };
    out.reverse();
    out
}

/// `str.splitlines`.
pub fn lines(text: &str, keep: bool) -> Vec<&str> {
    let ends =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((at, c)) = rest.char_indices().find(|(_, c)| ends(*c)) else {
            out.push(rest);
            break;
        };
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { c.len_utf8() };
        out.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    out
}

/// `str.center`: of an odd number of spaces the one more is on the left where the width is odd.
pub fn center(text: &str, width: usize, fill: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
}

fn pad(cx: &Context, text: &str, name: &str, given: &Given) -> Res<String> {
    if name == "expandtabs" {
        let [size] = given.bind(name, ["tabsize"])?;
        let size = check_width(int_or(size, 8)?)?;
        cx.make(size.saturating_mul(text.matches('\t').count()))?;
        let mut column = 0;
        let mut out = String::new();
        for c in text.chars() {
            if c == '\t' {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            } else {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
        return Ok(out);
    }
    let [width, fill] = given.bind(name, ["/", "/"])?;
    let width = check_width(int(&needed(width, name)?)?)?;
    if name == "zfill" {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
        let zeros = width.saturating_sub(text.chars().count());
        return Ok(format!("{sign}{}{digits}", "0".repeat(zeros)));
    }
    let fill = fill.map_or(Ok(" ".to_owned()), |fill| str_of(&fill, name))?;
    if fill.chars().count() != 1 {
        return fail("The fill character must be exactly one character long");
    }
    let missing = fill.repeat(width.saturating_sub(text.chars().count()));
    Ok(match name {
        "ljust" => format!("{text}{missing}"),
        "rjust" => format!("{missing}{text}"),
        _ => center(text, width, &fill),
    })
}

/// Whether a text is of one kind: `isalpha` and its like.
pub fn is(text: &str, name: &str) -> Res<bool> {
    static LETTERS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\p{L}+$").expect("a regex"));
    static WORDS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}]+$").expect("a regex"));
    static DECIMALS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^\p{Nd}+$").expect("a regex"));
    let cased =
        |wanted: fn(char) -> bool, other: fn(char) -> bool| text.chars().any(wanted) && !text.chars().any(other);
    Ok(match name {
        "isascii" => text.is_ascii(),
        "isspace" => !text.is_empty() && text.chars().all(is_space),
        "isprintable" => text.chars().all(is_printable),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "isalpha" => LETTERS.is_match(text),
        "isalnum" => WORDS.is_match(text),
        "isdecimal" => DECIMALS.is_match(text),
        "isdigit" | "isnumeric" if text.is_ascii() || DECIMALS.is_match(text) => DECIMALS.is_match(text),
        "isdigit" | "isnumeric" if !text.chars().any(|c| !c.is_ascii() && c.is_numeric()) => false,
        "istitle" => {
            let mut after_cased = false;
            let right = |c: char| {
                let right = if c.is_uppercase() { !after_cased } else { !c.is_lowercase() || after_cased };
                after_cased = is_cased(c);
                right
            };
            text.chars().any(is_cased) && text.chars().all(right)
        }
        "isidentifier" if text.is_ascii() => {
            !text.is_empty()
                && !text.starts_with(|c: char| c.is_ascii_digit())
                && text.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
        }
        other => return Err(Fail::unsupported(format!("the method {other} of such a text"))),
    })
}
