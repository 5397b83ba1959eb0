//! The heartbeat: a JSON value with a TTL by which a worker says "I am here".

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Name, keys};

/// How often a worker rewrites its heartbeat.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How long a heartbeat that is not rewritten stays.
pub const TTL: Duration = Duration::from_secs(15);
/// A heartbeat longer than this is refused unread; real ones are a few hundred bytes.
pub const MAX_BYTES: usize = 16 * 1024;

/// What a worker says of itself every five seconds. Times are Unix seconds by the worker's clock.
///
/// The first five fields are every worker's; the rest is written by this project's library and
/// absent from others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Heartbeat {
    /// The stream this worker consumes.
    pub stream: Name,
    /// Its name inside the consumer group.
    pub consumer: Name,
    /// When the process started.
    pub started_at: f64,
    /// When this heartbeat was written.
    pub last_seen: f64,
    /// How many tasks it runs at once.
    pub task_limit: u32,
    /// Tells two processes of the same consumer name apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Box<str>>,
    /// Tasks it is working on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// Tasks that wait for a retry delay: still pending in the group, but not running. Written only when there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u32>,
    /// Counts up whenever a task starts, ends or reports progress; standing still with work in
    /// flight means hung.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<u64>,
    /// It has been asked to leave and takes no new work.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

/// Why a heartbeat's value could not be used, in words for the page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadHeartbeat(pub String);

/// Where a heartbeat was found.
#[derive(Debug, Clone, Copy)]
pub enum FoundUnder<'a> {
    /// Under the key of this stream's consumer: a heartbeat that says so shares their names.
    KeyOf(&'a Name, &'a Name),
    /// Under this key, whosever it is.
    Key(&'a [u8]),
}

impl<'a> FoundUnder<'a> {
    /// The key.
    #[must_use]
    pub fn key(self) -> Cow<'a, [u8]> {
        match self {
            Self::KeyOf(stream, consumer) => Cow::Owned(keys::heartbeat(stream, consumer)),
            Self::Key(key) => Cow::Borrowed(key),
        }
    }

    /// Whether a heartbeat of this stream and consumer was to be expected here.
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
    /// Reads the value found under `key`.
    ///
    /// # Errors
    /// Says what is wrong when the value is too long, not such JSON, carries times that are no
    /// times, or names a stream and consumer whose key would be another one.
    pub fn parse(key: &[u8], value: &[u8]) -> Result<Self, BadHeartbeat> {
        Self::parse_found(FoundUnder::Key(key), value)
    }

    /// The same where it may be known whose heartbeat is to be expected.
    ///
    /// # Errors
    /// As [`Self::parse`].
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

    /// Identifies the process that wrote it: its incarnation, or when it started where it has none.
    #[must_use]
    pub fn process(&self) -> Box<str> {
        self.incarnation.clone().unwrap_or_else(|| self.started_at.to_string().into())
    }

    /// Whether `other` was written by the same process.
    #[must_use]
    pub fn same_incarnation(&self, other: &Self) -> bool {
        self.incarnation == other.incarnation && (self.incarnation.is_some() || self.started_at == other.started_at)
    }
}

/// serde_json's message without its position, and without echoing long values back.
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
    fn a_python_workers_heartbeat_is_read_and_unknown_fields_are_no_error() {
        let beat = parse(
            r#"{"stream":"a","consumer":"b","started_at":1795456755.85,"last_seen":1795456867.37,"task_limit":10,"host":"x"}"#,
        )
        .unwrap();
        assert_eq!((beat.task_limit, beat.progress), (10, None));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
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
    fn each_bad_value_says_what_is_wrong_with_it() {
        let good = r#"{"stream":"a","consumer":"b","started_at":1,"last_seen":2,"task_limit":3}"#;
        for (value, told) in [
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
            assert!(reason.contains(told), "{value:.80} gave {reason:?}, wanted {told:?}");
        }
    }

    #[test]
    fn a_colon_in_a_name_is_no_contradiction() {
        let value = r#"{"stream":"a:b","consumer":"c","started_at":1,"last_seen":2,"task_limit":3}"#;
        assert!(Heartbeat::parse(b"worker:heartbeat:a:b:c", value.as_bytes()).is_ok());
    }
}
