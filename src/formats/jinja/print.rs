//! Values as Python's `str` and `repr` print them.

use std::fmt::Write;
use std::sync::LazyLock;

use regex::Regex;

use super::budget::{Fail, Res};
use super::value::{Context, Value};

/// Python's `str.isspace` of a character.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str(value)`.
pub fn text(cx: &Context, value: &Value) -> Res<String> {
    let mut out = String::new();
    print(cx, value, &mut out)?;
    Ok(out)
}

/// Appends `str(value)`.
pub fn print(cx: &Context, value: &Value, out: &mut String) -> Res<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) | Value::Markup(text) => {
            cx.make(text.len())?;
            out.push_str(text);
            Ok(())
        }
        _ => write_repr(cx, value, out),
    }
}

/// `repr(value)`.
pub fn repr(cx: &Context, value: &Value) -> Res<String> {
    let mut out = String::new();
    write_repr(cx, value, &mut out)?;
    Ok(out)
}

fn write_repr(cx: &Context, value: &Value, out: &mut String) -> Res<()> {
    cx.step()?;
    let before = out.len();
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::Float(x) => out.push_str(&float(*x)),
        Value::Str(text) => quote(text, out),
        Value::Markup(text) => {
            out.push_str("Markup(");
            quote(text, out);
            out.push(')');
        }
        Value::List(seq) => return write_list(cx, &seq.items, ["[", "]"], out),
        Value::Tuple(seq) => {
            return write_list(cx, &seq.items, ["(", if seq.items.len() == 1 { ",)" } else { ")" }], out);
        }
        Value::Dict(dict) => return write_dict(cx, &dict.items, out),
        Value::View(name, _) => {
            out.push_str(name);
            return write_list(cx, &value.items(cx)?, ["([", "])"], out);
        }
        Value::Range(span) => {
            let step = if span.step == 1 { String::new() } else { format!(", {}", span.step) };
            let _ = write!(out, "range({}, {}{step})", span.start, span.stop);
        }
        Value::Macro(this) => match &this.name {
            Some(name) => {
                out.push_str("<Macro ");
                quote(name, out);
                out.push('>');
            }
            None => out.push_str("<Macro 'caller'>"),
        },
        Value::Loop(state) => {
            let _ = write!(out, "<LoopContext {}/{}>", state.index.get() + 1, state.items.len());
        }
        Value::Namespace(_) => return Err(Fail::unsupported("printing a namespace")),
        Value::Iter(_) | Value::Method(_) | Value::Cycler(_) | Value::Joiner(_) | Value::Global(_) => {
            let what = format!("printing a {} (Python prints its address in memory)", value.type_name());
            return Err(Fail::unsupported(what));
        }
    }
    cx.make(out.len() - before)
}

fn write_list(cx: &Context, items: &[Value], around: [&str; 2], out: &mut String) -> Res<()> {
    out.push_str(around[0]);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write_repr(cx, item, out)?;
    }
    out.push_str(around[1]);
    cx.make(2 * items.len())
}

fn write_dict(cx: &Context, items: &[(Value, Value)], out: &mut String) -> Res<()> {
    out.push('{');
    for (i, (key, value)) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write_repr(cx, key, out)?;
        out.push_str(": ");
        write_repr(cx, value, out)?;
    }
    out.push('}');
    cx.make(4 * items.len())
}

/// Python's `str.isprintable` of a character.
pub fn is_printable(c: char) -> bool {
    static HIDDEN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[\p{C}\p{Z}]$").expect("a regex"));
    if c.is_ascii() { (' '..='~').contains(&c) } else { !HIDDEN.is_match(c.encode_utf8(&mut [0; 4])) }
}

/// A text in quotes.
pub fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => out.push_str(&escape(c)),
        }
    }
    out.push(mark);
}

/// `\xe9`, `\u20ac`, `\U0001f600`.
pub fn escape(c: char) -> String {
    match u32::from(c) {
        code @ 0..=0xFF => format!("\\x{code:02x}"),
        code @ 0x100..=0xFFFF => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

/// A text with all beyond ASCII escaped.
pub fn escaped(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { escape(c) }).collect()
}

/// `repr` of a float: the shortest digits that give it back, with an exponent where the point is far.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let shortest = format!("{x:e}");
    // Of two texts as short and as near, Python takes the one with the even digit.
    let digits = shortest.split('e').next().unwrap_or_default().bytes().filter(u8::is_ascii_digit).count();
    let even = format!("{x:.*e}", digits.saturating_sub(1));
    let scientific = if even.parse() == Ok(x) { even } else { shortest };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let behind = usize::try_from(i32::try_from(digits).unwrap_or(1) - 1 - exponent).unwrap_or(0);
        return format!("{x:.*}", behind.max(1));
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}
