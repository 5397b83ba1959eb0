//! Redis keys of the worker protocol and of the monitor. Keys of single entries are in [`super::task`].
//!
//! Keys are built, never parsed: stream names may contain colons, so only the payload of a heartbeat identifies its
//! stream and consumer.
//!
//! Where the older monitor has the same state, this one uses its own keys with the prefix `shepherd-monitor:`. Another
//! writer of the keys in [`older`] would change the decisions of the older monitor and suppress its alerts.

use super::Name;

/// Prefix of heartbeat keys.
pub const HEARTBEAT_PREFIX: &str = "worker:heartbeat:";
/// Prefix of shutdown marker keys.
pub const MARKER_PREFIX: &str = "worker:shutdown:";
/// Failed tasks by stream (hash; see [`super::failures`] for the fields).
pub const TASK_FAILURES: &str = "worker:failures";
/// Last values that the monitor read from [`TASK_FAILURES`], so that a restart neither repeats nor misses failures
/// (hash: `stream:{name}` → JSON, `read_at` → Unix seconds).
pub const SEEN_FAILURES: &str = "shepherd-monitor:task_failures";
/// When the state of the older monitor was migrated (string, Unix seconds). If missing, this monitor has no state yet.
pub const TAKEN_OVER: &str = "shepherd-monitor:taken_over";
/// All worker types that were ever alive (set).
pub const KNOWN_WORKERS: &str = "shepherd-monitor:known_workers";
/// Recently forgotten worker types (hash: type → a token that is new each time), for other instances that still know
/// them.
pub const FORGOTTEN_WORKERS: &str = "monitor:forgotten_workers";
/// Events that are not stored in Postgres yet, oldest first (list of JSON).
pub const EVENT_SPOOL: &str = "monitor:events:spool";
/// Names of all series with a recent window (set).
pub const RECENT_SERIES: &str = "shepherd-monitor:hist:index";
/// Batches of task durations that are drained but not archived (hash: batch ID → time and stream).
pub const LATENCY_BATCHES: &str = "monitor:latency:batches";
/// When history retention last ran (string, Unix seconds).
pub const LAST_RETENTION_SWEEP: &str = "shepherd-monitor:janitor:last_retention_sweep";
/// When query retention last ran (string, Unix seconds).
pub const LAST_QUERY_RETENTION_SWEEP: &str = "shepherd-monitor:janitor:last_query_retention_sweep";
/// Lock of the instance that runs a cleanup (string with a short TTL).
pub const JANITOR_TURN: &str = "monitor:janitor:turn";
/// When the last cleanup run ended (string, Unix seconds).
pub const LAST_JANITOR_PASS: &str = "monitor:janitor:last_pass";

/// The newest 200 alerts, newest first (list of JSON).
pub const ALERTS_HISTORY: &str = "shepherd-monitor:alerts:history";

/// ID of the leader, which evaluates and sends alerts (string with a TTL).
pub const ALERTS_LEADER: &str = "monitor:alerts:leader";

/// Result of each item of a batch in the recycle bin (hash: position in the bin → `dropped`, `void` or `restored
/// <id>`). It outlives the batch.
#[must_use]
pub fn recycle_marks(batch: &str) -> String {
    format!("monitor:recycle:{batch}")
}

/// Heartbeat of a worker (string, JSON, TTL 15 s).
#[must_use]
pub fn heartbeat(stream: &Name, consumer: &Name) -> Vec<u8> {
    pair(HEARTBEAT_PREFIX, stream, consumer)
}

/// Shutdown marker of a worker (string, JSON, TTL 120 s).
#[must_use]
pub fn marker(stream: &Name, consumer: &Name) -> Vec<u8> {
    pair(MARKER_PREFIX, stream, consumer)
}

/// Prefix of the states of worker types.
pub const WORKER_STATE_PREFIX: &str = "shepherd-monitor:worker_state:";
/// Prefix of the recent windows of series.
pub(crate) const RECENT_SERIES_PREFIX: &str = "shepherd-monitor:hist:";

/// State of a worker type (string, JSON).
#[must_use]
pub fn worker_state(worker_type: &Name) -> Vec<u8> {
    with_name(WORKER_STATE_PREFIX, worker_type)
}

/// Task durations in milliseconds, newest first (list; workers trim it to 10,000).
#[must_use]
pub fn task_durations(stream: &Name) -> Vec<u8> {
    with_name("monitor:task_durations:", stream)
}

/// Drained task durations of a stream (list, unchanged).
#[must_use]
pub fn latency_batch(id: &str) -> String {
    format!("monitor:latency:batch:{id}")
}

/// Recent window of a series (sorted set: Unix seconds → `{seconds}:{JSON value}`).
#[must_use]
pub fn recent_series(series: &str) -> String {
    format!("{RECENT_SERIES_PREFIX}{series}")
}

/// Keys of the older monitor. This monitor reads them during the migration and writes them only in `rollback`.
pub mod older {
    use super::{Name, with_name};

    /// All worker types that were ever alive (set).
    pub const KNOWN_WORKERS: &str = "monitor:known_workers";
    /// Prefix of the states of worker types.
    pub const WORKER_STATE_PREFIX: &str = "monitor:worker_state:";
    /// Names of all series with a recent window (set).
    pub const RECENT_SERIES: &str = "monitor:hist:index";
    /// A series that the older monitor always records.
    pub const ALWAYS_RECORDED: &str = "pg:callbacks_pending";
    /// The newest 200 alerts, newest first (list of JSON).
    pub const ALERTS_HISTORY: &str = "monitor:alerts:history";
    /// When history retention last ran (string, Unix seconds).
    pub const LAST_RETENTION_SWEEP: &str = "monitor:janitor:last_retention_sweep";
    /// When query retention last ran (string, Unix seconds).
    pub const LAST_QUERY_RETENTION_SWEEP: &str = "monitor:janitor:last_query_retention_sweep";

    /// State of a worker type (string, JSON).
    #[must_use]
    pub fn worker_state(worker_type: &Name) -> Vec<u8> {
        with_name(WORKER_STATE_PREFIX, worker_type)
    }

    /// Recent window of a series (sorted set: Unix seconds → `{seconds}:{JSON value}`).
    #[must_use]
    pub fn recent_series(series: &str) -> String {
        format!("monitor:hist:{series}")
    }

    /// Present during the cooldown of a rule (string; its TTL is the remaining time).
    #[must_use]
    pub fn alert_cooldown(rule: &str) -> String {
        format!("alert:cooldown:{rule}")
    }
}

fn with_name(prefix: &str, name: &Name) -> Vec<u8> {
    [prefix.as_bytes(), name.as_bytes()].concat()
}

fn pair(prefix: &str, stream: &Name, consumer: &Name) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix.len() + stream.as_bytes().len() + 1 + consumer.as_bytes().len());
    key.extend_from_slice(prefix.as_bytes());
    key.extend_from_slice(stream.as_bytes());
    key.push(b':');
    key.extend_from_slice(consumer.as_bytes());
    key
}
