//! The snapshot: everything the monitor knows after a tick, as the API and the pages show it.
//!
//! JSON keeps every field of the predecessor's snapshot with its meaning and adds to it. A source
//! that could not be read carries `error`; a figure that is not known is `null`, never 0.

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

/// One finished tick. Times are Unix seconds.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Snapshot {
    /// Counts up with every tick since the monitor started.
    pub tick: u64,
    /// When it was taken, by Redis' clock where Redis answered, else by the monitor's.
    pub ts: f64,
    /// Worker types by name.
    pub workers: BTreeMap<Name, WorkerTypeStatus>,
    /// Watched streams by name.
    pub streams: BTreeMap<Name, StreamStatus>,
    /// Queries, callbacks and the database itself.
    pub postgres: PostgresStatus,
    /// The Redis server.
    pub redis: RedisStatus,
    /// What changed in this tick, oldest first.
    pub events: Vec<Arc<Event>>,
    /// What changed lately, newest first, at most 50.
    pub recent_events: VecDeque<Arc<Event>>,
    /// Products shown in the per-ARA panel, in order.
    pub aras: Arc<[String]>,
    /// Heartbeat keys whose value cannot be used.
    pub unreadable_heartbeats: Vec<UnreadableHeartbeat>,
    /// Whether an older monitor is active on the same Redis.
    pub older_monitor: OlderMonitor,
    /// This monitor only observes (`MONITOR_OBSERVE_ONLY`).
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
    /// When it took this state; `None` before it was ever decided.
    pub state_changed_at: Option<f64>,
    /// When a consumer was last seen alive.
    pub last_seen_alive: Option<f64>,
    /// How many were alive when last counted above zero.
    pub last_alive_count: u32,
    /// Consumers with a heartbeat that is being rewritten.
    pub alive: u32,
    /// Consumers whose heartbeat is late or just gone; not decided yet.
    pub stale: u32,
    /// Alive consumers that take no new work.
    pub draining: u32,
    /// Alive consumers with work pending and no progress.
    pub hung: u32,
    /// Consumers whose heartbeat cannot be read.
    pub unreadable: u32,
    /// Consumers of the group that never wrote a heartbeat.
    pub without_heartbeat: u32,
    /// Consumers lost (crashed) in the last hour that did not come back.
    pub lost: u32,
    /// Of these, those that no other consumer replaced, since the type was last at zero.
    pub lost_open: u32,
    /// When the last of them was lost.
    pub lost_at: Option<f64>,
    /// Sum of `task_limit` over alive consumers.
    pub task_limit_total: u64,
    /// Work not delivered plus work delivered and not finished, without phantom pending; `None` when not known.
    pub backlog: Option<u64>,
    /// Whether `backlog` is a lower bound.
    pub backlog_at_least: bool,
    /// Entries delivered and not acknowledged, all groups.
    pub pending: Option<u64>,
    /// Those of them whose entry is no longer in the stream. They are not part of `backlog`.
    pub phantom_pending: Option<u64>,
    /// Whether `phantom_pending` is a lower bound.
    pub phantom_pending_at_least: bool,
    /// Same as `task_limit_total`.
    pub capacity: u64,
    /// backlog / capacity; 1 when there is backlog and no capacity; `None` when not known.
    pub utilization: Option<f64>,
    /// Its consumers, those with presence first, by name.
    pub consumers: Vec<ConsumerStatus>,
}

/// One consumer of a worker type.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: Name,
    /// The decided state.
    pub state: ConsumerState,
    /// When it took that state.
    pub state_since: f64,
    /// When the process started, by its own clock.
    pub started_at: Option<f64>,
    /// When it last wrote its heartbeat, by its own clock.
    pub last_seen: Option<f64>,
    /// How many tasks it runs at once.
    pub task_limit: Option<u32>,
    /// Its heartbeat is late or gone.
    pub stale: bool,
    /// Entries delivered to it and not acknowledged; `None` when no group lists it.
    pub pending: Option<u64>,
    /// Those of them whose entry is no longer in the stream, as far as is known.
    pub phantom_pending: Option<u64>,
    /// Milliseconds since it last asked Redis for anything.
    pub idle_ms: Option<u64>,
    /// Tasks it says it is working on.
    pub in_flight: Option<u32>,
    /// Why its heartbeat cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<Box<str>>,
}

