//! `tojson`, which transformers makes `json.dumps`.

use super::budget::{Res, fail};
use super::print::float;
use super::value::{Context, Value};

/// How `json.dumps` is called.
pub struct Style {
    /// Whether characters beyond ASCII are escaped.
    pub ascii: bool,
    /// What a level is indented by; none is one line.
    pub indent: Option<String>,
    /// Between items, and behind keys.
    pub separators: [String; 2],
    /// Whether keys are sorted.
    pub sort: bool,
}

/// The JSON of a value.
pub fn dumps(cx: &Context, value: &Value, style: &Style) -> Res<String> {
    let mut out = String::new();
    write(cx, value, style, 0, &mut out)?;
    Ok(out)
}

fn write(cx: &Context, value: &Value, style: &Style, level: usize, out: &mut String) -> Res<()> {
    cx.step()?;
    let before = out.len();
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::Float(x) => out.push_str(&number(*x)),
        Value::Str(text) | Value::Markup(text) => quote(text, style.ascii, out),
        Value::List(seq) | Value::Tuple(seq) => {
            let item = |out: &mut String, i: usize| write(cx, &seq.items[i], style, level + 1, out);
            return items(cx, ['[', ']'], seq.items.len(), style, level, out, item);
        }
        Value::Dict(dict) => {
            let mut pairs: Vec<&(Value, Value)> = dict.items.iter().collect();
            if style.sort {
                let mut failed = None;
                pairs.sort_by(|(a, _), (b, _)| {
                    let order = a.order(b, "<").unwrap_or_else(|e| {
                        failed = Some(e);
                        None
                    });
                    order.unwrap_or(std::cmp::Ordering::Equal)
                });
                failed.map_or(Ok(()), Err)?;
            }
            let item = |out: &mut String, i: usize| {
                key(&pairs[i].0, style, out)?;
                out.push_str(&style.separators[1]);
                write(cx, &pairs[i].1, style, level + 1, out)
            };
            return items(cx, ['{', '}'], pairs.len(), style, level, out, item);
        }
        other => return fail(format!("Object of type {} is not JSON serializable", other.type_name())),
    }
    cx.make(out.len() - before)
}

fn items(
    cx: &Context,
    around: [char; 2],
    len: usize,
    style: &Style,
    level: usize,
    out: &mut String,
    mut item: impl FnMut(&mut String, usize) -> Res<()>,
) -> Res<()> {
    out.push(around[0]);
    for i in 0..len {
        let before = out.len();
        if i > 0 {
            out.push_str(&style.separators[0]);
        }
        new_line(style, level + 1, out);
        cx.make(out.len() - before)?;
        item(out, i)?;
    }
    if len > 0 {
        new_line(style, level, out);
    }
    out.push(around[1]);
    Ok(())
}

fn new_line(style: &Style, level: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        out.push_str(&indent.repeat(level));
    }
}

fn number(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    float(x)
}

fn key(key: &Value, style: &Style, out: &mut String) -> Res<()> {
    let text = match key {
        Value::Str(text) | Value::Markup(text) => text.to_string(),
        Value::None => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Float(x) => number(*x),
        other => return fail(format!("keys must be str, int, float, bool or None, not {}", other.type_name())),
    };
    quote(&text, style.ascii, out);
    Ok(())
}

fn quote(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c if ascii && c > '\x7e' => {
                if c == '\x7f' {
                    out.push(c);
                } else {
                    c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
