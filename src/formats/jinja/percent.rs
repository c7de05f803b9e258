//! `'format' % values`.

use super::budget::{Fail, Res, check_width, fail};
use super::numbers;
use super::print::{escaped, repr, text};
use super::value::{Context, Value};

/// One conversion: `%-05.2f`.
#[derive(Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Where the values come from.
struct Values<'a> {
    given: &'a Value,
    next: usize,
}

impl Values<'_> {
    fn take(&mut self) -> Res<Value> {
        let at = self.next;
        self.next += 1;
        let value = match self.given {
            Value::Tuple(seq) => seq.items.get(at).cloned(),
            other if at == 0 => Some(other.clone()),
            _ => None,
        };
        value.ok_or_else(|| Fail::new("not enough arguments for format string"))
    }

    fn named(&mut self, name: &str) -> Res<Value> {
        let Value::Dict(dict) = self.given else { return fail("format requires a mapping") };
        let found = dict.items.iter().find(|(key, _)| key.as_str().is_some_and(|key| **key == *name));
        found.map(|(_, value)| value.clone()).ok_or_else(|| Fail::new(format!("KeyError: '{name}'")))
    }

    /// A width or precision from the values.
    fn star(&mut self) -> Res<i128> {
        match self.take()? {
            Value::Int(n) => Ok(n),
            _ => fail("* wants int"),
        }
    }

    fn all_used(&self) -> bool {
        match self.given {
            Value::Tuple(seq) => self.next >= seq.items.len(),
            Value::Dict(_) | Value::List(_) | Value::Range(..) => true,
            _ => self.next > 0,
        }
    }
}

/// The format with its values.
pub fn percent(cx: &Context, format: &Value, given: &Value) -> Res<Value> {
    let (Value::Str(format), false) = (format, has_markup(given)) else {
        return Err(Fail::unsupported("% with a text that is marked as HTML"));
    };
    let mut values = Values { given, next: 0 };
    let mut out = String::new();
    let mut rest = &**format;
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let name = match rest.strip_prefix('(') {
            Some(_) => {
                let end = closing(rest).ok_or_else(|| Fail::new("incomplete format key"))?;
                let name = &rest[1..end];
                rest = &rest[end + 1..];
                Some(name)
            }
            None => None,
        };
        let conversion = Conversion::read(&mut rest, &mut values)?;
        let Some(kind) = rest.chars().next() else { return fail("incomplete format") };
        rest = &rest[kind.len_utf8()..];
        let value = match name {
            Some(name) => values.named(name)?,
            None => values.take()?,
        };
        let start = out.len();
        conversion.write(cx, kind, &value, &mut out)?;
        cx.make(out.len() - start)?;
    }
    out += rest;
    if !values.all_used() {
        return fail("not all arguments converted during string formatting");
    }
    Value::str(cx, out)
}

fn has_markup(value: &Value) -> bool {
    match value {
        Value::Markup(_) => true,
        Value::Tuple(seq) => seq.items.iter().any(|v| matches!(v, Value::Markup(_))),
        _ => false,
    }
}

/// Where the parenthesis that begins the text is closed.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0;
    text.char_indices().find_map(|(i, c)| {
        open += i32::from(c == '(') - i32::from(c == ')');
        (open == 0).then_some(i)
    })
}

