//! Arithmetic, comparison, indices and slices, as Python does them.

use std::rc::Rc;

use super::ast::{Cmp, Op};
use super::budget::{Fail, Res, fail};
use super::percent::percent;
use super::value::{Context, Span, Value};

fn wide(n: Option<i128>) -> Res<Value> {
    n.map(Value::Int).ok_or_else(|| Fail::unsupported("an integer of more than 127 bits"))
}

/// `left op right`.
pub fn binary(cx: &Context, op: Op, left: &Value, right: &Value) -> Res<Value> {
    if op == Op::Mod && left.as_str().is_some() {
        return percent(cx, left, right);
    }
    left.used()?;
    right.used()?;
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(op, a, b);
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return floats(op, a, b).map(Value::Float);
    }
    match (op, left, right) {
        (Op::Add, Value::Str(a), Value::Str(b)) => {
            cx.make(a.len() + b.len())?;
            Ok(Value::Str(format!("{a}{b}").into()))
        }
        (Op::Add, Value::Markup(_), Value::Str(_) | Value::Markup(_)) | (Op::Add, Value::Str(_), Value::Markup(_)) => {
            let escaped = format!("{}{}", escape(cx, left)?, escape(cx, right)?);
            cx.make(escaped.len())?;
            Ok(Value::Markup(escaped.into()))
        }
        (Op::Add, Value::List(a), Value::List(b)) => Value::list(cx, [&a.items[..], &b.items[..]].concat()),
        (Op::Add, Value::Tuple(a), Value::Tuple(b)) => Value::tuple(cx, [&a.items[..], &b.items[..]].concat()),
        (Op::Mul, _, _) if left.as_int().is_some() => repeat(cx, right, left),
        (Op::Mul, _, _) => repeat(cx, left, right),
        _ => unsupported(op, left, right),
    }
}

fn unsupported(op: Op, left: &Value, right: &Value) -> Res<Value> {
    let sign = match op {
        Op::Add => "+",
        Op::Sub => "-",
        Op::Mul => "*",
        Op::Div => "/",
        Op::FloorDiv => "//",
        Op::Mod => "%",
        Op::Pow => "** or pow()",
    };
    let (a, b) = (left.type_name(), right.type_name());
    fail(format!("unsupported operand type(s) for {sign}: '{a}' and '{b}'"))
}

fn repeat(cx: &Context, value: &Value, times: &Value) -> Res<Value> {
    let Some(times) = times.as_int() else { return unsupported(Op::Mul, value, times) };
    // More than fits is more than is allowed.
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let room = |bytes: usize| cx.make(bytes.saturating_mul(times));
    match value {
        Value::Str(text) => {
            room(text.len())?;
            Ok(Value::Str(text.repeat(if text.is_empty() { 0 } else { times }).into()))
        }
        Value::Markup(text) => {
            room(text.len())?;
            Ok(Value::Markup(text.repeat(if text.is_empty() { 0 } else { times }).into()))
        }
        Value::List(seq) | Value::Tuple(seq) => {
            room(seq.items.len() * size_of::<Value>())?;
            let times = if seq.items.is_empty() { 0 } else { times };
            let items = std::iter::repeat_n(&seq.items, times).flatten().cloned().collect();
            if matches!(value, Value::List(_)) { Value::list(cx, items) } else { Value::tuple(cx, items) }
        }
        _ => unsupported(Op::Mul, value, &Value::Int(0)),
    }
}

/// `-a` and `+a`.
pub fn sign(negative: bool, value: &Value) -> Res<Value> {
    value.used()?;
    match value {
        Value::Float(x) => Ok(Value::Float(if negative { -x } else { *x })),
        _ => match value.as_int() {
            Some(n) => wide(if negative { n.checked_neg() } else { Some(n) }),
            None => fail(format!(
                "bad operand type for unary {}: '{}'",
                if negative { '-' } else { '+' },
                value.type_name()
            )),
        },
    }
}

fn integers(op: Op, a: i128, b: i128) -> Res<Value> {
    // What a float holds exactly.
    let exact = |n: i128| n.unsigned_abs() <= 1 << 53;
    match op {
        Op::Add => wide(a.checked_add(b)),
        Op::Sub => wide(a.checked_sub(b)),
        Op::Mul => wide(a.checked_mul(b)),
        Op::Div if b == 0 => fail("division by zero"),
        Op::FloorDiv | Op::Mod if b == 0 => fail("integer division or modulo by zero"),
        Op::Div if exact(a) && exact(b) => Ok(Value::Float(a as f64 / b as f64)),
        Op::Div => Err(Fail::unsupported("a division of integers beyond 2 ** 53")),
        Op::FloorDiv => wide(a.checked_div_euclid(b).map(|q| if b < 0 && a.rem_euclid(b) != 0 { q - 1 } else { q })),
        Op::Mod => {
            let rest = a.checked_rem_euclid(b).unwrap_or(0);
            Ok(Value::Int(if b < 0 && rest != 0 { rest + b } else { rest }))
        }
        Op::Pow if b < 0 && a == 0 => fail("0.0 cannot be raised to a negative power"),
        Op::Pow if b < 0 => Ok(Value::Float((a as f64).powf(b as f64))),
        Op::Pow if a.unsigned_abs() <= 1 => Ok(Value::Int(if b % 2 == 0 { a * a } else { a }.max(i128::from(b == 0)))),
        Op::Pow => wide(u32::try_from(b).ok().and_then(|b| a.checked_pow(b))),
    }
}

