//! Log entries of a response, in the format of the Python workers.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A log entry of a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Log message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Time in ISO 8601 with an offset, such as `2026-01-31T12:00:00.123456+00:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Level: `DEBUG`, `INFO`, `WARNING` or `ERROR`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// All other members, preserved unchanged.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl LogEntry {
    /// Returns an entry with `level` and `message` at `time`.
    #[must_use]
    pub fn new(time: SystemTime, level: &str, message: impl Into<String>) -> Self {
        let time: DateTime<Utc> = time.into();
        Self {
            message: Some(message.into()),
            timestamp: Some(time.to_rfc3339_opts(SecondsFormat::Micros, false)),
            level: Some(level.to_owned()),
            other: Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn log_entries_use_the_python_format_and_preserve_unknown_members() {
        let entry = LogEntry::new(SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000), "INFO", "merged");
        let json = r#"{"message":"merged","timestamp":"1970-01-01T00:00:01.500000+00:00","level":"INFO"}"#;
        assert_eq!(serde_json::to_string(&entry).unwrap(), json);
        let foreign = r#"{"level":"ERROR","code":"QueryNotTraversable","n":[1.0]}"#;
        let read: LogEntry = serde_json::from_str(foreign).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), foreign);
    }
}