impl Conversion {
    fn read(rest: &mut &str, values: &mut Values) -> Res<Self> {
        let mut out = Self::default();
        while let Some(flag) = rest.chars().next().filter(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => out.left = true,
                '+' => out.plus = true,
                ' ' => out.space = true,
                '#' => out.alternate = true,
                _ => out.zero = true,
            }
            *rest = &rest[1..];
        }
        if let Some(n) = Self::number(rest, values)? {
            out.left |= n < 0;
            out.width = check_width(n.saturating_abs())?;
        }
        if rest.starts_with('.') {
            *rest = &rest[1..];
            out.precision = Some(check_width(Self::number(rest, values)?.unwrap_or(0))?);
        }
        if rest.starts_with(['h', 'l', 'L']) {
            *rest = &rest[1..];
        }
        Ok(out)
    }

    fn number(rest: &mut &str, values: &mut Values) -> Res<Option<i128>> {
        if rest.starts_with('*') {
            *rest = &rest[1..];
            return values.star().map(Some);
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            return Ok(None);
        }
        let n = rest[..digits].parse().unwrap_or(i128::MAX);
        *rest = &rest[digits..];
        Ok(Some(n))
    }

    fn write(&self, cx: &Context, kind: char, value: &Value, out: &mut String) -> Res<()> {
        let shortened = |text: String| match self.precision {
            Some(n) => text.chars().take(n).collect(),
            None => text,
        };
        match kind {
            's' => self.pad("", &shortened(text(cx, value)?), false, out),
            'r' => self.pad("", &shortened(repr(cx, value)?), false, out),
            'a' => self.pad("", &shortened(escaped(&repr(cx, value)?)), false, out),
            'c' => self.pad("", &character(value)?, false, out),
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' => self.integer(cx, kind, value, out)?,
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => self.float(cx, kind, value, out)?,
            other => return fail(format!("unsupported format character '{other}' (0x{:x})", u32::from(other))),
        }
        Ok(())
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn integer(&self, cx: &Context, kind: char, value: &Value, out: &mut String) -> Res<()> {
        let n = match value {
            Value::Float(x) if "diu".contains(kind) => whole(*x)?,
            _ => match value.as_int() {
                Some(n) => n,
                None if "diu".contains(kind) => {
                    value.used()?;
                    return fail(format!("%{kind} format: a real number is required, not {}", value.type_name()));
                }
                None => return fail(format!("%{kind} format: an integer is required, not {}", value.type_name())),
            },
        };
        let (base, prefix) = match kind {
            'o' => (8, "0o"),
            'x' => (16, "0x"),
            'X' => (16, "0X"),
            _ => (10, ""),
        };
        let digits = numbers::radix(n, base, kind == 'X');
        let width = self.precision.unwrap_or(0);
        cx.make(width)?;
        let digits = format!("{digits:0>width$}");
        let sign = format!("{}{}", self.sign(n < 0), if self.alternate { prefix } else { "" });
        self.pad(&sign, &digits, true, out);
        Ok(())
    }

    fn float(&self, cx: &Context, kind: char, value: &Value, out: &mut String) -> Res<()> {
        let Some(x) = value.as_float() else {
            value.used()?;
            return fail(format!("must be real number, not {}", value.type_name()));
        };
        if self.alternate {
            return Err(Fail::unsupported("# with a float"));
        }
        let precision = self.precision.unwrap_or(6);
        cx.make(precision)?;
        let digits = match kind.to_ascii_lowercase() {
            'f' => numbers::fixed(x, precision),
            'e' => numbers::scientific(x, precision),
            _ => numbers::general(x, precision, false),
        };
        let digits = if kind.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
        self.pad(self.sign(x.is_sign_negative() && !x.is_nan()), &digits, true, out);
        Ok(())
    }

    fn pad(&self, sign: &str, digits: &str, number: bool, out: &mut String) {
        let missing = self.width.saturating_sub(sign.len() + digits.chars().count());
        let (before, zeros, after) = match (self.left, self.zero && number) {
            (true, _) => (0, 0, missing),
            (false, true) => (0, missing, 0),
            (false, false) => (missing, 0, 0),
        };
        out.extend(std::iter::repeat_n(' ', before));
        out.push_str(sign);
        out.extend(std::iter::repeat_n('0', zeros));
        out.push_str(digits);
        out.extend(std::iter::repeat_n(' ', after));
    }
}

fn character(value: &Value) -> Res<String> {
    if let Some(text) = value.as_str() {
        let mut chars = text.chars();
        return match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c.to_string()),
            _ => fail("%c requires int or char"),
        };
    }
    let code = value.as_int().ok_or_else(|| Fail::new("%c requires int or char"))?;
    let c = u32::try_from(code).ok().and_then(char::from_u32);
    c.map(String::from).ok_or_else(|| Fail::new("%c arg not in range(0x110000)"))
}

/// `int(x)`.
pub fn whole(x: f64) -> Res<i128> {
    if x.is_nan() {
        return fail("cannot convert float NaN to integer");
    }
    if x.is_infinite() {
        return fail("cannot convert float infinity to integer");
    }
    if x.abs() >= 1.7e38 {
        return Err(Fail::unsupported("an integer of more than 127 bits"));
    }
    // Within the range.
    Ok(x.trunc() as i128)
}
