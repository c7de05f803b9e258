//! Files of the library that import each other, directly or over others.

use std::collections::{BTreeMap, BTreeSet};

/// The names of all files that lie on a circle of imports; `files` are paths below `src` with the code of each, one text.
pub fn on_circles(files: &[(String, String)]) -> BTreeSet<String> {
    let modules: BTreeSet<String> = files.iter().map(|(path, _)| module(path)).collect();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, code) in files {
        let own = module(path);
        let imported = uses(code).into_iter().filter_map(|name| resolve(&own, &name, &modules));
        edges.entry(own.clone()).or_default().extend(imported.filter(|other| *other != own && !other.is_empty()));
    }
    // What nothing is left to import, or nobody is left to be imported by, is on no circle.
    loop {
        let targets: BTreeSet<&String> = edges.values().flatten().collect();
        let free = |name: &String, to: &BTreeSet<String>| to.is_empty() || !targets.contains(name);
        let gone: Vec<String> = edges.iter().filter(|(n, to)| free(n, to)).map(|(n, _)| n.clone()).collect();
        if gone.is_empty() {
            return edges.into_keys().collect();
        }
        for name in gone {
            edges.remove(&name);
            edges.values_mut().for_each(|to| {
                to.remove(&name);
            });
        }
    }
}

/// `src/a/mod.rs` and `src/a.rs` are the module `a`.
fn module(path: &str) -> String {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" || path == "main" { String::new() } else { path.replace('/', "::") }
}

/// The full names of all private `use` statements at the left margin; a re-export of what is below is no import.
fn uses(code: &str) -> Vec<String> {
    let statements = code.split('\n').enumerate().filter(|(_, line)| line.starts_with("use "));
    let lines: Vec<&str> = code.split('\n').collect();
    let whole = |from: usize| {
        let text: String = lines[from..].iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        text.split(';').next().unwrap_or_default().trim_start_matches("use ").to_owned()
    };
    statements.flat_map(|(i, _)| expand(&whole(i))).collect()
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expand(name: &str) -> Vec<String> {
    let name = name.trim();
    let Some(open) = name.find('{') else { return vec![name.split(" as ").next().unwrap_or(name).to_owned()] };
    let body = &name[open + 1..name.rfind('}').unwrap_or(name.len())];
    let (mut depth, mut part, mut parts) = (0, String::new(), Vec::new());
    for c in body.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(&format!("{}{}", &name[..open], part.trim()))).collect()
}

/// The file that a name in a module stands in.
fn resolve(own: &str, name: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut segments: Vec<&str> = name.split("::").map(str::trim).collect();
    let base: Vec<&str> = own.split("::").filter(|part| !part.is_empty()).collect();
    let mut path: Vec<&str> = match segments[0] {
        "crate" => segments.split_off(1),
        "self" => [base, segments.split_off(1)].concat(),
        "super" => {
            let up = segments.iter().take_while(|segment| **segment == "super").count();
            [base[..base.len().saturating_sub(up)].to_vec(), segments.split_off(up)].concat()
        }
        _ => return None,
    };
    while !path.is_empty() {
        let module = path.join("::");
        if modules.contains(&module) {
            return Some(module);
        }
        path.pop();
    }
    None
}

#[test]
fn circles_of_imports_are_seen() {
    let file = |path: &str, code: &str| (path.to_owned(), code.to_owned());
    let files = [
        file("src/a.rs", "use crate::b::{C, D};"),
        file("src/b/mod.rs", "use self::c::E;\npub use self::c::F;"),
        file("src/b/c.rs", "use super::super::a::G;"),
        file("src/d.rs", "use crate::a::H;"),
    ];
    let found: Vec<String> = on_circles(&files).into_iter().collect();
    assert_eq!(found, ["a", "b", "b::c"]);
    assert!(on_circles(&files[1..]).is_empty());
}
