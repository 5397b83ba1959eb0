//! Heartbeat: a JSON value with a TTL that each worker writes.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Name, keys};

/// How often a worker writes its heartbeat.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// TTL of a heartbeat.
pub const TTL: Duration = Duration::from_secs(15);
/// Maximum size of a heartbeat in bytes. Longer values are rejected without parsing; real ones have a few hundred
/// bytes.
pub const MAX_BYTES: usize = 16 * 1024;

/// A heartbeat. Times are Unix seconds by the clock of the worker.
///
/// All workers write the first five fields; only the library of this project writes the rest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Heartbeat {
    /// Stream that the worker reads.
    pub stream: Name,
    /// Consumer name.
    pub consumer: Name,
    /// Start time of the process.
    pub started_at: f64,
    /// Time at which this heartbeat was written.
    pub last_seen: f64,
    /// Concurrency of the worker.
    pub task_limit: u32,
    /// Distinguishes two processes with the same consumer name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Box<str>>,
    /// Number of running tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Number of tasks that wait for a retry: pending in the group, but not running. Omitted if 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
    /// Counter that increases when a task starts, ends or reports progress. A worker with tasks in flight and an
    /// unchanged counter is hung.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<u64>,
    /// Whether the worker is shutting down and takes no new tasks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// Reason why a heartbeat is invalid; shown in the UI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadHeartbeat(pub String);

/// Where a heartbeat was found.
#[derive(Debug, Clone, Copy)]
pub enum FoundUnder<'a> {
    /// Under the key of this stream and consumer. A heartbeat with these names shares them instead of allocating.
    KeyOf(&'a Name, &'a Name),
    /// Under this key; stream and consumer are unknown.
    Key(&'a [u8]),
}

impl<'a> FoundUnder<'a> {
    /// The Redis key.
    #[must_use]
    pub fn key(self) -> Cow<'a, [u8]> {
        match self {
            Self::KeyOf(stream, consumer) => Cow::Owned(keys::heartbeat(stream, consumer)),
            Self::Key(key) => Cow::Borrowed(key),
        }
    }

    /// Whether the key belongs to this stream and consumer.
    #[must_use]
    pub fn expects(self, stream: &[u8], consumer: &[u8]) -> bool {
        matches!(self, Self::KeyOf(s, c) if s.as_bytes() == stream && c.as_bytes() == consumer)
    }
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    consumer: Cow<'a, str>,
    started_at: f64,
    last_seen: f64,
    task_limit: u32,
    #[serde(default)]
    incarnation: Option<String>,
    #[serde(default)]
    in_flight: Option<u32>,
    #[serde(default)]
    waiting: Option<u32>,
    #[serde(default)]
    progress: Option<u64>,
    #[serde(default)]
    draining: bool,
}

impl Heartbeat {
    /// Parses a heartbeat found under `key`.
    ///
    /// # Errors
    /// [`BadHeartbeat`] if the value is too long, is not valid JSON, has invalid times, or names a stream and consumer
    /// with a different key.
    pub fn parse(key: &[u8], value: &[u8]) -> Result<Self, BadHeartbeat> {
        Self::parse_found(FoundUnder::Key(key), value)
    }

    /// Like [`parse`](Self::parse), where stream and consumer may be known.
    ///
    /// # Errors
    /// See [`parse`](Self::parse).
    pub fn parse_found(found: FoundUnder<'_>, value: &[u8]) -> Result<Self, BadHeartbeat> {
        if value.len() > MAX_BYTES {
            return Err(BadHeartbeat(format!("longer than {MAX_BYTES} bytes")));
        }
        if value.is_empty() {
            return Err(BadHeartbeat("empty".to_owned()));
        }
        let text = std::str::from_utf8(value).map_err(|_| BadHeartbeat("not UTF-8".to_owned()))?;
        if !text.trim_start().starts_with('{') {
            return Err(BadHeartbeat("not a JSON object".to_owned()));
        }
        let wire: Wire<'_> = serde_json::from_str(text).map_err(|e| BadHeartbeat(in_words(&e)))?;
        for (field, time) in [("started_at", wire.started_at), ("last_seen", wire.last_seen)] {
            if !(0.0..1e11).contains(&time) {
                return Err(BadHeartbeat(format!("{field} is {time}, not a time in Unix seconds")));
            }
        }
        let expected = found.expects(wire.stream.as_bytes(), wire.consumer.as_bytes());
        let (stream, consumer) = match found {
            FoundUnder::KeyOf(stream, consumer) if expected => (stream.clone(), consumer.clone()),
            _ => (Name::from(&*wire.stream), Name::from(&*wire.consumer)),
        };
        let beat = Self {
            stream,
            consumer,
            started_at: wire.started_at,
            last_seen: wire.last_seen,
            task_limit: wire.task_limit,
            incarnation: wire.incarnation.map(String::into_boxed_str),
            in_flight: wire.in_flight,
            waiting: wire.waiting,
            progress: wire.progress,
            draining: wire.draining,
        };
        if !expected && keys::heartbeat(&beat.stream, &beat.consumer) != *found.key() {
            return Err(BadHeartbeat(format!(
                "names stream {} and consumer {}, which does not match the key",
                shortened(&wire.stream),
                shortened(&wire.consumer)
            )));
        }
        Ok(beat)
    }

