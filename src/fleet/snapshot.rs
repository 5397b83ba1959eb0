//! The snapshot: all state after a poll, as served by the API and the pages.
//!
//! The JSON keeps every field of the older monitor's snapshot with its meaning and adds more. An unreachable data
//! source carries `error`; an unknown figure is `null`, never 0.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::consumer::ConsumerState;
use super::event::Event;
use super::older_monitor::OlderMonitor;
use super::reading::{GroupConsumer, GroupReading, RedisServer, SourceTrouble, UnreadableHeartbeat};
use super::worker_type::TypeState;
use crate::contract::Name;
use crate::contract::failures::{FailureCounts, FailureKind, LastFailure};

/// State of the fleet after a poll. Times are Unix seconds.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Snapshot {
    /// Number of the poll since the monitor started.
    pub tick: u64,
    /// Time of the poll, by the clock of Redis, or of the monitor if Redis is unreachable.
    pub ts: f64,
    /// Worker types by name.
    pub workers: BTreeMap<Name, WorkerTypeStatus>,
    /// Watched streams by name.
    pub streams: BTreeMap<Name, StreamStatus>,
    /// Queries, callbacks and the database itself.
    pub postgres: PostgresStatus,
    /// The Redis server.
    pub redis: RedisStatus,
    /// Events of this poll, oldest first.
    pub events: Vec<Arc<Event>>,
    /// Recent events, newest first, at most 50.
    pub recent_events: VecDeque<Arc<Event>>,
    /// Products shown in the per-ARA panel, in order.
    pub aras: Arc<[String]>,
    /// Heartbeat keys with an invalid value.
    pub unreadable_heartbeats: Vec<UnreadableHeartbeat>,
    /// Whether an older monitor is active on the same Redis.
    pub older_monitor: OlderMonitor,
    /// This monitor is read-only (`MONITOR_OBSERVE_ONLY`).
    pub observe_only: bool,
    /// Depth of each stream over the last minutes, for the live charts.
    #[serde(skip)]
    pub depths: Arc<DepthHistory>,
}

/// A worker type: all processes that read one stream.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct WorkerTypeStatus {
    /// The decided state.
    pub state: TypeState,
    /// Time of the last state change; `null` before the first.
    pub state_changed_at: Option<f64>,
    /// When a consumer was last seen alive.
    pub last_seen_alive: Option<f64>,
    /// Last number of alive consumers above zero.
    pub last_alive_count: u32,
    /// Consumers with a current heartbeat.
    pub alive: u32,
    /// Consumers whose heartbeat is late or just expired; not decided yet.
    pub stale: u32,
    /// Alive consumers that are shutting down.
    pub draining: u32,
    /// Alive consumers with pending messages and no progress.
    pub hung: u32,
    /// Messages have waited longer than the hung threshold of the stream while every running consumer is idle.
    pub not_consuming: bool,
    /// Consumers with an invalid heartbeat.
    pub unreadable: u32,
    /// Consumers of the group that never wrote a heartbeat.
    pub without_heartbeat: u32,
    /// Consumers lost (crashed) in the last hour and not recovered.
    pub lost: u32,
    /// Of these, those not replaced by another consumer since the type was last at zero.
    pub lost_open: u32,
    /// Time of the last loss.
    pub lost_at: Option<f64>,
    /// Sum of `task_limit` over alive consumers.
    pub task_limit_total: u64,
    /// Undelivered plus pending messages, without phantom pending; `null` if unknown.
    pub backlog: Option<u64>,
    /// Whether `backlog` is a lower bound.
    pub backlog_at_least: bool,
    /// Entries delivered and not acknowledged, all groups.
    pub pending: Option<u64>,
    /// Pending IDs without an entry in the stream; not part of `backlog`.
    pub phantom_pending: Option<u64>,
    /// Whether `phantom_pending` is a lower bound.
    pub phantom_pending_at_least: bool,
    /// Same as `task_limit_total`.
    pub capacity: u64,
    /// backlog / capacity; 1 with backlog and no capacity; `null` if unknown.
    pub utilization: Option<f64>,
    /// Consumers, those with a heartbeat first, by name.
    pub consumers: Vec<ConsumerStatus>,
}

