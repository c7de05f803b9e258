//! A template's text as tokens, by the rules of Jinja2's lexer with `trim_blocks` and `lstrip_blocks`.

use super::ast::Text;
use super::budget::{Fail, Res};
use super::print::{escaped, is_space};

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// Text between tags.
    Data(Text),
    /// `{{`.
    PrintBegin,
    /// `}}`.
    PrintEnd,
    /// `{%`.
    BlockBegin,
    /// `%}`.
    BlockEnd,
    /// A name or keyword.
    Name(Text),
    /// A text in quotes, its escapes resolved.
    Str(Text),
    Int(i128),
    Float(f64),
    /// An operator or bracket.
    Sign(&'static str),
    /// The end of the template.
    End,
}

const SIGNS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// The tokens of a template with their lines.
pub fn tokens(source: &str) -> Res<Vec<(Token, usize)>> {
    let mut source = newlines(source);
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, out: Vec::new() };
    let result = lexer.run();
    let line = lexer.line;
    result.map_err(|e| e.at(line))?;
    lexer.out.push((Token::End, line));
    Ok(lexer.out)
}

fn newlines(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether the last tag ended with a line.
    line_starting: bool,
    out: Vec<(Token, usize)>,
}

fn syntax<T>(message: impl std::fmt::Display) -> Res<T> {
    Err(Fail::new(format!("syntax error: {message}")))
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        let text = &self.source[self.at..self.at + bytes];
        self.line += text.matches('\n').count();
        self.line_starting = text.ends_with('\n');
        self.at += bytes;
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn run(&mut self) -> Res<()> {
        while !self.rest().is_empty() {
            let tag = (0..self.rest().len()).find(|&i| {
                let text = self.rest().as_bytes();
                text[i] == b'{' && matches!(text.get(i + 1), Some(b'{' | b'%' | b'#'))
            });
            let Some(tag) = tag else {
                let text = self.rest().to_owned();
                self.push(Token::Data(text.into()));
                self.at = self.source.len();
                return Ok(());
            };
            let kind = self.rest().as_bytes()[tag + 1];
            let sign = self.rest().as_bytes().get(tag + 2).copied().filter(|c| matches!(c, b'-' | b'+'));
            // A raw block's own sign is read with its tag.
            let raw = if kind == b'%' { self.raw_begin(tag) } else { None };
            self.data(tag, sign, kind == b'{');
            match raw {
                Some(end) => {
                    self.advance(end - tag);
                    self.raw()?;
                    continue;
                }
                None => self.advance(2 + usize::from(sign.is_some())),
            }
            match kind {
                b'#' => self.comment()?,
                b'{' => {
                    self.push(Token::PrintBegin);
                    self.code(true)?;
                }
                _ => {
                    self.push(Token::BlockBegin);
                    self.code(false)?;
                }
            }
        }
        Ok(())
    }

    /// Text up to a tag `bytes` ahead, without the spaces that the tag takes.
    fn data(&mut self, bytes: usize, sign: Option<u8>, print: bool) {
        let text = &self.rest()[..bytes];
        let kept = match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            Some(_) => text,
            None if print => text,
            None => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let own = line > 0 || self.line_starting;
                if own && line < text.len() && text[line..].chars().all(is_space) { &text[..line] } else { text }
            }
        };
        let kept = kept.to_owned();
        if !kept.is_empty() {
            self.push(Token::Data(kept.into()));
        }
        self.advance(bytes);
    }

    /// Where `{% raw %}` ends, if it begins `tag` bytes ahead.
    fn raw_begin(&self, tag: usize) -> Option<usize> {
        let whole = self.rest();
        let text = &whole[tag + 2..];
        let text = text.strip_prefix(['-', '+']).unwrap_or(text).trim_start_matches(is_space);
        let text = text.strip_prefix("raw")?.trim_start_matches(is_space);
        let end = match text.strip_prefix("-%}") {
            Some(text) => text.trim_start_matches(is_space),
            None => text.strip_prefix("%}")?,
        };
        Some(whole.len() - end.len())
    }

    fn raw(&mut self) -> Res<()> {
        let mut from = 0;
        while let Some(at) = self.rest()[from..].find("{%") {
            let at = from + at;
            from = at + 2;
            let inner = &self.rest()[from..];
            let sign = inner.bytes().next().filter(|c| matches!(c, b'-' | b'+'));
            let text = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start_matches(is_space);
            let Some(text) = text.strip_prefix("endraw") else { continue };
            let Some(end) = block_end(text.trim_start_matches(is_space)) else { continue };
            let bytes = self.rest().len() - end.len() - at;
            self.data(at, sign, false);
            self.advance(bytes);
            return Ok(());
        }
        syntax("missing end of raw directive")
    }

    fn comment(&mut self) -> Res<()> {
        let Some(at) = self.rest().find("#}") else { return syntax("missing end of comment tag") };
        let text = self.rest();
        let before = text[..at].chars().next_back();
        let after = &text[at + 2..];
        let end = match before {
            Some('-') => after.trim_start_matches(is_space),
            Some('+') => after,
            _ => after.strip_prefix('\n').unwrap_or(after),
        };
        self.advance(text.len() - end.len());
        Ok(())
    }

    /// Tokens up to the end of a tag.
    fn code(&mut self, print: bool) -> Res<()> {
        let mut open: Vec<char> = Vec::new();
        loop {
            let text = self.rest();
            if open.is_empty() {
                let end = if print { print_end(text) } else { block_end(text) };
                if let Some(end) = end {
                    let bytes = text.len() - end.len();
                    self.push(if print { Token::PrintEnd } else { Token::BlockEnd });
                    self.advance(bytes);
                    return Ok(());
                }
            }
            let Some(first) = text.chars().next() else { return syntax("unexpected end of template") };
            if is_space(first) {
                let bytes = text.len() - text.trim_start_matches(is_space).len();
                self.advance(bytes);
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphabetic() {
                let bytes = text.find(|c: char| !(c == '_' || c.is_alphanumeric())).unwrap_or(text.len());
                let name = Token::Name(text[..bytes].into());
                self.push(name);
                self.advance(bytes);
            } else if first == '\'' || first == '"' {
                self.string(first)?;
            } else {
                self.sign(&mut open)?;
            }
        }
    }

    fn sign(&mut self, open: &mut Vec<char>) -> Res<()> {
        let text = self.rest();
        let Some(sign) = SIGNS.into_iter().find(|sign| text.starts_with(sign)) else {
            return syntax(format!("unexpected char {:?}", text.chars().next().unwrap_or(' ')));
        };
        match sign {
            "{" => open.push('}'),
            "(" => open.push(')'),
            "[" => open.push(']'),
            "}" | ")" | "]" => match open.pop() {
                Some(expected) if sign.starts_with(expected) => {}
                Some(expected) => return syntax(format!("unexpected '{sign}', expected '{expected}'")),
                None => return syntax(format!("unexpected '{sign}'")),
            },
            _ => {}
        }
        self.push(Token::Sign(sign));
        self.advance(sign.len());
        Ok(())
    }

    fn number(&mut self) -> Res<()> {
        let text = self.rest().as_bytes();
        // Digits with single underscores between them, from `from` on.
        let digits = |from: usize, digit: fn(&u8) -> bool| {
            let mut at = from;
            while text.get(at).is_some_and(digit)
                || (at > from && text.get(at) == Some(&b'_') && text.get(at + 1).is_some_and(digit))
            {
                at += 1;
            }
            at
        };
        let whole = digits(0, u8::is_ascii_digit);
        let after_dot = matches!(self.out.last(), Some((Token::Sign("."), _))) && self.source[..self.at].ends_with('.');
        let exponent = |at: usize| {
            let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
            let end = digits(at + 1 + sign, u8::is_ascii_digit);
            if matches!(text.get(at), Some(b'e' | b'E')) && end > at + 1 + sign { end } else { at }
        };
        let mut end = whole;
        if !after_dot {
            let fraction = digits(whole + 1, u8::is_ascii_digit);
            if text.get(whole) == Some(&b'.') && fraction > whole + 1 {
                end = fraction;
            }
            end = exponent(end);
        }
        if end > whole {
            let value: f64 = self.rest()[..end].replace('_', "").parse().map_err(|_| Fail::new("a bad float"))?;
            self.push(Token::Float(value));
            self.advance(end);
            return Ok(());
        }
        let (radix, from, digit): (u32, usize, fn(&u8) -> bool) = match (text[0], text.get(1)) {
            (b'0', Some(b'b' | b'B')) => (2, 2, |c| matches!(c, b'0' | b'1')),
            (b'0', Some(b'o' | b'O')) => (8, 2, |c| matches!(c, b'0'..=b'7')),
            (b'0', Some(b'x' | b'X')) => (16, 2, u8::is_ascii_hexdigit),
            (b'0', _) => (10, 0, |c| *c == b'0'),
            _ => (10, 0, u8::is_ascii_digit),
        };
        let skip = usize::from(from > 0 && text.get(from) == Some(&b'_'));
        let end = digits(from + skip, digit);
        if end == from + skip {
            // `0b` without digits is a zero and a name.
            self.push(Token::Int(0));
            self.advance(1);
            return Ok(());
        }
        let value = i128::from_str_radix(&self.rest()[from..end].replace('_', ""), radix);
        let Ok(value) = value else { return Err(Fail::unsupported("an integer of more than 127 bits")) };
        self.push(Token::Int(value));
        self.advance(end);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Res<()> {
        let mut escaped = false;
        let end = self.rest()[1..].char_indices().find(|&(_, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else { return syntax(format!("unexpected char {quote:?}")) };
        let value = unescape(&self.rest()[1..=end])?;
        self.push(Token::Str(value.into()));
        self.advance(end + 2);
        Ok(())
    }
}

/// What is behind `%}` and what it takes, if the text begins with it.
fn block_end(text: &str) -> Option<&str> {
    if let Some(text) = text.strip_prefix("-%}") {
        return Some(text.trim_start_matches(is_space));
    }
    if let Some(text) = text.strip_prefix("+%}") {
        return Some(text);
    }
    text.strip_prefix("%}").map(|text| text.strip_prefix('\n').unwrap_or(text))
}

fn print_end(text: &str) -> Option<&str> {
    text.strip_prefix("-}}").map(|text| text.trim_start_matches(is_space)).or_else(|| text.strip_prefix("}}"))
}

/// Python's `text.encode("ascii", "backslashreplace").decode("unicode-escape")`.
fn unescape(text: &str) -> Res<String> {
    if !text.contains('\\') {
        return Ok(text.to_owned());
    }
    let ascii = escaped(text);
    let mut out = String::new();
    let mut rest = ascii.as_str();
    while let Some(at) = rest.find('\\') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { return syntax("a text ends in a backslash") };
        rest = &rest[1..];
        let simple = match c {
            '\n' => Some(""),
            '\\' => Some("\\"),
            '\'' => Some("'"),
            '"' => Some("\""),
            'a' => Some("\x07"),
            'b' => Some("\x08"),
            'f' => Some("\x0c"),
            'n' => Some("\n"),
            'r' => Some("\r"),
            't' => Some("\t"),
            'v' => Some("\x0b"),
            _ => None,
        };
        if let Some(simple) = simple {
            out += simple;
            continue;
        }
        let (digits, radix) = match c {
            'x' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='7' => {
                let more = rest.bytes().take(2).take_while(|c| matches!(c, b'0'..=b'7')).count();
                let code = u32::from_str_radix(&format!("{c}{}", &rest[..more]), 8).unwrap_or(0);
                out.push(char::from_u32(code).unwrap_or('\u{FFFD}'));
                rest = &rest[more..];
                continue;
            }
            'N' => return Err(Fail::unsupported("\\N in a text")),
            other => {
                out.push('\\');
                out.push(other);
                continue;
            }
        };
        let code = rest.get(..digits).and_then(|digits| u32::from_str_radix(digits, radix).ok());
        let Some(code) = code else { return syntax(format!("truncated \\{c} escape in a text")) };
        let Some(c) = char::from_u32(code) else { return Err(Fail::unsupported("half a surrogate pair in a text")) };
        out.push(c);
        rest = &rest[digits..];
    }
    Ok(out + rest)
}