fn floats(op: Op, a: f64, b: f64) -> Res<f64> {
    let floor_mod = |a: f64, b: f64| {
        let rest = a % b;
        if rest == 0.0 {
            return (0f64.copysign(b), (a - rest) / b);
        }
        let (rest, quotient) =
            if (b < 0.0) != (rest < 0.0) { (rest + b, (a - rest) / b - 1.0) } else { (rest, (a - rest) / b) };
        (rest, quotient)
    };
    Ok(match op {
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Div | Op::FloorDiv | Op::Mod if b == 0.0 => {
            return fail(if op == Op::Div { "float division by zero" } else { "float floor division by zero" });
        }
        Op::Div => a / b,
        Op::Mod => floor_mod(a, b).0,
        Op::FloorDiv => {
            let quotient = floor_mod(a, b).1;
            let floor = quotient.floor();
            if quotient == 0.0 { 0f64.copysign(a / b) } else { floor + f64::from(quotient - floor > 0.5) }
        }
        Op::Pow if a == 0.0 && b < 0.0 => return fail("0.0 cannot be raised to a negative power"),
        Op::Pow if a < 0.0 && b.is_finite() && b.fract() != 0.0 => return Err(Fail::unsupported("a complex number")),
        Op::Pow => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return fail("(34, 'Numerical result out of range')");
            }
            power
        }
    })
}

/// `==`, with the work that it takes.
pub fn equal(cx: &Context, left: &Value, right: &Value) -> Res<bool> {
    cx.steps(left.size().min(right.size()) / 8)?;
    Ok(left == right)
}

/// `left cmp right`.
pub fn compare(cx: &Context, cmp: Cmp, left: &Value, right: &Value) -> Res<bool> {
    let order = |sign: &str| {
        cx.steps(left.size().min(right.size()) / 8)?;
        left.order(right, sign)
    };
    Ok(match cmp {
        Cmp::Eq => equal(cx, left, right)?,
        Cmp::Ne => !equal(cx, left, right)?,
        Cmp::Lt => order("<")?.is_some_and(std::cmp::Ordering::is_lt),
        Cmp::Le => order("<=")?.is_some_and(std::cmp::Ordering::is_le),
        Cmp::Gt => order(">")?.is_some_and(std::cmp::Ordering::is_gt),
        Cmp::Ge => order(">=")?.is_some_and(std::cmp::Ordering::is_ge),
        Cmp::In => contains(cx, right, left)?,
        Cmp::NotIn => !contains(cx, right, left)?,
    })
}

