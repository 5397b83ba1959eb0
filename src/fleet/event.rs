//! Events of the fleet, as stored in `monitor_events` and displayed in the feed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::consumer::ConsumerState;
use super::reading::SourceTrouble;
use super::worker_type::TypeState;
use crate::contract::Name;
use crate::contract::failures::FailureKind;

/// Severity of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Informational.
    Info,
    /// Needs attention.
    Warning,
    /// Needs immediate action.
    Critical,
}

impl Severity {
    /// Parses the stored word; unknown words are read as information.
    #[must_use]
    pub fn from_stored(word: &str) -> Self {
        match word {
            "critical" => Self::Critical,
            "warning" => Self::Warning,
            _ => Self::Info,
        }
    }

    /// The stored and displayed word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One event with all its details.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Time by Redis' clock, Unix seconds (by the monitor's clock for events about Redis itself).
    pub ts: f64,
    /// Worker type, or `redis` / `postgres` for a data source.
    pub subject: String,
    /// Kind and details.
    pub kind: EventKind,
    /// Deduplication key. It is equal for the same occurrence after a restart or a spool replay, so the occurrence is
    /// stored once.
    pub key: String,
    /// Running workers of the type before and after, for events that do not change their number.
    pub running: (u32, u32),
}

/// Kind of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// The number of running consumers rose.
    ScaleUp {
        /// Consumers before.
        from: u32,
        /// Consumers now.
        to: u32,
        /// State that the type recovered from, if it was not alive.
        recovered_from: Option<TypeState>,
    },
    /// The number of running consumers fell.
    ScaleDown {
        /// Consumers before.
        from: u32,
        /// Consumers now.
        to: u32,
        /// New state of the type: `alive`, `crashed`, `scaled_down`, or `unknown` when no monitor observed the exits.
        kind: TypeState,
    },
    /// A consumer's heartbeat expired without a shutdown marker.
    ConsumerLost {
        /// Consumer name.
        consumer: Name,
        /// Number of consumers of the type that still run.
        remaining: u32,
        /// Entries still pending on it.
        pending: u64,
    },
    /// A lost consumer resumed, or wrote its shutdown marker late.
    ConsumerReturned {
        /// Consumer name.
        consumer: Name,
        /// How the loss ended.
        how: Return,
    },
    /// A consumer shut down gracefully with pending entries.
    LeftWithWork {
        /// Consumer name.
        consumer: Name,
        /// Entries still pending on it.
        pending: u64,
    },
    /// A consumer has pending entries and makes no progress.
    Hung {
        /// Consumer name.
        consumer: Name,
        /// Entries pending on it.
        pending: u64,
        /// Seconds without progress.
        for_sec: u64,
    },
    /// A hung consumer makes progress again.
    Unhung {
        /// Consumer name.
        consumer: Name,
    },
    /// Tasks of a stream failed for the first time in five minutes.
    TaskFailures {
        /// Kind of the newest failure.
        kind: FailureKind,
        /// Reason, if the worker recorded one.
        reason: Option<String>,
        /// ID of the stream entry.
        entry: Option<String>,
        /// Number of failed tasks.
        count: u64,
        /// Time during which no monitor had read the counters.
        unread: Unread,
    },
    /// A data source cannot be read. States that depend on it are frozen.
    SourceDown {
        /// Its state, and the error.
        trouble: SourceTrouble,
    },
    /// An event read from the archive, with the stored text of whichever monitor wrote it.
    Recorded {
        /// The `type` column.
        type_name: String,
        /// The `severity` column.
        severity: Severity,
        /// The `detail` column.
        detail: String,
    },
    /// A data source is reachable again.
    SourceUp {
        /// Downtime, seconds.
        away_sec: u64,
    },
}

/// How the loss of a consumer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// The same process writes its heartbeat again.
    Resumed,
    /// A new process of the same name started.
    Restarted,
    /// The process wrote its shutdown marker late.
    ShutDown,
}

/// Time during which counters were not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// No longer than the poll interval.
    No,
    /// Number of seconds.
    Seconds(u64),
    /// No monitor had read them before.
    Always,
}

/// All values of the `type` column in the archive.
pub const TYPES: [&str; 12] = [
    "alert",
    "alert_resolved",
    "consumer_hung",
    "consumer_recovered",
    "consumers_lost",
    "failed_logins",
    "left_with_work",
    "scale_down",
    "scale_up",
    "source_down",
    "source_up",
    "task_failures",
];

