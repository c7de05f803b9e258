//! Values of a template: those of Python that a template can meet.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::rc::Rc;

use super::ast::Text;
use super::budget::{Budget, DEEPEST, LARGEST, Res, fail};

/// What a render has used up, and the values that may refer to themselves.
#[derive(Default)]
pub struct Context {
    budget: Budget,
    /// Attributes of the namespaces; a [`Value::Namespace`] is an index. Here a circle of references leaks nothing.
    pub namespaces: RefCell<Vec<Vec<(Value, Value)>>>,
    /// Scopes that macros refer to: emptied at the end, since the macros lie in them.
    pub closures: RefCell<Vec<Rc<Scope>>>,
}

impl std::ops::Deref for Context {
    type Target = Budget;

    fn deref(&self) -> &Budget {
        &self.budget
    }
}

/// A value, as cheap to clone as a reference of Python's.
#[derive(Clone)]
pub enum Value {
    /// What is not there, and the error of using it.
    Undefined(Rc<str>),
    /// `None`.
    None,
    /// `True`, `False`.
    Bool(bool),
    /// An integer; Python's have no bound, those beyond 128 bits are refused.
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    /// A text that is marked as HTML (`escape`, `safe`).
    Markup(Rc<str>),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    /// `dict.keys()`, `dict.values()`, `dict.items()`.
    View(&'static str, Rc<Dict>),
    /// `range`.
    Range(Span),
    /// A generator: every value comes once.
    Iter(Rc<Iter>),
    /// A method with its object.
    Method(Rc<(Value, Rc<str>)>),
    /// A macro or the body of a `call` block.
    Macro(Rc<Macro>),
    /// The variable `loop`.
    Loop(Rc<Loop>),
    /// A namespace, by number.
    Namespace(usize),
    /// `cycler(…)`: values and position.
    Cycler(Rc<(Vec<Value>, Cell<usize>)>),
    /// `joiner(…)`: separator, and whether it was used.
    Joiner(Rc<(Value, Cell<bool>)>),
    /// A function of the environment.
    Global(&'static str),
}

/// `range(start, stop, step)`, whose numbers are not stored.
#[derive(Clone, Copy)]
pub struct Span {
    pub start: i128,
    /// Where it ends, as it was given.
    pub stop: i128,
    /// From one number to the next.
    pub step: i128,
    /// Number of its elements.
    pub len: usize,
}

impl Span {
    /// A number, by its place.
    pub fn at(&self, i: usize) -> i128 {
        self.start + self.step * i as i128
    }
}

/// A list or tuple.
pub struct Seq {
    pub items: Vec<Value>,
    /// How deeply values are nested in it.
    extent: Extent,
    /// Whether it is a pair of `groupby`.
    pub group: bool,
}

/// A dictionary, in the order of insertion.
pub struct Dict {
    /// Keys and values; no two keys are equal.
    pub items: Vec<(Value, Value)>,
    extent: Extent,
}

/// A generator, which gives each value once.
pub struct Iter {
    /// What it has still to give.
    pub items: RefCell<VecDeque<Value>>,
    extent: Extent,
}

/// A macro with the scope it was made in.
pub struct Macro {
    /// Its number in the template.
    pub number: usize,
    pub name: Option<Text>,
    /// Where it looks for names.
    pub scope: Rc<Scope>,
}

/// What `loop` tells of a loop that runs.
pub struct Loop {
    /// Its number in the template and the scope around it, where it is recursive.
    pub recursive: Option<(usize, Rc<Scope>)>,
    /// What it runs over.
    pub items: Vec<Value>,
    /// The iteration, from 0.
    pub index: Cell<usize>,
    /// The level, from 0.
    pub depth0: usize,
    /// The last values of `changed`.
    pub changed: RefCell<Option<Vec<Value>>>,
}

/// Names of a block.
#[derive(Default)]
pub struct Scope {
    pub names: RefCell<Vec<(Text, Value)>>,
    /// The scope around it.
    pub parent: Option<Rc<Scope>>,
}

impl Scope {
    /// A scope within another.
    pub fn within(parent: &Rc<Scope>) -> Rc<Self> {
        Rc::new(Self { names: RefCell::default(), parent: Some(parent.clone()) })
    }

    pub fn set(&self, name: &Text, value: Value) {
        let mut names = self.names.borrow_mut();
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => names.push((name.clone(), value)),
        }
    }

    /// Looks a name up, here and around.
    pub fn get(&self, name: &str) -> Option<Value> {
        let found = self.names.borrow().iter().find(|(known, _)| **known == *name).map(|(_, value)| value.clone());
        found.or_else(|| self.parent.as_ref()?.get(name))
    }
}

/// How much is within a value. A list that holds itself twice, and so on, is small and has no end.
#[derive(Clone, Copy)]
struct Extent {
    depth: usize,
    size: usize,
}

/// The extent of a value that holds these.
fn around<'a>(values: impl Iterator<Item = &'a Value>) -> Res<Extent> {
    let grow = |sum: Extent, value: &Value| {
        let within = value.extent();
        Extent { depth: sum.depth.max(within.depth + 1), size: sum.size.saturating_add(within.size) }
    };
    let extent = values.fold(Extent { depth: 1, size: 1 }, grow);
    if extent.depth > DEEPEST {
        return fail(format!("values within {DEEPEST} others are not supported"));
    }
    if extent.size > LARGEST {
        return fail(format!("values that hold more than {LARGEST} others are not supported"));
    }
    Ok(extent)
}

