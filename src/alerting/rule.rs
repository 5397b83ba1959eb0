//! Validated alert rules with defaults applied.

use std::collections::BTreeMap;
use std::time::Duration;

use super::glob::Glob;
use super::message::span;
use super::silences::Window;
pub use crate::fleet::event::Severity;

/// Default cooldown after a notification.
pub const DEFAULT_COOLDOWN: Duration = Duration::from_secs(600);

/// Contents of the rules file.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    /// Whether the file was read; the default stands for the time before that.
    pub known: bool,
    /// Rules, in file order.
    pub rules: Vec<Rule>,
    /// Grouping of alerts that fire at the same time.
    pub group_by: GroupBy,
    /// Routes. The first match selects the channels; without any routes, all channels receive everything.
    pub routes: Vec<Route>,
    /// Maintenance windows.
    pub maintenance: Vec<Window>,
}

/// Properties by which alerts are grouped into one notification. Alerts for different channels are never grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupBy {
    /// By rule.
    pub rule: bool,
    /// By severity.
    pub severity: bool,
    /// By stream or worker type.
    pub stream: bool,
}

impl Default for GroupBy {
    fn default() -> Self {
        Self { rule: true, severity: true, stream: false }
    }
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Unique name; also the key of its cooldown.
    pub name: String,
    /// Watched value.
    pub watch: Watch,
    /// Condition on the value.
    pub bound: Bound,
    /// Time for which the condition must hold before the alert fires.
    pub duration: Duration,
    /// Time for which the condition must not hold before the alert resolves.
    pub resolve_after: Duration,
    /// Minimum time between notifications.
    pub cooldown: Duration,
    /// Whether the notification is sent again after each `cooldown` while the condition holds.
    pub repeats: bool,
    /// Severity.
    pub severity: Severity,
    /// Message text; `{value}`, `{subject}` and `{threshold}` are expanded.
    pub message: Option<String>,
    /// Handling of a missing value.
    pub missing: Missing,
    /// Channels; overrides the routes.
    pub channels: Option<Vec<String>>,
    /// Labels passed to receivers.
    pub labels: BTreeMap<String, String>,
    /// Annotations passed to receivers, expanded like `message`.
    pub annotations: BTreeMap<String, String>,
}

/// Value that a rule watches.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Metric.
    pub metric: Metric,
    /// Streams or worker types; `None` for metrics without a subject.
    pub of: Option<Subjects>,
    /// Compare the change over this time instead of the value.
    pub change_over: Option<Duration>,
}

/// Streams or worker types of a rule.
#[derive(Debug, Clone)]
pub enum Subjects {
    /// A single one.
    One(String),
    /// All that match, with one alert each.
    Glob(Glob),
}

/// Condition on a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Greater.
    Above(f64),
    /// Greater or equal.
    AtLeast(f64),
    /// Smaller.
    Below(f64),
    /// The value is missing.
    NoData,
}

impl Bound {
    /// Whether `value` meets the condition.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Below(limit) => value < limit,
            Self::NoData => false,
        }
    }

    /// Threshold, if there is one.
    #[must_use]
    pub fn limit(self) -> Option<f64> {
        match self {
            Self::Above(limit) | Self::AtLeast(limit) | Self::Below(limit) => Some(limit),
            Self::NoData => None,
        }
    }

    /// Describes the condition: `above 500`.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Above(limit) => format!("above {}", figure(limit)),
            Self::AtLeast(limit) => format!("at or above {}", figure(limit)),
            Self::Below(limit) => format!("below {}", figure(limit)),
            Self::NoData => "no data".to_owned(),
        }
    }
}

/// Formats a number without trailing zeros.
#[must_use]
pub fn figure(value: f64) -> String {
    if value.is_infinite() {
        "never".to_owned()
    } else if value.fract().abs() < 1e-9 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Handling of a missing value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// The alert keeps its state.
    #[default]
    Keep,
    /// The condition counts as met.
    Fires,
    /// The condition counts as not met.
    Resolves,
}

/// Route of notifications to channels.
#[derive(Debug, Clone)]
pub struct Route {
    /// Matching severities; all when empty.
    pub severities: Vec<Severity>,
    /// Matching rules.
    pub rule: Option<Glob>,
    /// Matching streams or worker types.
    pub stream: Option<Glob>,
    /// Channels.
    pub channels: Vec<String>,
}