/// One consumer of a worker type.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: Name,
    /// The decided state.
    pub state: ConsumerState,
    /// Time of the last state change.
    pub state_since: f64,
    /// Start of the process, by its own clock.
    pub started_at: Option<f64>,
    /// Time of its last heartbeat, by its own clock.
    pub last_seen: Option<f64>,
    /// Concurrency.
    pub task_limit: Option<u32>,
    /// Whether its heartbeat is late or expired.
    pub stale: bool,
    /// Entries delivered to it and not acknowledged; `null` if it is not in a group.
    pub pending: Option<u64>,
    /// Pending IDs without an entry in the stream, as far as known.
    pub phantom_pending: Option<u64>,
    /// Milliseconds since its last command.
    pub idle_ms: Option<u64>,
    /// Running tasks, as reported by the worker.
    pub in_flight: Option<u32>,
    /// Why its heartbeat is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<Box<str>>,
}

impl Snapshot {
    /// Time of the last reading of the data source that has been unreachable the longest, Unix seconds; the time of the
    /// snapshot when all are reachable.
    #[must_use]
    pub fn read_at(&self) -> f64 {
        let since = |source: &SourceStatus| match source {
            SourceStatus::Down { since, .. } => *since,
            _ => self.ts,
        };
        since(&self.redis.source).min(since(&self.postgres.source)).min(self.ts)
    }
}

/// A stream, with totals over all its groups.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct StreamStatus {
    /// Entries in the stream; `null` if it could not be read.
    pub xlen: Option<u64>,
    /// Entries delivered and not acknowledged, all groups.
    pub pending: Option<u64>,
    /// Consumers, all groups.
    pub consumer_count: usize,
    /// Maximum idle time of the consumers; 0 without consumers, `null` if the stream could not be read.
    pub max_idle_ms: Option<u64>,
    /// Consumers of all groups.
    #[schemars(with = "Vec<StreamConsumer<'static>>")]
    pub consumers: StreamConsumers,
    /// Pending IDs without an entry in the stream (deleted or trimmed while pending).
    pub phantom_pending: Option<u64>,
    /// Whether `phantom_pending` is a lower bound.
    pub phantom_pending_at_least: bool,
    /// Why this stream could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the key exists.
    pub exists: bool,
    /// Undelivered entries: the largest lag of its groups; without groups, its length.
    pub undelivered: Option<u64>,
    /// Whether `undelivered` is a lower bound.
    pub undelivered_at_least: bool,
    /// Age of the oldest undelivered entry, seconds.
    pub oldest_waiting_sec: Option<f64>,
    /// Entries added per second over the last minute, if reported by Redis.
    pub added_per_sec: Option<f64>,
    /// Entries delivered to the group per second over the last minute.
    pub read_per_sec: Option<f64>,
    /// Time to drain the backlog at the current rates, seconds; `null` if it is not shrinking.
    pub drain_sec: Option<f64>,
    /// Its groups.
    pub groups: Vec<GroupStatus>,
    /// Task failures as counted by the workers; `null` if unknown.
    pub failures: Option<TaskFailures>,
}

/// Task failures of a stream. One task may count under several kinds: a malformed task that was dead-lettered
/// counts as both. The counts restart when the workers' counters are reset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct TaskFailures {
    /// By kind.
    #[serde(flatten)]
    pub counts: FailureCounts,
    /// Failures of all kinds in the last 5 minutes. A lower bound if no monitor was running for a part of that
    /// time.
    pub last_5m: u64,
    /// The newest failure.
    pub last: Option<NewestFailure>,
}

impl TaskFailures {
    /// Whether any task failed.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.counts.is_zero() || self.last_5m > 0
    }
}

/// The newest failure of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct NewestFailure {
    /// How the task failed.
    pub kind: FailureKind,
    /// Reason, at most 500 bytes.
    pub reason: String,
    /// ID of the stream entry; empty if not reported.
    pub entry: String,
    /// Time, Unix seconds by the clock of the worker.
    pub ts: f64,
}

impl From<&LastFailure> for NewestFailure {
    fn from(last: &LastFailure) -> Self {
        Self { kind: last.kind, reason: last.reason.clone(), entry: last.entry.clone(), ts: last.ts() }
    }
}

/// Consumers of a stream by group, shared with the reading so that a large fleet is not copied for every poll.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamConsumers(Vec<(Name, Arc<[GroupConsumer]>)>);