/// Integers of JSON above this, 2 ** 63, may be read as floats.
const LARGEST_INT: f64 = 9_223_372_036_854_775_808.0;
/// Bytes that a value of a list takes.
const SLOT: usize = size_of::<Value>();

impl Value {
    fn extent(&self) -> Extent {
        let over = |values: &[Value]| {
            let depth = values.iter().map(|value| value.extent().depth).max().unwrap_or(0) + 1;
            Extent { depth, size: values.iter().map(|value| value.extent().size).fold(1, usize::saturating_add) }
        };
        match self {
            Self::List(seq) | Self::Tuple(seq) => seq.extent,
            Self::Dict(dict) | Self::View(_, dict) => dict.extent,
            Self::Iter(iter) => iter.extent,
            Self::Method(bound) => over(std::slice::from_ref(&bound.0)),
            Self::Cycler(cycler) => over(&cycler.0),
            Self::Joiner(joiner) => over(std::slice::from_ref(&joiner.0)),
            // Those of a finished loop are still there.
            Self::Loop(state) => over(&state.items),
            _ => Extent { depth: 0, size: 1 },
        }
    }

    /// Values within, itself among them.
    pub fn size(&self) -> usize {
        match self {
            Self::Str(text) | Self::Markup(text) => 1 + text.len() / 64,
            _ => self.extent().size,
        }
    }

    pub fn str(cx: &Context, text: impl AsRef<str>) -> Res<Self> {
        cx.make(text.as_ref().len())?;
        Ok(Self::Str(text.as_ref().into()))
    }

    /// A short text that the program itself made.
    pub fn word(text: &str) -> Self {
        Self::Str(text.into())
    }

    /// What is not there.
    pub fn undefined(message: impl AsRef<str>) -> Self {
        Self::Undefined(message.as_ref().into())
    }

    pub fn list(cx: &Context, items: Vec<Value>) -> Res<Self> {
        cx.make(items.len() * SLOT)?;
        Ok(Self::List(Rc::new(Seq { extent: around(items.iter())?, items, group: false })))
    }

    pub fn tuple(cx: &Context, items: Vec<Value>) -> Res<Self> {
        cx.make(items.len() * SLOT)?;
        Ok(Self::Tuple(Rc::new(Seq { extent: around(items.iter())?, items, group: false })))
    }

    /// A pair of `groupby`.
    pub fn group(cx: &Context, key: Value, values: Vec<Value>) -> Res<Self> {
        let items = vec![key, Self::list(cx, values)?];
        Ok(Self::Tuple(Rc::new(Seq { extent: around(items.iter())?, items, group: true })))
    }

    /// A generator, which gives each value once.
    pub fn iter(cx: &Context, items: Vec<Value>) -> Res<Self> {
        cx.make(items.len() * SLOT)?;
        let extent = around(items.iter())?;
        Ok(Self::Iter(Rc::new(Iter { items: RefCell::new(items.into()), extent })))
    }