/// One stream. The first five fields are the predecessor's; figures over all its groups.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct StreamStatus {
    /// Entries in the stream; `None` when it could not be read.
    pub xlen: Option<u64>,
    /// Entries delivered and not acknowledged, all groups.
    pub pending: Option<u64>,
    /// Consumers, all groups.
    pub consumer_count: usize,
    /// The longest idle time of any consumer; 0 without consumers, `None` when the stream could not be read.
    pub max_idle_ms: Option<u64>,
    /// Consumers of all groups.
    #[schemars(with = "Vec<StreamConsumer<'static>>")]
    pub consumers: StreamConsumers,
    /// Those of `pending` whose entry is no longer in the stream: deleted or trimmed while it was pending.
    pub phantom_pending: Option<u64>,
    /// Whether `phantom_pending` is a lower bound.
    pub phantom_pending_at_least: bool,
    /// Why this stream could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the key exists.
    pub exists: bool,
    /// Entries not delivered: the largest lag of its groups; with no group, its length.
    pub undelivered: Option<u64>,
    /// Whether `undelivered` is a lower bound.
    pub undelivered_at_least: bool,
    /// How long the oldest undelivered entry has been waiting, seconds.
    pub oldest_waiting_sec: Option<f64>,
    /// Entries added per second over the last minute, where Redis counts them.
    pub added_per_sec: Option<f64>,
    /// Entries read by the group per second over the last minute.
    pub read_per_sec: Option<f64>,
    /// Seconds until the backlog is gone at the present rates; `None` when it is not shrinking.
    pub drain_sec: Option<f64>,
    /// Its groups.
    pub groups: Vec<GroupStatus>,
    /// Tasks that did not succeed, as its workers counted them; `None` when that is not known.
    pub failures: Option<TaskFailures>,
}

/// A stream's tasks that did not succeed. One task may count under several kinds: a malformed task that was
/// dead-lettered counts as both. The counts begin again when the workers' counters are reset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct TaskFailures {
    /// By kind.
    #[serde(flatten)]
    pub counts: FailureCounts,
    /// Tasks that failed in the last five minutes, whatever the kind. A lower bound after a time in which no monitor
    /// read the counters.
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
    /// Why, at most 500 bytes.
    pub reason: String,
    /// ID of the stream entry; empty when the worker wrote none.
    pub entry: String,
    /// When, Unix seconds by the worker's clock.
    pub ts: f64,
}

impl From<&LastFailure> for NewestFailure {
    fn from(last: &LastFailure) -> Self {
        Self { kind: last.kind, reason: last.reason.clone(), entry: last.entry.clone(), ts: last.ts() }
    }
}

/// A stream's consumers by group, as they were read: those of a large fleet are not copied for every tick.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamConsumers(Vec<(Name, Arc<[GroupConsumer]>)>);

impl StreamConsumers {
    /// Those that the groups list.
    pub(super) fn of(groups: &[GroupReading]) -> Self {
        Self(groups.iter().map(|group| (group.name.clone(), group.consumers.clone().unwrap_or_default())).collect())
    }

    /// How many there are, each counted in every group that lists it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|(_, consumers)| consumers.len()).sum()
    }

    /// Each with its group's name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &GroupConsumer)> {
        self.0.iter().flat_map(|(group, consumers)| consumers.iter().map(move |consumer| (group, consumer)))
    }

    /// More than one group reads the stream: whoever names a consumer says of which.
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

/// A consumer as a group of the stream lists it.
#[derive(Serialize, JsonSchema)]
struct StreamConsumer<'a> {
    /// Its name.
    name: &'a Name,
    /// Entries delivered to it and not acknowledged.
    pending: u64,
    /// Those of them whose entry is no longer in the stream; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    phantom_pending: Option<u64>,
    /// Milliseconds since it last tried to do anything.
    idle_ms: u64,
    /// Milliseconds since it last succeeded, where Redis says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    inactive_ms: Option<u64>,
    /// The group that lists it, when it is not the stream's only one.
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
    /// Those of them whose entry is no longer in the stream.
    pub phantom_pending: u64,
    /// Whether `phantom_pending` is a lower bound.
    pub phantom_pending_at_least: bool,
    /// Entries not delivered to it, with where the number comes from.
    #[serde(flatten)]
    pub lag: super::reading::Lag,
    /// Its consumers; `None` when they could not be read.
    pub consumer_count: Option<usize>,
    /// ID of the last entry delivered.
    pub last_delivered_id: String,
    /// Entries it has read since it exists.
    pub entries_read: Option<u64>,
    /// How long its oldest undelivered entry has been waiting, seconds.
    pub oldest_waiting_sec: Option<f64>,
}

