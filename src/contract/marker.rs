//! Shutdown marker: a key that a worker writes at graceful shutdown.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Heartbeat, Name};

/// TTL of a shutdown marker.
pub const TTL: Duration = Duration::from_secs(120);

/// A shutdown marker. `ts` is in Unix seconds by the clock of the worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShutdownMarker {
    /// Stream that the worker read.
    pub stream: Name,
    /// Consumer name.
    pub consumer: Name,
    /// Signal that caused the shutdown, if any.
    pub signum: Option<i32>,
    /// Time of the shutdown.
    pub ts: f64,
    /// Incarnation of the process (only workers of this library).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// Number of tasks that were not completed before the drain timeout (only workers of this library).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    consumer: Cow<'a, str>,
    #[serde(default)]
    signum: Option<i32>,
    ts: f64,
    #[serde(default)]
    incarnation: Option<String>,
    #[serde(default)]
    in_flight: Option<u32>,
}

impl ShutdownMarker {
    /// Parses the marker of this stream and consumer; `None` if the value is invalid or names others.
    #[must_use]
    pub fn parse(stream: &Name, consumer: &Name, value: &[u8]) -> Option<Self> {
        let wire: Wire<'_> = serde_json::from_slice(value).ok()?;
        (wire.stream.as_bytes() == stream.as_bytes() && wire.consumer.as_bytes() == consumer.as_bytes()).then(|| Self {
            stream: stream.clone(),
            consumer: consumer.clone(),
            signum: wire.signum,
            ts: wire.ts,
            incarnation: wire.incarnation,
            in_flight: wire.in_flight,
        })
    }

    /// Whether the process that wrote `beat` wrote this marker. Without incarnations the times decide, both by the
    /// clock of the worker's host: an earlier process with this name wrote its marker before this one started.
    #[must_use]
    pub fn is_of(&self, beat: &Heartbeat) -> bool {
        match (&self.incarnation, &beat.incarnation) {
            (Some(left), Some(alive)) => **left == **alive,
            _ => self.ts >= beat.started_at,
        }
    }

    /// Whether the process `process` wrote this marker; see [`Heartbeat::process`].
    #[must_use]
    pub fn is_of_process(&self, process: &str) -> bool {
        match &self.incarnation {
            Some(left) => left == process,
            None => process.parse().is_ok_and(|started_at: f64| self.ts >= started_at),
        }
    }
}
