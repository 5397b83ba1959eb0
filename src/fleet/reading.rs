//! Readings: raw results of one poll, before any state is derived.
//!
//! Adapters produce them and [`super::tracker`] consumes them. An unreachable data source is an `Err`, and an
//! unreadable stream is an error in its [`StreamReading::facts`]; neither is ever a zero.

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
    /// Redis is in this state, not Postgres; told where it matters: of refused writes.
    #[serde(skip)]
    pub of_redis: bool,
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
    /// The state of the data source, to follow "is".
    #[must_use]
    pub fn state(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimedOut => "not responding",
            Self::Refused => "denying access",
            Self::Loading => "loading its data",
            Self::Replica => "acting as a replica",
            Self::DiskFull => "out of disk space",
            Self::OutOfMemory => "out of memory",
            Self::TooManyConnections => "out of connections",
            Self::ReadOnly => "read-only",
            Self::Failed => "returning errors",
        }
    }
}

impl TroubleKind {
    /// Whether the server cannot be read at all, whatever was asked.
    #[must_use]
    pub fn means_unreadable(self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut | Self::Refused | Self::Loading | Self::TooManyConnections)
    }

    /// Whether the server is readable but rejects writes.
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
    /// Returns trouble of `kind` with a readable description.
    pub fn new(kind: TroubleKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), of_redis: false }
    }

    /// The same, as a state of Redis.
    #[must_use]
    pub fn of_redis(self) -> Self {
        Self { of_redis: true, ..self }
    }

    /// Whether Postgres can be read and refuses to write.
    #[must_use]
    pub fn is_write_refused_by_postgres(&self) -> bool {
        self.kind.refuses_writes() && !self.of_redis
    }
}

/// Result of polling all streams.
#[derive(Debug, Clone, Default)]
pub struct StreamsReading {
    /// Redis TIME at the poll, Unix seconds.
    pub redis_time: f64,
    /// Facts of the server.
    pub server: RedisServer,
    /// Each watched stream; absent keys are listed with `exists: false`.
    pub streams: BTreeMap<Name, StreamReading>,
    /// Task failures of each requested stream; `None` when unreadable.
    pub failures: Option<BTreeMap<Name, StreamFailures>>,
}

/// Workers' failure counters of a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamFailures {
    /// In the order of [`FailureKind::ALL`]; `None` for a value that is not a count.
    pub counts: [Option<u64>; 3],
    /// Newest failure; `None` when there is none or its value is invalid.
    pub last: Option<Arc<LastFailure>>,
}

impl StreamFailures {
    /// The counts, with missing ones taken from `before`.
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
    /// Why it refuses writes although it can be read; `None`: it takes them, as far as is known.
    #[serde(skip)]
    pub write_trouble: Option<SourceTrouble>,
    /// What it said to a command that it denied the monitor lately, or does not offer.
    #[serde(skip)]
    pub denied: Option<String>,
}

/// Result of polling one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamReading {
    /// Facts, or the error that Redis returned (wrong type, no permission).
    pub facts: Result<StreamFacts, String>,
}

impl StreamReading {
    /// All consumers listed by groups, with their group's name.
    pub fn consumers(&self) -> impl Iterator<Item = (&Name, &GroupConsumer)> {
        let groups = self.facts.iter().flat_map(|facts| &facts.groups);
        groups.flat_map(|group| {
            group.consumers.iter().flat_map(|all| &**all).map(move |consumer| (&group.name, consumer))
        })
    }
}

/// Facts that Redis reports about a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamFacts {
    /// Whether the key exists; a stream may be watched before its first message.
    pub exists: bool,
    /// XLEN: all entries in the stream, including finished ones that were not deleted.
    pub length: u64,
    /// Consumer groups, sorted by name.
    pub groups: Vec<GroupReading>,
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupReading {
    /// Group name.
    pub name: Name,
    /// IDs delivered and not acknowledged.
    pub pending: u64,
    /// Known pending IDs whose entry no longer exists in the stream.
    pub phantom_pending: u64,
    /// `phantom_pending` is a lower bound.
    pub phantom_at_least: bool,
    /// Undelivered entries of the group, and the origin of the number.
    pub lag: Lag,
    /// Entries that the group has read since its creation, where Redis counts them.
    pub entries_read: Option<u64>,
    /// ID of the last delivered entry.
    pub last_delivered_id: String,
    /// Time when the oldest undelivered entry was added, Unix milliseconds (from its ID).
    pub oldest_undelivered_ms: Option<u64>,
    /// Consumers, sorted by name; `None` when this poll could not read them. Shared with snapshots.
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
    /// The number, exact or a lower bound; `None` when unknown.
    #[must_use]
    pub fn value(self) -> Option<u64> {
        match self {
            Self::Reported(n) | Self::Derived(n) | Self::Counted(n) | Self::AtLeast(n) => Some(n),
            Self::Unknown => None,
        }
    }

    /// Whether the number is a lower bound.
    #[must_use]
    pub fn is_lower_bound(self) -> bool {
        matches!(self, Self::AtLeast(_))
    }
}

