//! Settings as rows of a table.

use serde_json::Value;

/// A row for every value of a tree, with its path.
pub fn flatten(key: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let mut row = |value: String| rows.push(vec![key.to_owned(), value]);
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(&format!("{key}.{name}"), value, rows)),
        Value::String(text) => row(super::words::visible(text)),
        Value::Array(list) if !list.is_empty() => {
            let item = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            row(list.iter().map(item).collect::<Vec<_>>().join(", "));
        }
        Value::Array(_) => row("none".to_owned()),
        Value::Null => row("–".to_owned()),
        // Without the `.0` of whole numbers.
        Value::Number(n) if n.is_f64() => row(n.as_f64().map_or_else(|| n.to_string(), |n| n.to_string())),
        other => row(other.to_string()),
    }
}
