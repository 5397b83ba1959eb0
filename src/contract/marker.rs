//! The shutdown marker: a key by which a worker says "I left on purpose".

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Heartbeat, Name};

/// How long a marker stays.
pub const TTL: Duration = Duration::from_secs(120);

/// What a worker leaves behind when it goes in good order. `ts` is Unix seconds by its clock.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShutdownMarker {
    /// The stream it consumed.
    pub stream: Name,
    /// Its name inside the consumer group.
    pub consumer: Name,
    /// The signal it obeyed, if any.
    pub signum: Option<i32>,
    /// When it left.
    pub ts: f64,
    /// Which process of that name left (this project's library).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// Tasks it could not finish before its deadline (this project's library).
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
    /// Reads a marker left for exactly this stream and consumer; anything else is no marker of it.
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

    /// Whether the process that writes `beat` left this marker. Without incarnations the times decide, both by the
    /// clock of the worker's host: an earlier process of that name wrote its marker before this one started.
    #[must_use]
    pub fn is_of(&self, beat: &Heartbeat) -> bool {
        match (&self.incarnation, &beat.incarnation) {
            (Some(left), Some(alive)) => **left == **alive,
            _ => self.ts >= beat.started_at,
        }
    }
}
