//! Chat templates: Jinja as `apply_chat_template` of transformers runs it.
//!
//! A template is a program from a stranger's file. It reaches nothing but its variables and the local time; it stops
//! after a number of instructions (its fuel) and a length of text, and the widths and counts that it gives to filters
//! are bounded. The memory of its variables is not: a loop that doubles a string fills memory with little fuel.

mod message;

use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, ErrorKind, State, context, filters};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

pub use message::{Message, Rendered, TemplateInputs};

use crate::{Error, Result};

/// A compiled template.
pub struct ChatTemplate {
    env: Environment<'static>,
    path: PathBuf,
}

/// The name of the only template of an environment.
const NAME: &str = "chat_template";
/// Instructions that a template may run: published ones take some tens for each message.
const FUEL: u64 = 5_000_000;
/// Bytes of a template; published ones have some thousands.
const LARGEST: usize = 256 << 10;
/// Stack for compiling, for each byte of the largest template: minijinja recurses into signs and sums without a limit, a
/// level for a byte or two. Only what is touched takes memory.
const STACK_PER_BYTE: usize = 1024;
/// Bytes of text that a template may make.
const LONGEST: usize = 64 << 20;
/// The largest width or count that a template may give to a filter that makes so much text or so many values.
const WIDEST: i64 = 100_000;

impl ChatTemplate {
    /// Compiles a template; `path` is the file it came from.
    ///
    /// # Errors
    /// It is not valid Jinja.
    pub fn new(path: impl AsRef<Path>, source: &str) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_unknown_method_callback(|state, value, method, args| {
            if method == "format" {
                check_format(value)?;
            }
            unknown_method_callback(state, value, method, args)
        });
        for (name, filter) in [
            ("indent", Value::from_function(filters::indent)),
            ("batch", Value::from_function(filters::batch)),
            ("slice", Value::from_function(filters::slice)),
            ("format", Value::from_function(filters::format)),
        ] {
            env.add_filter(name, move |state: &State, args: Rest<Value>| {
                let (text, widths) = args.split_at(args.len().min(1));
                match name {
                    "format" => text.iter().try_for_each(check_format)?,
                    _ => widths.iter().try_for_each(check_width)?,
                }
                filter.call(state, &args)
            });
        }
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", |format: String| strftime(&format, &Zoned::now()));
        env.add_filter("tojson", to_json);
        if source.len() > LARGEST {
            let expected = format!("a template of at most {LARGEST} bytes");
            return Err(Error::field(&path, "chat_template", expected, source.len().to_string()));
        }
        let source = source.to_string();
        let compile = move || env.add_template_owned(NAME, source).map(|()| env);
        let thread = std::thread::Builder::new().stack_size(LARGEST * STACK_PER_BYTE).spawn(compile);
        let compiled = thread.map_err(Error::io("start a thread for", &path))?.join();
        let compiled = compiled.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(Self { env: compiled.map_err(|e| failed(&path, &e))?, path })
    }

    /// The text of a conversation. `specials` are the variables such as `("bos_token", "<s>")`; with
    /// `add_generation_prompt` the text ends where the assistant begins to speak.
    ///
    /// # Errors
    /// The template refuses the conversation (`raise_exception`), fails, or runs out of fuel.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<String> {
        Ok(self.render_marked(messages, &TemplateInputs::default(), add_generation_prompt, specials)?.text)
    }

    /// As [`Self::render`], with what the template marks as the assistant's; `inputs` are what it sees beside the
    /// messages.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_marked(
        &self,
        messages: &[Message],
        inputs: &TemplateInputs,
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<Rendered> {
        let specials = specials.iter().map(|(k, v)| (k.to_string(), Value::from(*v)));
        let kwargs = inputs.kwargs.iter().map(|(k, v)| (k.clone(), Value::from_serialize(v)));
        let variables: Value = specials.chain(kwargs).collect();
        let call = context! {
            messages => messages, add_generation_prompt => add_generation_prompt,
            tools => inputs.tools, documents => inputs.documents, ..variables
        };
        let template = self.env.get_template(NAME).map_err(|e| failed(&self.path, &e))?;
        let mut text = Text(Vec::new());
        template.render_captured_to(call, &mut text).map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => self.endless(format!("{FUEL} instructions")),
            ErrorKind::WriteFailure => self.endless(format!("{LONGEST} bytes")),
            _ => failed(&self.path, &e),
        })?;
        let text = String::from_utf8(text.0).map_err(Error::file(&self.path))?;
        Ok(Rendered { text, generated: None })
    }

    fn endless(&self, limit: String) -> Error {
        let expected = format!("a template that renders within {limit}");
        Error::field(&self.path, "chat_template", expected, "one that goes on")
    }
}

fn failed(path: &Path, e: &minijinja::Error) -> Error {
    let line = e.line().map_or(String::new(), |n| format!(", line {n}"));
    let detail = e.detail().map_or_else(|| e.kind().to_string(), |d| format!("{}: {d}", e.kind()));
    Error::field(path, format!("chat_template{line}"), "a template that renders", detail)
}

