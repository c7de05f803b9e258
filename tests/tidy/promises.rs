//! Which lines with `unsafe` make a promise of their own.

/// Whether a line declares a function or trait, rather than a function's type.
pub fn has_name(line: &str) -> bool {
    let after = line.split("unsafe fn ").nth(1).or_else(|| line.split("unsafe trait ").nth(1));
    after.is_some_and(|name| name.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '$'))
}

/// Whether the nearest line above with less indentation implements a trait.
pub fn implements(above: &[&str], line: &str) -> bool {
    let depth = |l: &str| l.len() - l.trim_start().len();
    let mut outer = above.iter().rev().filter(|l| !l.trim().is_empty() && depth(l) < depth(line));
    outer.next().is_some_and(|l| l.contains("impl") && l.contains(" for "))
}
