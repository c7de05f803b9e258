//! Arguments of a call, and the parameters they are for.

use super::ast::Text;
use super::budget::{Res, fail};
use super::value::Value;

/// Arguments of a call, evaluated from left to right.
#[derive(Default, Clone)]
pub struct Given {
    pub positional: Vec<Value>,
    pub named: Vec<(Text, Value)>,
}

impl Given {
    /// The arguments in the order of these parameters; a name that begins with `/` is by position alone.
    pub fn bind<const N: usize>(&self, function: &str, parameters: [&str; N]) -> Res<[Option<Value>; N]> {
        let mut out = [const { None }; N];
        if self.positional.len() > N {
            return fail(format!("{function} takes at most {N} arguments, {} given", self.positional.len()));
        }
        for (slot, value) in out.iter_mut().zip(&self.positional) {
            *slot = Some(value.clone());
        }
        for (name, value) in &self.named {
            let Some(i) = parameters.iter().position(|parameter| **parameter == **name) else {
                return fail(format!("{function} got an unexpected keyword argument '{name}'"));
            };
            if out[i].is_some() {
                return fail(format!("{function} got multiple values for argument '{name}'"));
            }
            out[i] = Some(value.clone());
        }
        Ok(out)
    }
}

/// An argument that must be given.
pub fn needed(value: Option<Value>, function: &str) -> Res<Value> {
    value.map_or_else(|| fail(format!("{function} misses an argument")), Ok)
}

/// An integer, or its default.
pub fn int_or(value: Option<Value>, default: i128) -> Res<i128> {
    match value {
        None => Ok(default),
        Some(value) => int(&value),
    }
}

/// A whole number; a boolean counts as 0 or 1, as in Python.
pub fn int(value: &Value) -> Res<i128> {
    match value.used()?.as_int() {
        Some(n) => Ok(n),
        None => fail(format!("'{}' object cannot be interpreted as an integer", value.type_name())),
    }
}

/// A boolean, or its default.
pub fn flag_or(value: Option<Value>, default: bool) -> bool {
    value.map_or(default, |value| value.truth())
}

/// A value, if it is given and not `None`.
pub fn some(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}

/// A text; `function` is named where it is none.
pub fn str_of(value: &Value, function: &str) -> Res<String> {
    match value.used()?.as_str() {
        Some(text) => Ok(text.to_string()),
        None => fail(format!("{function}: expected a text, got {}", value.type_name())),
    }
}