impl Event {
    /// Value of the `type` column.
    #[must_use]
    pub fn type_name(&self) -> &str {
        match &self.kind {
            EventKind::ScaleUp { .. } => "scale_up",
            EventKind::ScaleDown { .. } => "scale_down",
            EventKind::ConsumerLost { .. } => "consumers_lost",
            EventKind::LeftWithWork { .. } => "left_with_work",
            EventKind::Hung { .. } => "consumer_hung",
            EventKind::Unhung { .. } | EventKind::ConsumerReturned { .. } => "consumer_recovered",
            EventKind::TaskFailures { .. } => "task_failures",
            EventKind::SourceDown { .. } => "source_down",
            EventKind::SourceUp { .. } => "source_up",
            EventKind::Recorded { type_name, .. } => type_name,
        }
    }

    /// Severity of the event.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match &self.kind {
            EventKind::Recorded { severity, .. } => *severity,
            EventKind::ScaleUp { .. }
            | EventKind::Unhung { .. }
            | EventKind::ConsumerReturned { .. }
            | EventKind::SourceUp { .. } => Severity::Info,
            EventKind::ScaleDown { kind: TypeState::Crashed, .. } | EventKind::SourceDown { .. } => Severity::Critical,
            EventKind::ScaleDown { to: 0, .. } => Severity::Warning,
            EventKind::ScaleDown { .. } => Severity::Info,
            EventKind::ConsumerLost { .. }
            | EventKind::LeftWithWork { .. }
            | EventKind::Hung { .. }
            | EventKind::TaskFailures { .. } => Severity::Warning,
        }
    }

    /// One-line summary without the subject.
    #[must_use]
    pub fn summary(&self) -> String {
        match &self.kind {
            EventKind::ScaleUp { from, to, recovered_from: None } => format!("scaled up from {from} to {to}"),
            EventKind::ScaleUp { to, recovered_from: Some(TypeState::Unknown), .. } => {
                format!("first seen ({to} running)")
            }
            EventKind::ScaleUp { to, recovered_from: Some(TypeState::Crashed), .. } => {
                format!("recovered from crash ({to} running)")
            }
            EventKind::ScaleUp { to, .. } => format!("restarted ({to} running)"),
            EventKind::ScaleDown { from, kind: TypeState::Crashed, .. } => format!("crashed: 0 of {from} running"),
            EventKind::ScaleDown { from, kind: TypeState::Unknown, .. } => {
                format!("0 of {from} running; stopped while no monitor was running")
            }
            EventKind::ScaleDown { from, to: 0, .. } => format!("scaled to zero from {from} (graceful shutdown)"),
            EventKind::ScaleDown { from, to, .. } => format!("scaled down from {from} to {to}"),
            EventKind::ConsumerLost { consumer, remaining, pending } => {
                let work = match pending {
                    0 => String::new(),
                    1 => "; 1 message still pending on it".to_owned(),
                    pending => format!("; {pending} messages still pending on it"),
                };
                format!("lost consumer {consumer} (heartbeat expired), {remaining} running{work}")
            }
            EventKind::ConsumerReturned { consumer, how } => match how {
                Return::Resumed => format!("consumer {consumer} recovered: its heartbeat is back"),
                Return::Restarted => format!("consumer {consumer} recovered: a new process started"),
                Return::ShutDown => format!("consumer {consumer} recovered: it shut down gracefully after all"),
            },
            EventKind::LeftWithWork { consumer, pending } => match pending {
                1 => format!("consumer {consumer} shut down with 1 message still pending"),
                pending => format!("consumer {consumer} shut down with {pending} messages still pending"),
            },
            EventKind::Hung { consumer, pending, for_sec } => {
                format!("consumer {consumer} hung: {pending} pending, no progress for {for_sec} s")
            }
            EventKind::Unhung { consumer } => format!("consumer {consumer} making progress again"),
            EventKind::TaskFailures { kind, reason, entry, count, unread } => {
                let newest = newest_failure(*kind, reason.as_deref(), entry.as_deref());
                match (count, unread) {
                    (1, Unread::No) => newest,
                    (_, Unread::No) => format!("{count} tasks failed; newest: {newest}"),
                    (1, Unread::Seconds(sec)) => {
                        format!("1 task failed while no monitor was running ({sec} s): {newest}")
                    }
                    (_, Unread::Seconds(sec)) => {
                        format!("{count} tasks failed while no monitor was running ({sec} s); newest: {newest}")
                    }
                    (1, Unread::Always) => format!("1 task failed before the first reading: {newest}"),
                    (_, Unread::Always) => format!("{count} tasks failed before the first reading; newest: {newest}"),
                }
            }
            EventKind::SourceDown { trouble } => format!("{}: {}", trouble.kind.state(), trouble.detail),
            EventKind::SourceUp { away_sec } => format!("reachable again after {away_sec} s"),
            EventKind::Recorded { detail, .. } => detail.clone(),
        }
    }

    /// Number of running workers before and after; for a data source 1 while reachable and 0 otherwise. The page of the
    /// older monitor calculates with both numbers for every event.
    #[must_use]
    pub fn from_and_to(&self) -> (u32, u32) {
        match &self.kind {
            EventKind::ScaleUp { from, to, .. } | EventKind::ScaleDown { from, to, .. } => (*from, *to),
            // Each of several consumers lost at once has its own event with the same remaining number.
            EventKind::ConsumerLost { remaining, .. } => (remaining.saturating_add(1), *remaining),
            EventKind::SourceDown { .. } => (1, 0),
            EventKind::SourceUp { .. } => (0, 1),
            EventKind::LeftWithWork { .. }
            | EventKind::Hung { .. }
            | EventKind::Unhung { .. }
            | EventKind::ConsumerReturned { .. }
            | EventKind::TaskFailures { .. }
            | EventKind::Recorded { .. } => self.running,
        }
    }

    /// Value of the `payload` column. Scale events keep the fields and meanings of the older monitor.
    #[must_use]
    pub fn payload(&self) -> Value {
        let mut map = Map::new();
        let mut set = |field: &str, value: Value| drop(map.insert(field.to_owned(), value));
        set("type", json!(self.type_name()));
        set("worker", json!(self.subject));
        set("key", json!(self.key));
        let (from, to) = self.from_and_to();
        set("from", json!(from));
        set("to", json!(to));
        match &self.kind {
            EventKind::ScaleUp { recovered_from, .. } => {
                set("kind", json!(TypeState::Alive));
                if let Some(state) = recovered_from {
                    set("recovered_from", json!(state));
                }
            }
            EventKind::ScaleDown { kind, .. } => set("kind", json!(kind)),
            EventKind::ConsumerLost { consumer, remaining, pending } => {
                set("consumers", json!([consumer]));
                set("remaining", json!(remaining));
                set("pending", json!(pending));
            }
            EventKind::LeftWithWork { consumer, pending } => {
                set("consumer", json!(consumer));
                set("pending", json!(pending));
            }
            EventKind::Hung { consumer, pending, for_sec } => {
                set("consumer", json!(consumer));
                set("pending", json!(pending));
                set("for_sec", json!(for_sec));
            }
            EventKind::Unhung { consumer } => {
                set("consumer", json!(consumer));
                set("recovered_from", json!(ConsumerState::Hung));
            }
            EventKind::ConsumerReturned { consumer, .. } => {
                set("consumer", json!(consumer));
                set("recovered_from", json!(ConsumerState::Lost));
            }
            EventKind::TaskFailures { kind, reason, entry, count, unread } => {
                set("kind", json!(kind));
                set("reason", json!(reason));
                set("entry", json!(entry));
                set("count", json!(count));
                match unread {
                    Unread::No => {}
                    Unread::Seconds(sec) => set("unread_sec", json!(sec)),
                    Unread::Always => set("first_reading", json!(true)),
                }
            }
            EventKind::SourceDown { trouble } => set("detail", json!(trouble.detail)),
            EventKind::SourceUp { away_sec } => set("away_sec", json!(away_sec)),
            EventKind::Recorded { .. } => {}
        }
        Value::Object(map)
    }
}

