//! URLs of pages about a name. Names are bytes; every byte with a meaning in URLs is percent-encoded.

use std::fmt::Write as _;

use chrono::DateTime;

use crate::contract::Name;

/// Kind of a page about one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// `/streams/…`
    Stream,
    /// `/workers/…`
    WorkerType,
}

impl About {
    /// Path prefix.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Stream => "/streams/",
            Self::WorkerType => "/workers/",
        }
    }

    /// Returns the URL of the page about `name`, below the root.
    pub(super) fn of(self, name: &Name) -> String {
        let mut address = self.path().to_owned();
        // As path segments these have special meanings, even when percent-encoded.
        if matches!(name.as_bytes(), b"" | b"." | b"..") {
            address.push_str("?name=");
        }
        if address.ends_with('=') {
            address.push_str(&encoded(name.as_bytes()).replace('.', "%2E"));
        } else {
            address.push_str(&encoded(name.as_bytes()));
        }
        address
    }

    /// Returns the requested name; `path` is the URL before the query, with or without the root.
    #[must_use]
    pub fn name_in(self, path: &str, query: &str) -> Name {
        name_after(self.path(), path, query)
    }
}

/// Returns the worker type whose scaling an API URL requests.
#[must_use]
pub fn autoscaled(path: &str, query: &str) -> Name {
    name_after("/api/autoscale/", path, query)
}

fn name_after(begins: &str, path: &str, query: &str) -> Name {
    let rest = path.split_once(begins).map_or("", |(_, rest)| rest);
    let name = query.split('&').find_map(|part| part.strip_prefix("name=")).filter(|_| rest.is_empty());
    Name::from(decoded(name.unwrap_or(rest)))
}

/// Returns the URL of the messages of `stream`, below the root; the API uses the same path after `/api`.
#[must_use]
pub fn messages_of(stream: &Name) -> String {
    let address = About::Stream.of(stream);
    match address.split_once('?') {
        Some((path, query)) => format!("{path}/messages?{query}"),
        None => format!("{address}/messages"),
    }
}

/// Returns the stream whose messages a URL requests; `path` is the URL before the query.
#[must_use]
pub fn stream_of_messages(path: &str, query: &str) -> Name {
    let name = path.rsplit_once("/messages").map_or(path, |(before, _)| before);
    About::Stream.name_in(name, query)
}

/// Returns the URL of the history from five minutes before a time to five minutes after.
pub(super) fn history_around(unix: f64) -> Option<String> {
    const AROUND: f64 = 300.0;
    Some(format!("/history?from={}&to={}", iso(unix - AROUND)?, iso(unix + AROUND)?))
}

/// Formats a time for URLs.
pub(super) fn iso(unix: f64) -> Option<String> {
    #[expect(clippy::cast_possible_truncation, reason = "a float far beyond the calendar gives None below")]
    let time = DateTime::from_timestamp(unix.round() as i64, 0)?;
    Some(time.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Percent-encodes a value.
#[must_use]
pub fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(b) => text.push(char::from(*b)),
            b => _ = write!(text, "%{b:02X}"),
        }
    }
    text
}

/// Decodes `%XX` sequences; invalid ones are left unchanged.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |digit: &u8| char::from(*digit).to_digit(16);
        let pair = after.first().and_then(hex).zip(after.get(1).and_then(hex));
        match pair.filter(|_| *first == b'%') {
            Some((high, low)) => {
                bytes.extend(u8::try_from(high * 16 + low));
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_are_readable_and_others_are_encoded() {
        let of = |name: &str| About::Stream.of(&Name::from(name));
        assert_eq!(of("aragorn.lookup"), "/streams/aragorn.lookup");
        assert_eq!(of("a/b?c#d"), "/streams/a%2Fb%3Fc%23d");
        assert_eq!(of(".."), "/streams/?name=%2E%2E");
        assert_eq!(of(""), "/streams/?name=");
    }

    proptest! {
        #[test]
        fn names_round_trip_through_urls(
            bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), Just(b"..".to_vec()), Just(b".".to_vec())],
            root in prop_oneof![Just(""), Just("/monitor")],
        ) {
            let name = Name::from(bytes);
            let address = About::WorkerType.of(&name);
            prop_assert!(address.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%/?=".contains(&b)));
            let (path, query) = address.split_once('?').unwrap_or((&address, ""));
            prop_assert_eq!(&About::WorkerType.name_in(&format!("{root}{path}"), query), &name);
            let address = messages_of(&name);
            let (path, query) = address.split_once('?').unwrap_or((&address, ""));
            for after in ["", "/preview"] {
                prop_assert_eq!(&stream_of_messages(&format!("{root}{path}{after}"), query), &name);
            }
        }
    }
}
