//! Reading answers: RESP2 sends field lists as flat arrays, RESP3 as maps; texts come in several
//! kinds. Names stay bytes.

use redis::Value;

/// The fields of an XINFO answer, whichever way they were sent.
pub fn fields(value: &Value) -> impl Iterator<Item = (&[u8], &Value)> {
    let (flat, pairs): (&[Value], &[(Value, Value)]) = match value {
        Value::Array(items) => (items, &[]),
        Value::Map(pairs) => (&[], pairs),
        _ => (&[], &[]),
    };
    let flat = flat.chunks_exact(2).filter_map(|pair| match pair {
        [key, value] => Some((key, value)),
        _ => None,
    });
    flat.chain(pairs.iter().map(|(key, value)| (key, value))).filter_map(|(key, value)| Some((bytes(key)?, value)))
}

/// One field of an XINFO answer.
#[must_use]
pub fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    fields(value).find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
}

/// The items of a list.
#[must_use]
pub fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

/// Text or bytes.
#[must_use]
pub fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.as_bytes()),
        Value::Okay => Some(b"OK"),
        _ => None,
    }
}

/// A number that cannot be negative.
#[must_use]
pub fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(*n).ok(),
        other => std::str::from_utf8(bytes(other)?).ok()?.parse().ok(),
    }
}

/// Text; bytes that are not UTF-8 are replaced.
#[must_use]
pub fn text(value: &Value) -> Option<String> {
    bytes(value).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}
