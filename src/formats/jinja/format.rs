//! `'format'.format(…)`: Python's format strings in the sandbox of Jinja2.

use super::budget::{Fail, Res, check_width, fail};
use super::numbers;
use super::print::{escaped, repr, text};
use super::value::{Context, Value};

/// Looks `value.name` (a text) or `value[name]` up, as an expression would.
pub type Lookup<'a> = &'a dyn Fn(&Value, &Value, bool) -> Res<Value>;

struct Formatter<'a> {
    cx: &'a Context,
    positional: &'a [Value],
    named: &'a [(Value, Value)],
    lookup: Lookup<'a>,
    /// The next field without a number; none once a number was given.
    automatic: Option<usize>,
    numbered: bool,
}

/// The format with its values.
pub fn format(
    cx: &Context,
    format: &str,
    positional: &[Value],
    named: &[(Value, Value)],
    lookup: Lookup,
) -> Res<String> {
    let mut formatter = Formatter { cx, positional, named, lookup, automatic: Some(0), numbered: false };
    formatter.run(format, 2)
}

impl Formatter<'_> {
    fn run(&mut self, format: &str, depth: usize) -> Res<String> {
        if depth == 0 {
            return fail("Max string recursion exceeded");
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out += &rest[..at];
            let sign = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(sign) {
                out += sign;
                rest = after;
                continue;
            }
            if sign == "}" {
                return fail("Single '}' encountered in format string");
            }
            let mut open = 1;
            let end = rest.char_indices().find_map(|(i, c)| {
                open += i32::from(c == '{') - i32::from(c == '}');
                (open == 0).then_some(i)
            });
            let Some(end) = end else {
                return fail(if rest.is_empty() {
                    "Single '{' encountered in format string"
                } else {
                    "expected '}' before end of string"
                });
            };
            let field = self.field(&rest[..end], depth)?;
            self.cx.make(field.len())?;
            out += &field;
            rest = &rest[end + 1..];
        }
        Ok(out + rest)
    }

    fn field(&mut self, field: &str, depth: usize) -> Res<String> {
        // Brackets may hold a `:` or `!`.
        let mut bracket = false;
        let end = field.char_indices().find_map(|(i, c)| {
            bracket = if bracket { c != ']' } else { c == '[' };
            (!bracket && (c == ':' || c == '!')).then_some(i)
        });
        let (name, rest) = field.split_at(end.unwrap_or(field.len()));
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => {
                let mut chars = rest.chars();
                let conversion = chars.next().ok_or_else(|| Fail::new("unmatched '{' in format spec"))?;
                match chars.as_str() {
                    "" => (Some(conversion), ""),
                    rest => match rest.strip_prefix(':') {
                        Some(spec) => (Some(conversion), spec),
                        None => return fail("expected ':' after conversion specifier"),
                    },
                }
            }
            None => (None, rest.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::str(self.cx, text(self.cx, &value)?)?,
            Some('r') => Value::str(self.cx, repr(self.cx, &value)?)?,
            Some('a') => Value::str(self.cx, escaped(&repr(self.cx, &value)?))?,
            Some(other) => return fail(format!("Unknown conversion specifier {other}")),
        };
        let spec = self.run(spec, depth - 1 + usize::from(!spec.contains(['{', '}'])))?;
        apply(self.cx, &value, &spec)
    }

    fn value(&mut self, name: &str) -> Res<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let index = if first.is_empty() {
            let Some(next) = self.automatic.filter(|_| !self.numbered) else {
                return fail("cannot switch from manual field specification to automatic field numbering");
            };
            self.automatic = Some(next + 1);
            Some(next)
        } else if first.bytes().all(|c| c.is_ascii_digit()) {
            if self.automatic != Some(0) {
                return fail("cannot switch from automatic field numbering to manual field specification");
            }
            self.numbered = true;
            Some(first.parse().unwrap_or(usize::MAX))
        } else {
            None
        };
        let mut value = match index {
            Some(i) => match self.positional.get(i) {
                Some(value) => value.clone(),
                None => return fail("Replacement index out of range for positional args tuple"),
            },
            None => {
                let found = self.named.iter().find(|(key, _)| key.as_str().is_some_and(|key| **key == *first));
                found.map(|(_, value)| value.clone()).ok_or_else(|| Fail::new(format!("KeyError: '{first}'")))?
            }
        };
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = (self.lookup)(&value, &Value::word(&after[..end]), true)?;
                rest = &after[end..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let end = after.find(']').ok_or_else(|| Fail::new("Missing ']' in format string"))?;
                let key = &after[..end];
                let number = !key.is_empty() && key.bytes().all(|c| c.is_ascii_digit());
                let key = key.parse().ok().filter(|_| number).map_or_else(|| Value::word(key), Value::Int);
                value = (self.lookup)(&value, &key, false)?;
                rest = &after[end + 1..];
            } else {
                return fail("Only '.' or '[' may follow ']' in format field specifier");
            }
        }
        Ok(value)
    }
}