impl StreamConsumers {
    /// Takes the consumers of the groups.
    pub(super) fn of(groups: &[GroupReading]) -> Self {
        Self(groups.iter().map(|group| (group.name.clone(), group.consumers.clone().unwrap_or_default())).collect())
    }

    /// Number of consumers; a consumer of several groups counts once per group.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|(_, consumers)| consumers.len()).sum()
    }

    /// Each consumer with its group's name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &GroupConsumer)> {
        self.0.iter().flat_map(|(group, consumers)| consumers.iter().map(move |consumer| (group, consumer)))
    }

    /// Whether more than one group reads the stream, so that consumer names need the group.
    #[must_use]
    pub fn are_of_several_groups(&self) -> bool {
        self.0.len() > 1
    }
}

impl Serialize for StreamConsumers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let several = self.are_of_several_groups();
        serializer.collect_seq(self.iter().map(|(group, consumer)| StreamConsumer {
            name: &consumer.name,
            pending: consumer.pending,
            phantom_pending: (consumer.phantom_pending > 0).then_some(consumer.phantom_pending),
            idle_ms: consumer.idle_ms,
            inactive_ms: consumer.inactive_ms,
            group: several.then_some(group),
        }))
    }
}

/// A consumer of a group of the stream.
#[derive(Serialize, JsonSchema)]
struct StreamConsumer<'a> {
    /// Its name.
    name: &'a Name,
    /// Entries delivered to it and not acknowledged.
    pending: u64,
    /// Pending IDs without an entry in the stream; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    phantom_pending: Option<u64>,
    /// Milliseconds since its last command.
    idle_ms: u64,
    /// Milliseconds since its last successful command, if reported by Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    inactive_ms: Option<u64>,
    /// Its group, if the stream has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a Name>,
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct GroupStatus {
    /// Its name.
    pub name: Name,
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// Pending IDs without an entry in the stream.
    pub phantom_pending: u64,
    /// Whether `phantom_pending` is a lower bound.
    pub phantom_pending_at_least: bool,
    /// Undelivered entries and how the number was determined.
    #[serde(flatten)]
    pub lag: super::reading::Lag,
    /// Number of consumers; `null` if it could not be read.
    pub consumer_count: Option<usize>,
    /// ID of the last entry delivered.
    pub last_delivered_id: String,
    /// Entries read since it was created.
    pub entries_read: Option<u64>,
    /// Age of its oldest undelivered entry, seconds.
    pub oldest_waiting_sec: Option<f64>,
}

/// State of a data source.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum SourceStatus {
    /// Waiting for the first response.
    Starting,
    /// Read in this poll.
    Ok,
    /// Reachable again; missing heartbeats are ignored for the remaining seconds.
    Settling {
        /// Remaining seconds.
        remaining_sec: f64,
    },
    /// Unreachable; data that depends on it is the last known state.
    Down {
        /// Time it was last readable, or the monitor started (Unix seconds).
        since: f64,
        /// The error.
        #[serde(flatten)]
        trouble: SourceTrouble,
    },
}

impl SourceStatus {
    /// Whether the figures of this data source are current.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self, Self::Ok | Self::Settling { .. })
    }
}

/// The Redis server, as last read.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RedisStatus {
    /// Figures of the server; the last known ones if it is unreachable.
    #[serde(flatten)]
    pub server: RedisServer,
    /// State of the data source.
    pub source: SourceStatus,
    /// Error message if it is unreachable, rejects writes, or denies the monitor a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Time of the figures.
    pub read_at: Option<f64>,
    /// Why Redis rejects writes although it can be read: out of memory, say. While it does, no missing heartbeat counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_error: Option<SourceTrouble>,
}

