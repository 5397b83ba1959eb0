//! Readings: what the sources said in one tick, before anything is concluded from it.
//!
//! Adapters produce these; [`super::tracker`] consumes them. A source that could not be read is
//! an `Err`, a single stream that could not be read is its own [`StreamReading::facts`] error;
//! neither is ever a zero.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::time::Mono;
#[cfg(doc)]
use crate::contract::failures::FailureKind;
use crate::contract::failures::{FailureCounts, LastFailure};
use crate::contract::{DatabaseCondition, Heartbeat, Name, ShutdownMarker};

/// Why a data source could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SourceTrouble {
    /// Kind of error.
    pub kind: TroubleKind,
    /// Error message, without secrets.
    pub detail: String,
}

/// Kinds of data source errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// Cannot connect, or the connection was closed.
    Unreachable,
    /// Timed out.
    TimedOut,
    /// Wrong password or missing permission.
    Refused,
    /// The server is still loading its data.
    Loading,
    /// It is a replica; its data may be outdated.
    Replica,
    /// Its disk is full.
    DiskFull,
    /// It is out of memory.
    OutOfMemory,
    /// It accepts no more connections.
    TooManyConnections,
    /// It rejects writes.
    ReadOnly,
    /// Any other error.
    Failed,
}

impl TroubleKind {
    /// Whether the server can be read and refuses to write.
    #[must_use]
    pub fn refuses_writes(self) -> bool {
        matches!(self, Self::DiskFull | Self::OutOfMemory | Self::ReadOnly)
    }
}

impl From<DatabaseCondition> for TroubleKind {
    fn from(condition: DatabaseCondition) -> Self {
        match condition {
            DatabaseCondition::DiskFull => Self::DiskFull,
            DatabaseCondition::OutOfMemory => Self::OutOfMemory,
            DatabaseCondition::TooManyConnections => Self::TooManyConnections,
            DatabaseCondition::ReadOnly => Self::ReadOnly,
        }
    }
}

impl SourceTrouble {
    /// Trouble of `kind` with a sentence for people.
    pub fn new(kind: TroubleKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// Everything one pass over the streams saw.
#[derive(Debug, Clone, Default)]
pub struct StreamsReading {
    /// Redis TIME at the pass, Unix seconds.
    pub redis_time: f64,
    /// The server itself.
    pub server: RedisServer,
    /// Each watched stream; absent keys are listed with `exists: false`.
    pub streams: BTreeMap<Name, StreamReading>,
    /// The failed tasks of each stream that was asked for; `None` when they could not be read.
    pub failures: Option<BTreeMap<Name, StreamFailures>>,
}

/// What workers counted of a stream's failed tasks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamFailures {
    /// In the order of [`FailureKind::ALL`]; `None` where the value is not a count.
    pub counts: [Option<u64>; 3],
    /// The newest failure; `None` when there is none, or its value is not one.
    pub last: Option<Arc<LastFailure>>,
}

impl StreamFailures {
    /// The counts; where a value is none, that of `before`.
    #[must_use]
    pub fn counts_or(&self, before: FailureCounts) -> FailureCounts {
        let [failed, malformed, dead_lettered] = self.counts;
        FailureCounts {
            failed: failed.unwrap_or(before.failed),
            malformed: malformed.unwrap_or(before.malformed),
            dead_lettered: dead_lettered.unwrap_or(before.dead_lettered),
        }
    }
}

/// Figures of the server, from INFO; `null` if not reported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct RedisServer {
    /// Changes with every start of the server; keys may be lost then.
    #[serde(skip)]
    pub run_id: String,
    /// Redis (or a relative's) version, for display only: capabilities are probed.
    pub version: Option<String>,
    /// Memory in use, as formatted by Redis (`1.80M`).
    pub used_memory_human: Option<String>,
    /// Memory in use, bytes.
    pub used_memory_bytes: Option<u64>,
    /// Memory limit, bytes; `None` when there is none.
    pub maxmemory_bytes: Option<u64>,
    /// Open client connections.
    pub connected_clients: Option<u64>,
    /// Commands per second, as Redis averages them.
    pub instantaneous_ops_per_sec: Option<u64>,
    /// Seconds since the server started.
    pub uptime_in_seconds: Option<u64>,
    /// Keys evicted for lack of memory since the start.
    pub evicted_keys: Option<u64>,
}

