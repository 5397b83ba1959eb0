//! Reads answers: RESP2 sends fields as flat arrays, RESP3 as maps, and strings have several types. Names are bytes.

use std::borrow::Cow;
use std::slice;

use redis::Value;

use super::lazy_resp::Raw;

/// An answer or a part of one: parsed by redis-rs, or raw bytes (see [`super::lazy_resp`]).
#[derive(Debug, Clone, Copy)]
pub enum Reply<'a> {
    /// Parsed by redis-rs.
    Parsed(&'a Value),
    /// Raw bytes.
    Raw(Raw<'a>),
}

impl<'a> Reply<'a> {
    /// Wraps the answer to a command.
    #[must_use]
    pub fn of(value: &'a Value) -> Self {
        Self::Parsed(value)
    }

    /// Returns the items of a list; for a map, keys and values alternately.
    #[must_use]
    pub fn items(self) -> Items<'a> {
        match self {
            Self::Parsed(Value::Array(items) | Value::Set(items)) => Items::Parsed(items.iter()),
            Self::Parsed(Value::Map(pairs)) => Items::Pairs(pairs.iter(), None),
            Self::Parsed(Value::BulkString(unparsed)) => Items::Raw(Raw::new(unparsed).children()),
            Self::Parsed(_) => Items::Parsed([].iter()),
            Self::Raw(raw) => Items::Raw(raw.children()),
        }
    }

    /// Returns a string as bytes.
    #[must_use]
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Parsed(Value::BulkString(bytes)) => Some(bytes),
            Self::Parsed(Value::SimpleString(text) | Value::VerbatimString { text, .. }) => Some(text.as_bytes()),
            Self::Parsed(Value::Okay) => Some(b"OK"),
            Self::Parsed(_) => None,
            Self::Raw(raw) => raw.bytes(),
        }
    }

    /// Returns a non-negative number.
    #[must_use]
    pub fn number(self) -> Option<u64> {
        match self {
            Self::Parsed(Value::Int(n)) => u64::try_from(*n).ok(),
            Self::Raw(raw) => digits(raw.integer().or_else(|| raw.bytes())?),
            Self::Parsed(_) => digits(self.bytes()?),
        }
    }

    /// Returns a string; invalid UTF-8 is replaced.
    #[must_use]
    pub fn text(self) -> Option<Cow<'a, str>> {
        // Checked first, since it usually is a string.
        self.bytes()
            .map(|bytes| std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed))
    }

    /// Returns the fields of an XINFO answer, in either protocol.
    pub fn fields(self) -> impl Iterator<Item = (&'a [u8], Reply<'a>)> {
        let mut items = self.items();
        std::iter::from_fn(move || Some((items.next()?, items.next()?)))
            .filter_map(|(key, value)| Some((key.bytes()?, value)))
    }

    /// Returns one field of an XINFO answer.
    #[must_use]
    pub fn field(self, name: &str) -> Option<Reply<'a>> {
        self.fields().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Iterator of [`Reply::items`].
#[derive(Debug)]
pub enum Items<'a> {
    /// Over a list.
    Parsed(slice::Iter<'a, Value>),
    /// Over a map: remaining pairs, and the value of the last key.
    Pairs(slice::Iter<'a, (Value, Value)>, Option<&'a Value>),
    /// Over raw bytes.
    Raw(super::lazy_resp::Children<'a>),
}

impl<'a> Iterator for Items<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        match self {
            Self::Parsed(items) => items.next().map(Reply::Parsed),
            Self::Pairs(pairs, value) => {
                let next = value.take().or_else(|| {
                    let (key, its) = pairs.next()?;
                    *value = Some(its);
                    Some(key)
                });
                next.map(Reply::Parsed)
            }
            Self::Raw(children) => children.next().map(Reply::Raw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn answers_are_read_equally_in_all_representations() {
        let flat = vec![text("name"), text("c"), text("pending"), Value::Int(2)];
        let map = vec![(text("name"), text("c")), (text("pending"), Value::Int(2))];
        let raw = b"*1\r\n*4\r\n$4\r\nname\r\n$1\r\nc\r\n$7\r\npending\r\n:2\r\n";
        let raw_map = b"*1\r\n%2\r\n+name\r\n$1\r\nc\r\n+pending\r\n:2\r\n";
        for answer in [
            Value::Array(vec![Value::Array(flat)]),
            Value::Array(vec![Value::Map(map)]),
            Value::BulkString(raw.to_vec()),
            Value::BulkString(raw_map.to_vec()),
        ] {
            let consumers: Vec<_> = Reply::of(&answer).items().collect();
            assert_eq!(consumers.len(), 1, "{answer:?}");
            assert_eq!(consumers[0].field("name").and_then(Reply::bytes), Some(&b"c"[..]), "{answer:?}");
            assert_eq!(consumers[0].field("pending").and_then(Reply::number), Some(2), "{answer:?}");
            assert!(consumers[0].field("idle").is_none());
        }
    }

    #[test]
    fn nil_is_neither_list_nor_string_nor_number() {
        for answer in [Value::Nil, Value::BulkString(b"*1\r\n$-1\r\n".to_vec())] {
            let nothing = Reply::of(&answer).items().next().unwrap_or(Reply::Parsed(&Value::Nil));
            assert_eq!((nothing.items().count(), nothing.bytes(), nothing.number()), (0, None, None));
        }
    }
}
