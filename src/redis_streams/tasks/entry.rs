//! Stream entries and their IDs, as XREADGROUP and XCLAIM return them.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use redis::Value;

use super::LinkError;
use crate::contract::task::Fields;

/// ID of an entry, `milliseconds-sequence`; ordered as in the stream. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EntryId(Arc<str>);

impl EntryId {
    /// The ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn parts(&self) -> (u64, u64) {
        let (ms, sequence) = self.0.split_once('-').unwrap_or((&self.0, "0"));
        (ms.parse().unwrap_or(0), sequence.parse().unwrap_or(0))
    }

    pub(super) fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::BulkString(bytes) => String::from_utf8(bytes).ok().map(|text| Self(text.into())),
            _ => None,
        }
    }
}

impl From<&str> for EntryId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// The text is not the ID of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an entry's id such as 1700000000000-0")]
pub struct NoEntryId;

impl FromStr for EntryId {
    type Err = NoEntryId;

    /// Parses user input. Rejects forms that mean several entries (`-`, `+`, `1700000000000`).
    fn from_str(text: &str) -> Result<Self, NoEntryId> {
        let (ms, sequence) = text.split_once('-').ok_or(NoEntryId)?;
        let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()) && part.parse::<u64>().is_ok();
        if number(ms) && number(sequence) { Ok(Self(text.into())) } else { Err(NoEntryId) }
    }
}

impl Ord for EntryId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for EntryId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entry that was delivered to this consumer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// ID of the entry.
    pub id: EntryId,
    /// Fields of the entry.
    pub fields: Arc<Fields>,
}

/// Parses the reply of XREADGROUP on one stream; nil means no entries.
pub(super) fn from_read(reply: Value) -> Result<Vec<Entry>, LinkError> {
    let unexpected = |what: &Value| LinkError::unexpected("XREADGROUP", what);
    match reply {
        Value::Nil => Ok(Vec::new()),
        Value::Array(mut streams) => match streams.pop() {
            None => Ok(Vec::new()),
            Some(Value::Array(mut pair)) => match pair.pop() {
                Some(Value::Array(entries)) => {
                    entries.into_iter().map(|value| one(value).ok_or_else(|| unexpected(&Value::Nil))).collect()
                }
                other => Err(unexpected(&other.unwrap_or_default())),
            },
            Some(other) => Err(unexpected(&other)),
        },
        other => Err(unexpected(&other)),
    }
}

/// Parses one `[id, [name, value, …]]`.
pub(super) fn one(value: Value) -> Option<Entry> {
    let Value::Array(pair) = value else { return None };
    let mut pair = pair.into_iter();
    let id = EntryId::from_value(pair.next()?)?;
    Some(Entry { id, fields: Arc::new(fields(pair.next()?)?) })
}

pub(super) fn fields(value: Value) -> Option<Fields> {
    let list = match value {
        Value::Array(list) => list,
        // The entry was deleted while it was pending.
        Value::Nil => return Some(Fields::default()),
        _ => return None,
    };
    let mut list = list.into_iter();
    let mut pairs = Vec::with_capacity(list.len() / 2);
    while let (Some(name), Some(value)) = (list.next(), list.next()) {
        match (name, value) {
            (Value::BulkString(name), Value::BulkString(value)) => pairs.push((name, value)),
            _ => return None,
        }
    }
    Some(pairs.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_order_as_in_the_stream() {
        let mut ids: Vec<EntryId> = ["10-2", "9-10", "10-10", "9-9"].into_iter().map(EntryId::from).collect();
        ids.sort();
        assert_eq!(ids.iter().map(EntryId::as_str).collect::<Vec<_>>(), ["9-9", "9-10", "10-2", "10-10"]);
    }

    #[test]
    fn only_complete_ids_are_accepted() {
        for text in ["-", "+", "", "5", "5-", "-5", "5-x", "(5-0", "+5-0", "5-0-0", "99999999999999999999-0"] {
            assert_eq!(text.parse::<EntryId>(), Err(NoEntryId), "{text}");
        }
        assert_eq!("5-0".parse::<EntryId>(), Ok(EntryId::from("5-0")));
    }

    #[test]
    fn invalid_utf8_is_preserved() {
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let entry = one(Value::Array(vec![bulk(b"1-0"), Value::Array(vec![bulk(b"\xff"), bulk(b"\x00")])])).unwrap();
        assert_eq!(entry.fields.iter().collect::<Vec<_>>(), [(&b"\xff"[..], &b"\x00"[..])]);
    }
}