/// Formats a failure: `task dead-lettered: no such node (entry 5-0)`.
fn newest_failure(kind: FailureKind, reason: Option<&str>, entry: Option<&str>) -> String {
    let what = match kind {
        FailureKind::Failed => "task failed",
        FailureKind::Malformed => "malformed task",
        FailureKind::DeadLettered => "task dead-lettered",
    };
    let reason = reason.filter(|reason| !reason.is_empty()).map(|reason| format!(": {reason}"));
    let entry = entry.filter(|entry| !entry.is_empty()).map(|entry| format!(" (entry {entry})"));
    format!("{what}{}{}", reason.unwrap_or_default(), entry.unwrap_or_default())
}

/// Values of the field `kind`.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "says what is told")]
enum EventDetailKind {
    /// `scale_up`, `scale_down`: the type's state now.
    State(TypeState),
    /// `task_failures`: how the newest task failed.
    Failure(FailureKind),
}

/// The fields of [`Event::payload`] and what [`Event`] adds to them: which are there follows from the type.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "says what is told")]
struct EventFields {
    /// Event type.
    #[schemars(extend("enum" = TYPES))]
    r#type: String,
    /// The worker type, `redis` / `postgres` for a data source, or `security`.
    worker: String,
    /// Idempotency key: identical for the same occurrence.
    key: String,
    /// Time of the event, Unix seconds.
    ts: f64,
    /// Severity.
    severity: Severity,
    /// One-line description.
    detail: String,
    /// Running workers before; for a data source, 1 if readable.
    from: u32,
    /// Running workers now; for a data source, 0 if unreachable.
    to: u32,
    /// `scale_up`, `scale_down`: the type's state now; `task_failures`: how the newest task failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<EventDetailKind>,
    /// `scale_up`: the state the type recovered from, when it was not alive. `consumer_recovered`: what the consumer
    /// recovered from, `hung` or `lost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered_from: Option<String>,
    /// `consumers_lost`: the consumers.
    #[serde(skip_serializing_if = "Option::is_none")]
    consumers: Option<Vec<Name>>,
    /// `consumers_lost`: consumers still running.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u32>,
    /// `left_with_work`, `consumer_hung`, `consumer_recovered`: the consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<Name>,
    /// `consumers_lost`, `left_with_work`, `consumer_hung`: entries pending on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<u64>,
    /// `consumer_hung`: duration, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    for_sec: Option<u64>,
    /// `source_up`: duration of the outage, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    away_sec: Option<u64>,
    /// `task_failures`: reason of the newest failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// `task_failures`: stream entry ID of the newest failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<String>,
    /// `task_failures`: number of failed tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// `task_failures`: time since the counters were last read, seconds, if longer than usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread_sec: Option<u64>,
    /// `task_failures`: the counters of the stream were read for the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_reading: Option<bool>,
}

