//! Rules as they are used: typed, checked, with defaults filled in.

use std::collections::BTreeMap;
use std::time::Duration;

use super::glob::Glob;
use super::message::span;
use super::quiet::Window;
pub use crate::fleet::event::Severity;

/// Quiet time after a notification where a rule names none.
pub const DEFAULT_COOLDOWN: Duration = Duration::from_secs(600);

/// The kinds of channels, and the setting that makes each.
pub const CHANNELS: [(&str, &str); 3] =
    [("slack", "SLACK_WEBHOOK_URL"), ("email", "ALERT_EMAIL_TO"), ("webhook", "ALERT_WEBHOOK_URL")];

/// What is said when there is none: that nobody is told, and what to set.
#[must_use]
pub fn no_channel() -> String {
    let settings = CHANNELS.map(|(_, setting)| setting).join(", ");
    format!("notifications are not sent: no channel is configured. Set one of {settings}")
}

/// Everything the alert file says.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    /// The file was read and says what the rules are; the default is what is known before that.
    pub known: bool,
    /// The rules, in the file's order.
    pub rules: Vec<Rule>,
    /// What alerts that fire in the same moment have in common when they are one message.
    pub group_by: GroupBy,
    /// Which channels get what; the first that matches decides, and without any all get all.
    pub routes: Vec<Route>,
    /// When nobody is to be told.
    pub maintenance: Vec<Window>,
}

/// What alerts have in common that are told together. They are told by the same channels in any
/// case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupBy {
    /// Their rule.
    pub rule: bool,
    /// How serious they are.
    pub severity: bool,
    /// Their stream or worker type.
    pub stream: bool,
}

impl Default for GroupBy {
    fn default() -> Self {
        Self { rule: true, severity: true, stream: false }
    }
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Unique; the key of its cooldown.
    pub name: String,
    /// What is looked at.
    pub watch: Watch,
    /// When what is seen counts.
    pub bound: Bound,
    /// How long it must hold before the alert fires.
    pub duration: Duration,
    /// How long it must be over before the alert is resolved.
    pub resolve_after: Duration,
    /// Quiet time after a notification.
    pub cooldown: Duration,
    /// While the condition holds, the notification is sent again after each `cooldown`.
    pub repeats: bool,
    /// How serious.
    pub severity: Severity,
    /// Text for people; `{value}`, `{subject}` and `{threshold}` are filled in.
    pub message: Option<String>,
    /// What it means when there is no value.
    pub missing: Missing,
    /// The channels that are told, whatever the routes say.
    pub channels: Option<Vec<String>>,
    /// Passed on to receivers.
    pub labels: BTreeMap<String, String>,
    /// Passed on to receivers, filled in as `message` is.
    pub annotations: BTreeMap<String, String>,
}

/// What a rule looks at.
#[derive(Debug, Clone)]
pub struct Watch {
    /// The figure.
    pub metric: Metric,
    /// Of which streams or worker types; everything else has no subject.
    pub of: Option<Subjects>,
    /// Compare the change over this time instead of the figure.
    pub change_over: Option<Duration>,
}

/// Which streams or worker types a rule is about.
#[derive(Debug, Clone)]
pub enum Subjects {
    /// This one.
    One(String),
    /// All that match, an alert each.
    Glob(Glob),
}

/// When a value counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Greater.
    Above(f64),
    /// Greater or equal.
    AtLeast(f64),
    /// Smaller.
    Below(f64),
    /// There is none.
    NoData,
}

impl Bound {
    /// Whether `value` counts.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::Above(limit) => value > limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Below(limit) => value < limit,
            Self::NoData => false,
        }
    }

    /// The limit, where there is one.
    #[must_use]
    pub fn limit(self) -> Option<f64> {
        match self {
            Self::Above(limit) | Self::AtLeast(limit) | Self::Below(limit) => Some(limit),
            Self::NoData => None,
        }
    }

    /// `above 500`.
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

/// A number without needless digits.
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

/// What a missing value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// Nothing: the alert stays as it is.
    #[default]
    Keep,
    /// As if the condition held.
    Fires,
    /// As if it did not.
    Resolves,
}

/// Which messages go where.
#[derive(Debug, Clone)]
pub struct Route {
    /// Of these severities; all when empty.
    pub severities: Vec<Severity>,
    /// Of rules that match.
    pub rule: Option<Glob>,
    /// About streams or worker types that match.
    pub stream: Option<Glob>,
    /// To these channels.
    pub channels: Vec<String>,
}