/// Dimension of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// Stream.
    Stream,
    /// Worker type.
    WorkerType,
    /// State of queries.
    QueryState,
    /// The whole deployment.
    Whole,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident = $per:ident, $unit:literal, $($name:literal)|+;)+) => {
        /// A metric of the snapshot.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric { $($(#[$doc])* $variant,)+ }

        impl Metric {
            /// Returns the metric of this name, as used in the rules file or in recorded series.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                match name { $($($name)|+ => Some(Self::$variant),)+ _ => None }
            }
            /// Returns the primary name of each metric.
            #[must_use]
            pub fn names() -> &'static [&'static str] {
                &[$(metrics!(@first $($name),+)),+]
            }
            /// Primary name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => metrics!(@first $($name),+),)+ }
            }
            /// Dimension.
            #[must_use]
            pub fn per(self) -> Per {
                match self { $(Self::$variant => Per::$per,)+ }
            }
            /// Suffix for values: ` s`, ` %`, or empty.
            #[must_use]
            pub fn unit(self) -> &'static str {
                match self { $(Self::$variant => $unit,)+ }
            }
        }
    };
    (@first $first:literal $(, $rest:literal)*) => { $first };
}

metrics! {
    /// Entries in the stream.
    Xlen = Stream, "", "xlen" | "length";
    /// Entries delivered and not acknowledged.
    Pending = Stream, "", "pending" | "queue_pending";
    /// Pending IDs whose entry no longer exists in the stream.
    PhantomPending = Stream, "", "phantom_pending";
    /// Undelivered entries.
    Lag = Stream, "", "lag" | "undelivered";
    /// Oldest message age.
    LagSeconds = Stream, " s", "lag_seconds" | "oldest_waiting_sec";
    /// Time to drain; infinite while the undelivered entries do not decrease.
    DrainSeconds = Stream, " s", "drain_seconds" | "drain_time";
    /// Consumers of all groups.
    Consumers = Stream, "", "consumers";
    /// Entries added per second.
    AddedPerSec = Stream, "/s", "added_per_sec";
    /// Tasks that failed in the last five minutes.
    Failures = Stream, "", "failures" | "task_failures";
    /// Consumers with a live heartbeat.
    WorkersAlive = WorkerType, "", "workers_alive" | "alive";
    /// Consumers lost in the last hour.
    LostWorkers = WorkerType, "", "lost_workers" | "lost";
    /// Consumers with pending work and no progress.
    HungWorkers = WorkerType, "", "hung_workers" | "hung";
    /// Undelivered plus pending.
    Backlog = WorkerType, "", "backlog";
    /// Sum of the workers' concurrency.
    Capacity = WorkerType, "", "capacity";
    /// Backlog over capacity.
    Utilization = WorkerType, "", "utilization";
    /// Queries in that state.
    QueriesInState = QueryState, "", "queries_in_state" | "pg:state";
    /// Outstanding callbacks.
    CallbacksPending = Whole, "", "callbacks_pending" | "pg:callbacks_pending";
    /// Age of the oldest outstanding callback.
    OldestCallbackAge = Whole, " s", "oldest_callback_age" | "pg:oldest_callback_age_sec";
    /// Queries started in the last hour.
    QueriesLastHour = Whole, "", "queries_last_1h" | "pg:queries_last_1h";
    /// Client connections of Postgres.
    PgConnections = Whole, "", "pg_connection_count" | "pg:connection_count";
    /// Size of the database, bytes.
    DbSize = Whole, " bytes", "db_size_bytes" | "pg:db_size_bytes";
    /// Size of the write-ahead log, bytes.
    WalSize = Whole, " bytes", "wal_size_bytes" | "pg:wal_size_bytes";
    /// Size of database and write-ahead log, bytes.
    DiskUsed = Whole, " bytes", "disk_used_bytes" | "pg:disk_used_bytes";
    /// Used share of the volume, percent.
    DiskUsedPct = Whole, " %", "disk_used_pct" | "pg:disk_used_pct" | "db_capacity";
    /// Size of the volume, bytes.
    DiskCapacity = Whole, " bytes", "disk_capacity_bytes" | "pg:disk_capacity_bytes";
    /// Seconds until the volume is full at the current rate; infinite while usage does not grow.
    DiskFullIn = Whole, " s", "disk_full_in";
    /// Memory in use by Redis, bytes.
    RedisMemory = Whole, " bytes", "redis_used_memory_bytes" | "redis:used_memory_bytes";
    /// Used share of Redis' memory limit, percent.
    RedisMemoryPct = Whole, " %", "redis_memory_pct";
    /// Client connections of Redis.
    RedisClients = Whole, "", "redis_connected_clients" | "redis:connected_clients";
    /// Commands per second.
    RedisOps = Whole, "/s", "redis_ops_per_sec" | "redis:ops_per_sec";
    /// Keys evicted for lack of memory since the server started; use it with `change`.
    RedisEvicted = Whole, "", "redis_evicted_keys" | "redis:evicted_keys";
    /// 1 while Redis is unreachable.
    RedisDown = Whole, "", "redis_down";
    /// 1 while Postgres is unreachable.
    PostgresDown = Whole, "", "postgres_down";
    /// 1 while a data source rejects the credentials.
    LoginRefused = Whole, "", "authentication";
}

