//! Damage to JSON that is still JSON: values put elsewhere, changed, removed, repeated.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Numbers at the ends of types and formats.
pub const NUMBERS: [&str; 26] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "8",
    "255",
    "256",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "0.5",
    "1e-320",
    "1e308",
    "-1e308",
    "1e400",
    "100000000",
];

/// Texts that mean something to some reader, or are long, or nothing.
pub const TEXTS: [&str; 40] = [
    "",
    " ",
    "\0",
    "\n",
    "é漢😀",
    "\u{FEFF}",
    "..",
    "../x",
    "/",
    "a/b",
    ".*",
    "(",
    "(?!x)",
    "[",
    "a{1000}{1000}",
    "(a*)*b",
    "(((((((((a?)*)*)*)*)*)*)*)*)*",
    "*",
    "**",
    "{input}",
    "{{",
    "%",
    "${x}",
    "<s>",
    "</s>",
    "<unk>",
    "main",
    "none",
    "null",
    "default",
    "q_proj",
    "lm_head",
    "llama",
    "BPE",
    "Unigram",
    "NaN",
    "Precompiled",
    "Sequence",
    "CTC",
    "RobertaProcessing",
];

/// Changes one thing somewhere in a value.
pub fn damage(value: &mut Value, rng: &mut ChaCha8Rng) {
    let count = size(value);
    let other = at(value, rng.random_range(0..count)).clone();
    let place = at_mut(value, rng.random_range(0..count));
    match rng.random_range(0..10) {
        0 => *place = number(rng),
        1 => *place = text(rng),
        2 => *place = other,
        3 => *place = [json!(null), json!(true), json!(false), json!([]), json!({})].choose(rng).expect("some").clone(),
        4 => {
            // Deeper nesting is made as text: a value of it would overflow the stack of this very function.
            let depth = if rng.random_ratio(1, 50) { 1000 } else { rng.random_range(1..200) };
            let inner = std::mem::take(place);
            let wrap = |inner, i: usize| if i.is_multiple_of(2) { json!([inner]) } else { json!({"a": inner}) };
            *place = (0..depth).fold(inner, wrap);
        }
        5 => remove(place, rng),
        6 => rename(place, rng),
        7 => insert(place, other, rng),
        8 => nudge(place, rng),
        _ => shuffle(place, rng),
    }
}

fn number(rng: &mut ChaCha8Rng) -> Value {
    // The two that JSON has and a value has not are left to the damage of text.
    serde_json::from_str(NUMBERS.choose(rng).expect("some")).unwrap_or(json!(1e300))
}

fn text(rng: &mut ChaCha8Rng) -> Value {
    let text = *TEXTS.choose(rng).expect("some");
    let times = if rng.random_ratio(1, 30) { 3000 } else { rng.random_range(1..3) };
    json!(text.repeat(times))
}

/// A small change to a scalar; of a list or an object, the last element twice.
fn nudge(place: &mut Value, rng: &mut ChaCha8Rng) {
    match place {
        Value::Number(n) => {
            let x = n.as_f64().unwrap_or(0.0);
            *place = match (n.as_i64(), rng.random_range(0..5)) {
                (Some(n), 0) => json!(n.wrapping_add(1)),
                (Some(n), 1) => json!(n.wrapping_sub(1)),
                (Some(n), 2) => json!(n.wrapping_mul(2)),
                (Some(n), 3) => json!(n as f64),
                _ => json!(-x / 3.0),
            };
        }
        Value::String(s) => {
            let cut = s.char_indices().map(|(i, _)| i).nth(rng.random_range(0..=s.chars().count())).unwrap_or(s.len());
            match rng.random_range(0..3) {
                0 => s.truncate(cut),
                1 => s.insert_str(cut, TEXTS.choose(rng).expect("some")),
                _ => *s = s.to_uppercase(),
            }
        }
        Value::Array(list) => list.extend(list.last().cloned()),
        Value::Object(map) => {
            let last = map.iter().next_back().map(|(k, v)| (format!("{k}_"), v.clone()));
            map.extend(last);
        }
        Value::Bool(b) => *b = !*b,
        Value::Null => *place = json!(0),
    }
}

fn remove(place: &mut Value, rng: &mut ChaCha8Rng) {
    match place {
        Value::Array(list) if !list.is_empty() => drop(list.remove(rng.random_range(0..list.len()))),
        Value::Object(map) if !map.is_empty() => {
            let key = key(map, rng);
            map.shift_remove(&key);
        }
        other => *other = Value::Null,
    }
}

fn rename(place: &mut Value, rng: &mut ChaCha8Rng) {
    let Value::Object(map) = place else { return nudge(place, rng) };
    if !map.is_empty() {
        let value = map.shift_remove(&key(map, rng)).expect("a key of it");
        let name = match rng.random_range(0..3) {
            0 if !map.is_empty() => key(map, rng),
            _ => TEXTS.choose(rng).expect("some").to_string(),
        };
        map.insert(name, value);
    }
}

fn insert(place: &mut Value, value: Value, rng: &mut ChaCha8Rng) {
    match place {
        Value::Array(list) => list.insert(rng.random_range(0..=list.len()), value),
        Value::Object(map) => drop(map.insert(TEXTS.choose(rng).expect("some").to_string(), value)),
        other => *other = json!([value]),
    }
}

fn shuffle(place: &mut Value, rng: &mut ChaCha8Rng) {
    use rand::seq::SliceRandom;
    match place {
        Value::Array(list) => list.shuffle(rng),
        Value::Object(map) => {
            let (keys, mut values): (Vec<_>, Vec<_>) = std::mem::take(map).into_iter().unzip();
            values.shuffle(rng);
            map.extend(keys.into_iter().zip(values));
        }
        other => nudge(other, rng),
    }
}

fn key(map: &Map<String, Value>, rng: &mut ChaCha8Rng) -> String {
    map.keys().nth(rng.random_range(0..map.len())).expect("in range").clone()
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// The number of values in a value, itself among them.
fn size(value: &Value) -> usize {
    1 + children(value).map(size).sum::<usize>()
}

/// The `n`-th value in a value, itself the first.
fn at(value: &Value, mut n: usize) -> &Value {
    if n == 0 {
        return value;
    }
    n -= 1;
    for child in children(value) {
        let size = size(child);
        if n < size {
            return at(child, n);
        }
        n -= size;
    }
    unreachable!("n is less than the size");
}

fn at_mut(value: &mut Value, mut n: usize) -> &mut Value {
    if n == 0 {
        return value;
    }
    n -= 1;
    let children: Box<dyn Iterator<Item = &mut Value>> = match value {
        Value::Array(list) => Box::new(list.iter_mut()),
        Value::Object(map) => Box::new(map.values_mut()),
        _ => Box::new(std::iter::empty()),
    };
    for child in children {
        let size = size(child);
        if n < size {
            return at_mut(child, n);
        }
        n -= size;
    }
    unreachable!("n is less than the size");
}
