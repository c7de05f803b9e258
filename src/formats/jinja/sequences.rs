//! The filters of lists.

use std::cmp::Ordering;

use super::args::{Given, flag_or, int, needed, some, str_of};
use super::ast::{Cmp, Op};
use super::attributes::get_item;
use super::budget::{Res, check_width, fail};
use super::checks::check;
use super::ops::{binary, compare};
use super::print::{print, text};
use super::value::{Context, Value};

/// Applies a filter by name.
pub type Apply<'a> = &'a dyn Fn(&Context, &str, &Value, &Given) -> Res<Value>;

/// `map`, `select` and its like.
pub fn pick(cx: &Context, name: &str, value: &Value, given: &Given, apply: Apply) -> Res<Value> {
    if !value.truth() {
        return Value::iter(cx, Vec::new());
    }
    let items = value.items(cx)?;
    if name == "map" {
        if given.positional.is_empty() && given.named.iter().any(|(name, _)| **name == *"attribute") {
            let [attribute, default] = given.bind(name, ["attribute", "default"])?;
            let path = path(&needed(attribute, name)?)?;
            let default = some(default);
            let found = items.iter().map(|item| follow(cx, item, &path, default.as_ref()));
            return Value::iter(cx, found.collect::<Res<_>>()?);
        }
        let Some((filter, rest)) = given.positional.split_first() else {
            return fail("map requires a filter argument");
        };
        let filter = str_of(filter, name)?;
        let given = Given { positional: rest.to_vec(), named: given.named.clone() };
        let mapped = items.iter().map(|item| apply(cx, &filter, item, &given));
        return Value::iter(cx, mapped.collect::<Res<_>>()?);
    }
    let wanted = !name.starts_with("reject");
    let mut rest = &given.positional[..];
    let mut attribute = Vec::new();
    if name.ends_with("attr") {
        let Some((first, others)) = rest.split_first() else { return fail("Missing parameter for attribute name") };
        attribute = path(first)?;
        rest = others;
    }
    let test = match rest.split_first() {
        Some((test, rest)) => {
            Some((str_of(test, name)?, Given { positional: rest.to_vec(), named: given.named.clone() }))
        }
        None => None,
    };
    let mut out = Vec::new();
    for item in items {
        let seen = follow(cx, &item, &attribute, None)?;
        let passes = match &test {
            Some((test, given)) => check(cx, test, &seen, given)?,
            None => seen.truth(),
        };
        if passes == wanted {
            out.push(item);
        }
    }
    Value::iter(cx, out)
}

/// `a.0.b` as its parts.
fn path(attribute: &Value) -> Res<Vec<Value>> {
    match attribute {
        Value::None => Ok(Vec::new()),
        Value::Str(text) | Value::Markup(text) => {
            let part = |part: &str| match part.parse() {
                Ok(n) if part.bytes().all(|c| c.is_ascii_digit()) => Value::Int(n),
                _ => Value::word(part),
            };
            Ok(text.split('.').map(part).collect())
        }
        other => Ok(vec![other.clone()]),
    }
}

fn follow(cx: &Context, item: &Value, path: &[Value], default: Option<&Value>) -> Res<Value> {
    let mut item = item.clone();
    for part in path {
        item = get_item(cx, &item, part)?;
        if let (Value::Undefined(_), Some(default)) = (&item, default) {
            item = default.clone();
        }
    }
    Ok(item)
}

fn folded(value: Value, case_sensitive: bool) -> Value {
    match &value {
        Value::Str(text) | Value::Markup(text) if !case_sensitive => Value::word(&text.to_lowercase()),
        _ => value,
    }
}

/// Values in order of their keys; equal ones stay as they are. As Python's lists do, keys are compared by `<` only
/// where they are not equal; a key alone is always.
fn sorted(
    cx: &Context,
    mut pairs: Vec<(Vec<Value>, Value)>,
    reverse: bool,
    single: bool,
) -> Res<Vec<(Vec<Value>, Value)>> {
    let mut failed = None;
    cx.steps(pairs.len() * (1 + pairs.len().ilog2_or_zero()) / 2)?;
    pairs.sort_by(|(a, _), (b, _)| {
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        let order = match (&a[..], &b[..]) {
            ([a], [b]) if single => a.order(b, "<"),
            _ => a.iter().zip(b).find(|(a, b)| a != b).map_or(Ok(None), |(a, b)| a.order(b, "<")),
        };
        match order {
            Ok(order) => order.unwrap_or(Ordering::Equal),
            Err(e) => {
                failed = Some(e);
                Ordering::Equal
            }
        }
    });
    failed.map_or(Ok(pairs), Err)
}