impl Per {
    /// Field of a rule that selects the subject.
    #[must_use]
    pub fn field(self) -> Option<&'static str> {
        match self {
            Self::Stream => Some("stream"),
            Self::WorkerType => Some("worker"),
            Self::QueryState => Some("state"),
            Self::Whole => None,
        }
    }
}

impl Rule {
    /// Whether the rule fires for a worker type without live heartbeats; its notifications are grouped with those of
    /// worker types at zero.
    #[must_use]
    pub fn is_worker_down(&self) -> bool {
        let Watch { metric, change_over, .. } = &self.watch;
        *metric == Metric::WorkersAlive && self.bound == Bound::Below(1.0) && change_over.is_none()
    }

    /// Whether the rule can have an alert with this key and subject. An alert that it cannot have predates a change of
    /// the rule.
    #[must_use]
    pub fn can_have(&self, key: &str, subject: Option<&str>) -> bool {
        let is_about = match (&self.watch.of, subject) {
            (None, None) => true,
            (Some(Subjects::One(name)), Some(subject)) => name == subject,
            (Some(Subjects::Glob(glob)), Some(subject)) => glob.is_match(subject),
            _ => false,
        };
        is_about && self.key(subject) == key
    }

    /// Returns the alert key: the rule's name, with the subject where the rule has several.
    #[must_use]
    pub fn key(&self, subject: Option<&str>) -> String {
        match (&self.watch.of, subject) {
            (Some(Subjects::Glob(..)), Some(subject)) => format!("{}:{subject}", self.name),
            _ => self.name.clone(),
        }
    }

    /// Expands `{value}`, `{subject}` and `{threshold}`.
    #[must_use]
    pub fn filled(&self, text: &str, subject: Option<&str>, value: Option<f64>) -> String {
        if !text.contains('{') {
            return text.to_owned();
        }
        let value = value.map_or_else(|| "unknown".to_owned(), figure);
        let limit = self.bound.limit().map_or_else(String::new, figure);
        text.replace("{value}", &value).replace("{threshold}", &limit).replace("{subject}", subject.unwrap_or_default())
    }

    /// Describes value and condition: `xlen of arax above 500 for 1 m`.
    #[must_use]
    pub fn watches(&self) -> String {
        let of = match &self.watch.of {
            Some(Subjects::One(name)) => format!(" of {name}"),
            Some(Subjects::Glob(glob)) => format!(" of {}", glob.text()),
            None => String::new(),
        };
        let change = self.watch.change_over.map(|over| format!(" changed in {}", span(over.as_secs_f64())));
        let held = match self.duration.as_secs_f64() {
            0.0 => String::new(),
            seconds => format!(" for {}", span(seconds)),
        };
        format!("{}{of}{} {}{held}", self.watch.metric.name(), change.unwrap_or_default(), self.bound.words())
    }

    /// One-line description of the observed value.
    #[must_use]
    pub fn detail(&self, subject: Option<&str>, value: Option<f64>) -> String {
        let metric = self.watch.metric;
        let of = subject.map(|s| format!(" of {s}")).unwrap_or_default();
        if self.is_worker_down() {
            return format!("worker {} has no live heartbeats", subject.unwrap_or_default());
        }
        if self.bound == Bound::NoData {
            return format!("no data for {}{of}", metric.name());
        }
        let value = value.map_or_else(|| "unknown".to_owned(), |value| figure(value) + metric.unit());
        let change = match self.watch.change_over {
            Some(over) => format!("changed by {value} in {} s", over.as_secs()),
            None => format!("is {value}"),
        };
        format!("{}{of} {change} ({})", metric.name(), self.bound.words())
    }
}