/// The database, as last read. Each figure is `null` until it was first measured.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PostgresStatus {
    /// Queries by state.
    pub state_counts: Option<BTreeMap<String, i64>>,
    /// Queries by status.
    pub status_counts: Option<BTreeMap<String, i64>>,
    /// Age of the counts, seconds (slow counts run less often); same as `freshness.counts.age_sec`.
    pub counts_age_sec: Option<f64>,
    /// Queries started in the last hour.
    pub queries_last_1h: Option<i64>,
    /// Queries started in the last 24 hours.
    pub queries_last_24h: Option<i64>,
    /// Queries started in the last 24 hours, by ARA.
    pub per_ara_24h: Option<BTreeMap<String, i64>>,
    /// Pending callbacks.
    pub callbacks_pending: Option<i64>,
    /// Age of the oldest query with pending callbacks, seconds.
    pub oldest_callback_age_sec: Option<f64>,
    /// Client connections.
    pub connection_count: Option<i64>,
    /// Size of the database, bytes.
    pub db_size_bytes: Option<i64>,
    /// Size of the write-ahead log, bytes.
    pub wal_size_bytes: Option<i64>,
    /// Size of the volume (`PG_VOLUME_CAPACITY`), bytes; 0 if not set.
    pub disk_capacity_bytes: u64,
    /// Database plus write-ahead log, bytes.
    pub disk_used_bytes: Option<i64>,
    /// Used share of the capacity, percent; `null` if either is unknown.
    pub disk_used_pct: Option<f64>,
    /// The database has no query table (`shepherd_brain`).
    pub without_queries: bool,
    /// State of the data source.
    pub source: SourceStatus,
    /// Error message if it is unreachable, rejects writes, or a measurement failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Error of the last rejected write while Postgres is readable, such as a full disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_error: Option<SourceTrouble>,
    /// Age of each group of figures.
    pub freshness: PostgresFreshness,
}

/// Freshness of the Postgres figures, by measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct PostgresFreshness {
    /// `state_counts` and `status_counts`.
    pub counts: Freshness,
    /// `queries_last_1h`, `queries_last_24h` and `per_ara_24h`.
    pub volume: Freshness,
    /// `callbacks_pending` and `oldest_callback_age_sec`.
    pub callbacks: Freshness,
    /// `connection_count`.
    pub connections: Freshness,
    /// `db_size_bytes`.
    pub database_size: Freshness,
    /// `wal_size_bytes`.
    pub wal_size: Freshness,
}

/// Freshness of a group of figures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Freshness {
    /// Seconds since it was measured; `null` before the first time.
    pub age_sec: Option<f64>,
    /// Older than two polls; pages show the age.
    pub stale: bool,
    /// The last measurement failed or the next is overdue; rules, series and `/metrics` omit the figure.
    pub outdated: bool,
    /// Error of the last measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PostgresStatus {
    /// Copy without outdated figures, so that an old measurement is not recorded as a new one.
    #[must_use]
    pub fn current(&self) -> Self {
        let mut current = self.clone();
        let freshness = &self.freshness;
        if freshness.counts.outdated {
            (current.state_counts, current.status_counts) = (None, None);
        }
        if freshness.volume.outdated {
            (current.queries_last_1h, current.queries_last_24h, current.per_ara_24h) = (None, None, None);
        }
        if freshness.callbacks.outdated {
            (current.callbacks_pending, current.oldest_callback_age_sec) = (None, None);
        }
        if freshness.connections.outdated {
            current.connection_count = None;
        }
        if freshness.database_size.outdated {
            current.db_size_bytes = None;
        }
        if freshness.wal_size.outdated {
            current.wal_size_bytes = None;
        }
        if freshness.database_size.outdated || freshness.wal_size.outdated {
            (current.disk_used_bytes, current.disk_used_pct) = (None, None);
        }
        current
    }
}

/// Backlog of each stream over the last minutes, one column per retained poll.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DepthHistory {
    /// Time of each column, Unix seconds, oldest first.
    pub times: VecDeque<f64>,
    /// One value per column and stream; `None` is a gap.
    pub depths: BTreeMap<Name, VecDeque<Option<u64>>>,
}

impl DepthHistory {
    /// Maximum number of columns: ten minutes of three-second polls.
    pub const COLUMNS: usize = 200;

    /// Adds a column and removes the oldest beyond [`Self::COLUMNS`].
    pub fn push(&mut self, ts: f64, values: impl Iterator<Item = (Name, Option<u64>)>) {
        let before = self.times.len();
        self.times.push_back(ts);
        for (stream, value) in values {
            let series = self.depths.entry(stream).or_insert_with(|| vec![None; before].into());
            series.push_back(value);
        }
        for series in self.depths.values_mut() {
            series.resize(before + 1, None);
        }
        while self.times.len() > Self::COLUMNS {
            self.times.pop_front();
            for series in self.depths.values_mut() {
                series.pop_front();
            }
        }
        self.depths.retain(|_, series| series.iter().any(Option::is_some));
    }
}