/// One stream in one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamReading {
    /// What was read, or what Redis answered instead (wrong type, no permission).
    pub facts: Result<StreamFacts, String>,
}

impl StreamReading {
    /// Every consumer that a group lists, with its group's name.
    pub fn consumers(&self) -> impl Iterator<Item = (&Name, &GroupConsumer)> {
        let groups = self.facts.iter().flat_map(|facts| &facts.groups);
        groups.flat_map(|group| {
            group.consumers.iter().flat_map(|all| &**all).map(move |consumer| (&group.name, consumer))
        })
    }
}

/// What Redis says of one stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamFacts {
    /// Whether the key exists; a stream may be watched before anyone used it.
    pub exists: bool,
    /// XLEN: entries in the stream, finished ones that nobody deleted included.
    pub length: u64,
    /// Its consumer groups, by name.
    pub groups: Vec<GroupReading>,
}

/// One consumer group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupReading {
    /// The group's name.
    pub name: Name,
    /// IDs delivered and not acknowledged.
    pub pending: u64,
    /// Those of them whose entry is no longer in the stream, as far as is known.
    pub phantom_pending: u64,
    /// `phantom_pending` is a lower bound.
    pub phantom_at_least: bool,
    /// Entries not delivered to this group yet, and where the number comes from.
    pub lag: Lag,
    /// Entries this group has read since it exists, where Redis counts them.
    pub entries_read: Option<u64>,
    /// ID of the last entry delivered.
    pub last_delivered_id: String,
    /// When the oldest undelivered entry was added, Unix milliseconds (from its ID).
    pub oldest_undelivered_ms: Option<u64>,
    /// Its consumers, by name; `None` when this pass could not read them. Snapshots share them.
    pub consumers: Option<Arc<[GroupConsumer]>>,
}

/// Entries not yet delivered to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "lag_source", content = "lag", rename_all = "snake_case")]
pub enum Lag {
    /// Reported by Redis.
    Reported(u64),
    /// Derived from other figures (nothing, or everything, is undelivered).
    Derived(u64),
    /// Counted to the end of the stream.
    Counted(u64),
    /// Lower bound: counted up to a limit.
    AtLeast(u64),
    /// Unknown.
    Unknown,
}

impl Lag {
    /// The number, whether exact or a lower bound; `None` when unknown.
    #[must_use]
    pub fn value(self) -> Option<u64> {
        match self {
            Self::Reported(n) | Self::Derived(n) | Self::Counted(n) | Self::AtLeast(n) => Some(n),
            Self::Unknown => None,
        }
    }

    /// Whether the number is a lower bound only.
    #[must_use]
    pub fn is_lower_bound(self) -> bool {
        matches!(self, Self::AtLeast(_))
    }
}

/// One consumer as its group lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConsumer {
    /// The consumer's name.
    pub name: Name,
    /// IDs delivered to it and not acknowledged.
    pub pending: u64,
    /// Those of them whose entry is no longer in the stream, as far as is known.
    pub phantom_pending: u64,
    /// Milliseconds since it last tried to do anything.
    pub idle_ms: u64,
    /// Milliseconds since it last succeeded (Redis 7.2 and later).
    pub inactive_ms: Option<u64>,
}

/// Everything one pass over the heartbeats saw.
#[derive(Debug, Clone, Default)]
pub struct HeartbeatsReading {
    /// What was found for each consumer that was looked for, by stream; sorted by consumer.
    pub consumers: BTreeMap<Name, Vec<(Name, BeatReading)>>,
    /// Heartbeat keys whose value cannot be used.
    pub unreadable: Vec<UnreadableHeartbeat>,
}

