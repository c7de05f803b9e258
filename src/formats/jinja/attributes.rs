//! `value.name` and `value[name]`, and the methods of values other than texts.

use super::args::{Given, int, int_or, needed};
use super::budget::{Fail, Res, fail};
use super::ops::{compare, item};
use super::print::repr;
use super::strings;
use super::value::{Context, Value};
use super::{ast::Cmp, format};

const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const SEQUENCE: [&str; 2] = ["count", "index"];
/// What the sandbox forbids, since it changes the value.
const CHANGES: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "add",
];

/// What Python finds as an attribute.
enum Found {
    Value(Value),
    /// Something that the sandbox does not give out.
    Forbidden,
    None,
}

fn attribute(cx: &Context, value: &Value, name: &str) -> Res<Found> {
    // Every object has such.
    if name.starts_with("__") && name.ends_with("__") && !matches!(value, Value::Namespace(_)) {
        return Ok(Found::Forbidden);
    }
    let method = |names: &[&str]| {
        if names.contains(&name) {
            Found::Value(Value::Method(std::rc::Rc::new((value.clone(), name.into()))))
        } else {
            Found::None
        }
    };
    let int = |n: usize| Found::Value(Value::Int(n as i128));
    Ok(match value {
        Value::Str(_) | Value::Markup(_) => method(&strings::METHODS),
        Value::Dict(_)
            if CHANGES[..11].contains(&name)
                && !["append", "extend", "insert", "remove", "reverse", "sort"].contains(&name) =>
        {
            Found::Forbidden
        }
        Value::Dict(_) => method(&DICT),
        Value::List(_) if CHANGES[..11].contains(&name) && !["popitem", "setdefault", "update"].contains(&name) => {
            Found::Forbidden
        }
        Value::List(_) if name == "copy" => method(&["copy"]),
        Value::Tuple(seq) if seq.group && name == "grouper" => Found::Value(seq.items[0].clone()),
        Value::Tuple(seq) if seq.group && name == "list" => Found::Value(seq.items[1].clone()),
        Value::List(_) | Value::Tuple(_) => method(&SEQUENCE),
        Value::Range(span) => match name {
            "start" => Found::Value(Value::Int(span.start)),
            "stop" => Found::Value(Value::Int(span.stop)),
            "step" => Found::Value(Value::Int(span.step)),
            _ => method(&SEQUENCE),
        },
        Value::Bool(_) | Value::Int(_) => match name {
            "real" | "numerator" => Found::Value(Value::Int(value.as_int().unwrap_or(0))),
            "imag" => int(0),
            "denominator" => int(1),
            _ => method(&["bit_length", "conjugate", "as_integer_ratio", "to_bytes", "from_bytes", "bit_count"]),
        },
        Value::Float(_) => match name {
            "real" => Found::Value(value.clone()),
            "imag" => Found::Value(Value::Float(0.0)),
            _ => method(&["is_integer", "conjugate", "as_integer_ratio", "hex", "fromhex"]),
        },
        Value::Loop(state) => {
            let (i, len) = (state.index.get(), state.items.len());
            match name {
                "index" => int(i + 1),
                "index0" => int(i),
                "revindex" => int(len - i),
                "revindex0" => int(len - i - 1),
                "first" => Found::Value(Value::Bool(i == 0)),
                "last" => Found::Value(Value::Bool(i + 1 == len)),
                "length" => int(len),
                "depth" => int(state.depth0 + 1),
                "depth0" => int(state.depth0),
                "previtem" if i == 0 => Found::Value(Value::undefined("there is no previous item")),
                "previtem" => Found::Value(state.items[i - 1].clone()),
                "nextitem" => match state.items.get(i + 1) {
                    Some(next) => Found::Value(next.clone()),
                    None => Found::Value(Value::undefined("there is no next item")),
                },
                _ => method(&["cycle", "changed"]),
            }
        }
        Value::Cycler(cycler) if name == "current" => Found::Value(cycler.0[cycler.1.get()].clone()),
        Value::Cycler(_) => method(&["next", "reset"]),
        Value::Namespace(_) => item(cx, value, &Value::word(name))?.map_or(Found::None, Found::Value),
        Value::Macro(this) if name == "name" => {
            Found::Value(this.name.as_ref().map_or(Value::None, |name| Value::word(name)))
        }
        Value::Global("dict") => method(&["fromkeys"]),
        Value::Macro(_) | Value::Joiner(_) | Value::Global(_) | Value::Method(_) | Value::View(..) | Value::Iter(_) => {
            return Err(Fail::unsupported(format!("the attribute {name} of a {}", value.type_name())));
        }
        Value::Undefined(_) | Value::None => Found::None,
    })
}

fn forbidden(value: &Value, name: &str) -> Value {
    Value::undefined(format!("access to attribute '{name}' of '{}' object is forbidden", value.type_name()))
}

/// `value.name`: the attribute, else the item.
pub fn get_attribute(cx: &Context, value: &Value, name: &str) -> Res<Value> {
    value.used()?;
    match attribute(cx, value, name)? {
        Found::Value(found) => Ok(found),
        Found::Forbidden => Ok(forbidden(value, name)),
        Found::None => {
            let found = item(cx, value, &Value::word(name))?;
            Ok(found.unwrap_or_else(|| {
                Value::undefined(format!("'{} object' has no attribute '{name}'", value.type_name()))
            }))
        }
    }
}

