//! Exact match on SQL and on parses.
//!
//! **SQL.** Two queries match if their tokens are the same in a normal form that follows the tokeniser of Spider's
//! evaluator (`process_sql.py`): both quotes are `"`, everything outside quotes is in lower case, white space does not
//! count, also not within `!=`, `>=` and `<=`, and a table's alias is replaced by the table, as the evaluator resolves
//! it. A semicolon at the end is dropped. Clauses are not reordered, and values count.
//!
//! **Parses.** Two bracketed parses match if they are the same tree: the same labels and words in the same order.

use std::collections::HashMap;

/// The tokens of a query in normal form.
pub fn sql(query: &str) -> Vec<String> {
    let mut tokens = tokenise(query);
    while tokens.last().is_some_and(|t| t == ";") {
        tokens.pop();
    }
    let aliases = aliases(&tokens);
    let mut out: Vec<String> = Vec::with_capacity(tokens.len());
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if token == "as" && tokens.peek().is_some_and(|next| aliases.contains_key(next)) {
            tokens.next();
            continue;
        }
        let (first, rest) = token.split_once('.').map_or((token.as_str(), None), |(first, rest)| (first, Some(rest)));
        out.push(match (aliases.get(first), rest) {
            (Some(table), Some(column)) => format!("{table}.{column}"),
            (Some(table), None) => table.clone(),
            _ => token,
        });
    }
    out
}

/// The tables after FROM and JOIN, and all other names of a query, in lower case; aliases are neither.
pub fn sql_names(query: &str) -> (Vec<String>, Vec<String>) {
    let tokens = tokenise(query);
    let aliases = aliases(&tokens);
    let (mut tables, mut names) = (Vec::new(), Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        let before = i.checked_sub(1).map_or("", |i| &tokens[i]);
        if before == "as" || !is_name(token) || KEYWORDS.contains(&token.as_str()) {
            continue;
        }
        if ["from", "join"].contains(&before) {
            tables.push(token.clone());
            continue;
        }
        names.extend(token.split('.').filter(|part| !aliases.contains_key(*part)).map(str::to_string));
    }
    (tables, names)
}

const KEYWORDS: [&str; 36] = [
    "select",
    "from",
    "where",
    "group",
    "by",
    "having",
    "order",
    "limit",
    "join",
    "on",
    "as",
    "and",
    "or",
    "not",
    "in",
    "like",
    "between",
    "exists",
    "intersect",
    "union",
    "except",
    "distinct",
    "count",
    "sum",
    "avg",
    "max",
    "min",
    "desc",
    "asc",
    "null",
    "is",
    "all",
    "left",
    "outer",
    "inner",
    "natural",
];

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Which table each alias stands for: `table AS alias` after FROM, JOIN or a comma.
fn aliases(tokens: &[String]) -> HashMap<String, String> {
    let of = |part: &[String]| {
        let [before, table, word, alias] = part else { return None };
        let stands =
            ["from", "join", ","].contains(&before.as_str()) && word == "as" && is_name(table) && is_name(alias);
        stands.then(|| (alias.clone(), table.clone()))
    };
    tokens.windows(4).filter_map(of).collect()
}

fn tokenise(query: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut chars = query.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        let mut token = String::new();
        if c == '"' || c == '\'' {
            // A value, its case kept; either quote ends it.
            token.push('"');
            token.extend(chars.by_ref().take_while(|&c| c != '"' && c != '\''));
            token.push('"');
        } else if word(c) {
            token.extend(c.to_lowercase());
            while let Some(c) = chars.next_if(|&c| word(c)) {
                token.extend(c.to_lowercase());
            }
        } else if c == '=' && tokens.last().is_some_and(|t| ["!", ">", "<"].contains(&t.as_str())) {
            token = tokens.pop().unwrap_or_default() + "=";
        } else {
            token.push(c);
        }
        tokens.push(token);
    }
    tokens
}

fn word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '.'
}

/// A node of a parse.
#[derive(Debug, PartialEq, Eq)]
enum Node<'a> {
    Word(&'a str),
    Tree(&'a str, Vec<Node<'a>>),
}

/// Whether `output` is the parse `gold`.
pub fn same_parse(gold: &str, output: &str) -> bool {
    parse(gold).is_some_and(|gold| parse(output) == Some(gold))
}

/// Whether a text is one bracketed parse.
pub fn is_parse(text: &str) -> bool {
    parse(text).is_some()
}

fn parse(text: &str) -> Option<Node<'_>> {
    let mut open: Vec<(&str, Vec<Node>)> = Vec::new();
    let mut rest = text.trim();
    loop {
        rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('[') {
            let end = inside.find(|c: char| c.is_whitespace() || c == '[' || c == ']')?;
            if end == 0 {
                return None;
            }
            open.push((&inside[..end], Vec::new()));
            rest = &inside[end..];
        } else if let Some(after) = rest.strip_prefix(']') {
            let (label, nodes) = open.pop()?;
            let tree = Node::Tree(label, nodes);
            match open.last_mut() {
                Some((_, siblings)) => siblings.push(tree),
                None => return after.trim().is_empty().then_some(tree),
            }
            rest = after;
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || c == '[' || c == ']')?;
            open.last_mut()?.1.push(Node::Word(&rest[..end]));
            rest = &rest[end..];
        }
    }
}