trait Log {
    fn ilog2_or_zero(self) -> usize;
}

impl Log for usize {
    fn ilog2_or_zero(self) -> usize {
        self.checked_ilog2().unwrap_or(0) as usize
    }
}

/// The other filters of lists.
pub fn apply(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<Value> {
    match name {
        "count" | "length" => {
            given.bind(name, [])?;
            match value.len() {
                Some(len) => Ok(Value::Int(len as i128)),
                None => fail(format!("object of type '{}' has no len()", value.type_name())),
            }
        }
        "list" => {
            given.bind(name, [])?;
            Value::list(cx, value.items(cx)?)
        }
        "items" => match value {
            Value::Undefined(_) => Value::iter(cx, Vec::new()),
            Value::Dict(dict) => Value::iter(cx, Value::View("dict_items", dict.clone()).items(cx)?),
            _ => fail("Can only get item pairs from a mapping."),
        },
        "first" | "last" => {
            given.bind(name, [])?;
            end(cx, name, value)
        }
        "join" => join(cx, value, given),
        "reverse" => {
            given.bind(name, [])?;
            if let Some(text) = value.as_str() {
                // Also of a text that is marked as HTML, whose slice is marked too.
                return Ok(super::ops::like(value, &text.chars().rev().collect::<String>()));
            }
            let mut items = value.items(cx)?;
            items.reverse();
            if matches!(value, Value::Iter(_)) { Value::list(cx, items) } else { Value::iter(cx, items) }
        }
        "sum" => {
            let [attribute, start] = given.bind(name, ["attribute", "start"])?;
            let path = some(attribute).map_or(Ok(Vec::new()), |attribute| path(&attribute))?;
            let mut sum = start.unwrap_or(Value::Int(0));
            if sum.as_str().is_some() {
                return fail("sum() can't sum strings [use ''.join(seq) instead]");
            }
            for item in value.items(cx)? {
                sum = binary(cx, Op::Add, &sum, &follow(cx, &item, &path, None)?)?;
            }
            Ok(sum)
        }
        "batch" | "slice" => cut(cx, name, value, given),
        "max" | "min" => extreme(cx, name, value, given),
        _ => order(cx, name, value, given),
    }
}

fn end(cx: &Context, name: &str, value: &Value) -> Res<Value> {
    if let ("first", Value::Iter(iter)) = (name, value) {
        let first = iter.items.borrow_mut().pop_front();
        return Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")));
    }
    if let Value::Iter(_) | Value::Loop(_) = value {
        return fail(format!("'{}' object is not reversible", value.type_name()));
    }
    if let (Some(text), true) = (value.as_str(), name == "last") {
        let last = text.chars().next_back();
        let found = last.map(|c| Value::word(c.encode_utf8(&mut [0; 4])));
        return Ok(found.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")));
    }
    let items = value.items(cx)?;
    let found = if name == "first" { items.first() } else { items.last() };
    Ok(found.cloned().unwrap_or_else(|| Value::undefined(format!("No {name} item, sequence was empty."))))
}

fn join(cx: &Context, value: &Value, given: &Given) -> Res<Value> {
    let [sep, attribute] = given.bind("join", ["d", "attribute"])?;
    let sep = sep.map_or(Ok(String::new()), |sep| text(cx, &sep))?;
    let path = some(attribute).map_or(Ok(Vec::new()), |attribute| path(&attribute))?;
    let mut out = String::new();
    for (i, item) in value.items(cx)?.iter().enumerate() {
        if i > 0 {
            cx.make(sep.len())?;
            out += &sep;
        }
        print(cx, &follow(cx, item, &path, None)?, &mut out)?;
    }
    Value::str(cx, out)
}

fn cut(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<Value> {
    let count = if name == "batch" { "linecount" } else { "slices" };
    let [count, fill] = given.bind(name, [count, "fill_with"])?;
    let count = int(&needed(count, name)?)?;
    check_width(count)?;
    let fill = some(fill);
    let items = value.items(cx)?;
    let mut out = Vec::new();
    if name == "batch" {
        let size = usize::try_from(count).unwrap_or(0);
        if size == 0 && !items.is_empty() {
            return fail("batch: expected a count above 0");
        }
        for part in items.chunks(size.max(1)) {
            let mut part = part.to_vec();
            if let Some(fill) = &fill {
                part.resize(size, fill.clone());
            }
            out.push(Value::list(cx, part)?);
        }
        return Value::iter(cx, out);
    }
    if count == 0 {
        return fail("integer division or modulo by zero");
    }
    let slices = usize::try_from(count).unwrap_or(0);
    let (each, extra) = items.len().checked_div(slices).map_or((0, 0), |each| (each, items.len() % slices));
    let mut at = 0;
    for i in 0..slices {
        let size = each + usize::from(i < extra);
        let mut part = items[at..at + size].to_vec();
        at += size;
        if let (Some(fill), true) = (&fill, i >= extra) {
            part.push(fill.clone());
        }
        out.push(Value::list(cx, part)?);
    }
    Value::iter(cx, out)
}

fn extreme(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<Value> {
    let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"])?;
    let case = flag_or(case, false);
    let path = some(attribute).map_or(Ok(Vec::new()), |attribute| path(&attribute))?;
    let cmp = if name == "max" { Cmp::Gt } else { Cmp::Lt };
    let mut best: Option<(Value, Value)> = None;
    for item in value.items(cx)? {
        let key = folded(follow(cx, &item, &path, None)?, case);
        let better = match &best {
            Some((known, _)) => compare(cx, cmp, &key, known)?,
            None => true,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
}

/// `dictsort`, `groupby`, `sort`, `unique`.
fn order(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<Value> {
    match name {
        "dictsort" => {
            let [case, by, reverse] = given.bind(name, ["case_sensitive", "by", "reverse"])?;
            let by = by.map_or(Ok("key".to_owned()), |by| str_of(&by, name))?;
            if by != "key" && by != "value" {
                return fail("You can only sort by either \"key\" or \"value\"");
            }
            let Value::Dict(dict) = value.used()? else { return fail("dictsort: expected a dict") };
            let case = flag_or(case, false);
            let mut pairs = Vec::new();
            for (key, value) in &dict.items {
                let by = if by == "key" { key } else { value };
                let item = Value::tuple(cx, vec![key.clone(), value.clone()])?;
                pairs.push((vec![folded(by.clone(), case)], item));
            }
            let sorted = sorted(cx, pairs, flag_or(reverse, false), true)?;
            Value::list(cx, sorted.into_iter().map(|(_, item)| item).collect())
        }
        "sort" => {
            let [reverse, case, attribute] = given.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let case = flag_or(case, false);
            let paths = match some(attribute) {
                Some(Value::Str(text)) => text.split(',').map(|part| path(&Value::word(part))).collect::<Res<_>>()?,
                other => vec![path(&other.unwrap_or(Value::None))?],
            };
            let key = |item: &Value| -> Res<Vec<Value>> {
                paths.iter().map(|path| Ok(folded(follow(cx, item, path, None)?, case))).collect()
            };
            let pairs = value.items(cx)?.into_iter().map(|item| Ok((key(&item)?, item))).collect::<Res<_>>()?;
            let sorted = sorted(cx, pairs, flag_or(reverse, false), false)?;
            Value::list(cx, sorted.into_iter().map(|(_, item)| item).collect())
        }
        "unique" => {
            let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"])?;
            let case = flag_or(case, false);
            let path = some(attribute).map_or(Ok(Vec::new()), |attribute| path(&attribute))?;
            let mut seen: Vec<Value> = Vec::new();
            let mut out = Vec::new();
            for item in value.items(cx)? {
                let key = folded(follow(cx, &item, &path, None)?, case);
                key.check_key()?;
                cx.steps(seen.len() / 8)?;
                if !seen.contains(&key) {
                    seen.push(key);
                    out.push(item);
                }
            }
            Value::iter(cx, out)
        }
        _ => {
            let [attribute, default, case] = given.bind(name, ["attribute", "default", "case_sensitive"])?;
            let (path, default, case) = (path(&needed(attribute, name)?)?, some(default), flag_or(case, false));
            let key = |item: &Value| follow(cx, item, &path, default.as_ref());
            let pairs = value.items(cx)?.into_iter().map(|item| Ok((vec![folded(key(&item)?, case)], item)));
            let sorted = sorted(cx, pairs.collect::<Res<_>>()?, false, true)?;
            let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
            for (mut keys, item) in sorted {
                let own = keys.remove(0);
                match groups.last_mut() {
                    Some((known, items)) if *known == own => items.push(item),
                    _ => groups.push((own, vec![item])),
                }
            }
            let group = |(own, items): (Value, Vec<Value>)| {
                let shown = if case { own } else { key(&items[0])? };
                Value::group(cx, shown, items)
            };
            Value::list(cx, groups.into_iter().map(group).collect::<Res<_>>()?)
        }
    }
}
