//! Chat templates: Jinja as `apply_chat_template` of the reference library runs it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: "system", "user", "assistant".
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A compiled template.
pub struct ChatTemplate {
    env: Environment<'static>,
    path: PathBuf,
}

/// The name of the only template of an environment.
const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template; `path` is the file it came from.
    ///
    /// # Errors
    /// It is not valid Jinja.
    pub fn new(path: impl AsRef<Path>, source: &str) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
        env.add_filter("tojson", to_json);
        env.add_template_owned(NAME, source.to_string()).map_err(|e| failed(&path, &e))?;
        Ok(Self { env, path })
    }

    /// The text of a conversation. `specials` are the variables such as `("bos_token", "<s>")`; with
    /// `add_generation_prompt` the text ends where the assistant begins to speak.
    ///
    /// # Errors
    /// The template refuses the conversation (`raise_exception`) or fails.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        specials: &[(&str, &str)],
    ) -> Result<String> {
        let specials: Value = specials.iter().map(|(k, v)| (k.to_string(), Value::from(*v))).collect();
        let none = Value::from(());
        let call = context! {
            messages => messages, add_generation_prompt => add_generation_prompt, tools => none, documents => none,
            ..specials
        };
        let template = self.env.get_template(NAME).map_err(|e| failed(&self.path, &e))?;
        template.render(call).map_err(|e| failed(&self.path, &e))
    }
}

fn failed(path: &Path, e: &minijinja::Error) -> Error {
    let line = e.line().map_or(String::new(), |n| format!(", line {n}"));
    let detail = e.detail().map_or_else(|| e.kind().to_string(), |d| format!("{}: {d}", e.kind()));
    Error::field(path, format!("chat_template{line}"), "a template that renders", detail)
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

/// The time in UTC, for the conversions that templates use.
fn strftime(format: &str, now: SystemTime) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, time) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    let weekday = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += MONTHS[month as usize - 1],
            Some('b') => out += &MONTHS[month as usize - 1][..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('H') => out += &format!("{:02}", time / 3600),
            Some('M') => out += &format!("{:02}", time / 60 % 60),
            Some('S') => out += &format!("{:02}", time % 60),
            Some('%') => out.push('%'),
            other => {
                let found = other.map_or(String::new(), String::from);
                return raise_exception(format!(
                    "strftime_now: %{found} is not one of %Y %y %m %d %B %b %A %a %H %M %S"
                ));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar: whole 400-year cycles, then years that
/// begin in March so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (cycle * 400 + year_of_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        let at = |s: u64| strftime("%Y-%m-%d %a %d %b %H:%M:%S", UNIX_EPOCH + Duration::from_secs(s)).expect("known");
        assert_eq!(at(0), "1970-01-01 Thu 01 Jan 00:00:00");
        assert_eq!(at(951_782_400), "2000-02-29 Tue 29 Feb 00:00:00");
        assert_eq!(at(1_709_251_199), "2024-02-29 Thu 29 Feb 23:59:59");
        assert_eq!(at(4_107_542_400), "2100-03-01 Mon 01 Mar 00:00:00");
        assert!(strftime("%q", UNIX_EPOCH).is_err());
    }
}
