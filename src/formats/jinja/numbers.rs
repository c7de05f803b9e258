//! Numbers as text, as C's and Python's formats write them.

use super::budget::{Fail, Res};
use super::print::is_space;

/// `%f`: so many digits behind the point.
pub fn fixed(x: f64, precision: usize) -> String {
    special(x).unwrap_or_else(|| format!("{:.precision$}", x.abs()))
}

/// `%e`: one digit before the point and so many behind it.
pub fn scientific(x: f64, precision: usize) -> String {
    special(x).unwrap_or_else(|| {
        let text = format!("{:.precision$e}", x.abs());
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        format!("{mantissa}{}", exponent_text(exponent.parse().unwrap_or(0)))
    })
}

fn exponent_text(exponent: i32) -> String {
    format!("e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%g`: so many significant digits, with an exponent where the point is far; `keep` keeps zeros at the end.
pub fn general(x: f64, precision: usize, keep: bool) -> String {
    if let Some(text) = special(x) {
        return text;
    }
    let precision = precision.max(1);
    let text = format!("{:.*e}", precision - 1, x.abs());
    let exponent: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let strip = |text: String| {
        if keep || !text.contains('.') { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
    };
    let digits = i32::try_from(precision).unwrap_or(i32::MAX);
    if (-4..digits).contains(&exponent) {
        let behind = usize::try_from(digits - 1 - exponent).unwrap_or(0);
        return strip(format!("{:.behind$}", x.abs()));
    }
    let mantissa = text.split('e').next().unwrap_or_default().to_owned();
    strip(mantissa) + &exponent_text(exponent)
}

fn special(x: f64) -> Option<String> {
    if x.is_nan() {
        Some("nan".into())
    } else if x.is_infinite() {
        Some("inf".into())
    } else {
        None
    }
}

/// An integer's digits in a base, without its sign.
pub fn radix(n: i128, base: u32, upper: bool) -> String {
    let n = n.unsigned_abs();
    match (base, upper) {
        (2, _) => format!("{n:b}"),
        (8, _) => format!("{n:o}"),
        (16, false) => format!("{n:x}"),
        (16, true) => format!("{n:X}"),
        _ => n.to_string(),
    }
}

/// `int(text, base)`; none is a text that is no integer.
pub fn parse_int(text: &str, base: i128) -> Res<Option<i128>> {
    let text = text.trim_matches(is_space);
    let negative = text.starts_with('-');
    let mut digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let named = match prefix.as_deref() {
        Some("0x") => Some(16),
        Some("0o") => Some(8),
        Some("0b") => Some(2),
        _ => None,
    };
    let mut radix = base;
    if named.is_some_and(|named| base == 0 || base == named) {
        radix = named.unwrap_or(10);
        digits = &digits[2..];
        digits = digits.strip_prefix('_').unwrap_or(digits);
    } else if base == 0 {
        radix = 10;
        if digits.starts_with('0') && digits.bytes().any(|c| !matches!(c, b'0' | b'_')) {
            return Ok(None);
        }
    }
    let Some(radix) = u32::try_from(radix).ok().filter(|r| (2..=36).contains(r)) else {
        return Ok(None);
    };
    if !digits.is_ascii() && digits.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
        return Err(Fail::unsupported("an integer in other digits than 0 to 9"));
    }
    let Some(plain) = without_underscores(digits) else { return Ok(None) };
    if plain.is_empty() || !plain.chars().all(|c| c.is_digit(radix)) {
        return Ok(None);
    }
    let signed = if negative { format!("-{plain}") } else { plain };
    match i128::from_str_radix(&signed, radix) {
        Ok(n) => Ok(Some(n)),
        Err(_) => Err(Fail::unsupported("an integer of more than 127 bits")),
    }
}

fn without_underscores(digits: &str) -> Option<String> {
    let bad = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if bad { None } else { Some(digits.replace('_', "")) }
}

/// `float(text)`; none is a text that is no number.
pub fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let named = ["inf", "infinity", "nan"].iter().any(|name| unsigned.eq_ignore_ascii_case(name));
    if named {
        return text.parse().ok();
    }
    // An underscore stands between digits only.
    let bytes = unsigned.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let between = |(i, c): (usize, &u8)| *c != b'_' || (digit(i.checked_sub(1)) && digit(Some(i + 1)));
    if !bytes.iter().enumerate().all(between) || !bytes.iter().all(|c| c.is_ascii_digit() || b"._eE+-".contains(c)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `round(x, digits)` of a float: to the nearest decimal, of two as near to the even one.
pub fn round(x: f64, digits: i128) -> Res<f64> {
    if !x.is_finite() || x == 0.0 {
        return Ok(x);
    }
    if digits > 330 {
        return Ok(x);
    }
    if digits < -310 {
        return Ok(0f64.copysign(x));
    }
    if let Ok(precision) = usize::try_from(digits) {
        return format!("{x:.precision$}").parse().map_err(|_| Fail::new("a bad float"));
    }
    // Digits before the point: those of the exact decimal value.
    let exact = format!("{:.0}", x.abs().floor());
    let cut = usize::try_from(-digits).unwrap_or(0);
    let (kept, dropped) = exact.split_at(exact.len().saturating_sub(cut));
    let half = format!("5{}", "0".repeat(cut - 1));
    let dropped = format!("{dropped:0>cut$}");
    let above =
        dropped > half || (dropped == half && (x.fract() != 0.0 || kept.bytes().last().is_some_and(|c| c % 2 == 1)));
    let mut whole: f64 = format!("0{kept}").parse().unwrap_or(0.0);
    whole += f64::from(above);
    let text = format!("{whole:.0}{}", "0".repeat(cut));
    let rounded: f64 = text.parse().map_err(|_| Fail::new("a bad float"))?;
    if rounded.is_infinite() { Err(Fail::new("rounded value too large to represent")) } else { Ok(rounded.copysign(x)) }
}

/// `round(n, digits)` of an integer, to tens.
pub fn round_int(n: i128, digits: i128) -> Res<i128> {
    let power = u32::try_from(-digits).ok().and_then(|digits| 10i128.checked_pow(digits));
    // Of so many digits there is none.
    let Some(power) = power else { return Ok(0) };
    let (quotient, rest) = (n.div_euclid(power), n.rem_euclid(power));
    let up = rest > power - rest || (rest == power - rest && quotient % 2 != 0);
    let rounded = (quotient + i128::from(up)).checked_mul(power);
    rounded.ok_or_else(|| Fail::unsupported("an integer of more than 127 bits"))
}