    /// Identifies the process: its incarnation, or its start time if it has none.
    #[must_use]
    pub fn process(&self) -> Box<str> {
        self.incarnation.clone().unwrap_or_else(|| self.started_at.to_string().into())
    }

    /// Whether the same process wrote `other`.
    #[must_use]
    pub fn same_incarnation(&self, other: &Self) -> bool {
        self.incarnation == other.incarnation && (self.incarnation.is_some() || self.started_at == other.started_at)
    }
}

/// Message of serde_json without the position and without echoing long values.
fn in_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    let words: String = text.chars().take(text.get(..end).map_or(0, |t| t.chars().count())).take(160).collect();
    if error.is_data() { words } else { format!("not JSON: {words}") }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Heartbeat, BadHeartbeat> {
        Heartbeat::parse(b"worker:heartbeat:a:b", value.as_bytes())
    }

    #[test]
    fn python_heartbeats_and_unknown_fields_are_accepted() {
        let beat = parse(
            r#"{"stream":"a","consumer":"b","started_at":1795456755.85,"last_seen":1795456867.37,"task_limit":10,"host":"x"}"#,
        )
        .unwrap();
        assert_eq!((beat.task_limit, beat.progress), (10, None));
    }

    #[test]
    fn heartbeats_round_trip() {
        let beat = Heartbeat {
            stream: "a".into(),
            consumer: "b".into(),
            started_at: 1.5,
            last_seen: 2.25,
            task_limit: 3,
            incarnation: Some("i".into()),
            in_flight: Some(1),
            waiting: Some(2),
            progress: Some(7),
            draining: true,
        };
        assert_eq!(parse(&serde_json::to_string(&beat).unwrap()).unwrap(), beat);
    }

    #[test]
    fn invalid_heartbeats_return_a_descriptive_error() {
        let good = r#"{"stream":"a","consumer":"b","started_at":1,"last_seen":2,"task_limit":3}"#;
        for (value, expected) in [
            ("[]".to_owned(), "not a JSON object"),
            (String::new(), "empty"),
            ("{".to_owned(), "not JSON"),
            (good.replace("\"task_limit\":3", "\"x\":3"), "missing field `task_limit`"),
            (good.replace(":3}", ":\"3\"}"), "invalid type: string"),
            (good.replace(":3}", ":-3}"), "invalid value: integer"),
            (good.replace(":2,", ":NaN,"), "not JSON"),
            (good.replace(":2,", ":1e400,"), "number out of range"),
            (good.replace(":2,", ":-5,"), "last_seen is -5"),
            (good.replace(":\"a\"", ":\"other\""), "does not match the key"),
            (" ".repeat(MAX_BYTES + 1), "longer than"),
        ] {
            let reason = parse(&value).unwrap_err().0;
            assert!(reason.contains(expected), "{value:.80} gave {reason:?}, wanted {expected:?}");
        }
    }

    #[test]
    fn colons_in_names_are_accepted() {
        let value = r#"{"stream":"a:b","consumer":"c","started_at":1,"last_seen":2,"task_limit":3}"#;
        assert!(Heartbeat::parse(b"worker:heartbeat:a:b:c", value.as_bytes()).is_ok());
    }
}