/// `[[fill]align][sign][#][0][width][,][.precision][type]`.
struct Spec {
    fill: char,
    align: Option<char>,
    sign: char,
    alternate: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn read(text: &str, of: &str) -> Res<Self> {
        let mut chars: Vec<char> = text.chars().collect();
        let aligns = |c: Option<&char>| c.filter(|c| "<>=^".contains(**c)).copied();
        let mut out = Self {
            fill: ' ',
            align: None,
            sign: '-',
            alternate: false,
            width: 0,
            group: None,
            precision: None,
            kind: None,
        };
        if let Some(align) = aligns(chars.get(1)) {
            (out.fill, out.align) = (chars[0], Some(align));
            chars.drain(..2);
        } else if let Some(align) = aligns(chars.first()) {
            out.align = Some(align);
            chars.remove(0);
        }
        let mut at = 0;
        let filled = out.fill != ' ';
        let eat = |at: &mut usize, wanted: &str| {
            let found = chars.get(*at).copied().filter(|c| wanted.contains(*c));
            *at += usize::from(found.is_some());
            found
        };
        out.sign = eat(&mut at, "+- ").unwrap_or('-');
        if eat(&mut at, "z").is_some() {
            return Err(Fail::unsupported("z in a format"));
        }
        out.alternate = eat(&mut at, "#").is_some();
        if eat(&mut at, "0").is_some() {
            if !filled {
                out.fill = '0';
            }
            // Texts are aligned as ever.
            out.align = out.align.or(if of == "str" { None } else { Some('=') });
        }
        let number = |at: &mut usize| {
            let mut n: Option<i128> = None;
            while let Some(digit) = eat(at, "0123456789").and_then(|c| c.to_digit(10)) {
                n = Some(n.unwrap_or(0).saturating_mul(10).saturating_add(i128::from(digit)));
            }
            n
        };
        out.width = check_width(number(&mut at).unwrap_or(0))?;
        let group = chars.get(at).copied().filter(|c| ",_".contains(*c));
        at += usize::from(group.is_some());
        out.group = group;
        if chars.get(at) == Some(&'.') {
            at += 1;
            let digits: String = chars[at..].iter().take_while(|c| c.is_ascii_digit()).collect();
            at += digits.len();
            if digits.is_empty() {
                return fail("Format specifier missing precision");
            }
            out.precision = Some(check_width(digits.parse().unwrap_or(i128::MAX))?);
        }
        out.kind = chars.get(at).copied();
        if chars.len() > at + usize::from(out.kind.is_some()) {
            return fail(format!("Invalid format specifier '{text}' for object of type '{of}'"));
        }
        Ok(out)
    }

    fn unknown<T>(&self, of: &str) -> Res<T> {
        fail(format!("Unknown format code '{}' for object of type '{of}'", self.kind.unwrap_or(' ')))
    }

    fn pad(&self, sign: &str, body: &str, default: char) -> String {
        let missing = self.width.saturating_sub(sign.chars().count() + body.chars().count());
        let fill = |n: usize| self.fill.to_string().repeat(n);
        match self.align.unwrap_or(default) {
            '<' => format!("{sign}{body}{}", fill(missing)),
            '>' => format!("{}{sign}{body}", fill(missing)),
            '^' => format!("{}{sign}{body}{}", fill(missing / 2), fill(missing - missing / 2)),
            _ => format!("{sign}{}{body}", fill(missing)),
        }
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.sign) {
            (true, _) => "-",
            (_, '+') => "+",
            (_, ' ') => " ",
            _ => "",
        }
    }

    /// Digits with their separators.
    fn grouped(&self, digits: &str, every: usize) -> Res<String> {
        let Some(group) = self.group else { return Ok(digits.to_owned()) };
        if self.fill == '0' && self.align == Some('=') && self.width > 0 {
            return Err(Fail::unsupported("zeros and separators in one format"));
        }
        let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        let (whole, rest) = digits.split_at(end);
        let mut out = String::new();
        for (i, c) in whole.chars().enumerate() {
            if i > 0 && (whole.len() - i).is_multiple_of(every) {
                out.push(group);
            }
            out.push(c);
        }
        Ok(out + rest)
    }
}