/// `value[key]`: the item, else the attribute.
pub fn get_item(cx: &Context, value: &Value, key: &Value) -> Res<Value> {
    if let Some(found) = item(cx, value, key)? {
        return Ok(found);
    }
    if let Some(name) = key.as_str() {
        match attribute(cx, value, name)? {
            Found::Value(found) => return Ok(found),
            Found::Forbidden => return Ok(forbidden(value, name)),
            Found::None => {}
        }
    }
    let shown = match key {
        Value::Str(_) | Value::Int(_) => repr(cx, key)?,
        other => other.type_name().to_owned(),
    };
    Ok(Value::undefined(format!("{} object has no element {shown}", value.type_name())))
}

/// `value.name(…)`.
pub fn call(cx: &Context, value: &Value, name: &str, given: &Given) -> Res<Value> {
    match value {
        Value::Str(text) if name == "format" || name == "format_map" => {
            let named: Vec<(Value, Value)> = match name {
                "format" => given.named.iter().map(|(key, value)| (Value::word(key), value.clone())).collect(),
                _ => match &given.bind(name, ["/"])? {
                    [Some(Value::Dict(dict))] => dict.items.clone(),
                    _ => return Err(Fail::unsupported("format_map of what is no dict")),
                },
            };
            let positional = if name == "format" { &given.positional[..] } else { &[] };
            let lookup = |value: &Value, key: &Value, dot: bool| match key.as_str() {
                Some(name) if dot => get_attribute(cx, value, name),
                _ => get_item(cx, value, key),
            };
            Value::str(cx, format::format(cx, text, positional, &named, &lookup)?)
        }
        Value::Str(_) | Value::Markup(_) => strings::call(cx, value, name, given),
        Value::Dict(dict) => match name {
            "get" => {
                let [key, default] = given.bind(name, ["/", "/"])?;
                let key = needed(key, name)?;
                key.check_key()?;
                Ok(item(cx, value, &key)?.unwrap_or(default.unwrap_or(Value::None)))
            }
            "fromkeys" => from_keys(cx, given),
            _ => {
                given.bind(name, [])?;
                Ok(match name {
                    "items" => Value::View("dict_items", dict.clone()),
                    "keys" => Value::View("dict_keys", dict.clone()),
                    "values" => Value::View("dict_values", dict.clone()),
                    _ => value.clone(),
                })
            }
        },
        Value::Global("dict") => from_keys(cx, given),
        Value::List(seq) if name == "copy" => {
            given.bind(name, [])?;
            Value::list(cx, seq.items.clone())
        }
        Value::List(_) | Value::Tuple(_) | Value::Range(..) => find(cx, value, name, given),
        Value::Float(x) if name == "is_integer" => {
            given.bind(name, []).map(|[]| Value::Bool(x.is_finite() && x.fract() == 0.0))
        }
        Value::Bool(_) | Value::Int(_) if name == "bit_length" => {
            given.bind(name, [])?;
            let n = value.as_int().unwrap_or(0).unsigned_abs();
            Ok(Value::Int(i128::from(128 - n.leading_zeros())))
        }
        Value::Loop(state) if name == "cycle" => match &given.positional[..] {
            [] => fail("no items for cycling given"),
            items => Ok(items[state.index.get() % items.len()].clone()),
        },
        Value::Loop(state) => {
            let mut last = state.changed.borrow_mut();
            let changed = last.as_ref() != Some(&given.positional);
            if changed {
                *last = Some(given.positional.clone());
            }
            Ok(Value::Bool(changed))
        }
        Value::Cycler(cycler) => {
            given.bind(name, [])?;
            let at = cycler.1.get();
            cycler.1.set(if name == "next" { (at + 1) % cycler.0.len() } else { 0 });
            Ok(if name == "next" { cycler.0[at].clone() } else { Value::None })
        }
        other => Err(Fail::unsupported(format!("the method {name} of a {}", other.type_name()))),
    }
}

fn from_keys(cx: &Context, given: &Given) -> Res<Value> {
    let [keys, value] = given.bind("fromkeys", ["/", "/"])?;
    let value = value.unwrap_or(Value::None);
    Value::dict(cx, needed(keys, "fromkeys")?.items(cx)?.into_iter().map(|key| (key, value.clone())).collect())
}

fn find(cx: &Context, value: &Value, name: &str, given: &Given) -> Res<Value> {
    let [wanted, from, to] = given.bind(name, ["/", "/", "/"])?;
    let wanted = needed(wanted, name)?;
    let items = value.items(cx)?;
    let mut count = 0;
    let len = items.len() as i128;
    let bound = |n: i128| if n < 0 { (n + len).max(0) } else { n };
    let (from, to) = (bound(int_or(from, 0)?), bound(to.map_or(Ok(len), |to| int(&to))?));
    for (i, item) in items.iter().enumerate() {
        let inside = name == "count" || (from..to).contains(&(i as i128));
        if inside && compare(cx, Cmp::Eq, item, &wanted)? {
            if name == "index" {
                return Ok(Value::Int(i as i128));
            }
            count += 1;
        }
    }
    if name == "index" { fail(format!("{} is not in list", repr(cx, &wanted)?)) } else { Ok(Value::Int(count)) }
}
