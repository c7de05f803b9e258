//! The tests behind `is`.

use super::args::{Given, needed};
use super::ast::{Cmp, Op};
use super::budget::{Fail, Res, fail};
use super::names::{TESTS, is_filter};
use super::ops::{binary, compare};
use super::print;
use super::strings;
use super::value::{Context, Value};

/// `value is name(…)`.
pub fn check(cx: &Context, name: &str, value: &Value, given: &Given) -> Res<bool> {
    cx.step()?;
    let (kind, operand) = match name {
        "==" | "eq" | "equalto" => (Some(Cmp::Eq), ""),
        "!=" | "ne" => (Some(Cmp::Ne), ""),
        ">" | "gt" | "greaterthan" => (Some(Cmp::Gt), ""),
        ">=" | "ge" => (Some(Cmp::Ge), ""),
        "<" | "lt" | "lessthan" => (Some(Cmp::Lt), ""),
        "<=" | "le" => (Some(Cmp::Le), ""),
        "in" => (Some(Cmp::In), "seq"),
        _ => (None, ""),
    };
    if let Some(cmp) = kind {
        let [other] = given.bind(name, [operand])?;
        return compare(cx, cmp, value, &needed(other, name)?);
    }
    match name {
        "divisibleby" => {
            let [by] = given.bind(name, ["num"])?;
            return remainder(cx, value, &needed(by, name)?, 0);
        }
        "sameas" => {
            let [other] = given.bind(name, ["other"])?;
            return same(value, &needed(other, name)?);
        }
        _ => {}
    }
    if !TESTS.contains(&name) {
        return fail(format!("No test named '{name}'."));
    }
    given.bind(name, [])?;
    Ok(match name {
        "odd" => remainder(cx, value, &Value::Int(2), 1)?,
        "even" => remainder(cx, value, &Value::Int(2), 0)?,
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "filter" | "test" => {
            value.check_key()?;
            let known = |text: &str| if name == "filter" { is_filter(text) } else { TESTS.contains(&text) };
            value.as_str().is_some_and(|text| known(text))
        }
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "lower" | "upper" => {
            let text = print::text(cx, value)?;
            cx.steps(text.len() / 64)?;
            strings::is(&text, if name == "lower" { "islower" } else { "isupper" })?
        }
        "string" => value.as_str().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "number" => value.as_float().is_some(),
        "iterable" => value.is_iterable(),
        "escaped" => matches!(value, Value::Markup(_)),
        "sequence" => !matches!(value, Value::View(..) | Value::Loop(_)) && value.len().is_some(),
        _ => matches!(
            value,
            Value::Undefined(_)
                | Value::Method(_)
                | Value::Macro(_)
                | Value::Loop(_)
                | Value::Joiner(_)
                | Value::Global(_)
        ),
    })
}

fn remainder(cx: &Context, value: &Value, by: &Value, rest: i128) -> Res<bool> {
    Ok(binary(cx, Op::Mod, value, by)? == Value::Int(rest))
}

/// Whether two values are one. Python has some equal values once and some twice: those are refused.
fn same(a: &Value, b: &Value) -> Res<bool> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::None, Value::None) => Ok(true),
        (Value::Int(a), Value::Int(b)) if a != b || (-5..=256).contains(a) => Ok(a == b),
        (Value::Str(_), Value::Str(_)) | (Value::Float(_), Value::Float(_)) | (Value::Int(_), Value::Int(_))
            if a == b =>
        {
            Err(Fail::unsupported("the test sameas with equal numbers or texts"))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Ok(std::rc::Rc::ptr_eq(a, b)),
        (Value::Dict(a), Value::Dict(b)) => Ok(std::rc::Rc::ptr_eq(a, b)),
        (Value::Undefined(_), Value::Undefined(_)) => Err(Fail::unsupported("the test sameas with undefined values")),
        _ => Ok(a.type_name() == b.type_name() && a == b),
    }
}
