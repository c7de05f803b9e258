//! Whether two things are the same: hashes of data, and the first difference of two JSON values.

use serde_json::{Map, Value};

use super::json::show;

/// FNV-1a of bytes: it is to notice a changed file, not to withstand a forger.
pub fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The first difference of two values: where, ours, theirs.
pub fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<(String, String, String)> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            let value = |map: &Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
            keys.map(|key| (key, value(a, key), value(b, key)))
                .find_map(|(key, a, b)| difference(&format!("{path}.{key}"), &a, &b))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs.into_iter().find_map(|(i, (a, b))| difference(&format!("{path}[{i}]"), a, b))
        }
        (a, b) => (a != b).then(|| (path.to_owned(), show(a), show(b))),
    }
}