/// `format(value, spec)`.
fn apply(cx: &Context, value: &Value, spec: &str) -> Res<String> {
    if spec.is_empty() {
        return text(cx, value);
    }
    match value {
        Value::Str(text) => {
            let spec = Spec::read(spec, "str")?;
            if spec.kind.is_some_and(|kind| kind != 's') {
                return spec.unknown("str");
            }
            if spec.sign != '-' || spec.alternate || spec.group.is_some() || spec.align == Some('=') {
                return fail("this format is not allowed for a text");
            }
            let shown: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            Ok(spec.pad("", &shown, '<'))
        }
        Value::Int(n) => integer(&Spec::read(spec, "int")?, *n),
        Value::Bool(b) => integer(&Spec::read(spec, "bool")?, i128::from(*b)),
        Value::Float(x) => float(&Spec::read(spec, "float")?, *x, "float"),
        Value::Markup(_) => Err(Fail::unsupported("a format of a text that is marked as HTML")),
        other => fail(format!("unsupported format string passed to {}.__format__", other.type_name())),
    }
}

fn integer(spec: &Spec, n: i128) -> Res<String> {
    let kind = spec.kind.unwrap_or('d');
    let (base, prefix, every) = match kind {
        'd' | 'n' => (10, "", 3),
        'b' => (2, "0b", 4),
        'o' => (8, "0o", 4),
        'x' => (16, "0x", 4),
        'X' => (16, "0X", 4),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => return float(spec, n as f64, "int"),
        'c' => {
            let c = u32::try_from(n).ok().and_then(char::from_u32);
            let c = c.ok_or_else(|| Fail::new("%c arg not in range(0x110000)"))?;
            return Ok(spec.pad("", &c.to_string(), '>'));
        }
        _ => return spec.unknown("int"),
    };
    if spec.precision.is_some() {
        return fail("Precision not allowed in integer format specifier");
    }
    if base != 10 && spec.group == Some(',') {
        return fail(format!("Cannot specify ',' with '{kind}'."));
    }
    let digits = spec.grouped(&numbers::radix(n, base, kind == 'X'), every)?;
    let sign = format!("{}{}", spec.sign(n < 0), if spec.alternate { prefix } else { "" });
    Ok(spec.pad(&sign, &digits, '>'))
}

fn float(spec: &Spec, x: f64, of: &str) -> Res<String> {
    if spec.alternate {
        return Err(Fail::unsupported("# with a float"));
    }
    let precision = spec.precision.unwrap_or(6);
    let digits = match spec.kind.map(|kind| kind.to_ascii_lowercase()) {
        Some('f') => numbers::fixed(x, precision),
        Some('e') => numbers::scientific(x, precision),
        Some('g' | 'n') => numbers::general(x, precision, false),
        Some('%') => numbers::fixed(x * 100.0, precision) + "%",
        None => match spec.precision {
            None => super::print::float(x.abs()),
            Some(_) => short(x, precision),
        },
        Some(_) => return spec.unknown(of),
    };
    let digits = if spec.kind.is_some_and(char::is_uppercase) { digits.to_uppercase() } else { digits };
    let sign = spec.sign(x.is_sign_negative() && !x.is_nan());
    Ok(spec.pad(sign, &spec.grouped(&digits, 3)?, '>'))
}

/// A precision without a type: as `g`, but with a digit behind the point at least.
fn short(x: f64, precision: usize) -> String {
    let precision = precision.max(1);
    let general = numbers::general(x, precision, false);
    if general.contains(['.', 'e', 'n', 'i']) {
        return general;
    }
    // `g` would write all its digits before the point.
    if general.len() >= precision
        && x.abs() >= 10f64.powi(i32::try_from(precision).unwrap_or(0) - 1)
        && precision <= general.len()
    {
        let text = numbers::scientific(x, precision - 1);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
        let mantissa =
            if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
        return format!("{mantissa}e{exponent}");
    }
    general + ".0"
}
