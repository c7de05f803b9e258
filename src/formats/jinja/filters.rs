//! The filters of texts and numbers, and the table of all.

use super::args::{Given, flag_or, int, int_or, needed, some, str_of};
use super::budget::{Fail, Res, check_width, fail};
use super::names::{LEFT_OUT, is_filter};
use super::numbers;
use super::ops::{binary, escape, escape_text, like};
use super::percent::{percent, whole};
use super::print::{is_space, text};
use super::sequences;
use super::strings;
use super::value::{Context, Value};
use super::{ast::Op, attributes, json};

/// `value | name(…)`.
pub fn apply(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<Value> {
    cx.step()?;
    if !is_filter(name) {
        return fail(format!("No filter named '{name}'."));
    }
    if LEFT_OUT.contains(&name) {
        return Err(Fail::unsupported(format!("the filter {name}")));
    }
    match name {
        "map" | "select" | "reject" | "selectattr" | "rejectattr" => sequences::pick(cx, name, value, given, &apply),
        "batch" | "count" | "dictsort" | "first" | "groupby" | "items" | "join" | "last" | "length" | "list"
        | "max" | "min" | "reverse" | "slice" | "sort" | "sum" | "unique" => sequences::apply(cx, name, value, given),
        "abs" | "float" | "int" | "round" | "filesizeformat" => number(cx, name, value, given),
        "d" | "default" => {
            let [default, boolean] = given.bind(name, ["default_value", "boolean"])?;
            let missing = matches!(value, Value::Undefined(_)) || (flag_or(boolean, false) && !value.truth());
            Ok(if missing { default.unwrap_or_else(|| Value::word("")) } else { value.clone() })
        }
        "attr" => {
            let [attribute] = given.bind(name, ["name"])?;
            let attribute = str_of(&needed(attribute, name)?, name)?;
            attr(cx, value, &attribute)
        }
        "tojson" => to_json(cx, value, given),
        "e" | "escape" | "forceescape" | "safe" => {
            given.bind(name, [])?;
            let text = match name {
                "safe" => text(cx, value)?,
                "forceescape" => escape_text(&text(cx, value)?),
                _ => escape(cx, value)?,
            };
            cx.make(text.len())?;
            Ok(Value::Markup(text.into()))
        }
        "format" => {
            if !given.positional.is_empty() && !given.named.is_empty() {
                return fail("can't handle positional and keyword arguments at the same time");
            }
            let values = if given.named.is_empty() {
                Value::tuple(cx, given.positional.clone())?
            } else {
                Value::dict(cx, given.named.iter().map(|(k, v)| (Value::word(k), v.clone())).collect())?
            };
            percent(cx, &soft(cx, value)?, &values)
        }
        "truncate" => truncate(cx, value, given),
        "urlencode" => url_encode(cx, value, given),
        "xmlattr" => xml_attributes(cx, value, given),
        _ => words(cx, name, value, given),
    }
}

/// A text as it is, another value as `str` prints it.
fn soft(cx: &Context, value: &Value) -> Res<Value> {
    if value.as_str().is_some() { Ok(value.clone()) } else { Value::str(cx, text(cx, value)?) }
}

fn words(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<Value> {
    if name == "replace" {
        let [old, new, count] = given.bind(name, ["old", "new", "count"])?;
        let (old, new) = (text(cx, &needed(old, name)?)?, text(cx, &needed(new, name)?)?);
        let count = some(count).map_or(Ok(-1), |count| int(&count))?;
        return Value::str(cx, strings::replace(cx, &text(cx, value)?, &old, &new, count)?);
    }
    if name == "indent" {
        return indent(cx, value, given);
    }
    let value = soft(cx, value)?;
    let whole = value.as_str().map(|text| text.to_string()).unwrap_or_default();
    cx.steps(whole.len() / 64)?;
    let own = |out: &str| {
        cx.make(out.len())?;
        Ok(like(&value, out))
    };
    match name {
        "center" => {
            let [width] = given.bind(name, ["width"])?;
            return own(&strings::center(&whole, check_width(int_or(width, 80)?)?, " "));
        }
        "trim" => {
            let [chars] = given.bind(name, ["chars"])?;
            return own(strings::strip(&whole, some(chars), "strip")?);
        }
        _ => given.bind(name, [])?,
    };
    match name {
        "string" => Ok(value),
        "upper" => own(&whole.to_uppercase()),
        "lower" => own(&whole.to_lowercase()),
        "capitalize" => own(&strings::capitalize(&whole)),
        "title" => own(&title(&whole)),
        _ => {
            let starts = |(before, c): (Option<char>, char)| is_word(c) && !before.is_some_and(is_word);
            let before = std::iter::once(None).chain(whole.chars().map(Some));
            Ok(Value::Int(before.zip(whole.chars()).filter(|pair| starts(*pair)).count() as i128))
        }
    }
}

fn is_word(c: char) -> bool {
    c == '_'
        || if c.is_ascii() {
            c.is_ascii_alphanumeric()
        } else {
            strings::is(c.encode_utf8(&mut [0; 4]), "isalnum").unwrap_or(false)
        }
}

/// The first letter of each word in upper case; words end at spaces, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut out = String::new();
    let ends = |c: char| is_space(c) || "-({[<".contains(c);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| ends(c) != ends(first)).unwrap_or(rest.len());
        out.extend(first.to_uppercase());
        out += &rest[first.len_utf8()..end].to_lowercase();
        rest = &rest[end..];
    }
    out
}

