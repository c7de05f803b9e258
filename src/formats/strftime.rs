//! Times as Python formats them.

use jiff::Zoned;
use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};

/// A time as Python's `datetime.strftime` formats it, without a time zone as `datetime.now()` is: `%z` and `%Z` are
/// empty, `%f` is microseconds, names are English, and what is no conversion stays as it stands.
pub fn strftime(format: &str, now: &Zoned) -> String {
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