/// What there is one figure per.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// Stream.
    Stream,
    /// Worker type.
    WorkerType,
    /// State of queries.
    QueryState,
    /// One for the whole deployment.
    Whole,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident = $per:ident, $unit:literal, $($name:literal)|+;)+) => {
        /// A figure of the snapshot.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric { $($(#[$doc])* $variant,)+ }

        impl Metric {
            /// The metric of that name, as the file or a recorded series words it.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                match name { $($($name)|+ => Some(Self::$variant),)+ _ => None }
            }
            /// Every name that [`Self::named`] knows, the first of each metric.
            #[must_use]
            pub fn names() -> &'static [&'static str] {
                &[$(metrics!(@first $($name),+)),+]
            }
            /// Its name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => metrics!(@first $($name),+),)+ }
            }
            /// What there is one per.
            #[must_use]
            pub fn per(self) -> Per {
                match self { $(Self::$variant => Per::$per,)+ }
            }
            /// What follows its figure: ` s`, ` %`, or nothing.
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
    /// Pending IDs whose entry is no longer in the stream.
    PhantomPending = Stream, "", "phantom_pending";
    /// Entries not delivered.
    Lag = Stream, "", "lag" | "undelivered";
    /// How long the oldest undelivered entry has been waiting.
    LagSeconds = Stream, " s", "lag_seconds" | "oldest_waiting_sec";
    /// Undelivered entries over net rate; infinite while they do not get fewer.
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
    /// Consumers with work and no progress.
    HungWorkers = WorkerType, "", "hung_workers" | "hung";
    /// Undelivered plus pending.
    Backlog = WorkerType, "", "backlog";
    /// Sum of task limits.
    Capacity = WorkerType, "", "capacity";
    /// Backlog over capacity.
    Utilization = WorkerType, "", "utilization";
    /// Queries in that state.
    QueriesInState = QueryState, "", "queries_in_state" | "pg:state";
    /// Answers that queries wait for.
    CallbacksPending = Whole, "", "callbacks_pending" | "pg:callbacks_pending";
    /// Age of the oldest of them.
    OldestCallbackAge = Whole, " s", "oldest_callback_age" | "pg:oldest_callback_age_sec";
    /// Queries started in the last hour.
    QueriesLastHour = Whole, "", "queries_last_1h" | "pg:queries_last_1h";
    /// Client connections of Postgres.
    PgConnections = Whole, "", "pg_connection_count" | "pg:connection_count";
    /// Size of the database, bytes.
    DbSize = Whole, " bytes", "db_size_bytes" | "pg:db_size_bytes";
    /// Size of the write-ahead log, bytes.
    WalSize = Whole, " bytes", "wal_size_bytes" | "pg:wal_size_bytes";
    /// Database and log, bytes.
    DiskUsed = Whole, " bytes", "disk_used_bytes" | "pg:disk_used_bytes";
    /// Of the volume, percent.
    DiskUsedPct = Whole, " %", "disk_used_pct" | "pg:disk_used_pct" | "db_capacity";
    /// Size of the volume, bytes.
    DiskCapacity = Whole, " bytes", "disk_capacity_bytes" | "pg:disk_capacity_bytes";
    /// Seconds until the volume is full at the present rate; infinite while it does not fill.
    DiskFullIn = Whole, " s", "disk_full_in";
    /// Memory in use by Redis, bytes.
    RedisMemory = Whole, " bytes", "redis_used_memory_bytes" | "redis:used_memory_bytes";
    /// Of Redis' memory limit, percent.
    RedisMemoryPct = Whole, " %", "redis_memory_pct";
    /// Client connections of Redis.
    RedisClients = Whole, "", "redis_connected_clients" | "redis:connected_clients";
    /// Commands per second.
    RedisOps = Whole, "/s", "redis_ops_per_sec" | "redis:ops_per_sec";
    /// Keys evicted for lack of memory since the start; use it with `change`.
    RedisEvicted = Whole, "", "redis_evicted_keys" | "redis:evicted_keys";
    /// 1 while Redis cannot be read.
    RedisDown = Whole, "", "redis_down";
    /// 1 while Postgres cannot be read.
    PostgresDown = Whole, "", "postgres_down";
    /// 1 while a source refuses the login.
    LoginRefused = Whole, "", "authentication";
}

impl Per {
    /// The field of a rule that says which.
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
    /// Whether it is about a worker type without any live heartbeat: its notifications join those of worker types at
    /// zero.
    #[must_use]
    pub fn is_worker_down(&self) -> bool {
        let Watch { metric, change_over, .. } = &self.watch;
        *metric == Metric::WorkersAlive && self.bound == Bound::Below(1.0) && change_over.is_none()
    }

    /// Whether the rule can have an alert with this key and subject. One that it cannot have is left from before the
    /// rule was changed.
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

    /// The alert's key: the rule's name, with the subject where the rule has many.
    #[must_use]
    pub fn key(&self, subject: Option<&str>) -> String {
        match (&self.watch.of, subject) {
            (Some(Subjects::Glob(..)), Some(subject)) => format!("{}:{subject}", self.name),
            _ => self.name.clone(),
        }
    }

    /// Fills `{value}`, `{subject}`, `{threshold}` in.
    #[must_use]
    pub fn filled(&self, text: &str, subject: Option<&str>, value: Option<f64>) -> String {
        if !text.contains('{') {
            return text.to_owned();
        }
        let value = value.map_or_else(|| "unknown".to_owned(), figure);
        let limit = self.bound.limit().map_or_else(String::new, figure);
        text.replace("{value}", &value).replace("{threshold}", &limit).replace("{subject}", subject.unwrap_or_default())
    }

    /// What it looks at and when that counts: `xlen of arax above 500 for 1 m`.
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

    /// What is seen, in one line.
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