fn indent(cx: &Context, value: &Value, given: &Given) -> Res<Value> {
    let [width, first, blank] = given.bind("indent", ["width", "first", "blank"])?;
    let (first, blank) = (flag_or(first, false), flag_or(blank, false));
    let Some(text) = value.used()?.as_str() else {
        return fail(format!("indent: expected a text, got {}", value.type_name()));
    };
    let space = match &width {
        Some(width) if width.as_str().is_some() => str_of(width, "indent")?,
        _ => " ".repeat(check_width(int_or(width, 4)?)?),
    };
    let whole = format!("{text}\n");
    let lines = strings::lines(&whole, false);
    cx.make(space.len().saturating_mul(lines.len()).saturating_add(whole.len()))?;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out += &space;
        }
        out += line;
    }
    Ok(like(value, &out))
}

fn number(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<Value> {
    match name {
        "abs" => {
            given.bind(name, [])?;
            match (value.used()?, value.as_int()) {
                (Value::Float(x), _) => Ok(Value::Float(x.abs())),
                (_, Some(n)) => {
                    n.checked_abs().map(Value::Int).ok_or_else(|| Fail::unsupported("an integer of more than 127 bits"))
                }
                (other, None) => fail(format!("bad operand type for abs(): '{}'", other.type_name())),
            }
        }
        "int" => {
            let [default, base] = given.bind(name, ["default", "base"])?;
            let default = default.unwrap_or(Value::Int(0));
            if let Value::Float(x) = value {
                // Of those without a value, one is an error.
                return if x.is_nan() { Ok(default) } else { whole(*x).map(Value::Int) };
            }
            if let Some(n) = value.as_int() {
                return Ok(Value::Int(n));
            }
            let Some(text) = value.used()?.as_str() else { return Ok(default) };
            if let Some(n) = numbers::parse_int(text, int_or(base, 10)?)? {
                return Ok(Value::Int(n));
            }
            match numbers::parse_float(text) {
                Some(x) if x.is_finite() => whole(x).map(Value::Int),
                _ => Ok(default),
            }
        }
        "float" => {
            let [default] = given.bind(name, ["default"])?;
            let found = match value.used()?.as_str() {
                Some(text) => numbers::parse_float(text),
                None => value.as_float(),
            };
            Ok(found.map_or(default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "round" => round(cx, value, given),
        _ => file_size(value, given),
    }
}

fn round(cx: &Context, value: &Value, given: &Given) -> Res<Value> {
    let [precision, method] = given.bind("round", ["precision", "method"])?;
    let precision = int_or(precision, 0)?;
    let method = method.map_or(Ok("common".to_owned()), |method| str_of(&method, "round"))?;
    if !["common", "ceil", "floor"].contains(&method.as_str()) {
        return fail("method must be common, ceil or floor");
    }
    let Some(x) = value.used()?.as_float() else {
        return fail(format!("type {} doesn't define __round__ method", value.type_name()));
    };
    if method == "common" {
        return match value.as_int() {
            Some(n) if precision >= 0 => Ok(Value::Int(n)),
            Some(n) => numbers::round_int(n, precision).map(Value::Int),
            None => numbers::round(x, precision).map(Value::Float),
        };
    }
    let power = binary(cx, Op::Pow, &Value::Int(10), &Value::Int(precision))?;
    let scaled = binary(cx, Op::Mul, value, &power)?;
    let whole = match &scaled {
        Value::Float(x) => Value::Int(whole(if method == "ceil" { x.ceil() } else { x.floor() })?),
        other => other.clone(),
    };
    binary(cx, Op::Div, &whole, &power)
}

fn file_size(value: &Value, given: &Given) -> Res<Value> {
    let [binary] = given.bind("filesizeformat", ["binary"])?;
    let binary = flag_or(binary, false);
    let bytes = match value.used()?.as_str() {
        Some(text) => numbers::parse_float(text),
        None => value.as_float(),
    };
    let Some(bytes) = bytes else { return fail("could not convert to float") };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::word("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::word(&format!("{} Bytes", whole(bytes)?)));
    }
    let mut unit = base;
    let mut prefix = "";
    for name in ["k", "M", "G", "T", "P", "E", "Z", "Y"] {
        prefix = name;
        unit *= base;
        if bytes < unit {
            break;
        }
    }
    let prefix = if binary { prefix.to_uppercase() + "iB" } else { prefix.to_owned() + "B" };
    Ok(Value::word(&format!("{:.1} {prefix}", base * bytes / unit)))
}

fn truncate(cx: &Context, value: &Value, given: &Given) -> Res<Value> {
    let [length, kill, end, leeway] = given.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let end = end.map_or(Ok("...".to_owned()), |end| str_of(&end, "truncate"))?;
    let (length, leeway) = (int_or(length, 255)?, some(leeway).map_or(Ok(5), |leeway| int(&leeway))?);
    let ending = end.chars().count() as i128;
    if length < ending || leeway < 0 {
        return fail(format!("expected length >= {ending} and leeway >= 0, got {length} and {leeway}"));
    }
    if value.len().is_some_and(|len| len as i128 <= length.saturating_add(leeway)) {
        return Ok(value.clone());
    }
    let Some(text) = value.used()?.as_str() else {
        return fail(format!("truncate: expected a text, got {}", value.type_name()));
    };
    let kept: String = text.chars().take(usize::try_from(length - ending).unwrap_or(usize::MAX)).collect();
    let kept = if flag_or(kill, false) { &kept } else { kept.rsplit_once(' ').map_or(&*kept, |(before, _)| before) };
    cx.make(kept.len() + end.len())?;
    Ok(like(value, &format!("{kept}{end}")))
}

/// `urllib.parse.quote`; in a query spaces become `+` and slashes are quoted too.
fn quote(text: &str, query: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' if query => out.push('+'),
            b'/' if !query => out.push('/'),
            byte if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn url_encode(cx: &Context, value: &Value, given: &Given) -> Res<Value> {
    given.bind("urlencode", [])?;
    if value.as_str().is_some() || !value.is_iterable() {
        return Value::str(cx, quote(&text(cx, value)?, false));
    }
    let items = match value {
        Value::Dict(dict) => dict.items.clone(),
        _ => {
            let pair = |item: Value| match &item.items(cx)?[..] {
                [key, value] => Ok((key.clone(), value.clone())),
                _ => fail("urlencode: expected pairs"),
            };
            value.items(cx)?.into_iter().map(pair).collect::<Res<_>>()?
        }
    };
    let part = |(key, value): &(Value, Value)| {
        Ok(format!("{}={}", quote(&text(cx, key)?, true), quote(&text(cx, value)?, true)))
    };
    Value::str(cx, items.iter().map(part).collect::<Res<Vec<_>>>()?.join("&"))
}

fn xml_attributes(cx: &Context, value: &Value, given: &Given) -> Res<Value> {
    let [space] = given.bind("xmlattr", ["autospace"])?;
    let Value::Dict(dict) = value.used()? else { return fail("xmlattr: expected a dict") };
    let mut parts = Vec::new();
    for (key, value) in &dict.items {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let name = str_of(key, "xmlattr")?;
        if name.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return fail(format!("Invalid character in attribute name: '{name}'"));
        }
        parts.push(format!("{}=\"{}\"", escape_text(&name), escape(cx, value)?));
    }
    let joined = parts.join(" ");
    let space = if flag_or(space, true) && !joined.is_empty() { " " } else { "" };
    Value::str(cx, format!("{space}{joined}"))
}

fn to_json(cx: &Context, value: &Value, given: &Given) -> Res<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = given.bind("tojson", names)?;
    let indent = match some(indent) {
        None => None,
        Some(width) if width.as_str().is_some() => Some(str_of(&width, "tojson")?),
        Some(width) => Some(" ".repeat(check_width(int(&width)?)?)),
    };
    let separators = match some(separators) {
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some(pair) => match &pair.items(cx)?[..] {
            [item, key] => [str_of(item, "tojson")?, str_of(key, "tojson")?],
            _ => return fail("tojson: expected two separators"),
        },
    };
    let style = json::Style { ascii: flag_or(ascii, false), indent, separators, sort: flag_or(sort, false) };
    Value::str(cx, json::dumps(cx, value, &style)?)
}

/// The attribute alone, never the item.
fn attr(cx: &Context, value: &Value, name: &str) -> Res<Value> {
    let found = attributes::get_attribute(cx, value, name)?;
    match value {
        // What is found there is an item.
        Value::Dict(_) if !matches!(found, Value::Method(_)) => {
            Ok(Value::undefined(format!("'dict object' has no attribute '{name}'")))
        }
        _ => Ok(found),
    }
}