    /// A dictionary; of equal keys the last one's value stays.
    pub fn dict(cx: &Context, pairs: Vec<(Value, Value)>) -> Res<Self> {
        cx.make(2 * pairs.len() * SLOT)?;
        let extent = around(pairs.iter().flat_map(|(k, v)| [k, v]))?;
        let mut items: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            key.check_key()?;
            cx.steps(items.len() / 8)?;
            match items.iter_mut().find(|(known, _)| *known == key) {
                Some((_, old)) => *old = value,
                None => items.push((key, value)),
            }
        }
        Ok(Self::Dict(Rc::new(Dict { items, extent })))
    }

    /// A value of JSON.
    pub fn json(cx: &Context, value: &serde_json::Value) -> Res<Self> {
        use serde_json::Value as Json;
        Ok(match value {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i128(), n.as_f64()) {
                (Some(n), _) => Self::Int(n),
                // It may have been an integer, which would be printed in full.
                (None, Some(x)) if x.abs() >= LARGEST_INT => return fail("a number beyond 64 bits is not supported"),
                (None, x) => Self::Float(x.unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::str(cx, text)?,
            Json::Array(items) => Self::list(cx, items.iter().map(|v| Self::json(cx, v)).collect::<Res<_>>()?)?,
            Json::Object(map) => {
                let pairs: Res<Vec<_>> = map.iter().map(|(k, v)| Ok((Self::word(k), Self::json(cx, v)?))).collect();
                let pairs = pairs?;
                let extent = around(pairs.iter().map(|(_, v)| v))?;
                cx.make(2 * pairs.len() * SLOT)?;
                Self::Dict(Rc::new(Dict { items: pairs, extent }))
            }
        })
    }

    /// Refuses what cannot be the key of a dictionary.
    pub fn check_key(&self) -> Res<()> {
        match self {
            Self::List(_) | Self::Dict(_) | Self::View(..) => fail(format!("unhashable type: '{}'", self.type_name())),
            Self::Tuple(seq) => seq.items.iter().try_for_each(Self::check_key),
            _ => Ok(()),
        }
    }

    /// The name of its type in Python.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(name, _) => name,
            Self::Range(..) => "range",
            Self::Iter(_) => "generator",
            Self::Method(_) => "builtin_function_or_method",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Namespace(_) => "Namespace",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Global(_) => "function",
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&Rc<str>> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// An integer; booleans are integers.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(b) => Some(i128::from(*b)),
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// A number as a float; none for any other value.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            _ => self.as_int().map(|n| n as f64),
        }
    }

    /// The error of using an undefined value; otherwise nothing.
    pub fn used(&self) -> Res<&Self> {
        match self {
            Self::Undefined(message) => fail(message.to_string()),
            _ => Ok(self),
        }
    }

    /// What Python's `bool` gives.
    pub fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Float(x) => *x != 0.0,
            Self::Bool(_) | Self::Int(_) => self.as_int() != Some(0),
            _ => self.len() != Some(0),
        }
    }

    /// What Python's `len` gives, where there is one.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::Undefined(_) => Some(0),
            Self::Str(text) | Self::Markup(text) => Some(text.chars().count()),
            Self::List(seq) | Self::Tuple(seq) => Some(seq.items.len()),
            Self::Dict(dict) | Self::View(_, dict) => Some(dict.items.len()),
            Self::Range(span) => Some(span.len),
            Self::Loop(state) => Some(state.items.len()),
            _ => None,
        }
    }

    /// Whether it can be looped over.
    pub fn is_iterable(&self) -> bool {
        matches!(
            self,
            Self::Undefined(_)
                | Self::Str(_)
                | Self::Markup(_)
                | Self::List(_)
                | Self::Tuple(_)
                | Self::Dict(_)
                | Self::View(..)
                | Self::Range(..)
                | Self::Iter(_)
                | Self::Loop(_)
        )
    }

    /// The values that a loop over it gives; a generator is used up by it.
    pub fn items(&self, cx: &Context) -> Res<Vec<Value>> {
        let items: Vec<Value> = match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) | Self::Markup(text) => {
                cx.make(text.len() * SLOT)?;
                text.chars().map(|c| Self::word(c.encode_utf8(&mut [0; 4]))).collect()
            }
            Self::List(seq) | Self::Tuple(seq) => seq.items.clone(),
            Self::Dict(dict) | Self::View("dict_keys", dict) => dict.items.iter().map(|(k, _)| k.clone()).collect(),
            Self::View("dict_values", dict) => dict.items.iter().map(|(_, v)| v.clone()).collect(),
            Self::View(_, dict) => {
                let pair = |(k, v): &(Value, Value)| Self::tuple(cx, vec![k.clone(), v.clone()]);
                dict.items.iter().map(pair).collect::<Res<_>>()?
            }
            Self::Range(span) => (0..span.len).map(|i| Self::Int(span.at(i))).collect(),
            Self::Iter(iter) => iter.items.take().into(),
            Self::Loop(_) => return fail("a loop over loop is not supported"),
            _ => return fail(format!("'{}' object is not iterable", self.type_name())),
        };
        cx.steps(items.len() / 4)?;
        cx.make(items.len() * SLOT)?;
        Ok(items)
    }

    /// `<` and its like.
    pub fn order(&self, other: &Self, sign: &str) -> Res<Option<Ordering>> {
        if let (Some(a), Some(b)) = (self.as_str(), other.as_str()) {
            return Ok(Some(a.cmp(b)));
        }
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (self.as_float(), other.as_float()) {
            return Ok(compare_floats(self, other, a, b));
        }
        match (self, other) {
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if a != b {
                        return a.order(b, sign);
                    }
                }
                Ok(Some(a.items.len().cmp(&b.items.len())))
            }
            _ => {
                self.used()?;
                other.used()?;
                let (a, b) = (self.type_name(), other.type_name());
                fail(format!("'{sign}' not supported between instances of '{a}' and '{b}'"))
            }
        }
    }
}