/// How a source stands.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum SourceStatus {
    /// Not asked yet, or its first answer is still out.
    Starting,
    /// Read in this tick.
    Ok,
    /// It answers again; absent heartbeats do not count before this many seconds have passed.
    Settling {
        /// Seconds left.
        remaining_sec: f64,
    },
    /// Not readable: what depends on it is frozen as of `since`.
    Down {
        /// When it was last good (Unix seconds), or when the monitor started.
        since: f64,
        /// What is wrong.
        #[serde(flatten)]
        trouble: SourceTrouble,
    },
}

impl SourceStatus {
    /// Whether what is shown of this source is current.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self, Self::Ok | Self::Settling { .. })
    }
}

/// The Redis server, as last read.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RedisStatus {
    /// Its figures; when Redis is down, the last ones it gave.
    #[serde(flatten)]
    pub server: RedisServer,
    /// How it stands.
    pub source: SourceStatus,
    /// What is wrong, in words, when it is down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the figures are from.
    pub read_at: Option<f64>,
}

/// The database, as last read. Each figure is `None` until its probe has answered once.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PostgresStatus {
    /// Queries by state.
    pub state_counts: Option<BTreeMap<String, i64>>,
    /// Queries by status.
    pub status_counts: Option<BTreeMap<String, i64>>,
    /// Seconds since the counts were taken (a slow count runs less often); the same as
    /// `freshness.counts.age_sec`.
    pub counts_age_sec: Option<f64>,
    /// Queries started in the last hour.
    pub queries_last_1h: Option<i64>,
    /// Queries started in the last 24 hours.
    pub queries_last_24h: Option<i64>,
    /// Queries started in the last 24 hours, by ARA.
    pub per_ara_24h: Option<BTreeMap<String, i64>>,
    /// Answers that queries still wait for.
    pub callbacks_pending: Option<i64>,
    /// Age of the oldest query that waits for one, seconds.
    pub oldest_callback_age_sec: Option<f64>,
    /// Client connections.
    pub connection_count: Option<i64>,
    /// Size of the database, bytes.
    pub db_size_bytes: Option<i64>,
    /// Size of the write-ahead log, bytes.
    pub wal_size_bytes: Option<i64>,
    /// The volume's size from `PG_VOLUME_CAPACITY`, bytes; 0 when not set.
    pub disk_capacity_bytes: u64,
    /// Database plus write-ahead log, bytes.
    pub disk_used_bytes: Option<i64>,
    /// Of the capacity; `None` when either is unknown.
    pub disk_used_pct: Option<f64>,
    /// The fleet keeps no queries here: `shepherd_brain` does not exist.
    pub without_queries: bool,
    /// How it stands.
    pub source: SourceStatus,
    /// What is wrong, in words, when it is down, refuses to write, or a probe failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why Postgres refused the monitor's last write, if it did although it can be read: a full disk, say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_error: Option<SourceTrouble>,
    /// How old each group of figures is, and whether it can be relied on.
    pub freshness: PostgresFreshness,
}

/// How fresh the figures of [`PostgresStatus`] are, by what is measured together.
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

/// How fresh a group of figures is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Freshness {
    /// Seconds since it was measured; `None` before the first time.
    pub age_sec: Option<f64>,
    /// It is older than two ticks: pages say how old.
    pub stale: bool,
    /// Its last measurement failed, or the next one is overdue: rules, series and `/metrics` go without the figure.
    pub outdated: bool,
    /// Why it could not be measured last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PostgresStatus {
    /// The same without the figures that are outdated: what was measured once must not count as measured now.
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

/// Undelivered plus pending of each stream over the last minutes. One column per kept tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DepthHistory {
    /// Unix seconds of each column, oldest first.
    pub times: VecDeque<f64>,
    /// Per stream, one value per column; `None` is a gap.
    pub depths: BTreeMap<Name, VecDeque<Option<u64>>>,
}

impl DepthHistory {
    /// Columns kept: ten minutes of three-second ticks.
    pub const COLUMNS: usize = 200;

    /// Adds a column and forgets the oldest beyond [`Self::COLUMNS`].
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
