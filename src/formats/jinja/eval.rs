//! Expressions and calls, evaluated.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use super::args::{Given, int, needed, str_of};
use super::ast::{Args, Expr, Filter, Literal, Template, Text};
use super::attributes::{call, get_attribute, get_item};
use super::budget::{Fail, Res, fail};
use super::checks::check;
use super::filters;
use super::ops::{binary, compare, sign, slice};
use super::print::print;
use super::value::{Context, Macro, Scope, Span, Value};

/// A template that is being rendered.
pub struct Render<'a> {
    pub template: &'a Template,
    /// What it has used up.
    pub cx: Context,
    /// Runs statements, which are a level above.
    pub run: Runner,
    /// Gives the time as `strftime` does.
    pub now: &'a dyn Fn(&str) -> String,
    /// Bytes of the text that `generation` blocks made.
    pub generated: RefCell<Vec<Range<usize>>>,
    /// Whether one of them was not written to the text directly.
    pub misplaced: Cell<bool>,
}

/// What evaluation hands to the statements.
pub struct Runner {
    /// Runs the body of a macro in its scope.
    pub body: fn(&Render, usize, &Rc<Scope>) -> Res<String>,
    /// Runs a loop again.
    pub again: fn(&Render, Again) -> Res<String>,
}

/// A call of a loop.
pub struct Again<'a> {
    /// Its number in the template.
    pub number: usize,
    /// What it runs over.
    pub items: Vec<Value>,
    /// The scope around it.
    pub scope: &'a Rc<Scope>,
    /// The level, from 0.
    pub level: usize,
}

/// The largest range of Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;
const GLOBALS: [&str; 9] =
    ["self", "range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"];