impl JsonSchema for Event {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Event".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        EventFields::json_schema(generator)
    }
}

/// Serializes the payload with time and severity, for the snapshot and the feed.
impl Serialize for Event {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = self.payload();
        if let Value::Object(map) = &mut value {
            map.insert("ts".to_owned(), json!(self.ts));
            map.insert("severity".to_owned(), json!(self.severity()));
            map.insert("detail".to_owned(), json!(self.summary()));
        }
        value.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::reading::TroubleKind;

    #[test]
    fn every_event_has_running_counts_before_and_after() {
        let counts = |kind: EventKind| {
            let event = Event { ts: 1.0, subject: "s".to_owned(), kind, key: String::new(), running: (4, 4) };
            let event = json!(event);
            (event["from"].as_u64().unwrap(), event["to"].as_u64().unwrap())
        };
        let name = || Name::from("c");
        let cases = [
            (EventKind::ScaleUp { from: 1, to: 3, recovered_from: None }, (1, 3)),
            (EventKind::ScaleDown { from: 3, to: 1, kind: TypeState::Alive }, (3, 1)),
            (EventKind::ConsumerLost { consumer: name(), remaining: 1, pending: 0 }, (2, 1)),
            (EventKind::ConsumerReturned { consumer: name(), how: Return::Resumed }, (4, 4)),
            (EventKind::LeftWithWork { consumer: name(), pending: 1 }, (4, 4)),
            (EventKind::Hung { consumer: name(), pending: 1, for_sec: 9 }, (4, 4)),
            (EventKind::Unhung { consumer: name() }, (4, 4)),
            (EventKind::SourceDown { trouble: SourceTrouble::new(TroubleKind::Unreachable, "") }, (1, 0)),
            (EventKind::SourceUp { away_sec: 1 }, (0, 1)),
        ];
        for (kind, expected) in cases {
            assert_eq!(counts(kind.clone()), expected, "{kind:?}");
        }
        let recorded =
            EventKind::Recorded { type_name: String::new(), severity: Severity::Info, detail: String::new() };
        assert_eq!(counts(recorded), (4, 4));
    }
}