/// Python compares an integer and a float without rounding either.
fn compare_floats(left: &Value, right: &Value, a: f64, b: f64) -> Option<Ordering> {
    let whole = |n: i128, x: f64| -> Option<Ordering> {
        if x.is_nan() {
            return None;
        }
        if x.abs() >= 1e38 {
            return 0.0.partial_cmp(&x);
        }
        // Within the range of `i128`.
        Some(n.cmp(&(x.floor() as i128)).then(if x.fract() == 0.0 { Ordering::Equal } else { Ordering::Less }))
    };
    match (left.as_int(), right.as_int()) {
        (Some(n), None) => whole(n, b),
        (None, Some(n)) => whole(n, a).map(Ordering::reverse),
        _ => a.partial_cmp(&b),
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        if let (Some(a), Some(b)) = (self.as_str(), other.as_str()) {
            return a == b;
        }
        if let (Some(a), Some(b)) = (self.as_float(), other.as_float()) {
            return match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => compare_floats(self, other, a, b) == Some(Ordering::Equal),
            };
        }
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => a.items == b.items,
            (Self::View("dict_keys", a), Self::View("dict_keys", b)) => {
                a.items.len() == b.items.len() && a.items.iter().all(|(k, _)| b.items.iter().any(|(key, _)| k == key))
            }
            (Self::View("dict_items", a), Self::View("dict_items", b)) | (Self::Dict(a), Self::Dict(b)) => {
                a.items.len() == b.items.len()
                    && a.items.iter().all(|(k, v)| b.items.iter().any(|(key, value)| k == key && v == value))
            }
            (Self::Range(a), Self::Range(b)) => {
                a.len == b.len && (a.len == 0 || (a.start == b.start && (a.len == 1 || a.step == b.step)))
            }
            (Self::Iter(a), Self::Iter(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Method(a), Self::Method(b)) => a.1 == b.1 && a.0 == b.0,
            (Self::Namespace(a), Self::Namespace(b)) => a == b,
            (Self::Cycler(a), Self::Cycler(b)) => Rc::ptr_eq(a, b),
            (Self::Joiner(a), Self::Joiner(b)) => Rc::ptr_eq(a, b),
            (Self::Global(a), Self::Global(b)) => a == b,
            _ => false,
        }
    }
}