impl Render<'_> {
    /// The value of an expression.
    pub fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        self.cx.step()?;
        self.cx.deeper(|| self.value(expr, scope))
    }

    fn all(&self, exprs: &[Expr], scope: &Rc<Scope>) -> Res<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    fn value(&self, expr: &Expr, scope: &Rc<Scope>) -> Res<Value> {
        let cx = &self.cx;
        match expr {
            Expr::Const(literal) => literal_value(cx, literal),
            Expr::Name(name) => Ok(lookup(scope, name)),
            Expr::Tuple(items) => Value::tuple(cx, self.all(items, scope)?),
            Expr::List(items) => Value::list(cx, self.all(items, scope)?),
            Expr::Dict(pairs) => {
                let pair = |(key, value): &(Expr, Expr)| Ok((self.eval(key, scope)?, self.eval(value, scope)?));
                Value::dict(cx, pairs.iter().map(pair).collect::<Res<_>>()?)
            }
            Expr::Neg(value) => sign(true, &self.eval(value, scope)?),
            Expr::Pos(value) => sign(false, &self.eval(value, scope)?),
            Expr::Not(value) => Ok(Value::Bool(!self.eval(value, scope)?.truth())),
            Expr::And(left, right) => {
                let left = self.eval(left, scope)?;
                if left.truth() { self.eval(right, scope) } else { Ok(left) }
            }
            Expr::Or(left, right) => {
                let left = self.eval(left, scope)?;
                if left.truth() { Ok(left) } else { self.eval(right, scope) }
            }
            Expr::Binary(op, left, right) => binary(cx, *op, &self.eval(left, scope)?, &self.eval(right, scope)?),
            Expr::Concat(parts) => {
                let mut out = String::new();
                for value in self.all(parts, scope)? {
                    print(cx, &value, &mut out)?;
                }
                Value::str(cx, out)
            }
            Expr::Compare(first, others) => {
                let mut left = self.eval(first, scope)?;
                for (cmp, right) in others {
                    let right = self.eval(right, scope)?;
                    if !compare(cx, *cmp, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::Cond(test, value, otherwise) => match (self.eval(test, scope)?.truth(), otherwise) {
                (true, _) => self.eval(value, scope),
                (false, Some(otherwise)) => self.eval(otherwise, scope),
                (false, None) => {
                    Ok(Value::undefined("the inline if-expression evaluated to false and no else section was defined."))
                }
            },
            Expr::Filter(value, filter) => {
                let value = self.eval(value, scope)?;
                self.filter(&value, filter, scope)
            }
            Expr::Test(value, test) => {
                let value = self.eval(value, scope)?;
                let given = self.given(&test.args, scope)?;
                check(cx, &test.name, &value, &given).map(Value::Bool)
            }
            Expr::Attribute(value, name) => get_attribute(cx, &self.eval(value, scope)?, name),
            Expr::Item(value, index) => get_item(cx, &self.eval(value, scope)?, &self.eval(index, scope)?),
            Expr::Slice(value, bounds) => {
                let value = self.eval(value, scope)?;
                let bound = |i: usize| bounds[i].as_ref().map_or(Ok(Value::None), |bound| self.eval(bound, scope));
                let bounds = [bound(0)?, bound(1)?, bound(2)?];
                slice(cx, &value, bounds)
            }
            Expr::Call(callee, args) => {
                let callee = self.eval(callee, scope)?;
                let given = self.given(args, scope)?;
                self.call(&callee, given)
            }
        }
    }

    /// A value through a filter.
    pub fn filter(&self, value: &Value, filter: &Filter, scope: &Rc<Scope>) -> Res<Value> {
        let given = self.given(&filter.args, scope)?;
        filters::apply(&self.cx, &filter.name, value, &given)
    }

    /// The values of arguments.
    pub fn given(&self, args: &Args, scope: &Rc<Scope>) -> Res<Given> {
        let mut given = Given { positional: self.all(&args.positional, scope)?, named: Vec::new() };
        for (name, value) in &args.named {
            given.named.push((name.clone(), self.eval(value, scope)?));
        }
        if let Some(star) = &args.star {
            given.positional.extend(self.eval(star, scope)?.items(&self.cx)?);
        }
        if let Some(double) = &args.double_star {
            let Value::Dict(dict) = self.eval(double, scope)? else {
                return fail("argument after ** must be a mapping");
            };
            for (key, value) in &dict.items {
                let name = Text::from(str_of(key, "**")?);
                if given.named.iter().any(|(known, _)| *known == name) {
                    return fail(format!("got multiple values for keyword argument '{name}'"));
                }
                given.named.push((name, value.clone()));
            }
        }
        Ok(given)
    }

    /// `callee(…)`.
    pub fn call(&self, callee: &Value, given: Given) -> Res<Value> {
        let cx = &self.cx;
        match callee {
            Value::Method(bound) => call(cx, &bound.0, &bound.1, &given),
            Value::Macro(this) => self.call_macro(this, given),
            Value::Global(name) => self.global(name, &given),
            Value::Joiner(joiner) => {
                let first = !joiner.1.replace(true);
                Ok(if first { Value::word("") } else { joiner.0.clone() })
            }
            Value::Loop(state) => {
                let [items] = given.bind("loop", ["iterable"])?;
                let Some((number, scope)) = &state.recursive else {
                    return fail("The loop must have the 'recursive' marker to be called recursively.");
                };
                let items = needed(items, "loop")?.items(cx)?;
                let call = Again { number: *number, items, scope, level: state.depth0 + 1 };
                Value::str(cx, (self.run.again)(self, call)?)
            }
            other => {
                other.used()?;
                fail(format!("'{}' object is not callable", other.type_name()))
            }
        }
    }

    fn call_macro(&self, this: &Macro, given: Given) -> Res<Value> {
        let parsed = &self.template.macros[this.number];
        let name = this.name.as_deref().unwrap_or("caller");
        let scope = Scope::within(&this.scope);
        let Given { positional, mut named } = given;
        let mut take = |wanted: &str| {
            let at = named.iter().position(|(name, _)| **name == *wanted);
            at.map(|at| named.remove(at).1)
        };
        let count = parsed.parameters.len();
        for (i, (parameter, default)) in parsed.parameters.iter().enumerate() {
            let value = match (positional.get(i).cloned().or_else(|| take(parameter)), default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, &scope)?,
                (None, None) => Value::undefined(format!("parameter '{parameter}' was not provided")),
            };
            scope.set(parameter, value);
        }
        let [varargs, kwargs, caller] = parsed.uses;
        let explicit = parsed.parameters.iter().any(|(parameter, _)| **parameter == *"caller");
        if caller && !explicit {
            let value = take("caller").unwrap_or_else(|| Value::undefined("No caller defined"));
            scope.set(&"caller".into(), value);
        }
        if kwargs {
            let pairs = named.into_iter().map(|(name, value)| (Value::word(&name), value)).collect();
            scope.set(&"kwargs".into(), Value::dict(&self.cx, pairs)?);
        } else if let Some((unknown, _)) = named.first() {
            return fail(format!("macro '{name}' takes no keyword argument '{unknown}'"));
        }
        if varargs {
            let rest = positional.get(count..).unwrap_or_default().to_vec();
            scope.set(&"varargs".into(), Value::tuple(&self.cx, rest)?);
        } else if positional.len() > count {
            return fail(format!("macro '{name}' takes not more than {count} argument(s)"));
        }
        let text = self.cx.deeper(|| (self.run.body)(self, this.number, &scope))?;
        Value::str(&self.cx, text)
    }

    fn global(&self, name: &str, given: &Given) -> Res<Value> {
        let cx = &self.cx;
        match name {
            "range" => range(given),
            "dict" | "namespace" => {
                let mut pairs = match &given.positional[..] {
                    [] => Vec::new(),
                    [Value::Dict(dict)] => dict.items.clone(),
                    [Value::Namespace(_)] => return Err(Fail::unsupported("a namespace of a namespace")),
                    [items] => items.used()?.items(cx)?.iter().map(|item| pair(cx, item)).collect::<Res<_>>()?,
                    _ => return fail(format!("{name} expected at most 1 argument")),
                };
                pairs.extend(given.named.iter().map(|(name, value)| (Value::word(name), value.clone())));
                let made = Value::dict(cx, pairs)?;
                let (Value::Dict(dict), "namespace") = (&made, name) else { return Ok(made) };
                dict.items.iter().try_for_each(|(key, _)| stored_name(key.as_str().map_or("", |key| key)))?;
                let mut namespaces = cx.namespaces.borrow_mut();
                namespaces.push(dict.items.clone());
                Ok(Value::Namespace(namespaces.len() - 1))
            }
            "cycler" => match (&given.positional[..], &given.named[..]) {
                ([_, ..], []) => Ok(Value::Cycler(Rc::new((given.positional.clone(), Cell::new(0))))),
                _ => fail("at least one item has to be provided"),
            },
            "joiner" => {
                let [sep] = given.bind(name, ["sep"])?;
                Ok(Value::Joiner(Rc::new((sep.unwrap_or_else(|| Value::word(", ")), Cell::new(false)))))
            }
            "raise_exception" => {
                let [message] = given.bind(name, ["message"])?;
                fail(super::print::text(cx, &needed(message, name)?)?)
            }
            "strftime_now" => {
                let [format] = given.bind(name, ["format"])?;
                Value::str(cx, (self.now)(&str_of(&needed(format, name)?, name)?))
            }
            other => Err(Fail::unsupported(format!("the function {other}"))),
        }
    }
}

fn literal_value(cx: &Context, literal: &Literal) -> Res<Value> {
    Ok(match literal {
        Literal::None => Value::None,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(n) => Value::Int(*n),
        Literal::Float(x) => Value::Float(*x),
        Literal::Str(text) => return Value::str(cx, text),
    })
}

fn lookup(scope: &Rc<Scope>, name: &str) -> Value {
    if let Some(value) = scope.get(name) {
        return value;
    }
    let global = GLOBALS.into_iter().find(|global| *global == name);
    global.map_or_else(|| Value::undefined(format!("'{name}' is undefined")), Value::Global)
}

/// Two values in one.
fn pair(cx: &Context, item: &Value) -> Res<(Value, Value)> {
    match &item.items(cx)?[..] {
        [key, value] => Ok((key.clone(), value.clone())),
        other => fail(format!("dictionary update sequence element has length {}; 2 is required", other.len())),
    }
}

/// transformers refuses such names on a namespace.
pub fn stored_name(name: &str) -> Res<()> {
    if name.starts_with('_') {
        return fail(format!("Chat templates cannot store underscore-prefixed attributes on a namespace: '{name}'"));
    }
    Ok(())
}

fn range(given: &Given) -> Res<Value> {
    if !given.named.is_empty() {
        return fail("range() takes no keyword arguments");
    }
    let numbers = given.positional.iter().map(int).collect::<Res<Vec<_>>>()?;
    let (start, stop, step) = match numbers[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return fail(format!("range expected 1 to 3 arguments, got {}", numbers.len())),
    };
    if step == 0 {
        return fail("range() arg 3 must not be zero");
    }
    let distance = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    let len = usize::try_from(distance.max(0).unsigned_abs().div_ceil(step.unsigned_abs())).unwrap_or(usize::MAX);
    if len > MAX_RANGE {
        return fail(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."));
    }
    Ok(Value::Range(Span { start, stop, step, len }))
}