/// `value in container`.
pub fn contains(cx: &Context, container: &Value, value: &Value) -> Res<bool> {
    match container {
        Value::Str(text) | Value::Markup(text) => match value.as_str() {
            Some(part) => {
                cx.steps(text.len() / 256)?;
                Ok(text.contains(&**part))
            }
            None => fail(format!("'in <string>' requires string as left operand, not {}", value.type_name())),
        },
        Value::Dict(dict) | Value::View("dict_keys", dict) => {
            value.check_key()?;
            cx.steps(dict.items.len() / 8)?;
            Ok(dict.items.iter().any(|(key, _)| key == value))
        }
        Value::Iter(iter) => {
            // What is looked at is used up.
            while let Some(item) = { iter.items.borrow_mut().pop_front() } {
                if equal(cx, &item, value)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::List(seq) | Value::Tuple(seq) => {
            cx.steps(seq.items.len() / 8)?;
            for item in &seq.items {
                if equal(cx, item, value)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ if container.is_iterable() => Ok(container.items(cx)?.contains(value)),
        _ => fail(format!("argument of type '{}' is not iterable", container.type_name())),
    }
}

/// `container[index]`; none is what is not there, or has no indices.
pub fn item(cx: &Context, container: &Value, index: &Value) -> Res<Option<Value>> {
    container.used()?;
    let place = |len: usize| {
        let index = index.as_int()?;
        let len = i128::try_from(len).unwrap_or(0);
        usize::try_from(if index < 0 { index + len } else { index }).ok().filter(|i| *i < len as usize)
    };
    Ok(match container {
        Value::List(seq) | Value::Tuple(seq) => place(seq.items.len()).map(|i| seq.items[i].clone()),
        Value::Range(span) => place(span.len).map(|i| Value::Int(span.at(i))),
        Value::Str(text) | Value::Markup(text) => {
            cx.steps(text.len() / 1024)?;
            let c = if text.is_ascii() {
                place(text.len()).map(|i| char::from(text.as_bytes()[i]))
            } else {
                place(text.chars().count()).and_then(|i| text.chars().nth(i))
            };
            c.map(|c| like(container, c.encode_utf8(&mut [0; 4])))
        }
        Value::Dict(dict) => {
            if index.check_key().is_err() {
                return Ok(None);
            }
            cx.steps(dict.items.len() / 8)?;
            dict.items.iter().find(|(key, _)| key == index).map(|(_, value)| value.clone())
        }
        Value::Namespace(number) => {
            let namespaces = cx.namespaces.borrow();
            let found = namespaces[*number].iter().find(|(key, _)| key == index);
            found.map(|(_, value)| value.clone())
        }
        _ => None,
    })
}

/// A text of the type of another, which may be marked as HTML.
pub fn like(value: &Value, text: &str) -> Value {
    let text: Rc<str> = text.into();
    if matches!(value, Value::Markup(_)) { Value::Markup(text) } else { Value::Str(text) }
}

/// `container[start:stop:step]`.
pub fn slice(cx: &Context, container: &Value, bounds: [Value; 3]) -> Res<Value> {
    container.used()?;
    let bound = |value: &Value| match value {
        Value::None => Ok(None),
        _ => value.as_int().map(Some).ok_or(()),
    };
    let (Ok(start), Ok(stop), Ok(step)) = (bound(&bounds[0]), bound(&bounds[1]), bound(&bounds[2])) else {
        return fail("slice indices must be integers or None");
    };
    let step = step.unwrap_or(1);
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let items = match container {
        Value::Range(span) => return part(span, start, stop, step),
        Value::Str(text) | Value::Markup(text) if text.is_ascii() && step == 1 => {
            let (from, to) = (clamp(start, text.len(), 0, 1), clamp(stop, text.len(), text.len() as i128, 1));
            let part = if from < to { &text[from as usize..to as usize] } else { "" };
            cx.make(part.len())?;
            return Ok(like(container, part));
        }
        Value::Str(text) | Value::Markup(text) => {
            cx.make(text.len() * 4)?;
            let chars: Vec<char> = text.chars().collect();
            let part: String = places(chars.len(), start, stop, step).map(|i| chars[i]).collect();
            return Ok(like(container, &part));
        }
        Value::List(seq) | Value::Tuple(seq) => &seq.items,
        _ => return fail(format!("'{}' object has no slices", container.type_name())),
    };
    let part: Vec<Value> = places(items.len(), start, stop, step).map(|i| items[i].clone()).collect();
    if matches!(container, Value::List(_)) { Value::list(cx, part) } else { Value::tuple(cx, part) }
}

/// A part of a range, which is a range.
fn part(span: &Span, start: Option<i128>, stop: Option<i128>, step: i128) -> Res<Value> {
    let defaults = if step > 0 { (0, span.len as i128) } else { (span.len as i128 - 1, -1) };
    let (from, to) = (clamp(start, span.len, defaults.0, step), clamp(stop, span.len, defaults.1, step));
    let at = |i: i128| span.step.checked_mul(i).and_then(|n| span.start.checked_add(n));
    let (Some(first), Some(end), Some(by)) = (at(from), at(to), span.step.checked_mul(step)) else {
        return Err(Fail::unsupported("an integer of more than 127 bits"));
    };
    let len = places(span.len, start, stop, step).count();
    Ok(Value::Range(Span { start: first, stop: end, step: by, len }))
}

fn clamp(bound: Option<i128>, len: usize, default: i128, step: i128) -> i128 {
    let len = len as i128;
    let Some(bound) = bound else { return default };
    let bound = if bound < 0 { bound.saturating_add(len) } else { bound };
    if step > 0 { bound.clamp(0, len) } else { bound.clamp(-1, len - 1) }
}

fn places(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let whole = len as i128;
    let defaults = if step > 0 { (0, whole) } else { (whole - 1, -1) };
    let (from, to) = (clamp(start, len, defaults.0, step), clamp(stop, len, defaults.1, step));
    let inside = move |i: &i128| if step > 0 { *i < to } else { *i > to };
    std::iter::successors(Some(from), move |i| i.checked_add(step)).take_while(inside).map(|i| i as usize)
}

/// `markupsafe.escape`: what is marked already stays.
pub fn escape(cx: &Context, value: &Value) -> Res<String> {
    if let Value::Markup(text) = value {
        return Ok(text.to_string());
    }
    Ok(escape_text(&super::print::text(cx, value)?))
}

/// A text with HTML's signs escaped.
pub fn escape_text(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('>', "&gt;").replace('<', "&lt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}
