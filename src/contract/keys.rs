//! The Redis keys of the contract and the monitor's own (those that go with one entry of a stream are in
//! [`super::task`]).
//!
//! Keys are composed, never taken apart: stream names may contain colons, so only the payload
//! says which stream and consumer a heartbeat belongs to.
//!
//! What an older monitor keeps too, this one keeps below `shepherd-monitor:`: whoever else writes the keys in [`older`]
//! changes what the older monitor decides, and silences it.

use super::Name;

/// Prefix of all heartbeat keys; discovery scans for it.
pub const HEARTBEAT_PREFIX: &str = "worker:heartbeat:";
/// Prefix of all shutdown marker keys.
pub const MARKER_PREFIX: &str = "worker:shutdown:";
/// Failed tasks by stream (hash; its fields are in [`super::failures`]).
pub const TASK_FAILURES: &str = "worker:failures";
/// What the monitor has read of [`TASK_FAILURES`], so that a restart repeats and misses nothing (hash: `stream:{name}`
/// → JSON, `read_at` → Unix seconds).
pub const SEEN_FAILURES: &str = "shepherd-monitor:task_failures";
/// When the older monitor's state was taken over (string, Unix seconds): without it there is no state of one's own.
pub const TAKEN_OVER: &str = "shepherd-monitor:taken_over";
/// Set of every worker type ever seen alive.
pub const KNOWN_WORKERS: &str = "shepherd-monitor:known_workers";
/// Worker types that somebody had forgotten lately (hash: type → a mark that is new each time), for monitors that
/// know them still.
pub const FORGOTTEN_WORKERS: &str = "monitor:forgotten_workers";
/// Transitions that could not be written to Postgres yet, oldest first (list of JSON).
pub const EVENT_SPOOL: &str = "monitor:events:spool";
/// Set of the names of all series that have a recent window.
pub const RECENT_SERIES: &str = "shepherd-monitor:hist:index";
/// Batches of task durations that are drained and not archived yet (hash: batch id → when and whose).
pub const LATENCY_BATCHES: &str = "monitor:latency:batches";
/// When history was last swept (string, Unix seconds).
pub const LAST_RETENTION_SWEEP: &str = "shepherd-monitor:janitor:last_retention_sweep";
/// When old queries were last deleted (string, Unix seconds).
pub const LAST_QUERY_RETENTION_SWEEP: &str = "shepherd-monitor:janitor:last_query_retention_sweep";
/// Who cleans up at the moment (string, with a short life).
pub const JANITOR_TURN: &str = "monitor:janitor:turn";
/// When the last pass of the janitor ended (string, Unix seconds).
pub const LAST_JANITOR_PASS: &str = "monitor:janitor:last_pass";

/// The newest 200 alerts, newest first (list of JSON).
pub const ALERTS_HISTORY: &str = "shepherd-monitor:alerts:history";

/// Which monitor evaluates and sends alerts, for as long as it says so (string, its id).
pub const ALERTS_LEADER: &str = "monitor:alerts:leader";

/// What became of each entry of a batch of the recycle bin (hash: place in the bin → `dropped`, `void`
/// or `restored <id>`). It outlives the batch.
#[must_use]
pub fn recycle_marks(batch: &str) -> String {
    format!("monitor:recycle:{batch}")
}

/// Key of a worker's heartbeat (string, JSON, TTL 15 s).
#[must_use]
pub fn heartbeat(stream: &Name, consumer: &Name) -> Vec<u8> {
    pair(HEARTBEAT_PREFIX, stream, consumer)
}

/// Key by which a worker says that it left on purpose (string, JSON, TTL 120 s).
#[must_use]
pub fn marker(stream: &Name, consumer: &Name) -> Vec<u8> {
    pair(MARKER_PREFIX, stream, consumer)
}

/// Prefix of the worker types' states.
pub const WORKER_STATE_PREFIX: &str = "shepherd-monitor:worker_state:";
/// Prefix of the series' recent windows.
const RECENT_SERIES_PREFIX: &str = "shepherd-monitor:hist:";

/// Key of a worker type's state as the monitor last decided it (string, JSON).
#[must_use]
pub fn worker_state(worker_type: &Name) -> Vec<u8> {
    with_name(WORKER_STATE_PREFIX, worker_type)
}

/// List of task durations in milliseconds, newest first, pushed by workers and cut to 10,000.
#[must_use]
pub fn task_durations(stream: &Name) -> Vec<u8> {
    with_name("monitor:task_durations:", stream)
}

/// A stream's durations once they are drained (list, as they were).
#[must_use]
pub fn latency_batch(id: &str) -> String {
    format!("monitor:latency:batch:{id}")
}

/// A series' recent window (sorted set: Unix seconds → `{seconds}:{JSON value}`).
#[must_use]
pub fn recent_series(series: &str) -> String {
    format!("{RECENT_SERIES_PREFIX}{series}")
}

/// The keys in which the older monitor keeps its state. This one reads them when it takes over and writes them in
/// `rollback`, and never otherwise.
pub mod older {
    use super::{Name, with_name};

    /// Set of every worker type ever seen alive.
    pub const KNOWN_WORKERS: &str = "monitor:known_workers";
    /// Prefix of the worker types' states.
    pub const WORKER_STATE_PREFIX: &str = "monitor:worker_state:";
    /// Set of the names of all series that have a recent window.
    pub const RECENT_SERIES: &str = "monitor:hist:index";
    /// A series that the older monitor records whatever the fleet is like.
    pub const ALWAYS_RECORDED: &str = "pg:callbacks_pending";
    /// The newest 200 alerts, newest first (list of JSON).
    pub const ALERTS_HISTORY: &str = "monitor:alerts:history";
    /// When history was last swept (string, Unix seconds).
    pub const LAST_RETENTION_SWEEP: &str = "monitor:janitor:last_retention_sweep";
    /// When old queries were last deleted (string, Unix seconds).
    pub const LAST_QUERY_RETENTION_SWEEP: &str = "monitor:janitor:last_query_retention_sweep";

    /// Key of a worker type's state (string, JSON).
    #[must_use]
    pub fn worker_state(worker_type: &Name) -> Vec<u8> {
        with_name(WORKER_STATE_PREFIX, worker_type)
    }

    /// A series' recent window (sorted set: Unix seconds → `{seconds}:{JSON value}`).
    #[must_use]
    pub fn recent_series(series: &str) -> String {
        format!("monitor:hist:{series}")
    }

    /// Key that is present while a rule sends no further notification (string, with the remaining time as its TTL).
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