/// Text up to a length.
struct Text(Vec<u8>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > LONGEST - self.0.len() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn too_wide(found: impl std::fmt::Display) -> minijinja::Error {
    let detail = format!("expected a width or count of at most {WIDEST}, found {found}");
    minijinja::Error::new(ErrorKind::InvalidOperation, detail)
}

/// Refuses a number above [`WIDEST`], also one given by name.
fn check_width(arg: &Value) -> Result<(), minijinja::Error> {
    if arg.is_kwargs() {
        return arg.try_iter()?.try_for_each(|key| check_width(&arg.get_item(&key)?));
    }
    let wide = !i64::try_from(arg.clone()).is_ok_and(|n| n <= WIDEST);
    if arg.is_number() && wide { Err(too_wide(arg)) } else { Ok(()) }
}

/// Refuses a format that has a number of more digits than [`WIDEST`]: it could be a width.
fn check_format(format: &Value) -> Result<(), minijinja::Error> {
    let digits = format.as_str().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    match digits.into_iter().find(|digits| digits.len() >= WIDEST.to_string().len()) {
        Some(found) => Err(too_wide(found)),
        None => Ok(()),
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON with Python's separators and without HTML escapes, as templates expect it.
fn to_json(value: Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // Accepted and without effect: non-ASCII characters are never escaped.
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(n) => {
            let indent = vec![b' '; n.min(64)];
            value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(&indent)))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    let bad = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| bad(e.to_string()))?;
    String::from_utf8(out).map_err(|e| bad(e.to_string()))
}

/// `{"a": 1, "b": [1, 2]}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// A time as Python's `datetime.strftime` formats it, without a time zone as `datetime.now()` is: `%z` and `%Z` are
/// empty, `%f` is microseconds, names are English, and what is no conversion stays as it stands.
fn strftime(format: &str, now: &Zoned) -> String {
    let config = Config::new().custom(PosixCustom::new()).lenient(true);
    let mut out = String::new();
    // Lenient formatting into a string meets no error: what jiff cannot format it leaves as it stands.
    let formatted = BrokenDownTime::from(now).format_with_config(&config, as_jiff(format), &mut out);
    formatted.expect("lenient formatting does not fail");
    out
}

/// A format for `strftime` of C (which Python calls) as one for jiff's, which differs in a few conversions.
fn as_jiff(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let flags = rest.len() - rest.trim_start_matches(|c: char| "-_0^#".contains(c) || c.is_ascii_digit()).len();
        // The alternative forms of a locale; C's own has none.
        let modifier = flags + usize::from(rest[flags..].starts_with(['E', 'O']));
        let conversion = rest[modifier..].chars().next();
        match conversion {
            Some('f') => out += "%6f",
            Some('z' | 'Z') => {}
            Some(c) if "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyY%".contains(c) => {
                out.push('%');
                out += &rest[..flags];
                out.push(c);
            }
            _ => {
                out += "%%";
                continue;
            }
        }
        rest = &rest[modifier + conversion.map_or(0, char::len_utf8)..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use jiff::tz::TimeZone;

    use super::*;

    /// What CPython 3 gives for `datetime(2024, 2, 5, 3, 4, 9, 123).strftime(format)`.
    #[test]
    fn strftime_is_that_of_python() {
        let now = date(2024, 2, 5).at(3, 4, 9, 123_000).to_zoned(TimeZone::UTC).expect("a time");
        for (format, expected) in [
            ("%d %b %Y", "05 Feb 2024"),
            ("%A, %B %d, %Y. %a %h %y", "Monday, February 05, 2024. Mon Feb 24"),
            ("%H:%M:%S.%f %I %p %P", "03:04:09.000123 03 AM am"),
            ("%c|%x|%X|%r", "Mon Feb  5 03:04:09 2024|02/05/24|03:04:09|03:04:09 AM"),
            ("%D %F %T %R", "02/05/24 2024-02-05 03:04:09 03:04"),
            ("%C %e %g %G %j %k %l", "20  5 24 2024 036  3  3"),
            ("%u %U %V %w %W", "1 05 06 1 06"),
            ("%n%t%%", "\n\t%"),
            ("%-d %_d %^a %-I %5Y %Ey %Od", "5  5 MON 3 02024 24 05"),
            ("[%z%Z%#Z]", "[]"),
            ("%q %v %E %O %Q %N %+ %.f é%é%", "%q %v %E %O %Q %N %+ %.f é%é%"),
            ("", ""),
        ] {
            assert_eq!(strftime(format, &now), expected, "{format}");
        }
        assert_eq!(strftime("%s", &now), "1707102249");
    }

    #[test]
    fn strftime_follows_the_calendar() {
        let at = |seconds: i64| {
            let now = jiff::Timestamp::from_second(seconds).expect("in range").to_zoned(TimeZone::UTC);
            strftime("%Y-%m-%d %a %d %b %H:%M:%S", &now)
        };
        assert_eq!(at(0), "1970-01-01 Thu 01 Jan 00:00:00");
        assert_eq!(at(951_782_400), "2000-02-29 Tue 29 Feb 00:00:00");
        assert_eq!(at(1_709_251_199), "2024-02-29 Thu 29 Feb 23:59:59");
        assert_eq!(at(4_107_542_400), "2100-03-01 Mon 01 Mar 00:00:00");
    }
}