/// A consumer as listed by its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConsumer {
    /// Consumer name.
    pub name: Name,
    /// IDs delivered to it and not acknowledged.
    pub pending: u64,
    /// Known pending IDs whose entry no longer exists in the stream.
    pub phantom_pending: u64,
    /// Milliseconds since its last command.
    pub idle_ms: u64,
    /// Milliseconds since it last received an entry (Redis 7.2 and later).
    pub inactive_ms: Option<u64>,
}

/// Result of polling the heartbeats.
#[derive(Debug, Clone, Default)]
pub struct HeartbeatsReading {
    /// Keys of each requested consumer, by stream, sorted by consumer.
    pub consumers: BTreeMap<Name, Vec<(Name, BeatReading)>>,
    /// Heartbeat keys with an invalid value.
    pub unreadable: Vec<UnreadableHeartbeat>,
}

/// Keys of one consumer.
#[derive(Debug, Clone, PartialEq)]
pub struct BeatReading {
    /// Heartbeat key.
    pub beat: Beat,
    /// Shutdown marker.
    pub marker: MarkerReading,
}

/// Value of a heartbeat key.
#[derive(Debug, Clone, PartialEq)]
pub enum Beat {
    /// A valid heartbeat.
    Present(Arc<Heartbeat>),
    /// The key exists, but its value is not a heartbeat of this consumer, for this reason.
    Unreadable(Box<str>),
    /// The key does not exist.
    Absent,
}

/// Value of a shutdown marker.
#[derive(Debug, Clone, PartialEq)]
pub enum MarkerReading {
    /// Not requested, because no decision depends on it.
    NotRead,
    /// Requested and absent.
    Absent,
    /// The worker shut down gracefully.
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

/// Figures of the database probe. Each group has its own age, because slow probes run less often. A failed probe
/// carries its reason beside the last good value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatabaseReading {
    /// Queries by state and by status, over the whole table.
    pub query_counts: Probed<QueryCounts>,
    /// Recently started queries.
    pub query_volume: Probed<QueryVolume>,
    /// Outstanding callbacks.
    pub callbacks: Probed<Callbacks>,
    /// Figures of the server.
    pub server: Probed<DatabaseServer>,
    /// Reason why Postgres rejected the monitor's last write although it is readable.
    pub write_trouble: Option<SourceTrouble>,
}

/// Last good value and current condition of a probe.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed<T> {
    /// Last good value and its time.
    pub value: Option<(Mono, T)>,
    /// Error of the latest attempt; `None` if it succeeded.
    pub error: Option<String>,
    /// Time by which the next value is due.
    pub expected_by: Mono,
}

impl<T> Default for Probed<T> {
    fn default() -> Self {
        Self { value: None, error: None, expected_by: Mono::default() }
    }
}

impl<T> Probed<T> {
    /// Last good value, regardless of its age.
    pub fn latest(&self) -> Option<&T> {
        self.value.as_ref().map(|(_, value)| value)
    }
}

/// Rows of `shepherd_brain` by state and by status.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryCounts {
    /// By state: QUEUED, COMPLETED, ABANDONED and any others.
    pub by_state: BTreeMap<String, i64>,
    /// By status: OK, ERROR and others, as the fleet writes them.
    pub by_status: BTreeMap<String, i64>,
}

/// Number of started queries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryVolume {
    /// Started in the last hour.
    pub last_1h: i64,
    /// Started in the last 24 hours.
    pub last_24h: i64,
    /// Started in the last 24 hours, by ARA (`domain`).
    pub per_ara_24h: BTreeMap<String, i64>,
}

/// Outstanding callbacks of queries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Callbacks {
    /// Rows of `callbacks`.
    pub pending: i64,
    /// Age of the oldest query with outstanding callbacks at the time of the probe, seconds; `None` when there is none.
    pub oldest_age_sec: Option<f64>,
}

/// Figures of the Postgres server. Each fails separately, with a reason.
#[derive(Debug, Clone, PartialEq)]
pub struct DatabaseServer {
    /// Client connections to all databases.
    pub connections: Result<i64, String>,
    /// Size of the connected database, bytes.
    pub db_size_bytes: Result<i64, String>,
    /// Size of the write-ahead log, bytes; `None` when the role lacks `pg_monitor`.
    pub wal_size_bytes: Result<Option<i64>, String>,
    /// Whether the query tables `shepherd_brain` and `callbacks` exist.
    pub has_queries: bool,
}