/// One consumer's keys in one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct BeatReading {
    /// Its heartbeat key.
    pub beat: Beat,
    /// Its shutdown marker.
    pub marker: MarkerReading,
}

/// What stood under a heartbeat key.
#[derive(Debug, Clone, PartialEq)]
pub enum Beat {
    /// A good heartbeat.
    Present(Arc<Heartbeat>),
    /// The key is there; its value is not a heartbeat of this consumer, for this reason.
    Unreadable(Box<str>),
    /// No such key.
    Absent,
}

/// What is known of a shutdown marker after a pass.
#[derive(Debug, Clone, PartialEq)]
pub enum MarkerReading {
    /// It was not asked for, since nothing hung on it.
    NotRead,
    /// Asked for and not there.
    Absent,
    /// The worker said goodbye.
    Present(Box<ShutdownMarker>),
}

/// A heartbeat key with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UnreadableHeartbeat {
    /// Key, escaped and truncated to 200 characters.
    pub key: String,
    /// Why the value is invalid.
    pub reason: String,
    /// Stream it was looked up for, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<Name>,
    /// Consumer it was looked up for, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<Name>,
}

/// What the database probe knows. Each group of figures has its own age, since slow probes run
/// less often. A probe that failed carries its reason; the last good value is kept beside it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatabaseReading {
    /// Queries by state and by status, over the whole table.
    pub query_counts: Probed<QueryCounts>,
    /// Queries started lately.
    pub query_volume: Probed<QueryVolume>,
    /// Callbacks that queries still wait for.
    pub callbacks: Probed<Callbacks>,
    /// The server's own figures.
    pub server: Probed<DatabaseServer>,
    /// Why Postgres refused the monitor's last write, if it did although it can be read.
    pub write_trouble: Option<SourceTrouble>,
}

/// One probe's last good value and its present condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed<T> {
    /// The last good value and when it was measured.
    pub value: Option<(Mono, T)>,
    /// Why the latest attempt failed (`None`: it did not).
    pub error: Option<String>,
    /// When the next value is due, at the latest.
    pub expected_by: Mono,
}

impl<T> Default for Probed<T> {
    fn default() -> Self {
        Self { value: None, error: None, expected_by: Mono::default() }
    }
}

impl<T> Probed<T> {
    /// The last good value, however old.
    pub fn latest(&self) -> Option<&T> {
        self.value.as_ref().map(|(_, value)| value)
    }
}

/// Rows of `shepherd_brain` by state and by status.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryCounts {
    /// QUEUED, COMPLETED, ABANDONED and whatever else is there.
    pub by_state: BTreeMap<String, i64>,
    /// OK, ERROR, ... as the fleet words them.
    pub by_status: BTreeMap<String, i64>,
}

/// How many queries came in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryVolume {
    /// Started in the last hour.
    pub last_1h: i64,
    /// Started in the last 24 hours.
    pub last_24h: i64,
    /// Started in the last 24 hours, by ARA (`domain`).
    pub per_ara_24h: BTreeMap<String, i64>,
}

/// Answers that queries still wait for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Callbacks {
    /// Rows of `callbacks`.
    pub pending: i64,
    /// Age of the oldest waiting query that has any when it was measured, seconds; `None` when there is none.
    pub oldest_age_sec: Option<f64>,
}

/// What Postgres says of itself. Each figure fails on its own, with the reason.
#[derive(Debug, Clone, PartialEq)]
pub struct DatabaseServer {
    /// Client connections, all databases.
    pub connections: Result<i64, String>,
    /// Size of the connected database, bytes.
    pub db_size_bytes: Result<i64, String>,
    /// Size of the write-ahead log, bytes; `None` when this role may not read it, which needs `pg_monitor`.
    pub wal_size_bytes: Result<Option<i64>, String>,
    /// The fleet keeps its queries here: `shepherd_brain` and `callbacks` exist.
    pub has_queries: bool,
}
